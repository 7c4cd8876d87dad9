//! A queued message as files: `ID.eml` is the message byte for byte, `ID.json` its envelope, where it
//! came from, and where each recipient stands. The same goes over the admin socket: the envelope as one
//! line of JSON, then the message.
//!
//! The JSON is that of the store's own records, so nothing of a message is lost on the way; times are
//! written in RFC 3339.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::view::time;
use crate::clock::rfc3339;
use crate::message::MessageId;
use crate::queue::record::{Message, Recipient};

/// Raised when an older postrider could misread what is written.
pub const EXPORT_VERSION: u32 = 1;
/// Bytes of an envelope at most: 100,000 recipients with long failures.
pub const ENVELOPE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Recipients of one message that is imported.
pub const IMPORT_RECIPIENTS_MAX: usize = 100_000;
/// Bytes that a stored message may be larger than `limits.max_size`: trace fields and signatures.
pub const TRACE_BYTES_MAX: usize = 1024 * 1024;
/// Content-type of an envelope and its message in one.
pub const CONTENT_TYPE: &str = "application/x-postrider-message";

/// Fields that hold milliseconds.
const TIMES: [&str; 3] = ["received_at", "due", "at"];

/// What `ID.json` holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Exported {
    /// [`EXPORT_VERSION`]
    pub postrider_export: u32,
    /// Of the message, in hex. Without it (taken out by a person who changed the message) any message
    /// will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    pub message: Message,
    pub recipients: Vec<Recipient>,
}

impl Exported {
    pub fn new(message: Message, recipients: Vec<Recipient>, body: &[u8]) -> Exported {
        // How it lies in the store is no matter of the message.
        let message = Message { streamed: None, ..message };
        Exported { postrider_export: EXPORT_VERSION, sha256: Some(sha256(body)), message, recipients }
    }

    /// As JSON on one line.
    pub fn to_line(&self) -> Result<String, serde_json::Error> {
        self.to_value().map(|value| value.to_string())
    }

    /// As JSON for people.
    pub fn to_pretty(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(&self.to_value()?).map(|text| text + "\n")
    }

    fn to_value(&self) -> Result<Value, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        each_time(&mut value, &|time| time.as_u64().map(|millis| rfc3339(millis).into()));
        Ok(value)
    }

    /// Reads what `to_line` and `to_pretty` write; the error says what is wrong with it.
    pub fn parse(text: &[u8]) -> Result<Exported, String> {
        let mut value: Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        match value.get("postrider_export").and_then(Value::as_u64) {
            Some(version) if version == u64::from(EXPORT_VERSION) => {}
            Some(version) if version > u64::from(EXPORT_VERSION) => {
                return Err(format!("it was written by a newer postrider (export format {version})"));
            }
            _ => return Err("it is not an envelope: postrider_export is missing".to_owned()),
        }
        each_time(&mut value, &|text| text.as_str().and_then(time::parse).map(Value::from));
        let exported: Exported =
            serde_json::from_value(value).map_err(|error| format!("it is not an envelope: {error}"))?;
        match exported.recipients.len() {
            0 => Err("it has no recipients".to_owned()),
            1..=IMPORT_RECIPIENTS_MAX => Ok(exported),
            count => Err(format!("it has {count} recipients; {IMPORT_RECIPIENTS_MAX} are taken")),
        }
    }

    /// Is this the message of the envelope?
    pub fn fits(&self, body: &[u8]) -> Result<(), String> {
        let Some(wanted) = &self.sha256 else { return proper_lines(body) };
        if *wanted == sha256(body) {
            return Ok(());
        }
        let (has, should) = (body.len(), self.message.size);
        Err(format!("the message is not the one that was exported (it has {has} bytes, the other had {should})"))
    }
}

/// What a person changed must still be mail.
fn proper_lines(body: &[u8]) -> Result<(), String> {
    let mut previous = 0;
    for byte in body {
        if (*byte == b'\n') != (previous == b'\r') || *byte == 0 {
            return Err("the message was changed and is no mail any more: its lines must end with CRLF".to_owned());
        }
        previous = *byte;
    }
    if body.ends_with(b"\r\n") { Ok(()) } else { Err("the last line of the message does not end with CRLF".to_owned()) }
}

fn sha256(bytes: &[u8]) -> String {
    use aws_lc_rs::digest;
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Changes every field that holds a time, wherever it is.
fn each_time(value: &mut Value, change: &impl Fn(&Value) -> Option<Value>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match change(field) {
                    Some(changed) if TIMES.contains(&name.as_str()) => *field = changed,
                    _ => each_time(field, change),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| each_time(item, change)),
        _ => {}
    }
}

/// Envelope and message in one.
pub fn join(exported: &Exported, body: &[Bytes]) -> Result<Bytes, serde_json::Error> {
    let line = exported.to_line()?;
    let mut out = BytesMut::with_capacity(line.len() + 1 + body.iter().map(Bytes::len).sum::<usize>());
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(b"\n");
    body.iter().for_each(|piece| out.extend_from_slice(piece));
    Ok(out.freeze())
}

/// Takes apart what [`join`] made.
pub fn split(mut bytes: Bytes) -> Result<(Exported, Bytes), String> {
    let end = memchr::memchr(b'\n', &bytes).ok_or("there is no envelope before the message")?;
    let line = bytes.split_to(end);
    bytes.advance(1);
    Ok((Exported::parse(&line)?, bytes))
}

/// What became of a message that was to be imported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    pub id: MessageId,
    /// An import that was interrupted had done it before.
    pub already: bool,
    /// To be given back once the file is marked as done ([`super::Backend::forget_imports`]).
    pub key: String,
}
