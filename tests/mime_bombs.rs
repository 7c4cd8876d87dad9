//! `tests/data/mime-bombs`: messages made to cost more than they weigh, through every door of a server in a process of its
//! own that reads MIME: from outside to a webhook (which takes them apart) and a Maildir, as a bounce (which is read as a
//! report), from an account whose attachments are counted, and as JSON over HTTP. Measured for each: the CPU time of the
//! process, and the memory that it needs on top.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod conversation;
    pub mod endpoint;
    pub mod flow;
    pub mod served;
    pub mod zone;
}

use std::path::Path;
use std::time::{Duration, Instant};

use support::client::Client;
use support::endpoint::{Endpoint, answer};
use support::flow;
use support::served::Served;
use support::zone::Zone;

const SET: &str = include_str!("data/mime-bombs/spec.yml");
/// Of one message, by the server that is built for use; one built for tests, not optimised, has three times as much.
const CPU_MAX: Duration = Duration::from_secs(if cfg!(debug_assertions) { 6 } else { 2 });
const MEMORY_MAX: u64 = 256 << 20;
/// Of its size; but a store that writes has buffers, which no small message pays for.
const MEMORY_FACTOR: u64 = 8;
const MEMORY_FREE: u64 = 48 << 20;

/// Octets of the largest message that is made; what is to be larger is cut. POSTRIDER_BOMBS=full makes them as large as the
/// default `limits.max_size`, which takes minutes in a build for tests.
fn size_max() -> usize {
    let is_full = std::env::var("POSTRIDER_BOMBS").is_ok_and(|how| how == "full");
    (if is_full { 34 } else { 6 }) << 20
}

const CONF: &str = r#"
hostname = "mail.home.test"
data_dir = "DATA_DIR"
[listeners.mx]
role = "mx"
bind = ["127.0.0.1:0"]
[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
[limits]
connection_rate = "100000/m"
[queue]
min_free = "1MiB"
[accounts.shop]
password = "correct horse"
max_attachments = "10MiB"
[domains."home.test"]
catchall = ["crm", "box"]
[targets.crm]
kind = "webhook"
url = "URL"
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[checks]
spf = "off"
rdns = "off"
[loops]
trusted = ["known.test", "home.test"]
[delivery]
default = "capture"
[dns]
nameservers = ["ZONE"]
"#;

fn head(more: &str) -> String {
    format!("From: ann@known.test\r\nTo: x@home.test\r\nSubject: bomb\r\nMIME-Version: 1.0\r\n{more}")
}

fn with(fields: &str, body: &str) -> Vec<u8> {
    format!("{}\r\n{body}", head(fields)).into_bytes()
}

fn mixed(boundary: &str) -> String {
    format!("Content-Type: multipart/mixed; boundary={boundary}\r\n")
}

fn times(count: usize, mut make: impl FnMut(usize) -> String) -> String {
    let mut all = String::new();
    for number in 0..count {
        if all.len() > size_max() {
            break;
        }
        all += &make(number);
    }
    all
}

fn filled(piece: &str, octets: usize) -> String {
    piece.repeat(octets.min(size_max()) / piece.len())
}

/// The messages of a case of this size.
fn make(id: &str, n: usize) -> Vec<Vec<u8>> {
    match id {
        "b01" => {
            let levels = times(n, |level| format!("{}\r\n--b{level}\r\n", mixed(&format!("b{level}"))));
            vec![(head("") + &levels).into_bytes()]
        }
        "b02" => {
            vec![[head("").as_bytes(), times(n, |_| "Content-Type: message/rfc822\r\n\r\n".into()).as_bytes()].concat()]
        }
        "b03" => vec![with(&mixed("b"), &times(n, |_| "--b\r\n\r\n\r\n".into()))],
        "b04" => boundaries(),
        "b05" => vec![with(&times(n, |number| format!("X-{number}: y\r\n")), "x\r\n")],
        "b06" => vec![with(&format!("X: {}\r\n", filled("y", n)), "x\r\n")],
        "b07" => vec![with(&format!("X: y\r\n{}", times(n, |_| " z\r\n".into())), "x\r\n")],
        "b08" => {
            vec![with(&format!("Cc: {}z@b.test\r\n", times(n, |number| format!("a{number}@b.test,\r\n "))), "x\r\n")]
        }
        "b09" => [("a:", ";"), ("(", ")"), ("\"\\\"", "\"")]
            .iter()
            .flat_map(|(open, close)| {
                let nested = format!("{}x@y.test{}", filled(open, n * open.len()), filled(close, n * close.len()));
                ["Reply-To", "Cc"].map(|name| with(&format!("{name}: {nested}\r\n"), "x\r\n"))
            })
            .collect(),
        "b10" => {
            let word = "=?utf-8?Q?w=C3=B6rd?= ";
            let charset = format!("=?{}?Q?x?=", "c".repeat(200_000));
            [
                times(n, |_| word.into()),
                word.repeat(10_000),
                "=?utf-8?B?".repeat(n / 10),
                charset,
                "=?utf-8?Q?=?utf-8?Q?x?=?=".repeat(n / 20),
            ]
            .iter()
            .map(|subject| with(&format!("X-Subject: {subject}\r\nComments: {subject}\r\n"), "x\r\n"))
            .collect()
        }
        "b11" => {
            let pieces = |order: &dyn Fn(usize) -> usize| times(n, |number| format!(";\r\n name*{}*=x", order(number)));
            [
                pieces(&|k| k),
                pieces(&|k| n - k),
                pieces(&|_| 7),
                pieces(&|k| k + 1),
                ";\r\n name*99999999999999999999*=x".into(),
            ]
            .iter()
            .map(|name| {
                with(&format!("{}\r\n--b\r\nContent-Type: text/plain{name}\r\n\r\nx\r\n--b--\r\n", mixed("b")), "")
            })
            .collect()
        }
        "b12" => [
            ("base64", filled(" ", 10 << 20)),
            ("base64", filled("YWJj\r\n", 30 << 20)),
            ("quoted-printable", filled("=", 10 << 20)),
            ("quoted-printable", filled("=3D=\r\n", 10 << 20)),
            ("x-uuencode", "begin 644 x\r\n".to_owned() + &filled("M86)C\r\n", 10 << 20)),
            ("binary", filled("\u{1}\u{2}", 10 << 20)),
            ("nobody knows", filled("x\r\n", 10 << 20)),
            ("base64\r\nContent-Transfer-Encoding: quoted-printable", filled("=3D", 10 << 20)),
        ]
        .iter()
        .map(|(encoding, body)| with(&format!("Content-Transfer-Encoding: {encoding}\r\n"), body))
        .collect(),
        "b13" => [
            format!("text/plain{}", times(20_000, |k| format!(";\r\n p{k}=v"))),
            "text/plain; charset=utf-8; charset=utf-7; charset=iso-2022-jp".to_owned(),
            "text/plain; charset=utf-7".to_owned(),
            "text/plain; charset=iso-2022-jp".to_owned(),
        ]
        .iter()
        .map(|kind| with(&format!("Content-Type: {kind}\r\n"), &filled("\u{1b}$B\u{1b}(B+AGE-", 10 << 20)))
        .collect(),
        "b14" => vec![with(&format!("References: {}\r\n", times(n, |k| format!("<{k}@x.test>\r\n "))), "x\r\n")],
        "b15" => vec![with(
            &times(n, |_| {
                format!("Received: from {} by b.test;\r\n\tSat, 21 Nov 2026 22:26:57 +0100\r\n", "a".repeat(940))
            }),
            "x\r\n",
        )],
        "b16" => {
            let dkim = times(n, |k| {
                format!("DKIM-Signature: v=1; a=rsa-sha256; d=d{k}.test; s=s; h=from; bh=YWJj; b=YWJj\r\n")
            });
            let arc = times(n, |k| {
                let i = k + 1;
                format!(
                    "ARC-Seal: i={i}; a=rsa-sha256; cv=pass; d=d.test; s=s; b=YWJj\r\nARC-Message-Signature: i={i}; \
                     a=rsa-sha256; d=d.test; s=s; h=from; bh=YWJj; b=YWJj\r\nARC-Authentication-Results: i={i}; x; spf=pass\r\n"
                )
            });
            vec![with(&dkim, "x\r\n"), with(&arc, "x\r\n")]
        }
        "b17" => reports(),
        "b18" => {
            let groups = times(n, |k| {
                format!("Final-Recipient: rfc822; r{k}@home.test\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n")
            });
            let fields = times(n, |k| format!("X-{k}: y\r\n"));
            [groups, fields]
                .iter()
                .map(|status| {
                    let kind = "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n";
                    let body = format!(
                        "--b\r\n\r\nfailed\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n{status}\r\n--b--\r\n"
                    );
                    with(kind, &body)
                })
                .collect()
        }
        "b19" => vec![with(&format!("X: {}\r\n", filled("y", n)), "x\r\n"), with("", &(filled("z", n) + "\r\n"))],
        "b20" => vec![with("", &filled("\r\n", n * 2)), with("", &filled("..\r\n", n * 4)), with("", &filled("\0", n))],
        other => panic!("what is {other}?"),
    }
}

fn boundaries() -> Vec<Vec<u8>> {
    let mut all = vec![
        with(&mixed("b"), &times(2000, |_| format!("--b\r\n{}\r\n", mixed("b")))),
        with(&mixed("b"), &times(5000, |k| format!("--b\r\n{}\r\n--bb{k}\r\n\r\nx\r\n", mixed(&format!("bb{k}"))))),
    ];
    for length in [0, 1, 70, 71, 200_000] {
        let boundary = "y".repeat(length);
        all.push(with(&mixed(&format!("\"{boundary}\"")), &format!("--{boundary}\r\n\r\nx\r\n--{boundary}--\r\n")));
    }
    for form in ["\"b \"", "\"b\\\"c\"", "(comment) b (another)", "b; boundary=c", "'b'"] {
        all.push(with(&mixed(form), "--b \r\n\r\nx\r\n--b\"c\r\n\r\ny\r\n--b--\r\n"));
    }
    all
}

/// `b17`: reports of others come as mail like any other, and nothing in them is unpacked or read as XML; so what a zip
/// holds makes no difference to us, which is what is measured.
fn reports() -> Vec<Vec<u8>> {
    use std::io::Write;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    for _ in 0..512 {
        packed.write_all(&vec![b'0'; 1 << 20]).unwrap();
    }
    let packed = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, packed.finish().unwrap());
    let lines = packed
        .as_bytes()
        .chunks(76)
        .map(|line| format!("{}\r\n", std::str::from_utf8(line).unwrap()))
        .collect::<String>();
    let entities =
        "<!DOCTYPE f [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]><feedback>&b;</feedback>";
    let deep = times(1_000_000, |_| "<a>".into());
    [
        ("application/gzip", lines.as_str()),
        ("application/tlsrpt+gzip", &lines),
        ("application/zip", &lines),
        ("text/xml", entities),
        ("text/xml", &deep),
    ]
    .iter()
    .map(|(kind, body)| {
        let encoding = if kind.starts_with("text") { "7bit" } else { "base64" };
        with(
            &format!("Content-Type: {kind}; name=\"a!b!1!2.xml.gz\"\r\nContent-Transfer-Encoding: {encoding}\r\n"),
            body,
        )
    })
    .collect()
}

/// The CPU time of a process so far.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // USER_HZ, which is a hundred on every Linux.
    Duration::from_millis(ticks * 10)
}

/// One of the values in /proc/PID/status, in bytes.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// The highest memory is from now on measured anew.
fn forget_peak(pid: u32) {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
}

const LOGIN: &str = "AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==";

/// The doors, and at each who sends to whom. A message to a return path is read as a report, whether it is one or not.
const DOORS: [(&str, &str, &str); 4] = [
    ("mx", "ann@known.test", "x@home.test"),
    ("mx", "", "bounce@home.test"),
    ("submission", "shop@home.test", "you@far.test"),
    ("http", "shop@home.test", "you@far.test"),
];

/// Through one of them; the code of the answer.
async fn through(server: &Served, data: &Path, (door, from, to): (&str, &str, &str), bomb: &[u8]) -> String {
    if door == "http" {
        return by_http(data, bomb).await;
    }
    let mut client = Client::connect(server.door(door)).await.unwrap();
    let is_own = door == "submission";
    if is_own {
        client.command(LOGIN, "235").await.unwrap();
    }
    let own = if is_own { replaced(bomb) } else { bomb.to_vec() };
    // One that is much too large is not heard to its end.
    let reply = client.send_bytes(from, to, &own).await.unwrap_or_else(|error| error.to_string());
    reply.chars().take(3).collect()
}

/// From the account.
fn replaced(bomb: &[u8]) -> Vec<u8> {
    let from = b"From: ann@known.test";
    match bomb.strip_prefix(from) {
        Some(rest) => [b"From: shop@home.test", rest].concat(),
        None => bomb.to_vec(),
    }
}

async fn by_http(data: &Path, bomb: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(data.join("admin.sock")).await.unwrap();
    let head = format!(
        "POST /api/v1/messages?from=shop@home.test&to=you@far.test HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: message/rfc822\r\nContent-Length: {}\r\n\r\n",
        bomb.len()
    );
    let _ = stream.write_all(&[head.as_bytes(), bomb].concat()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).chars().skip(9).take(3).collect()
}

/// The sizes of a case; one where the set names none.
fn sizes(map: &std::collections::BTreeMap<String, Vec<u8>>) -> Vec<usize> {
    let Some(list) = map.get("n") else { return vec![1] };
    flow::items(list).iter().map(|n| std::str::from_utf8(n).unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bomb_is_cheap_through_every_door() {
    let endpoint = Endpoint::answering(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let zone = Zone::new().a("known.test", "127.0.0.1").a("d.test", "127.0.0.1").serve().await;
    let conf = CONF.replace("URL", &endpoint.url).replace("ZONE", &zone.addr().to_string());
    let server = Served::start(folder.path(), &conf, 2).await;
    let (pid, data) = (server.id(), folder.path().join("data"));
    let cases = flow::maps(SET);
    assert_eq!(cases.len(), 20);
    let (mut bombs, mut faults) = (0, Vec::new());
    for case in &cases {
        let id = flow::text(case, "id");
        for n in sizes(case) {
            for (number, bomb) in make(&id, n).into_iter().enumerate() {
                for door in DOORS {
                    let size = bomb.len() as u64;
                    endpoint.will(&answer("200 OK", "", ""));
                    forget_peak(pid);
                    let (cpu_before, before) = (cpu(pid), memory(pid, "VmRSS"));
                    let reply = through(&server, &data, door, &bomb).await;
                    settled(pid).await;
                    let (used, more) = (cpu(pid) - cpu_before, memory(pid, "VmHWM").saturating_sub(before));
                    let most = (size * MEMORY_FACTOR).clamp(MEMORY_FREE, MEMORY_MAX);
                    let told = format!(
                        "{id}.{number} of {n} by {}: {size} bytes, {used:?} CPU, {} MiB: {reply}",
                        door.0,
                        more >> 20
                    );
                    println!("{told}");
                    if used > CPU_MAX || more > most {
                        faults.push(told);
                    }
                }
                endpoint.take();
                bombs += 1;
            }
        }
    }
    let mut client = Client::connect(server.door("mx")).await.unwrap();
    let reply = client.send_bytes("ann@known.test", "x@home.test", &with("", "still here\r\n")).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    assert!(!server.text().contains("panicked"), "{}", server.text());
    println!("{bombs} bombs");
    server.stop_at_once().await;
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Until the process does no more than it does at rest.
async fn settled(pid: u32) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let before = cpu(pid);
        tokio::time::sleep(Duration::from_millis(30)).await;
        if cpu(pid) - before <= Duration::from_millis(10) {
            return;
        }
        assert!(Instant::now() < deadline, "it never comes to rest");
    }
}
