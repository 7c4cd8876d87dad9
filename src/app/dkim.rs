//! Sees DKIM keys through their life: a new one signs once its record is in DNS, an old one is done with once
//! nothing is queued that it may have signed. The states themselves are in `intake::sign::life`.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::dns::{DnsError, Resolver};
use crate::intake::sign::life::{self, State};
use crate::intake::sign::{SignError, Signer};
use crate::message::Domain;
use crate::queue::Queue;
use crate::queue::record::Status;
use crate::store::StoreError;

/// How often DNS is asked for the records of keys that wait, and the queue for what old ones have signed. The
/// first time is at the start.
pub const CHECK_EVERY: Duration = Duration::from_secs(5 * 60);

/// What looking after keys needs.
#[derive(Clone, Debug)]
pub struct Keeper {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub signer: Signer,
}

/// Why a look was in vain; the next one may do.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error(transparent)]
    Sign(#[from] SignError),
    #[error("the queue cannot be read: {0}")]
    Store(#[from] StoreError),
    #[error("the look was broken off")]
    BrokenOff,
}

/// A key that has changed its state.
pub type Change = (Domain, String, State);

/// Looks again and again, at the keys of the configuration that holds then.
pub async fn look_after(keeper: impl Fn() -> Keeper, stop: CancellationToken) {
    loop {
        match keeper().look().await {
            Ok(changes) => changes.iter().for_each(tell),
            Err(error) => tracing::warn!(%error, "DKIM keys could not be looked after; trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(CHECK_EVERY) => {}
        }
    }
}

impl Keeper {
    /// Reads what the command line has changed, asks DNS, and does what follows. Signs accordingly when it
    /// returns.
    pub async fn look(&self) -> Result<Vec<Change>, Trouble> {
        let keeper = self.clone();
        let is_changing = blocking(move || keeper.read()).await?;
        if !is_changing {
            return Ok(Vec::new());
        }
        let visible = self.visible().await;
        let keeper = self.clone();
        blocking(move || keeper.advance(&visible)).await
    }

    /// Gives whether a key waits for something.
    fn read(&self) -> Result<bool, Trouble> {
        if !self.signer.is_current(&self.config)? {
            self.signer.reload(&self.config)?;
        }
        Ok(self.config.domains.keys().any(|domain| self.signer.is_changing(domain)))
    }

    /// Names of waiting keys whose record is in DNS.
    async fn visible(&self) -> BTreeSet<String> {
        let all = self.config.domains.keys().flat_map(|domain| self.signer.standings(domain));
        let waiting: Vec<_> = all.filter(|key| matches!(key.state, State::Waiting { .. })).collect();
        if waiting.is_empty() {
            return BTreeSet::new();
        }
        // One of its own, without the answers of the last time in its cache.
        let resolver = match Resolver::new(&self.config.dns) {
            Ok(resolver) => resolver,
            Err(error) => {
                tracing::warn!(%error, "the records of DKIM keys that wait cannot be looked up");
                return BTreeSet::new();
            }
        };
        let mut visible = BTreeSet::new();
        for key in waiting {
            match resolver.txt(&key.name).await {
                Ok(texts) if life::is_among(&key.record, &texts) => {
                    visible.insert(key.name);
                }
                Ok(_) | Err(DnsError::NoSuchDomain) => {}
                Err(error) => tracing::warn!(name = key.name, %error, "the record of a DKIM key cannot be looked up"),
            }
        }
        visible
    }

    fn advance(&self, visible: &BTreeSet<String>) -> Result<Vec<Change>, Trouble> {
        let (oldest, now) = (self.oldest_queued()?, self.clock.now());
        let mut changes = Vec::new();
        for domain in self.config.domains.keys().filter(|domain| self.signer.is_changing(domain)) {
            let is_visible = |selector: &str| visible.contains(&format!("{selector}._domainkey.{domain}"));
            let changed =
                life::change(&self.config.data_dir, domain, |lives| Ok(lives.advance(is_visible, oldest, now)))?;
            changes.extend(changed.into_iter().map(|(selector, state)| (domain.clone(), selector, state)));
        }
        if !changes.is_empty() {
            self.signer.reload(&self.config)?;
        }
        Ok(changes)
    }

    /// When the oldest message came in that may still leave.
    fn oldest_queued(&self) -> Result<Option<Millis>, StoreError> {
        let mut oldest = None;
        self.queue.walk(None, |message, recipients| {
            if recipients.iter().all(|(_, recipient)| matches!(recipient.status, Status::Captured { .. })) {
                return ControlFlow::Continue(());
            }
            oldest = Some(message.received_at);
            ControlFlow::Break(())
        })?;
        Ok(oldest)
    }
}

fn tell((domain, selector, state): &Change) {
    match state {
        State::Signing => tracing::info!(%domain, selector, "the record of a new DKIM key is in DNS; it signs now"),
        State::Retired { .. } => tracing::info!(%domain, selector, "a DKIM key does not sign any more"),
        State::Done => tracing::info!(%domain, selector, "the record of an old DKIM key may be taken away"),
        State::Waiting { .. } => {}
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Trouble> + Send + 'static) -> Result<T, Trouble> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Trouble::BrokenOff))
}
