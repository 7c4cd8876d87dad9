//! Certificates by name, an authority that comes, stays and goes, and listeners that get a proxy in front.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::authority::{Authority, any_certificate};
use crate::fake_acme::FakeAcme;
use crate::house::{BASE, House, until};

/// The certificate that a client sees under STARTTLS who asks for `name`.
async fn shown(house: &House, name: &'static str) -> Vec<u8> {
    let mut stream = TcpStream::connect(house.address("submission")).await.unwrap();
    for (line, last) in [("", "220 "), ("EHLO client.test\r\n", "250 "), ("STARTTLS\r\n", "220 ")] {
        stream.write_all(line.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        let is_whole = |heard: &[u8]| {
            let text = String::from_utf8_lossy(heard);
            text.ends_with("\r\n") && text.lines().last().is_some_and(|line| line.starts_with(last))
        };
        while !is_whole(&heard) {
            assert!(stream.read_buf(&mut heard).await.unwrap() > 0, "{}", heard.escape_ascii());
        }
    }
    let connector = TlsConnector::from(Arc::new(any_certificate()));
    let stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_comes_stays_and_goes() {
    let fake = FakeAcme::start("http-01", postrider::clock::Clock::System).await;
    let house = House::start("").await;
    let self_signed = shown(&house, "mail.home.test").await;
    let acme = |contact: &str| {
        format!(
            "[tls.acme]\nenabled = true\ncontact = \"{contact}\"\ndirectory = \"{}\"\nbind = \"127.0.0.1:0\"\n",
            fake.directory()
        )
    };
    house.takes(&acme("ops@home.test")).await;
    let responder = house.address("tls.acme");
    fake.looks_at(Some(responder));
    until("the certificate is shown", async || {
        fake.seen().certificates.len() == 1 && shown(&house, "mail.home.test").await == fake.seen().certificates[0]
    })
    .await;

    // What is not about it leaves it alone; another contact is told with the next order, on the same socket.
    for text in [format!("{}[bounces]\nsuppress_after = 7\n", acme("ops@home.test")), acme("root@home.test")] {
        house.takes(&text).await;
        assert_eq!(house.address("tls.acme"), responder);
        assert_eq!(shown(&house, "mail.home.test").await, fake.seen().certificates[0]);
    }
    assert_eq!((fake.seen().orders, fake.seen().wrongs), (1, Vec::new()));

    house.takes("").await;
    assert_eq!(shown(&house, "mail.home.test").await, self_signed);
    until("nobody answers there", async || TcpStream::connect(responder).await.is_err()).await;
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_further_certificate_comes_changes_and_goes() {
    let house = House::start("").await;
    let default = shown(&house, "mx.other.test").await;
    let authority = Authority::new();
    let (crt, key) = (house.path("other.crt"), house.path("other.key"));
    let write = |names: &[&str]| {
        let identity = authority.issue(names);
        std::fs::write(&crt, identity.chain_pem()).unwrap();
        std::fs::write(&key, identity.key_pem()).unwrap();
        identity.chain[0].to_vec()
    };
    let text = format!("[[tls.extra]]\ncertificate = \"{}\"\nprivate_key = \"{}\"\n", crt.display(), key.display());
    let first = write(&["mx.other.test"]);
    house.takes(&text).await;
    assert_eq!(shown(&house, "mx.other.test").await, first);
    assert_eq!(shown(&house, "mail.home.test").await, default);

    // The same files, another pair in them; a watcher of files may have been quicker.
    let second = write(&["mx.other.test"]);
    house.reload().await;
    assert_eq!(shown(&house, "mx.other.test").await, second);
    std::fs::write(&key, "damaged").unwrap();
    let refused = house.refuses_text(&format!("{BASE}{text}")).await;
    assert!(refused[0].contains("tls.extra: ") && refused[0].contains("other.key"), "{refused:?}");
    assert_eq!(shown(&house, "mx.other.test").await, second);
    house.takes("").await;
    assert_eq!(shown(&house, "mx.other.test").await, default);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_gets_a_proxy_in_front_with_the_next_connection() {
    let house = House::start("").await;
    let mut before = house.client("mx").await;
    let text = BASE.replace("role = \"mx\"\n", "role = \"mx\"\nproxy_protocol = true\n");
    let behind = |proxy: &str| text.replace("[networks]\n", &format!("[networks]\nproxies = [\"{proxy}\"]\n"));
    house.takes_text(&behind("192.0.2.1")).await;
    before.command("NOOP", "250").await.unwrap();
    assert!(house.greeting("mx", "").await.starts_with("554 5.7.1 this port takes connections from its proxies only"));
    house.takes_text(&behind("127.0.0.1")).await;
    assert!(house.greeting("mx", "PROXY TCP4 192.0.2.7 127.0.0.1 1 25\r\n").await.starts_with("220 "));
    house.takes("").await;
    assert!(house.greeting("mx", "").await.starts_with("220 "));
    house.stop().await;
}

impl House {
    /// What is heard first by who says `first`.
    async fn greeting(&self, listener: &str, first: &str) -> String {
        let mut stream = TcpStream::connect(self.address(listener)).await.unwrap();
        stream.write_all(first.as_bytes()).await.unwrap();
        let mut heard = Vec::new();
        while !heard.ends_with(b"\r\n") && stream.read_buf(&mut heard).await.unwrap() > 0 {}
        String::from_utf8(heard).unwrap()
    }
}
