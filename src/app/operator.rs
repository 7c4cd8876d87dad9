//! What people can do to the running server over the admin socket.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::admin::{Action, Backend, Filter, Listed, Page, Pick, Selection, ServerStatus, Story, Trouble, view};
use crate::clock::Clock;
use crate::events::Event;
use crate::events::journal::{self, Journal};
use crate::intake::Intake;
use crate::message::{Address, Draft, MessageId};
use crate::queue::Queue;
use crate::queue::record::{Recipient, Status};
use crate::smtp::reply::Refusal;
use crate::store::StoreError;

/// Messages looked at between two changes, so that a change of a long queue holds little in memory.
const SLICE_MESSAGES: usize = 500;

/// The operator's hands.
#[derive(Debug)]
pub struct Operator {
    pub clock: Clock,
    pub queue: Arc<Queue>,
    pub journal: Arc<Journal>,
    pub intake: Arc<Intake>,
    pub status: ServerStatus,
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
            let message = match queue.message(id)? {
                Some(message) => {
                    let recipients = queue.recipients(id)?;
                    Some(Listed::new(&message, recipients.iter().map(|(number, recipient)| (*number, recipient))))
                }
                None => None,
            };
            let entries = journal::story(queue.store(), id)?;
            let known = message.is_some() || !entries.is_empty();
            Ok(known.then_some(Story { id, message, entries }))
        })
        .await
    }

    async fn change(&self, action: Action, selection: Selection) -> Result<usize, Trouble> {
        match selection.pick {
            Pick::Ids(ids, filter) => {
                let mut changed = 0;
                for id in ids {
                    let before = MessageId::from_u64(id.as_u64().saturating_sub(1));
                    let page = Page { limit: 1, after: Some(before) };
                    let mut found = self.list_of(Filter::default(), page).await?;
                    found.retain(|listed| listed.id == id);
                    let chosen =
                        found.into_iter().filter_map(|listed| filter.apply(listed, self.clock.now())).collect();
                    changed += self.change_all(action, chosen, selection.dry_run).await?;
                }
                Ok(changed)
            }
            Pick::Matching(filter) => {
                let (mut changed, mut after) = (0, None);
                loop {
                    let slice = self.list_of(filter.clone(), Page { limit: SLICE_MESSAGES, after }).await?;
                    let Some(last) = slice.last() else { return Ok(changed) };
                    after = Some(last.id);
                    changed += self.change_all(action, slice, selection.dry_run).await?;
                }
            }
        }
    }

    async fn submit(&self, draft: Draft) -> Result<MessageId, Refusal> {
        self.intake.sender(None, &draft.envelope.mail_from, Some(draft.content.len()))?;
        self.intake.accept(draft).await.map(|accepted| accepted.id)
    }

    async fn status(&self) -> ServerStatus {
        self.status.clone()
    }
}

impl Operator {
    async fn list_of(&self, filter: Filter, page: Page) -> Result<Vec<Listed>, Trouble> {
        self.list(filter, page).await
    }

    async fn change_all(&self, action: Action, chosen: Vec<Listed>, dry_run: bool) -> Result<usize, Trouble> {
        let mut changed = 0;
        for listed in chosen {
            for recipient in listed.recipients.iter().filter(|recipient| action.fits(recipient.status)) {
                if dry_run || self.change_one(action, listed.id, recipient).await? {
                    changed += 1;
                }
            }
        }
        Ok(changed)
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

fn select(queue: &Queue, filter: &Filter, page: Page, now: u64) -> Result<Vec<Listed>, StoreError> {
    let mut chosen = Vec::new();
    queue.walk(page.after, |message, recipients| {
        let listed = Listed::new(&message, recipients.iter().map(|(number, recipient)| (*number, recipient)));
        chosen.extend(filter.apply(listed, now));
        if chosen.len() < page.limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(chosen)
}

/// The recipient's next state; none if it goes.
fn after(action: Action, before: &Recipient, now: u64) -> Option<Recipient> {
    let status = match action {
        Action::Retry | Action::Release => Status::Waiting { due: now },
        Action::Hold => Status::Held { reason: "by the operator".into() },
        Action::Cancel => return None,
    };
    Some(Recipient { status, ..before.clone() })
}

fn event(action: Action, before: &Recipient) -> Option<Event> {
    let recipient: Address = before.address.clone();
    match action {
        Action::Retry | Action::Release if matches!(before.status, Status::Held { .. }) => {
            Some(Event::Released { recipient })
        }
        Action::Retry | Action::Release => None,
        Action::Hold => Some(Event::Held { recipient, reason: "by the operator".into() }),
        Action::Cancel => Some(Event::Cancelled { recipient }),
    }
}

async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Trouble> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|_| Trouble::new("the look into the store was broken off"))?.map_err(Trouble::new)
}
