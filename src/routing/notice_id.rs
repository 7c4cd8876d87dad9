//! Message-IDs of notices that we write: `loop.<id>.<mac>@host`. Who answers such a notice is a machine, or
//! does not know that nobody reads the answer; by the MAC nobody else can make a message look like one.

use crate::message::{Domain, MessageId};
use crate::secret::{self, Marks};

use super::base32;

const PREFIX: &str = "loop.";
const PURPOSE: &str = "notice id";
/// Bytes of the MAC: 16 characters.
const MAC_BYTES: usize = 10;

/// Without brackets. `seed`: random, one message may be told of more than once.
pub fn make(marks: &Marks, about: MessageId, seed: u64, hostname: &Domain) -> String {
    let id = format!("{about}-{seed:016x}");
    format!("{PREFIX}{id}.{}@{hostname}", mac(marks, &id))
}

/// Is this the id of a notice that we have written? Whatever our name was then.
pub fn is_ours(marks: &Marks, id: &str) -> bool {
    let local = id.split_once('@').map_or(id, |(local, _)| local);
    let found = local.strip_prefix(PREFIX).and_then(|rest| rest.split_once('.'));
    found.is_some_and(|(id, given)| secret::same(mac(marks, id).as_bytes(), given.to_ascii_lowercase().as_bytes()))
}

fn mac(marks: &Marks, id: &str) -> String {
    base32::encode(&marks.mark(PURPOSE, &[id.as_bytes()])[..MAC_BYTES])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_we_made_is_ours() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::open(folder.path()).unwrap();
        let host = Domain::parse("mail.example.com").unwrap();
        let id = make(&marks, MessageId::first_at(1_900_000_000_000), 7, &host);
        assert!(is_ours(&marks, &id), "{id}");
        assert!(is_ours(&marks, &id.replace("mail.example.com", "was.example.com")));
        for bad in [
            id.replacen("-0", "-1", 1),
            id.replacen("loop.", "dsn.", 1),
            format!("x{id}"),
            id.replace('@', "a@"),
            "loop.@x".to_owned(),
            "loop..@x".to_owned(),
            String::new(),
        ] {
            assert!(!is_ours(&marks, &bad), "{bad}");
        }
        let other = tempfile::tempdir().unwrap();
        assert!(!is_ours(&Marks::open(other.path()).unwrap(), &id));
    }
}
