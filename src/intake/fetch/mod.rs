//! Brings mail in from mailboxes elsewhere, by IMAP and POP3.
//!
//! Promises: one run of an account at a time; what was fetched is known by its number at the server and
//! noted in the batch that queues it, so that neither a crash nor a lost connection brings it in twice, and
//! nothing is marked, moved or deleted there before it is on disk here (`run` has the table); an account
//! that fails is left alone for a while, longer each time, and after [`GIVE_UP`] until a person tries it;
//! the server elsewhere can neither make us wait nor make us store without bound.
//!
//! Mail that was fetched has come from outside: it is checked, and its recipients are ours. What would be
//! refused is held, since whoever sent it is gone.

pub mod collect;
pub mod envelope;
pub mod imap;
pub mod mailbox;
pub mod notes;
pub mod pop3;
pub mod run;
pub mod test;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Intake;
use super::to_operator::Notice;
use crate::clock::{Clock, Millis};
use crate::config::{self, Config, Login, Secret};
use crate::current::Current;
use crate::queue::suspend::Suspension;
use crate::store::{Batch, StoreError};

use notes::State;
use run::Account;
pub use run::Ran;
use wire::Trouble;
pub use wire::{Asked, TokenSource, Ways};

/// After this long without a run that came to its end an account becomes inactive.
const GIVE_UP: Millis = 5 * 24 * 3600 * 1000;
/// First and longest wait after a run that failed; it doubles in between.
const BACK_OFF: Millis = 5 * 60 * 1000;
const BACK_OFF_MAX: Millis = 3600 * 1000;
/// Accounts that are read at once.
const RUNS_AT_ONCE: usize = 8;
/// A run takes no longer.
const RUN_TIME_MAX: Duration = Duration::from_secs(3600);
/// For the message that is being read when the server ends.
const STOP_TIME: Duration = Duration::from_secs(5);
/// Characters of a server's words that are passed on.
const SHOWN_CHARS_MAX: usize = 300;

/// A message as the server lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The UID, or with POP3 the number in this session.
    pub number: u32,
    /// Bytes, as far as it is known beforehand.
    pub size: Option<u64>,
}

/// What to log in with.
#[derive(Clone, Debug)]
pub enum Credential {
    Password {
        username: String,
        password: Secret,
    },
    /// An OAuth 2 token.
    Token {
        username: String,
        token: Secret,
    },
}

impl Credential {
    pub fn of(login: &Login) -> Credential {
        Credential::Password { username: login.username.clone(), password: login.password.clone() }
    }

    fn parts(&self) -> (&str, &str) {
        match self {
            Credential::Password { username, password: secret } | Credential::Token { username, token: secret } => {
                (username, &secret.0)
            }
        }
    }

    /// The first response of PLAIN (RFC 4616 2).
    fn plain(&self) -> Vec<u8> {
        let (username, secret) = self.parts();
        format!("\0{username}\0{secret}").into_bytes()
    }

    /// The first response of XOAUTH2, as Google and Microsoft describe it.
    fn xoauth2(&self) -> Vec<u8> {
        let (username, secret) = self.parts();
        format!("user={username}\x01auth=Bearer {secret}\x01\x01").into_bytes()
    }

    /// A server may repeat what it was told.
    fn without_secrets(&self, text: &str) -> String {
        let (_, secret) = self.parts();
        let encoded =
            [self.plain(), self.xoauth2(), secret.as_bytes().to_vec()].map(|said| BASE64_STANDARD.encode(said));
        let repeats = |said: &str| text.contains(said);
        match !secret.is_empty() && (repeats(secret) || encoded.iter().any(|said| repeats(said))) {
            true => "something that repeats the password".to_owned(),
            false => text.to_owned(),
        }
    }
}

/// A server's words for people.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.trim().chars().take(SHOWN_CHARS_MAX).map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

fn hashed(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    hash
}

/// An id of a server as it is if it can be shown, else its bytes.
fn hex(id: &[u8]) -> String {
    if id.iter().all(u8::is_ascii_graphic) {
        return String::from_utf8_lossy(id).into_owned();
    }
    id.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// How an account is doing, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub name: String,
    pub protocol: String,
    pub host: String,
    pub username: String,
    /// Empty with POP3.
    pub folder: String,
    /// `waiting`, `running`, `failing`, `suspended` or `inactive`.
    pub state: String,
    pub last_run: Option<Millis>,
    pub last_success: Option<Millis>,
    pub last_error: Option<String>,
    /// None: not before a person says so.
    pub next_run: Option<Millis>,
    /// Messages, ever.
    pub fetched: u64,
    /// Messages that were given up, ever.
    pub left: u64,
}

/// Why a run did not begin.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRun {
    #[error("there is no [fetch] account named {0:?}")]
    Unknown(String),
    #[error("a run of {0} is under way already")]
    UnderWay(String),
    #[error("fetching is suspended")]
    Suspended,
}

/// Accounts that are about to be read.
pub struct NextAccounts {
    accounts: Slots,
    settings: BTreeMap<String, config::Fetch>,
}

impl std::fmt::Debug for NextAccounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.accounts.keys()).finish()
    }
}

/// What a run goes by from its begin to its end.
struct Holding {
    settings: Arc<config::Fetch>,
    intake: Arc<Intake>,
    ways: Arc<Ways>,
}

/// All accounts. Share it.
pub struct Fetcher {
    intake: Current<Intake>,
    clock: Clock,
    ways: Current<Ways>,
    accounts: Current<Slots>,
    runs: Semaphore,
    stop: CancellationToken,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetcher")
    }
}

type Slots = BTreeMap<String, Arc<Slot>>;

struct Slot {
    settings: Current<config::Fetch>,
    /// The settings are not those of the last run: what went wrong under those is forgotten.
    is_changed: AtomicBool,
    /// It is not in the configuration any more, or the server ends.
    stop: CancellationToken,
    /// Held by a run.
    running: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    /// Something has changed that may let a run begin.
    woken: Notify,
}

impl Slot {
    fn state(&self) -> State {
        // Nothing panics half-way in here.
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Fetcher {
    pub fn new(
        intake: impl Into<Current<Intake>>,
        clock: Clock,
        ways: Ways,
        stop: CancellationToken,
    ) -> Result<Fetcher, StoreError> {
        let intake = intake.into();
        let (runs, accounts) = (Semaphore::new(RUNS_AT_ONCE), Current::new(Slots::new()));
        let fetcher = Fetcher { intake, clock, ways: Current::new(ways), accounts, runs, stop };
        let first = fetcher.intake.load();
        let next = fetcher.next(first.config())?;
        fetcher.accounts.set(Arc::new(next.accounts));
        Ok(fetcher)
    }

    /// The accounts of another configuration. Nothing changes before [`Fetcher::begin`].
    pub fn next(&self, config: &Config) -> Result<NextAccounts, StoreError> {
        let (intake, before) = (self.intake.load(), self.accounts.load());
        let mut accounts = Slots::new();
        for (name, settings) in &config.fetch {
            let slot = match before.get(name) {
                Some(slot) => slot.clone(),
                None => {
                    let mut state = notes::load(intake.queue().store(), name)?;
                    // It may have been written when the interval was longer.
                    let latest = self.clock.now().saturating_add(interval(settings).max(BACK_OFF_MAX));
                    state.next_run = state.next_run.min(latest);
                    Arc::new(Slot {
                        settings: Current::new(settings.clone()),
                        is_changed: AtomicBool::new(false),
                        stop: self.stop.child_token(),
                        running: tokio::sync::Mutex::default(),
                        state: Mutex::new(state),
                        woken: Notify::new(),
                    })
                }
            };
            accounts.insert(name.clone(), slot);
        }
        Ok(NextAccounts { accounts, settings: config.fetch.clone() })
    }

    /// These accounts are read from now on, in these ways. Names those that are new and have to be watched. A run
    /// under way ends as it began; that of an account that is gone ends soon.
    pub fn begin(&self, next: NextAccounts, ways: Ways) -> Vec<String> {
        let before = self.accounts.load();
        self.ways.set(Arc::new(ways));
        for (name, settings) in next.settings {
            if let Some(slot) = before.get(&name).filter(|slot| *slot.settings.load() != settings) {
                slot.settings.set(Arc::new(settings));
                slot.is_changed.store(true, Ordering::Release);
                slot.woken.notify_one();
            }
        }
        before.iter().filter(|(name, _)| !next.accounts.contains_key(*name)).for_each(|(_, slot)| slot.stop.cancel());
        let new = next.accounts.keys().filter(|name| !before.contains_key(*name)).cloned().collect();
        self.accounts.set(Arc::new(next.accounts));
        new
    }

    pub fn ways(&self) -> Arc<Ways> {
        self.ways.load()
    }

    pub fn names(&self) -> Vec<String> {
        self.accounts.load().keys().cloned().collect()
    }

    /// Runs one account when it is due, until it is gone or the server stops.
    pub async fn watch(self: Arc<Self>, name: String) {
        let Some(slot) = self.accounts.load().get(&name).cloned() else { return };
        let slot = &*slot;
        if slot.state().is_inactive {
            warn!(account = name, "inactive after days of failure; `postrider fetch run {name}` tries it again");
        }
        while !slot.stop.is_cancelled() {
            if slot.is_changed.swap(false, Ordering::AcqRel) {
                let _running = slot.running.lock().await;
                let mut state = slot.state();
                changed(&mut state, self.clock.now(), interval(&slot.settings.load()));
                slot.set(state);
            }
            let due = self.due(slot);
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep(Duration::from_millis(due.saturating_sub(self.clock.now()))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = slot.stop.cancelled() => return,
                () = slot.woken.notified() => continue,
                () = wait => {}
            }
            if self.due(slot).is_some_and(|due| due <= self.clock.now()) {
                let _running = slot.running.lock().await;
                self.run_slot(&name, slot, false).await;
            }
        }
    }

    /// When the next run may begin. None: not before something changes.
    fn due(&self, slot: &Slot) -> Option<Millis> {
        let state = slot.state();
        (!state.is_inactive && !self.is_suspended()).then_some(state.next_run)
    }

    fn is_suspended(&self) -> bool {
        self.intake.load().queue().gates().suspended().iter().any(|(what, _)| *what == Suspension::Fetch)
    }

    /// To be called when fetching is resumed.
    pub fn wake(&self) {
        self.accounts.load().values().for_each(|slot| slot.woken.notify_one());
    }

    pub fn list(&self) -> Vec<Status> {
        let is_suspended = self.is_suspended();
        let status = |(name, slot): (&String, &Arc<Slot>)| {
            let (state, settings) = (slot.state(), slot.settings.load());
            let is_running = slot.running.try_lock().is_err();
            let word = match () {
                () if is_running => "running",
                () if state.is_inactive => "inactive",
                () if is_suspended => "suspended",
                () if state.failures > 0 => "failing",
                () => "waiting",
            };
            let protocol = match settings.protocol {
                config::FetchProtocol::Imap => "imap",
                config::FetchProtocol::Pop3 => "pop3",
            };
            Status {
                name: name.clone(),
                protocol: protocol.to_owned(),
                host: settings.host.clone(),
                username: settings.login.username.clone(),
                folder: settings.folder.clone(),
                state: word.to_owned(),
                last_run: state.last_run,
                last_success: state.last_success,
                last_error: state.last_error,
                next_run: (!state.is_inactive && !is_suspended).then_some(state.next_run),
                fetched: state.fetched,
                left: state.left,
            }
        };
        self.accounts.load().iter().map(status).collect()
    }

    /// A run now, whatever the time; what was given up is tried again, and an account that was inactive is
    /// active again if it works. `dry_run`: only what it would fetch is counted.
    pub async fn run_now(&self, name: &str, dry_run: bool) -> Result<Ran, NotRun> {
        let slot = self.accounts.load().get(name).cloned().ok_or_else(|| NotRun::Unknown(name.to_owned()))?;
        let slot = &*slot;
        if dry_run {
            let mut ran = Ran::default();
            let held = self.hold(slot);
            let looked =
                timeout(RUN_TIME_MAX, self.account(name, slot, &held, true).look(&slot.state(), &mut ran)).await;
            ran.error = ended(looked).err().map(|trouble| trouble.to_string());
            return Ok(ran);
        }
        if self.is_suspended() {
            return Err(NotRun::Suspended);
        }
        let Ok(_running) = slot.running.try_lock() else { return Err(NotRun::UnderWay(name.to_owned())) };
        let ran = self.run_slot(name, slot, true).await;
        slot.woken.notify_one();
        Ok(ran)
    }

    fn hold(&self, slot: &Slot) -> Holding {
        Holding { settings: slot.settings.load(), intake: self.intake.load(), ways: self.ways.load() }
    }

    fn account<'a>(&'a self, name: &'a str, slot: &'a Slot, holding: &'a Holding, by_hand: bool) -> Account<'a> {
        Account {
            name,
            settings: &holding.settings,
            intake: &holding.intake,
            clock: &self.clock,
            ways: &holding.ways,
            stop: &slot.stop,
            by_hand,
        }
    }

    /// The server is ending, and a message that was being taken has had its time. What is cut off in the
    /// middle is begun anew the next time, or was queued with its note.
    async fn over(&self, slot: &Slot) {
        slot.stop.cancelled().await;
        tokio::time::sleep(STOP_TIME).await;
    }

    /// `slot.running` is held.
    async fn run_slot(&self, name: &str, slot: &Slot, by_hand: bool) -> Ran {
        // It is never closed.
        let _permit = self.runs.acquire().await;
        let (mut state, mut ran) = (slot.state(), Ran::default());
        let began = self.clock.now();
        let held = self.hold(slot);
        let account = self.account(name, slot, &held, by_hand);
        let result = tokio::select! {
            result = timeout(RUN_TIME_MAX, account.run(&mut state, &mut ran)) => ended(result),
            () = self.over(slot) => Err(Trouble::Stopped),
        };
        let now = self.clock.now();
        let was_inactive = state.is_inactive;
        state.last_run = Some(began);
        match &result {
            Ok(()) => succeeded(&mut state, began, now, interval(&held.settings), ran.more),
            Err(Trouble::Stopped) => {}
            Err(trouble) => failed(&mut state, now, trouble, ran.fetched > 0),
        }
        ran.error = result.err().map(|trouble| trouble.to_string());
        if let Some(error) = &ran.error {
            let (pause_secs, failures) = (state.next_run.saturating_sub(now) / 1000, state.failures);
            warn!(account = name, error, failures, pause_secs, "mail could not be fetched");
        }
        if ran.fetched > 0 || ran.known > 0 {
            info!(account = name, fetched = ran.fetched, known = ran.known, failed = ran.failed, "mail was fetched");
        }
        self.tell(name, &held.settings, &state, was_inactive, &ran).await;
        let mut batch = Batch::new();
        notes::save(&mut batch, name, &state);
        slot.set(state);
        if let Err(error) = held.intake.queue().commit(batch, false).await {
            error!(account = name, %error, "how the account is doing could not be written down");
        }
        ran
    }

    /// The postmaster, of an account that nobody tries any more, and of messages that were given up.
    async fn tell(&self, name: &str, settings: &config::Fetch, state: &State, was_inactive: bool, ran: &Ran) {
        if state.is_inactive && !was_inactive {
            error!(account = name, "inactive after days of failure; `postrider fetch run {name}` tries it again");
            let text = format!(
                "For {} days no mail could be fetched from {} as {}:\n\n  {}\n\nNobody tries any more until `postrider fetch run {name}`\n\
                 says so. Mail may be waiting there.\n",
                GIVE_UP / (24 * 3600 * 1000),
                settings.host,
                settings.login.username,
                state.last_error.as_deref().unwrap_or_default(),
            );
            self.notify(&format!("No mail from the mailbox {name} any more"), text).await;
        }
        if !ran.left.is_empty() {
            let text = format!(
                "These messages could not be fetched and stay in their mailbox:\n\n  {}\n\nOnce the reason is gone, `postrider fetch run {name}` \
                 tries them again.\n",
                ran.left.join("\n  "),
            );
            self.notify(&format!("Messages left in the mailbox {name}"), text).await;
        }
    }

    async fn notify(&self, subject: &str, text: String) {
        let intake = self.intake.load();
        let (to, id) = (&intake.config().postmaster, intake.queue().new_id());
        let notice = Notice { to, subject: subject.to_owned(), text, id, kind: "fetch" };
        if let Err(error) = intake.accept(intake.to_operator(&notice)).await {
            error!(reason = error.reason, "a notice of mail that could not be fetched could not be queued");
        }
    }
}

/// It has other settings: perhaps those it needed.
fn changed(state: &mut State, now: Millis, interval: Millis) {
    if state.failures > 0 || state.is_inactive {
        (state.failing_since, state.failures, state.is_inactive) = (None, 0, false);
        state.next_run = now;
    }
    state.next_run = state.next_run.min(now.saturating_add(interval));
}

fn ended(run: Result<Result<(), Trouble>, tokio::time::error::Elapsed>) -> Result<(), Trouble> {
    let too_long = || Trouble::connection(format!("it was not done within {} s", RUN_TIME_MAX.as_secs()));
    run.unwrap_or_else(|_| Err(too_long()))
}

fn interval(settings: &config::Fetch) -> Millis {
    u64::try_from(settings.interval.as_millis()).unwrap_or(Millis::MAX)
}

fn succeeded(state: &mut State, began: Millis, now: Millis, interval: Millis, more: bool) {
    state.last_success = Some(now);
    (state.last_error, state.failing_since, state.failures, state.is_inactive) = (None, None, 0, false);
    state.next_run = if more { now } else { began.saturating_add(interval).max(now) };
}

/// `has_moved`: it has brought something in all the same.
fn failed(state: &mut State, now: Millis, trouble: &Trouble, has_moved: bool) {
    if has_moved {
        (state.failing_since, state.failures) = (None, 0);
    }
    let since = *state.failing_since.get_or_insert(now);
    let doubled = BACK_OFF.saturating_mul(1 << state.failures.min(8));
    state.failures = state.failures.saturating_add(1);
    state.last_error = Some(trouble.to_string());
    state.next_run = now.saturating_add(doubled.min(BACK_OFF_MAX));
    state.is_inactive = state.is_inactive || now.saturating_sub(since) >= GIVE_UP;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_fails_is_left_alone_longer_each_time_and_after_five_days_for_good() {
        let (mut state, mut now, minute) = (State::default(), 1_900_000_000_000, 60_000);
        let began = now;
        let mut waits = Vec::new();
        while !state.is_inactive {
            failed(&mut state, now, &Trouble::connection("no"), false);
            waits.push((state.next_run - now) / minute);
            now = state.next_run;
        }
        assert_eq!(waits.get(..6), Some([5, 10, 20, 40, 60, 60].as_slice()));
        assert!((GIVE_UP..GIVE_UP + 2 * BACK_OFF_MAX).contains(&(now - began)));
        succeeded(&mut state, now, now + 5, 10 * minute, false);
        assert_eq!((state.is_inactive, state.failures, state.next_run), (false, 0, now + 10 * minute));
        failed(&mut state, now, &Trouble::connection("no"), true);
        assert_eq!(state.next_run, now + BACK_OFF);
        succeeded(&mut state, now, now + 5, 10 * minute, true);
        assert_eq!(state.next_run, now + 5, "there is more");
    }
}
