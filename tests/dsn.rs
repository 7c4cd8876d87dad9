//! Delivery status notifications as a sender gets them: what was asked for with NOTIFY, RET, ENVID and ORCPT
//! (RFC 3461), through the whole server.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod support {
    pub mod courier;
    pub mod remote;
    pub mod zone;
}

use postrider::delivery::smtp::Timeouts;
use postrider::events::{Entry, Event};
use postrider::message::{Address, DsnRequest, Envelope, Notify, OriginalRecipient, Ret, ReversePath};
use support::courier::Courier;
use support::remote::Remotes;
use support::zone::Zone;

const SUCCESS: Notify = Notify::On { success: true, failure: true, delay: false };

fn envelope(from: &str, to: &[&str], notify: Notify) -> Envelope {
    let from = match from {
        "" => ReversePath::Null,
        from => ReversePath::Address(Address::parse(from).unwrap()),
    };
    let mut envelope = Envelope::new(from, to.iter().map(|to| Address::parse(to).unwrap()));
    envelope.dsn = DsnRequest { ret: Some(Ret::Full), envid: Some("order 4711".into()) };
    for recipient in &mut envelope.recipients {
        recipient.notify = notify;
        let address = format!("first+{}", recipient.address);
        recipient.original = Some(OriginalRecipient { kind: "rfc822".into(), address });
    }
    envelope
}

/// Sends to `to` with this far end as the one mail exchanger of far.test; gives the story and the notices.
async fn send(script: &str, envelope: Envelope) -> (Vec<Entry>, Vec<String>) {
    let remotes = Remotes::play(&[script]).await;
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    let courier = Courier::start("", remotes.port, zone, Timeouts::RFC5321).await;
    let id = courier.submit(envelope, "From: a@own.test\r\nSubject: hi\r\n\r\nHello.\r\n").await;
    courier.wait(id, |_| courier.queue.message(id).unwrap().is_none()).await;
    let story = courier.story(id);
    let told = story.iter().filter(|entry| matches!(entry.event, Event::NoticeSent { .. })).count();
    let notices = courier.notices(told).await;
    courier.stop().await;
    remotes.finish().await;
    assert_eq!(notices.len(), told);
    (story, notices)
}

/// A far end that takes what it is asked to, with these lines for MAIL and RCPT.
fn takes(offers: &str, mail: &str, rcpts: &[&str], replies: &str) -> String {
    let rcpts: String = rcpts.iter().map(|rcpt| format!("C: RCPT TO:{rcpt}\n")).collect();
    format!(
        "S: 220 mx.far.test\nC: EHLO mail.own.test\nS: 250-mx.far.test\n{offers}S: 250 PIPELINING\nC: MAIL FROM:{mail}\n\
         {rcpts}C: DATA\nS: 250 ok\n{replies}S: 354 go on\ncontent\nS: 250 2.0.0 kept\nC: QUIT\nS: 221 bye\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn several_recipients_share_a_notice() {
    let script = takes(
        "",
        "<a@own.test>",
        &["<one@far.test>", "<two@far.test>", "<three@far.test>"],
        "S: 250 ok\nS: 250 ok\nS: 550 5.1.1 no such user\n",
    );
    let to = ["one@far.test", "two@far.test", "three@far.test"];
    let (_, notices) = send(&script, envelope("a@own.test", &to, SUCCESS)).await;
    let [relayed, failed] = ["relayed", "failed"].map(|action| {
        let found: Vec<&String> = notices.iter().filter(|n| n.contains(&format!("\nAction: {action}\n"))).collect();
        assert_eq!(found.len(), 1, "{action}: {notices:#?}");
        found[0].clone()
    });
    assert_eq!(notices.len(), 2);
    for line in [
        "Original-Envelope-Id: order 4711\n",
        "Original-Recipient: rfc822; first+one@far.test\nFinal-Recipient: rfc822; one@far.test\nAction: relayed\n",
        "Original-Recipient: rfc822; first+two@far.test\nFinal-Recipient: rfc822; two@far.test\nAction: relayed\n",
        "Remote-MTA: dns; mx.far.test\n",
        "\nContent-Type: text/rfc822-headers\n",
    ] {
        assert!(relayed.contains(line), "{line}\n{relayed}");
    }
    // RET=FULL is about failures.
    assert!(!relayed.contains("Hello.") && failed.contains("Hello."), "{failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_on_is_answered_there() {
    let script = takes(
        "S: 250-DSN\n",
        "<a@own.test> RET=FULL ENVID=order+204711",
        &["<one@far.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;first+2Bone@far.test"],
        "S: 250 ok\n",
    );
    let (_, notices) = send(&script, envelope("a@own.test", &["one@far.test"], SUCCESS)).await;
    assert_eq!(notices, Vec::<String>::new());
}

/// Nobody learns from us where an alias leads, so the next server is not asked to tell.
#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_answered_for_here_and_once() {
    let orcpt = "ORCPT=rfc822;first+2Baway@own.test";
    let rcpts = [format!("<one@far.test> NOTIFY=FAILURE {orcpt}"), format!("<two@far.test> NOTIFY=FAILURE {orcpt}")];
    let rcpts: Vec<&str> = rcpts.iter().map(String::as_str).collect();
    let mail = "<a@own.test> RET=FULL ENVID=order+204711";
    let script = takes("S: 250-DSN\n", mail, &rcpts, "S: 250 ok\nS: 250 ok\n");
    let (_, notices) = send(&script, envelope("a@own.test", &["away@own.test"], SUCCESS)).await;
    assert_eq!(notices.len(), 1, "{notices:#?}");
    assert_eq!(notices[0].matches("\nAction: relayed\n").count(), 1, "{}", notices[0]);
    assert!(notices[0].contains("Final-Recipient: rfc822; away@own.test\n") && !notices[0].contains("@far.test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_delivery_is_final() {
    let courier = Courier::start("", 25, Zone::new(), Timeouts::RFC5321).await;
    let id = courier.submit(envelope("a@own.test", &["b@own.test"], SUCCESS), "Subject: hi\r\n\r\nHello.\r\n").await;
    let notices = courier.notices(1).await;
    for line in ["\nAction: delivered\n", "\nStatus: 2.0.0\n", "Subject: Your message to b@own.test was delivered\n"] {
        assert!(notices[0].contains(line), "{line}\n{}", notices[0]);
    }
    assert!(!notices[0].contains("/other"), "{}", notices[0]);
    assert!(courier.story(id).iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. })));
    courier.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_null_sender_is_told_nothing() {
    let script = takes("", "<>", &["<one@far.test>", "<two@far.test>"], "S: 250 ok\nS: 550 5.1.1 no such user\n");
    let (story, notices) = send(&script, envelope("", &["one@far.test", "two@far.test"], SUCCESS)).await;
    assert_eq!(notices, Vec::<String>::new());
    assert_eq!(story.iter().filter(|entry| matches!(entry.event, Event::Failed { .. })).count(), 1);
}
