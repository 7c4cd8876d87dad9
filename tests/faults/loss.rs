//! Packets are lost in truth: a tenth of all, or three tenths, be they of the server, of its clients,
//! of its far end or of its name server, go nowhere, and TCP has to send them again. Nothing acknowledged is lost,
//! nothing refused is there, nothing is mixed or cut; copies are rare: of deliveries whose answer came too late.
//!
//! The test runs itself again in a network namespace of its own, which has nothing but a loopback interface, where the
//! kernel throws packets away: netem does, or else a classifier that draws lots as packets come in and sends those that
//! lost to an interface where nobody is. Both need the rights of root; without them it is left out loudly.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::far::Far;
use super::house::{House, Settings};
use super::ledger::Ledger;
use super::load::{Load, Plan};
use super::report::{Budget, Report, count_or, is_full, say, skipped};
use super::states;

const PLAN: Plan =
    Plan { clients: 24, domains: &["far.test", "late.test"], bytes_min: 500, bytes_max: 8_000, pause: Duration::ZERO };
/// Only turns a hang into a failure. A connection may be without luck for long.
const STANDSTILL: Duration = Duration::from_secs(180);
const REPORT: &str = "packet-loss";
const NAME: &str = "loss::lost_packets_lose_no_mail";
/// Set within the namespace: the percentage, and how packets are lost.
const WITHIN: &str = "POSTRIDER_FAULTS_LOSS";
/// How the shell ends if it cannot.
const UNABLE: i32 = 77;
/// $1 is the percentage, $2 the same of 2^32 in what is left over; then the command. Frames are as long as on an
/// Ethernet. Where the kernel lets (6.15), packets are sent again after a second at most, so that a run of bad luck ends
/// in the time of a test and not in minutes. The four instructions: a random number, compared, 1 and 0 for its result.
const SET_UP: &str = r#"
percent=$1 least=$2
shift 2
ip link set lo up && ip link set lo mtu 1500 || exit 77
[ -w /proc/sys/net/ipv4/tcp_rto_max_ms ] && echo 1000 >/proc/sys/net/ipv4/tcp_rto_max_ms
echo 30 >/proc/sys/net/ipv4/tcp_synack_retries || true
if tc qdisc add dev lo root netem loss "$percent%" 2>/dev/null; then
    how=netem
elif ip link add sink type veth peer name nowhere && ip link set sink up && ip link set nowhere up &&
    tc qdisc add dev lo clsact && tc filter add dev lo ingress bpf bytecode \
        "4,32 0 0 4294963256,53 0 1 $least,6 0 0 4294967295,6 0 0 0" action mirred egress redirect dev sink; then
    how=classifier
else
    exit 77
fi
POSTRIDER_FAULTS_LOSS="$percent $how" exec "$@"
"#;

/// In percent: of a hundred packets so many are lost.
fn percent() -> u64 {
    if is_full() { 30 } else { 10 }
}

/// The test again, in a namespace; the reason if there can be none.
fn again_within() -> Result<(), String> {
    let percent = percent();
    let least = (u64::from(u32::MAX) + 1) * (100 - percent) / 100;
    let own = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["--net", "--", "sh", "-c", SET_UP, "sh", &percent.to_string(), &least.to_string()])
        .arg(own)
        .args(["--exact", NAME, "--nocapture"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("unshare: {error}"))?;
    let (out, trouble) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // Of unshare itself: 1, and nothing has run.
    if output.status.code() == Some(UNABLE) || !out.contains("running 1 test") {
        return Err(format!("no network of its own that loses packets: {}", trouble.trim().replace('\n', "; ")));
    }
    assert!(output.status.success(), "{out}\n{trouble}");
    say(trouble.trim());
    Ok(())
}

/// Packets that came and that were thrown away, as the kernel counts them.
fn lost_packets() -> u64 {
    let shown = |words: &[&str]| {
        let output = Command::new("tc").args(["-s"]).args(words).args(["show", "dev", "lo"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let number = |text: &str, before: &str, after: &str| -> Option<u64> {
        text.split(before).nth(1)?.split(after).next()?.trim().parse().ok()
    };
    let netem = number(&shown(&["qdisc"]), "(dropped ", ",").unwrap_or(0);
    let redirected = Command::new("tc").args(["-s", "filter", "show", "dev", "lo", "ingress"]).output().unwrap();
    let text = String::from_utf8_lossy(&redirected.stdout).into_owned();
    netem.max(number(&text, "bytes ", " pkt").unwrap_or(0))
}

/// No packet is lost from now on.
fn mend() {
    for what in ["root", "clsact"] {
        let _ = Command::new("tc").args(["qdisc", "del", "dev", "lo", what]).stderr(Stdio::null()).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lost_packets_lose_no_mail() {
    let Ok(within) = std::env::var(WITHIN) else {
        return again_within().unwrap_or_else(|why| skipped(REPORT, &why));
    };
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let house = House::new(folder.path(), &far, Settings::default()).await;
    let ledger = Arc::new(Ledger::default());
    let running = house.start().await;
    ledger.give_up_on_silence();
    let load = Load::start(&ledger, PLAN);
    load.open(running.door);
    let (wanted, budget) = (count_or(100, 1_000, 50_000), Budget::start());
    let (mut taken, mut since) = (0, Instant::now());
    while ledger.taken_count() < wanted && !budget.is_over() {
        if ledger.taken_count() > taken {
            (taken, since) = (ledger.taken_count(), Instant::now());
        }
        assert!(since.elapsed() < STANDSTILL, "no mail is taken any more: {}", running.log.trouble().join("\n"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    load.finish().await;
    let missing = ledger.arrived(&far).await;
    let lost = lost_packets();
    // A connection may wait for a greeting whose far end has given up: until its timeout, or the next start.
    let queued = house.queue(&[]).await;
    assert!(queued.len() >= missing.len(), "missing: {missing:?}; queued: {queued:#?}");
    mend();
    if missing.is_empty() {
        // Answers that were lost are sent again. A kill before would be one more reason for copies.
        house.wait_queue("it is known what has arrived", &[], <[_]>::is_empty).await;
    }
    running.kill().await.check_no_damage();
    let running = house.start().await;
    let lost_mail = ledger.arrived(&far).await;
    if lost_mail.is_empty() {
        house.wait_empty().await;
    }
    running.kill().await.check_no_damage();
    let mut verdict = ledger.judge(&far);
    let mut report = Report::new(REPORT);
    report.add("percent lost, and how", within);
    budget.tell(&mut report, "messages", ledger.taken_count().min(wanted), wanted);
    report.add("packets lost", lost);
    report.add("on their way at a standstill", missing.len());
    report.add("notices", far.notices());
    verdict.tell(&mut report);
    report.finish();
    // Where the answer to a whole message does not come in time it is brought again, within one life of the server.
    verdict.copies_within_a_life = 0;
    verdict.check();
    assert!(lost > 0, "the network was good");
    assert!(verdict.copies_in_all() * 100 <= verdict.taken, "{:?}", verdict.copies);
    assert_eq!(far.notices(), 0, "something was given up");
    states::look(&house.store()).check_empty();
}
