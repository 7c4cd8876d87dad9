//! A server that can be made to hold a message up by whatever there is, and what is asked of each answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::remote::Remotes;
use crate::server::{TestServer, queued_id};
use crate::zone::{Zone, ZoneServer};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::admin::explain::{Condition, Remedy};
use postrider::admin::{Backend, Cause, Explained, Explanation};
use postrider::clock::Clock;
use postrider::message::MessageId;
use postrider::queue::suspend::Suspension;

pub const START: u64 = 1_799_960_400_000;
pub const MINUTE: u64 = 60_000;
pub const HOUR: u64 = 60 * MINUTE;

/// A server, with accounts for each stream and one that is held, and far ends behind a zone of its own.
pub struct House {
    pub server: TestServer,
    pub clock: Clock,
    pub folder: tempfile::TempDir,
    _zone: ZoneServer,
}

pub fn zone() -> Zone {
    Zone::new()
        .mx("far.test", 10, "mx.far.test")
        .a("mx.far.test", "127.0.0.1")
        .fail("lost.test")
        .txt("_dmarc.strict.test", "v=DMARC1; p=quarantine")
}

impl House {
    /// Mail to far.test goes to this port. `delivery`: further lines of that section, and other sections.
    pub async fn new(port: u16, delivery: &str) -> House {
        let (folder, zone, clock) = (tempfile::tempdir().unwrap(), zone().serve().await, Clock::manual(START));
        let account = |name: &str, more: &str| format!("[accounts.{name}]\npassword = \"secret\"\n{more}");
        let text = format!(
            "[domains.\"home.test\"]\n[aliases]\n\"box@home.test\" = \"box\"\n[targets.box]\nkind = \"maildir\"\n\
             path = \"DATA_DIR/box\"\n{}{}{}[dns]\nnameservers = [\"{}\"]\n[delivery]\nmx_port = {port}\n\
             allow_private_addresses = true\n{delivery}",
            account("app", ""),
            account("news", "stream = \"bulk\"\n"),
            account("kept", "hold = true\n"),
            zone.addr()
        );
        let server = TestServer::start_at(folder.path(), &text, clock.clone()).await;
        House { server, clock, folder, _zone: zone }
    }

    pub async fn submit(&self, account: &str, to: &str) -> MessageId {
        self.submit_to(account, &[to]).await
    }

    pub async fn submit_to(&self, account: &str, to: &[&str]) -> MessageId {
        let mut client = Client::connect(self.server.submission).await.unwrap();
        let secret = STANDARD.encode(format!("\0{account}\0secret"));
        client.command(&format!("AUTH PLAIN {secret}"), "235").await.unwrap();
        let content = "From: <me@home.test>\r\nTo: <you@far.test>\r\nSubject: x\r\n\r\nhello\r\n";
        let reply = client.send("me@home.test", to, content).await.unwrap();
        assert!(reply.starts_with("250 2.0.0"), "{reply}");
        queued_id(&reply)
    }

    pub async fn explain(&self, id: MessageId) -> Explanation {
        self.server.app.operator().explain(id).await.unwrap().expect("the id is known")
    }

    /// Asks until the cause is this one: there is no event to wait for from outside. The bound only turns a
    /// wrong answer into a failure that shows it.
    pub async fn wait_for(&self, id: MessageId, cause: Cause) -> Explained {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let explanation = self.explain(id).await;
            match explanation.recipients.first() {
                Some(first) if first.cause == cause => return first.clone(),
                _ => assert!(Instant::now() < deadline, "not {cause:?}: {explanation:#?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn suspend(&self, what: Suspension, on: bool) {
        assert!(self.server.app.operator().suspend(what, on).await.unwrap().changed);
    }
}

pub fn commands(explained: &Explained) -> Vec<&str> {
    explained.can.iter().map(|Remedy { command, .. }| command.as_str()).collect()
}

#[track_caller]
pub fn holds(explained: &Explained, key: &str, words: &[&str]) {
    assert_eq!(explained.key.as_deref(), Some(key), "{explained:#?}");
    for word in words {
        assert!(explained.why.contains(word), "no {word:?} in {:?}", explained.why);
    }
    assert!(!explained.why.contains('\n') && !explained.can.is_empty(), "{explained:#?}");
}

/// It was tried once, and is tried again: when, and what was said.
#[track_caller]
pub fn tried(explained: &Explained, said: &str) {
    assert_eq!((explained.state, explained.attempts), (Condition::Waiting, 1), "{explained:#?}");
    assert!(explained.next.is_some_and(|next| next > START), "{explained:#?}");
    let last = explained.last.as_ref().expect("what the last try ended with");
    assert!(last.reason.contains(said), "no {said:?} in {last:?}");
}

/// A far end that plays so many connections of one script.
pub async fn far(script: &str, times: usize) -> Remotes {
    let all = vec![script; times].join("\n---\n");
    Remotes::play(&[&all]).await
}

/// It takes MAIL and answers RCPT with this.
pub fn at_rcpt(reply: &str) -> String {
    format!(
        "S: 220 mx.far.test ESMTP\nC: EHLO...\nS: 250 mx.far.test\nC: MAIL...\nS: 250 ok\nC: RCPT...\nS: {reply}\ndrop"
    )
}

/// A port of this machine on which nobody listens.
pub fn nobody() -> u16 {
    let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listener.local_addr().unwrap().port()
}
