//! Our own forms: the configuration, records of the store, JSON of the API, marks in addresses.

use std::path::{Component, Path};

use crate::admin::compose::{MessageBody, compose};
use crate::admin::submit::draft;
use crate::bounce::suppression::{self, Who};
use crate::config::file_path::Placeholder;
use crate::config::{self, Target};
use crate::message::header::Headers;
use crate::message::{Address, MessageId};
use crate::queue::record::{Message, Recipient};
use crate::routing::sent::Sent;
use crate::routing::srs;
use crate::secret::Marks;

const NOW: u64 = 1_795_000_000_000;

/// A configuration is read, or refused with a place and a remedy.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    // What a device or a pipe holds is not the text's fault.
    if text.contains("dev") || text.contains("proc") || text.contains("include") {
        return;
    }
    match config::parse("fuzz.toml", text) {
        Ok(config) => {
            for target in config.targets.values() {
                if let Target::File { path } = target {
                    let filled = path.fill(value);
                    assert!(filled.starts_with(path.root()), "{}", filled.display());
                    assert!(!is_climbing(&filled), "{}", filled.display());
                }
            }
        }
        Err(problems) => assert!(problems.iter().all(|problem| !problem.remedy.is_empty())),
    }
}

/// What senders decide is hostile, what we decide is not.
fn value(placeholder: Placeholder) -> String {
    match placeholder {
        Placeholder::Date => "2026-11-22".into(),
        Placeholder::Time => "10-00-00".into(),
        Placeholder::Id => "0d3c9k2p5v8xq".into(),
        _ => "../../../../etc/passwd\0\n".into(),
    }
}

fn is_climbing(path: &Path) -> bool {
    path.components().any(|component| component == Component::ParentDir)
}

/// What the store may hold after damage.
pub fn records(input: &[u8]) {
    if let Ok(message) = rmp_serde::from_slice::<Message>(input) {
        let again = rmp_serde::to_vec_named(&message).unwrap();
        rmp_serde::from_slice::<Message>(&again).unwrap();
    }
    let _ = rmp_serde::from_slice::<Recipient>(input);
    let _ = (Sent::read(input, NOW), MessageId::from_prefix(input));
    let _ = (suppression::read_entry(b"key", input, NOW), suppression::read_event(input, NOW));
    let _ = suppression::read_alive(input, NOW);
}

/// The JSON of a submission: what comes of it is one message with the fields it was asked for.
pub fn composed(input: &[u8]) {
    let Ok(body) = serde_json::from_slice::<MessageBody>(input) else { return };
    let Ok(composed) = compose(&body, "own.test", 7, NOW) else { return };
    let Ok(draft) = draft(composed, None, 1 << 20, NOW) else { return };
    let content = draft.content.head();
    assert!(!super::is_stray(content), "a message that two servers read differently");
    let headers = Headers::parse(content);
    if body.raw.is_none() {
        assert_eq!(headers.all("from").count(), 1);
        assert!(headers.get("bcc").is_none(), "a Bcc that would leave");
    }
}

/// Addresses that carry a mark of ours: none that we did not make is believed.
pub fn marks(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let _ = Who::parse(text);
    let Ok(address) = Address::parse(text) else { return };
    // With a key that nothing was marked with.
    let marks = Marks::look(Path::new("/nonexistent")).unwrap();
    assert!(srs::open(&marks, &address, NOW).is_err(), "{text:?} is believed");
}
