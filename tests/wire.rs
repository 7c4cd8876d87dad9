//! Properties of the wire code: how the input is cut into reads changes nothing; what is stuffed comes
//! back; no sequence of commands makes a message without a sender and recipients.

#![allow(clippy::unwrap_used, clippy::panic)]

#[path = "support/bare.rs"]
mod bare;
#[path = "support/conversation.rs"]
mod conversation;

use bare::Bare;
use conversation::{Heard, Setting, Transport};
use postrider::message::Address;
use postrider::smtp::wire::{
    ChunkDecoder, DataDecoder, DotStuffer, Flaw, LINE_END_BYTES, LineCutter, LineError, Progress,
};
use proptest::prelude::*;

/// Bytes among which line ends, dots and NULs are frequent.
fn awkward_bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        6 => Just(b"\r\n".to_vec()),
        3 => Just(b".".to_vec()),
        3 => Just(b"\r\n.".to_vec()),
        2 => Just(b"\r\n.\r\n".to_vec()),
        1 => Just(b"\r".to_vec()),
        1 => Just(b"\n".to_vec()),
        1 => Just(b"\0".to_vec()),
        4 => proptest::collection::vec(any::<u8>(), 1..40),
        4 => "[ -~]{1,40}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec(piece, 0..most).prop_map(|pieces| pieces.concat())
}

/// Content as the queue holds it: CRLF lines, nothing bare, no NUL.
fn clean_content() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![Just(String::new()), "[.]{1,3}", "[.]?[ -~äöü]{0,90}"];
    (proptest::collection::vec(line, 0..30), any::<bool>()).prop_map(|(lines, ends)| {
        let mut content = lines.join("\r\n");
        if ends && !content.is_empty() {
            content.push_str("\r\n");
        }
        content.into_bytes()
    })
}

/// Where to cut, as shares of the whole.
fn cuts() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1usize..30, 1..60)
}

/// `input` in pieces of these lengths, again and again.
fn pieces<'a>(input: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = input;
    cuts.iter().cycle().map_while(move |length| {
        let (piece, tail) = rest.split_at((*length).min(rest.len()));
        rest = tail;
        (!piece.is_empty()).then_some(piece)
    })
}

/// The lines, and the error that ended them.
fn cut_lines<'a>(reads: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Option<LineError>) {
    let (mut cutter, mut buffer, mut lines) = (LineCutter::new(), Vec::new(), Vec::new());
    for read in reads {
        buffer.extend_from_slice(read);
        loop {
            match cutter.cut(&buffer) {
                Ok(None) => break,
                Ok(Some(length)) => {
                    lines.push(buffer[..length].to_vec());
                    buffer.drain(..length + LINE_END_BYTES);
                }
                Err(error) => return (lines, Some(error)),
            }
        }
    }
    (lines, None)
}

/// What DATA holds, its flaw, and how much input it used; the content only if there is no flaw.
fn read_data<'a>(reads: impl Iterator<Item = &'a [u8]>, limit: u64) -> (Vec<u8>, Option<Flaw>, Option<usize>) {
    let (mut decoder, mut content, mut used) = (DataDecoder::new(limit), Vec::new(), 0);
    for read in reads {
        let fed = decoder.feed(read, &mut content);
        used += fed.consumed;
        if fed.progress == Progress::Ended {
            return (if decoder.flaw().is_none() { content } else { Vec::new() }, decoder.flaw(), Some(used));
        }
        assert_eq!(fed.consumed, read.len());
    }
    (if decoder.flaw().is_none() { content } else { Vec::new() }, decoder.flaw(), None)
}

/// RFC 5321 4.5.2 and 2.3.8, said as plainly as can be and as slowly.
fn plain_reading(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut content, mut rest) = (Vec::new(), input);
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        let (line, tail) = (&rest[..end], &rest[end + 2..]);
        if line == b"." {
            return Some((content, input.len() - tail.len()));
        }
        content.extend_from_slice(line.strip_prefix(b".").unwrap_or(line));
        content.extend_from_slice(b"\r\n");
        rest = tail;
    }
}

fn has_bare_end(content: &[u8]) -> bool {
    let without = content.to_vec();
    let text = String::from_utf8_lossy(&without).replace("\r\n", "");
    text.contains(['\r', '\n'])
}

proptest! {
    #[test]
    fn any_cut_of_the_input_gives_the_same_lines(input in awkward_bytes(30), cuts in cuts()) {
        let whole = cut_lines(std::iter::once(&input[..]));
        let parts = cut_lines(pieces(&input, &cuts));
        prop_assert_eq!(&whole, &parts);
        for line in whole.0 {
            prop_assert!(!line.contains(&b'\r') && !line.contains(&b'\n'));
        }
    }

    #[test]
    fn any_cut_of_the_input_gives_the_same_message(
        input in awkward_bytes(60), cuts in cuts(), limit in prop_oneof![Just(1_000_000u64), 0u64..200]
    ) {
        let whole = read_data(std::iter::once(&input[..]), limit);
        prop_assert_eq!(&whole, &read_data(pieces(&input, &cuts), limit));
        let plain = plain_reading(&input);
        prop_assert_eq!(whole.2, plain.as_ref().map(|(_, used)| *used));
        if let (Some((content, _)), None) = (&plain, whole.1) {
            prop_assert_eq!(&whole.0, content);
        }
        if let Some((content, _)) = plain {
            let expected = if has_bare_end(&content) {
                Some(Flaw::BareLineEnd)
            } else if content.contains(&0) {
                Some(Flaw::Nul)
            } else if content.len() as u64 > limit {
                Some(Flaw::TooLarge)
            } else {
                None
            };
            prop_assert_eq!(whole.1, expected);
        }
    }

    #[test]
    fn what_is_stuffed_comes_back(content in clean_content(), cuts in cuts(), reads in cuts()) {
        let (mut stuffer, mut wire) = (DotStuffer::new(), Vec::new());
        for chunk in pieces(&content, &cuts) {
            stuffer.encode(chunk, &mut wire).unwrap();
        }
        stuffer.finish(&mut wire).unwrap();
        let (read, flaw, used) = read_data(pieces(&wire, &reads), u64::MAX);
        prop_assert_eq!((flaw, used), (None, Some(wire.len())));
        let mut expected = content.clone();
        if !expected.is_empty() && !expected.ends_with(b"\r\n") {
            expected.extend_from_slice(b"\r\n");
        }
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn nothing_unclean_leaves(content in awkward_bytes(20), cuts in cuts()) {
        let (mut stuffer, mut wire) = (DotStuffer::new(), Vec::new());
        let mut written = Ok(());
        for chunk in pieces(&content, &cuts) {
            written = written.and_then(|()| stuffer.encode(chunk, &mut wire));
        }
        written = written.and_then(|()| stuffer.finish(&mut wire));
        let is_clean = !has_bare_end(&content) && !content.contains(&0);
        prop_assert_eq!(written.is_ok(), is_clean);
        if is_clean {
            prop_assert_eq!(plain_reading(&wire).unwrap().1, wire.len());
        } else {
            prop_assert!(!wire.ends_with(b"\r\n.\r\n") || content.windows(5).any(|w| w == b"\r\n.\r\n"));
        }
    }

    #[test]
    fn chunks_are_counted(content in awkward_bytes(20), sizes in cuts(), reads in cuts()) {
        let (mut decoder, mut out) = (ChunkDecoder::new(u64::MAX), Vec::new());
        for chunk in pieces(&content, &sizes) {
            decoder.begin(chunk.len() as u64);
            // More than the chunk is there; it must be left.
            let with_rest = [chunk, b"\r\n.\r\nQUIT"].concat();
            let mut used = 0;
            for read in pieces(&with_rest, &reads) {
                let fed = decoder.feed(read, &mut out);
                used += fed.consumed;
                if fed.progress == Progress::Ended {
                    break;
                }
            }
            prop_assert_eq!(used, chunk.len());
        }
        let flaw = decoder.finish();
        if has_bare_end(&content) {
            prop_assert_eq!(flaw, Some(Flaw::BareLineEnd));
        } else {
            prop_assert_eq!(flaw, content.contains(&0).then_some(Flaw::Nul));
        }
        if flaw.is_none() {
            prop_assert_eq!(out, content);
        }
    }
}

fn setting(role: &str) -> Setting {
    Setting {
        role: role.into(),
        tls: "opportunistic".into(),
        errors: 1000,
        max_size: 60,
        max_recipients: 3,
        domains: vec!["example.test".into()],
        recipients: vec!["ok@example.test".into(), "two@example.test".into()],
        accounts: vec![conversation::AccountSetting {
            name: "tim".into(),
            password: "tanstaaftanstaaf".into(),
            max_recipients: 2,
        }],
        ..Setting::default()
    }
}

fn any_command() -> impl Strategy<Value = String> {
    let known = [
        "EHLO client.test",
        "HELO client.test",
        "MAIL FROM:<a@sender.test>",
        "MAIL FROM:<>",
        "MAIL FROM:<a@sender.test> SIZE=61",
        "MAIL FROM:<jörg@sender.test> SMTPUTF8",
        "RCPT TO:<ok@example.test>",
        "RCPT TO:<two@example.test> NOTIFY=NEVER",
        "RCPT TO:<nobody@example.test>",
        "RCPT TO:<a@third.test>",
        "DATA",
        "DATA\r\nSubject: x\r\n\r\nhi\r\n.",
        "DATA\r\nx\n.\r\n.",
        "DATA\r\n.",
        ".",
        "BDAT 2\r\nab",
        "BDAT 2 LAST\r\nab",
        "BDAT 0 LAST",
        "BDAT 70 LAST",
        "RSET",
        "NOOP",
        "VRFY x",
        "AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm",
        "AUTH PLAIN",
        "AHRpbQB0YW5zdGFhZnRhbnN0YWFm",
        "AUTH LOGIN",
        "*",
        "STARTTLS",
        "STARTTLS x",
    ];
    prop_oneof![20 => proptest::sample::select(known.to_vec()).prop_map(String::from), 1 => "[ -~]{0,30}"]
}

proptest! {
    /// The pump asserts that each reply is legal and each draft has a recipient; here: the session goes on
    /// or closes, and a draft follows a MAIL and an RCPT that were taken.
    #[test]
    fn any_commands_get_legal_replies(
        commands in proptest::collection::vec(any_command(), 1..40), submission in any::<bool>(), read in 1usize..200
    ) {
        let mut server = Bare::new(&setting(if submission { "submission" } else { "mx" }), read);
        let (mut replies, mut mail_taken, mut rcpt_taken) = (0, false, false);
        for command in &commands {
            server.send(format!("{command}\r\n").as_bytes());
            while let Heard::Reply(reply) = server.hear() {
                replies += 1;
                mail_taken |= reply.starts_with("250 2.1.0");
                rcpt_taken |= reply.starts_with("250 2.1.5");
                if reply.starts_with("220 2.0.0") {
                    server.start_tls_if_due();
                }
            }
            for draft in server.drafts.drain(..) {
                prop_assert!(mail_taken && rcpt_taken && !draft.envelope.recipients.is_empty());
                prop_assert!(draft.content.len() <= 60 && draft.origin.peer.is_some());
                prop_assert!(!submission || draft.origin.account.as_deref() == Some("tim"));
                let ours = |address: &Address| address.domain().as_str() == "example.test";
                prop_assert!(submission || draft.envelope.recipients.iter().all(|r| ours(&r.address)));
                (mail_taken, rcpt_taken) = (false, false);
            }
        }
        prop_assert!(replies > 0);
    }

    #[test]
    fn any_bytes_are_survived(bytes in awkward_bytes(60), read in 1usize..200) {
        let mut server = Bare::new(&setting("mx"), read);
        server.send(&bytes);
        server.send(b"\r\nEHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ok@example.test>\r\nDATA\r\n");
        server.send(&bytes);
    }
}
