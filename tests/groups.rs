//! What is allowed towards a group of servers, through a whole server: who shares it, how fast, how many at
//! once, and what becomes of it when the servers complain.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod server;
    pub mod zone;
}

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use postrider::admin::Listed;
use postrider::clock::Clock;
use postrider::delivery::standing::tries_until;
use postrider::events::Event;
use postrider::message::MessageId;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::zone::{Zone, ZoneServer};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What a far end has seen.
#[derive(Debug, Default)]
struct Seen {
    open: usize,
    most_open: usize,
    peers: Vec<IpAddr>,
    /// Recipients of each message taken.
    taken: Vec<Vec<String>>,
    is_busy: bool,
    is_held: bool,
}

/// A server that takes everything; while it is busy it greets with 421, and while it is held it answers no
/// content.
#[derive(Clone)]
struct Far {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    arrived: Arc<Notify>,
    released: Arc<Notify>,
}

impl Far {
    async fn start() -> Far {
        Far::at("127.0.0.1:0").await.unwrap()
    }

    async fn at(address: &str) -> std::io::Result<Far> {
        let listener = TcpListener::bind(address).await?;
        let far = Far {
            address: listener.local_addr()?,
            seen: Arc::default(),
            arrived: Arc::default(),
            released: Arc::default(),
        };
        let serving = far.clone();
        tokio::spawn(async move {
            while let Ok((stream, peer)) = listener.accept().await {
                {
                    let mut seen = serving.seen.lock().unwrap();
                    seen.peers.push(peer.ip());
                    seen.open += 1;
                    seen.most_open = seen.most_open.max(seen.open);
                }
                let far = serving.clone();
                tokio::spawn(async move {
                    // A client may leave at any time.
                    let _ = far.serve(stream).await;
                    far.seen.lock().unwrap().open -= 1;
                });
            }
        });
        Ok(far)
    }

    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut stream = BufReader::new(stream);
        if self.seen.lock().unwrap().is_busy {
            return stream.get_mut().write_all(b"421 4.3.2 too busy\r\n").await;
        }
        stream.get_mut().write_all(b"220 far ESMTP\r\n").await?;
        let (mut line, mut recipients) = (String::new(), Vec::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let verb = line.get(..4).unwrap_or_default().to_ascii_uppercase();
            match verb.as_str() {
                "RCPT" => recipients.push(line[9..].trim_end_matches(">\r\n").to_owned()),
                "DATA" => {
                    stream.get_mut().write_all(b"354 go on\r\n").await?;
                    while line != ".\r\n" {
                        line.clear();
                        if stream.read_line(&mut line).await? == 0 {
                            return Ok(());
                        }
                    }
                    self.until_released().await;
                    self.seen.lock().unwrap().taken.push(std::mem::take(&mut recipients));
                    self.arrived.notify_waiters();
                }
                _ => {}
            }
            let reply: &[u8] = if verb == "QUIT" { b"221 bye\r\n" } else { b"250 2.0.0 good\r\n" };
            stream.get_mut().write_all(reply).await?;
        }
    }

    async fn until_released(&self) {
        loop {
            let released = self.released.notified();
            let mut released = std::pin::pin!(released);
            released.as_mut().enable();
            if !self.seen(|seen| seen.is_held) {
                return;
            }
            released.await;
        }
    }

    fn hold(&self, is_held: bool) {
        self.seen.lock().unwrap().is_held = is_held;
        self.released.notify_waiters();
    }

    fn set_busy(&self, is_busy: bool) {
        self.seen.lock().unwrap().is_busy = is_busy;
    }

    fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }

    async fn wait_for(&self, messages: usize) {
        loop {
            let arrived = self.arrived.notified();
            let mut arrived = std::pin::pin!(arrived);
            arrived.as_mut().enable();
            if self.seen(|seen| seen.taken.len()) >= messages {
                return;
            }
            arrived.await;
        }
    }
}

fn conf(far: &Far, zone: &ZoneServer, more: &str) -> String {
    format!(
        "[networks]\ntrusted = [\"127.0.0.0/8\"]\n[domains.\"home.test\"]\n[dns]\nnameservers = [\"{}\"]\n\
         [delivery.retry]\nschedule = [\"1h\"]\n[delivery]\nmx_port = {}\nallow_private_addresses = true\n{more}",
        zone.addr(),
        far.address.port()
    )
}

/// a.test and b.test share their servers; other.test has one of its own, at the same address.
fn zone() -> Zone {
    let zone = Zone::new().mx("other.test", 10, "mx.other.test").a("mx.other.test", "127.0.0.1");
    ["a.test", "b.test"]
        .into_iter()
        .fold(zone.a("mx1.far.test", "127.0.0.1").a("mx2.far.test", "127.0.0.1"), |zone, name| {
            zone.mx(name, 10, "mx1.far.test").mx(name, 20, "mx2.far.test")
        })
}

async fn send(server: &TestServer, to: &[&str]) -> MessageId {
    let mut client = Client::connect(server.submission).await.unwrap();
    let content = "From: <me@home.test>\r\nSubject: x\r\n\r\nhello\r\n";
    queued_id(&client.send("me@home.test", to, content).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn domains_that_share_their_servers_share_connections() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone) = (Far::start().await, zone().serve().await);
    let more = "[destinations.\"far.test\"]\nconnections = 2\nidle_timeout = \"5m\"\nmessages_per_connection = 1000\n";
    let server = TestServer::start(folder.path(), &conf(&far, &zone, more)).await;
    // Nothing is taken before all is queued, so that as many connections as may be are there.
    far.hold(true);
    for _ in 0..50 {
        send(&server, &["x@a.test"]).await;
        send(&server, &["x@b.test"]).await;
    }
    far.hold(false);
    far.wait_for(100).await;
    assert_eq!(far.seen(|seen| (seen.most_open, seen.peers.len())), (2, 2), "two, used again and again");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recipients_at_domains_that_share_their_servers_share_a_transaction() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone) = (Far::start().await, zone().serve().await);
    let server = TestServer::start(folder.path(), &conf(&far, &zone, "")).await;
    // From here on it is known where their mail goes.
    for to in ["x@a.test", "x@b.test"] {
        server.wait_done(send(&server, &[to]).await).await;
    }
    let to = ["x@a.test", "x@other.test", "y@b.test", "z@a.test"];
    let story = server.wait_done(send(&server, &to).await).await;
    let delivered = story.entries.iter().filter(|entry| matches!(entry.event, Event::Delivered { .. })).count();
    assert_eq!(delivered, to.len());
    let mut taken = far.seen(|seen| seen.taken[2..].to_vec());
    taken.iter_mut().for_each(|recipients| recipients.sort());
    taken.sort_by_key(Vec::len);
    assert_eq!(taken, [vec!["x@other.test"], vec!["x@a.test", "y@b.test", "z@a.test"]]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_recipients_and_messages_at_once_as_are_configured() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone) = (Far::start().await, zone().serve().await);
    let more = "[destinations.\"a.test\"]\nconnections = 1\nrecipients_per_message = 2\nmessages_per_connection = 3\n";
    let server = TestServer::start(folder.path(), &conf(&far, &zone, more)).await;
    let to: Vec<String> = (0..7).map(|number| format!("r{number}@a.test")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    server.wait_done(send(&server, &to).await).await;
    let sizes = far.seen(|seen| seen.taken.iter().map(Vec::len).collect::<Vec<_>>());
    assert_eq!(sizes, [2, 2, 2, 1]);
    assert_eq!(far.seen(|seen| seen.peers.len()), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_holds_up_its_own_mail_only() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone, clock) = (Far::start().await, zone().serve().await, Clock::manual(1_800_000_000_000));
    let more = "[destinations.\"far.test\"]\nrate = \"2/m\"\n";
    let server = TestServer::start_at(folder.path(), &conf(&far, &zone, more), clock.clone()).await;
    for _ in 0..5 {
        send(&server, &["x@a.test"]).await;
        send(&server, &["x@b.test"]).await;
    }
    let of_group = |far: &Far| far.seen(|seen| seen.taken.iter().filter(|to| to[0] != "x@other.test").count());
    let mut sent = Vec::new();
    for minute in 0..6 {
        // What is sent elsewhere arrives, and by then what may be sent to the group has been started.
        for _ in 0..2 {
            server.wait_done(send(&server, &["x@other.test"]).await).await;
        }
        far.wait_for(2 * (minute + 1) + sent.last().copied().unwrap_or(0) + 1).await;
        sent.push(of_group(&far));
        clock.advance(30_000);
    }
    assert_eq!(sent, [1, 2, 3, 4, 5, 6]);
    // Those whose turn is more than a minute away went back into the queue, and say why.
    let queue = server.queue().await;
    assert_eq!(queue.len(), 4);
    let why = |listed: &Listed| listed.recipients[0].last_failure.clone().map(|why| why.reason);
    assert!(queue.iter().filter_map(why).any(|why| why.contains("rate in [destinations]")), "{queue:#?}");
    assert!(queue.iter().all(|listed| listed.recipients[0].attempts == 0));
    server.stop().await;
}

/// There is nothing against its servers: it is not given up before it has been tried, and waiting is no try.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_rate_keeps_back_is_tried_when_its_turn_comes_also_after_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone, clock) = (Far::start().await, zone().serve().await, Clock::manual(1_800_000_000_000));
    let conf = conf(&far, &zone, "[destinations.\"far.test\"]\nrate = \"1/h\"\n")
        .replace("schedule = [\"1h\"]", "schedule = [\"1h\"]\nexpire = \"10m\"\ndelay_notice = \"5m\"");
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    server.wait_done(send(&server, &["x@a.test"]).await).await;
    let second = send(&server, &["y@a.test"]).await;
    let due = wait_untried(&server, second).await.recipients[0].due.unwrap();
    assert_eq!(due, clock.now() + 600_000, "the sender is told then");

    clock.advance(600_000);
    server.wait_done(send(&server, &["x@other.test"]).await).await;
    let story = server.wait_for(second, |event| matches!(event, Event::NoticeSent { .. })).await;
    let put_off = story.entries.iter().map(|entry| &entry.event).find(|event| matches!(event, Event::Deferred { .. }));
    assert!(matches!(put_off, Some(Event::Deferred { attempt: 0, .. })), "{story:#?}");
    let waiting = wait_untried(&server, second).await;
    let due = waiting.recipients[0].due.unwrap();
    assert!(due > clock.now() + 600_000, "{waiting:#?}");

    clock.advance(due - clock.now());
    server.wait_done(send(&server, &["x@other.test"]).await).await;
    let story = server.wait_done(second).await;
    let is_first = |event: &Event| matches!(event, Event::Delivered { attempt: 1, .. });
    assert!(story.entries.iter().any(|entry| is_first(&entry.event)), "{story:#?}");
    server.stop().await;
}

/// So many messages, an hour's retry each, each after the pause that the one before has made.
async fn complain(server: &TestServer, clock: &Clock, count: usize) {
    for _ in 0..count {
        clock.advance(200_000);
        let id = send(server, &["x@a.test"]).await;
        server.wait_for(id, |event| matches!(event, Event::Deferred { .. })).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_complain_are_left_alone_also_after_a_restart_and_then_all_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone, clock) = (Far::start().await, zone().serve().await, Clock::manual(1_800_000_000_000));
    let conf = conf(&far, &zone, "[destinations.\"far.test\"]\nconnections = 1\n");
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    far.set_busy(true);
    complain(&server, &clock, 4).await;
    let tries = far.seen(|seen| seen.peers.len());
    // Now there is a pause of forty seconds; the other domain of the same servers feels it too.
    let untried = send(&server, &["x@a.test", "x@b.test"]).await;
    let story = wait_untried(&server, untried).await;
    for recipient in &story.recipients {
        let why = recipient.last_failure.as_ref().unwrap();
        assert!(why.reason.starts_with("not tried") && why.reason.contains("421 4.3.2 too busy"), "{why:?}");
        let due = recipient.due.unwrap() - clock.now();
        assert!((20_000..=80_000).contains(&due), "{due}");
    }
    server.stop().await;

    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let later = send(&server, &["x@b.test"]).await;
    wait_untried(&server, later).await;
    assert_eq!(far.seen(|seen| seen.peers.len()), tries, "nobody was asked");

    far.set_busy(false);
    clock.advance(90_000);
    let last = send(&server, &["x@a.test"]).await;
    for id in [untried, later, last] {
        server.wait_done(id).await;
    }
    server.stop().await;
    // All is well again: a new complaint is the first one.
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    far.set_busy(true);
    let again = send(&server, &["x@a.test"]).await;
    server.wait_for(again, |event| matches!(event, Event::Deferred { .. })).await;
    clock.advance(6_000);
    let once_more = send(&server, &["x@b.test"]).await;
    server.wait_for(once_more, |event| matches!(event, Event::Deferred { .. })).await;
    server.stop().await;
}

/// Waits until every recipient has been put off.
async fn wait_untried(server: &TestServer, id: MessageId) -> Listed {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let listed = server.story(id).await.and_then(|story| story.message).expect("it is queued");
        if listed.recipients.iter().all(|recipient| recipient.last_failure.is_some()) {
            assert!(listed.recipients.iter().all(|recipient| recipient.attempts == 0), "{listed:?}");
            return listed;
        }
        assert!(std::time::Instant::now() < deadline, "gave up waiting: {listed:#?}");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_that_is_not_tried_expires_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone, clock) = (Far::start().await, zone().serve().await, Clock::manual(1_800_000_000_000));
    let conf = conf(&far, &zone, "[destinations.\"far.test\"]\nconnections = 1\n");
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    far.set_busy(true);
    complain(&server, &clock, 6).await;
    server.stop().await;

    // A pause of 160 seconds has begun.
    let conf = conf.replace("schedule = [\"1h\"]", "schedule = [\"1h\"]\nexpire = \"1m\"");
    let server = TestServer::start_at(folder.path(), &conf, clock.clone()).await;
    let untried = send(&server, &["y@b.test"]).await;
    let listed = wait_untried(&server, untried).await;
    assert_eq!(listed.recipients[0].due, Some(clock.now() + 60_000));
    let tries = far.seen(|seen| seen.peers.len());
    clock.advance(60_000);
    send(&server, &["y@b.test"]).await;
    let story = server.wait_done(untried).await;
    let expired = story.entries.iter().map(|entry| &entry.event).find(|event| matches!(event, Event::Expired { .. }));
    let Some(Event::Expired { attempt: 0, why, .. }) = expired else { panic!("no try was made: {story:#?}") };
    assert_eq!(tries_until(0, why).0, "without a try");
    assert!(story.entries.iter().any(|entry| matches!(entry.event, Event::NoticeSent { .. })), "{story:#?}");
    assert_eq!(far.seen(|seen| seen.peers.len()), tries, "nobody was asked");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_come_from_our_addresses_in_turn() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone) = (Far::start().await, zone().serve().await);
    let more = "source_addresses = [\"127.0.0.7\", \"127.0.0.8\"]\n[destinations.default]\nidle_timeout = \"0s\"\n";
    let server = TestServer::start(folder.path(), &conf(&far, &zone, more)).await;
    for _ in 0..4 {
        server.wait_done(send(&server, &["x@a.test"]).await).await;
    }
    let peers = far.seen(|seen| seen.peers.iter().map(IpAddr::to_string).collect::<Vec<_>>());
    assert_eq!(peers, ["127.0.0.7", "127.0.0.8", "127.0.0.7", "127.0.0.8"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_not_ours_is_our_fault() {
    let folder = tempfile::tempdir().unwrap();
    let (far, zone) = (Far::start().await, zone().serve().await);
    let more = "source_addresses = [\"192.0.2.77\"]\n";
    let server = TestServer::start(folder.path(), &conf(&far, &zone, more)).await;
    let id = send(&server, &["x@a.test"]).await;
    let story = server.wait_for(id, |event| matches!(event, Event::Deferred { .. })).await;
    let why = story.message.unwrap().recipients[0].last_failure.clone().unwrap();
    assert_eq!(why.status, "4.3.5");
    assert!(why.reason.contains("192.0.2.77") && why.reason.contains("delivery.source_addresses"), "{why:?}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_family_that_fails_is_not_tried_first_again() {
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let zone = zone().aaaa("mx1.far.test", "::1").serve().await;
    let more = "[destinations.default]\nidle_timeout = \"0s\"\n";
    let server = TestServer::start(folder.path(), &conf(&far, &zone, more)).await;
    // Nobody listens there over IPv6, if this machine has that at all.
    server.wait_done(send(&server, &["x@a.test"]).await).await;
    assert_eq!(far.seen(|seen| seen.taken.len()), 1);
    match Far::at(&format!("[::1]:{}", far.address.port())).await {
        Ok(six) => {
            server.wait_done(send(&server, &["x@b.test"]).await).await;
            assert_eq!(far.seen(|seen| seen.taken.len()), 2);
            assert_eq!(six.seen(|seen| seen.peers.len()), 0);
        }
        Err(error) => println!("no IPv6 here, so this is half a test: {error}"),
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn name_servers_that_do_not_answer_for_some_hold_up_no_others() {
    let folder = tempfile::tempdir().unwrap();
    let far = Far::start().await;
    let zone = zone().silent("silent.test").serve().await;
    let server = TestServer::start(folder.path(), &conf(&far, &zone, "")).await;
    let mut client = Client::connect(server.submission).await.unwrap();
    // More than may be looked up at once.
    for number in 0..150 {
        let to = format!("x@d{number}.silent.test");
        client.send("me@home.test", &[&to], "Subject: x\r\n\r\nhello\r\n").await.unwrap();
    }
    server.wait_done(send(&server, &["x@a.test"]).await).await;
    server.app.stop(async {}).await;
}
