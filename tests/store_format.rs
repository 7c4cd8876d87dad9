//! Stores of every format that was ever written open with the present code, and nothing in them is
//! lost: they are kept in `tests/fixtures/store-format-N`. A store of a format to come is refused.
//!
//! `cargo test --test store_format -- --ignored` writes the one of the present format, if it is not
//! there yet; it is never written again.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod records;
    pub mod server;
    pub mod stored;
}

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use postrider::admin::Backend;
use postrider::admin::view;
use postrider::clock::Clock;
use postrider::events::Event;
use postrider::events::journal::{self, Journal};
use postrider::message::address::parse_reverse_path;
use postrider::message::{Address, Door, Draft, Envelope, MessageId, Origin};
use postrider::queue::record::{Message, Recipient, Status};
use postrider::queue::{NewMessage, Step};
use postrider::smtp::reply::Refusal;
use postrider::store::{Batch, FORMAT_VERSION, Store, StoreError, Table};
use serde::Serialize;
use support::records::open;
use support::server::TestServer;
use support::stored::{self, Kept, LATER, WRITTEN};

/// Remote mail stays here; one message an hour into an alias; a pickup folder.
const CONF: &str = r#"
[domains."home.test"]
[accounts.shop]
password_hash = "$argon2id$v=19$m=19456,t=2,p=1$8LBTsP104esl48/+Gp+W9Q$J3rz55DRMchHZjnDvzdu++w0HmHJMmqcVZKAknb/ILs"
[aliases]
"sales@home.test" = "box"
"shop@home.test" = "box"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[delivery]
default = "capture"
[loops]
limit = 1
[pickup.main]
path = "DATA_DIR/pickup"
account = "shop"
settle = "1s"
"#;

/// The file that was being taken when the store was written.
const CLAIMED: &str = "From: <shop@home.test>\r\nTo: <you@outside.example>\r\nSubject: claimed\r\n\r\nhello\r\n";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Every kept store, by its format.
fn kept_stores() -> BTreeMap<u32, PathBuf> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(fixtures()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some(number) = name.strip_prefix("store-format-") {
            found.insert(number.parse().unwrap(), path);
        }
    }
    found
}

/// Copies plain files; git keeps no modes and no empty folders, and neither does this.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// `intake::pickup`'s record, as it was first written.
#[derive(Serialize)]
struct Claim {
    name: Vec<u8>,
    stamp: Stamp,
    done: bool,
}

#[derive(Serialize)]
struct Stamp {
    mtime: i64,
    mtime_nanos: i64,
    size: u64,
    device: u64,
    inode: u64,
}

fn pickup_claim() -> Batch {
    let stamp =
        Stamp { mtime: (WRITTEN / 1000) as i64, mtime_nanos: 0, size: CLAIMED.len() as u64, device: 1, inode: 1 };
    let claim = Claim { name: b"claimed.eml".to_vec(), stamp, done: false };
    let mut batch = Batch::new();
    batch.put(Table::Pickup, *b"main\0claimed.tmp", rmp_serde::to_vec_named(&claim).unwrap());
    batch
}

async fn submit(server: &TestServer, to: &str, subject: &str) -> Result<MessageId, Refusal> {
    let text = format!("From: <shop@home.test>\r\nTo: <{to}>\r\nSubject: {subject}\r\n\r\nhello\r\n");
    let from = parse_reverse_path("<shop@home.test>").unwrap();
    let draft = Draft {
        envelope: Envelope::new(from, [Address::parse(to).unwrap()]),
        content: bytes::Bytes::from(text).into(),
        origin: Origin { door: Door::Admin, account: None, peer: None },
    };
    server.app.operator().submit(draft, None).await.map(|once| once.id)
}

/// Writes the store of the present format: first what a server leaves behind, then each state.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "writes into the source tree, once for each format"]
async fn write_the_store_of_the_present_format() {
    let wanted = fixtures().join(format!("store-format-{FORMAT_VERSION}"));
    if wanted.exists() {
        println!("{} is there already and stays as it is", wanted.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(WRITTEN);
    std::fs::create_dir(folder.path().join("pickup")).unwrap();
    let server = TestServer::start_at(folder.path(), CONF, clock.clone()).await;
    let id = submit(&server, "sales@home.test", "the one that is allowed").await.unwrap();
    server.wait_done(id).await;
    let id = submit(&server, "you@outside.example", "captured by a server").await.unwrap();
    server.wait_for(id, |event| matches!(event, Event::Captured { .. })).await;
    server.stop().await;

    let path = folder.path().join("store");
    {
        let (queue, _fresh) = open(&path, &clock);
        let journal = Journal::new(clock.clone());
        queue.commit(pickup_claim(), true).await.unwrap();
        for kept in stored::all() {
            let id = kept.message.id;
            let mut telling = journal.begin();
            stored::story(&kept).into_iter().for_each(|event| telling.tell(id, event));
            let extra = telling.take_batch();
            let (message, body, recipients) = (kept.message.clone(), kept.body.clone(), kept.recipients.clone());
            queue.enqueue(NewMessage { message, body, recipients, extra }).await.unwrap();
            let step =
                |number: &u32| Step { number: *number, before: kept.recipients[*number as usize].clone(), after: None };
            let steps: Vec<Step> = kept.gone.iter().map(step).collect();
            if !steps.is_empty() {
                let batch = queue.step_batch(&kept.message, &steps, &[]).unwrap();
                queue.commit(batch, true).await.unwrap();
            }
        }
    }
    for entry in std::fs::read_dir(&path).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // RocksDB's own diary, the file it locks, and a list of its settings that it does without.
        if name.starts_with("LOG") || name.starts_with("OPTIONS") || name == "LOCK" {
            std::fs::remove_file(path).unwrap();
        }
    }
    copy(&path, &wanted);
}

#[test]
fn a_store_of_every_format_is_kept() {
    let kept: Vec<u32> = kept_stores().into_keys().collect();
    let wanted: Vec<u32> = (1..=FORMAT_VERSION).collect();
    assert_eq!(kept, wanted, "`cargo test --test store_format -- --ignored` writes the one of the present format");
}

/// All that is queued, by id.
fn walk(queue: &postrider::queue::Queue) -> BTreeMap<MessageId, (Message, Vec<(u32, Recipient)>)> {
    let mut found = BTreeMap::new();
    queue
        .walk(None, |message, recipients| {
            found.insert(message.id, (message, recipients));
            ControlFlow::Continue(())
        })
        .unwrap();
    found
}

fn left(kept: &Kept) -> Vec<(u32, Recipient)> {
    let numbered = (0..).zip(kept.recipients.clone());
    numbered.filter(|(number, _)| !kept.gone.contains(number)).collect()
}

fn due(kept: &[Kept], now: u64) -> Vec<(MessageId, u32)> {
    let mut due = Vec::new();
    for kept in kept {
        for (number, recipient) in left(kept) {
            if matches!(recipient.status, Status::Waiting { due } if due <= now) {
                due.push((kept.message.id, number));
            }
        }
    }
    due.sort_unstable();
    due
}

/// Claims until nothing more comes.
fn claim_all(queue: &postrider::queue::Queue) -> Vec<(MessageId, u32)> {
    let mut claimed = Vec::new();
    loop {
        let scan = queue.claim_due().unwrap();
        for found in &scan.claimed {
            claimed.extend(found.recipients.iter().map(|(number, _)| (found.message.id, *number)));
        }
        if scan.claimed.is_empty() && !scan.more {
            break;
        }
    }
    claimed.sort_unstable();
    claimed
}

#[tokio::test]
async fn everything_in_a_kept_store_is_there_and_comes_due() {
    for (format, path) in kept_stores() {
        let folder = tempfile::tempdir().unwrap();
        let store = folder.path().join("store");
        copy(&path, &store);
        let all = stored::all();
        // Opened twice: what the first opening changed must be as good.
        for round in 0..2 {
            let clock = Clock::manual(WRITTEN);
            let (queue, _fresh) = open(&store, &clock);
            let found = walk(&queue);
            for kept in &all {
                let what = format!("format {format}, round {round}: {}", kept.what);
                let story = journal::story(queue.store(), kept.message.id).unwrap();
                let events: Vec<Event> = story.into_iter().map(|entry| entry.event).collect();
                assert_eq!(events, stored::story(kept), "{what}");
                let left = left(kept);
                if left.is_empty() {
                    assert!(!found.contains_key(&kept.message.id), "{what}");
                    continue;
                }
                let (message, recipients) = found.get(&kept.message.id).unwrap_or_else(|| panic!("{what}: lost"));
                assert_eq!((message, recipients), (&kept.message, &left), "{what}");
                assert_eq!(queue.body(message).unwrap().concat(), kept.body.concat(), "{what}");
            }
            assert_eq!(found.len(), 8, "format {format}: seven of them, and the one that a server captured");
            assert_eq!(claim_all(&queue), due(&all, WRITTEN), "format {format}, round {round}");
            clock.advance(LATER);
            let rest = due(&all, WRITTEN + LATER).into_iter().filter(|key| !due(&all, WRITTEN).contains(key));
            assert_eq!(claim_all(&queue), rest.collect::<Vec<_>>(), "format {format}, round {round}");
            assert!(queue.new_id() > all.iter().map(|kept| kept.message.id).max().unwrap());
        }
    }
}

fn texts(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut texts: Vec<String> = entries.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    texts.sort();
    texts
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_on_a_kept_store_goes_on_where_the_old_one_stopped() {
    for (format, path) in kept_stores() {
        let folder = tempfile::tempdir().unwrap();
        copy(&path, &folder.path().join("store"));
        let pickup = folder.path().join("pickup");
        std::fs::create_dir(&pickup).unwrap();
        let claimed = pickup.join("claimed.tmp");
        std::fs::write(&claimed, CLAIMED).unwrap();
        let written = SystemTime::UNIX_EPOCH + Duration::from_millis(WRITTEN);
        std::fs::File::options().write(true).open(&claimed).unwrap().set_modified(written).unwrap();

        let clock = Clock::manual(WRITTEN + LATER);
        let server = TestServer::start_at(folder.path(), CONF, clock).await;
        for kept in stored::all() {
            for (number, recipient) in left(&kept) {
                if !matches!(recipient.status, Status::Waiting { .. }) {
                    continue;
                }
                let tells = |event: &Event| match event {
                    Event::Delivered { recipient: to, .. } | Event::Captured { recipient: to } => {
                        *to == recipient.address
                    }
                    _ => false,
                };
                server.wait_for(kept.message.id, tells).await;
                println!("format {format}: {} {number} arrived", kept.what);
            }
        }
        let boxed = texts(&folder.path().join("box/new"));
        assert_eq!(boxed.len(), 2, "format {format}: {boxed:#?}");
        assert!(boxed.iter().any(|text| text.ends_with("\n\n1\n2\n3\n")), "{boxed:#?}");
        let queue = server.queue().await;
        let held = |listed: &view::Recipient| listed.status == view::Status::Held;
        let held: Vec<&str> = queue
            .iter()
            .filter(|listed| listed.recipients.iter().any(held))
            .map(|listed| listed.subject.as_str())
            .collect();
        assert_eq!(held, ["held", "for four"], "format {format}");

        // The counter of the alias is known: the one message an hour has been there.
        let refusal = submit(&server, "sales@home.test", "one too many").await.unwrap_err();
        assert!(refusal.reason.contains("too many messages"), "{refusal:?}");
        // The file whose claim was open goes back and is taken; the manual clock stands still, so
        // nothing settles: what is seen is the name.
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while claimed.exists() {
            assert!(std::time::Instant::now() < deadline, "format {format}: the claim was forgotten");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.stop().await;
    }
}

#[test]
fn a_store_of_a_later_format_is_refused_with_both_versions_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    {
        let store = Store::open(folder.path()).unwrap();
        let mut batch = Batch::new();
        batch.put(Table::Meta, *b"format", (FORMAT_VERSION + 7).to_be_bytes().to_vec());
        store.write(std::slice::from_ref(&batch), true).unwrap();
    }
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found } if found == FORMAT_VERSION + 7), "{error}");
    let text = error.to_string();
    let (found, known) = (format!("format {}", FORMAT_VERSION + 7), format!("knows {FORMAT_VERSION}"));
    assert!(text.contains(&found) && text.contains(&known) && text.contains("install"), "{text}");
}
