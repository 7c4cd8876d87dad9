//! How much an account may send: recipients a day (UTC), and recipients in a time. Our own notices have
//! no account and do not count.
//!
//! The counter of the day is written in the synced batch of the message that it counts, so that the two
//! cannot disagree: after a crash all of both is there or nothing. So that messages of one account do
//! not wait for each other's write, the counter is kept as [`STRIPES`] numbers, each of which one
//! message at a time may raise; their sum counts. A message whose write is broken off counts: rather
//! one too few than one too many. The rate counts at RCPT, is kept in memory only, and begins anew with each
//! start.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::clock::{Millis, rfc3339};
use crate::config::{Account, Config, Rate};
use crate::queue::keys;
use crate::queue::pace::{day_of, next_day};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;
use crate::store::{Batch, Store, StoreError, Table};

/// Messages of one account that can be written at a time; more wait for one of them.
const STRIPES: usize = 16;
const META_PREFIX: &str = "quota/";

/// So many recipients on this day since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Count {
    day: u64,
    sent: u64,
}

impl Count {
    fn on(self, day: u64) -> u64 {
        if self.day == day { self.sent } else { 0 }
    }
}

#[derive(Debug)]
struct Quota {
    daily: Option<u64>,
    rate: Option<Rate>,
    counted: Arc<Counter>,
}

/// What an account has sent, whatever its limits are.
#[derive(Debug)]
struct Counter {
    /// What is counted, also of messages that are being written.
    total: Mutex<Count>,
    stripes: Vec<tokio::sync::Mutex<Count>>,
    next_stripe: AtomicUsize,
    /// When the rate is used up to, in nanoseconds.
    used_up_to: Mutex<u64>,
}

/// The accounts that have a limit.
#[derive(Debug)]
pub struct Quotas {
    quotas: BTreeMap<String, Quota>,
    /// Of every account that has or had a limit since the start: a new configuration goes on counting.
    counters: Arc<Mutex<BTreeMap<String, Arc<Counter>>>>,
}

fn key(account: &str, stripe: usize) -> Vec<u8> {
    format!("{META_PREFIX}{account}/{stripe}").into_bytes()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in here panics half-way, so a poisoned lock still guards sound data.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Quotas {
    pub fn load(config: &Config, store: &Store, now: Millis) -> Result<Quotas, StoreError> {
        let none = Quotas { quotas: BTreeMap::new(), counters: Arc::default() };
        none.next(config, store, now)
    }

    /// Those of another configuration, which go on counting where these are.
    pub fn next(&self, config: &Config, store: &Store, now: Millis) -> Result<Quotas, StoreError> {
        let limited = |account: &&Account| account.daily_limit.is_some() || account.rate_limit.is_some();
        let mut quotas = BTreeMap::new();
        for (name, account) in config.accounts.iter().filter(|(_, account)| limited(account)) {
            let counted = match lock(&self.counters).entry(name.clone()) {
                Entry::Occupied(known) => known.get().clone(),
                Entry::Vacant(place) => place.insert(Arc::new(Counter::load(name, store, now)?)).clone(),
            };
            quotas.insert(name.clone(), Quota { daily: account.daily_limit, rate: account.rate_limit, counted });
        }
        Ok(Quotas { quotas, counters: self.counters.clone() })
    }

    /// At RCPT: may this account send to one more, after those that the message has already? Counts against
    /// its rate, not yet against its day.
    pub fn recipient(&self, account: &str, before: u64, now: Millis) -> Result<(), Refusal> {
        let Some(quota) = self.quotas.get(account) else { return Ok(()) };
        quota.day_allows(account, (before, 1), now)?;
        quota.rate_allows(account, 1, now)
    }

    /// For messages that come in without RCPT: all of them or none. Counts as [`Quotas::recipient`] does.
    pub fn recipients(&self, account: &str, count: u64, now: Millis) -> Result<(), Refusal> {
        let Some(quota) = self.quotas.get(account) else { return Ok(()) };
        quota.ever_allows(account, count)?;
        quota.day_allows(account, (0, count), now)?;
        quota.rate_allows(account, count, now)
    }

    /// Counts a message's recipients against the day, in `batch`. To be told whether that was written. The last
    /// word: others of the account may have been faster since RCPT.
    pub async fn count<'q>(
        &'q self,
        account: &str,
        recipients: u64,
        now: Millis,
        batch: &mut Batch,
    ) -> Result<Option<Counted<'q>>, Refusal> {
        let Some(quota) = self.quotas.get(account).filter(|quota| quota.daily.is_some()) else { return Ok(None) };
        let day = day_of(now);
        {
            let mut total = lock(&quota.counted.total);
            let sent = total.on(day);
            quota.check_day(account, sent, (0, recipients), now)?;
            *total = Count { day, sent: sent + recipients };
        }
        let counted = quota.counted.next_stripe(recipients, day).await;
        let (stripe, after) = (counted.stripe, counted.after());
        let bytes = keys::encode(&after).map_err(|error| Refusal::inner(error.to_string()))?;
        batch.put(Table::Meta, key(account, stripe), bytes);
        Ok(Some(counted))
    }
}

impl Counter {
    fn load(name: &str, store: &Store, now: Millis) -> Result<Counter, StoreError> {
        let (mut stripes, mut sent) = (Vec::with_capacity(STRIPES), 0);
        for stripe in 0..STRIPES {
            let bytes = store.get(Table::Meta, &key(name, stripe))?;
            let count: Count = bytes.map(|bytes| keys::decode(&bytes)).transpose()?.unwrap_or_default();
            sent += count.on(day_of(now));
            stripes.push(tokio::sync::Mutex::new(count));
        }
        Ok(Counter {
            total: Mutex::new(Count { day: day_of(now), sent }),
            stripes,
            next_stripe: AtomicUsize::new(0),
            used_up_to: Mutex::new(0),
        })
    }
}

impl Quota {
    /// A message that is taken as a whole or not at all may have more recipients than any day has.
    fn ever_allows(&self, account: &str, recipients: u64) -> Result<(), Refusal> {
        let Some(limit) = self.daily.filter(|limit| recipients > *limit) else { return Ok(()) };
        let why = format!("the message has {recipients} recipients and can never be sent: the daily limit is {limit}");
        let reason = format!("accounts.{account}.daily_limit: {why}");
        let text = format!("{why}; send it in several messages");
        Err(Refusal { reply: Reply::new(550, (7, 1), text), reason })
    }

    fn day_allows(&self, account: &str, recipients: (u64, u64), now: Millis) -> Result<(), Refusal> {
        let sent = lock(&self.counted.total).on(day_of(now));
        self.check_day(account, sent, recipients, now)
    }

    /// So many more recipients of a message that has so many already.
    fn check_day(&self, account: &str, sent: u64, (before, more): (u64, u64), now: Millis) -> Result<(), Refusal> {
        let Some(limit) = self.daily else { return Ok(()) };
        if sent.saturating_add(before).saturating_add(more) <= limit {
            return Ok(());
        }
        let resets = rfc3339(next_day(now));
        let of_this = if before > 0 { format!(", {before} in this message") } else { String::new() };
        let text = format!("daily limit of {limit} recipients reached ({sent} sent{of_this}), resets at {resets}");
        let reason = format!(
            "accounts.{account}.daily_limit: {sent} of {limit} recipients were sent to today{of_this}; \
             it resets at {resets}"
        );
        Err(Refusal { reply: Reply::new(450, (7, 1), text), reason })
    }

    /// So many at once as the rate says, then one each time that its part of the period has passed. More
    /// than that in one message only when nothing is used up.
    fn rate_allows(&self, account: &str, recipients: u64, now: Millis) -> Result<(), Refusal> {
        let Some(rate) = self.rate else { return Ok(()) };
        let now = now.saturating_mul(1_000_000);
        let period = u64::try_from(rate.per.as_nanos()).unwrap_or(u64::MAX);
        let mut used = lock(&self.counted.used_up_to);
        // A clock that was set back must not shut the account for longer than the period.
        let from = (*used).clamp(now, now.saturating_add(period));
        let after = from.saturating_add((period / u64::from(rate.count)).saturating_mul(recipients));
        let wait = after.saturating_sub(now.saturating_add(period));
        if wait > 0 && from > now {
            let secs = wait.min(period).div_ceil(1_000_000_000);
            let (count, per) = (rate.count, rate.per.as_secs());
            let text = format!("more than {count} recipients in {per} s, try again in {secs} s");
            let reason = format!("accounts.{account}.rate_limit: {text}");
            return Err(Refusal { reply: Reply::new(450, (7, 1), text), reason });
        }
        *used = after;
        Ok(())
    }
}

impl Counter {
    /// A number that nobody else raises now.
    async fn next_stripe(&self, recipients: u64, day: u64) -> Counted<'_> {
        let first = self.next_stripe.fetch_add(1, Ordering::Relaxed) % STRIPES;
        let order = (first..STRIPES).chain(0..first);
        for stripe in order {
            if let Some(count) = self.stripes.get(stripe).and_then(|mutex| mutex.try_lock().ok()) {
                return Counted { quota: self, stripe, count, recipients, day, give_back: false };
            }
        }
        let count = self.stripes[first].lock().await;
        Counted { quota: self, stripe: first, count, recipients, day, give_back: false }
    }
}

/// What a message that is being written counts for. Counts for good when it is dropped, unless it is
/// given back.
#[derive(Debug)]
pub struct Counted<'q> {
    quota: &'q Counter,
    stripe: usize,
    count: tokio::sync::MutexGuard<'q, Count>,
    recipients: u64,
    day: u64,
    give_back: bool,
}

impl Counted<'_> {
    fn after(&self) -> Count {
        Count { day: self.day, sent: self.count.on(self.day) + self.recipients }
    }

    /// The message was not written.
    pub fn give_back(mut self) {
        self.give_back = true;
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        if !self.give_back {
            *self.count = self.after();
            return;
        }
        let mut total = lock(&self.quota.total);
        if total.day == self.day {
            total.sent = total.sent.saturating_sub(self.recipients);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config;
    use crate::queue::pace::DAY_MILLIS;

    const NOON: Millis = 20_000 * DAY_MILLIS + DAY_MILLIS / 2;

    fn quotas(limits: &str, store: &Store, now: Millis) -> Quotas {
        let text = format!(
            "hostname = \"mail.my.com\"\ndata_dir = \"/nonexistent\"\n[domains.\"my.com\"]\n\
             [accounts.shop]\npassword = \"secret\"\n{limits}"
        );
        Quotas::load(&config::parse("test.toml", &text).unwrap(), store, now).unwrap()
    }

    async fn send(quotas: &Quotas, store: &Store, recipients: u64, now: Millis) -> Result<(), Refusal> {
        let mut batch = Batch::new();
        let counted = quotas.count("shop", recipients, now, &mut batch).await?;
        store.write(&[batch], true).unwrap();
        drop(counted);
        Ok(())
    }

    /// 200 pass, the 201st waits for the next day; a restart in between changes nothing.
    #[tokio::test]
    async fn the_day_is_counted_over_restarts_and_ends_at_midnight() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let limit = "daily_limit = 200\n";
        let mut shop = quotas(limit, &store, NOON);
        for sent in 0..200 {
            if sent % 50 == 0 {
                shop = quotas(limit, &store, NOON);
            }
            shop.recipient("shop", 0, NOON).unwrap();
            send(&shop, &store, 1, NOON).await.unwrap();
        }
        for shop in [&shop, &quotas(limit, &store, NOON)] {
            let refusal = shop.recipient("shop", 0, NOON).unwrap_err();
            let text = refusal.reply.to_string();
            assert!(text.starts_with("450 4.7.1 daily limit of 200"), "{text}");
            assert!(text.contains(&rfc3339(next_day(NOON))), "{text}");
            send(shop, &store, 1, NOON).await.unwrap_err();
        }
        send(&shop, &store, 200, next_day(NOON)).await.unwrap();
        let refusal = send(&shop, &store, 1, next_day(NOON)).await.unwrap_err();
        assert!(refusal.reply.to_string().starts_with("450 4.7.1"));
        assert!(quotas(limit, &store, next_day(NOON)).recipient("shop", 0, next_day(NOON)).is_err());
    }

    #[tokio::test]
    async fn what_is_not_written_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let shop = quotas("daily_limit = 10\n", &store, NOON);
        let mut held = Vec::new();
        // More at a time than there are numbers, each of its own kind.
        for _ in 0..9 {
            held.push(shop.count("shop", 1, NOON, &mut Batch::new()).await.unwrap().unwrap());
        }
        assert!(shop.count("shop", 2, NOON, &mut Batch::new()).await.is_err());
        held.drain(..).for_each(Counted::give_back);
        send(&shop, &store, 10, NOON).await.unwrap();
        assert!(shop.recipient("shop", 0, NOON).is_err());
        let text = shop.recipients("shop", 11, NOON).unwrap_err().reply.to_string();
        assert!(text.starts_with("550 5.7.1"), "it can never pass: {text}");
    }

    #[tokio::test]
    async fn the_recipients_of_a_message_under_way_count_and_what_is_too_much_is_told_with_the_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let shop = quotas("daily_limit = 2\n", &store, NOON);
        let told =
            |refused: Result<(), Refusal>| refused.map_err(|refusal| refusal.reply.to_string().trim_end().to_owned());
        let resets = rfc3339(next_day(NOON));
        let over =
            |sent: &str| Err(format!("450 4.7.1 daily limit of 2 recipients reached ({sent}), resets at {resets}"));
        assert_eq!([0, 1].map(|before| told(shop.recipient("shop", before, NOON))), [Ok(()), Ok(())]);
        assert_eq!(told(shop.recipient("shop", 2, NOON)), over("0 sent, 2 in this message"));
        // Two at once were each told that they may: who is second keeps its message.
        send(&shop, &store, 2, NOON).await.unwrap();
        assert_eq!(told(send(&shop, &store, 2, NOON).await), over("2 sent"));
        assert_eq!(told(send(&shop, &store, 3, NOON).await), over("2 sent"), "RCPT would have let two of them pass");
        // Without RCPT: tomorrow, or never.
        assert_eq!(told(shop.recipients("shop", 2, NOON)), over("2 sent"));
        assert!(
            told(shop.recipients("shop", 3, NOON)).unwrap_err().starts_with("550 5.7.1 the message has 3 recipients")
        );
        assert_eq!(told(shop.recipients("shop", 2, next_day(NOON))), Ok(()));
    }

    /// Or a client that keeps its message for tomorrow would have used up today's rate for it.
    #[test]
    fn what_the_day_refuses_does_not_count_against_the_rate() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let shop = quotas("daily_limit = 2\nrate_limit = \"2/m\"\n", &store, NOON);
        assert!(shop.recipients("shop", 3, NOON).is_err() && shop.recipient("shop", 2, NOON).is_err());
        assert!(shop.recipients("shop", 2, NOON).is_ok());
    }

    #[test]
    fn a_rate_is_a_burst_and_then_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let shop = quotas("rate_limit = \"60/m\"\n", &store, NOON);
        let passed = |now| (0..100).take_while(|_| shop.recipient("shop", 0, now).is_ok()).count();
        assert_eq!(passed(NOON), 60);
        let text = shop.recipient("shop", 0, NOON).unwrap_err().reply.to_string();
        assert_eq!(text, "450 4.7.1 more than 60 recipients in 60 s, try again in 1 s");
        assert_eq!((passed(NOON + 999), passed(NOON + 1000), passed(NOON + 11_000)), (0, 1, 10));
        assert!(shop.recipients("shop", 100, NOON + 12_000).is_err());
        assert!(shop.recipients("shop", 100, NOON + 200_000).is_ok(), "nothing is used up");
        assert_eq!(passed(NOON + 201_000), 0);
        assert_eq!(passed(NOON), 0, "the clock was set back");
        assert!(shop.recipient("other", 0, NOON).is_ok());
    }
}
