//! Many connections, many reloads, one in ten of them broken.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use postrider::admin::reload::ReloadResult;
use tokio::task::JoinSet;

use crate::client::Client;
use crate::house::{BASE, House, id, letter, maildir, until};

const CONNECTIONS: usize = 2_000;
const RELOADS: usize = 200;
/// Of a night (`make nightly`).
const RELOADS_OF_A_NIGHT: usize = 1_000;
/// Connections that are in the middle of a message while one reload goes on; the next has others.
const AT_ONCE: usize = CONNECTIONS / RELOADS;
/// Connections that send one message after the other all the time.
const SENDERS: usize = 8;

/// The configuration of one round: other limits, an alias, a target and an account that come and go, a listener that
/// is there every other time.
fn good(round: usize) -> String {
    let limits = format!("[limits]\nerrors_per_session = {}\nmax_recipients = {}", 10 + round, 100 + round);
    let listener = match round % 2 {
        0 => "",
        _ => "[listeners.extra]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n",
    };
    let more = format!(
        "[domains.\"home.test\"]\ncatchall = \"box\"\n[aliases]\n\"round{round}@home.test\" = \"other\"\n\
         [targets.other]\nkind = \"maildir\"\npath = \"DATA_DIR/other{round}\"\n\
         [accounts.app{round}]\npassword = \"secret {round}\"\n{listener}"
    );
    BASE.replace("[limits]", &limits).replace("[domains.\"home.test\"]\n", "") + &more
}

/// Something different is wrong each time.
fn broken(round: usize, taken: u16) -> String {
    let good = good(round);
    match (round / 10) % 7 {
        0 => good.replace("hostname = ", "hostname == "),
        1 => good + "[limits.x]\ny = 1\n",
        2 => good.replace("catchall = \"box\"", "catchall = \"nowhere\""),
        3 => good + "[tls]\ncertificate = \"/nonexistent/a.pem\"\nprivate_key = \"/nonexistent/a.key\"\n",
        4 => good + &format!("[listeners.taken]\nrole = \"mx\"\nbind = [\"127.0.0.1:{taken}\"]\n"),
        5 => good.replace("DATA_DIR/data", "DATA_DIR/elsewhere"),
        _ => good.replace("[queue]", "[queue]\nmemory = \"lots\""),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_load_no_connection_is_dropped_and_no_message_lost() {
    let began = Instant::now();
    let house = Arc::new(House::start_text(&good(0)).await);
    let address = house.address("mx");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken_port = taken.local_addr().unwrap().port();

    let mut clients = connect(address).await;
    let stop = Arc::new(AtomicBool::new(false));
    let extra = Arc::new(AtomicUsize::new(0));
    let mut senders = JoinSet::new();
    for number in 0..SENDERS {
        let (stop, extra) = (stop.clone(), extra.clone());
        senders.spawn(async move {
            let mut client = Client::connect(address).await.unwrap();
            let mut ids = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let to = format!("sender{number}@home.test");
                ids.push(id(&client.send("a@far.test", &[&to], &letter("a@far.test", &to)).await.unwrap()));
                extra.fetch_add(1, Ordering::Relaxed);
            }
            client.command("QUIT", "221").await.unwrap();
            ids
        });
    }

    let (mut ids, mut refused) = (BTreeSet::new(), 0);
    let is_night = std::env::var("POSTRIDER_FAULTS").is_ok_and(|what| what == "night");
    let reloads = if is_night { RELOADS_OF_A_NIGHT } else { RELOADS };
    for round in 0..reloads {
        let group = &mut clients[round % RELOADS * AT_ONCE..][..AT_ONCE];
        for client in group.iter_mut() {
            client.command("MAIL FROM:<a@far.test>", "250").await.unwrap();
            client.command(&format!("RCPT TO:<round{round}@home.test>"), "250").await.unwrap();
            client.command("DATA", "354").await.unwrap();
        }
        let is_broken = round % 10 == 9;
        // The round before this one ended with the same senders at work.
        let sent_before = extra.load(Ordering::Relaxed);
        let reload = async {
            house.write(&if is_broken { broken(round, taken_port) } else { good(round + 1) });
            house.reload().await
        };
        let halves = async {
            for client in group.iter_mut().take(AT_ONCE / 2) {
                let content = letter("a@far.test", "b@home.test");
                ids.insert(id(&client.say(&format!("{content}.")).await.unwrap()));
            }
        };
        let (answer, ()) = tokio::join!(reload, halves);
        if is_broken {
            assert_eq!(answer.result, ReloadResult::Refused, "round {round}");
            assert!(!answer.problems.is_empty());
            for problem in &answer.problems {
                assert!(problem.file.ends_with("postrider.toml") && problem.line > 0, "round {round}: {problem}");
                assert!(!problem.what.is_empty() && !problem.remedy.is_empty(), "round {round}: {problem}");
            }
            refused += 1;
        } else {
            assert_eq!(answer.result, ReloadResult::Applied, "round {round}: {answer:#?}");
        }
        for client in group.iter_mut().skip(AT_ONCE / 2) {
            let content = letter("a@far.test", "b@home.test");
            ids.insert(id(&client.say(&format!("{content}.")).await.unwrap()));
        }
        // There is always something new on its way.
        until("the senders go on", async || extra.load(Ordering::Relaxed) > sent_before).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut sent = ids.len();
    for more in senders.join_all().await {
        sent += more.len();
        ids.extend(more);
    }
    assert_eq!(ids.len(), sent, "each has an id of its own");
    assert_eq!(house.app.listeners().iter().filter(|open| open.name == "mx").count(), 1);

    let mut dropped = 0;
    for client in &mut clients {
        let is_alive = client.command("NOOP", "250").await.is_ok() && client.command("QUIT", "221").await.is_ok();
        dropped += usize::from(!is_alive);
    }
    until("everything is delivered", async || house.queue().await.is_empty()).await;
    let house = Arc::into_inner(house).unwrap();
    let folder = house.stop().await;
    let delivered: usize =
        std::fs::read_dir(folder.path()).unwrap().map(|entry| maildir(&entry.unwrap().path()).len()).sum();
    let seconds = began.elapsed().as_secs_f32();
    println!(
        "{CONNECTIONS} connections, {dropped} dropped; {reloads} reloads, {refused} of them broken and refused with \
         their reasons; {sent} messages acknowledged, {delivered} delivered; {seconds:.1} s"
    );
    assert_eq!((dropped, refused, delivered), (0, reloads / 10, sent));
}

async fn connect(address: std::net::SocketAddr) -> Vec<Client> {
    let mut clients = Vec::with_capacity(CONNECTIONS);
    while clients.len() < CONNECTIONS {
        let some: JoinSet<_> = (0..AT_ONCE).map(|_| Client::connect(address)).collect();
        clients.extend(some.join_all().await.into_iter().map(Result::unwrap));
    }
    clients
}
