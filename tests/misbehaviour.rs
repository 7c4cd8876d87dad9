//! Far ends that misbehave (`remotes/*.smtp`), against the real queue, dispatcher and way out: what becomes
//! of each recipient, when it is tried again and what the sender is told is as the script states. The lines
//! that state it are described in `support/remote.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

mod support {
    pub mod courier;
    pub mod remote;
    pub mod zone;
}

use std::path::Path;
use std::time::Duration;

use postrider::delivery::smtp::Timeouts;
use postrider::events::{Entry, Event};
use postrider::message::{Address, Envelope, Notify, ReversePath};
use support::courier::{Courier, START};
use support::remote::Remotes;
use support::zone::Zone;

/// How long greeting and last reply may take for one who is impatient.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// What a script states about one recipient.
#[derive(Debug, Default, PartialEq)]
struct Fate {
    address: String,
    /// `delivered`, `deferred`, `unsure`, `failed`, and the status of the last three.
    outcome: String,
    /// The wait that the schedule has for the next try, in seconds.
    next: Option<u64>,
    /// The action of the notice to the sender.
    notice: Option<String>,
}

#[derive(Debug, Default)]
struct Statement {
    fates: Vec<Fate>,
    notify: Option<Notify>,
    impatient: bool,
    long: bool,
}

fn statement(script: &str) -> Statement {
    let mut statement = Statement::default();
    for line in script.lines().filter_map(|line| line.strip_prefix("#! ")) {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("impatient", "") => statement.impatient = true,
            ("long", "") => statement.long = true,
            ("notify", "success") => {
                statement.notify = Some(Notify::On { success: true, failure: true, delay: true });
            }
            ("notify", "never") => statement.notify = Some(Notify::Never),
            (address, fate) if address.contains('@') => statement.fates.push(parse(address, fate)),
            _ => panic!("what is {line:?}?"),
        }
    }
    statement
}

/// `deferred 4.4.2, next 1m, no notice`.
fn parse(address: &str, text: &str) -> Fate {
    let (mut fate, mut is_told) = (Fate { address: address.to_owned(), ..Fate::default() }, false);
    for part in text.split(", ") {
        match part.split_once(' ').unwrap_or((part, "")) {
            ("next", "1m") => fate.next = Some(60),
            ("no", "notice") => is_told = true,
            ("notice", action) => (fate.notice, is_told) = (Some(action.to_owned()), true),
            ("delivered", "") | ("deferred" | "unsure" | "failed", _) => fate.outcome = part.to_owned(),
            _ => panic!("what is {part:?}?"),
        }
    }
    assert!(is_told, "{address} {text}: it is not stated whether the sender is told");
    fate
}

fn observed(event: &Event) -> Option<(String, String, Option<u64>)> {
    match event {
        Event::Delivered { recipient, .. } => Some((recipient.to_string(), "delivered".to_owned(), None)),
        Event::Deferred { recipient, why, next, .. } => {
            Some((recipient.to_string(), format!("deferred {}", why.status), Some(*next)))
        }
        Event::Unsure { recipient, why, next, .. } => {
            assert!(why.unsure);
            Some((recipient.to_string(), format!("unsure {}", why.status), Some(*next)))
        }
        Event::Failed { recipient, why, .. } => Some((recipient.to_string(), format!("failed {}", why.status), None)),
        _ => None,
    }
}

async fn run(name: &str, script: &str, statement: &Statement) {
    let far_ends: Vec<&str> = script.split("\n===\n").collect();
    let remotes = Remotes::play(&far_ends).await;
    let mut zone = Zone::new();
    for number in 1..=far_ends.len() {
        let host = format!("mx{number}.far.test");
        zone = zone.mx("far.test", 10 * number as u16, &host).a(&host, &format!("127.0.0.{number}"));
    }
    let timeouts = match statement.impatient {
        true => Timeouts { greeting: IMPATIENCE, dot: IMPATIENCE, ..Timeouts::RFC5321 },
        false => Timeouts::RFC5321,
    };
    let courier = Courier::start("", remotes.port, zone, timeouts).await;

    let addresses = statement.fates.iter().map(|fate| Address::parse(&fate.address).unwrap());
    let mut envelope = Envelope::new(ReversePath::Address(Address::parse("a@own.test").unwrap()), addresses);
    for recipient in &mut envelope.recipients {
        recipient.notify = statement.notify.unwrap_or_default();
    }
    let body = if statement.long { ("x".repeat(998) + "\r\n").repeat(24_000) } else { "Hello.\r\n".to_owned() };
    let id = courier.submit(envelope, &format!("From: a@own.test\r\nSubject: hi\r\n\r\n{body}")).await;
    let fates = |story: &[Entry]| story.iter().filter_map(|entry| observed(&entry.event)).collect::<Vec<_>>();
    let story = courier.wait(id, |story| fates(story).len() == statement.fates.len()).await;
    let told: usize = story.iter().filter(|entry| matches!(entry.event, Event::NoticeSent { .. })).count();
    let notices = courier.notices(told).await;

    for fate in &statement.fates {
        let (_, outcome, next) = fates(&story).into_iter().find(|(address, ..)| *address == fate.address).unwrap();
        assert_eq!(outcome, fate.outcome, "{name}: {} of {story:#?}", fate.address);
        match (fate.next, next) {
            (Some(seconds), Some(next)) => {
                let (wait, planned) = (next - START, seconds * 1000);
                assert!(wait.abs_diff(planned) <= planned / 10, "{name}: {}: next try after {wait} ms", fate.address);
                let waiting = courier.waiting(id);
                let due = waiting.iter().find(|(recipient, _)| recipient.address.to_string() == fate.address);
                assert_eq!(due.map(|(recipient, due)| (recipient.attempts, *due)), Some((1, next)), "{name}");
            }
            (None, None) => {}
            other => panic!("{name}: {}: next try {other:?}", fate.address),
        }
        let about = format!("Final-Recipient: rfc822; {}\n", fate.address);
        let actions: Vec<String> = notices.iter().flat_map(|notice| blocks(notice, &about)).collect();
        let wanted: Vec<String> = fate.notice.iter().cloned().collect();
        assert_eq!(actions, wanted, "{name}: notices about {}: {notices:#?}", fate.address);
    }
    courier.stop().await;
    remotes.finish().await;
}

/// The actions that a notice has for a recipient.
fn blocks(notice: &str, about: &str) -> Vec<String> {
    let blocks = notice.split("\n\n").filter(|block| block.contains(about));
    let action = |block: &str| block.lines().find_map(|line| line.strip_prefix("Action: ")).unwrap().to_owned();
    blocks.map(action).collect()
}

/// The misbehaviours that must not be missing.
const LISTED: [&str; 12] = [
    "drop_in_data",
    "drop_after_dot",
    "421_at_connect",
    "421_at_mail",
    "421_after_dot",
    "slow_banner",
    "broken_first_mx",
    "tls_broken",
    "one_of_three_refused",
    "too_many_recipients",
    "success_relayed",
    "success_passed_on",
];

#[tokio::test(flavor = "multi_thread")]
async fn each_far_end_leads_to_what_its_script_states() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/remotes");
    let mut names: Vec<String> = std::fs::read_dir(folder.as_path())
        .unwrap()
        .filter_map(|entry| Some(entry.unwrap().file_name().to_str()?.strip_suffix(".smtp")?.to_owned()))
        .collect();
    names.sort();
    let mut played = Vec::new();
    for name in names {
        let script = std::fs::read_to_string(folder.join(format!("{name}.smtp"))).unwrap();
        let statement = statement(&script);
        if !statement.fates.is_empty() {
            println!("{name}");
            run(&name, &script, &statement).await;
            played.push(name);
        }
    }
    for name in LISTED {
        assert!(played.iter().any(|played| played == name), "{name} states nothing");
    }
}
