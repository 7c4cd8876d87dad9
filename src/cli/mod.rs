//! The command line: one file a command group. `serve` and `demo` run a server in this process,
//! `check`, `config`, `dns`, `dkim`, `account hash|list`, `fetch test`, `target test`, `completions`, `man` and
//! `explain --from --to` need none, `store`, `smart-host test` and `queue export|import` do with one and without,
//! everything else speaks to the running server over its
//! admin socket (`client`).
//!
//! Human output by default, `--json` for programs (lists as one object a line). Exit status: 0 done,
//! 1 it did not work, 2 the command or the configuration is wrong. Errors go to standard error with
//! what to do about them.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::Config;

mod account;
mod captured;
pub mod check;
mod client;
mod completions;
mod config;
mod confine;
mod demo;
mod dkim;
pub mod dns;
mod events;
mod explain;
mod fetch;
mod health;
mod log;
mod man;
mod pickup;
mod progress;
mod queue;
mod reload;
mod send;
mod sendmail;
mod serve;
mod smart_host;
mod store;
mod story;
mod suppress;
mod suspend;
mod target;
mod tested;
mod text;
mod transfer;

/// Where the configuration lies, if nothing is said.
pub const CONFIG_DEFAULT: &str = "/etc/postrider/postrider.toml";

const EXAMPLES: &str = "\
Examples:
  postrider demo                                  try it: no configuration, nothing leaves this machine
  postrider check                                 is the configuration right?
  postrider check --dns                           and DNS, port 25, certificate, clock, disk?
  postrider config show --docs queue              what does each key mean?
  postrider serve                                 run the server
  postrider reload                                take the changed configuration
  postrider dns example.com                       the DNS records to publish
  postrider dkim rotate example.com               new DKIM keys in the place of the old
  postrider send --from a@example.com --to b@example.net
  postrider queue list                            what waits, and why
  postrider captured list                         what is kept here in place of being sent
  postrider explain 0d3c9k2p5v8xq                 why it waits, which setting holds it, what comes next
  postrider log bob@example.net                   what happened to mail for or from Bob
  postrider smart-host test relay                 does that server take our mail?
  postrider account test shop                     may this login send, as an application would?
  postrider fetch list                            mailboxes elsewhere that mail comes from
  postrider target test crm                       can inbound mail be handed over there?
  postrider suspend                               let nothing leave, until `postrider resume`
  postrider suppress explain bob@example.net      why does bob get no newsletter?
  postrider pickup check                          what would become of the files dropped there?
  postrider store backup /var/backups/mail        while the server runs

`postrider help COMMAND` tells more about a command, with examples.
Exit status: 0 done, 1 it did not work, 2 the command or the configuration is wrong.";

const CHECK_EXAMPLES: &str = "\
Examples:
  postrider check
  postrider check --config ./postrider.toml --json
  postrider check --explain-retry                 when is a message that keeps failing tried again?
  postrider check --health                        does the running server take mail? 0 if so, else 1
  postrider check --dns                           what DNS says of us, port 25, certificate, clock, disk
  postrider check --dns --json | jq -c 'select(.level == \"problem\")'

Every problem of the configuration is named with its line and what to do; then the exit status is 2. With --dns
it is 1 where something around the server keeps mail from arriving; no server is needed, and nothing is sent.";

const DNS_EXAMPLES: &str = "\
Examples:
  postrider dns example.com                              lines for a zone file; comments say what is there
  postrider dns example.com --offline                    without looking into DNS
  postrider dns example.com --json | jq -r 'select(.published == \"missing\").name'

DKIM keys that do not exist yet are made, so run it as the user who runs the server.";

/// A mail server for applications: takes mail, signs it, delivers it, and lets it come in.
#[derive(Debug, Parser)]
#[command(name = "postrider", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", default_value = CONFIG_DEFAULT)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server
    Serve(serve::Args),
    /// Run a throwaway server, send a message through each door, print their stories
    Demo(demo::Args),
    /// Say what is wrong with the configuration, or what it amounts to
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// Print when a message that keeps failing is tried, told of and given up
        #[arg(long)]
        explain_retry: bool,
        /// Ask the running server whether it takes mail, as /readyz does
        #[arg(long, conflicts_with = "explain_retry")]
        health: bool,
        /// Look around, too: DNS records, port 25, certificate, clock, disk
        #[arg(long, conflicts_with_all = ["explain_retry", "health"])]
        dns: bool,
    },
    /// What the configuration amounts to, and what its keys mean
    Config(config::Args),
    /// The DNS records to publish for a domain, and which are there
    #[command(after_help = DNS_EXAMPLES)]
    Dns {
        /// One of [domains]
        domain: String,
        /// Do not look which of them are there
        #[arg(long)]
        offline: bool,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// New DKIM keys, and successors for old ones
    Dkim(dkim::Args),
    /// Take the changed configuration, whole or not at all
    #[command(after_help = reload::EXAMPLES)]
    Reload(reload::Args),
    /// Submit a message to the running server
    Send(send::Args),
    /// What programs call that know no SMTP; see `postrider sendmail --help`
    #[command(disable_help_flag = true, after_help = sendmail::EXAMPLES)]
    Sendmail {
        /// Flags of sendmail, and recipients
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Look into the folders that programs drop files in
    Pickup(pickup::Args),
    /// See and change what is queued
    Queue(queue::Args),
    /// Read, release and delete what is captured in place of being sent
    Captured(captured::Args),
    /// What happened to messages, and what happens
    #[command(after_help = events::EXAMPLES)]
    Log(events::Args),
    /// Why a message waits, or what would become of one
    Explain(explain::Args),
    /// Send nothing more until `resume`: mail is taken and waits
    #[command(after_help = suspend::SUSPEND_EXAMPLES)]
    Suspend(suspend::Args),
    /// Send again what `suspend` has stopped
    #[command(after_help = suspend::RESUME_EXAMPLES)]
    Resume(suspend::Args),
    /// The addresses that get no more mail
    Suppress(suppress::Args),
    /// Try the servers that mail goes by
    SmartHost(smart_host::Args),
    /// Mailboxes elsewhere that mail is brought in from
    Fetch(fetch::Args),
    /// Try where inbound mail is handed over
    Target(target::Args),
    /// Check, back up, restore or compact what is on disk
    Store(store::Args),
    /// Password hashes, the accounts of the configuration, and their logins
    Account(account::Args),
    /// Write what a shell needs to complete these commands
    Completions(completions::Args),
    /// Write manual pages
    Man(man::Args),
}

/// Parses these arguments (the first is the program's name) and does what they say.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(done) = sendmail::called(&arguments) {
        return done;
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Also help and version come this way. If they cannot be printed there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match dispatch(cli) {
        Ok(code) => code,
        Err(failure) => {
            if !failure.message.is_empty() {
                use io::Write;
                let _ = writeln!(io::stderr(), "postrider: {failure}");
            }
            ExitCode::from(failure.status)
        }
    }
}

/// Whether these arguments (the first is the program's name) make a command, without doing it: for whoever checks what is
/// written about commands.
pub fn understands(arguments: impl IntoIterator<Item = OsString>) -> Result<(), clap::Error> {
    Cli::try_parse_from(arguments).map(drop)
}

fn dispatch(cli: Cli) -> Result<ExitCode, Failure> {
    let config = cli.config.as_path();
    let done = match cli.command {
        Command::Serve(args) => serve::run(config, args),
        Command::Demo(args) => block_on(Threads::Many, demo::run(args)),
        Command::Check { json, dns: true, .. } => return exit(check::world::run(config, json)),
        Command::Check { json, health: true, .. } => block_on(Threads::One, health::run(config, json)),
        Command::Check { json, explain_retry, .. } => return Ok(check::run(config, json, explain_retry)),
        Command::Config(args) => config::run(config, args),
        Command::Dns { domain, json, offline } => {
            return exit(dns::run(load(config)?, &domain, json, offline));
        }
        Command::Dkim(args) => dkim::run(&load(config)?, args),
        Command::Reload(args) => block_on(Threads::One, reload::run(config, args)),
        Command::Send(args) => block_on(Threads::One, send::run(config, args)),
        Command::Sendmail { words } => return Ok(sendmail::run(&words, Some(config))),
        Command::Pickup(args) => block_on(Threads::One, pickup::run(config, args)),
        Command::Queue(args) => block_on(Threads::One, queue::run(config, args)),
        Command::Captured(args) => block_on(Threads::One, captured::run(config, args)),
        Command::Log(args) => block_on(Threads::One, events::run(config, args)),
        Command::Explain(args) => block_on(Threads::One, explain::run(config, args)),
        Command::Suspend(args) => block_on(Threads::One, suspend::run(config, args, true)),
        Command::Resume(args) => block_on(Threads::One, suspend::run(config, args, false)),
        Command::Suppress(args) => block_on(Threads::One, suppress::run(config, args)),
        Command::SmartHost(args) => block_on(Threads::One, smart_host::run(config, args)),
        Command::Fetch(args) => block_on(Threads::One, fetch::run(config, args)),
        Command::Store(args) => block_on(Threads::One, store::run(config, args)),
        Command::Target(args) => block_on(Threads::One, target::run(config, args)),
        Command::Account(args) => block_on(Threads::One, account::run(config, args)),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// For what has an exit status of its own.
fn exit(work: impl Future<Output = ExitCode>) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    block_on(Threads::One, async {
        code = work.await;
        Ok(())
    })?;
    Ok(code)
}

enum Threads {
    One,
    Many,
}

fn block_on(threads: Threads, work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let mut builder = match threads {
        Threads::One => tokio::runtime::Builder::new_current_thread(),
        Threads::Many => tokio::runtime::Builder::new_multi_thread(),
    };
    if matches!(threads, Threads::Many) && std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(worker_threads());
    }
    let runtime = builder.enable_all().build().map_err(|error| {
        Failure::new(format!("cannot start threads: {error}")).remedy("check the limits of this user (ulimit -u)")
    })?;
    runtime.block_on(work)
}

/// Half of the processors, two at least. The store's threads and the kernel's side of the network have
/// the others; workers with nothing to do cost a message a fifth more in waking each other. What takes
/// long (signing) goes to further threads.
fn worker_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).max(2)
}

/// Loads the configuration, or says all that is wrong with it: exit status 2.
fn load(path: &Path) -> Result<Config, Failure> {
    crate::config::load(path)
        .map_err(|problems| Failure::usage(format!("the configuration cannot be used\n{problems}")))
}

/// A client for the server of this configuration.
fn client(config: &Path) -> Result<client::Client, Failure> {
    Ok(client::Client::new(&load(config)?.data_dir))
}

/// A client for the server that runs, also where its configuration has mistakes by now.
fn client_of_running(config: &Path) -> Result<client::Client, Failure> {
    match crate::config::data_dir_of(config) {
        Some(data_dir) => Ok(client::Client::new(&data_dir)),
        None => client(config),
    }
}

/// Why a command did not do it, for standard error, and the exit status.
#[derive(Debug)]
struct Failure {
    status: u8,
    /// Empty: nothing is said.
    message: String,
    remedy: Option<String>,
}

impl Failure {
    /// It did not work: exit status 1.
    fn new(message: impl Into<String>) -> Failure {
        Failure { status: 1, message: message.into(), remedy: None }
    }

    /// The command cannot be meant like this: exit status 2.
    fn usage(message: impl Into<String>) -> Failure {
        Failure { status: 2, message: message.into(), remedy: None }
    }

    /// What the command names to be read is not there, or cannot be read: exit status 2, as for the configuration.
    fn unreadable(path: &Path, error: &io::Error) -> Failure {
        Failure::usage(format!("{}: {error}", path.display()))
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Failure {
        self.remedy = Some(remedy.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.remedy {
            Some(remedy) => write!(f, "\n  → {remedy}"),
            None => Ok(()),
        }
    }
}

/// Trouble with standard output. A reader that went away (`| head`) has what it wanted.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure { status: 0, message: String::new(), remedy: None },
            _ => Failure::new(format!("cannot write: {error}")),
        }
    }
}

/// One JSON object on a line of its own.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let line = serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?;
    Ok(text::print(&line)?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
