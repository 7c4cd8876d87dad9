//! A storm of mail that nobody takes, half of it without a sender, the rest with senders that are not those who sent
//! it: one notice for each at most, none about a notice, and good mail goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{Interval, MissedTickBehavior};

use super::far::{Far, Gate};
use super::house::{House, Settings, domains};
use super::ledger::{Answer, Ledger, Talk};
use super::report::{Budget, Report, count, count_or, is_full};
use super::states;

const CLIENTS: usize = 8;
/// Of all clients together, which take turns: 250 messages a second, a million in little more than an hour. A storm
/// without a pause would measure how the processors are shared between the server and those who send to it, and one
/// whose clients send in the same instant would be eight messages at once and then none.
const PACE: Duration = Duration::from_millis(4);
/// From one good message to the next, before the storm as in it: a measure of the storm, not of its first seconds. No
/// multiple of the other, so that they do not always come at the same distance from one of the storm.
const GOOD_PACE: Duration = Duration::from_millis(19);
/// The storm is not further ahead of its far end than this.
const AHEAD_MAX: usize = 5_000;
/// Demanded: of a hundred good messages 99 take less than so many times what they took before the storm.
const SLOWER_MAX: f64 = 2.0;
/// Of the domain of good mail, which has servers of its own: at those of the storm it would have to wait its turn.
const GOOD_SERVER: &str = "127.0.0.2";

/// A late one does not make the next ones hurry.
fn every(pace: Duration, first: Duration) -> Interval {
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + first, pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Sent and arrived, one after the other; how long each took.
async fn good_mail(ledger: &Ledger, far: &Far, talk: &mut Talk) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut pace = every(GOOD_PACE, GOOD_PACE);
    for _ in 0..count(100, 1_000) {
        pace.tick().await;
        let since = Instant::now();
        let (number, answer) = ledger.send(talk, &["you@good.test".to_owned()], 3_000).await;
        assert_eq!(answer, Answer::Taken);
        far.wait("good mail", |far| far.times(number) == 1).await;
        took.push(since.elapsed());
    }
    took.sort();
    took
}

/// So many of a hundred were faster.
fn milliseconds(took: &[Duration], percent: usize) -> f64 {
    (took[took.len() * percent / 100].as_secs_f64() * 10_000.0).round() / 10.0
}

/// Each fourth has a sender who takes mail, each fourth one who does not, the others have none.
fn sender(number: usize) -> String {
    match number % 4 {
        1 => format!("forged{number}@back.test"),
        3 => format!("forged{number}@never.test"),
        _ => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_of_undeliverable_mail_makes_one_notice_for_each_sender() {
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    far.gate("never.test", Gate::Never);
    far.also_at(GOOD_SERVER).await;
    let zone = domains().mx("good.test", 10, "mx.good.test").a("mx.good.test", GOOD_SERVER);
    let house = House::with_zone(folder.path(), &far, Settings::default(), Arc::new(zone.serve().await));
    let ledger = Arc::new(Ledger::default());
    let running = house.start().await;
    let mut talk = Talk::connect(running.door).await.unwrap();
    let quiet = good_mail(&ledger, &far, &mut talk).await;
    let (storm, budget) = (count_or(1_000, 10_000, 100_000), Budget::start());
    let client = |first: usize| {
        let (ledger, far, door) = (ledger.clone(), far.clone(), running.door);
        tokio::spawn(async move {
            let mut talk = Talk::connect(door).await.unwrap();
            let mut sent = Vec::new();
            let mut pace = every(PACE * CLIENTS as u32, PACE * first as u32);
            for number in (first..storm).step_by(CLIENTS) {
                pace.tick().await;
                while number > far.turned_away() + AHEAD_MAX && !budget.is_over() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                if budget.is_over() {
                    break;
                }
                talk.sender = sender(number);
                let (noted, answer) = ledger.send(&mut talk, &[format!("nobody{number}@never.test")], 2_000).await;
                assert_eq!(answer, Answer::Taken);
                // It is not to arrive.
                ledger.note(noted, Answer::Refused("550 by the far end".to_owned()));
                sent.push(number);
            }
            sent
        })
    };
    let clients: Vec<_> = (0..CLIENTS).map(client).collect();
    let during = good_mail(&ledger, &far, &mut talk).await;
    let mut sent = Vec::new();
    for client in clients {
        sent.extend(client.await.unwrap());
    }
    house.wait_empty().await;
    running.kill().await.check_no_damage();
    let mut told: BTreeMap<String, usize> = BTreeMap::new();
    let notices: Vec<_> = far.arrivals().into_iter().filter(|arrival| arrival.number.is_none()).collect();
    for notice in &notices {
        assert_eq!(notice.mail_from, "", "a notice has no sender");
        notice.recipients.iter().for_each(|to| *told.entry(to.clone()).or_default() += 1);
    }
    let verdict = ledger.judge(&far);
    let mut report = Report::new("bounce-storm");
    budget.tell(&mut report, "undeliverable", sent.len(), storm);
    report.add("without a sender", sent.iter().filter(|number| sender(**number).is_empty()).count());
    report.add("notices", notices.len());
    report.add("most notices for one", told.values().copied().max().unwrap_or_default());
    for (when, took) in [("before", &quiet), ("meanwhile", &during)] {
        report.add(&format!("good mail {when}: ms p50"), milliseconds(took, 50));
        report.add(&format!("good mail {when}: ms p99"), milliseconds(took, 99));
    }
    let slower = milliseconds(&during, 99) / milliseconds(&quiet, 99);
    report.add("p99 meanwhile / before", (slower * 100.0).round() / 100.0);
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    let wanted: BTreeMap<String, usize> =
        sent.iter().filter(|number| **number % 4 == 1).map(|number| (sender(*number), 1)).collect();
    assert_eq!(told, wanted, "one notice for each sender who takes mail");
    states::look(&house.store()).check_empty();
    // Beside the rest of the suite times say nothing.
    assert!(!is_full() || slower < SLOWER_MAX, "the storm holds up good mail: {slower}");
}
