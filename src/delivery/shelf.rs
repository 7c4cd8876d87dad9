//! What is known of other domains' TLS, kept between starts.
//!
//! Promises: trouble with the store is told in the log and costs no mail; what cannot be read any more
//! is as good as not there. Without a queue (in tests of one part) nothing is kept.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::queue::Queue;
use crate::store::{Batch, Table};

/// In front of the keys.
const PREFIX: &[u8] = b"tls/";

/// Records by a letter, which says of what kind they are, and a name.
#[derive(Clone, Default)]
pub struct Shelf(Option<Arc<Queue>>);

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shelf")
    }
}

fn key(kind: u8, name: &str) -> Vec<u8> {
    [PREFIX, &[kind], name.as_bytes()].concat()
}

impl Shelf {
    pub fn new(queue: Arc<Queue>) -> Shelf {
        Shelf(Some(queue))
    }

    pub fn get<T: DeserializeOwned>(&self, kind: u8, name: &str) -> Option<T> {
        let read = self.0.as_ref()?.store().get(Table::Meta, &key(kind, name));
        let bytes =
            read.map_err(|error| tracing::warn!(%error, name, "what is known of TLS cannot be read")).ok()??;
        rmp_serde::from_slice(&bytes).ok()
    }

    /// Written with the next group.
    pub async fn put<T: Serialize>(&self, kind: u8, name: &str, record: &T) {
        self.write(self.batch(kind, name, Some(record))).await;
    }

    pub async fn forget(&self, kind: u8, names: &[String]) {
        let mut batch = Batch::new();
        for name in names {
            batch.delete(Table::Meta, key(kind, name));
        }
        self.write(batch).await;
    }

    /// What puts the record there, or takes it away, together with something else.
    pub fn batch<T: Serialize>(&self, kind: u8, name: &str, record: Option<&T>) -> Batch {
        let mut batch = Batch::new();
        match record.and_then(|record| rmp_serde::to_vec_named(record).ok()) {
            Some(bytes) => batch.put(Table::Meta, key(kind, name), bytes),
            None => batch.delete(Table::Meta, key(kind, name)),
        }
        batch
    }

    async fn write(&self, batch: Batch) {
        if let Some(queue) = self.0.as_ref().filter(|_| !batch.is_empty())
            && let Err(error) = queue.commit(batch, false).await
        {
            tracing::warn!(%error, "what is known of TLS cannot be written");
        }
    }

    /// All of a kind that can be read.
    pub fn all<T: DeserializeOwned>(&self, kind: u8) -> Vec<(String, T)> {
        let Some(queue) = &self.0 else { return Vec::new() };
        let Ok(entries) = queue.store().prefix(Table::Meta, &key(kind, "")) else { return Vec::new() };
        let readable = entries.filter_map(|entry| {
            let (key, value) = entry.ok()?;
            let name = String::from_utf8(key.get(PREFIX.len() + 1..)?.to_vec()).ok()?;
            Some((name, rmp_serde::from_slice(&value).ok()?))
        });
        readable.collect()
    }
}
