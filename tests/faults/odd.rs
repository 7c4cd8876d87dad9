//! Receivers that are slow or odd, each for a domain of its own: another domain's mail goes on, nobody's is lost or
//! given up, and all of it is delivered once they have come to their senses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::far::Far;
use super::house::{House, Settings, domains};
use super::ledger::{Answer, Ledger, Talk};
use super::report::{Budget, Report, count_or};
use super::states;

/// Messages to the domain that works, alone and beside the others.
const GOOD: usize = 300;
const FOR_EACH: usize = 20;
const DRIP: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Takes the connection and says nothing.
    Mute,
    /// An octet of the greeting each second.
    Drip,
    ClosesAtOnce,
    NotNow,
    /// A reply without an end.
    Endless,
    NoDigits,
    /// 4xx to every MAIL.
    Storm,
    /// Two answers to each command.
    TwoAnswers,
    /// Reads no content after its 354, and says nothing.
    StallsInData,
    /// Has all of it, and says nothing.
    StallsAfterDot,
    /// Has all of it, and is gone.
    DropsAfterDot,
    /// Closes in the middle of the content.
    DropsInData,
}

const MANNERS: [Manner; 12] = [
    Manner::Mute,
    Manner::Drip,
    Manner::ClosesAtOnce,
    Manner::NotNow,
    Manner::Endless,
    Manner::NoDigits,
    Manner::Storm,
    Manner::TwoAnswers,
    Manner::StallsInData,
    Manner::StallsAfterDot,
    Manner::DropsAfterDot,
    Manner::DropsInData,
];

fn domain(number: usize) -> String {
    format!("odd{number}.test")
}

fn address(number: usize) -> String {
    format!("127.0.{}.{}", 1 + number / 200, 1 + number % 200)
}

async fn odd(manner: Manner, stream: TcpStream) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    match manner {
        Manner::Mute => std::future::pending().await,
        Manner::ClosesAtOnce => return Ok(()),
        Manner::NotNow => return stream.get_mut().write_all(b"421 4.3.2 not now\r\n").await,
        Manner::NoDigits => stream.get_mut().write_all(b"hello\r\nwho is there\r\n").await?,
        Manner::Drip => {
            for octet in b"220-a greeting that takes its time\r\n".iter().cycle() {
                stream.get_mut().write_all(&[*octet]).await?;
                tokio::time::sleep(DRIP).await;
            }
        }
        Manner::Endless => loop {
            stream.get_mut().write_all(&[b'2'; 4096]).await?;
        },
        _ => stream.get_mut().write_all(b"220 odd.test ESMTP\r\n").await?,
    }
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 || !line.ends_with('\n') {
            return Ok(());
        }
        let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
        let reply = match (verb.as_str(), manner) {
            ("MAIL", Manner::Storm) => "451 4.3.0 not now\r\n",
            ("EHLO" | "HELO", _) => "250 odd.test\r\n",
            ("DATA", _) => "354 go on\r\n",
            ("QUIT", _) => "221 bye\r\n",
            (_, Manner::TwoAnswers) => "250 ok\r\n450 4.2.0 not ok\r\n",
            _ => "250 ok\r\n",
        };
        stream.get_mut().write_all(reply.as_bytes()).await?;
        match (verb.as_str(), manner) {
            ("QUIT", _) => return Ok(()),
            ("DATA", Manner::StallsInData) => std::future::pending().await,
            ("DATA", _) => {
                let mut lines = 0;
                loop {
                    line.clear();
                    if stream.read_line(&mut line).await? == 0 || line == ".\r\n" {
                        break;
                    }
                    lines += 1;
                    if lines == 3 && matches!(manner, Manner::DropsInData) {
                        return Ok(());
                    }
                }
                match manner {
                    Manner::StallsAfterDot => std::future::pending().await,
                    _ => return Ok(()),
                }
            }
            _ => {}
        }
    }
}

/// Odd until told, and then as the far end. What stalls then ends.
async fn serve(listener: TcpListener, manner: Manner, far: Far, is_sane: watch::Receiver<bool>) {
    while let Ok((stream, _)) = listener.accept().await {
        let (far, mut is_sane) = (far.clone(), is_sane.clone());
        tokio::spawn(async move {
            if *is_sane.borrow() {
                return drop(far.session(stream).await);
            }
            tokio::select! {
                _ = odd(manner, stream) => {}
                _ = is_sane.wait_for(|is_sane| *is_sane) => {}
            }
        });
    }
}

/// The port of the far end, at an address for each.
async fn listeners(far: SocketAddr, count: usize) -> Vec<TcpListener> {
    let mut listeners = Vec::new();
    for number in 0..count {
        let at: SocketAddr = format!("{}:{}", address(number), far.port()).parse().unwrap();
        listeners.push(TcpListener::bind(at).await.unwrap());
    }
    listeners
}

async fn good_mail(ledger: &Ledger, far: &Far, door: SocketAddr) -> f64 {
    let since = Instant::now();
    let mut talk = Talk::connect(door).await.unwrap();
    let mut last = 0;
    for _ in 0..GOOD {
        let (number, answer) = ledger.send(&mut talk, &["you@far.test".to_owned()], 3_000).await;
        assert_eq!(answer, Answer::Taken);
        last = number;
    }
    far.wait("mail of the domain that works", |far| far.times(last) == 1).await;
    GOOD as f64 / since.elapsed().as_secs_f64()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn odd_receivers_hold_up_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let domains_count = count_or(MANNERS.len(), 60, 500);
    let mut zone = domains();
    for number in 0..domains_count {
        let exchanger = format!("mx.{}", domain(number));
        zone = zone.mx(&domain(number), 10, &exchanger).a(&exchanger, &address(number));
    }
    let zone = Arc::new(zone.serve().await);
    let (sane, is_sane) = watch::channel(false);
    for (number, listener) in listeners(far.address, domains_count).await.into_iter().enumerate() {
        tokio::spawn(serve(listener, MANNERS[number % MANNERS.len()], far.clone(), is_sane.clone()));
    }
    let house = House::with_zone(folder.path(), &far, Settings::default(), zone);
    let ledger = Ledger::default();
    let running = house.start().await;
    let budget = Budget::start();
    let alone = good_mail(&ledger, &far, running.door).await;
    let mut talk = Talk::connect(running.door).await.unwrap();
    let (mut waiting, mut reached) = (0, 0);
    for number in (0..domains_count).take_while(|_| !budget.is_over()) {
        reached += 1;
        for _ in 0..FOR_EACH {
            let (_, answer) = ledger.send(&mut talk, &[format!("you@{}", domain(number))], 3_000).await;
            assert_eq!(answer, Answer::Taken);
            waiting += 1;
        }
    }
    let beside = good_mail(&ledger, &far, running.door).await;
    let arrived_by_then = far.count();
    sane.send_replace(true);
    // Hosts that were given up for a while are tried again when they are asked for.
    let retried = house.cli(&["queue", "retry", "--all"]).await;
    assert!(retried.status.success(), "{}", String::from_utf8_lossy(&retried.stderr));
    let missing = ledger.arrived(&far).await;
    if missing.is_empty() {
        house.wait_empty().await;
    }
    running.kill().await.check_no_damage();
    let verdict = ledger.judge(&far);
    let mut report = Report::new("odd-receivers");
    budget.tell(&mut report, "domains", reached, domains_count);
    report.add("messages to them", waiting);
    report.add("good mail a second alone", alone as u64);
    report.add("good mail a second beside them", beside as u64);
    report.add("notices", far.notices());
    verdict.tell(&mut report);
    report.finish();
    verdict.check();
    assert!(missing.is_empty());
    assert_eq!(arrived_by_then, 2 * GOOD, "only the good mail until then");
    assert_eq!(far.notices(), 0, "something was given up");
    assert_eq!(verdict.copies_in_all(), 0);
    states::look(&house.store()).check_empty();
}
