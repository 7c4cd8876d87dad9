//! How much one client may take, limit by limit: who counts as one, what happens at the limit and one before it, and
//! when it is over. The clock is the test's own. What a flood costs others is measured by `make floods`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod server;
}

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::clock::Clock;
use postrider::config::{self, Config, Rate, Role};
use postrider::server::limits::{ConnectionGuard, Limits, connections_for};
use postrider::smtp::reply::Refusal;
use support::client::Client;
use support::server::TestServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const MINUTE: u64 = 60_000;

/// The defaults, with networks of all kinds.
fn config(more: &str) -> Config {
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"/nonexistent\"\n\
         [networks]\ntrusted = [\"10.0.0.0/8\", \"2001:db8:aaaa::/48\"]\nblocked = [\"203.0.113.0/24\", \"2001:db8:bad::/48\"]\n\
         [domains.\"home.test\"]\n[accounts.shop]\npassword = \"secret\"\n{more}"
    );
    config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

struct Door {
    config: Config,
    limits: Arc<Limits>,
    clock: Clock,
}

impl Door {
    fn new(more: &str) -> Door {
        Door { config: config(more), limits: Limits::for_open_files(None), clock: Clock::manual(1_000_000) }
    }

    fn enter(&self, role: Role, from: &str) -> Result<ConnectionGuard, Refusal> {
        self.limits.connect(&self.config, role, ip(from), self.clock.now())
    }

    /// Connections one after another until one is refused, `most` at most, and what that one was told.
    fn how_often(&self, role: Role, from: &str, most: usize) -> (usize, String) {
        for count in 0..most {
            if let Err(refusal) = self.enter(role, from) {
                return (count, refusal.reply.to_string());
            }
        }
        (most, String::new())
    }

    fn fail(&self, from: &str, account: &str) {
        self.limits.login_failed(&self.config, ip(from), Some(account), self.clock.now());
    }

    fn may_log_in(&self, from: &str, account: &str) -> bool {
        match self.limits.may_log_in(&self.config, ip(from), account, self.clock.now()) {
            Ok(()) => true,
            Err(refusal) => {
                assert_eq!(refusal.reply.to_string(), "421 4.7.0 too many failed logins, please try again later");
                false
            }
        }
    }
}

#[test]
fn an_ipv4_address_is_a_client_and_of_ipv6_a_network_of_64_bits() {
    for (one, other, are_one) in [
        ("192.0.2.1", "192.0.2.1", true),
        ("192.0.2.1", "192.0.2.2", false),
        ("192.0.2.1", "::ffff:192.0.2.1", true),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff:ffff:ffff:ffff", true),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", false),
        ("::192.0.2.1", "192.0.2.1", false),
    ] {
        for (what, more) in [
            ("connections at once", "[limits]\nconnections_per_ip = 1\n"),
            ("the rate of connections", "[limits]\nconnection_rate = \"1/m\"\n"),
        ] {
            let door = Door::new(more);
            let _open = door.enter(Role::Mx, one).unwrap();
            assert_eq!(door.enter(Role::Mx, other).is_err(), are_one, "{what}: {one} and {other}");
        }
        let door = Door::new("[limits]\nauth_failures = \"1/m\"\n");
        door.fail(one, "a name");
        assert_eq!(!door.may_log_in(other, "another name"), are_one, "failed logins: {one} and {other}");
    }
}

#[test]
fn connections_have_a_limit_for_each_address_each_network_and_all_together() {
    const AT_ONCE: &str = "421 4.7.0 too many connections from your address, please try again later";
    const TOO_OFTEN: &str = "421 4.7.0 your address connects too often, please try again later";
    const BLOCKED: &str = "554 5.7.1 no service for your network here";
    let keep_open = |door: &Door, role, from: &str| {
        let mut open = Vec::new();
        loop {
            match door.enter(role, from) {
                Ok(place) => open.push(place),
                Err(refusal) => return (open.len(), refusal.reply.to_string()),
            }
        }
    };
    // Each keeps its connections open: 50 at once, whoever it is.
    for (role, from, wanted, told) in [
        (Role::Mx, "192.0.2.1", 50, AT_ONCE),
        (Role::Mx, "10.1.2.3", 50, AT_ONCE),
        (Role::Submission, "192.0.2.1", 50, AT_ONCE),
        (Role::Submission, "2001:db8::1", 50, AT_ONCE),
        (Role::Mx, "203.0.113.9", 0, BLOCKED),
        (Role::Submission, "2001:db8:bad::1", 0, BLOCKED),
    ] {
        assert_eq!(keep_open(&Door::new(""), role, from), (wanted, told.to_owned()), "{role:?} {from}");
    }
    // Each closes at once: 60 in a minute from outside, as many as it likes from a trusted network.
    for (role, from, wanted, told) in [
        (Role::Mx, "192.0.2.1", 60, TOO_OFTEN),
        (Role::Mx, "127.0.0.1", 60, TOO_OFTEN),
        (Role::Mx, "2001:db8::1", 60, TOO_OFTEN),
        (Role::Mx, "10.1.2.3", 1000, ""),
        (Role::Mx, "::ffff:10.1.2.3", 1000, ""),
        (Role::Mx, "2001:db8:aaaa::1", 1000, ""),
        (Role::Submission, "192.0.2.1", 1000, ""),
    ] {
        let door = Door::new("");
        assert_eq!(door.how_often(role, from, 1000), (wanted, told.to_owned()), "{role:?} {from}");
        // One more for each second, all of them after a minute.
        door.clock.advance(1000);
        assert!(door.enter(role, from).is_ok(), "{from}");
        door.clock.advance(MINUTE);
        assert_eq!(door.how_often(role, from, 1000).0, wanted, "{role:?} {from}");
    }
    // All together, from however many addresses.
    let door = Door::new("[limits]\nconnections = 100\n");
    let open: Vec<_> = (1..=100).map(|host| door.enter(Role::Mx, &format!("192.0.2.{host}")).unwrap()).collect();
    assert!(door.enter(Role::Mx, "198.51.100.1").is_err());
    drop(open);
    assert!(door.enter(Role::Mx, "198.51.100.1").is_ok());
}

#[test]
fn connections_leave_open_files_for_the_store_and_for_deliveries() {
    for (files, connections) in [(256, 128), (1024, 512), (2048, 1024), (20_000, 18_976), (1 << 20, (1 << 20) - 1024)] {
        assert_eq!(connections_for(files), connections);
    }
    let (limits, config) = (Limits::for_open_files(Some(256)), config("[limits]\nconnections_per_ip = 1000\n"));
    let enter = |from: &str| limits.connect(&config, Role::Submission, ip(from), 0);
    let _open: Vec<_> = (0..128).map(|_| enter("192.0.2.1").unwrap()).collect();
    let refused = enter("198.51.100.1").unwrap_err();
    assert_eq!(refused.reply.to_string(), "421 4.7.0 too many connections, please try again later");
    assert!(refused.reason.contains("LimitNOFILE"), "{}", refused.reason);
}

#[test]
fn failed_logins_lock_an_address_or_an_account_until_the_window_is_over() {
    // From where ten logins fail, as whom (a name for each, or one), and who is locked then.
    let (outside, other, trusted, own) = ("192.0.2.1", "198.51.100.1", "10.1.2.3", "127.0.0.1");
    for (from, name, from_then, name_then, is_locked) in [
        // The address that guesses, whatever it tries next.
        (outside, None, outside, "shop", true),
        (outside, None, "::ffff:192.0.2.1", "shop", true),
        (outside, None, other, "shop", false),
        // The account, and a name without one, wherever the guesses come from.
        (outside, Some("shop"), other, "shop", true),
        (outside, Some("nobody"), other, "nobody", true),
        (outside, Some("shop"), other, "office", false),
        // A trusted network stands for many users: a mistake of one does not lock the others out. This machine is not
        // trusted unless `networks.trusted` says so.
        (trusted, None, trusted, "shop", false),
        (own, None, own, "shop", true),
        ("::1", None, "::1", "shop", true),
        (own, None, other, "shop", false),
        ("2001:db8:aaaa::1", None, "2001:db8:aaaa::1", "shop", false),
    ] {
        let door = Door::new("");
        for number in 0..10 {
            assert!(door.may_log_in(from_then, name_then), "after {number} failures from {from}");
            door.fail(from, name.unwrap_or(&format!("name{number}")));
            door.clock.advance(1000);
        }
        let case = format!("{from} as {name:?}, then {from_then} as {name_then}");
        assert_eq!(!door.may_log_in(from_then, name_then), is_locked, "{case}");
        door.clock.advance(15 * MINUTE - 10_000 - 1);
        assert_eq!(!door.may_log_in(from_then, name_then), is_locked, "{case}: for the rest of the window");
        door.clock.advance(1);
        assert!(door.may_log_in(from_then, name_then), "{case}: not longer");
    }
}

async fn serve(folder: &Path, limits: &str) -> (TestServer, Clock) {
    let clock = Clock::manual(1_799_960_400_000);
    let more = "[domains.\"home.test\"]\ncatchall = \"discard\"\n[accounts.shop]\npassword = \"secret\"\n";
    let own = "[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\narc = \"off\"\nrdns = \"off\"\n";
    let whole = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n\
         [listeners.submission]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\n[queue]\nmin_free = \"1MiB\"\n\
         [limits]\n{limits}\n{more}{own}"
    );
    (TestServer::start_whole(folder, whole, clock.clone()).await, clock)
}

/// What a client reads until the server closes, while it goes on sending, a byte at a time.
async fn drip(to: SocketAddr, before: &str) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(before.as_bytes()).await.unwrap();
    let (mut read, mut write) = stream.into_split();
    let sends = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let mut heard = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, read.read_to_end(&mut heard)).await.expect("it is closed");
    sends.abort();
    String::from_utf8(heard).unwrap()
}

/// A byte now and then keeps nobody waiting: a line has one deadline, a message has a lowest rate.
#[tokio::test(flavor = "multi_thread")]
async fn slow_senders_are_cut_off_while_they_send() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = serve(folder.path(), "command_timeout = \"1s\"\ndata_timeout = \"1s\"").await;
    let envelope = "EHLO c.test\r\nMAIL FROM:<a@far.test>\r\nRCPT TO:<b@home.test>\r\n";
    for (what, before) in [
        ("a greeting", String::new()),
        ("a command", "EHLO c.test\r\nMAIL FR".to_owned()),
        ("a message", format!("{envelope}DATA\r\n")),
        ("a chunk", format!("{envelope}BDAT 1000000 LAST\r\n")),
    ] {
        let heard = drip(server.mx, &before).await;
        assert!(heard.ends_with("421 4.4.2 timed out, closing the connection\r\n"), "{what}: {heard}");
    }
    assert!(server.queue().await.is_empty());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_and_numbers_have_limits_on_the_wire() {
    let folder = tempfile::tempdir().unwrap();
    let (server, _) = serve(folder.path(), "max_size = \"1MiB\"\nmax_recipients = 3\nconnections_per_ip = 1000").await;
    // A command line.
    let mut client = Client::connect(server.mx).await.unwrap();
    client.command(&format!("NOOP {}", "x".repeat(4096 - 5)), "250").await.unwrap();
    let told = client.say(&format!("NOOP {}", "x".repeat(4096 - 4))).await.unwrap();
    assert!(told.starts_with("500 5.5.2") || told.starts_with("500 5.5.6"), "{told}");
    // Recipients of one message: what is too much is for the next one, and harms those before it not.
    let mut client = Client::connect(server.mx).await.unwrap();
    client.command("MAIL FROM:<a@far.test>", "250").await.unwrap();
    for number in 0..3 {
        client.command(&format!("RCPT TO:<b{number}@home.test>"), "250").await.unwrap();
    }
    client.command("RCPT TO:<b3@home.test>", "452 4.5.3").await.unwrap();
    client.command("DATA", "354").await.unwrap();
    client.command("From: <a@far.test>\r\n\r\nhello\r\n.", "250").await.unwrap();
    // The size that is declared, and the size that comes.
    client.command("MAIL FROM:<a@far.test> SIZE=1048577", "552 5.3.4").await.unwrap();
    // The header section: fields and octets.
    for (what, header, code) in [
        ("few fields", "A: 1\r\n".repeat(900), "250"),
        ("many fields", "A: 1\r\n".repeat(1100), "55"),
        ("a long section", format!("A: {}\r\n", "x".repeat(900)).repeat(300), "55"),
        ("a large body", format!("\r\n{}", format!("{}\r\n", "x".repeat(70)).repeat(16_000)), "552 5.3.4"),
    ] {
        let mut client = Client::connect(server.mx).await.unwrap();
        let message = format!("From: <a@far.test>\r\n{header}\r\nhello\r\n");
        let reply = client.send("a@far.test", &["b@home.test"], &message).await.unwrap();
        assert!(reply.starts_with(code), "{what}: {reply}");
    }
    server.stop().await;
}

/// `limits.max_recipients` is for mail from outside; who may submit without an account has what an account has that
/// says nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_recipients_of_a_submission_are_not_limited_as_those_of_mail_from_outside() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = "max_recipients = 3\n[networks]\ntrusted = [\"127.0.0.0/8\"]";
    let (server, _) = serve(folder.path(), trusted).await;
    for (door, most) in [(server.mx, 3), (server.submission, 1000)] {
        let mut client = Client::connect(door).await.unwrap();
        client.command("MAIL FROM:<a@home.test>", "250").await.unwrap();
        for number in 0..most {
            client.command(&format!("RCPT TO:<b{number}@home.test>"), "250").await.unwrap();
        }
        let told = format!("452 4.5.3 too many recipients: at most {most} in a message");
        client.command("RCPT TO:<more@home.test>", &told).await.unwrap();
    }
    server.stop().await;
}

/// Thirteen names twice, over connections of their own, from this machine.
#[tokio::test(flavor = "multi_thread")]
async fn who_guesses_from_loopback_is_locked_out_after_ten_whatever_the_names() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clock) = serve(folder.path(), "auth_failures = \"10/15m\"").await;
    let login = |name: &str, password: &str| format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{name}\0{password}")));
    for number in 0..26 {
        let mut client = Client::connect(server.submission).await.unwrap();
        let wanted = if number < 10 { "535" } else { "421" };
        client.command(&login(&format!("name{}", number % 13), "wrong"), wanted).await.unwrap();
    }
    for (minutes, wanted) in [(0, "421"), (15, "235")] {
        clock.advance(minutes * MINUTE);
        let mut client = Client::connect(server.submission).await.unwrap();
        client.command(&login("shop", "secret"), wanted).await.unwrap();
    }
    server.stop().await;
}

/// Across connections, from addresses that do not count.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_guessed_at_is_locked_for_the_window_and_not_longer() {
    let folder = tempfile::tempdir().unwrap();
    let (server, clock) =
        serve(folder.path(), "auth_failures = \"3/15m\"\n[networks]\ntrusted = [\"127.0.0.0/8\"]").await;
    let login = |password: &str| format!("AUTH PLAIN {}", STANDARD.encode(format!("\0shop\0{password}")));
    for wanted in ["535", "535", "535", "421"] {
        let mut client = Client::connect(server.submission).await.unwrap();
        client.command(&login("wrong"), wanted).await.unwrap();
    }
    for (minutes, wanted) in [(0, "421"), (14, "421"), (1, "235")] {
        clock.advance(minutes * MINUTE);
        let mut client = Client::connect(server.submission).await.unwrap();
        client.command(&login("secret"), wanted).await.unwrap();
    }
    server.stop().await;
}

/// The settings count as they are when somebody comes, so a reload changes them for the next.
#[test]
fn other_settings_count_at_once() {
    let mut door = Door::new("");
    door.config.limits.connection_rate = Rate { count: 2, per: Duration::from_secs(60) };
    assert_eq!(door.how_often(Role::Mx, "192.0.2.1", 100).0, 2);
    door.config.limits.connection_rate = Rate { count: 1000, per: Duration::from_secs(1) };
    assert_eq!(door.how_often(Role::Mx, "192.0.2.1", 100).0, 100);
}
