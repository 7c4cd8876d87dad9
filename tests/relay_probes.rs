//! `tests/data/open-relay`: every recipient form that has ever fooled a server, with every sender and every
//! kind of client that has no rights, against a whole server. Nothing may be queued for elsewhere, and
//! the foreign server gets nothing, no notice either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod conversation;
    pub mod flow;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use postrider::queue::record::Route;
use support::flow;
use support::server::TestServer;
use support::sink::Sink;
use support::zone::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;

const SET: &str = include_str!("data/open-relay/probes.yml");
/// Probes at once: a wrong password is answered late.
const AT_ONCE: usize = 300;

const CONF: &str = r#"
[listeners.mapped]
role = "submission"
bind = ["[::ffff:127.0.0.1]:0"]
[networks]
trusted = ["127.0.0.200/32"]
[accounts.shop]
password = "correct horse"
senders = ["shop@home.test"]
[domains."home.test"]
catchall = ["box"]
[domains."strict.test"]
[aliases]
"local@home.test" = ["box"]
"local@strict.test" = ["box"]
"gone@strict.test" = ["gone"]
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[targets.gone]
kind = "pipe"
command = ["/bin/sh", "-c", "cat >/dev/null; exit 67"]
[loops]
limit = 100000
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;
/// The account with its password, and with another.
const LOGIN: &str = "AUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==\r\n";
const WRONG: &str = "AUTH PLAIN AHNob3AAd3Jvbmc=\r\n";

/// What this kind of client says before MAIL, and what an answer to it must be. `c5` has a name in DNS that
/// is not its own, `c8` an address in other clothes.
fn introduction(client: &str) -> (String, &'static [&'static str]) {
    let (text, answers): (&str, &[&str]) = match client {
        "c1" | "c5" | "c8" => ("EHLO outside.test\r\n", &["250 "]),
        "c2" => (&format!("EHLO outside.test\r\n{WRONG}"), &["535 5.7.8", "502 5.5.1"]),
        "c3" => ("EHLO mail.home.test\r\n", &["250 "]),
        "c4" => ("EHLO [127.0.0.1]\r\n", &["250 "]),
        "c6" => ("PROXY TCP4 127.0.0.1 127.0.0.1 1 25\r\nEHLO outside.test\r\n", &["500 5.5.1"]),
        "c7" => ("EHLO outside.test\r\nXCLIENT ADDR=127.0.0.1 LOGIN=admin\r\n", &["500 5.5.1"]),
        "c9" => (
            &format!("EHLO outside.test\r\n{LOGIN}MAIL FROM:<someone-else@home.test>\r\n"),
            &["553 5.7.1", "502 5.5.1"],
        ),
        "c10" => (
            &format!("EHLO outside.test\r\n{LOGIN}RSET\r\nEHLO outside.test\r\n"),
            &["530 5.7.0", "501 5.1.7", "502 5.5.1"],
        ),
        other => panic!("who is {other}?"),
    };
    (text.to_owned(), answers)
}

/// The forms of a recipient; where the set leaves something open, all of what it may mean.
fn recipients() -> Vec<(String, Vec<Vec<u8>>)> {
    let maps = flow::maps(&flow::below(SET, "recipients"));
    let filled_in = |map: &std::collections::BTreeMap<String, Vec<u8>>| {
        let form = flow::text(map, "to");
        let forms: Vec<String> = if form.contains("{PUNY}") {
            // Apple in Cyrillic; a slash and a full stop within a label; no punycode at all.
            ["80ak6aa92e", "far-test-v84h", "home.test", "-"].map(|puny| form.replace("{PUNY}", puny)).to_vec()
        } else if form.contains("{OURDOM_WITH_KELVIN_OR_FULLWIDTH}") {
            ["\u{ff48}ome.test", "home\u{3002}test", "home\u{ff0e}test", "\u{210a}ome.test", "home.tes\u{1d57}"]
                .map(|name| form.replace("{OURDOM_WITH_KELVIN_OR_FULLWIDTH}", name))
                .to_vec()
        } else {
            vec![form]
        };
        (flow::text(map, "id"), forms.into_iter().map(String::into_bytes).collect())
    };
    maps.iter().map(filled_in).collect()
}

/// `{THIRDIP}` is where the foreign server listens.
fn filled(form: &[u8], own: &str) -> Vec<u8> {
    let mut text = String::from_utf8(form.to_vec()).unwrap();
    for (name, value) in [
        ("{OURDOM}", own),
        ("{OURHOST}", "mail.home.test"),
        ("{OURIP}", "127.0.0.1"),
        ("{THIRDIP}", "127.0.0.1"),
        ("{LOCALUSER}", "local"),
        ("{VICTIM}", "victim"),
        ("{THIRD}", "far.test"),
        ("\\0", "\0"),
    ] {
        text = text.replace(name, value);
    }
    text.into_bytes()
}

/// Says it all at once, as a client may that does not care for the answers; gives them all.
async fn say(address: SocketAddr, script: &[u8]) -> String {
    say_from("127.0.0.1", address, script).await
}

async fn say_from(own: &str, address: SocketAddr, script: &[u8]) -> String {
    let mut stream = match address {
        SocketAddr::V6(_) => TcpStream::connect(address).await.unwrap(),
        SocketAddr::V4(_) => {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(own.parse().unwrap(), 0)).unwrap();
            socket.connect(address).await.unwrap()
        }
    };
    stream.write_all(script).await.unwrap();
    let mut heard = Vec::new();
    // The server may have closed with something of the script unread.
    let _ = stream.read_to_end(&mut heard).await;
    String::from_utf8_lossy(&heard).into_owned()
}

/// One probe, pipelined to the end: where a command is refused the rest is not read as content.
fn probe(client: &str, sender: &[u8], recipient: &[u8]) -> Vec<u8> {
    // Each says something else, in letters: the same message again would be stopped as a loop.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed).to_string();
    let words: String = number.bytes().map(|digit| char::from(digit - b'0' + b'a')).collect();
    let content = format!("\r\nDATA\r\nFrom: spam@far.test\r\nSubject: {words}\r\n\r\n{words}\r\n.\r\nQUIT\r\n");
    [client.as_bytes(), b"MAIL FROM:", sender, b" SMTPUTF8\r\nRCPT TO:", recipient, content.as_bytes()].concat()
}

/// Where and as whom a probe is sent.
#[derive(Clone)]
struct Caller {
    client: String,
    doors: [SocketAddr; 2],
    own: &'static str,
    sender: String,
}

/// One probe, at the door for everybody and at the one for our own: how often a box of ours took it.
async fn probe_as(caller: Caller, id: String, forms: Vec<Vec<u8>>) -> usize {
    let Caller { client, doors, own, sender } = caller;
    let (introduced, answers) = introduction(&client);
    let address = if client == "c5" { "127.0.0.9" } else { "127.0.0.1" };
    let mut taken = 0;
    for form in &forms {
        let script = probe(&introduced, &filled(sender.as_bytes(), own), &filled(form, own));
        let heard = say_from(address, doors[0], &script).await;
        assert!(answers.iter().any(|answer| heard.contains(answer)), "{client} {id}: {heard}");
        taken += usize::from(heard.contains(" queued as "));
        // RFC 5321 4.5.1: mail for postmaster is taken, as mail for us.
        let is_postmaster = ["r55", "r56"].contains(&id.as_str()) && client == "c1" && sender == "<>";
        assert!(!is_postmaster || heard.contains("250 2.1.5 "), "{id}: {heard}");
        let heard = say_from(address, doors[1], &script).await;
        assert!(answers.iter().any(|answer| heard.contains(answer)), "{client} {id}: {heard}");
        assert!(!heard.contains(" queued as "), "{client} {id} {sender}: {heard}");
    }
    taken
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_of_recipient_makes_an_open_relay() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start().await;
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1");
    let zone = zone.ptr("127.0.0.9", "localhost").ptr("127.0.0.1", "mail.home.test").serve().await;
    let conf = CONF.replace("PORT", &sink.address.port().to_string()).replace("ZONE", &zone.addr().to_string());
    // So many wrong passwords would end the probes before they begin.
    let patience = ("connections_per_ip = 1000", "connections_per_ip = 1000\nauth_failures = \"100000/15m\"");
    let server = TestServer::start_with(folder.path(), &conf, patience.0, patience.1).await;
    let mapped = server.app.listeners().iter().find(|listener| listener.name == "mapped").unwrap().address;
    let senders = flow::below(SET, "senders");
    let senders: Vec<String> =
        senders.lines().map(|line| line.trim().trim_start_matches("- ").trim_matches('"').to_owned()).collect();
    let clients: Vec<String> =
        flow::maps(&flow::below(SET, "clients")).iter().map(|map| flow::text(map, "id")).collect();
    assert_eq!((senders.len(), recipients().len(), clients.len()), (10, 60, 10));

    let mut probing = tokio::task::JoinSet::new();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for own in ["home.test", "strict.test"] {
        for (client, sender) in clients.iter().flat_map(|client| senders.iter().map(move |sender| (client, sender))) {
            let doors = [server.mx, if client == "c8" { mapped } else { server.submission }];
            let caller = Caller { client: client.clone(), doors, own, sender: sender.clone() };
            for (id, forms) in recipients() {
                let (caller, places) = (caller.clone(), places.clone());
                probing.spawn(async move {
                    let _place = places.acquire().await.unwrap();
                    probe_as(caller, id, forms).await
                });
            }
        }
    }
    let boxed = probing.join_all().await;
    let (sent, taken) = (boxed.len(), boxed.iter().sum::<usize>());
    assert!(taken > 0, "boxes of ours take mail");
    // With a catchall, and again where only what is written down exists.
    assert_eq!(sent, 2 * 6000);
    println!("{sent} probes, each at two doors; boxes of ours took {taken}");

    // What a program of ours refuses later is not told to whoever is said to have sent it either.
    for sender in &senders {
        let script = probe("EHLO outside.test\r\n", &filled(sender.as_bytes(), "strict.test"), b"<gone@strict.test>");
        let heard = say(server.mx, &script).await;
        let answers = heard.contains(" queued as ") || heard.contains("\n550 ") || heard.contains("\n501 ");
        assert!(answers, "{sender}: {heard}");
    }
    while !server.queue().await.is_empty() {
        for listed in server.queue().await {
            assert!(listed.recipients.iter().all(|recipient| recipient.route != Route::Remote), "{listed:?}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    server.stop().await;
    assert_eq!(sink.count(), 0);
}

/// An IPv4 client that comes in through a socket of IPv6 is known as what it is: not trusted where its address
/// is not, and trusted where it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_address_is_matched_as_ipv4() {
    let folder = tempfile::tempdir().unwrap();
    let conf = CONF.replace("PORT", "1").replace("nameservers = [\"ZONE\"]", "");
    let server = TestServer::start(folder.path(), &conf).await;
    let mapped = server.app.listeners().iter().find(|listener| listener.name == "mapped").unwrap().address;
    let script = b"EHLO outside.test\r\nMAIL FROM:<a@home.test>\r\nRCPT TO:<v@far.test>\r\nQUIT\r\n";
    let through_ipv6 = |own: &'static str| async move {
        let socket = TcpSocket::new_v6().unwrap();
        socket.bind(format!("[::ffff:{own}]:0").parse().unwrap()).unwrap();
        let mut stream = socket.connect(mapped).await.unwrap();
        stream.write_all(script).await.unwrap();
        let mut heard = String::new();
        stream.read_to_string(&mut heard).await.unwrap();
        heard
    };
    let heard = through_ipv6("127.0.0.1").await;
    assert!(heard.contains("530 5.7.0") && !heard.contains("250 2.1.5"), "{heard}");
    let heard = through_ipv6("127.0.0.200").await;
    assert!(heard.contains("250 2.1.5"), "{heard}");
    server.stop().await;
}

/// Return paths that we have not made lead nowhere: not out, and not to the catchall.
#[tokio::test(flavor = "multi_thread")]
async fn return_paths_of_others_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let conf = CONF.replace("PORT", "1").replace("nameservers = [\"ZONE\"]", "");
    let server = TestServer::start(folder.path(), &conf).await;
    for (recipient, reply) in [
        ("prvs=0000abcdef=victim@far.test", "550 5.7.1"),
        ("SRS0=abcd=XX=far.test=victim@home.test", "550 5.1.1"),
        ("srs0+abcdefgh=aa=far.test=victim@strict.test", "550 5.1.1"),
        ("SRS1=abcd=far.test==abcd=XX=far.test=victim@home.test", "550 5.1.1"),
        ("local-victim=far.test@strict.test", "550 5.1.1"),
    ] {
        for sender in ["", "bounce@far.test"] {
            let script = format!("EHLO outside.test\r\nMAIL FROM:<{sender}>\r\nRCPT TO:<{recipient}>\r\nQUIT\r\n");
            let heard = say(server.mx, script.as_bytes()).await;
            assert!(heard.contains(reply), "{recipient}: {heard}");
        }
    }
    server.stop().await;
}

/// An account has the rights of its own senders, also after RSET and until the next EHLO.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_gives_no_rights_beyond_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let conf = CONF.replace("PORT", "1").replace("nameservers = [\"ZONE\"]", "");
    let server = TestServer::start(folder.path(), &conf).await;
    let login = "EHLO outside.test\r\nAUTH PLAIN AHNob3AAY29ycmVjdCBob3JzZQ==\r\n";
    let heard = say(server.submission, format!("{login}MAIL FROM:<boss@home.test>\r\nQUIT\r\n").as_bytes()).await;
    assert!(heard.contains("235 2.7.0") && heard.contains("553 5.7.1"), "{heard}");
    let again = format!("{login}RSET\r\nEHLO outside.test\r\nMAIL FROM:<shop@home.test>\r\nQUIT\r\n");
    let heard = say(server.submission, again.as_bytes()).await;
    assert!(heard.contains("530 5.7.0"), "{heard}");
    server.stop().await;
}
