//! The dispatcher: takes what is due, gives each lane and each destination its turn, starts attempts.
//!
//! It sleeps until something is committed, finished or due; it never polls. What it holds in memory
//! is bounded by the claims. Attempts at once are shared out as claims are: each lane has some of its
//! own, and one destination has at most what is configured, fewer when few are left for the others or
//! when its servers have complained (`throttle`). So a slow one holds up its own mail only, however many
//! of them there are, and new mail does not wait for retries to end. Domains whose mail goes to the same
//! servers are one destination (`groups`). What is behind a closed gate (`queue::gate`) does not start; a
//! job that is larger than what its stream may send now is cut in two. What an outcome means for the
//! queue is decided in `settle`.

mod answers;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clock::Millis;
use crate::config::Config;
use crate::queue::Claimed;
use crate::queue::claim::Look;
use crate::queue::gate::Lanes;
use crate::queue::lane::Lane;
use crate::queue::record::{Failure, Recipient, Route};
use crate::routing::outbound::{self, Way};

use super::Destination;
pub use super::attempt::{NOTING_MAX, Parts};
use super::attempt::{Note, STORE_TROUBLE_WAIT, TurnTaken, Waiting, attempt, unless_it_panics};
use super::groups::{Groups, LOOK_UP_TIME};
use super::kept;
use super::put_off::{PutOff, put_off};
use super::standing::{self, Inquiry};
use super::throttle::{Sign, Throttles};
use super::turns::{Allowance, Turns};

/// Longest sleep: a clock that is set forward while we wait makes things due without a sound.
const SLEEP_MAX: Duration = Duration::from_secs(60);
/// A job whose destination may not be tried for longer than this, in milliseconds, goes back into the
/// queue, and its claim to others.
const PAUSE_WAITED_FOR: Millis = 15_000;
/// The same for a job whose turn does not come for longer, because of a rate.
const RATE_WAITED_FOR: Millis = 60_000;
/// Between two jobs of a destination that go back into the queue together, in milliseconds.
const SPREAD: Millis = 100;

/// Hands the dispatcher what it works with from now on. Attempts under way end as they began.
#[derive(Clone, Debug)]
pub struct Changes(mpsc::UnboundedSender<Note>);

impl Changes {
    pub fn take(&self, parts: Arc<Parts>) {
        // The dispatcher may have stopped; then nothing begins any more.
        let _ = self.0.send(Note::Changed(parts));
    }
}

pub struct Dispatcher {
    parts: Arc<Parts>,
    fresh: mpsc::UnboundedReceiver<Claimed>,
    notes: mpsc::UnboundedReceiver<Note>,
    tell: mpsc::UnboundedSender<Note>,
    turns: Turns<Waiting>,
    /// At the last look at the gates: the lanes of which something could start, and those that were shut
    /// for longer than an attempt takes.
    open: Lanes,
    shut: Lanes,
    groups: Groups<Waiting>,
    throttles: Throttles,
    /// Destinations of which the store says something else than `throttles`.
    unkept: HashSet<Destination>,
    /// They are being written.
    is_keeping: bool,
    late: Vec<PutOff>,
    /// What the last one waits more than its destination's pause, in milliseconds.
    spread: Millis,
    /// A part of the due index could not be read: when it is tried again.
    trouble_until: Option<Instant>,
    /// Once is enough: a piece that stays damaged has nothing in it any more that is missed.
    index_made_anew: bool,
    /// How many damages of the store are known; a new one may have taken entries of the index with it.
    damages: usize,
}

impl Dispatcher {
    pub fn new(parts: Arc<Parts>, fresh: mpsc::UnboundedReceiver<Claimed>) -> Dispatcher {
        let (tell, notes) = mpsc::unbounded_channel();
        let streams = parts.queue.streams();
        let retries: HashSet<usize> =
            streams.lanes().into_iter().filter(|lane| lane.is_retry()).map(Lane::index).collect();
        let is_retry = |lane: usize| retries.contains(&lane);
        let turns = Turns::new(parts.config.delivery.concurrency, streams.weights(), is_retry);
        let (throttles, unkept) = kept::load(parts.queue.store(), parts.clock.now()).unwrap_or_else(|error| {
            tracing::warn!(%error, "which servers have asked us to go slow cannot be read; they will have to ask again");
            (Throttles::default(), Vec::new())
        });
        // The queue has looked after those when it was opened.
        let damages = parts.queue.store().damage_count();
        let (open, shut) = parts.queue.gates().look();
        Dispatcher {
            groups: Groups::new(parts.config.destinations.clone()),
            parts,
            fresh,
            notes,
            tell,
            turns,
            throttles,
            unkept: unkept.into_iter().collect(),
            is_keeping: false,
            late: Vec::new(),
            spread: 0,
            open,
            shut,
            trouble_until: None,
            index_made_anew: false,
            damages,
        }
    }

    /// Runs until `shutdown`; attempts that have started are in `attempts` and go on.
    pub async fn run(mut self, attempts: TaskTracker, shutdown: CancellationToken) {
        loop {
            self.mind_damages(&attempts);
            self.start(&attempts);
            let mut sleep = match self.parts.queue.claims().look(self.parts.clock.now()) {
                Look::Now => {
                    self.scan(&attempts);
                    self.start(&attempts);
                    Duration::ZERO
                }
                Look::At(due) => Duration::from_millis(due.saturating_sub(self.parts.clock.now())).min(SLEEP_MAX),
                Look::Later => SLEEP_MAX,
            };
            if let Some(wake) = self.turns.next_wake() {
                sleep = sleep.min(Duration::from_millis(wake.saturating_sub(self.parts.clock.now())));
            }
            let trouble = self.trouble_until;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(note) = self.notes.recv() => self.hear(note),
                Some(claimed) = self.fresh.recv() => self.take(claimed),
                () = self.parts.queue.claims().wake.notified() => {}
                () = at(trouble), if trouble.is_some() => {
                    self.trouble_until = None;
                    self.parts.queue.claims().forgive();
                }
                () = tokio::time::sleep(sleep) => {}
            }
            // Whatever else has arrived is taken before anything is started, so turns are fair.
            while let Ok(note) = self.notes.try_recv() {
                self.hear(note);
            }
            while let Ok(claimed) = self.fresh.try_recv() {
                self.take(claimed);
            }
        }
    }

    fn hear(&mut self, note: Note) {
        match note {
            Note::Ended { lane, destination, began, at, sign } => {
                self.turns.finish(lane.index(), &destination);
                let connections = || self.groups.limits(&destination).connections;
                let now = self.parts.clock.now();
                for changed in self.throttles.hear(&destination, began, &sign, connections, at) {
                    self.throttle(changed, now);
                }
            }
            Note::Found { domain, hosts } => {
                let now = self.parts.clock.now();
                let (destination, waiting) = self.groups.found(domain, hosts, now);
                waiting.into_iter().for_each(|waiting| self.queue_up(destination.clone(), waiting, now));
            }
            Note::Kept => self.is_keeping = false,
            Note::Changed(parts) => self.renew(parts),
            Note::Asked(question) => self.answer(*question),
            Note::AskedForAll(answer) => {
                // Who asked may have gone.
                let _ = answer.send(self.overview());
            }
        }
    }

    /// For whoever asks how it stands with destinations.
    pub fn inquiry(&self) -> Inquiry {
        Inquiry::new(self.tell.clone())
    }

    /// For whoever changes the configuration.
    pub fn changes(&self) -> Changes {
        Changes(self.tell.clone())
    }

    /// What begins from now on is done with these.
    fn renew(&mut self, parts: Arc<Parts>) {
        self.parts = parts;
        self.groups.renew(self.parts.config.destinations.clone());
        let (streams, now) = (self.parts.queue.streams(), self.parts.clock.now());
        let retries: HashSet<usize> =
            streams.lanes().into_iter().filter(|lane| lane.is_retry()).map(Lane::index).collect();
        let Dispatcher { turns, groups, throttles, .. } = self;
        let allow = |destination: &Destination| allowance(groups, throttles, destination, now);
        let is_retry = |lane: usize| retries.contains(&lane);
        turns.renew(self.parts.config.delivery.concurrency, streams.weights(), is_retry, allow);
    }

    /// A store that was opened again may have lost entries of the index without a trace.
    fn mind_damages(&mut self, attempts: &TaskTracker) {
        let damages = self.parts.queue.store().damage_count();
        if damages > self.damages {
            self.damages = damages;
            self.make_index_anew(attempts);
        }
    }

    fn make_index_anew(&self, attempts: &TaskTracker) {
        let parts = self.parts.clone();
        attempts.spawn(async move {
            match parts.queue.rebuild_due_index().await {
                Ok(rebuilt) => tracing::info!(entries = rebuilt.entries, "the due index is whole again"),
                Err(error) => tracing::error!(%error, "the due index could not be made anew"),
            }
        });
    }

    fn scan(&mut self, attempts: &TaskTracker) {
        match self.parts.queue.claim_due() {
            Ok(scan) => {
                if scan.trouble.is_some() {
                    self.trouble_until.get_or_insert_with(|| Instant::now() + STORE_TROUBLE_WAIT);
                }
                if let Some(error) = scan.damaged
                    && !std::mem::replace(&mut self.index_made_anew, true)
                {
                    tracing::error!(%error, "the due index is damaged; its entries are made anew");
                    self.make_index_anew(attempts);
                }
                if !scan.stale.is_empty() {
                    let (parts, stale) = (self.parts.clone(), scan.stale);
                    attempts.spawn(async move {
                        if let Err(error) = parts.queue.mend(&stale).await {
                            tracing::warn!(%error, "wrong entries of the due index could not be put right; trying again");
                            tokio::time::sleep(STORE_TROUBLE_WAIT).await;
                            parts.queue.look_again(&stale);
                        }
                    });
                }
                scan.claimed.into_iter().for_each(|claimed| self.take(claimed));
            }
            // It was told of where it was found.
            Err(_) => {
                self.trouble_until.get_or_insert_with(|| Instant::now() + STORE_TROUBLE_WAIT);
            }
        }
    }

    /// Sorts a claimed message into the turns of its destinations.
    fn take(&mut self, claimed: Claimed) {
        let now = self.parts.clock.now();
        let claim = (claimed.lane, claimed.ticket());
        let is_shut = self.shut.has(claimed.lane.index());
        let fresh = claimed.body.filter(|_| !is_shut).map(Arc::new);
        let parts = self.parts.clone();
        let (released, usual): (Vec<_>, Vec<_>) =
            claimed.recipients.into_iter().partition(|(_, recipient)| recipient.released.is_some());
        for (recipients, is_released) in [(usual, false), (released, true)] {
            if recipients.is_empty() {
                continue;
            }
            let way = outbound::choose_for(&parts.config, &claimed.message, is_released).way;
            let mut jobs: BTreeMap<Destination, Vec<(u32, Recipient)>> = BTreeMap::new();
            for (number, recipient) in recipients {
                let destination = destination(&parts.config, &way, &recipient);
                jobs.entry(destination).or_default().push((number, recipient));
            }
            for (destination, recipients) in jobs {
                let waiting = Waiting { message: claimed.message.clone(), recipients, fresh: fresh.clone(), claim };
                match destination {
                    // Else there is nothing to look up.
                    Destination::Domain(domain)
                        if matches!(way, Way::Direct { .. }) && !parts.config.is_own(&domain) =>
                    {
                        match self.groups.find(&domain, now) {
                            Some(known) => self.queue_up(known, waiting, now),
                            None => self.groups.wait(domain, waiting, now),
                        }
                    }
                    other => self.queue_up(other, waiting, now),
                }
            }
        }
    }

    /// What waits behind a gate that is shut holds no body: it may be there for days.
    fn look_at_gates(&mut self) {
        let (open, shut) = self.parts.queue.gates().look();
        let newly = shut.without(self.shut);
        if !newly.is_empty() {
            self.turns.in_lanes(newly).for_each(|waiting| waiting.fresh = None);
        }
        (self.open, self.shut) = (open, shut);
    }

    fn queue_up(&mut self, destination: Destination, waiting: Waiting, now: Millis) {
        if let Some((why, until)) = self.closed(&destination, now) {
            return self.put_off(waiting, why, until);
        }
        let Dispatcher { turns, groups, throttles, .. } = self;
        let lane = waiting.claim.0.index();
        // Recipients at several domains of these servers come one domain after the other.
        let Some(waiting) = (match turns.last(lane, &destination) {
            Some(last) => last.join(waiting),
            None => Some(waiting),
        }) else {
            return;
        };
        turns.push(lane, destination, waiting, |destination| allowance(groups, throttles, destination, now));
    }

    /// Why a job for this destination should not wait in here, and until when it waits elsewhere.
    fn closed(&mut self, destination: &Destination, now: Millis) -> Option<(Failure, Millis)> {
        if let Some(throttle) = self.throttles.get(destination) {
            let until = throttle.until(now);
            if until > now.saturating_add(PAUSE_WAITED_FOR) {
                let why = standing::left_alone(throttle.why());
                // One after the other, so that they do not all come back at once.
                self.spread = (self.spread + SPREAD) % until.saturating_sub(now).max(1);
                return Some((why, until + self.spread));
            }
        }
        let time = self.turns.book(destination, RATE_WAITED_FOR)?;
        Some((standing::used_up(), time))
    }

    fn put_off(&mut self, mut waiting: Waiting, why: Failure, until: Millis) {
        self.parts.queue.begin(waiting.message.id, waiting.claim, &mut waiting.recipients);
        let Waiting { message, recipients, .. } = waiting;
        if !recipients.is_empty() {
            self.late.push(PutOff { message, recipients, why, until });
        }
    }

    /// Something else is remembered of a destination now.
    fn throttle(&mut self, destination: Destination, now: Millis) {
        let allowance = allowance(&self.groups, &self.throttles, &destination, now);
        self.turns.allow(&destination, allowance);
        if allowance.not_before > now.saturating_add(PAUSE_WAITED_FOR) {
            for (_, waiting) in self.turns.withdraw(&destination) {
                self.queue_up(destination.clone(), waiting, now);
            }
        }
        self.unkept.insert(destination);
    }

    /// Starts what may start.
    fn start(&mut self, attempts: &TaskTracker) {
        self.look_up(attempts);
        self.turns.wake(self.parts.clock.now());
        loop {
            self.look_at_gates();
            let Some((destination, mut waiting)) = self.turns.next(self.open) else { break };
            let (lane, _) = waiting.claim;
            let room = self.parts.queue.gates().room(lane);
            // Each recipient's return path is its own, and so is its transaction.
            let most = if outbound::has_verp(&self.parts.config, &waiting.message) { 1 } else { room };
            if let Some(rest) = waiting.split(most.min(room)) {
                let now = self.parts.clock.now();
                let Dispatcher { turns, groups, throttles, .. } = self;
                let allow = |destination: &Destination| allowance(groups, throttles, destination, now);
                turns.push_front(lane.index(), &destination, rest, allow);
            }
            self.parts.queue.begin(waiting.message.id, waiting.claim, &mut waiting.recipients);
            if waiting.recipients.is_empty() {
                self.turns.finish(lane.index(), &destination);
                continue;
            }
            if waiting.recipients.len() > 1 {
                let at_once = self.groups.limits(&destination).recipients_per_message.max(1);
                self.turns.spend(&destination, (waiting.recipients.len().div_ceil(at_once) - 1) as u64);
            }
            let parts = self.parts.clone();
            let started = parts.queue.gates().start(lane, waiting.recipients.len());
            let of = Some((lane, destination, self.throttles.now()));
            let clock = parts.clock.clone();
            let turn = TurnTaken { clock, tell: self.tell.clone(), of, sign: Sign::None, started };
            attempts.spawn(attempt(parts, waiting, turn));
        }
        self.keep(attempts);
        for late in self.late.drain(..) {
            let parts = self.parts.clone();
            attempts.spawn(async move { put_off(&parts, late).await });
        }
    }

    /// Finds out where mail for new domains goes.
    fn look_up(&mut self, attempts: &TaskTracker) {
        let now = self.parts.clock.now();
        while let Some((destination, waiting)) = self.groups.overdue(now) {
            waiting.into_iter().for_each(|waiting| self.queue_up(destination.clone(), waiting, now));
        }
        while let Some(domain) = self.groups.next() {
            let (parts, tell) = (self.parts.clone(), self.tell.clone());
            attempts.spawn(async move {
                let found = tokio::time::timeout(LOOK_UP_TIME, parts.transports.exchangers(&domain));
                let hosts = unless_it_panics(found).await.and_then(Result::ok).flatten();
                // The dispatcher may have stopped; then nobody waits any more.
                let _ = tell.send(Note::Found { domain, hosts });
            });
        }
    }

    /// Writes down what is to be remembered of destinations, all that has come together at once.
    fn keep(&mut self, attempts: &TaskTracker) {
        if self.unkept.is_empty() || self.is_keeping {
            return;
        }
        let batch = kept::batch(&self.throttles, &self.unkept);
        self.unkept.clear();
        self.is_keeping = true;
        let (parts, tell) = (self.parts.clone(), self.tell.clone());
        attempts.spawn(async move {
            let written = match batch {
                Ok(batch) => parts.queue.commit(batch, false).await,
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                tracing::warn!(%error, "which servers have asked us to go slow cannot be written; a restart would forget it");
            }
            let _ = tell.send(Note::Kept);
        });
    }
}

/// What a destination may have: as configured, or what its servers have left of it.
fn allowance(groups: &Groups<Waiting>, throttles: &Throttles, destination: &Destination, now: Millis) -> Allowance {
    let limits = groups.limits(destination);
    let every = limits.rate.map_or(0, |rate| (rate.per / rate.count.max(1)).as_micros());
    let throttle = throttles.get(destination);
    Allowance {
        connections: throttle.map_or(limits.connections, |throttle| throttle.window(limits.connections)),
        every: u64::try_from(every).unwrap_or(u64::MAX),
        not_before: throttle.map_or(0, |throttle| throttle.until(now)),
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Whom a recipient's job shares limits and turns with. What goes by the same smart host has one
/// destination, whatever its domain.
fn destination(config: &Config, way: &Way<'_>, recipient: &Recipient) -> Destination {
    let domain = recipient.address.domain();
    match (&recipient.route, way) {
        (Route::Target(name), _) => Destination::Target(name.clone()),
        (Route::Remote, Way::Capture) if !config.is_own(domain) => Destination::Capture,
        (Route::Remote, Way::Hosts { hosts, .. }) if !config.is_own(domain) => match hosts.first() {
            Some(first) => Destination::Host(first.host.name.clone()),
            None => Destination::Domain(domain.clone()),
        },
        (Route::Remote, _) => Destination::Domain(domain.clone()),
    }
}
