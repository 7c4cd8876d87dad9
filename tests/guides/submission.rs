//! `docs/submission.md`: what it tells applications to write sends a message, by TLS with a certificate that is checked and
//! with a login.

use std::net::SocketAddr;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::process::Command;

use crate::support::pages::{commands, page};
use crate::support::server::TestServer;
use crate::support::sink::{Sink, Taken};
use crate::support::zone::{Zone, ZoneServer};
use crate::{Language, run, show};

const PASSWORD: &str = "correct horse";
const BINARY: &str = env!("CARGO_BIN_EXE_postrider");

/// A server that speaks for example.com, whose certificate for `localhost` is of an authority of its own.
struct House {
    folder: tempfile::TempDir,
    server: TestServer,
    sink: Sink,
    _zone: ZoneServer,
}

/// Writes the authority, the certificate and the key.
fn certificates(folder: &Path) {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // By its name it is told from what it signs.
    params.distinguished_name.push(DnType::CommonName, "an authority of this test");
    let root = params.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(params, root_key);
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(folder.join("root.pem"), root.pem()).unwrap();
    std::fs::write(folder.join("certificate.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

impl House {
    async fn new() -> House {
        let folder = tempfile::tempdir().unwrap();
        certificates(folder.path());
        let sink = Sink::start().await;
        let zone = Zone::new().mx("example.net", 10, "mx.example.net").a("mx.example.net", "127.0.0.1").serve().await;
        let (path, port, dns) = (folder.path().display(), sink.address.port(), zone.addr());
        let conf = format!(
            "[tls]\ncertificate = \"{path}/certificate.pem\"\nprivate_key = \"{path}/key.pem\"\n\
             [accounts.shop]\npassword = \"{PASSWORD}\"\n[domains.\"example.com\"]\n\
             [listeners.local]\nrole = \"submission\"\nbind = [\"127.0.0.1:0\"]\ntls = \"off\"\n\
             [networks]\ntrusted = [\"127.0.0.0/8\"]\n\
             [admin]\nbind = \"127.0.0.1:0\"\ntoken = \"0123456789abcdef0123456789abcdef\"\n\
             [delivery]\nmx_port = {port}\nallow_private_addresses = true\n[dns]\nnameservers = [\"{dns}\"]\n"
        );
        let server = TestServer::start(&folder.path().join("data"), &conf).await;
        House { folder, server, sink, _zone: zone }
    }

    fn door(&self, wanted: &str) -> SocketAddr {
        let mut doors = self.server.app.listeners().into_iter();
        doors.find(|door| door.name == wanted || door.role == wanted).unwrap().address
    }

    /// The text with the names of this house, as a file.
    fn file(&self, name: &str, text: &str) -> std::path::PathBuf {
        let text = text
            .replace("mail.example.com:587", &format!("localhost:{}", self.server.submission.port()))
            .replace("mail.example.com", "localhost")
            .replace("587", &self.server.submission.port().to_string())
            .replace("127.0.0.1:8025", &self.door("http").to_string());
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// With the password, and the authority that is to be believed.
    fn environment(&self, command: &mut Command) {
        let root = self.folder.path().join("root.pem");
        command.env("SMTP_PASSWORD", PASSWORD).env("SSL_CERT_FILE", &root).env("NODE_EXTRA_CA_CERTS", &root);
        command.env("POSTRIDER_SENDMAIL_SERVER", self.door("local").to_string());
        command.env("POSTRIDER_SENDMAIL_MAILDROP", self.folder.path().join("data/maildrop"));
        command.current_dir(self.folder.path());
    }

    async fn sends(&self, command: &mut Command, count: usize) {
        self.environment(command);
        let output = run(command).await;
        assert!(output.status.success(), "{}", show(&output));
        self.arrived(count).await;
    }

    /// The message that all of the page's examples send.
    async fn arrived(&self, count: usize) -> Taken {
        self.sink.wait_for(count).await;
        let taken = self.sink.taken().remove(count - 1);
        let text = String::from_utf8(taken.content.clone()).unwrap();
        assert_eq!(taken.recipients, ["you@example.net"]);
        assert!(text.contains("\r\nSubject: Your order\r\n") && text.contains("\r\nIt is on its way.\r\n"), "{text}");
        assert_eq!(text.matches("DKIM-Signature:").count(), 2, "{text}");
        taken
    }
}

/// The page's program below this heading sends one message.
async fn program_sends(heading: &str, language: Language) {
    let Some(mut command) = language.program() else { return };
    if language == Language::Node && std::env::var_os(language.variable()).is_none() {
        eprintln!("SKIPPED: there is no Nodemailer here; nothing was shown of it");
        return;
    }
    let house = House::new().await;
    let code = page("docs/submission.md").block(heading, language.word());
    let file = house.file(&format!("program.{}", language.word()), &code);
    house.sends(command.arg(file), 1).await;
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_python_sends() {
    program_sends("Python", Language::Python).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_nodemailer_sends() {
    program_sends("Node: Nodemailer", Language::Node).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_go_sends() {
    program_sends("Go", Language::Go).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_php_submits_by_http() {
    program_sends("HTTP", Language::Php).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_settings_of_django_send() {
    let Some(mut command) = Language::Python.program() else { return };
    if std::env::var_os(Language::Python.variable()).is_none() {
        eprintln!("SKIPPED: there is no Django here; nothing was shown of it");
        return;
    }
    let house = House::new().await;
    house.file("settings.py", &page("docs/submission.md").block("Django", "python"));
    let send = "import django; django.setup(); from django.core.mail import send_mail; \
                assert send_mail('Your order', 'It is on its way.', None, ['you@example.net']) == 1";
    house.sends(command.env("DJANGO_SETTINGS_MODULE", "settings").args(["-c", send]), 1).await;
    let text = String::from_utf8(house.sink.taken().remove(0).content).unwrap();
    assert!(text.contains("\r\nFrom: Shop <orders@example.com>\r\n"), "{text}");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guides_line_of_php_ini_lets_mail_send() {
    let Some(mut command) = Language::Php.program() else { return };
    let house = House::new().await;
    let blocks = page("docs/submission.md").blocks();
    let line = blocks.iter().find(|block| block.heading == "PHP" && block.text.contains("sendmail_path")).unwrap();
    let ini = house.file("php.ini", &line.text.replace("/usr/bin/postrider", BINARY));
    let send =
        "exit(mail('you@example.net', 'Your order', \"It is on its way.\\r\\n\", 'From: orders@example.com') ? 0 : 1);";
    // `-n`, which our PHP has, reads no file of settings: the line is handed on as an option.
    let setting = std::fs::read_to_string(ini).unwrap().trim().replace(" = ", "=").replace('"', "");
    house.sends(command.args(["-d", &setting, "-r", send]), 1).await;
    house.server.stop().await;
}

/// The page's commands with curl, and with `postrider sendmail`, as a shell runs them.
#[tokio::test(flavor = "multi_thread")]
async fn the_guides_shell_commands_send() {
    let house = House::new().await;
    let guide = page("docs/submission.md");
    let letter = "From: orders@example.com\nTo: you@example.net\nSubject: Your order\n\nIt is on its way.\n";
    std::fs::write(house.folder.path().join("message.eml"), letter).unwrap();
    let mut count = 0;
    for (heading, first) in [("SMTP", "curl"), ("HTTP", "curl"), ("sendmail", "printf")] {
        let blocks = guide.blocks();
        let block = blocks.iter().find(|block| block.heading == heading && block.language == "sh").unwrap();
        let start = block.text.find(&format!("{first} ")).unwrap();
        let script = &block.text[start..];
        assert!(commands(script).len() <= 2, "{script}");
        let script =
            script.replace("shop:PASSWORD", &format!("'shop:{PASSWORD}'")).replace("postrider ", &format!("{BINARY} "));
        let root = house.folder.path().join("root.pem");
        let script = script.replace("curl --crlf", &format!("curl --crlf --cacert {}", root.display()));
        let file = house.file("script.sh", &script);
        count += 1;
        house.sends(Command::new("sh").arg("-eu").arg(file), count).await;
    }
    house.server.stop().await;
}
