//! `postrider send`: a message to the running server, from words on the command line or a file.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::client::Client;
use super::{Failure, load, print_json, text};
use crate::clock::{Clock, Millis, rfc5322};
use crate::message::address::{AddressError, parse_reverse_path};
use crate::message::{Address, ReversePath};

/// Bytes read from a file or standard input at most; the server has its own, smaller limit.
const INPUT_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// Octets in a line of a message, without CRLF (RFC 5322 2.1.1).
const LINE_BYTES_MAX: usize = 998;
/// Bytes of text in one encoded-word, so that it stays within 75 characters (RFC 2047 2).
const ENCODED_WORD_TEXT_BYTES_MAX: usize = 42;

const EXAMPLES: &str = "\
Examples:
  postrider send --from a@example.com --to b@example.net             a short test message
  postrider send --from a@example.com --to b@example.net --subject Hello --body 'How are you?'
  postrider send --from a@example.com --to b@example.net --to c@example.net --file message.eml
  postrider send --from '<>' --to b@example.net                      as a bounce; From is the postmaster
  generate-report | postrider send --from a@example.com --to b@example.net --file - --json

--from and --to are the envelope. A file must be a whole message, header included. The message is
queued under its id once the id is printed; `postrider queue show ID` tells what became of it.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Sender; '<>' is the null sender
    #[arg(long, value_name = "ADDRESS", value_parser = sender)]
    from: ReversePath,
    /// Recipient; may be given several times
    #[arg(long, value_name = "ADDRESS", required = true)]
    to: Vec<Address>,
    /// Subject of the message
    #[arg(long, conflicts_with = "file", default_value = "Test message from postrider")]
    subject: String,
    /// Text of the message
    #[arg(long, value_name = "TEXT", conflicts_with = "file", default_value = "This is a test message.")]
    body: String,
    /// The whole message, from a file or, with -, from standard input
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let config = load(config)?;
    // A message has an author all the same.
    let author = args.from.address().unwrap_or(&config.postmaster);
    let raw = match &args.file {
        Some(file) => read(file)?,
        None => compose(author, &args.to, &args.subject, &args.body, Clock::System.now())?.into(),
    };
    let to: Vec<String> = args.to.iter().map(Address::to_string).collect();
    let from = args.from.address().map_or_else(|| "<>".to_owned(), Address::to_string);
    let id = Client::new(&config.data_dir).submit(&from, &to, raw).await?;
    if args.json {
        return print_json(&serde_json::json!({ "id": id }));
    }
    Ok(text::print(&id.to_string())?)
}

/// An address with or without brackets, or `<>`.
fn sender(text: &str) -> Result<ReversePath, AddressError> {
    parse_reverse_path(text).or_else(|_| Address::parse(text).map(ReversePath::Address))
}

fn read(file: &Path) -> Result<Bytes, Failure> {
    let mut raw = Vec::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(INPUT_BYTES_MAX).read_to_end(&mut raw)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(INPUT_BYTES_MAX).read_to_end(&mut raw))
    };
    match read {
        Ok(0) => {
            Err(Failure::new(format!("{} is empty", file.display())).remedy("give a whole message, header included"))
        }
        Ok(_) if !begins_with_field(&raw) => {
            Err(Failure::new(format!("{} does not begin with a header field", file.display())).remedy(
                "give a whole message: lines such as `Subject: Hello`, an empty line, then the text; or use --body",
            ))
        }
        Ok(_) => Ok(raw.into()),
        Err(error) => Err(Failure::unreadable(file, &error).remedy("check the name and the rights")),
    }
}

/// `Name: value`, the name in the characters of RFC 5322 3.6.8.
fn begins_with_field(raw: &[u8]) -> bool {
    let line = raw.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut halves = line.splitn(2, |byte| *byte == b':');
    let name = halves.next().unwrap_or_default().trim_ascii_end();
    halves.next().is_some() && !name.is_empty() && name.iter().all(u8::is_ascii_graphic)
}

/// A plain-text message in UTF-8. The server adds what belongs to the way (Received, signatures).
pub(super) fn compose(
    from: &Address,
    to: &[Address],
    subject: &str,
    body: &str,
    now: Millis,
) -> Result<Vec<u8>, Failure> {
    let to: Vec<String> = to.iter().map(Address::to_string).collect();
    let body = body.replace("\r\n", "\n").replace('\r', "\n");
    let body = body.trim_end_matches('\n');
    let (encoding, body) = if body.lines().all(|line| line.len() <= LINE_BYTES_MAX) {
        (if body.is_ascii() { "7bit" } else { "8bit" }, body.replace('\n', "\r\n"))
    } else {
        ("base64", in_lines(&STANDARD.encode(body)))
    };
    let message_id = format!("{}@{}", random_name()?, from.domain());
    let header = [
        format!("Date: {}", rfc5322(now)),
        format!("From: {from}"),
        format!("To: {}", to.join(",\r\n\t")),
        format!("Subject: {}", header_text(subject)),
        format!("Message-ID: <{message_id}>"),
        "MIME-Version: 1.0".to_owned(),
        "Content-Type: text/plain; charset=utf-8".to_owned(),
        format!("Content-Transfer-Encoding: {encoding}"),
    ];
    Ok(format!("{}\r\n\r\n{body}\r\n", header.join("\r\n")).into_bytes())
}

/// 128 random bits in hexadecimal.
pub(super) fn random_name() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failure::new(format!("no random numbers: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// As it is where it is short ASCII, else in encoded-words (RFC 2047).
pub(super) fn header_text(text: &str) -> String {
    let text = text::clean(text);
    let plain = text.len() <= 60 && text.is_ascii() && !text.contains("=?");
    if plain {
        return text;
    }
    let mut words = Vec::new();
    let mut word = String::new();
    for c in text.chars() {
        if word.len() + c.len_utf8() > ENCODED_WORD_TEXT_BYTES_MAX {
            words.push(std::mem::take(&mut word));
        }
        word.push(c);
    }
    words.push(word);
    let words: Vec<String> = words.iter().map(|word| format!("=?utf-8?B?{}?=", STANDARD.encode(word))).collect();
    words.join("\r\n\t")
}

/// Base64 in lines of 76 (RFC 2045 6.8).
fn in_lines(encoded: &str) -> String {
    let mut out = String::with_capacity(encoded.len() + encoded.len() / 38);
    for (at, c) in encoded.chars().enumerate() {
        if at > 0 && at % 76 == 0 {
            out.push_str("\r\n");
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use mail_parser::MessageParser;

    fn composed(subject: &str, body: &str) -> Vec<u8> {
        let from = Address::parse("a@example.com").unwrap();
        let to = [Address::parse("b@example.net").unwrap(), Address::parse("c@example.net").unwrap()];
        compose(&from, &to, subject, body, 1_795_300_017_000).unwrap()
    }

    #[test]
    fn what_is_composed_reads_back() {
        let long = "wörd ".repeat(400);
        for (subject, body) in [
            ("Hello", "one\ntwo"),
            ("Grüße aus Köln, und zwar so viele, dass es in eine Zeile nicht passt", "Füße"),
            ("=?utf-8?B?eA==?=", ".\n..\n"),
            ("x", long.as_str()),
        ] {
            let raw = composed(subject, body);
            let text = String::from_utf8(raw.clone()).unwrap();
            assert!(!text.replace("\r\n", "").contains(['\r', '\n']), "{text}");
            assert!(text.split("\r\n").all(|line| line.len() <= LINE_BYTES_MAX));
            let message = MessageParser::default().parse(&raw).unwrap();
            assert_eq!(message.subject(), Some(subject));
            let back = message.body_text(0).unwrap().replace("\r\n", "\n");
            assert_eq!(back.trim_end_matches('\n'), body.trim_end_matches('\n'));
        }
    }

    #[test]
    fn a_subject_adds_no_field() {
        let text = String::from_utf8(composed("x\r\nBcc: d@example.net", "y")).unwrap();
        assert!(text.contains("Subject: x Bcc: d@example.net\r\n"), "{text}");
    }
}
