//! `postrider queue export` and `import`: messages as pairs of files, `ID.eml` (byte for byte) and
//! `ID.json` (the envelope and where each recipient stands). Through the running server, or on its
//! store while it is stopped.
//!
//! An import can be broken off anywhere and repeated: a message and the record of its file are queued
//! in one write, then the file is renamed to `.json.done`, then the record goes.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};
use tokio::task::JoinSet;

use super::client::{Client, Reached};
use super::progress::Progress;
use super::queue::Filters;
use super::text::{clean, count, print};
use super::{Failure, load, print_json};
use crate::admin::filter::{PAGE_MESSAGES_MAX, SelectionBody};
use crate::admin::transfer::{ENVELOPE_BYTES_MAX, Exported, Imported, join, split};
use crate::admin::{Filter, Page, Pick, Selection};
use crate::app::operator::select;
use crate::app::transfer::Transfer;
use crate::clock::Clock;
use crate::message::MessageId;
use crate::store::backup::sync_folder;

/// Messages imported at once: their writes share syncs.
const IMPORTS_AT_ONCE: usize = 16;
/// Bytes of a message that is read from a file; the server's own limit is lower.
const FILE_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// After so many files in a row that could not be queued the trouble is not theirs.
const FAILURES_IN_A_ROW_MAX: usize = 32;

pub(super) const EXPORT_EXAMPLES: &str = "\
Examples:
  postrider queue export --all --to-dir /var/backups/queue
  postrider queue export 0d3c9k2p5v8xq --to-dir .
  postrider queue export --domain example.net --status held --to-dir held
  postrider queue export --stream bulk --to-dir . --dry-run          how many would it be?

Each message becomes ID.eml, byte for byte, and ID.json, with its envelope and all its recipients that
are not done. The queue stays as it is: `postrider queue cancel` takes messages out of it. To move a
queue, stop the server first, so that nothing is delivered after it was exported. Works with the server
running or stopped.";

pub(super) const IMPORT_EXAMPLES: &str = "\
Examples:
  postrider queue import /var/backups/queue              every ID.json in it, with its ID.eml
  postrider queue import held/0d3c9k2p5v8xq.json
  postrider queue import held --dry-run                  can all of it be read?

Messages get new ids; what is held stays held, captured stays captured, and what waits is tried when it
was due. Nothing is signed or added. A file that is done is renamed to .done; an import that was broken
off can be repeated, nothing is queued twice. What cannot be imported is named and stays, the rest goes
on. Works with the server running or stopped.";

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// Messages, those that the filters take
    #[arg(value_name = "ID")]
    ids: Vec<MessageId>,
    #[command(flatten)]
    filters: Filters,
    /// The whole queue
    #[arg(long)]
    all: bool,
    /// Where the files go; made if it is not there
    #[arg(long, value_name = "DIR")]
    to_dir: PathBuf,
    /// Write nothing, only say how many messages are meant
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a message
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// Folders, or single .json files
    #[arg(value_name = "DIR|FILE", required = true)]
    from: Vec<PathBuf>,
    /// Queue nothing, only look whether every file can be read
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a message
    #[arg(long)]
    json: bool,
}

/// Where the queue can be reached.
enum Place {
    Server(Client),
    /// The server is stopped.
    Store(Transfer),
}

impl Place {
    async fn find(config: &Path) -> Result<Place, Failure> {
        let config = load(config)?;
        let client = Client::new(&config.data_dir);
        match client.reach().await {
            Reached::Server => Ok(Place::Server(client)),
            Reached::Trouble(failure) => Err(failure),
            Reached::Nobody => {
                let opened = Transfer::open(&config, Clock::System);
                Ok(Place::Store(opened.map_err(|error| Failure::new(error.to_string()))?))
            }
        }
    }

    /// A page of messages that the filter takes, and what to ask for the next one.
    async fn page(&self, filter: &Filter, page: Page) -> Result<(Vec<MessageId>, Option<MessageId>), Failure> {
        match self {
            Place::Server(client) => {
                let answer = client.list(filter, page).await?;
                Ok((answer.messages.iter().map(|listed| listed.id).collect(), answer.next))
            }
            Place::Store(transfer) => {
                let listed = select(&transfer.queue, filter, page, transfer.clock.now());
                let listed = listed.map_err(|error| Failure::new(error.to_string()))?;
                let next = listed.last().map(|last| last.id).filter(|_| listed.len() >= page.limit);
                Ok((listed.into_iter().map(|listed| listed.id).collect(), next))
            }
        }
    }

    /// Is this message one that the filter takes?
    async fn takes(&self, filter: &Filter, id: MessageId) -> Result<bool, Failure> {
        let before = MessageId::from_u64(id.as_u64().saturating_sub(1));
        let (found, _) = self.page(filter, Page { limit: 1, after: Some(before) }).await?;
        Ok(found.first() == Some(&id))
    }

    async fn export(&self, id: MessageId) -> Result<Option<(Exported, Bytes)>, Failure> {
        match self {
            Place::Server(client) => {
                let Some(answer) = client.export(id).await? else { return Ok(None) };
                split(answer).map(Some).map_err(|error| Failure::new(format!("the server's answer: {error}")))
            }
            Place::Store(transfer) => {
                let exported = transfer.export(id).await.map_err(|error| {
                    Failure::new(error.to_string()).remedy("`postrider store check` says more about damage")
                })?;
                Ok(exported.map(|(exported, body)| (exported, Bytes::from(body.concat()))))
            }
        }
    }

    async fn import(&self, name: &str, exported: Exported, body: Bytes) -> Result<Imported, Failure> {
        match self {
            Place::Server(client) => {
                let joined = join(&exported, &[body]).map_err(|error| Failure::new(error.to_string()))?;
                client.import(name, joined).await
            }
            Place::Store(transfer) => transfer.import(name, exported, body).await.map_err(|error| {
                Failure::new(error.to_string()).remedy("make room or mend what it says, then import again")
            }),
        }
    }

    async fn forget(&self, keys: Vec<String>) -> Result<(), Failure> {
        match self {
            Place::Server(client) => client.forget_imports(keys).await,
            Place::Store(transfer) => {
                transfer.forget_imports(keys).await.map_err(|error| Failure::new(error.to_string()))
            }
        }
    }
}

pub(super) async fn export(config: &Path, args: ExportArgs) -> Result<(), Failure> {
    let filter = Filter::from(args.filters);
    let body = SelectionBody { ids: args.ids, filter, all: args.all, dry_run: false };
    let selection = Selection::try_from(body).map_err(|error| {
        Failure::usage(error.to_string())
            .remedy("postrider queue export ID…, or --to, --from, --domain, --stream, --status, --older, or --all")
    })?;
    let place = Place::find(config).await?;
    if !args.dry_run {
        make_folder(&args.to_dir)?;
    }
    let (folder, dry_run, json) = (args.to_dir, args.dry_run, args.json);
    let mut writer = Writer { folder, dry_run, json, exported: 0, missing: 0, failed: 0 };
    let mut progress = Progress::new("exporting", 0);
    match selection.pick {
        Pick::Ids(ids, filter) => {
            let mut taken = 0;
            for id in ids {
                if filter.is_empty() || place.takes(&filter, id).await? {
                    taken += 1;
                    writer.export(&place, id, true, &mut progress).await?;
                }
            }
            if taken == 0 {
                return Err(Failure::new("nothing was there to export")
                    .remedy("`postrider queue show ID` tells where a message stands; leave the filters out"));
            }
        }
        Pick::Matching(filter) => {
            let mut after = None;
            loop {
                let (ids, next) = place.page(&filter, Page { limit: PAGE_MESSAGES_MAX, after }).await?;
                for id in ids {
                    writer.export(&place, id, false, &mut progress).await?;
                }
                after = next;
                if after.is_none() {
                    break;
                }
            }
        }
    }
    drop(progress);
    writer.finish()
}

fn make_folder(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
        Failure::new(format!("{}: {error}", folder.display())).remedy("name a folder that you may write to")
    })
}

/// Writes pairs of files and counts them.
struct Writer {
    folder: PathBuf,
    dry_run: bool,
    json: bool,
    exported: usize,
    missing: usize,
    failed: usize,
}

impl Writer {
    /// `is_named`: somebody asked for this very message.
    async fn export(
        &mut self,
        place: &Place,
        id: MessageId,
        is_named: bool,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        match place.export(id).await {
            Ok(Some((exported, body))) => {
                if !self.dry_run {
                    self.write(id, &exported, &body)?;
                }
                self.exported += 1;
                progress.set(self.exported as u64);
            }
            // Delivered since it was listed.
            Ok(None) if !is_named => {}
            Ok(None) => {
                self.missing += 1;
                progress.clear();
                complain(&Failure::new(format!("{id} is not queued")));
            }
            Err(failure) => {
                self.failed += 1;
                progress.clear();
                complain(&Failure { message: format!("{id}: {}", failure.message), ..failure });
            }
        }
        Ok(())
    }

    fn write(&self, id: MessageId, exported: &Exported, body: &[u8]) -> Result<(), Failure> {
        let text = exported.to_pretty().map_err(|error| Failure::new(error.to_string()))?;
        // The .json comes last: where it is, the .eml is whole.
        for (ending, content) in [("eml", body), ("json", text.as_bytes())] {
            let (path, half) = (self.path(id, ending), self.path(id, &format!("{ending}.part")));
            let written = write_file(&half, content).and_then(|()| std::fs::rename(&half, &path));
            written.map_err(|error| {
                Failure::new(format!("{}: {error}", path.display())).remedy("make room there, then export again")
            })?;
        }
        if self.json {
            let (eml, envelope) = (self.path(id, "eml"), self.path(id, "json"));
            print_json(&serde_json::json!({ "id": id, "message": eml, "envelope": envelope }))?;
        }
        Ok(())
    }

    fn path(&self, id: MessageId, ending: &str) -> PathBuf {
        self.folder.join(format!("{id}.{ending}"))
    }

    fn finish(self) -> Result<(), Failure> {
        let exported = count(self.exported, "message", "messages");
        if self.dry_run {
            match self.json {
                true => print_json(&serde_json::json!({ "messages": self.exported, "dry_run": true }))?,
                false => print(&format!("{exported} would be exported."))?,
            }
            return self.missed();
        }
        sync_folder(&self.folder)
            .map_err(|error| Failure::new(format!("{}: {error}", self.folder.display())).remedy("check the disk"))?;
        if !self.json {
            print(&format!("{exported} exported to {}.", self.folder.display()))?;
        }
        self.missed()
    }

    fn missed(&self) -> Result<(), Failure> {
        match self.failed + self.missing {
            0 => Ok(()),
            n => Err(Failure::new(format!("{} not exported", count(n, "message was", "messages were")))),
        }
    }
}

fn write_file(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)
}

/// A line on standard error; the command goes on.
fn complain(failure: &Failure) {
    let _ = writeln!(io::stderr().lock(), "postrider: {failure}");
}

pub(super) async fn import(config: &Path, args: ImportArgs) -> Result<(), Failure> {
    let files = find_files(&args.from)?;
    if args.dry_run {
        return rehearse(&files, args.json);
    }
    let place = Arc::new(Place::find(config).await?);
    let total = files.values().map(Vec::len).sum::<usize>();
    let mut import = Import {
        place,
        json: args.json,
        progress: Progress::new("importing", total as u64),
        imported: 0,
        already: 0,
        refused: 0,
        in_a_row: 0,
    };
    for (folder, names) in files {
        let _locked = lock_folder(&folder)?;
        for names in names.chunks(IMPORTS_AT_ONCE) {
            import.some(&folder, names).await?;
        }
    }
    import.finish()
}

/// Reads all of it and queues nothing.
fn rehearse(files: &BTreeMap<PathBuf, Vec<String>>, json: bool) -> Result<(), Failure> {
    let (mut good, mut bad) = (0, 0);
    for (folder, names) in files {
        for name in names {
            match read(folder, name) {
                Ok(_) => good += 1,
                Err(failure) => {
                    bad += 1;
                    tell_refused(folder, name, failure, json)?;
                }
            }
        }
    }
    match json {
        true => print_json(&serde_json::json!({ "messages": good, "dry_run": true }))?,
        false => print(&format!("{} would be imported.", count(good, "message", "messages")))?,
    }
    not_imported(bad)
}

fn not_imported(messages: usize) -> Result<(), Failure> {
    match messages {
        0 => Ok(()),
        n => Err(Failure::new(format!("{} not imported", count(n, "message was", "messages were")))),
    }
}

/// The names without `.json`, by folder.
fn find_files(from: &[PathBuf]) -> Result<BTreeMap<PathBuf, Vec<String>>, Failure> {
    let mut files: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    for path in from {
        let failed =
            |error: io::Error| Failure::unreadable(path, &error).remedy("name a folder of an export, or its files");
        if std::fs::metadata(path).map_err(failed)?.is_dir() {
            let names = files.entry(path.clone()).or_default();
            for entry in std::fs::read_dir(path).map_err(failed)? {
                names.extend(stem(&entry.map_err(failed)?.path(), "json"));
            }
        } else {
            let name = stem(path, "json").or_else(|| stem(path, "eml")).ok_or_else(|| {
                Failure::usage(format!("{} is neither .json nor .eml", path.display()))
                    .remedy("name a folder of an export, or its files")
            })?;
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            files.entry(folder.to_owned()).or_default().push(name);
        }
    }
    for names in files.values_mut() {
        // The oldest first: ids sort by arrival.
        names.sort();
        names.dedup();
    }
    Ok(files)
}

fn stem(path: &Path, ending: &str) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    name.strip_suffix(ending)?.strip_suffix('.').filter(|stem| !stem.is_empty()).map(str::to_owned)
}

/// Two imports of one folder at once would see the same files.
fn lock_folder(folder: &Path) -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", folder.display()));
    let file = File::open(folder).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Failure::new(format!("{}: another import is at work here", folder.display()))
                .remedy("let it finish; then import again if something is left"))
        }
        Err(error) => Err(failed(error.into())),
    }
}

struct Import {
    place: Arc<Place>,
    json: bool,
    progress: Progress,
    imported: usize,
    already: usize,
    refused: usize,
    in_a_row: usize,
}

impl Import {
    /// Queues these, marks their files as done, forgets the records.
    async fn some(&mut self, folder: &Path, names: &[String]) -> Result<(), Failure> {
        let mut running = JoinSet::new();
        for name in names {
            match read(folder, name) {
                Ok((exported, body)) => {
                    let (place, name) = (self.place.clone(), name.clone());
                    running.spawn(async move {
                        let imported = place.import(&name, exported, body).await;
                        (name, imported)
                    });
                }
                Err(failure) => self.refuse(folder, name, failure)?,
            }
        }
        let mut done = Vec::new();
        while let Some(joined) = running.join_next().await {
            let (name, imported) = joined.map_err(|error| Failure::new(format!("the work was broken off: {error}")))?;
            match imported {
                Ok(imported) => {
                    self.in_a_row = 0;
                    done.push((name, imported));
                }
                Err(failure) => {
                    self.in_a_row += 1;
                    self.refuse(folder, &name, failure)?;
                }
            }
        }
        done.sort_by(|(one, _), (other, _)| one.cmp(other));
        self.mark(folder, done).await?;
        if self.in_a_row >= FAILURES_IN_A_ROW_MAX {
            return Err(Failure::new(format!(
                "{} files in a row could not be queued; the rest was not tried",
                self.in_a_row
            ))
            .remedy("mend what the last lines say, then import again: what is done is not done twice"));
        }
        Ok(())
    }

    /// Renames the files; only when that is on disk the records may go.
    async fn mark(&mut self, folder: &Path, done: Vec<(String, Imported)>) -> Result<(), Failure> {
        let failed = |name: &str, error: io::Error| {
            Failure::new(format!("{}/{name}: it is queued, but cannot be marked as done: {error}", folder.display()))
                .remedy("let this user write in the folder, then import again: nothing is queued twice")
        };
        for (name, imported) in &done {
            for ending in ["json", "eml"] {
                let [from, to] = ["", ".done"].map(|mark| folder.join(format!("{name}.{ending}{mark}")));
                std::fs::rename(from, to).map_err(|error| failed(name, error))?;
            }
            if imported.already {
                self.already += 1
            } else {
                self.imported += 1
            }
            if self.json {
                let (id, already) = (imported.id, imported.already);
                print_json(&serde_json::json!({ "file": name, "id": id, "already": already }))?;
            }
        }
        if let Some((name, _)) = done.last() {
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| failed(name, error))?;
            self.place.forget(done.into_iter().map(|(_, imported)| imported.key).collect()).await?;
        }
        self.progress.set((self.imported + self.already + self.refused) as u64);
        Ok(())
    }

    fn refuse(&mut self, folder: &Path, name: &str, failure: Failure) -> Result<(), Failure> {
        self.refused += 1;
        self.progress.clear();
        tell_refused(folder, name, failure, self.json)
    }

    fn finish(self) -> Result<(), Failure> {
        let Import { json, progress, imported, already, refused, .. } = self;
        drop(progress);
        if !json {
            let mut text = format!("{} imported", count(imported, "message", "messages"));
            if already > 0 {
                text.push_str(&format!(", {already} had been imported before"));
            }
            print(&format!("{text}."))?;
        }
        not_imported(refused)
    }
}

fn tell_refused(folder: &Path, name: &str, failure: Failure, json: bool) -> Result<(), Failure> {
    let file = folder.join(format!("{name}.json"));
    if json {
        let (file, error) = (file.display().to_string(), &failure.message);
        print_json(&serde_json::json!({ "file": file, "error": error, "remedy": failure.remedy }))?;
    }
    complain(&Failure { message: format!("{}: {}", file.display(), clean(&failure.message)), ..failure });
    Ok(())
}

/// The two files of a message.
fn read(folder: &Path, name: &str) -> Result<(Exported, Bytes), Failure> {
    let again = "export the message again, or leave this file out";
    let path = |ending: &str| folder.join(format!("{name}.{ending}"));
    let envelope = read_file(&path("json"), ENVELOPE_BYTES_MAX as u64)?;
    let exported = Exported::parse(&envelope).map_err(|what| Failure::new(what).remedy(again))?;
    let body = Bytes::from(read_file(&path("eml"), FILE_BYTES_MAX)?);
    exported.fits(&body).map_err(|what| {
        Failure::new(what).remedy(
            "take the .eml of the export, or take sha256 out of the .json if the message was changed on purpose",
        )
    })?;
    Ok((exported, body))
}

fn read_file(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let name = path.file_name().unwrap_or_default().display();
    let failed = |error: io::Error| Failure::new(format!("{name}: {error}")).remedy("each .json needs its .eml");
    let mut content = Vec::new();
    File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_end(&mut content)).map_err(failed)?;
    if content.len() as u64 > bytes_max {
        return Err(Failure::new(format!("{name} is larger than {} MiB", bytes_max >> 20)).remedy("it is no message"));
    }
    Ok(content)
}
