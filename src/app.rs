//! The one place that builds the parts and joins them: start order, stop order, signals.
//!
//! Start: store, keys, certificate, then the doors, so that nothing is accepted before it can be
//! kept. Stop, on a signal: doors close and sessions end, attempts under way get
//! [`DRAIN_TIME`], then the committer writes what it has. A second signal stops at once; the queue
//! on disk is what it was (see the table in `queue::record`).

pub mod account_test;
mod alive;
pub mod captured;
pub mod dkim;
mod dmarc;
mod event_hooks;
mod events;
pub mod explain;
pub mod operator;
mod outside;
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

use crate::admin::{AdminSocket, Http, HttpError, ListenerStatus, ServerStatus, SocketError};
use crate::clock::{Clock, Millis, rfc3339};
use crate::config::{Config, Durability, PopTls, Role};
use crate::delivery::dispatch::{Dispatcher, NOTING_MAX, Parts};
use crate::delivery::dmarc_report;
use crate::delivery::event_webhooks::EventWebhookError;
use crate::delivery::receipts::Receipts;
use crate::delivery::settle::Settler;
use crate::delivery::smtp::tls as smtp_tls;
use crate::delivery::tls_report::Reports;
use crate::delivery::transport::{SetUpError, Transports};
use crate::dns::{DnsError, Resolver};
use crate::events::journal::{self, Journal};
use crate::intake::fetch::{Fetcher, Ways};
use crate::intake::sign::{SignError, Signer};
use crate::intake::{Intake, pickup};
use crate::queue::Queue;
use crate::queue::suspend::Suspension;
use crate::routing::loops;
use crate::server::accounts::AccountsError;
use crate::server::listener::{BindError, BoundListener, Listener};
use crate::server::outside::Shared;
use crate::server::tls::{ServerTls, TlsError};
use crate::store::{Batch, Store, StoreError, Table};

use dkim::Keeper;
use operator::{Logins, Operator};
use outside::Behind;
use transfer::Transfer;
use watch::Watch;

/// How long attempts under way may go on after the first signal.
pub const DRAIN_TIME: Duration = Duration::from_secs(30);
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
    #[error("signals cannot be received: {0}")]
    Signals(std::io::Error),
}

/// A running server.
pub struct App {
    operator: Arc<Operator>,
    /// Closes the doors and stops claiming.
    stop: CancellationToken,
    doors: TaskTracker,
    sessions: TaskTracker,
    attempts: TaskTracker,
    queue: Arc<Queue>,
    transports: Arc<Transports>,
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
        let store = open_store(&config)?;
        let folders = pickup_folders(&config)?;
        let signer = Signer::load(&config)?;
        let tls = ServerTls::load(&config)?;
        let resolver = Resolver::new(&config.dns)?;
        let bound = bind(&config)?;
        let socket = AdminSocket::bind(&config.data_dir)?;
        let http = config.admin.as_ref().map(Http::bind).transpose()?;

        let sync = config.queue.durability == Durability::Sync;
        let opened = Queue::with_streams(store, clock.clone(), sync, config.queue.memory, &config.streams);
        let (queue, fresh) = opened.map_err(|source| Error::Store { path: store_path(&config), source })?;
        let outbox = event_hooks::load(&config, &queue).await?;
        let senders = event_hooks::senders(&config, &outbox, &queue, &clock)?;
        let journal = Arc::new(Journal::with(clock.clone(), config.events.log, outbox));
        let transports = Arc::new(Transports::new(&config, resolver.clone(), &clock, &queue)?);
        let (door, keys) = (resolver.clone(), signer.clone());
        let intake = Intake::new(config.clone(), clock.clone(), queue.clone(), journal.clone(), door, keys);
        let intake = Arc::new(intake.map_err(|source| Error::Store { path: store_path(&config), source })?);
        let keeper = Keeper { config: config.clone(), clock: clock.clone(), queue: queue.clone(), signer };
        let status = status(&config, &clock, &bound, http.as_ref());
        let stop = CancellationToken::new();
        let watch = Arc::new(Watch::new(
            clock.clone(),
            queue.clone(),
            journal.clone(),
            intake.clone(),
            status.listeners.clone(),
            stop.clone(),
        ));
        let (behind, clock_there) =
            (Behind { intake: intake.clone(), refusals: watch.refusals.clone() }, clock.clone());
        let shared = Shared::new(config.clone(), tls, behind, clock_there)?;
        let logins =
            Logins { accounts: shared.accounts.clone(), limits: shared.limits.clone(), config: config.clone() };
        let made = folders.into_iter().map(|folder| pickup::Task::new(folder, intake.clone(), clock.clone()));
        let (pickup_tasks, pickups): (Vec<_>, Vec<_>) = made.unzip();
        let ways = fetch_ways(config.fetch.values().map(|account| account.tls), &resolver).await;
        let fetcher = Fetcher::new(intake.clone(), clock.clone(), ways, stop.clone());
        let fetcher = Arc::new(fetcher.map_err(|source| Error::Store { path: store_path(&config), source })?);
        let operator = Arc::new(Operator {
            logins,
            fetcher: fetcher.clone(),
            clock: clock.clone(),
            queue: queue.clone(),
            journal: journal.clone(),
            intake: intake.clone(),
            status,
            transfer: Transfer::new(clock.clone(), queue.clone(), journal.clone()),
            watch: watch.clone(),
            transports: transports.clone(),
            pickups,
            inquiry: OnceLock::new(),
            upkeep: Arc::default(),
            followers: events::Followers::new(stop.clone()),
        });

        if let Err(error) = transports.pauses().lift_outdated().await {
            tracing::warn!(%error, "whether paused targets have another configuration cannot be seen");
        }
        tell_suspended(&queue);
        let mut app = App {
            operator: operator.clone(),
            sessions: TaskTracker::new(),
            stop,
            doors: TaskTracker::new(),
            attempts: TaskTracker::new(),
            queue: queue.clone(),
            transports: transports.clone(),
        };
        let settler = Settler { config: config.clone(), clock: clock.clone(), journal, intake: intake.clone() };
        let noting = Semaphore::new(NOTING_MAX);
        let receipts = Receipts::open(&config.data_dir, |id, number| queue.holds(id, number));
        let parts =
            Parts { config: config.clone(), clock: clock.clone(), queue, transports, settler, noting, receipts };
        let parts = Arc::new(parts);
        let dispatcher = Dispatcher::new(parts, fresh);
        operator.inquiry.get_or_init(|| dispatcher.inquiry());
        app.doors.spawn(dispatcher.run(app.attempts.clone(), app.stop.clone()));
        for listener in bound {
            app.doors.spawn(listener.run(shared.clone(), app.stop.clone()));
        }
        app.sessions = shared.sessions.clone();
        for task in pickup_tasks {
            app.doors.spawn(task.run(app.stop.clone()));
        }
        for name in fetcher.names() {
            app.doors.spawn(fetcher.clone().watch(name));
        }
        let (max_size, stop) = (config.limits.max_size, app.stop.clone());
        app.doors.spawn(finish_lifting(operator.clone()));
        if let (Some(http), Some(admin)) = (http, config.admin.clone()) {
            app.doors.spawn(http.serve(operator.clone(), admin, max_size, stop.clone()));
        }
        app.doors.spawn(async move {
            if let Err(error) = socket.serve(operator, max_size, stop).await {
                tracing::error!(%error, "the admin socket has failed");
            }
        });
        let reports = Reports {
            config: config.clone(),
            clock: clock.clone(),
            resolver: resolver.clone(),
            https: app.transports.tls().https.clone(),
            tally: app.transports.tls().tally.clone(),
            intake: intake.clone(),
        };
        app.doors.spawn(tls::look_after(reports, app.transports.tls().policies.clone(), app.stop.clone()));
        let reports = dmarc_report::Reports::new(config.clone(), clock.clone(), resolver.clone(), intake.clone());
        app.doors.spawn(dmarc::look_after(reports, app.stop.clone()));
        app.doors.spawn(watch.run());
        app.doors.spawn(keeper.run(app.stop.clone()));
        app.doors.spawn(captured::look_after(app.queue.clone(), clock.clone(), config.events.keep, app.stop.clone()));
        app.doors.spawn(sweep(intake.clone(), clock, config.events.keep, app.stop.clone()));
        for sender in senders {
            app.doors.spawn(sender.run(app.stop.clone()));
        }
        app.doors.spawn(space::give_back(intake, app.queue.clone(), app.stop.clone()));
        Ok(app)
    }

    pub fn operator(&self) -> &Arc<Operator> {
        &self.operator
    }

    /// The doors that are open, with their real addresses.
    pub fn listeners(&self) -> &[ListenerStatus] {
        &self.operator.status.listeners
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
            self.transports.close().await;
        };
        const REPEATED: &str = "what is not finished is repeated at the next start";
        tokio::select! {
            () = drained => tracing::info!("stopped"),
            () = tokio::time::sleep(DRAIN_TIME) => {
                tracing::warn!("stopped after {} s of waiting; {REPEATED}", DRAIN_TIME.as_secs());
            }
            () = hurry => tracing::warn!("stopped at once; {REPEATED}"),
        }
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

/// Refused where anybody could replace what others have dropped.
fn pickup_folders(config: &Config) -> Result<Vec<pickup::Folder>, Error> {
    pickup::make_maildrop(config)
        .map_err(|source| Error::DataDir { path: config.data_dir.join(pickup::MAILDROP), source })?;
    let named = config.pickup.keys().filter_map(|name| pickup::Folder::of(config, name));
    let folders: Vec<_> = named.chain(pickup::Folder::maildrop(config)).collect();
    match folders.iter().find_map(|folder| Some((folder, folder.refusal()?))) {
        None => Ok(folders),
        Some((folder, why)) => Err(Error::Pickup { name: folder.name.clone(), path: folder.path.clone(), why }),
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Mx => "mx",
        Role::Submission => "submission",
    }
}

/// Starts, tells systemd, runs until SIGTERM or SIGINT, drains; a second signal stops at once.
pub async fn serve(config: Config) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let warnings = config.warnings.clone();
    let (hostname, data_dir) = (config.hostname.to_string(), config.data_dir.display().to_string());
    let app = App::start(config, Clock::System).await?;
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
    signals.next().await;
    tracing::info!("stopping: no new mail is taken, attempts under way may end; a second signal stops at once");
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    app.stop(signals.next()).await;
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

/// SIGTERM and SIGINT. SIGHUP, by which other servers reload, must not end this one.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP: reloading is not supported yet; restart to take a changed configuration");
                }
            }
        }
    }
}

/// Opens every address of every listener, or none.
fn bind(config: &Config) -> Result<Vec<BoundListener>, BindError> {
    let mut bound = Vec::new();
    for (name, settings) in &config.listeners {
        bound.extend(Listener::bind(name, settings)?);
    }
    Ok(bound)
}

/// What mailboxes elsewhere are read with. Without authorities to trust, the server serves all the same.
pub async fn fetch_ways(mut modes: impl Iterator<Item = PopTls>, resolver: &Resolver) -> Ways {
    let needs_tls = modes.any(|tls| tls != PopTls::Off);
    let roots = match needs_tls {
        true => {
            tokio::task::spawn_blocking(smtp_tls::system_roots).await.unwrap_or_else(|error| Err(error.to_string()))
        }
        false => Err("no mailbox needs it".to_owned()),
    };
    let tls = roots.and_then(|roots| smtp_tls::verified(roots).map_err(|error| error.to_string()));
    Ways { resolver: resolver.clone(), tls, trail: None }
}

fn status(config: &Config, clock: &Clock, bound: &[BoundListener], http: Option<&Http>) -> ServerStatus {
    let listener = |bound: &BoundListener| {
        Some(ListenerStatus {
            name: bound.name().to_owned(),
            role: role_name(config.listeners.get(bound.name())?.role).to_owned(),
            address: bound.local_addr().ok()?,
        })
    };
    let http =
        http.map(|http| ListenerStatus { name: "admin".to_owned(), role: "http".to_owned(), address: http.address() });
    ServerStatus {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hostname: config.hostname.to_string(),
        started_at: clock.now(),
        listeners: bound.iter().filter_map(listener).chain(http).collect(),
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
async fn sweep(intake: Arc<Intake>, clock: Clock, keep: Duration, stop: CancellationToken) {
    let queue = intake.queue();
    loop {
        let now = clock.now();
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
