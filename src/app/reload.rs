//! Takes another configuration, whole or not at all. All that it asks for is made beside what runs (files read,
//! certificates and keys loaded, ports bound); only when nothing is left that can fail it takes the place of the old
//! one. A message is judged by the configuration that held when it began, an attempt by the one that held when it
//! started; what is counted, open or under way goes on.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::{Mutex, Semaphore};

use super::doors::{Doors, NextDoors, forget_senders};
use super::operator::Operator;
use super::outside::Behind;
use super::watch::Watch;
use super::{Error, store_path};
use crate::admin::Complaint;
use crate::admin::reload::{ReloadAnswer, ReloadResult};
use crate::clock::Clock;
use crate::config::{self, Change, ChangeKind, Config, Log, Problem, ProblemKind, Target};
use crate::current::Current;
use crate::delivery::dispatch::{Changes, Parts};
use crate::delivery::receipts::Receipts;
use crate::delivery::settle::Settler;
use crate::delivery::transport::Transports;
use crate::dns::Resolver;
use crate::events::journal::Journal;
use crate::events::server::ServerEvent;
use crate::intake::Intake;
use crate::intake::sign::{SignError, Signer};
use crate::queue::Queue;
use crate::server::outside::Shared;
use crate::server::tls::TlsError;

/// Changes and problems that get a line of the log each.
const LOGGED_MAX: usize = 100;

/// What sets how much is logged.
pub type SetLog = Box<dyn Fn(&Log) -> Result<(), String> + Send + Sync>;

pub struct Reloader {
    pub(super) clock: Clock,
    pub(super) queue: Arc<Queue>,
    pub(super) journal: Arc<Journal>,
    pub(super) watch: Arc<Watch>,
    pub(super) doors: Doors,
    pub(super) intake: Current<Intake>,
    pub(super) transports: Current<Transports>,
    pub(super) noting: Arc<Semaphore>,
    pub(super) receipts: Arc<Receipts>,
    pub(super) dispatcher: Changes,
    /// Who holds this.
    pub(super) operator: Weak<Operator>,
    pub(super) set_log: OnceLock<SetLog>,
    /// One at a time.
    pub(super) one: Mutex<()>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reloader")
    }
}

/// All that a configuration asks for, ready to be used.
struct Next {
    config: Arc<Config>,
    intake: Arc<Intake>,
    shared: Arc<Shared<Behind>>,
    transports: Arc<Transports>,
    doors: NextDoors,
    has_other_certificate: bool,
}

impl Reloader {
    /// The configuration that holds.
    pub fn config(&self) -> Arc<Config> {
        self.intake.load().config().clone()
    }

    /// Reads the configuration again. It holds from now on if all of it can; else nothing has changed.
    pub async fn reload(self: &Arc<Self>) -> Result<ReloadAnswer, Complaint> {
        let _one = self.one.lock().await;
        let stopping = || Complaint::new("the server is stopping", "start it again");
        let operator = self.operator.upgrade().filter(|_| !self.doors.stop.is_cancelled()).ok_or_else(stopping)?;
        let (this, before) = (self.clone(), self.config());
        let prepared = {
            let before = before.clone();
            tokio::task::spawn_blocking(move || this.prepare(&before)).await
        };
        let answer = match prepared {
            Ok(Ok(next)) if *next.config == *before && !next.has_other_certificate => unchanged(&before),
            Ok(Ok(next)) => self.begin(&before, next, &operator).await,
            Ok(Err(problems)) => ReloadAnswer::refused(problems),
            Err(_) => return Err(Complaint::new("the reload was broken off", "the server's log says more")),
        };
        self.tell(&answer);
        Ok(answer)
    }

    fn prepare(&self, before: &Config) -> Result<Next, Vec<Problem>> {
        let read = config::load(&before.source.file);
        let config = Arc::new(read.map_err(|problems| problems.iter().cloned().collect::<Vec<_>>())?);
        let fixed = needing_a_restart(before, &config);
        if !fixed.is_empty() {
            return Err(fixed);
        }
        self.make(before, &config).map_err(|error| vec![problem_of(&error, &config)])
    }

    fn make(&self, before: &Config, config: &Arc<Config>) -> Result<Next, Error> {
        let (intake, shared) = (self.intake.load(), self.doors.shared.load());
        let failed = |source| Error::Store { path: store_path(config), source };
        let tls = shared.tls.next(config)?;
        let has_other_certificate = tls.shows_other_than(&shared.tls);
        let signer = Signer::load(config)?;
        let resolver = match before.dns == config.dns {
            true => intake.resolver().clone(),
            false => Resolver::new(&config.dns)?,
        };
        let transports = Arc::new(self.transports.load().next(config, resolver.clone(), &self.queue)?);
        let intake = Arc::new(intake.next(config.clone(), resolver.clone(), signer).map_err(failed)?);
        let behind = Behind { intake: intake.clone(), refusals: shared.outside.refusals.clone() };
        let shared = shared.next(config.clone(), tls, behind)?;
        let doors = self.doors.prepare(config, &resolver, &self.journal.outbox())?;
        // Last: it leaves a trace in the store, though one without an effect.
        self.queue.add_streams(&config.streams).map_err(failed)?;
        Ok(Next { config: config.clone(), intake, shared, transports, doors, has_other_certificate })
    }

    async fn begin(&self, before: &Config, next: Next, operator: &Arc<Operator>) -> ReloadAnswer {
        let Next { config, intake, shared, transports, doors, has_other_certificate } = next;
        let mut changes = config.source.changes(&before.source);
        changes.extend(certificate_change(&config, &changes, has_other_certificate));
        if let Err(error) = self.queue.configure_streams(&config.streams) {
            // Only what was kept of a stream's pace could not be read, which only a broken store does.
            tracing::error!(%error, "what streams may send could not be changed; reload again");
        }
        self.journal.renew(config.events.log, doors.outbox.clone());
        // Who delivers knows the new targets before anybody takes mail for them.
        let before_transports = self.transports.load();
        self.dispatcher.take(self.parts(&config, &intake, &transports));
        self.transports.set(transports.clone());
        self.intake.set(intake);
        self.doors.shared.set(shared);
        let gone = self.doors.begin(doors, &config, operator);
        forget_senders(&self.queue, gone).await;
        let (taken, old) = (transports.clone(), before_transports);
        self.doors.tasks.spawn(async move { taken.begin(&old).await });
        self.lift_outdated(&transports, operator).await;
        if let Some(set_log) = self.set_log.get()
            && let Err(error) = set_log(&config.log)
        {
            tracing::warn!(error, "log.level could not be changed");
        }
        let result = if changes.is_empty() { ReloadResult::Unchanged } else { ReloadResult::Applied };
        let warnings = config.warnings.iter().cloned().chain(confined_programs(before, &config)).collect();
        ReloadAnswer { result, changes, warnings, problems: Vec::new() }
    }

    fn parts(&self, config: &Arc<Config>, intake: &Arc<Intake>, transports: &Arc<Transports>) -> Arc<Parts> {
        let settler = Settler {
            config: config.clone(),
            clock: self.clock.clone(),
            journal: self.journal.clone(),
            intake: intake.clone(),
        };
        Arc::new(Parts {
            config: config.clone(),
            clock: self.clock.clone(),
            queue: self.queue.clone(),
            transports: transports.clone(),
            settler,
            noting: self.noting.clone(),
            receipts: self.receipts.clone(),
        })
    }

    /// Targets that were paused and are others now are tried again.
    async fn lift_outdated(&self, transports: &Transports, operator: &Operator) {
        let lifted = match transports.pauses().lift_outdated().await {
            Ok(lifted) => lifted,
            Err(error) => {
                return tracing::warn!(%error, "whether paused targets have another configuration cannot be seen");
            }
        };
        for what in lifted {
            if let Err(error) = operator.release_for(&what).await {
                tracing::error!(%error, "what was held for {what} could not be released; resume it again");
            }
        }
    }

    fn tell(&self, answer: &ReloadAnswer) {
        match answer.result {
            ReloadResult::Unchanged => tracing::debug!("the configuration was read again; nothing has changed"),
            ReloadResult::Applied => {
                let changes = &answer.changes;
                changes.iter().take(LOGGED_MAX).for_each(|change| tracing::info!("changed: {change}"));
                if changes.len() > LOGGED_MAX {
                    tracing::info!("changed: {} more", changes.len() - LOGGED_MAX);
                }
                answer.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            }
            ReloadResult::Refused => {
                answer.problems.iter().take(LOGGED_MAX).for_each(|problem| tracing::error!("{problem}"));
            }
        }
        match answer.result {
            ReloadResult::Applied => self.watch.tell(&ServerEvent::Reloaded { changes: answer.changes.len() }),
            ReloadResult::Refused => {
                self.watch.tell(&ServerEvent::ReloadRefused { problems: answer.problems.len() });
            }
            ReloadResult::Unchanged => {}
        }
        self.watch.reloaded(answer);
    }
}

fn unchanged(config: &Config) -> ReloadAnswer {
    let (changes, warnings) = (Vec::new(), config.warnings.clone());
    ReloadAnswer { result: ReloadResult::Unchanged, changes, warnings, problems: Vec::new() }
}

/// A server that starts without programs to run gives up rights that these would need (`cli::confine`), and cannot take
/// them back.
fn confined_programs(before: &Config, after: &Config) -> Option<String> {
    let runs = |config: &Config| config.targets.values().any(|target| matches!(target, Target::Pipe { .. }));
    let is_confined = rustix::thread::no_new_privs().unwrap_or(false);
    (is_confined && runs(after) && !runs(before)).then(|| {
        "the programs of pipe targets run as confined as the server, which has started without any: they gain no \
         rights (setuid), and cannot write into the system's folders; a restart lifts that"
            .to_owned()
    })
}

/// Keys that are built into what runs.
fn needing_a_restart(before: &Config, after: &Config) -> Vec<Problem> {
    let (queue, new_queue) = (&before.queue, &after.queue);
    let fixed = [
        ("data_dir", before.data_dir != after.data_dir),
        ("queue.durability", queue.durability != new_queue.durability),
        ("queue.memory", queue.memory != new_queue.memory),
        ("log.format", before.log.format != after.log.format),
    ];
    let problem = |(key, _): (&str, bool)| {
        let what = "this cannot be changed while the server runs".to_owned();
        let remedy = "Restart the server (`systemctl restart postrider`) to change it, or put the old value back.";
        placed(after, key, ProblemKind::NeedsRestart, what, remedy)
    };
    fixed.into_iter().filter(|(_, is_other)| *is_other).map(problem).collect()
}

/// What was written is right, and cannot be done here and now.
fn problem_of(error: &Error, config: &Config) -> Problem {
    const REMEDY: &str = "Nothing was changed.";
    if let Error::Tls(TlsError::Written { written, error }) = error {
        let (file, line, key) = (written.file.clone(), written.line, written.section.to_owned());
        let (what, remedy) = (error.to_string(), REMEDY.to_owned());
        return Problem { file, line, column: 0, key, what, remedy, kind: ProblemKind::Unusable };
    }
    if let Error::Sign(SignError::Written { file, line, key, error }) = error {
        let (file, line, key) = (file.clone(), *line, key.clone());
        let (what, remedy) = (error.to_string(), REMEDY.to_owned());
        return Problem { file, line, column: 0, key, what, remedy, kind: ProblemKind::Unusable };
    }
    let key = match error {
        Error::Tls(_) => "tls".to_owned(),
        Error::Dns(_) => "dns".to_owned(),
        Error::Listen(error) => format!("{}.bind", error.key),
        Error::Http(_) => "admin.bind".to_owned(),
        Error::Pickup { name, .. } => format!("pickup.{name}.path"),
        Error::WayOut(error) => error.key().unwrap_or_default(),
        Error::EventWebhook(error) => error.key(),
        Error::Sign(_) => "domains".to_owned(),
        _ => String::new(),
    };
    let what = error.to_string();
    placed(config, &key, ProblemKind::Unusable, what.trim_end_matches('.').to_owned(), REMEDY)
}

fn placed(config: &Config, key: &str, kind: ProblemKind, what: String, remedy: &str) -> Problem {
    let (file, line) = config.source.place(key);
    Problem { file, line, column: 0, key: key.to_owned(), what, remedy: remedy.to_owned(), kind }
}

/// The files are named as before, and hold something else.
fn certificate_change(config: &Config, changes: &[Change], is_other: bool) -> Option<Change> {
    let files = config.tls.as_ref().filter(|_| is_other)?;
    if changes.iter().any(|change| change.key.starts_with("tls.")) {
        return None;
    }
    Some(Change {
        key: "tls.certificate".to_owned(),
        what: ChangeKind::Changed,
        before: None,
        after: None,
        file: PathBuf::from(&files.certificate).display().to_string(),
        line: 0,
    })
}
