//! The built binary as a person or a script uses it: help, exit statuses, and every queue command
//! against a server whose queue is a list in memory behind the real admin socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use postrider::admin::view::{Recipient, Status};
use postrider::admin::{
    Action, AdminSocket, Backend, Changed, Filter, Listed, ListenerStatus, Page, Pick, Selection, ServerStatus, Story,
    Trouble,
};
use postrider::clock::{Millis, rfc3339};
use postrider::events::{Entry, Event};
use postrider::intake::Once;
use postrider::intake::idempotency::Key;
use postrider::message::{Address, Door, Draft, MessageId, Origin, ReversePath};
use postrider::queue::record::Route;
use postrider::smtp::Reply;
use postrider::smtp::reply::Refusal;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// The fake server's clock: Sat, 21 Nov 2026 22:26:57 UTC.
const NOW: u64 = 1_795_300_017_000;
const HOUR: u64 = 3_600_000;
const MAX_SIZE: u64 = 10_000;

fn postrider() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_has_help_with_examples() {
    let commands: [&[&str]; 38] = [
        &[],
        &["explain"],
        &["serve"],
        &["demo"],
        &["check"],
        &["dns"],
        &["send"],
        &["pickup"],
        &["queue"],
        &["queue", "list"],
        &["queue", "show"],
        &["queue", "retry"],
        &["queue", "hold"],
        &["queue", "release"],
        &["queue", "cancel"],
        &["queue", "export"],
        &["queue", "import"],
        &["log"],
        &["store"],
        &["store", "check"],
        &["store", "backup"],
        &["store", "restore"],
        &["store", "compact"],
        &["suppress"],
        &["suppress", "list"],
        &["suppress", "add"],
        &["suppress", "remove"],
        &["suppress", "import"],
        &["suppress", "export"],
        &["suppress", "explain"],
        &["smart-host"],
        &["smart-host", "test"],
        &["account"],
        &["account", "hash"],
        &["account", "test"],
        &["fetch", "test"],
        &["target"],
        &["target", "test"],
    ];
    for command in commands {
        let output = postrider().args(command).arg("--help").output().unwrap();
        let text = stdout(&output);
        assert_eq!(output.status.code(), Some(0), "{command:?}");
        assert!(
            text.contains("Examples:\n  postrider ") || text.contains("Examples:\n  openssl"),
            "{command:?}: {text}"
        );
        assert!(text.contains("--config"), "{command:?}: {text}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    let id = "0000000000001";
    let commands: [&[&str]; 9] = [
        &[],
        &["sreve"],
        &["queue", "show", "not-an-id"],
        &["queue", "list", "--status", "lost"],
        &["queue", "list", "--older", "4"],
        &["send", "--from", "a@example.com"],
        &["send", "--from", "no address", "--to", "b@example.net"],
        &["send", "--from", "a@example.com", "--to", "b@example.net", "--file", "-", "--body", "x"],
        &["queue", "retry", id, "--what"],
    ];
    for command in commands {
        let output = postrider().args(command).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{command:?}");
    }
}

#[test]
fn a_wrong_configuration_ends_with_2_whatever_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    std::fs::write(&file, "hostname = \"mail.example.com\"\ndata_dri = \"/tmp\"\n").unwrap();
    for command in [&["check"][..], &["serve"], &["queue", "list"], &["dns", "example.com"]] {
        let output = postrider().args(command).arg("--config").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        let text = stderr(&output);
        assert!(text.contains("postrider.toml:2: data_dri: "), "{command:?}: {text}");
    }
}

#[test]
fn a_file_that_is_not_there_ends_with_2_whatever_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let (file, none) = (folder.path().join("postrider.toml"), folder.path().join("none.json"));
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = {:?}\n[accounts.shop]\npassword = \"x\"\n",
        folder.path().join("data")
    );
    std::fs::write(&file, text).unwrap();
    let none = none.to_str().unwrap();
    for command in [
        &["check", "--config", none][..],
        &["check", "--dns", "--config", none],
        &["serve", "--config", none],
        &["reload", "--config", none],
        &["config", "show", "--config", none],
        &["account", "list", "--config", none],
        &["store", "check", "--config", none],
        &["send", "--from", "a@example.com", "--to", "b@example.com", "--file", none],
        &["account", "test", "shop", "--password-file", none],
        &["suppress", "import", none],
        &["queue", "import", none],
        &["pickup", "check", none],
        &["store", "restore", none],
    ] {
        let given = if command.contains(&"--config") { vec![] } else { vec!["--config", file.to_str().unwrap()] };
        let output = postrider().args(command).args(given).output().unwrap();
        assert!(stderr(&output).contains(none), "{command:?}: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(2), "{command:?}: {}", stderr(&output));
    }
}

#[test]
fn a_password_from_standard_input_becomes_a_hash() {
    let hash = |password: &str, arguments: &[&str]| {
        let mut command = postrider();
        command.args(["account", "hash"]).args(arguments).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), password.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    let output = hash("s3cret\n", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).starts_with("$argon2id$v=19$"), "{}", stdout(&output));
    assert_ne!(stdout(&output), stdout(&hash("s3cret\n", &[])), "every hash has a salt of its own");
    let json: Value = serde_json::from_str(&stdout(&hash("s3cret", &["--json"]))).unwrap();
    assert!(json["password_hash"].as_str().unwrap().starts_with("$argon2id$"));
    assert_eq!(hash("\n", &[]).status.code(), Some(2));

    // The configuration takes it as it is.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = \"/tmp\"\n[domains.\"example.com\"]\n\
         [accounts.shop]\npassword_hash = \"{}\"\n",
        stdout(&output).trim_end()
    );
    std::fs::write(&file, text).unwrap();
    let output = postrider().args(["check", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn without_a_server_the_error_names_the_socket_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = write_config(folder.path());
    for command in [&["queue", "list"][..], &["send", "--from", "a@example.com", "--to", "b@example.net"]] {
        let output = postrider().args(command).arg("--config").arg(&config).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(text.contains("admin.sock") && text.contains("postrider serve"), "{text}");
        assert!(output.stdout.is_empty());
    }
}

fn write_config(folder: &std::path::Path) -> PathBuf {
    let file = folder.join("postrider.toml");
    let data_dir = toml::Value::String(folder.display().to_string());
    std::fs::write(
        &file,
        format!("hostname = \"mail.example.com\"\ndata_dir = {data_dir}\n[domains.\"example.com\"]\n"),
    )
    .unwrap();
    file
}

/// A queue in memory; submitted drafts are kept to be looked at.
struct Fake {
    queue: Mutex<Vec<Listed>>,
    submitted: Mutex<Vec<Draft>>,
}

impl Fake {
    fn selected(&self, selection: &Selection) -> Vec<(MessageId, u32, Status)> {
        let (ids, filter) = match &selection.pick {
            Pick::Ids(ids, filter) => (Some(ids), filter),
            Pick::Matching(filter) => (None, filter),
        };
        let queue = self.queue.lock().unwrap();
        let named = queue.iter().filter(|listed| ids.is_none_or(|ids| ids.contains(&listed.id)));
        let fitting = named.filter_map(|listed| filter.apply(listed.clone(), NOW));
        fitting.flat_map(|m| m.recipients.into_iter().map(move |r| (m.id, r.number, r.status))).collect()
    }
}

impl Backend for Fake {
    async fn list(&self, filter: Filter, page: Page) -> Result<Vec<Listed>, Trouble> {
        if filter.domain.as_deref() == Some("trouble.example") {
            return Err(Trouble::new("the disk is on fire"));
        }
        let queue = self.queue.lock().unwrap().clone();
        let after = queue.into_iter().filter(|listed| page.after.is_none_or(|after| listed.id > after));
        Ok(after.filter_map(|listed| filter.apply(listed, NOW)).take(page.limit).collect())
    }

    async fn story(&self, id: MessageId) -> Result<Option<Story>, Trouble> {
        let message = self.queue.lock().unwrap().iter().find(|listed| listed.id == id).cloned();
        let accepted = Event::Accepted {
            origin: Origin { door: Door::Admin, account: None, peer: None },
            from: ReversePath::Null,
            recipients: 2,
            size: 2150,
            message_id: "1@example.com".into(),
            subject: "Hello".into(),
            signed: vec![],
            checked: String::new(),
            stream: String::new(),
        };
        Ok(message.map(|message| Story {
            id,
            message: Some(message),
            damaged: Vec::new(),
            entries: vec![Entry { at: NOW, event: accepted }],
        }))
    }

    async fn change(&self, action: Action, selection: Selection) -> Result<Changed, Trouble> {
        let mut selected = self.selected(&selection);
        selected.retain(|(_, _, status)| action.fits(*status));
        let count = selected.len();
        if !selection.dry_run {
            for listed in self.queue.lock().unwrap().iter_mut() {
                let is_selected = |r: &Recipient| selected.iter().any(|(id, n, _)| *id == listed.id && *n == r.number);
                match action {
                    Action::Cancel => listed.recipients.retain(|recipient| !is_selected(recipient)),
                    Action::Hold => {
                        listed.recipients.iter_mut().filter(|r| is_selected(r)).for_each(|r| r.status = Status::Held);
                    }
                    Action::Retry | Action::Release => {
                        listed
                            .recipients
                            .iter_mut()
                            .filter(|r| is_selected(r))
                            .for_each(|r| r.status = Status::Waiting);
                    }
                }
            }
        }
        Ok(Changed { recipients: count, waiting: Vec::new() })
    }

    fn now(&self) -> Millis {
        NOW
    }

    async fn submit(&self, draft: Draft, _: Option<Key>) -> Result<Once, Refusal> {
        if draft.envelope.recipients.iter().any(|r| r.address.to_string() == "nobody@example.com") {
            return Err(Refusal {
                reply: Reply::new(550, (1, 1), "no such address"),
                reason: "no alias takes nobody@example.com".into(),
            });
        }
        self.submitted.lock().unwrap().push(draft);
        Ok(Once { id: MessageId::from_u64(99), is_repeated: false })
    }

    async fn status(&self) -> ServerStatus {
        ServerStatus {
            version: "0".into(),
            hostname: "mail.example.com".into(),
            started_at: NOW,
            listeners: vec![ListenerStatus {
                name: "mx".into(),
                role: "mx".into(),
                address: "127.0.0.1:25".parse().unwrap(),
            }],
        }
    }
}

/// The fake behind the real socket, and the binary told where it is.
struct Server {
    folder: tempfile::TempDir,
    fake: Arc<Fake>,
    config: PathBuf,
    stop: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Server {
    fn start(queue: Vec<Listed>) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let config = write_config(folder.path());
        let fake = Arc::new(Fake { queue: Mutex::new(queue), submitted: Mutex::default() });
        let stop = CancellationToken::new();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let socket = runtime.block_on(async { AdminSocket::bind(folder.path()).unwrap() });
        runtime.spawn(socket.serve(fake.clone(), MAX_SIZE, stop.clone()));
        Server { folder, fake, config, stop, runtime: Some(runtime) }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        postrider().args(arguments).arg("--config").arg(&self.config).output().unwrap()
    }

    /// A command that has to succeed, and its output.
    fn say(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
        stdout(&output)
    }

    fn ids(&self, filters: &[&str]) -> Vec<u64> {
        let text = self.say(&[&["queue", "list", "--json"], filters].concat());
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        text.lines().map(|line| id(line).parse::<MessageId>().unwrap().as_u64()).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn listed(id: u64, from: &str, hours_old: u64, recipients: &[(&str, Status)]) -> Listed {
    let recipient = |(number, (address, status)): (usize, &(&str, Status))| Recipient {
        number: number as u32,
        address: Address::parse(address).unwrap(),
        alias: None,
        route: Route::Remote,
        status: *status,
        due: (*status == Status::Waiting).then_some(NOW + HOUR),
        held_because: (*status == Status::Held).then(|| "by hand".to_owned()),
        held_by: None,
        kept_back: None,
        keeps_pace: false,
        attempts: 0,
        last_failure: None,
    };
    Listed {
        id: MessageId::from_u64(id),
        received_at: NOW - hours_old * HOUR,
        from: Address::parse(from).map_or(ReversePath::Null, ReversePath::Address),
        size: 2150,
        subject: format!("Message {id}"),
        message_id: format!("{id}@example.com"),
        stream: "transactional".to_owned(),
        recipients: recipients.iter().enumerate().map(recipient).collect(),
    }
}

fn three_messages() -> Vec<Listed> {
    vec![
        listed(1, "a@example.com", 50, &[("bob@example.net", Status::Waiting), ("eve@example.org", Status::Held)]),
        listed(2, "b@example.com", 5, &[("bob@example.net", Status::Held)]),
        listed(3, "", 1, &[("carol@example.org", Status::Captured)]),
    ]
}

#[test]
fn the_queue_is_listed_and_filtered() {
    let server = Server::start(three_messages());
    assert_eq!(server.ids(&[]), [1, 2, 3]);
    assert_eq!(server.ids(&["--to", "bob@example.net"]), [1, 2]);
    assert_eq!(server.ids(&["--to", "carol"]), [3]);
    assert_eq!(server.ids(&["--domain", "example.org"]), [1, 3]);
    assert_eq!(server.ids(&["--from", "<>"]), [3]);
    assert_eq!(server.ids(&["--status", "held"]), [1, 2]);
    assert_eq!(server.ids(&["--status", "held", "--domain", "example.net"]), [2]);
    assert_eq!(server.ids(&["--older", "2d"]), [1]);
    assert_eq!(server.ids(&["--limit", "2"]), [1, 2]);

    let text = server.say(&["queue", "list"]);
    assert!(text.contains("0000000000001  2026-11-19 20:26:57 UTC"), "{text}");
    assert!(text.contains("→ eve@example.org    held: by hand"), "{text}");
    assert!(text.ends_with("3 messages.\n"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours outside a terminal");
    assert_eq!(server.say(&["queue", "list", "--to", "nobody"]), "No queued message is like that.\n");

    let line = server.say(&["queue", "list", "--json", "--status", "held", "--limit", "1"]);
    let json: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["received_at"], rfc3339(NOW - 50 * HOUR));
    assert_eq!(json["recipients"].as_array().unwrap().len(), 1, "only what the filter takes: {json}");
    assert_eq!(json["recipients"][0]["due"], Value::Null);
}

#[test]
fn a_long_list_comes_in_pages() {
    let queue = (1..=2100).map(|id| listed(id, "a@example.com", 1, &[("b@example.net", Status::Waiting)])).collect();
    let server = Server::start(queue);
    assert_eq!(server.ids(&["--limit", "0"]), (1..=2100).collect::<Vec<u64>>());
    assert_eq!(server.ids(&["--limit", "1500"]).len(), 1500);
    assert_eq!(server.ids(&[]).len(), 100);
    let text = server.say(&["queue", "list"]);
    assert!(text.ends_with("The oldest 100; there may be more: --limit 0 shows all.\n"), "{text}");
}

#[test]
fn a_story_is_shown() {
    let server = Server::start(three_messages());
    let text = server.say(&["queue", "show", "0000000000001"]);
    assert!(text.contains("22:26:57 accepted from the admin socket, 2.0 KiB, from <> (the null sender)"), "{text}");
    let json: Value = serde_json::from_str(&server.say(&["queue", "show", "0000000000001", "--json"])).unwrap();
    assert_eq!(json["entries"][0]["at"], rfc3339(NOW));
    assert_eq!(json["message"]["subject"], "Message 1");
    let output = server.run(&["queue", "show", "0000000000009"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no message 0000000000009 is known here"), "{}", stderr(&output));
}

#[test]
fn actions_reach_exactly_what_is_selected() {
    let server = Server::start(three_messages());
    let dry = server.say(&["queue", "release", "--to", "bob", "--dry-run"]);
    assert_eq!(dry, "1 recipient would be released; nothing was changed.\n");
    assert_eq!(server.ids(&["--status", "held"]), [1, 2]);

    assert_eq!(server.say(&["queue", "release", "--to", "bob"]), "1 recipient released.\n");
    assert_eq!(server.ids(&["--status", "held"]), [1]);
    assert_eq!(server.say(&["queue", "hold", "0000000000001", "0000000000002"]), "2 recipients held.\n");
    assert_eq!(server.ids(&["--status", "held"]), [1, 2]);
    assert_eq!(server.say(&["queue", "retry", "0000000000001", "--to", "eve"]), "1 recipient due now.\n");
    let json: Value = serde_json::from_str(&server.say(&["queue", "retry", "--all", "--json"])).unwrap();
    assert_eq!(json, serde_json::json!({ "action": "retry", "recipients": 3, "dry_run": false }));

    assert_eq!(server.say(&["queue", "cancel", "--domain", "example.net"]), "2 recipients cancelled.\n");
    assert_eq!(server.ids(&[]), [1, 3]);
    assert_eq!(server.say(&["queue", "cancel", "--to", "nobody"]), "0 recipients cancelled.\n");
    let output = server.run(&["queue", "cancel", "0000000000009"]);
    assert_eq!(output.status.code(), Some(1), "an id that is named has to be there");
}

#[test]
fn an_action_on_nothing_in_particular_is_refused() {
    let server = Server::start(three_messages());
    for arguments in
        [&["queue", "cancel"][..], &["queue", "cancel", "--dry-run"], &["queue", "cancel", "--all", "--to", "x"]]
    {
        let output = server.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(server.ids(&[]), [1, 2, 3]);
}

#[test]
fn messages_are_submitted() {
    let server = Server::start(Vec::new());
    let send = ["send", "--from", "a@example.com", "--to", "b@example.net", "--to", "c+d@example.net"];
    let text = server.say(&[&send[..], &["--subject", "Grüße", "--body", "one\ntwo"]].concat());
    assert_eq!(text.trim_end(), MessageId::from_u64(99).to_string());
    let file = server.folder.path().join("message.eml");
    std::fs::write(&file, "From: a@example.com\nSubject: x\n\nLF lines\nno end").unwrap();
    server.say(&[&send[..], &["--file", file.to_str().unwrap(), "--json"]].concat());

    let drafts = server.fake.submitted.lock().unwrap();
    let [composed, from_file] = drafts.as_slice() else { panic!("{drafts:?}") };
    assert_eq!(composed.envelope.mail_from.to_string(), "a@example.com");
    let to: Vec<String> = composed.envelope.recipients.iter().map(|r| r.address.to_string()).collect();
    assert_eq!(to, ["b@example.net", "c+d@example.net"]);
    assert_eq!(composed.origin.door, Door::Admin);
    let text = String::from_utf8(composed.content.head().to_vec()).unwrap();
    assert!(
        text.contains("\r\nSubject: =?utf-8?B?R3LDvMOfZQ==?=\r\n") && text.ends_with("\r\n\r\none\r\ntwo\r\n"),
        "{text}"
    );
    assert_eq!(from_file.content.head(), &b"From: a@example.com\r\nSubject: x\r\n\r\nLF lines\r\nno end\r\n"[..]);
}

#[test]
fn refusals_and_trouble_reach_the_person() {
    let server = Server::start(Vec::new());
    let output = server.run(&["send", "--from", "a@example.com", "--to", "nobody@example.com"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no alias takes nobody@example.com"), "{}", stderr(&output));
    assert!(output.stdout.is_empty());

    let file = server.folder.path().join("big.eml");
    std::fs::write(&file, format!("Subject: x\n\n{}", "x".repeat(MAX_SIZE as usize))).unwrap();
    let output =
        server.run(&["send", "--from", "a@example.com", "--to", "b@example.com", "--file", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("limits.max_size"), "{}", stderr(&output));

    let output = server.run(&["queue", "list", "--domain", "trouble.example"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the disk is on fire"), "{}", stderr(&output));
}

/// What other programs may send to the socket.
#[test]
fn the_api_answers_in_json_also_when_it_refuses() {
    let server = Server::start(three_messages());
    let ask = |method: &str, path: &str, kind: &str, body: &str| {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(server.folder.path().join("admin.sock")).unwrap();
        let length = body.len();
        // In one piece: a refusal may come, and the socket be closed, as soon as the first line is there.
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status: u16 = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str::<Value>(body).unwrap_or_else(|error| panic!("{path}: {error}: {answer}")))
    };
    let json = "application/json";
    assert_eq!(ask("GET", "/healthz", json, ""), (200, serde_json::json!({ "status": "ok" })));
    let (status, page) = ask("GET", "/api/v1/queue?limit=2", json, "");
    assert_eq!((status, page["messages"].as_array().unwrap().len()), (200, 2));
    assert_eq!(page["next"], "0000000000002");
    assert_eq!(ask("GET", "/api/v1/queue?limit=2&after=0000000000002", json, "").1["next"], Value::Null);
    assert_eq!(ask("GET", "/api/v1/status", json, "").1["listeners"][0]["address"], "127.0.0.1:25");
    let good = r#"{"from":"a@example.com","to":["b@example.net"],"raw":"Subject: x\n\ny"}"#;
    assert_eq!(ask("POST", "/api/v1/messages", json, good).0, 202);

    for (method, path, kind, body, expected) in [
        ("GET", "/api/v1/nothing", json, "", 404),
        ("DELETE", "/api/v1/queue", json, "", 405),
        ("GET", "/api/v1/queue?too=x", json, "", 400),
        ("GET", "/api/v1/queue?older_than=4", json, "", 400),
        ("GET", "/api/v1/queue/zzz", json, "", 400),
        ("GET", "/api/v1/queue/0000000000009", json, "", 404),
        ("POST", "/api/v1/queue/cancel", json, "{}", 400),
        ("POST", "/api/v1/queue/cancel", json, r#"{"fliter":{"to":"x"}}"#, 422),
        ("POST", "/api/v1/queue/cancel", "text/plain", "{}", 415),
        ("POST", "/api/v1/queue/explode", json, "{}", 405),
        ("POST", "/api/v1/messages", "text/html", "x", 415),
        ("POST", "/api/v1/messages?to=b@example.net", "message/rfc822", "x", 400),
        ("POST", "/api/v1/messages?from=a@example.com", "message/rfc822", "x", 400),
        ("POST", "/api/v1/messages?from=a@example.com&to=b%0d%0a@x", "message/rfc822", "x", 400),
        ("POST", "/api/v1/messages?from=a@example.com&to=b@example.net", "message/rfc822", "", 413),
        ("POST", "/api/v1/messages", json, r#"{"from":"a@example.com","to":[],"raw":"x"}"#, 400),
        ("POST", "/api/v1/messages", json, "not json", 400),
    ] {
        let (status, answer) = ask(method, path, kind, body);
        assert_eq!(status, expected, "{method} {path} {body}: {answer}");
        assert!(answer["error"].is_string() && answer["remedy"].is_string(), "{method} {path}: {answer}");
    }
    assert_eq!(server.ids(&[]), [1, 2, 3], "nothing was changed by what was refused");
}

/// The server's own problems at its start: each in one line that says what to do.
#[test]
fn a_server_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    std::fs::write(path("a file"), "").unwrap();
    let serve = |data_dir: &str, bind: &str| {
        let file = path("postrider.toml");
        std::fs::write(&file, server_config(&path(data_dir), bind)).unwrap();
        let output = postrider().args(["serve", "--config"]).arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        stderr(&output)
    };
    let text = serve("free", &address.to_string());
    assert!(text.contains(&format!("postrider: listeners.mx: cannot listen on {address}")), "{text}");
    let text = serve("a file", "127.0.0.1:0");
    assert!(text.contains("a file: the folder cannot be made or written") && text.contains("data_dir"), "{text}");
    let _other = postrider::store::Store::open(&path("used").join("store")).unwrap();
    let text = serve("used", "127.0.0.1:0");
    assert!(text.contains("used/store: another postrider has it open"), "{text}");
}

fn server_config(data_dir: &std::path::Path, bind: &str) -> String {
    let data_dir = toml::Value::String(data_dir.display().to_string());
    format!(
        "hostname = \"mail.example.com\"\ndata_dir = {data_dir}\n[domains.\"example.com\"]\n\
         [listeners.mx]\nrole = \"mx\"\nbind = [\"{bind}\"]\n[delivery]\ndefault = \"capture\"\n"
    )
}

/// Reading the configuration does not look into these files; `check` does.
#[test]
fn check_finds_a_certificate_that_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    let pem = folder.path().join("junk.pem");
    std::fs::write(&pem, "junk\n").unwrap();
    let pem = toml::Value::String(pem.display().to_string());
    let text =
        server_config(folder.path(), "127.0.0.1:0") + &format!("[tls]\ncertificate = {pem}\nprivate_key = {pem}\n");
    std::fs::write(&file, text).unwrap();
    let output = postrider().args(["check", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("postrider.toml:10: tls: ") && text.contains("junk.pem: holds no certificate"), "{text}");
    assert!(text.ends_with("1 problem\n"), "{text}");
    let output = postrider().args(["check", "--json", "--config"]).arg(&file).output().unwrap();
    let json: Value = serde_json::from_str(&stderr(&output)).unwrap();
    assert_eq!((&json["key"], &json["kind"]), (&"tls".into(), &"bad_value".into()), "{json}");
}

#[test]
fn check_finds_a_dkim_key_that_is_none_where_the_server_would_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    let pem = folder.path().join("junk.pem");
    std::fs::write(&pem, "junk\n").unwrap();
    let pem = toml::Value::String(pem.display().to_string());
    let keys = format!("[domains.\"Home.test\".dkim]\nkey_files = {{ s1 = {pem}, s2 = {pem} }}\n");
    std::fs::write(&file, server_config(&folder.path().join("data"), "127.0.0.1:0") + &keys).unwrap();
    let run = |arguments: &[&str]| {
        let output = postrider().args(arguments).arg("--config").arg(&file).output().unwrap();
        (output.status.code(), stderr(&output))
    };
    let (code, text) = run(&["check"]);
    assert_eq!(code, Some(2), "{text}");
    for selector in ["s1", "s2"] {
        let place = format!("postrider.toml:10: domains.\"home.test\".dkim.key_files.{selector}: ");
        let line = text.lines().find(|line| line.contains(&place)).unwrap_or_else(|| panic!("no {place}: {text}"));
        assert!(line.contains("junk.pem: is not a private key in PEM form. Name a file with an RSA"), "{text}");
    }
    assert!(text.ends_with("2 problems\n"), "{text}");
    assert!(!folder.path().join("data").exists(), "nothing is made");
    let (code, json) = run(&["check", "--json"]);
    let first: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    assert_eq!((code, &first["line"], &first["kind"]), (Some(2), &10.into(), &"bad_value".into()), "{json}");
    // The server says the same of it.
    let (code, text) = run(&["serve"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("postrider.toml:10: domains.\"home.test\".dkim.key_files.s1: "), "{text}");
}

/// A `postrider serve` of its own, and what it has logged. Killed when dropped.
struct Served {
    child: std::process::Child,
    config: PathBuf,
    log: std::io::Lines<std::io::BufReader<std::process::ChildStderr>>,
}

impl Served {
    fn start(folder: &std::path::Path, more: &str) -> Served {
        let config = folder.join("postrider.toml");
        std::fs::write(&config, server_config(&folder.join("data"), "127.0.0.1:0") + more).unwrap();
        let mut command = postrider();
        command.args(["serve", "--config"]).arg(&config).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let log = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
        let mut served = Served { child, config, log };
        served.logged("listening");
        served
    }

    /// The next line of the log that contains this.
    fn logged(&mut self, what: &str) -> String {
        let mut seen = Vec::new();
        for line in self.log.by_ref() {
            let line = line.unwrap();
            if line.contains(what) {
                return line;
            }
            seen.push(line);
        }
        panic!("the log ended without {what:?}: {seen:#?}")
    }

    fn say(&self, arguments: &[&str]) -> String {
        let output = postrider().args(arguments).arg("--config").arg(&self.config).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    fn terminate(mut self) -> (std::process::ExitStatus, Vec<String>) {
        self.signal(rustix::process::Signal::TERM);
        let rest = self.log.by_ref().map(Result::unwrap).collect();
        (self.child.wait().unwrap(), rest)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The whole of it, without a fake: serve, send, look, take out, stop.
#[test]
fn a_served_queue_is_looked_after_from_the_command_line() {
    let folder = tempfile::tempdir().unwrap();
    let mut served = Served::start(folder.path(), "[log]\nformat = \"json\"\n");
    let send = ["send", "--from", "a@example.com", "--to", "b@example.net", "--subject", "Hello"];
    let id = served.say(&send).trim_end().to_owned();
    let line: Value = serde_json::from_str(&served.logged("\"captured\"")).unwrap();
    assert_eq!((&line["id"], &line["recipient"]), (&id.as_str().into(), &"b@example.net".into()), "{line}");

    let list = served.say(&["queue", "list", "--status", "captured"]);
    assert!(list.starts_with(&id) && list.contains("→ b@example.net  captured, 1 try\n"), "{list}");
    let story = served.say(&["queue", "show", &id]);
    assert!(story.contains("accepted from the admin socket") && story.contains("to the capture store"), "{story}");
    let json: Value = serde_json::from_str(&served.say(&["queue", "show", &id, "--json"])).unwrap();
    assert_eq!(json["message"]["recipients"][0]["status"], "captured");
    let events: Vec<&str> = json["entries"].as_array().unwrap().iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["accepted", "captured"]);

    assert_eq!(
        served.say(&["queue", "cancel", &id, "--dry-run"]),
        "1 recipient would be cancelled; nothing was changed.\n"
    );
    assert_eq!(served.say(&["queue", "cancel", "--status", "captured"]), "1 recipient cancelled.\n");
    assert_eq!(served.say(&["queue", "list"]), "The queue is empty.\n");
    let story = served.say(&["queue", "show", &id]);
    assert!(story.starts_with(&format!("{id} (done, no longer queued)\n")), "{story}");

    let data = std::fs::metadata(folder.path().join("data/store")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o777, 0o700, "mail is nobody else's");
    let (status, log) = served.terminate();
    assert_eq!(status.code(), Some(0), "{log:#?}");
    assert!(log.last().unwrap().contains("\"stopped\""), "{log:#?}");
}

/// What `send` and the log say while the disk is full, and that a message without a header is none.
#[test]
fn what_is_sent_by_hand_keeps_to_the_rules() {
    let folder = tempfile::tempdir().unwrap();
    let served = Served::start(folder.path(), "[queue]\nmin_free = \"1000000GiB\"\n");
    let send = ["send", "--from", "a@example.com", "--to", "b@example.net"];
    let run = |more: &[&str]| {
        let output = postrider().args(send).args(more).arg("--config").arg(&served.config).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
        stderr(&output)
    };
    let text = run(&[]);
    assert!(text.contains("queue.min_free"), "{text}");
    let file = folder.path().join("message.eml");
    std::fs::write(&file, "just some text\n").unwrap();
    let text = run(&["--file", file.to_str().unwrap()]);
    assert!(text.contains("does not begin with a header field"), "{text}");
    let (status, _) = served.terminate();
    assert_eq!(status.code(), Some(0));
}

/// Administrators send it to make a server reload, terminals when they close.
#[test]
fn a_hangup_is_answered_in_the_log_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut served = Served::start(folder.path(), "");
    served.signal(rustix::process::Signal::HUP);
    assert!(served.logged("SIGHUP").contains("nothing has changed"));
    assert_eq!(served.say(&["queue", "list"]), "The queue is empty.\n");
    assert!(served.terminate().0.success());
}
