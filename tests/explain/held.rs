//! What is held for a person, or waits for a target of ours.

use crate::client::Client;
use crate::endpoint::{Endpoint, answer};
use crate::house::*;
use crate::server::{TestServer, queued_id};
use crate::sink::Sink;
use postrider::admin::explain::Condition;
use postrider::admin::{Action, Backend, Cause, Filter, Pick, Selection};
use postrider::message::MessageId;
use postrider::queue::suspend::Suspension;

/// Over the listener for mail from outside.
async fn from_outside(house: &House, from: &str, subject: &str) -> MessageId {
    let mut client = Client::connect(house.server.mx).await.unwrap();
    let content = format!("From: <{from}>\r\nTo: <box@home.test>\r\nSubject: {subject}\r\n\r\nhello\r\n");
    queued_id(&client.send(from, &["box@home.test"], &content).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_for_a_person_is_named_with_the_setting() {
    let sink = Sink::start().await;
    let house = House::new(sink.address.port(), "allow_recipients = [\"near.test\", \"box@far.test\"]\n").await;
    let id = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(id, Cause::AllowRecipients).await;
    holds(&explained, "delivery.allow_recipients", &["you@far.test is not among"]);
    assert!(explained.then[0].starts_with("it is held again: "), "{explained:#?}");
    let id = house.submit("kept", "box@far.test").await;
    let explained = house.wait_for(id, Cause::AccountHold).await;
    holds(&explained, "accounts.kept.hold", &["accounts.kept.hold is set"]);
    assert_eq!(
        (explained.state, commands(&explained)[0]),
        (Condition::Held, format!("postrider queue release {id}").as_str())
    );
    // Nobody is named as postmaster.
    let id = house.submit("app", "postmaster@home.test").await;
    let explained = house.wait_for(id, Cause::NoDestination).await;
    holds(&explained, "postmaster", &["its address leads nowhere", "nobody is named for postmaster@home.test"]);

    house.suspend(Suspension::All, true).await;
    let id = house.submit("app", "box@far.test").await;
    house.wait_for(id, Cause::Suspended).await;
    let selection = Selection { pick: Pick::Ids(vec![id], Filter::default()), dry_run: false };
    assert_eq!(house.server.app.operator().change(Action::Hold, selection).await.unwrap().recipients, 1);
    let explained = house.wait_for(id, Cause::Operator).await;
    assert!(explained.why.contains("a person has asked for it") && explained.key.is_none(), "{explained:#?}");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guard_against_loops_holds_is_named_with_its_limit() {
    let house = House::new(nobody(), "[loops]\nlimit = 1\non_limit = \"hold\"\n").await;
    let first = from_outside(&house, "bob@elsewhere.test", "one").await;
    house.server.wait_done(first).await;
    let second = from_outside(&house, "bob@elsewhere.test", "two").await;
    let explained = house.wait_for(second, Cause::LoopLimit).await;
    holds(&explained, "loops.limit", &["the guard against loops", "too many messages"]);
    assert!(explained.then[0].starts_with("it goes into the Maildir targets.box"), "{explained:#?}");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_policy_of_its_domain_holds_is_named_with_the_check() {
    let house = House::new(nobody(), "").await;
    let id = from_outside(&house, "bob@strict.test", "one").await;
    let explained = house.wait_for(id, Cause::Dmarc).await;
    holds(&explained, "checks.dmarc", &["DMARC quarantine of strict.test"]);
    assert_eq!(commands(&explained)[0], format!("postrider queue release {id}"));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_has_not_taken_in_time_is_kept_and_says_so() {
    let house = House::new(nobody(), "[delivery.retry]\nmax_attempts = 1\n").await;
    std::fs::write(house.folder.path().join("box"), "in the way").unwrap();
    let id = from_outside(&house, "bob@elsewhere.test", "one").await;
    let explained = house.wait_for(id, Cause::DeadLetter).await;
    holds(&explained, "delivery.retry.expire", &["its target has not taken it in time", "given up after 1 try"]);
    assert_eq!((explained.state, explained.next, explained.attempts), (Condition::Held, None, 1));
    assert!(explained.last.is_some(), "{explained:#?}");
    house.server.stop().await;
}

/// An endpoint that is gone: what comes after waits for a person, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_has_paused_itself_is_named() {
    let gone = Endpoint::answering(&[&answer("410 Gone", "", "")]).await;
    let more = format!(
        "[domains.\"hooks.test\"]\ncatchall = \"hook\"\n[targets.hook]\nkind = \"webhook\"\nurl = \"{}\"\n",
        gone.url
    );
    let house = House::new(nobody(), &more).await;
    for subject in ["one", "two"] {
        let mut client = Client::connect(house.server.mx).await.unwrap();
        let content = format!("From: <bob@elsewhere.test>\r\nSubject: {subject}\r\n\r\nhello\r\n");
        let reply = client.send("bob@elsewhere.test", &["you@hooks.test"], &content).await.unwrap();
        let explained = house.wait_for(queued_id(&reply), Cause::Target).await;
        holds(&explained, "targets.hook", &["the target hook is paused, because it has answered 410 Gone"]);
        assert_eq!(explained.state, Condition::Held);
    }
    house.server.stop().await;
}

/// A target that does not do, and a server whose disk is short, which is told of every message.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_does_not_take_it_is_named_and_so_is_a_disk_that_is_short() {
    let house = House::new(nobody(), "").await;
    // The path of the Maildir is taken by a file.
    std::fs::write(house.folder.path().join("box"), "in the way").unwrap();
    let id = from_outside(&house, "bob@elsewhere.test", "one").await;
    let explained = house.wait_for(id, Cause::Target).await;
    holds(&explained, "targets.box.path", &["its target does not take it now"]);
    assert!(explained.attempts == 1 && explained.next.unwrap() > START, "{explained:#?}");
    assert!(house.explain(id).await.troubles.is_empty());
    house.server.stop().await;

    let line = ("min_free = \"1MiB\"", "min_free = \"100000TiB\"");
    let server = TestServer::start_with(house.folder.path(), "[domains.\"home.test\"]\n", line.0, line.1).await;
    let explanation = server.app.operator().explain(id).await.unwrap().unwrap();
    assert!(explanation.troubles[0].contains("less than queue.min_free"), "{explanation:#?}");
    server.stop().await;
}
