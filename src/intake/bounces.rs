//! Mail for return paths of ours: bounces and complaints are read, and where they prove what they say, it
//! goes into the story of the message that came back and counts for its recipient.
//!
//! The proof is the token in the address that the report came for, which only those have seen who got the
//! message; or the id of a message of ours that went to the very recipient that the report names. What
//! proves nothing is logged, delivered like any other mail, and never counted.

use crate::bounce::read::{self, Action, Bounce, Complaint, Original, Report, Reported};
use crate::bounce::suppression;
use crate::config::Config;
use crate::events::Event;
use crate::events::journal::{self, Telling};
use crate::message::header::{self, Headers};
use crate::message::{Address, Door, Draft, Findings, MessageId};
use crate::queue::record::Recipient;
use crate::routing::return_path::{self, Back, Token};
use crate::routing::sent::{self, Sent};
use crate::secret::Marks;
use crate::smtp::reply::Refusal;
use crate::store::{Batch, StoreError, Table};

use super::suppress::Guards;
use super::{Intake, store_trouble};

/// Addresses that are named in the log of a report that is not believed.
const NAMED_MAX: usize = 10;
/// How long it is known to whom a token belongs, in milliseconds: as long as a story.
const TOKENS_KEPT: u64 = 30 * 24 * 3600 * 1000;
/// Begins the key of what a token belongs to, in `Table::Loops`.
const KIND_TOKEN: u8 = b'V';
/// Of values there; the sweep looks at the version and the time behind it.
const VERSION: u8 = 1;

/// What came of reading a message.
#[derive(Default)]
pub struct Taken<'a> {
    /// The recipients for which that was all there is to do.
    pub taken: Vec<Address>,
    events: Vec<(MessageId, Event)>,
    /// Of the message itself only.
    own: Vec<Event>,
    batch: Batch,
    /// Until the batch is written.
    _guards: Guards<'a>,
}

impl Taken<'_> {
    /// Into the stories of all that it is about; gives what else is to be written.
    pub fn tell(&self, telling: &mut Telling<'_>, own: MessageId) -> Batch {
        for (id, event) in &self.events {
            telling.tell(*id, event.clone());
            telling.tell_also(own, event.clone());
        }
        for event in &self.own {
            telling.tell(own, event.clone());
        }
        self.batch.clone()
    }
}

/// A recipient of ours that a report is about, with what it says.
struct Proved<'r> {
    message: MessageId,
    address: Address,
    reported: &'r Reported,
}

/// At RCPT: has it the form of a return path with a token, and is none of ours?
pub(super) fn is_forged(config: &Config, marks: &Marks, recipient: &Address) -> bool {
    return_path::read(config, marks, recipient) == Some(Back::Forged)
}

impl Intake {
    /// Reads what came back.
    pub(super) async fn returned(
        &self,
        draft: &Draft,
        headers: &Headers<'_>,
        findings: &Findings,
        id: MessageId,
    ) -> Result<Taken<'_>, Refusal> {
        if !matches!(draft.origin.door, Door::Mx { .. }) {
            return Ok(Taken::default());
        }
        let backs = self.backs(draft);
        let report = match backs.is_empty() && !read::may_be_complaint(headers) {
            true => None,
            false => read::read(draft.content.head(), draft.envelope.mail_from.is_null()),
        };
        let read = match report {
            Some(Report::Bounce(bounce)) if !backs.is_empty() => self.bounced(&backs, &bounce, id).await,
            Some(Report::Complaint(complaint)) => self.complained(&backs, &complaint, id).await,
            _ => self.sign_of_life(headers, draft, findings).await,
        };
        read.map_err(|error| store_trouble(&error))
    }

    fn backs(&self, draft: &Draft) -> Vec<(Address, Back)> {
        let back = |address: &Address| return_path::read(&self.config, &self.marks, address);
        let addresses = draft.envelope.recipients.iter().map(|recipient| &recipient.address);
        addresses.filter_map(|address| Some((address.clone(), back(address)?))).collect()
    }

    async fn bounced(
        &self,
        backs: &[(Address, Back)],
        bounce: &Bounce,
        id: MessageId,
    ) -> Result<Taken<'_>, StoreError> {
        let mut proved: Vec<Proved<'_>> = Vec::new();
        let mut taken = Taken::default();
        for (address, back) in backs {
            let found = self.proved(*back, bounce)?;
            if found.is_empty() {
                continue;
            }
            taken.taken.push(address.clone());
            for one in found {
                if proved.iter().all(|known| (known.message, &known.address) != (one.message, &one.address)) {
                    proved.push(one);
                }
            }
        }
        if proved.is_empty() {
            let named = bounce.recipients.iter().filter_map(Reported::address).take(NAMED_MAX);
            let about = named.map(ToString::to_string).collect();
            let why = "it names no message of ours that went there within 30 days".to_owned();
            taken.own.push(Event::NotBelieved { about, why });
            return Ok(taken);
        }
        taken._guards = self.suppression.lock(proved.iter().map(|one| &one.address)).await;
        for Proved { message, address, reported } in proved {
            let (status, diagnostic) = (reported.status.clone(), reported.diagnostic.clone());
            match reported.action {
                Action::Done => {}
                Action::Delayed => {
                    let event = Event::DelayReported { recipient: address, status, diagnostic, message, report: id };
                    taken.events.push((message, event));
                }
                Action::Failed => {
                    let class = reported.class;
                    let at = self.clock.now();
                    let told = suppression::Event { at, class, message, direct: false, status: status.clone() };
                    let counted = self.suppression.note(&address, told, &mut taken.batch)?;
                    let class = class.name().to_owned();
                    let event =
                        Event::Bounced { recipient: address, class, status, diagnostic, message, report: id, counted };
                    match counted {
                        true => taken.events.push((message, event)),
                        false => taken.own.push(event),
                    }
                }
            }
        }
        Ok(taken)
    }

    /// What of a report is about recipients of ours.
    fn proved<'r>(&self, back: Back, bounce: &'r Bounce) -> Result<Vec<Proved<'r>>, StoreError> {
        if let Back::Of(token) = back
            && let Some(address) = self.owner(token)?
        {
            // One recipient has this return path: it is the one, whatever its server calls it.
            let names = |reported: &&Reported| {
                reported.original.iter().chain(&reported.last).any(|named| is_same(named, &address))
            };
            let fails = |reported: &&Reported| reported.action == Action::Failed;
            let all = &bounce.recipients;
            let reported = all.iter().find(names).or_else(|| all.iter().find(fails)).or(all.first());
            return Ok(reported.map(|reported| Proved { message: token.id, address, reported }).into_iter().collect());
        }
        for message in self.messages(&bounce.original)? {
            let sent_to = self.sent_to(message)?;
            let known = |named: &Address| sent_to.iter().find(|address| is_same(address, named)).cloned();
            let proved = bounce.recipients.iter().filter_map(|reported| {
                let address = reported.original.iter().chain(&reported.last).find_map(known)?;
                Some(Proved { message, address, reported })
            });
            let proved: Vec<Proved<'r>> = proved.collect();
            if !proved.is_empty() {
                return Ok(proved);
            }
        }
        Ok(Vec::new())
    }

    async fn complained(
        &self,
        backs: &[(Address, Back)],
        complaint: &Complaint,
        id: MessageId,
    ) -> Result<Taken<'_>, StoreError> {
        let mut taken = Taken::default();
        let Some((message, address)) = self.complainant(backs, complaint)? else {
            let about = complaint.recipient.iter().map(ToString::to_string).collect();
            let why = "the complaint names no message of ours that went there within 30 days".to_owned();
            taken.own.push(Event::NotBelieved { about, why });
            return Ok(taken);
        };
        taken.taken.extend(backs.iter().map(|(address, _)| address.clone()));
        taken._guards = self.suppression.lock([&address]).await;
        self.suppression.complained(&address, message, &mut taken.batch)?;
        let Complaint { kind, agent, .. } = complaint.clone();
        taken.events.push((message, Event::Complained { recipient: address, kind, agent, message, report: id }));
        Ok(taken)
    }

    fn complainant(
        &self,
        backs: &[(Address, Back)],
        complaint: &Complaint,
    ) -> Result<Option<(MessageId, Address)>, StoreError> {
        // Its envelope sender, which providers show where they hide the recipient.
        let shown = complaint.original.return_path.as_ref();
        let shown = shown.and_then(|path| return_path::read(&self.config, &self.marks, path));
        for back in backs.iter().map(|(_, back)| *back).chain(shown) {
            if let Back::Of(token) = back
                && let Some(address) = self.owner(token)?
            {
                return Ok(Some((token.id, address)));
            }
        }
        for message in self.messages(&complaint.original)? {
            let sent_to = self.sent_to(message)?;
            let found = match (&complaint.recipient, sent_to.as_slice()) {
                (Some(named), all) => all.iter().find(|address| is_same(address, named)),
                (None, [only]) => Some(only),
                (None, _) => None,
            };
            if let Some(address) = found {
                return Ok(Some((message, address.clone())));
            }
        }
        Ok(None)
    }

    /// The messages of ours that a report may be about.
    fn messages(&self, original: &Original) -> Result<Vec<MessageId>, StoreError> {
        let mut found = Vec::new();
        let now = self.clock.now();
        for id in original.message_ids.iter().chain(&original.envelope_id) {
            let id = id.trim().trim_matches(['<', '>']);
            let sent = self.queue.store().get(Table::Loops, &sent::key(id))?;
            found.extend(sent.and_then(|value| Sent::read(&value, now)).map(|sent| sent.id));
        }
        Ok(found)
    }

    /// Where a message of ours went, by its story; and where it is going still.
    fn sent_to(&self, message: MessageId) -> Result<Vec<Address>, StoreError> {
        let mut addresses: Vec<Address> = Vec::new();
        let mut add = |address: &Address| {
            if addresses.iter().all(|known| !is_same(known, address)) {
                addresses.push(address.clone());
            }
        };
        for entry in or_nothing(journal::story(self.queue.store(), message))? {
            if let Event::Delivered { recipient, .. }
            | Event::Unsure { recipient, .. }
            | Event::Deferred { recipient, .. } = &entry.event
            {
                add(recipient);
            }
        }
        or_nothing(self.queue.recipients(message))?.iter().for_each(|(_, recipient)| add(&recipient.address));
        Ok(addresses)
    }

    /// Whose return path it is: of a recipient that is queued still, or was sent to.
    fn owner(&self, token: Token) -> Result<Option<Address>, StoreError> {
        let queued =
            or_nothing(self.queue.recipients(token.id))?.into_iter().find(|(number, _)| *number == token.number);
        if let Some((_, Recipient { address, .. })) = queued {
            return Ok(Some(address));
        }
        let value = self.queue.store().get(Table::Loops, &token_key(token))?;
        let address = value.as_deref().and_then(|value| value.get(9..)).and_then(|text| std::str::from_utf8(text).ok());
        Ok(address.and_then(|text| Address::parse(text).ok()))
    }

    /// To whom tokens belong that went out: to be written with the step that seals it.
    pub fn remember_tokens<'m>(
        &self,
        message: MessageId,
        sent: impl Iterator<Item = (u32, &'m Address)>,
        batch: &mut Batch,
    ) {
        let until = self.clock.now().saturating_add(TOKENS_KEPT);
        for (number, address) in sent {
            let mut value = vec![VERSION];
            value.extend_from_slice(&until.to_be_bytes());
            value.extend_from_slice(address.to_string().as_bytes());
            batch.put(Table::Loops, token_key(Token { id: message, number }), value);
        }
    }

    /// Authentic mail from an address shows that it is in use.
    async fn sign_of_life(
        &self,
        headers: &Headers<'_>,
        draft: &Draft,
        findings: &Findings,
    ) -> Result<Taken<'_>, StoreError> {
        let mut taken = Taken::default();
        let Some(author) = authentic(headers, draft, findings) else { return Ok(taken) };
        if self.config.bounces.reset_on_inbound && self.suppression.has_bounced(&author)? {
            taken._guards = self.suppression.lock([&author]).await;
            self.suppression.alive(&author, &mut taken.batch)?;
        }
        Ok(taken)
    }
}

/// A record that cannot be read proves nothing, and will not get better by waiting.
fn or_nothing<T>(read: Result<Vec<T>, StoreError>) -> Result<Vec<T>, StoreError> {
    match read {
        Err(StoreError::Damaged(_)) => Ok(Vec::new()),
        other => other,
    }
}

fn token_key(token: Token) -> Vec<u8> {
    [&[KIND_TOKEN, 0], token.id.to_key().as_slice(), &token.number.to_be_bytes()].concat()
}

fn is_same(one: &Address, other: &Address) -> bool {
    one.lookup_key() == other.lookup_key()
}

/// The author, where its domain has shown that the message is from there.
fn authentic(headers: &Headers<'_>, draft: &Draft, findings: &Findings) -> Option<Address> {
    let author = header_author(headers)?;
    let domain = author.domain().as_str();
    let by_dmarc = findings.dmarc.as_ref().is_some_and(|dmarc| dmarc.result == "pass");
    let by_dkim = findings.dkim.iter().any(|dkim| dkim.result == "pass" && dkim.domain.eq_ignore_ascii_case(domain));
    let sender = draft.envelope.mail_from.address();
    let by_spf = findings.spf.as_ref().is_some_and(|spf| spf.result == "pass")
        && sender.is_some_and(|sender| sender.domain() == author.domain());
    (by_dmarc || by_dkim || by_spf).then_some(author)
}

fn header_author(headers: &Headers<'_>) -> Option<Address> {
    let mut fields = headers.all("from");
    let (first, None) = (fields.next()?, fields.next()) else { return None };
    match header::mailboxes(first.value).ok()?.as_slice() {
        [only] => Some(only.address.clone()),
        _ => None,
    }
}
