//! `postrider queue`: see what is queued, read a message's story, retry, hold, release, cancel;
//! `export` and `import` are in `transfer`.

use std::path::Path;

use clap::Subcommand;

use super::client::Client;
use super::progress::Progress;
use super::text::{Paint, clean, count, moment, print, relative, shortened, size, subject, table};
use super::{Failure, client, print_json, story, transfer};
use crate::admin::filter::{PAGE_MESSAGES_MAX, SelectionBody, parse_duration};
use crate::admin::view::{Recipient, Status};
use crate::admin::{Action, Damaged, Filter, Listed, Page, Story};
use crate::clock::{Clock, Millis};
use crate::message::MessageId;
use crate::queue::record::Route;

/// Messages that `list` shows, if nothing is said.
const LIST_MESSAGES_DEFAULT: usize = 100;
/// Characters of a subject in a list.
const SUBJECT_CHARS_MAX: usize = 50;

const EXAMPLES: &str = "\
Examples:
  postrider queue list --status held
  postrider queue show 0d3c9k2p5v8xq
  postrider queue retry --domain example.net
  postrider queue cancel --from broken@example.com --dry-run";

const LIST_EXAMPLES: &str = "\
Examples:
  postrider queue list                                   the oldest 100
  postrider queue list --to example.net --older 4h
  postrider queue list --status held --json | jq -r .id

--to and --from take a whole address, a domain, or a local part. All filters given must fit.";

const SHOW_EXAMPLES: &str = "\
Examples:
  postrider queue show 0d3c9k2p5v8xq
  postrider queue show 0d3c9k2p5v8xq --json

Stories are kept for 30 days after a message is done.";

const RETRY_EXAMPLES: &str = "\
Examples:
  postrider queue retry 0d3c9k2p5v8xq                    try it now, also if it is held
  postrider queue retry --domain example.net
  postrider queue retry --all --dry-run                  how many would it be?";

const HOLD_EXAMPLES: &str = "\
Examples:
  postrider queue hold --from newsletter@example.com
  postrider queue hold 0d3c9k2p5v8xq";

const RELEASE_EXAMPLES: &str = "\
Examples:
  postrider queue release 0d3c9k2p5v8xq
  postrider queue release --from newsletter@example.com
  postrider queue release --stream bulk --dry-run        how many would it be?";

const CANCEL_EXAMPLES: &str = "\
Examples:
  postrider queue cancel 0d3c9k2p5v8xq                   the sender is not told
  postrider queue cancel --to gone@example.net --older 2d --dry-run
  postrider queue cancel --status captured               empty the capture store";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: QueueCommand,
}

#[derive(Debug, Subcommand)]
enum QueueCommand {
    /// What is queued, oldest first
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// A message and its story, from arrival to the last attempt
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
    /// Try now what waits or is held; a try that fails then is not counted
    #[command(after_help = RETRY_EXAMPLES)]
    Retry(ChangeArgs),
    /// Keep back what waits, until it is released
    #[command(after_help = HOLD_EXAMPLES)]
    Hold(ChangeArgs),
    /// Let go what is held
    #[command(after_help = RELEASE_EXAMPLES)]
    Release(ChangeArgs),
    /// Take out of the queue for good
    #[command(after_help = CANCEL_EXAMPLES)]
    Cancel(ChangeArgs),
    /// Write messages and their envelopes into files
    #[command(after_help = transfer::EXPORT_EXAMPLES)]
    Export(transfer::ExportArgs),
    /// Put exported messages back into the queue
    #[command(after_help = transfer::IMPORT_EXAMPLES)]
    Import(transfer::ImportArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct Filters {
    /// Recipient: an address, a domain or a local part
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// Envelope sender, likewise; '<>' is the null sender
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// Recipient's domain
    #[arg(long)]
    domain: Option<String>,
    /// The stream that they go by
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// waiting, held, captured or damaged
    #[arg(long)]
    status: Option<Status>,
    /// Received longer ago than this: 90s, 5m, 4h, 2d
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    older: Option<std::time::Duration>,
}

impl From<Filters> for Filter {
    fn from(filters: Filters) -> Filter {
        let Filters { to, from, domain, stream, status, older } = filters;
        Filter { to, from, domain, stream, status, older_than: older }
    }
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    filters: Filters,
    /// Messages to show; 0: all
    #[arg(long, value_name = "N", default_value_t = LIST_MESSAGES_DEFAULT)]
    limit: usize,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// As in the 250 reply and in the list
    id: MessageId,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ChangeArgs {
    /// Messages, all their recipients or those that the filters take
    #[arg(value_name = "ID")]
    ids: Vec<MessageId>,
    #[command(flatten)]
    filters: Filters,
    /// The whole queue
    #[arg(long)]
    all: bool,
    /// Change nothing, only say how many recipients are meant
    #[arg(long)]
    dry_run: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let client = client(config)?;
    match args.command {
        QueueCommand::List(args) => list(&client, args).await,
        QueueCommand::Show(args) => show(&client, args).await,
        QueueCommand::Retry(args) => change(&client, Action::Retry, args).await,
        QueueCommand::Hold(args) => change(&client, Action::Hold, args).await,
        QueueCommand::Release(args) => change(&client, Action::Release, args).await,
        QueueCommand::Cancel(args) => change(&client, Action::Cancel, args).await,
        QueueCommand::Export(args) => transfer::export(config, args).await,
        QueueCommand::Import(args) => transfer::import(config, args).await,
    }
}

async fn list(client: &Client, args: ListArgs) -> Result<(), Failure> {
    let filter = Filter::from(args.filters);
    let wanted = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut shown = 0;
    let mut after = None;
    loop {
        let page = Page { limit: (wanted - shown).min(PAGE_MESSAGES_MAX), after };
        let answer = client.list(&filter, page).await?;
        if filter.status == Some(Status::Damaged) {
            return list_damaged(&answer.damaged, args.json);
        }
        shown += answer.messages.len();
        if args.json {
            answer.messages.iter().try_for_each(print_json)?;
        } else {
            let now = Clock::System.now();
            for line in list_lines(&answer.messages, now, Paint::for_stdout()) {
                print(&line)?;
            }
        }
        after = answer.next;
        if after.is_none() || shown >= wanted {
            break;
        }
    }
    if !args.json {
        let end = match (shown, after) {
            (0, _) if filter.is_empty() => "The queue is empty.".to_owned(),
            (0, _) => "No queued message is like that.".to_owned(),
            (_, None) => format!("{}.", count(shown, "message", "messages")),
            (_, Some(_)) => format!("The oldest {shown}; there may be more: --limit 0 shows all."),
        };
        print(&end)?;
    }
    Ok(())
}

/// What is set aside because it cannot be read.
fn list_damaged(damaged: &[Damaged], json: bool) -> Result<(), Failure> {
    if json {
        return damaged.iter().try_for_each(print_json);
    }
    for line in damaged_lines(damaged) {
        print(&line)?;
    }
    let end = match damaged.len() {
        0 => "Nothing queued is damaged.".to_owned(),
        n => {
            format!("{}; `postrider queue show ID` tells what is known.", count(n, "damaged record", "damaged records"))
        }
    };
    Ok(print(&end)?)
}

fn damaged_lines(damaged: &[Damaged]) -> Vec<String> {
    let cells = damaged.iter().map(|damaged| {
        let part = damaged.recipient.map_or("the message".to_owned(), |number| format!("recipient {number}"));
        vec![damaged.id.to_string(), part, clean(&damaged.why)]
    });
    table(&cells.collect::<Vec<_>>())
}

/// A line for each message, and one for each of its recipients under it.
fn list_lines(messages: &[Listed], now: Millis, paint: Paint) -> Vec<String> {
    let heads: Vec<Vec<String>> = messages.iter().map(|message| head_cells(message, now)).collect();
    let recipients: Vec<Vec<String>> =
        messages.iter().flat_map(|message| &message.recipients).map(|to| recipient_cells(to, now)).collect();
    let mut recipient_lines = table(&recipients).into_iter();
    let mut lines = Vec::with_capacity(heads.len() + recipients.len());
    for (head, message) in table(&heads).into_iter().zip(messages) {
        lines.push(paint.bold(&head));
        for (line, recipient) in recipient_lines.by_ref().take(message.recipients.len()).zip(&message.recipients) {
            let line = format!("  → {line}");
            lines.push(if recipient.status == Status::Held { paint.yellow(&line) } else { line });
        }
    }
    lines
}

fn head_cells(message: &Listed, now: Millis) -> Vec<String> {
    let from = if message.from.is_null() { "<>".to_owned() } else { message.from.to_string() };
    vec![
        message.id.to_string(),
        format!("{} UTC ({})", moment(message.received_at), relative(message.received_at, now)),
        size(message.size),
        clean(&from),
        shortened(&clean(&subject(&message.subject)), SUBJECT_CHARS_MAX),
    ]
}

fn recipient_cells(recipient: &Recipient, now: Millis) -> Vec<String> {
    let mut whom = recipient.address.to_string();
    if let Route::Target(target) = &recipient.route {
        whom.push_str(&format!(" by {target}"));
    }
    if let Some(alias) = recipient.alias.as_ref().filter(|alias| **alias != recipient.address) {
        whom.push_str(&format!(" (through {alias})"));
    }
    vec![clean(&whom), clean(&state(recipient, now))]
}

/// Why it is still here, in a few words.
fn state(recipient: &Recipient, now: Millis) -> String {
    let mut text = match recipient.status {
        Status::Damaged => "damaged: it cannot be read and is set aside".to_owned(),
        Status::Captured => "captured".to_owned(),
        Status::Held => format!("held: {}", recipient.held_because.as_deref().unwrap_or("no reason is known")),
        Status::Waiting => match recipient.due {
            Some(due) if due > now => format!("waiting, next try {} ({})", relative(due, now), moment(due)),
            // The disk does not know of attempts under way: after a crash there are none.
            _ => "waiting, due now or being tried".to_owned(),
        },
    };
    if let Some(why) = &recipient.kept_back {
        text = format!("waiting: {why}");
    }
    if recipient.attempts > 0 {
        text.push_str(&format!(", {}", count(recipient.attempts as usize, "try", "tries")));
    }
    if let Some(why) = &recipient.last_failure {
        text.push_str(&format!("; {}", story::failure(why)));
    }
    text
}

async fn show(client: &Client, args: ShowArgs) -> Result<(), Failure> {
    let story = client.story(args.id).await?;
    if args.json {
        return print_json(&story);
    }
    for line in show_lines(&story, Clock::System.now(), Paint::for_stdout()) {
        print(&line)?;
    }
    Ok(())
}

/// The message as it stands, then its story.
pub(super) fn show_lines(story: &Story, now: Millis, paint: Paint) -> Vec<String> {
    let mut lines = match &story.message {
        Some(message) => list_lines(std::slice::from_ref(message), now, paint),
        None if !story.damaged.is_empty() => {
            vec![format!("{} (damaged, set aside)", paint.bold(&story.id.to_string()))]
        }
        None => vec![format!("{} (done, no longer queued)", paint.bold(&story.id.to_string()))],
    };
    lines.extend(damaged_lines(&story.damaged).into_iter().map(|line| paint.red(&line)));
    lines.extend(story::lines(&story.entries, paint));
    lines
}

async fn change(client: &Client, action: Action, args: ChangeArgs) -> Result<(), Failure> {
    let named = args.ids.len();
    let body = SelectionBody { ids: args.ids, filter: args.filters.into(), all: args.all, dry_run: args.dry_run };
    if let Err(error) = crate::admin::Selection::try_from(body.clone()) {
        return Err(Failure::usage(error.to_string()).remedy(format!(
            "postrider queue {} ID…, or --to, --from, --domain, --stream, --status, --older, or --all",
            action.name()
        )));
    }
    let answer = Progress::new("changing the queue", 0).during(client.change(action, &body)).await?;
    if args.json {
        let recipients = answer.recipients;
        let mut done =
            serde_json::json!({ "action": action.name(), "recipients": recipients, "dry_run": body.dry_run });
        if let (Some(done), false) = (done.as_object_mut(), answer.waiting.is_empty()) {
            done.insert("waiting".to_owned(), serde_json::json!(answer.waiting));
        }
        print_json(&done)?;
    } else {
        print(&changed_text(action, answer.recipients, body.dry_run))?;
        answer.waiting.iter().try_for_each(|waiting| print(&clean(&format!("{waiting}."))))?;
    }
    if named > 0 && answer.recipients == 0 {
        return Err(Failure::new(format!("nothing was there to {}", action.name())).remedy(
            "`postrider queue show ID` tells where a message stands; while it is being tried it cannot be changed",
        ));
    }
    Ok(())
}

fn changed_text(action: Action, recipients: usize, dry_run: bool) -> String {
    let number = count(recipients, "recipient", "recipients");
    let done = match action {
        Action::Retry => "due now",
        Action::Hold => "held",
        Action::Release => "released",
        Action::Cancel => "cancelled",
    };
    if dry_run { format!("{number} would be {done}; nothing was changed.") } else { format!("{number} {done}.") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::{Address, ReversePath};
    use crate::queue::record::Failure as Why;

    #[test]
    fn a_list_says_where_each_recipient_stands() {
        let recipient = |number: u32, address: &str, status| Recipient {
            number,
            address: Address::parse(address).unwrap(),
            alias: None,
            route: Route::Remote,
            status,
            due: None,
            held_because: None,
            held_by: None,
            kept_back: None,
            keeps_pace: false,
            attempts: 0,
            last_failure: None,
        };
        let mut waiting = recipient(0, "bob@example.net", Status::Waiting);
        waiting.due = Some(1_795_300_317_000);
        waiting.attempts = 1;
        waiting.last_failure = Some(Why::local("4.4.1", "mx.example.net", "no answer"));
        let mut paused = recipient(2, "c@example.net", Status::Waiting);
        paused.due = Some(1_795_300_017_000);
        paused.kept_back = Some("the stream bulk is suspended".into());
        let mut held = recipient(1, "a-long-name@example.net", Status::Held);
        held.held_because = Some("by hand".into());
        let message = Listed {
            id: MessageId::from_u64(1),
            received_at: 1_795_300_017_000,
            from: ReversePath::Null,
            size: 99,
            subject: "Hi\tthere =?utf-8?B?anPDtm4=?=".into(),
            message_id: String::new(),
            stream: "bulk".into(),
            recipients: vec![waiting, paused, held],
        };
        assert_eq!(
            list_lines(&[message], 1_795_300_137_000, Paint::none()),
            [
                "0000000000001  2026-11-21 22:26:57 UTC (2 min ago)  99 B  <>  Hi there jsön",
                "  → bob@example.net          waiting, next try in 3 min (2026-11-21 22:31:57), 1 try; \
                 mx.example.net: no answer (4.4.1)",
                "  → c@example.net            waiting: the stream bulk is suspended",
                "  → a-long-name@example.net  held: by hand",
            ]
        );
    }
}
