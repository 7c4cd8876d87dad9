//! Targets that are paused: they have answered 410 Gone, which says that they want nothing more.
//!
//! A pause is a suspension (`queue::suspend`), so it is kept, told of at each start, and lifted without
//! losing track of what was held for it. It ends when a person releases or retries one message that is
//! held for it, or when the target has another configuration, from a reload or the next start on: beside the suspension
//! stands a digest of what was configured when the answer came.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};

use super::{Job, Outcome};
use crate::config::Config;
use crate::config::targets::Target;
use crate::current::Current;
use crate::queue::Queue;
use crate::queue::record::Failure;
use crate::queue::suspend::Suspension;
use crate::store::{Batch, StoreError, Table};

/// In front of the names, in the table `Meta`.
const PREFIX: &str = "paused/";

fn key(name: &str) -> Vec<u8> {
    format!("{PREFIX}{name}").into_bytes()
}

/// What tells whether the target was changed. None for kinds that are never paused.
fn fingerprint(target: &Target) -> Option<Vec<u8>> {
    match target {
        Target::Webhook { url, format, .. } => {
            Some(digest(&SHA256, format!("{url} {format:?}").as_bytes()).as_ref().to_vec())
        }
        _ => None,
    }
}

/// Which targets are paused, shared by all attempts.
#[derive(Clone)]
pub struct Pauses {
    config: Arc<Config>,
    /// What holds for attempts that begin now.
    newest: Current<Config>,
    queue: Arc<Queue>,
}

impl std::fmt::Debug for Pauses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pauses")
    }
}

impl Pauses {
    pub fn new(config: Arc<Config>, queue: Arc<Queue>) -> Pauses {
        Pauses { newest: Current::from(config.clone()), config, queue }
    }

    /// For the targets of another configuration, which does not hold before [`Pauses::begin`].
    pub fn next(&self, config: Arc<Config>) -> Pauses {
        Pauses { config, newest: self.newest.clone(), queue: self.queue.clone() }
    }

    /// This is the newest configuration.
    pub fn begin(&self) {
        self.newest.set(self.config.clone());
    }

    /// What becomes of a job for a paused target, which is not tried.
    pub fn held(&self, name: &str, job: &Job) -> Option<Vec<(u32, Outcome)>> {
        if !self.queue.gates().is_target_paused(name) {
            return None;
        }
        let held = held(name);
        Some(job.recipients.iter().map(|(number, _)| (*number, held.clone())).collect())
    }

    /// Pauses the target, if it has asked for that in one of these outcomes. Where that cannot be written
    /// down, what would be held waits for its next turn.
    pub async fn heed(&self, name: &str, outcomes: &mut [(u32, Outcome)]) {
        let held = held(name);
        if outcomes.iter().all(|(_, outcome)| *outcome != held) {
            return;
        }
        match self.pause(name).await {
            Ok(true) => tracing::warn!(target_name = name, "a target has answered 410 Gone and is paused"),
            Ok(false) => {}
            Err(error) => {
                let reason = format!("the target has answered 410 Gone, and its pause cannot be written down: {error}");
                let why = Failure::local("4.3.0", name, reason);
                for (_, outcome) in outcomes.iter_mut().filter(|(_, outcome)| *outcome == held) {
                    *outcome = Outcome::Defer { why: why.clone(), not_before_secs: None };
                }
            }
        }
    }

    async fn pause(&self, name: &str) -> Result<bool, StoreError> {
        if let Some(now) = self.config.targets.get(name).and_then(fingerprint) {
            let mut batch = Batch::new();
            batch.put(Table::Meta, key(name), now);
            self.queue.commit(batch, true).await?;
        }
        let what = Suspension::Target(name.to_owned());
        let is_new = self.queue.suspend(&what).await?;
        // The answer was to a configuration that has been changed since: it is no pause for the new one.
        if self.newest.load().targets.get(name).and_then(fingerprint)
            != self.config.targets.get(name).and_then(fingerprint)
        {
            self.queue.lift(&what).await?;
            self.queue.lifted(&what).await?;
            return Ok(false);
        }
        Ok(is_new)
    }

    /// Lifts the pauses of targets whose configuration is not what it was, and names them. What was held for them
    /// is still to be released.
    pub async fn lift_outdated(&self) -> Result<Vec<Suspension>, StoreError> {
        let mut lifted = Vec::new();
        for (what, _) in self.queue.gates().suspended() {
            let Suspension::Target(name) = &what else { continue };
            let was = self.queue.store().get(Table::Meta, &key(name))?;
            let now = self.config.targets.get(name).and_then(fingerprint);
            if was.as_deref() != now.as_deref() && self.queue.lift(&what).await? {
                tracing::info!("{what} has another configuration: it is tried again");
                lifted.push(what);
            }
        }
        Ok(lifted)
    }
}

/// The outcome by which a transport asks for a pause.
pub(super) fn held(name: &str) -> Outcome {
    Outcome::Held(Suspension::target(name))
}
