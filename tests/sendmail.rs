//! `postrider sendmail` as programs call it: PHP's mail(), Python, cron; the words of sysexits; what happens
//! while no server takes mail; and applications with SMTP back ends of their own, Django and Nodemailer.
//!
//! `POSTRIDER_TEST_PYTHON` names a Python with Django, `POSTRIDER_TEST_NODE` a folder with Nodemailer in
//! `node_modules`, `POSTRIDER_TEST_PHP` a PHP (`make test` makes all three). Without them those tests say SKIPPED.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod server;
    pub mod sink;
    pub mod zone;
}

use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use support::server::TestServer;
use support::sink::{Sink, Taken};
use support::zone::{Zone, ZoneServer};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_postrider");
const CONF: &str = r#"
[networks]
trusted = [TRUSTED]
[listeners.local]
role = "submission"
bind = ["127.0.0.1:0"]
tls = "off"
[domains."home.test"]
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;
const TRUSTED: &str = "\"127.0.0.0/8\"";
/// What sysexits(3) calls them.
const USAGE: i32 = 64;
const DATAERR: i32 = 65;
const NOUSER: i32 = 67;
const TEMPFAIL: i32 = 75;
const NOPERM: i32 = 77;
const CONFIG: i32 = 78;

/// A server whose mail arrives at a sink, and the binary under the name that programs call.
struct Post {
    base: TempDir,
    sink: Sink,
    _zone: ZoneServer,
    conf: String,
    server: Option<TestServer>,
}

impl Post {
    async fn new(trusted: &str) -> Post {
        let base = tempfile::tempdir().unwrap();
        symlink(BINARY, base.path().join("sendmail")).unwrap();
        // Reached by everybody, as /var/lib is.
        std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let sink = Sink::start().await;
        let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
        let conf = CONF
            .replace("TRUSTED", trusted)
            .replace("PORT", &sink.address.port().to_string())
            .replace("ZONE", &zone.addr().to_string());
        let mut post = Post { base, sink, _zone: zone, conf, server: None };
        post.start().await;
        post
    }

    async fn start(&mut self) {
        self.server = Some(TestServer::start(&self.data(), &self.conf).await);
    }

    async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    fn data(&self) -> PathBuf {
        self.base.path().join("data")
    }

    fn address(&self) -> SocketAddr {
        let listeners = self.server.as_ref().unwrap().app.listeners();
        listeners.iter().find(|listener| listener.name == "local").unwrap().address
    }

    fn sendmail(&self) -> PathBuf {
        self.base.path().join("sendmail")
    }

    /// As who cannot read the configuration.
    fn environment(&self, command: &mut Command) {
        let server = self.server.as_ref().map_or_else(|| "127.0.0.1:1".to_owned(), |_| self.address().to_string());
        command.env("POSTRIDER_SENDMAIL_SERVER", server);
        command.env("POSTRIDER_SENDMAIL_MAILDROP", self.data().join("maildrop"));
    }

    async fn call(&self, words: &[&str], input: &[u8]) -> Output {
        let mut command = Command::new(self.sendmail());
        self.environment(&mut command);
        run(command.args(words), input).await
    }

    async fn arrived(&self, count: usize) -> Vec<Taken> {
        self.sink.wait_for(count).await;
        self.sink.taken()
    }

    fn maildrop(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.data().join("maildrop")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }
}

async fn run(command: &mut Command, input: &[u8]) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Who refuses the command may not read it.
    let _ = stdin.write_all(input).await;
    drop(stdin);
    child.wait_with_output().await.unwrap()
}

fn show(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn good(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, show(output));
}

fn text(taken: &Taken) -> String {
    String::from_utf8(taken.content.clone()).unwrap()
}

async fn available(program: &str, probe: &[&str], wanted_by: &str) -> bool {
    let status = Command::new(program).args(probe).stdout(Stdio::null()).stderr(Stdio::null()).status().await;
    let there = status.is_ok_and(|status| status.success());
    assert!(there || std::env::var_os(wanted_by).is_none(), "{program} {probe:?} does not work");
    if !there {
        eprintln!("SKIPPED: {program} {probe:?} does not work here; nothing was shown");
    }
    there
}

/// main/php: `sendmail_path` is `sendmail -t -i`; To, Subject and the headers are written as they are given, the
/// line ends LF before PHP 8 and CRLF from then on, the text with those that the program has.
#[tokio::test(flavor = "multi_thread")]
async fn php_sends_as_its_mail_function_writes() {
    let post = Post::new(TRUSTED).await;
    let headers = "X-PHP-Originating-Script: 33:order.php";
    for (count, end) in ["\n", "\r\n"].into_iter().enumerate() {
        let more =
            ["From: Shop <shop@home.test>", "Cc: cc@far.test", "Bcc: blind@far.test", "MIME-Version: 1.0"].join(end);
        let input = format!(
            "To: you@far.test{end}Subject: Order {count}{end}{headers}{end}{more}{end}{end}Line one\n.\nLine three\r\n{end}"
        );
        good(&post.call(&["-t", "-i", "-fbounces@home.test"], input.as_bytes()).await);
        let taken = post.arrived(count + 1).await.remove(count);
        assert_eq!(taken.mail_from, "bounces@home.test");
        let mut to = taken.recipients.clone();
        to.sort();
        assert_eq!(to, ["blind@far.test", "cc@far.test", "you@far.test"]);
        let text = text(&taken);
        assert!(text.contains("\r\nFrom: Shop <shop@home.test>\r\n") && text.contains("\r\nMessage-ID: <"), "{text}");
        assert!(text.contains("\r\n\r\nLine one\r\n.\r\nLine three\r\n"), "{text}");
        assert!(!text.contains("blind@") && !text.to_lowercase().contains("\nbcc"), "{text}");
    }
    let php = std::env::var("POSTRIDER_TEST_PHP").unwrap_or_else(|_| "php".into());
    if available(&php, &["--version"], "POSTRIDER_TEST_PHP").await {
        let path = format!("sendmail_path={} -t -i", post.sendmail().display());
        let script = "exit(mail('you@far.test', 'From PHP', \"one\\n.\\ntwo\", 'From: shop@home.test') ? 0 : 1);";
        let mut php = Command::new(&php);
        post.environment(&mut php);
        good(&run(php.args(["-d", &path, "-r", script]), b"").await);
        assert!(text(&post.arrived(3).await[2]).contains("\r\n\r\none\r\n.\r\ntwo"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pythons_email_package_sends_by_sendmail() {
    let python = std::env::var("POSTRIDER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    if !available(&python, &["-c", "import email"], "POSTRIDER_TEST_PYTHON").await {
        return;
    }
    let post = Post::new(TRUSTED).await;
    let mut command = Command::new(&python);
    post.environment(&mut command);
    command.arg(interop("sendmail_send.py")).arg(post.sendmail());
    good(&run(&mut command, b"").await);
    let taken = post.arrived(1).await.remove(0);
    assert_eq!(taken.recipients, ["you@far.test", "blind@far.test"]);
    let text = text(&taken);
    assert!(
        text.contains("=?utf-8?") && text.contains("\r\nContent-Type: multipart/mixed") && !text.contains("blind@")
    );
}

fn interop(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn djangos_smtp_back_end_sends_without_special_settings() {
    let python = std::env::var("POSTRIDER_TEST_PYTHON").unwrap_or_else(|_| "python3".into());
    if !available(&python, &["-c", "import django"], "POSTRIDER_TEST_PYTHON").await {
        return;
    }
    let post = Post::new(TRUSTED).await;
    let mut command = Command::new(&python);
    command.arg(interop("django_send.py")).arg(post.address().port().to_string());
    good(&run(&mut command, b"").await);
    let taken = post.arrived(2).await;
    let with_parts = taken.iter().find(|taken| text(taken).contains("multipart/alternative")).unwrap();
    assert_eq!(with_parts.recipients, ["you@far.test", "cc@far.test", "blind@far.test"]);
    assert!(!text(with_parts).contains("blind@"));
    assert!(
        taken
            .iter()
            .any(|taken| text(taken).contains("\r\n\r\nGr=C3=BC=C3=9Fe") || text(taken).contains("\r\n\r\nGrüße"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nodemailer_sends_without_special_settings() {
    let Some(folder) = std::env::var_os("POSTRIDER_TEST_NODE") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_NODE is not set; nothing was shown");
        return;
    };
    let post = Post::new(TRUSTED).await;
    let mut command = Command::new("node");
    post.environment(&mut command);
    command.env("NODE_PATH", Path::new(&folder).join("node_modules"));
    command.arg(interop("nodemailer_send.js")).arg(post.address().port().to_string()).arg(post.sendmail());
    good(&run(&mut command, b"").await);
    let taken = post.arrived(2).await;
    for (subject, taken) in [("by smtp", &taken[0]), ("by sendmail", &taken[1])] {
        assert!(text(taken).contains(&format!("\r\nSubject: {subject}\r\n")), "{}", text(taken));
        assert_eq!(taken.recipients, ["you@far.test", "blind@far.test"]);
        assert!(!text(taken).contains("blind@"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_down_messages_wait_for_it_and_go_once() {
    let mut post = Post::new(TRUSTED).await;
    post.stop().await;
    for number in 0..3 {
        let letter = format!("Subject: {number}\n\nhi\n.\nunread\n");
        let words = ["-f", "shop@home.test", "-N", "never", "-V", "q 1", "you@far.test", "other@far.test"];
        good(&post.call(&words, letter.as_bytes()).await);
    }
    assert_eq!(post.maildrop().len(), 3);
    for path in post.maildrop() {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o644);
    }
    let mode = std::fs::metadata(post.data().join("maildrop")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o1733);
    post.start().await;
    let taken = post.arrived(3).await;
    let mut subjects: Vec<String> = taken.iter().map(|taken| subject(&text(taken))).collect();
    subjects.sort();
    assert_eq!(subjects, ["0", "1", "2"]);
    for taken in &taken {
        assert_eq!((taken.mail_from.as_str(), taken.recipients.len()), ("shop@home.test", 2));
        let text = text(taken);
        assert!(text.ends_with("\r\n\r\nhi\r\n") && text.contains(", from userid "), "{text}");
        assert!(!text.to_lowercase().contains("x-receiver"), "{text}");
    }
    // Removed only after the queue has them, so a moment later.
    while !post.maildrop().is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    post.stop().await;
    post.start().await;
    good(&post.call(&["-i", "you@far.test"], b"Subject: last\n\n").await);
    assert_eq!(post.arrived(4).await.len(), 4);
}

fn subject(text: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn spoken_smtp_that_meets_only_doors_with_tls_says_why() {
    let base = tempfile::tempdir().unwrap();
    symlink(BINARY, base.path().join("sendmail")).unwrap();
    let conf = base.path().join("postrider.toml");
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n[listeners.strict]\nrole = \"submission\"\n\
         bind = [\"127.0.0.1:1\"]\ntls = \"required\"\n",
        base.path().join("data").display()
    );
    std::fs::write(&conf, text).unwrap();
    let output = run(Command::new(base.path().join("sendmail")).arg("--config").arg(&conf).arg("-bs"), b"").await;
    assert_eq!(output.status.code(), Some(TEMPFAIL), "{}", show(&output));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.starts_with("sendmail: listeners.strict, at 127.0.0.1:1, wants TLS before any mail"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_says_what_is_wrong() {
    let mut post = Post::new(TRUSTED).await;
    let letter = b"Subject: x\n\nhi\n";
    for (words, input, status) in [
        (&["-z"][..], &letter[..], USAGE),
        (&["-i"], letter, USAGE),
        (&["-t", "-i"], letter, USAGE),
        (&["-i", "a@b@c"], letter, DATAERR),
        (&["-i", "you@far.test"], b"Subject: x\n\n\0", DATAERR),
        (&["-i", "you@far.test", "nobody@home.test"], letter, NOUSER),
        (&["--config", "/nonexistent.toml", "you@far.test"], letter, CONFIG),
    ] {
        let output = post.call(words, input).await;
        assert_eq!(output.status.code(), Some(status), "{words:?}: {}", show(&output));
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("sendmail: "), "{}", show(&output));
    }
    post.stop().await;
    std::fs::remove_dir_all(post.data().join("maildrop")).unwrap();
    let output = post.call(&["-i", "you@far.test"], letter).await;
    assert_eq!(output.status.code(), Some(TEMPFAIL), "{}", show(&output));
    assert_eq!(post.sink.count(), 0, "whatever failed was sent to nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_trusted_is_told_at_once_with_and_without_a_server() {
    let mut post = Post::new("").await;
    for is_up in [true, false] {
        if !is_up {
            post.stop().await;
        }
        let output = post.call(&["-i", "you@far.test"], b"Subject: x\n\nhi\n").await;
        assert_eq!(output.status.code(), Some(NOPERM), "{}", show(&output));
        assert!(post.maildrop().is_empty());
    }
    let conf = post.base.path().join("postrider.toml");
    std::fs::write(&conf, format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", post.data().display()))
        .unwrap();
    let output = post.call(&["--config", conf.to_str().unwrap(), "you@far.test"], b"hi\n").await;
    assert_eq!(output.status.code(), Some(NOPERM));
    assert!(show(&output).contains("networks.trusted"), "{}", show(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_may_speak_smtp() {
    let mut post = Post::new(TRUSTED).await;
    let talk = "EHLO here.test\r\nMAIL FROM:<shop@home.test>\r\nRCPT TO:<you@far.test>\r\nDATA\r\n\
                Subject: spoken\r\n\r\nhi\r\n.\r\nQUIT\r\n";
    // One after the other, as a client without PIPELINING before its EHLO has to.
    let mut child = Command::new(post.sendmail());
    post.environment(&mut child);
    child.arg("-bs").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = child.spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(stdout));
    let mut heard = Vec::new();
    let mut commands = talk.split_inclusive("\r\n");
    let mut next = |line: &str| -> String {
        match line {
            line if line.get(3..4) != Some(" ") => String::new(),
            line if line.starts_with("354") => commands.by_ref().take(4).collect(),
            _ => commands.next().unwrap_or_default().to_owned(),
        }
    };
    while let Some(line) = lines.next_line().await.unwrap() {
        let said = next(&line);
        heard.push(line);
        stdin.write_all(said.as_bytes()).await.unwrap();
    }
    assert!(child.wait().await.unwrap().success());
    assert!(heard.iter().any(|line| line.contains("queued as")), "{heard:?}");
    assert!(text(&post.arrived(1).await[0]).contains("Subject: spoken"));
    post.stop().await;
    let output = post.call(&["-bs"], b"").await;
    assert_eq!(output.status.code(), Some(TEMPFAIL));
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("421 "));
}

/// Somebody with no rights at all, where this test may become somebody else.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_sends_and_leaves_messages() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become somebody else; nothing was shown");
        return;
    }
    let mut post = Post::new(TRUSTED).await;
    // The binary may lie where nobody else can go. Copied by a process of its own: what another test starts
    // meanwhile would inherit our open copy, and a file that is open for writing cannot be run.
    let binary = post.base.path().join("postrider");
    assert!(std::process::Command::new("cp").arg(BINARY).arg(&binary).status().unwrap().success());
    let call = |post: &Post| {
        let mut command = Command::new(&binary);
        post.environment(&mut command);
        command.args(["sendmail", "-i", "-v", "you@far.test"]).uid(65_534).gid(65_534).current_dir("/");
        command
    };
    good(&run(&mut call(&post), b"Subject: by smtp\n\nhi\n").await);
    post.arrived(1).await;
    post.stop().await;
    let output = run(&mut call(&post), b"Subject: left\n\nhi\n").await;
    good(&output);
    assert!(show(&output).contains("the message waits in"), "{}", show(&output));
    let mut look = Command::new("ls");
    look.arg(post.data().join("maildrop")).uid(65_534).gid(65_534);
    assert!(!run(&mut look, b"").await.status.success(), "nobody sees what others left");
    post.start().await;
    let taken = post.arrived(2).await.remove(1);
    assert!(text(&taken).contains(", from userid 65534)"), "{}", text(&taken));
}

#[tokio::test(flavor = "multi_thread")]
async fn mailq_lists_the_queue() {
    let mut post = Post::new(TRUSTED).await;
    let conf = post.base.path().join("postrider.toml");
    std::fs::write(&conf, format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", post.data().display()))
        .unwrap();
    symlink(BINARY, post.base.path().join("mailq")).unwrap();
    let mut mailq = Command::new(post.base.path().join("mailq"));
    let output = run(mailq.arg("--config").arg(&conf), b"").await;
    good(&output);
    let mut list = Command::new(BINARY);
    let listed = run(list.args(["queue", "list", "--config"]).arg(&conf), b"").await;
    assert_eq!(show(&output), show(&listed));
    post.stop().await;
    let mut mailq = Command::new(post.base.path().join("mailq"));
    assert_eq!(run(mailq.arg("--config").arg(&conf), b"").await.status.code(), Some(69));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_nothing_now_gets_it_later() {
    let post = Post::new(TRUSTED).await;
    for (number, (greeting, mail)) in
        [("421 4.3.2 busy\r\n", ""), ("220 here\r\n", "452 4.3.1 no room\r\n"), ("nonsense\r\n", "")]
            .into_iter()
            .enumerate()
    {
        let full = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = full.local_addr().unwrap().to_string();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = full.accept().await.unwrap();
            stream.write_all(format!("{greeting}250 here\r\n{mail}").as_bytes()).await.unwrap();
            // Until the client goes.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
        let mut command = Command::new(post.sendmail());
        post.environment(&mut command);
        command.env("POSTRIDER_SENDMAIL_SERVER", address).args(["-v", "-i", "you@far.test"]);
        let output = run(&mut command, b"Subject: later\n\nhi\n").await;
        good(&output);
        assert!(show(&output).contains("the message waits in"), "{}", show(&output));
        serving.await.unwrap();
        // The real one takes it from the folder.
        assert_eq!(post.arrived(number + 1).await.len(), number + 1);
    }
}
