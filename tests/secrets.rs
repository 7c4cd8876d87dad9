//! Secrets stay secret: a server that logs all it can, with secrets of every kind in its configuration, is used in every
//! way that touches one, and so are the commands. Nothing that is logged, printed, answered or kept in a store of what
//! happened holds one of them, in the clear or in the base64 of a login.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use postrider::server::accounts::hash_password;

/// A test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Keys of webhooks in their usual form.
const TARGET_SECRET: &str = "whsec_dGFyZ2V0LXNlY3JldC1vZi0yNC1ieXQ=";
const EVENT_SECRET: &str = "whsec_ZXZlbnRzLXNlY3JldC1vZi0yNC1ieXQ=";

/// Far ends that take what they are given; what they have heard proves that a secret was used at all.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<String>>>);

impl Heard {
    fn note(&self, line: &str) {
        self.0.lock().unwrap().push(line.trim_end().to_owned());
    }

    fn wait_for(&self, what: &str) {
        let since = Instant::now();
        while !self.0.lock().unwrap().iter().any(|line| line.contains(what)) {
            assert!(since.elapsed() < PATIENCE, "{what} was never heard: {:#?}", self.0.lock().unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Answers each connection on a thread of its own.
fn listen(heard: &Heard, answer: impl Fn(TcpStream, Heard) -> std::io::Result<()> + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = heard.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, heard) = (answer.clone(), heard.clone());
            // A client that goes away is no fault of the test.
            std::thread::spawn(move || answer(stream, heard));
        }
    });
    port
}

/// A mail server that lets everybody in who logs in by one of these mechanisms.
fn smtp(mut stream: TcpStream, heard: Heard) -> std::io::Result<()> {
    stream.write_all(b"220 far.test ESMTP\r\n")?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(line) = lines.next() {
        let line = line?;
        heard.note(&line);
        let verb = line.split(' ').next().unwrap_or_default().to_ascii_uppercase();
        let reply = match verb.as_str() {
            "EHLO" => "250-far.test\r\n250 AUTH PLAIN LOGIN XOAUTH2",
            "AUTH" => "235 2.7.0 come in",
            "DATA" => {
                stream.write_all(b"354 go on\r\n")?;
                while lines.next().transpose()?.is_some_and(|line| line != ".") {}
                "250 2.0.0 taken"
            }
            "QUIT" => "221 2.0.0 bye",
            _ => "250 2.0.0 fine",
        };
        stream.write_all(format!("{reply}\r\n").as_bytes())?;
    }
    Ok(())
}

/// A mailbox that nobody gets into, which says again what it was told.
fn imap(mut stream: TcpStream, heard: Heard) -> std::io::Result<()> {
    stream.write_all(b"* OK [CAPABILITY IMAP4rev1] far.test\r\n")?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        heard.note(&line);
        let tag = line.split(' ').next().unwrap_or_default();
        stream.write_all(format!("{tag} NO you said {line}\r\n").as_bytes())?;
    }
    Ok(())
}

/// An HTTP server that gives out tokens and takes everything else.
fn http(mut stream: TcpStream, heard: Heard) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let (mut first, mut length) = (String::new(), 0);
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            heard.note(&field);
            if let Some(value) = field.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if field.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        heard.note(&format!("{} {}", first.trim_end(), String::from_utf8_lossy(&body)));
        let answer = match first.contains("/token") {
            true => "{\"access_token\":\"access-token-from-far\",\"token_type\":\"Bearer\",\"expires_in\":3600}",
            false => "{}",
        };
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all(format!("{head}{answer}").as_bytes())?;
    }
}

struct Scene {
    folder: tempfile::TempDir,
    heard: Heard,
    secrets: BTreeMap<&'static str, String>,
    server: Child,
    admin: u16,
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn secrets() -> BTreeMap<&'static str, String> {
    let hash = hash_password("password-of-the-hash").unwrap();
    [
        ("password of an account", "password-of-shop"),
        ("password behind a hash", "password-of-the-hash"),
        ("hash", hash.as_str()),
        ("wrong password", "wrong-password-typed"),
        ("key of a target", TARGET_SECRET),
        ("key of a target, as bytes", "target-secret-of-24-byt"),
        ("key of an event webhook", EVENT_SECRET),
        ("password of a smart host", "password-of-relay"),
        ("client secret", "client-secret-of-office"),
        ("refresh token", "refresh-token-of-office"),
        ("access token", "access-token-from-far"),
        ("password of a mailbox", "password-of-mailbox"),
        ("token of the API", "token-of-the-admin"),
        ("wrong token", "wrong-token-typed-in"),
    ]
    .map(|(what, secret)| (what, secret.to_owned()))
    .into()
}

fn configuration(folder: &Path, heard: &Heard, secrets: &BTreeMap<&str, String>, admin: u16) -> String {
    let (smtp, imap, http) = (listen(heard, smtp), listen(heard, imap), listen(heard, http));
    let token = folder.join("token");
    std::fs::write(&token, format!("{}\n", secrets["token of the API"])).unwrap();
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!(
        r#"hostname = "mail.home.test"
data_dir = "{data}"
[listeners.submission]
role = "submission"
bind = ["127.0.0.1:0"]
tls = "opportunistic"
[networks]
trusted = ["127.0.0.0/8"]
[accounts.shop]
password = "{shop}"
[accounts.office]
password_hash = "{hash}"
[domains."home.test"]
[aliases]
"sales@home.test" = "crm"
[targets.crm]
kind = "webhook"
url = "http://127.0.0.1:{http}/hook"
secret = {{ env = "TARGET_SECRET" }}
[events.webhooks.crm]
url = "http://127.0.0.1:{http}/events"
secret = "{EVENT_SECRET}"
[delivery]
default = "smart_hosts"
allow_private_addresses = true
[smart_hosts.relay]
host = "127.0.0.1"
port = {smtp}
tls = "off"
username = "relay"
password = "{relay}"
from_filter = ["relay@home.test"]
debug = true
[smart_hosts.office]
host = "127.0.0.1"
port = {smtp}
tls = "off"
username = "office@home.test"
debug = true
[smart_hosts.office.oauth]
provider = "google"
flow = "refresh_token"
client_id = "postrider"
client_secret = "client-secret-of-office"
refresh_token = "refresh-token-of-office"
token_url = "http://127.0.0.1:{http}/token"
[fetch.box]
protocol = "imap"
host = "127.0.0.1"
port = {imap}
tls = "off"
username = "box"
password = "password-of-mailbox"
deliver_to = "sales@home.test"
[queue]
min_free = "1MiB"
[dns]
nameservers = ["127.0.0.1:1"]
[admin]
bind = "127.0.0.1:{admin}"
token = {{ file = "{token}" }}
[log]
level = "trace"
"#,
        data = folder.join("data").display(),
        shop = secrets["password of an account"],
        hash = secrets["hash"],
        relay = secrets["password of a smart host"],
        token = token.display(),
    )
}

impl Scene {
    fn start() -> Scene {
        let (folder, heard, secrets, admin) = (tempfile::tempdir().unwrap(), Heard::default(), secrets(), free_port());
        let text = configuration(folder.path(), &heard, &secrets, admin);
        let file = folder.path().join("postrider.toml");
        std::fs::write(&file, text).unwrap();
        let log = File::create(folder.path().join("log")).unwrap();
        let mut command = postrider(&file, &["serve"]);
        let server = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Scene { folder, heard, secrets, server, admin }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("log")).unwrap()).into_owned()
    }

    /// Where clients submit.
    fn door(&mut self) -> SocketAddr {
        let since = Instant::now();
        loop {
            let log = self.log();
            let line = log.lines().find(|line| line.contains("listening") && line.contains("name=\"submission\""));
            let address = line.and_then(|line| line.split("address=").nth(1)?.split_whitespace().next());
            if let Some(address) = address {
                return address.parse().unwrap();
            }
            let ended = self.server.try_wait().unwrap();
            assert!(since.elapsed() < PATIENCE && ended.is_none(), "the server does not start: {log}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn command(&self, words: &[&str]) -> String {
        let output = postrider(&self.folder.path().join("postrider.toml"), words).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!text.contains("Usage:"), "{words:?} is no command: {text}");
        format!("postrider {}\n{text}", words.join(" "))
    }

    fn get(&self, path: &str, token: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.admin)).unwrap();
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn postrider(config: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(words).arg("--config").arg(config).stdin(Stdio::null()).env("TARGET_SECRET", TARGET_SECRET);
    command
}

/// Says each line and gives all replies, each after its line.
fn talk(door: SocketAddr, lines: &[&str]) -> String {
    let mut stream = TcpStream::connect(door).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut heard = String::new();
    let mut hear = |heard: &mut String| {
        loop {
            let before = heard.len();
            reader.read_line(heard).unwrap();
            if heard.as_bytes().get(before + 3) != Some(&b'-') {
                return;
            }
        }
    };
    hear(&mut heard);
    for line in lines {
        stream.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        hear(&mut heard);
    }
    heard
}

fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

/// Every file below, as it is on the disk.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(|entry| below(entry.path())).collect()
}

#[test]
fn no_secret_is_logged_shown_or_kept() {
    let mut scene = Scene::start();
    let door = scene.door();
    let plain = |name: &str, password: &str| format!("AUTH PLAIN {}", encoded(&format!("\0{name}\0{password}")));
    let wrong = scene.secrets["wrong password"].clone();
    let mut shown = vec![
        talk(door, &["EHLO c.test", &plain("shop", "password-of-shop"), "QUIT"]),
        talk(door, &["EHLO c.test", "AUTH LOGIN", &encoded("office"), &encoded("password-of-the-hash"), "QUIT"]),
        talk(door, &["EHLO c.test", &plain("shop", &wrong), &plain("nobody", &wrong), "QUIT"]),
        // At the wrong place, and not in the form of a command at all.
        talk(door, &["EHLO c.test", "AUTH PLAIN", "*", &format!("AUTH CRAM-MD5 {wrong}"), "QUIT"]),
        talk(door, &[&plain("shop", &wrong), "QUIT"]),
    ];
    assert!(
        shown[0].contains("235 2.7.0") && shown[1].contains("235 2.7.0") && shown[2].contains("535 5.7.8"),
        "{shown:?}"
    );
    for (from, to) in
        [("relay@home.test", "far@far.test"), ("a@home.test", "far@far.test"), ("a@home.test", "sales@home.test")]
    {
        let letter = format!("From: <{from}>\r\nSubject: for {to}\r\n\r\nhello\r\n.");
        let (from, to) = (format!("MAIL FROM:<{from}>"), format!("RCPT TO:<{to}>"));
        let heard = talk(door, &["EHLO c.test", &from, &to, "DATA", &letter, "QUIT"]);
        assert!(heard.contains("250 2.0.0 queued"), "{heard}");
        shown.push(heard);
    }
    // Each secret is really used.
    for used in [
        encoded("\0relay\0password-of-relay"),
        encoded("user=office@home.test\u{1}auth=Bearer access-token-from-far\u{1}\u{1}"),
        "client-secret-of-office".to_owned(),
        "refresh-token-of-office".to_owned(),
        "password-of-mailbox".to_owned(),
        "webhook-signature: v1,".to_owned(),
        "POST /hook".to_owned(),
        "POST /events".to_owned(),
    ] {
        scene.heard.wait_for(&used);
    }
    let (good, wrong) = (scene.secrets["token of the API"].clone(), scene.secrets["wrong token"].clone());
    assert!(scene.get("/api/v1/status", &good).starts_with("HTTP/1.1 200"));
    for (path, token) in
        [("/api/v1/status", &good), ("/api/v1/queue", &good), ("/metrics", &good), ("/api/v1/status", &wrong)]
    {
        shown.push(scene.get(path, token));
    }
    for words in [
        &["check"][..],
        &["check", "--json"],
        &["config", "show"],
        &["config", "show", "--json"],
        &["config", "show", "--written"],
        &["explain", "--from", "a@home.test", "--to", "far@far.test"],
        &["explain", "--from", "a@home.test", "--to", "sales@home.test"],
        &["account", "list"],
        &["account", "list", "--json"],
        &["smart-host", "test", "relay"],
        &["smart-host", "test", "office"],
        &["target", "test", "crm"],
        &["fetch", "list"],
        &["fetch", "run", "box"],
        &["queue", "list", "--json"],
        &["log", "--json"],
    ] {
        shown.push(scene.command(words));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&scene.server), rustix::process::Signal::TERM)
        .unwrap();
    assert!(scene.server.wait().unwrap().success());
    let log = scene.log();
    assert!(log.contains("AUTH") && log.contains("logged in"), "the log holds what there is to hold: {log}");
    shown.push(log);
    for path in files(&scene.folder.path().join("data")) {
        shown.push(format!("{}\n{}", path.display(), String::from_utf8_lossy(&std::fs::read(&path).unwrap())));
    }
    let forms = |secret: &str| vec![secret.to_owned(), encoded(secret), secret.replace('=', "\\u003d")];
    let logins = [encoded("\0shop\0password-of-shop"), encoded("\0relay\0password-of-relay")];
    for (what, secret) in &scene.secrets {
        for form in forms(secret).iter().chain(&logins) {
            for text in &shown {
                let line = text.lines().find(|line| line.contains(form.as_str()));
                assert!(line.is_none(), "the {what} is in {:?}: {}", text.lines().next(), line.unwrap_or_default());
            }
        }
    }
}

/// A mistake in the configuration is shown without what stands beside it.
#[test]
fn complaints_about_a_configuration_hold_no_secret() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    for wrong in [
        "[accounts.shop]\npassword = \"not-for-your-eyes\"\npasswort = \"not-for-your-eyes\"\n",
        "[accounts.shop]\npassword_hash = \"not-for-your-eyes\"\n",
        "[accounts.shop]\npassword = [\"not-for-your-eyes\"]\n",
        "[accounts.shop]\npassword = { value = \"not-for-your-eyes\" }\n",
        "[accounts.shop]\npassword = \"not-for-your-eyes\n",
        "[smart_hosts.a]\nhost = \"a.test\"\npassword = \"not-for-your-eyes\"\n",
        "[targets.a]\nkind = \"webhook\"\nurl = \"https://a.test/\"\nsecret = \"whsec_not-for-your-eyes\"\n",
        "[targets.a]\nkind = \"maildir\"\npath = \"/var/mail/a\"\nsecret = \"not-for-your-eyes\"\n",
        "[admin]\nbind = \"127.0.0.1:8025\"\ntoken = 5\ntokens = \"not-for-your-eyes\"\n",
    ] {
        let head = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", folder.path().display());
        std::fs::write(&file, format!("{head}{wrong}")).unwrap();
        for words in [&["check"][..], &["check", "--json"], &["config", "show"], &["serve"]] {
            let output = postrider(&file, words).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(!output.status.success(), "{wrong}: {words:?}: {text}");
            assert!(!text.contains("not-for-your-eyes"), "{wrong}: {words:?}: {text}");
        }
    }
}
