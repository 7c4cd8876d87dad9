//! What the admin API shows, as serde types for both of its sides. Times are RFC 3339 in JSON and
//! milliseconds in here.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::events::Entry;
use crate::message::{Address, HeldBy, MessageId, ReversePath};
use crate::queue::record;
use crate::queue::record::{Failure, Route};

/// A message in the queue, with those of its recipients that were asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listed {
    pub id: MessageId,
    #[serde(with = "time")]
    pub received_at: Millis,
    /// Envelope sender; empty for the null sender.
    pub from: ReversePath,
    /// Bytes.
    pub size: u64,
    pub subject: String,
    /// Without brackets; empty if the message has none.
    pub message_id: String,
    /// The stream that it goes by.
    #[serde(default = "crate::message::stream::default_name")]
    pub stream: String,
    pub recipients: Vec<Recipient>,
}

/// One delivery that is not done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipient {
    /// Within the message.
    pub number: u32,
    pub address: Address,
    /// The address that was written in RCPT, if an alias led from there to here.
    pub alias: Option<Address>,
    pub route: Route,
    pub status: Status,
    /// When it is tried next; none if it is not waiting.
    #[serde(with = "time::option")]
    pub due: Option<Millis>,
    /// Why it is held; none if it is not.
    pub held_because: Option<String>,
    /// What holds it; known within the server only.
    #[serde(skip)]
    pub held_by: Option<HeldBy>,
    /// What keeps it from being tried although it waits for nothing else: a suspension, a limit of its
    /// stream; none if nothing does.
    #[serde(default)]
    pub kept_back: Option<String>,
    /// Do the limits of its stream hold for it? Known within the server only.
    #[serde(skip)]
    pub keeps_pace: bool,
    pub attempts: u32,
    pub last_failure: Option<Failure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Waiting,
    Held,
    Captured,
    /// Its record cannot be read: it is set aside until a person has looked.
    Damaged,
}

impl Status {
    pub const ALL: [Status; 4] = [Status::Waiting, Status::Held, Status::Captured, Status::Damaged];

    pub fn name(self) -> &'static str {
        match self {
            Status::Waiting => "waiting",
            Status::Held => "held",
            Status::Captured => "captured",
            Status::Damaged => "damaged",
        }
    }
}

impl FromStr for Status {
    type Err = String;
    fn from_str(text: &str) -> Result<Status, String> {
        Status::ALL
            .into_iter()
            .find(|status| status.name() == text)
            .ok_or_else(|| "a status is waiting, held, captured or damaged".to_owned())
    }
}

/// All that is known of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Story {
    pub id: MessageId,
    /// None: done with, or its record is damaged.
    pub message: Option<Listed>,
    /// What of it cannot be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<super::Damaged>,
    /// In the order in which it happened.
    #[serde(with = "entries")]
    pub entries: Vec<Entry>,
}

impl Listed {
    pub fn new<'a>(
        message: &record::Message,
        recipients: impl IntoIterator<Item = (u32, &'a record::Recipient)>,
    ) -> Listed {
        Listed {
            id: message.id,
            received_at: message.received_at,
            from: message.mail_from.clone(),
            size: message.size,
            subject: message.subject.clone(),
            message_id: message.message_id.clone(),
            stream: message.stream.clone(),
            recipients: recipients.into_iter().map(|(number, recipient)| Recipient::new(number, recipient)).collect(),
        }
    }
}

impl Recipient {
    pub fn new(number: u32, recipient: &record::Recipient) -> Recipient {
        let (status, due, hold) = match &recipient.status {
            record::Status::Waiting { due } => (Status::Waiting, Some(*due), None),
            record::Status::Held(hold) => (Status::Held, None, Some(hold.clone())),
            record::Status::Captured { .. } => (Status::Captured, None, None),
        };
        let (held_because, held_by) = hold.map(|hold| (hold.reason, hold.by)).unzip();
        Recipient {
            number,
            address: recipient.address.clone(),
            alias: recipient.alias.clone(),
            route: recipient.route.clone(),
            status,
            due,
            held_because,
            held_by,
            kept_back: None,
            keeps_pace: false,
            attempts: recipient.attempts,
            last_failure: recipient.last_failure.clone(),
        }
    }
}

/// Milliseconds as RFC 3339 text.
pub mod time {
    use mail_parser::DateTime;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::clock::{Millis, rfc3339};

    pub fn serialize<S: Serializer>(at: &Millis, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&rfc3339(*at))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Millis, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is not a time in RFC 3339 form")))
    }

    /// Takes what [`rfc3339`] writes: UTC, with or without a fraction.
    pub(crate) fn parse(text: &str) -> Option<Millis> {
        let seconds = DateTime::parse_rfc3339(text)?.to_timestamp();
        let digits: String = text
            .split_once('.')
            .map_or("", |(_, rest)| rest)
            .chars()
            .take_while(char::is_ascii_digit)
            .take(3)
            .collect();
        let fraction = format!("{digits:0<3}").parse::<u64>().ok()?;
        u64::try_from(seconds).ok()?.checked_mul(1000)?.checked_add(fraction)
    }

    /// The same for a time that may not be there.
    pub mod option {
        use super::{Deserialize, Deserializer, Error, Millis, Serializer, parse, rfc3339};

        pub fn serialize<S: Serializer>(at: &Option<Millis>, serializer: S) -> Result<S::Ok, S::Error> {
            match at {
                Some(at) => serializer.serialize_some(&rfc3339(*at)),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Millis>, D::Error> {
            let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
            parse(&text).map(Some).ok_or_else(|| D::Error::custom(format!("{text:?} is not a time in RFC 3339 form")))
        }
    }
}

/// Entries as the journal has them, but with the times as text.
mod entries {
    use serde::de::Error as _;
    use serde::ser::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use serde_json::Value;

    use super::{Entry, time};
    use crate::clock::rfc3339;

    /// Fields of an entry that hold milliseconds.
    const TIMES: [&str; 2] = ["at", "next"];

    pub fn serialize<S: Serializer>(entries: &[Entry], serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = Vec::with_capacity(entries.len());
        for entry in entries {
            let mut value = serde_json::to_value(entry).map_err(S::Error::custom)?;
            for name in TIMES {
                if let Some(field) = value.get_mut(name)
                    && let Some(at) = field.as_u64()
                {
                    *field = rfc3339(at).into();
                }
            }
            list.push(value);
        }
        list.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Entry>, D::Error> {
        let mut list = Vec::<Value>::deserialize(deserializer)?;
        for value in &mut list {
            for name in TIMES {
                if let Some(field) = value.get_mut(name)
                    && let Some(at) = field.as_str().and_then(time::parse)
                {
                    *field = at.into();
                }
            }
        }
        list.into_iter().map(|value| serde_json::from_value(value).map_err(D::Error::custom)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::Event;

    #[test]
    fn a_story_survives_json_and_its_times_are_readable() {
        let story = Story {
            id: MessageId::from_u64(77),
            message: None,
            damaged: Vec::new(),
            entries: vec![Entry {
                at: 951_782_400_123,
                event: Event::Deferred {
                    recipient: Address::parse("a@b.example").unwrap(),
                    why: Failure::local("4.4.1", "mx.b.example", "no answer"),
                    attempt: 2,
                    next: 951_782_460_000,
                },
            }],
        };
        let json = serde_json::to_value(&story).unwrap();
        assert_eq!(json["entries"][0]["at"], "2000-02-29T00:00:00.123Z");
        assert_eq!(json["entries"][0]["next"], "2000-02-29T00:01:00.000Z");
        assert_eq!(json["entries"][0]["event"], "deferred");
        assert_eq!(serde_json::from_value::<Story>(json).unwrap(), story);
    }

    #[test]
    fn times_with_and_without_fraction() {
        assert_eq!(time::parse("2000-02-29T00:00:00Z"), Some(951_782_400_000));
        assert_eq!(time::parse("2000-02-29T00:00:00.5Z"), Some(951_782_400_500));
        assert_eq!(time::parse("yesterday"), None);
    }
}
