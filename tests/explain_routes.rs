//! `postrider explain --from --to`: each decision about a message that does not exist, on a configuration file
//! alone, in both directions; what it says is what a server with that configuration does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod zone;
}

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::client::Client;
use support::server::TestServer;
use support::zone::Zone;

const BASE: &str = r#"hostname = "mail.home.test"
data_dir = "DATA_DIR"
postmaster = "ops@elsewhere.test"

[listeners.mx]
role = "mx"
bind = ["127.0.0.1:0"]

[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
tls = "opportunistic"

[accounts.shop]
password = "secret"
senders = ["shop@home.test"]
daily_limit = 100

[accounts.news]
password = "secret"
stream = "bulk"
hold = true

[domains."home.test"]
max_size = "1MiB"
[domains."open.test"]
catchall = "box"

[aliases]
"sales@home.test" = ["box", "team@home.test"]
"team@home.test" = "bob@partner.test"
"nobody@home.test" = "reject"
"/order-[0-9]+@home\\.test/" = "box"

[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
"#;

struct Files {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Files {
    fn new(more: &str) -> Files {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        let text = format!("{BASE}{more}").replace("DATA_DIR", folder.path().join("data").to_str().unwrap());
        std::fs::write(&file, text).unwrap();
        Files { folder, file }
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        let command = command.arg("explain").arg("--config").arg(&self.file).args(arguments.split_whitespace());
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn ask(&self, arguments: &str) -> Value {
        let output = self.run(&format!("{arguments} --json"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The line of a text in the file.
    fn line(&self, text: &str) -> String {
        let file = std::fs::read_to_string(&self.file).unwrap();
        let line = file.lines().position(|line| line.starts_with(text)).unwrap() + 1;
        format!("{}:{line}", self.file.display())
    }
}

/// The steps about something: verdict, sentence, key.
fn steps(answer: &Value, topic: &str) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let steps = answer["steps"].as_array().unwrap().iter().filter(|step| step["topic"] == topic);
    steps.map(|step| (text(&step["verdict"]), text(&step["what"]), text(&step["key"]))).collect()
}

#[track_caller]
fn has(answer: &Value, topic: &str, verdict: &str, words: &str, key: &str) {
    let steps = steps(answer, topic);
    let fits = |(is, what, by): &(String, String, String)| is == verdict && what.contains(words) && by == key;
    assert!(steps.iter().any(fits), "no {verdict} {words:?} by {key:?} in {steps:#?}");
}

#[test]
fn mail_of_an_account_is_followed_to_its_way_out() {
    let files = Files::new("");
    let answer = files.ask("--from shop@home.test --to bob@far.test");
    assert_eq!((&answer["accepted"], &answer["reply"]), (&Value::Bool(true), &Value::from("250 2.0.0 queued as ID")));
    has(&answer, "door", "good", "by the account shop", "accounts.shop");
    has(&answer, "sender", "good", "may send as <shop@home.test>", "accounts.shop.senders");
    has(&answer, "limits", "note", "100 recipients a day", "accounts.shop.daily_limit");
    has(&answer, "recipient", "good", "<bob@far.test> is not ours: it leaves", "domains");
    has(&answer, "stream", "good", "the stream transactional", "streams.transactional");
    has(&answer, "way_out", "good", "straight to the mail exchangers", "delivery.default");
    has(&answer, "signature", "good", "._domainkey.home.test and ", "domains.\"home.test\".dkim.selectors");
    has(&answer, "limits", "note", "The servers of far.test get 10 connections", "destinations.default");
    assert_eq!(answer["domains"], serde_json::json!(["far.test"]));
    let places: Vec<&Value> = answer["steps"].as_array().unwrap().iter().map(|step| &step["place"]).collect();
    assert!(places.contains(&&Value::from(files.line("senders = "))), "{places:?}");

    let answer = files.ask("--from someone@home.test --to bob@far.test --account shop");
    has(&answer, "sender", "refused", "may not send as <someone@home.test>", "accounts.shop.senders");
    assert_eq!((&answer["accepted"], &answer["at"]), (&Value::Bool(false), &Value::from("MAIL")));
    let answer = files.ask("--from news@home.test --to bob@far.test --account news");
    has(&answer, "delivery", "held", "accounts.news.hold is set", "accounts.news.hold");
    has(&answer, "stream", "good", "the stream bulk", "streams.bulk");
    // Nothing was made, not even the folder.
    assert!(!files.folder.path().join("data").exists());
}

#[test]
fn the_limits_of_an_alias_count_and_not_those_of_all() {
    let own = "[aliases.limits]\n\"Sales@home.test\" = { limit = 50, period = \"2h\", automatic = \"hold\" }\n";
    let files = Files::new(&format!("[loops]\nlimit = 7\n{own}"));
    let answer = files.ask("--from x@far.test --to sales@home.test");
    let (limit, key) =
        ("At most 50 messages from one sender to sales@home.test in 120 min", "aliases.limits.\"sales@home.test\"");
    has(&answer, "loops", "note", limit, key);
    has(&answer, "loops", "note", "Mail that a machine wrote is held", key);
    let answer = files.ask("--from x@far.test --to team@home.test");
    has(&answer, "loops", "note", "At most 7 messages from one sender to team@home.test", "loops.limit");
}

#[test]
fn mail_from_outside_is_followed_through_its_aliases() {
    let files = Files::new("[loops]\nlimit = 7\n[checks]\ndnsbl = [\"bl.test\"]\n");
    let answer = files.ask("--from x@far.test --to Sales+x@home.test");
    has(&answer, "door", "good", "the listener mx, from outside", "listeners.mx.role");
    let alias = "the alias without the subaddress and leads to the target box, <team@home.test>";
    has(&answer, "alias", "good", alias, "aliases.\"sales@home.test\"");
    has(
        &answer,
        "alias",
        "good",
        "<team@home.test> is taken by the alias and leads to <bob@partner.test>",
        "aliases.\"team@home.test\"",
    );
    has(&answer, "loops", "note", "At most 7 messages from one sender to sales@home.test", "loops.limit");
    has(&answer, "checks", "note", "DMARC", "checks.dmarc");
    has(&answer, "checks", "note", "bl.test", "checks.dnsbl");
    has(&answer, "delivery", "good", "the Maildir targets.box", "targets.box");
    has(&answer, "delivery", "good", "It leaves for <bob@partner.test>", "");
    has(&answer, "signature", "note", "It is not signed", "domains");
    for (to, words, key) in [
        ("order-12@home.test", "the pattern /order-", "aliases.\"/order-[0-9]+@home\\.test/\""),
        ("whoever@open.test", "the catchall of its domain", "domains.\"open.test\".catchall"),
        ("postmaster@home.test", "the postmaster of every domain", "postmaster"),
    ] {
        let answer = files.ask(&format!("--from x@far.test --to {to}"));
        has(&answer, "alias", "good", words, key);
        assert_eq!(answer["accepted"], true);
    }
}

/// What is refused, with the reply that a real server of the same configuration gives.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_those_of_the_server() {
    let files = Files::new("");
    let server_part = BASE.split_once("[accounts.shop]").unwrap().1;
    let folder = tempfile::tempdir().unwrap();
    let server = TestServer::start(folder.path(), &format!("[accounts.shop]{server_part}")).await;
    for (arguments, topic, key, to, mail) in [
        (
            "--from x@far.test --to nobody@home.test",
            "recipient",
            "aliases.\"nobody@home.test\"",
            "nobody@home.test",
            "",
        ),
        ("--from x@far.test --to gone@home.test", "recipient", "domains.\"home.test\".catchall", "gone@home.test", ""),
        ("--from x@far.test --to y@other.test --listener mx", "recipient", "domains", "y@other.test", ""),
        ("--from x@far.test --to order-1@home.test --size 40MiB", "size", "limits.max_size", "", " SIZE=41943040"),
    ] {
        let answer = files.ask(arguments);
        assert_eq!(answer["accepted"], false, "{arguments}");
        let refused = steps(&answer, topic).into_iter().find(|(verdict, ..)| verdict == "refused");
        assert_eq!(refused.map(|(.., by)| by).as_deref(), Some(key), "{arguments}");
        let mut client = Client::connect(server.mx).await.unwrap();
        let code = "5";
        let said = if to.is_empty() {
            client.command(&format!("MAIL FROM:<x@far.test>{mail}"), code).await.unwrap()
        } else {
            client.command("MAIL FROM:<x@far.test>", "250").await.unwrap();
            client.command(&format!("RCPT TO:<{to}>"), code).await.unwrap()
        };
        assert_eq!(said.trim_end(), answer["reply"].as_str().unwrap(), "{arguments}");
    }
    let answer = files.ask("--from shop@home.test --to bob@far.test --listener submission");
    has(&answer, "sender", "refused", "no network is trusted", "networks.trusted");
    let mut client = Client::connect(server.submission).await.unwrap();
    let said = client.command("MAIL FROM:<shop@home.test>", "5").await.unwrap();
    assert_eq!(said.trim_end(), answer["reply"].as_str().unwrap());
    let answer = files.ask("--from x@far.test --to order-1@home.test --size 2MiB");
    assert_eq!(answer["at"], "the end of the message");
    has(&answer, "size", "refused", "1048576 bytes", "domains.\"home.test\".max_size");
    server.stop().await;
}

#[test]
fn smart_hosts_rewriting_and_staging_are_told() {
    let hosts = "[sender]\ndefault_from = \"notifications@home.test\"\nreturn_path = \"bounce\"\n[delivery]\n\
                 default = \"smart_hosts\"\n[smart_hosts.ses]\nhost = \"ses.test\"\nusername = \"u\"\npassword = \"hush\"\n\
                 from_filter = [\"home.test\"]\nmax_size = \"1MiB\"\n[smart_hosts.pinned]\nhost = \"other.test\"\n\
                 from_filter = [\"*.other.test\"]\n[streams.bulk]\nsmart_host = \"pinned\"\ndaily_limit = 5\n\
                 [networks]\ntrusted = [\"127.0.0.0/8\"]\n";
    let files = Files::new(hosts);
    let answer = files.ask("--from shop@home.test --to bob@far.test --size 2MiB");
    has(
        &answer,
        "way_out",
        "good",
        "its from_filter names the domain of <shop@home.test>",
        "smart_hosts.ses.from_filter",
    );
    has(
        &answer,
        "way_out",
        "good",
        "First ses: ses.test port 587, STARTTLS demanded, valid certificate demanded, login u",
        "",
    );
    has(&answer, "way_out", "good", "the envelope sender <bounce@home.test>", "sender.return_path");
    has(&answer, "size", "refused", "more than ses takes", "smart_hosts.ses.max_size");
    assert!(!answer.to_string().contains("hush"));
    let answer = files.ask("--from x@elsewhere.test --to bob@far.test --listener submission");
    has(
        &answer,
        "from",
        "good",
        "From <x@elsewhere.test> gives way to <notifications@home.test>",
        "sender.default_from",
    );
    has(&answer, "signature", "good", "._domainkey.home.test", "domains.\"home.test\".dkim.selectors");
    let answer = files.ask("--from news@home.test --to bob@far.test --account news");
    has(&answer, "way_out", "good", "the stream bulk is for that host alone", "streams.bulk.smart_host");
    has(&answer, "limits", "note", "5 recipients a day", "streams.bulk.daily_limit");

    let answer =
        Files::new("[delivery]\nredirect_all_to = \"me@test.test\"\n").ask("--from shop@home.test --to bob@far.test");
    has(
        &answer,
        "delivery",
        "good",
        "goes to <me@test.test>, also what is for <bob@far.test>",
        "delivery.redirect_all_to",
    );
    let answer =
        Files::new("[delivery]\nallow_recipients = [\"near.test\"]\n").ask("--from shop@home.test --to bob@far.test");
    has(&answer, "delivery", "held", "bob@far.test is not among", "delivery.allow_recipients");
    let answer = Files::new("[delivery]\ndefault = \"capture\"\n").ask("--from shop@home.test --to bob@far.test");
    has(&answer, "way_out", "good", "nothing leaves", "delivery.default");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_dns_the_servers_are_named_with_the_tls_they_have_to_show() {
    let zone = Zone::new().mx("far.test", 10, "mx1.far.test").mx("far.test", 20, "mx2.far.test").null_mx("no.test");
    let zone = zone.a("mx1.far.test", "127.0.0.1").a("mx2.far.test", "127.0.0.1").serve().await;
    let more = format!("[dns]\nnameservers = [\"{}\"]\n[delivery.tls]\npolicy = \"required\"\n", zone.addr());
    let files = Files::new(&more);
    let (usual, sender, nowhere) = tokio::task::spawn_blocking(move || {
        let ask = |more: &str| files.ask(&format!("--from shop@home.test {more}"));
        (ask("--to bob@far.test --dns"), ask("--to bob@far.test --dns --tls-required"), ask("--to bob@no.test --dns"))
    })
    .await
    .unwrap();
    let found = steps(&usual, "dns");
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].1.starts_with("far.test goes to mx1.far.test: TLS with any certificate"), "{found:#?}");
    assert_eq!((found[0].0.as_str(), found[1].2.as_str()), ("good", "delivery.tls.policy"));
    has(&sender, "dns", "good", "a valid certificate for its name, or the mail waits; demanded by the sender", "");
    has(&nowhere, "dns", "refused", "accepts no mail (null MX)", "");
    assert!(zone.queries() > 0);
}

#[test]
fn wrong_questions_end_with_2_and_a_remedy() {
    let files = Files::new("");
    for (arguments, words) in [
        ("--from shop@home.test --to bob@far.test --account who", "there are: news, shop"),
        ("--from shop@home.test --to bob@far.test --listener smtp", "there are: mx, submission"),
        ("--from shop@home.test --to bob@far.test --account shop --listener mx", "cannot be used with"),
        ("--from shop@home.test", "--to"),
        ("", "required"),
        ("0000000000077 --from shop@home.test --to bob@far.test", "cannot be used with"),
    ] {
        let output = files.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments}: {said}");
        assert!(said.contains(words), "{arguments}: {said}");
    }
    // People get a table and the last word.
    let output = files.run("--from shop@home.test --to bob@far.test");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.starts_with("door ") && said.ends_with("It would be taken: 250 2.0.0 queued as ID\n"), "{said}");
    assert!(said.contains(&format!("[accounts.shop.senders, {}]", files.line("senders = "))), "{said}");
}
