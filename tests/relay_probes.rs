//! No open relay: every recipient form that has ever fooled a server, with every sender and every
//! kind of client that has no rights, against a whole server. Nothing may be queued for elsewhere, and
//! the foreign server gets nothing, no notice either.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod conversation;
    pub mod flow;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::net::SocketAddr;

use postrider::queue::record::Route;
use support::flow;
use support::server::TestServer;
use support::sink::Sink;
use support::zone::Zone;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CONF: &str = r#"
[accounts.shop]
password = "correct horse"
senders = ["shop@home.test"]
[domains."home.test"]
catchall = ["box"]
[domains."strict.test"]
[aliases]
"local@home.test" = ["box"]
"local@strict.test" = ["box"]
[targets.box]
kind = "maildir"
path = "DATA_DIR/box"
[loops]
limit = 100000
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;

/// Clients without rights: what each says before MAIL.
const CLIENTS: [(&str, &str); 7] = [
    ("plain", "EHLO outside.test\r\n"),
    ("HELO", "HELO outside.test\r\n"),
    ("failed AUTH", "EHLO outside.test\r\nAUTH PLAIN AHNob3AAd3Jvbmc=\r\n"),
    ("our name", "EHLO mail.home.test\r\n"),
    ("our address", "EHLO [127.0.0.1]\r\n"),
    ("PROXY", "PROXY TCP4 127.0.0.1 127.0.0.1 1 25\r\nEHLO outside.test\r\n"),
    ("XCLIENT", "EHLO outside.test\r\nXCLIENT ADDR=127.0.0.1 LOGIN=shop\r\n"),
];

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
    ] {
        text = text.replace(name, value);
    }
    text.into_bytes()
}

/// Says it all at once, as a client may that does not care for the answers; gives them all.
async fn say(address: SocketAddr, script: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(script).await.unwrap();
    let mut heard = Vec::new();
    // The server may have closed with something of the script unread.
    let _ = stream.read_to_end(&mut heard).await;
    String::from_utf8_lossy(&heard).into_owned()
}

/// One probe, pipelined to the end: where a command is refused the rest is not read as content.
fn probe(client: &str, sender: &[u8], recipient: &[u8]) -> Vec<u8> {
    let content = b"\r\nDATA\r\nFrom: spam@far.test\r\nSubject: probe\r\n\r\nx\r\n.\r\nQUIT\r\n";
    [client.as_bytes(), b"MAIL FROM:", sender, b" SMTPUTF8\r\nRCPT TO:", recipient, content].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_form_of_recipient_makes_an_open_relay() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Sink::start().await;
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let conf = CONF.replace("PORT", &sink.address.port().to_string()).replace("ZONE", &zone.addr().to_string());
    let server = TestServer::start(folder.path(), &conf).await;
    let maps = flow::maps(include_str!("data/open-relay.yml"));
    let senders: Vec<&Vec<u8>> = maps.iter().filter_map(|map| map.get("sender")).collect();
    let forms: Vec<&Vec<u8>> = maps.iter().filter_map(|map| map.get("to")).collect();
    assert_eq!((senders.len(), forms.len()), (10, 62));

    let mut probing = tokio::task::JoinSet::new();
    for (name, client) in CLIENTS {
        let own: &[&str] = if name == "plain" { &["home.test", "strict.test"] } else { &["home.test"] };
        let mut scripts = Vec::new();
        for own in own {
            for sender in &senders {
                scripts.extend(forms.iter().map(|form| probe(client, &filled(sender, own), &filled(form, own))));
            }
        }
        let (mx, submission) = (server.mx, server.submission);
        probing.spawn(async move {
            let mut queued = 0;
            for script in scripts {
                queued += usize::from(say(mx, &script).await.contains(" queued as "));
                let heard = say(submission, &script).await;
                assert!(!heard.contains(" queued as "), "{name}: {}\n{heard}", String::from_utf8_lossy(&script));
            }
            queued
        });
    }
    while let Some(queued) = probing.join_next().await {
        assert!(queued.unwrap() > 0, "boxes of ours take mail");
    }
    let relayed = |route: &Route, domain: &str| *route == Route::Remote && !domain.ends_with("home.test");
    for listed in server.queue().await {
        let all = &listed.recipients;
        assert!(!all.iter().any(|r| relayed(&r.route, r.address.domain().as_str())), "{listed:?}");
    }
    // Attempts under way end before this returns.
    server.stop().await;
    assert_eq!(sink.count(), 0);
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
