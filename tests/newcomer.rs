//! A newcomer's way: the configuration of README, a few lines for a test network, the commands as they are written there;
//! and the first message arrives with signatures that another server and another implementation find good.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod pages;
    pub mod served;
    pub mod server;
    pub mod zone;
}

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::pages::{commands, page};
use support::served::Served;
use support::server::TestServer;
use support::zone::{Zone, ZoneServer};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_postrider");
const PASSWORD: &str = "my first password";
/// The requirement: the whole configuration, test network included, is shorter than this.
const LINES_MAX: usize = 12;
/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of the guide.
const CHAPTER: &str = "2. A test network";

fn lines(text: &str) -> Vec<&str> {
    let lines = text.lines().map(|line| line.split(" #").next().unwrap().trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// A command of the guide, with these words exchanged.
fn command(script: &str, first: &[&str], exchanged: &[(&str, &str)]) -> Command {
    let all = commands(script);
    let words = all.iter().find(|words| words.iter().map(String::as_str).take(first.len()).eq(first.iter().copied()));
    let words = words.unwrap_or_else(|| panic!("{first:?} is not in\n{script}"));
    let exchange = |word: &String| exchanged.iter().fold(word.clone(), |word, (from, to)| word.replace(from, to));
    let words: Vec<String> = words.iter().map(exchange).collect();
    let mut command = Command::new(if words[0] == "postrider" { BINARY } else { &words[0] });
    command.args(&words[1..]).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

/// What it says, if it is done well.
async fn good(command: &mut Command, input: &str) -> String {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Who asks for nothing may have ended.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let said = |bytes| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{}{}", said(output.stdout), said(output.stderr));
    said(output.stdout)
}

/// The records that `postrider dns --json` printed, for this zone.
fn publish(mut zone: Zone, printed: &str) -> Zone {
    for line in printed.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        if record["type"] == "TXT" {
            zone = zone.txt(record["name"].as_str().unwrap().trim_end_matches('.'), record["value"].as_str().unwrap());
        }
    }
    zone
}

/// The configuration of the guide with a hash, a folder and ports of the reader's own; the system chooses that for
/// submission.
fn typed(hash: &str, folder: &Path, dns: SocketAddr, mx: u16) -> String {
    let text = page("docs/first-message.md").block(CHAPTER, "toml");
    let old = text.lines().find(|line| line.starts_with("password_hash")).unwrap();
    text.replace(old, &format!("password_hash = \"{hash}\""))
        .replace("/var/lib/postrider", folder.to_str().unwrap())
        .replace("127.0.0.1:5353", &dns.to_string())
        .replace("2525", &mx.to_string())
        .replace("127.0.0.1:2587", "127.0.0.1:0")
}

/// Everything that README has a newcomer write is in the guide's configuration, which has two lines and a listener more.
#[test]
fn the_configuration_of_readme_with_a_test_network_has_under_twelve_lines() {
    let readme = page("README.md").blocks().into_iter().find(|block| block.language == "toml").unwrap().text;
    let guide = page("docs/first-message.md").block(CHAPTER, "toml");
    let (short, long) = (lines(&readme), lines(&guide));
    assert!(long.len() < LINES_MAX, "{} lines", long.len());
    assert!(short.iter().all(|line| long.contains(line)), "{short:?}\n{long:?}");
    let more: Vec<_> = long.iter().filter(|line| !short.contains(line)).collect();
    assert_eq!(more.len(), 5, "{more:?}");
}

/// Another server takes the mail of example.net and looks at its signatures.
async fn somebody_else(folder: &Path, zone: &ZoneServer) -> TestServer {
    let conf = format!(
        "[domains.\"example.net\"]\ncatchall = \"box\"\n[targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n\
         [dns]\nnameservers = [\"{}\"]\n",
        zone.addr()
    );
    TestServer::start(folder, &conf).await
}

/// The first message that comes, as it lies in the mailbox.
async fn first_in(mailbox: &Path) -> String {
    let there = async {
        loop {
            // The folder is made with the first message.
            if let Some(entry) = std::fs::read_dir(mailbox.join("new")).ok().and_then(|mut entries| entries.next()) {
                return std::fs::read_to_string(entry.unwrap().path()).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.expect("nothing comes")
}

/// A judge that is not ours, where it is there.
async fn dkimpy_agrees(message: &str, records: &str, folder: &Path) {
    let Ok(python) = std::env::var("POSTRIDER_TEST_PYTHON") else {
        eprintln!("SKIPPED: there is no dkimpy here");
        return;
    };
    let (letter, dns) = (folder.join("got.eml"), folder.join("records.json"));
    std::fs::write(&letter, message.replace('\n', "\r\n")).unwrap();
    std::fs::write(&dns, records).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/dkim_verify.py");
    let said = good(Command::new(python).arg(script).arg(letter).arg(dns), "").await;
    assert_eq!(said.matches("pass").count(), 2, "{said}");
}

/// README's command with curl, without where the server is and how far its certificate is believed.
fn same_command(readme: &str, steps: &str) {
    let curl = |script: &str| {
        let mut all = commands(script).into_iter();
        let words = all.find(|words| words.first().is_some_and(|word| word == "curl")).unwrap();
        words.into_iter().filter(|word| !word.starts_with("smtp://") && word != "--insecure").collect::<Vec<_>>()
    };
    assert_eq!(curl(readme), curl(steps));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_message_arrives_signed() {
    let (folder, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let blocks = page("docs/first-message.md").blocks();
    let steps = blocks.into_iter().filter(|block| block.heading == CHAPTER && block.language == "sh");
    let steps: String = steps.map(|block| block.text).collect();
    let readme = page("README.md").blocks().into_iter().filter(|block| block.language == "sh");
    same_command(&readme.map(|block| block.text).collect::<String>(), &steps);
    let file = folder.path().join("postrider.toml");
    let here = [("postrider.toml", file.to_str().unwrap())];

    // The hash of a password, and the file.
    let hash = good(&mut command(&steps, &["postrider", "account", "hash"], &[]), &format!("{PASSWORD}\n")).await;
    let data = folder.path().join("data");
    std::fs::write(&file, typed(hash.trim(), &data, ([127, 0, 0, 1], 5353).into(), 2525)).unwrap();
    good(&mut command(&steps, &["postrider", "check"], &here), "").await;

    // The records are published in a test network, where somebody else takes mail.
    good(&mut command(&steps, &["postrider", "dns"], &here), "").await;
    let records = good(command(&steps, &["postrider", "dns"], &here).arg("--json"), "").await;
    let zone = publish(Zone::new(), &records).mx("example.net", 10, "mx.example.net").a("mx.example.net", "127.0.0.1");
    let zone = zone.serve().await;
    let other = somebody_else(far.path(), &zone).await;

    // The server runs, and the first message goes.
    assert!(
        commands(&steps).contains(&["postrider", "serve", "--config", "postrider.toml"].map(str::to_owned).to_vec())
    );
    let conf = typed(hash.trim(), &data, zone.addr(), other.mx.port());
    let server = Served::start(folder.path(), &conf, 1).await;
    let letter = folder.path().join("message.eml");
    std::fs::write(&letter, "From: orders@example.com\nTo: you@example.net\nSubject: First\n\nIt works.\n").unwrap();
    let (port, login) = (server.door("submission").port().to_string(), format!("shop:{PASSWORD}"));
    let mine = [("message.eml", letter.to_str().unwrap()), ("2587", &port), ("shop:PASSWORD", &login)];
    good(&mut command(&steps, &["curl"], &mine), "").await;

    let message = first_in(&far.path().join("box")).await;
    let results = message.lines().skip_while(|line| !line.starts_with("Authentication-Results:"));
    let results: String = results.take_while(|line| !line.starts_with("DKIM-Signature:")).collect();
    assert_eq!(results.matches("dkim=pass").count(), 2, "{message}");
    assert!(results.contains("dmarc=pass"), "{message}");
    dkimpy_agrees(&message, &records, far.path()).await;
    server.stop_at_once().await;
    other.stop().await;
}

/// The first chapter: every command in its order, in a folder of its own.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_leave_can_be_looked_at() {
    const FIRST: &str = "1. Nothing leaves";
    let folder = tempfile::tempdir().unwrap();
    let guide = page("docs/first-message.md");
    let conf = guide.block(FIRST, "toml").replace("/tmp/postrider", folder.path().join("data").to_str().unwrap());
    let server = Served::start(folder.path(), &conf.replace("127.0.0.1:2587", "127.0.0.1:0"), 1).await;
    let (mut id, mut said) = ("ID".to_owned(), String::new());
    for words in commands(&guide.block(FIRST, "sh")) {
        let first: Vec<&str> = words.iter().map(String::as_str).collect();
        if first[..2] == ["postrider", "serve"] {
            continue;
        }
        let script = words.iter().map(|word| if word == "ID" { &id } else { word }).cloned().collect::<Vec<_>>();
        let mut command = Command::new(BINARY);
        let output = good(command.args(&script[1..]).current_dir(folder.path()), "").await;
        if first[1] == "send" {
            output.trim().clone_into(&mut id);
        }
        said += &output;
    }
    // Written into files, or printed.
    if let Ok(entries) = std::fs::read_dir(folder.path().join("captured")) {
        let files = entries.map(|entry| entry.unwrap().path());
        said.extend(files.map(|file| std::fs::read_to_string(file).unwrap()));
    }
    assert_eq!(said.matches("DKIM-Signature: ").count(), 2, "{said}");
    assert!(said.contains(&id) && said.contains("To: you@example.net"), "{said}");
    server.stop_at_once().await;
}
