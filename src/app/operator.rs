//! What people can do to the running server over the admin socket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::Receiver;

use crate::admin::history::History;
use crate::admin::reload::ReloadAnswer;
use crate::admin::suppress::{Bounced, Explained, Suppressed};
use crate::admin::{
    Action, BackedUp, Backend, Caller, CapturedFilter, CapturedPage, CapturedWish, Changed, Compacted, Complaint,
    Damaged, EventsPage, EventsWish, Explanation, Exported, FetchStatus, Filter, Imported, Kept, Listed,
    ListenerStatus, Page, Part, Pick, Readiness, Selection, ServerStatus, Story, StreamWay, SuspendAnswer, Suspended,
    Trouble, Waiting, Ways, transfer, view,
};
use crate::bounce::suppression::{self, Who};
use crate::clock::{Clock, Millis};
use crate::config::Secret;
use crate::current::Current;
use crate::delivery::host_test::{Report, Wish};
use crate::delivery::standing::{Inquiry, Places};
use crate::delivery::transport::Transports;
use crate::events::journal::{self, Journal};
use crate::events::{Entry, Event};
use crate::intake::fetch::{Fetcher, NotRun, Ran};
use crate::intake::idempotency::Key;
use crate::intake::suppress::{NewEntry, SuppressError};
use crate::intake::{Intake, Once, pickup};
use crate::message::{Address, Draft, HeldBy, Hold, MessageId, ReversePath, stream};
use crate::queue::Queue;
use crate::queue::check::{self, BadRecord};
use crate::queue::gate::Closed;
use crate::queue::lane::keeps_pace;
use crate::queue::record::{Message, Recipient, Route, Status};
use crate::queue::suspend::Suspension;
use crate::server::accounts::Verified;
use crate::server::connection::AUTH_FAILURE_DELAY;
use crate::server::outside::Shared;
use crate::server::step::Login;
use crate::smtp::reply::{Refusal, Severity};
use crate::store::{Store, StoreError};

use super::events::Followers;
use super::outside::Behind;
use super::reload::Reloader;
use super::transfer::Transfer;
use super::upkeep;
use super::watch::Watch;

/// Messages looked at between two changes, so that a change of a long queue holds little in memory.
const SLICE_MESSAGES: usize = 500;

/// Damaged records that are listed.
const DAMAGED_MAX: usize = 1000;

/// Why something is held that a person has asked to hold.
pub(super) const BY_OPERATOR: &str = "by the operator";

/// Nobody can log in as this, which has what neither SASL (NUL) nor HTTP (a colon) lets through in a name: wrong
/// tokens count against the client alone.
const TOKEN: &str = "\0:";

/// Whom a wrong password over HTTP counts against. On loopback a proxy may stand before us, and HTTP says nothing
/// of who is behind it that could be believed: one who guesses must not shut out all others, the operator among
/// them.
fn culprit(peer: IpAddr) -> Option<IpAddr> {
    Some(peer.to_canonical()).filter(|peer| !peer.is_loopback())
}

/// What has been changed so far.
#[derive(Debug, Default)]
struct Done {
    recipients: usize,
    /// By stream, whether its limits hold for them, and whether they have been tried: some limits are for what has not.
    by_stream: BTreeMap<(String, bool, u32), usize>,
}

/// The operator's hands.
#[derive(Debug)]
pub struct Operator {
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub journal: Arc<Journal>,
    pub intake: Current<Intake>,
    /// Without what may change.
    pub status: ServerStatus,
    pub transfer: Transfer,
    pub watch: Arc<Watch>,
    pub transports: Current<Transports>,
    pub fetcher: Arc<Fetcher>,
    /// To ask the dispatcher, once there is one.
    pub inquiry: OnceLock<Inquiry>,
    /// What passwords are looked at with.
    pub shared: Current<Shared<Behind>>,
    pub listeners: Current<Vec<ListenerStatus>>,
    pub pickups: Current<Vec<pickup::Handle>>,
    pub reloader: OnceLock<Arc<Reloader>>,
    /// Backups and compactions, one at a time.
    pub upkeep: Arc<tokio::sync::Mutex<()>>,
    pub followers: Followers,
    pub history: super::history::Shared,
}

impl Backend for Operator {
    async fn list(&self, filter: Filter, page: Page) -> Result<Vec<Listed>, Trouble> {
        let (queue, now) = (self.queue.clone(), self.clock.now());
        blocking(move || select(&queue, &filter, page, now)).await
    }

    async fn story(&self, id: MessageId) -> Result<Option<Story>, Trouble> {
        let queue = self.queue.clone();
        blocking(move || {
            // First whether it is still queued, then what happened: the other way round, a message that
            // is delivered in between would look done without its last line.
            let damaged = damaged_of(&queue, id)?;
            let message = match queue.message(id) {
                Ok(Some(message)) => {
                    let is_bad = |number: u32| damaged.iter().any(|damaged| damaged.recipient == Some(number));
                    let recipients = queue.recipients_but(id, is_bad)?;
                    Some(listed(&queue, &message, &recipients))
                }
                Ok(None) => None,
                Err(_) if damaged.iter().any(|damaged| damaged.recipient.is_none()) => None,
                Err(error) => return Err(error),
            };
            let entries = journal::story(queue.store(), id)?;
            let known = message.is_some() || !entries.is_empty() || !damaged.is_empty();
            Ok(known.then_some(Story { id, message, damaged, entries }))
        })
        .await
    }

    async fn change(&self, action: Action, selection: Selection) -> Result<Changed, Trouble> {
        let mut resumed = BTreeSet::new();
        let mut done = Done::default();
        let changed = self.change_selected(action, selection, &mut resumed, &mut done).await;
        for what in resumed {
            tracing::info!("{what} is tried again, and what was held for it is released");
            self.release_for(&what).await?;
        }
        changed?;
        Ok(Changed { recipients: done.recipients, waiting: self.waiting(action, done) })
    }

    async fn submit(&self, draft: Draft, key: Option<Key>) -> Result<Once, Refusal> {
        self.intake.load().submit(draft, key.as_ref()).await
    }

    async fn log_in(&self, peer: IpAddr, name: String, password: Secret) -> Result<Caller, Refusal> {
        let shared = self.shared.load();
        let Shared { config, accounts, limits, .. } = &*shared;
        limits.may_log_in(config, culprit(peer), &name, self.clock.now())?;
        match accounts.verify(Login { account: name.clone(), password }).await {
            Ok(Verified { name, max_recipients }) => Ok(Caller::Account { name, max_recipients }),
            Err(refusal) => {
                if refusal.reply.severity() == Severity::Permanent {
                    limits.login_failed(config, culprit(peer), Some(&name), self.clock.now());
                    tokio::time::sleep(AUTH_FAILURE_DELAY).await;
                }
                Err(refusal)
            }
        }
    }

    fn may_log_in(&self, peer: IpAddr) -> Result<(), Refusal> {
        let shared = self.shared.load();
        let Shared { config, limits, .. } = &*shared;
        limits.may_log_in(config, culprit(peer), TOKEN, self.clock.now())
    }

    async fn login_failed(&self, peer: IpAddr) {
        let shared = self.shared.load();
        let Shared { config, limits, .. } = &*shared;
        limits.login_failed(config, culprit(peer), None, self.clock.now());
        tokio::time::sleep(AUTH_FAILURE_DELAY).await;
    }

    fn now(&self) -> Millis {
        self.clock.now()
    }

    async fn status(&self) -> ServerStatus {
        ServerStatus {
            hostname: self.intake.load().config().hostname.to_string(),
            listeners: self.listeners.load().to_vec(),
            ..self.status.clone()
        }
    }

    async fn damaged(&self) -> Result<Vec<Damaged>, Trouble> {
        let queue = self.queue.clone();
        blocking(move || Ok(damaged(&queue, check::bad_records(queue.store(), DAMAGED_MAX)?, None))).await
    }

    async fn export(&self, id: MessageId) -> Result<Option<Bytes>, Trouble> {
        let Some((exported, body)) = self.transfer.export(id).await? else { return Ok(None) };
        transfer::join(&exported, &body).map(Some).map_err(Trouble::new)
    }

    async fn import(&self, name: String, exported: Exported, body: Bytes) -> Result<Imported, Refusal> {
        self.intake.load().sender(None, &ReversePath::Null, Some(body.len() as u64))?;
        let imported = self.transfer.import(&name, exported, body).await;
        imported.map_err(|error| Refusal::inner(format!("the message could not be stored: {error}")))
    }

    async fn forget_imports(&self, keys: Vec<String>) -> Result<(), Trouble> {
        self.transfer.forget_imports(keys).await.map_err(Trouble::new)
    }

    async fn back_up(&self, to: PathBuf) -> Result<BackedUp, Complaint> {
        let (hostname, now) = (self.intake.load().config().hostname.to_string(), self.clock.now());
        self.upkeep(move |store, data_dir| upkeep::back_up(store, data_dir, &to, &hostname, now)).await
    }

    async fn compact(&self) -> Result<Compacted, Complaint> {
        self.upkeep(upkeep::compact).await
    }

    async fn suspend(&self, what: Suspension, on: bool) -> Result<SuspendAnswer, Complaint> {
        self.check_suspension(&what, on)?;
        let trouble = |error: StoreError| {
            Complaint::new(format!("it could not be written down: {error}"), "try again; the server's log says more")
        };
        let changed = if on {
            self.queue.suspend(&what).await.map_err(trouble)?
        } else {
            let lifted = self.queue.lift(&what).await.map_err(trouble)?;
            self.release_for(&what).await.map_err(|trouble| Complaint::new(trouble.0, "resume it again"))?;
            lifted
        };
        if what == Suspension::Fetch && !on {
            self.fetcher.wake();
        }
        match (changed, on) {
            (true, true) => tracing::warn!("{what} is suspended; mail for it is taken and waits"),
            (true, false) => tracing::info!("{what} is resumed"),
            (false, _) => {}
        }
        let (suspended, exempt) = (suspended(&self.queue), self.queue.gates().exempt());
        Ok(SuspendAnswer { changed, suspended, exempt })
    }

    async fn pick_up(&self, folder: Option<String>) -> Result<Vec<pickup::Report>, Complaint> {
        let wanted = |handle: &&pickup::Handle| folder.as_ref().is_none_or(|name| *name == handle.name);
        let pickups = self.pickups.load();
        let handles: Vec<_> = pickups.iter().filter(wanted).collect();
        if let (Some(name), []) = (&folder, handles.as_slice()) {
            let what = format!("the running server has no pickup folder {name:?}");
            return Err(Complaint::unknown(what, pickups.iter().map(|handle| handle.name.as_str())));
        }
        let mut reports = Vec::new();
        for handle in handles {
            let stopping = || Complaint::new("the server is stopping", "start it again");
            reports.push(handle.look_now().await.ok_or_else(stopping)?);
        }
        Ok(reports)
    }

    async fn test_host(&self, wish: Wish) -> Result<Report, Complaint> {
        let tested = self.transports.load().test_host(&wish).await;
        tested.map_err(|no_test| Complaint::new(no_test.what, no_test.remedy))
    }

    async fn events(&self, wish: EventsWish) -> Result<EventsPage, Complaint> {
        self.search_events(wish).await
    }

    async fn follow(&self, wish: EventsWish) -> Result<Receiver<Bytes>, Complaint> {
        self.follow_events(wish)
    }

    async fn suppressions(
        &self,
        after: Option<(String, String)>,
        limit: usize,
    ) -> Result<Vec<suppression::Listed>, Trouble> {
        let intake = self.intake.load();
        let read = move || {
            let after = after.as_ref().map(|(address, scope)| (address.as_str(), scope.as_str()));
            intake.suppression().list(after, limit)
        };
        blocking(read).await
    }

    async fn suppress(&self, entries: Vec<NewEntry>) -> Result<usize, Complaint> {
        self.intake.load().suppression().add(entries).await.map_err(unsuppressable)
    }

    async fn unsuppress(&self, whom: Vec<Who>, scope: Option<String>, force: bool) -> Result<usize, Complaint> {
        self.intake.load().suppression().remove(&whom, scope.as_deref(), force).await.map_err(unsuppressable)
    }

    async fn explain_suppression(&self, who: Who) -> Result<Explained, Complaint> {
        let (listed, known, weighed) =
            self.intake.load().suppression().explain(&who).map_err(|error| unsuppressable(error.into()))?;
        let counts = |event: &_| weighed.as_ref().is_some_and(|weighed| weighed.counted.contains(event));
        let bounces = known.events.iter().map(|event| Bounced::new(event, counts(event))).collect();
        let listed = listed.into_iter().map(Suppressed::from).collect();
        let rule = weighed.as_ref().map(|weighed| weighed.why.clone());
        Ok(Explained { address: who.key(), listed, bounces, alive: known.alive, rule })
    }

    async fn fetch_list(&self) -> Vec<FetchStatus> {
        self.fetcher.list().into_iter().map(FetchStatus::from).collect()
    }

    async fn fetch_run(&self, name: String, dry_run: bool) -> Result<Ran, Complaint> {
        let ran = self.fetcher.run_now(&name, dry_run).await;
        ran.map_err(|not_run| match &not_run {
            NotRun::Unknown(_) => {
                let names = self.fetcher.names();
                Complaint::unknown(not_run.to_string(), names.iter().map(|name| &**name))
            }
            NotRun::UnderWay(_) => {
                Complaint::new(not_run.to_string(), "see `postrider fetch list`, and try again when it is done")
            }
            NotRun::Suspended => Complaint::new(not_run.to_string(), "`postrider resume --fetch` lets it go on"),
        })
    }

    async fn explain(&self, id: MessageId) -> Result<Option<Explanation>, Trouble> {
        self.explain_message(id).await
    }

    async fn reload(&self) -> Result<ReloadAnswer, Complaint> {
        match self.reloader.get() {
            Some(reloader) => reloader.reload().await,
            None => Err(Complaint::new("the server is starting", "try again")),
        }
    }

    async fn list_captured(&self, wish: CapturedWish) -> Result<CapturedPage, Trouble> {
        self.captured_page(wish).await
    }

    async fn wait_captured(&self, wish: CapturedWish, patience: Duration) -> Result<CapturedPage, Complaint> {
        self.captured_within(wish, patience).await
    }

    async fn captured(&self, id: MessageId) -> Result<Option<Kept>, Trouble> {
        self.captured_one(id).await
    }

    async fn release_captured(&self, id: MessageId, to: Vec<Address>) -> Result<Option<usize>, Trouble> {
        self.let_captured_go(id, to).await
    }

    async fn delete_one_captured(&self, id: MessageId) -> Result<bool, Trouble> {
        self.forget_captured(id).await
    }

    async fn delete_captured(&self, filter: CapturedFilter) -> Result<usize, Trouble> {
        self.forget_all_captured(filter).await
    }

    async fn readiness(&self) -> Option<Readiness> {
        Some(self.watch.readiness())
    }

    async fn metrics(&self) -> String {
        self.watch.metrics()
    }

    async fn look(&self, filter: Filter, page: Page, looked_at_max: usize) -> Result<Part, Trouble> {
        let (queue, now) = (self.queue.clone(), self.clock.now());
        blocking(move || look(&queue, &filter, page, looked_at_max, now)).await
    }

    fn queued(&self) -> Option<u64> {
        self.queue.store().messages()
    }

    fn history(&self) -> History {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn troubles(&self, max: usize) -> Vec<(MessageId, Entry)> {
        self.journal.troubles().newest(max)
    }

    async fn destinations(&self) -> Option<Places> {
        self.inquiry.get()?.overview().await
    }

    fn ways(&self) -> Ways {
        let intake = self.intake.load();
        let config = intake.config();
        let stream = |name: &String| {
            let suppresses = config.streams.get(name).is_some_and(|stream| stream.suppress);
            StreamWay { name: name.clone(), is_exempt: self.queue.gates().is_exempt(name), suppresses }
        };
        Ways {
            streams: config.streams.keys().map(stream).collect(),
            smart_hosts: config.smart_hosts.iter().map(|host| host.name.clone()).collect(),
            fetches: !config.fetch.is_empty(),
        }
    }
}

impl Operator {
    /// Work on the store as a whole, off the async threads.
    async fn upkeep<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Store, &Path) -> Result<T, Complaint> + Send + 'static,
    ) -> Result<T, Complaint> {
        let Ok(_alone) = self.upkeep.try_lock() else {
            return Err(Complaint::new(
                "a backup or compaction is under way already",
                "try again when it is done; the server goes on meanwhile",
            ));
        };
        let (queue, data_dir) = (self.queue.clone(), self.intake.load().config().data_dir.clone());
        let done = tokio::task::spawn_blocking(move || work(queue.store(), &data_dir)).await;
        done.unwrap_or_else(|_| Err(Complaint::new("the work was broken off", "look into the server's log")))
    }

    /// Is there such a thing, and may it be suspended? What is gone from the configuration can be resumed.
    fn check_suspension(&self, what: &Suspension, on: bool) -> Result<(), Complaint> {
        let intake = self.intake.load();
        let config = intake.config();
        let gates = self.queue.gates();
        let is_suspended =
            || gates.suspended().iter().any(|(known, _)| known == what) || gates.lifting().contains(what);
        match what {
            _ if !on && is_suspended() => Ok(()),
            Suspension::Stream(name) if !config.streams.contains_key(name) => {
                let known = config.streams.keys().map(String::as_str);
                Err(Complaint::unknown(format!("there is no stream named {name:?}"), known))
            }
            Suspension::Stream(name) if on && gates.is_exempt(name) => Err(Complaint::new(
                format!("the stream {name} is exempt from suspension"),
                format!("set streams.{name}.exempt_from_suspend = false to be able to suspend it"),
            )),
            Suspension::SmartHost(name) if config.smart_hosts.iter().all(|host| host.name != *name) => {
                let known = config.smart_hosts.iter().map(|host| host.name.as_str());
                Err(Complaint::unknown(format!("there is no smart host named {name:?}"), known))
            }
            _ => Ok(()),
        }
    }

    /// Releases what was put aside, one by one, because a smart host or a target was suspended.
    pub(super) async fn release_for(&self, what: &Suspension) -> Result<(), Trouble> {
        let Some(hold) = what.held_because() else { return Ok(()) };
        let mut after = None;
        loop {
            let filter = Filter { status: Some(view::Status::Held), ..Filter::default() };
            let mut slice = self.list_of(filter, Page { limit: SLICE_MESSAGES, after }).await?;
            let Some(last) = slice.last() else { break };
            after = Some(last.id);
            for listed in &mut slice {
                listed.recipients.retain(|recipient| recipient.held_by.as_ref() == Some(&hold.by));
            }
            self.change_all(Action::Release, slice, false, &mut Done::default()).await?;
        }
        self.queue.lifted(what).await.map_err(Trouble::new)
    }

    async fn change_selected(
        &self,
        action: Action,
        selection: Selection,
        resumed: &mut BTreeSet<Suspension>,
        done: &mut Done,
    ) -> Result<(), Trouble> {
        match selection.pick {
            Pick::Ids(ids, filter) => {
                for id in ids {
                    let before = MessageId::from_u64(id.as_u64().saturating_sub(1));
                    let page = Page { limit: 1, after: Some(before) };
                    let mut found = self.list_of(Filter::default(), page).await?;
                    found.retain(|listed| listed.id == id);
                    let chosen: Vec<Listed> =
                        found.into_iter().filter_map(|listed| filter.apply(listed, self.clock.now())).collect();
                    self.resume_targets(action, &chosen, selection.dry_run, resumed).await?;
                    self.change_all(action, chosen, selection.dry_run, done).await?;
                }
                Ok(())
            }
            Pick::Matching(filter) => {
                let mut after = None;
                loop {
                    let slice = self.list_of(filter.clone(), Page { limit: SLICE_MESSAGES, after }).await?;
                    let Some(last) = slice.last() else { return Ok(()) };
                    after = Some(last.id);
                    self.resume_targets(action, &slice, selection.dry_run, resumed).await?;
                    self.change_all(action, slice, selection.dry_run, done).await?;
                }
            }
        }
    }

    /// What keeps those back that are due now: their stream may not go on, or is suspended. What only has to wait
    /// for its turn is no matter.
    fn waiting(&self, action: Action, done: Done) -> Vec<Waiting> {
        if !matches!(action, Action::Retry | Action::Release) {
            return Vec::new();
        }
        let (gates, now) = (self.queue.gates(), self.clock.now());
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        for ((stream, keeps_pace, attempts), recipients) in done.by_stream {
            let closed = gates.closed_to(&stream, keeps_pace, attempts, now);
            let lasting =
                closed.filter(|closed| matches!(closed, Closed::Suspended { .. }) || closed.until().is_some());
            if let Some(closed) = lasting {
                *reasons.entry(closed.to_string()).or_default() += recipients;
            }
        }
        reasons.into_iter().map(|(why, recipients)| Waiting { recipients, why }).collect()
    }

    /// Who releases a message that waits for a paused target wants the target to be tried again. What else
    /// waits for it is released when the change is made.
    async fn resume_targets(
        &self,
        action: Action,
        chosen: &[Listed],
        dry_run: bool,
        resumed: &mut BTreeSet<Suspension>,
    ) -> Result<(), Trouble> {
        if dry_run || !matches!(action, Action::Retry | Action::Release) {
            return Ok(());
        }
        for recipient in chosen.iter().flat_map(|listed| &listed.recipients) {
            let held_for = recipient.held_by.as_ref().and_then(Suspension::behind);
            if let Some(what @ Suspension::Target(_)) = held_for
                && self.queue.lift(&what).await.map_err(Trouble::new)?
            {
                resumed.insert(what);
            }
        }
        Ok(())
    }

    async fn list_of(&self, filter: Filter, page: Page) -> Result<Vec<Listed>, Trouble> {
        self.list(filter, page).await
    }

    async fn change_all(
        &self,
        action: Action,
        chosen: Vec<Listed>,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<(), Trouble> {
        for listed in chosen {
            for recipient in listed.recipients.iter().filter(|recipient| action.fits(recipient.status)) {
                if dry_run || self.change_one(action, listed.id, recipient).await? {
                    done.recipients += 1;
                    let kind = (listed.stream.clone(), recipient.keeps_pace, recipient.attempts.min(1));
                    *done.by_stream.entry(kind).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    async fn change_one(&self, action: Action, id: MessageId, listed: &view::Recipient) -> Result<bool, Trouble> {
        let mut telling = self.journal.begin();
        let now = self.clock.now();
        let changed = self
            .queue
            .change(id, listed.number, |_, before| {
                // It may have changed since it was listed.
                let status = view::Recipient::new(listed.number, before).status;
                let after = action.fits(status).then(|| after(action, before, now))?;
                if let Some(event) = event(action, before) {
                    telling.tell(id, event);
                }
                Some((after, telling.take_batch()))
            })
            .await
            .map_err(Trouble::new)?;
        if changed {
            telling.log();
        }
        Ok(changed)
    }
}

pub fn select(queue: &Queue, filter: &Filter, page: Page, now: u64) -> Result<Vec<Listed>, StoreError> {
    let mut chosen = Vec::new();
    queue.walk(page.after, |message, recipients| {
        chosen.extend(filter.apply(listed(queue, &message, &recipients), now));
        if chosen.len() < page.limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(chosen)
}

/// As [`select`], and looks at so many recipients at most.
fn look(queue: &Queue, filter: &Filter, page: Page, looked_at_max: usize, now: u64) -> Result<Part, StoreError> {
    let (mut messages, mut looked_at, mut records, mut next) = (Vec::new(), 0, 0, None);
    queue.walk(page.after, |message, recipients| {
        if messages.len() >= page.limit || records >= looked_at_max {
            return ControlFlow::Break(());
        }
        looked_at += 1;
        records += recipients.len().max(1);
        next = Some(message.id);
        messages.extend(filter.apply(listed(queue, &message, &recipients), now));
        ControlFlow::Continue(())
    })?;
    let is_end = messages.len() < page.limit && records < looked_at_max;
    Ok(Part { messages, looked_at, next: next.filter(|_| !is_end) })
}

/// A message as it is shown, with what keeps it from being tried.
fn listed(queue: &Queue, message: &Message, recipients: &[(u32, Recipient)]) -> Listed {
    let mut listed = Listed::new(message, recipients.iter().map(|(number, recipient)| (*number, recipient)));
    for (shown, (_, recipient)) in listed.recipients.iter_mut().zip(recipients) {
        let why = |due| queue.gates().closed(message, recipient, due).map(|closed| closed.to_string());
        shown.keeps_pace = keeps_pace(message, recipient);
        shown.kept_back = shown.due.and_then(|due| why(due).or_else(|| paused(queue, &recipient.route)));
    }
    listed
}

/// Why the suppression list stays as it is.
fn unsuppressable(error: SuppressError) -> Complaint {
    let remedy = match &error {
        SuppressError::NoScope(_) => "name a stream of the configuration, or leave it out".to_owned(),
        SuppressError::Skips(stream) if stream == stream::SECURITY => "it never does".to_owned(),
        SuppressError::Skips(stream) => format!("set streams.{stream}.suppress = true"),
        SuppressError::NoneSkips => "set streams.bulk.suppress = true, or use the scope \"global\"".to_owned(),
        SuppressError::Complained(_) => {
            "mail to them is called spam; force it (--force) if they have asked for it".to_owned()
        }
        SuppressError::Store(_) => "try again; the server's log says more".to_owned(),
    };
    let of_wish = matches!(error, SuppressError::NoScope(_));
    Complaint { of_wish, ..Complaint::new(error.to_string(), remedy) }
}

/// Why nothing goes to a target, if that is so.
fn paused(queue: &Queue, route: &Route) -> Option<String> {
    let Route::Target(name) = route else { return None };
    queue.gates().is_target_paused(name).then(|| Suspension::target(name).reason)
}

/// What is suspended, for people.
pub(super) fn suspended(queue: &Queue) -> Vec<Suspended> {
    queue.gates().suspended().into_iter().map(|(what, since)| Suspended { what, since }).collect()
}

/// The records that cannot be read, and what the scans have set aside besides (a recipient whose message
/// is gone), of all messages or of one.
fn damaged(queue: &Queue, records: Vec<BadRecord>, only: Option<MessageId>) -> Vec<Damaged> {
    let show = |BadRecord { id, number, why }| Damaged { id, recipient: number, why };
    let mut damaged: Vec<Damaged> = records.into_iter().map(show).collect();
    for aside in queue.damaged().0 {
        let is_known = damaged
            .iter()
            .any(|known| known.id == aside.id && (known.recipient.is_none() || known.recipient == Some(aside.number)));
        if !is_known && only.is_none_or(|id| id == aside.id) {
            damaged.push(Damaged { id: aside.id, recipient: Some(aside.number), why: aside.what });
        }
    }
    damaged
}

fn damaged_of(queue: &Queue, id: MessageId) -> Result<Vec<Damaged>, StoreError> {
    Ok(damaged(queue, check::bad_records_of(queue.store(), id)?, Some(id)))
}

/// The recipient's next state; none if it goes.
fn after(action: Action, before: &Recipient, now: u64) -> Option<Recipient> {
    let status = match action {
        Action::Retry | Action::Release => Status::Waiting { due: now },
        Action::Hold => Status::Held(Hold::new(HeldBy::Operator, BY_OPERATOR)),
        Action::Cancel => return None,
    };
    let by_hand = match (action, &before.status) {
        // A first try is not in place of another.
        (Action::Retry, Status::Waiting { due }) if before.attempts > 0 => Some(before.by_hand.unwrap_or(*due)),
        _ => None,
    };
    Some(Recipient { status, by_hand, ..before.clone() })
}

fn event(action: Action, before: &Recipient) -> Option<Event> {
    let recipient: Address = before.address.clone();
    match action {
        Action::Retry | Action::Release if matches!(before.status, Status::Held { .. }) => {
            Some(Event::Released { recipient })
        }
        Action::Retry | Action::Release => None,
        Action::Hold => Some(Event::Held { recipient, reason: BY_OPERATOR.into() }),
        Action::Cancel => Some(Event::Cancelled { recipient }),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Trouble> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|_| Trouble::new("the look into the store was broken off"))?.map_err(Trouble::new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::Notify;

    #[test]
    fn a_try_by_hand_keeps_the_time_of_the_one_it_is_before() {
        let before = |attempts, status: Status, by_hand| Recipient {
            address: Address::parse("a@b.example").unwrap(),
            alias: None,
            route: Route::Remote,
            notify: Notify::default(),
            original: None,
            status,
            attempts,
            last_failure: None,
            delay_notified: false,
            by_hand,
            released: None,
        };
        let (held, waiting) = (Status::Held(Hold::new(HeldBy::Other, "x")), |due| Status::Waiting { due });
        for (action, before, by_hand) in [
            (Action::Retry, before(2, waiting(900), None), Some(900)),
            // Asked for twice.
            (Action::Retry, before(2, waiting(100), Some(900)), Some(900)),
            (Action::Retry, before(0, waiting(900), None), None),
            (Action::Retry, before(2, held.clone(), None), None),
            (Action::Release, before(2, held, None), None),
        ] {
            let after = after(action, &before, 100).unwrap();
            assert_eq!((after.status, after.by_hand), (Status::Waiting { due: 100 }, by_hand), "{before:?}");
        }
    }
}
