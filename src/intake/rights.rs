//! What a sender may do: MAIL FROM and From of an account, recipients of a listener, sizes.

use crate::clock::Millis;
use crate::config::{Account, Config, Role, Senders};
use crate::message::header::{self, Field, Headers, Mailbox};
use crate::message::{Address, Door, Draft, ReversePath, stream};
use crate::routing::inbound::{self, Resolution, resolve};
use crate::routing::srs;
use crate::secret::Marks;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

use super::{Intake, bounces};

/// Fields besides From that say who sent a message.
const NAMING_FIELDS: [&str; 3] = ["sender", "resent-from", "resent-sender"];

impl Intake {
    /// At MAIL: may this account (none: outside, or a trusted network) use this sender, and is there
    /// room for a message of the declared size?
    pub fn sender(&self, account: Option<&str>, sender: &ReversePath, size: Option<u64>) -> Result<(), Refusal> {
        self.disk.room_for(size.unwrap_or(0))?;
        envelope_sender(&self.config, account, sender)
    }

    /// At RCPT: is this recipient taken, and may the account send to one more, after so many that the message has
    /// already?
    pub fn recipient(
        &self,
        role: Role,
        account: Option<&str>,
        sender: &ReversePath,
        (before, recipient): (usize, &Address),
    ) -> Result<(), Refusal> {
        self.takes(role, sender, recipient)?;
        account.map_or(Ok(()), |account| self.quotas.recipient(account, before as u64, self.clock.now()))
    }

    pub(super) fn takes(&self, role: Role, sender: &ReversePath, recipient: &Address) -> Result<(), Refusal> {
        match returned(&self.config, &self.marks, sender, recipient, self.clock.now())? {
            Some(_) => Ok(()),
            None => takes(&self.config, &self.marks, role, recipient),
        }
    }
}

/// Is this recipient taken at all?
pub(super) fn takes(config: &Config, marks: &Marks, role: Role, recipient: &Address) -> Result<(), Refusal> {
    if bounces::is_forged(config, marks, recipient) {
        let text = format!("<{recipient}>: this return path is not one that was given out here");
        return Err(Refusal::plain(Reply::new(550, (1, 1), text)));
    }
    match resolve(config, recipient) {
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

/// Who wrote what was forwarded, where the recipient is the return path that it left with. Only notices come
/// back there: whoever has seen such an address could write to that person through us otherwise.
pub(super) fn returned(
    config: &Config,
    marks: &Marks,
    sender: &ReversePath,
    recipient: &Address,
    now: Millis,
) -> Result<Option<Address>, Refusal> {
    if !srs::is_sealed(recipient) || !config.is_own(recipient.domain()) {
        return Ok(None);
    }
    let refuse = |detail, what: &str| {
        let text = format!("<{recipient}>: {what}");
        Err(Refusal::plain(Reply::new(550, detail, text)))
    };
    match srs::open(marks, recipient, now) {
        Ok(original) if sender.is_null() => Ok(Some(original)),
        Ok(_) => refuse((7, 1), "this return path takes notices with the null sender only"),
        Err(_) if inbound::has_alias(config, recipient) => Ok(None),
        Err(fault) => refuse((1, 1), &fault.to_string()),
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
    if account.and_then(|name| config.accounts.get(name)).is_some_and(|account| account.force_from.is_some()) {
        // Whatever it says is not sent on.
        return Ok(());
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

/// The stream that the message asks for, if it may; else that of its account. What no account sent goes
/// by the default one: what outsiders write into the field means nothing.
pub(super) fn stream(config: &Config, draft: &Draft, headers: &Headers<'_>) -> Result<String, Refusal> {
    let name = draft.origin.account.as_deref();
    let account = name.and_then(|name| config.accounts.get(name));
    let default = || account.map_or_else(stream::default_name, |account| account.stream.clone());
    let mut fields = headers.all(stream::FIELD);
    let Some(field) = fields.next().filter(|_| draft.origin.door.is_trusted()) else { return Ok(default()) };
    if fields.next().is_some() {
        let text = format!("the message has more than one {} field", stream::FIELD);
        return Err(Refusal::plain(Reply::new(550, (6, 0), text)));
    }
    let wanted = field.text().trim().to_owned();
    let may = match (&draft.origin.door, account) {
        // Who runs this server, and the server itself.
        (Door::Admin | Door::Http | Door::Bounce, None) => config.streams.contains_key(&wanted),
        (_, None) => false,
        (_, Some(account)) => account.may_use(&wanted),
    };
    if may {
        return Ok(wanted);
    }
    let shown: String = wanted.chars().take(stream::NAME_CHARS_MAX).collect();
    let (who, remedy) = match name {
        Some(name) => (format!("the account {name}"), format!("it is not among accounts.{name}.streams")),
        None => ("a client without an account".to_owned(), "only accounts may ask for one".to_owned()),
    };
    Err(Refusal {
        reply: Reply::new(550, (7, 1), format!("{who} may not send by the stream {shown:?} ({})", stream::FIELD)),
        reason: format!("{who} asks for the stream {shown:?}; {remedy}"),
    })
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
