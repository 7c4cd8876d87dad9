//! Looks through a whole store for what the table in `record` does not allow.
//!
//! Promises: nothing is changed; memory does not grow with the queue (the tables are walked side by
//! side, in the order of their keys); what is found is told one by one, each with what to do about it.
//! A record that cannot be read hides no other. Leaves out: the files beneath (`Store::check_files`).

use std::iter::Peekable;
use std::ops::ControlFlow;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::events::Entry as StoryEntry;
use crate::message::MessageId;
use crate::store::{Entry, FORMAT_VERSION, Range, Store, StoreError, Table};

use super::keys::{self, DueKey};
use super::lane::Streams;
use super::record::{Message, Recipient};
use super::{due_time, rebuild};

/// Records between two words about how far it is.
const PROGRESS_EVERY: u64 = 1000;

/// Something that should not be so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The message, where one can be named.
    pub id: Option<MessageId>,
    pub kind: Kind,
    /// One sentence: what is wrong.
    pub what: String,
    /// What to do.
    pub remedy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A part of a table cannot be read from its files.
    Unreadable,
    /// A record's bytes make no sense.
    BadRecord,
    /// A key that no part of postrider writes.
    BadKey,
    /// A message without any recipient: nobody would ever get it.
    NoRecipients,
    /// A recipient whose message is gone.
    OrphanRecipient,
    /// A piece of a body whose message is gone.
    OrphanBody,
    /// A body that is not as long as its message says.
    BadBody,
    /// A waiting recipient that is not in the due index: it would wait for ever.
    NotDue,
    /// An entry of the due index for nobody who waits for that time.
    OrphanDue,
    /// A message that is queued is also marked as one that is still coming in.
    BadMark,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Unreadable => "unreadable",
            Kind::BadRecord => "bad_record",
            Kind::BadKey => "bad_key",
            Kind::NoRecipients => "no_recipients",
            Kind::OrphanRecipient => "orphan_recipient",
            Kind::OrphanBody => "orphan_body",
            Kind::BadBody => "bad_body",
            Kind::NotDue => "not_due",
            Kind::OrphanDue => "orphan_due",
            Kind::BadMark => "bad_mark",
        }
    }

    fn remedy(self) -> &'static str {
        match self {
            Kind::Unreadable => {
                "copy the folder of the store away before anything else; start the server, which sets aside what it \
                 cannot read, or restore a backup"
            }
            Kind::BadRecord => {
                "the server sets it aside and goes on (`postrider queue list --status damaged`); the message is in \
                 the last backup, if there is one, else ask the sender to send it again"
            }
            Kind::BadKey => "harmless, but nothing of ours writes it: is data_dir used by another program?",
            Kind::NoRecipients | Kind::OrphanBody | Kind::OrphanRecipient => {
                "it takes space and is never delivered; the message is in the last backup, if there is one"
            }
            Kind::BadBody => {
                "it cannot be delivered as it was sent; `postrider queue cancel ID`, and ask the sender to send again"
            }
            Kind::NotDue => "`postrider queue retry ID` puts it back into the schedule",
            Kind::OrphanDue => "harmless: the server removes it when its time comes",
            Kind::BadMark => "harmless: the next start removes the mark",
        }
    }

    fn at(self, id: impl Into<Option<MessageId>>, what: impl Into<String>) -> Finding {
        Finding { id: id.into(), kind: self, what: what.into(), remedy: self.remedy().to_owned() }
    }
}

/// What a look through the store saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    pub messages: u64,
    pub recipients: u64,
    pub body_bytes: u64,
    pub findings: u64,
}

/// A record of the queue that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    pub id: MessageId,
    /// None: the message's own.
    pub number: Option<u32>,
    pub why: String,
}

/// The messages and recipients that cannot be read, at most `max`, also of a queue in use.
pub fn bad_records(store: &Store, max: usize) -> Result<Vec<BadRecord>, StoreError> {
    let mut bad = Vec::new();
    for entry in store.prefix(Table::Message, b"")? {
        bad.extend(entry_is_bad::<Message>(entry?, |_| None));
    }
    for entry in store.prefix(Table::Recipient, b"")? {
        bad.extend(entry_is_bad::<Recipient>(entry?, |key| keys::number(key).ok()));
        if bad.len() >= max {
            break;
        }
    }
    bad.truncate(max);
    Ok(bad)
}

/// The same for one message.
pub fn bad_records_of(store: &Store, id: MessageId) -> Result<Vec<BadRecord>, StoreError> {
    let mut bad = Vec::new();
    if let Some(value) = store.get(Table::Message, &id.to_key())? {
        bad.extend(entry_is_bad::<Message>((id.to_key().into(), value.into()), |_| None));
    }
    for entry in store.prefix(Table::Recipient, &id.to_key())? {
        bad.extend(entry_is_bad::<Recipient>(entry?, |key| keys::number(key).ok()));
    }
    Ok(bad)
}

fn entry_is_bad<T: DeserializeOwned>((key, value): Entry, number: impl Fn(&[u8]) -> Option<u32>) -> Option<BadRecord> {
    let why = keys::decode::<T>(&value).err()?.to_string();
    Some(BadRecord { id: keys::message_id(&key).ok()?, number: number(&key), why })
}

/// Looks through everything. `tell` gets each finding and may end it; `progress` the number of records
/// looked at, once in a while.
pub fn check(
    store: &Store,
    tell: &mut dyn FnMut(Finding) -> ControlFlow<()>,
    progress: &mut dyn FnMut(u64),
) -> Summary {
    let summary = Summary::default();
    let mut check = Check { store, tell, progress, looked: 0, broken_off: false, streams: None, in_index: 0, summary };
    check.streams = check.streams();
    check.messages();
    check.due();
    check.others();
    check.summary
}

struct Check<'a> {
    store: &'a Store,
    tell: &'a mut dyn FnMut(Finding) -> ControlFlow<()>,
    progress: &'a mut dyn FnMut(u64),
    looked: u64,
    broken_off: bool,
    /// None: the due index is of another format or not finished; the next start makes it anew.
    streams: Option<Streams>,
    /// Waiting recipients that are in the due index.
    in_index: u64,
    summary: Summary,
}

/// A table in the order of its message ids.
struct Walk<'a> {
    table: Table,
    entries: Peekable<Entries<'a>>,
}

/// All entries of a table. The scan itself cannot fail before its first entry.
type Entries<'a> = std::iter::Flatten<std::result::IntoIter<Range<'a>>>;

fn entries(store: &Store, table: Table) -> Entries<'_> {
    store.prefix(table, b"").into_iter().flatten()
}

impl Check<'_> {
    fn found(&mut self, finding: Finding) {
        if !self.broken_off {
            self.summary.findings += 1;
            self.broken_off = (self.tell)(finding).is_break();
        }
    }

    fn count(&mut self) {
        self.looked += 1;
        if self.looked.is_multiple_of(PROGRESS_EVERY) {
            (self.progress)(self.looked);
        }
    }

    /// The id at the front of the walk. What has none is told of and passed; so is a piece of the table
    /// that cannot be read.
    fn front(&mut self, walk: &mut Walk<'_>) -> Option<MessageId> {
        loop {
            let finding = match walk.entries.peek()? {
                Ok((key, _)) => match keys::message_id(key) {
                    Ok(id) => return Some(id),
                    Err(error) => Kind::BadKey.at(None, format!("table {}: {error}", walk.table.name())),
                },
                Err(error) => Kind::Unreadable.at(None, error.to_string()),
            };
            self.found(finding);
            walk.entries.next();
        }
    }

    /// Takes the next entry if it belongs to this message.
    fn take(&mut self, walk: &mut Walk<'_>, id: MessageId) -> Option<Entry> {
        if self.front(walk)? != id {
            return None;
        }
        self.count();
        walk.entries.next()?.ok()
    }

    fn streams(&mut self) -> Option<Streams> {
        if self.store.format() < FORMAT_VERSION || matches!(self.store.get(Table::Meta, rebuild::MARK), Ok(Some(_))) {
            return None;
        }
        match Streams::load(self.store) {
            Ok(streams) => Some(streams),
            Err(error) => {
                self.found(Kind::Unreadable.at(None, format!("the list of streams: {error}")));
                None
            }
        }
    }

    /// Messages, bodies and recipients side by side.
    fn messages(&mut self) {
        let store = self.store;
        let walk = |table| Walk { table, entries: entries(store, table).peekable() };
        let (mut messages, mut bodies, mut recipients, mut incoming) =
            (walk(Table::Message), walk(Table::Body), walk(Table::Recipient), walk(Table::Incoming));
        while !self.broken_off {
            let fronts = [&mut messages, &mut bodies, &mut recipients, &mut incoming].map(|walk| self.front(walk));
            let Some(id) = fronts.into_iter().flatten().min() else { break };
            let message = self.take(&mut messages, id);
            let stands = message.is_some();
            let message = message.and_then(|(_, value)| self.message(id, &value));
            let is_coming_in = self.take(&mut incoming, id).is_some();
            if is_coming_in && stands {
                self.found(Kind::BadMark.at(id, format!("message {id} is marked as still coming in")));
            }
            // What a crash left of a message that was never taken: the next start removes it.
            self.body(id, stands || is_coming_in, message.as_ref(), &mut bodies);
            self.recipients(id, stands, message.as_ref(), &mut recipients);
        }
    }

    fn message(&mut self, id: MessageId, value: &[u8]) -> Option<Message> {
        self.summary.messages += 1;
        match keys::decode::<Message>(value) {
            Ok(message) if message.id == id => Some(message),
            Ok(message) => {
                self.found(Kind::BadRecord.at(id, format!("the record of message {id} is that of {}", message.id)));
                None
            }
            Err(error) => {
                self.found(Kind::BadRecord.at(id, format!("the record of message {id} cannot be read: {error}")));
                None
            }
        }
    }

    /// `is_wanted`: there is a message, or there would have been one.
    fn body(&mut self, id: MessageId, is_wanted: bool, message: Option<&Message>, bodies: &mut Walk<'_>) {
        let (mut pieces, mut bytes, mut gap) = (0u64, 0u64, false);
        let mut numbers = message.map(Message::body_numbers).into_iter().flatten();
        while let Some((key, value)) = self.take(bodies, id) {
            gap |= keys::number(&key).ok() != numbers.next() || key.len() != keys::body(id, 0).len();
            pieces += 1;
            bytes += value.len() as u64;
        }
        self.summary.body_bytes += bytes;
        if !is_wanted && pieces > 0 {
            let what = format!("{pieces} pieces ({bytes} bytes) of a body without a message");
            self.found(Kind::OrphanBody.at(id, what));
        }
        let Some(message) = message else { return };
        let wanted = message.body_numbers().count() as u64;
        if gap || pieces != wanted || bytes != message.size {
            let what = format!(
                "the body of message {id} has {pieces} of {} pieces, {bytes} of {} bytes{}",
                wanted,
                message.size,
                if gap { ", with a gap" } else { "" }
            );
            self.found(Kind::BadBody.at(id, what));
        }
    }

    fn recipients(&mut self, id: MessageId, stands: bool, message: Option<&Message>, recipients: &mut Walk<'_>) {
        let mut number_of = 0;
        while let Some((key, value)) = self.take(recipients, id) {
            number_of += 1;
            self.summary.recipients += 1;
            let Ok(number) = keys::number(&key) else {
                self.found(Kind::BadKey.at(id, format!("a recipient of message {id} has the key {key:02x?}")));
                continue;
            };
            match keys::decode::<Recipient>(&value) {
                Ok(recipient) => self.recipient(id, number, message, &recipient),
                Err(error) => {
                    let what = format!("recipient {number} of message {id} cannot be read: {error}");
                    self.found(Kind::BadRecord.at(id, what));
                }
            }
        }
        match (stands, number_of) {
            (true, 0) => self.found(Kind::NoRecipients.at(id, format!("message {id} has no recipients"))),
            (false, 1..) => {
                let what = format!("{number_of} recipients of a message {id} that is not there");
                self.found(Kind::OrphanRecipient.at(id, what));
            }
            _ => {}
        }
    }

    fn recipient(&mut self, id: MessageId, number: u32, message: Option<&Message>, recipient: &Recipient) {
        // Without its message nobody knows where it belongs; that has been told.
        let (Some(due), Some(message), Some(streams)) = (due_time(recipient), message, &self.streams) else { return };
        let (key, _) = rebuild::entry_of(streams, &message.into(), id, number, recipient, due);
        match self.store.get(Table::Due, &key.to_bytes()) {
            Ok(Some(_)) => self.in_index += 1,
            Ok(None) => {
                let what = format!("recipient {number} of message {id} waits, but is not in the due index");
                self.found(Kind::NotDue.at(id, what));
            }
            Err(error) => self.found(Kind::Unreadable.at(id, error.to_string())),
        }
    }

    /// Each entry of the due index has its recipient, who waits for just that. Where there are as many
    /// entries as recipients with theirs, none can be wrong, and no record is read again.
    fn due(&mut self) {
        let Some(streams) = self.streams.take() else { return };
        let store = self.store;
        let mut count = 0;
        for entry in entries(store, Table::Due) {
            self.count();
            count += 1;
            if let Err(error) = entry {
                self.found(Kind::Unreadable.at(None, error.to_string()));
            }
        }
        if count == self.in_index {
            return;
        }
        for (key, _) in entries(store, Table::Due).flatten() {
            if self.broken_off {
                return;
            }
            match DueKey::read(&key) {
                Ok(key) => self.due_entry(&streams, key),
                Err(error) => self.found(Kind::BadKey.at(None, error.to_string())),
            }
        }
    }

    fn due_entry(&mut self, streams: &Streams, key: DueKey) {
        let (id, number) = (key.at.id, key.at.number);
        let read = || -> Result<Option<&str>, StoreError> {
            let Some(value) = self.store.get(Table::Recipient, &keys::recipient(id, number))? else {
                return Ok(Some("who is not there"));
            };
            // A record that is none has been told of.
            let Ok(recipient) = keys::decode::<Recipient>(&value) else { return Ok(None) };
            let kind = rebuild::kind(self.store, id)?;
            let right =
                due_time(&recipient).map(|due| rebuild::entry_of(streams, &kind, id, number, &recipient, due).0 == key);
            Ok((right != Some(true)).then_some("who does not wait there for that time"))
        };
        match read() {
            Ok(None) => {}
            Ok(Some(what)) => {
                let what = format!("the due index names recipient {number} of message {id}, {what}");
                self.found(Kind::OrphanDue.at(id, what));
            }
            Err(error) => self.found(Kind::Unreadable.at(id, error.to_string())),
        }
    }

    /// The tables of the other parts: their records can be read.
    fn others(&mut self) {
        self.decode_all(Table::Journal, |value| {
            serde_json::from_slice::<StoryEntry>(value).map(|_| ()).map_err(|error| error.to_string())
        });
        self.decode_all(Table::Pickup, |value| {
            rmp_serde::from_slice::<IgnoredAny>(value).map(|_| ()).map_err(|error| error.to_string())
        });
        // A counter that makes no sense counts for nothing (`routing::loops`); that it can be read is enough.
        self.decode_all(Table::Loops, |_| Ok(()));
        self.decode_all(Table::Meta, |_| Ok(()));
    }

    fn decode_all(&mut self, table: Table, decode: impl Fn(&[u8]) -> Result<(), String>) {
        let store = self.store;
        for entry in entries(store, table) {
            if self.broken_off {
                return;
            }
            self.count();
            match entry {
                Ok((key, value)) => {
                    if let Err(error) = decode(&value) {
                        let id = (table == Table::Journal).then(|| MessageId::from_prefix(&key)).flatten();
                        let what = format!("a record of the table {} cannot be read: {error}", table.name());
                        let remedy = "only a line of a story is lost, or a file of a pickup folder stays as .tmp";
                        self.found(Finding { remedy: remedy.to_owned(), ..Kind::BadRecord.at(id, what) });
                    }
                }
                Err(error) => self.found(Kind::Unreadable.at(None, error.to_string())),
            }
        }
    }
}
