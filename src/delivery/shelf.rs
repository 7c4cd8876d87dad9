//! Small records kept between starts: what is known of other domains' TLS, what is to be reported.
//!
//! Promises: trouble with the store is told in the log and costs no mail; what cannot be read any more
//! is as good as not there. Without a queue (in tests of one part) nothing is kept.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::queue::Queue;
use crate::store::{Batch, Table};

/// In front of the keys.
const TLS: &str = "tls/";
const DMARC: &str = "dmarc/";

/// Records by a letter, which says of what kind they are, and a name.
#[derive(Clone, Default)]
pub struct Shelf {
    queue: Option<Arc<Queue>>,
    prefix: &'static str,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shelf")
    }
}

impl Shelf {
    /// For what is known of TLS.
    pub fn new(queue: Arc<Queue>) -> Shelf {
        Shelf { queue: Some(queue), prefix: TLS }
    }

    /// For DMARC reports.
    pub fn of_dmarc(queue: Arc<Queue>) -> Shelf {
        Shelf { queue: Some(queue), prefix: DMARC }
    }

    fn key(&self, kind: u8, name: &str) -> Vec<u8> {
        [self.prefix.as_bytes(), &[kind], name.as_bytes()].concat()
    }

    pub fn get<T: DeserializeOwned>(&self, kind: u8, name: &str) -> Option<T> {
        let read = self.queue.as_ref()?.store().get(Table::Meta, &self.key(kind, name));
        let shelf = self.prefix;
        let bytes =
            read.map_err(|error| tracing::warn!(%error, shelf, name, "a small record cannot be read")).ok()??;
        rmp_serde::from_slice(&bytes).ok()
    }

    /// Written with the next group.
    pub async fn put<T: Serialize>(&self, kind: u8, name: &str, record: &T) {
        self.write(self.batch(kind, name, Some(record))).await;
    }

    pub async fn forget(&self, kind: u8, names: &[String]) {
        let mut batch = Batch::new();
        for name in names {
            batch.delete(Table::Meta, self.key(kind, name));
        }
        self.write(batch).await;
    }

    /// What puts the record there, or takes it away, together with something else.
    pub fn batch<T: Serialize>(&self, kind: u8, name: &str, record: Option<&T>) -> Batch {
        let mut batch = Batch::new();
        match record.and_then(|record| rmp_serde::to_vec_named(record).ok()) {
            Some(bytes) => batch.put(Table::Meta, self.key(kind, name), bytes),
            None => batch.delete(Table::Meta, self.key(kind, name)),
        }
        batch
    }

    async fn write(&self, batch: Batch) {
        if let Some(queue) = self.queue.as_ref().filter(|_| !batch.is_empty())
            && let Err(error) = queue.commit(batch, false).await
        {
            tracing::warn!(%error, shelf = self.prefix, "a small record cannot be written");
        }
    }

    /// All of a kind that can be read.
    pub fn all<T: DeserializeOwned>(&self, kind: u8) -> Vec<(String, T)> {
        let readable = |(name, value): (String, Box<[u8]>)| Some((name, rmp_serde::from_slice(&value).ok()?));
        self.entries(kind).filter_map(readable).collect()
    }

    /// The names of all of a kind, sorted.
    pub fn names(&self, kind: u8) -> Vec<String> {
        self.entries(kind).map(|(name, _)| name).collect()
    }

    fn entries(&self, kind: u8) -> impl Iterator<Item = (String, Box<[u8]>)> {
        let prefix = self.key(kind, "");
        let entries = self.queue.as_ref().and_then(|queue| queue.store().prefix(Table::Meta, &prefix).ok());
        entries.into_iter().flatten().filter_map(move |entry| {
            let (key, value) = entry.ok()?;
            let name = String::from_utf8(key.get(prefix.len()..)?.to_vec()).ok()?;
            Some((name, value))
        })
    }
}
