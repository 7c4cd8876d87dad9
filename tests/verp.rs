//! What comes back to the return paths that mail leaves with, and what of it is believed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod returns;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::collections::BTreeSet;

use postrider::admin::Backend;
use postrider::app::upkeep;
use postrider::events::Event;
use postrider::store::Table;
use support::client::Client;
use support::returns::{Setting, come_back, explain, for_recipient, log_in, maildir, report, send};
use support::server::queued_id;

const START: u64 = 1_795_262_400_000;
const VERP: &str = "[sender]\nreturn_path = \"verp\"\n";

fn bounced(event: &Event, who: &str) -> bool {
    matches!(event, Event::Bounced { recipient, counted: true, .. } if recipient.to_string() == who)
}

fn not_believed(event: &Event) -> bool {
    matches!(event, Event::NotBelieved { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn each_recipient_has_a_return_path_of_its_own_and_what_comes_back_there_is_proved() {
    let setting = Setting::new(START, VERP).await;
    let server = setting.server().await;
    let id = send(&server, "transactional", "one@home.test", &["ann@far.test", "bob@far.test", "eve@far.test"]).await;
    let taken = setting.sink.taken();
    assert!(taken.iter().all(|taken| taken.recipients.len() == 1), "each in a transaction of its own");
    let paths: BTreeSet<&str> = taken.iter().map(|taken| taken.mail_from.as_str()).collect();
    assert_eq!(paths.len(), 3);
    for path in &paths {
        let (local, domain) = path.split_once('@').unwrap();
        assert!(local.starts_with("bounce+") && local.len() == "bounce+".len() + 37 && domain == "home.test", "{path}");
    }
    // Bob's server knows him by another name, and the message by another id.
    let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
    let own = come_back(&server, &path, &report("robert@inner.far.test", "failed", "5.1.1", "other@far.test")).await;
    for story in [id, own] {
        let story = server.story(story).await.unwrap();
        assert!(story.entries.iter().any(|entry| bounced(&entry.event, "bob@far.test")), "{story:?}");
    }
    let known = explain(&server, "bob@far.test").await;
    assert_eq!((known.bounces.len(), known.bounces[0].class.as_str()), (1, "hard"));
    assert!(explain(&server, "ann@far.test").await.bounces.is_empty());
    assert!(setting.postmaster().is_empty(), "nobody else gets it");

    // Once more, and in capitals: it has counted.
    come_back(&server, &path.to_uppercase(), &report("bob@far.test", "failed", "5.1.1", "other@far.test")).await;
    assert_eq!(explain(&server, "bob@far.test").await.bounces.len(), 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_are_made_up_are_refused() {
    let setting = Setting::new(START, VERP).await;
    let server = setting.server().await;
    send(&server, "transactional", "one@home.test", &["bob@far.test"]).await;
    let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
    let mut outside = Client::connect(server.mx).await.unwrap();
    outside.command("MAIL FROM:<>", "250").await.unwrap();
    let at = path.find('@').unwrap();
    for position in [7, 20, 32, 34, at - 1] {
        let mut forged = path.clone().into_bytes();
        forged[position] = if forged[position] == b'x' { b'y' } else { b'x' };
        let forged = String::from_utf8(forged).unwrap();
        outside.command(&format!("RCPT TO:<{forged}>"), "550 5.1.1").await.unwrap();
    }
    outside.command(&format!("RCPT TO:<{path}>"), "250").await.unwrap();
    outside.command("RCPT TO:<bounce@home.test>", "250").await.unwrap();
    server.stop().await;
}

/// Nobody is told of what becomes of a notice; and bounces of forwarded mail are for who sent it.
#[tokio::test(flavor = "multi_thread")]
async fn only_mail_of_our_own_gets_a_token() {
    let aliases = "\"bob@home.test\" = \"bob@far.test\"\n".to_owned();
    let setting = Setting { aliases, ..Setting::new(START, VERP).await };
    let server = setting.server().await;
    let letter = "From: <app@home.test>\r\n\r\nhello\r\n";
    let reply = log_in(&server).await.send("", &["bob@far.test"], letter).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    let mut outside = Client::connect(server.mx).await.unwrap();
    let letter = "From: <ann@far.test>\r\n\r\nhello\r\n";
    let reply = outside.send("ann@far.test", &["bob@home.test"], letter).await.unwrap();
    server.wait_done(queued_id(&reply)).await;
    let taken = setting.sink.taken();
    assert_eq!(taken[0].mail_from, "");
    assert!(!taken[1].mail_from.contains('+'), "{}", taken[1].mail_from);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_the_id_of_a_message_that_went_there_is_the_proof() {
    let setting = Setting::new(START, "[sender]\nreturn_path = \"bounce\"\n").await;
    let server = setting.server().await;
    let id = send(&server, "transactional", "one@home.test", &["bob@far.test", "eve@far.test"]).await;
    // Forged: about others, about a message that there is not, without any id.
    for (recipient, message_id) in
        [("victim@far.test", "one@home.test"), ("bob@far.test", "another@home.test"), ("bob@far.test", "")]
    {
        let own = come_back(&server, "bounce@home.test", &report(recipient, "failed", "5.1.1", message_id)).await;
        let story = server.story(own).await.unwrap();
        assert!(story.entries.iter().any(|entry| not_believed(&entry.event)), "{story:?}");
        assert!(explain(&server, recipient).await.bounces.is_empty(), "{recipient} {message_id}");
    }
    assert_eq!(setting.postmaster().len(), 3, "a person may look at them");
    let own = come_back(&server, "bounce@home.test", &report("Bob@far.test", "failed", "5.2.2", "one@home.test")).await;
    let story = server.story(own).await.unwrap();
    assert!(story.entries.iter().any(|entry| bounced(&entry.event, "bob@far.test")), "{story:?}");
    let story = server.story(id).await.unwrap();
    assert!(story.entries.iter().any(|entry| bounced(&entry.event, "bob@far.test")), "{story:?}");
    assert_eq!(explain(&server, "bob@far.test").await.bounces[0].class, "full");
    assert_eq!(setting.postmaster().len(), 3);
    // It is known for 30 days.
    setting.clock.advance(31 * 86_400_000);
    come_back(&server, "bounce@home.test", &report("eve@far.test", "failed", "5.1.1", "one@home.test")).await;
    assert!(explain(&server, "eve@far.test").await.bounces.is_empty());
    server.stop().await;
}

/// An old name may have been that of the catchall.
#[tokio::test(flavor = "multi_thread")]
async fn under_an_old_name_bounces_are_read_and_answers_go_to_the_catchall() {
    let old = "[domains.\"old.test\"]\nprevious_names = [\"back\"]\ncatchall = \"box\"\n[domains.\"bare.test\"]\nprevious_names = [\"back\"]\n";
    let setting = Setting::new(START, &format!("{VERP}{old}")).await;
    let server = setting.server().await;
    send(&server, "transactional", "one@home.test", &["bob@far.test"]).await;
    let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
    let token = path.trim_start_matches("bounce+").trim_end_matches("@home.test");
    come_back(&server, &format!("back+{token}@old.test"), &report("bob@far.test", "failed", "5.1.1", "")).await;
    assert_eq!(explain(&server, "bob@far.test").await.bounces.len(), 1);
    assert!(setting.postmaster().is_empty());
    come_back(&server, "back@old.test", "From: <ann@far.test>\r\nSubject: Re: news\r\n\r\nThank you.\r\n").await;
    assert!(setting.postmaster()[0].contains("Delivered-To: back@old.test"));
    let mut outside = Client::connect(server.mx).await.unwrap();
    outside.command("MAIL FROM:<>", "250").await.unwrap();
    outside.command("RCPT TO:<back@bare.test>", "250").await.unwrap();
    outside.command("RCPT TO:<back@home.test>", "550 5.1.1").await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_failure_does_not_count() {
    let setting = Setting::new(START, VERP).await;
    let server = setting.server().await;
    let id = send(&server, "transactional", "one@home.test", &["bob@far.test"]).await;
    let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
    for action in ["delayed", "delivered"] {
        come_back(&server, &path, &report("bob@far.test", action, "4.4.1", "one@home.test")).await;
    }
    let story = server.story(id).await.unwrap();
    assert!(story.entries.iter().any(|entry| matches!(entry.event, Event::DelayReported { .. })), "{story:?}");
    assert!(setting.postmaster().is_empty());
    // An answering machine is no bounce, and goes where mail for this address goes.
    let answer =
        "From: <bob@far.test>\r\nSubject: Automatic reply: news\r\nAuto-Submitted: auto-replied\r\n\r\nI am away.\r\n";
    come_back(&server, &path, answer).await;
    assert_eq!(setting.postmaster().len(), 1);
    assert!(explain(&server, "bob@far.test").await.bounces.is_empty());
    server.stop().await;
}

/// Twenty bounces of one server in a row: the limit for an alias (5 an hour) is not about them.
#[tokio::test(flavor = "multi_thread")]
async fn bounces_do_not_count_against_the_limit_of_an_alias_which_may_have_them_too() {
    let more = format!("{VERP}[targets.returns]\nkind = \"maildir\"\npath = \"DATA_DIR/returns\"\n");
    let aliases = "'/^bounce(\\+.*)?@home\\.test$/' = \"returns\"\n".to_owned();
    let setting = Setting { aliases, ..Setting::new(START, &more).await };
    let server = setting.server().await;
    for number in 0..20 {
        let id = format!("{number}@home.test");
        send(&server, "transactional", &id, &["bob@far.test"]).await;
        let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
        come_back(&server, &path, &report("bob@far.test", "failed", "5.1.1", &id)).await;
    }
    assert_eq!(explain(&server, "bob@far.test").await.bounces.len(), 20);
    assert_eq!(maildir(&setting.folder.path().join("returns")).len(), 20);
    assert!(setting.postmaster().is_empty());
    server.stop().await;
}

/// Every sample of a bounce, sent by somebody who knows of no message of ours: nothing counts.
#[tokio::test(flavor = "multi_thread")]
async fn samples_of_bounces_that_prove_nothing_never_count() {
    let setting = Setting::new(START, &format!("{VERP}[loops]\nlimit = 1000\n")).await;
    let server = setting.server().await;
    send(&server, "bulk", "one@home.test", &["userx@far.test"]).await;
    let data = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let (mut sent, mut doubted) = (0, 0);
    for folder in ["dsn/flufl-bounce", "dsn/kumomta", "arf"] {
        for entry in std::fs::read_dir(data.join(folder)).unwrap() {
            let text = String::from_utf8_lossy(&std::fs::read(entry.unwrap().path()).unwrap()).into_owned();
            let lines = text.lines().enumerate().filter(|(at, line)| *at > 0 || !line.starts_with("From "));
            let content: String =
                lines.filter(|(_, line)| !line.starts_with('.')).map(|(_, line)| format!("{line}\r\n")).collect();
            let mut outside = Client::connect(server.mx).await.unwrap();
            let reply = outside.send("", &["bounce@home.test"], &content).await.unwrap();
            if reply.starts_with("250") {
                let story = server.wait_done(queued_id(&reply)).await;
                doubted += usize::from(story.entries.iter().any(|entry| not_believed(&entry.event)));
                assert!(
                    !story
                        .entries
                        .iter()
                        .any(|entry| matches!(entry.event, Event::Bounced { .. } | Event::Complained { .. }))
                );
            }
            sent += 1;
        }
    }
    println!("{sent} samples sent, {doubted} of them say that mail came back; none counts");
    assert!(sent >= 124 && doubted > 100, "{sent} {doubted}");
    let store = server.app.operator().queue.store();
    assert_eq!(store.prefix(Table::Loops, b"B").unwrap().count(), 0);
    assert!(server.app.operator().suppressions(None, 10).await.unwrap().is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_outlive_a_restart_and_a_restore() {
    let setting = Setting::new(START, VERP).await;
    let server = setting.server().await;
    send(&server, "transactional", "one@home.test", &["bob@far.test"]).await;
    let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
    server.stop().await;
    let server = setting.server().await;
    let (backup, other) = (setting.folder.path().join("backup"), tempfile::tempdir().unwrap());
    server.app.operator().back_up(backup.clone()).await.unwrap();
    server.stop().await;
    upkeep::restore(&backup, other.path(), false, START, &mut |_| ()).unwrap();
    let setting = Setting { folder: other, ..setting };
    let server = setting.server().await;
    come_back(&server, &path, &report("bob@far.test", "failed", "5.1.1", "other@far.test")).await;
    assert_eq!(explain(&server, "bob@far.test").await.bounces.len(), 1);
    server.stop().await;
}
