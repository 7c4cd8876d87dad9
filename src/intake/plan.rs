//! Who gets a draft: its recipients, led through aliases and catchall, with what the loop guard says
//! about each. Becomes the recipient records.

use crate::clock::Millis;
use crate::config::{Config, OnAutomatic, OnLimit};
use crate::message::{Address, Door, Draft, MessageId, Recipient as Written};
use crate::queue::record::{Recipient, Route, Status};
use crate::routing::inbound::{self, Delivery, Resolution, resolve};
use crate::routing::loops::RecipientRuling;
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

use super::rights;

/// The deliveries of one draft, and what to tell of how they came to be.
#[derive(Debug, Default)]
pub struct Plan {
    pub deliveries: Vec<Planned>,
    /// One per written recipient that is ours: where it leads.
    pub routed: Vec<(Address, Vec<String>)>,
    pub discarded: Vec<(Address, String)>,
    /// For addresses of ours, in the order of RCPT: what the loop guard judges.
    own: Vec<(Address, bool)>,
}

#[derive(Debug)]
pub struct Planned {
    pub recipient: Recipient,
    /// As written in RCPT, where that is an address of ours.
    written: Option<Address>,
}

impl Plan {
    pub fn make(config: &Config, draft: &Draft, _id: MessageId, now: Millis) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        for written in &draft.envelope.recipients {
            match resolve(config, &written.address) {
                Resolution::NotOurs if draft.origin.door.is_trusted() => plan.add_remote(written, now),
                Resolution::NotOurs => {
                    let text = format!("<{}>: this server does not relay", written.address);
                    return Err(Refusal::plain(Reply::new(550, (7, 1), text)));
                }
                Resolution::Deliveries(deliveries) => {
                    check_size(config, &written.address, draft.content.len() as u64)?;
                    plan.add_own(written, deliveries, now);
                }
                Resolution::Unknown if draft.origin.door == Door::Bounce => plan.add_bounce(config, written, now),
                Resolution::Unknown => return Err(rights::unknown(&written.address)),
                Resolution::Rejected if draft.origin.door == Door::Bounce => {
                    plan.discarded.push((written.address.clone(), "this address takes no mail".into()));
                }
                Resolution::Rejected => return Err(rights::rejected(&written.address)),
            }
        }
        Ok(plan)
    }

    fn add_remote(&mut self, written: &Written, now: Millis) {
        let recipient = Recipient { original: written.original.clone(), ..waiting(written, written.address.clone(), Route::Remote, now) };
        self.push(Planned { recipient, written: None });
    }

    fn add_own(&mut self, written: &Written, deliveries: Vec<Delivery>, now: Millis) {
        self.routed.push((written.address.clone(), deliveries.iter().map(inbound::describe).collect()));
        self.own.push((written.address.clone(), deliveries.iter().any(|delivery| delivery.via_catchall)));
        for delivery in deliveries {
            if delivery.discard {
                self.discarded.push((delivery.alias, "its alias is the built-in target discard".into()));
                continue;
            }
            let mut recipient = waiting(written, delivery.address, delivery.route, now);
            recipient.alias = Some(written.address.clone());
            recipient.original = written.original.clone();
            if let Some(reason) = delivery.hold {
                recipient.status = Status::Held { reason };
            }
            self.push(Planned { recipient, written: Some(written.address.clone()) });
        }
    }

    /// A notice of ours to an address of ours that is nobody (`noreply@`): the postmaster may want to
    /// know; if there is none either, nobody does.
    fn add_bounce(&mut self, config: &Config, written: &Written, now: Millis) {
        match resolve(config, &config.postmaster) {
            Resolution::NotOurs => {
                let recipient = waiting(written, config.postmaster.clone(), Route::Remote, now);
                self.push(Planned { recipient, written: None });
            }
            Resolution::Deliveries(deliveries) if deliveries.iter().all(|delivery| delivery.hold.is_none()) => {
                self.add_own(written, deliveries, now);
            }
            _ => self.discarded.push((written.address.clone(), "a notice for an address that does not exist".into())),
        }
    }

    /// One copy for one place, however many addresses lead there.
    fn push(&mut self, planned: Planned) {
        let same = |other: &Planned| {
            other.recipient.route == planned.recipient.route
                && other.recipient.address.lookup_key() == planned.recipient.address.lookup_key()
        };
        if !self.deliveries.iter().any(same) {
            self.deliveries.push(planned);
        }
    }

    pub fn hold_all(&mut self, reason: &str) {
        for planned in &mut self.deliveries {
            planned.recipient.status = Status::Held { reason: reason.to_owned() };
        }
    }

    /// The addresses of ours that were written in RCPT, and whether the catchall takes them.
    pub fn guarded(&self) -> Vec<(Address, bool)> {
        self.own.clone()
    }

    /// Does what the loop guard ruled, one ruling per address of [`Plan::guarded`]. If every
    /// recipient of the message is over its limit, the message is refused (or what `on_limit` says);
    /// if only some are, their copies are held, because one reply cannot refuse a part.
    pub fn apply_loops(&mut self, config: &crate::config::Loops, rulings: Vec<RecipientRuling>) -> Result<(), Refusal> {
        let all = rulings.len() == self.own.len()
            && self.deliveries.iter().all(|planned| planned.written.is_some())
            && rulings.iter().all(|ruling| matches!(ruling, RecipientRuling::Violation { .. }));
        if all
            && let Some(RecipientRuling::Violation { reason, .. }) = rulings.first()
            && let Some(refusal) = refusal_on_limit(config.on_limit, reason)
        {
            return Err(refusal);
        }
        let own: Vec<Address> = self.own.iter().map(|(address, _)| address.clone()).collect();
        for (address, ruling) in own.iter().zip(rulings) {
            match ruling {
                RecipientRuling::Pass => {}
                RecipientRuling::Duplicate { reason } => self.discard(address, &reason),
                RecipientRuling::Violation { reason, .. } if config.on_limit == OnLimit::Discard => self.discard(address, &reason),
                RecipientRuling::Violation { reason, .. } => self.hold(address, &reason),
                RecipientRuling::Automatic { policy: OnAutomatic::Hold, reason } => self.hold(address, &reason),
                RecipientRuling::Automatic { policy: OnAutomatic::Discard, reason } => self.discard(address, &reason),
                RecipientRuling::Automatic { policy: OnAutomatic::Reject, reason } => {
                    return Err(Refusal { reply: Reply::new(550, (7, 1), "this address takes no automatic mail"), reason });
                }
                RecipientRuling::Automatic { policy: OnAutomatic::Accept, .. } => {}
            }
        }
        Ok(())
    }

    fn hold(&mut self, written: &Address, reason: &str) {
        for planned in self.deliveries.iter_mut().filter(|planned| planned.written.as_ref() == Some(written)) {
            planned.recipient.status = Status::Held { reason: reason.to_owned() };
        }
    }

    fn discard(&mut self, written: &Address, reason: &str) {
        self.deliveries.retain(|planned| planned.written.as_ref() != Some(written));
        self.discarded.push((written.clone(), reason.to_owned()));
    }
}

fn refusal_on_limit(on_limit: OnLimit, reason: &str) -> Option<Refusal> {
    match on_limit {
        OnLimit::Reject => Some(Refusal::plain(Reply::new(554, (4, 6), reason.to_owned()))),
        OnLimit::Defer => Some(Refusal::plain(Reply::new(450, (7, 1), reason.to_owned()))),
        OnLimit::Hold | OnLimit::Discard => None,
    }
}

fn waiting(written: &Written, address: Address, route: Route, now: Millis) -> Recipient {
    Recipient {
        address,
        alias: None,
        route,
        notify: written.notify,
        original: None,
        status: Status::Waiting { due: now },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
    }
}

fn check_size(config: &Config, address: &Address, size: u64) -> Result<(), Refusal> {
    let limit = config.domains.get(address.domain()).and_then(|domain| domain.max_size);
    match limit {
        Some(limit) if size > limit => {
            let text = format!("<{address}>: messages for {} may have {limit} bytes, this one has {size}", address.domain());
            Err(Refusal::plain(Reply::new(552, (3, 4), text)))
        }
        _ => Ok(()),
    }
}
