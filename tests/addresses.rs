//! `tests/data/addresses`: paths as MAIL and RCPT say them. Each is taken or refused as the table says, and what is taken
//! means the same to everybody who reads it after us.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod conversation;
    pub mod flow;
    pub mod server;
    pub mod sink;
    pub mod zone;
}
#[path = "support/bare.rs"]
mod bare;

use std::collections::BTreeMap;

use bare::Bare;
use postrider::message::address::{parse_forward_path, parse_reverse_path};
use postrider::message::{Address, Domain};
use support::client::Client;
use support::conversation::{self, Heard, Setting, Transport};
use support::flow::{self, text};
use support::server::TestServer;
use support::sink::Sink;
use support::zone::Zone;

/// All of the table.
fn cases() -> Vec<BTreeMap<String, Vec<u8>>> {
    let cases = flow::maps(include_str!("data/addresses/paths.yml"));
    assert_eq!(cases.len(), 80);
    cases
}

fn raw(case: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    case.get("p_hex").map_or_else(|| expand(&text(case, "p")).into_bytes(), |hex| flow::hex(hex))
}

fn setting() -> Setting {
    Setting { role: "mx".into(), domains: vec!["example.test".into()], errors: 1000, ..Setting::default() }
}

/// `{L@64}` stands for 64 octets of a local part, `{label@…}` for a label, `{D@253}` for a domain.
fn expand(path: &str) -> String {
    let Some((before, rest)) = path.split_once('{').filter(|(_, rest)| rest.contains("@") && rest.contains('}')) else {
        return path.to_string();
    };
    let Some((kind, length, after)) = rest
        .split_once('}')
        .and_then(|(inner, after)| inner.split_once('@').map(|(kind, length)| (kind, length, after)))
        .and_then(|(kind, length, after)| Some((kind, length.parse::<usize>().ok()?, after)))
    else {
        return path.to_string();
    };
    let text = match kind {
        "D" => {
            let mut domain = "a.".repeat(length / 2);
            domain.truncate(length);
            if domain.ends_with('.') {
                domain.replace_range(length - 2.., "aa")
            }
            domain
        }
        _ => "a".repeat(length),
    };
    format!("{before}{text}{after}")
}

/// The table of paths, said in a RCPT: taken where it must be, refused where it must be; where the
/// table leaves it open this is what we do, on purpose.
#[test]
fn paths_are_taken_and_refused_as_the_table_says() {
    let cases = cases();
    let open: &[(&str, bool)] = &[
        ("<a@b.example.>", true),
        ("<a@b_c.example>", true),
        ("<a@b>", true),
        ("<a@[x-tag:foo]>", false),
        ("<{L@65}@b.example>", false),
        ("<@r.example:a@b.example>", true),
        ("<@r1.example,@r2.example:a@b.example>", true),
        ("<a@b\u{3002}example>", true),
        ("<henry\u{2163}@b.example>", true),
        ("<\u{430}dmin@b.example>", true),
        ("<a\u{200b}b@b.example>", false),
        ("<a\u{202e}b@b.example>", false),
    ];
    let mut faults = Vec::new();
    for case in &cases {
        let raw = raw(case);
        let verdict = text(case, "v");
        let as_written = text(case, "p");
        let expected = match open.iter().find(|(path, _)| *path == as_written) {
            Some((_, taken)) => *taken,
            None if verdict.starts_with("ok for MAIL") || verdict.starts_with("bad") => false,
            None => {
                let says_ok = ["ok", "syntax ok", "maps to"].iter().any(|start| verdict.starts_with(start));
                assert!(says_ok, "no choice is written down for {as_written}: {verdict}");
                true
            }
        };
        let utf8 = text(case, "utf8") == "true";
        let taken = path_is_taken(&raw, utf8);
        if taken != expected {
            faults.push(format!("{as_written:?} utf8={utf8}: {verdict}: taken {taken}"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Well-formed paths get past the syntax to "relaying denied" (550 5.7.1) or better.
fn path_is_taken(path: &[u8], utf8: bool) -> bool {
    let mut server = Bare::new(&setting(), usize::MAX);
    server.send(format!("EHLO x\r\nMAIL FROM:<>{}\r\n", if utf8 { " SMTPUTF8" } else { "" }).as_bytes());
    server.send(&[b"RCPT TO:", path, b"\r\n"].concat());
    let mut last = String::new();
    while let Heard::Reply(reply) = server.hear() {
        last = reply;
    }
    let taken = last.starts_with("250 2.1.5") || last.starts_with("550 5.7.1");
    assert!(taken || last.starts_with("50") || last.starts_with("55"), "{last}");
    taken
}

/// What the notes of the table say about equality.
#[test]
fn paths_that_are_and_are_not_the_same() {
    let own = Domain::parse("mail.example.test").unwrap();
    let key = |path: &str| parse_forward_path(path, &own).unwrap().lookup_key();
    assert_eq!(key("<\"a\"@b.example>"), key("<a@b.example>"));
    assert_eq!(key("<A@B.example>"), key("<a@b.example>"));
    assert_eq!(key("<a@bücher.example>"), key("<a@xn--bcher-kva.example>"));
    assert_eq!(key("<a@faß.example>"), "a@xn--fa-hia.example");
    assert_eq!(key("<a@\u{212a}.example>"), "a@k.example");
    assert_eq!(key("<a@b\u{3002}example>"), "a@b.example");
    assert_eq!(key("<\"a@c\"@b.example>"), "\"a@c\"@b.example");
    assert_ne!(key("<\u{430}dmin@b.example>"), "admin@b.example");
    assert_ne!(key("<henry\u{2163}@b.example>"), "henryiv@b.example");
    assert_eq!(key("<jo\u{308}rg@b.example>"), key("<j\u{f6}rg@b.example>"));
    assert_eq!(key("<postmaster>"), "postmaster@mail.example.test");
    assert!(parse_reverse_path("<>").unwrap().is_null());
    assert!(parse_reverse_path("< >").is_err());
}

/// What is written out of an address is read as the same address again, here and by who reads it as a list in a header.
#[test]
fn every_address_survives_being_written() {
    let own = Domain::parse("mail.example.test").unwrap();
    let mut taken = 0;
    for case in cases() {
        let raw = raw(&case);
        let Some(address) = std::str::from_utf8(&raw).ok().and_then(|path| parse_forward_path(path, &own).ok()) else {
            continue;
        };
        taken += 1;
        let written = address.to_string();
        let again =
            parse_forward_path(&format!("<{written}>"), &own).unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!((&again, again.lookup_key()), (&address, address.lookup_key()), "{written}");
        assert_eq!(Address::parse(&written).unwrap(), address, "{written}");
        assert!(!written.chars().any(char::is_control), "{written:?}");
        // One "@" outside of quotes, and the domain behind it.
        assert!(written.ends_with(&format!("@{}", address.domain())), "{written}");
        let listed = postrider::message::header::mailboxes(written.as_bytes()).unwrap();
        assert_eq!(listed.iter().map(|mailbox| &mailbox.address).collect::<Vec<_>>(), [&address], "{written}");
    }
    assert!(taken > 25, "{taken}");
}

const CONF: &str = r#"
[networks]
trusted = ["127.0.0.0/8"]
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;

/// Through a whole server: the far end hears the address that was said, in quotes where it was in quotes, and goes by the
/// domain behind the last "@".
#[tokio::test(flavor = "multi_thread")]
async fn every_address_arrives_as_it_was_said() {
    let (folder, sink) = (tempfile::tempdir().unwrap(), Sink::start().await);
    let mut zone = Zone::new().a("mx.test", "127.0.0.1");
    let own = Domain::parse("mail.home.test").unwrap();
    let mut said: Vec<(String, bool)> = Vec::new();
    for case in cases() {
        let Ok(path) = String::from_utf8(raw(&case)) else { continue };
        let Ok(address) = parse_forward_path(&path, &own) else { continue };
        // Those behind an "@" that DNS knows, and not ourselves.
        let domain = address.domain();
        if domain.literal().is_some() || *domain == own || domain.as_str().starts_with('[') {
            continue;
        }
        zone = zone.mx(domain.as_str(), 10, "mx.test");
        said.push((path, text(&case, "utf8") == "true"));
    }
    let zone = zone.serve().await;
    let conf = CONF.replace("PORT", &sink.address.port().to_string()).replace("ZONE", &zone.addr().to_string());
    let server = TestServer::start(folder.path(), &conf).await;
    let mut expected = Vec::new();
    for (path, utf8) in &said {
        let mut client = Client::connect(server.submission).await.unwrap();
        let parameter = if *utf8 { " SMTPUTF8" } else { "" };
        client.command(&format!("MAIL FROM:<shop@home.test>{parameter}"), "250").await.unwrap();
        let reply = client.say(&format!("RCPT TO:{path}")).await.unwrap();
        if !reply.starts_with("250") {
            // Not without SMTPUTF8 where it needs that.
            assert!(!utf8 && !path.is_ascii() && reply.starts_with("553 5.6.7"), "{path}: {reply}");
            continue;
        }
        client.command("DATA", "354").await.unwrap();
        let reply = client.content(b"From: shop@home.test\r\nSubject: x\r\n\r\nx\r\n").await.unwrap();
        assert!(reply.starts_with("250"), "{path}: {reply}");
        expected.push(parse_forward_path(path, &own).unwrap());
    }
    sink.wait_for(expected.len()).await;
    server.stop().await;
    let mut arrived: Vec<Address> = sink
        .taken()
        .iter()
        .map(|message| parse_forward_path(&format!("<{}>", message.recipients[0]), &own).unwrap())
        .collect();
    arrived.sort_by_key(ToString::to_string);
    expected.sort_by_key(ToString::to_string);
    assert_eq!(arrived, expected);
    assert!(arrived.len() > 20, "{}", arrived.len());
}
