//! Tokens for smart hosts, against a token endpoint that plays a script on loopback, and what SMTP servers say
//! to them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/fake_http.rs"]
mod fake_http;
#[path = "support/records.rs"]
mod records;
#[path = "support/remote.rs"]
mod remote;
#[path = "support/zone.rs"]
mod zone;

use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fake_http::FakeHttp;
use postrider::clock::Clock;
use postrider::config::{self, Config, SmartHost};
use postrider::delivery::oauth::{Resource, Tokens};
use postrider::delivery::smtp::{Attempted, HostTarget, Login, LoginFault, Secret, SmtpTransport, TlsMode};
use postrider::delivery::transport::Transports;
use postrider::delivery::{Body, HostFailure, Job, Outcome};
use postrider::dns::Resolver;
use postrider::message::MessageId;
use postrider::queue::Queue;
use postrider::store::Table;
use records::START;
use remote::Remotes;
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;
use zone::Zone;

const CLIENT: &str =
    "provider = \"microsoft\"\nflow = \"client_credentials\"\nclient_id = \"app\"\nclient_secret = \"hush&\"";
const PERSON: &str = "provider = \"google\"\nflow = \"refresh_token\"\nclient_id = \"app\"\nclient_secret = \"hush\"\nrefresh_token = \"first\"";

/// A server's folder, its token endpoint and a clock.
struct World {
    folder: TempDir,
    endpoint: FakeHttp,
    clock: Clock,
}

struct Running {
    config: Config,
    queue: Arc<Queue>,
    tokens: Arc<Tokens>,
}

impl World {
    async fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        World { folder, endpoint: FakeHttp::start().await, clock: Clock::manual(START) }
    }

    /// Everything that a start makes, with one host.
    fn start(&self, oauth: &str) -> Running {
        let text = format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"{}\"\n[smart_hosts.office]\nhost = \"localhost\"\ntls = \"off\"\n\
             username = \"app@own.test\"\n[smart_hosts.office.oauth]\n{oauth}\ntoken_url = \"{}/token\"\n",
            self.folder.path().display(),
            self.endpoint.url
        );
        let config = config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"));
        let (queue, _) = records::open(&self.folder.path().join("store"), &self.clock);
        let tokens = Arc::new(Tokens::new(&config, queue.clone(), self.clock.clone()).unwrap());
        Running { config, queue, tokens }
    }

    fn grants(&self, token: &str, more: &str) {
        let body = format!("{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":3600{more}}}");
        self.endpoint.will("200 OK", "", &body);
    }

    fn denies(&self, error: &str) {
        let body = format!("{{\"error\":\"{error}\",\"error_description\":\"no: hush and first\"}}");
        self.endpoint.will("400 Bad Request", "", &body);
    }

    fn pass(&self, minutes: u64) {
        self.clock.advance(minutes * 60_000);
    }
}

impl Running {
    fn host(&self) -> &SmartHost {
        &self.config.smart_hosts[0]
    }

    async fn login(&self) -> Result<Option<Login>, HostFailure> {
        self.tokens.login(self.host()).await
    }

    async fn token(&self) -> String {
        match self.login().await.unwrap().unwrap().secret {
            Secret::Token(token) => token.0,
            Secret::Password(_) => panic!("a password"),
        }
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_and_renewed_before_it_runs_out() {
    let world = World::new().await;
    let running = world.start(CLIENT);
    world.grants("one", "");
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (tokens, host) = (running.tokens.clone(), running.host().clone());
        waiting.spawn(async move { tokens.login(&host).await });
    }
    for login in waiting.join_all().await {
        let login = login.unwrap().unwrap();
        assert_eq!(login.username, "app@own.test");
        assert_eq!(login.secret, Secret::Token(config::Secret("one".into())));
    }
    let requests = world.endpoint.take();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].line(), "POST /token HTTP/1.1");
    let form = requests[0].form();
    assert_eq!(form["grant_type"], "client_credentials");
    assert_eq!(form["client_id"], "app");
    assert_eq!(form["client_secret"], "hush&");
    assert_eq!(form["scope"], "https://outlook.office365.com/.default");
    assert!(!form.contains_key("refresh_token"));

    world.pass(54);
    assert_eq!(running.token().await, "one");
    assert!(world.endpoint.take().is_empty());
    world.grants("two", "");
    world.pass(1);
    assert_eq!(running.token().await, "two");
    assert_eq!(world.endpoint.take().len(), 1);
}

#[tokio::test]
async fn the_old_token_serves_while_a_new_one_cannot_be_had() {
    let world = World::new().await;
    let running = world.start(CLIENT);
    world.grants("one", "");
    assert_eq!(running.token().await, "one");
    world.pass(56);
    world.endpoint.will("503 Service Unavailable", "retry-after: 100\r\n", "");
    assert_eq!(running.token().await, "one");
    assert_eq!(world.endpoint.take().len(), 2);
    // Not asked again before the time that it named.
    assert_eq!(running.token().await, "one");
    world.clock.advance(99_000);
    assert_eq!(running.token().await, "one");
    assert!(world.endpoint.take().is_empty());
    world.endpoint.will("503 Service Unavailable", "", "");
    world.pass(4);
    let failed = running.login().await.unwrap_err();
    assert_eq!(failed.login, Some(LoginFault::Later));
    assert_eq!(failed.failure.status, "4.7.0");
    assert!(matches!(failed.outcome(), Outcome::Defer { not_before_secs: Some(200), .. }), "{failed:?}");
}

#[tokio::test]
async fn a_new_refresh_token_is_kept_encrypted_over_a_restart() {
    let world = World::new().await;
    let running = world.start(PERSON);
    world.grants("one", ",\"refresh_token\":\"second-refresh\"");
    assert_eq!(running.token().await, "one");
    let form = world.endpoint.take().remove(0).form();
    assert_eq!((form["grant_type"].as_str(), form["refresh_token"].as_str()), ("refresh_token", "first"));
    assert!(!form.contains_key("scope"));
    let stored = running.queue.store().get(Table::Meta, b"token/office").unwrap().unwrap();
    assert!(!stored.windows(6).any(|piece| piece == b"second"));
    assert!(!format!("{running:?}", running = running.tokens).contains("second"));
    drop(running);

    // The token that is still good needs no request, and the renewal shows the newest refresh token.
    let running = world.start(PERSON);
    assert_eq!(running.token().await, "one");
    assert!(world.endpoint.take().is_empty());
    world.pass(60);
    world.grants("two", "");
    assert_eq!(running.token().await, "two");
    assert_eq!(world.endpoint.take().remove(0).form()["refresh_token"], "second-refresh");
    drop(running);

    // One that a person has put into the configuration anew counts more.
    let running = world.start(&PERSON.replace("first", "third"));
    world.grants("three", "");
    assert_eq!(running.token().await, "three");
    assert_eq!(world.endpoint.take().remove(0).form()["refresh_token"], "third");
    drop(running);

    // Without the key, all begins anew.
    std::fs::remove_file(world.folder.path().join("token.key")).unwrap();
    let running = world.start(&PERSON.replace("first", "third"));
    world.grants("four", "");
    assert_eq!(running.token().await, "four");
}

#[tokio::test]
async fn a_refused_grant_defers_says_what_to_do_and_is_not_repeated_at_once() {
    let world = World::new().await;
    let running = world.start(PERSON);
    world.denies("invalid_grant");
    let failed = running.login().await.unwrap_err();
    assert_eq!(failed.login, Some(LoginFault::Refused));
    let reason = &failed.failure.reason;
    assert!(reason.contains("invalid_grant") && reason.contains("[smart_hosts.office.oauth]"), "{reason}");
    assert!(reason.contains("allow it anew") && !reason.contains("first") && !reason.contains("hush"), "{reason}");
    let Outcome::Defer { not_before_secs: Some(60), .. } = failed.outcome() else { panic!("{failed:?}") };
    // Nobody asks until the rest is over; each further one is twice as long.
    for _ in 0..5 {
        assert_eq!(running.login().await.unwrap_err().failure, failed.failure);
    }
    assert_eq!(world.endpoint.take().len(), 1);
    for minutes in [2, 4, 8, 16, 32, 60, 60] {
        world.pass(60);
        world.denies("invalid_grant");
        let rest = running.login().await.unwrap_err().not_before_secs.unwrap();
        assert_eq!(rest, minutes * 60);
    }
    world.pass(60);
    world.grants("one", "");
    assert_eq!(running.token().await, "one");
}

/// The server rests for up to an hour after a refusal; who has put it right need not wait for that.
#[tokio::test]
async fn another_client_secret_is_tried_at_once() {
    let world = World::new().await;
    let running = world.start(CLIENT);
    for _ in 0..2 {
        world.denies("invalid_client");
        running.login().await.unwrap_err();
        world.pass(2);
    }
    world.denies("invalid_client");
    assert_eq!(running.login().await.unwrap_err().not_before_secs, Some(240));

    let mut config = running.config.clone();
    let oauth = config.smart_hosts[0].oauth.as_mut().unwrap();
    oauth.client_secret = Some(config::Secret("hush again".into()));
    let next = running.tokens.next(&config).unwrap();
    world.denies("invalid_client");
    let failed = next.login(&config.smart_hosts[0]).await.unwrap_err();
    assert_eq!(failed.not_before_secs, Some(60), "it is the first of these");
    // Nobody has changed anything since.
    assert_eq!(next.login(&config.smart_hosts[0]).await.unwrap_err().failure, failed.failure);
    assert_eq!(world.endpoint.take().len(), 4);
}

/// As a reload does it.
#[tokio::test]
async fn a_mailbox_that_takes_tokens_from_now_on_gets_one_whatever_the_smart_hosts_are() {
    let world = World::new().await;
    let text = |more: &str| {
        format!(
            "hostname = \"mail.own.test\"\ndata_dir = \"{}\"\n[dns]\nnameservers = [\"127.0.0.1:9\"]\n\
             [domains.\"own.test\"]\n[fetch.box]\nprotocol = \"imap\"\nhost = \"127.0.0.1\"\nusername = \"a@own.test\"\n\
             deliver_to = \"postmaster@own.test\"\n{more}",
            world.folder.path().display()
        )
    };
    let parse = |more: &str| {
        let config = config::parse("test.toml", &text(more));
        Arc::new(config.unwrap_or_else(|problems| panic!("{problems}")))
    };
    let before = parse("password = \"p\"\n");
    let after = parse(&format!("[fetch.box.oauth]\n{PERSON}\ntoken_url = \"{}/token\"\n", world.endpoint.url));
    let (queue, _) = records::open(&world.folder.path().join("store"), &world.clock);
    let resolver = Resolver::new(&before.dns).unwrap();
    let transports = Transports::new(&before, resolver.clone(), &world.clock, &queue).unwrap();
    let transports = transports.next(&after, resolver, &queue).unwrap();
    world.grants("one", "");
    let oauth = after.fetch["box"].oauth.as_ref().unwrap();
    let token = transports.tokens().mailbox_token("box", oauth, Resource::Imap).await;
    assert_eq!(token.map(|token| token.0).map_err(|failed| failed.failure.reason), Ok("one".to_owned()));
}

#[tokio::test]
async fn a_stored_refresh_token_that_is_refused_gives_way_to_the_configured_one() {
    let world = World::new().await;
    let running = world.start(PERSON);
    world.grants("one", ",\"refresh_token\":\"second\"");
    assert_eq!(running.token().await, "one");
    world.pass(60);
    world.denies("invalid_grant");
    world.grants("two", "");
    assert_eq!(running.token().await, "two");
    let shown: Vec<String> =
        world.endpoint.take().iter().map(|request| request.form()["refresh_token"].clone()).collect();
    assert_eq!(shown, ["first", "second", "first"]);
}

#[tokio::test]
async fn nonsense_is_no_token() {
    let world = World::new().await;
    let running = world.start(CLIENT);
    for (status, body) in [("200 OK", "<html>"), ("302 Found", ""), ("404 Not Found", "nothing"), ("200 OK", "{}")] {
        world.endpoint.will(status, "location: /elsewhere\r\n", body);
        let failed = running.login().await.unwrap_err();
        assert_eq!(failed.login, Some(LoginFault::Refused), "{failed:?}");
        world.pass(60);
    }
    world.endpoint.will("", "", "");
    assert_eq!(running.login().await.unwrap_err().login, Some(LoginFault::Later));
}

#[tokio::test]
async fn a_token_for_one_thing_is_not_used_for_another() {
    let world = World::new().await;
    let running = world.start(CLIENT);
    world.grants("smtp", "");
    world.grants("graph", "");
    assert_eq!(running.token().await, "smtp");
    assert_eq!(running.tokens.token(running.host(), Resource::Graph).await.unwrap().0, "graph");
    assert_eq!(running.token().await, "smtp");
    let scopes: Vec<String> = world.endpoint.take().iter().map(|request| request.form()["scope"].clone()).collect();
    assert_eq!(scopes, ["https://outlook.office365.com/.default", "https://graph.microsoft.com/.default"]);
}

fn auth(token: &str) -> String {
    STANDARD.encode(format!("user=app@own.test\x01auth=Bearer {token}\x01\x01"))
}

fn script(token: &str, rest: &str) -> String {
    let auth = auth(token);
    format!("S: 220 far ESMTP\nC: EHLO mail.own.test\nS: 250-far\nS: 250 AUTH XOAUTH2\nC: AUTH XOAUTH2 {auth}\n{rest}")
}

fn job() -> Job {
    let body = Body::new(vec![Bytes::from_static(b"From: app@own.test\r\n\r\nHello.\r\n")]);
    let message = records::message(MessageId::from_u64(1), &[Bytes::from_static(b"x")], 1);
    Job { message: Arc::new(message), body, recipients: vec![(0, records::recipient("one@far.test", 0))] }
}

fn target(port: u16, login: Option<Login>) -> HostTarget {
    HostTarget {
        host: "127.0.0.1".into(),
        port,
        tls: TlsMode::Off,
        verify_certificate: false,
        login,
        mail_from: None,
        debug: true,
    }
}

/// What is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

impl Log {
    fn has_the_dialogue_without(&self, secrets: &[&str]) {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let mut rest = text.as_str();
        for line in [
            "S: 220 far ESMTP",
            "C: EHLO",
            "C: AUTH XOAUTH2 (masked)",
            "S: 235",
            "C: MAIL",
            "C: (the message)",
            "S: 250 2.0.0 kept",
        ] {
            rest = rest.split_once(line).unwrap_or_else(|| panic!("no {line:?} in its place in {text}")).1;
        }
        for secret in secrets {
            assert!(!text.contains(secret), "{secret:?} in {text}");
        }
    }
}

/// A token is refused, and so is a new one: the mail waits, however final the reply sounds.
#[tokio::test]
async fn a_refused_login_asks_for_one_new_token_and_never_fails_the_mail() {
    for refusal in ["535 5.7.8 bad", "550 5.7.30 basic authentication is not supported", "535 5.7.3 unsuccessful"] {
        let world = World::new().await;
        let running = world.start(CLIENT);
        let refused = format!("S: 334 eyJzdGF0dXMiOiI0MDAifQ==\nC: \nS: {refusal}\n");
        let remotes = Remotes::play(&[&format!("{}---\n{}", script("one", &refused), script("two", &refused))]).await;
        let zone = Zone::new().serve().await;
        let transport = SmtpTransport::new(&running.config, Resolver::new(&zone.config()).unwrap()).unwrap();
        world.grants("one", "");
        running.token().await;
        world.pass(10);
        world.grants("two", "");
        for token in ["one", "two"] {
            let login = running.login().await.unwrap().unwrap();
            let target = target(remotes.port, Some(login.clone()));
            let Attempted { outcomes, troubles, .. } = transport.deliver_through(&job(), &[target]).await;
            assert!(matches!(&outcomes[..], [(0, Outcome::Defer { .. })]), "{outcomes:?}");
            assert_eq!(troubles[0].login, Some(LoginFault::Refused));
            assert!(!troubles[0].failure.reason.contains(token), "{troubles:?}");
            assert_eq!(running.tokens.refused(running.host(), &login).await, token == "one");
        }
        assert_eq!(world.endpoint.take().len(), 2);
        transport.close().await;
        remotes.finish().await;
    }
}

#[tokio::test]
async fn a_new_token_helps_where_the_old_one_was_withdrawn() {
    let world = World::new().await;
    let running = world.start(CLIENT);
    let taken = "S: 235 2.7.0 welcome\nC: MAIL FROM:<>\nS: 250 ok\nC: RCPT TO:<one@far.test>\nS: 250 ok\nC: DATA\nS: 354 go\n\
        content\nS: 250 2.0.0 kept\nC: QUIT\nS: 221 bye\n";
    let remotes =
        Remotes::play(&[&format!("{}---\n{}", script("one", "S: 535 5.7.8 bad\n"), script("two", taken))]).await;
    let zone = Zone::new().serve().await;
    let transport = SmtpTransport::new(&running.config, Resolver::new(&zone.config()).unwrap()).unwrap();
    world.grants("one", "");
    running.token().await;
    world.pass(10);
    world.grants("two", "");
    let old = running.login().await.unwrap().unwrap();
    transport.deliver_through(&job(), &[target(remotes.port, Some(old.clone()))]).await;
    assert!(running.tokens.refused(running.host(), &old).await);
    // Another job has fetched it meanwhile: that is the one to use.
    let new = running.login().await.unwrap();
    assert!(running.tokens.refused(running.host(), &old).await);
    assert_eq!(running.login().await.unwrap(), new);
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let Attempted { outcomes, .. } = transport.deliver_through(&job(), &[target(remotes.port, new)]).await;
    drop(guard);
    log.has_the_dialogue_without(&["two", "dHdv", "Hello", &auth("two")]);
    assert!(matches!(&outcomes[..], [(0, Outcome::Delivered(_))]), "{outcomes:?}");
    transport.close().await;
    assert_eq!(remotes.finish().await[0].contents.len(), 1);
}
