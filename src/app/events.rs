//! The operator's look at what has happened and what happens.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::operator::{Operator, blocking};
use crate::admin::events::{EventLine, EventsPage, EventsWish, LIMIT_MAX};
use crate::admin::{Complaint, Trouble};
use crate::events::live::{Seen, Watcher};
use crate::events::search::{self, Context, Query};
use crate::queue::Queue;

/// Who follows what happens, at once.
const FOLLOWERS_MAX: usize = 16;
/// Who waits for a message to be captured, at once: fewer than there are connections.
const WAITERS_MAX: usize = 128;
/// Lines made ahead for a follower; behind them [`crate::events::live`] keeps some.
const LINES_AHEAD: usize = 64;

/// Those who follow.
#[derive(Debug)]
pub struct Followers {
    free: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Followers {
    pub fn new(stop: CancellationToken) -> Followers {
        let free = Arc::new(Semaphore::new(FOLLOWERS_MAX));
        Followers { free, waiting: Arc::new(Semaphore::new(WAITERS_MAX)), stop }
    }

    /// How many wait.
    pub(super) fn waiting(&self) -> usize {
        WAITERS_MAX.saturating_sub(self.waiting.available_permits())
    }

    /// A place for one who waits for something, and what ends the wait. None: too many wait.
    pub(super) fn wait(&self) -> Option<(OwnedSemaphorePermit, CancellationToken)> {
        Some((self.waiting.clone().try_acquire_owned().ok()?, self.stop.clone()))
    }
}

impl Operator {
    pub(super) async fn search_events(&self, wish: EventsWish) -> Result<EventsPage, Complaint> {
        let (queue, query) = (self.queue.clone(), self.query(&wish)?);
        let limit = wish.limit.clamp(1, LIMIT_MAX);
        let page = blocking(move || search::search(queue.store(), &query, wish.before, limit)).await;
        let page = page.map_err(|Trouble(why)| Complaint::new(why, "try again; the server's log says more"))?;
        Ok(EventsPage { events: page.lines.into_iter().map(EventLine::from).collect(), next: page.next })
    }

    pub(super) fn follow_events(&self, wish: EventsWish) -> Result<Receiver<Bytes>, Complaint> {
        let query = self.query(&wish)?;
        let free = self.followers.free.clone().try_acquire_owned();
        let place = free.map_err(|_| {
            Complaint::new(format!("{FOLLOWERS_MAX} others follow already"), "end one of them, or look without follow")
        })?;
        let (lines, reader) = channel(LINES_AHEAD);
        let (watcher, queue, stop) = (self.journal.live().watch(), self.queue.clone(), self.followers.stop.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = show(watcher, &queue, &query, &lines) => {}
                () = lines.closed() => {}
            }
            drop(place);
        });
        Ok(reader)
    }

    fn query(&self, wish: &EventsWish) -> Result<Query, Complaint> {
        let intake = self.intake.load();
        let hosts = &intake.config().smart_hosts;
        let smart_host = match &wish.smart_host {
            None => None,
            Some(name) => Some(hosts.iter().find(|host| host.name == *name).map_or_else(
                || {
                    let what = format!("there is no smart host named {name:?}");
                    Err(Complaint::unknown(what, hosts.iter().map(|host| host.name.as_str())))
                },
                |host| Ok(host_names(host)),
            )?),
        };
        let query = Query { smart_host, account: wish.account.clone(), failed: wish.failed, ..Query::default() };
        Ok(Query { id: wish.id, about: wish.about.clone(), since: wish.since, ..query })
    }
}

/// What a smart host is called in stories.
fn host_names(host: &crate::config::SmartHost) -> Vec<String> {
    [host.name.clone(), host.host.to_string()].into_iter().filter(|name| !name.is_empty()).collect()
}

/// Until nobody reads any more.
async fn show(mut watcher: Watcher, queue: &Queue, query: &Query, lines: &Sender<Bytes>) {
    while let Some(seen) = watcher.next().await {
        let line = match seen {
            Seen::Lost(lost) => format!("{{\"lost\":{lost}}}\n"),
            Seen::Event(event) => {
                let (id, entry) = &*event;
                // A story that cannot be read now makes a line that says less.
                let context = search::context(queue.store(), *id).unwrap_or_default();
                match line(query, *id, context, entry) {
                    Some(line) => line,
                    None => continue,
                }
            }
        };
        if lines.send(Bytes::from(line)).await.is_err() {
            return;
        }
    }
}

fn line(
    query: &Query,
    id: crate::message::MessageId,
    context: Context,
    entry: &crate::events::Entry,
) -> Option<String> {
    if !query.takes(id, &context, entry) {
        return None;
    }
    let line = EventLine::from(search::Line { id, context, entry: entry.clone() });
    serde_json::to_string(&line).ok().map(|line| line + "\n")
}
