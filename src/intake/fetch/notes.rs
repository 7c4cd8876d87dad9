//! What is remembered of mailboxes elsewhere, in the tables `Meta` and `Loops`.
//!
//! A note for each message that was dealt with, by (account, folder, UIDVALIDITY, UID) or (account, UIDL);
//! it decides whether a message is new, not a flag at the server, and goes once the message is gone there.
//! A mark for the content of each, for 30 days, by which messages are known again when the server has
//! numbered them anew. And how each account is doing.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::hashed;
use crate::clock::Millis;
use crate::routing::loops;
use crate::store::{Batch, Store, StoreError, Table};

/// In front of the keys in `Meta`: of accounts, and of messages.
const ACCOUNTS: &str = "fetch/a/";
const MESSAGES: &str = "fetch/m/";
/// Of the marks in the table of the loop guard, which sweeps them out.
const KIND_CONTENT: u8 = b'q';
/// How long the content of a message is known, in milliseconds.
const CONTENT_KEPT: Millis = 30 * 24 * 3600 * 1000;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Note {
    /// Queued. `applied`: it is marked, moved or deleted as well, if it is to be.
    Taken { applied: bool },
    /// It could not be taken, so often; and when to try again.
    Failed { tries: u32, not_before: Millis },
    /// It stays where it is.
    Left { why: String },
}

/// How an account is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub last_run: Option<Millis>,
    /// The last run that came to its end.
    pub last_success: Option<Millis>,
    pub last_error: Option<String>,
    pub failing_since: Option<Millis>,
    /// Runs in a row.
    pub failures: u32,
    pub next_run: Millis,
    /// It has failed for too long; nobody tries any more until a person does.
    pub is_inactive: bool,
    /// Messages, ever.
    pub fetched: u64,
    /// Messages that were given up, ever.
    pub left: u64,
    /// The folder that the rest is about.
    pub folder: String,
    pub validity: Option<u32>,
    /// Messages with UIDs below this one may have been fetched under another validity.
    pub compare_below: u32,
    pub pruned_at: Millis,
}

/// The notes of one account's folder.
#[derive(Clone, Debug)]
pub struct Notes<'a> {
    store: &'a Store,
    account: &'a str,
    prefix: Vec<u8>,
}

impl<'a> Notes<'a> {
    pub fn new(store: &'a Store, account: &'a str, folder: &str) -> Notes<'a> {
        // Neither name holds control characters.
        let prefix = format!("{MESSAGES}{account}\0{folder}\0").into_bytes();
        Notes { store, account, prefix }
    }

    fn key(&self, id: &[u8]) -> Vec<u8> {
        [&self.prefix, id].concat()
    }

    pub fn get(&self, id: &[u8]) -> Result<Option<Note>, StoreError> {
        let bytes = self.store.get(Table::Meta, &self.key(id))?;
        Ok(bytes.map(|bytes| read(&bytes)))
    }

    /// As [`Notes::get`], of many at once.
    pub fn get_many<'i>(&self, ids: impl Iterator<Item = &'i [u8]>) -> Result<Vec<Option<Note>>, StoreError> {
        let keys: Vec<Vec<u8>> = ids.map(|id| self.key(id)).collect();
        let found = self.store.get_many(Table::Meta, &keys).into_iter();
        found.map(|bytes| Ok(bytes?.map(|bytes| read(&bytes)))).collect()
    }

    pub fn put(&self, batch: &mut Batch, id: &[u8], note: &Note) {
        batch.put(Table::Meta, self.key(id), encode(note));
    }

    pub fn forget(&self, batch: &mut Batch, id: &[u8]) {
        batch.delete(Table::Meta, self.key(id));
    }

    /// All of them.
    pub fn forget_all(&self, batch: &mut Batch) {
        let mut end = self.prefix.clone();
        // The prefix ends with a zero byte.
        end.pop();
        end.push(1);
        batch.delete_range(Table::Meta, self.prefix.clone(), end);
    }

    /// The next messages of which there are notes, in order, behind `after`.
    pub fn ids(&self, after: &[u8], most: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut end = self.prefix.clone();
        end.pop();
        end.push(1);
        let from = [self.key(after), if after.is_empty() { Vec::new() } else { vec![0] }].concat();
        let mut ids = Vec::new();
        for entry in self.store.range(Table::Meta, &from, &end)?.take(most) {
            let (key, _) = entry?;
            ids.push(key.get(self.prefix.len()..).unwrap_or_default().to_vec());
        }
        Ok(ids)
    }

    /// Was a message with this content fetched lately?
    pub fn has_content(&self, content: &Print<'_>, now: Millis) -> Result<bool, StoreError> {
        let value = self.store.get(Table::Loops, &content.key(self.account))?;
        Ok(value.is_some_and(|value| !loops::is_expired(&value, now)))
    }

    pub fn put_content(&self, batch: &mut Batch, content: &Print<'_>, now: Millis) {
        batch.put(Table::Loops, content.key(self.account), loops::head(now.saturating_add(CONTENT_KEPT)));
    }
}

/// What a message is known by where its number means nothing.
#[derive(Clone, Copy, Debug)]
pub struct Print<'a> {
    pub message_id: &'a str,
    pub size: u64,
    pub hash: &'a [u8; 32],
}

impl Print<'_> {
    fn key(&self, account: &str) -> Vec<u8> {
        let hash = hashed(&[self.message_id.as_bytes(), b"\0", &self.size.to_be_bytes(), self.hash]);
        loops::key(KIND_CONTENT, &[account.as_bytes(), &hash])
    }
}

fn account_key(account: &str) -> Vec<u8> {
    format!("{ACCOUNTS}{account}").into_bytes()
}

/// What cannot be read any more is as good as not there.
pub fn load(store: &Store, account: &str) -> Result<State, StoreError> {
    let bytes = store.get(Table::Meta, &account_key(account))?;
    Ok(bytes.and_then(|bytes| decode(&bytes).ok()).unwrap_or_default())
}

pub fn save(batch: &mut Batch, account: &str, state: &State) {
    batch.put(Table::Meta, account_key(account), encode(state));
}

/// One that is damaged says that there was something: better left than twice.
fn read(bytes: &[u8]) -> Note {
    decode(bytes).unwrap_or_else(|error| Note::Left { why: error.to_string() })
}

fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    // Serializing these into memory cannot fail.
    rmp_serde::to_vec_named(record).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes).map_err(|error| StoreError::Damaged(format!("a note of a mailbox: {error}")))
}
