//! Which way out a job takes, decided when it is due, so that a changed configuration applies to what
//! is queued already.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Millis};
use crate::config::targets::LmtpAddress;
use crate::config::{Config, SmartHostTls, Target, WayOut};
use crate::dns::Resolver;
use crate::message::{Address, Domain, TlsWish};
use crate::queue::Queue;
use crate::queue::record::{Failure, Recipient, Route};
use crate::routing::capture::{self, Answer};
use crate::routing::inbound::{self, Delivery, Resolution, resolve};
use crate::routing::outbound::{self, Choice, Way};
use crate::routing::srs;
use crate::secret::Marks;
use crate::smtp::Reply;

use super::archive::Archive;
use super::file::Files;
use super::graph::Graph;
use super::host_test::{NoTest, Report, Wish};
use super::http::ClientError;
use super::https::Https;
use super::maildir::Maildir;
use super::oauth::{Tokens, TokensError};
use super::paused::Pauses;
use super::pipe::Pipe;
use super::shelf::Shelf;
use super::smart_hosts::{SmartHosts, tls_mode};
use super::smtp::{HostTarget, Network, Prospect, SetupError, SmtpTransport, Timeouts, TlsPolicies};
use super::tls_report::Tally;
use super::webhook::{Webhook, WebhookError};
use super::{Job, Outcome};

/// A target that is set up.
#[derive(Debug)]
pub(super) enum TargetTransport {
    Webhook(Box<Webhook>),
    Maildir(Maildir),
    Lmtp(LmtpAddress),
    Pipe(Pipe),
    File(Files),
    Smtp(Box<HostTarget>),
    Archive(Archive),
}

#[derive(Debug)]
pub struct Transports {
    config: Arc<Config>,
    clock: Clock,
    marks: Marks,
    resolver: Resolver,
    smtp: Arc<SmtpTransport>,
    /// Not those of RFC 5321.
    timeouts: Option<Timeouts>,
    smart_hosts: Arc<SmartHosts>,
    files: Files,
    tls: TlsKnowledge,
    targets: BTreeMap<String, Arc<TargetTransport>>,
    pauses: Pauses,
    /// The process is about to end: whoever waits for the verdict on a message gives it up, so that it is noted.
    hurry: CancellationToken,
}

/// What is known of TLS at other servers.
#[derive(Clone, Debug)]
pub struct TlsKnowledge {
    pub policies: Arc<TlsPolicies>,
    pub tally: Arc<Tally>,
    pub https: Arc<Https>,
}

impl TlsKnowledge {
    fn new(config: &Config, resolver: Resolver, clock: &Clock, queue: &Arc<Queue>) -> TlsKnowledge {
        let https = Arc::new(Https::new(resolver.clone(), config.delivery.allow_private_addresses));
        let shelf = Shelf::new(queue.clone());
        let policies = TlsPolicies::new(&config.delivery, resolver, https.clone(), shelf.clone(), clock.clone());
        TlsKnowledge { policies: Arc::new(policies), tally: Arc::new(Tally::new(clock.clone(), shelf)), https }
    }
}

/// Why a way out cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    #[error(transparent)]
    Webhook(#[from] WebhookError),
    #[error(transparent)]
    Smtp(#[from] SetupError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Graph(#[from] ClientError),
    #[error("{}: the key for return paths: {source}", path.display())]
    Marks { path: PathBuf, source: std::io::Error },
}

impl SetUpError {
    /// The key that it is about.
    pub fn key(&self) -> Option<String> {
        match self {
            SetUpError::Webhook(error) => Some(format!("targets.{}", error.target())),
            SetUpError::Tokens(_) | SetUpError::Graph(_) => Some("smart_hosts".to_owned()),
            SetUpError::Smtp(_) | SetUpError::Marks { .. } => None,
        }
    }
}

impl Transports {
    /// `queue` is where what is known of other servers is kept.
    pub fn new(
        config: &Arc<Config>,
        resolver: Resolver,
        clock: &Clock,
        queue: &Arc<Queue>,
    ) -> Result<Transports, SetUpError> {
        let targets = set_up_all(config, clock, None)?;
        let tls = TlsKnowledge::new(config, resolver.clone(), clock, queue);
        let hurry = CancellationToken::new();
        let smtp = Arc::new(smtp(config, &resolver, &tls, None)?.hurried_by(hurry.clone()));
        let files = Files::new(&config.delivery.file_path);
        let tokens = Arc::new(Tokens::new(config, queue.clone(), clock.clone())?);
        let graph = Graph::new(config, tokens.clone(), clock.clone())?;
        let smart_hosts = Arc::new(SmartHosts::new(clock.clone(), queue.clone(), tokens, graph));
        let marks = Marks::open(&config.data_dir)
            .map_err(|source| SetUpError::Marks { path: config.data_dir.clone(), source })?;
        let pauses = Pauses::new(config.clone(), queue.clone());
        let (config, clock) = (config.clone(), clock.clone());
        let timeouts = None;
        Ok(Transports {
            config,
            clock,
            marks,
            resolver,
            smtp,
            timeouts,
            smart_hosts,
            files,
            tls,
            targets,
            pauses,
            hurry,
        })
    }

    /// Nobody waits any longer for what a server says of a message that it has: those tries end as unsure.
    pub fn hurry(&self) {
        self.hurry.cancel();
    }

    /// Those of another configuration. What has the same settings as here stays what it is, with its connections
    /// and all that it has learned. Nothing changes here before [`Transports::begin`].
    pub fn next(&self, config: &Arc<Config>, resolver: Resolver, queue: &Arc<Queue>) -> Result<Transports, SetUpError> {
        let before = &self.config;
        let targets = set_up_all(config, &self.clock, Some(self))?;
        let is_same_way = before.delivery == config.delivery && before.dns == config.dns;
        let tls = match is_same_way {
            true => self.tls.clone(),
            false => TlsKnowledge {
                tally: self.tls.tally.clone(),
                ..TlsKnowledge::new(config, resolver.clone(), &self.clock, queue)
            },
        };
        let is_same_smtp =
            is_same_way && before.hostname == config.hostname && before.destinations == config.destinations;
        let smtp = match is_same_smtp {
            true => self.smtp.clone(),
            false => Arc::new(smtp(config, &resolver, &tls, self.timeouts)?.hurried_by(self.hurry.clone())),
        };
        // They keep the tokens for mailboxes, too.
        let is_same_login = before.smart_hosts == config.smart_hosts && before.fetch == config.fetch;
        let smart_hosts = match is_same_login {
            true => self.smart_hosts.clone(),
            false => Arc::new(self.smart_hosts.next(config)?),
        };
        Ok(Transports {
            config: config.clone(),
            clock: self.clock.clone(),
            marks: self.marks.clone(),
            resolver,
            smtp,
            timeouts: self.timeouts,
            smart_hosts,
            files: Files::new(&config.delivery.file_path),
            tls,
            targets,
            pauses: self.pauses.next(config.clone()),
            hurry: self.hurry.clone(),
        })
    }

    /// These are used from now on, in place of those `before`.
    pub async fn begin(&self, before: &Transports) {
        self.pauses.begin();
        let host = |config: &Config, name: &str| config.smart_hosts.iter().find(|host| host.name == name).cloned();
        self.smart_hosts.wake(|name| host(&self.config, name) != host(&before.config, name));
        if !Arc::ptr_eq(&self.smtp, &before.smtp) {
            // Attempts under way go on; the connections that wait have nobody to wait for.
            before.smtp.close().await;
        }
    }

    /// Other time-outs of SMTP than those of RFC 5321.
    pub fn with_timeouts(self, timeouts: Timeouts) -> Transports {
        match smtp(&self.config, &self.resolver, &self.tls, Some(timeouts)) {
            Ok(smtp) => {
                let smtp = Arc::new(smtp.hurried_by(self.hurry.clone()));
                Transports { smtp, timeouts: Some(timeouts), ..self }
            }
            Err(_) => self,
        }
    }

    /// Delivers by SMTP over this network in place of TCP; what is left to chance hangs on `seed`. Not kept by
    /// [`Transports::next`].
    pub fn with_network(self, network: Arc<dyn Network>, seed: u64) -> Transports {
        match smtp(&self.config, &self.resolver, &self.tls, self.timeouts) {
            Ok(smtp) => Transports { smtp: Arc::new(smtp.with_network(network).with_seed(seed)), ..self },
            Err(_) => self,
        }
    }

    /// Tries a job; one outcome per recipient.
    pub async fn deliver(&self, job: &Job) -> Vec<(u32, Outcome)> {
        let Some((rest, mut outcomes)) = self.capture(job) else { return self.let_go(job).await };
        if !rest.recipients.is_empty() {
            outcomes.extend(self.let_go(&rest).await);
        }
        outcomes
    }

    async fn let_go(&self, job: &Job) -> Vec<(u32, Outcome)> {
        // The recipients of a job share their destination, hence their route.
        match job.recipients.first().map(|(_, recipient)| &recipient.route) {
            None => Vec::new(),
            Some(Route::Remote) if self.is_own(job) => self.route_again(job),
            Some(Route::Remote) => {
                let (allowed, mut outcomes) = self.stage(job);
                outcomes.extend(if allowed.recipients.is_empty() { Vec::new() } else { self.send(&allowed).await });
                outcomes
            }
            Some(route @ Route::Target(name)) => match self.redirect(route, job) {
                None => self.hand_over(name, job).await,
                Some((allowed, outcomes)) if allowed.recipients.is_empty() => outcomes,
                Some((allowed, mut outcomes)) => {
                    outcomes.extend(self.hand_over(name, &allowed).await);
                    outcomes
                }
            },
        }
    }
}

impl Transports {
    /// The job without the recipients that are captured, and what becomes of those. None: nobody is.
    fn capture(&self, job: &Job) -> Option<(Job, Vec<(u32, Outcome)>)> {
        if self.config.delivery.default != WayOut::Capture {
            return None;
        }
        let (mut rest, mut outcomes) = (Vec::new(), Vec::new());
        for (number, recipient) in &job.recipients {
            match capture::answer(&self.config, recipient) {
                Some(answer) => outcomes.push((*number, answered(answer, &recipient.address))),
                None => rest.push((*number, recipient.clone())),
            }
        }
        Some((Job { recipients: rest, ..job.clone() }, outcomes))
    }

    /// The job without the recipients that `redirect_all_to` keeps from their target, and what becomes of those:
    /// they were queued before the key was set, or on another server. None: nobody is.
    fn redirect(&self, route: &Route, job: &Job) -> Option<(Job, Vec<(u32, Outcome)>)> {
        if route.is_archive() {
            return None;
        }
        let places = inbound::only_places(&self.config)?;
        if places.iter().any(|(_, place)| place == route) {
            return None;
        }
        let is_left_alone = |recipient: &Recipient| {
            let meant = recipient.alias.as_ref().unwrap_or(&recipient.address);
            inbound::is_left_alone(&self.config, meant)
        };
        let (allowed, others): (Vec<_>, Vec<_>) =
            job.recipients.iter().cloned().partition(|(_, recipient)| is_left_alone(recipient));
        let outcomes = others.into_iter().map(|(number, _)| (number, Outcome::Rerouted(places.clone())));
        Some((Job { recipients: allowed, ..job.clone() }, outcomes.collect()))
    }

    /// To a target.
    async fn hand_over(&self, name: &str, job: &Job) -> Vec<(u32, Outcome)> {
        match self.targets.get(name).map(|target| &**target) {
            Some(TargetTransport::Webhook(webhook)) => {
                if let Some(held) = self.pauses.held(name, job) {
                    return held;
                }
                let mut outcomes = webhook.deliver(job).await;
                self.pauses.heed(name, &mut outcomes).await;
                outcomes
            }
            Some(TargetTransport::Maildir(maildir)) => maildir.deliver(job).await,
            Some(TargetTransport::Lmtp(address)) => self.smtp.deliver_lmtp(job, address).await,
            Some(TargetTransport::Pipe(pipe)) => pipe.deliver(job).await,
            Some(TargetTransport::File(files)) => files.deliver(job).await,
            Some(TargetTransport::Smtp(host)) => {
                self.smtp.deliver_through(job, std::slice::from_ref(host)).await.outcomes
            }
            Some(TargetTransport::Archive(archive)) => archive.deliver(job).await,
            None if Route::Target(name.to_owned()).is_archive() => {
                let why = Failure::local("5.3.5", name, "this [[archive]] is not in the configuration any more");
                all(job, &Outcome::Fail(why))
            }
            None => {
                let reason =
                    format!("there is no target {name} in the configuration any more; add [targets.{name}] or cancel");
                all(job, &Outcome::Defer { why: Failure::local("4.3.5", name, reason), not_before_secs: None })
            }
        }
    }

    /// Targets that are paused.
    /// For whoever else logs in with tokens.
    pub fn tokens(&self) -> &Tokens {
        self.smart_hosts.tokens()
    }

    pub fn pauses(&self) -> &Pauses {
        &self.pauses
    }

    /// The servers that take mail for a domain, in no order; none if that cannot be found out now.
    pub async fn exchangers(&self, domain: &Domain) -> Option<Vec<Domain>> {
        self.smtp.exchangers(domain).await
    }

    /// By the way out that its From and its stream lead to.
    async fn send(&self, job: &Job) -> Vec<(u32, Outcome)> {
        match self.choose(job).way {
            Way::Direct { envelope: None } => self.smtp.deliver(job).await,
            Way::Direct { envelope: Some(envelope) } => self.smtp.deliver_as(job, &envelope).await,
            Way::Hosts { hosts, .. } => self.smart_hosts.deliver(&self.smtp, job, &hosts).await,
            Way::File { envelope } => self.files.deliver_as(job, envelope.as_ref()).await,
            Way::Capture => all(job, &Outcome::Captured),
            Way::Nowhere => {
                let reason = match self.config.pinned(&job.message.stream) {
                    Some(host) => format!(
                        "the stream {} goes by smart_hosts.{host} only, which is not there or not active any more",
                        job.message.stream
                    ),
                    None => "delivery.default is \"smart_hosts\", and none of them is active".to_owned(),
                };
                all(job, &Outcome::Defer { why: Failure::local("4.3.5", "", reason), not_before_secs: None })
            }
        }
    }

    /// The envelope sender of what is forwarded. All recipients of a job have one: which of our domains it names
    /// makes no difference.
    fn forward_path(&self, job: &Job) -> Option<Address> {
        let now = self.clock.now();
        let mut recipients = job.recipients.iter().map(|(_, recipient)| recipient);
        recipients.find_map(|recipient| srs::return_path(&self.config, &self.marks, &job.message, recipient, now))
    }

    /// Where each recipient has a return path of its own, the dispatcher gives them one by one.
    fn choose(&self, job: &Job) -> Choice<'_> {
        let (config, message) = (&self.config, &job.message);
        // Those who are not have been captured.
        let released = job.recipients.iter().all(|(_, recipient)| recipient.released.is_some());
        match (self.forward_path(job), job.recipients.as_slice()) {
            (Some(path), _) => outbound::choose_forward(config, message, released, &path),
            (None, [(number, _)]) => outbound::choose_for_one(config, message, released, *number, &self.marks),
            _ => outbound::choose_for(config, message, released),
        }
    }

    /// The job without the recipients that `redirect_all_to` and `allow_recipients` keep from leaving,
    /// and what becomes of those. Intake has seen to most; these were queued before the keys were set, or
    /// on another server.
    fn stage(&self, job: &Job) -> (Job, Vec<(u32, Outcome)>) {
        let delivery = &self.config.delivery;
        let only = delivery.redirect_all_to.as_ref();
        let verdict = |recipient: &Recipient| match only {
            Some(only) if only.lookup_key() != recipient.address.lookup_key() => {
                Some(Outcome::Rerouted(vec![(only.clone(), Route::Remote)]))
            }
            _ => delivery.forbids(&recipient.address).map(Outcome::Held),
        };
        let (mut allowed, mut outcomes) = (Vec::new(), Vec::new());
        for (number, recipient) in &job.recipients {
            match verdict(recipient) {
                Some(outcome) => outcomes.push((*number, outcome)),
                None => allowed.push((*number, recipient.clone())),
            }
        }
        (Job { recipients: allowed, ..job.clone() }, outcomes)
    }

    /// Tests a smart host for a person.
    pub async fn test_host(&self, wish: &Wish) -> Result<Report, NoTest> {
        self.smart_hosts.test(&self.smtp, &self.config, wish).await
    }

    /// Where mail for a domain would go, and what is demanded of the servers there.
    pub async fn prospect(&self, domain: &Domain, wish: TlsWish) -> Prospect {
        self.smtp.prospect(domain, wish).await
    }

    /// Why and until when a smart host is left alone because of its login.
    pub fn resting(&self, smart_host: &str) -> Option<(Failure, Millis)> {
        self.smart_hosts.resting(smart_host)
    }

    pub fn tls(&self) -> &TlsKnowledge {
        &self.tls
    }

    /// Gives up what is kept for the next job, and writes down what was counted.
    pub async fn close(&self) {
        self.smtp.close().await;
        self.tls.tally.flush().await;
    }

    /// Mail for us is never sent out: it was held because nobody was named for the address.
    fn is_own(&self, job: &Job) -> bool {
        job.recipients.iter().any(|(_, recipient)| self.config.is_own(recipient.address.domain()))
    }

    fn route_again(&self, job: &Job) -> Vec<(u32, Outcome)> {
        let only = self.config.delivery.redirect_all_to.as_ref().map(Address::lookup_key);
        let is_only = |address: &Address| only.as_ref() == Some(&address.lookup_key());
        let outcome = |address: &Address| match resolve(&self.config, address) {
            // It would come back here, for ever.
            Resolution::Deliveries(found) if is_only(address) && found.iter().any(leaves) => {
                let reason = format!(
                    "delivery.redirect_all_to is <{address}>, and an alias leads from there to an address elsewhere: \
                     name that address, or give <{address}> a target"
                );
                Outcome::Defer { why: Failure::local("4.3.5", "", reason), not_before_secs: None }
            }
            Resolution::Deliveries(found)
                if found.iter().all(|delivery| delivery.hold.is_none() && !delivery.discard) =>
            {
                Outcome::Rerouted(found.into_iter().map(|delivery| (delivery.address, delivery.route)).collect())
            }
            _ => {
                let reason =
                    format!("<{address}> still leads nowhere: give it an alias in [aliases], or cancel the message");
                Outcome::Defer { why: Failure::local("4.3.5", "", reason), not_before_secs: None }
            }
        };
        job.recipients.iter().map(|(number, recipient)| (*number, outcome(&recipient.address))).collect()
    }
}

/// As by a server of the recipient's domain.
fn answered(answer: Answer, address: &Address) -> Outcome {
    let refused = |code, enhanced, text: String| Failure::refused(capture::DOMAIN, Reply::new(code, enhanced, text));
    match answer {
        Answer::Kept => Outcome::Captured,
        Answer::Complained => Outcome::Complained,
        Answer::Refused => {
            Outcome::Fail(refused(550, (1, 1), format!("<{address}>: no such mailbox, as this address stands for")))
        }
        Answer::Deferred => {
            let why = refused(450, (2, 1), format!("<{address}>: not now, as this address stands for"));
            Outcome::Defer { why, not_before_secs: None }
        }
    }
}

fn leaves(delivery: &Delivery) -> bool {
    delivery.route == Route::Remote
}

fn smtp(
    config: &Config,
    resolver: &Resolver,
    tls: &TlsKnowledge,
    timeouts: Option<Timeouts>,
) -> Result<SmtpTransport, SetupError> {
    let mut smtp = SmtpTransport::new(config, resolver.clone())?.with_policies(tls.policies.clone());
    if config.delivery.tls_rpt {
        smtp = smtp.with_tally(tls.tally.clone());
    }
    Ok(match timeouts {
        Some(timeouts) => smtp.with_timeouts(timeouts),
        None => smtp,
    })
}

/// The targets and archives of a configuration; as they are `before`, where nothing has changed for them.
fn set_up_all(
    config: &Arc<Config>,
    clock: &Clock,
    before: Option<&Transports>,
) -> Result<BTreeMap<String, Arc<TargetTransport>>, SetUpError> {
    let mut targets = BTreeMap::new();
    for (name, target) in &config.targets {
        let is_same = |before: &&Transports| {
            let private = |config: &Config| config.delivery.allow_private_addresses;
            let connects = matches!(target, Target::Webhook { .. });
            before.config.targets.get(name) == Some(target) && (!connects || private(&before.config) == private(config))
        };
        let known = before.filter(is_same);
        let known = known.and_then(|before| Some((before, before.targets.get(name)?)));
        let set_up = match known {
            Some((before, known)) => match &**known {
                TargetTransport::Webhook(webhook)
                    if before.config.domains != config.domains || before.config.aliases != config.aliases =>
                {
                    Arc::new(TargetTransport::Webhook(Box::new(webhook.with_config(config.clone()))))
                }
                TargetTransport::Pipe(pipe)
                    if before.config.domains != config.domains || before.config.aliases != config.aliases =>
                {
                    Arc::new(TargetTransport::Pipe(pipe.with_config(config.clone())))
                }
                TargetTransport::Maildir(_) if before.config.hostname != config.hostname => {
                    Arc::new(set_up(config, name, target, clock)?)
                }
                _ => known.clone(),
            },
            None => Arc::new(set_up(config, name, target, clock)?),
        };
        targets.insert(name.clone(), set_up);
    }
    for archive in &config.archive {
        if let Route::Target(name) = Route::archive(&archive.name) {
            let known = before.filter(|before| before.config.archive.contains(archive));
            let known = known.and_then(|before| before.targets.get(&name).cloned());
            let new = || Arc::new(TargetTransport::Archive(Archive::new(archive)));
            targets.insert(name, known.unwrap_or_else(new));
        }
    }
    Ok(targets)
}

pub(super) fn set_up(
    config: &Arc<Config>,
    name: &str,
    target: &Target,
    clock: &Clock,
) -> Result<TargetTransport, SetUpError> {
    Ok(match target {
        Target::Webhook { .. } => {
            let webhook = Webhook::new(name, target, &config.domains, clock.clone())?
                .allowing_private(config.delivery.allow_private_addresses)?;
            TargetTransport::Webhook(Box::new(webhook.with_aliases(config.clone())))
        }
        Target::Maildir { path } => TargetTransport::Maildir(Maildir::new(name, path, &config.hostname)),
        Target::Lmtp { address } => TargetTransport::Lmtp(address.clone()),
        Target::Pipe { command, timeout } => {
            TargetTransport::Pipe(Pipe::new(name, command, *timeout).with_aliases(config.clone()))
        }
        Target::File { path } => TargetTransport::File(Files::target(name, path)),
        Target::Smtp { host, port, tls } => TargetTransport::Smtp(Box::new(HostTarget {
            host: host.clone(),
            port: *port,
            tls: tls_mode(*tls),
            // Who asks for no more than "opportunistic" takes what is there.
            verify_certificate: matches!(tls, SmartHostTls::Required | SmartHostTls::Implicit),
            login: None,
            mail_from: None,
            debug: false,
        })),
    })
}

fn all(job: &Job, outcome: &Outcome) -> Vec<(u32, Outcome)> {
    job.recipients.iter().map(|(number, _)| (*number, outcome.clone())).collect()
}
