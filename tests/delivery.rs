//! SMTP delivery against scripted far ends (`remotes/*.smtp`), found through a zone in the same process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

#[path = "support/remote.rs"]
mod remote;
#[path = "support/zone.rs"]
mod zone;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider::config::{self, Config, OutboundTls};
use postrider::delivery::smtp::{SmtpTransport, Timeouts};
use postrider::delivery::{Body, Delivered, Hop, Job, Outcome};
use postrider::dns::Resolver;
use postrider::message::{
    Address, BodyType, Door, DsnRequest, MessageId, Notify, Origin, OriginalRecipient, ReversePath,
};
use postrider::queue::record::{Failure, Message, Recipient, Route, Status};
use remote::{Received, Remotes};
use zone::{Zone, ZoneServer};

const SHORT: &str = "From: a@own.test\r\nSubject: hi\r\n\r\nHello.\r\n";

fn script(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/remotes").join(format!("{name}.smtp"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn configuration(port: u16) -> Config {
    let text = format!(
        "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\n[domains.\"own.test\"]\n\
         [delivery]\nmx_port = {port}\nallow_private_addresses = true\n"
    );
    config::parse("test.toml", &text).unwrap()
}

/// A server of ours and what it sends to.
struct World {
    config: Config,
    timeouts: Timeouts,
    zone: Zone,
    remotes: Remotes,
}

impl World {
    /// One far end per script, in the order of their preference as mail exchangers of far.test.
    async fn new(scripts: &[&str]) -> World {
        let scripts: Vec<String> = scripts.iter().map(|name| script(name)).collect();
        let remotes = Remotes::play(&scripts.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let mut zone = Zone::new();
        for number in 1..=scripts.len() {
            let host = format!("mx{number}.far.test");
            let address = format!("127.0.0.{number}");
            zone = zone.mx("far.test", 10 * number as u16, &host).a(&host, &address);
        }
        World { config: configuration(remotes.port), timeouts: Timeouts::RFC5321, zone, remotes }
    }

    fn tls_required(mut self) -> World {
        self.config.delivery.tls = OutboundTls::Required;
        self
    }

    async fn deliver(self, job: Job) -> (Vec<Outcome>, Vec<Received>) {
        let (_server, transport) = transport(&self.config, self.zone).await;
        let transport = transport.with_timeouts(self.timeouts);
        let outcomes = transport.deliver(&job).await;
        transport.close().await;
        // Shown if the far ends complain.
        println!("{outcomes:#?}");
        (in_order(&job, outcomes), self.remotes.finish().await)
    }

    /// The same job again and again, each after the one before.
    async fn deliver_often(self, count: usize) -> (Vec<Outcome>, Vec<Received>) {
        let (_server, transport) = transport(&self.config, self.zone).await;
        let mut outcomes = Vec::new();
        for _ in 0..count {
            let job = short(&["one@far.test"]);
            outcomes.extend(in_order(&job, transport.deliver(&job).await));
        }
        transport.close().await;
        println!("{outcomes:#?}");
        (outcomes, self.remotes.finish().await)
    }
}

async fn transport(config: &Config, zone: Zone) -> (ZoneServer, SmtpTransport) {
    let server = zone.serve().await;
    let resolver = Resolver::new(&server.config()).unwrap();
    let transport = SmtpTransport::new(config, resolver).unwrap().with_seed(1);
    (server, transport)
}

/// For what is decided without any far end.
async fn decide(config: &Config, zone: Zone, job: Job) -> Vec<Outcome> {
    let (_server, transport) = transport(config, zone).await;
    let outcomes = transport.deliver(&job).await;
    transport.close().await;
    in_order(&job, outcomes)
}

fn in_order(job: &Job, outcomes: Vec<(u32, Outcome)>) -> Vec<Outcome> {
    let expected: Vec<u32> = job.recipients.iter().map(|(number, _)| *number).collect();
    let numbers: Vec<u32> = outcomes.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, expected, "one outcome per recipient");
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

fn recipient(address: &str) -> Recipient {
    Recipient {
        address: Address::parse(address).unwrap(),
        alias: None,
        route: Route::Remote,
        notify: Notify::default(),
        original: None,
        status: Status::Waiting { due: 0 },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    }
}

fn job(content: &str, recipients: &[&str]) -> Job {
    job_of(vec![Bytes::copy_from_slice(content.as_bytes())], recipients)
}

fn job_of(chunks: Vec<Bytes>, recipients: &[&str]) -> Job {
    let body = Body::new(chunks);
    let message = Message {
        id: MessageId::from_u64(1),
        received_at: 0,
        origin: Origin { door: Door::Admin, account: None, peer: None },
        mail_from: ReversePath::Address(Address::parse("a@own.test").unwrap()),
        body_type: BodyType::EightBitMime,
        smtputf8: false,
        dsn: DsnRequest::default(),
        size: body.len(),
        chunks: 1,
        header_from: None,
        streamed: None,
        message_id: String::new(),
        subject: String::new(),
        findings: None,
        recipients: recipients.len() as u32,
        stream: postrider::message::stream::default_name(),
        tls: postrider::message::TlsWish::default(),
        not_before: None,
        answers: None,
    };
    // Numbers as they are within a message some of whose recipients are elsewhere.
    let numbers = (0..).map(|at| 3 + 2 * at);
    let recipients = numbers.zip(recipients.iter().map(|address| recipient(address))).collect();
    Job { message: Arc::new(message), body, recipients }
}

#[track_caller]
fn delivered(outcome: &Outcome) -> &Delivered {
    let Outcome::Delivered(delivered) = outcome else { panic!("not delivered: {outcome:?}") };
    delivered
}

#[track_caller]
fn deferred(outcome: &Outcome) -> &Failure {
    let Outcome::Defer { why, .. } = outcome else { panic!("not deferred: {outcome:?}") };
    assert!(why.status.starts_with("4."), "a deferral with status {}", why.status);
    why
}

#[track_caller]
fn failed(outcome: &Outcome) -> &Failure {
    let Outcome::Fail(why) = outcome else { panic!("not failed: {outcome:?}") };
    assert!(why.status.starts_with("5."), "a failure with status {}", why.status);
    why
}

fn short(recipients: &[&str]) -> Job {
    job(SHORT, recipients)
}

/// More than the system's buffers for a loopback connection take, so that the far end decides how
/// much of it is on its way.
fn endless() -> Job {
    let chunk = Bytes::from(("x".repeat(998) + "\r\n").repeat(1_000));
    let header = Bytes::from_static(b"a: b\r\n\r\n");
    job_of(std::iter::once(header).chain(std::iter::repeat_n(chunk, 24)).collect(), &["one@far.test"])
}

/// Runs a script with one recipient that must end in a deferral.
async fn deferral(name: &str) -> Failure {
    let (outcomes, _) = World::new(&[name]).await.deliver(short(&["one@far.test"])).await;
    deferred(&outcomes[0]).clone()
}

#[tokio::test]
async fn without_extensions_commands_go_one_by_one() {
    let world = World::new(&["plain"]).await;
    let port = world.remotes.port;
    let (outcomes, received) = world.deliver(short(&["one@far.test"])).await;
    let delivered = delivered(&outcomes[0]);
    assert_eq!(delivered.to, format!("mx1.far.test [127.0.0.1]:{port}"));
    assert_eq!(delivered.reply.as_ref().unwrap().to_string(), "250 2.0.0 kept as 4711");
    assert_eq!(delivered.tls, None);
    assert_eq!(received[0].contents, [SHORT.as_bytes()]);
}

#[tokio::test]
async fn pipelined_with_parameters() {
    let mut job = short(&["one@far.test", "two@far.test"]);
    job.recipients[0].1.notify = Notify::On { success: true, failure: true, delay: false };
    job.recipients[0].1.original =
        Some(OriginalRecipient { kind: "rfc822".into(), address: "one+old@own.test".into() });
    let (outcomes, received) = World::new(&["pipelined"]).await.deliver(job).await;
    for outcome in &outcomes {
        delivered(outcome);
    }
    assert_eq!(received[0].contents.len(), 1);
}

#[tokio::test]
async fn a_server_without_ehlo_gets_helo() {
    let (outcomes, _) = World::new(&["helo"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(delivered(&outcomes[0]).reply.as_ref().unwrap().code, 250);
}

#[tokio::test]
async fn content_arrives_byte_for_byte() {
    // Dots at line starts, alone and at the borders of chunks; eight-bit octets; no final line end.
    let content = "a: b\r\n\r\n.\r\n..\r\n.x\r\nü.\r\n\r\n.";
    for cut in 0..content.len() {
        let bytes = Bytes::from_static(content.as_bytes());
        let job = job_of(vec![bytes.slice(..cut), bytes.slice(cut..)], &["one@far.test"]);
        let (outcomes, received) = World::new(&["plain"]).await.deliver(job).await;
        delivered(&outcomes[0]);
        assert_eq!(received[0].contents[0], [content.as_bytes(), b"\r\n"].concat(), "cut at {cut}");
    }
}

#[tokio::test]
async fn long_content_arrives_byte_for_byte() {
    let content = "Subject: long\r\n\r\n".to_owned() + &".dots and more dots.\r\n.\r\n".repeat(40_000);
    let chunks = content.as_bytes().chunks(99_991).map(Bytes::copy_from_slice).collect();
    let (outcomes, received) = World::new(&["starttls"]).await.deliver(job_of(chunks, &["one@far.test"])).await;
    delivered(&outcomes[0]);
    assert!(received[0].contents[0] == content.as_bytes(), "the content has changed on its way");
}

#[tokio::test]
async fn content_that_could_be_read_as_two_messages_is_not_ended() {
    let content = "a: b\r\n\r\nx\n.\r\nMAIL FROM:<evil@far.test>\r\n";
    let (outcomes, _) = World::new(&["stall_after_354"]).await.deliver(job(content, &["one@far.test"])).await;
    assert_eq!(failed(&outcomes[0]).status, "5.6.0");
}

#[tokio::test]
async fn by_bdat_where_that_saves_a_round_trip() {
    let (outcomes, _) = World::new(&["bdat"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(delivered(&outcomes[0]).reply.as_ref().unwrap().to_string(), "250 2.0.0 kept as 4711");
    // The last line is ended as for DATA.
    let (outcomes, _) = World::new(&["bdat"]).await.deliver(job(SHORT.trim_end(), &["one@far.test"])).await;
    delivered(&outcomes[0]);
    for (name, status) in [("bdat_nobody", "5.1.1"), ("bdat_refused", "5.7.1")] {
        let (outcomes, received) = World::new(&[name]).await.deliver_often(2).await;
        assert_eq!(failed(&outcomes[0]).status, status, "{name}");
        delivered(&outcomes[1]);
        assert_eq!(received[0].connections, 1, "{name}");
    }
}

/// A server that takes long content by BDAT: how much of it, exactly.
fn by_bdat(octets: usize) -> String {
    format!(
        "S: 220 mx\nC: EHLO mail.own.test\nS: 250-mx\nS: 250-PIPELINING\nS: 250 CHUNKING\n\
         C: MAIL FROM:<a@own.test>\nC: RCPT TO:<one@far.test>\nquiet\nS: 250 ok\nS: 250 ok\n\
         C: BDAT {octets} LAST\noctets {octets}\nquiet\nS: 250 kept\nC: QUIT\nS: 221 bye\n"
    )
}

#[tokio::test]
async fn long_content_goes_by_bdat_in_one_chunk_of_its_size() {
    // Around the borders of blocks; with and without a final line end.
    let block = 64 * 1024;
    for (count, end, octets) in [
        (4 * block - 2, "\r\n", 4 * block),
        (4 * block, "", 4 * block + 2),
        (5 * block - 17, "\r\n", 5 * block - 15),
        (8 * block + 1, "", 8 * block + 3),
    ] {
        let content = ".".repeat(count) + end;
        let chunks = content.as_bytes().chunks(99_991).map(Bytes::copy_from_slice).collect();
        let remotes = Remotes::play(&[&by_bdat(octets)]).await;
        let zone = Zone::new().a("far.test", "127.0.0.1");
        let outcomes = decide(&configuration(remotes.port), zone, job_of(chunks, &["one@far.test"])).await;
        delivered(&outcomes[0]);
        remotes.finish().await;
    }
}

#[tokio::test]
async fn a_server_that_does_not_know_its_bdat_is_asked_by_data_once() {
    let (outcomes, received) = World::new(&["bdat_unknown"]).await.deliver(short(&["one@far.test"])).await;
    delivered(&outcomes[0]);
    assert_eq!((received[0].connections, &received[0].contents[..]), (2, &[SHORT.as_bytes().to_vec()][..]));
    let (outcomes, received) = World::new(&["interrupted_in_bdat"]).await.deliver(endless()).await;
    delivered(&outcomes[0]);
    assert_eq!((received[0].connections, received[0].contents[0].len()), (2, 24_000_008));
    let (outcomes, received) = World::new(&["bdat_and_data_unknown"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(deferred(&outcomes[0]).status, "4.3.0");
    assert_eq!(received[0].connections, 2);
}

#[tokio::test]
async fn lost_in_bdat_the_next_host_gets_it_and_after_it_is_unsure() {
    let (outcomes, received) = World::new(&["drop_in_bdat", "plain"]).await.deliver(endless()).await;
    assert!(delivered(&outcomes[0]).to.starts_with("mx2.far.test "));
    assert_eq!(received[1].contents.len(), 1);
    for name in ["drop_after_bdat", "stall_after_bdat"] {
        let mut world = World::new(&[name]).await;
        if name == "stall_after_bdat" {
            world.timeouts.dot = Duration::from_millis(50);
        }
        let (outcomes, _) = world.deliver(short(&["one@far.test"])).await;
        assert!(deferred(&outcomes[0]).unsure, "{name}");
    }
}

#[tokio::test]
async fn bdat_does_not_carry_what_could_be_read_as_two_messages() {
    let script = script("drop_in_bdat").replace("C: BDAT 24000008 LAST\noctets 1000\ndrop", "gone");
    let content = "a: b\r\n\r\nx\n.\r\n".to_owned() + &"x".repeat(300_000);
    let remotes = Remotes::play(&[&script]).await;
    let zone = Zone::new().a("far.test", "127.0.0.1");
    let outcomes = decide(&configuration(remotes.port), zone, job(&content, &["one@far.test"])).await;
    assert_eq!(failed(&outcomes[0]).status, "5.6.0");
    remotes.finish().await;
}

#[tokio::test]
async fn under_starttls_with_any_certificate() {
    for required in [false, true] {
        let mut world = World::new(&["starttls"]).await;
        if required {
            world = world.tls_required();
        }
        let (outcomes, received) = world.deliver(short(&["one@far.test"])).await;
        let tls = delivered(&outcomes[0]).tls.clone().unwrap();
        assert!(tls.starts_with("TLSv1.3 TLS13_"), "{tls}");
        assert_eq!(received[0].contents, [SHORT.as_bytes()]);
    }
}

#[tokio::test]
async fn broken_tls_falls_back_to_clear_on_a_new_connection() {
    let (outcomes, received) = World::new(&["tls_broken"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(delivered(&outcomes[0]).tls, None);
    assert_eq!(received[0].connections, 2);
}

#[tokio::test]
async fn required_tls_never_falls_back() {
    for (name, status) in [("tls_broken_once", "4.7.5"), ("tls_not_offered", "4.7.10"), ("tls_injected", "4.7.5")] {
        let world = World::new(&[name]).await.tls_required();
        let (outcomes, received) = world.deliver(short(&["one@far.test"])).await;
        assert_eq!(deferred(&outcomes[0]).status, status, "{name}");
        assert_eq!((received[0].connections, received[0].contents.len()), (1, 0), "{name}");
    }
}

#[tokio::test]
async fn a_host_that_refuses_tls_and_clear_is_not_the_mails_fault() {
    let why = deferral("tls_refused_then_wanted").await;
    assert!(why.reason.contains("530 5.7.0"), "{}", why.reason);
}

#[tokio::test]
async fn lost_before_the_dot_the_next_host_gets_it() {
    for broken in ["drop_in_envelope", "drop_in_data", "421_at_connect", "554_at_connect", "mixed_codes", "bad_code"] {
        let world = World::new(&[broken, "plain"]).await;
        let job = if broken == "drop_in_data" { endless() } else { short(&["one@far.test"]) };
        let (outcomes, received) = world.deliver(job).await;
        assert!(delivered(&outcomes[0]).to.starts_with("mx2.far.test "), "{broken}");
        assert_eq!(received[1].contents.len(), 1, "{broken}");
    }
}

#[tokio::test]
async fn lost_after_the_dot_is_unsure_and_no_other_host_is_tried() {
    let mut world = World::new(&["drop_after_dot"]).await;
    // A second host that would take it; nobody listens there, so a try would end in a worse outcome.
    world.zone = world.zone.mx("far.test", 90, "mx9.far.test").a("mx9.far.test", "127.0.0.9");
    let (outcomes, received) = world.deliver(short(&["one@far.test", "two@far.test"])).await;
    let why = deferred(&outcomes[0]);
    assert!(why.unsure, "{why:?}");
    assert_eq!(why.status, "4.4.2");
    assert!(!why.reason.contains("other tr"), "{}", why.reason);
    // What was decided before the loss stays decided.
    assert_eq!(failed(&outcomes[1]).status, "5.1.1");
    assert_eq!(received[0].contents.len(), 1);
}

#[tokio::test]
async fn silence_after_the_dot_is_unsure() {
    let mut world = World::new(&["stall_after_dot"]).await;
    world.timeouts.dot = Duration::from_millis(50);
    let (outcomes, _) = world.deliver(short(&["one@far.test"])).await;
    assert!(deferred(&outcomes[0]).unsure);
}

#[tokio::test]
async fn a_421_after_the_250_changes_nothing() {
    let (outcomes, _) = World::new(&["then_421"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(delivered(&outcomes[0]).reply.as_ref().unwrap().code, 250);
}

#[tokio::test]
async fn a_server_that_interrupts_the_content_is_heard() {
    let (outcomes, _) = World::new(&["interrupted_in_data"]).await.deliver(endless()).await;
    let why = deferred(&outcomes[0]);
    assert!(!why.unsure, "{why:?}");
}

#[tokio::test]
async fn a_slow_greeting_is_given_up() {
    let mut world = World::new(&["silent"]).await;
    world.timeouts.greeting = Duration::from_millis(50);
    let (outcomes, _) = world.deliver(short(&["one@far.test"])).await;
    let why = deferred(&outcomes[0]);
    assert_eq!(why.status, "4.4.2");
    assert!(why.reason.contains("mx1.far.test [127.0.0.1]") && why.reason.contains("greeting"), "{}", why.reason);
}

#[tokio::test]
async fn trouble_with_the_host_never_fails_the_mail() {
    for (name, status, said) in [
        ("421_at_connect", "4.3.2", "421 4.3.2 too busy"),
        ("554_at_connect", "4.3.2", "554 no mail service here"),
        ("mixed_codes", "4.5.0", "different codes"),
        ("bad_code", "4.5.0", "reply code"),
        ("endless_ehlo", "4.5.0", "more than 100 lines"),
        ("too_many_replies", "4.5.0", "more replies than"),
        ("greylisted", "4.7.1", "greylisted"),
    ] {
        let why = deferral(name).await;
        assert_eq!(why.status, status, "{name}");
        assert!(why.reason.contains(said) && why.reason.contains("mx1.far.test [127.0.0.1]"), "{name}: {}", why.reason);
        assert!(!why.unsure, "{name}");
    }
}

#[tokio::test]
async fn each_recipient_has_its_own_fate() {
    let recipients = ["one@far.test", "two@far.test", "three@far.test"];
    let (outcomes, received) = World::new(&["one_of_three_refused"]).await.deliver(short(&recipients)).await;
    delivered(&outcomes[0]);
    let why = failed(&outcomes[1]);
    assert_eq!((why.status.as_str(), why.reply.as_ref().unwrap().code), ("5.1.1", 550));
    delivered(&outcomes[2]);
    assert_eq!(received[0].contents.len(), 1);
}

#[tokio::test]
async fn when_all_are_refused_nothing_is_sent() {
    let recipients = ["one@far.test", "two@far.test"];
    let (outcomes, received) = World::new(&["all_refused"]).await.deliver(short(&recipients)).await;
    assert_eq!(failed(&outcomes[0]).status, "5.1.1");
    assert_eq!(deferred(&outcomes[1]).status, "4.2.1");
    assert_eq!(received[0].contents.len(), 0);
    let (outcomes, _) = World::new(&["all_refused_plain"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(failed(&outcomes[0]).reply.as_ref().unwrap().text, "no such\nuser");
    let (outcomes, _) = World::new(&["mail_refused"]).await.deliver(short(&recipients)).await;
    for outcome in &outcomes {
        assert_eq!(failed(outcome).status, "5.7.1");
    }
    let (outcomes, _) = World::new(&["content_refused"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(failed(&outcomes[0]).status, "5.7.1");
}

#[tokio::test]
async fn too_many_recipients_go_in_further_transactions_while_each_takes_somebody() {
    let recipients = ["one@far.test", "two@far.test", "three@far.test", "four@far.test"];
    let (outcomes, received) = World::new(&["too_many_recipients"]).await.deliver(short(&recipients)).await;
    delivered(&outcomes[0]);
    delivered(&outcomes[1]);
    assert_eq!(deferred(&outcomes[2]).status, "4.5.3");
    assert_eq!(failed(&outcomes[3]).status, "5.2.2");
    assert_eq!(received[0].contents, [SHORT.as_bytes(), SHORT.as_bytes()]);
}

#[tokio::test]
async fn who_reports_a_success_comes_back_with_it() {
    let hop = |outcome: &Outcome| delivered(outcome).hop;
    let mut job = short(&["one@far.test", "two@far.test"]);
    job.recipients[0].1.notify = Notify::On { success: true, failure: true, delay: false };
    job.recipients[0].1.original =
        Some(OriginalRecipient { kind: "rfc822".into(), address: "one+old@own.test".into() });
    let (outcomes, _) = World::new(&["pipelined"]).await.deliver(job).await;
    assert_eq!(hop(&outcomes[0]), Hop::PassedOn);
    let (outcomes, _) = World::new(&["plain"]).await.deliver(short(&["one@far.test"])).await;
    assert_eq!(hop(&outcomes[0]), Hop::Relayed);
}

#[tokio::test]
async fn after_a_421_the_next_host_gets_only_who_is_undecided() {
    let world = World::new(&["421_at_rcpt", "second_only"]).await;
    let (outcomes, _) = world.deliver(short(&["one@far.test", "two@far.test"])).await;
    assert_eq!(failed(&outcomes[0]).status, "5.1.1");
    delivered(&outcomes[1]);
}

#[tokio::test]
async fn more_recipients_than_a_transaction_takes_go_over_one_connection() {
    let addresses: Vec<String> = (0..150).map(|number| format!("r{number}@far.test")).collect();
    let mut script = "S: 220 mx\nC: EHLO mail.own.test\nS: 250-mx\nS: 250 PIPELINING\n".to_owned();
    for some in [&addresses[..100], &addresses[100..]] {
        script += "C: MAIL FROM:<a@own.test>\n";
        some.iter().for_each(|address| script += &format!("C: RCPT TO:<{address}>\n"));
        script += &format!("C: DATA\n{}S: 354\ncontent\nS: 250 kept\n", "S: 250 ok\n".repeat(some.len() + 1));
    }
    script += "C: QUIT\nS: 221 bye\n";
    let remotes = Remotes::play(&[&script]).await;
    let zone = Zone::new().a("far.test", "127.0.0.1");
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let outcomes = decide(&configuration(remotes.port), zone, short(&addresses)).await;
    for outcome in &outcomes {
        delivered(outcome);
    }
    assert_eq!(remotes.finish().await[0].contents.len(), 2);
}

#[tokio::test]
async fn what_a_server_cannot_take_fails_without_a_try() {
    let (outcomes, _) = World::new(&["small"]).await.deliver(job(&SHORT.repeat(10), &["one@far.test"])).await;
    assert_eq!(failed(&outcomes[0]).status, "5.3.4");
    let recipients = ["grün@far.test", "one@far.test"];
    let (outcomes, received) = World::new(&["no_smtputf8"]).await.deliver(short(&recipients)).await;
    assert_eq!(failed(&outcomes[0]).status, "5.6.7");
    delivered(&outcomes[1]);
    assert_eq!(received[0].contents.len(), 1);
}

#[tokio::test]
async fn what_dns_says_about_a_domain() {
    let zone = Zone::new()
        .null_mx("null.test")
        .fail("servfail.test")
        .txt("empty.test", "no address here")
        .mx("nowhere.test", 10, "mx.missing.test")
        .mx("unknown.test", 10, "mx.servfail.test")
        .mx("loop.test", 10, "mail.own.test")
        .mx("loop.test", 20, "other.test");
    let (_server, transport) = transport(&configuration(1), zone).await;
    for (domain, permanent, status) in [
        ("null.test", true, "5.1.10"),
        ("missing.test", true, "5.1.2"),
        ("empty.test", true, "5.1.2"),
        ("nowhere.test", true, "5.4.4"),
        ("loop.test", true, "5.4.6"),
        ("servfail.test", false, "4.4.3"),
        ("unknown.test", false, "4.4.3"),
    ] {
        let outcomes = transport.deliver(&short(&[&format!("one@{domain}")])).await;
        let why = if permanent { failed(&outcomes[0].1) } else { deferred(&outcomes[0].1) };
        assert_eq!(why.status, status, "{domain}: {}", why.reason);
        assert!(why.reason.contains(domain) || !permanent, "{domain}: {}", why.reason);
    }
}

#[tokio::test]
async fn without_mx_the_domain_itself_is_the_host() {
    let remotes = Remotes::play(&[&script("plain")]).await;
    let zone = Zone::new().a("far.test", "127.0.0.1");
    let outcomes = decide(&configuration(remotes.port), zone, short(&["one@far.test"])).await;
    assert!(delivered(&outcomes[0]).to.starts_with("far.test [127.0.0.1]:"));
    remotes.finish().await;
}

#[tokio::test]
async fn an_address_literal_is_connected_to() {
    let script = script("plain").replace("one@far.test", "one@[127.0.0.1]");
    let remotes = Remotes::play(&[&script]).await;
    let outcomes = decide(&configuration(remotes.port), Zone::new(), short(&["one@[127.0.0.1]"])).await;
    assert_eq!(delivered(&outcomes[0]).to, format!("[127.0.0.1]:{}", remotes.port));
    remotes.finish().await;
}

#[tokio::test]
async fn private_addresses_are_refused_by_default() {
    let mut config = configuration(1);
    config.delivery.allow_private_addresses = false;
    for (address, status) in [("127.0.0.1", "5.4.6"), ("10.1.2.3", "5.4.4"), ("169.254.169.254", "5.4.4")] {
        let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", address);
        let outcomes = decide(&config, zone, short(&["one@far.test"])).await;
        let why = failed(&outcomes[0]);
        assert_eq!(why.status, status);
        assert!(why.reason.contains(address) && why.reason.contains("delivery.allow_private_addresses"), "{why:?}");
    }
    let outcomes = decide(&config, Zone::new(), short(&["one@[IPv6:::ffff:127.0.0.1]"])).await;
    assert_eq!(failed(&outcomes[0]).status, "5.4.6");
}

#[tokio::test]
async fn where_nobody_listens_the_mail_waits() {
    // Bound, so that nobody else takes it, but not listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    let zone = Zone::new()
        .mx("far.test", 10, "mx1.far.test")
        .a("mx1.far.test", "127.0.0.1")
        .mx("far.test", 20, "mx2.far.test")
        .a("mx2.far.test", "127.0.0.1");
    let outcomes = decide(&configuration(port), zone, short(&["one@far.test"])).await;
    let why = deferred(&outcomes[0]);
    assert_eq!((why.status.as_str(), why.unsure), ("4.4.1", false));
    assert!(why.reason.contains("mx1.far.test [127.0.0.1]") && why.reason.contains("one other try"), "{}", why.reason);
}

#[tokio::test]
async fn the_next_message_goes_over_the_same_connection() {
    let (outcomes, received) = World::new(&["reused"]).await.deliver_often(3).await;
    delivered(&outcomes[0]);
    assert_eq!(failed(&outcomes[1]).status, "5.1.1");
    delivered(&outcomes[2]);
    assert_eq!((received[0].connections, received[0].contents.len()), (1, 2));
}

#[tokio::test]
async fn a_connection_that_has_ended_meanwhile_is_replaced() {
    for name in ["drop_when_idle", "421_on_second"] {
        let (outcomes, received) = World::new(&[name]).await.deliver_often(2).await;
        for outcome in &outcomes {
            delivered(outcome);
        }
        assert_eq!((received[0].connections, received[0].contents.len()), (2, 2), "{name}");
    }
}

#[tokio::test]
async fn a_host_that_takes_no_more_is_left_for_the_next() {
    let (outcomes, received) = World::new(&["421_from_second", "plain"]).await.deliver_often(2).await;
    assert!(delivered(&outcomes[0]).to.starts_with("mx1.far.test "));
    assert!(delivered(&outcomes[1]).to.starts_with("mx2.far.test "));
    assert_eq!((received[0].connections, received[1].contents.len()), (2, 1));
}

#[tokio::test]
async fn lost_after_the_dot_of_a_second_message_is_unsure_too() {
    let (outcomes, received) = World::new(&["drop_after_second_dot"]).await.deliver_often(2).await;
    delivered(&outcomes[0]);
    assert!(deferred(&outcomes[1]).unsure);
    assert_eq!((received[0].connections, received[0].contents.len()), (1, 2));
}

#[tokio::test]
async fn a_connection_takes_a_hundred_messages() {
    let hello = "S: 220 mx\nC: EHLO mail.own.test\nS: 250-mx\nS: 250 PIPELINING\n";
    let message = "C: MAIL FROM:<a@own.test>\nC: RCPT TO:<one@far.test>\nC: DATA\n\
                   S: 250 ok\nS: 250 ok\nS: 354\ncontent\nS: 250 kept\n";
    let goodbye = "C: QUIT\nS: 221 bye\n";
    let script = format!("{hello}{}{goodbye}---\n{hello}{message}{goodbye}", message.repeat(100));
    let remotes = Remotes::play(&[&script]).await;
    let zone = Zone::new().a("far.test", "127.0.0.1");
    let world = World { config: configuration(remotes.port), timeouts: Timeouts::RFC5321, zone, remotes };
    let (outcomes, received) = world.deliver_often(101).await;
    for outcome in &outcomes {
        delivered(outcome);
    }
    assert_eq!((received[0].connections, received[0].contents.len()), (2, 101));
}
