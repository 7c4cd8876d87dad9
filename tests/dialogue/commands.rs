//! The cases that are commands: what is said, and what must come of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::bare::Bare;
use crate::conversation::Conversation;
use crate::ids;
use crate::tcp::Tcp;

const HOUSE: &str = "domain: example.test\nrecipient: ok@example.test\nerrors: 100\n";
const HELLO: &str = "S: 220\nC: EHLO client.test\nS: 250\n";
const MAIL: &str = "C: MAIL FROM:<a@b.test>\nS: 250\n";
const RCPT: &str = "C: RCPT TO:<ok@example.test>\nS: 250\n";
/// An account whose password is `tanstaaftanstaaf`.
const ACCOUNT: &str = "role: submission\naccount: tim tanstaaftanstaaf\n";
const LOGIN: &str = "C: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 235\n";
/// Octets of a command line that is read (`smtp::wire`).
const LINE_MAX: usize = 4096;

fn fresh(rest: &str) -> String {
    format!("{HOUSE}\nS: 220\n{rest}")
}

fn greeted(rest: &str) -> String {
    format!("{HOUSE}\n{HELLO}{rest}")
}

fn in_mail(rest: &str) -> String {
    greeted(&format!("{MAIL}{rest}"))
}

fn account(rest: &str) -> String {
    format!("{HOUSE}{ACCOUNT}\n{HELLO}{rest}")
}

/// Each line is a command and how the reply begins.
fn table(lines: &[(&str, &str)]) -> String {
    lines.iter().map(|(command, reply)| format!("C: {command}\nS: {reply}\n")).collect()
}

/// Bytes that are no text.
fn raw(bytes: &str, reply: &str) -> String {
    format!("C> \"{bytes}\"\nS: {reply}\n")
}

/// None: the case is in `many`.
fn scripts(id: &str) -> Option<Vec<String>> {
    let number: u32 = id.trim_start_matches('d').parse().unwrap();
    match number {
        1..=13 => Some(hello(id)),
        14..=26 => Some(mail(id)),
        27..=37 => recipients_and_data(id),
        38..=42 => Some(odd(id)),
        43..=50 => logins(id),
        _ => Some(strangers(id)),
    }
}

fn hello(id: &str) -> Vec<String> {
    let one = match id {
        "d001" => fresh("C: \nS: 500"),
        "d002" => fresh("C: FOO\nS: 500"),
        "d003" => return vec!["errors: 10\n\nS: 220\nC> \"FOO\\r\\n\" * 20\nS* 10 500\nS: 421 closes".into()],
        // A hundred commands in a row that move no mail, whichever they are.
        "d004" => fresh("C> \"NOOP\\r\\n\" * 100000\nS* 100 250\nS: 421 closes"),
        "d005" => fresh("C> \"RSET\\r\\n\" * 100000\nS* 100 250\nS: 421 closes"),
        "d006" => fresh("C: HELO\nS: 501"),
        "d007" => fresh(&raw("EHLO \\0\\r\\n", "501")),
        "d008" => fresh(&format!("C: EHLO {}\nS: 5..", "A".repeat(512))),
        "d009" => fresh(&raw("EHLO a\\tb\\r\\n", "501")),
        "d010" => fresh("C: EHLO [999.1.1.1]\nS: 501"),
        "d011" => fresh("C: EHLO [IPv6:::1]\nS: 250"),
        "d012" => fresh("C: ehlo mixed.CASE\nS: 250"),
        "d013" => fresh(&raw("EHLO x  \\r\\n", "250")),
        other => panic!("what is {other}?"),
    };
    vec![one]
}

fn mail(id: &str) -> Vec<String> {
    let one = match id {
        "d014" => fresh("C: MAIL FROM:<a@b>\nS: 503"),
        // A blank is no harm (RFC 5321 3.3 asks servers not to send it, and many clients do).
        "d015" => greeted("C: MAIL FROM: <a@b>\nS: 250"),
        // Brackets tell where an address ends, so they have to be there (RFC 5321 4.1.1.2).
        "d016" => greeted("C: MAIL FROM:a@b\nS: 501"),
        "d017" => greeted("C: MAIL FROM:<a@b> SIZE=99999999999999999999\nS: 501"),
        "d018" => greeted("C: MAIL FROM:<a@b> SIZE=-1\nS: 501"),
        "d019" => greeted("C: MAIL FROM:<a@b> SIZE=1 SIZE=2\nS: 501"),
        "d020" => greeted("C: MAIL FROM:<a@b> FOO=BAR\nS: 555"),
        "d021" => greeted("C: MAIL FROM:<a@b> BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x+2By\nS: 250"),
        "d022" => greeted("C: MAIL FROM:<a@b> ENVID=x+0D+0Ay\nS: 501"),
        "d023" => greeted("C: MAIL FROM:<a@b> AUTH=<>\nS: 250"),
        "d024" => greeted("C: MAIL FROM:<jörg@b>\nS: 553 5.6.7"),
        "d025" => greeted(&raw("MAIL FROM:<\\xff\\xfe@b> SMTPUTF8\\r\\n", "501")),
        "d026" => in_mail("C: MAIL FROM:<c@d>\nS: 503"),
        other => panic!("what is {other}?"),
    };
    vec![one]
}

fn recipients_and_data(id: &str) -> Option<Vec<String>> {
    let one = match id {
        "d027" => greeted("C: RCPT TO:<ok@example.test>\nS: 503"),
        "d028" => in_mail("C: RCPT TO:<> \nS: 501\nC: RCPT TO:<>\nS: 501"),
        "d029" => in_mail(&format!("C: RCPT TO:<{}@b>\nS: 501", "a".repeat(65))),
        "d030" => in_mail(&format!("C: RCPT TO:<a@{}>\nS: 501", "a.".repeat(127) + "aa")),
        "d031" => {
            let all: String = (0..100).map(|n| format!("recipient: r{n}@example.test\n")).collect();
            let said: String = (0..100).map(|n| format!("C: RCPT TO:<r{n}@example.test>\nS: 250\n")).collect();
            format!("{all}{HOUSE}\n{HELLO}{MAIL}{said}C: RCPT TO:<ok@example.test>\nS: 452 4.5.3")
        }
        "d032" => return None,
        "d033" => in_mail("C: RCPT TO:<ok@example.test> NOTIFY=NEVER,FAILURE\nS: 501"),
        "d034" => in_mail("C: RCPT TO:<ok@example.test> ORCPT=rfc822;a+0D+0ABcc:x\nS: 501"),
        "d035" => in_mail("C: DATA\nS: 554"),
        "d036" => in_mail(&format!("{RCPT}C: DATA x\nS: 501")),
        "d037" => {
            let group = "MAIL FROM:<a@b>\\r\\nRCPT TO:<no@example.test>\\r\\nRCPT TO:<v@far.test>\\r\\nDATA\\r\\nx\\r\\n.\\r\\n";
            format!("split: no\n{HOUSE}\n{HELLO}C> \"{group}\"\nS: 250\nS: 550\nS: 550\nS: 554 closes")
        }
        other => panic!("what is {other}?"),
    };
    Some(vec![one])
}

fn odd(id: &str) -> Vec<String> {
    match id {
        // The same words for who is known and who is not.
        "d038" => vec![greeted(&table(&[
            ("VRFY ok@example.test", "252 2.5.0 send some mail, and it will be tried"),
            ("VRFY no@example.test", "252 2.5.0 send some mail, and it will be tried"),
            ("VRFY root", "252 2.5.0 send some mail, and it will be tried"),
            ("EXPN ok@example.test", "502 5.5.1 EXPN is not offered"),
            ("EXPN no@example.test", "502 5.5.1 EXPN is not offered"),
        ]))],
        "d039" => vec![greeted("C: HELP\nS: 214\nC: HELP x\nS: 214")],
        "d040" => vec![greeted(&table(&[
            ("TURN", "5.."),
            ("ETRN example.test", "5.."),
            ("ATRN example.test", "5.."),
            ("SEND FROM:<a@b>", "5.."),
            ("SOML FROM:<a@b>", "5.."),
            ("SAML FROM:<a@b>", "5.."),
            ("XEXCH50 1 2", "5.."),
            ("WIZ", "5.."),
            ("DEBUG", "5.."),
        ]))],
        "d041" => {
            ["GET / HTTP/1.1", "POST / HTTP/1.1", "CONNECT x:25 HTTP/1.1", "OPTIONS * HTTP/1.1", "PRI * HTTP/2.0"]
                .iter()
                .map(|verb| fresh(&raw(&format!("{verb}\\r\\nHost: x\\r\\n\\r\\nMAIL FROM:<a@b>\\r\\n"), "500 closes")))
                .collect()
        }
        "d042" => {
            let fits = |octets: usize| fresh(&format!("C: NOOP {}\nS: 250", "x".repeat(octets - 7)));
            let mut scripts: Vec<String> = [512, 513, 1000, 1001, 2048, LINE_MAX].into_iter().map(fits).collect();
            scripts.push(fresh(&raw(&format!("NOOP {}\\r\\n", "x".repeat(12_288 - 7)), "500 5.5.2 closes")));
            scripts.push(fresh("C> \"xxxxxxxxxx\" * 1000000\nS: 500 5.5.2 closes"));
            scripts
        }
        other => panic!("what is {other}?"),
    }
}

fn logins(id: &str) -> Option<Vec<String>> {
    let plain = |text: &str| STANDARD.encode(text);
    let long = format!("C: AUTH PLAIN {}\nS: 500 closes", "A".repeat(12_289));
    Some(vec![match id {
        "d043" => format!(
            "{HOUSE}{ACCOUNT}tls: opportunistic\nloopback: no\n\n{HELLO}S! AUTH\nC: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 538"
        ),
        "d044" => account(&format!(
            "{}{long}",
            table(&[("AUTH PLAIN =", "501"), ("AUTH PLAIN *", "501"), ("AUTH PLAIN !!!", "501")])
        )),
        "d045" => {
            let rows: Vec<(String, &str)> = vec![
                (plain("tim"), "501"),
                (plain("\0tim"), "501"),
                (plain("\0tim\0tanstaaftanstaaf\0"), "535"),
                (plain("\0tim\0tanstaaf\0tanstaaf"), "535"),
                (plain("\0\0tim\0tanstaaftanstaaf"), "535"),
                (plain("\0\0tanstaaftanstaaf"), "535"),
                (plain("root\0tim\0tanstaaftanstaaf"), "535"),
            ];
            // A NUL too many is refused as form or as password, never taken.
            let said = |(text, code): &(String, &str)| format!("C: AUTH PLAIN {text}\nS: {code}\n");
            account(&rows.iter().map(said).collect::<String>().replace("S: 535", "S: 5..").replace("S: 501", "S: 5.."))
        }
        "d046" => account("C: AUTH LOGIN\nS: 334\nC: *\nS: 501"),
        "d047" => account(&format!("{LOGIN}C: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 503")),
        "d048" => account(&format!("{LOGIN}{MAIL}C: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 503")),
        "d049" => return None,
        "d050" => return Some(scram()),
        other => panic!("what is {other}?"),
    }])
}

/// SCRAM: how often to hash is the server's word, so a client can ask for no work (its `i=` is no part of anything it
/// may say). `y` is what a client without channel binding says, and the server offers none (RFC 5802 6).
fn scram() -> Vec<String> {
    let said = |text: &str| STANDARD.encode(text);
    let first = said("n,,n=tim,r=abc");
    let after_first = |last: &str| account(&format!("C: AUTH SCRAM-SHA-256 {first}\nS: 334\nC: {last}\nS: 5.."));
    let proof = STANDARD.encode([0u8; 32]);
    vec![
        after_first(&said(&format!("c=biws,r=other,p={proof}"))),
        after_first(&said(&format!("c=biws,r=abc,p={proof}"))),
        after_first(&said(&format!("c=biws,r=abc,i=4294967295,p={proof}"))),
        after_first(&said(&format!("i=1,c=biws,r=abc,p={proof}"))),
        after_first(&first),
        after_first(""),
        account(&format!("C: AUTH SCRAM-SHA-256 {}\nS: 5..", said("p=tls-unique,,n=tim,r=abc"))),
        account(&format!("C: AUTH SCRAM-SHA-256 {}\nS: 334\nC: *\nS: 501", said("y,,n=tim,r=abc"))),
        account("scram tim wrong\nS: 535\nscram tim tanstaaftanstaaf\nS: 235"),
    ]
}

fn strangers(id: &str) -> Vec<String> {
    let v2 = |rest: &str| {
        // The signature of PROXY v2 is two empty lines, a NUL in one, and a bare LF, as SMTP reads it.
        fresh(&format!("C> \"\\r\\n\\r\\n\\0\\r\\nQUIT\\n{rest}\"\nS: 500\nS: 500\nS: 501\nS: 500 closes"))
    };
    match id {
        "d051" => vec![
            greeted(&table(&[
                ("XCLIENT ADDR=127.0.0.1 LOGIN=tim", "5.."),
                ("XFORWARD ADDR=127.0.0.1", "5.."),
                ("PROXY TCP4 127.0.0.1 127.0.0.1 1 25", "5.."),
            ])),
            fresh("C: PROXY TCP4 127.0.0.1 127.0.0.1 1 25\nS: 500"),
        ],
        // Length 65535; TLVs; a UNIX socket; cut off. Nobody is late with a header that nobody waits for: that, and all of it
        // where it is waited for, is in `proxied`.
        "d052" => vec![
            v2("\\x21\\x11\\xff\\xff"),
            v2("\\x21\\x11\\0\\x10\\x7f\\0\\0\\x01\\x7f\\0\\0\\x01\\0\\x01\\0\\x19\\x20\\0\\x01\\0"),
            v2("\\x21\\x31\\0\\xd8"),
            v2("\\x21"),
        ],
        "d053" => vec![greeted(&table(&[
            ("BURL imap://x/ LAST", "5.."),
            ("MAIL FROM:<a@b> HOLDFOR=9999999999", "5.."),
            ("MAIL FROM:<a@b> BY=-1;R", "5.."),
            ("MAIL FROM:<a@b> MT-PRIORITY=99", "5.."),
        ]))],
        other => panic!("what is {other}?"),
    }
}

#[test]
fn every_case_goes_as_expected_on_the_session_and_over_tcp() {
    let (mut faults, mut elsewhere) = (Vec::new(), Vec::new());
    for id in ids("commands", 53) {
        let Some(scripts) = scripts(&id) else {
            elsewhere.push(id);
            continue;
        };
        assert!(!scripts.is_empty());
        for script in scripts {
            let conversation = Conversation::parse(&id, &script).unwrap_or_else(|fault| panic!("{fault}"));
            // What is long is not taken octet by octet.
            let is_split = conversation.setting.split && script.len() < 4096 && !script.contains("* 100000");
            let reads: &[usize] = if is_split { &[usize::MAX, 1, 7] } else { &[usize::MAX] };
            let run = |read: &usize| conversation.run(&mut Bare::new(&conversation.setting, *read)).err();
            faults.extend(reads.iter().filter_map(run));
            faults.extend(conversation.run(&mut Tcp::new(&conversation.setting)).err().map(|fault| fault + " (TCP)"));
        }
    }
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
    assert_eq!(elsewhere, ["d032", "d049"]);
}
