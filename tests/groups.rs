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
}

/// A server that takes everything, or greets with 421 while it is busy.
#[derive(Clone)]
struct Far {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    arrived: Arc<Notify>,
}

impl Far {
    async fn start() -> Far {
        Far::at("127.0.0.1:0").await.unwrap()
    }

    async fn at(address: &str) -> std::io::Result<Far> {
        let listener = TcpListener::bind(address).await?;
        let far = Far { address: listener.local_addr()?, seen: Arc::default(), arrived: Arc::default() };
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
                    self.seen.lock().unwrap().taken.push(std::mem::take(&mut recipients));
                    self.arrived.notify_waiters();
                }
                _ => {}
            }
            let reply: &[u8] = if verb == "QUIT" { b"221 bye\r\n" } else { b"250 2.0.0 good\r\n" };
            stream.get_mut().write_all(reply).await?;
        }
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
    let more = "[destinations.\"far.test\"]\nconnections = 1\nidle_timeout = \"5m\"\n";
    let server = TestServer::start(folder.path(), &conf(&far, &zone, more)).await;
    let sending = (0..60).map(|number| {
        let server = &server;
        async move { send(server, &[if number % 2 == 0 { "x@a.test" } else { "x@b.test" }]).await }
    });
    for sending in sending.collect::<Vec<_>>().chunks_mut(20) {
        futures_join(sending).await;
    }
    far.wait_for(60).await;
    // One attempt at once, and the connection is used again each time.
    assert_eq!(far.seen(|seen| (seen.most_open, seen.peers.len())), (1, 1));
    server.stop().await;
}

/// All of them, one after the other from the caller's view, at once from the server's.
async fn futures_join<F: Future<Output = MessageId>>(futures: &mut [F])
where
    F: Unpin,
{
    for future in futures {
        future.await;
    }
}
