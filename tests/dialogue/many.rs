//! The cases that need more than one conversation in words: floods.

use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::server::connection::AUTH_FAILURE_DELAY;

use crate::bare::Bare;
use crate::conversation::{AccountSetting, Heard, Setting, Transport};
use crate::tcp::Tcp;

/// `d032`: a million recipients, all different, all the same, and all refused.
#[test]
fn a_million_recipients_in_one_connection_end_it_early() {
    let own: Vec<String> = (0..200).map(|n| format!("r{n}@example.test")).collect();
    for (what, recipient) in [
        ("different", (|n| format!("r{}@example.test", n % 200)) as fn(usize) -> String),
        ("the same", |_| "r1@example.test".to_owned()),
        ("elsewhere", |n| format!("v{n}@far.test")),
    ] {
        let setting = Setting { domains: vec!["example.test".into()], recipients: own.clone(), ..Setting::default() };
        let mut server = Bare::new(&setting, usize::MAX);
        server.send(b"EHLO c.test\r\nMAIL FROM:<a@b.test>\r\n");
        let (mut said, mut last) = (0, String::new());
        'all: for thousand in 0..1000 {
            for n in thousand * 1000..(thousand + 1) * 1000 {
                server.send(format!("RCPT TO:<{}>\r\n", recipient(n)).as_bytes());
                said += 1;
            }
            loop {
                match server.hear() {
                    Heard::Reply(reply) => last = reply,
                    Heard::Closed => break 'all,
                    Heard::Silence => break,
                }
            }
        }
        assert!(last.starts_with("421 "), "{what}: {said} commands, then {last}");
        assert!(said <= 3000, "{what}: {said}");
    }
}

/// A server that believes its clients to come from anywhere, and one account.
fn setting() -> Setting {
    let account = AccountSetting { name: "tim".into(), password: "tanstaaftanstaaf".into(), max_recipients: 10 };
    Setting {
        role: "submission".into(),
        tls: "implicit".into(),
        loopback: false,
        accounts: vec![account],
        ..Setting::default()
    }
}

/// The reply to a login; one that closes is a reply too.
fn login(server: &mut Tcp, from: [u8; 4], user: &str, password: &str) -> String {
    server.call(&setting(), from.into());
    let secret = STANDARD.encode(format!("\0{user}\0{password}"));
    server.send(format!("EHLO c.test\r\nAUTH PLAIN {secret}\r\n").as_bytes());
    let mut last = String::new();
    for _ in 0..3 {
        match server.hear() {
            Heard::Reply(reply) => last = reply,
            _ => panic!("after {last:?}"),
        }
    }
    last
}

fn count(replies: &[String], start: &str) -> usize {
    replies.iter().filter(|reply| reply.starts_with(start)).count()
}

/// `d049`: fifty wrong passwords from one address: answered late, and from the eleventh on not at all. Who is known is
/// told in the same words as who is not (the time of both is the business of `accounts`, which always hashes).
#[test]
fn fifty_wrong_passwords_from_one_address_are_a_ban() {
    let mut server = Tcp::new(&setting());
    let (one, begun) = ([192, 0, 2, 1], Instant::now());
    let known = login(&mut server, one, "tim", "x");
    let unknown = login(&mut server, one, "tom", "x");
    assert!(known.starts_with("535 5.7.8 ") && known == unknown, "{known} {unknown}");
    assert!(begun.elapsed() >= 2 * AUTH_FAILURE_DELAY);
    let tries: Vec<String> = (0..48).map(|n| login(&mut server, one, &format!("user{n}"), "x")).collect();
    assert_eq!((count(&tries, "535 5.7.8"), count(&tries, "421 4.7.0")), (8, 40), "{tries:?}");
    // The right password is not heard from there, but from elsewhere.
    assert!(login(&mut server, one, "tim", "tanstaaftanstaaf").starts_with("421 "));
    assert!(login(&mut server, [192, 0, 2, 2], "tim", "tanstaaftanstaaf").starts_with("235 "));
}

/// And from as many addresses for one account.
#[test]
fn fifty_wrong_passwords_from_fifty_addresses_are_a_ban() {
    let mut server = Tcp::new(&setting());
    let tries: Vec<String> = (1..=50).map(|n| login(&mut server, [198, 51, n, 7], "tim", &format!("x{n}"))).collect();
    assert_eq!((count(&tries, "535 5.7.8"), count(&tries, "421 4.7.0")), (10, 40), "{tries:?}");
    assert!(login(&mut server, [203, 0, 113, 7], "tim", "tanstaaftanstaaf").starts_with("421 "));
}
