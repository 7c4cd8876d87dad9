//! `postrider store`: look through the store, back it up, restore it, give space back.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::client::{Client, Reached};
use super::progress::Progress;
use super::text::{Paint, clean, count, print, size};
use super::{Failure, load, print_json};
use crate::admin::{BackedUp, Compacted, Complaint};
use crate::app::upkeep;
use crate::clock::Clock;
use crate::config::Config;
use crate::queue::check::{self, Finding, Summary};
use crate::store::backup::folder_size;
use crate::store::damage::Damage;
use crate::store::{Store, StoreError};

const EXAMPLES: &str = "\
Examples:
  postrider store check                                  with the server stopped: is everything in order?
  postrider store backup /var/backups/mail-2026-11-22    while the server runs
  postrider store restore /var/backups/mail-2026-11-22
  postrider store compact                                give back the space of what was deleted";

const CHECK_EXAMPLES: &str = "\
Examples:
  postrider store check
  postrider store check --json | jq -r .what

The server must be stopped; a running server tells of damage in its log and on /readyz. To check while
it runs, make a backup, restore it into another data_dir, and check that one.
Every record is read, nothing is changed. Exit status: 0 nothing was found, 1 something was, 2 the
store could not be looked at.";

const BACKUP_EXAMPLES: &str = "\
Examples:
  postrider store backup /var/backups/mail-$(date +%F)
  postrider store backup /mnt/other-disk/mail --json

The folder must be empty or not there. It gets the queue, as it is on disk at one moment, and the keys
and certificates that this server has made; all of it is readable for its owner alone. A running server
writes it itself, so its user must be able to write there; it goes on meanwhile. On the same file system
files are shared with the store and cost no space; for a copy that outlives the disk name another one.
`postrider store restore` puts it back. Mail that is delivered after the backup is delivered again from it.";

const RESTORE_EXAMPLES: &str = "\
Examples:
  postrider store restore /var/backups/mail-2026-11-22
  postrider store restore /var/backups/mail-2026-11-22 --force    the present store is moved aside

Stop the server first, and run this as the user who runs it. A store that is there is in the way; with
--force it is renamed to store.before-TIME, never deleted. Keys that are there stay, unless --force is
given. By hand it is the same: copy the folders of the backup (store, dkim, tls) into data_dir.";

const COMPACT_EXAMPLES: &str = "\
Examples:
  postrider store compact                                through the running server, or with it stopped

Space returns by itself as time goes by; this is for when it is needed now. Needs some free space to
work in; mail goes on meanwhile.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Look through the store of a stopped server for anything that should not be so
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// One JSON object a finding, then one with the totals
        #[arg(long)]
        json: bool,
    },
    /// Copy queue and keys into a folder, consistent, also while the server runs
    #[command(after_help = BACKUP_EXAMPLES)]
    Backup {
        /// A folder that is empty or not there
        #[arg(value_name = "DIR")]
        to: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put a backup into data_dir, with the server stopped
    #[command(after_help = RESTORE_EXAMPLES)]
    Restore {
        /// A folder that `backup` has made
        #[arg(value_name = "DIR")]
        from: PathBuf,
        /// Move what is there aside
        #[arg(long)]
        force: bool,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Give back the space of what was deleted
    #[command(after_help = COMPACT_EXAMPLES)]
    Compact {
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

impl From<Complaint> for Failure {
    fn from(complaint: Complaint) -> Failure {
        let of = if complaint.of_wish { Failure::usage } else { Failure::new };
        of(complaint.what).remedy(complaint.remedy)
    }
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let config = load(config)?;
    let client = Client::new(&config.data_dir);
    match args.command {
        StoreCommand::Check { json } => check(&config, &client, json).await,
        StoreCommand::Backup { to, json } => backup(&config, &client, &to, json).await,
        StoreCommand::Restore { from, force, json } => restore(&config, &client, &from, force, json).await,
        StoreCommand::Compact { json } => compact(&config, &client, json).await,
    }
}

/// It could not be looked at: exit status 2, so that it is not taken for a finding.
fn cannot_check(message: String, remedy: &str) -> Failure {
    Failure::usage(message).remedy(remedy)
}

async fn check(config: &Config, client: &Client, json: bool) -> Result<(), Failure> {
    const STOP_FIRST: &str =
        "stop it first; or `postrider store backup DIR`, restore that into another data_dir and check there";
    match client.reach().await {
        Reached::Nobody => {}
        Reached::Server => return Err(cannot_check("the server is running: it has the store open".into(), STOP_FIRST)),
        Reached::Trouble(failure) => return Err(Failure { status: 2, ..failure }),
    }
    let path = config.data_dir.join("store");
    if !path.is_dir() {
        return Err(cannot_check(
            format!("there is no store in {}", config.data_dir.display()),
            "is data_dir right? a server makes the store at its first start",
        ));
    }
    // Reads everything once for the files' sake, then once more for what the records say.
    let progress = Progress::new("reading the files", 0);
    let files = path.clone();
    let damages = progress.during(off_thread(move || Store::check_files(&files))).await?;
    let damages = damages.map_err(|error| open_failure(&path, error))?;
    for damage in &damages {
        show(&file_finding(damage), json)?;
    }
    let store = match Store::open_read_only(&path) {
        Ok(store) => store,
        Err(error @ (StoreError::InUse | StoreError::Newer { .. })) => return Err(open_failure(&path, error)),
        // No record can be reached; what that comes from has been told.
        Err(_) if !damages.is_empty() => return finish(Summary::default(), damages.len() as u64, json),
        Err(error) => return Err(open_failure(&path, error)),
    };
    let summary = look_through(&store, !damages.is_empty(), json)?;
    finish(summary, damages.len() as u64 + summary.findings, json)
}

fn file_finding(damage: &Damage) -> Finding {
    Finding {
        id: None,
        kind: check::Kind::Unreadable,
        what: damage.to_string(),
        remedy: "copy the folder away; then start the server, which keeps what can be read, or restore a backup"
            .to_owned(),
    }
}

/// `are_files_bad`: what cannot be read has been told of already.
fn look_through(store: &Store, are_files_bad: bool, json: bool) -> Result<Summary, Failure> {
    let progress = std::cell::RefCell::new(Progress::new("checking the records", 0));
    let (mut failed, mut untold) = (None, 0);
    let mut tell = |finding: Finding| {
        if are_files_bad && finding.kind == check::Kind::Unreadable {
            untold += 1;
            return ControlFlow::Continue(());
        }
        progress.borrow_mut().clear();
        match show(&finding, json) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                failed = Some(failure);
                ControlFlow::Break(())
            }
        }
    };
    let summary = check::check(store, &mut tell, &mut |done| progress.borrow_mut().set(done));
    match failed {
        Some(failure) => Err(failure),
        None => Ok(Summary { findings: summary.findings - untold, ..summary }),
    }
}

fn open_failure(path: &Path, error: StoreError) -> Failure {
    let remedy = match error {
        StoreError::InUse => "stop it first",
        StoreError::Newer { .. } => "check it with the postrider that wrote it",
        _ => "run this as the user who runs the server",
    };
    cannot_check(format!("{}: {error}", path.display()), remedy)
}

fn show(finding: &Finding, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(finding);
    }
    let paint = Paint::for_stdout();
    print(&paint.yellow(&clean(&finding.what)))?;
    Ok(print(&format!("  → {}", finding.remedy))?)
}

fn finish(summary: Summary, findings: u64, json: bool) -> Result<(), Failure> {
    if json {
        let Summary { messages, recipients, body_bytes, .. } = summary;
        let body = serde_json::json!({
            "messages": messages, "recipients": recipients, "body_bytes": body_bytes, "findings": findings
        });
        print_json(&body)?;
    } else {
        let what = format!(
            "{} with {} and {} of mail looked at",
            count(summary.messages as usize, "message", "messages"),
            count(summary.recipients as usize, "recipient", "recipients"),
            size(summary.body_bytes)
        );
        print(&match findings {
            0 => format!("{what}: all is well."),
            n => format!("{what}: {}.", count(n as usize, "finding", "findings")),
        })?;
    }
    match findings {
        0 => Ok(()),
        // All is said already.
        _ => Err(Failure { status: 1, message: String::new(), remedy: None }),
    }
}

/// The store of a server that is stopped.
fn open(config: &Config) -> Result<Store, Failure> {
    let path = config.data_dir.join("store");
    if !path.is_dir() {
        return Err(Failure::new(format!("there is no store in {}", config.data_dir.display()))
            .remedy("is data_dir right? a server makes the store at its first start"));
    }
    Store::open(&path).map_err(|error| {
        Failure::new(format!("{}: {error}", path.display())).remedy("run this as the user who runs the server")
    })
}

async fn backup(config: &Config, client: &Client, to: &Path, json: bool) -> Result<(), Failure> {
    let to = std::path::absolute(to)
        .map_err(|error| Failure::usage(format!("{}: {error}", to.display())).remedy("name a folder"))?;
    let progress = Progress::new("writing the backup", 0);
    let made: BackedUp = match client.reach().await {
        Reached::Server => progress.during(client.back_up(&to)).await?,
        Reached::Nobody => {
            let (store, hostname) = (open(config)?, config.hostname.to_string());
            let (data_dir, now) = (config.data_dir.clone(), Clock::System.now());
            let work = move || upkeep::back_up(&store, &data_dir, &to, &hostname, now);
            progress.during(off_thread(work)).await??
        }
        Reached::Trouble(failure) => return Err(failure),
    };
    if json {
        return print_json(&made);
    }
    Ok(print(&format!("{}: {} in {}.", made.to, size(made.bytes), count(made.files as usize, "file", "files")))?)
}

async fn restore(config: &Config, client: &Client, from: &Path, force: bool, json: bool) -> Result<(), Failure> {
    std::fs::read_dir(from).map_err(|error| {
        Failure::unreadable(from, &error).remedy("name a folder that `postrider store backup` has made")
    })?;
    match client.reach().await {
        Reached::Nobody => {}
        Reached::Server => {
            return Err(Failure::new("the server is running: it has the store open").remedy("stop it first"));
        }
        Reached::Trouble(failure) => return Err(failure),
    }
    let total = folder_size(from).map_or(0, |(bytes, _)| bytes);
    let mut progress = Progress::new("copying", total);
    let (mut copied, now) = (0, Clock::System.now());
    let restored = upkeep::restore(from, &config.data_dir, force, now, &mut |bytes| {
        copied += bytes;
        progress.set(copied);
    })?;
    drop(progress);
    if json {
        return print_json(&restored);
    }
    for aside in &restored.moved_aside {
        print(&format!("moved aside: {}", aside.display()))?;
    }
    for kept in &restored.kept {
        print(&format!("left as it was: {} (--force takes the one of the backup)", kept.display()))?;
    }
    let manifest = &restored.manifest;
    Ok(print(&format!(
        "{}: restored {}, backed up on {} by {}. Start the server with `postrider serve`.",
        config.data_dir.display(),
        size(restored.bytes),
        clean(&manifest.made_at),
        clean(&manifest.hostname)
    ))?)
}

async fn compact(config: &Config, client: &Client, json: bool) -> Result<(), Failure> {
    let progress = Progress::new("compacting", 0);
    let done: Compacted = match client.reach().await {
        Reached::Server => progress.during(client.compact()).await?,
        Reached::Nobody => {
            let (store, data_dir) = (open(config)?, config.data_dir.clone());
            progress.during(off_thread(move || upkeep::compact(&store, &data_dir))).await??
        }
        Reached::Trouble(failure) => return Err(failure),
    };
    if json {
        return print_json(&done);
    }
    Ok(print(&compacted(done))?)
}

/// A small store may take more room than before: what was in the log alone is in a table then, too.
fn compacted(Compacted { before, after }: Compacted) -> String {
    match after < before {
        true => format!("{} before, {} after.", size(before), size(after)),
        false => {
            format!("Nothing to gain: the store has {}, and nothing that was deleted takes space in it.", size(after))
        }
    }
}

/// Keeps the progress bar moving meanwhile.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new(format!("the work was broken off: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compaction_that_gains_nothing_says_so() {
        let said = |before, after| compacted(Compacted { before, after });
        assert_eq!(said(3 << 20, 1 << 20), "3.0 MiB before, 1.0 MiB after.");
        for before in [1 << 20, 1 << 19] {
            assert!(
                said(before, 1 << 20).starts_with("Nothing to gain: the store has 1.0 MiB,"),
                "{}",
                said(before, 1 << 20)
            );
        }
    }
}
