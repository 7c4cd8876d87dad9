//! DMARC aggregate reports (RFC 9990): what is counted, where a report may go, what is in it, and that it
//! leaves once; with a zone in the same process and a clock that is set.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[path = "support/client.rs"]
mod client;
#[path = "support/server.rs"]
mod server;
#[path = "support/xml.rs"]
mod xml;
#[path = "support/zone.rs"]
mod zone;

use std::io::Read;
use std::sync::Arc;

use mail_auth::report::Report;
use mail_parser::{MessageParser, MimeHeaders};
use postrider::checks::dmarc::{NotNow, report_addresses};
use postrider::clock::{Clock, DAY};
use postrider::config::{self, Config};
use postrider::delivery::dmarc_report::Reports;
use postrider::dns::Resolver;
use postrider::events::journal::Journal;
use postrider::intake::Intake;
use postrider::intake::sign::Signer;
use postrider::message::{Address, Domain, Door, Draft, Envelope, Origin, Peer, ReversePath};
use postrider::queue::Queue;
use postrider::store::{Store, Table};

use client::Client;
use server::TestServer;
use xml::Element;
use zone::{Zone, ZoneServer};

const HOUR: u64 = 3600 * 1000;
const SPF: &str = "v=spf1 ip4:192.0.2.1 -all";
const GOOD: &str = "192.0.2.1";
const BAD: &str = "198.51.100.7";

/// A data folder, its clock and its DNS; what runs on it may be stopped and started.
struct World {
    zone: ZoneServer,
    resolver: Resolver,
    clock: Clock,
    checks: &'static str,
    folder: tempfile::TempDir,
}

/// What runs.
struct Running {
    queue: Arc<Queue>,
    intake: Arc<Intake>,
    reports: Reports,
}

impl World {
    async fn new(zone: Zone, checks: &'static str) -> World {
        let zone = zone.serve().await;
        let resolver = Resolver::new(&zone.config()).unwrap();
        let (clock, folder) = (Clock::manual(1_795_300_000_000), tempfile::tempdir().unwrap());
        World { zone, resolver, clock, checks, folder }
    }

    /// Mail is thrown away, so that nothing is queued but reports.
    fn config(&self) -> Config {
        let text = format!(
            "hostname = \"mail.own.test\"\ndata_dir = {:?}\n[domains.\"own.test\"]\n[aliases]\n\
             \"sales@own.test\" = \"discard\"\n[loops]\nlimit = 100000\n[checks]\n{}\n[queue]\nmin_free = \"1MiB\"\n",
            self.folder.path().to_str().unwrap(),
            self.checks
        );
        config::parse("test.toml", &text).unwrap()
    }

    fn run(&self) -> Running {
        let config = Arc::new(self.config());
        let store = Arc::new(Store::open(&self.folder.path().join("store")).unwrap());
        let queue = Queue::new(store, self.clock.clone(), true, 1 << 20).unwrap().0;
        let journal = Arc::new(Journal::new(self.clock.clone()));
        let (signer, resolver) = (Signer::load(&config).unwrap(), self.resolver.clone());
        let intake = Intake::new(config.clone(), self.clock.clone(), queue.clone(), journal, resolver.clone(), signer);
        let intake = Arc::new(intake.unwrap());
        let reports = Reports::new(self.clock.clone(), intake.clone());
        Running { queue, intake, reports }
    }

    /// The next day, at the time at which reports leave.
    fn next_day(&self, running: &Running) {
        self.clock.advance(DAY - self.clock.now() % DAY);
        self.clock.advance(running.reports.next() - self.clock.now());
    }
}

impl Running {
    /// The code of the reply.
    async fn take(&self, client: &str, mail_from: &str, content: &str) -> u16 {
        let mail_from = match mail_from {
            "" => ReversePath::Null,
            text => ReversePath::Address(Address::parse(text).unwrap()),
        };
        let peer = Peer { ip: client.parse().unwrap(), helo: "helo.test".to_owned(), esmtp: true, tls: None };
        let draft = Draft {
            envelope: Envelope::new(mail_from, [Address::parse("sales@own.test").unwrap()]),
            content: content.as_bytes().to_vec().into(),
            origin: Origin { door: Door::Mx { listener: "mx".to_owned() }, account: None, peer: Some(peer) },
        };
        match self.intake.accept(draft).await {
            Ok(accepted) => accepted.reply.code,
            Err(refusal) => refusal.reply.code,
        }
    }

    /// The reports in the queue: whole messages.
    fn queued(&self) -> Vec<Vec<u8>> {
        let ids = self.queue.store().prefix(Table::Message, &[]).unwrap().map(|entry| entry.unwrap().0);
        let content = |id: Box<[u8]>| {
            let chunks = self.queue.store().prefix(Table::Body, &id).unwrap();
            chunks.flat_map(|entry| entry.unwrap().1.to_vec()).collect::<Vec<u8>>()
        };
        ids.map(content).collect()
    }

    /// What is kept of the counts.
    fn kept(&self) -> usize {
        self.queue.store().prefix(Table::Meta, b"dmarc/").unwrap().count()
    }
}

fn message(from: &str) -> String {
    format!("From: a@{from}\r\nTo: sales@own.test\r\nSubject: Hello\r\n\r\nHello.\r\n")
}

/// The attachment: its name and its text.
fn unpacked(content: &[u8]) -> (String, String) {
    let mail = MessageParser::new().parse(content).unwrap();
    let part = mail.attachments().next().unwrap();
    assert_eq!(part.content_type().unwrap().subtype(), Some("gzip"));
    let mut text = String::new();
    flate2::read::GzDecoder::new(part.contents()).read_to_string(&mut text).unwrap();
    (part.attachment_name().unwrap().to_owned(), text)
}

fn far() -> Zone {
    Zone::new()
        .txt("far.test", SPF)
        .a("sub.far.test", "192.0.2.9")
        .txt("_dmarc.far.test", "v=DMARC1; p=quarantine; sp=reject; np=none; adkim=s; fo=1:s; rua=mailto:d@far.test")
        .txt("_dmarc.mute.test", "v=DMARC1; p=none")
}

#[tokio::test]
async fn a_day_is_reported_once_and_survives_a_restart() {
    let world = World::new(far(), "").await;
    let day = world.clock.now() / DAY;
    {
        let running = world.run();
        for _ in 0..3 {
            assert_eq!(running.take(GOOD, "a@far.test", &message("far.test")).await, 250);
        }
        assert_eq!(running.take(BAD, "x@evil.test", &message("far.test")).await, 250, "held");
        running.reports.flush().await;
        assert_eq!(running.take(BAD, "x@evil.test", &message("far.test")).await, 250);
        assert_eq!(running.take("2001:db8::7", "", &message("sub.far.test")).await, 550);
        assert_eq!(running.take(GOOD, "a@mute.test", &message("mute.test")).await, 250);
        // The day is not over.
        running.reports.send_due().await;
        assert_eq!((running.queued().len(), running.kept()), (0, 2));
        world.clock.advance(DAY - world.clock.now() % DAY);
        running.reports.send_due().await;
        assert_eq!(running.queued().len(), 0, "before its time of the day");
    }
    let running = world.run();
    world.clock.advance(running.reports.next() - world.clock.now());
    for _ in 0..2 {
        running.reports.send_due().await;
    }
    assert_eq!(running.kept(), 0);
    let [content] = running.queued().try_into().unwrap();
    assert!(content.starts_with(b"DKIM-Signature: "));
    let text = String::from_utf8_lossy(&content).into_owned();
    let begin = day * DAY / 1000;
    let id = text.split("Report-ID: <").nth(1).unwrap().split('>').next().unwrap().to_owned();
    assert!(text.contains(&format!(
        "\r\nSubject: Report Domain: far.test\r\n Submitter: mail.own.test\r\n Report-ID: <{id}>\r\n"
    )));
    assert!(text.contains(&format!("\r\nMessage-ID: <{id}>\r\n")) && text.contains("\r\nTo: d@far.test\r\n"));
    assert!(
        text.contains("\r\nAuto-Submitted: auto-generated\r\n") && text.contains("\r\nFrom: <postmaster@own.test>")
    );
    let (name, document) = unpacked(&content);
    assert_eq!(name, format!("mail.own.test!far.test!{begin}!{}.xml.gz", begin + 86_399));
    let root = Element::parse(&document);
    assert_eq!(root.all("report_metadata/report_id"), [id.as_str()]);
    assert_is_legal(&root);

    // As another implementation reads it.
    let report = serde_json::to_value(Report::parse_rfc5322(&content, 1 << 20).unwrap()).unwrap();
    let published = &report["policy_published"];
    assert_eq!(
        (&published["p"], &published["sp"], &published["np"]),
        (&"Quarantine".into(), &"Reject".into(), &"None".into())
    );
    assert_eq!((&published["adkim"], &published["aspf"]), (&"Strict".into(), &"Relaxed".into()));
    assert_eq!((&published["discovery_method"], &published["fo"]), (&"Treewalk".into(), &"1:s".into()));
    let rows: Vec<String> = report["record"].as_array().unwrap().iter().map(row).collect();
    assert_eq!(
        rows,
        [
            "3 192.0.2.1 Pass dkim=Fail spf=Pass far.test far.test Pass",
            "2 198.51.100.7 Quarantine dkim=Fail spf=Fail far.test evil.test None",
            "1 2001:db8::7 Reject dkim=Fail spf=Fail sub.far.test  None",
        ]
    );
}

fn row(record: &serde_json::Value) -> String {
    let (row, names) = (&record["row"], &record["identifiers"]);
    let evaluated = &row["policy_evaluated"];
    let texts = [
        &row["source_ip"],
        &evaluated["disposition"],
        &evaluated["dkim"],
        &evaluated["spf"],
        &names["header_from"],
        &names["envelope_from"],
        &record["auth_results"]["spf"][0]["result"],
    ];
    let [source, disposition, dkim, spf, from, envelope, result] = texts.map(|text| text.as_str().unwrap());
    format!("{} {source} {disposition} dkim={dkim} spf={spf} {from} {envelope} {result}", row["count"])
}

/// RFC 9990 3.1: which elements there are, how many, in which order where that matters.
fn assert_is_legal(root: &Element) {
    let of = |element: &Element, required: &[&str], optional: &[&str]| {
        let names = element.names();
        for name in required {
            assert_eq!(names.iter().filter(|found| *found == name).count(), 1, "{name} in {names:?}");
        }
        assert!(names.iter().all(|name| required.contains(name) || optional.contains(name)), "{names:?}");
    };
    assert_eq!(root.name, "feedback");
    assert_eq!(root.names()[..3], ["version", "report_metadata", "policy_published"]);
    assert!(root.names().len() > 3 && root.names()[3..].iter().all(|name| *name == "record"));
    assert_eq!(root.child("version").text, "1.0");
    let metadata = root.child("report_metadata");
    of(metadata, &["org_name", "email", "report_id", "date_range"], &["extra_contact_info", "error", "generator"]);
    of(metadata.child("date_range"), &["begin", "end"], &[]);
    let published = root.child("policy_published");
    let modes = ["discovery_method", "sp", "np", "fo", "adkim", "aspf", "testing"];
    of(published, &["domain", "p"], &modes);
    for (path, legal) in [
        ("policy_published/p", &["none", "quarantine", "reject"][..]),
        ("policy_published/sp", &["none", "quarantine", "reject"]),
        ("policy_published/np", &["none", "quarantine", "reject"]),
        ("policy_published/adkim", &["r", "s"]),
        ("policy_published/aspf", &["r", "s"]),
        ("policy_published/testing", &["n", "y"]),
        ("policy_published/discovery_method", &["psl", "treewalk"]),
        ("record/row/policy_evaluated/disposition", &["none", "pass", "quarantine", "reject"]),
        ("record/row/policy_evaluated/dkim", &["pass", "fail"]),
        ("record/row/policy_evaluated/spf", &["pass", "fail"]),
        ("record/auth_results/spf/scope", &["mfrom"]),
        (
            "record/row/policy_evaluated/reason/type",
            &["local_policy", "mailing_list", "other", "policy_test_mode", "trusted_forwarder"],
        ),
    ] {
        for text in root.all(path) {
            assert!(legal.contains(&text), "{path}: {text:?}");
        }
    }
    for record in root.children.iter().filter(|child| child.name == "record") {
        assert_eq!(record.names(), ["row", "identifiers", "auth_results"]);
        of(record.child("row"), &["source_ip", "count", "policy_evaluated"], &[]);
        let evaluated = record.child("row").child("policy_evaluated").names();
        assert!(
            evaluated[..3] == ["disposition", "dkim", "spf"] && evaluated[3..].iter().all(|name| *name == "reason")
        );
        of(record.child("identifiers"), &["header_from"], &["envelope_from", "envelope_to"]);
        let results = record.child("auth_results");
        let signatures = results.children.iter().take_while(|child| child.name == "dkim").count();
        assert!(
            results.names()[signatures..].iter().all(|name| *name == "spf") && results.names().len() - signatures < 2
        );
        for one in &results.children {
            let (required, optional) = match one.name.as_str() {
                "dkim" => (&["domain", "selector", "result"][..], &["human_result"][..]),
                _ => (&["domain", "result"][..], &["scope", "human_result"][..]),
            };
            of(one, required, optional);
        }
    }
}

/// Who is told why the policy was not followed, and that signatures are in it.
#[tokio::test]
async fn what_was_done_otherwise_has_a_reason() {
    let rua = |text: &str| format!("v=DMARC1; {text}; rua=mailto:d@far.test");
    let zone = Zone::new().txt("far.test", SPF).txt("_dmarc.far.test", &rua("p=reject; t=y"));
    let world = World::new(zone, "").await;
    let running = world.run();
    let signed = "DKIM-Signature: v=1; a=rsa-sha256; s=s; d=far.test; h=From; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\n";
    assert_eq!(running.take(BAD, "", &format!("{signed}{}", message("far.test"))).await, 250);
    world.next_day(&running);
    running.reports.send_due().await;
    let (_, document) = unpacked(&running.queued()[0]);
    let root = Element::parse(&document);
    assert_is_legal(&root);
    let evaluated = "record/row/policy_evaluated";
    assert_eq!(root.all(&format!("{evaluated}/disposition")), ["quarantine"]);
    assert_eq!(root.all(&format!("{evaluated}/reason/type")), ["policy_test_mode"]);
    assert_eq!(root.all("policy_published/testing"), ["y"]);
    let signature = ["domain", "selector", "result"].map(|name| root.all(&format!("record/auth_results/dkim/{name}")));
    assert_eq!(signature, [["far.test"], ["s"], ["permerror"]]);

    let zone = Zone::new().txt("far.test", SPF).txt("_dmarc.far.test", &rua("p=reject"));
    let world = World::new(zone, "dmarc = \"annotate\"").await;
    let running = world.run();
    assert_eq!(running.take(BAD, "", &message("far.test")).await, 250);
    assert_eq!(running.take(GOOD, "a@far.test", &message("far.test")).await, 250);
    world.next_day(&running);
    running.reports.send_due().await;
    let (_, document) = unpacked(&running.queued()[0]);
    let root = Element::parse(&document);
    assert_is_legal(&root);
    assert_eq!(root.all(&format!("{evaluated}/disposition")), ["pass", "none"]);
    assert_eq!(root.all(&format!("{evaluated}/reason/type")), ["local_policy"]);
}

#[tokio::test]
async fn nothing_is_counted_that_is_off_or_comes_again() {
    let world = World::new(far(), "dmarc = \"off\"").await;
    let running = world.run();
    assert_eq!(running.take(GOOD, "a@far.test", &message("far.test")).await, 250);
    running.reports.flush().await;
    assert_eq!(running.kept(), 0);

    // Neither passed nor failed: the client is told to try again, and counts then.
    let world = World::new(far().fail("mail.far.test"), "").await;
    let running = world.run();
    assert_eq!(running.take(GOOD, "a@mail.far.test", &message("far.test")).await, 451);
    running.reports.flush().await;
    assert_eq!(running.kept(), 0);

    // Counted, and then switched off: forgotten.
    let world = World::new(far(), "").await;
    {
        let running = world.run();
        running.take(GOOD, "a@far.test", &message("far.test")).await;
        running.reports.flush().await;
        assert_eq!(running.kept(), 1);
    }
    let world = World { checks: "dmarc = \"off\"", ..world };
    let running = world.run();
    world.next_day(&running);
    running.reports.send_due().await;
    assert_eq!((running.queued().len(), running.kept()), (0, 0));
}

/// Two servers shall not tell each other of their reports for ever.
#[tokio::test]
async fn reports_about_nothing_but_reports_are_not_sent() {
    let report = message("far.test").replace(
        "Subject: Hello",
        "Subject: Report Domain: own.test\r\n Submitter: mail.far.test\r\n Report-ID: <1@mail.far.test>",
    );
    let world = World::new(far(), "").await;
    let running = world.run();
    assert_eq!(running.take(GOOD, "a@far.test", &report).await, 250);
    world.next_day(&running);
    running.reports.send_due().await;
    assert_eq!((running.queued().len(), running.kept()), (0, 0));
    // Beside other mail they are counted as that; what only looks like one is other mail.
    for (client, mail_from, content) in [(GOOD, "a@far.test", &report), (BAD, "x@evil.test", &report)] {
        running.take(client, mail_from, content).await;
    }
    world.next_day(&running);
    running.reports.send_due().await;
    let (_, document) = unpacked(&running.queued()[0]);
    assert_eq!(Element::parse(&document).all("record/row/source_ip"), [GOOD, BAD]);
}

async fn addresses(zone: &Zone, domain: &str) -> Result<Vec<String>, NotNow> {
    let server = zone.clone().serve().await;
    let resolver = Resolver::new(&server.config()).unwrap();
    let found = report_addresses(&resolver, &Domain::parse(domain).unwrap()).await?;
    Ok(found.iter().map(|one| one.address.to_string()).collect())
}

#[tokio::test]
async fn reports_go_only_where_they_are_wanted() {
    let asking = |rua: &str| Zone::new().txt("_dmarc.far.test", &format!("v=DMARC1; p=none; rua={rua}"));
    let agreed = |text: &str| asking("mailto:d@other.test").txt("far.test._report._dmarc.other.test", text);
    let many = (0..1000).map(|n| format!("mailto:d{n}@far.test")).collect::<Vec<_>>().join(",");
    for (zone, expected) in [
        (asking("mailto:d@far.test"), &["d@far.test"][..]),
        (asking("mailto:d@sub.far.test"), &["d@sub.far.test"]),
        (asking("mailto:victim@other.test"), &[]),
        (asking("mailto:victim@other.test,mailto:d@far.test"), &["d@far.test"]),
        (asking("mailto:victim@xfar.test"), &[]),
        (agreed("v=DMARC1"), &["d@other.test"]),
        (agreed("v=DMARC1;"), &["d@other.test"]),
        (agreed("v=DMARC1; rua=mailto:reports@other.test"), &["reports@other.test"]),
        (agreed("v=DMARC1; rua=mailto:victim@third.test"), &[]),
        (agreed("yes"), &[]),
        (asking("mailto:d@other.test").txt("else.test._report._dmarc.other.test", "v=DMARC1"), &[]),
        (asking(&many), &["d0@far.test", "d1@far.test", "d2@far.test", "d3@far.test"]),
        (asking("https://far.test/report"), &[]),
        (asking("mailto:d@far.test,mailto:d@far.test"), &["d@far.test"]),
        (Zone::new().txt("_dmarc.far.test", "v=DMARC1; p=none"), &[]),
        (Zone::new(), &[]),
    ] {
        assert_eq!(addresses(&zone, "far.test").await.unwrap(), expected);
    }
    // The domain below has its own record; the other organization is asked about the one with the record.
    assert_eq!(addresses(&asking("mailto:d@other.test").fail("other.test"), "far.test").await, Err(NotNow));
    assert_eq!(addresses(&Zone::new().fail("far.test"), "far.test").await, Err(NotNow));
}

#[tokio::test]
async fn a_report_that_is_too_large_for_its_address_is_not_sent_there() {
    for (rua, expected) in [
        ("mailto:small@far.test!1k,mailto:large@far.test!1m", Some("\r\nTo: large@far.test\r\n")),
        ("mailto:small@far.test!1k", None),
    ] {
        let zone = Zone::new().txt("far.test", SPF).txt("_dmarc.far.test", &format!("v=DMARC1; p=none; rua={rua}"));
        let world = World::new(zone, "").await;
        let running = world.run();
        running.take(GOOD, "a@far.test", &message("far.test")).await;
        world.next_day(&running);
        running.reports.send_due().await;
        assert_eq!(running.kept(), 0);
        let queued = running.queued();
        assert_eq!(queued.len(), usize::from(expected.is_some()), "{rua}");
        for (content, to) in queued.iter().zip(expected) {
            assert!(String::from_utf8_lossy(content).contains(to));
        }
    }
}

#[tokio::test]
async fn what_cannot_be_sent_is_tried_again_and_then_given_up() {
    let world = World::new(far(), "").await;
    let running = world.run();
    running.take(GOOD, "a@far.test", &message("far.test")).await;
    running.reports.flush().await;
    world.next_day(&running);
    // The name server has gone; the cache of a new resolver is empty.
    world.zone.replace(far().fail("far.test"));
    let world = World { resolver: Resolver::new(&world.zone.config()).unwrap(), ..world };
    drop(running);
    let running = world.run();
    running.reports.send_due().await;
    assert_eq!((running.queued().len(), running.kept()), (0, 1));
    assert_eq!(running.reports.next() - world.clock.now(), HOUR);
    world.zone.replace(far());
    running.reports.send_due().await;
    assert_eq!((running.queued().len(), running.kept()), (1, 0));

    running.take(GOOD, "a@far.test", &message("far.test")).await;
    running.reports.flush().await;
    world.zone.replace(far().fail("far.test"));
    let world = World { resolver: Resolver::new(&world.zone.config()).unwrap(), ..world };
    drop(running);
    let running = world.run();
    for kept in [1, 1, 1, 0] {
        world.next_day(&running);
        running.reports.send_due().await;
        assert_eq!((running.queued().len(), running.kept()), (1, kept));
    }
}

/// The whole server: what it has counted outlives it, and a day that is over is reported at the next start.
#[tokio::test]
async fn a_server_that_stops_forgets_nothing() {
    let zone = far().txt("local.test", "v=spf1 ip4:127.0.0.1 -all");
    let zone = zone.txt("_dmarc.local.test", "v=DMARC1; p=reject; rua=mailto:d@local.test").serve().await;
    let folder = tempfile::tempdir().unwrap();
    // Held, so that it can be seen.
    let more = format!(
        "[domains.\"own.test\"]\n[aliases]\n\"sales@own.test\" = \"discard\"\n[delivery]\nallow_recipients = [\"nobody.test\"]\n\
         [dns]\nnameservers = [\"{}\"]\n",
        zone.addr()
    );
    let clock = Clock::manual(1_795_300_000_000);
    let server = TestServer::start_at(folder.path(), &more, clock.clone()).await;
    let mut client = Client::connect(server.mx).await.unwrap();
    let reply = client.send("a@local.test", &["sales@own.test"], &message("local.test")).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    drop(client);
    server.stop().await;

    clock.advance(DAY + 4 * HOUR);
    let server = TestServer::start_at(folder.path(), &more, clock).await;
    let mut queued = server.queue().await;
    // There is no event to wait for from outside; the bound only turns a hang into a failure.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while queued.is_empty() && std::time::Instant::now() < patience {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        queued = server.queue().await;
    }
    let [report] = queued.as_slice() else { panic!("{queued:?}") };
    let subject = "Report Domain: local.test Submitter: mail.home.test Report-ID: ";
    assert!(server.story(report.id).await.unwrap().message.unwrap().subject.starts_with(subject));
    server.stop().await;
}
