//! What a sender may do: MAIL FROM and From of an account, recipients of a listener, sizes.

use crate::config::{Account, Config, Role, Senders};
use crate::message::header::{self, Field, Headers, Mailbox};
use crate::message::{Address, Draft, ReversePath};
use crate::routing::inbound::{Resolution, resolve};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

use super::Intake;

/// Fields besides From that say who sent a message.
const NAMING_FIELDS: [&str; 3] = ["sender", "resent-from", "resent-sender"];

impl Intake {
    /// At MAIL: may this account (none: outside, or a trusted network) use this sender, and is there
    /// room for a message of the declared size?
    pub fn sender(&self, account: Option<&str>, sender: &ReversePath, size: Option<u64>) -> Result<(), Refusal> {
        self.disk.room_for(size.unwrap_or(0))?;
        envelope_sender(&self.config, account, sender)
    }

    /// At RCPT: is this recipient taken?
    pub fn recipient(&self, role: Role, recipient: &Address) -> Result<(), Refusal> {
        match resolve(&self.config, recipient) {
            Resolution::Deliveries(_) => Ok(()),
            Resolution::NotOurs if role == Role::Submission => Ok(()),
            Resolution::NotOurs => Err(Refusal::plain(Reply::new(
                550,
                (7, 1),
                "this server takes mail for its own domains only; to send, log in on the submission port",
            ))),
            Resolution::Unknown => Err(unknown(recipient)),
            Resolution::Rejected => Err(rejected(recipient)),
        }
    }
}

pub(super) fn unknown(recipient: &Address) -> Refusal {
    Refusal::plain(Reply::new(550, (1, 1), format!("<{recipient}>: there is no such address here")))
}

pub(super) fn rejected(recipient: &Address) -> Refusal {
    Refusal::plain(Reply::new(550, (7, 1), format!("<{recipient}>: this address takes no mail")))
}

fn find<'a>(config: &'a Config, name: &str) -> Result<&'a Account, Refusal> {
    let account = config.accounts.get(name).filter(|account| account.active);
    account.ok_or_else(|| {
        Refusal::plain(Reply::new(550, (7, 1), format!("the account {name} does not exist or is not active")))
    })
}

/// MAIL FROM must be the account's own. The null sender is, for notices that an application writes.
pub(super) fn envelope_sender(config: &Config, account: Option<&str>, sender: &ReversePath) -> Result<(), Refusal> {
    let (Some(name), ReversePath::Address(address)) = (account, sender) else { return Ok(()) };
    let account = find(config, name)?;
    if config.may_send_as(account, address) { Ok(()) } else { Err(not_yours(config, name, account, address)) }
}

/// The From of what an account submits must be its own, and so must every other field that says who
/// sent it; there is exactly one From field, or none (then it is added from MAIL FROM, RFC 6409 8.1).
pub(super) fn author(config: &Config, draft: &Draft, headers: &Headers<'_>) -> Result<(), Refusal> {
    let account = draft.origin.account.as_deref();
    envelope_sender(config, account, &draft.envelope.mail_from)?;
    if let Some(name) = account {
        // What readers show beside or in place of From (RFC 5322 3.6.2 and 3.6.6).
        for field in NAMING_FIELDS.iter().flat_map(|field| headers.all(field)) {
            all_own(config, name, &named(field)?)?;
        }
    }
    let mut fields = headers.all("from");
    let Some(from) = fields.next() else { return missing_author(draft) };
    if fields.next().is_some() {
        let text = "the message has more than one From field; RFC 5322 3.6 allows one";
        return Err(Refusal::plain(Reply::new(550, (6, 0), text)));
    }
    let authors = named(from)?;
    match account {
        // An empty group is a name without an address: nobody to hold the rights of.
        Some(_) if authors.is_empty() => {
            let text = "the From field names no mailbox; give the address that the message is from";
            Err(Refusal::plain(Reply::new(550, (6, 0), text)))
        }
        Some(name) => all_own(config, name, &authors),
        None if authors.is_empty() => missing_author(draft),
        None => Ok(()),
    }
}

fn named(field: &Field<'_>) -> Result<Vec<Mailbox>, Refusal> {
    header::mailboxes(field.value).map_err(|error| {
        let name = String::from_utf8_lossy(field.name).into_owned();
        Refusal::plain(Reply::new(550, (6, 0), format!("the {name} field cannot be understood: {error}")))
    })
}

fn all_own(config: &Config, name: &str, named: &[Mailbox]) -> Result<(), Refusal> {
    let account = find(config, name)?;
    match named.iter().find(|mailbox| !config.may_send_as(account, &mailbox.address)) {
        None => Ok(()),
        Some(other) => Err(not_yours(config, name, account, &other.address)),
    }
}

fn missing_author(draft: &Draft) -> Result<(), Refusal> {
    match draft.envelope.mail_from {
        ReversePath::Address(_) => Ok(()),
        ReversePath::Null => {
            Err(Refusal::plain(Reply::new(550, (6, 0), "the message has no From field and no envelope sender")))
        }
    }
}

fn not_yours(config: &Config, name: &str, account: &Account, address: &Address) -> Refusal {
    let allowed = match &account.senders {
        Senders::OwnDomains => config.domains.keys().map(|domain| domain.to_string()).collect::<Vec<_>>().join(", "),
        Senders::Only(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    };
    Refusal {
        reply: Reply::new(553, (7, 1), format!("the account {name} may not send as <{address}>")),
        reason: format!("{address} is not among the senders of accounts.{name} ({allowed})"),
    }
}
