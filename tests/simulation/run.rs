//! One seed: what happens, in which order, and what is compared at the end.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use postrider::clock::Millis;
use postrider::events::{Entry, Event, journal};
use postrider::message::{Address, Content, Door, Draft, Envelope, HeldBy, Hold, MessageId, Origin, ReversePath};
use postrider::queue::check;
use postrider::queue::record::{Recipient, Status};
use postrider::queue::suspend::Suspension;
use postrider::store::{Batch, Table};
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::far::{CLOSED, DEAD, DOMAINS, HOME, NULL, World};
use super::ledger::{Claimed, Ledger, Mail, Told};
use super::life::{House, Life};
use super::random::Random;

const START: Millis = 1_800_000_000_000;
const STEPS: usize = 50;
/// Rounds after the last step until all is done.
const ROUNDS_MAX: usize = 3000;
/// The clock is set on by less than this.
const JUMP_MAX: usize = 3 * 3600 * 1000;

/// What one seed came to.
#[derive(Debug)]
pub struct Outcome {
    pub trace: Vec<String>,
    pub faults: Vec<String>,
}

struct Simulation {
    world: Arc<World>,
    random: Random,
    seed: u64,
    steps: usize,
    lives: u64,
}

/// How a life ends.
enum End {
    Crash { is_closed: bool, now: Millis },
    Done,
}

pub fn simulate(house: &mut House, seed: u64) -> Outcome {
    house.clear();
    let world = Arc::new(World::new(seed));
    let mut simulation =
        Simulation { world: world.clone(), random: Random::new(seed, &[]), seed, steps: STEPS, lives: 0 };
    let mut now = START;
    loop {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        simulation.lives += 1;
        let end = runtime.block_on(simulation.live(house, now));
        drop(runtime);
        match end {
            End::Done => break,
            End::Crash { is_closed, now: at } => {
                now = at;
                world.ledger().note(format!("crash; {}", if is_closed { "the store is opened anew" } else { "" }));
                world.ledger().crashed();
                if is_closed {
                    house.close();
                }
            }
        }
    }
    let mut ledger = world.ledger();
    Outcome { trace: std::mem::take(&mut ledger.trace), faults: std::mem::take(&mut ledger.faults) }
}

impl Simulation {
    async fn live(&mut self, house: &mut House, now: Millis) -> End {
        let life = Arc::new(Life::begin(house, &self.world, now, Random::new(self.seed, &[7, self.lives]).next()));
        let mut idle = 0;
        while self.steps > 0 {
            self.steps -= 1;
            if let Some(end) = self.step(&life) {
                return end;
            }
            // Else the next thing happens at the same instant, before anybody has noticed this one.
            if !self.random.chance(250) {
                self.pass(&life, &mut idle).await;
            }
        }
        self.finish(&life).await;
        End::Done
    }

    fn note(&self, life: &Life, what: &str) {
        self.world.ledger().note(format!("{:>10} {what}", life.clock.now() - START));
    }

    /// Until nobody can do anything, and then some time more.
    async fn pass(&mut self, life: &Life, idle: &mut usize) {
        let wait: u64 = match self.random.below(10) {
            0..5 => 1,
            5 => 100,
            6 => 2_000,
            7 => 30_000,
            8 => 600_000,
            _ => 3_600_000,
        };
        // While something is unwritten, time stands still for it: that is a disk that hangs, for a while.
        let wait = if life.unwritten() > 0 && wait > 2_000 && *idle < 3 { 1 } else { wait };
        *idle = if life.unwritten() > 0 { *idle + 1 } else { 0 };
        sleep(Duration::from_millis(wait)).await;
    }

    fn step(&mut self, life: &Arc<Life>) -> Option<End> {
        match self.random.below(100) {
            0..22 => self.submit(life),
            22..55 => self.write(life),
            55..58 => {
                let most = 1 + self.random.below(3);
                let waiting = life.unwritten().min(most);
                if waiting > 0 {
                    self.note(life, &format!("the disk refuses {waiting}"));
                    life.hand.lock().unwrap().refuse(most);
                }
            }
            58..74 => {
                let world = self.world.clone();
                world.change(&mut self.random);
            }
            74..86 => self.person(life),
            86..89 => {
                let all = Suspension::All;
                let is_on = life.queue.gates().suspended().iter().any(|(what, _)| *what == all);
                self.note(life, if is_on { "sending is resumed" } else { "sending is suspended" });
                let life = life.clone();
                // What the disk has refused is as it was.
                tokio::spawn(async move {
                    let _ = if is_on { life.queue.lift(&all).await } else { life.queue.suspend(&all).await };
                });
            }
            89..93 => {
                let by = self.random.below(JUMP_MAX) as Millis;
                self.note(life, &format!("the clock is set on by {by} ms"));
                life.clock.advance(by);
                life.queue.claims().wake.notify_one();
            }
            93..97 => {
                let is_closed = self.random.chance(100);
                return Some(End::Crash { is_closed, now: life.clock.now() });
            }
            _ => {}
        }
        None
    }

    /// Some of what waits is written, and told or not.
    fn write(&mut self, life: &Life) {
        let waiting = life.unwritten();
        let most = if self.random.chance(700) { waiting } else { self.random.below(waiting + 1) };
        if most > 0 {
            self.note(life, &format!("{most} of {waiting} are written"));
            life.write(most);
        }
        if self.random.chance(850) {
            life.tell();
        }
    }

    fn submit(&mut self, life: &Arc<Life>) {
        let random = &mut self.random;
        let number = self.world.ledger().mails.len();
        let sender = match random.below(10) {
            0..2 => String::new(),
            2 => format!("s{number}@{CLOSED}"),
            _ => format!("s{number}@{HOME}"),
        };
        let count = [1, 1, 1, 2, 3, 5][random.below(6)];
        let to = |random: &mut Random, at: usize| {
            let domain = match random.below(20) {
                0 => CLOSED,
                1 => DEAD,
                2 => NULL,
                _ => random.pick(&DOMAINS),
            };
            format!("m{number}r{at}@{domain}")
        };
        let recipients: Vec<String> = (0..count).map(|at| to(random, at)).collect();
        let lines = [1, 3, 40, 200][random.below(4)];
        let mut body: String = (0..lines).map(|line| format!(".{line} of {number}: {:x}\r\n", random.next())).collect();
        body.push_str("..\r\n.\r\n");
        self.note(life, &format!("message {number} from <{sender}> for {recipients:?}, {} octets", body.len()));
        let content = Ledger::content(number, &body);
        let address = |text: &String| Address::parse(text).unwrap();
        let from = if sender.is_empty() { ReversePath::Null } else { ReversePath::Address(address(&sender)) };
        let envelope = Envelope::new(from, recipients.iter().map(address));
        self.world.ledger().mails.push(Mail { sender, recipients, body, told: Told::Nothing });
        let (life, world) = (life.clone(), self.world.clone());
        tokio::spawn(async move {
            let origin = Origin { door: Door::Admin, account: None, peer: None };
            let draft = Draft { envelope, content: Content::from(bytes::Bytes::from(content)), origin };
            let told = life.intake.accept(draft).await;
            let mut ledger = world.ledger();
            match told {
                Ok(accepted) => {
                    ledger.note(format!("message {number} is accepted as {}", accepted.id));
                    ledger.mails[number].told = Told::Accepted(accepted.id);
                }
                Err(refusal) => {
                    ledger.note(format!("message {number} is refused: {}", refusal.reason));
                    ledger.mails[number].told = Told::Refused;
                }
            }
        });
    }

    /// Somebody holds, releases, hurries or cancels a recipient.
    fn person(&mut self, life: &Arc<Life>) {
        let mut queued = Vec::new();
        let walked = life.queue.walk(None, |message, recipients| {
            queued.extend(recipients.into_iter().map(|(number, recipient)| (message.id, number, recipient)));
            ControlFlow::Continue(())
        });
        walked.unwrap();
        // Notices are left to themselves, so that it is known what must become of them.
        queued.retain(|(_, _, recipient)| !recipient.address.to_string().starts_with('s'));
        if queued.is_empty() {
            return;
        }
        let (id, number, recipient) = self.random.pick(&queued).clone();
        let what = self.random.below(4);
        let name = ["hold", "release", "hurry", "cancel"][what];
        self.note(life, &format!("somebody wants to {name} {}", recipient.address));
        change(life, &self.world, (id, number), recipient.address.to_string(), what);
    }

    /// From here on all goes well, until nothing is left to do.
    async fn finish(&mut self, life: &Arc<Life>) {
        self.note(life, "all is well from here on");
        self.world.clear_up();
        for round in 0.. {
            // Whoever waits for the lock of a message comes to a rest meanwhile.
            for _ in 0..50 {
                sleep(Duration::from_millis(1)).await;
                if life.unwritten() == 0 && life.untold.lock().unwrap().is_empty() {
                    break;
                }
                life.write(usize::MAX);
                life.tell();
            }
            let queued = queued(life);
            if queued.is_empty() && life.unwritten() == 0 {
                break;
            }
            if round == ROUNDS_MAX {
                self.world.ledger().fault(format!("I1: {queued:#?} does not move"));
                break;
            }
            if life.queue.gates().suspended().iter().any(|(what, _)| *what == Suspension::All) {
                let life = life.clone();
                tokio::spawn(async move { life.queue.lift(&Suspension::All).await.map(drop) });
            }
            for (id, number, recipient) in queued {
                if let Status::Held(_) = recipient.status {
                    change(life, &self.world, (id, number), recipient.address.to_string(), 1);
                }
            }
            match round % 8 {
                // For what waits by another clock than that on the wall, as time-outs do.
                7 => sleep(Duration::from_secs(1200)).await,
                1 | 4 => {
                    life.clock.advance(1_800_000);
                    life.queue.claims().wake.notify_one();
                }
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
        self.compare(life);
    }

    fn compare(&self, life: &Life) {
        let store = life.queue.store();
        let mut stories: Vec<(MessageId, Vec<Entry>)> = Vec::new();
        let mut ids: Vec<MessageId> = Vec::new();
        for row in store.prefix(Table::Journal, b"").unwrap() {
            ids.extend(MessageId::from_prefix(&row.unwrap().0));
        }
        ids.dedup();
        for id in ids {
            stories.push((id, journal::story(store, id).unwrap()));
        }
        let mut ledger = self.world.ledger();
        for (id, story) in &stories {
            for entry in story {
                ledger.note(format!("{id} {}", told_of(entry)));
            }
        }
        for number in 0..ledger.mails.len() {
            let (told, sender) = (ledger.mails[number].told.clone(), ledger.mails[number].sender.clone());
            for recipient in ledger.mails[number].recipients.clone() {
                let mut claimed = Claimed::default();
                for (id, story) in &stories {
                    let found = claims(story, &recipient);
                    let Some(found) = found else { continue };
                    if matches!(told, Told::Accepted(known) if known != *id) {
                        ledger.fault(format!("I2: {recipient} is in the story of {id}, too"));
                    }
                    claimed = found;
                    if claimed.notices > 1 || (sender.is_empty() && claimed.notices > 0) {
                        ledger.fault(format!("I5: <{sender}> is told {} times of {recipient}", claimed.notices));
                    }
                }
                claimed.is_notice_lost = stories.iter().any(|(_, story)| is_expired(story, &sender));
                ledger.compare(number, &recipient, claimed);
            }
        }
        let mut found = Vec::new();
        let tell = &mut |finding| {
            found.push(format!("{finding:?}"));
            ControlFlow::Continue(())
        };
        let summary = check::check(store, tell, &mut |_| {});
        if summary.messages + summary.recipients + summary.findings > 0 {
            ledger.fault(format!("the store is not empty or not sound: {summary:?} {found:?}"));
        }
        for table in [Table::Message, Table::Body, Table::Recipient, Table::Due, Table::Incoming] {
            if store.prefix(table, b"").unwrap().next().is_some() {
                ledger.fault(format!("something is left in {}", table.name()));
            }
        }
        if life.queue.claims().held() > 0 {
            ledger.fault("something is still claimed");
        }
    }
}

/// As the trace has it: without the name of a notice, in which there is chance that no seed decides.
fn told_of(entry: &Entry) -> String {
    let mut entry = entry.clone();
    if let Event::Accepted { origin: Origin { door: Door::Bounce, .. }, message_id, .. } = &mut entry.event {
        message_id.clear();
    }
    format!("{entry:?}")
}

fn queued(life: &Life) -> Vec<(MessageId, u32, Recipient)> {
    let mut queued = Vec::new();
    let walked = life.queue.walk(None, |message, recipients| {
        queued.extend(recipients.into_iter().map(|(number, recipient)| (message.id, number, recipient)));
        ControlFlow::Continue(())
    });
    walked.unwrap();
    queued
}

/// What the story of a message says of a recipient; none if it is not about that one.
fn claims(story: &[Entry], address: &str) -> Option<Claimed> {
    let mut claimed = Claimed::default();
    let mut is_here = false;
    for Entry { event, .. } in story {
        let count = match event {
            Event::Delivered { recipient, .. } if recipient.to_string() == address => &mut claimed.delivered,
            Event::Failed { recipient, .. } | Event::Expired { recipient, .. } if recipient.to_string() == address => {
                &mut claimed.bounced
            }
            Event::Cancelled { recipient } if recipient.to_string() == address => &mut claimed.cancelled,
            _ => continue,
        };
        is_here = true;
        *count += 1;
    }
    if claimed.bounced > 0 {
        claimed.notices = notices(story, address);
    }
    is_here.then_some(claimed)
}

fn is_expired(story: &[Entry], address: &str) -> bool {
    let is_it = |event: &Event| matches!(event, Event::Expired { recipient, .. } if recipient.to_string() == address);
    story.iter().any(|entry| is_it(&entry.event))
}

/// How often the sender was told that it failed: in the same batch, so right beside it in the story.
fn notices(story: &[Entry], address: &str) -> usize {
    let failed_at = story.iter().filter_map(|Entry { at, event }| match event {
        Event::Failed { recipient, .. } | Event::Expired { recipient, .. } if recipient.to_string() == address => {
            Some(*at)
        }
        _ => None,
    });
    let times: Vec<Millis> = failed_at.collect();
    let is_about = |about: &str| about.split(", ").any(|one| one == address);
    let told = |entry: &&Entry| match &entry.event {
        Event::NoticeSent { about, .. } => is_about(about) && times.iter().any(|at| entry.at >= *at),
        _ => false,
    };
    story.iter().filter(told).count()
}

/// As the admin API does it.
fn change(life: &Arc<Life>, world: &Arc<World>, (id, number): (MessageId, u32), address: String, what: usize) {
    let (life, world) = (life.clone(), world.clone());
    tokio::spawn(async move {
        let mut telling = life.journal.begin();
        let now = life.clock.now();
        let changed = life.queue.change(id, number, |_, before| {
            let recipient = before.address.clone();
            let is_held = matches!(before.status, Status::Held(_));
            let status = match what {
                0 if !is_held => Status::Held(Hold::new(HeldBy::Operator, "by the simulation")),
                1 if is_held => Status::Waiting { due: now },
                2 if !is_held => Status::Waiting { due: now },
                3 => {
                    telling.tell(id, Event::Cancelled { recipient });
                    return Some((None, telling.take_batch()));
                }
                _ => return None,
            };
            let by_hand = match (what, &before.status) {
                (2, Status::Waiting { due }) if before.attempts > 0 => Some(before.by_hand.unwrap_or(*due)),
                _ => None,
            };
            Some((Some(Recipient { status, by_hand, ..before.clone() }), Batch::new()))
        });
        let changed = changed.await;
        let mut ledger = world.ledger();
        ledger.note(format!("{address}: {what} {changed:?}"));
        if let (Ok(true), 3) = (&changed, what) {
            ledger.cancel(&address);
        }
    });
}
