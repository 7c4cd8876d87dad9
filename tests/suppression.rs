//! The suppression list: the rule by which bounces put an address on it, what proves a bounce, and what
//! becomes of mail for such an address. Time is a clock that the tests move.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::path::Path;
use std::time::Duration;

use postrider::admin::Backend;
use postrider::bounce::classify::Class;
use postrider::bounce::suppression::{self, Event, Who, weigh};
use postrider::clock::Clock;
use postrider::config::Bounces;
use postrider::events::Event as Told;
use postrider::message::{Address, MessageId};
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::sink::Sink;
use support::zone::{Zone, ZoneServer};

const DAY: u64 = 86_400_000;
/// Noon of a day in 2026.
const START: u64 = 1_795_262_400_000;

fn rule(within: u64) -> Bounces {
    let days = |days: u64| Duration::from_secs(days * 86_400);
    Bounces {
        suppress_after: 5,
        within: days(within),
        spread: days(7),
        hard_at_once: false,
        reset_on_inbound: true,
    }
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

    #[test]
    fn damage_on_disk_is_harmless(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
        let _ = (suppression::read_event(&bytes, 0), suppression::read_alive(&bytes, 0));
        let _ = suppression::read_entry(&bytes, &bytes, 0);
        let _ = suppression::read_entry(&suppression::entry_key("a@b.example", "bulk"), &bytes, 0);
    }
}
