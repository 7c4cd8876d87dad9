//! Limits beside that of one sender at one alias: of its domain, on threads, of an alias; and mail that has a
//! way of its own.

use std::time::Duration;

use super::*;

#[test]
fn a_domain_as_a_whole_has_ten_times_the_room_unless_it_is_everybodys() {
    for (domain, together) in [("far.example", 50), ("gmail.com", 60)] {
        let mut world = World::new();
        let taken = (0..60).filter(|n| world.send(&format!("u{n}@{domain}"), "sales@our.example").is_ok()).count();
        assert_eq!(taken, together, "{domain}");
        let result = world.send(&format!("new@{domain}"), "sales@our.example");
        assert_eq!(result.is_ok(), together == 60);
        if let Err(refusal) = result {
            assert!(refusal.reason.starts_with("too many messages from far.example to sales@our.example: 50 within"));
        }
        assert_eq!(world.send("one@else.example", "sales@our.example"), Ok(Action::Take));
    }
    // Our own users are not counted together.
    let mut world = World::new();
    world.door = Door::Submission { listener: "submission".to_owned() };
    assert!((0..60).all(|n| world.send(&format!("u{n}@our.example"), "all@our.example").is_ok()));
}

#[test]
fn answers_on_a_thread_that_we_know_have_room_of_their_own() {
    let mut world = World::new();
    world.config.replies = 7;
    world.sent("first@our.example", 1, 1);
    world.sent("second@our.example", 2, 1);
    world.sent("other@our.example", 3, 3);
    let sales = [alias("sales@our.example")];
    let answer = |sender: &str, id: &str| format!("References: <x@far.example> <{id}@our.example>\r\n{}", from(sender));
    let ruling = world.judge(&answer("bob@far.example", "second"), &sales);
    let answered = ruling.answers.unwrap();
    assert_eq!((answered.id, answered.account.as_deref()), (MessageId::from_u64(2), Some("shop")));
    // The second message goes on from the first, so both count together.
    for n in 0..7 {
        let id = if n % 2 == 0 { "first" } else { "second" };
        assert_eq!(world.send_to(&answer("bob@far.example", id), &sales), Ok(vec![Action::Take]), "{n}");
    }
    let text = reply(world.send_to(&answer("bob@far.example", "first"), &sales));
    assert!(text.contains("on one thread: 7 within 60 minutes"), "{text}");
    // Others, other threads, and new messages have counters of their own.
    assert_eq!(world.send_to(&answer("eve@far.example", "first"), &sales), Ok(vec![Action::Take]));
    assert_eq!(world.send_to(&answer("bob@far.example", "other"), &sales), Ok(vec![Action::Take]));
    world.fill("bob@far.example", "sales@our.example");
    assert!(world.send("bob@far.example", "sales@our.example").is_err());
    // An unknown id is no answer.
    assert!(world.send_to(&answer("bob@far.example", "unknown"), &sales).is_err());
}

#[test]
fn answers_on_ever_new_threads_end_too() {
    let mut world = World::new();
    world.config.replies = 7;
    let mut taken = 0;
    for n in 0..200 {
        let id = format!("n{n}@our.example");
        world.sent(&id, n, n);
        let answer = format!("In-Reply-To: <{id}>\r\n{}", from("bob@far.example"));
        taken += usize::from(world.send_to(&answer, &[alias("sales@our.example")]).is_ok());
    }
    assert_eq!(taken, 70);
}

#[test]
fn a_machine_that_says_so_has_no_conversation() {
    let mut world = World::new();
    world.sent("1@our.example", 1, 1);
    let answer = format!("Auto-Submitted: auto-replied\r\nIn-Reply-To: <1@our.example>\r\n{}", from("bob@far.example"));
    let sales = [alias("sales@our.example")];
    let taken = (0..20).filter(|_| world.send_to(&answer, &sales).is_ok()).count();
    assert_eq!(taken, 5);
}

#[test]
fn the_same_answer_on_two_threads_is_two_messages_at_the_catchall() {
    let mut world = World::new();
    world.sent("1@our.example", 1, 1);
    world.sent("2@our.example", 2, 2);
    let who = [caught("who@our.example")];
    let thanks = |id: u32| format!("From: bob@far.example\r\nIn-Reply-To: <{id}@our.example>\r\n\r\nThanks!\r\n");
    assert_eq!(world.send_to(&thanks(1), &who), Ok(vec![Action::Take]));
    assert_eq!(world.send_to(&thanks(2), &who), Ok(vec![Action::Take]));
    assert!(reply(world.send_to(&thanks(2), &who)).contains("the same message"));
}

#[test]
fn an_answer_to_a_notice_of_ours_is_swallowed() {
    let mut world = World::new();
    let id = notice_id::make(&world.marks, MessageId::from_u64(9), 1, &world.hostname);
    let answer = |field: &str| format!("{field}: <x@far.example> <{id}>\r\n{}", from("bob@far.example"));
    for field in ["References", "In-Reply-To"] {
        let actions = world.send_to(&answer(field), &[alias("sales@our.example")]).unwrap();
        assert!(matches!(&actions[0], Action::Discard(reason) if reason.contains("notice")), "{actions:?}");
    }
    let forged = answer("References").replace("loop.", "loop.0");
    assert_eq!(world.send_to(&forged, &[alias("sales@our.example")]), Ok(vec![Action::Take]));
    // A person may ask the postmaster about it, a machine may not.
    let role = [Inbound { always: true, ..alias("postmaster@our.example") }];
    assert_eq!(world.send_to(&answer("References"), &role), Ok(vec![Action::Take]));
    let machine = format!("Precedence: bulk\r\n{}", answer("References"));
    assert!(matches!(world.send_to(&machine, &role).unwrap()[0], Action::Discard(_)));
    // Our own users are not machines.
    world.door = Door::Submission { listener: "submission".to_owned() };
    assert_eq!(world.send_to(&answer("References"), &[alias("sales@our.example")]), Ok(vec![Action::Take]));
}

#[test]
fn an_alias_may_have_limits_of_its_own() {
    let mut world = World::new();
    let limits =
        AliasLimits { limit: Some(2), period: Some(Duration::from_secs(60)), automatic: Some(OnAutomatic::Discard) };
    let own = [Inbound { limits, ..alias("sales@our.example") }];
    for _ in 0..2 {
        for _ in 0..2 {
            assert_eq!(world.send_to(&from("bob@far.example"), &own), Ok(vec![Action::Take]));
        }
        let text = reply(world.send_to(&from("bob@far.example"), &own));
        assert!(text.contains("2 within 1 minutes are accepted"), "{text}");
        world.now += 60_000;
    }
    let automatic = format!("List-Id: <l.far.example>\r\n{}", from("bob@far.example"));
    assert!(matches!(world.send_to(&automatic, &own).unwrap()[0], Action::Discard(_)));
    world.config.automatic = OnAutomatic::Reject;
    let accepts = AliasLimits { automatic: Some(OnAutomatic::Accept), ..limits };
    assert_eq!(world.send_to(&automatic, &[Inbound { limits: accepts, ..own[0].clone() }]), Ok(vec![Action::Take]));
}

#[test]
fn what_must_be_taken_is_taken_also_where_machines_are_not_wanted() {
    let mut world = World::new();
    world.config.automatic = OnAutomatic::Reject;
    world.mail_from = ReversePath::Null;
    let bounce = Inbound { always: true, ..alias("bounce@our.example") };
    assert_eq!(world.send_to(&from("daemon@far.example"), &[bounce]), Ok(vec![Action::Take]));
    assert!(world.send_to(&from("daemon@far.example"), &[alias("sales@our.example")]).is_err());
}

#[test]
fn a_bounce_that_is_understood_is_not_counted() {
    let mut world = World::new();
    let read = [Inbound { always: true, exempt: true, ..alias("bounce@our.example") }];
    for _ in 0..20 {
        assert_eq!(world.send_to(&from("daemon@far.example"), &read), Ok(vec![Action::Take]));
    }
    assert!(world.table.is_empty());
}

#[test]
fn what_goes_back_to_a_writer_goes_once_and_not_without_end() {
    let mut world = World::new();
    let back = [Inbound { via: Via::Returned, always: true, ..alias("srs0=h=d=far.example=bob@our.example") }];
    let bounce = |n: u32| format!("From: daemon{n}@x{n}.example\r\nMessage-ID: <{n}@x>\r\n\r\nfailed\r\n");
    assert_eq!(world.send_to(&bounce(0), &back), Ok(vec![Action::Take]));
    assert!(matches!(world.send_to(&bounce(0), &back).unwrap()[0], Action::Discard(_)), "the same bounce again");
    // Whoever they say they are: somebody has seen the address.
    let taken = (1..50).filter(|n| world.send_to(&bounce(*n), &back).is_ok()).count();
    assert_eq!(taken, 4);
}

#[test]
fn list_mail_is_delivered() {
    let mut world = World::new();
    let content = format!("List-Unsubscribe: <mailto:leave@far.example>\r\n{}", from("list@far.example"));
    let ruling = world.judge(&content, &[alias("sales@our.example")]);
    assert_eq!(ruling.automatic, Some("List-Unsubscribe"));
    assert_eq!(world.send_to(&content, &[alias("sales@our.example")]), Ok(vec![Action::Take]));
}

#[test]
fn all_counters_of_a_sender_are_under_one_lock() {
    let world = World::new();
    let recipients = [alias("sales@our.example")];
    let keys = |sender: &str| {
        let content = from(sender);
        let headers = Headers::parse(content.as_bytes());
        lock_keys(&world.input(&headers, &content, &recipients))
    };
    assert_eq!(keys("a@far.example"), keys("b@far.example"), "their domain has a counter");
    assert_ne!(keys("a@gmail.com"), keys("b@gmail.com"));
}
