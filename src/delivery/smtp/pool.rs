//! Connections that wait a moment for the next message to the same server.
//!
//! Promises: a connection is given only to what it would have been opened for ([`Way`]: host, address,
//! TLS demand and login are the same); it waits no longer and takes no more messages than is configured for
//! its servers, and then gets a QUIT; how many wait is bounded. Goodbyes are said in the background, so
//! no message waits for one.
//!
//! Leaves out: how many connections there may be at once (`delivery::dispatch` limits the attempts).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::connection::Connection;
use super::host::Agreed;
use super::step::Tls;
use super::tls_policy::Terms;
use crate::config::GroupLimits;
use crate::message::Domain;

/// Connections that wait, altogether, however few attempts at once there may be.
const WAITING_MIN: usize = 256;

/// What makes two connections interchangeable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    pub host: Domain,
    pub address: SocketAddr,
    pub tls: Tls,
    /// What it had to show.
    pub terms: Terms,
    /// None for a mail exchanger. Whole logins are compared, so that nobody's mail goes by another's.
    pub agreed: Option<Agreed>,
    pub channel: Channel,
}

/// What is spoken, and over what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Channel {
    Smtp,
    Lmtp,
    /// A unix socket; `host` and `address` mean nothing.
    LmtpSocket(PathBuf),
}

/// The waiting connections. A clone is the same pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// So many wait altogether.
    waiting_max: usize,
    waiting: Arc<Mutex<Waiting>>,
    /// One is to end before those that are looked after.
    sooner: Arc<Notify>,
    /// Goodbyes, and the one task that ends what has waited too long.
    background: TaskTracker,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The last to come is the first to go, so that few stay open.
    by_way: HashMap<Way, Vec<Idle>>,
    count: usize,
    /// A task looks after those that wait, and again at this time; it ends when none do.
    watched_at: Option<Instant>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    until: Instant,
}

impl Pool {
    /// For so many attempts at once.
    pub fn new(concurrency: usize) -> Pool {
        Pool {
            waiting_max: concurrency.max(WAITING_MIN),
            waiting: Arc::default(),
            sooner: Arc::default(),
            background: TaskTracker::new(),
            closed: CancellationToken::new(),
        }
    }

    /// A connection that is still open as far as can be seen from here. The far end may be closing it
    /// at this moment: the caller must be ready for that.
    pub async fn take(&self, way: &Way) -> Option<Connection> {
        while let Some(mut connection) = self.pop(way) {
            if connection.is_quiet().await {
                return Some(connection);
            }
        }
        None
    }

    fn pop(&self, way: &Way) -> Option<Connection> {
        let mut waiting = self.lock();
        let idle = waiting.by_way.get_mut(way)?.pop()?;
        waiting.count -= 1;
        Some(idle.connection)
    }

    /// Keeps a connection that is at rest, or says goodbye to it. `limits` are those of its servers.
    pub fn give(&self, way: Way, connection: Connection, limits: &GroupLimits) {
        if let Some(connection) = self.keep(way, connection, limits) {
            self.background.spawn(connection.quit());
        }
    }

    /// Gives back what is not kept.
    fn keep(&self, way: Way, connection: Connection, limits: &GroupLimits) -> Option<Connection> {
        let is_used_up = connection.messages() >= limits.messages_per_connection;
        if is_used_up || limits.idle_timeout.is_zero() || self.closed.is_cancelled() {
            return Some(connection);
        }
        let mut waiting = self.lock();
        if waiting.count >= self.waiting_max {
            return Some(connection);
        }
        let same = waiting.by_way.entry(way).or_default();
        if same.len() >= limits.connections {
            return Some(connection);
        }
        let until = Instant::now() + limits.idle_timeout;
        same.push(Idle { connection, until });
        waiting.count += 1;
        match waiting.watched_at {
            None => {
                waiting.watched_at = Some(until);
                self.background.spawn(self.clone().watch());
            }
            Some(at) if until < at => {
                waiting.watched_at = Some(until);
                self.sooner.notify_one();
            }
            Some(_) => {}
        }
        None
    }

    /// Ends connections whose time is over, until none wait.
    async fn watch(self) {
        while let Some(next) = self.end_old() {
            tokio::select! {
                biased;
                () = sleep_until(next) => {}
                () = self.sooner.notified() => {}
                () = self.closed.cancelled() => {}
            }
        }
    }

    /// Gives the time at which the next one is to end.
    fn end_old(&self) -> Option<Instant> {
        let now = if self.closed.is_cancelled() { None } else { Some(Instant::now()) };
        let mut waiting = self.lock();
        let mut next: Option<Instant> = None;
        let mut old = Vec::new();
        for same in waiting.by_way.values_mut() {
            old.extend(same.extract_if(.., |idle| now.is_none_or(|now| idle.until <= now)));
            next = same.iter().map(|idle| idle.until).chain(next).min();
        }
        waiting.by_way.retain(|_, same| !same.is_empty());
        waiting.count -= old.len();
        waiting.watched_at = next;
        drop(waiting);
        for idle in old {
            self.background.spawn(idle.connection.quit());
        }
        next
    }

    /// Says goodbye to all, and to whatever is given from now on; returns when it is said.
    pub async fn close(&self) {
        self.closed.cancel();
        self.end_old();
        self.background.close();
        self.background.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};

    use std::time::Duration;

    use super::super::auth::{Login, Secret};
    use super::super::client::Client;
    use super::super::step::Timeouts;
    use super::super::tls;
    use super::*;
    use crate::config;
    use crate::delivery::smtp::tls_policy::Certificate;

    const HURRIED: GroupLimits = GroupLimits { idle_timeout: Duration::from_millis(10), ..GroupLimits::DEFAULT };
    const MOST: usize = GroupLimits::DEFAULT.connections;

    fn way(tls: Tls) -> Way {
        Way {
            host: Domain::parse("mx.far.test").unwrap(),
            address: "192.0.2.1:25".parse().unwrap(),
            tls,
            terms: Terms::default(),
            agreed: None,
            channel: Channel::Smtp,
        }
    }

    fn way_of(username: &str, password: &str) -> Way {
        let secret = Secret::Password(config::Secret(password.into()));
        let login = Some(Login { username: username.into(), secret });
        let agreed = Some(Agreed { verify_certificate: true, login, may_show_secret: false, debug: false });
        Way { agreed, ..way(Tls::Required) }
    }

    /// An open connection, and its far end.
    async fn open() -> (Connection, BufReader<DuplexStream>) {
        let (near, far) = duplex(1024);
        let timeouts = Timeouts { quit: Duration::from_millis(10), ..Timeouts::RFC5321 };
        let client = Client::new("mx".into(), Domain::parse("us.test").unwrap(), Tls::IfOffered, timeouts);
        let name = tls::server_name(&way(Tls::Never).host, [192, 0, 2, 1].into());
        let mut far = BufReader::new(far);
        let deadline = Instant::now() + Duration::from_secs(60);
        let connector = tls::opportunistic().unwrap();
        let judge = tls::Judge { certificate: Certificate::Any, authorities: None };
        let opened = Connection::open(Box::new(near), client, &connector, name, &judge, deadline);
        let greeted = async {
            far.get_mut().write_all(b"220 mx\r\n").await.unwrap();
            assert_eq!(line(&mut far).await, "EHLO us.test\r\n");
            far.get_mut().write_all(b"250 mx\r\n").await.unwrap();
        };
        let (connection, ()) = tokio::join!(opened, greeted);
        (connection.unwrap(), far)
    }

    async fn line(far: &mut BufReader<DuplexStream>) -> String {
        let mut line = String::new();
        far.read_line(&mut line).await.unwrap();
        line
    }

    #[tokio::test]
    async fn what_waits_too_long_gets_a_goodbye() {
        let pool = Pool::new(1);
        let (connection, mut far) = open().await;
        pool.give(way(Tls::IfOffered), connection, &HURRIED);
        assert_eq!(line(&mut far).await, "QUIT\r\n");
        assert!(pool.take(&way(Tls::IfOffered)).await.is_none());
        // And the next one is looked after again.
        let (connection, mut far) = open().await;
        pool.give(way(Tls::IfOffered), connection, &HURRIED);
        assert_eq!(line(&mut far).await, "QUIT\r\n");
    }

    #[tokio::test]
    async fn one_that_may_wait_less_is_ended_before_those_that_came_first() {
        let pool = Pool::new(1);
        let (patient, mut far_of_patient) = open().await;
        pool.give(way(Tls::IfOffered), patient, &GroupLimits { idle_timeout: Duration::from_secs(600), ..HURRIED });
        tokio::task::yield_now().await;
        let (connection, mut far) = open().await;
        pool.give(way(Tls::Never), connection, &HURRIED);
        assert_eq!(line(&mut far).await, "QUIT\r\n");
        assert!(pool.take(&way(Tls::IfOffered)).await.is_some());
        assert_eq!(line(&mut far_of_patient).await, "");
    }

    #[tokio::test]
    async fn what_is_configured_not_to_wait_does_not() {
        for limits in [
            GroupLimits { idle_timeout: Duration::ZERO, ..GroupLimits::DEFAULT },
            GroupLimits { messages_per_connection: 0, ..GroupLimits::DEFAULT },
        ] {
            let pool = Pool::new(1);
            let (connection, mut far) = open().await;
            pool.give(way(Tls::Never), connection, &limits);
            assert_eq!(line(&mut far).await, "QUIT\r\n");
        }
    }

    #[tokio::test]
    async fn only_for_the_same_way_and_only_if_quiet() {
        let pool = Pool::new(1);
        let (connection, mut far) = open().await;
        pool.give(way(Tls::Never), connection, &GroupLimits::DEFAULT);
        assert!(pool.take(&way(Tls::Required)).await.is_none());
        let connection = pool.take(&way(Tls::Never)).await.unwrap();
        pool.give(way(Tls::Never), connection, &GroupLimits::DEFAULT);
        far.get_mut().write_all(b"421 enough\r\n").await.unwrap();
        assert!(pool.take(&way(Tls::Never)).await.is_none());
        assert_eq!(far.read_u8().await.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn never_for_another_login() {
        let pool = Pool::new(1);
        let (connection, _far) = open().await;
        pool.give(way_of("one", "x"), connection, &GroupLimits::DEFAULT);
        let unverified = {
            let mut way = way_of("one", "x");
            way.agreed.as_mut().unwrap().verify_certificate = false;
            way
        };
        for other in [way_of("two", "x"), way_of("one", "y"), unverified, way(Tls::Required)] {
            assert!(pool.take(&other).await.is_none(), "{other:?}");
        }
        assert!(pool.take(&way_of("one", "x")).await.is_some());
    }

    #[tokio::test]
    async fn no_more_wait_than_may_and_none_after_the_end() {
        let pool = Pool::new(1);
        let mut far_ends = Vec::new();
        for _ in 0..=MOST {
            let (connection, far) = open().await;
            pool.give(way(Tls::Never), connection, &GroupLimits::DEFAULT);
            far_ends.push(far);
        }
        assert_eq!(pool.lock().count, MOST);
        assert_eq!(line(far_ends.last_mut().unwrap()).await, "QUIT\r\n");
        pool.close().await;
        for far in &mut far_ends[..MOST] {
            assert_eq!(line(far).await, "QUIT\r\n");
        }
        let (connection, mut far) = open().await;
        pool.give(way(Tls::Never), connection, &GroupLimits::DEFAULT);
        assert_eq!(line(&mut far).await, "QUIT\r\n");
        assert_eq!(pool.lock().count, 0);
    }
}
