//! The doors that are open: listeners, pickup folders, mailboxes elsewhere, HTTP; the senders of event webhooks; and
//! who gets certificates from an authority. Another configuration is first prepared, which opens what is new and may fail, then begun, which
//! cannot: what is as before runs on, what is other is exchanged, what is gone is closed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::operator::Operator;
use super::outside::Behind;
use super::{Error, event_hooks, store_path};
use crate::admin::{Http, HttpError, ListenerStatus};
use crate::clock::Clock;
use crate::config::{self, Config, EventWebhook, PopTls, Role, Secret};
use crate::current::Current;
use crate::delivery::event_webhooks::Sender;
use crate::delivery::smtp::tls as smtp_tls;
use crate::dns::Resolver;
use crate::events::outbox::Outbox;
use crate::events::server::ServerCounters;
use crate::intake::fetch::{Fetcher, NextAccounts, TokenSource, Ways};
use crate::intake::{Intake, pickup};
use crate::queue::Queue;
use crate::server::acme::{self, Responder};
use crate::server::listener::{BindError, BoundListener, Handle, Listener};
use crate::server::outside::Shared;

/// What is open.
pub(super) struct Doors {
    pub shared: Current<Shared<Behind>>,
    pub intake: Current<Intake>,
    pub fetcher: Arc<Fetcher>,
    pub queue: Arc<Queue>,
    pub counters: Arc<ServerCounters>,
    pub clock: Clock,
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
    /// What can be connected to, for people.
    pub listeners: Current<Vec<ListenerStatus>>,
    pub pickups: Current<Vec<pickup::Handle>>,
    /// Bytes of a message.
    pub max_size: Current<u64>,
    pub open: Mutex<Open>,
}

#[derive(Default)]
pub(super) struct Open {
    listeners: Vec<Handle>,
    folders: Vec<OpenFolder>,
    senders: BTreeMap<String, OpenSender>,
    http: Option<OpenHttp>,
    certificates: Option<OpenCertificates>,
}

/// A task that can be stopped alone.
#[derive(Clone)]
struct Running {
    stop: CancellationToken,
    ended: CancellationToken,
}

struct OpenFolder {
    folder: pickup::Folder,
    handle: pickup::Handle,
    running: Running,
}

struct OpenSender {
    webhook: EventWebhook,
    /// `delivery.allow_private_addresses`.
    allow_private: bool,
    running: Running,
}

struct OpenHttp {
    bind: SocketAddr,
    address: SocketAddr,
    token: Current<Secret>,
    stop: CancellationToken,
}

struct OpenCertificates {
    config: Arc<Config>,
    responder: Responder,
    running: Running,
}

/// What is to be open.
pub(super) struct NextDoors {
    pub listeners: NextListeners,
    pub certificates: NextCertificates,
    pub folders: Vec<pickup::Folder>,
    pub outbox: Arc<Outbox>,
    pub senders: Vec<(String, Sender)>,
    pub http: Option<NextHttp>,
    pub fetch: NextAccounts,
    pub ways: Ways,
}

/// In the order of the configuration.
pub(super) struct NextListeners(Vec<NextListener>);

enum NextListener {
    Same { handle: Handle, name: String, settings: config::Listener },
    New(BoundListener),
}

pub(super) enum NextCertificates {
    Same,
    New(Option<Responder>),
}

pub(super) enum NextHttp {
    Same(Secret),
    New { http: Http, bind: SocketAddr, token: Secret },
}

impl Open {
    /// Opens every address that is not open yet, or none.
    pub fn next_listeners(&self, config: &Config) -> Result<NextListeners, BindError> {
        let mut rest: Vec<&Handle> = self.listeners.iter().collect();
        let mut next = Vec::new();
        for (name, settings) in &config.listeners {
            for address in &settings.bind {
                next.push(match rest.iter().position(|handle| handle.is(name, *address)) {
                    Some(at) => NextListener::Same {
                        handle: rest.swap_remove(at).clone(),
                        name: name.clone(),
                        settings: settings.clone(),
                    },
                    None => NextListener::New(Listener::bind_one(name, settings, *address)?),
                });
            }
        }
        Ok(NextListeners(next))
    }

    pub fn next_certificates(&self, config: &Config) -> Result<NextCertificates, BindError> {
        match &self.certificates {
            Some(open) if acme::is_same(&open.config, config) => Ok(NextCertificates::Same),
            open => Responder::next(open.as_ref().map(|open| &open.responder), config).map(NextCertificates::New),
        }
    }

    pub fn next_http(&self, config: &Config) -> Result<Option<NextHttp>, HttpError> {
        let Some(admin) = &config.admin else { return Ok(None) };
        if self.http.as_ref().is_some_and(|open| open.bind == admin.bind) {
            return Ok(Some(NextHttp::Same(admin.token.clone())));
        }
        Ok(Some(NextHttp::New { http: Http::bind(admin)?, bind: admin.bind, token: admin.token.clone() }))
    }

    /// Those that are not running with these settings already.
    pub fn next_senders(
        &self,
        config: &Config,
        outbox: &Outbox,
        queue: &Arc<Queue>,
        clock: &Clock,
    ) -> Result<Vec<(String, Sender)>, Error> {
        let mut senders = Vec::new();
        for tray in outbox.trays() {
            let Some(webhook) = config.events.webhooks.get(tray.name()) else { continue };
            let allow_private = config.delivery.allow_private_addresses;
            let is_same = |open: &OpenSender| open.webhook == *webhook && open.allow_private == allow_private;
            if !self.senders.get(tray.name()).is_some_and(is_same) {
                let sender = Sender::new(tray.clone(), webhook, queue.clone(), clock.clone(), allow_private)?;
                senders.push((tray.name().to_owned(), sender));
            }
        }
        Ok(senders)
    }
}

impl Doors {
    pub fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing in here panics half-way.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens what is new. Blocks on the disk; must be called within a runtime.
    pub fn prepare(&self, config: &Config, resolver: &Resolver, outbox: &Outbox) -> Result<NextDoors, Error> {
        let failed = |source| Error::Store { path: store_path(config), source };
        let outbox = Arc::new(outbox.next(self.queue.store(), &config.events.webhooks).map_err(failed)?);
        let before = self.fetcher.ways();
        let tokens = before.tokens.clone();
        let ways = ways(config, resolver, tokens, Some(&before));
        let fetch = self.fetcher.next(config).map_err(failed)?;
        let folders = pickup_folders(config)?;
        let open = self.lock();
        Ok(NextDoors {
            folders,
            senders: open.next_senders(config, &outbox, &self.queue, &self.clock)?,
            outbox,
            listeners: open.next_listeners(config)?,
            certificates: open.next_certificates(config)?,
            http: open.next_http(config)?,
            fetch,
            ways,
        })
    }

    /// These are open from now on. Gives the names of event webhooks that are gone.
    pub fn begin(&self, next: NextDoors, config: &Arc<Config>, operator: &Arc<Operator>) -> Vec<String> {
        let mut open = self.lock();
        self.max_size.set(Arc::new(config.limits.max_size));
        let mut listeners = self.begin_listeners(&mut open, next.listeners);
        listeners.extend(self.begin_certificates(&mut open, next.certificates, config));
        listeners.extend(self.begin_http(&mut open, next.http, operator));
        self.listeners.set(Arc::new(listeners));
        self.begin_folders(&mut open, next.folders);
        for name in self.fetcher.begin(next.fetch, next.ways) {
            self.tasks.spawn(self.fetcher.clone().watch(name));
        }
        next.outbox.begin(&config.events.webhooks);
        self.begin_senders(&mut open, next.senders, config)
    }

    fn begin_listeners(&self, open: &mut Open, NextListeners(next): NextListeners) -> Vec<ListenerStatus> {
        let before = std::mem::take(&mut open.listeners);
        for next in next {
            open.listeners.push(match next {
                NextListener::Same { handle, name, settings } => {
                    handle.renew(&name, &settings);
                    handle
                }
                NextListener::New(bound) => {
                    let handle = bound.handle();
                    self.tasks.spawn(bound.run(self.shared.clone(), self.stop.clone()));
                    handle
                }
            });
        }
        let is_gone = |handle: &&Handle| open.listeners.iter().all(|kept| !kept.is_same(handle));
        before.iter().filter(is_gone).for_each(Handle::close);
        let status = |handle: &Handle| ListenerStatus {
            name: handle.name().to_string(),
            role: role_name(handle.role()).to_owned(),
            address: handle.local_addr(),
        };
        open.listeners.iter().map(status).collect()
    }

    fn begin_certificates(
        &self,
        open: &mut Open,
        next: NextCertificates,
        config: &Arc<Config>,
    ) -> Option<ListenerStatus> {
        if let NextCertificates::New(responder) = next {
            let before = open.certificates.take().map(|before| before.running);
            before.iter().for_each(|before| before.stop.cancel());
            let before = before.into_iter().map(|before| before.ended).collect();
            let tls = self.shared.load().tls.clone();
            let keeper = acme::Keeper::new(config, tls, self.clock.clone(), self.counters.clone());
            if let (Some(keeper), Some(responder)) = (keeper, responder) {
                let answering = responder.clone();
                let running = self.run_after(before, |stop| keeper.run(answering, stop));
                open.certificates = Some(OpenCertificates { config: config.clone(), responder, running });
            }
        }
        let open = open.certificates.as_ref()?;
        let role = open.config.acme.as_ref()?.challenge.name().to_owned();
        Some(ListenerStatus { name: "tls.acme".to_owned(), role, address: open.responder.local_addr().ok()? })
    }

    fn begin_http(&self, open: &mut Open, next: Option<NextHttp>, operator: &Arc<Operator>) -> Option<ListenerStatus> {
        match next {
            Some(NextHttp::Same(token)) => {
                // Who is logged in by it stays so unless it is another.
                if let Some(http) = open.http.as_ref().filter(|http| *http.token.load() != token) {
                    http.token.set(Arc::new(token));
                }
            }
            next => {
                if let Some(gone) = open.http.take() {
                    gone.stop.cancel();
                }
                if let Some(NextHttp::New { http, bind, token }) = next {
                    let (address, token, stop) = (http.address(), Current::new(token), self.stop.child_token());
                    self.tasks.spawn(http.serve(operator.clone(), token.clone(), self.max_size.clone(), stop.clone()));
                    open.http = Some(OpenHttp { bind, address, token, stop });
                }
            }
        }
        let http = open.http.as_ref()?;
        Some(ListenerStatus { name: "admin".to_owned(), role: "http".to_owned(), address: http.address })
    }

    fn begin_folders(&self, open: &mut Open, next: Vec<pickup::Folder>) {
        let (same, gone): (Vec<OpenFolder>, Vec<OpenFolder>) =
            std::mem::take(&mut open.folders).into_iter().partition(|open| next.contains(&open.folder));
        gone.iter().for_each(|gone| gone.running.stop.cancel());
        let before: Vec<CancellationToken> = gone.into_iter().map(|gone| gone.running.ended).collect();
        open.folders = same;
        for folder in next {
            if open.folders.iter().any(|open| open.folder == folder) {
                continue;
            }
            let (task, handle) = pickup::Task::new(folder.clone(), self.intake.clone(), self.clock.clone());
            // One at a time may look into a folder.
            let running = self.run_after(before.clone(), |stop| task.run(stop));
            open.folders.push(OpenFolder { folder, handle, running });
        }
        self.pickups.set(Arc::new(open.folders.iter().map(|open| open.handle.clone()).collect()));
    }

    fn begin_senders(&self, open: &mut Open, next: Vec<(String, Sender)>, config: &Config) -> Vec<String> {
        for (name, sender) in next {
            let Some(webhook) = config.events.webhooks.get(&name) else { continue };
            let allow_private = config.delivery.allow_private_addresses;
            let before = open.senders.remove(&name).map(|before| before.running);
            before.iter().for_each(|before| before.stop.cancel());
            let before = before.into_iter().map(|before| before.ended).collect();
            let running = self.run_after(before, |stop| sender.run(stop));
            open.senders.insert(name, OpenSender { webhook: webhook.clone(), allow_private, running });
        }
        let mut gone = Vec::new();
        open.senders.retain(|name, sender| {
            let stays = config.events.webhooks.contains_key(name);
            if !stays {
                sender.running.stop.cancel();
                gone.push(name.clone());
            }
            stays
        });
        gone
    }

    fn run_after<F>(&self, before: Vec<CancellationToken>, task: impl FnOnce(CancellationToken) -> F) -> Running
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running = Running { stop: self.stop.child_token(), ended: CancellationToken::new() };
        let (task, ended) = (task(running.stop.clone()), running.ended.clone().drop_guard());
        self.tasks.spawn(async move {
            for before in before {
                before.cancelled().await;
            }
            task.await;
            drop(ended);
        });
        running
    }
}

/// Refused where anybody could replace what others have dropped.
pub(super) fn pickup_folders(config: &Config) -> Result<Vec<pickup::Folder>, Error> {
    pickup::make_maildrop(config)
        .map_err(|source| Error::DataDir { path: config.data_dir.join(pickup::MAILDROP), source })?;
    let named = config.pickup.keys().filter_map(|name| pickup::Folder::of(config, name));
    let folders: Vec<_> = named.chain(pickup::Folder::maildrop(config)).collect();
    match folders.iter().find_map(|folder| Some((folder, folder.refusal()?))) {
        None => Ok(folders),
        Some((folder, why)) => Err(Error::Pickup { name: folder.name.clone(), path: folder.path.clone(), why }),
    }
}

/// What mailboxes elsewhere are read with. Without authorities to trust, the server serves all the same. Blocks on
/// the disk.
pub(super) fn ways(
    config: &Config,
    resolver: &Resolver,
    tokens: Option<Arc<dyn TokenSource>>,
    before: Option<&Ways>,
) -> Ways {
    let needs_tls = config.fetch.values().any(|account| account.tls != PopTls::Off);
    let tls = match before.and_then(|before| before.tls.as_ref().ok()) {
        Some(known) => Ok(known.clone()),
        None => authorities(needs_tls),
    };
    Ways { resolver: resolver.clone(), tls, trail: None, tokens }
}

fn authorities(are_needed: bool) -> Result<TlsConnector, String> {
    if !are_needed {
        return Err("no mailbox needs it".to_owned());
    }
    smtp_tls::system_roots().and_then(|roots| smtp_tls::verified(roots).map_err(|error| error.to_string()))
}

/// What mailboxes are read with that have TLS in these ways.
pub async fn fetch_ways(mut modes: impl Iterator<Item = PopTls>, resolver: &Resolver) -> Ways {
    let needs_tls = modes.any(|tls| tls != PopTls::Off);
    let made = tokio::task::spawn_blocking(move || authorities(needs_tls)).await;
    let tls = made.unwrap_or_else(|error| Err(error.to_string()));
    Ways { resolver: resolver.clone(), tls, trail: None, tokens: None }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Mx => "mx",
        Role::Submission => "submission",
    }
}

/// What waits for webhooks that are gone is dropped.
pub(super) async fn forget_senders(queue: &Queue, gone: Vec<String>) {
    for webhook in gone {
        match queue.commit(event_hooks::forget(&webhook), false).await {
            Ok(()) => {
                tracing::warn!(webhook, "events that wait for this webhook are dropped: it is not configured any more")
            }
            Err(error) => {
                tracing::warn!(webhook, %error, "events that wait for this webhook are dropped at the next start")
            }
        }
    }
}
