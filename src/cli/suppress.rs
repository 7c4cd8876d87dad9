//! `postrider suppress`: the addresses that get no more mail of some streams; who is on the list and why.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::client::Client;
use super::progress::Progress;
use super::text::{clean, count, moment, print, table};
use super::{Failure, client, print_json};
use crate::admin::filter::parse_duration;
use crate::admin::suppress::{ENTRIES_MAX, Explained, Suppressed};
use crate::admin::view::time;
use crate::bounce::suppression::{GLOBAL, Reason, Who};
use crate::clock::{Clock, Millis, rfc3339};

/// Bytes of a file that is imported.
const FILE_BYTES_MAX: u64 = 1 << 30;
/// Wrong lines that are named.
const WRONG_MAX: usize = 10;
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
    if !json {
        print(&COLUMNS.join(","))?;
    }
    each(client, |entry| {
        if json {
            return print_json(entry);
        }
        let time = |at: Option<Millis>| at.map(rfc3339).unwrap_or_default();
        let scope = entry.scope.clone().unwrap_or_default();
        let columns =
            [entry.address.clone(), scope, entry.reason.name().to_owned(), time(entry.since), time(entry.expires)];
        Ok(print(&columns.map(|text| csv(&text)).join(","))?)
    })
    .await
}

/// RFC 4180 2.
fn csv(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// The columns of a line; None: a quote is not closed.
fn columns(line: &str) -> Option<Vec<String>> {
    let (mut columns, mut column, mut quoted) = (Vec::new(), String::new(), false);
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                column.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => columns.push(std::mem::take(&mut column)),
            c => column.push(c),
        }
    }
    columns.push(column);
    (!quoted).then_some(columns)
}

fn content(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => std::io::stdin().lock().take(FILE_BYTES_MAX).read_to_string(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)),
    };
    read.map_err(|error| Failure::usage(format!("{}: {error}", file.display())).remedy("name a file of text"))?;
    Ok(text)
}

/// What holds for lines that do not say otherwise.
struct Given {
    scope: Option<String>,
    reason: Option<Reason>,
    expires: Option<Millis>,
}

/// All lines, or the first that are wrong.
fn read(text: &str, given: &Given) -> Result<Vec<Suppressed>, Failure> {
    let (mut entries, mut wrong, mut header) = (Vec::new(), Vec::new(), None);
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if header.is_none() && entries.is_empty() && !line.contains('@') && !line.starts_with('{') {
            header = Some(columns(&line.to_lowercase()).unwrap_or_default());
            continue;
        }
        match read_line(line, header.as_deref(), given) {
            Ok(entry) => entries.push(entry),
            Err(what) if wrong.len() < WRONG_MAX => wrong.push(format!("  line {}: {what}", number + 1)),
            Err(_) => {}
        }
    }
    if wrong.is_empty() {
        return Ok(entries);
    }
    Err(Failure::usage(format!("lines that cannot be read\n{}", wrong.join("\n")))
        .remedy("correct them or take them out; nothing was imported"))
}

fn read_line(line: &str, header: Option<&[String]>, given: &Given) -> Result<Suppressed, String> {
    let mut entry = match header {
        _ if line.starts_with('{') => serde_json::from_str(line).map_err(|error| error.to_string())?,
        Some(header) => of_columns(&columns(line).ok_or("a quote is not closed")?, header)?,
        None => Suppressed {
            address: line.to_owned(),
            scope: None,
            reason: Reason::Import,
            since: None,
            expires: None,
            evidence: Vec::new(),
        },
    };
    entry.address = Who::parse(&entry.address).map_err(|error| error.to_string())?.key();
    entry.scope = given.scope.clone().or(entry.scope).filter(|scope| !scope.is_empty());
    entry.reason = given.reason.unwrap_or(entry.reason);
    entry.expires = given.expires.or(entry.expires);
    entry.evidence.clear();
    Ok(entry)
}

fn of_columns(columns: &[String], header: &[String]) -> Result<Suppressed, String> {
    let named = |names: &[&str]| {
        let at = header.iter().position(|column| names.contains(&column.trim()))?;
        columns.get(at).map(|text| text.trim()).filter(|text| !text.is_empty())
    };
    let at = |names: &[&str]| {
        named(names).map(|text| time::parse(text).ok_or(format!("{text:?} is not a time in RFC 3339 form")))
    };
    let address = named(&["address", "email", "email address", "emailaddress"]).ok_or("there is no address")?;
    let why = named(&["reason"]).map_or(Ok(Reason::Import), |text| reason(&text.to_lowercase()))?;
    Ok(Suppressed {
        address: address.to_owned(),
        scope: named(&["scope"]).map(str::to_owned),
        reason: why,
        since: at(&["since"]).transpose()?,
        expires: at(&["expires"]).transpose()?,
        evidence: Vec::new(),
    })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn given() -> Given {
        Given { scope: None, reason: None, expires: None }
    }

    #[test]
    fn files_of_every_form_are_read() {
        let plain = "# ours\nBob@Example.net\n\n@gone.example\n";
        let read_ = read(plain, &given()).unwrap();
        let addresses: Vec<&str> = read_.iter().map(|entry| entry.address.as_str()).collect();
        assert_eq!(addresses, ["bob@example.net", "@gone.example"]);
        assert!(read_.iter().all(|entry| entry.reason == Reason::Import && entry.scope.is_none()));

        let table = "Email,created_at,Reason\nbob@example.net,x,unsubscribe\n\"\"\"a,b\"\"@example.net\",,\n";
        let read_ = read(table, &given()).unwrap();
        assert_eq!(read_[0].reason, Reason::Unsubscribe);
        assert_eq!(read_[1].address, "\"a,b\"@example.net");

        let json = "{\"address\":\"bob@example.net\",\"scope\":\"bulk\",\"reason\":\"complaint\",\"since\":\"2026-11-21T22:26:57.000Z\"}\n";
        let read_ = read(json, &given()).unwrap();
        assert_eq!((read_[0].scope.as_deref(), read_[0].since), (Some("bulk"), Some(1_795_300_017_000)));
    }

    #[test]
    fn wrong_lines_are_named() {
        let failure = read("bob@example.net\nnobody\n@\n{}\n", &given()).unwrap_err().to_string();
        for line in ["line 2", "line 3", "line 4"] {
            assert!(failure.contains(line), "{failure}");
        }
    }

    #[test]
    fn an_export_is_read_as_what_it_was() {
        for text in ["plain", "a,b", "say \"x\"", ""] {
            assert_eq!(columns(&format!("{},x", csv(text))).unwrap(), [text, "x"]);
        }
        assert_eq!(columns("\"open"), None);
    }
}
