//! A server that fetches, without what delivers; and the words of the servers that it fetches from.

use std::sync::Arc;

use super::remote::Remotes;
use super::zone::{Zone, ZoneServer};
use postrider::clock::{Clock, Millis};
use postrider::config::{self, Config};
use postrider::dns::Resolver;
use postrider::events::journal::Journal;
use postrider::intake::Intake;
use postrider::intake::fetch::{Fetcher, Ran, Status, Ways};
use postrider::intake::sign::Signer;
use postrider::message::Door;
use postrider::queue::Queue;
use postrider::queue::record::{Message, Recipient};
use postrider::store::Store;
use tempfile::TempDir;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_util::sync::CancellationToken;

pub const START: Millis = 1_795_300_017_000;
pub const MINUTE: Millis = 60_000;
/// The only name that the certificate of the far ends is for.
pub const CERTIFIED: &str = "somebody.else.test";

pub const IMAP_IN: &str = "S: * OK [CAPABILITY IMAP4rev1 UIDPLUS MOVE] hello\nC: p1 LOGIN \"box\" \"hunter2\"\n\
    S: p1 OK [CAPABILITY IMAP4rev1 UIDPLUS MOVE] in\n";
pub const POP_IN: &str = "S: +OK hello\nC: USER box\nS: +OK\nC: PASS hunter2\nS: +OK in\n";

/// A server that fetches, for as long as the value lives; what it keeps stays in the folder.
pub struct House {
    pub fetcher: Arc<Fetcher>,
    pub queue: Arc<Queue>,
    pub clock: Clock,
    pub stop: CancellationToken,
    _zone: ZoneServer,
}

pub struct Site {
    pub folder: TempDir,
    pub more: String,
}

impl Site {
    /// `account`: lines of `[fetch.box]`.
    pub fn new(account: &str) -> Site {
        Site { folder: tempfile::tempdir().unwrap(), more: account.to_owned() }
    }

    pub fn config(&self, port: u16) -> Config {
        let text = self.text(port);
        config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
    }

    pub fn text(&self, port: u16) -> String {
        format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"{}\"\n[domains.\"own.test\"]\n[queue]\nmin_free = \"1MiB\"\n\
             [limits]\nmax_size = \"1MiB\"\n[aliases]\n\"sales@own.test\" = \"post\"\n\"ann@own.test\" = \"post\"\n\
             [targets.post]\nkind = \"maildir\"\npath = \"/nowhere\"\n[fetch.box]\nusername = \"box\"\npassword = \"hunter2\"\nport = {port}\n{}",
            self.folder.path().display(),
            self.more
        )
    }

    /// Starts, or starts again, at this time.
    pub async fn open(&self, remotes: &Remotes, now: Millis) -> House {
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
        let ways = Ways { resolver, tls: Ok(connector(roots)), trail: None, tokens: None };
        let stop = CancellationToken::new();
        let fetcher = Arc::new(Fetcher::new(Arc::new(intake), clock.clone(), ways, stop.clone()).unwrap());
        House { fetcher, queue, clock, stop, _zone: zone }
    }
}

pub fn connector(roots: RootCertStore) -> TlsConnector {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let config = builder.with_safe_default_protocol_versions().unwrap();
    TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

impl House {
    pub async fn run(&self) -> Ran {
        self.fetcher.run_now("box", false).await.unwrap()
    }

    pub fn status(&self) -> Status {
        self.fetcher.list().remove(0)
    }

    /// What is queued, but for notices of our own.
    pub fn queued(&self) -> Vec<(Message, Vec<Recipient>)> {
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

    pub fn subjects(&self) -> Vec<String> {
        let mut subjects: Vec<String> = self.queued().into_iter().map(|(message, _)| message.subject).collect();
        subjects.sort_unstable();
        subjects
    }

    pub fn body(&self, message: &Message) -> String {
        let chunks = self.queue.body(message).unwrap();
        String::from_utf8(chunks.concat()).unwrap()
    }

    pub fn notices(&self) -> usize {
        let mut count = 0;
        let walked = self.queue.walk(None, |message, _| {
            count += usize::from(message.origin.door == Door::Bounce);
            std::ops::ControlFlow::Continue(())
        });
        walked.unwrap();
        count
    }
}

pub fn message(subject: &str) -> String {
    format!(
        "Subject: {subject}\r\nFrom: a@far.test\r\nTo: sales@own.test\r\nMessage-ID: <{subject}@far.test>\r\n\r\nHello.\r\n"
    )
}

/// A script's line that sends these bytes.
pub fn bytes(text: &str) -> String {
    format!("S> {}\n", text.replace('\\', "\\\\").replace('\r', "\\r").replace('\n', "\\n"))
}

pub fn imap_site(more: &str) -> Site {
    Site::new(&format!("protocol = \"imap\"\nhost = \"127.0.0.1\"\ntls = \"off\"\n{more}"))
}

pub fn pop_site(more: &str) -> Site {
    Site::new(&format!("protocol = \"pop3\"\nhost = \"127.0.0.1\"\ntls = \"off\"\n{more}"))
}

pub const TO_SALES: &str = "deliver_to = \"sales@own.test\"\n";

/// The folder is opened, and these UIDs are found.
pub fn select(validity: u32, next: u32, uids: &[u32]) -> String {
    let list: String = uids.iter().map(|uid| format!(" {uid}")).collect();
    format!(
        "C: p2 SELECT \"INBOX\"\nS: * {} EXISTS\nS: * OK [UIDVALIDITY {validity}] v\nS: * OK [UIDNEXT {next}] n\nS: p2 OK [READ-WRITE] done\n\
         C: p3 UID SEARCH 1:{} UNDELETED UNSEEN\nS: * SEARCH{list}\nS: p3 OK done\n",
        uids.len(),
        uids.len(),
    )
}

pub fn sizes(tag: u32, set: &str, uids: &[u32]) -> String {
    let lines: String = uids.iter().map(|uid| format!("S: * 1 FETCH (UID {uid} RFC822.SIZE 200)\n")).collect();
    format!("C: p{tag} UID FETCH {set} (UID RFC822.SIZE)\n{lines}S: p{tag} OK done\n")
}

pub fn asked(tag: u32, uid: u32) -> String {
    format!("C: p{tag} UID FETCH {uid} (UID BODY.PEEK[])\n")
}

pub fn fetched(tag: u32, uid: u32, content: &str) -> String {
    let answer = format!("* 1 FETCH (UID {uid} BODY[] {{{}}}\r\n{content})\r\np{tag} OK done\r\n", content.len());
    format!("{}{}", asked(tag, uid), bytes(&answer))
}

pub fn seen(tag: u32, uid: u32) -> String {
    format!("C: p{tag} UID STORE {uid} +FLAGS.SILENT (\\Seen)\nS: p{tag} OK done\n")
}

/// The first run looks for what is gone, afterwards once a day.
pub fn pruned(tag: u32, set: &str, uids: &[u32]) -> String {
    let list: String = uids.iter().map(|uid| format!(" {uid}")).collect();
    format!("C: p{tag} UID SEARCH UID {set}\nS: * SEARCH{list}\nS: p{tag} OK done\n")
}

pub fn out(tag: u32) -> String {
    format!("C: p{tag} LOGOUT\nS: * BYE bye\nS: p{tag} OK done\ngone\n")
}

pub fn pop_list(ids: &[&str]) -> String {
    let lines = |value: &dyn Fn(usize) -> String| -> String {
        (0..ids.len()).map(|at| format!("S: {} {}\n", at + 1, value(at))).collect()
    };
    let (sizes, ids) = (lines(&|_| "200".to_owned()), lines(&|at| ids[at].to_owned()));
    format!("C: LIST\nS: +OK\n{sizes}S: .\nC: UIDL\nS: +OK\n{ids}S: .\n")
}

pub fn retr(number: u32, content: &str) -> String {
    format!("C: RETR {number}\n{}", bytes(&format!("+OK\r\n{content}.\r\n")))
}
