//! How hard a group of servers is pushed after it has complained. Pure; the caller has the clock.
//!
//! A complaint (421, 4.7.x, no connection) halves how many attempts there may be at once. At one, it
//! makes a pause in which there are none, and each further one doubles that. What was under way when
//! the last complaint was heard tells nothing new, so one bad moment counts once, however many
//! attempts it hits. A success ends the doubling, and as many successes as there may be attempts at
//! once allow one more. At the configured number there is nothing to remember.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{Destination, Outcome};
use crate::clock::Millis;
use crate::queue::record::Failure;
use crate::smtp::Reply;

/// The first pause; each further one is twice as long.
pub const PAUSE_MIN: Millis = 5_000;
/// No pause is longer: after it one attempt is made, whatever was before.
pub const PAUSE_MAX: Millis = 10 * 60_000;
/// Without a complaint for so long a group is as good as any.
pub const FORGET_AFTER: Millis = 2 * 3_600_000;
/// Groups that are remembered; the one whose last complaint is the longest ago gives way.
pub const REMEMBERED_MAX: usize = 10_000;
/// Of the text of a complaint, in characters.
const WHY_CHARS_MAX: usize = 300;

/// When an attempt began, in complaints heard. Orders attempts and complaints without a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// What an attempt says about the servers that it was made at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Nobody was asked, or what came of it is about the mail.
    None,
    Good,
    /// Why.
    Complaint(String),
}

impl Sign {
    /// Of what came of a job at servers of others.
    pub fn of<'o>(outcomes: impl IntoIterator<Item = &'o Outcome>) -> Sign {
        let mut sign = Sign::None;
        for outcome in outcomes {
            match outcome {
                Outcome::Delivered(_) => sign = Sign::Good,
                // A refusal for good is about the mail, so we were welcome; not so one by policy.
                Outcome::Fail(Failure { reply: Some(reply), .. }) if !is_policy(reply) => sign = Sign::Good,
                Outcome::Defer { why, .. } if is_complaint(why) => return Sign::Complaint(why.reason.clone()),
                _ => {}
            }
        }
        sign
    }
}

fn is_policy(reply: &Reply) -> bool {
    reply.enhanced.is_some_and(|enhanced| enhanced.0 == 7)
}

/// 421, 4.7.x, no connection or one that broke, a greeting that turns us away. Greylisting is about a
/// sender and a recipient, and goes by the same code.
fn is_complaint(why: &Failure) -> bool {
    // 4.4.5: a webhook's 429 or 503.
    let Some(reply) = &why.reply else { return matches!(why.status.as_str(), "4.4.1" | "4.4.2" | "4.4.5") };
    match reply.code {
        421 => true,
        // RFC 5321 4.5.3.1.10: too many recipients for one transaction.
        452 | 552 => false,
        // A login is between us and one host, which rests by itself (`smart_hosts`).
        530 | 534 | 535 | 538 => false,
        // Where the mail is only put off by a final reply, that was to us and not to the mail.
        500.. => true,
        _ => why.status == "4.3.2" || (is_policy(reply) && !is_greylisting(reply)),
    }
}

/// Are we asked to come again, as all are that come for the first time?
pub fn is_greylisting(reply: &Reply) -> bool {
    let text = reply.text.to_ascii_lowercase();
    ["greylist", "graylist", "grey-list", "gray-list", "grey list", "gray list"].iter().any(|word| text.contains(word))
}

/// What is remembered of a group that has complained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Attempts at once; never zero.
    window: usize,
    /// Successes since `window` has changed.
    good: usize,
    /// The last pause, if nothing has succeeded since.
    pause: Millis,
    /// Nothing begins before.
    until: Millis,
    /// When the last complaint was heard.
    at: Millis,
    why: String,
    /// The last complaint. After a restart nothing is under way that could be older.
    #[serde(skip)]
    heard: Moment,
}

impl Throttle {
    fn new(connections: usize) -> Throttle {
        let window = connections.max(1);
        Throttle { window, good: 0, pause: 0, until: 0, at: 0, why: String::new(), heard: Moment(0) }
    }

    fn complain(&mut self, why: &str, now: Millis, heard: Moment) {
        self.heard = heard;
        self.at = now;
        self.good = 0;
        self.why = why.chars().take(WHY_CHARS_MAX).collect();
        if self.window > 1 {
            self.window /= 2;
        } else {
            self.pause = (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX);
            self.until = now.saturating_add(self.pause);
        }
    }

    fn succeed(&mut self) {
        self.pause = 0;
        self.good += 1;
        if self.good >= self.window {
            self.window += 1;
            self.good = 0;
        }
    }

    /// Attempts at once, of so many that are configured.
    pub fn window(&self, connections: usize) -> usize {
        self.window.min(connections).max(1)
    }

    /// Nothing begins before. A clock that was set back does not make the pause longer.
    pub fn until(&self, now: Millis) -> Millis {
        self.until.min(now.saturating_add(self.pause))
    }

    /// When the last complaint was heard.
    pub fn at(&self) -> Millis {
        self.at
    }

    /// What was complained of.
    pub fn why(&self) -> &str {
        &self.why
    }

    fn is_over(&self, now: Millis) -> bool {
        now.saturating_sub(self.at) >= FORGET_AFTER
    }
}

/// All groups that have complained. Those that are not in here are well.
#[derive(Debug, Default)]
pub struct Throttles {
    known: HashMap<Destination, Throttle>,
    last: Moment,
}

impl Throttles {
    /// From what was kept; what is long ago is left out.
    pub fn load(kept: impl IntoIterator<Item = (Destination, Throttle)>, now: Millis) -> Throttles {
        let kept = kept.into_iter().filter(|(_, throttle)| !throttle.is_over(now) && throttle.window > 0);
        Throttles { known: kept.take(REMEMBERED_MAX).collect(), last: Moment(0) }
    }

    /// For an attempt that begins now.
    pub fn now(&self) -> Moment {
        self.last
    }

    pub fn get(&self, destination: &Destination) -> Option<&Throttle> {
        if self.known.is_empty() { None } else { self.known.get(destination) }
    }

    /// All that have complained.
    pub fn iter(&self) -> impl Iterator<Item = (&Destination, &Throttle)> {
        self.known.iter()
    }

    /// An attempt that began at `began` has ended with this sign; `connections` are configured. Gives the
    /// groups about which something else is to be remembered now, or nothing any more.
    pub fn hear(
        &mut self,
        destination: &Destination,
        began: Moment,
        sign: &Sign,
        connections: impl Fn() -> usize,
        now: Millis,
    ) -> Vec<Destination> {
        match sign {
            Sign::None => Vec::new(),
            Sign::Good if self.known.is_empty() => Vec::new(),
            Sign::Good if self.good(destination, began, &connections, now) => vec![destination.clone()],
            Sign::Good => Vec::new(),
            Sign::Complaint(why) => self.complaint(destination, began, why, connections(), now),
        }
    }

    fn good(&mut self, destination: &Destination, began: Moment, connections: impl Fn() -> usize, now: Millis) -> bool {
        let Some(throttle) = self.known.get_mut(destination).filter(|throttle| began >= throttle.heard) else {
            return false;
        };
        let before = (throttle.window, throttle.pause);
        throttle.succeed();
        let is_news = before != (throttle.window, throttle.pause);
        if throttle.window >= connections() || throttle.is_over(now) {
            self.known.remove(destination);
            return true;
        }
        is_news
    }

    fn complaint(
        &mut self,
        destination: &Destination,
        began: Moment,
        why: &str,
        connections: usize,
        now: Millis,
    ) -> Vec<Destination> {
        let mut changed = Vec::new();
        match self.known.get(destination) {
            Some(throttle) if began < throttle.heard => return changed,
            Some(_) => {}
            None if self.known.len() >= REMEMBERED_MAX => changed.extend(self.forget_oldest()),
            None => {}
        }
        self.last = Moment(self.last.0 + 1);
        let throttle = self.known.entry(destination.clone()).or_insert_with(|| Throttle::new(connections));
        if throttle.at > 0 && throttle.is_over(now) {
            *throttle = Throttle::new(connections);
        }
        throttle.window = throttle.window.min(connections.max(1));
        throttle.complain(why, now, self.last);
        changed.push(destination.clone());
        changed
    }

    fn forget_oldest(&mut self) -> Option<Destination> {
        let oldest = self.known.iter().min_by_key(|(_, throttle)| throttle.at).map(|(known, _)| known.clone())?;
        self.known.remove(&oldest);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::delivery::Delivered;
    use proptest::prelude::*;

    const START: Millis = 1_000_000_000;

    fn far() -> Destination {
        Destination::Target("far".into())
    }

    fn busy() -> Sign {
        Sign::Complaint("421 too busy".into())
    }

    /// One attempt after the other, at the time given, each with the sign given.
    fn after(signs: &[(Millis, Sign)], connections: usize) -> Throttles {
        let mut throttles = Throttles::default();
        for (at, sign) in signs {
            throttles.hear(&far(), throttles.now(), sign, || connections, START + at);
        }
        throttles
    }

    fn failure(status: &str, reply: Option<Reply>) -> Failure {
        Failure { reply, ..Failure::local(status, "mx", "why") }
    }

    #[test]
    fn what_an_outcome_says_of_the_servers() {
        let refused = |code, enhanced, text: &'static str| Failure::refused("mx", Reply::new(code, enhanced, text));
        let defer = |why| Outcome::Defer { why, not_before_secs: None };
        let complaint = Some(true);
        for (outcome, says) in [
            (Outcome::Delivered(Delivered::default()), Some(false)),
            (Outcome::Fail(refused(550, (1, 1), "no such user")), Some(false)),
            (Outcome::Fail(refused(550, (7, 1), "you are on a list")), None),
            (Outcome::Fail(failure("5.1.2", None)), None),
            (defer(refused(421, (3, 2), "too busy")), complaint),
            (defer(refused(451, (7, 0), "slow down")), complaint),
            (defer(refused(450, (7, 1), "Greylisted, try later")), None),
            (defer(refused(452, (2, 2), "mailbox full")), None),
            (defer(refused(552, (5, 3), "too many recipients")), None),
            (defer(refused(535, (7, 8), "wrong password")), None),
            (defer(refused(554, (7, 1), "no service for you")), complaint),
            (defer(refused(450, (3, 2), "starting up")), complaint),
            (defer(failure("4.4.1", None)), complaint),
            (defer(failure("4.4.2", None)), complaint),
            (defer(failure("4.4.5", None)), complaint),
            (defer(failure("4.4.3", None)), None),
            (defer(failure("4.3.5", None)), None),
            (Outcome::Captured, None),
            (Outcome::Complained, None),
            (defer(refused(450, (2, 1), "not now")), None),
        ] {
            let found = match Sign::of([&outcome]) {
                Sign::None => None,
                Sign::Good => Some(false),
                Sign::Complaint(_) => complaint,
            };
            assert_eq!(found, says, "{outcome:?}");
        }
        let mixed = [Outcome::Delivered(Delivered::default()), defer(refused(451, (7, 0), "slow down"))];
        assert!(matches!(Sign::of(&mixed), Sign::Complaint(_)));
        assert_eq!(Sign::of([&mixed[0], &Outcome::Captured]), Sign::Good);
    }

    #[test]
    fn complaints_halve_and_then_make_longer_and_longer_pauses() {
        let mut throttles = Throttles::default();
        let mut seen = Vec::new();
        let mut now = START;
        for _ in 0..12 {
            assert_eq!(throttles.hear(&far(), throttles.now(), &busy(), || 10, now), [far()]);
            let throttle = throttles.get(&far()).unwrap();
            let pause = throttle.until(now).saturating_sub(now);
            seen.push((throttle.window(10), pause / 1000));
            now += pause;
        }
        let expected = [5, 2, 1].map(|window| (window, 0));
        let pauses = [5, 10, 20, 40, 80, 160, 320, 600, 600].map(|secs| (1, secs));
        assert_eq!(seen, [expected.as_slice(), &pauses].concat());
        assert_eq!(throttles.get(&far()).unwrap().why(), "421 too busy");
    }

    #[test]
    fn what_was_under_way_tells_nothing_new() {
        let mut throttles = Throttles::default();
        let began = throttles.now();
        throttles.hear(&far(), began, &busy(), || 10, START);
        for _ in 0..9 {
            assert_eq!(throttles.hear(&far(), began, &busy(), || 10, START), []);
            assert_eq!(throttles.hear(&far(), began, &Sign::Good, || 10, START), []);
        }
        assert_eq!(throttles.get(&far()).unwrap().window(10), 5);
    }

    #[test]
    fn successes_grow_back_until_nothing_is_remembered() {
        let mut throttles = after(&[(0, busy()), (0, busy()), (0, busy()), (0, busy())], 4);
        assert!(throttles.get(&far()).unwrap().until(START) > START);
        let mut windows = Vec::new();
        while let Some(throttle) = throttles.get(&far()) {
            windows.push(throttle.window(4));
            throttles.hear(&far(), throttles.now(), &Sign::Good, || 4, START + 60_000);
        }
        assert_eq!(windows, [1, 2, 2, 3, 3, 3]);
        // The next complaint is the first one again.
        throttles.hear(&far(), throttles.now(), &busy(), || 4, START + 60_000);
        assert_eq!(throttles.get(&far()).unwrap().window(4), 2);
    }

    #[test]
    fn a_success_ends_the_doubling() {
        let signs = [busy(), busy(), busy(), busy(), Sign::Good, busy(), busy()].map(|sign| (0, sign));
        let throttle = after(&signs, 3).get(&far()).unwrap().clone();
        assert_eq!((throttle.window(3), throttle.until(START)), (1, START + PAUSE_MIN));
        // With a single attempt at once there is nothing to grow back to.
        assert!(after(&signs[2..5], 1).get(&far()).is_none());
    }

    #[test]
    fn what_is_long_ago_is_forgotten() {
        let mut throttles = after(&[(0, busy()), (0, busy()), (0, busy()), (0, busy()), (0, busy())], 10);
        throttles.hear(&far(), throttles.now(), &busy(), || 10, START + FORGET_AFTER);
        assert_eq!(throttles.get(&far()).unwrap().window(10), 5);
        let kept = throttles.get(&far()).unwrap().clone();
        let again = |now| Throttles::load([(far(), kept.clone())], now);
        assert!(again(START + FORGET_AFTER + 1).get(&far()).is_some());
        assert!(again(START + 2 * FORGET_AFTER).get(&far()).is_none());
    }

    #[test]
    fn a_clock_set_back_makes_no_pause_longer() {
        let throttles = after(&[(0, busy()), (0, busy()), (0, busy())], 2);
        let throttle = throttles.get(&far()).unwrap();
        assert_eq!(throttle.until(START), START + 2 * PAUSE_MIN);
        assert_eq!(throttle.until(5), 5 + 2 * PAUSE_MIN);
    }

    #[test]
    fn no_more_are_remembered_than_may_be() {
        let mut throttles = Throttles::default();
        let name = |number: usize| Destination::Target(number.to_string());
        for number in 0..=REMEMBERED_MAX {
            let changed = throttles.hear(&name(number), throttles.now(), &busy(), || 10, START + number as Millis);
            assert_eq!(changed.len(), 1 + usize::from(number == REMEMBERED_MAX));
        }
        assert!(throttles.get(&name(0)).is_none() && throttles.get(&name(REMEMBERED_MAX)).is_some());
    }

    fn signs() -> impl Strategy<Value = Vec<(u8, Millis, u8)>> {
        prop::collection::vec((0u8..4, 0..2_000_000u64, 0u8..6), 0..300)
    }

    proptest! {
        /// Whatever is heard in whatever order: there is always at least one attempt and never more than
        /// configured, a pause has an end, a success never makes it worse, a complaint never better, and
        /// after enough successes everything is as it was.
        #[test]
        fn it_always_comes_back(connections in 1usize..40, signs in signs()) {
            let mut throttles = Throttles::default();
            let mut now = START;
            for (kind, wait, old) in signs {
                let began = Moment(throttles.now().0.saturating_sub(u64::from(old)));
                let sign = match kind { 0 => Sign::None, 1 => Sign::Good, _ => busy() };
                let seen = |throttles: &Throttles| {
                    let known = throttles.get(&far()).filter(|throttle| !throttle.is_over(now));
                    known.map_or((connections, now), |known| (known.window(connections), known.until(now).max(now)))
                };
                let before = seen(&throttles);
                let changed = throttles.hear(&far(), began, &sign, || connections, now);
                let after = seen(&throttles);
                prop_assert!((1..=connections).contains(&after.0));
                prop_assert!(after.1 <= now + PAUSE_MAX);
                match sign {
                    Sign::None => prop_assert_eq!(before, after),
                    Sign::Good => prop_assert!(after.0 >= before.0 && after.1 <= before.1),
                    Sign::Complaint(_) => prop_assert!(after.0 <= before.0 && after.1 >= before.1),
                }
                if before != after {
                    prop_assert!(!changed.is_empty());
                }
                now += wait;
            }
            for _ in 0..connections * connections {
                throttles.hear(&far(), throttles.now(), &Sign::Good, || connections, now);
            }
            prop_assert!(throttles.get(&far()).is_none());
        }
    }
}
