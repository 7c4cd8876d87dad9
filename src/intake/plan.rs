//! Who gets a draft: its recipients, led through aliases and catchall, with what the loop guard says
//! about each. Becomes the recipient records. Bounces of what was forwarded go back to who wrote it.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use crate::checks::Verdict;
use crate::checks::milter::Passed;
use crate::clock::Millis;
use crate::config::{AliasLimits, Config, Loops, WayOut};
use crate::message::header::Headers;
use crate::message::{Address, Domain, Door, Draft, Hold, Recipient as Written};
use crate::queue::record::{Recipient, Route, Status};
use crate::routing::inbound::{self, Delivery, Resolution, resolve};
use crate::routing::loops::{Action, Inbound, Ruling, Via};
use crate::routing::sender;
use crate::secret::Marks;
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
    /// Where in `deliveries` a place is.
    places: HashMap<(Route, String), usize>,
    /// Who wrote it, by lookup keys: it is not forwarded to them.
    senders: Vec<String>,
    /// Of whom it is told that `redirect_all_to` leads elsewhere, by lookup keys.
    redirected: HashSet<String>,
}

#[derive(Debug)]
pub struct Planned {
    pub recipient: Recipient,
    /// The addresses of ours, as written in RCPT, that lead here.
    written: Vec<Address>,
}

impl Plan {
    pub fn make(
        config: &Config,
        marks: &Marks,
        draft: &Draft,
        headers: &Headers<'_>,
        now: Millis,
    ) -> Result<Plan, Refusal> {
        let senders = sender::names(headers, &draft.envelope.mail_from).iter().map(Address::lookup_key).collect();
        let mut plan = Plan { senders, ..Plan::default() };
        for written in &draft.envelope.recipients {
            if let Some(original) = rights::returned(config, marks, &draft.envelope.mail_from, &written.address, now)? {
                plan.add_returned(config, written, original, now);
                continue;
            }
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
        self.push(config, Planned { recipient, written: Vec::new() });
    }

    /// A bounce of what was forwarded, to `original`, who wrote that. It is on its way already, so it is not
    /// judged by where `original` is.
    fn add_returned(&mut self, config: &Config, written: &Written, original: Address, now: Millis) {
        let address = written.address.clone();
        self.routed.push((address.clone(), vec![format!("{original}, who wrote what was forwarded")]));
        self.own.push(Inbound {
            counted_as: address.lookup_key(),
            address: address.clone(),
            limits: AliasLimits::default(),
            via: Via::Returned,
            always: true,
            exempt: false,
        });
        let mut recipient = waiting(written, original, Route::Remote, now);
        recipient.alias = Some(address.clone());
        self.push(config, Planned { recipient, written: vec![address] });
    }

    fn add_own(&mut self, config: &Config, written: &Written, deliveries: Vec<Delivery>, now: Millis) {
        let places = deliveries.iter().map(|delivery| inbound::describe(config, delivery)).collect();
        self.routed.push((written.address.clone(), places));
        let always = inbound::is_always_taken(config, &written.address);
        self.own.extend(deliveries.first().map(|delivery| Inbound { always, ..Inbound::from(delivery) }));
        for delivery in deliveries {
            let is_forward = delivery.route == Route::Remote && delivery.hold.is_none();
            if is_forward && self.senders.contains(&delivery.address.lookup_key()) {
                let reason = format!("it would go back to {}, who sent it", delivery.address);
                self.discarded.push((written.address.clone(), reason));
                continue;
            }
            if delivery.discard {
                self.discarded.push((written.address.clone(), "its alias leads to the built-in target discard".into()));
                continue;
            }
            let mut recipient = waiting(written, delivery.address, delivery.route, now);
            recipient.alias = Some(written.address.clone());
            recipient.original = written.original.clone();
            if let Some(hold) = delivery.hold {
                recipient.status = Status::Held(hold);
            }
            self.push(config, Planned { recipient, written: vec![written.address.clone()] });
        }
    }

    /// A notice of ours to an address of ours that is nobody (`noreply@`): the postmaster may want to
    /// know; if there is none either, nobody does.
    fn add_bounce(&mut self, config: &Config, written: &Written, now: Millis) {
        match resolve(config, &config.postmaster) {
            Resolution::NotOurs => {
                let recipient = waiting(written, config.postmaster.clone(), Route::Remote, now);
                self.push(config, Planned { recipient, written: Vec::new() });
            }
            Resolution::Deliveries(deliveries) if deliveries.iter().all(|delivery| delivery.hold.is_none()) => {
                self.add_own(config, written, deliveries, now);
            }
            _ => self.discarded.push((written.address.clone(), "a notice for an address that does not exist".into())),
        }
    }

    /// Where it goes is changed by `redirect_all_to` first.
    fn push(&mut self, config: &Config, planned: Planned) {
        let places = match inbound::only_places(config) {
            Some(places) if is_redirected(config, &planned) => places,
            _ => return self.put(config, planned),
        };
        let Planned { recipient, written } = planned;
        let meant = match (&recipient.route, &recipient.alias) {
            (Route::Target(_), Some(alias)) => alias.clone(),
            _ => recipient.address.clone(),
        };
        if let Some(only) = &config.delivery.redirect_all_to
            && self.redirected.insert(meant.lookup_key())
        {
            self.routed.push((meant.clone(), vec![format!("{only}, because of delivery.redirect_all_to")]));
        }
        let alias = recipient.alias.clone().or(Some(meant));
        for (address, route) in places {
            let recipient = Recipient { address, route, alias: alias.clone(), ..recipient.clone() };
            self.put(config, Planned { recipient, written: written.clone() });
        }
    }

    /// One copy for one place, however many addresses lead there.
    fn put(&mut self, config: &Config, mut planned: Planned) {
        forbid(config, &mut planned.recipient);
        let place = (planned.recipient.route.clone(), planned.recipient.address.lookup_key());
        match self.places.entry(place) {
            Entry::Vacant(entry) => {
                entry.insert(self.deliveries.len());
                self.deliveries.push(planned);
            }
            Entry::Occupied(at) => {
                if let Some(known) = self.deliveries.get_mut(*at.get()) {
                    known.join(planned);
                }
            }
        }
    }

    /// Does what the checks and the milters want of a message that they let in.
    pub fn obey(&mut self, verdict: &Verdict, passed: &Passed) {
        if let Some(reason) = &passed.discard {
            return self.discard_all(reason);
        }
        if let Some(hold) = &passed.hold {
            self.hold_all(hold);
        }
        if let Verdict::Hold(hold) = verdict {
            self.hold_all(hold);
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

    pub fn hold_all(&mut self, hold: &Hold) {
        for planned in &mut self.deliveries {
            planned.recipient.status = Status::Held(hold.clone());
        }
    }

    /// Does another mail server get a copy, from which it may come back?
    pub fn passes_on(&self, config: &Config) -> bool {
        self.deliveries.iter().any(|delivery| inbound::passes_on(config, &delivery.recipient.route))
    }

    /// Does a copy of it go elsewhere?
    pub fn leaves(&self) -> bool {
        self.deliveries.iter().any(|delivery| delivery.recipient.route == Route::Remote)
    }

    /// The domain of ours whose alias sends it elsewhere; the first, if there are several.
    pub fn forwarder(&self) -> Option<&Domain> {
        let forwarded = |planned: &&Planned| planned.recipient.route == Route::Remote && !planned.written.is_empty();
        self.deliveries.iter().find(forwarded)?.written.first().map(Address::domain)
    }

    /// Return paths of ours whose mail has been read and done with: nobody else gets it, unless an alias
    /// is set for the address. They do not count against its limit.
    pub fn leave_out(&mut self, config: &Config, taken: &[Address]) {
        for address in taken {
            self.own.retain(|own| own.address != *address);
            if !inbound::has_alias(config, address) {
                self.deliveries.retain_mut(|planned| !planned.was_only_for(address));
                self.routed.retain(|(written, _)| written != address);
                self.routed.push((address.clone(), vec!["what is done with bounces".to_owned()]));
            }
        }
    }

    /// The addresses elsewhere.
    pub fn remote(&self) -> Vec<Address> {
        let remote = self.deliveries.iter().filter(|planned| planned.recipient.route == Route::Remote);
        remote.map(|planned| planned.recipient.address.clone()).collect()
    }

    /// They get nothing.
    pub fn skip(&mut self, suppressed: &[(Address, String)]) {
        let skipped = |recipient: &Recipient| suppressed.iter().any(|(address, _)| *address == recipient.address);
        self.deliveries.retain(|planned| planned.recipient.route != Route::Remote || !skipped(&planned.recipient));
    }

    /// The addresses of ours that were written in RCPT, for the loop guard.
    pub fn guarded(&self) -> &[Inbound] {
        &self.own
    }

    /// Does what the loop guard ruled, one verdict per address of [`Plan::guarded`]; or the message
    /// is refused as a whole.
    pub fn apply_loops(&mut self, config: &Loops, door: &Door, ruling: &Ruling) -> Result<(), Refusal> {
        // Who put a file into a folder hears of no refusal, nor does who wrote what was fetched: it is held, where
        // a person sees it.
        let unheard = matches!(door, Door::Pickup { .. } | Door::Fetch { .. });
        let others = unheard || self.deliveries.iter().any(|planned| planned.written.is_empty());
        let actions = ruling.settle(config, others)?;
        let answered = ruling.answers.as_ref().map(|sent| match &sent.account {
            Some(account) => format!("as an answer to {} of the account {account}", sent.id),
            None => format!("as an answer to {}", sent.id),
        });
        let mut ruled = HashMap::new();
        for (own, action) in self.own.iter().zip(actions) {
            if let Action::Discard(reason) = &action {
                self.discarded.push((own.address.clone(), reason.clone()));
            }
            if let Some((_, to)) = self.routed.iter_mut().find(|(alias, _)| *alias == own.address) {
                to.extend(answered.clone().filter(|_| own.via != Via::Returned));
            }
            ruled.insert(own.address.clone(), action);
        }
        self.deliveries.retain_mut(|planned| planned.apply(&ruled));
        Ok(())
    }
}

impl Planned {
    /// Another address leads to the same place.
    fn join(&mut self, other: Planned) {
        // What is held for one of them alone is not held.
        if let (Status::Held { .. }, Status::Waiting { .. }) = (&self.recipient.status, &other.recipient.status) {
            self.recipient.status = other.recipient.status;
        }
        self.written.extend(other.written);
    }

    /// Takes an address away; true if it had no other.
    fn was_only_for(&mut self, address: &Address) -> bool {
        let had = self.written.len();
        self.written.retain(|written| written != address);
        self.written.is_empty() && had > 0
    }

    /// False if none of its addresses takes the message. Where one does, the place gets it.
    fn apply(&mut self, ruled: &HashMap<Address, Action>) -> bool {
        let actions: Vec<(&Address, &Action)> =
            self.written.iter().filter_map(|address| Some((address, ruled.get(address)?))).collect();
        if actions.is_empty() {
            return true;
        }
        let find = |wanted: fn(&Action) -> bool| actions.iter().find(|(_, action)| wanted(action));
        let chosen =
            find(|action| *action == Action::Take).or_else(|| find(|action| matches!(action, Action::Hold(_))));
        let Some((address, action)) = chosen else { return false };
        self.recipient.alias = Some((*address).clone());
        if let Action::Hold(hold) = action {
            self.recipient.status = Status::Held(hold.clone());
        }
        true
    }
}

/// Does `redirect_all_to` hold for it? Here, so that the queue has it, whatever the configuration says later.
fn is_redirected(config: &Config, planned: &Planned) -> bool {
    let Planned { recipient, written } = planned;
    if is_elsewhere(config, recipient) {
        // What is captured does not leave. If a person lets it go, it is looked at then.
        return config.delivery.default != WayOut::Capture && !inbound::is_only(config, &recipient.address);
    }
    !written.iter().any(|written| inbound::is_left_alone(config, written))
}

/// What `allow_recipients` makes of a recipient elsewhere.
fn forbid(config: &Config, recipient: &mut Recipient) {
    if !is_elsewhere(config, recipient) || config.delivery.default == WayOut::Capture {
        return;
    }
    if let (Status::Waiting { .. }, Some(hold)) = (&recipient.status, config.delivery.forbids(&recipient.address)) {
        recipient.status = Status::Held(hold);
    }
}

fn is_elsewhere(config: &Config, recipient: &Recipient) -> bool {
    recipient.route == Route::Remote && !config.is_own(recipient.address.domain())
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
        released: None,
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
