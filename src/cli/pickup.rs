//! `postrider pickup`: what would become of the files in a folder, and taking them now.

use std::path::{Path, PathBuf};

use super::client::Reached;
use super::progress::Progress;
use super::text::{clean, count, print, size};
use super::{Failure, client, load, print_json};
use crate::admin::pickup::{PickupAnswer, PickupBody};
use crate::clock::Clock;
use crate::config::{Config, PickupDone, PickupFormat, SUBMITTED_RECIPIENTS};
use crate::intake::pickup::inspect::{FILES_MAX, Inspected, Prospect, inspect};
use crate::intake::pickup::{Folder, Report, Said};

const EXAMPLES: &str = "\
Examples:
  postrider pickup check main               the folder of [pickup.main]: its rights, and what each file would become
  postrider pickup check /srv/spool --json  any folder, as with format = \"auto\"
  postrider pickup once                     the running server looks into all its folders now

`check` takes nothing; run it as the user who runs the server. Exit status 1: something would not be taken.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Say whether a folder is fit, and what each waiting file would become
    #[command(after_help = EXAMPLES)]
    Check {
        /// One of [pickup], or the path of a folder; all of [pickup] if none is named
        folder: Option<PathBuf>,
        /// One JSON object a folder
        #[arg(long)]
        json: bool,
    },
    /// Take what is ready now, and say what became of it
    #[command(after_help = EXAMPLES)]
    Once {
        /// One of [pickup]; all if none is named
        name: Option<String>,
        /// One JSON object a folder
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    match args.command {
        Command::Check { folder, json } => check(&load(config)?, folder.as_deref(), json),
        Command::Once { name, json } => {
            let client = client(config)?;
            if let Reached::Nobody = client.reach().await {
                let config = load(config)?;
                check(&config, name.as_deref().map(Path::new), json)?;
                return Err(Failure::new("no server is running: nothing was taken")
                    .remedy("start it with `postrider serve`; it takes what is ready by itself"));
            }
            let wish = PickupBody { name };
            let PickupAnswer { folders } = Progress::new("taking files", 0).during(client.pick_up(&wish)).await?;
            tell(&folders, json)
        }
    }
}

fn check(config: &Config, wanted: Option<&Path>, json: bool) -> Result<(), Failure> {
    let folders = match wanted {
        None => config.pickup.keys().filter_map(|name| Folder::of(config, name)).collect(),
        Some(wanted) => vec![find(config, wanted)?],
    };
    if folders.is_empty() {
        return Err(Failure::new("the configuration has no [pickup] folder").remedy("name a folder by its path"));
    }
    let unique = format!("postrider-{}", std::process::id());
    let mut is_good = true;
    for folder in &folders {
        let told = inspect(folder, Clock::System.now(), &unique);
        is_good &= told.problems.is_empty() && told.files.iter().all(|file| file.bad.is_none());
        if json {
            print_json(&told)?;
            continue;
        }
        for line in lines(folder, &told) {
            print(&line)?;
        }
    }
    // Everything is said.
    if is_good { Ok(()) } else { Err(Failure { status: 1, message: String::new(), remedy: None }) }
}

/// By name or by path; a folder that nobody configured is looked at with the defaults.
fn find(config: &Config, wanted: &Path) -> Result<Folder, Failure> {
    let by_name = wanted.to_str().and_then(|name| Folder::of(config, name));
    let by_path = || {
        let (name, _) = config.pickup.iter().find(|(_, pickup)| pickup.path == wanted)?;
        Folder::of(config, name)
    };
    let unnamed = || Folder {
        name: String::new(),
        path: wanted.to_owned(),
        account: None,
        settle: std::time::Duration::ZERO,
        format: PickupFormat::Auto,
        done: PickupDone::Delete,
        max_per_minute: 0,
        streams: config.streams.keys().cloned().collect(),
        max_recipients: SUBMITTED_RECIPIENTS,
        max_size: config.limits.max_size,
    };
    by_name.or_else(by_path).or_else(|| wanted.is_dir().then(unnamed)).ok_or_else(|| {
        let known: Vec<_> = config.pickup.keys().map(String::as_str).collect();
        Failure::usage(format!("{} is neither one of [pickup] nor a folder", wanted.display()))
            .remedy(format!("name a folder, or one of: {}", known.join(", ")))
    })
}

fn lines(folder: &Folder, told: &Inspected) -> Vec<String> {
    let name = if told.folder.is_empty() { String::new() } else { format!("{}: ", clean(&told.folder)) };
    let account = folder.account.as_deref().map(|name| format!("account {name}"));
    let about: Vec<String> = [told.rights.clone()].into_iter().chain(account).filter(|one| !one.is_empty()).collect();
    let about = if about.is_empty() { String::new() } else { format!(" ({})", about.join(", ")) };
    let mut lines = vec![format!("{name}{}{about}", clean(&told.path))];
    lines.extend(told.problems.iter().map(|problem| format!("  problem: {}", clean(problem))));
    lines.extend(told.remarks.iter().map(|remark| format!("  note: {}", clean(remark))));
    for file in &told.files {
        lines.extend(of_file(file));
    }
    lines.extend(told.never.iter().map(|Said { file, reason }| format!("  {}: never taken, {reason}", clean(file))));
    let more = if told.is_cut { format!(" (only the {FILES_MAX} oldest were looked into)") } else { String::new() };
    lines.push(format!("  {} waiting{more}", count(told.files.len(), "file", "files")));
    lines
}

fn of_file(file: &Prospect) -> Vec<String> {
    let name = format!("  {} ({}", clean(&file.file), size(file.bytes));
    match &file.bad {
        Some(reason) => vec![format!("{name}): would become .bad: {}", clean(reason))],
        None => {
            let stream = file.stream.as_ref().map_or_else(String::new, |stream| format!(", stream {stream}"));
            let unsettled = if file.settled { "" } else { ", still settling" };
            vec![
                format!("{name}, {}{stream}{unsettled})", file.seen),
                format!("    {} → {}", clean(&file.from), clean(&file.to.join(", "))),
            ]
        }
    }
}

fn tell(folders: &[Report], json: bool) -> Result<(), Failure> {
    for report in folders {
        if json {
            print_json(report)?;
            continue;
        }
        let Report { folder, queued, bad, returned, waiting, trouble } = report;
        let counts = [
            format!("{} queued", queued.len()),
            format!("{} put aside", bad.len()),
            format!("{} returned", returned.len()),
            format!("{} waiting", waiting.len()),
        ];
        print(&format!("{}: {}", clean(folder), counts.join(", ")))?;
        for file in queued {
            print(&format!("  {} → {}", clean(&file.file), file.id))?;
        }
        for (what, files) in [("put aside", bad), ("returned to its sender", returned), ("waits", waiting)] {
            for Said { file, reason } in files {
                print(&format!("  {}: {what}, {}", clean(file), clean(reason)))?;
            }
        }
        if let Some(trouble) = trouble {
            print(&format!("  problem: {}", clean(trouble)))?;
        }
    }
    let is_good = folders.iter().all(|report| report.trouble.is_none() && report.bad.is_empty());
    if is_good { Ok(()) } else { Err(Failure { status: 1, message: String::new(), remedy: None }) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_named_with_what_to_do() {
        let text = "hostname = \"mail.example.com\"\ndata_dir = \"/nowhere\"\n[accounts.shop]\npassword = \"secret\"\n\
                    [pickup.main]\npath = \"/absent/pickup\"\naccount = \"shop\"\n";
        let config = crate::config::parse("p.toml", text).unwrap();
        let folder = Folder::of(&config, "main").unwrap();
        let said = lines(&folder, &inspect(&folder, Clock::System.now(), "unique"));
        assert_eq!(said.first().unwrap(), "main: /absent/pickup (account shop)");
        assert!(said.get(1).unwrap().ends_with("; make it, writable for postrider's user"), "{said:?}");
    }
}
