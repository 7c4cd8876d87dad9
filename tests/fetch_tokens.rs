//! A mailbox that takes tokens in the place of a password: a whole server, a token endpoint and an IMAP server
//! that play scripts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "support/fake_http.rs"]
mod fake_http;
#[path = "support/remote.rs"]
mod remote;
mod support {
    pub mod client;
    pub mod server;
}

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fake_http::FakeHttp;
use postrider::admin::{Backend, FetchStatus};
use postrider::clock::Clock;
use remote::Remotes;
use support::server::TestServer;

const START: u64 = 1_800_000_000_000;

fn conf(port: u16, endpoint: &FakeHttp, oauth: &str) -> String {
    format!(
        "[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\narc = \"off\"\nrdns = \"off\"\n[domains.\"home.test\"]\n[aliases]\n\"sales@home.test\" = \"box\"\n[targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n\
         [fetch.support]\nprotocol = \"imap\"\nhost = \"127.0.0.1\"\nport = {port}\ntls = \"off\"\nusername = \"support@home.test\"\n\
         deliver_to = \"sales@home.test\"\n[fetch.support.oauth]\nprovider = \"microsoft\"\n{oauth}\ntoken_url = \"{}/token\"\n",
        endpoint.url
    )
}

const PERSON: &str = "flow = \"refresh_token\"\ntenant = \"home.test\"\nclient_id = \"app\"\nrefresh_token = \"first\"";

fn grants(endpoint: &FakeHttp, token: &str) {
    let body = format!("{{\"access_token\":\"{token}\",\"token_type\":\"Bearer\",\"expires_in\":3600}}");
    endpoint.will("200 OK", "", &body);
}

fn login(token: &str, answer: &str) -> String {
    let said = STANDARD.encode(format!("user=support@home.test\x01auth=Bearer {token}\x01\x01"));
    format!(
        "S: * OK [CAPABILITY IMAP4rev1 SASL-IR AUTH=XOAUTH2] hi\nC: p1 AUTHENTICATE XOAUTH2 {said}\nS: p1 {answer}\n"
    )
}

/// The folder with one message, or none.
fn folder(message: Option<&str>) -> String {
    let Some(message) = message else {
        return "C: p2 SELECT \"INBOX\"\nS: * 0 EXISTS\nS: * OK [UIDVALIDITY 7] v\nS: p2 OK done\nC: p3 LOGOUT\nS: * BYE\nS: p3 OK\ngone\n"
            .to_owned();
    };
    let content = format!("Subject: {message}\\r\\nFrom: a@far.test\\r\\nTo: sales@home.test\\r\\n\\r\\nHello.\\r\\n");
    let length = content.replace("\\r", "\r").replace("\\n", "\n").len();
    format!(
        "C: p2 SELECT \"INBOX\"\nS: * 1 EXISTS\nS: * OK [UIDVALIDITY 7] v\nS: * OK [UIDNEXT 4] n\nS: p2 OK done\n\
         C: p3 UID SEARCH 1:1 UNDELETED UNSEEN\nS: * SEARCH 3\nS: p3 OK done\n\
         C: p4 UID FETCH 3 (UID RFC822.SIZE)\nS: * 1 FETCH (UID 3 RFC822.SIZE 100)\nS: p4 OK done\n\
         C: p5 UID FETCH 3 (UID BODY.PEEK[])\nS> * 1 FETCH (UID 3 BODY[] {{{length}}}\\r\\n{content})\\r\\np5 OK done\\r\\n\n\
         C: p6 UID STORE 3 +FLAGS.SILENT (\\Seen)\nS: p6 OK done\n\
         C: p7 UID SEARCH UID 3\nS: * SEARCH 3\nS: p7 OK done\nC: p8 LOGOUT\nS: * BYE\nS: p8 OK\ngone\n"
    )
}

fn delivered(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("box/new")).map_or(0, Iterator::count)
}

async fn status(operator: &impl Backend) -> FetchStatus {
    operator.fetch_list().await.remove(0)
}

async fn until(what: &str, enough: impl AsyncFn() -> bool) {
    let since = Instant::now();
    while !enough().await {
        assert!(since.elapsed() < Duration::from_secs(20), "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_logs_in_and_an_old_one_that_is_refused_is_replaced() {
    let data = tempfile::tempdir().unwrap();
    let endpoint = FakeHttp::start().await;
    let script = [
        login("one", "OK [CAPABILITY IMAP4rev1 UIDPLUS MOVE] in") + &folder(Some("first")),
        login("one", "NO [AUTHENTICATIONFAILED] no") + "gone\n",
        login("two", "OK [CAPABILITY IMAP4rev1 UIDPLUS MOVE] in") + &folder(None),
    ];
    let remotes = Remotes::play(&[&script.join("---\n")]).await;
    grants(&endpoint, "one");
    let clock = Clock::manual(START);
    let server = TestServer::start_at(data.path(), &conf(remotes.port, &endpoint, PERSON), clock.clone()).await;
    let operator = server.app.operator().clone();
    until("the first run", async || status(&*operator).await.last_success.is_some()).await;
    until("the message", async || delivered(data.path()) == 1).await;
    let asked = endpoint.take();
    let form = asked.first().unwrap().form();
    assert_eq!(form["scope"], "https://outlook.office.com/IMAP.AccessAsUser.All offline_access");
    assert_eq!((asked.len(), form["refresh_token"].as_str()), (1, "first"));

    grants(&endpoint, "two");
    until("the run to end", async || status(&*operator).await.state == "waiting").await;
    clock.advance(6 * 60_000);
    operator.fetch_run("support".into(), false).await.unwrap();
    assert_eq!(status(&*operator).await.last_error, None);
    assert_eq!(endpoint.take().len(), 1);
    remotes.finish().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_the_mailbox_fails_and_says_why() {
    let data = tempfile::tempdir().unwrap();
    let endpoint = FakeHttp::start().await;
    endpoint.will("400 Bad Request", "", "{\"error\":\"invalid_grant\",\"error_description\":\"gone: first\"}");
    let remotes = Remotes::play(&[]).await;
    let server = TestServer::start(data.path(), &conf(1, &endpoint, PERSON)).await;
    let operator = server.app.operator().clone();
    until("the failure", async || status(&*operator).await.last_error.is_some()).await;
    let error = status(&*operator).await.last_error.unwrap();
    assert!(error.contains("fetch.support") && error.contains("[fetch.support.oauth]"), "{error}");
    assert!(!error.contains("first"), "{error}");
    drop(remotes);
    server.stop().await;
}

#[test]
fn a_mailbox_takes_a_password_or_tokens() {
    let text = |more: &str| {
        format!(
            "hostname = \"mail.home.test\"\ndata_dir = \"/nowhere\"\n[domains.\"home.test\"]\n[fetch.support]\nprotocol = \"pop3\"\n\
             host = \"pop.far.test\"\nusername = \"support@home.test\"\ndeliver_to = \"postmaster@home.test\"\n{more}"
        )
    };
    let oauth = format!("[fetch.support.oauth]\nprovider = \"microsoft\"\n{PERSON}\n");
    let config = postrider::config::parse("x.toml", &text(&oauth)).unwrap();
    assert!(config.fetch["support"].oauth.is_some());
    let problems =
        postrider::config::parse("x.toml", &text(&format!("password = \"x\"\n{oauth}"))).unwrap_err().to_string();
    assert!(
        problems.contains("a password or tokens, not both") && problems.contains("[fetch.support.oauth]"),
        "{problems}"
    );
    let problems = postrider::config::parse("x.toml", &text("")).unwrap_err().to_string();
    assert!(problems.contains("or [fetch.support.oauth]"), "{problems}");
}
