//! Several certificates on one server: each client sees the one for the name that it asks for, under
//! STARTTLS and under implicit TLS, before and after they are replaced.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod authority;
    pub mod server;
}

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use postrider::config;
use support::authority::{Authority, Identity};
use support::server::TestServer;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::ServerName;

/// Writes a pair, and gives the two lines that name it.
fn files(folder: &Path, name: &str, identity: &Identity) -> String {
    let (crt, key) = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
    std::fs::write(&crt, identity.chain_pem()).unwrap();
    std::fs::write(&key, identity.key_pem()).unwrap();
    format!("certificate = \"{}\"\nprivate_key = \"{}\"\n", crt.display(), key.display())
}

/// A handshake by the rules: for `name`, with a certificate of the authority. Gives the certificate.
async fn shown(address: SocketAddr, starttls: bool, name: &str, authority: &Authority) -> Result<Vec<u8>, String> {
    let mut stream = BufReader::new(TcpStream::connect(address).await.unwrap());
    if starttls {
        for line in ["", "EHLO client.test\r\n", "STARTTLS\r\n"] {
            stream.get_mut().write_all(line.as_bytes()).await.unwrap();
            let mut reply = String::new();
            while reply.lines().last().is_none_or(|line| line.as_bytes()[3] == b'-') {
                stream.read_line(&mut reply).await.unwrap();
            }
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(authority.roots())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream.into_inner()).await;
    let stream = connected.map_err(|error| error.to_string())?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_name_has_its_certificate_under_starttls_and_implicit_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (main, other, wild) = (
        authority.issue(&["mail.home.test"]),
        authority.issue(&["mx.other.test", "smtp.other.test"]),
        authority.issue(&["*.wild.test"]),
    );
    let more = format!(
        "[tls]\n{}[[tls.extra]]\n{}[[tls.extra]]\n{}\
         [listeners.implicit]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\ntls = \"implicit\"\n",
        files(folder.path(), "main", &main),
        files(folder.path(), "other", &other),
        files(folder.path(), "wild", &wild),
    );
    let server = TestServer::start(folder.path(), &more).await;
    let implicit = server.app.listeners().iter().find(|listener| listener.name == "implicit").unwrap().address;
    for (address, starttls) in [(server.mx, true), (server.submission, true), (implicit, false)] {
        for (name, identity) in [
            ("mail.home.test", &main),
            ("mx.other.test", &other),
            ("smtp.other.test", &other),
            ("any.wild.test", &wild),
            ("MX.Other.Test", &other),
        ] {
            assert_eq!(shown(address, starttls, name, &authority).await.unwrap(), identity.chain[0].to_vec(), "{name}");
        }
        // Others see the main one, which is not for them.
        let refused = shown(address, starttls, "a.b.wild.test", &authority).await.unwrap_err();
        assert!(refused.contains("mail.home.test"), "{refused}");
    }
    server.stop().await;
}

#[test]
fn what_is_wrong_with_a_further_pair_is_said_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let lines = files(folder.path(), "one", &authority.issue(&["mx.other.test"]));
    files(folder.path(), "two", &authority.issue(&["mx.two.test"]));
    let text = |lines: &str| {
        let top = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", folder.path().display());
        format!(
            "{top}[[tls.extra]]\n{}\n[[tls.extra]]\n{lines}",
            files(folder.path(), "one", &authority.issue(&["a.test"]))
        )
    };
    let check = |lines: &str| {
        let config = config::parse("postrider.toml", &text(lines)).unwrap_or_else(|problems| panic!("{problems}"));
        postrider::server::tls::check(&config)
    };
    let mixed = lines.replace("one.key", "two.key");
    let said = check(&mixed).unwrap_err().to_string();
    assert!(said.starts_with("postrider.toml:8: tls.extra: "), "{said}");
    assert!(said.contains("two.key: this key does not belong to the first certificate in"), "{said}");

    let expired = files(folder.path(), "old", &authority.issue_expired(&["old.other.test"]));
    let warned = check(&expired).unwrap().concat();
    assert!(warned.starts_with("tls.extra.certificate: ") && warned.contains("expired on 2002-01-01"), "{warned}");

    let half = text("certificate = \"/nonexistent/x.pem\"\n");
    let problems = config::parse("postrider.toml", &half).unwrap_err().to_string();
    assert!(problems.contains("postrider.toml:8: tls.extra.certificate: cannot read /nonexistent/x.pem"), "{problems}");
    assert!(problems.contains("tls.extra.private_key: missing"), "{problems}");
}
