//! Looking at the queue and choosing from it, for people: by id, address, domain, status or age.
//!
//! A listing walks the messages in order of arrival and stops at its limit; it never holds more
//! than one page.

use crate::clock::Millis;
use crate::message::MessageId;
use crate::store::{StoreError, Table};

use super::record::{Message, Recipient, Status};
use super::{Queue, keys};

/// What to choose. An empty filter chooses everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub ids: Vec<MessageId>,
    /// Part of a recipient's address, without regard to case.
    pub to: Option<String>,
    /// Part of the envelope sender.
    pub from: Option<String>,
    /// Domain of the recipient.
    pub domain: Option<String>,
    pub status: Option<StatusName>,
    /// Received before this time.
    pub received_before: Option<Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusName {
    Waiting,
    Held,
    Captured,
}

impl StatusName {
    pub fn of(status: &Status) -> StatusName {
        match status {
            Status::Waiting { .. } => StatusName::Waiting,
            Status::Held { .. } => StatusName::Held,
            Status::Captured { .. } => StatusName::Captured,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            StatusName::Waiting => "waiting",
            StatusName::Held => "held",
            StatusName::Captured => "captured",
        }
    }
}

/// A message with those of its recipients that were chosen.
#[derive(Clone, Debug)]
pub struct Selected {
    pub message: Message,
    pub recipients: Vec<(u32, Recipient)>,
}

impl Filter {
    fn takes_message(&self, message: &Message) -> bool {
        let from = || message.mail_from.to_string().to_lowercase();
        self.from.as_ref().is_none_or(|part| from().contains(&part.to_lowercase()))
            && self.received_before.is_none_or(|before| message.received_at < before)
    }

    fn takes_recipient(&self, recipient: &Recipient) -> bool {
        let address = || recipient.address.to_string().to_lowercase();
        let alias = || recipient.alias.as_ref().map(|alias| alias.to_string().to_lowercase());
        let has = |part: &str| address().contains(part) || alias().is_some_and(|alias| alias.contains(part));
        self.to.as_ref().is_none_or(|part| has(&part.to_lowercase()))
            && self.domain.as_ref().is_none_or(|domain| recipient.address.domain().as_str().eq_ignore_ascii_case(domain))
            && self.status.is_none_or(|status| StatusName::of(&recipient.status) == status)
    }
}

impl Queue {
    /// Up to `limit` messages after `after`, oldest first.
    pub fn select(&self, filter: &Filter, after: Option<MessageId>, limit: usize) -> Result<Vec<Selected>, StoreError> {
        let mut selected = Vec::new();
        if !filter.ids.is_empty() {
            let mut ids: Vec<MessageId> = filter.ids.iter().copied().filter(|id| after.is_none_or(|after| *id > after)).collect();
            ids.sort();
            ids.dedup();
            for id in ids.into_iter().take(limit) {
                if let Some(message) = self.message(id)? {
                    selected.extend(self.matching(filter, message)?);
                }
            }
            return Ok(selected);
        }
        let from = after.map_or(0, |after| after.as_u64().saturating_add(1)).to_be_bytes();
        for entry in self.store().range(Table::Message, &from, &[0xff; 9])? {
            let message: Message = keys::decode(&entry?.1)?;
            selected.extend(self.matching(filter, message)?);
            if selected.len() >= limit {
                break;
            }
        }
        Ok(selected)
    }

    fn matching(&self, filter: &Filter, message: Message) -> Result<Option<Selected>, StoreError> {
        if !filter.takes_message(&message) {
            return Ok(None);
        }
        let mut recipients = self.recipients(message.id)?;
        recipients.retain(|(_, recipient)| filter.takes_recipient(recipient));
        Ok((!recipients.is_empty()).then_some(Selected { message, recipients }))
    }
}
