//! Mail from mailboxes elsewhere: the servers play scripts on loopback and break off at each stage; the
//! store, the queue and intake are real, the clock is the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/remote.rs"]
mod remote;
#[path = "support/zone.rs"]
mod zone;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use postrider::clock::{Clock, Millis};
use postrider::config::{self, Config};
use postrider::dns::Resolver;
use postrider::events::journal::Journal;
use postrider::intake::Intake;
use postrider::intake::fetch::collect::Collector;
use postrider::intake::fetch::{Credential, Fetcher, NotRun, Ran, Status, Ways, imap, pop3, wire};
use postrider::intake::sign::Signer;
use postrider::message::Door;
use postrider::queue::Queue;
use postrider::queue::record::{Message, Recipient, Status as Queued};
use postrider::queue::suspend::Suspension;
use postrider::store::Store;
use remote::{Received, Remotes};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;
use zone::{Zone, ZoneServer};

const START: Millis = 1_795_300_017_000;
const MINUTE: Millis = 60_000;
/// The only name that the certificate of the far ends is for.
const CERTIFIED: &str = "somebody.else.test";

const IMAP_IN: &str = "S: * OK [CAPABILITY IMAP4rev1 UIDPLUS MOVE] hello\nC: p1 LOGIN \"box\" \"hunter2\"\n\
    S: p1 OK [CAPABILITY IMAP4rev1 UIDPLUS MOVE] in\n";
const POP_IN: &str = "S: +OK hello\nC: USER box\nS: +OK\nC: PASS hunter2\nS: +OK in\n";

/// A server that fetches, for as long as the value lives; what it keeps stays in the folder.
struct House {
    fetcher: Arc<Fetcher>,
    queue: Arc<Queue>,
    clock: Clock,
    stop: CancellationToken,
    _zone: ZoneServer,
}

struct Site {
    folder: TempDir,
    more: String,
}

impl Site {
    /// `account`: lines of `[fetch.box]`.
    fn new(account: &str) -> Site {
        Site { folder: tempfile::tempdir().unwrap(), more: account.to_owned() }
    }

    fn config(&self, port: u16) -> Config {
        let text = self.text(port);
        config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
    }

    fn text(&self, port: u16) -> String {
        format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"{}\"\n[domains.\"own.test\"]\n[queue]\nmin_free = \"1MiB\"\n\
             [limits]\nmax_size = \"1MiB\"\n[aliases]\n\"sales@own.test\" = \"post\"\n\"ann@own.test\" = \"post\"\n\
             [targets.post]\nkind = \"maildir\"\npath = \"/nowhere\"\n[fetch.box]\nusername = \"box\"\npassword = \"hunter2\"\nport = {port}\n{}",
            self.folder.path().display(),
            self.more
        )
    }

    /// Starts, or starts again, at this time.
    async fn open(&self, remotes: &Remotes, now: Millis) -> House {
        let zone = Zone::new().a(CERTIFIED, "127.0.0.1").a("other.test", "127.0.0.1").serve().await;
        let mut config = self.config(remotes.port);
        config.dns = zone.config();
        let config = Arc::new(config);
        let clock = Clock::manual(now);
        let store = Arc::new(Store::open(&self.folder.path().join("store")).unwrap());
        let (queue, _) = Queue::new(store, clock.clone(), true, config.queue.memory).unwrap();
        let journal = Arc::new(Journal::new(clock.clone()));
        let resolver = Resolver::new(&config.dns).unwrap();
        let signer = Signer::load(&config).unwrap();
        let intake = Intake::new(config, clock.clone(), queue.clone(), journal, resolver.clone(), signer).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(remotes.certificate.clone()).unwrap();
        let ways = Ways { resolver, tls: Ok(connector(roots)) };
        let stop = CancellationToken::new();
        let fetcher = Arc::new(Fetcher::new(Arc::new(intake), clock.clone(), ways, stop.clone()).unwrap());
        House { fetcher, queue, clock, stop, _zone: zone }
    }
}

fn connector(roots: RootCertStore) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = builder.with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

impl House {
    async fn run(&self) -> Ran {
        self.fetcher.run_now("box", false).await.unwrap()
    }

    fn status(&self) -> Status {
        self.fetcher.list().remove(0)
    }

    /// What is queued, but for notices of our own.
    fn queued(&self) -> Vec<(Message, Vec<Recipient>)> {
        let mut found = Vec::new();
        let walked = self.queue.walk(None, |message, recipients| {
            if message.origin.door != Door::Bounce {
                found.push((message, recipients.into_iter().map(|(_, recipient)| recipient).collect()));
            }
            std::ops::ControlFlow::Continue(())
        });
        walked.unwrap();
        found
    }

    fn subjects(&self) -> Vec<String> {
        let mut subjects: Vec<String> = self.queued().into_iter().map(|(message, _)| message.subject).collect();
        subjects.sort_unstable();
        subjects
    }

    fn body(&self, message: &Message) -> String {
        let chunks = self.queue.body(message).unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    fn notices(&self) -> usize {
        let mut count = 0;
        let walked = self.queue.walk(None, |message, _| {
            count += usize::from(message.origin.door == Door::Bounce);
            std::ops::ControlFlow::Continue(())
        });
        walked.unwrap();
        count
    }
}

fn message(subject: &str) -> String {
    format!(
        "Subject: {subject}\r\nFrom: a@far.test\r\nTo: sales@own.test\r\nMessage-ID: <{subject}@far.test>\r\n\r\nHello.\r\n"
    )
}

/// A script's line that sends these bytes.
fn bytes(text: &str) -> String {
    format!("S> {}\n", text.replace('\\', "\\\\").replace('\r', "\\r").replace('\n', "\\n"))
}

fn imap_site(more: &str) -> Site {
    Site::new(&format!("protocol = \"imap\"\nhost = \"127.0.0.1\"\ntls = \"off\"\n{more}"))
}

fn pop_site(more: &str) -> Site {
    Site::new(&format!("protocol = \"pop3\"\nhost = \"127.0.0.1\"\ntls = \"off\"\n{more}"))
}

const TO_SALES: &str = "deliver_to = \"sales@own.test\"\n";

/// The folder is opened, and these UIDs are found.
fn select(validity: u32, next: u32, uids: &[u32]) -> String {
    let list: String = uids.iter().map(|uid| format!(" {uid}")).collect();
    format!(
        "C: p2 SELECT \"INBOX\"\nS: * {} EXISTS\nS: * OK [UIDVALIDITY {validity}] v\nS: * OK [UIDNEXT {next}] n\nS: p2 OK [READ-WRITE] done\n\
         C: p3 UID SEARCH 1:{} UNDELETED UNSEEN\nS: * SEARCH{list}\nS: p3 OK done\n",
        uids.len(),
        uids.len(),
    )
}

fn sizes(tag: u32, set: &str, uids: &[u32]) -> String {
    let lines: String = uids.iter().map(|uid| format!("S: * 1 FETCH (UID {uid} RFC822.SIZE 200)\n")).collect();
    format!("C: p{tag} UID FETCH {set} (UID RFC822.SIZE)\n{lines}S: p{tag} OK done\n")
}

fn asked(tag: u32, uid: u32) -> String {
    format!("C: p{tag} UID FETCH {uid} (UID BODY.PEEK[])\n")
}

fn fetched(tag: u32, uid: u32, content: &str) -> String {
    let answer = format!("* 1 FETCH (UID {uid} BODY[] {{{}}}\r\n{content})\r\np{tag} OK done\r\n", content.len());
    format!("{}{}", asked(tag, uid), bytes(&answer))
}

fn seen(tag: u32, uid: u32) -> String {
    format!("C: p{tag} UID STORE {uid} +FLAGS.SILENT (\\Seen)\nS: p{tag} OK done\n")
}

/// The first run looks for what is gone, afterwards once a day.
fn pruned(tag: u32, set: &str, uids: &[u32]) -> String {
    let list: String = uids.iter().map(|uid| format!(" {uid}")).collect();
    format!("C: p{tag} UID SEARCH UID {set}\nS: * SEARCH{list}\nS: p{tag} OK done\n")
}

fn out(tag: u32) -> String {
    format!("C: p{tag} LOGOUT\nS: * BYE bye\nS: p{tag} OK done\ngone\n")
}

#[tokio::test]
async fn unread_messages_come_in_once_and_are_marked() {
    let one = [
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        &sizes(4, "3:4", &[3, 4]),
        &fetched(5, 3, &format!("Return-Path: <ann@far.test>\r\nDelivered-To: box@hoster.test\r\n{}", message("one"))),
        &seen(6, 3),
        &fetched(7, 4, &message("two").replace("\r\n", "\n")),
        &seen(8, 4),
        &pruned(9, "3:4", &[3, 4]),
        &out(10),
    ]
    .concat();
    let two = [IMAP_IN, "C: p2 SELECT \"INBOX\"\nS: * 0 EXISTS\nS: * OK [UIDVALIDITY 7] v\nS: p2 OK done\n", &out(3)]
        .concat();
    let remotes = Remotes::play(&[&format!("{one}---\n{two}")]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 2, fetched: 2, ..Ran::default() });
    assert_eq!(house.run().await, Ran::default());
    assert_eq!(house.subjects(), ["one", "two"]);
    let (first, recipients) = house.queued().into_iter().find(|(message, _)| message.subject == "one").unwrap();
    assert_eq!(first.mail_from.to_string(), "ann@far.test");
    assert_eq!(first.origin.door, Door::Fetch { account: "box".to_owned() });
    assert!(first.findings.is_some(), "it was checked");
    assert_eq!(recipients[0].alias.as_ref().unwrap().to_string(), "sales@own.test");
    let body = house.body(&first);
    assert!(body.contains("with fetch id") && body.ends_with("\r\n\r\nHello.\r\n"), "{body}");
    assert!(!body.contains("hoster.test") && !body.contains("Return-Path"), "{body}");
    let status = house.status();
    assert_eq!((status.fetched, status.state.as_str(), status.last_error), (2, "waiting", None));
    assert_eq!(status.next_run, Some(START + 5 * MINUTE));
    remotes.finish().await;
}

/// Each row: where the connection breaks in the first run; what the second one then sees.
#[tokio::test]
async fn a_connection_that_breaks_anywhere_loses_nothing_and_doubles_nothing() {
    let opened = [IMAP_IN, &select(7, 5, &[3, 4])].concat();
    let listed = [opened.as_str(), &sizes(4, "3:4", &[3, 4])].concat();
    let content = message("one");
    let half = format!(
        "{}{}drop\n",
        asked(5, 3),
        bytes(&format!("* 1 FETCH (UID 3 BODY[] {{{}}}\r\nSubject: o", content.len()))
    );
    let read = [listed.as_str(), &fetched(5, 3, &content)].concat();
    let whole = |from: u32| {
        [fetched(from, 3, &content), seen(from + 1, 3), fetched(from + 2, 4, &message("two")), seen(from + 3, 4)]
            .concat()
    };
    let again = [&listed, &whole(5)].map(String::as_str).concat() + &pruned(9, "3:4", &[3, 4]) + &out(10);
    // The one that the connection broke at comes last.
    let other_first = [
        opened.as_str(),
        &sizes(4, "4", &[4]),
        &fetched(5, 4, &message("two")),
        &seen(6, 4),
        &sizes(7, "3", &[3]),
        &fetched(8, 3, &content),
        &seen(9, 3),
        &pruned(10, "3:4", &[3, 4]),
        &out(11),
    ]
    .concat();
    let unmarked = [
        opened.as_str(),
        &seen(4, 3),
        &sizes(5, "4", &[4]),
        &fetched(6, 4, &message("two")),
        &seen(7, 4),
        &pruned(8, "3:4", &[3, 4]),
        &out(9),
    ]
    .concat();
    for (at, first, second) in [
        ("at once", "drop\n".to_owned(), &again),
        ("in the greeting", "S> * OK [CAPA\ndrop\n".to_owned(), &again),
        ("at the login", "S: * OK hello\nC: p1 CAPABILITY\ndrop\n".to_owned(), &again),
        ("behind the folder", format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\ndrop\n"), &again),
        ("in the list", format!("{opened}drop\n"), &again),
        ("before the content", format!("{listed}{}drop\n", asked(5, 3)), &other_first),
        ("in the content", format!("{listed}{half}"), &other_first),
        ("before it is marked", format!("{read}C: p6 ...\ndrop\n"), &unmarked),
    ] {
        let remotes = Remotes::play(&[&format!("{first}---\n{second}")]).await;
        let site = imap_site(TO_SALES);
        let house = site.open(&remotes, START).await;
        let ran = house.run().await;
        assert!(ran.error.is_some(), "{at}: {ran:?}");
        let status = house.status();
        assert_eq!((status.state.as_str(), status.next_run), ("failing", Some(START + 5 * MINUTE)), "{at}");
        // It starts anew: what it knows is on disk.
        drop(house);
        let house = site.open(&remotes, START + 5 * MINUTE).await;
        let ran = house.run().await;
        assert_eq!(ran.error, None, "{at}: {ran:?}");
        assert_eq!(house.subjects(), ["one", "two"], "{at}");
        assert_eq!(house.status().state, "waiting", "{at}");
        assert_eq!(remotes.finish().await, [Received { connections: 2, contents: Vec::new() }], "{at}");
    }
}

#[tokio::test]
async fn what_the_server_does_not_do_stops_only_that() {
    // No to one message, three times; then it is left, and the postmaster told once.
    let no = |tag: u32| format!("{}S: p{tag} NO [UNAVAILABLE] broken\n", asked(tag, 3));
    let other = |tag: u32| format!("{}{}", fetched(tag, 4, &message("two")), seen(tag + 1, 4));
    let end = |from: u32, set: &str| format!("{}{}", pruned(from, set, &[3, 4]), out(from + 1));
    let opened = [IMAP_IN, &select(7, 5, &[3, 4])].concat();
    let alone = [IMAP_IN, &select(7, 5, &[3])].concat();
    let script = [
        format!("{opened}{}{}{}{}", sizes(4, "3:4", &[3, 4]), no(5), other(6), end(8, "3:4")),
        format!("{alone}{}{}{}", sizes(4, "3", &[3]), no(5), out(6)),
        format!("{alone}{}{}{}", sizes(4, "3", &[3]), no(5), out(6)),
    ]
    .join("---\n");
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 2, fetched: 1, failed: 1, ..Ran::default() });
    assert_eq!(house.run().await, Ran { found: 1, failed: 1, ..Ran::default() });
    assert_eq!(house.notices(), 0);
    let ran = house.run().await;
    assert!(ran.left[0].contains("UID 3 in INBOX") && ran.left[0].contains("broken"), "{ran:?}");
    assert_eq!((house.notices(), house.status().left, house.subjects()), (1, 1, vec!["two".to_owned()]));
    remotes.finish().await;
}

#[tokio::test]
async fn what_is_too_large_stays_and_is_told_once() {
    let large = "S: * 1 FETCH (UID 3 RFC822.SIZE 9999999)\nS: * 2 FETCH (UID 4)\nS: p4 OK done\n";
    // The second one says nothing of its size beforehand.
    let content = format!("{}{}", message("two"), "x\r\n".repeat(400_000));
    let script = [
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        "C: p4 UID FETCH 3:4 (UID RFC822.SIZE)\n",
        large,
        &format!("{}S: * 1 FETCH (UID 4 BODY[] {{{}}}\n", asked(5, 4), content.len()),
        &bytes(&message("two")),
        "S* x 400000\n",
        "S: )\nS: p5 OK done\n",
        &pruned(6, "3:4", &[3, 4]),
        &out(7),
        "---\n",
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        &out(4),
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    let ran = house.run().await;
    assert_eq!((ran.fetched, ran.left.len(), ran.error.as_deref()), (0, 2, None));
    assert!(ran.left.iter().all(|left| left.contains("limits.max_size")), "{ran:?}");
    assert_eq!(house.notices(), 1);
    house.clock.advance(5 * MINUTE);
    // Not by hand, which would try them again.
    let watched = tokio::spawn(house.fetcher.clone().watch("box".to_owned()));
    remotes.finish().await;
    house.stop.cancel();
    watched.await.unwrap();
    assert_eq!((house.notices(), house.queued().len()), (1, 0));
}

#[tokio::test]
async fn a_large_message_goes_through_in_pieces() {
    let lines = 200_000;
    let head = message("large");
    let size = head.len() + 3 * lines;
    let script = [
        IMAP_IN,
        &select(7, 5, &[3]),
        &sizes(4, "3", &[3]),
        &format!("{}S: * 1 FETCH (BODY[] {{{size}}}\n", asked(5, 3)),
        &bytes(&head),
        &format!("S* y {lines}\n"),
        "S:  UID 3)\nS: p5 OK done\n",
        &seen(6, 3),
        &pruned(7, "3", &[3]),
        &out(8),
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 1, fetched: 1, ..Ran::default() });
    let (message, _) = house.queued().remove(0);
    assert!(message.streamed.is_some());
    let body = house.body(&message);
    assert!(body.ends_with(&format!("{head}{}", "y\r\n".repeat(lines))), "{} bytes", body.len());
    remotes.finish().await;
}

#[tokio::test]
async fn servers_that_talk_nonsense_are_given_up() {
    for script in [
        "S: 220 this is SMTP\ngone\n".to_owned(),
        "S: * BYE too many\ngone\n".to_owned(),
        format!("S: * OK {}\ngone\n", "x".repeat(300_000)),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS: p2 NO no such folder\ngone\n"),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS: * 1 EXISTS\nS: p2 OK no validity\ngone\n"),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS: * LIST () {{99999999}}\ngone\n"),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS* * 1 RECENT 100001\ngone\n"),
        format!("{IMAP_IN}{}C: p4 UID FETCH 3 (UID RFC822.SIZE)\nS: p4 BAD what\ngone\n", select(7, 5, &[3])),
        format!(
            "{IMAP_IN}{}{}{}S: * 1 FETCH (UID 9 BODY[] {{1}}\nS: x)\nS: p5 OK\ngone\n",
            select(7, 5, &[3]),
            sizes(4, "3", &[3]),
            asked(5, 3)
        ),
        "S: * OK hi\nC: p1 CAPABILITY\nS: * CAPABILITY LOGINDISABLED\nS: p1 OK\ngone\n".to_owned(),
        "S: * OK [CAPABILITY IMAP4rev1] hi\nC: p1 LOGIN ...\nS: p1 NO hunter2 is wrong\ngone\n".to_owned(),
    ] {
        let remotes = Remotes::play(&[&script]).await;
        let house = imap_site(TO_SALES).open(&remotes, START).await;
        let ran = house.run().await;
        let error = ran.error.unwrap_or_else(|| panic!("{script}"));
        assert!(!error.contains("hunter2"), "{error}");
        assert!(house.queued().is_empty());
        remotes.finish().await;
    }
}

#[tokio::test]
async fn without_uidplus_and_move_only_our_own_messages_are_touched() {
    let greeting = "S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hello\nC: p1 AUTHENTICATE PLAIN AGJveABodW50ZXIy\nS: p1 OK in\n\
        C: p2 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: p2 OK done\n";
    let selected = select(7, 5, &[3]).replace("p3 ", "p4 ").replace("p2 ", "p3 ");
    let copied = "C: p7 UID COPY 3 \"Done\"\nS: p7 NO [TRYCREATE] no folder\nC: p8 CREATE \"Done\"\nS: p8 OK\nC: p9 UID COPY 3 \"Done\"\nS: p9 OK\n\
        C: p10 UID STORE 3 +FLAGS.SILENT (\\Seen \\Deleted)\nS: p10 OK\n";
    let script = [
        greeting,
        &selected,
        &sizes(5, "3", &[3]),
        &fetched(6, 3, &message("one")),
        copied,
        &pruned(11, "3", &[3]),
        &out(12),
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let house = imap_site(&format!("{TO_SALES}after = \"move:Done\"\n")).open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 1, fetched: 1, ..Ran::default() });
    remotes.finish().await;
}

#[tokio::test]
async fn messages_that_are_numbered_anew_are_known_by_their_content() {
    let first = [
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        &sizes(4, "3:4", &[3, 4]),
        &fetched(5, 3, &message("one")),
        &seen(6, 3),
        &fetched(7, 4, &message("two")),
        &seen(8, 4),
        &pruned(9, "3:4", &[3, 4]),
        &out(10),
    ]
    .concat();
    // The third has come meanwhile; the fourth says the same as the first and came afterwards.
    let second = [
        IMAP_IN,
        &select(8, 4, &[1, 2, 3, 4]),
        &sizes(4, "1:4", &[1, 2, 3, 4]),
        &fetched(5, 1, &message("one")),
        &seen(6, 1),
        &fetched(7, 2, &message("two")),
        &seen(8, 2),
        &fetched(9, 3, &message("three")),
        &seen(10, 3),
        &fetched(11, 4, &message("one")),
        &seen(12, 4),
        &out(13),
    ]
    .concat();
    let remotes = Remotes::play(&[&format!("{first}---\n{second}")]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await.fetched, 2);
    drop(house);
    let house = site.open(&remotes, START + 10 * MINUTE).await;
    assert_eq!(house.run().await, Ran { found: 4, fetched: 2, known: 2, ..Ran::default() });
    assert_eq!(house.subjects(), ["one", "one", "three", "two"]);
    remotes.finish().await;
}

fn pop_list(ids: &[&str]) -> String {
    let lines = |value: &dyn Fn(usize) -> String| -> String {
        (0..ids.len()).map(|at| format!("S: {} {}\n", at + 1, value(at))).collect()
    };
    let (sizes, ids) = (lines(&|_| "200".to_owned()), lines(&|at| ids[at].to_owned()));
    format!("C: LIST\nS: +OK\n{sizes}S: .\nC: UIDL\nS: +OK\n{ids}S: .\n")
}

fn retr(number: u32, content: &str) -> String {
    format!("C: RETR {number}\n{}", bytes(&format!("+OK\r\n{content}.\r\n")))
}

#[tokio::test]
async fn pop3_deletes_what_is_queued_and_reads_nothing_twice() {
    // The connection breaks before QUIT is answered: the server keeps both.
    let first = [
        POP_IN,
        &pop_list(&["a", "b"]),
        &retr(1, &message("one")),
        "C: DELE 1\nS: +OK\n",
        &retr(2, &message("two").replace("Hello.", "..Hello.")),
        "C: DELE 2\nS: +OK\nC: QUIT\ndrop\n",
    ]
    .concat();
    let second = [
        POP_IN,
        &pop_list(&["a", "b", "c"]),
        "C: DELE 1\nS: +OK\nC: DELE 2\nS: +OK\n",
        &retr(3, &message("three")),
        "C: DELE 3\nS: +OK\nC: QUIT\nS: +OK bye\ngone\n",
    ]
    .concat();
    let third = [POP_IN, &pop_list(&[]), "C: QUIT\nS: +OK bye\ngone\n"].concat();
    let remotes = Remotes::play(&[&[first, second, third].join("---\n")]).await;
    let site = pop_site(&format!("{TO_SALES}after = \"delete\"\n"));
    let house = site.open(&remotes, START).await;
    let ran = house.run().await;
    assert!(ran.error.is_some() && ran.fetched == 2, "{ran:?}");
    drop(house);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 1, fetched: 1, ..Ran::default() });
    assert_eq!(house.run().await, Ran::default());
    assert_eq!(house.subjects(), ["one", "three", "two"]);
    let (two, _) = house.queued().into_iter().find(|(message, _)| message.subject == "two").unwrap();
    assert!(house.body(&two).ends_with("\r\n\r\n.Hello.\r\n"));
    remotes.finish().await;
}

#[tokio::test]
async fn a_pop3_server_without_uidl_is_read_by_header_and_size() {
    let list =
        "C: LIST\nS: +OK\nS: 1 200\nS: .\nC: UIDL\nS: -ERR no\nC: TOP 1 0\nS: +OK\nS: Subject: one\nS> \\r\\n\nS: .\n";
    let first = [POP_IN, list, &retr(1, &message("one")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let second = [POP_IN, list, "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&format!("{first}---\n{second}")]).await;
    let house = pop_site(TO_SALES).open(&remotes, START).await;
    assert_eq!(house.run().await.fetched, 1);
    assert_eq!(house.run().await, Ran::default());
    remotes.finish().await;
}

#[tokio::test]
async fn pop3_servers_that_break_off_or_talk_nonsense_are_given_up() {
    let listed = [POP_IN, &pop_list(&["a"])].concat();
    for script in [
        "drop\n".to_owned(),
        "S: 220 this is SMTP\ngone\n".to_owned(),
        "S: -ERR [SYS/TEMP] later\ngone\n".to_owned(),
        format!("S: +OK {}\ngone\n", "x".repeat(9000)),
        "S: +OK hello\nC: USER box\nS: +OK\nC: PASS hunter2\nS: -ERR hunter2 is wrong\ngone\n".to_owned(),
        format!("{POP_IN}C: LIST\ndrop\n"),
        format!("{POP_IN}C: LIST\nS: +OK\nS: what\ngone\n"),
        format!("{POP_IN}C: LIST\nS: +OK\nS: 1 200\ndrop\n"),
        format!("{POP_IN}C: LIST\nS: +OK\nS: .\nC: UIDL\nS: +OK\nS: 1\ngone\n"),
        format!("{listed}C: RETR 1\ndrop\n"),
        format!("{listed}C: RETR 1\nS: +OK\nS: Subject: one\nS> \\r\\n\ndrop\n"),
    ] {
        let remotes = Remotes::play(&[&script]).await;
        let house = pop_site(TO_SALES).open(&remotes, START).await;
        let error = house.run().await.error.unwrap_or_else(|| panic!("{script}"));
        assert!(!error.contains("hunter2"), "{error}");
        assert!(house.queued().is_empty());
        remotes.finish().await;
    }
}

#[tokio::test]
async fn tls_is_checked_before_the_password_is_said() {
    let imap = "C: p2 LOGIN \"box\" \"hunter2\"\nS: p2 NO no\ngone\n";
    for (protocol, tls, host, script, wanted) in [
        (
            "imap",
            "implicit",
            CERTIFIED,
            format!("starttls\nS: * OK [CAPABILITY X] hi\n{}", imap.replace("p2", "p1")),
            "login",
        ),
        (
            "imap",
            "required",
            CERTIFIED,
            format!(
                "S: * OK [CAPABILITY X] hi\nC: p1 STARTTLS\nS: p1 OK go\nstarttls\nC: p2 CAPABILITY\nS: * CAPABILITY X\nS: p2 OK\n{}",
                imap.replace("p2", "p3")
            ),
            "login",
        ),
        ("imap", "implicit", "other.test", "unfinished\n".to_owned(), "no TLS that can be trusted"),
        ("imap", "required", CERTIFIED, "S: * PREAUTH [CAPABILITY X] in\ngone\n".to_owned(), "skips STARTTLS"),
        (
            "imap",
            "required",
            CERTIFIED,
            "S: * OK [CAPABILITY X] hi\nC: p1 STARTTLS\nS: p1 OK go\nS: * OK more\ngone\n".to_owned(),
            "in clear",
        ),
        (
            "imap",
            "required",
            CERTIFIED,
            "S: * OK [CAPABILITY X] hi\nC: p1 STARTTLS\nS: p1 BAD no\ngone\n".to_owned(),
            "STARTTLS",
        ),
        ("pop3", "implicit", CERTIFIED, "starttls\nS: +OK hi\nC: USER box\nS: -ERR no\ngone\n".to_owned(), "login"),
        (
            "pop3",
            "required",
            CERTIFIED,
            "S: +OK hi\nC: STLS\nS: +OK go\nstarttls\nC: USER box\nS: -ERR no\ngone\n".to_owned(),
            "login",
        ),
        ("pop3", "required", CERTIFIED, "S: +OK hi\nC: STLS\nS: -ERR no\ngone\n".to_owned(), "STLS"),
        ("pop3", "required", "other.test", "S: +OK hi\nC: STLS\nS: +OK go\nunfinished\n".to_owned(), "no TLS"),
    ] {
        let remotes = Remotes::play(&[&script]).await;
        let site = Site::new(&format!("protocol = \"{protocol}\"\nhost = \"{host}\"\ntls = \"{tls}\"\n{TO_SALES}"));
        let error = site.open(&remotes, START).await.run().await.error.unwrap();
        assert!(error.contains(wanted), "{script}: {error}");
        remotes.finish().await;
    }
}

/// No configuration asks for tokens yet; the clients know how.
#[tokio::test]
async fn tokens_are_shown_by_xoauth2() {
    let credential = Credential::Token { username: "box".to_owned(), token: config::Secret("tok".to_owned()) };
    let response = "dXNlcj1ib3gBYXV0aD1CZWFyZXIgdG9rAQE=";
    let script = format!(
        "S: * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] hi\nC: p1 AUTHENTICATE XOAUTH2\nS: + \nC: {response}\nS: + eyJzdGF0dXMiOiI0MDAifQ==\nC: \nS: p1 NO tok is over\ngone\n\
         ---\nS: +OK hi\nC: AUTH XOAUTH2\nS: + \nC: {response}\nS: +OK in\nC: QUIT\nS: +OK\ngone\n"
    );
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let ways = Ways { resolver: Resolver::new(&site.config(1).dns).unwrap(), tls: Err("not needed".to_owned()) };
    let account = site.config(remotes.port).fetch.remove("box").unwrap();
    let open = || wire::connect(&ways, &account);
    let refused = imap::Imap::open(open().await.unwrap(), &ways, "x", account.tls, &credential).await;
    let trouble = refused.map(|_| ()).unwrap_err();
    assert!(matches!(trouble, wire::Trouble::Login(_)) && !trouble.to_string().contains("tok is"), "{trouble}");
    let pop = pop3::Pop3::open(open().await.unwrap(), &ways, "x", account.tls, &credential).await.unwrap();
    pop.close().await.unwrap();
    remotes.finish().await;
}

#[tokio::test]
async fn a_suspended_server_fetches_nothing_until_it_goes_on() {
    let script = [POP_IN, &pop_list(&["a"]), &retr(1, &message("one")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&script]).await;
    let house = pop_site(TO_SALES).open(&remotes, START).await;
    house.queue.suspend(&Suspension::Fetch).await.unwrap();
    let watched = tokio::spawn(house.fetcher.clone().watch("box".to_owned()));
    assert_eq!(house.fetcher.run_now("box", false).await, Err(NotRun::Suspended));
    assert_eq!((house.status().state.as_str(), house.status().next_run), ("suspended", None));
    house.queue.lift(&Suspension::Fetch).await.unwrap();
    house.fetcher.wake();
    remotes.finish().await;
    house.stop.cancel();
    watched.await.unwrap();
    assert_eq!(house.subjects(), ["one"]);
    assert_eq!(house.fetcher.run_now("other", false).await, Err(NotRun::Unknown("other".to_owned())));
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let look = [POP_IN, &pop_list(&["a", "b"]), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&look]).await;
    let house = pop_site(&format!("{TO_SALES}after = \"delete\"\n")).open(&remotes, START).await;
    let ran = house.fetcher.run_now("box", true).await.unwrap();
    assert_eq!(ran, Ran { found: 2, ..Ran::default() });
    assert_eq!((house.status().last_run, house.queued().len()), (None, 0));
    remotes.finish().await;
}

#[tokio::test]
async fn after_five_days_of_failure_nobody_tries_until_a_person_does() {
    let refused = "S: +OK hi\nC: USER box\nS: -ERR no\ngone\n";
    let good = [POP_IN, &pop_list(&[]), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&format!("{refused}---\n{refused}---\n{good}")]).await;
    let site = pop_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    house.run().await;
    assert_eq!((house.status().state.as_str(), house.notices()), ("failing", 0));
    house.clock.advance(5 * 24 * 60 * MINUTE);
    house.run().await;
    assert_eq!((house.status().state.as_str(), house.status().next_run, house.notices()), ("inactive", None, 1));
    let now = house.clock.now();
    drop(house);
    let house = site.open(&remotes, now).await;
    assert_eq!(house.status().state, "inactive", "also after a restart");
    assert_eq!(house.run().await.error, None);
    assert_eq!(house.status().state, "waiting");
    remotes.finish().await;
}

/// Limits and loops hold what was fetched: whoever sent it is gone.
#[tokio::test]
async fn what_others_would_be_refused_is_held() {
    let looping = format!("Received: x\r\nDelivered-To: sales@own.test\r\n{}", message("loop"));
    let hops = format!("{}{}", "Received: x\r\n".repeat(60), message("hops"));
    let stranger = message("stranger").replace("sales@own.test", "b@far.test");
    let script = [
        POP_IN,
        &pop_list(&["a", "b", "c", "d"]),
        &retr(1, &looping),
        &retr(2, &hops),
        &retr(3, &stranger),
        &retr(4, &message("good")),
        "C: QUIT\nS: +OK\ngone\n",
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let house = pop_site("").open(&remotes, START).await;
    let ran = house.run().await;
    assert_eq!((ran.fetched, ran.left.len(), ran.error.as_deref()), (3, 1, None), "{ran:?}");
    assert!(ran.left[0].contains("names no address of ours"), "{ran:?}");
    let held = |(message, recipients): (Message, Vec<Recipient>)| {
        (message.subject, matches!(recipients[0].status, Queued::Held { .. }))
    };
    let mut held: Vec<(String, bool)> = house.queued().into_iter().map(held).collect();
    held.sort_unstable();
    assert_eq!(held, [("good".to_owned(), false), ("hops".to_owned(), true), ("loop".to_owned(), true)]);
    remotes.finish().await;
}

/// A server that says all of this whatever it hears, so many bytes at a time.
fn talking(words: &'static str, at_once: usize) -> wire::Wire {
    let (ours, theirs) = tokio::io::duplex(at_once);
    let (mut heard, mut said) = tokio::io::split(theirs);
    tokio::spawn(async move { tokio::io::copy(&mut heard, &mut tokio::io::sink()).await });
    tokio::spawn(async move {
        said.write_all(words.as_bytes()).await.unwrap();
        said.shutdown().await.unwrap();
    });
    wire::Wire::new(ours)
}

#[tokio::test]
async fn it_is_the_same_however_the_words_of_a_server_are_cut() {
    const CONTENT: &str = "Subject: cut\r\n\r\n.\r\n..two\r\n";
    const IMAP: &str = "* OK [CAPABILITY X] hi {4}\r\np1 OK [CAPABILITY X] in\r\n* 1 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\np2 OK done\r\n\
        * LIST () \"/\" {3}\r\nabc\r\n* SEARCH 3\r\np3 OK done\r\n* 1 FETCH (BODY[] {26}\r\nSubject: cut\r\n\r\n.\r\n..two\r\n UID 3)\r\np4 OK done\r\n";
    const POP: &str = "+OK hi\r\n+OK\r\n+OK in\r\n+OK\r\nSubject: cut\r\n\r\n..\r\n...two\r\n.\r\n";
    let remotes = Remotes::play(&[]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    let config = site.config(1);
    let account = &config.fetch["box"];
    let ways = Ways { resolver: Resolver::new(&config.dns).unwrap(), tls: Err("not needed".to_owned()) };
    let credential = Credential::of(&account.login);
    let mut found = Vec::new();
    for at_once in [1, 2, 3, 5, 7, 11, 64, 4096] {
        let mut collector = Collector::new(house.queue.clone(), 1000);
        let mut imap = imap::Imap::open(talking(IMAP, at_once), &ways, "x", account.tls, &credential).await.unwrap();
        let folder = imap.select("INBOX").await.unwrap();
        assert_eq!(imap.search(folder, true).await.unwrap(), (vec![3], true));
        assert!(imap.read(3, &mut collector).await.unwrap());
        found.push(collector.finish().await.unwrap());
    }
    // POP3 servers answer one command at a time; what is too early is no answer.
    let mut collector = Collector::new(house.queue.clone(), 1000);
    let mut pop = pop3::Pop3::open(talking(POP, 1), &ways, "x", account.tls, &credential).await.unwrap();
    pop.read(1, &mut collector).await.unwrap();
    found.push(collector.finish().await.unwrap());
    for collected in found {
        assert_eq!((collected.size, &**collected.content.head()), (CONTENT.len() as u64, CONTENT.as_bytes()));
        assert_eq!(collected.original_header, "Subject: cut\r\n");
    }
}

fn postrider(site: &Site, arguments: &[&str]) -> (bool, String) {
    let config = site.folder.path().join("postrider.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    let output = command.args(arguments).arg("--config").arg(config).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_the_mailboxes_and_reads_one() {
    let first = [POP_IN, &pop_list(&["a"]), &retr(1, &message("one")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let second = [POP_IN, &pop_list(&["a", "b"]), &retr(2, &message("two")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let third = [POP_IN, &pop_list(&["a", "b", "c"]), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&[first, second, third].join("---\n")]).await;
    let site = pop_site(TO_SALES);
    let text = format!(
        "{}\n[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\n",
        site.text(remotes.port)
    );
    std::fs::write(site.folder.path().join("postrider.toml"), text).unwrap();
    let mut server = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    server.arg("serve").arg("--config").arg(site.folder.path().join("postrider.toml"));
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let list = loop {
        // There is nothing else to wait for from outside.
        let (_, list) = postrider(&site, &["fetch", "list", "--json"]);
        if list.contains("\"last_success\":\"") {
            break list;
        }
        assert!(Instant::now() < deadline, "{list}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(list.contains("\"name\":\"box\"") && list.contains("\"fetched\":1"), "{list}");
    assert_eq!(postrider(&site, &["fetch", "run", "box"]), (true, "1 message fetched.\n".to_owned()));
    assert_eq!(
        postrider(&site, &["fetch", "run", "box", "--dry-run"]),
        (true, "1 message would be fetched.\n".to_owned())
    );
    remotes.finish().await;
    let (good, failed) = postrider(&site, &["fetch", "run", "box"]);
    assert!(!good && failed.contains("cannot be connected to"), "{failed}");
    let (_, list) = postrider(&site, &["fetch", "list"]);
    assert!(list.contains("box failing pop3 box at 127.0.0.1") && list.contains("2 fetched, 0 left"), "{list}");
    let (good, unknown) = postrider(&site, &["fetch", "run", "bax"]);
    assert!(
        !good && unknown.contains("no [fetch] account named \"bax\"") && unknown.contains("there are: box"),
        "{unknown}"
    );
    assert!(postrider(&site, &["suspend", "--fetch"]).0);
    let (good, suspended) = postrider(&site, &["fetch", "run", "box"]);
    assert!(!good && suspended.contains("postrider resume --fetch"), "{suspended}");
    server.kill().await.unwrap();
}
