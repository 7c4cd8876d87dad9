//! Delivery to programs: what they get, what their end means, and what becomes of those that do not end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod records;
    pub mod served;
}

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use postrider::config::{self, Target};
use postrider::delivery::pipe::Pipe;
use postrider::delivery::{Body, Job, Outcome};
use postrider::message::{Address, MessageId, ReversePath};
use postrider::queue::record::Failure;
use support::client::Client;
use support::records::{START, message, recipient};
use support::served::Served;

/// Writes down all that it gets.
const RECORDER: &str = r#"
for argument in "$@"; do printf '%s\0' "$argument"; done > OUT/arguments
env -0 > OUT/environment
ls -l /proc/self/fd > OUT/files
cat > OUT/input
"#;

struct Script {
    folder: tempfile::TempDir,
}

impl Script {
    fn new(text: &str) -> Script {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("script"), text.replace("OUT", folder.path().to_str().unwrap())).unwrap();
        Script { folder }
    }

    /// Run by a shell of its own, so that no test has to wait until no other holds it open for writing.
    fn pipe(&self, arguments: &[&str], timeout: &str) -> Pipe {
        let script = self.folder.path().join("script");
        let words = [&["/bin/sh", script.to_str().unwrap()], arguments].concat();
        pipe(&words, timeout)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(name)).unwrap()
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    fn arguments(&self) -> Vec<String> {
        let text = self.text("arguments");
        text.split_terminator('\0').map(str::to_owned).collect()
    }
}

fn pipe(words: &[&str], timeout: &str) -> Pipe {
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n[targets.script]\nkind = \"pipe\"\n\
         command = {}\ntimeout = \"{timeout}\"\n",
        serde_json::to_string(words).unwrap()
    );
    let config = config::parse("test.toml", &text).unwrap_or_else(|problems| panic!("{problems}"));
    let Target::Pipe { command, timeout } = &config.targets["script"] else { panic!("{text}") };
    Pipe::new("script", command, *timeout)
}

fn job(content: &[u8], recipients: &[&str]) -> Job {
    let chunks: Vec<Bytes> = content.chunks(60_000).map(Bytes::copy_from_slice).collect();
    let mut message = message(MessageId::first_at(START), &chunks, recipients.len() as u32);
    message.mail_from = ReversePath::Address(Address::parse("ann@sender.example").unwrap());
    let recipients = (0..).zip(recipients.iter().map(|address| recipient(address, 0))).collect();
    Job { message: Arc::new(message), body: Body::new(chunks), recipients }
}

fn small() -> Job {
    job(b"Subject: x\r\n\r\n.\r\nhello\r\n", &["sales@example.com"])
}

fn deferred(outcome: &Outcome) -> &Failure {
    match outcome {
        Outcome::Defer { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: &Outcome) -> &Failure {
    match outcome {
        Outcome::Fail(why) => why,
        other => panic!("{other:?}"),
    }
}

/// Nothing runs under this number any more; what nobody has waited for yet does not run.
fn is_gone(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    stat.map_or(true, |stat| stat.rsplit(')').next().unwrap().trim_start().starts_with('Z'))
}

/// A process that was killed is gone when the kernel has come to it.
async fn until_gone(pid: &str) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !is_gone(pid) {
        assert!(std::time::Instant::now() < deadline, "{pid} still runs");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_program_gets_the_message_its_arguments_and_nothing_else() {
    let script = Script::new(RECORDER);
    let mut job = small();
    job.recipients[0].1.alias = Some(Address::parse("all@example.com").unwrap());
    let arguments = ["--to", "{recipient}", "{local} at {domain}", "{alias}", "--from={sender}", "{id}", "$HOME `id`"];
    let folder = script.folder.path().to_str().unwrap().to_owned();
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let own = script.folder.path().join("own");
    let _open = fs::File::create(&own).unwrap();
    let outcomes = script.pipe(&arguments, "30s").deliver(&job).await;
    assert!(matches!(&outcomes[0].1, Outcome::Delivered(done) if done.to == "pipe to /bin/sh"), "{outcomes:?}");
    let id = job.message.id.to_string();
    let wanted = [
        "--to",
        "sales@example.com",
        "sales at example.com",
        "all@example.com",
        "--from=ann@sender.example",
        &id,
        "$HOME `id`",
    ];
    assert_eq!(script.arguments(), wanted);
    assert_eq!(
        script.text("input"),
        "Return-Path: <ann@sender.example>\nX-Original-To: all@example.com\nDelivered-To: sales@example.com\n\
         Subject: x\n\n.\nhello\n"
    );
    let environment = script.text("environment");
    let mut environment: BTreeMap<&str, &str> =
        environment.split_terminator('\0').map(|line| line.split_once('=').unwrap()).collect();
    // The shell's own.
    environment.retain(|name, _| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    let wanted = [
        ("LANG", "C.UTF-8"),
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("POSTRIDER_ALIAS", "all@example.com"),
        ("POSTRIDER_DOMAIN", "example.com"),
        ("POSTRIDER_ID", &id),
        ("POSTRIDER_LOCAL", "sales"),
        ("POSTRIDER_RECIPIENT", "sales@example.com"),
        ("POSTRIDER_SENDER", "ann@sender.example"),
        ("POSTRIDER_SIZE", "24"),
        ("POSTRIDER_TARGET", "script"),
    ];
    assert_eq!(environment, BTreeMap::from(wanted));
    // What this process has opened is not among its files; what it was started with may be.
    let files = script.text("files");
    assert!(files.contains(" 0 -> ") && files.contains("OUT/files".replace("OUT", &folder).as_str()), "{files}");
    for link in [fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap(), own] {
        assert!(!files.contains(link.to_str().unwrap()), "{} is open in the program: {files}", link.display());
    }
}

#[tokio::test]
async fn the_end_of_a_program_says_what_becomes_of_the_mail() {
    let job = small();
    let run = async |text: &str| Script::new(text).pipe(&[], "30s").deliver(&job).await.remove(0).1;
    assert!(matches!(run("exit 0").await, Outcome::Delivered(_)));
    let later = run("echo 'not now' >&2; exit 75").await;
    assert!(
        !deferred(&later).unsure && deferred(&later).reason.ends_with("asks for another try: not now"),
        "{later:?}"
    );
    for (code, status) in [(1, "5.3.0"), (64, "5.3.0"), (65, "5.6.0"), (67, "5.1.1"), (77, "5.7.1"), (127, "5.3.0")] {
        let refused = run(&format!("echo so\nexit {code}")).await;
        let why = failed(&refused);
        assert_eq!((why.status.as_str(), why.host.as_str()), (status, "script"));
        assert_eq!(why.reason, format!("/bin/sh ended with {code}: so"));
    }
    let killed = run("kill -9 $$").await;
    assert!(deferred(&killed).unsure && deferred(&killed).reason.contains("was ended by signal 9"), "{killed:?}");
}

#[tokio::test]
async fn what_a_program_says_is_read_up_to_a_bound_and_told_on_one_line() {
    let script = "head -c 5000000 /dev/zero | tr '\\0' x\nprintf 'one\\r\\ntwo \\033[31m\\000three\\n' >&2\n\
        head -c 5000000 /dev/zero | tr '\\0' y >&2\nexit 1\n";
    // Neither side waits for the other: it does not read what it is given.
    let job = job(&b"a line of text\r\n".repeat(300_000), &["sales@example.com"]);
    let outcome = Script::new(script).pipe(&[], "60s").deliver(&job).await.remove(0).1;
    let why = failed(&outcome);
    assert!(why.reason.starts_with("/bin/sh ended with 1: one two [31m three yyyy"), "{}", why.reason);
    assert!(why.reason.len() < 400, "{}", why.reason.len());
}

#[tokio::test]
async fn a_large_message_arrives_whole() {
    let script = Script::new("cat > OUT/input");
    let content = b"a line of text\r\n".repeat(300_000);
    let outcomes = script.pipe(&[], "60s").deliver(&job(&content, &["sales@example.com"])).await;
    assert!(matches!(outcomes[0].1, Outcome::Delivered(_)), "{outcomes:?}");
    let input = script.text("input");
    let (head, body) = input.split_at(input.find("a line").unwrap());
    assert_eq!(head, "Return-Path: <ann@sender.example>\nDelivered-To: sales@example.com\n");
    assert_eq!(body, "a line of text\n".repeat(300_000));
}

#[tokio::test]
async fn a_program_that_does_not_end_is_ended_with_all_it_has_started() {
    let script = Script::new("sleep 1000 & echo $! > OUT/child\necho $$ > OUT/own\necho busy\nwait\n");
    let job = job(b"Subject: x\r\n\r\n", &["a@example.com", "b@example.com"]);
    let outcomes = script.pipe(&[], "1s").deliver(&job).await;
    let why = deferred(&outcomes[0].1);
    assert!(why.unsure && why.reason == "/bin/sh had not ended after 1 s (targets.script.timeout): busy", "{why:?}");
    until_gone(&script.text("own")).await;
    until_gone(&script.text("child")).await;
    // The second was not tried.
    assert!(!deferred(&outcomes[1].1).unsure);
}

#[tokio::test]
async fn what_a_program_leaves_running_holds_nobody_up() {
    let script = Script::new("sleep 1000 & echo $! > OUT/child\nexit 0\n");
    let outcomes = script.pipe(&[], "30s").deliver(&small()).await;
    assert!(matches!(outcomes[0].1, Outcome::Delivered(_)), "{outcomes:?}");
    let child = rustix::process::Pid::from_raw(script.text("child").trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(child, rustix::process::Signal::KILL).expect("it is left alone");
}

#[tokio::test]
async fn what_cannot_be_started_is_tried_again_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    for (program, reason) in [("/nonexistent/x", "No such file"), (plain.to_str().unwrap(), "Permission denied")] {
        let job = job(b"Subject: x\r\n\r\n", &["a@example.com", "b@example.com"]);
        let outcomes = pipe(&[program], "30s").deliver(&job).await;
        for (_, outcome) in &outcomes {
            let why = deferred(outcome);
            assert!(why.reason.starts_with(&format!("{program} cannot be started: {reason}")), "{}", why.reason);
            assert!(why.reason.ends_with("or correct targets.script.command") && !why.unsure, "{}", why.reason);
        }
    }
}

/// The values of the set as they are, where they are addresses, else quoted.
fn addresses(values: &[String]) -> (Vec<Address>, usize) {
    let quoted = |value: &str| {
        let (local, domain) = value.rsplit_once('@').unwrap();
        let local: String =
            local.chars().flat_map(|c| if "\"\\".contains(c) { vec!['\\', c] } else { vec![c] }).collect();
        Address::parse(&format!("\"{local}\"@{domain}")).ok()
    };
    let found: Vec<Option<Address>> =
        values.iter().map(|value| Address::parse(value).ok().or_else(|| quoted(value))).collect();
    let refused = found.iter().filter(|found| found.is_none()).count();
    (found.into_iter().flatten().collect(), refused)
}

#[tokio::test]
async fn no_sender_of_the_attack_set_becomes_more_than_an_argument() {
    let set = include_str!("data/fs-attacks/cases.yml");
    let line = set.lines().find_map(|line| line.trim().strip_prefix("sender_values: ")).unwrap();
    let values: Vec<String> = serde_json::from_str(line).unwrap();
    assert_eq!(values.len(), 12);
    let (addresses, refused) = addresses(&values);
    // The one with a line end in it is no address in any form.
    assert_eq!((addresses.len(), refused), (11, 1));
    let mut options = 0;
    for address in addresses {
        let mut job = small();
        Arc::make_mut(&mut job.message).mail_from = ReversePath::Address(address.clone());
        job.recipients[0].1.address = address.clone();
        let text = address.to_string();
        let script = Script::new(RECORDER);
        let guarded = script.pipe(&["-f={sender}", "--", "{sender}", "{recipient}"], "30s").deliver(&job).await;
        assert!(matches!(guarded[0].1, Outcome::Delivered(_)), "{text}: {guarded:?}");
        assert_eq!(script.arguments(), [format!("-f={text}"), "--".to_owned(), text.clone(), text.clone()]);
        let environment = script.text("environment");
        assert!(environment.split('\0').any(|line| line == format!("POSTRIDER_SENDER={text}")), "{environment}");
        assert!(!environment.split('\0').any(|line| line.contains("=()")), "{environment}");
        // Bytes that are no line end in the input either.
        assert!(script.text("input").starts_with(&format!("Return-Path: <{text}>\nDelivered-To: {text}\nSubject:")));

        let bare = Script::new(RECORDER).pipe(&["{sender}"], "30s").deliver(&job).await;
        if text.starts_with('-') {
            options += 1;
            let why = failed(&bare[0].1);
            assert!(why.status == "5.1.7" && why.reason.contains("would be an option"), "{why:?}");
        } else {
            assert!(matches!(bare[0].1, Outcome::Delivered(_)), "{text}: {bare:?}");
        }
    }
    assert_eq!(options, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_ends_its_programs_and_the_next_one_tries_again() {
    let folder = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let script = out.path().join("script");
    let text = "sleep 1000 & echo $! >> OUT/children\necho $$ >> OUT/own\nwait\n";
    fs::write(&script, text.replace("OUT", out.path().to_str().unwrap())).unwrap();
    let conf = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n[listeners.mx]\nrole = \"mx\"\n\
         bind = [\"127.0.0.1:0\"]\n[queue]\nmin_free = \"1MiB\"\n[domains.\"home.test\"]\n[aliases]\n\
         \"info@home.test\" = \"script\"\n[targets.script]\nkind = \"pipe\"\ncommand = [\"/bin/sh\", \"{}\"]\n\
         timeout = \"5m\"\n[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\n",
        script.display()
    );
    let server = Served::start(folder.path(), &conf, 1).await;
    let mut client = Client::connect(server.door("mx")).await.unwrap();
    let reply = client
        .send("ann@known.test", &["info@home.test"], "From: ann@known.test\r\nSubject: x\r\n\r\ntext\r\n")
        .await
        .unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let pids = async |count: usize| {
        loop {
            let lines = |name: &str| lines(&out.path().join(name));
            let (own, children) = (lines("own"), lines("children"));
            if own.len() == count && children.len() == count {
                return [own, children].concat();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let first = pids(1).await;
    assert!(first.iter().all(|pid| !is_gone(pid)));
    server.stop_at_once().await;
    for pid in &first {
        until_gone(pid).await;
    }
    let server = Served::start(folder.path(), &conf, 1).await;
    let both = pids(2).await;
    server.stop_at_once().await;
    for pid in &both {
        until_gone(pid).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_groups_of_a_pattern_found_reaches_the_program_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let script = out.path().join("script");
    // The first run does not end.
    let text = "echo \"$1 $2 $POSTRIDER_GROUP_ID $POSTRIDER_GROUP_KIND_OF ${POSTRIDER_GROUP_REST-none}\" >> OUT/seen\n\
                [ \"$(wc -l < OUT/seen)\" -gt 1 ] || exec sleep 1000\n";
    fs::write(&script, text.replace("OUT", out.path().to_str().unwrap())).unwrap();
    let conf = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"DATA_DIR\"\n[listeners.mx]\nrole = \"mx\"\n\
         bind = [\"127.0.0.1:0\"]\n[queue]\nmin_free = \"1MiB\"\n[domains.\"home.test\"]\n[aliases]\n\
         '/^(?P<kind_of>ticket|order)-(?P<id>[-0-9]+)(?P<rest>x)?@home\\.test$/' = \"script\"\n\
         [targets.script]\nkind = \"pipe\"\n\
         command = [\"/bin/sh\", \"{}\", \"--ticket={{group.id}}\", \"{{group.kind_of}}\"]\n\
         timeout = \"5m\"\n[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\n",
        script.display()
    );
    let seen = async |count: usize| {
        loop {
            let lines = lines(&out.path().join("seen"));
            if lines.len() == count {
                return lines;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let server = Served::start(folder.path(), &conf, 1).await;
    let mut client = Client::connect(server.door("mx")).await.unwrap();
    let reply = client
        .send("ann@known.test", &["Ticket--42@home.test"], "From: ann@known.test\r\nSubject: x\r\n\r\ntext\r\n")
        .await
        .unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    let wanted = "--ticket=-42 ticket -42 ticket none";
    assert_eq!(seen(1).await, [wanted]);
    server.stop_at_once().await;
    let server = Served::start(folder.path(), &conf, 1).await;
    assert_eq!(seen(2).await, [wanted, wanted]);
    server.stop_at_once().await;
}

/// Whole ones.
fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n').filter(|line| line.ends_with('\n')).map(|line| line.trim().to_owned()).collect()
}
