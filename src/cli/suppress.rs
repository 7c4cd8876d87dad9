//! `postrider suppress`: the addresses that get no more mail of some streams; who is on the list and why.
//! Files of addresses are read in `file`.

mod file;

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::client::Client;
use super::progress::Progress;
use super::text::{clean, count, moment, print, table};
use super::{Failure, client, print_json};
use crate::admin::filter::parse_duration;
use crate::admin::suppress::{ENTRIES_MAX, Explained, Suppressed};
use crate::bounce::suppression::{GLOBAL, Reason, Who};
use crate::clock::{Clock, Millis, rfc3339};
use file::{Given, content, csv, read};

/// The columns of an export.
const COLUMNS: [&str; 5] = ["address", "scope", "reason", "since", "expires"];

const EXAMPLES: &str = "\
Examples:
  postrider suppress list
  postrider suppress add bob@example.net
  postrider suppress explain bob@example.net
  postrider suppress import unsubscribed.txt --reason unsubscribe

Addresses are put on the list by their bounces (bounces.*) and complaints too. Mail of a stream with
suppress = true (by default \"bulk\") skips them; that of the stream \"security\" never does.";

const LIST_EXAMPLES: &str = "\
Examples:
  postrider suppress list
  postrider suppress list example.net --reason bounces
  postrider suppress list --stream bulk --json | jq -r .address";

const ADD_EXAMPLES: &str = "\
Examples:
  postrider suppress add bob@example.net                 for every stream that skips such addresses
  postrider suppress add @example.net --stream bulk      all addresses there
  postrider suppress add bob@example.net --global        for all streams but \"security\"
  postrider suppress add bob@example.net --for 30d";

const REMOVE_EXAMPLES: &str = "\
Examples:
  postrider suppress remove bob@example.net              in all scopes; its bounces count anew from now on
  postrider suppress remove bob@example.net --stream bulk
  postrider suppress remove bob@example.net --force      although it has complained";

const IMPORT_EXAMPLES: &str = "\
Examples:
  postrider suppress import blacklist.txt                an address, or @ and a domain, a line
  postrider suppress import export.csv --dry-run
  postrider suppress import - --reason unsubscribe < list.txt

CSV has a first line with the names of its columns (address or email; scope, reason, since, expires where
there are such); lines of JSON are as `list --json` prints them. If any line is wrong nothing is imported.";

const EXPORT_EXAMPLES: &str = "\
Examples:
  postrider suppress export > suppressed.csv
  postrider suppress export --json > suppressed.jsonl";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  postrider suppress explain bob@example.net
  postrider suppress explain bob@example.net --json";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: SuppressCommand,
}

#[derive(Debug, Subcommand)]
enum SuppressCommand {
    /// Who is on it, and why
    #[command(after_help = LIST_EXAMPLES)]
    List {
        /// Only addresses in which this text occurs
        text: Option<String>,
        #[command(flatten)]
        scope: Scope,
        /// Only with this reason
        #[arg(long, value_parser = reason)]
        reason: Option<Reason>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// No more mail to these addresses
    #[command(after_help = ADD_EXAMPLES)]
    Add {
        /// An address, or @ and a domain
        #[arg(required = true, value_parser = named)]
        address: Vec<String>,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        entry: Entry,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Mail to these addresses again
    #[command(after_help = REMOVE_EXAMPLES)]
    Remove {
        /// An address, or @ and a domain
        #[arg(required = true, value_parser = named)]
        address: Vec<String>,
        #[command(flatten)]
        scope: Scope,
        /// Also if they have complained
        #[arg(long)]
        force: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Puts all that a file names on the list
    #[command(after_help = IMPORT_EXAMPLES)]
    Import {
        /// The file; - is standard input
        file: PathBuf,
        #[command(flatten)]
        scope: Scope,
        #[command(flatten)]
        entry: Entry,
        /// Only look whether every line can be read
        #[arg(long)]
        dry_run: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// The whole list as CSV
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// What came back from an address, what counts of it, and what the rule says
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain {
        /// An address, or @ and a domain
        #[arg(value_parser = named)]
        address: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Scope {
    /// Only for this stream
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// For all streams but "security"
    #[arg(long, conflicts_with = "stream")]
    global: bool,
}

impl Scope {
    fn name(&self) -> Option<String> {
        if self.global { Some(GLOBAL.to_owned()) } else { self.stream.clone() }
    }
}

#[derive(Debug, clap::Args)]
struct Entry {
    /// Why: bounces, complaint, unsubscribe, manual or import
    #[arg(long, value_parser = reason)]
    reason: Option<Reason>,
    /// For so long only, such as 30d
    #[arg(long = "for", value_name = "TIME", value_parser = parse_duration)]
    time: Option<std::time::Duration>,
}

impl Entry {
    fn expires(&self) -> Option<Millis> {
        let millis = |time: std::time::Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.time.map(|time| Clock::System.now().saturating_add(millis(time)))
    }
}

fn reason(text: &str) -> Result<Reason, String> {
    let names = || Reason::ALL.map(Reason::name).join(", ");
    Reason::of(text).ok_or_else(|| format!("the reasons are {}", names()))
}

fn named(text: &str) -> Result<String, String> {
    Who::parse(text).map(|who| who.key()).map_err(|error| error.to_string())
}

pub(super) async fn run(config: &Path, Args { command }: Args) -> Result<(), Failure> {
    let client = client(config)?;
    match command {
        SuppressCommand::List { text, scope, reason, json } => {
            let (text, scope) = (text.map(|text| text.to_lowercase()), scope.name());
            let fits = move |entry: &Suppressed| {
                text.as_ref().is_none_or(|text| entry.address.contains(text))
                    && scope.as_ref().is_none_or(|scope| entry.scope.as_ref() == Some(scope))
                    && reason.is_none_or(|reason| entry.reason == reason)
            };
            list(&client, fits, json).await
        }
        SuppressCommand::Add { address, scope, entry, json } => {
            let (reason, expires, scope) = (entry.reason.unwrap_or(Reason::Manual), entry.expires(), scope.name());
            let new = |address| Suppressed {
                address,
                scope: scope.clone(),
                reason,
                since: None,
                expires,
                evidence: Vec::new(),
            };
            let changed = add(&client, address.into_iter().map(new).collect()).await?;
            told(changed, json, "put on the list", "on the list already")
        }
        SuppressCommand::Remove { address, scope, force, json } => {
            let changed = client.unsuppress(address, scope.name(), force).await?;
            told(changed, json, "taken off the list", "not on the list")
        }
        SuppressCommand::Import { file, scope, entry, dry_run, json } => {
            let given = Given { scope: scope.name(), reason: entry.reason, expires: entry.expires() };
            let entries = read(&content(&file)?, &given)?;
            if dry_run {
                let entries = count(entries.len(), "address", "addresses");
                return Ok(print(&format!("{entries} can be imported; nothing was changed."))?);
            }
            let all = entries.len();
            let changed = add(&client, entries).await?;
            if json {
                return print_json(&serde_json::json!({ "read": all, "changed": changed }));
            }
            Ok(print(&format!("{} read, {changed} entries new or changed.", count(all, "address", "addresses")))?)
        }
        SuppressCommand::Export { json } => export(&client, json).await,
        SuppressCommand::Explain { address, json } => {
            let explained = client.explain_suppression(&address).await?;
            if json {
                return print_json(&explained);
            }
            explain(&explained).iter().try_for_each(|line| print(line)).map_err(Failure::from)
        }
    }
}

fn told(changed: usize, json: bool, done: &str, already: &str) -> Result<(), Failure> {
    if json {
        return print_json(&serde_json::json!({ "changed": changed }));
    }
    match changed {
        0 => Ok(print(&format!("Nothing changed: {already}."))?),
        changed => Ok(print(&format!("{} {done}.", count(changed, "entry", "entries")))?),
    }
}

async fn add(client: &Client, entries: Vec<Suppressed>) -> Result<usize, Failure> {
    let mut progress = Progress::new("importing", entries.len() as u64);
    let (mut changed, mut done) = (0, 0);
    for some in entries.chunks(ENTRIES_MAX) {
        changed += client.suppress(some.to_vec()).await?;
        done += some.len() as u64;
        progress.set(done);
    }
    Ok(changed)
}

/// Every entry, page by page.
async fn each(client: &Client, mut show: impl FnMut(&Suppressed) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut after: Option<Suppressed> = None;
    loop {
        let page = client.suppressions(after.as_ref()).await?;
        page.suppressions.iter().try_for_each(&mut show)?;
        after = page.suppressions.into_iter().next_back();
        if !page.more || after.is_none() {
            return Ok(());
        }
    }
}

async fn list(client: &Client, fits: impl Fn(&Suppressed) -> bool, json: bool) -> Result<(), Failure> {
    let mut rows = vec![["ADDRESS", "FOR", "WHY", "SINCE (UTC)", "UNTIL"].map(str::to_owned).to_vec()];
    each(client, |entry| {
        match (fits(entry), json) {
            (false, _) => {}
            (true, true) => print_json(entry)?,
            (true, false) => rows.push(vec![
                clean(&entry.address),
                clean(entry.scope.as_deref().unwrap_or_default()),
                entry.reason.name().to_owned(),
                entry.since.map(moment).unwrap_or_default(),
                entry.expires.map(moment).unwrap_or_default(),
            ]),
        }
        Ok(())
    })
    .await?;
    match (json, rows.len()) {
        (true, _) => Ok(()),
        (false, 1) => Ok(print("Nobody is on the list.")?),
        (false, _) => table(&rows).iter().try_for_each(|line| print(line)).map_err(Failure::from),
    }
}

async fn export(client: &Client, json: bool) -> Result<(), Failure> {
    // With the first answer: a list that could not be had is not an empty one.
    let mut is_headed = json;
    let head = |is_headed: &mut bool| match std::mem::replace(is_headed, true) {
        true => Ok(()),
        false => print(&COLUMNS.join(",")),
    };
    each(client, |entry| {
        if json {
            return print_json(entry);
        }
        head(&mut is_headed)?;
        let time = |at: Option<Millis>| at.map(rfc3339).unwrap_or_default();
        let scope = entry.scope.clone().unwrap_or_default();
        let columns =
            [entry.address.clone(), scope, entry.reason.name().to_owned(), time(entry.since), time(entry.expires)];
        Ok(print(&columns.map(|text| csv(&text)).join(","))?)
    })
    .await?;
    Ok(head(&mut is_headed)?)
}

fn explain(explained: &Explained) -> Vec<String> {
    let mut lines = vec![clean(&explained.address)];
    for entry in &explained.listed {
        let scope = match entry.scope.as_deref() {
            Some(GLOBAL) | None => "all streams but \"security\"".to_owned(),
            Some(stream) => format!("the stream {stream}"),
        };
        let since = entry.since.map(moment).unwrap_or_default();
        let until = entry.expires.map_or(String::new(), |until| format!(", until {}", moment(until)));
        lines.push(clean(&format!(
            "  {} is on the list for {scope} since {since} UTC{until} ({})",
            entry.address,
            entry.reason.name()
        )));
    }
    if explained.listed.is_empty() {
        lines.push("  It is not on the list.".to_owned());
    }
    for bounce in &explained.bounces {
        let how = if bounce.direct { "refused to this server" } else { "reported" };
        let counts = if bounce.counts { "counts" } else { "does not count" };
        let at = moment(bounce.at);
        lines.push(clean(&format!(
            "  {at} {} {} {how}, message {}: {counts}",
            bounce.class, bounce.status, bounce.message
        )));
    }
    if let Some(alive) = explained.alive {
        lines.push(format!("  Mail came from it, or it was taken off the list, at {} UTC.", moment(alive)));
    }
    lines.extend(explained.rule.as_ref().map(|rule| format!("  The rule: {}.", clean(rule))));
    lines
}
