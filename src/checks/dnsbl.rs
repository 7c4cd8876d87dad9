//! DNS lists of addresses that mail is not wanted from (RFC 5782).
//!
//! Promises: a list that does not answer, or answers that it will not, stops no mail; what it says is
//! plain text when it gets into a reply; lists are asked side by side and not for long.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::dns::{DnsError, Resolver};
use crate::message::Domain;
use crate::message::findings::DnsblFinding;

/// For all lists together.
const DEADLINE: Duration = Duration::from_secs(5);
/// Characters of what a list says.
const TEXT_CHARS_MAX: usize = 200;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    NotListed,
    /// With the address that says so, and the list's text, cleaned; may be empty.
    Listed(Ipv4Addr, String),
    /// The list does not serve us: wrong name server, too many questions, no such list.
    Refused(Ipv4Addr),
    /// It did not answer.
    Trouble,
}

pub(super) struct Dnsbl {
    pub list: Domain,
    pub answer: Answer,
}

impl Dnsbl {
    /// As for results of RFC 8601: `pass` is not listed.
    pub fn result(&self) -> &'static str {
        match self.answer {
            Answer::NotListed => "pass",
            Answer::Listed(..) => "fail",
            Answer::Refused(_) => "permerror",
            Answer::Trouble => "temperror",
        }
    }

    pub fn finding(&self) -> DnsblFinding {
        DnsblFinding { list: self.list.to_string(), result: self.result().to_owned() }
    }
}

/// Asks all lists; the answers come in the order of `lists`.
pub(super) async fn evaluate(resolver: &Resolver, lists: &[Domain], client: IpAddr, deadline: Instant) -> Vec<Dnsbl> {
    let deadline = deadline.min(Instant::now() + DEADLINE);
    let client = client.to_canonical();
    let mut asked = JoinSet::new();
    for (number, list) in lists.iter().enumerate() {
        let (resolver, name) = (resolver.clone(), format!("{}.{list}", reversed(client)));
        asked.spawn(async move { (number, timeout_at(deadline, ask(&resolver, &name)).await) });
    }
    let mut answers = vec![Answer::Trouble; lists.len()];
    while let Some(done) = asked.join_next().await {
        if let Ok((number, Ok(answer))) = done
            && let Some(place) = answers.get_mut(number)
        {
            *place = answer;
        }
    }
    lists.iter().cloned().zip(answers).map(|(list, answer)| Dnsbl { list, answer }).collect()
}

async fn ask(resolver: &Resolver, name: &str) -> Answer {
    let addresses = match resolver.a(name).await {
        Ok(addresses) => addresses,
        Err(DnsError::NoSuchDomain) => return Answer::NotListed,
        Err(_) => return Answer::Trouble,
    };
    // Other addresses say nothing: some resolvers make up answers for names that are not there (RFC 5782 2.3).
    let meant = |address: &&Ipv4Addr| address.octets().first() == Some(&127);
    let is_error = |address: &&Ipv4Addr| address.octets().starts_with(&[127, 255, 255]);
    if let Some(code) = addresses.iter().filter(meant).find(is_error) {
        return Answer::Refused(*code);
    }
    let Some(code) = addresses.iter().find(meant) else { return Answer::NotListed };
    let texts = resolver.txt(name).await.unwrap_or_default();
    Answer::Listed(*code, texts.first().map(|text| clean(text)).unwrap_or_default())
}

/// RFC 5782 2.1, 2.4: octets or nibbles, the last first.
fn reversed(client: IpAddr) -> String {
    let parts: Vec<String> = match client {
        IpAddr::V4(v4) => v4.octets().iter().map(ToString::to_string).collect(),
        IpAddr::V6(v6) => {
            v6.octets().iter().flat_map(|octet| [octet >> 4, octet & 15]).map(|n| format!("{n:x}")).collect()
        }
    };
    parts.into_iter().rev().collect::<Vec<_>>().join(".")
}

fn clean(text: &str) -> String {
    let kept = text.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' });
    let text: String = kept.take(TEXT_CHARS_MAX).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_lists_are_asked_for() {
        assert_eq!(reversed("192.0.2.1".parse().unwrap()), "1.2.0.192");
        let v6 = reversed("2001:db8:1:2:3:4:567:89ab".parse().unwrap());
        assert_eq!(v6, "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.8.b.d.0.1.0.0.2");
    }

    #[test]
    fn what_a_list_says_is_plain() {
        assert_eq!(clean("listed\r\n250 ok\0 see  https://l.test/\u{e4}"), "listed 250 ok see https://l.test/");
        assert_eq!(clean(&"x".repeat(999)).len(), TEXT_CHARS_MAX);
    }
}
