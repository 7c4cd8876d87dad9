//! The operator's hands on what is captured: it is listed, read, waited for, sent for real, deleted; and what is
//! too old or too much goes by itself.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::operator::{Operator, blocking};
use crate::admin::captured::{Captured, CapturedFilter, CapturedPage, CapturedWish, Kept};
use crate::admin::{Complaint, Trouble};
use crate::clock::{Clock, Millis};
use crate::current::Current;
use crate::delivery::Body;
use crate::events::Event;
use crate::events::journal::Journal;
use crate::events::live::Seen;
use crate::intake::Intake;
use crate::message::{Address, MessageId, Notify};
use crate::queue::Queue;
use crate::queue::captured::{Bounds, beyond};
use crate::queue::record::{Recipient, Route, Status};
use crate::store::{Batch, StoreError};

/// Messages that are kept; when there are more, the oldest go.
pub const MESSAGES_MAX: u64 = 250_000;
/// The same in bytes.
pub const BYTES_MAX: u64 = 4 << 30;
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Messages deleted before it is looked how many are left.
const SLICE: usize = 1000;
/// Recipients deleted at once: their steps are synced together.
const DELETED_AT_ONCE: usize = 64;

impl Operator {
    pub(super) async fn captured_page(&self, wish: CapturedWish) -> Result<CapturedPage, Trouble> {
        let queue = self.queue.clone();
        blocking(move || select(&queue, &wish)).await
    }

    /// As [`Operator::captured_page`]; where nothing is like that, until something is, or the time is over.
    pub(super) async fn captured_within(
        &self,
        wish: CapturedWish,
        patience: Duration,
    ) -> Result<CapturedPage, Complaint> {
        let trouble = |Trouble(why)| Complaint::new(why, "try again; the server's log says more");
        let Some((_place, stop)) = self.followers.wait() else {
            return Err(Complaint::new("too many others wait already", "ask again without wait, or later"));
        };
        let end = Instant::now() + patience;
        // From here on nothing is missed.
        let mut watcher = self.journal.live().watch();
        loop {
            let page = self.captured_page(wish.clone()).await.map_err(trouble)?;
            if !page.messages.is_empty() {
                return Ok(page);
            }
            loop {
                let seen = tokio::select! {
                    () = stop.cancelled() => return Ok(page),
                    () = sleep_until(end) => return Ok(page),
                    seen = watcher.next() => seen,
                };
                match seen {
                    None => return Ok(page),
                    Some(Seen::Lost(_)) => break,
                    Some(Seen::Event(event)) if is_capture(&event.1.event) => {
                        let queue = self.queue.clone();
                        let found = blocking(move || listed(&queue, event.0)).await.map_err(trouble)?;
                        if found.is_some_and(|message| wish.filter.fits(&message)) {
                            break;
                        }
                    }
                    Some(Seen::Event(_)) => {}
                }
            }
        }
    }

    /// How many wait for something to be captured.
    pub fn waiters(&self) -> usize {
        self.followers.waiting()
    }

    pub(super) async fn captured_one(&self, id: MessageId) -> Result<Option<Kept>, Trouble> {
        let (Some(message), Some(shown)) = ({
            let queue = self.queue.clone();
            blocking(move || Ok((queue.message(id)?, listed(&queue, id)?))).await?
        }) else {
            return Ok(None);
        };
        let message = Arc::new(message);
        let read = async {
            let body = Body::stored(&self.queue, &message).await?;
            body.whole(0).await
        };
        match read.await {
            Ok(raw) => Ok(Some(Kept { message: shown, findings: message.findings.clone(), raw })),
            // It went while we read.
            Err(_) if matches!(self.queue.message(id), Ok(None)) => Ok(None),
            Err(error) => Err(Trouble::new(error)),
        }
    }

    /// Sends it for real: to those whom it was for, or to others, and then it stays. None: it is not captured.
    pub(super) async fn let_captured_go(&self, id: MessageId, to: Vec<Address>) -> Result<Option<usize>, Trouble> {
        let queue = self.queue.clone();
        let Some(message) = blocking(move || listed(&queue, id)).await? else { return Ok(None) };
        let mut released = 0;
        if to.is_empty() {
            for recipient in &message.recipients {
                released += usize::from(self.let_one_go(id, recipient.number).await?);
            }
            return Ok(Some(released));
        }
        for address in to {
            let now = self.clock.now();
            let mut telling = self.journal.begin();
            telling.tell(id, Event::Released { recipient: address.clone() });
            let recipient = sent_to(address, now);
            if self.queue.add(id, recipient, telling.take_batch()).await.map_err(Trouble::new)? {
                telling.log();
                released += 1;
            }
        }
        Ok(Some(released))
    }

    async fn let_one_go(&self, id: MessageId, number: u32) -> Result<bool, Trouble> {
        let (mut telling, now) = (self.journal.begin(), self.clock.now());
        let changed = self.queue.change(id, number, |_, before| {
            if !matches!(before.status, Status::Captured { .. }) {
                return None;
            }
            telling.tell(id, Event::Released { recipient: before.address.clone() });
            let after = Recipient {
                status: Status::Waiting { due: now },
                attempts: 0,
                last_failure: None,
                delay_notified: false,
                released: Some(now),
                ..before.clone()
            };
            Some((Some(after), telling.take_batch()))
        });
        let changed = changed.await.map_err(Trouble::new)?;
        if changed {
            telling.log();
        }
        Ok(changed)
    }

    /// False: it is not captured (any more).
    pub(super) async fn forget_captured(&self, id: MessageId) -> Result<bool, Trouble> {
        Ok(delete(&self.queue, Some(&self.journal), vec![id]).await.map_err(Trouble::new)? > 0)
    }

    /// Gives how many messages are gone.
    pub(super) async fn forget_all_captured(&self, filter: CapturedFilter) -> Result<usize, Trouble> {
        let (mut deleted, mut before) = (0, None);
        loop {
            let page = self.captured_page(CapturedWish { filter: filter.clone(), before, limit: SLICE }).await?;
            let ids = page.messages.iter().map(|message| message.id).collect();
            deleted += delete(&self.queue, Some(&self.journal), ids).await.map_err(Trouble::new)?;
            match page.next {
                Some(next) => before = Some(next),
                None => return Ok(deleted),
            }
        }
    }
}

/// Who gets a copy in place of those whom it was for. The sender is not told what becomes of that.
fn sent_to(address: Address, now: Millis) -> Recipient {
    Recipient {
        address,
        alias: None,
        route: Route::Remote,
        notify: Notify::Never,
        original: None,
        status: Status::Waiting { due: now },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: Some(now),
    }
}

/// Who complains is captured, too.
fn is_capture(event: &Event) -> bool {
    matches!(event, Event::Captured { .. } | Event::Complained { .. })
}

fn listed(queue: &Queue, id: MessageId) -> Result<Option<Captured>, StoreError> {
    let Some(message) = queue.message(id)? else { return Ok(None) };
    Ok(Captured::new(&message, &queue.recipients(id)?))
}

fn select(queue: &Queue, wish: &CapturedWish) -> Result<CapturedPage, StoreError> {
    let mut page = CapturedPage::default();
    queue.walk_captured(wish.before, |message, recipients| {
        let found = Captured::new(&message, &recipients).filter(|found| wish.filter.fits(found));
        let Some(found) = found else { return ControlFlow::Continue(()) };
        if page.messages.len() >= wish.limit {
            page.next = page.messages.last().map(|last| last.id);
            return ControlFlow::Break(());
        }
        page.messages.push(found);
        ControlFlow::Continue(())
    })?;
    Ok(page)
}

/// Takes captured recipients of these messages away; with a journal their stories say so. Gives the number of
/// messages of which something is gone.
async fn delete(queue: &Arc<Queue>, journal: Option<&Arc<Journal>>, ids: Vec<MessageId>) -> Result<usize, StoreError> {
    let (mut running, mut deleted) = (JoinSet::new(), 0);
    let count = |done: Option<Result<Result<bool, StoreError>, tokio::task::JoinError>>| match done {
        Some(Ok(done)) => done.map(usize::from),
        Some(Err(error)) => Err(StoreError::Failed(error.to_string())),
        None => Ok(0),
    };
    for id in ids {
        if running.len() >= DELETED_AT_ONCE {
            deleted += count(running.join_next().await)?;
        }
        running.spawn(delete_one(queue.clone(), journal.cloned(), id));
    }
    while !running.is_empty() {
        deleted += count(running.join_next().await)?;
    }
    Ok(deleted)
}

async fn delete_one(queue: Arc<Queue>, journal: Option<Arc<Journal>>, id: MessageId) -> Result<bool, StoreError> {
    let mut deleted = false;
    for (number, recipient) in queue.recipients(id)? {
        if !matches!(recipient.status, Status::Captured { .. }) {
            continue;
        }
        let mut telling = journal.as_ref().map(|journal| journal.begin());
        let changed = queue.change(id, number, |_, before| {
            if !matches!(before.status, Status::Captured { .. }) {
                return None;
            }
            let Some(telling) = &mut telling else { return Some((None, Batch::new())) };
            telling.tell(id, Event::Cancelled { recipient: before.address.clone() });
            Some((None, telling.take_batch()))
        });
        if changed.await? {
            deleted = true;
            if let Some(telling) = telling {
                telling.log();
            }
        }
    }
    Ok(deleted)
}

/// Takes away what is older than stories are kept, and the oldest of what is too much.
pub(super) async fn look_after(queue: Arc<Queue>, clock: Clock, intake: Current<Intake>, stop: CancellationToken) {
    loop {
        let keep = intake.load().config().events.keep;
        let keep = u64::try_from(keep.as_millis()).unwrap_or(Millis::MAX);
        let bounds = Bounds { since: clock.now().saturating_sub(keep), messages: MESSAGES_MAX, bytes: BYTES_MAX };
        match shorten(&queue, bounds).await {
            Ok(0) => {}
            Ok(messages) => {
                tracing::info!(messages, "captured messages were too old or too many, and are gone");
            }
            Err(error) => tracing::warn!(%error, "old captured messages could not be removed"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

/// Takes away what is beyond the bounds; gives how many messages are gone.
pub async fn shorten(queue: &Arc<Queue>, bounds: Bounds) -> Result<usize, StoreError> {
    let mut gone = 0;
    loop {
        let looked = queue.clone();
        let look = tokio::task::spawn_blocking(move || beyond(looked.store(), bounds, SLICE));
        let ids = look.await.map_err(|error| StoreError::Failed(error.to_string()))??;
        // What cannot be taken away is not tried for ever.
        let (more, deleted) = (ids.len() >= SLICE, delete(queue, None, ids).await?);
        gone += deleted;
        if !more || deleted == 0 {
            return Ok(gone);
        }
    }
}
