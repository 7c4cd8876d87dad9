//! What the sender of one webhook knows of its queue: what it has read, what is on its way, what is tried again
//! later, and whether the endpoint is given a rest. No I/O but reading the store.
//!
//! Events about one recipient go one after the other; those of others do not wait for them. Entries are read in
//! their order, a slice at a time. Steps that were written side by side may appear a little out of it, so the
//! reading starts again a little earlier each time, and now and then [`AGAIN`] further back.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::clock::Millis;
use crate::events::outbox::{GAP, Tray, Waiting};
use crate::message::MessageId;
use crate::store::{Store, StoreError, Table};

/// Posts under way at once.
pub const AT_ONCE: usize = 8;
/// Entries read ahead.
const AHEAD_EVENTS: usize = 256;
/// Entries looked at again at each reading, for what was written late.
const OVERLAP_EVENTS: u64 = 1024;
/// How often the reading starts further back.
const AGAIN: Millis = 10_000;
/// Events that wait for a further try of their own; with more the endpoint counts as down.
const LATER_EVENTS_MAX: usize = 1000;
/// The wait after each failed try of one event; then the last one again and again.
const TRIES: [Millis; 9] = [5_000, 30_000, 120_000, 300_000, 600_000, 1_800_000, 3_600_000, 7_200_000, 14_400_000];
/// The wait before a silent endpoint is asked again: doubled each time, from the first to the last.
const REST: (Millis, Millis) = (5_000, 600_000);
/// The wait after 410.
const GONE_REST: Millis = 3_600_000;

/// Which events go one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Course(MessageId, u64);

/// An entry that is to be posted.
#[derive(Debug)]
pub struct Item {
    pub waiting: Waiting,
    pub tries: u32,
    course: Course,
}

impl Item {
    fn new(waiting: Waiting) -> Item {
        let recipient = recipient(&waiting);
        let message = MessageId::from_prefix(&waiting.journal_key).unwrap_or(MessageId::from_u64(0));
        Item { waiting, tries: 0, course: Course(message, recipient) }
    }

    pub fn is_gap(&self) -> bool {
        self.waiting.journal_key == GAP
    }
}

/// A number for the recipient: 0 for an event about the message.
fn recipient(waiting: &Waiting) -> u64 {
    #[derive(serde::Deserialize)]
    struct About<'a> {
        #[serde(borrow)]
        recipient: Option<std::borrow::Cow<'a, str>>,
    }
    let about = serde_json::from_slice::<About<'_>>(&waiting.value).ok();
    about.and_then(|about| about.recipient).map_or(0, |recipient| {
        let mut hasher = DefaultHasher::new();
        recipient.hash(&mut hasher);
        hasher.finish().max(1)
    })
}

#[derive(Debug)]
struct Later {
    key: Box<[u8]>,
    course: Course,
    tries: u32,
    at: Millis,
}

/// The state.
#[derive(Debug, Default)]
pub struct Progress {
    ahead: VecDeque<Item>,
    /// Numbers of those ahead, under way, done but not yet taken away, and later.
    known: HashSet<u64>,
    busy: HashSet<Course>,
    under_way: usize,
    later: BTreeMap<u64, Later>,
    /// Everything below has been read.
    read_to: u64,
    /// Where the reading starts when it starts further back, and where the next time.
    back_to: (u64, u64),
    read_again_at: Millis,
    may_be_more: bool,
    failures_in_a_row: u32,
    rests: u32,
    rest_until: Option<Millis>,
}

impl Progress {
    pub fn new() -> Progress {
        Progress { may_be_more: true, ..Progress::default() }
    }

    /// Something new is there.
    pub fn wake(&mut self) {
        self.may_be_more = true;
    }

    /// Until when the endpoint is left alone.
    pub fn resting(&self, now: Millis) -> Option<Millis> {
        self.rest_until.filter(|until| now < *until)
    }

    /// Is anything waiting for its time?
    pub fn waits(&self) -> bool {
        self.rest_until.is_some() || !self.later.is_empty()
    }

    /// Is this one ahead, under way, or waiting for its time?
    pub fn is_under_way(&self, item: u64) -> bool {
        self.known.contains(&item)
            && !self.later.contains_key(&item)
            && self.ahead.iter().all(|ahead| ahead.waiting.number != item)
    }

    /// The next one to be posted, if any may be now.
    pub fn next(&mut self, store: &Store, tray: &Tray, now: Millis) -> Result<Option<Item>, StoreError> {
        // After a failure one at a time shows how it goes on.
        let at_once = if self.failures_in_a_row > 0 { 1 } else { AT_ONCE };
        if self.under_way >= at_once || self.resting(now).is_some() {
            return Ok(None);
        }
        if let Some(item) = self.due_again(store, now)? {
            return Ok(Some(self.begin(item)));
        }
        if now >= self.read_again_at {
            self.may_be_more = true;
        }
        loop {
            let free =
                |item: &Item| !self.busy.contains(&item.course) && !self.busy.contains(&Course(item.course.0, 0));
            // What waits before it about the same recipient goes first.
            if let Some(place) = self.ahead.iter().position(free)
                && let Some(item) = self.ahead.remove(place)
            {
                return Ok(Some(self.begin(item)));
            }
            if !self.may_be_more || self.ahead.len() >= AHEAD_EVENTS {
                return Ok(None);
            }
            self.read(store, tray, now)?;
        }
    }

    fn begin(&mut self, item: Item) -> Item {
        self.under_way += 1;
        self.busy.insert(item.course);
        item
    }

    fn due_again(&mut self, store: &Store, now: Millis) -> Result<Option<Item>, StoreError> {
        let due = self.later.iter().find(|(_, later)| later.at <= now).map(|(number, _)| *number);
        let Some(number) = due else { return Ok(None) };
        let Some(key) = self.later.get(&number).map(|later| later.key.clone()) else { return Ok(None) };
        let value = store.get(Table::Meta, &key)?;
        let Some(later) = self.later.remove(&number) else { return Ok(None) };
        let Some(value) = value else {
            self.forget(number, later.course);
            return Ok(None);
        };
        let journal_key = key.last_chunk().copied().unwrap_or(GAP);
        let mut item = Item::new(Waiting { key, number, journal_key, value: value.into() });
        item.tries = later.tries;
        Ok(Some(item))
    }

    fn read(&mut self, store: &Store, tray: &Tray, now: Millis) -> Result<(), StoreError> {
        let mut from = self.read_to.saturating_sub(OVERLAP_EVENTS);
        if now >= self.read_again_at {
            self.read_again_at = now + AGAIN;
            from = from.min(self.back_to.0);
            self.back_to = (self.back_to.1, self.read_to);
        }
        self.may_be_more = false;
        for waiting in tray.waiting(store, from)? {
            let waiting = waiting?;
            if self.known.contains(&waiting.number) {
                continue;
            }
            if self.ahead.len() >= AHEAD_EVENTS {
                self.may_be_more = true;
                break;
            }
            self.read_to = self.read_to.max(waiting.number);
            self.known.insert(waiting.number);
            self.ahead.push_back(Item::new(waiting));
        }
        Ok(())
    }

    fn forget(&mut self, number: u64, course: Course) {
        self.known.remove(&number);
        self.busy.remove(&course);
    }

    /// It is done with; it is known until it has been taken away.
    pub fn done(&mut self, item: &Item) {
        self.under_way = self.under_way.saturating_sub(1);
        self.busy.remove(&item.course);
        // Its number stays known, so that it is not read once more.
    }

    /// They are not in the store any more.
    pub fn gone(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.known.remove(&number);
            if let Some(later) = self.later.remove(&number) {
                self.busy.remove(&later.course);
            }
            self.ahead.retain(|item| item.waiting.number != number);
        }
    }

    /// Something was written at this place.
    pub fn read_from(&mut self, number: u64) {
        self.read_to = self.read_to.min(number);
        self.back_to = (self.back_to.0.min(number), self.back_to.1.min(number));
        self.may_be_more = true;
    }

    /// The endpoint has taken something. True: it had not, before.
    pub fn goes_well(&mut self) -> bool {
        self.failures_in_a_row = 0;
        self.rests = 0;
        self.rest_until.take().is_some()
    }

    /// This event was not taken, for a reason that may be its own. True: now the endpoint gets a rest.
    pub fn failed(&mut self, item: Item, now: Millis) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        let tries = item.tries + 1;
        let wait = TRIES.get(item.tries as usize).or(TRIES.last()).copied().unwrap_or(AGAIN);
        let later = Later { key: item.waiting.key, course: item.course, tries, at: now + wait };
        self.later.insert(item.waiting.number, later);
        self.failures_in_a_row += 1;
        let is_down = self.failures_in_a_row as usize >= AT_ONCE || self.later.len() >= LATER_EVENTS_MAX;
        is_down && self.rest(now, None)
    }

    /// The endpoint cannot be reached or wants a rest. True: it was not resting yet.
    pub fn down(&mut self, item: Item, now: Millis, wait: Option<Millis>) -> bool {
        self.under_way = self.under_way.saturating_sub(1);
        self.busy.remove(&item.course);
        self.ahead.push_front(item);
        self.failures_in_a_row += 1;
        self.rest(now, wait)
    }

    /// It wants no more events.
    pub fn wants_no_more(&mut self, item: Item, now: Millis) -> bool {
        self.down(item, now, Some(GONE_REST))
    }

    fn rest(&mut self, now: Millis, wait: Option<Millis>) -> bool {
        let was_resting = self.rest_until.is_some();
        // Those that were under way together are one failure.
        if self.resting(now).is_none() {
            self.rests += 1;
        }
        let doubled = REST.0.saturating_mul(1 << self.rests.saturating_sub(1).min(20)).min(REST.1);
        let until = now + wait.unwrap_or(0).max(doubled);
        self.rest_until = Some(self.rest_until.map_or(until, |other| other.max(until)));
        !was_resting
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::Clock;
    use crate::config::{EventLog, EventWebhook};
    use crate::events::Event;
    use crate::events::journal::Journal;
    use crate::events::outbox::Outbox;
    use crate::message::Address;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    struct Fixture {
        store: Store,
        outbox: Arc<Outbox>,
        journal: Journal,
        progress: Progress,
        _folder: tempfile::TempDir,
    }

    impl Fixture {
        fn new() -> Fixture {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(folder.path()).unwrap();
            let hook = EventWebhook { url: "http://127.0.0.1:1/".into(), secret: None, only: None };
            let outbox = Arc::new(Outbox::load(&store, &BTreeMap::from([("crm".to_owned(), hook)])).unwrap().0);
            let journal = Journal::with(Clock::manual(1_000_000), EventLog::Off, outbox.clone());
            Fixture { store, outbox, journal, progress: Progress::new(), _folder: folder }
        }

        /// Two events about a recipient of message `number`.
        fn tell(&mut self, number: u64) {
            let recipient = Address::parse("bob@example.net").unwrap();
            let mut telling = self.journal.begin();
            telling.tell(MessageId::from_u64(number), Event::Held { recipient: recipient.clone(), reason: "x".into() });
            telling.tell(MessageId::from_u64(number), Event::Released { recipient });
            self.store.write(&[telling.take_batch()], false).unwrap();
            telling.log();
            self.progress.wake();
        }

        fn next(&mut self, now: Millis) -> Option<Item> {
            self.progress.next(&self.store, &self.outbox.trays()[0], now).unwrap()
        }

        fn numbers(&mut self, now: Millis) -> Vec<u64> {
            std::iter::from_fn(|| self.next(now)).map(|item| item.waiting.number).collect()
        }
    }

    #[test]
    fn what_is_about_one_recipient_goes_one_after_the_other() {
        let mut fixture = Fixture::new();
        (1..=3).for_each(|number| fixture.tell(number));
        let first = fixture.next(0).unwrap();
        assert_eq!(first.waiting.number, 0);
        assert_eq!(fixture.numbers(0), [2, 4]);
        fixture.progress.done(&first);
        assert_eq!(fixture.numbers(0), [1]);
    }

    #[test]
    fn no_more_than_so_many_are_under_way() {
        let mut fixture = Fixture::new();
        (1..=20).for_each(|number| fixture.tell(number));
        assert_eq!(fixture.numbers(0).len(), AT_ONCE);
    }

    #[test]
    fn one_that_fails_waits_and_holds_up_only_its_recipient() {
        let mut fixture = Fixture::new();
        (1..=2).for_each(|number| fixture.tell(number));
        let bad = fixture.next(0).unwrap();
        assert!(!fixture.progress.failed(bad, 0));
        let other = fixture.next(0).unwrap();
        assert_eq!(other.waiting.number, 2);
        assert!(!fixture.progress.goes_well());
        fixture.progress.done(&other);
        let last = fixture.next(TRIES[0] - 1).unwrap();
        assert_eq!(last.waiting.number, 3);
        fixture.progress.done(&last);
        assert!(fixture.next(TRIES[0] - 1).is_none());
        let again = fixture.next(TRIES[0]).unwrap();
        assert_eq!((again.waiting.number, again.tries), (0, 1));
        assert!(!fixture.progress.failed(again, TRIES[0]));
        assert!(fixture.next(TRIES[0] + TRIES[1] - 1).is_none());
        assert_eq!(fixture.next(TRIES[0] + TRIES[1]).unwrap().tries, 2);
    }

    #[test]
    fn an_endpoint_that_is_down_is_left_alone_for_as_long_as_it_says_and_asked_with_one() {
        let mut fixture = Fixture::new();
        (1..=9).for_each(|number| fixture.tell(number));
        let item = fixture.next(0).unwrap();
        assert!(fixture.progress.down(item, 0, Some(120_000)));
        assert!(fixture.next(119_999).is_none());
        let item = fixture.next(120_000).unwrap();
        assert_eq!((item.waiting.number, item.tries), (0, 0));
        assert!(fixture.next(120_000).is_none(), "one at a time until it answers");
        // Again, without a word for how long: twice as long as the first time.
        assert!(!fixture.progress.down(item, 120_000, None));
        assert_eq!(fixture.progress.resting(120_000), Some(120_000 + 2 * REST.0));
        let item = fixture.next(120_000 + 2 * REST.0).unwrap();
        assert!(fixture.progress.goes_well());
        fixture.progress.done(&item);
        assert_eq!(fixture.numbers(120_000 + 2 * REST.0).len(), AT_ONCE);
    }

    #[test]
    fn where_all_fails_the_endpoint_gets_a_rest() {
        let mut fixture = Fixture::new();
        (1..=9).for_each(|number| fixture.tell(number));
        let items: Vec<_> = std::iter::from_fn(|| fixture.next(0)).collect();
        let rests: Vec<bool> = items.into_iter().map(|item| fixture.progress.failed(item, 0)).collect();
        assert_eq!(rests.iter().filter(|rests| **rests).count(), 1);
        assert_eq!(rests.last(), Some(&true));
        assert_eq!(fixture.progress.resting(0), Some(REST.0));
    }

    #[test]
    fn what_is_written_late_is_found() {
        let mut fixture = Fixture::new();
        (1..=3).for_each(|number| fixture.tell(number));
        // The first two are not there yet when the others are.
        let tray = fixture.outbox.trays()[0].clone();
        let late: Vec<Waiting> = tray.waiting(&fixture.store, 0).unwrap().take(2).map(Result::unwrap).collect();
        let mut batch = crate::store::Batch::new();
        late.iter().for_each(|waiting| batch.delete(Table::Meta, waiting.key.clone()));
        fixture.store.write(&[batch], false).unwrap();
        assert_eq!(fixture.numbers(0), [2, 4]);
        let mut batch = crate::store::Batch::new();
        late.iter().for_each(|waiting| batch.put(Table::Meta, waiting.key.clone(), waiting.value.to_vec()));
        fixture.store.write(&[batch], false).unwrap();
        fixture.progress.wake();
        assert_eq!(fixture.numbers(0), [0]);
    }
}
