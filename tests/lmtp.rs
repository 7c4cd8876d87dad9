//! Hand-over by LMTP (RFC 2033): a reply for each recipient behind the dot, and what becomes of those that
//! get none. The far ends play scripts; `dovecot.rs` has a real one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/remote.rs"]
mod remote;
mod support {
    pub mod records;
    pub mod zone;
}

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider::config::targets::LmtpAddress;
use postrider::config::{self, Target};
use postrider::delivery::smtp::{SmtpTransport, Timeouts};
use postrider::delivery::{Body, Hop, Job, Outcome};
use postrider::dns::Resolver;
use postrider::message::{Address, MessageId, Notify, ReversePath, TlsWish};
use postrider::queue::record::{Failure, Route};
use remote::{Received, Remotes};
use support::records::{START, message, recipient};
use support::zone::{Zone, ZoneServer};

const HELLO: &str = "S: 220 box.test LMTP\nC: LHLO mail.example.com\nS: 250-box.test\nS: 250-PIPELINING\n\
    S: 250-ENHANCEDSTATUSCODES\nS: 250-CHUNKING\nS: 250-DSN\nS: 250 8BITMIME\n";
const THREE: &str = "C: MAIL FROM:<ann@sender.example>\nC: RCPT TO:<a@example.com>\nC: RCPT TO:<b@example.com>\n\
    C: RCPT TO:<c@example.com>\nC: DATA\n";

fn configured(address: &str) -> LmtpAddress {
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n[targets.box]\nkind = \"lmtp\"\n\
         address = \"{address}\"\n"
    );
    match config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}")).targets.remove("box") {
        Some(Target::Lmtp { address }) => address,
        other => panic!("{other:?}"),
    }
}

struct House {
    transport: SmtpTransport,
    _zone: ZoneServer,
}

impl House {
    async fn new() -> House {
        let zone = Zone::new().a("box.test", "127.0.0.1").serve().await;
        let text = format!(
            "hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n[dns]\nnameservers = [\"{}\"]\n",
            zone.addr()
        );
        let config = config::parse("test.toml", &text).unwrap();
        let resolver = Resolver::new(&config.dns).unwrap();
        let short = Timeouts { dot: Duration::from_millis(500), ..Timeouts::RFC5321 };
        let transport = SmtpTransport::new(&config, resolver).unwrap().with_timeouts(short);
        House { transport, _zone: zone }
    }

    async fn deliver(&self, job: &Job, address: &str) -> Vec<Outcome> {
        let outcomes = self.transport.deliver_lmtp(job, &configured(address)).await;
        assert_eq!(outcomes.len(), job.recipients.len());
        assert!(outcomes.iter().zip(&job.recipients).all(|((number, _), (known, _))| number == known));
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }
}

fn job(names: &[&str]) -> Job {
    let chunks = vec![Bytes::from_static(b"Subject: x\r\n\r\n.dot\r\n")];
    let mut message = message(MessageId::first_at(START), &chunks, names.len() as u32);
    message.mail_from = ReversePath::Address(Address::parse("ann@sender.example").unwrap());
    let mut recipients: Vec<_> =
        (0..).zip(names.iter().map(|name| recipient(&format!("{name}@example.com"), 0))).collect();
    for (_, recipient) in &mut recipients {
        recipient.route = Route::Target("box".into());
        recipient.notify = Notify::On { success: true, failure: true, delay: false };
    }
    Job { message: Arc::new(message), body: Body::new(chunks), recipients }
}

/// Three recipients of one message, at a far end that plays this behind HELLO.
async fn three(script: &str) -> (Vec<Outcome>, Received) {
    let remotes = Remotes::play(&[&format!("{HELLO}{script}")]).await;
    let house = House::new().await;
    let outcomes = house.deliver(&job(&["a", "b", "c"]), &format!("127.0.0.1:{}", remotes.port)).await;
    house.transport.close().await;
    (outcomes, remotes.finish().await.remove(0))
}

fn delivered(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered(done) => {
            assert_eq!(done.hop, Hop::Final, "it is in its mailbox");
            done.reply.as_ref().unwrap().to_string()
        }
        other => panic!("{other:?}"),
    }
}

fn deferred(outcome: &Outcome) -> &Failure {
    match outcome {
        Outcome::Defer { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: &Outcome) -> &Failure {
    match outcome {
        Outcome::Fail(why) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_recipient_has_the_reply_that_is_its_own() {
    let (outcomes, received) = three(&format!(
        "{THREE}S: 250 2.1.0 ok\nS: 250 2.1.5 ok\nS: 250 2.1.5 ok\nS: 250 2.1.5 ok\nS: 354 go\ncontent\n\
         S: 250 2.0.0 a has it\nS: 452 4.2.2 b is full\nS: 550 5.2.1 c is closed\nC: QUIT\n"
    ))
    .await;
    assert_eq!(delivered(&outcomes[0]), "250 2.0.0 a has it");
    assert_eq!((deferred(&outcomes[1]).status.as_str(), deferred(&outcomes[1]).unsure), ("4.2.2", false));
    assert_eq!(failed(&outcomes[2]).status, "5.2.1");
    assert_eq!(received.contents, [b"Subject: x\r\n\r\n.dot\r\n"]);
}

#[tokio::test]
async fn who_was_refused_before_gets_no_reply_behind_the_dot() {
    let (outcomes, _) = three(&format!(
        "{THREE}S: 250 ok\nS: 250 ok\nS: 550 5.1.1 who is b\nS: 250 ok\nS: 354 go\ncontent\n\
         S: 250 2.0.0 a\nS: 250 2.0.0 c\nC: QUIT\n"
    ))
    .await;
    assert_eq!(delivered(&outcomes[0]), "250 2.0.0 a");
    assert_eq!(failed(&outcomes[1]).status, "5.1.1");
    assert_eq!(delivered(&outcomes[2]), "250 2.0.0 c");
}

/// RFC 2033 4.2: DATA fails, and there is nothing behind it.
#[tokio::test]
async fn nobody_is_left() {
    let (outcomes, received) = three(&format!(
        "{THREE}S: 250 ok\nS: 550 5.1.1 no\nS: 450 4.2.1 no\nS: 550 5.1.1 no\nS: 503 5.5.1 nobody\n\
         C: QUIT\n"
    ))
    .await;
    assert_eq!(failed(&outcomes[0]).status, "5.1.1");
    assert_eq!(deferred(&outcomes[1]).status, "4.2.1");
    assert_eq!(failed(&outcomes[2]).status, "5.1.1");
    assert!(received.contents.is_empty());
}

#[tokio::test]
async fn a_connection_lost_behind_the_dot_is_unsure_for_those_without_a_reply_only() {
    for end in ["drop", "stall", "S: 421 4.3.2 closing\ndrop", "S: 354 what\ndrop", "S> 250\\n"] {
        let (outcomes, _) = three(&format!(
            "{THREE}S: 250 ok\nS: 250 ok\nS: 250 ok\nS: 250 ok\nS: 354 go\ncontent\nS: 250 2.0.0 a\n{end}\n"
        ))
        .await;
        assert_eq!(delivered(&outcomes[0]), "250 2.0.0 a");
        // 421 is an answer for b, and c has none.
        assert_eq!(deferred(&outcomes[1]).unsure, !end.contains("421"), "{end}: {:?}", outcomes[1]);
        assert!(deferred(&outcomes[2]).unsure, "{end}: {:?}", outcomes[2]);
    }
}

#[tokio::test]
async fn before_the_dot_nothing_is_unsure() {
    for script in ["C: MAIL FROM:...\ndrop".to_owned(), format!("{THREE}S: 250 ok\nS: 421 4.3.2 closing\ndrop")] {
        let (outcomes, _) = three(&script).await;
        assert!(outcomes.iter().all(|outcome| !deferred(outcome).unsure), "{outcomes:?}");
    }
    let (outcomes, _) =
        three(&format!("{THREE}S: 250 ok\nS: 250 ok\nS: 250 ok\nS: 250 ok\nS: 451 4.3.0 not now\nC: QUIT\n")).await;
    assert!(outcomes.iter().all(|outcome| deferred(outcome).status == "4.3.0"), "{outcomes:?}");
}

/// What no server for LMTP would know is not said: EHLO, BDAT, the parameters of RFC 3461, REQUIRETLS.
#[tokio::test]
async fn the_next_message_goes_over_the_same_connection() {
    let one = "C: MAIL FROM:<ann@sender.example>\nC: RCPT TO:<a@example.com>\nC: DATA\n\
        S: 250 ok\nS: 250 ok\nS: 354 go\ncontent\nS: 250 2.0.0 a\n";
    let remotes = Remotes::play(&[&format!("{HELLO}{one}{one}C: QUIT\n")]).await;
    let house = House::new().await;
    let mut job = job(&["a"]);
    for wish in [TlsWish::default(), TlsWish::Required] {
        Arc::make_mut(&mut job.message).tls = wish;
        let outcomes = house.deliver(&job, &format!("box.test:{}", remotes.port)).await;
        assert_eq!(delivered(&outcomes[0]), "250 2.0.0 a");
    }
    house.transport.close().await;
    let received = remotes.finish().await.remove(0);
    assert_eq!((received.connections, received.contents.len()), (1, 2));
}

#[tokio::test]
async fn a_server_that_is_none_for_lmtp_defers() {
    let remotes = Remotes::play(&["S: 220 mx.test ESMTP\nC: LHLO mail.example.com\nS: 500 5.5.1 what\nstall\n"]).await;
    let house = House::new().await;
    let outcomes = house.deliver(&job(&["a"]), &format!("127.0.0.1:{}", remotes.port)).await;
    let why = deferred(&outcomes[0]);
    assert!(why.reason.contains("answered LHLO with: 500"), "{why:?}");
    assert!(!why.unsure);
    drop(house);
    remotes.finish().await;
}

#[tokio::test]
async fn a_socket_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::new().await;
    let address = format!("unix:{}", folder.path().join("lmtp").display());
    let outcomes = house.deliver(&job(&["a"]), &address).await;
    let why = deferred(&outcomes[0]);
    assert_eq!(why.status, "4.4.1");
    assert!(why.reason.starts_with(&format!("could not connect to {address}: No such file")), "{}", why.reason);
}

/// The same conversation over a unix socket, byte for byte.
#[tokio::test]
async fn a_unix_socket_is_spoken_to_as_any_other() {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lmtp");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let far = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(b"220 box LMTP\r\n").await.unwrap();
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return said;
            }
            let answer = match line.split([' ', '\r']).next().unwrap() {
                "LHLO" | "MAIL" | "RCPT" => "250 ok\r\n",
                "DATA" => "354 go\r\n",
                "." => "250 2.0.0 a\r\n250 2.0.0 b\r\n",
                "QUIT" => "221 bye\r\n",
                _ => "",
            };
            said.push(line);
            stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let house = House::new().await;
    let outcomes = house.deliver(&job(&["a", "b"]), &format!("unix:{}", Path::new(&path).display())).await;
    assert_eq!(outcomes.iter().map(delivered).collect::<Vec<_>>(), ["250 2.0.0 a", "250 2.0.0 b"]);
    let Outcome::Delivered(done) = &outcomes[0] else { panic!() };
    assert_eq!(done.to, format!("unix:{}", path.display()));
    house.transport.close().await;
    assert_eq!(
        far.await.unwrap().concat(),
        "LHLO mail.example.com\r\nMAIL FROM:<ann@sender.example>\r\nRCPT TO:<a@example.com>\r\n\
         RCPT TO:<b@example.com>\r\nDATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n"
    );
}
