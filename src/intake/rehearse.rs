//! What intake would decide about a message, on the configuration alone: by the same functions, without a
//! store, a look-up or a trace. Left out: what depends on what came before (limits, loops, duplicates) and
//! on DNS (checks).

use crate::clock::Millis;
use crate::config::{Config, Role};
use crate::message::header::Headers;
use crate::message::{Address, Draft, Hold};
use crate::queue::record::{Recipient, Status};
use crate::secret::Marks;
use crate::smtp::reply::Refusal;

use super::account_holds;
use super::plan::{self, Plan};
use super::rewrite::Author;
use super::rights;

/// At which command it would be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    Mail,
    Rcpt,
    Message,
}

/// What would be queued.
#[derive(Clone, Debug)]
pub struct Rehearsed {
    pub stream: String,
    /// What From says in the end.
    pub header_from: Option<Address>,
    /// It is another one than was written.
    pub is_rewritten: bool,
    /// With the reason in those that are held.
    pub deliveries: Vec<Recipient>,
    pub discarded: Vec<(Address, String)>,
    /// A copy of it leaves.
    pub leaves: bool,
    /// The domain whose keys sign it.
    pub signed_by: Option<Address>,
}

/// Goes through the decisions for a draft, as a listener of this role would. `size`: what the message is
/// taken to have.
pub fn rehearse(
    config: &Config,
    marks: &Marks,
    draft: &Draft,
    role: Role,
    size: u64,
    now: Millis,
) -> Result<Rehearsed, (At, Refusal)> {
    let account = draft.origin.account.as_deref();
    rights::envelope_sender(config, account, &draft.envelope.mail_from).map_err(|refusal| (At::Mail, refusal))?;
    for recipient in &draft.envelope.recipients {
        rights::takes(config, marks, role, &recipient.address).map_err(|refusal| (At::Rcpt, refusal))?;
    }
    let refused = |refusal| (At::Message, refusal);
    for recipient in &draft.envelope.recipients {
        plan::check_size(config, &recipient.address, size).map_err(refused)?;
    }
    let headers = Headers::parse(draft.content.head());
    if draft.origin.door.is_trusted() {
        rights::author(config, draft, &headers).map_err(refused)?;
    }
    let stream = rights::stream(config, draft, &headers).map_err(refused)?;
    let mut plan = Plan::make(config, marks, draft, &headers, now).map_err(refused)?;
    if let Some(name) = account.filter(|name| config.accounts.get(*name).is_some_and(|account| account.hold)) {
        plan.hold_all(&account_holds(name));
    }
    let leaves = plan.leaves();
    let author = Author::of(config, draft, &headers, leaves.then_some(&stream));
    let (header_from, is_rewritten) = (author.shown().cloned(), author.is_replaced());
    let may_sign = leaves && (draft.origin.door.is_trusted() || is_rewritten);
    let signed_by = header_from.clone().filter(|from| may_sign && config.is_own(from.domain()));
    let discarded = std::mem::take(&mut plan.discarded);
    let deliveries = plan.deliveries.into_iter().map(|planned| planned.recipient).collect();
    Ok(Rehearsed { stream, header_from, is_rewritten, deliveries, discarded, leaves, signed_by })
}

/// Why it would be held; none if it would not.
pub fn held(recipient: &Recipient) -> Option<&Hold> {
    match &recipient.status {
        Status::Held(hold) => Some(hold),
        _ => None,
    }
}
