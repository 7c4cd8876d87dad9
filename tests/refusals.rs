//! What the log says of mail that is refused: one line for each reply, with whose mail it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod server;
}

use std::io::Write;
use std::sync::{Arc, Mutex};

use support::client::Client;
use support::server::TestServer;
use tracing_subscriber::fmt::MakeWriter;

const CONF: &str = "[domains.\"home.test\"]\n[aliases]\n\"ann@home.test\" = \"discard\"\n\"bob@home.test\" = \"discard\"\n\
                    \"cas@home.test\" = \"discard\"\n\"dan@home.test\" = \"discard\"\n\"eve@home.test\" = \"discard\"\n\
                    [checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\narc = \"off\"\nrdns = \"off\"\n";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn refused(&self) -> Vec<String> {
        self.lines().into_iter().filter(|line| line.contains("refused ")).collect()
    }

    /// The only line since the last time, which has all of these.
    fn tells(&self, reply: &str, parts: &[&str]) {
        let lines = self.refused();
        assert_eq!(lines.len(), 1, "{reply}: {:#?}", self.lines());
        let said = reply.trim_end().to_owned();
        let wanted = [" INFO ", "peer=127.0.0.1", "helo=\"client.test\"", "reason=\"", said.as_str()];
        for part in wanted.iter().chain(parts) {
            assert!(lines[0].contains(part), "{part:?} is not in {:?}", lines[0]);
        }
        self.0.lock().unwrap().clear();
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// A server whose tasks all run on this thread, which logs into this log.
async fn watched(limits: &str) -> (TestServer, tempfile::TempDir, Log, tracing::subscriber::DefaultGuard) {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let folder = tempfile::tempdir().unwrap();
    let line = "connections_per_ip = 1000\n";
    let server = TestServer::start_with(folder.path(), CONF, line, &format!("{line}{limits}")).await;
    log.0.lock().unwrap().clear();
    (server, folder, log, guard)
}

async fn refused(client: &mut Client, line: &str, code: &str) -> String {
    client.command(line, code).await.unwrap()
}

#[tokio::test]
async fn every_refusal_of_mail_is_one_line_that_says_whose_mail_it_was() {
    let (server, _folder, log, _guard) = watched("").await;
    let mut client = Client::connect(server.mx).await.unwrap();
    let reply = refused(&mut client, "MAIL FROM:<me@far.test> SIZE=99999999999", "552").await;
    log.tells(&reply, &["from=\"me@far.test\"", "SIZE=99999999999"]);
    let reply = refused(&mut client, "RCPT TO:<ann@home.test>", "503").await;
    log.tells(&reply, &["to=\"ann@home.test\""]);
    let reply = refused(&mut client, "MAIL FROM:me@far.test", "501").await;
    log.tells(&reply, &["line=\"MAIL FROM:me@far.test\""]);

    client.command("MAIL FROM:<me@far.test>", "250").await.unwrap();
    let reply = refused(&mut client, "DATA", "554").await;
    log.tells(&reply, &["from=\"me@far.test\""]);
    let reply = refused(&mut client, "RCPT TO:<who@home.test>", "550").await;
    log.tells(&reply, &["from=\"me@far.test\"", "to=\"who@home.test\""]);
    for name in ["ann", "bob", "cas", "dan", "eve"] {
        client.command(&format!("RCPT TO:<{name}@home.test>"), "250").await.unwrap();
    }
    client.command("DATA", "354").await.unwrap();
    // There is no From.
    let reply = client.content(b"Subject: hi\r\n\r\nhello\r\n").await.unwrap();
    assert!(reply.starts_with("550"), "{reply}");
    let all = "to=\"ann@home.test, bob@home.test, cas@home.test and 2 more\"";
    log.tells(&reply, &["from=\"me@far.test\"", all]);

    client.command("MAIL FROM:<>", "250").await.unwrap();
    client.command("RCPT TO:<ann@home.test>", "250").await.unwrap();
    let reply = refused(&mut client, "BDAT 0 LAST", "503").await;
    log.tells(&reply, &["from=\"<>\"", "to=\"ann@home.test\""]);
    let reply = refused(&mut client, "BDAT 7 LAST\r\nhello", "503").await;
    log.tells(&reply, &[]);
    // What moves no mail is not worth a line.
    client.command("EXPN everybody", "502").await.unwrap();
    assert_eq!(log.refused().len(), 0, "{:#?}", log.lines());
    let reply = refused(&mut client, "BDAT many", "501").await;
    log.tells(&reply, &["line=\"BDAT many\""]);
    server.stop().await;
}

/// What a program that sends LF for CRLF sees is a closed connection: the log says why.
#[tokio::test]
async fn a_bare_line_end_that_closes_the_connection_is_in_the_log() {
    let (server, _folder, log, _guard) = watched("").await;
    let mut client = Client::connect(server.mx).await.unwrap();
    client.command("MAIL FROM:<me@far.test>", "250").await.unwrap();
    client.command("RCPT TO:<ann@home.test>", "250").await.unwrap();
    client.command("DATA", "354").await.unwrap();
    let reply = client.content(b"From: <me@far.test>\n\nhello\n").await.unwrap();
    assert!(reply.starts_with("554 5.6.0 a line ends with a bare CR or LF"), "{reply}");
    log.tells(&reply, &["from=\"me@far.test\"", "to=\"ann@home.test\"", "the connection is closed"]);
    server.stop().await;
}

#[tokio::test]
async fn refusals_for_number_of_recipients_and_for_want_of_a_login_are_in_the_log() {
    let (server, _folder, log, _guard) = watched("max_recipients = 1\n").await;
    let mut client = Client::connect(server.mx).await.unwrap();
    client.command("MAIL FROM:<me@far.test>", "250").await.unwrap();
    client.command("RCPT TO:<ann@home.test>", "250").await.unwrap();
    let reply = refused(&mut client, "RCPT TO:<bob@home.test>", "452").await;
    log.tells(&reply, &["from=\"me@far.test\"", "to=\"bob@home.test\""]);

    let mut client = Client::connect(server.submission).await.unwrap();
    let reply = refused(&mut client, "MAIL FROM:<app@home.test>", "530").await;
    log.tells(&reply, &["from=\"app@home.test\""]);
    server.stop().await;
}

/// The last error closes the connection with another reply: the line has both.
#[tokio::test]
async fn one_error_too_many_is_told_with_what_it_was() {
    let (server, _folder, log, _guard) = watched("errors_per_session = 2\n").await;
    let mut client = Client::connect(server.mx).await.unwrap();
    client.command("MAIL FROM:<me@far.test>", "250").await.unwrap();
    for _ in 0..2 {
        let reply = refused(&mut client, "RCPT TO:<who@home.test>", "550").await;
        log.tells(&reply, &[]);
    }
    let reply = refused(&mut client, "RCPT TO:<who@home.test>", "421").await;
    log.tells(&reply, &["reason=\"550 5.1.1", "to=\"who@home.test\""]);
    server.stop().await;
}

#[tokio::test]
async fn what_a_client_says_neither_makes_a_second_line_nor_shows_a_password() {
    let (server, _folder, log, _guard) = watched("").await;
    let mut client = Client::connect(server.mx).await.unwrap();
    let odd = "MAIL FROM:<\u{1b}[2J\u{2028}2026-01-01 INFO refused \u{202e}me@far.test>";
    let reply = refused(&mut client, odd, "501").await;
    let text = log.lines().join("\n");
    assert!(!text.contains(['\u{1b}', '\u{2028}', '\u{202e}']), "{text:?}");
    assert!(text.lines().count() == 1 && text.contains("line=\"MAIL FROM:<?[2J?2026-01-01"), "{text:?}");
    assert!(text.contains(reply.trim_end()), "{text}");

    let mut client = Client::connect(server.submission).await.unwrap();
    // hunter2, where nobody is known, and where it has no place.
    client.command("AUTH PLAIN AGFwcABodW50ZXIy", "535").await.unwrap();
    client.command("AUTH LOGIN aHVudGVyMg== aHVudGVyMg==", "501").await.unwrap();
    let text = log.lines().join("\n");
    assert!(!text.contains("hunter2") && !text.contains("odW50ZXIy") && !text.contains("aHVudGVy"), "{text}");
    server.stop().await;
}

/// What the guides quote is what the server says, with all checks off.
#[tokio::test]
async fn the_guides_quote_the_replies_to_lf_alone_and_to_a_missing_or_second_from() {
    let (server, _folder, _log, _guard) = watched("").await;
    let guide = |name: &str| std::fs::read_to_string(format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for (content, guide, quoted) in [
        (
            "From: <me@far.test>\n\nhello\n",
            guide("submission.md"),
            "554 5.6.0 a line ends with a bare CR or LF; lines must end with CRLF",
        ),
        ("Subject: hi\r\n\r\n", guide("inbound.md"), "550 5.7.1 the message has no From field"),
        ("From: a@b.test\r\nFrom: c@d.test\r\n\r\n", guide("inbound.md"), "has more than one From field"),
    ] {
        let mut client = Client::connect(server.mx).await.unwrap();
        let reply = client.send_bytes("me@far.test", "ann@home.test", content.as_bytes()).await.unwrap();
        assert!(reply.contains(quoted), "{reply}");
        assert!(guide.contains(quoted), "no guide says {quoted:?}");
    }
    server.stop().await;
}
