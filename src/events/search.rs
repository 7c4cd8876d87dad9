//! Looking through the journal: which events of which messages, newest message first, a page at a time.
//!
//! The journal is sorted by message, so a search walks it backwards and stops where the page is full or so many
//! entries have been looked at; the next page goes on there. Most entries are passed over by their bytes,
//! without being read as JSON. There is no index: stories are kept for a month, and a walk through a million
//! entries takes seconds.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::message::{MessageId, ReversePath};
use crate::store::{Store, StoreError, Table};

use super::kind::is_trouble;
use super::{Entry, Event};

/// Entries looked at for one page.
pub const LOOKED_AT_MAX: usize = 50_000;
/// Entries of one message that are shown, its last ones.
const OF_MESSAGE_MAX: usize = 1000;
/// Entries read in one go.
const SLICE_ENTRIES: usize = 512;
/// Above every key of the journal.
const KEY_END: [u8; 16] = [0xff; 16];

/// What an event and its message must be like. All that is given must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub id: Option<MessageId>,
    /// A Message-ID without brackets, or an address: of the sender, of a recipient, of an alias that led to it;
    /// `@example.com` is everybody there.
    pub about: Option<String>,
    pub account: Option<String>,
    /// What a smart host is called in events: its name, its host.
    pub smart_host: Option<Vec<String>>,
    /// Only what did not work.
    pub failed: bool,
    pub since: Option<Millis>,
}

/// What is known of a message from the beginning of its story.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    pub message_id: Option<String>,
    /// Empty: the null sender.
    pub from: Option<String>,
    pub account: Option<String>,
    pub stream: Option<String>,
}

/// An event, and what it is about.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub id: MessageId,
    pub context: Context,
    pub entry: Entry,
}

/// A page: whole messages, the newest first, of each the newest event first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page {
    pub lines: Vec<Line>,
    /// Where the next page begins, below this one; none: that was all.
    pub next: Option<MessageId>,
}

impl Context {
    /// From the first event of a story.
    pub fn of(first: &Event) -> Context {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let sender = |from: &ReversePath| match from {
            ReversePath::Null => Some(String::new()),
            ReversePath::Address(address) => Some(address.to_string()),
        };
        match first {
            Event::Accepted { origin, from, message_id, stream, .. } => Context {
                message_id: given(message_id),
                from: sender(from),
                account: origin.account.clone(),
                stream: given(stream),
            },
            Event::Imported { origin, from, message_id, .. } => Context {
                message_id: given(message_id),
                from: sender(from),
                account: origin.account.clone(),
                stream: None,
            },
            _ => Context::default(),
        }
    }
}

/// What is known of a message; nothing, if its story is gone.
pub fn context(store: &Store, id: MessageId) -> Result<Context, StoreError> {
    let first = store.prefix(Table::Journal, &id.to_key())?.expecting(1).next().transpose()?;
    let first = first.and_then(|(_, value)| serde_json::from_slice::<Entry>(&value).ok());
    Ok(first.map(|entry| Context::of(&entry.event)).unwrap_or_default())
}

impl Query {
    /// Does it ask for something that only the beginning of the story knows?
    pub fn needs_context(&self) -> bool {
        self.about.is_some() || self.account.is_some()
    }

    pub fn takes(&self, id: MessageId, context: &Context, entry: &Entry) -> bool {
        let same = |wanted: &Option<String>, is: &Option<String>| {
            wanted.as_ref().is_none_or(|wanted| is.as_ref().is_some_and(|is| is.eq_ignore_ascii_case(wanted)))
        };
        self.id.is_none_or(|wanted| wanted == id)
            && self.since.is_none_or(|since| entry.at >= since)
            && (!self.failed || is_trouble(&entry.event))
            && same(&self.account, &context.account)
            && self.smart_host.as_deref().is_none_or(|names| by_host(&entry.event, names))
            && self.about.as_deref().is_none_or(|about| is_about(about, context, &entry.event))
    }

    /// Texts without which no entry of a message can fit.
    fn needles(&self) -> Vec<String> {
        let given = [&self.about, &self.account].into_iter().flatten();
        // In JSON some characters are written in another way: those texts are not looked for.
        let plain = |text: &&String| text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\');
        given.filter(plain).map(|text| text.to_ascii_lowercase()).collect()
    }
}

/// Is it about this Message-ID or address?
fn is_about(wanted: &str, context: &Context, event: &Event) -> bool {
    let fits = |text: &str| match wanted.strip_prefix('@') {
        Some(domain) => text.rsplit_once('@').is_some_and(|(_, own)| own.eq_ignore_ascii_case(domain)),
        None => text.eq_ignore_ascii_case(wanted),
    };
    let is_id = context.message_id.as_deref().is_some_and(|id| id.eq_ignore_ascii_case(wanted));
    if is_id || context.from.as_deref().is_some_and(fits) {
        return true;
    }
    let Ok(json) = serde_json::to_value(event) else { return false };
    ["recipient", "alias", "sender"].iter().any(|key| json.get(key).and_then(|v| v.as_str()).is_some_and(fits))
        || json.get("to").and_then(|to| to.as_array()).is_some_and(|to| {
            // Where an alias leads; a target may stand there with more words.
            to.iter().filter_map(|to| to.as_str()).any(|to| to.split_whitespace().any(fits))
        })
}

/// Did this smart host take it, or not?
fn by_host(event: &Event, names: &[String]) -> bool {
    let text = match event {
        Event::Delivered { to, .. } => to,
        Event::Deferred { why, .. }
        | Event::Unsure { why, .. }
        | Event::Failed { why, .. }
        | Event::Expired { why, .. } => {
            return names.iter().any(|name| names_it(&why.host, name) || names_it(&why.reason, name));
        }
        _ => return false,
    };
    names.iter().any(|name| names_it(text, name))
}

/// As a word: `relay.example.com` is not in `other-relay.example.com`.
fn names_it(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '.' | '-' | '_');
    text.split(|c| !is_part(c)).any(|word| word.trim_matches('.').eq_ignore_ascii_case(name))
}

/// Without regard to case; `needle` is in lower case.
fn contains(text: &[u8], needle: &[u8]) -> bool {
    let Some((first, rest)) = needle.split_first() else { return true };
    let starts = memchr::memchr2_iter(*first, first.to_ascii_uppercase(), text);
    starts
        .into_iter()
        .any(|at| text.get(at + 1..at + needle.len()).is_some_and(|behind| behind.eq_ignore_ascii_case(rest)))
}

/// The entries of one message, the newest first.
#[derive(Default)]
struct Story {
    id: Option<MessageId>,
    entries: Vec<(Millis, Box<[u8]>)>,
    is_cut: bool,
}

impl Story {
    fn push(&mut self, key: &[u8], value: Box<[u8]>) {
        if self.entries.len() == OF_MESSAGE_MAX {
            self.is_cut = true;
            return;
        }
        let at = key.get(8..16).and_then(|at| at.try_into().ok()).map_or(0, u64::from_be_bytes);
        self.entries.push((at, value));
    }

    /// Adds what fits.
    fn choose(self, store: &Store, query: &Query, needles: &[String], lines: &mut Vec<Line>) -> Result<(), StoreError> {
        let Some(id) = self.id else { return Ok(()) };
        if query.since.is_some_and(|since| self.entries.iter().all(|(at, _)| *at < since)) {
            return Ok(());
        }
        let has = |needle: &String| self.entries.iter().any(|(_, value)| contains(value, needle.as_bytes()));
        if !self.is_cut && !needles.iter().all(has) {
            return Ok(());
        }
        // What cannot be read is left out: the story itself says so.
        let read = |value: &[u8]| serde_json::from_slice::<Entry>(value).ok();
        let about = match self.entries.last().filter(|_| !self.is_cut) {
            Some((_, value)) => read(value).map(|entry| Context::of(&entry.event)).unwrap_or_default(),
            None => context(store, id)?,
        };
        for (at, value) in &self.entries {
            if query.since.is_some_and(|since| *at < since) {
                continue;
            }
            if let Some(entry) = read(value).filter(|entry| query.takes(id, &about, entry)) {
                lines.push(Line { id, context: about.clone(), entry });
            }
        }
        Ok(())
    }
}

/// A page of at least `limit` events, as far as there are so many: it ends with a whole message, or where
/// [`LOOKED_AT_MAX`] entries have been looked at. Goes on below `before`.
pub fn search(store: &Store, query: &Query, before: Option<MessageId>, limit: usize) -> Result<Page, StoreError> {
    let needles = query.needles();
    let mut page = Page::default();
    let mut story = Story::default();
    let mut looked_at = 0;
    walk(store, query.id, before, |key, value| {
        let id = MessageId::from_prefix(&key);
        if id != story.id {
            let done = std::mem::replace(&mut story, Story { id, ..Story::default() });
            let last = done.id;
            done.choose(store, query, &needles, &mut page.lines)?;
            if page.lines.len() >= limit || looked_at >= LOOKED_AT_MAX {
                page.next = last;
                return Ok(ControlFlow::Break(()));
            }
        }
        looked_at += 1;
        story.push(&key, value);
        Ok(ControlFlow::Continue(()))
    })?;
    if page.next.is_none() {
        story.choose(store, query, &needles, &mut page.lines)?;
    }
    Ok(page)
}

type Flow = Result<ControlFlow<()>, StoreError>;

/// All entries below `before`, backwards, until it is enough.
fn walk(
    store: &Store,
    only: Option<MessageId>,
    before: Option<MessageId>,
    mut take: impl FnMut(Box<[u8]>, Box<[u8]>) -> Flow,
) -> Result<(), StoreError> {
    let from = only.map_or([0; 8], MessageId::to_key);
    let below = |id: MessageId| id.to_key().to_vec();
    let end = only.map_or(KEY_END.to_vec(), |id| below(MessageId::from_u64(id.as_u64().saturating_add(1))));
    let mut to = before.map_or(end.clone(), |id| below(id).min(end));
    loop {
        let slice = store.newest(Table::Journal, &from, &to, SLICE_ENTRIES)?;
        let is_last = slice.len() < SLICE_ENTRIES;
        if let Some((key, _)) = slice.last() {
            to = key.to_vec();
        }
        for (key, value) in slice {
            if take(key, value)?.is_break() {
                return Ok(());
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::clock::Clock;
    use crate::events::journal::Journal;
    use crate::message::{Address, Door, Origin};
    use crate::queue::record::Failure;
    use crate::smtp::Reply;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn accepted(number: u64, account: &str) -> Event {
        Event::Accepted {
            origin: Origin { door: Door::Admin, account: Some(account.to_owned()), peer: None },
            from: ReversePath::Address(address("shop@home.test")),
            recipients: 1,
            size: 1,
            message_id: format!("{number}@home.test"),
            subject: String::new(),
            signed: Vec::new(),
            checked: String::new(),
            stream: "bulk".to_owned(),
        }
    }

    /// Three events a message: accepted, deferred by a smart host, delivered.
    fn fill(store: &Store, messages: u64) -> Clock {
        let clock = Clock::manual(1_795_300_000_000);
        let journal = Journal::new(clock.clone());
        for number in 0..messages {
            clock.advance(1000);
            let id = MessageId::first_at(clock.now());
            let mut telling = journal.begin();
            telling.tell(id, accepted(number, if number % 2 == 0 { "even" } else { "odd" }));
            let recipient = address(&format!("bob{number}@far.test"));
            let why = Failure::refused("relay.example.com", Reply::new(450, (4, 7), "later"));
            telling.tell(id, Event::Deferred { recipient: recipient.clone(), why, attempt: 1, next: 0 });
            let (to, reply) = ("mx.far.test [192.0.2.1]".to_owned(), "250 ok".to_owned());
            telling.tell(id, Event::Delivered { recipient, to, reply, tls: None, attempt: 2 });
            store.write(&[telling.take_batch()], false).unwrap();
        }
        clock
    }

    fn all(store: &Store, query: &Query, limit: usize) -> (Vec<Line>, usize) {
        let (mut lines, mut before, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = search(store, query, before, limit).unwrap();
            pages += 1;
            lines.extend(page.lines);
            match page.next {
                Some(next) => before = Some(next),
                None => return (lines, pages),
            }
        }
    }

    #[test]
    fn every_event_is_on_one_page_and_the_newest_on_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        fill(&store, 400);
        let (lines, pages) = all(&store, &Query::default(), 100);
        assert_eq!((lines.len(), pages), (1200, 12));
        assert!(lines.windows(2).all(|two| two[0].id > two[1].id || two[0].entry.at >= two[1].entry.at));
        assert!(matches!(lines[0].entry.event, Event::Delivered { .. }));
        assert_eq!(lines[0].context.stream.as_deref(), Some("bulk"));
        assert_eq!(all(&store, &Query::default(), 10_000), (lines, 1));
    }

    #[test]
    fn each_question_finds_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let clock = fill(&store, 40);
        let found = |query: Query| all(&store, &query, 1000).0;
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(found(Query { about: text("BOB7@far.test"), ..Query::default() }).len(), 2);
        assert_eq!(found(Query { about: text("@FAR.test"), ..Query::default() }).len(), 80);
        assert_eq!(found(Query { about: text("shop@home.test"), ..Query::default() }).len(), 120);
        assert_eq!(found(Query { about: text("ob7@far.test"), ..Query::default() }).len(), 0);
        assert_eq!(found(Query { about: text("7@home.test"), ..Query::default() }).len(), 3);
        assert_eq!(found(Query { account: text("odd"), ..Query::default() }).len(), 60);
        assert_eq!(found(Query { failed: true, ..Query::default() }).len(), 40);
        let host = |name: &str| Some(vec![name.to_owned()]);
        assert_eq!(found(Query { smart_host: host("relay.example.com"), ..Query::default() }).len(), 40);
        assert_eq!(found(Query { smart_host: host("mx.far.test"), ..Query::default() }).len(), 40);
        assert_eq!(found(Query { smart_host: host("far.test"), ..Query::default() }).len(), 0);
        assert_eq!(found(Query { since: Some(clock.now() - 4000), ..Query::default() }).len(), 15);
        let id = MessageId::first_at(clock.now());
        let one = found(Query { id: Some(id), ..Query::default() });
        assert!(one.len() == 3 && one.iter().all(|line| line.id == id));
    }
}
