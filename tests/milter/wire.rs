//! What packets and fields promise for any bytes.

use std::net::IpAddr;

use postrider::checks::milter::fields::{Change, Fields};
use postrider::checks::milter::wire::{Command, DATA_BYTES_MAX, Options, Replies, Reply, WireError};
use postrider::message::header::Headers;
use proptest::prelude::*;

use crate::fake_milter::packet;

/// A reply as a milter writes it.
fn render(reply: &Reply) -> Vec<u8> {
    let texts = |first: &[u8], second: &[u8]| [first, b"\0", second, b"\0"].concat();
    match reply {
        Reply::Negotiate(Options { version, actions, protocol }) => {
            packet(b'O', &[*version, *actions, *protocol].map(u32::to_be_bytes).concat())
        }
        Reply::Accept => packet(b'a', b""),
        Reply::Continue => packet(b'c', b""),
        Reply::Discard => packet(b'd', b""),
        Reply::Reject => packet(b'r', b""),
        Reply::TempFail => packet(b't', b""),
        Reply::ConnFail => packet(b'f', b""),
        Reply::Shutdown => packet(b'4', b""),
        Reply::Skip => packet(b's', b""),
        Reply::Progress => packet(b'p', b""),
        Reply::ReplyCode(text) => packet(b'y', &[text, &b"\0"[..]].concat()),
        Reply::Quarantine(text) => packet(b'q', &[text, &b"\0"[..]].concat()),
        Reply::AddHeader { name, value } => packet(b'h', &texts(name, value)),
        Reply::InsertHeader { index, name, value } => {
            packet(b'i', &[&index.to_be_bytes(), &texts(name, value)[..]].concat())
        }
        Reply::ChangeHeader { index, name, value } => {
            packet(b'm', &[&index.to_be_bytes(), &texts(name, value)[..]].concat())
        }
        Reply::NotOffered(_) => packet(b'b', b"body"),
    }
}

fn text() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(1u8.., 0..40)
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(version, actions, protocol)| Reply::Negotiate(Options {
            version,
            actions,
            protocol
        })),
        Just(Reply::Accept),
        Just(Reply::Continue),
        Just(Reply::Discard),
        Just(Reply::Reject),
        Just(Reply::TempFail),
        Just(Reply::ConnFail),
        Just(Reply::Shutdown),
        Just(Reply::Skip),
        Just(Reply::Progress),
        Just(Reply::NotOffered("replace the body")),
        text().prop_map(Reply::ReplyCode),
        text().prop_map(Reply::Quarantine),
        (text(), text()).prop_map(|(name, value)| Reply::AddHeader { name, value }),
        (any::<u32>(), text(), text()).prop_map(|(index, name, value)| Reply::InsertHeader { index, name, value }),
        (any::<u32>(), text(), text()).prop_map(|(index, name, value)| Reply::ChangeHeader { index, name, value }),
    ]
}

/// Everything in these bytes, which come cut as `cuts` says; and why there is no more, if so.
fn read(bytes: &[u8], cuts: &[usize]) -> (Vec<Reply>, Option<WireError>) {
    let mut replies = Replies::default();
    let mut found = Vec::new();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.sort_unstable();
    let mut from = 0;
    for cut in cuts.into_iter().chain([bytes.len()]) {
        replies.push(&bytes[from..cut]);
        from = cut;
        loop {
            match replies.take() {
                Ok(Some(reply)) => found.push(reply),
                Ok(None) => break,
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fn value_of(fields: &Fields<'_>) -> Vec<u8> {
    fields.changed().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_cut_of_the_bytes_gives_the_replies_that_were_written(
        replies in proptest::collection::vec(reply(), 0..6),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let bytes: Vec<u8> = replies.iter().flat_map(render).collect();
        prop_assert_eq!(read(&bytes, &cuts), (replies, None));
    }

    #[test]
    fn no_packet_panics_and_no_cut_matters(
        packets in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..40)), 0..4),
        rubbish in proptest::collection::vec(any::<u8>(), 0..40),
        cuts in proptest::collection::vec(any::<usize>(), 0..8),
    ) {
        let known = b"Oacdrtf4spyqhimb+2-el";
        let packets = packets.iter().flat_map(|(byte, data)| packet(known[usize::from(*byte) % known.len()], data));
        let bytes: Vec<u8> = packets.chain(rubbish).collect();
        prop_assert_eq!(read(&bytes, &cuts), read(&bytes, &[]));
    }

    /// Length, byte, texts that end with NUL and hold none.
    #[test]
    fn a_command_is_one_packet(name in text(), value in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut out = b"before".to_vec();
        let written = Command::Header { name: &name, value: &value }.write(&mut out);
        prop_assert!(written);
        let plain: Vec<u8> = value.iter().copied().filter(|byte| *byte != 0).collect();
        let wanted = packet(b'L', &[&name[..], b"\0", &plain, b"\0"].concat());
        prop_assert_eq!(&out[6..], &wanted[..]);
    }

    /// Whatever a milter wants to write: exactly one field, of this name, that is read back as one.
    #[test]
    fn whatever_is_written_is_one_field(
        name in "[!-9;-~]{1,30}",
        value in proptest::collection::vec(prop_oneof![
            Just(b'\n'), Just(b'\r'), Just(b' '), Just(b'\t'), Just(b':'), 1u8..,
        ], 0..80),
        times in prop_oneof![Just(1usize), Just(60)],
        verbatim: bool,
    ) {
        let value = value.repeat(times);
        let mut fields = Fields::default();
        fields.apply(&Change::Add { name: name.clone().into_bytes(), value }, verbatim).unwrap();
        let section = value_of(&fields);
        let message = [&section[..], b"\r\nbody\r\n"].concat();
        let headers = Headers::parse(&message);
        prop_assert_eq!(headers.fields().len(), 1);
        prop_assert!(headers.fields()[0].is(&name));
        prop_assert_eq!(headers.body(), b"body\r\n");
        let text = section.strip_suffix(b"\r\n").unwrap();
        for (number, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            prop_assert!(line.len() <= 998);
            prop_assert!(line.iter().all(|byte| !byte.is_ascii_control() || *byte == b'\t'));
            prop_assert!(number == 0 || !line.trim_ascii().is_empty(), "a blank line in {:?}", section);
        }
    }
}

#[test]
fn what_is_too_long_for_a_milter_is_not_written() {
    let mut out = b"before".to_vec();
    assert!(Command::Body(&vec![b'x'; DATA_BYTES_MAX]).write(&mut out));
    assert_eq!(out.len(), 6 + 5 + DATA_BYTES_MAX);
    let mut out = b"before".to_vec();
    assert!(!Command::Header { name: b"X", value: &vec![b'x'; DATA_BYTES_MAX] }.write(&mut out));
    assert_eq!(out, b"before");
}

#[test]
fn an_address_is_told_in_its_family() {
    for (ip, family) in [("192.0.2.1", b'4'), ("2001:db8::1", b'6')] {
        let mut out = Vec::new();
        let connect = Command::Connect { name: "unknown", ip: ip.parse::<IpAddr>().unwrap(), port: 258 };
        assert!(connect.write(&mut out));
        let data = [&b"unknown\0"[..], &[family, 1, 2], ip.as_bytes(), b"\0"].concat();
        assert_eq!(out, packet(b'C', &data));
    }
}
