//! `queue export` and `import`: nothing of a message is lost on the way, nothing is queued twice, and a
//! bad file stops nothing but itself. With the server running and stopped.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod client;
    pub mod kept;
    pub mod records;
    pub mod server;
    pub mod stored;
}

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use postrider::admin::transfer::{Exported, join, split};
use postrider::app::transfer::Transfer;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::events::journal;
use postrider::message::MessageId;
use postrider::queue::Queue;
use postrider::queue::record::{Message, Recipient};
use postrider::store::Table;
use serde_json::Value;
use support::client::Client;
use support::kept::{copy, first_format, lines, run, say, stderr, stdout, write_config};
use support::records::open;
use support::server::{TestServer, queued_id};
use support::stored::{self, WRITTEN};

type Queued = (Message, Vec<Recipient>, Vec<u8>);

/// All that is queued, by subject, without what an import changes.
fn queued(queue: &Queue) -> BTreeMap<String, Queued> {
    let mut found = BTreeMap::new();
    queue
        .walk(None, |message, recipients| {
            let body = queue.body(&message).unwrap().concat();
            let recipients: Vec<Recipient> = recipients.into_iter().map(|(_, recipient)| recipient).collect();
            let count = recipients.len() as u32;
            let plain = Message { id: MessageId::from_u64(0), chunks: 0, recipients: count, ..message };
            assert!(found.insert(plain.subject.clone(), (plain, recipients, body)).is_none());
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn look(data_dir: &Path) -> BTreeMap<String, Queued> {
    let (queue, _fresh) = open(&data_dir.join("store"), &Clock::manual(WRITTEN));
    queued(&queue)
}

/// A data_dir with the kept store in it.
fn full(data_dir: &Path) {
    write_config(data_dir);
    copy(&first_format(), &data_dir.join("store"));
}

fn files(folder: &Path, ending: &str) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    names.sort();
    names
}

fn path(folder: &Path) -> &str {
    folder.to_str().unwrap()
}

#[test]
fn an_envelope_survives_json() {
    for kept in stored::all() {
        let body = kept.body.concat();
        let exported = Exported::new(kept.message, kept.recipients, &body);
        for text in [exported.to_line().unwrap(), exported.to_pretty().unwrap()] {
            assert_eq!(Exported::parse(text.as_bytes()).unwrap(), exported, "{text}");
        }
        let line: Value = serde_json::from_str(&exported.to_line().unwrap()).unwrap();
        assert_eq!(line["message"]["received_at"], "2026-11-21T22:26:40.000Z");
        let joined = join(&exported, &kept.body).unwrap();
        assert_eq!(split(joined).unwrap(), (exported, Bytes::from(body)));
    }
    assert!(split(Bytes::from_static(b"{}")).is_err());
    assert!(split(Bytes::from_static(b"{}\nx")).is_err());
}

#[test]
fn a_queue_moves_to_another_machine_with_both_servers_stopped() {
    let (old, new, between) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    full(old.path());
    write_config(new.path());
    let to = between.path().join("queue");
    let text = say(old.path(), &["queue", "export", "--all", "--to-dir", path(&to)], 0);
    assert_eq!(text, format!("8 messages exported to {}.\n", to.display()));
    assert_eq!(files(&to, ".eml").len(), 8);
    let kept = stored::all().into_iter().find(|kept| kept.what == "for four").unwrap();
    assert_eq!(std::fs::read(to.join(format!("{}.eml", kept.message.id))).unwrap(), kept.body.concat());

    let output = run(new.path(), &["queue", "import", path(&to), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let imported = lines(&stdout(&output));
    assert_eq!(imported.len(), 8);
    assert!(imported.iter().all(|line| line["already"] == false));
    assert_eq!(look(new.path()), look(old.path()));
    assert_eq!((files(&to, ".json").len(), files(&to, ".json.done").len(), files(&to, ".eml.done").len()), (0, 8, 8));

    // Each has a story that says where it comes from, and no record of its import is left.
    let (queue, _fresh) = open(&new.path().join("store"), &Clock::manual(WRITTEN));
    for line in &imported {
        let id: MessageId = line["id"].as_str().unwrap().parse().unwrap();
        let story = journal::story(queue.store(), id).unwrap();
        let Event::Imported { was, .. } = &story[0].event else { panic!("{story:?}") };
        assert_eq!(was.to_string(), line["file"].as_str().unwrap());
    }
    assert_eq!(queue.store().prefix(Table::Meta, b"import/").unwrap().count(), 0);
    drop(queue);
    assert_eq!(say(new.path(), &["queue", "import", path(&to)], 0), "0 messages imported.\n");
    say(new.path(), &["store", "check"], 0);
}

#[test]
fn an_import_that_was_broken_off_queues_nothing_twice() {
    let (old, new, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    full(old.path());
    say(old.path(), &["queue", "export", "--status", "held", "--to-dir", path(to.path())], 0);
    let names = files(to.path(), ".json");
    assert_eq!(names.len(), 2);

    // Killed between the commit and the renaming: the message is queued, the file is as it was.
    let config_file = write_config(new.path());
    let config = postrider::config::load(&config_file).unwrap();
    let name = names[0].strip_suffix(".json").unwrap();
    let exported = Exported::parse(&std::fs::read(to.path().join(&names[0])).unwrap()).unwrap();
    let body = Bytes::from(std::fs::read(to.path().join(format!("{name}.eml"))).unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let first = runtime.block_on(async {
        let transfer = Transfer::open(&config, Clock::System).unwrap();
        transfer.import(name, exported, body).await.unwrap()
    });
    assert!(!first.already);

    let text = say(new.path(), &["queue", "import", path(to.path())], 0);
    assert_eq!(text, "1 message imported, 1 had been imported before.\n");
    assert_eq!(look(new.path()).len(), 2);

    // Killed between the two renamings: what is left of the pair is no message any more.
    std::fs::rename(to.path().join(format!("{name}.eml.done")), to.path().join(format!("{name}.eml"))).unwrap();
    assert_eq!(say(new.path(), &["queue", "import", path(to.path())], 0), "0 messages imported.\n");
    assert_eq!(look(new.path()).len(), 2);
}

/// Killed again and again at whatever it is doing; then let finish.
#[test]
fn an_import_that_is_killed_at_any_moment_loses_and_doubles_nothing() {
    const MESSAGES: usize = 300;
    const KILLS: usize = 8;
    let (new, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let config = write_config(new.path());
    let kept = stored::all().remove(2);
    for number in 0..MESSAGES {
        let mut message = kept.message.clone();
        message.subject = format!("number {number}");
        let body = kept.body.concat();
        let exported = Exported::new(message, kept.recipients.clone(), &body);
        std::fs::write(to.path().join(format!("m{number:04}.json")), exported.to_pretty().unwrap()).unwrap();
        std::fs::write(to.path().join(format!("m{number:04}.eml")), body).unwrap();
    }
    for kill in 1..=KILLS {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_postrider"))
            .args(["queue", "import", path(to.path()), "--config"])
            .arg(&config)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Not before it has come some way further than the last one.
        while files(to.path(), ".json.done").len() < kill * MESSAGES / (KILLS + 2)
            && child.try_wait().unwrap().is_none()
        {
            std::thread::yield_now();
        }
        let _ = child.kill();
        child.wait().unwrap();
    }
    let left = files(to.path(), ".json").len();
    println!("{left} were left after {KILLS} kills");
    say(new.path(), &["queue", "import", path(to.path())], 0);
    let queued = look(new.path());
    assert_eq!(queued.len(), MESSAGES);
    assert_eq!(files(to.path(), ".json.done").len(), MESSAGES);
    say(new.path(), &["store", "check"], 0);
}

#[test]
fn bad_files_are_named_and_the_rest_goes_in() {
    let (old, new, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    full(old.path());
    write_config(new.path());
    let folder = to.path();
    say(old.path(), &["queue", "export", "--all", "--to-dir", path(folder)], 0);
    let names: Vec<String> =
        files(folder, ".json").into_iter().map(|name| name.strip_suffix(".json").unwrap().to_owned()).collect();
    let json = |n: usize| folder.join(format!("{}.json", names[n]));
    let eml = |n: usize| folder.join(format!("{}.eml", names[n]));
    std::fs::write(json(0), "{").unwrap();
    std::fs::write(eml(1), "other\r\n").unwrap();
    std::fs::remove_file(eml(2)).unwrap();
    std::fs::write(json(3), "{\"postrider_export\": 99}").unwrap();
    let mut without: Value = serde_json::from_slice(&std::fs::read(json(4)).unwrap()).unwrap();
    without["recipients"] = Value::Array(Vec::new());
    std::fs::write(json(4), without.to_string()).unwrap();
    // Changed on purpose, and said so.
    let mut changed: Value = serde_json::from_slice(&std::fs::read(json(5)).unwrap()).unwrap();
    changed.as_object_mut().unwrap().remove("sha256");
    std::fs::write(json(5), changed.to_string()).unwrap();
    std::fs::write(eml(5), "Subject: changed\r\n\r\nby hand\r\n").unwrap();

    let output = run(new.path(), &["queue", "import", path(folder)]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "3 messages imported.\n");
    let text = stderr(&output);
    for (n, why) in ["not JSON", "not the one that was exported", "No such file", "newer postrider", "no recipients"]
        .into_iter()
        .enumerate()
    {
        let line = text.lines().find(|line| line.contains(&format!("{}.json", names[n])));
        assert!(line.is_some_and(|line| line.contains(why)), "{why}: {text}");
    }
    assert!(text.contains("  → ") && text.contains("5 messages were not imported"), "{text}");
    assert_eq!(files(folder, ".json").len(), 5);
    let queued = look(new.path());
    assert_eq!(queued.len(), 3);
    assert!(queued.values().any(|(message, _, body)| body.ends_with(b"by hand\r\n") && message.size == 29));
}

const CAPTURE: &str = "[domains.\"home.test\"]\n[delivery]\ndefault = \"capture\"\n\
                       [targets.box]\nkind = \"maildir\"\npath = \"DATA_DIR/box\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn through_a_running_server_what_waits_is_delivered_and_what_is_held_stays() {
    let (old, new, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    full(old.path());
    say(old.path(), &["queue", "export", "--all", "--to-dir", path(to.path())], 0);

    write_config(new.path());
    let clock = Clock::manual(WRITTEN + stored::LATER);
    let server = TestServer::start_at(new.path(), CAPTURE, clock).await;
    let data_dir = new.path().to_owned();
    let from = path(to.path()).to_owned();
    let output =
        tokio::task::spawn_blocking(move || run(&data_dir, &["queue", "import", &from, "--json"])).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let imported = lines(&stdout(&output));
    for kept in stored::all() {
        let Some(line) = imported.iter().find(|line| line["file"] == kept.message.id.to_string()) else {
            assert_eq!(kept.gone.len(), kept.recipients.len());
            continue;
        };
        let id: MessageId = line["id"].as_str().unwrap().parse().unwrap();
        for recipient in kept.recipients.iter().filter(|r| r.address.local() != "done") {
            server
                .wait_for(id, |event| match event {
                    Event::Delivered { recipient: to, .. } | Event::Captured { recipient: to } => {
                        *to == recipient.address
                    }
                    Event::Held { recipient: to, .. } => *to == recipient.address,
                    _ => matches!(recipient.status, postrider::queue::record::Status::Captured { .. }),
                })
                .await;
        }
    }
    let texts: Vec<String> = std::fs::read_dir(new.path().join("box/new"))
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(texts.len(), 2);
    assert!(texts.iter().all(|text| !text.contains("Received:")), "nothing is added: {texts:?}");

    // And out of it again: what a running server holds is what a stopped one had.
    let (data_dir, again) = (new.path().to_owned(), to.path().join("again"));
    let into = again.clone();
    let held = tokio::task::spawn_blocking(move || {
        say(&data_dir, &["queue", "export", "--status", "held", "--to-dir", path(&into)], 0)
    });
    assert!(held.await.unwrap().starts_with("2 messages exported"));
    let read = |folder: &Path, subject: &str| -> Exported {
        let all = files(folder, "json").into_iter().chain(files(folder, "json.done"));
        let all = all.map(|name| Exported::parse(&std::fs::read(folder.join(name)).unwrap()).unwrap());
        all.into_iter().find(|exported| exported.message.subject == subject).unwrap()
    };
    let (before, after) = (read(to.path(), "held"), read(&again, "held"));
    assert_eq!(after.recipients, before.recipients);
    assert_eq!(after.sha256, before.sha256);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_message_that_was_written_while_it_came_in_moves_too() {
    let (old, new, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&old, &new] {
        write_config(folder.path());
    }
    let trusted = format!("{CAPTURE}[networks]\ntrusted = [\"127.0.0.0/8\"]\n");
    let server = TestServer::start(old.path(), &trusted).await;
    let text = format!(
        "From: <me@home.test>\r\nTo: <you@far.test>\r\nSubject: large\r\n\r\n{}",
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abc\r\n".repeat(40_000)
    );
    let mut client = Client::connect(server.submission).await.unwrap();
    let reply = client.send("me@home.test", &["you@far.test"], &text).await.unwrap();
    server.wait_for(queued_id(&reply), |event| matches!(event, Event::Captured { .. })).await;
    server.stop().await;
    let before = look(old.path());
    {
        let (queue, _fresh) = open(&old.path().join("store"), &Clock::manual(WRITTEN));
        let stored = queue.message(queued_id(&reply)).unwrap().unwrap();
        assert!(stored.streamed.is_some(), "it was meant to be written while it came in");
    }
    say(old.path(), &["store", "check"], 0);
    say(old.path(), &["queue", "export", "--all", "--to-dir", path(to.path())], 0);
    say(new.path(), &["queue", "import", path(to.path())], 0);
    let after = look(new.path());
    let plain = |queued: &Queued| {
        let (message, recipients, body) = queued.clone();
        (Message { streamed: None, ..message }, recipients, body)
    };
    assert_eq!(after.values().map(plain).collect::<Vec<_>>(), before.values().map(plain).collect::<Vec<_>>());
    say(new.path(), &["store", "check"], 0);
}

#[test]
fn what_is_asked_for_must_be_clear_and_there() {
    let old = tempfile::tempdir().unwrap();
    full(old.path());
    let to = old.path().join("out");
    let id = stored::all()[2].message.id.to_string();
    for (arguments, status, text) in [
        (&["queue", "export", "--to-dir", path(&to)][..], 2, "nothing is selected"),
        (&["queue", "export", &id, "--status", "captured", "--to-dir", path(&to)], 1, "nothing was there"),
        (&["queue", "export", "0000000000001", "--to-dir", path(&to)], 1, "0000000000001 is not queued"),
        (&["queue", "import", "/nonexistent"], 2, "/nonexistent: No such file"),
        (&["queue", "import", "Cargo.toml"], 2, "neither .json nor .eml"),
    ] {
        let output = run(old.path(), arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(text), "{arguments:?}: {}", stderr(&output));
    }
    // Also together: of the messages named those that the filters take.
    let export = ["queue", "export", &id, "--status", "held", "--to-dir", path(&to), "--dry-run"];
    assert_eq!(say(old.path(), &export, 0), "1 message would be exported.\n");
    assert!(files(&to, "").is_empty());
    assert_eq!(say(old.path(), &["queue", "export", &id, "--to-dir", path(&to)], 0).lines().count(), 1);
    assert_eq!(files(&to, ".json"), [format!("{id}.json")]);
}
