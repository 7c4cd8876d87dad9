//! What happens to a message is one event: the journal, the log, the metrics and the webhook tell of the same things,
//! and the journal is searched by all that a person may know of it. By the real server, with its log as JSON.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod ear;
    pub mod served;
    pub mod sink;
}

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use support::client::Client;
use support::ear::Ear;
use support::served::Served;
use support::sink::Sink;

fn conf(sink: &Sink, ear: &Ear) -> String {
    format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n[log]\nformat = \"json\"\n[queue]\nmin_free = \"1MiB\"\n\
         [listeners.submission]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\n[domains.\"home.test\"]\n\
         [accounts.shop]\npassword = \"secret\"\n[accounts.other]\npassword = \"secret\"\nhold = true\n\
         [delivery]\ndefault = \"smart_hosts\"\n[smart_hosts.relay]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"off\"\n\
         [events.webhooks.crm]\nurl = \"{}\"\n",
        sink.address.port(),
        ear.url
    )
}

async fn send(door: SocketAddr, account: &str, to: &str, name: &str) -> String {
    let mut client = Client::connect(door).await.unwrap();
    client.command(&format!("AUTH PLAIN {}", STANDARD.encode(format!("\0{account}\0secret"))), "235").await.unwrap();
    let content = format!("From: <me@home.test>\r\nMessage-ID: <{name}@home.test>\r\nSubject: {name}\r\n\r\nhello\r\n");
    let reply = client.send("me@home.test", &[to], &content).await.unwrap();
    reply.trim_end().rsplit(' ').next().unwrap().to_owned()
}

async fn log(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(["log", "--json", "--config"]).arg(folder.join("postrider.toml")).args(arguments);
    let output = command.stdin(Stdio::null()).output().await.unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Id and kind of each.
fn told(events: &[Value]) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    events.iter().map(|event| (text(&event["queue_id"]), text(&event["event"]))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn journal_log_metrics_and_webhook_tell_of_the_same_events() {
    let (folder, sink, ear) = (tempfile::tempdir().unwrap(), Sink::start().await, Ear::start().await);
    let served = Served::start(folder.path(), &conf(&sink, &ear), 1).await;
    let listening: Value = serde_json::from_str(&served.lines("listening")[0]).unwrap();
    let door: SocketAddr = listening["address"].as_str().unwrap().parse().unwrap();
    let good = send(door, "shop", "you@far.test", "one").await;
    let bad = send(door, "shop", "refused@far.test", "two").await;
    let held = send(door, "other", "you@far.test", "three").await;
    let pair = |id: &String, kind: &str| (id.clone(), kind.to_owned());
    let ends = [pair(&good, "delivered"), pair(&bad, "failed"), pair(&held, "held")];
    let deadline = Instant::now() + Duration::from_secs(60);
    // The notice about the one that failed goes to an address of ours that nobody has.
    let is_over = |told: &BTreeSet<(String, String)>| {
        ends.iter().all(|end| told.contains(end)) && told.iter().any(|(_, kind)| kind == "discarded")
    };
    while !is_over(&told(&log(folder.path(), &[]).await)) {
        assert!(Instant::now() < deadline, "{}", served.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // By all that a person may know.
    let found = async |arguments: &[&str]| told(&log(folder.path(), arguments).await);
    let story = BTreeSet::from([pair(&good, "accepted"), pair(&good, "delivered")]);
    assert_eq!(found(&[&good]).await, story);
    assert_eq!(found(&["<one@home.test>"]).await, story);
    let to_you = BTreeSet::from([pair(&good, "delivered"), pair(&held, "held")]);
    assert_eq!(found(&["you@far.test"]).await, to_you);
    let of_account = found(&["--account", "shop"]).await;
    assert!(of_account.is_superset(&story) && of_account.contains(&pair(&bad, "failed")), "{of_account:?}");
    assert!(of_account.iter().all(|(id, _)| *id != held), "{of_account:?}");
    let tries = BTreeSet::from([pair(&good, "delivered"), pair(&bad, "failed")]);
    assert_eq!(found(&["--smart-host", "relay"]).await, tries);
    assert_eq!(found(&["--failed"]).await, BTreeSet::from([pair(&bad, "failed")]));

    // The webhook: the same ids and kinds, but that a refusal by the far end is called so.
    let journal = told(&log(folder.path(), &[]).await);
    let wanted: BTreeSet<(String, String)> = journal
        .iter()
        .filter(|(_, kind)| ["accepted", "delivered", "failed", "held", "discarded"].contains(&kind.as_str()))
        .map(|(id, kind)| pair(id, if *kind == "failed" { "bounced" } else { kind }))
        .collect();
    let heard = ear.wait(|heard| heard.len() >= wanted.len()).await;
    let heard: BTreeSet<(String, String)> = heard
        .iter()
        .map(|heard| {
            let kind = heard.json["type"].as_str().unwrap().rsplit('.').next().unwrap();
            (heard.json["data"]["queue_id"].as_str().unwrap().to_owned(), kind.to_owned())
        })
        .collect();
    assert_eq!(heard, wanted);

    // The metrics count them.
    let page = metrics(&folder.path().join("data/admin.sock"));
    let count = |kind: &str| journal.iter().filter(|(_, told)| told == kind).count();
    for kind in ["delivered", "failed", "held"] {
        let line = format!("postrider_recipients_total{{outcome=\"{kind}\"}} {}", count(kind));
        assert!(page.lines().any(|is| is == line), "no {line} in {page}");
    }
    assert!(page.contains("postrider_messages_accepted_total{door=\"submission\"} 3"), "{page}");

    // Every line of the log is an object, and it has the same events.
    served.wait_for_line(&held, "held").await;
    let mut logged: BTreeMap<(String, String), Value> = BTreeMap::new();
    for line in served.text().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        for field in ["timestamp", "level", "message"] {
            assert!(line[field].is_string(), "no {field}: {line}");
        }
        if let (Some(id), Some(what)) = (line["id"].as_str(), line["message"].as_str()) {
            logged.insert((id.to_owned(), what.to_owned()), line.clone());
        }
    }
    for (id, kind) in &ends {
        let line = logged.get(&(id.clone(), kind.clone()));
        let line = line.unwrap_or_else(|| panic!("no {kind} of {id} in {logged:#?}"));
        assert!(line["recipient"].as_str().unwrap().ends_with("@far.test"), "{line}");
    }
    served.stop_at_once().await;
}

fn metrics(socket: &Path) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: postrider\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A level or a format that is none is refused before anything starts.
#[test]
fn a_format_of_the_log_that_is_none_is_refused_with_the_choices() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    let data = folder.path().display();
    std::fs::write(&file, format!("hostname = \"a.test\"\ndata_dir = \"{data}\"\n[log]\nformat = \"xml\"\n")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_postrider")).args(["serve", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("log.format") && said.contains("\"text\" or \"json\""), "{said}");
}
