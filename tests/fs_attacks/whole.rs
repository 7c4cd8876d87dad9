//! The cases of the pickup folder that need a whole server around it.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::served::Served;
use crate::support::server::TestServer;
use crate::support::yard::mail;

const PATIENCE: Duration = Duration::from_secs(120);
/// Memory that a folder may cost, however much is in it.
const MEMORY_MAX: u64 = 256 << 20;

const MANY: &str = r#"
hostname = "mail.example.com"
data_dir = "DATA_DIR"
[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
[networks]
trusted = ["127.0.0.0/8"]
[queue]
min_free = "1MiB"
[accounts.shop]
password = "correct horse"
hold = true
[domains."example.com"]
[pickup.main]
path = "DATA_DIR/../in"
account = "shop"
settle = "0s"
"#;

fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// `p07`: a hundred thousand files, and one of 10 GB: an SMTP client is served long before their end.
pub async fn many_and_large() {
    const FILES: usize = 100_000;
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("in");
    fs::create_dir(&inside).unwrap();
    // It has holes, so nobody has to write it.
    File::create(inside.join("large.eml")).unwrap().set_len(10 << 30).unwrap();
    for number in 0..FILES {
        fs::write(inside.join(format!("{number}.eml")), mail("file")).unwrap();
    }
    let left = || fs::read_dir(&inside).unwrap().count();
    let server = Served::start(folder.path(), MANY, 1).await;
    let since = Instant::now();
    while left() > FILES {
        assert!(since.elapsed() < PATIENCE, "nothing is taken: {}", server.text());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut client = Client::connect(server.door("submission")).await.unwrap();
    let letter = "From: a@example.com\r\nSubject: by smtp\r\n\r\nhello\r\n";
    let reply = client.send("a@example.com", &["b@example.org"], letter).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let then = left();
    assert!(then > FILES / 2, "the client came after {} files", FILES - then);
    while left() + 2_000 > then || !inside.join("large.bad").exists() {
        assert!(since.elapsed() < PATIENCE, "{} are left: {}", left(), server.text());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let most = memory(server.id());
    println!("p07: {} of {FILES} files taken, {} MiB", FILES - left(), most >> 20);
    assert!(most < MEMORY_MAX, "{most}");
    server.stop_at_once().await;
}

const BLOCKS: &str = r#"
[networks]
trusted = ["127.0.0.0/8"]
[accounts.shop]
password = "correct horse"
senders = ["shop@home.test"]
max_recipients = 50
hold = true
[domains."home.test"]
[aliases]
"shop@home.test" = "discard"
[pickup.main]
path = "DATA_DIR/in"
account = "shop"
settle = "0s"
"#;

/// `p11`: who may send, and to how many, is what it is over SMTP, whatever stands in the block.
pub async fn blocks() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("in");
    fs::create_dir(&inside).unwrap();
    let server = TestServer::start(folder.path(), BLOCKS).await;
    let text = |block: &str| format!("{block}From: shop@home.test\r\nSubject: x\r\n\r\nx\r\n");
    let receivers = |count: usize| (0..count).map(|n| format!("X-Receiver: r{n}@far.test\r\n")).collect::<String>();
    let mut is_told = false;
    for (what, file, recipients) in [
        ("good", text("X-Sender: shop@home.test\r\nX-Receiver: a@far.test\r\n"), Some(1)),
        ("as many as allowed", text(&format!("X-Sender: shop@home.test\r\n{}", receivers(50))), Some(50)),
        ("one more", text(&format!("X-Sender: shop@home.test\r\n{}", receivers(51))), None),
        ("a million", text(&format!("X-Sender: shop@home.test\r\n{}", receivers(1_000_000))), None),
        ("somebody else", text("X-Sender: boss@home.test\r\nX-Receiver: a@far.test\r\n"), None),
        ("a stranger", text("X-Sender: ann@known.test\r\nX-Receiver: a@far.test\r\n"), None),
        (
            // In a file a CR by itself ends a line, too, so this is a block without a receiver, and a Bcc like any other.
            "a line end in the sender",
            text("X-Sender: shop@home.test\rBcc: b@far.test\r\nX-Receiver: a@far.test\r\n"),
            Some(1),
        ),
        (
            "a line end in a receiver",
            text("X-Sender: shop@home.test\r\nX-Receiver: a@far.test\nRCPT TO:<b@far.test>\r\n"),
            None,
        ),
        (
            "a parameter",
            text("X-Sender: shop@home.test\r\nX-Receiver: <a@far.test>\\r\\nRCPT TO:<b@far.test>\r\n"),
            Some(1),
        ),
    ] {
        let name = what.replace(' ', "-");
        let before = server.queue().await.len();
        fs::write(inside.join("hidden"), file).unwrap();
        fs::rename(inside.join("hidden"), inside.join(format!("{name}.eml"))).unwrap();
        wait_for_end(&inside, &name).await;
        let queued = server.queue().await;
        // A notice of ours to a sender of ours ends in `discard`.
        let new: Vec<_> = queued.iter().filter(|listed| !listed.from.is_null()).collect();
        match recipients {
            Some(count) => {
                assert_eq!(new.len(), before + 1, "{what}: {new:?}");
                assert!(new.iter().any(|listed| listed.recipients.len() == count), "{what}: {new:?}");
            }
            None => assert_eq!(new.len(), before, "{what}: {new:?}"),
        }
        assert!(new.iter().all(|listed| listed.from.to_string() == "shop@home.test"), "{what}: {new:?}");
        let to_b = |listed: &&&postrider::admin::Listed| format!("{:?}", listed.recipients).contains("b@far.test");
        is_told |= what == "a line end in the sender";
        assert_eq!(new.iter().filter(to_b).count(), usize::from(is_told), "{what}");
    }
    server.stop().await;
}

/// It is taken, or put aside.
async fn wait_for_end(folder: &Path, name: &str) {
    let since = Instant::now();
    while [".eml", ".tmp"].iter().any(|ending| folder.join(format!("{name}{ending}")).exists()) {
        assert!(since.elapsed() < PATIENCE, "{name}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
