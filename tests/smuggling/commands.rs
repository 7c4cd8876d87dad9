//! The cases of the set that are commands, on the bare session and over TCP.

use crate::bare::Bare;
use crate::carriers::Doors;
use crate::conversation::Conversation;
use crate::forms::SET;
use crate::support::flow;
use crate::support::server::{HOSTNAME, TestServer};
use crate::tcp::Tcp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::pki_types::ServerName;

const SETTINGS: &str = "domain: example.test\nrecipient: ok@example.test\nmax_size: 600\n\n";
const GREETED: &str = "S: 220\nC: EHLO client.test\nS: 250\n";
const READY: &str = "S: 220\nC: EHLO client.test\nS: 250\nC: MAIL FROM:<a@sender.test>\nS: 250\n\
    C: RCPT TO:<ok@example.test>\nS: 250\n";

/// What is said, and what must come of it, in the words of `support/conversation.rs`.
fn scripts(id: &str) -> Vec<String> {
    let greeted = |rest: &str| format!("{SETTINGS}{GREETED}{rest}");
    let ready = |rest: &str| format!("{SETTINGS}{READY}{rest}");
    match id {
        "cmd-bare-lf" => vec![greeted("C> \"NOOP\\nMAIL FROM:<x@third.test>\\r\\n\"\nS: 500 5.5.2 closes")],
        "cmd-bare-cr" => vec![greeted("C> \"NOOP\\rMAIL FROM:<x@third.test>\\r\\n\"\nS: 500 5.5.2 closes")],
        "cmd-nul" => {
            vec![greeted("C> \"MAIL FROM:<a\\0b@third.test>\\r\\n\"\nS: 501\nC: RCPT TO:<ok@example.test>\nS: 503")]
        }
        "cmd-quoted-crlf" => vec![greeted(
            "C> \"MAIL FROM:<\\\"a\\r\\nRCPT TO:<ok@example.test>\\\"@third.test>\\r\\n\"\nS: 501\nS: 501\n\
             C: RCPT TO:<ok@example.test>\nS: 503",
        )],
        // What comes from outside in these words; what the configuration says is below.
        "ehlo-crlf-in-outbound" => vec![
            greeted(
                "C: MAIL FROM:<a@b.test> ENVID=x+0D+0Ay\nS: 501\nC: MAIL FROM:<a@b.test> ENVID=x+0A\nS: 501\n\
                 C: MAIL FROM:<a@b.test> AUTH=a+0D+0A@b.test\nS: 501\nC: MAIL FROM:<a@b.test> ENVID=x+2By\nS: 250",
            ),
            ready(
                "C: RSET\nS: 250\nC: MAIL FROM:<a@b.test>\nS: 250\n\
                 C: RCPT TO:<ok@example.test> ORCPT=rfc822;a+0D+0ABcc:x\nS: 501\n\
                 C: RCPT TO:<ok@example.test> ORCPT=rfc822;a+0D@x.test\nS: 501",
            ),
        ],
        // After ten octets commands begin again: the line that is left of them, RSET and NOOP.
        "bdat-size-lie-short" => vec![ready(
            "C> \"BDAT 10 LAST\\r\\n0123456789RSET\\r\\nNOOP\\r\\n\"\nS: 250\nS: 250\nS: 250\n\
             draft: from=<a@sender.test> to=<ok@example.test> content=\"0123456789\"",
        )],
        "bdat-zero-last" => vec![
            ready("C: BDAT 0 LAST\nS: 503\nC: DATA\nS: 503"),
            ready(
                "C> \"BDAT 3\\r\\nx\\r\\n\"\nS: 250\nC: BDAT 0 LAST\nS: 250\n\
                 draft: from=<a@sender.test> to=<ok@example.test> content=\"x\\r\\n\"",
            ),
        ],
        "bdat-then-data" => vec![ready("C> \"BDAT 5\\r\\nabc\\r\\n\"\nS: 250\nC: DATA\nS: 503")],
        "bdat-content-with-eod" => vec![ready(
            "C> \"BDAT 66 LAST\\r\\nS: x\\r\\n\\r\\n.\\r\\nMAIL FROM:<s@t.test>\\r\\nRCPT TO:<ok@example.test>\\r\\nDATA\\r\\n\"\n\
             S: 250\ndraft: from=<a@sender.test> to=<ok@example.test> \
             content=\"S: x\\r\\n\\r\\n.\\r\\nMAIL FROM:<s@t.test>\\r\\nRCPT TO:<ok@example.test>\\r\\nDATA\\r\\n\"",
        )],
        "bdat-after-error-drain" => vec![
            ready("C> \"BDAT 1000\\r\\n\"\nC> \"QUIT\\r\\nQUIT\" * 100\nS: 552 5.3.4\nC: NOOP\nS: 250"),
            // Refused because there is no transaction: drained all the same.
            greeted("C> \"BDAT 12 LAST\\r\\nMAIL FROM:<>\"\nS: 503\nC: RCPT TO:<ok@example.test>\nS: 503"),
        ],
        // How much follows is not known, so nothing can be read after it.
        "bdat-chunk-overflow" => vec![
            ready("C: BDAT 18446744073709551617\nS: 501 closes"),
            ready("C: BDAT 99999999999999999999999 LAST\nS: 501 closes"),
        ],
        "bdat-negative" => vec![ready("C: BDAT -1 LAST\nS: 501 closes"), ready("C: BDAT +1 LAST\nS: 501 closes")],
        "pipelined-unauth" => vec![format!(
            "split: no\n{SETTINGS}{GREETED}C> \"MAIL FROM:<a@sender.test>\\r\\nRCPT TO:<no@example.test>\\r\\nDATA\\r\\n\
             RSET\\r\\nMAIL FROM:<evil@sender.test>\\r\\nRCPT TO:<ok@example.test>\\r\\n.\\r\\n\"\n\
             S: 250\nS: 550\nS: 554 closes"
        )],
        other => panic!("what is {other}?"),
    }
}

/// Those that need more than words.
const OTHERS: [&str; 2] = ["bdat-close-notify", "early-talk"];

fn cases() -> Vec<String> {
    let ids: Vec<String> =
        flow::maps(&flow::below(SET, "command_level")).iter().map(|map| flow::text(map, "id")).collect();
    assert_eq!(ids.len(), 15);
    ids
}

#[test]
fn every_case_of_commands_goes_as_its_rule_says() {
    let mut run = 0;
    for id in cases() {
        run += 1;
        if OTHERS.contains(&id.as_str()) {
            continue;
        }
        for script in scripts(&id) {
            let conversation = Conversation::parse(&id, &script).unwrap_or_else(|fault| panic!("{fault}"));
            let reads: &[usize] = if conversation.setting.split { &[usize::MAX, 1, 2, 7] } else { &[usize::MAX] };
            for read in reads {
                let mut server = Bare::new(&conversation.setting, *read);
                conversation.run(&mut server).unwrap_or_else(|fault| panic!("{fault} (reads of {read})"));
            }
            conversation.run(&mut Tcp::new(&conversation.setting)).unwrap_or_else(|fault| panic!("{fault} (TCP)"));
        }
    }
    assert_eq!(run, 15);
}

/// `ehlo-crlf-in-outbound`: what the configuration would say to others.
#[test]
fn no_line_end_comes_out_of_the_configuration() {
    let parses = |text: &str| postrider::config::parse("test.toml", text).is_ok();
    let base = |hostname: &str, more: &str| format!("hostname = \"{hostname}\"\ndata_dir = \"/nonexistent\"\n{more}");
    let helo = |name: &str| format!("[delivery]\nhelo_name = \"{name}\"\n");
    let host = |user: &str| format!("[smart_hosts.s]\nhost = \"s.test\"\nusername = \"{user}\"\npassword = \"p\"\n");
    assert!(parses(&base("a.test", &host("user"))) && parses(&base("a.test", &helo("b.test"))));
    for evil in ["a\\r\\nRSET", "a\\nb", "a\\rb", "a\\u0000b"] {
        assert!(!parses(&base(&format!("{evil}.test"), "")), "{evil}");
        assert!(!parses(&base("a.test", &helo(evil))), "{evil}");
        assert!(!parses(&base("a.test", &host(evil))), "{evil}");
        assert!(!parses(&base("a.test", &host("u").replace("s.test", &format!("{evil}.test")))), "{evil}");
    }
}

const CONF: &str = "[domains.\"home.test\"]\ncatchall = [\"box\"]\n[targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n\
    [checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\nrdns = \"off\"\n";

/// `early-talk`: a client that does not wait for the greeting is heard out of turn at most: it gets the greeting first, and
/// its commands mean what they would have meant after it.
#[tokio::test(flavor = "multi_thread")]
async fn who_talks_before_the_greeting_gains_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), CONF).await;
    for (early, replies) in [
        ("EHLO early.test\r\nQUIT\r\n", vec!["220", "250", "221"]),
        ("MAIL FROM:<a@b.test>\r\nQUIT\r\n", vec!["220", "503", "221"]),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", vec!["220", "500"]),
    ] {
        let mut stream = TcpStream::connect(server.mx).await.unwrap();
        stream.write_all(early.as_bytes()).await.unwrap();
        let mut heard = String::new();
        let _ = stream.read_to_string(&mut heard).await;
        let last = |line: &&str| line.as_bytes().get(3) == Some(&b' ');
        let codes: Vec<&str> = heard.lines().filter(last).map(|line| &line[..3]).collect();
        assert!(codes.starts_with(&replies[..2]) && codes.len() <= 3, "{early:?}: {heard}");
    }
    assert!(server.queue().await.is_empty());
    server.stop().await;
}

/// `bdat-close-notify` (the class of CVE-2026-45185): the end of TLS is the end, whatever follows on the socket.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_in_clear_after_tls_has_ended_in_a_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), CONF).await;
    let doors = Doors::new([server.mx; 3], folder.path());
    for (begin, clear) in [
        ("BDAT 1000 LAST\r\n", "x".repeat(900)),
        ("BDAT 1000 LAST\r\n", "x".to_owned()),
        ("DATA\r\n", "\r\n.\r\n".to_owned()),
    ] {
        let mut stream = TcpStream::connect(server.mx).await.unwrap();
        let mut heard = Vec::new();
        stream.write_all(b"EHLO c.test\r\nSTARTTLS\r\n").await.unwrap();
        while !heard.ends_with(b"go ahead\r\n") {
            stream.read_buf(&mut heard).await.unwrap();
        }
        let mut stream = doors.tls.connect(ServerName::try_from(HOSTNAME).unwrap(), stream).await.unwrap();
        let envelope = "EHLO c.test\r\nMAIL FROM:<a@far.test>\r\nRCPT TO:<b@home.test>\r\n";
        stream.write_all(format!("{envelope}{begin}{}", "y".repeat(100)).as_bytes()).await.unwrap();
        stream.get_mut().1.send_close_notify();
        stream.flush().await.unwrap();
        // The server may have closed already.
        let _ = stream.get_mut().0.write_all(clear.as_bytes()).await;
        let mut heard = Vec::new();
        let _ = stream.get_mut().0.read_to_end(&mut heard).await;
        assert!(!heard.windows(4).any(|word| word == b"250 " || word == b"queu"), "in clear: {heard:?}");
    }
    assert!(server.queue().await.is_empty());
    server.stop().await;
    assert!(
        !folder.path().join("box/new").exists()
            || std::fs::read_dir(folder.path().join("box/new")).unwrap().count() == 0
    );
}
