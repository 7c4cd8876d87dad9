//! Who gets a draft: its recipients, led through aliases and catchall, with what the loop guard says
//! about each. Becomes the recipient records.

use std::collections::HashSet;

use crate::checks::Verdict;
use crate::checks::milter::Passed;
use crate::clock::Millis;
use crate::config::{Config, Loops};
use crate::message::{Address, Domain, Door, Draft, Recipient as Written};
use crate::queue::record::{Recipient, Route, Status};
use crate::routing::inbound::{self, Delivery, Resolution, resolve};
use crate::routing::loops::{Action, Inbound, Ruling};
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
    own: Vec<Inbound>,
    /// Places that `deliveries` has already.
    places: HashSet<(Route, String)>,
}

#[derive(Debug)]
pub struct Planned {
    pub recipient: Recipient,
    /// As written in RCPT, where that is an address of ours.
    written: Option<Address>,
}

impl Plan {
    pub fn make(config: &Config, draft: &Draft, now: Millis) -> Result<Plan, Refusal> {
        let mut plan = Plan::default();
        for written in &draft.envelope.recipients {
            match resolve(config, &written.address) {
                Resolution::NotOurs if draft.origin.door.is_trusted() => plan.add_remote(config, written, now),
                Resolution::NotOurs => {
                    let text = format!("<{}>: this server does not relay", written.address);
                    return Err(Refusal::plain(Reply::new(550, (7, 1), text)));
                }
                Resolution::Deliveries(deliveries) => {
                    check_size(config, &written.address, draft.content.len())?;
                    plan.add_own(config, written, deliveries, now);
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

    fn add_remote(&mut self, config: &Config, written: &Written, now: Millis) {
        let recipient = Recipient {
            original: written.original.clone(),
            ..waiting(written, written.address.clone(), Route::Remote, now)
        };
        self.push(config, Planned { recipient, written: None });
    }

    fn add_own(&mut self, config: &Config, written: &Written, deliveries: Vec<Delivery>, now: Millis) {
        let places = deliveries.iter().map(|delivery| inbound::describe(config, delivery)).collect();
        self.routed.push((written.address.clone(), places));
        self.own.extend(deliveries.first().map(Inbound::from));
        for delivery in deliveries {
            if delivery.discard {
                self.discarded.push((written.address.clone(), "its alias leads to the built-in target discard".into()));
                continue;
            }
            let mut recipient = waiting(written, delivery.address, delivery.route, now);
            recipient.alias = Some(written.address.clone());
            recipient.original = written.original.clone();
            if let Some(reason) = delivery.hold {
                recipient.status = Status::Held { reason };
            }
            self.push(config, Planned { recipient, written: Some(written.address.clone()) });
        }
    }

    /// A notice of ours to an address of ours that is nobody (`noreply@`): the postmaster may want to
    /// know; if there is none either, nobody does.
    fn add_bounce(&mut self, config: &Config, written: &Written, now: Millis) {
        match resolve(config, &config.postmaster) {
            Resolution::NotOurs => {
                let recipient = waiting(written, config.postmaster.clone(), Route::Remote, now);
                self.push(config, Planned { recipient, written: None });
            }
            Resolution::Deliveries(deliveries) if deliveries.iter().all(|delivery| delivery.hold.is_none()) => {
                self.add_own(config, written, deliveries, now);
            }
            _ => self.discarded.push((written.address.clone(), "a notice for an address that does not exist".into())),
        }
    }

    /// One copy for one place, however many addresses lead there.
    fn push(&mut self, config: &Config, mut planned: Planned) {
        self.stage(config, &mut planned.recipient);
        let place = (planned.recipient.route.clone(), planned.recipient.address.lookup_key());
        if self.places.insert(place) {
            self.deliveries.push(planned);
        }
    }

    /// What `redirect_all_to` and `allow_recipients` make of a recipient elsewhere. Here, so that the
    /// queue has it, whatever the configuration says later.
    fn stage(&mut self, config: &Config, recipient: &mut Recipient) {
        if recipient.route != Route::Remote || config.is_own(recipient.address.domain()) {
            return;
        }
        let delivery = &config.delivery;
        if let Some(only) = &delivery.redirect_all_to
            && only.lookup_key() != recipient.address.lookup_key()
        {
            let meant = std::mem::replace(&mut recipient.address, only.clone());
            self.routed.push((meant.clone(), vec![format!("{only}, because of delivery.redirect_all_to")]));
            recipient.alias.get_or_insert(meant);
        }
        if let (Status::Waiting { .. }, Some(reason)) = (&recipient.status, delivery.forbids(&recipient.address)) {
            recipient.status = Status::Held { reason };
        }
    }

    /// Does what the checks and the milters want of a message that they let in.
    pub fn obey(&mut self, verdict: &Verdict, passed: &Passed) {
        if let Some(reason) = &passed.discard {
            return self.discard_all(reason);
        }
        if let Some(reason) = &passed.hold {
            self.hold_all(reason);
        }
        if let Verdict::Hold(reason) = verdict {
            self.hold_all(reason);
        }
    }

    /// There is nothing left for the loop guard to count, either.
    fn discard_all(&mut self, reason: &str) {
        self.deliveries.clear();
        for own in std::mem::take(&mut self.own) {
            if self.discarded.iter().all(|(address, _)| *address != own.address) {
                self.discarded.push((own.address, reason.to_owned()));
            }
        }
    }

    pub fn hold_all(&mut self, reason: &str) {
        for planned in &mut self.deliveries {
            planned.recipient.status = Status::Held { reason: reason.to_owned() };
        }
    }

    /// Does a copy of it go elsewhere?
    pub fn leaves(&self) -> bool {
        self.deliveries.iter().any(|delivery| delivery.recipient.route == Route::Remote)
    }

    /// The domain of ours whose alias sends it elsewhere; the first, if there are several.
    pub fn forwarder(&self) -> Option<&Domain> {
        let forwarded = |planned: &&Planned| planned.recipient.route == Route::Remote && planned.written.is_some();
        self.deliveries.iter().find(forwarded)?.written.as_ref().map(Address::domain)
    }

    /// The addresses of ours that were written in RCPT, for the loop guard.
    pub fn guarded(&self) -> &[Inbound] {
        &self.own
    }

    /// Does what the loop guard ruled, one verdict per address of [`Plan::guarded`]; or the message
    /// is refused as a whole.
    pub fn apply_loops(&mut self, config: &Loops, ruling: &Ruling) -> Result<(), Refusal> {
        let others = self.deliveries.iter().any(|planned| planned.written.is_none());
        let actions = ruling.settle(config, others)?;
        let written: Vec<Address> = self.own.iter().map(|own| own.address.clone()).collect();
        for (address, action) in written.iter().zip(actions) {
            match action {
                Action::Take => {}
                Action::Hold(reason) => self.hold(address, &reason),
                Action::Discard(reason) => self.discard(address, &reason),
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
        by_hand: None,
    }
}

pub(super) fn check_size(config: &Config, address: &Address, size: u64) -> Result<(), Refusal> {
    let limit = config.domains.get(address.domain()).and_then(|domain| domain.max_size);
    match limit {
        Some(limit) if size > limit => {
            let text =
                format!("<{address}>: messages for {} may have {limit} bytes, this one has {size}", address.domain());
            Err(Refusal::plain(Reply::new(552, (3, 4), text)))
        }
        _ => Ok(()),
    }
}
