//! `postrider account`: the argon2id hash of a password, for `password_hash` in the configuration, the accounts
//! that this has, and a test of a login, as an application would use it. A password is asked for on a terminal, or
//! read from standard input, a file or the environment; never an argument, which other users could see.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Subcommand;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::target::address;
use super::{Failure, load, print_json, tested, text};
use crate::app::account_test::{self, NoTest, Wish};
use crate::config::{Account, Config, Secret, Senders};
use crate::delivery::smtp::SmtpTransport;
use crate::dns::Resolver;
use crate::message::Address;
use crate::server::accounts::hash_password;

/// Bytes of a password at most.
const PASSWORD_BYTES_MAX: usize = 1024;

const EXAMPLES: &str = "\
Examples:
  postrider account hash                                 asks for the password
  openssl rand -base64 24 | tee /dev/stderr | postrider account hash
  postrider account list
  postrider account test shop                            may it send? asks for the password";

const LIST_EXAMPLES: &str = "\
Examples:
  postrider account list
  postrider account list --json | jq -r 'select(.active | not) | .name'";

const HASH_EXAMPLES: &str = "\
Examples:
  postrider account hash                                 asks for the password twice, without echo
  printf %s \"$PASSWORD\" | postrider account hash         the first line of standard input

Put the line into the configuration:
  [accounts.shop]
  password_hash = \"$argon2id$...\"";

const TEST_EXAMPLES: &str = "\
Examples:
  postrider account test shop                            asks for the password; nothing is sent
  postrider account test shop --password-file /etc/shop/smtp.secret --to you@example.net
  SHOP_PASSWORD=… postrider account test shop --password-env SHOP_PASSWORD --json
  postrider account test shop --host mail.example.com    by name, with the certificate checked, as from elsewhere
  postrider account test shop --send --to you@example.net
  printf %s \"$PASSWORD\" | postrider account test shop   the first line of standard input

The server has to run. A message that is sent goes the way of all others: it is signed, queued and delivered.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: AccountCommand,
}

#[derive(Debug, Subcommand)]
enum AccountCommand {
    /// Hash a password for `password_hash`
    #[command(after_help = HASH_EXAMPLES)]
    Hash(HashArgs),
    /// Log in and go the way of a message, as an application would
    #[command(after_help = TEST_EXAMPLES)]
    Test(TestArgs),
    /// The accounts of the configuration
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
}

#[derive(Debug, clap::Args)]
struct TestArgs {
    /// Of [accounts]
    name: String,
    /// Read the password from this environment variable
    #[arg(long, value_name = "VARIABLE", conflicts_with = "password_file")]
    password_env: Option<String>,
    /// Read the password from the first line of this file
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Of [listeners]; without it, the first for submission
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// The server's name, which its certificate has to be for; without it, where the listener is on this machine
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Send a small message; without it, the test ends before any content
    #[arg(long, requires = "to")]
    send: bool,
    /// The recipient; without it, postmaster at our own domain
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    to: Option<Address>,
    /// The sender; without it, one that the account may use
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    from: Option<Address>,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct HashArgs {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    match args.command {
        AccountCommand::Hash(args) => hash(&args),
        AccountCommand::List(args) => list(&load(config)?, &args),
        AccountCommand::Test(args) => test(load(config)?, args).await,
    }
}

async fn test(config: Config, args: TestArgs) -> Result<(), Failure> {
    let config = Arc::new(config);
    let password = match (&args.password_env, &args.password_file) {
        // What is not there needs no password.
        _ if !config.accounts.contains_key(&args.name) => String::new(),
        (Some(variable), _) => std::env::var(variable).map_err(|error| {
            Failure::usage(format!("{variable}: {error}")).remedy("put the password into that environment variable")
        })?,
        (None, Some(file)) => {
            let failed = |error| Failure::unreadable(file, &error).remedy("check the name and the rights");
            first_line(BufReader::new(File::open(file).map_err(failed)?))?
        }
        (None, None) if io::stdin().is_terminal() => ask_once(&format!("Password of {}: ", args.name))?,
        (None, None) => first_line(io::stdin().lock())?,
    };
    let resolver = Resolver::new(&config.dns).map_err(|error| Failure::new(format!("dns: {error}")))?;
    let smtp = SmtpTransport::new(&config, resolver).map_err(|error| Failure::new(error.to_string()))?;
    let TestArgs { name, listener, host, from, to, send, json, .. } = args;
    let wish = Wish { name, password: Secret(password), listener, host, from, to, send };
    let tested = account_test::test(&config, &smtp, &wish).await;
    let tested = tested.map_err(|NoTest(what, remedy)| Failure::usage(what).remedy(remedy))?;
    let good = if send { "The server has taken the message." } else { "The account may send." };
    tested::tell(&tested, json, good)
}

fn list(config: &Config, args: &ListArgs) -> Result<(), Failure> {
    if args.json {
        return config.accounts.iter().try_for_each(|(name, account)| print_json(&as_json(name, account)));
    }
    if config.accounts.is_empty() {
        return Ok(text::print("There are no accounts.")?);
    }
    let rows: Vec<Vec<String>> = config.accounts.iter().map(|(name, account)| row(name, account)).collect();
    text::table(&rows).iter().try_for_each(|line| Ok(text::print(line)?))
}

fn as_json(name: &str, account: &Account) -> serde_json::Value {
    serde_json::json!({
        "name": name,
        "label": account.label,
        "active": account.active,
        "hold": account.hold,
        "stream": account.stream,
        "senders": senders(account),
        "daily_limit": account.daily_limit,
    })
}

/// None: all domains that are ours.
fn senders(account: &Account) -> Option<Vec<String>> {
    match &account.senders {
        Senders::OwnDomains => None,
        Senders::Only(list) => Some(list.iter().map(ToString::to_string).collect()),
    }
}

fn row(name: &str, account: &Account) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend((!account.active).then(|| "not active".to_owned()));
    notes.extend(account.hold.then(|| "all it sends is held".to_owned()));
    notes.extend(account.daily_limit.map(|limit| format!("{limit} recipients a day")));
    notes.extend(Some(account.label.clone()).filter(|label| !label.is_empty()));
    let senders = senders(account).map_or("all our domains".to_owned(), |list| list.join(", "));
    vec![name.to_owned(), format!("stream {}", account.stream), format!("as {senders}"), notes.join("; ")]
}

fn hash(args: &HashArgs) -> Result<(), Failure> {
    let password = if io::stdin().is_terminal() { ask()? } else { first_line(io::stdin().lock())? };
    let hash = hash_password(&password).map_err(|error| Failure::new(format!("cannot hash: {error}")))?;
    if args.json {
        return print_json(&serde_json::json!({ "password_hash": hash }));
    }
    Ok(text::print(&hash)?)
}

fn first_line(input: impl BufRead) -> Result<String, Failure> {
    let mut line = String::new();
    let read = input.take(PASSWORD_BYTES_MAX as u64 + 2).read_line(&mut line);
    read.map_err(|error| Failure::new(format!("cannot read the password: {error}")).remedy("give it as UTF-8 text"))?;
    let password = line.trim_end_matches(['\r', '\n']);
    match password.len() {
        0 => Err(Failure::usage("the password is empty").remedy("give it as the first line of standard input")),
        1..=PASSWORD_BYTES_MAX => Ok(password.to_owned()),
        _ => Err(Failure::usage(format!("the password is longer than {PASSWORD_BYTES_MAX} bytes"))),
    }
}

/// Twice, because what is typed cannot be seen.
fn ask() -> Result<String, Failure> {
    let password = ask_once("Password: ")?;
    if ask_once("The same again: ")? != password {
        return Err(Failure::new("the two are different").remedy("try again"));
    }
    Ok(password)
}

fn ask_once(prompt: &str) -> Result<String, Failure> {
    let mut stderr = io::stderr();
    write!(stderr, "{prompt}")?;
    stderr.flush()?;
    let quiet = NoEcho::start()?;
    let answer = first_line(io::stdin().lock());
    drop(quiet);
    writeln!(stderr)?;
    answer
}

/// The terminal does not show what is typed while this lives.
struct NoEcho {
    before: rustix::termios::Termios,
}

impl NoEcho {
    fn start() -> Result<NoEcho, Failure> {
        let failed = |error| {
            Failure::new(format!("cannot hide what is typed: {error}")).remedy("give the password on standard input")
        };
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(io::stdin(), OptionalActions::Flush, &quiet).map_err(failed)?;
        Ok(NoEcho { before })
    }
}

impl Drop for NoEcho {
    fn drop(&mut self) {
        // There is nothing to be done if it fails: the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_line_is_the_password() {
        assert_eq!(first_line(&b"se cret \r\nmore"[..]).unwrap(), "se cret ");
        assert_eq!(first_line(&b"x"[..]).unwrap(), "x");
        assert_eq!(first_line(&b"\n"[..]).unwrap_err().status, 2);
        assert_eq!(first_line(&b""[..]).unwrap_err().status, 2);
        assert_eq!(first_line(&[b'a'; 2000][..]).unwrap_err().status, 2);
        assert_eq!(first_line(&b"\xff\n"[..]).unwrap_err().status, 1);
    }
}
