//! Lanes and places: by what the work is shared out.
//!
//! A lane is a stream's new mail or a stream's retries, and of both what keeps the stream's pace or what
//! does not ([`keeps_pace`]). Each lane has its own part of the due index and its own share of whatever
//! there is to hand out, so that none waits behind another: nobody outside can use up what an application
//! may send, and no copy for an archive waits for midnight. A place is where a delivery goes, as far as
//! turns are taken by it. Both are in the keys and values of the due
//! index, so what they are for a given recipient must not change without a new format.

use std::collections::BTreeMap;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;

use crate::message::stream::{self, STREAMS_MAX};
use crate::store::{Batch, Store, StoreError, Table};

use super::keys::DueKey;
use super::record::{Message, Recipient, Route};

/// Parts of a lane in the due index; a place is always in the same one. A long queue that is held up
/// costs time only in its own part.
pub const PARTS: usize = 64;
/// Entries of the due index that are moved to another lane in one batch.
const MOVED_AT_ONCE: usize = 1000;
/// Where in the meta table the slot of a stream is kept.
const META_PREFIX: &str = "stream/";
/// Turns of new mail for one turn of a retry of the same stream.
const NEW_FOR_RETRY: u32 = 3;
/// The lanes that keep their stream's pace come first, as many as there can be; then those that do not.
const PACED: u8 = 2 * STREAMS_MAX as u8;
/// All lanes that there can be.
pub const LANES_MAX: usize = 2 * PACED as usize;

/// A stream's new mail, or its retries. The first byte of a key of the due index; never zero, which is
/// how the keys of the first format begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(u8);

/// Do the limits of its stream (`streams.*.daily_limit`, `block_size`, `concurrency`) hold for this delivery?
/// For what a client of ours sends elsewhere: not for what comes in for a target, is forwarded, is kept in an
/// archive, or is a notice of our own.
pub fn keeps_pace(message: &Message, recipient: &Recipient) -> bool {
    goes_out(recipient) && message.origin.door.is_for_clients()
}

fn goes_out(recipient: &Recipient) -> bool {
    recipient.route == Route::Remote
}

impl Lane {
    fn new(slot: u8, is_retry: bool) -> Lane {
        Lane(1 + 2 * slot + u8::from(is_retry))
    }

    pub fn byte(self) -> u8 {
        self.0
    }

    pub fn from_byte(byte: u8) -> Option<Lane> {
        (byte > 0 && usize::from(byte) <= LANES_MAX).then_some(Lane(byte))
    }

    pub fn is_retry(self) -> bool {
        self.0.is_multiple_of(2)
    }

    /// Its place in a list of all lanes.
    pub fn index(self) -> usize {
        usize::from(self.0 - 1)
    }

    /// All lanes of a stream.
    pub(super) fn of(slot: u8) -> [Lane; 4] {
        let [new, retry] = [Lane::new(slot, false), Lane::new(slot, true)];
        [new, retry, new.unpaced(), retry.unpaced()]
    }

    pub(super) fn slot(self) -> u8 {
        (self.0 - 1) % PACED / 2
    }

    /// Do the limits of its stream hold for what is in it?
    pub fn is_paced(self) -> bool {
        self.0 <= PACED
    }

    /// The one beside it for which they do not.
    pub fn unpaced(self) -> Lane {
        if self.is_paced() { Lane(self.0 + PACED) } else { self }
    }
}

/// The streams, each with its slot. A slot is given once and kept in the store.
#[derive(Clone, Debug)]
pub struct Streams {
    slots: BTreeMap<String, u8>,
}

impl Streams {
    /// Those of the store; the built-in ones are added where they are missing.
    pub fn load(store: &Store) -> Result<Streams, StoreError> {
        let mut streams = Streams { slots: stored(store)? };
        streams.add(store, stream::BUILT_IN.into_iter())?;
        Ok(streams)
    }

    /// Those of the configuration. A stream that is there no more gives its slot back; what waits in its
    /// lanes goes over to the default one's. A crash half-way is gone over by the next start: the slot
    /// goes last.
    pub fn configure<'n>(store: &Store, names: impl Iterator<Item = &'n str> + Clone) -> Result<Streams, StoreError> {
        let mut streams = Streams::load(store)?;
        let is_gone = |name: &&String| !stream::BUILT_IN.contains(&name.as_str()) && names.clone().all(|n| n != *name);
        let gone: Vec<String> = streams.slots.keys().filter(is_gone).cloned().collect();
        for name in gone {
            let Some(slot) = streams.slots.remove(&name) else { continue };
            let moved = streams.move_to_default(store, slot)?;
            let mut batch = Batch::new();
            batch.delete(Table::Meta, meta_key(&name));
            store.write(&[batch], true)?;
            if moved > 0 {
                tracing::warn!(
                    stream = name,
                    moved,
                    to = stream::DEFAULT,
                    "its stream is not configured any more; it goes by another"
                );
            }
        }
        streams.add(store, names)?;
        Ok(streams)
    }

    fn move_to_default(&self, store: &Store, slot: u8) -> Result<usize, StoreError> {
        let mut moved = 0;
        for lane in Lane::of(slot) {
            let to = self.lane(stream::DEFAULT, u32::from(lane.is_retry()));
            let to = if lane.is_paced() { to } else { to.unpaced() };
            loop {
                let mut batch = Batch::new();
                let from = [lane.byte()];
                let entries = store.range(Table::Due, &from, &[lane.byte() + 1])?;
                let mut count = 0;
                for entry in entries.take(MOVED_AT_ONCE) {
                    let (key, value) = match entry {
                        Ok(entry) => entry,
                        // What was in there comes back when the index is made anew.
                        Err(StoreError::Damaged(_)) => continue,
                        Err(error) => return Err(error),
                    };
                    count += 1;
                    if let Ok(at) = DueKey::read(&key) {
                        batch.put(Table::Due, DueKey { lane: to, ..at }.to_bytes(), Bytes::copy_from_slice(&value));
                        moved += 1;
                    }
                    batch.delete(Table::Due, key);
                }
                if count == 0 {
                    break;
                }
                store.write(&[batch], false)?;
            }
        }
        Ok(moved)
    }

    /// With these besides. One that is not configured any more keeps its slot, and what waits in its lanes leaves from
    /// there, until the next start.
    pub fn with<'n>(&self, store: &Store, names: impl Iterator<Item = &'n str>) -> Result<Streams, StoreError> {
        let mut streams = self.clone();
        streams.add(store, names)?;
        Ok(streams)
    }

    fn add<'n>(&mut self, store: &Store, names: impl Iterator<Item = &'n str>) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for name in names {
            if self.slots.contains_key(name) {
                continue;
            }
            let slot = (0..STREAMS_MAX as u8).find(|slot| !self.slots.values().any(|taken| taken == slot));
            let slot = slot.ok_or_else(|| {
                StoreError::Damaged(
                    "meta: no slot is left for a stream; a restart frees those of streams that are gone".into(),
                )
            })?;
            self.slots.insert(name.to_owned(), slot);
            batch.put(Table::Meta, meta_key(name), vec![slot]);
        }
        if batch.is_empty() { Ok(()) } else { store.write(&[batch], true) }
    }

    /// Their names and slots.
    pub(super) fn slots(&self) -> impl Iterator<Item = (&str, u8)> {
        self.slots.iter().map(|(name, slot)| (name.as_str(), *slot))
    }

    /// Where a recipient of this message waits.
    pub fn lane_of(&self, message: &Message, recipient: &Recipient) -> Lane {
        self.lane_for(&message.stream, message.origin.door.is_for_clients(), recipient)
    }

    /// As [`Streams::lane_of`], by what of the message it is chosen by: its stream, and whether a client of ours
    /// sent it.
    pub(super) fn lane_for(&self, stream: &str, is_clients: bool, recipient: &Recipient) -> Lane {
        let lane = self.lane(stream, recipient.attempts);
        if is_clients && goes_out(recipient) { lane } else { lane.unpaced() }
    }

    /// For what keeps the stream's pace. A stream that nobody knows (any more) goes with the default one.
    pub fn lane(&self, name: &str, attempts: u32) -> Lane {
        let slot = self.slots.get(name).or_else(|| self.slots.get(stream::DEFAULT)).copied().unwrap_or(0);
        Lane::new(slot, attempts > 0)
    }

    /// All lanes that can hold something, in the order of their bytes.
    pub fn lanes(&self) -> Vec<Lane> {
        let mut lanes: Vec<Lane> = self.slots.values().flat_map(|slot| Lane::of(*slot)).collect();
        lanes.sort_unstable();
        lanes
    }

    /// How often a lane has its turn, beside the others.
    pub fn weight(&self, lane: Lane) -> u32 {
        let name = self.slots.iter().find(|(_, slot)| **slot == lane.slot()).map(|(name, _)| name.as_str());
        let stream = match name {
            Some("security") => 4,
            Some("bulk") => 1,
            _ => 2,
        };
        if lane.is_retry() { stream } else { stream * NEW_FOR_RETRY }
    }

    /// The weights of all lanes, by [`Lane::index`]; zero for those that there are not.
    pub fn weights(&self) -> Vec<u32> {
        let lanes = self.lanes();
        let mut weights = vec![0; lanes.last().map_or(0, |lane| lane.index() + 1)];
        for lane in lanes {
            if let Some(weight) = weights.get_mut(lane.index()) {
                *weight = self.weight(lane);
            }
        }
        weights
    }
}

fn meta_key(name: &str) -> Vec<u8> {
    [META_PREFIX, name].concat().into_bytes()
}

fn stored(store: &Store) -> Result<BTreeMap<String, u8>, StoreError> {
    let mut slots = BTreeMap::new();
    for entry in store.prefix(Table::Meta, META_PREFIX.as_bytes())? {
        let (key, value) = entry?;
        let damaged = || StoreError::Damaged(format!("meta/{}", String::from_utf8_lossy(&key)));
        let name = key.get(META_PREFIX.len()..).and_then(|name| std::str::from_utf8(name).ok());
        match (name, &*value) {
            (Some(name), [slot]) if usize::from(*slot) < STREAMS_MAX => slots.insert(name.to_owned(), *slot),
            _ => return Err(damaged()),
        };
    }
    Ok(slots)
}

/// Where a delivery goes: the first bytes of a digest, the same in every run, which nobody can choose
/// to be another's. What the due index keeps beside a key, so that whose turn it is not is passed over
/// without reading its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place([u8; 8]);

impl Place {
    pub fn of(recipient: &Recipient) -> Place {
        let (kind, name) = match &recipient.route {
            Route::Remote => (b'd', recipient.address.domain().as_str()),
            Route::Target(name) => (b't', name.as_str()),
        };
        let digest = digest(&SHA256, &[&[kind], name.as_bytes()].concat());
        Place(digest.as_ref().first_chunk().copied().unwrap_or_default())
    }

    pub fn from_value(value: &[u8]) -> Option<Place> {
        value.try_into().ok().map(Place)
    }

    pub fn to_value(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }

    /// The part of its lanes that it is in; below [`PARTS`].
    pub fn part(self) -> u8 {
        self.0[0] % PARTS as u8
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::MessageId;
    use crate::queue::keys::Position;

    #[test]
    fn slots_are_kept_and_an_unknown_stream_goes_with_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let first = {
            let store = Store::open(folder.path()).unwrap();
            let mut own = Batch::new();
            own.put(Table::Meta, *b"stream/own", vec![9]);
            store.write(&[own], true).unwrap();
            Streams::load(&store).unwrap()
        };
        let again = Streams::load(&Store::open(folder.path()).unwrap()).unwrap();
        for name in ["transactional", "bulk", "security", "own", "unknown"] {
            assert_eq!(first.lane(name, 0), again.lane(name, 0));
        }
        assert_eq!(again.lanes().len(), 16);
        assert_eq!(again.lane("own", 7), Lane(20));
        assert_eq!(again.lane("unknown", 0), again.lane("transactional", 0));
        assert!(again.lane("bulk", 1).is_retry() && !again.lane("bulk", 0).is_retry());
        for lane in again.lanes() {
            assert_eq!(Lane::from_byte(lane.byte()), Some(lane));
            assert_eq!(again.weights()[lane.index()], again.weight(lane));
        }
        assert_eq!(Lane::from_byte(0), None);
    }

    #[test]
    fn a_stream_that_is_gone_leaves_its_slot_and_its_mail_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let names: Vec<String> = (0..13).map(|number| format!("own{number}")).collect();
        let all = || names.iter().map(String::as_str);
        let first = Streams::configure(&store, all()).unwrap();
        assert_eq!(first.lanes().len(), LANES_MAX);
        let mut batch = Batch::new();
        let at = |due| Position { due, id: MessageId::from_u64(7), number: 1 };
        for (due, attempts) in (0..1500).map(|due| (due, due as u32 % 2)) {
            let key = DueKey { lane: first.lane("own5", attempts), part: 3, at: at(due) };
            batch.put(Table::Due, key.to_bytes(), vec![8]);
        }
        store.write(&[batch], true).unwrap();

        let renamed = || all().map(|name| if name == "own5" { "other" } else { name });
        let second = Streams::configure(&store, renamed()).unwrap();
        assert_eq!(second.lane("other", 0), first.lane("own5", 0), "there is no other slot");
        assert_eq!(second.lane("own5", 1), second.lane("transactional", 1));
        assert_eq!(second.lane("own6", 1), first.lane("own6", 1));
        let entries: Vec<DueKey> =
            store.prefix(Table::Due, b"").unwrap().map(|entry| DueKey::read(&entry.unwrap().0).unwrap()).collect();
        assert_eq!(entries.len(), 1500);
        for key in entries {
            assert_eq!(key.lane, second.lane("transactional", key.at.due as u32 % 2));
            assert_eq!((key.part, key.at), (3, at(key.at.due)));
        }
        let again = Streams::load(&store).unwrap();
        assert_eq!(again.lane("other", 0), second.lane("other", 0));
    }

    #[test]
    fn weights_put_security_first_and_new_mail_before_retries() {
        let folder = tempfile::tempdir().unwrap();
        let streams = Streams::load(&Store::open(folder.path()).unwrap()).unwrap();
        let weight = |name, attempts| streams.weight(streams.lane(name, attempts));
        assert!(weight("security", 0) > weight("transactional", 0) && weight("transactional", 0) > weight("bulk", 0));
        for name in stream::BUILT_IN {
            assert!(weight(name, 0) > weight(name, 1) && weight(name, 1) > 0);
        }
    }
}
