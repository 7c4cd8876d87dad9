//! `postrider suppress` against a running server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod kept;
    pub mod server;
}

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::kept::{lines, run, stderr, stdout, write_config};
use support::server::TestServer;

const CONF: &str = "[domains.\"home.test\"]\n[delivery]\ndefault = \"capture\"\n[streams.news]\nsuppress = true\n";

async fn in_background(data_dir: &Path, arguments: &[&str]) -> Output {
    let data_dir = data_dir.to_owned();
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let run = move || run(&data_dir, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    tokio::task::spawn_blocking(run).await.unwrap()
}

async fn say(data_dir: &Path, arguments: &[&str], status: i32) -> String {
    let output = in_background(data_dir, arguments).await;
    assert_eq!(output.status.code(), Some(status), "{arguments:?}\n{}{}", stdout(&output), stderr(&output));
    stdout(&output) + &stderr(&output)
}

async fn server(data_dir: &Path) -> TestServer {
    let file = write_config(data_dir);
    let more = std::fs::read_to_string(&file).unwrap() + "[streams.news]\nsuppress = true\n";
    std::fs::write(file, more).unwrap();
    TestServer::start(data_dir, CONF).await
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_go_on_the_list_and_off_again() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path();
    let server = server(data_dir).await;
    assert_eq!(say(data_dir, &["suppress", "list"], 0).await, "Nobody is on the list.\n");
    // For both streams that skip such addresses.
    let said = say(data_dir, &["suppress", "add", "Bob@Example.net", "@gone.example"], 0).await;
    assert_eq!(said, "4 entries put on the list.\n");
    let said = say(data_dir, &["suppress", "add", "bob@example.net", "--stream", "bulk"], 0).await;
    assert_eq!(said, "Nothing changed: on the list already.\n");
    let listed = lines(&say(data_dir, &["suppress", "list", "--json"], 0).await);
    let shown: Vec<(&str, &str)> =
        listed.iter().map(|entry| (entry["address"].as_str().unwrap(), entry["scope"].as_str().unwrap())).collect();
    assert_eq!(
        shown,
        [
            ("@gone.example", "bulk"),
            ("@gone.example", "news"),
            ("bob@example.net", "bulk"),
            ("bob@example.net", "news")
        ]
    );
    let table = say(data_dir, &["suppress", "list", "bob", "--stream", "news"], 0).await;
    assert!(table.contains("bob@example.net") && table.contains("manual") && !table.contains("bulk"), "{table}");
    let explained = say(data_dir, &["suppress", "explain", "bob@example.net"], 0).await;
    assert!(
        explained.contains("on the list for the stream bulk") && explained.contains("0 of 5 bounces"),
        "{explained}"
    );
    assert_eq!(
        say(data_dir, &["suppress", "remove", "bob@example.net", "--stream", "news"], 0).await,
        "1 entry taken off the list.\n"
    );
    assert_eq!(say(data_dir, &["suppress", "remove", "bob@example.net", "--json"], 0).await, "{\"changed\":1}\n");
    assert_eq!(
        say(data_dir, &["suppress", "remove", "bob@example.net"], 0).await,
        "Nothing changed: not on the list.\n"
    );
    let explained: Value =
        serde_json::from_str(&say(data_dir, &["suppress", "explain", "a@gone.example", "--json"], 0).await).unwrap();
    assert_eq!(explained["listed"][0]["address"], "@gone.example");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_said_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path();
    let server = server(data_dir).await;
    for (arguments, status, words) in [
        (&["suppress", "add", "nobody"][..], 2, "neither an address nor @ and a domain"),
        (&["suppress", "add", "a@b.example", "--stream", "bluk"], 2, "no stream named"),
        (
            &["suppress", "add", "a@b.example", "--stream", "transactional"],
            1,
            "set streams.transactional.suppress = true",
        ),
        (&["suppress", "add", "a@b.example", "--stream", "security"], 1, "it never does"),
        (&["suppress", "add", "a@b.example", "--reason", "boredom"], 2, "the reasons are"),
        (&["suppress", "import", "/nonexistent"], 2, "/nonexistent"),
    ] {
        let said = say(data_dir, arguments, status).await;
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    say(data_dir, &["suppress", "add", "a@b.example", "--reason", "complaint"], 0).await;
    let said = say(data_dir, &["suppress", "remove", "a@b.example"], 1).await;
    assert!(said.contains("has complained") && said.contains("--force"), "{said}");
    say(data_dir, &["suppress", "remove", "a@b.example", "--force"], 0).await;
    server.stop().await;
    let said = say(data_dir, &["suppress", "list"], 1).await;
    assert!(said.contains("no server is running"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_fails_prints_nothing_and_an_empty_list_its_header() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path();
    let server = server(data_dir).await;
    assert_eq!(say(data_dir, &["suppress", "export"], 0).await, "address,scope,reason,since,expires\n");
    server.stop().await;
    let output = in_background(data_dir, &["suppress", "export"]).await;
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(1), ""));
    assert!(stderr(&output).contains("no server is running"), "{}", stderr(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_is_not_there_is_a_wrong_command_and_those_there_are_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path();
    let server = server(data_dir).await;
    for (arguments, words) in [
        (&["suspend", "--stream", "nope"][..], "there are: bulk, news, security, transactional"),
        (&["resume", "--stream", "nope"], "there are: bulk, news, security, transactional"),
        (&["suspend", "--smart-host", "nope"], "there is no smart host named \"nope\"\n  → there is none\n"),
        (&["resume", "--smart-host", "nope"], "there is none\n"),
        (&["log", "--since", "yesterday"], "neither a time nor a duration"),
        (&["log", "not an id"], "neither a queue id nor"),
        (&["log", "--follow", "not an id"], "neither a queue id nor"),
        (&["log", "--smart-host", "nope"], "there is none\n"),
        (&["fetch", "run", "nope"], "there is none\n"),
        (&["pickup", "once", "nope"], "there is none\n"),
    ] {
        let said = say(data_dir, arguments, 2).await;
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
    // The command is right, and yet nothing comes of it.
    say(data_dir, &["suspend", "--stream", "security"], 1).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_exported_can_be_imported() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path();
    let server = server(data_dir).await;
    let file = |name: &str, text: &str| {
        let file = data_dir.join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    // More than fit on a page, or in a request.
    let many: String = (0..2500).map(|number| format!("n{number}@example.net\n")).collect();
    let plain = file("plain.txt", &format!("# of old\n@gone.example\n{many}"));
    let said = say(data_dir, &["suppress", "import", &plain, "--dry-run"], 0).await;
    assert!(said.contains("2501 addresses can be imported"), "{said}");
    let said = say(data_dir, &["suppress", "import", &plain, "--stream", "bulk"], 0).await;
    assert_eq!(said, "2501 addresses read, 2501 entries new or changed.\n");
    say(data_dir, &["suppress", "add", "until@example.net", "--global", "--for", "30d"], 0).await;
    let table = say(data_dir, &["suppress", "export"], 0).await;
    let json = say(data_dir, &["suppress", "export", "--json"], 0).await;
    assert_eq!((table.lines().count(), json.lines().count()), (2503, 2502));
    assert!(table.starts_with("address,scope,reason,since,expires\n@gone.example,bulk,import,"), "{}", &table[..200]);
    let bad = file("bad.txt", "one@example.net\ntwo\n");
    let said = say(data_dir, &["suppress", "import", &bad], 2).await;
    assert!(said.contains("line 2: \"two\""), "{said}");
    server.stop().await;

    for (name, text) in [("table.csv", &table), ("lines.jsonl", &json)] {
        let other = tempfile::tempdir().unwrap();
        let other_server = self::server(other.path()).await;
        let text = text.clone();
        let from = file(name, &text);
        say(other.path(), &["suppress", "import", &from], 0).await;
        assert!(say(other.path(), &["suppress", "export", "--json"], 0).await == json, "{name}");
        other_server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_comes_by_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path()).await;
    let config = folder.path().join("postrider.toml");
    let fed = tokio::task::spawn_blocking(move || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.args(["suppress", "import", "-", "--reason", "unsubscribe", "--json", "--config"]).arg(config);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a@example.net\nb@example.net\n").unwrap();
        child.wait_with_output().unwrap()
    });
    assert_eq!(stdout(&fed.await.unwrap()), "{\"changed\":4,\"read\":2}\n");
    let listed = lines(&say(folder.path(), &["suppress", "list", "--reason", "unsubscribe", "--json"], 0).await);
    assert_eq!(listed.len(), 4);
    server.stop().await;
}
