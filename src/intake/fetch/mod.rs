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
use crate::config::{self, Login, Secret};
use crate::queue::suspend::Suspension;
use crate::store::{Batch, StoreError};

use notes::State;
use run::Account;
pub use run::Ran;
use wire::Trouble;
pub use wire::Ways;

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

/// All accounts. Share it.
pub struct Fetcher {
    intake: Arc<Intake>,
    clock: Clock,
    ways: Ways,
    accounts: BTreeMap<String, Slot>,
    runs: Semaphore,
    stop: CancellationToken,
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fetcher")
    }
}

struct Slot {
    settings: config::Fetch,
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
    pub fn new(intake: Arc<Intake>, clock: Clock, ways: Ways, stop: CancellationToken) -> Result<Fetcher, StoreError> {
        let mut accounts = BTreeMap::new();
        for (name, settings) in &intake.config().fetch {
            let mut state = notes::load(intake.queue().store(), name)?;
            // It may have been written when the interval was longer.
            state.next_run = state.next_run.min(clock.now().saturating_add(interval(settings).max(BACK_OFF_MAX)));
            let (running, woken) = (tokio::sync::Mutex::default(), Notify::new());
            accounts
                .insert(name.clone(), Slot { settings: settings.clone(), running, state: Mutex::new(state), woken });
        }
        Ok(Fetcher { intake, clock, ways, accounts, runs: Semaphore::new(RUNS_AT_ONCE), stop })
    }

    pub fn names(&self) -> Vec<String> {
        self.accounts.keys().cloned().collect()
    }

    /// Runs one account when it is due, until the server stops.
    pub async fn watch(self: Arc<Self>, name: String) {
        let Some(slot) = self.accounts.get(&name) else { return };
        if slot.state().is_inactive {
            warn!(account = name, "inactive after days of failure; `postrider fetch run {name}` tries it again");
        }
        while !self.stop.is_cancelled() {
            let due = self.due(slot);
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep(Duration::from_millis(due.saturating_sub(self.clock.now()))).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
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
        self.intake.queue().gates().suspended().iter().any(|(what, _)| *what == Suspension::Fetch)
    }

    /// To be called when fetching is resumed.
    pub fn wake(&self) {
        self.accounts.values().for_each(|slot| slot.woken.notify_one());
    }

    pub fn list(&self) -> Vec<Status> {
        let is_suspended = self.is_suspended();
        let status = |(name, slot): (&String, &Slot)| {
            let state = slot.state();
            let is_running = slot.running.try_lock().is_err();
            let word = match () {
                () if is_running => "running",
                () if state.is_inactive => "inactive",
                () if is_suspended => "suspended",
                () if state.failures > 0 => "failing",
                () => "waiting",
            };
            let protocol = match slot.settings.protocol {
                config::FetchProtocol::Imap => "imap",
                config::FetchProtocol::Pop3 => "pop3",
            };
            Status {
                name: name.clone(),
                protocol: protocol.to_owned(),
                host: slot.settings.host.clone(),
                username: slot.settings.login.username.clone(),
                folder: slot.settings.folder.clone(),
                state: word.to_owned(),
                last_run: state.last_run,
                last_success: state.last_success,
                last_error: state.last_error,
                next_run: (!state.is_inactive && !is_suspended).then_some(state.next_run),
                fetched: state.fetched,
                left: state.left,
            }
        };
        self.accounts.iter().map(status).collect()
    }

    /// A run now, whatever the time; what was given up is tried again, and an account that was inactive is
    /// active again if it works. `dry_run`: only what it would fetch is counted.
    pub async fn run_now(&self, name: &str, dry_run: bool) -> Result<Ran, NotRun> {
        let slot = self.accounts.get(name).ok_or_else(|| NotRun::Unknown(name.to_owned()))?;
        if dry_run {
            let mut ran = Ran::default();
            let looked = timeout(RUN_TIME_MAX, self.account(name, slot, true).look(&slot.state(), &mut ran)).await;
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

    fn account<'a>(&'a self, name: &'a str, slot: &'a Slot, by_hand: bool) -> Account<'a> {
        Account {
            name,
            settings: &slot.settings,
            intake: &self.intake,
            clock: &self.clock,
            ways: &self.ways,
            stop: &self.stop,
            by_hand,
        }
    }

    /// The server is ending, and a message that was being taken has had its time. What is cut off in the
    /// middle is begun anew the next time, or was queued with its note.
    async fn over(&self) {
        self.stop.cancelled().await;
        tokio::time::sleep(STOP_TIME).await;
    }

    /// `slot.running` is held.
    async fn run_slot(&self, name: &str, slot: &Slot, by_hand: bool) -> Ran {
        // It is never closed.
        let _permit = self.runs.acquire().await;
        let (mut state, mut ran) = (slot.state(), Ran::default());
        let began = self.clock.now();
        let account = self.account(name, slot, by_hand);
        let result = tokio::select! {
            result = timeout(RUN_TIME_MAX, account.run(&mut state, &mut ran)) => ended(result),
            () = self.over() => Err(Trouble::Stopped),
        };
        let now = self.clock.now();
        let was_inactive = state.is_inactive;
        state.last_run = Some(began);
        match &result {
            Ok(()) => succeeded(&mut state, began, now, interval(&slot.settings), ran.more),
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
        self.tell(name, slot, &state, was_inactive, &ran).await;
        let mut batch = Batch::new();
        notes::save(&mut batch, name, &state);
        slot.set(state);
        if let Err(error) = self.intake.queue().commit(batch, false).await {
            error!(account = name, %error, "how the account is doing could not be written down");
        }
        ran
    }

    /// The postmaster, of an account that nobody tries any more, and of messages that were given up.
    async fn tell(&self, name: &str, slot: &Slot, state: &State, was_inactive: bool, ran: &Ran) {
        if state.is_inactive && !was_inactive {
            error!(account = name, "inactive after days of failure; `postrider fetch run {name}` tries it again");
            let text = format!(
                "For {} days no mail could be fetched from {} as {}:\n\n  {}\n\nNobody tries any more until `postrider fetch run {name}`\n\
                 says so. Mail may be waiting there.\n",
                GIVE_UP / (24 * 3600 * 1000),
                slot.settings.host,
                slot.settings.login.username,
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
        let (to, id) = (&self.intake.config().postmaster, self.intake.queue().new_id());
        let notice = Notice { to, subject: subject.to_owned(), text, id, kind: "fetch" };
        if let Err(error) = self.intake.accept(self.intake.to_operator(&notice)).await {
            error!(reason = error.reason, "a notice of mail that could not be fetched could not be queued");
        }
    }
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
