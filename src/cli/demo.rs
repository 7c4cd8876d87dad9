//! `postrider demo`: a throwaway server that needs no configuration and no root. It sends a message
//! through each door (submission, pickup folder, inbound), waits for their stories, prints them and
//! stays up with its dashboard until Ctrl-C. Nothing leaves the machine: `delivery.default = "capture"`. All files lie
//! in a temporary folder that goes at the end.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mail_send::SmtpClientBuilder;
use mail_send::smtp::message::{Address as Mailbox, Message};
use mail_send::smtp::tls::build_tls_connector;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::send::{compose, random_name};
use super::text::{Paint, print};
use super::{Failure, log, story};
use crate::admin::view::Status;
use crate::admin::{Filter, Page, Story};
use crate::app;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::events::Event;
use crate::message::{Address, MessageId};

/// Ports that are tried first; if one is taken, the system chooses another.
const MX_PORT: u16 = 2525;
const SUBMISSION_PORT: u16 = 2587;
const DASHBOARD_PORT: u16 = 8025;
/// The longest wait for the server to come up, and for each message.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// The longest wait for an SMTP reply.
const SMTP_TIMEOUT: Duration = Duration::from_secs(20);
/// The longest wait for the server to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

const ACCOUNT: &str = "demo";
const SENDER: &str = "demo@demo.test";
const INSIDE: &str = "hello@demo.test";
const OUTSIDE: &str = "world@example.org";
const SUBMITTED_FOR: &str = "someone@example.net";
const PICKED_UP_FOR: &str = "someone.else@example.net";

const EXAMPLES: &str = "\
Examples:
  postrider demo                                         stays up until Ctrl-C
  postrider demo --exit                                  ends after the stories: 0 if all were delivered, else 1
  postrider demo --show-config                           the configuration that it uses";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// End after the stories
    #[arg(long)]
    exit: bool,
    /// Print the configuration of the demo before it starts
    #[arg(long)]
    show_config: bool,
    /// Show the server's log
    #[arg(long, short)]
    verbose: bool,
}

/// Runs the server in this process and plays through it; ends with a signal, or after the stories.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let stage = Stage::set_up(args.verbose)?;
    if args.show_config {
        print(&stage.text)?;
    }
    let _written_to_the_end = log::start(&stage.config.log)?;
    let stop = CancellationToken::new();
    let mut server = tokio::spawn(app::run(stage.config.clone(), stop.clone()));
    let outcome = tokio::select! {
        outcome = play(&stage, &args) => outcome,
        () = signals.next() => Ok(()),
        ended = &mut server => return Err(server_ended(ended)),
    };
    stop.cancel();
    tokio::select! {
        // However it ends, the folder goes with `stage`.
        _ = tokio::time::timeout(STOP_TIMEOUT, &mut server) => {}
        () = signals.next() => server.abort(),
    }
    outcome
}

fn server_ended(ended: Result<Result<(), app::Error>, JoinError>) -> Failure {
    match ended {
        Ok(Ok(())) => Failure::new("the demo server ended by itself"),
        Ok(Err(error)) => Failure::new(format!("the demo server could not run: {error}")),
        Err(error) => Failure::new(format!("the demo server broke down: {error}")),
    }
}

/// The folder, the configuration and the password of one demo.
struct Stage {
    folder: Folder,
    text: String,
    config: Config,
    password: String,
    /// Of the dashboard.
    token: String,
}

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    /// Only this user may look into it. A long TMPDIR is not used, because the path of a socket is short.
    fn make() -> Result<Folder, Failure> {
        const PATH_BYTES_MAX: usize = 60;
        let mut parent = std::env::temp_dir();
        if parent.as_os_str().len() > PATH_BYTES_MAX {
            parent = PathBuf::from("/tmp");
        }
        let name: String = random_name()?.chars().take(8).collect();
        let path = parent.join(format!("postrider-demo-{name}"));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| {
            Failure::new(format!("cannot make {}: {error}", path.display()))
                .remedy("set TMPDIR to a folder that can be written")
        })?;
        Ok(Folder(path))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // The system's temporary folder is cleaned by the system if this fails.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Stage {
    fn set_up(verbose: bool) -> Result<Stage, Failure> {
        let folder = Folder::make()?;
        let password: String = random_name()?.chars().take(16).collect();
        let token = random_name()?;
        let ports = Ports {
            mx: free_port(MX_PORT),
            submission: free_port(SUBMISSION_PORT),
            dashboard: free_port(DASHBOARD_PORT),
        };
        let text = configuration(&folder.0, &password, &token, ports, verbose);
        let file = folder.join("postrider.toml");
        let config = config::parse(&file.display().to_string(), &text).map_err(|problems| {
            Failure::new(format!("the demo's own configuration is refused, which is a bug\n{problems}"))
        })?;
        let stage = Stage { folder, text, config, password, token };
        stage.write_files().map_err(|error| Failure::new(format!("{}: {error}", stage.folder.0.display())))?;
        Ok(stage)
    }

    /// The configuration, so that `postrider queue --config` finds the server, and the pickup folder.
    fn write_files(&self) -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.folder.join("postrider.toml"))?;
        file.write_all(self.text.as_bytes())?;
        std::fs::create_dir(self.folder.join("pickup"))
    }
}

/// The wanted port if it is free right now, else 0: the system chooses.
fn free_port(wanted: u16) -> u16 {
    if TcpListener::bind(("127.0.0.1", wanted)).is_ok() { wanted } else { 0 }
}

#[derive(Clone, Copy, Debug, Default)]
struct Ports {
    mx: u16,
    submission: u16,
    dashboard: u16,
}

fn configuration(folder: &Path, password: &str, token: &str, ports: Ports, verbose: bool) -> String {
    let Ports { mx: mx_port, submission: submission_port, dashboard: dashboard_port } = ports;
    let path = |name: &str| toml::Value::String(folder.join(name).display().to_string()).to_string();
    let (data_dir, inbox, pickup) = (path("data"), path("inbox"), path("pickup"));
    let level = if verbose { "info" } else { "error" };
    format!(
        r#"hostname = "mail.demo.test"
data_dir = {data_dir}

[listeners.mx]                  # mail from outside, for demo.test only
role = "mx"
bind = ["127.0.0.1:{mx_port}"]
tls  = "opportunistic"

[listeners.submission]          # mail from applications
role = "submission"
bind = ["127.0.0.1:{submission_port}"]
tls  = "required"

[accounts.{ACCOUNT}]
password = "{password}"

[domains."demo.test"]

[aliases]
"{INSIDE}" = "inbox"

[targets.inbox]
kind = "maildir"
path = {inbox}

[pickup.main]                   # drop .eml files here
path    = {pickup}
account = "{ACCOUNT}"
settle  = "1s"

[delivery]
default = "capture"             # nothing leaves this machine

[checks]                        # the demo asks no DNS server
spf   = "off"
dkim  = "off"
dmarc = "off"
rdns  = "off"

[admin]                         # the dashboard
bind  = "127.0.0.1:{dashboard_port}"
token = "{token}"

[queue]
min_free = "16MiB"

[log]
level = "{level}"
"#
    )
}

/// A message through each door, their stories, and what else can be done here.
async fn play(stage: &Stage, args: &Args) -> Result<(), Failure> {
    let client = Client::new(&stage.config.data_dir);
    let doors = Doors::open(&client).await?;
    print("postrider demo: a server with a folder of its own; nothing leaves this machine.")?;
    let mut delivered = 0;
    let total = 3;
    for number in 1..=total {
        let (heading, id) = match number {
            1 => submit(stage, &doors).await?,
            2 => drop_file(stage, &client).await?,
            _ => come_in(&doors).await?,
        };
        let story = wait_for_end(&client, id).await?;
        delivered += usize::from(is_delivered(&story));
        show(number, &heading, &story)?;
    }
    print(&format!("\n{delivered} of {total} messages delivered."))?;
    if args.exit {
        let undelivered = || Failure::new(format!("{} of {total} messages not delivered", total - delivered));
        return if delivered == total { Ok(()) } else { Err(undelivered()) };
    }
    print(&closing_words(stage, &doors))?;
    std::future::pending().await
}

/// Where the server listens.
struct Doors {
    mx: SocketAddr,
    submission: SocketAddr,
    dashboard: SocketAddr,
}

impl Doors {
    /// Waits until the server answers and has both open.
    async fn open(client: &Client) -> Result<Doors, Failure> {
        let start = Instant::now();
        loop {
            let answer = client.status().await;
            if let Ok(status) = &answer {
                let find = |name| status.listeners.iter().find(|listener| listener.name == name).map(|l| l.address);
                if let (Some(mx), Some(submission), Some(dashboard)) = (find("mx"), find("submission"), find("admin")) {
                    return Ok(Doors { mx, submission, dashboard });
                }
            }
            if start.elapsed() > PATIENCE {
                let missing = Failure::new("the demo server did not open its listeners");
                return Err(answer.err().unwrap_or(missing));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Door 1: an application with a login.
async fn submit(stage: &Stage, doors: &Doors) -> Result<(String, MessageId), Failure> {
    let login = Some((ACCOUNT, stage.password.as_str()));
    let id = send_by_smtp(doors.submission, login, SENDER, SUBMITTED_FOR, "Submitted through SMTP").await?;
    Ok((format!("submitted on {} with STARTTLS and AUTH, {SENDER} to {SUBMITTED_FOR}", doors.submission), id))
}

/// Door 2: a file in the pickup folder, renamed when it is whole.
async fn drop_file(stage: &Stage, client: &Client) -> Result<(String, MessageId), Failure> {
    let content = message(SENDER, PICKED_UP_FOR, "Dropped into the pickup folder")?;
    let folder = stage.folder.join("pickup");
    let (unfinished, file) = (folder.join("demo.tmp"), folder.join("demo.eml"));
    std::fs::write(&unfinished, content)
        .and_then(|()| std::fs::rename(&unfinished, &file))
        .map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
    let filter = Filter { to: Some(PICKED_UP_FOR.to_owned()), ..Filter::default() };
    let start = Instant::now();
    loop {
        let found = client.list(&filter, Page { limit: 1, after: None }).await?;
        if let Some(listed) = found.messages.first() {
            return Ok((format!("dropped as {}, {SENDER} to {PICKED_UP_FOR}", file.display()), listed.id));
        }
        if start.elapsed() > PATIENCE {
            return Err(Failure::new(format!("{} was not picked up", file.display())).remedy("--verbose shows the log"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Door 3: another mail server.
async fn come_in(doors: &Doors) -> Result<(String, MessageId), Failure> {
    let id = send_by_smtp(doors.mx, None, OUTSIDE, INSIDE, "Hello from outside").await?;
    Ok((format!("came in on {} from outside, {OUTSIDE} to {INSIDE}", doors.mx), id))
}

fn message(from: &str, to: &str, subject: &str) -> Result<Vec<u8>, Failure> {
    let address = |text: &str| Address::parse(text).map_err(|error| Failure::new(format!("{text}: {error}")));
    compose(&address(from)?, &[address(to)?], subject, "Written by `postrider demo`.", Clock::System.now())
}

/// As an ordinary client would; the server's certificate is self-signed and taken as it is.
async fn send_by_smtp(
    server: SocketAddr,
    login: Option<(&str, &str)>,
    from: &str,
    to: &str,
    subject: &str,
) -> Result<MessageId, Failure> {
    let failed = |error: mail_send::Error| Failure::new(format!("sending to {server} failed: {error}"));
    let content = message(from, to, subject)?;
    // Not `SmtpClientBuilder::new`, which fails where the system has no CA certificates.
    let tls = build_tls_connector(true).map_err(|error| Failure::new(format!("no TLS: {error}")))?;
    let builder = SmtpClientBuilder::new_with_tls_connector(server.ip().to_string(), server.port(), tls)
        .implicit_tls(false)
        .helo_host("client.demo.test")
        .timeout(SMTP_TIMEOUT);
    let builder = match login {
        Some((name, password)) => builder.credentials((name.to_owned(), password.to_owned())),
        None => builder,
    };
    let mut connection = builder.connect().await.map_err(failed)?;
    let mailbox = |email: &str| Mailbox { email: email.to_owned().into(), ..Mailbox::default() };
    let envelope = Message { mail_from: mailbox(from), rcpt_to: vec![mailbox(to)], body: content.into() };
    let reply = connection.send(envelope).await.map_err(failed)?;
    // The message is taken; how the session ends makes no difference to it.
    let _ = connection.quit().await;
    // "queued as ID"
    let id = reply.message.split_whitespace().find_map(|word| word.parse().ok());
    id.ok_or_else(|| Failure::new(format!("no queue id in the reply {:?}", reply.message)))
}

/// Until no recipient waits for its first result any more.
async fn wait_for_end(client: &Client, id: MessageId) -> Result<Story, Failure> {
    let start = Instant::now();
    loop {
        let story = client.story(id).await?;
        let waits = story.message.as_ref().is_some_and(|message| {
            message.recipients.iter().any(|recipient| recipient.status == Status::Waiting && recipient.attempts == 0)
        });
        if !waits || start.elapsed() > PATIENCE {
            return Ok(story);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Every recipient's mail is where it should be, or in the capture store.
fn is_delivered(story: &Story) -> bool {
    let settled = story
        .message
        .iter()
        .flat_map(|message| &message.recipients)
        .all(|recipient| recipient.status == Status::Captured);
    let arrived = |event: &Event| matches!(event, Event::Delivered { .. } | Event::Captured { .. });
    let lost = |event: &Event| {
        matches!(
            event,
            Event::Failed { .. } | Event::Expired { .. } | Event::Cancelled { .. } | Event::Discarded { .. }
        )
    };
    let events = || story.entries.iter().map(|entry| &entry.event);
    settled && events().any(arrived) && !events().any(lost)
}

fn show(number: usize, heading: &str, story: &Story) -> Result<(), Failure> {
    let paint = Paint::for_stdout();
    print(&format!("\n{}", paint.bold(&format!("Story {number}, message {}: {heading}", story.id))))?;
    for line in story::lines(&story.entries, paint) {
        print(&format!("  {line}"))?;
    }
    print(&if is_delivered(story) { paint.green("  delivered") } else { paint.red("  not delivered") })?;
    Ok(())
}

fn closing_words(stage: &Stage, doors: &Doors) -> String {
    let Doors { mx, submission, dashboard } = doors;
    let folder = stage.folder.0.display();
    let (password, token) = (&stage.password, &stage.token);
    let program = std::env::current_exe().map_or("postrider".to_owned(), |path| path.display().to_string());
    format!(
        r"
The dashboard is open; this link logs in:
  http://{dashboard}/login#{token}

The server is up.
  submission  {submission}   login {ACCOUNT}, password {password}, STARTTLS; senders: anything@demo.test
  inbound     {mx}   for {INSIDE}
  pickup      {folder}/pickup   drop .eml files
  Maildir     {folder}/inbox   what came in for {INSIDE}

Send with curl:
  printf 'From: {SENDER}\nTo: you@example.net\nSubject: Hi\n\nHello.\n' |
    curl --crlf --ssl-reqd --insecure --url smtp://{submission} --user {ACCOUNT}:{password} \
      --mail-from {SENDER} --mail-rcpt you@example.net --upload-file -
See what is kept in place of being sent, and read it (captured show ID):
  {program} captured list --config {folder}/postrider.toml

Ctrl-C ends it and removes {folder}."
    )
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> Result<Signals, Failure> {
        let take = |kind| signal(kind).map_err(|error| Failure::new(format!("cannot take signals: {error}")));
        Ok(Signals { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_configuration_is_good() {
        let text =
            configuration(Path::new("/tmp/a \"quoted\" folder"), "secret", &"t".repeat(32), Ports::default(), false);
        let config = config::parse("demo.toml", &text).unwrap();
        assert!(config.domains.contains_key(&crate::message::Domain::parse("demo.test").unwrap()));
        assert_eq!(config.pickup.len(), 1);
    }

    #[test]
    fn the_folder_is_private_and_goes() {
        use std::os::unix::fs::PermissionsExt;
        let folder = Folder::make().unwrap();
        let path = folder.0.clone();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::write(folder.join("file"), "x").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
