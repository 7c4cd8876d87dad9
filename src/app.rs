//! The one place that builds the parts and joins them: start order, stop order, signals.
//!
//! Start: store, keys, certificate, then the doors, so that nothing is accepted before it can be
//! kept. Stop, on a signal: doors close and sessions end, attempts under way get
//! [`DRAIN_TIME`], then the committer writes what it has. A second signal stops at once ([`HURRY_TIME`] at most); the queue
//! on disk is what it was (see the table in `queue::record`).

pub mod account_test;
mod alive;
pub mod captured;
pub mod dkim;
mod dmarc;
mod doors;
mod event_hooks;
mod events;
pub mod explain;
mod files;
mod history;
mod mailbox_tokens;
pub mod operator;
mod outside;
pub mod reload;
mod space;
mod tls;
pub mod transfer;
pub mod upkeep;
pub mod watch;
pub mod world;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::reload::ReloadResult;
use crate::admin::{AdminSocket, HttpError, ListenerStatus, ServerStatus, SocketError};
use crate::clock::{Clock, Millis, rfc3339};
use crate::config::{Config, Durability};
use crate::current::Current;
use crate::delivery::dispatch::{Dispatcher, NOTING_MAX, Parts};
use crate::delivery::dmarc_report;
use crate::delivery::event_webhooks::EventWebhookError;
use crate::delivery::receipts::Receipts;
use crate::delivery::settle::Settler;
use crate::delivery::tls_report::Reports;
use crate::delivery::transport::{SetUpError, Transports};
use crate::dns::{DnsError, Resolver};
use crate::events::journal::{self, Journal};
use crate::intake::Intake;
use crate::intake::fetch::{Fetcher, TokenSource};
use crate::intake::sign::{SignError, Signer};
use crate::queue::Queue;
use crate::queue::suspend::Suspension;
use crate::routing::loops;
use crate::server::accounts::AccountsError;
use crate::server::listener::BindError;
use crate::server::outside::Shared;
use crate::server::tls::{ServerTls, TlsError};
use crate::store::{Batch, Store, StoreError, Table};

use dkim::Keeper;
pub use doors::fetch_ways;
use doors::{Doors, NextDoors, Open, pickup_folders};
use mailbox_tokens::MailboxTokens;
use operator::Operator;
use outside::Behind;
use reload::{Reloader, SetLog};
use transfer::Transfer;
use watch::Watch;

/// How long attempts under way may go on after the first signal.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);
/// How long a stop at once waits for what is written down of tries whose end nobody will know.
const HURRY_TIME: Duration = Duration::from_secs(1);
/// How often old stories and counters are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);
/// While mail is turned away for want of space: how often the store is asked for what it can give back.
/// Counters looked at in one go.
const SWEEP_SLICE: usize = 1000;

/// Why the server does not start. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{}: the folder cannot be made or written: {source}; create it for the user that runs postrider, or change data_dir", path.display())]
    DataDir { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Store { path: PathBuf, source: StoreError },
    #[error("pickup.{name}: {}: {why}", path.display())]
    Pickup { name: String, path: PathBuf, why: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("dns: {0}")]
    Dns(#[from] DnsError),
    #[error(transparent)]
    WayOut(#[from] SetUpError),
    #[error(transparent)]
    EventWebhook(#[from] EventWebhookError),
    #[error(transparent)]
    Listen(#[from] BindError),
    #[error(transparent)]
    Accounts(#[from] AccountsError),
    #[error(transparent)]
    Admin(#[from] SocketError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("no thread for work on files: {0}")]
    Threads(String),
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

/// A running server.
pub struct App {
    operator: Arc<Operator>,
    reloader: Arc<Reloader>,
    /// Closes the doors and stops claiming.
    stop: CancellationToken,
    doors: TaskTracker,
    sessions: TaskTracker,
    attempts: TaskTracker,
    queue: Arc<Queue>,
    transports: Current<Transports>,
}

impl std::fmt::Debug for App {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("App")
    }
}

impl App {
    /// Starts everything; when it returns, the listeners accept.
    pub async fn start(config: Config, clock: Clock) -> Result<App, Error> {
        let config = Arc::new(config);
        let store_failed = |source| Error::Store { path: store_path(&config), source };
        let store = open_store(&config)?;
        let folders = pickup_folders(&config)?;
        let signer = Signer::load(&config)?;
        let tls = ServerTls::load(&config)?;
        let resolver = Resolver::new(&config.dns)?;
        let open = Open::default();
        let listeners = open.next_listeners(&config)?;
        let certificates = open.next_certificates(&config)?;
        let socket = AdminSocket::bind(&config.data_dir)?;
        let http = open.next_http(&config)?;

        let sync = config.queue.durability == Durability::Sync;
        let opened = Queue::with_streams(store, clock.clone(), sync, config.queue.memory, &config.streams);
        let (queue, fresh) = opened.map_err(store_failed)?;
        let outbox = event_hooks::load(&config, &queue).await?;
        let senders = open.next_senders(&config, &outbox, &queue, &clock)?;
        let journal = Arc::new(Journal::with(clock.clone(), config.events.log, outbox.clone()));
        let transports = Current::new(Transports::new(&config, resolver.clone(), &clock, &queue)?);
        let (door, keys) = (resolver.clone(), signer);
        let intake = Intake::new(config.clone(), clock.clone(), queue.clone(), journal.clone(), door, keys);
        let intake = Current::new(intake.map_err(store_failed)?);
        let stop = CancellationToken::new();
        let listening = Current::new(Vec::new());
        let watch = Arc::new(Watch::new(
            clock.clone(),
            queue.clone(),
            journal.clone(),
            intake.clone(),
            listening.clone(),
            stop.clone(),
        ));
        let behind = Behind { intake: intake.load(), refusals: watch.refusals.clone() };
        let shared = Current::from(Shared::new(config.clone(), tls, behind, clock.clone())?);
        let ways = {
            let (config, resolver) = (config.clone(), resolver.clone());
            let tokens: Arc<dyn TokenSource> = Arc::new(MailboxTokens(transports.clone()));
            let made = tokio::task::spawn_blocking(move || doors::ways(&config, &resolver, Some(tokens), None)).await;
            made.map_err(|error| Error::Threads(error.to_string()))?
        };
        let fetcher = Fetcher::new(intake.clone(), clock.clone(), ways.clone(), stop.clone());
        let fetcher = Arc::new(fetcher.map_err(store_failed)?);
        let fetch = fetcher.next(&config).map_err(store_failed)?;
        let tasks = TaskTracker::new();
        let doors = Doors {
            shared: shared.clone(),
            intake: intake.clone(),
            fetcher: fetcher.clone(),
            queue: queue.clone(),
            counters: watch.counters.clone(),
            clock: clock.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
            listeners: listening.clone(),
            pickups: Current::new(Vec::new()),
            max_size: Current::new(config.limits.max_size),
            open: open.into(),
        };
        let operator = Arc::new(Operator {
            shared: shared.clone(),
            listeners: listening,
            fetcher: fetcher.clone(),
            clock: clock.clone(),
            queue: queue.clone(),
            journal: journal.clone(),
            intake: intake.clone(),
            status: status(&config, &clock),
            transfer: Transfer::new(clock.clone(), queue.clone(), journal.clone()),
            watch: watch.clone(),
            transports: transports.clone(),
            pickups: doors.pickups.clone(),
            inquiry: OnceLock::new(),
            upkeep: Arc::default(),
            followers: events::Followers::new(stop.clone()),
            history: history::Shared::default(),
            reloader: OnceLock::new(),
        });

        if let Err(error) = transports.load().pauses().lift_outdated().await {
            tracing::warn!(%error, "whether paused targets have another configuration cannot be seen");
        }
        tell_suspended(&queue);
        let attempts = TaskTracker::new();
        let settler = Settler { config: config.clone(), clock: clock.clone(), journal, intake: intake.load() };
        let noting = Arc::new(Semaphore::new(NOTING_MAX));
        let receipts = Arc::new(Receipts::open(&config.data_dir, |id, number| queue.holds(id, number)));
        let parts = Parts {
            config: config.clone(),
            clock: clock.clone(),
            queue: queue.clone(),
            transports: transports.load(),
            settler,
            noting: noting.clone(),
            receipts: receipts.clone(),
        };
        let dispatcher = Dispatcher::new(Arc::new(parts), fresh);
        operator.inquiry.get_or_init(|| dispatcher.inquiry());
        let reloader = Arc::new(Reloader {
            clock: clock.clone(),
            queue: queue.clone(),
            journal: operator.journal.clone(),
            watch: watch.clone(),
            doors,
            intake: intake.clone(),
            transports: transports.clone(),
            noting,
            receipts,
            dispatcher: dispatcher.changes(),
            operator: Arc::downgrade(&operator),
            set_log: OnceLock::new(),
            one: tokio::sync::Mutex::default(),
        });
        operator.reloader.get_or_init(|| reloader.clone());
        tasks.spawn(dispatcher.run(attempts.clone(), stop.clone()));
        let next = NextDoors { listeners, certificates, folders, outbox, senders, http, fetch, ways };
        reloader.doors.begin(next, &config, &operator);
        for name in fetcher.names() {
            tasks.spawn(fetcher.clone().watch(name));
        }
        tasks.spawn(history::keep(watch.clone(), operator.history.clone(), stop.clone()));
        tasks.spawn(finish_lifting(operator.clone()));
        let (max_size, serving, until) = (reloader.doors.max_size.clone(), operator.clone(), stop.clone());
        tasks.spawn(async move {
            if let Err(error) = socket.serve(serving, max_size, until).await {
                tracing::error!(%error, "the admin socket has failed");
            }
        });
        let app = App {
            operator,
            reloader,
            sessions: shared.load().sessions.clone(),
            stop,
            doors: tasks,
            attempts,
            queue,
            transports,
        };
        app.look_after(&intake, &clock, watch);
        Ok(app)
    }

    /// What goes on beside the mail. It always goes by the configuration that holds then.
    fn look_after(&self, intake: &Current<Intake>, clock: &Clock, watch: Arc<Watch>) {
        let (tasks, stop) = (&self.doors, || self.stop.clone());
        let (transports, now, clock_there) = (self.transports.clone(), intake.clone(), clock.clone());
        let reports = move || {
            let (intake, transports) = (now.load(), transports.load());
            Reports {
                config: intake.config().clone(),
                clock: clock_there.clone(),
                resolver: intake.resolver().clone(),
                https: transports.tls().https.clone(),
                tally: transports.tls().tally.clone(),
                intake,
            }
        };
        tasks.spawn(tls::look_after(self.transports.clone(), reports, stop()));
        let reports = dmarc_report::Reports::new(clock.clone(), intake.clone());
        tasks.spawn(dmarc::look_after(reports, stop()));
        tasks.spawn(watch.run());
        let (now, clock_there, queue) = (intake.clone(), clock.clone(), self.queue.clone());
        let keeper = move || {
            let intake = now.load();
            let (config, signer) = (intake.config().clone(), intake.signer().clone());
            Keeper { config, clock: clock_there.clone(), queue: queue.clone(), signer }
        };
        tasks.spawn(dkim::look_after(keeper, stop()));
        tasks.spawn(captured::look_after(self.queue.clone(), clock.clone(), intake.clone(), stop()));
        tasks.spawn(sweep(intake.clone(), clock.clone(), stop()));
        tasks.spawn(space::give_back(intake.clone(), self.queue.clone(), stop()));
    }

    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

    pub fn reloader(&self) -> &Arc<Reloader> {
        &self.reloader
    }

    /// Takes what is changed in the files of the configuration without being told.
    pub fn follow_files(&self) {
        self.doors.spawn(files::follow(self.reloader.clone(), self.stop.clone()));
    }

    /// The doors that are open, with their real addresses.
    pub fn listeners(&self) -> Vec<ListenerStatus> {
        self.operator.listeners.load().to_vec()
    }

    /// Closes the doors, lets attempts end, writes everything down. `hurry` cuts the wait short.
    pub async fn stop(self, hurry: impl Future<Output = ()>) {
        self.stop.cancel();
        self.doors.close();
        self.sessions.close();
        self.attempts.close();
        let drained = async {
            self.doors.wait().await;
            self.sessions.wait().await;
            self.attempts.wait().await;
            self.transports.load().close().await;
        };
        const REPEATED: &str = "what is not finished is repeated at the next start";
        let why = tokio::select! {
            () = drained => return tracing::info!("stopped"),
            () = tokio::time::sleep(DRAIN_TIME) => format!("after {} s of waiting", DRAIN_TIME.as_secs()),
            () = hurry => "at once".to_owned(),
        };
        // What a server has and has not answered for may have arrived: that is written down.
        self.transports.load().hurry();
        let _ = tokio::time::timeout(HURRY_TIME, self.attempts.wait()).await;
        tracing::warn!("stopped {why}; {REPEATED}");
    }
}

fn store_path(config: &Config) -> PathBuf {
    config.data_dir.join("store")
}

fn open_store(config: &Config) -> Result<Arc<Store>, Error> {
    let made = std::fs::DirBuilder::new().recursive(true).create(&config.data_dir);
    made.map_err(|source| Error::DataDir { path: config.data_dir.clone(), source })?;
    let path = store_path(config);
    let store = Store::open(&path).map_err(|source| Error::Store { path, source })?;
    for damage in store.damages() {
        tracing::error!(place = damage.place, what = damage.what, "the store is damaged");
    }
    Ok(Arc::new(store))
}

/// Starts, tells systemd, runs until SIGTERM or SIGINT, drains; a second signal stops at once. SIGHUP takes a changed
/// configuration, and so does a change in its files.
pub async fn serve(config: Config, set_log: SetLog) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let warnings = config.warnings.clone();
    let (hostname, data_dir) = (config.hostname.to_string(), config.data_dir.display().to_string());
    let app = App::start(config, Clock::System).await?;
    app.reloader.set_log.get_or_init(|| set_log);
    let ended = CancellationToken::new();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), hostname, data_dir, "started");
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    for ListenerStatus { name, role, address } in app.listeners() {
        tracing::info!(name, role, %address, "listening");
    }
    // Not under systemd: nobody to tell, and no harm.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    if let Some(every) = alive::wanted() {
        // While attempts under way end it goes on telling: that takes up to `DRAIN_TIME`.
        tokio::spawn(alive::tell(every, app.queue.clone(), ended.clone()));
    }
    app.follow_files();
    while signals.next().await == Wish::Reload {
        alive::tell_reloading();
        // Else what came of it is in the log.
        if app.reloader.reload().await.is_ok_and(|answer| answer.result == ReloadResult::Unchanged) {
            tracing::info!("SIGHUP: nothing has changed in the configuration");
        }
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    }
    tracing::info!("stopping: no new mail is taken, attempts under way may end; a second signal stops at once");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    app.stop(signals.stop()).await;
    ended.cancel();
    Ok(())
}

/// Runs until `stop`, for callers that have signals of their own.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let app = App::start(config, Clock::System).await?;
    stop.cancelled().await;
    app.stop(std::future::pending()).await;
    Ok(())
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stop,
    Reload,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }

    /// A reload that is asked for while it stops is nothing.
    async fn stop(&mut self) {
        while self.next().await != Wish::Stop {}
    }
}

fn status(config: &Config, clock: &Clock) -> ServerStatus {
    ServerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: config.hostname.to_string(),
        started_at: clock.now(),
        listeners: Vec::new(),
    }
}

/// Nobody shall wonder why nothing leaves.
fn tell_suspended(queue: &Queue) {
    for (what, since) in queue.gates().suspended() {
        let since = rfc3339(since);
        match (&what, what.held_because()) {
            (Suspension::Target(_), Some(because)) => tracing::warn!(since, "mail is held: {because}"),
            _ => tracing::warn!(since, "{what} is suspended: mail for it is taken and waits until `postrider resume`"),
        }
    }
}

/// What the last run was about to release.
async fn finish_lifting(operator: Arc<Operator>) {
    for what in operator.queue.gates().lifting() {
        if let Err(error) = operator.release_for(&what).await {
            tracing::error!(%error, "what was held for {what} could not be released; resume it again");
        }
    }
}

/// Forgets what is old, once in a while.
async fn sweep(intake: Current<Intake>, clock: Clock, stop: CancellationToken) {
    loop {
        let (intake, now) = (intake.load(), clock.now());
        let (queue, keep) = (intake.queue(), intake.config().events.keep);
        let before = now.saturating_sub(keep.as_millis() as u64);
        if let Err(error) = forget_stories(queue, before).await {
            tracing::warn!(%error, "old stories could not be removed");
        }
        if let Err(error) = forget_counters(queue, now).await {
            tracing::warn!(%error, "old counters of the loop guard could not be removed");
        }
        if let Err(error) = intake.suppression().forget_expired().await {
            tracing::warn!(%error, "old entries of the suppression list could not be removed");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SWEEP_EVERY) => {}
        }
    }
}

async fn forget_stories(queue: &Queue, before: Millis) -> Result<(), StoreError> {
    queue.commit(journal::forget(queue.store(), before)?, false).await
}

/// Counters of the loop guard that nobody needs any more, a slice at a time.
async fn forget_counters(queue: &Queue, now: Millis) -> Result<(), StoreError> {
    let mut from = Vec::new();
    loop {
        let mut batch = Batch::new();
        let mut seen = 0;
        for entry in queue.store().range(Table::Loops, &from, &[0xff; 64])?.take(SWEEP_SLICE) {
            let (key, value) = entry?;
            if loops::is_expired(&value, now) {
                batch.delete(Table::Loops, key.clone());
            }
            from = [&key, [0].as_slice()].concat();
            seen += 1;
        }
        if !batch.is_empty() {
            queue.commit(batch, false).await?;
        }
        if seen < SWEEP_SLICE {
            return Ok(());
        }
        tokio::task::yield_now().await;
    }
}
