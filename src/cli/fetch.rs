//! `postrider fetch`: how mailboxes elsewhere are doing, a run at once, and a test of the way there.

use std::path::Path;

use clap::Subcommand;

use super::progress::Progress;
use super::text::{clean, count, moment, print, relative};
use super::{Failure, client, load, print_json, tested};
use crate::admin::FetchStatus;
use crate::admin::fetch::FetchBody;
use crate::app::fetch_ways;
use crate::clock::{Clock, Millis};
use crate::dns::Resolver;
use crate::intake::fetch::{Ran, test};

const EXAMPLES: &str = "\
Examples:
  postrider fetch list                       each mailbox: last run, last error, next run, counts
  postrider fetch list --json
  postrider fetch run sales                  now, whatever the time; what was given up is tried again
  postrider fetch run sales --dry-run        how many messages are new there; nothing is fetched
  postrider fetch test sales                 the way there, leg by leg; needs no server, and fetches nothing

`postrider suspend --fetch` stops all of them until `postrider resume --fetch`. A mailbox that could not
be read for five days is left alone until a run by hand works.";

const TEST_EXAMPLES: &str = "\
Examples:
  postrider fetch test sales                 name, connection, TLS, greeting, login, folder, messages
  postrider fetch test sales --json | jq .problem

Nothing is fetched, marked or deleted, and no server is needed.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: FetchCommand,
}

#[derive(Debug, Subcommand)]
enum FetchCommand {
    /// How each mailbox is doing
    #[command(after_help = EXAMPLES)]
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Read a mailbox now
    #[command(after_help = EXAMPLES)]
    Run {
        /// Of [fetch]
        name: String,
        /// Only count what is new there
        #[arg(long)]
        dry_run: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Go the way to a mailbox, up to how many messages there are
    #[command(after_help = TEST_EXAMPLES)]
    Test {
        /// Of [fetch]
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    match args.command {
        FetchCommand::List { json } => list(config, json).await,
        FetchCommand::Run { name, dry_run, json } => run_one(config, name, dry_run, json).await,
        FetchCommand::Test { name, json } => test_one(config, &name, json).await,
    }
}

async fn list(config: &Path, json: bool) -> Result<(), Failure> {
    let accounts = client(config)?.fetch_list().await?;
    if json {
        return accounts.iter().try_for_each(print_json);
    }
    if accounts.is_empty() {
        return Ok(print("No mailbox is fetched from: the configuration has no [fetch.NAME].")?);
    }
    let now = Clock::System.now();
    for line in accounts.iter().flat_map(|account| described(account, now)) {
        print(&line)?;
    }
    Ok(())
}

fn described(account: &FetchStatus, now: Millis) -> Vec<String> {
    let place = match account.folder.is_empty() {
        true => String::new(),
        false => format!(", {}", account.folder),
    };
    let FetchStatus { name, state, protocol, username, host, .. } = account;
    let when = |time: Option<Millis>| time.map_or("never".to_owned(), |time| moment(time) + " UTC");
    let next = account.next_run.map_or("not before a person says so".to_owned(), |next| match next <= now {
        true => "now".to_owned(),
        false => relative(next, now),
    });
    let mut lines = vec![
        clean(&format!("{name}  {state}  {protocol} {username} at {host}{place}")),
        format!(
            "    last run {}, next {next}; {} fetched, {} left",
            when(account.last_run),
            account.fetched,
            account.left
        ),
    ];
    if let Some(error) = &account.last_error {
        let success = account.last_success.map(|time| format!("; last success {}", when(Some(time))));
        lines.push(format!("    {}{}", clean(error), success.unwrap_or_default()));
    }
    lines
}

async fn run_one(config: &Path, name: String, dry_run: bool, json: bool) -> Result<(), Failure> {
    let (client, wish) = (client(config)?, FetchBody { account: name.clone(), dry_run });
    let ran = Progress::new("reading the mailbox", 0).during(client.fetch_run(&wish)).await?;
    if json {
        print_json(&ran)?;
    } else {
        for line in told(&ran, dry_run) {
            print(&line)?;
        }
    }
    match ran.error {
        None => Ok(()),
        Some(error) => Err(Failure::new(format!("{name}: {}", clean(&error)))
            .remedy(format!("`postrider fetch test {name}` says at which step it ends, and what to do"))),
    }
}

async fn test_one(config: &Path, name: &str, json: bool) -> Result<(), Failure> {
    let config = load(config)?;
    let resolver = Resolver::new(&config.dns).map_err(|error| Failure::new(format!("dns: {error}")))?;
    let mut pops = config.smart_hosts.iter().filter_map(|host| host.pop_before_smtp.as_ref());
    let pop = pops.find(|account| account.name == name);
    let account = config.fetch.get(name);
    let tls = match (account, pop) {
        (Some(account), _) => account.tls,
        (None, Some(account)) => account.tls,
        (None, None) => {
            let names: Vec<&str> = config.fetch.keys().map(String::as_str).collect();
            let there =
                if names.is_empty() { "there is none".to_owned() } else { format!("there are: {}", names.join(", ")) };
            return Err(Failure::usage(format!("there is no [fetch] account named {name:?}")).remedy(there));
        }
    };
    let ways = fetch_ways(std::iter::once(tls), &resolver).await;
    let (tested, good) = match (account, pop) {
        (Some(account), _) => (test::test(&ways, name, account).await, "Mail can be fetched from there."),
        (None, Some(account)) => (test::test_login(&ways, account).await, "The login works."),
        (None, None) => return Ok(()),
    };
    tested::tell(&tested, json, good)
}

fn told(ran: &Ran, dry_run: bool) -> Vec<String> {
    let messages = |number: u64| count(usize::try_from(number).unwrap_or(usize::MAX), "message", "messages");
    if dry_run {
        return match ran.error {
            Some(_) => Vec::new(),
            None => vec![format!("{} would be fetched.", messages(ran.found))],
        };
    }
    let mut lines = vec![format!("{} fetched.", messages(ran.fetched))];
    if ran.known > 0 {
        lines.push(format!("{} known already, although the server has numbered them anew.", messages(ran.known)));
    }
    if ran.failed > 0 {
        lines.push(format!("{} not taken yet; tried again later, see the log.", messages(ran.failed)));
    }
    lines.extend(ran.left.iter().map(|left| format!("Left in the mailbox: {}", clean(left))));
    if ran.more {
        lines.push("There are more; they follow at once.".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mailbox_is_described_with_what_went_wrong() {
        let account = FetchStatus {
            name: "sales".to_owned(),
            protocol: "imap".to_owned(),
            host: "imap.example.net".to_owned(),
            username: "sales".to_owned(),
            folder: "INBOX".to_owned(),
            state: "failing".to_owned(),
            last_run: Some(1_795_300_017_000),
            last_success: None,
            last_error: Some("no\x1b[1m".to_owned()),
            next_run: Some(1_795_300_317_000),
            fetched: 7,
            left: 1,
        };
        let wanted = [
            "sales failing imap sales at imap.example.net, INBOX",
            "    last run 2026-11-21 22:26:57 UTC, next in 5 min; 7 fetched, 1 left",
            "    no?[1m",
        ];
        assert_eq!(described(&account, 1_795_300_017_000), wanted);
        let ran = Ran { found: 3, ..Ran::default() };
        assert_eq!(told(&ran, true), ["3 messages would be fetched."]);
    }
}
