//! The suppression list: the rule by which bounces put an address on it, what proves a bounce, and what
//! becomes of mail for such an address. Time is a clock that the tests move.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod returns;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::time::Duration;

use postrider::admin::Backend;
use postrider::bounce::classify::Class;
use postrider::bounce::suppression::{self, Event, Reason, Who, weigh};
use postrider::config::Bounces;
use postrider::events::Event as Told;
use postrider::intake::suppress::NewEntry;
use postrider::message::{Address, MessageId};
use postrider::queue::suspend::Suspension;
use postrider::store::Table;
use support::client::Client;
use support::returns::{Setting, come_back, explain, for_recipient, log_in, report, send};
use support::server::{TestServer, queued_id};

const DAY: u64 = 86_400_000;
/// Noon of a day in 2026.
const START: u64 = 1_795_262_400_000;

fn rule(within: u64) -> Bounces {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    Bounces { suppress_after: 5, within: days(within), spread: days(7), hard_at_once: false, reset_on_inbound: true }
}

/// A bounce so many days after the start.
fn bounce(day: f64, class: Class) -> Event {
    let at = START + (day * DAY as f64) as u64;
    Event { at, class, message: MessageId::first_at(at), direct: false, status: "5.1.1".into() }
}

fn hard(days: &[f64]) -> Vec<Event> {
    days.iter().map(|day| bounce(*day, Class::Hard)).collect()
}

/// Does it go on the list at the time of its last bounce?
fn met(rule: &Bounces, events: &[Event], alive: Option<f64>) -> bool {
    let now = events.iter().map(|event| event.at).max().unwrap() + 1;
    weigh(rule, events, alive.map(|day| START + (day * DAY as f64) as u64), now).met
}

#[test]
fn the_rule_sequence_by_sequence() {
    let month = rule(30);
    for (days, wanted) in [
        // Five in one day.
        (vec![0.0, 0.1, 0.2, 0.3, 0.4], false),
        (vec![0.0, 1.0, 2.0, 3.0, 8.0], true),
        // Seven days are not more than seven days.
        (vec![0.0, 2.0, 4.0, 6.0, 7.0], false),
        (vec![0.0, 2.0, 4.0, 6.0, 7.001], true),
        // Four are not enough, however far apart.
        (vec![0.0, 5.0, 10.0, 20.0], false),
        // The first is too long ago when the last comes.
        (vec![0.0, 7.0, 14.0, 21.0, 35.0], false),
        (vec![0.0, 7.0, 14.0, 21.0, 29.9], true),
        // Each a week after the other: five just fit.
        (vec![0.0, 7.0, 14.0, 21.0, 28.0], true),
    ] {
        assert_eq!(met(&month, &hard(&days), None), wanted, "{days:?}");
    }
    // 0, 14, 21, 28, 35 days ago: at 91 days, not at 30.
    let ago = hard(&[0.0, 7.0, 14.0, 21.0, 35.0]);
    assert!(met(&rule(91), &ago, None));
    assert!(!met(&month, &ago, None));
}

#[test]
fn a_sign_of_life_starts_the_count_again() {
    let month = rule(30);
    let days = [0.0, 1.0, 2.0, 3.0, 8.0];
    assert!(met(&month, &hard(&days), None));
    assert!(!met(&month, &hard(&days), Some(3.5)));
    assert!(!met(&month, &hard(&days), Some(0.0)));
    let later = [0.0, 1.0, 10.0, 11.0, 12.0, 13.0, 18.0];
    assert!(met(&month, &hard(&later), Some(5.0)), "five after it");
}

#[test]
fn what_says_nothing_of_the_address_does_not_count() {
    let month = rule(30);
    let days = [0.0, 1.0, 2.0, 3.0, 8.0];
    for (class, counts) in [
        (Class::Hard, true),
        (Class::Full, true),
        (Class::Soft, true),
        (Class::Policy, false),
        (Class::Size, false),
        (Class::Loop, false),
    ] {
        let events: Vec<Event> = days.iter().map(|day| bounce(*day, class)).collect();
        assert_eq!(met(&month, &events, None), counts, "{class:?}");
    }
    let mut mixed = hard(&days);
    mixed[4].class = Class::Policy;
    assert!(!met(&month, &mixed, None));
}

#[test]
fn one_no_such_user_is_enough_where_that_is_wanted() {
    let at_once = Bounces { hard_at_once: true, ..rule(30) };
    let mut one = hard(&[0.0]);
    assert!(!met(&at_once, &one, None), "reported by another server, not said to us");
    one[0].direct = true;
    assert!(met(&at_once, &one, None));
    assert!(!met(&rule(30), &one, None));
    one[0].class = Class::Full;
    assert!(!met(&at_once, &one, None));
}

#[test]
fn one_bounce_is_enough_where_suppress_after_is_one() {
    let one = Bounces { suppress_after: 1, ..rule(30) };
    let weighed = weigh(&one, &hard(&[0.0]), None, START + 1);
    assert!(weighed.met);
    assert_eq!(weighed.why, "1 bounce within 30 days, and 1 is enough");
    assert!(met(&one, &hard(&[0.0, 0.1]), None), "nor do more of them");
    let none = weigh(&one, &[], None, START);
    assert_eq!((none.met, none.why.as_str()), (false, "0 of 1 bounce within 30 days"));
    assert!(!met(&one, &[bounce(0.0, Class::Policy)], None), "it has to be one that counts");
}

#[test]
fn a_spread_of_nothing_is_no_condition() {
    let at_once = Bounces { suppress_after: 2, spread: Duration::ZERO, within: Duration::from_secs(60), ..rule(30) };
    let mut two = hard(&[0.0]);
    assert!(!met(&at_once, &two, None));
    two.push(Event { message: MessageId::first_at(START + 1), ..two[0].clone() });
    let weighed = weigh(&at_once, &two, None, START);
    assert!(weighed.met, "both at the same time");
    assert_eq!(weighed.why, "2 bounces within 1 minute, and 2 are enough");
    let close = weigh(&rule(30), &hard(&[0.0, 0.1, 0.2, 0.3, 0.25]), None, START + DAY);
    assert!(!close.met);
    assert_eq!(
        close.why,
        "5 bounces within 30 days, which is enough, but over 7.2 hours only, and it has to be more than 7 days"
    );
}

proptest::proptest! {
    /// In whatever order they are read; more bounces never take an address off.
    #[test]
    fn the_rule_depends_on_the_bounces_alone(mut days in proptest::collection::vec(0.0..29.0f64, 1..12), at in 0..12usize) {
        let month = rule(30);
        let now = START + 29 * DAY;
        let events = hard(&days);
        let whole = weigh(&month, &events, None, now);
        days.rotate_left(at % events.len());
        proptest::prop_assert_eq!(&weigh(&month, &hard(&days), None, now), &whole);
        let fewer = weigh(&month, &events[1..], None, now);
        proptest::prop_assert!(whole.met || !fewer.met);
        proptest::prop_assert!(whole.counted.len() >= fewer.counted.len());
    }

}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(16))]
    #[test]
    fn what_is_kept_is_read(local in "[a-z0-9.+-]{1,20}", class in 0..6usize, at in START..START + DAY) {
        let Ok(address) = Address::parse(&format!("{local}@far.test")) else { return Ok(()) };
        let class = [Class::Hard, Class::Full, Class::Soft, Class::Policy, Class::Size, Class::Loop][class];
        let event = Event { at, class, message: MessageId::first_at(at), direct: true, status: "5.2.2".into() };
        let mut batch = postrider::store::Batch::new();
        suppression::put_event(&mut batch, &rule(30), &address, &event);
        let folder = tempfile::tempdir().unwrap();
        let store = postrider::store::Store::open(folder.path()).unwrap();
        store.write(std::slice::from_ref(&batch), false).unwrap();
        let value = store.get(postrider::store::Table::Loops, &suppression::event_key(&address, event.message)).unwrap().unwrap();
        proptest::prop_assert_eq!(suppression::read_event(&value, at + 29 * DAY), Some(event));
        proptest::prop_assert_eq!(suppression::read_event(&value, at + 30 * DAY), None);
    }

}

proptest::proptest! {
    #[test]
    fn damage_on_disk_is_harmless(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
        let _ = (suppression::read_event(&bytes, 0), suppression::read_alive(&bytes, 0));
        let _ = suppression::read_entry(&bytes, &bytes, 0);
        let _ = suppression::read_entry(&suppression::entry_key("a@b.example", "bulk"), &bytes, 0);
    }
}

const VERP: &str = "[streams.bulk]\nverp = true\n";

/// Bulk mail to bob, and its bounce.
async fn send_and_bounce(setting: &Setting, server: &TestServer, id: &str) {
    send(server, "bulk", id, &["bob@far.test"]).await;
    let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
    come_back(server, &path, &report("bob@far.test", "failed", "5.1.1", id)).await;
}

fn is_suppressed(event: &Told) -> bool {
    matches!(event, Told::Suppressed { recipient, .. } if recipient.to_string() == "bob@far.test")
}

/// The sequence 0, 1, 2, 3, 8 days through a whole server, which is started anew on the way.
#[tokio::test(flavor = "multi_thread")]
async fn bounces_of_some_weeks_put_an_address_on_the_list_and_a_restart_keeps_the_count() {
    let setting = Setting::new(START, VERP).await;
    let mut server = setting.server().await;
    let mut day = 0;
    for (number, wanted) in [0, 1, 2, 3, 8].into_iter().enumerate() {
        setting.clock.advance((wanted - day) * DAY);
        day = wanted;
        if number == 3 {
            server.stop().await;
            server = setting.server().await;
        }
        send_and_bounce(&setting, &server, &format!("{number}@home.test")).await;
        let known = explain(&server, "bob@far.test").await;
        assert_eq!(known.bounces.len(), number + 1);
        assert_eq!(known.listed.is_empty(), number < 4, "{known:?}");
    }
    let known = explain(&server, "BOB@far.test").await;
    assert_eq!((known.listed[0].reason, known.listed[0].scope.as_deref()), (Reason::Bounces, Some("bulk")));
    assert_eq!(known.listed[0].evidence.len(), 5);
    println!("the rule: {}", known.rule.unwrap());

    let before = setting.sink.count();
    let id = send(&server, "bulk", "after@home.test", &["bob@far.test", "eve@far.test"]).await;
    let story = server.story(id).await.unwrap();
    assert!(story.entries.iter().any(|entry| is_suppressed(&entry.event)), "{story:?}");
    assert_eq!(setting.sink.count(), before + 1, "eve gets it");
    let id = send(&server, "bulk", "alone@home.test", &["bob@far.test"]).await;
    let story = server.story(id).await.unwrap();
    assert!(is_suppressed(&story.entries.last().unwrap().event), "{story:?}");
    // Other streams do not skip it.
    send(&server, "transactional", "invoice@home.test", &["bob@far.test"]).await;
    send(&server, "security", "password@home.test", &["bob@far.test"]).await;
    assert_eq!(setting.sink.count(), before + 3);
    // Also after a restart.
    server.stop().await;
    let server = setting.server().await;
    send(&server, "bulk", "again@home.test", &["bob@far.test"]).await;
    assert_eq!(setting.sink.count(), before + 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_streams_but_security_skip_what_is_on_the_list_for_all() {
    let setting = Setting::new(START, "").await;
    let server = setting.server().await;
    let entry = |who: &str, scope: &str| NewEntry {
        who: Who::parse(who).unwrap(),
        scope: Some(scope.to_owned()),
        reason: Reason::Manual,
        since: None,
        expires: None,
    };
    server.app.operator().suppress(vec![entry("@far.test", "global")]).await.unwrap();
    for stream in ["bulk", "transactional"] {
        send(&server, stream, &format!("{stream}@home.test"), &["bob@far.test"]).await;
    }
    assert_eq!(setting.sink.count(), 0);
    send(&server, "security", "password@home.test", &["bob@far.test"]).await;
    assert_eq!(setting.sink.count(), 1);
    for wrong in ["transactional", "security", "nothing"] {
        let complaint = server.app.operator().suppress(vec![entry("bob@far.test", wrong)]).await.unwrap_err();
        assert!(!complaint.remedy.is_empty(), "{wrong}: {complaint}");
    }
    let whom = || vec![Who::parse("@FAR.test").unwrap()];
    assert_eq!(server.app.operator().unsuppress(whom(), Some("bulk".to_owned()), false).await, Ok(0));
    assert_eq!(server.app.operator().unsuppress(whom(), None, false).await, Ok(1));
    send(&server, "bulk", "now@home.test", &["bob@far.test"]).await;
    assert_eq!(setting.sink.count(), 2);
    server.stop().await;
}

/// The list may have grown since the message was queued.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_queued_already_is_looked_at_again_when_its_turn_comes() {
    let setting = Setting::new(START, "").await;
    let server = setting.server().await;
    let operator = server.app.operator();
    operator.suspend(Suspension::Stream("bulk".into()), true).await.unwrap();
    let mut client = log_in(&server).await;
    let letter = "From: <a@home.test>\r\nX-Postrider-Stream: bulk\r\n\r\nhello\r\n";
    let reply = client.send("a@home.test", &["bob@far.test", "eve@far.test"], letter).await.unwrap();
    let id = queued_id(&reply);
    let entry = NewEntry {
        who: Who::parse("bob@far.test").unwrap(),
        scope: None,
        reason: Reason::Manual,
        since: None,
        expires: Some(START + DAY),
    };
    assert_eq!(operator.suppress(vec![entry.clone()]).await, Ok(1));
    assert_eq!(operator.suppress(vec![entry]).await, Ok(0), "it is there already");
    operator.suspend(Suspension::Stream("bulk".into()), false).await.unwrap();
    let story = server.wait_done(id).await;
    assert!(story.entries.iter().any(|entry| is_suppressed(&entry.event)), "{story:?}");
    assert_eq!(
        setting.sink.taken().iter().map(|taken| taken.recipients.clone()).collect::<Vec<_>>(),
        [["eve@far.test"]]
    );
    // Its time is over.
    setting.clock.advance(DAY);
    send(&server, "bulk", "later@home.test", &["bob@far.test"]).await;
    assert_eq!(setting.sink.count(), 2);
    let kept = || operator.queue.store().prefix(Table::Meta, b"suppress/").unwrap().count();
    assert_eq!(kept(), 1);
    operator.intake.load().suppression().forget_expired().await.unwrap();
    assert_eq!(kept(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_that_we_are_told_ourselves_count_at_once_where_that_is_wanted() {
    let setting = Setting::new(START, "[bounces]\nhard_at_once = true\n").await;
    let server = setting.server().await;
    let to = "refused@far.test";
    send(&server, "transactional", "first@home.test", &[to]).await;
    let known = explain(&server, to).await;
    assert!(known.bounces[0].direct && known.bounces[0].counts, "{known:?}");
    assert_eq!(known.listed[0].reason, Reason::Bounces);
    let id = send(&server, "bulk", "second@home.test", &[to]).await;
    let story = server.story(id).await.unwrap();
    assert!(matches!(story.entries.last().unwrap().event, Told::Suppressed { .. }), "{story:?}");
    // Somebody has found out that it was a mistake: what was before counts no more.
    let whom = vec![Who::parse(to).unwrap()];
    assert_eq!(server.app.operator().unsuppress(whom, None, false).await, Ok(1));
    let known = explain(&server, to).await;
    assert!(known.listed.is_empty() && !known.bounces[0].counts, "{known:?}");
    // What a server says of the sender is not about the recipient.
    let letter = "From: <a@home.test>\r\n\r\nhello\r\n";
    let reply = log_in(&server).await.send("refused@home.test", &["ann@far.test"], letter).await.unwrap();
    let story = server.wait_done(queued_id(&reply)).await;
    assert!(story.entries.iter().any(|entry| matches!(entry.event, Told::Failed { .. })), "{story:?}");
    assert!(explain(&server, "ann@far.test").await.bounces.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn authentic_mail_from_an_address_starts_its_count_again() {
    let setting = Setting::new(START, VERP).await;
    let server = setting.server().await;
    send_and_bounce(&setting, &server, "first@home.test").await;
    let counting =
        |known: &postrider::admin::suppress::Explained| known.bounces.iter().filter(|one| one.counts).count();
    assert_eq!(counting(&explain(&server, "bob@far.test").await), 1);
    setting.clock.advance(DAY);
    let letter = |from: &str| format!("From: <{from}>\r\nTo: <postmaster@home.test>\r\n\r\nI am here\r\n");
    for (mail_from, from, left) in [
        // Another has this domain's SPF behind it; and nobody has any for other.test.
        ("bob@other.test", "bob@far.test", 1),
        ("bob@far.test", "bob@other.test", 1),
        ("bob@far.test", "bob@far.test", 0),
    ] {
        let mut outside = Client::connect(server.mx).await.unwrap();
        let reply = outside.send(mail_from, &["postmaster@home.test"], &letter(from)).await.unwrap();
        server.wait_done(queued_id(&reply)).await;
        assert_eq!(counting(&explain(&server, "bob@far.test").await), left, "{mail_from} {from}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_complains_gets_no_more_bulk_mail_at_once() {
    let setting = Setting::new(START, VERP).await;
    let server = setting.server().await;
    let id = send(&server, "bulk", "first@home.test", &["bob@far.test", "eve@far.test"]).await;
    let path = for_recipient(&setting.sink, "bob@far.test").pop().unwrap().mail_from;
    // The recipient is hidden; the return path is not.
    let complaint = |path: &str, message_id: &str| {
        format!(
            "From: fbl@far.test\r\nContent-Type: multipart/report; report-type=feedback-report; boundary=x\r\n\r\n--x\r\n\r\n\
             A complaint.\r\n--x\r\nContent-Type: message/feedback-report\r\n\r\nFeedback-Type: abuse\r\n\
             User-Agent: Far/1\r\nVersion: 1\r\nOriginal-Mail-From: <{path}>\r\n--x\r\nContent-Type: message/rfc822\r\n\r\n\
             Message-ID: <{message_id}>\r\nSubject: news\r\n\r\nhello\r\n--x--\r\n"
        )
    };
    // Two got this message, and nothing says which of them it is.
    let own = come_back(&server, "postmaster@home.test", &complaint("news@home.test", "first@home.test")).await;
    let story = server.story(own).await.unwrap();
    assert!(story.entries.iter().any(|entry| matches!(entry.event, Told::NotBelieved { .. })), "{story:?}");
    assert!(explain(&server, "bob@far.test").await.listed.is_empty());
    let own = come_back(&server, "postmaster@home.test", &complaint(&path, "first@home.test")).await;
    for id in [id, own] {
        let story = server.story(id).await.unwrap();
        let complained = |event: &Told| matches!(event, Told::Complained { recipient, kind, .. } if recipient.to_string() == "bob@far.test" && kind == "abuse");
        assert!(story.entries.iter().any(|entry| complained(&entry.event)), "{story:?}");
    }
    assert_eq!(explain(&server, "bob@far.test").await.listed[0].reason, Reason::Complaint);
    let before = setting.sink.count();
    send(&server, "bulk", "second@home.test", &["bob@far.test"]).await;
    assert_eq!(setting.sink.count(), before);
    let whom = || vec![Who::parse("bob@far.test").unwrap()];
    server.app.operator().unsuppress(whom(), None, false).await.unwrap_err();
    assert_eq!(server.app.operator().unsuppress(whom(), None, true).await, Ok(1));
    assert_eq!(setting.postmaster().len(), 2, "it was for the postmaster, who gets it as any other mail");
    server.stop().await;
}
