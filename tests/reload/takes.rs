//! Kinds of changes, each of which takes effect without a restart.

use std::sync::Arc;

use postrider::admin::Backend;
use postrider::admin::reload::ReloadResult;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use crate::client::Client;
use crate::hook::Hook;
use crate::house::{BASE, House, comes_in, letter, maildir, until};

#[tokio::test(flavor = "multi_thread")]
async fn listeners_are_opened_closed_and_changed() {
    let house = House::start("[listeners.extra]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n").await;
    let (mx, extra) = (house.address("mx"), house.address("extra"));
    let mut open = Client::connect(extra).await.unwrap();

    house.takes("[listeners.new]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\n").await;
    assert_eq!(house.address("mx"), mx, "the socket is the same");
    open.command("NOOP", "250").await.unwrap();
    until("nobody listens there", async || TcpStream::connect(extra).await.is_err()).await;
    house.client("new").await.command("QUIT", "221").await.unwrap();

    // The same address: another role and name for those who connect from now on.
    let mut before = Client::connect(mx).await.unwrap();
    let text = BASE.replace(
        "[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]",
        &format!("[listeners.apps]\nrole = \"submission\"\nbind = [\"127.0.0.1:{}\"]\ntls = \"required\"", mx.port()),
    );
    let refused = house.refuses_text(&text).await;
    assert!(refused[0].contains("listeners.apps.bind"), "port 0 was another wish: {refused:?}");
    let fixed = |listener: &str| BASE.replace("[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]", listener);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    house.takes_text(&fixed(&format!("[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:{port}\"]"))).await;
    before.command("MAIL FROM:<a@far.test>", "250").await.unwrap();
    let mut as_mx = house.client("mx").await;
    house
        .takes_text(&fixed(&format!(
            "[listeners.apps]\nrole = \"submission\"\nbind = [\"127.0.0.1:{port}\"]\ntls = \"required\""
        )))
        .await;
    assert_eq!(house.address("apps").port(), port);
    as_mx.command("MAIL FROM:<a@far.test>", "250").await.unwrap();
    house.client("apps").await.command("MAIL FROM:<a@home.test>", "530").await.unwrap();
    house.stop().await;
}

/// What is shown to who connects with STARTTLS.
async fn shown(house: &House) -> Vec<u8> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = TcpStream::connect(house.address("mx")).await.unwrap();
    let heard = async |stream: &mut TcpStream, end: &str| {
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(end) {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            text.push(byte[0]);
        }
    };
    heard(&mut stream, "\r\n").await;
    stream.write_all(b"EHLO x.test\r\n").await.unwrap();
    heard(&mut stream, "250 ").await;
    heard(&mut stream, "\r\n").await;
    stream.write_all(b"STARTTLS\r\n").await.unwrap();
    heard(&mut stream, "220").await;
    heard(&mut stream, "\r\n").await;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut config = config;
    config.dangerous().set_certificate_verifier(Arc::new(Anybody));
    let name = ServerName::try_from("mail.home.test").unwrap();
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

/// Looks at certificates instead of judging them.
#[derive(Debug)]
struct Anybody;

impl tokio_rustls::rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
        _: &[tokio_rustls::rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: tokio_rustls::rustls::pki_types::UnixTime,
    ) -> Result<tokio_rustls::rustls::client::danger::ServerCertVerified, tokio_rustls::rustls::Error> {
        Ok(tokio_rustls::rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
        _: &tokio_rustls::rustls::DigitallySignedStruct,
    ) -> Result<tokio_rustls::rustls::client::danger::HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        Ok(tokio_rustls::rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &tokio_rustls::rustls::pki_types::CertificateDer<'_>,
        _: &tokio_rustls::rustls::DigitallySignedStruct,
    ) -> Result<tokio_rustls::rustls::client::danger::HandshakeSignatureValid, tokio_rustls::rustls::Error> {
        Ok(tokio_rustls::rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<tokio_rustls::rustls::SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A new pair in the files; its certificate.
fn issue(house: &House) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed(vec!["mail.home.test".to_owned()]).unwrap();
    std::fs::write(house.path("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(house.path("cert.key"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_exchanged_and_a_broken_one_keeps_the_old() {
    let tls = "[tls]\ncertificate = \"DATA_DIR/cert.pem\"\nprivate_key = \"DATA_DIR/cert.key\"\n";
    let house = House::start("").await;
    let self_signed = shown(&house).await;
    let first = issue(&house);
    house.takes(tls).await;
    assert_eq!(shown(&house).await, first);
    assert_ne!(self_signed, first);
    // The file is the same, what is in it is not.
    let second = issue(&house);
    let answer = house.reload().await;
    assert_eq!(answer.changes.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["tls.certificate"]);
    assert_eq!(shown(&house).await, second);
    std::fs::write(house.path("cert.pem"), "-----BEGIN CERTIFICATE-----\nhalf").unwrap();
    let answer = house.reload().await;
    assert_eq!(answer.result, ReloadResult::Refused);
    assert!(answer.problems[0].what.contains("cert.pem"), "{answer:?}");
    assert_eq!(shown(&house).await, second);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_files_are_noticed_without_a_word() {
    let tls = "[tls]\ncertificate = \"DATA_DIR/cert.pem\"\nprivate_key = \"DATA_DIR/cert.key\"\n";
    let house = House::start("").await;
    let first = issue(&house);
    house.app.follow_files();
    house.write(&format!("include = [\"more/*.toml\"]\n{BASE}{tls}"));
    // A configuration that cannot be: the folder is missing. When it is there, nothing else has to change.
    until("it is refused", async || house.app.operator().readiness().await.unwrap().configuration.refused.is_some())
        .await;
    std::fs::create_dir(house.path("more")).unwrap();
    house.write(&format!("include = [\"more/*.toml\"]\n{BASE}{tls}\n"));
    until("the new certificate is shown", async || shown(&house).await == first).await;
    let second = issue(&house);
    until("the renewed certificate is shown", async || shown(&house).await == second).await;
    std::fs::write(house.path("more/aliases.toml"), "[aliases]\n\"a@home.test\" = \"box\"\n").unwrap();
    until("the included alias is known", async || !house.app.reloader().config().aliases.exact.is_empty()).await;
    let id = comes_in(&house, "a@home.test").await;
    house.wait_done(id).await;
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_aliases_lead_elsewhere() {
    let to = |path: &str| {
        format!("[aliases]\n\"a@home.test\" = \"t\"\n[targets.t]\nkind = \"maildir\"\npath = \"DATA_DIR/{path}\"\n")
    };
    let house = House::start(&to("one")).await;
    for path in ["one", "two"] {
        if path == "two" {
            house.takes(&to(path)).await;
        }
        let id = comes_in(&house, "a@home.test").await;
        house.wait_done(id).await;
        assert_eq!(maildir(&house.path(path)).len(), 1, "{path}");
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pickup_folders_come_change_and_go() {
    let folder = |name: &str, more: &str| {
        format!(
            "[aliases]\n\"a@home.test\" = \"box\"\n[accounts.app]\npassword = \"x\"\n[pickup.{name}]\n\
             path = \"DATA_DIR/{name}\"\naccount = \"app\"\nsettle = \"0s\"\n{more}"
        )
    };
    let house = House::start("").await;
    for (count, (name, more)) in [("one", ""), ("one", "max_per_minute = 500\n"), ("two", "")].into_iter().enumerate() {
        std::fs::create_dir_all(house.path(name)).unwrap();
        house.takes(&folder(name, more)).await;
        std::fs::write(house.path(name).join("m.eml"), letter("app@home.test", "a@home.test")).unwrap();
        until("it is delivered", async || maildir(&house.path("box")).len() == count + 1).await;
    }
    std::fs::write(house.path("one/late.eml"), letter("app@home.test", "a@home.test")).unwrap();
    let reports = house.app.operator().pick_up(None).await.unwrap();
    assert!(reports.iter().all(|report| report.folder != "one"), "{reports:?}");
    assert!(house.path("one/late.eml").exists());
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_for_events_come_and_change() {
    let (first, second) = (Hook::start().await, Hook::start().await);
    let hook =
        |hook: &Hook| format!("[aliases]\n\"a@home.test\" = \"box\"\n[events.webhooks.crm]\nurl = \"{}\"\n", hook.url);
    let house = House::start("[aliases]\n\"a@home.test\" = \"box\"\n").await;
    for endpoint in [&first, &second] {
        house.takes(&hook(endpoint)).await;
        comes_in(&house, "a@home.test").await;
        until("it is told", async || !endpoint.received().is_empty()).await;
    }
    house.takes("[aliases]\n\"a@home.test\" = \"box\"\n").await;
    let id = comes_in(&house, "a@home.test").await;
    house.wait_done(id).await;
    assert!(!house.app.operator().metrics().await.contains("postrider_event_webhook_waiting"));
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_for_http_takes_another_token_and_another_port() {
    let admin = |bind: &str, token: &str| format!("[admin]\nbind = \"{bind}\"\ntoken = \"{}\"\n", token.repeat(32));
    let house = House::start("").await;
    let ask = async |address: std::net::SocketAddr, token: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = TcpStream::connect(address).await.unwrap();
        let token = token.repeat(32);
        let request = format!(
            "GET /api/v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    house.takes(&admin("127.0.0.1:0", "a")).await;
    let address = house.address("admin");
    assert_eq!(ask(address, "a").await, "200");
    let changes = house.takes(&admin("127.0.0.1:0", "b")).await;
    assert_eq!(changes, ["admin.token: changed"]);
    assert_eq!(house.address("admin"), address);
    assert_eq!([ask(address, "a").await, ask(address, "b").await], ["401", "200"]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    house.takes(&admin(&free.to_string(), "b")).await;
    assert_eq!(ask(free, "b").await, "200");
    until("the old port is closed", async || TcpStream::connect(address).await.is_err()).await;
    house.takes("").await;
    until("the new one, too", async || TcpStream::connect(free).await.is_err()).await;
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_new_has_lanes_and_limits_of_its_own() {
    let account = "[accounts.app]\npassword = \"x\"\nstreams = [\"news\"]\n";
    let capture = "[delivery]\ndefault = \"capture\"\n";
    let house = House::start("").await;
    let stream = |limit: u32| format!("{account}{capture}[streams.news]\ndaily_limit = {limit}\n");
    house.takes(&stream(1)).await;
    let mut client = house.logged_in("app", "x").await;
    let news = format!("X-Postrider-Stream: news\r\n{}", letter("app@home.test", "you@far.test"));
    let mut ids = Vec::new();
    for _ in 0..2 {
        ids.push(crate::house::id(&client.send("app@home.test", &["you@far.test"], &news).await.unwrap()));
    }
    let captured = |story: &postrider::admin::Story| {
        story.message.as_ref().is_some_and(|message| {
            message.recipients.iter().all(|recipient| recipient.status == postrider::admin::view::Status::Captured)
        })
    };
    house.wait_until(ids[0], captured).await;
    let story = house.app.operator().story(ids[1]).await.unwrap().unwrap();
    let kept_back = story.message.unwrap().recipients[0].kept_back.clone().unwrap_or_default();
    assert!(kept_back.contains("streams.news.daily_limit"), "{kept_back}");
    house.takes(&stream(5)).await;
    house.wait_until(ids[1], captured).await;
    house.stop().await;
}
