//! What happens, to those who watch: every event once it is written, through a bounded buffer. A watcher that
//! does not keep up loses the oldest and is told how many; nobody waits for one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::message::MessageId;

use super::Entry;

/// Events kept for the slowest watcher.
const BUFFER_EVENTS: usize = 1024;

/// Where events are given out.
#[derive(Debug)]
pub struct Live {
    events: broadcast::Sender<Arc<(MessageId, Entry)>>,
    watchers: Arc<AtomicUsize>,
}

/// What a watcher sees.
#[derive(Clone, Debug, PartialEq)]
pub enum Seen {
    Event(Arc<(MessageId, Entry)>),
    /// So many were missed.
    Lost(u64),
}

/// One who watches.
#[derive(Debug)]
pub struct Watcher {
    events: broadcast::Receiver<Arc<(MessageId, Entry)>>,
    watchers: Arc<AtomicUsize>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Live {
    fn default() -> Live {
        Live { events: broadcast::Sender::new(BUFFER_EVENTS), watchers: Arc::default() }
    }
}

impl Live {
    pub fn watch(&self) -> Watcher {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher { events: self.events.subscribe(), watchers: self.watchers.clone() }
    }

    /// Is there anybody? Asked for each event, so without a lock.
    pub(super) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    pub(super) fn show(&self, id: MessageId, entry: Entry) {
        // The last watcher may just have gone.
        let _ = self.events.send(Arc::new((id, entry)));
    }
}

impl Watcher {
    /// None: nothing will happen any more.
    pub async fn next(&mut self) -> Option<Seen> {
        match self.events.recv().await {
            Ok(event) => Some(Seen::Event(event)),
            Err(RecvError::Lagged(lost)) => Some(Seen::Lost(lost)),
            Err(RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::events::Event;
    use crate::message::Address;

    #[tokio::test]
    async fn who_is_slow_loses_the_oldest_and_is_told() {
        let live = Live::default();
        assert!(!live.is_watched());
        let mut watcher = live.watch();
        assert!(live.is_watched());
        let event = Event::Released { recipient: Address::parse("bob@example.net").unwrap() };
        for at in 0..BUFFER_EVENTS as u64 + 5 {
            live.show(MessageId::from_u64(1), Entry { at, event: event.clone() });
        }
        assert_eq!(watcher.next().await, Some(Seen::Lost(5)));
        let Some(Seen::Event(first)) = watcher.next().await else { unreachable!("an event comes after what is lost") };
        assert_eq!(first.1.at, 5);
        drop(watcher);
        assert!(!live.is_watched());
    }
}
