//! `postrider captured`: what is kept in place of being sent (`delivery.default = "capture"`), to be listed,
//! read, sent for real, deleted.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::Subcommand;

use super::client::Client;
use super::text::{Paint, clean, count, moment, print, relative, shortened, size, table};
use super::{Failure, client, print_json};
use crate::admin::Captured;
use crate::admin::captured::{LIMIT_MAX, Person, Read};
use crate::admin::filter::parse_duration;
use crate::clock::{Clock, Millis};
use crate::message::MessageId;

/// Messages that `list` shows, if nothing is said.
const LIST_MESSAGES_DEFAULT: usize = 100;
/// Characters of a subject in a list.
const SUBJECT_CHARS_MAX: usize = 50;
/// Recipients of a message that a list names.
const NAMED_MAX: usize = 3;

const EXAMPLES: &str = "\
Examples:
  postrider captured list --to ann@example.net
  postrider captured show 0d3c9k2p5v8xq
  postrider captured release 0d3c9k2p5v8xq --to me@example.com
  postrider captured delete --all

With delivery.default = \"capture\" nothing leaves: what would go to other mail servers is kept here, as long as
stories are (events.keep), and can be read here, by HTTP under /api/v1/captured, and in the dashboard. Targets of
mail that comes in (webhook, Maildir, LMTP, program, file) work as ever.

bounce@capture.test is refused, defer@capture.test is put off, complain@capture.test is kept and then complained
of: with all that follows from it, events, webhooks, notices, suppression. bounce+17@capture.test is another
address that does the same.";

const LIST_EXAMPLES: &str = "\
Examples:
  postrider captured list                                the newest 100
  postrider captured list --to example.net --since 1h
  postrider captured list --to ann@example.net --subject welcome --wait 10s --json | jq -r .id

--to and --from take a whole address, a domain, or a local part. All filters given must fit. --wait answers as
soon as there is such a message, for tests of an application that sends mail.";

const SHOW_EXAMPLES: &str = "\
Examples:
  postrider captured show 0d3c9k2p5v8xq                  fields, text, list of attachments
  postrider captured show 0d3c9k2p5v8xq --html > mail.html
  postrider captured show 0d3c9k2p5v8xq --source > mail.eml
  postrider captured show 0d3c9k2p5v8xq --attachment 1 > invoice.pdf
  postrider captured show 0d3c9k2p5v8xq --json | jq -r .text";

const RELEASE_EXAMPLES: &str = "\
Examples:
  postrider captured release 0d3c9k2p5v8xq               to those whom it was for; it is not captured any more
  postrider captured release 0d3c9k2p5v8xq --to me@example.com     a copy to this address; it stays captured

It leaves by the smart hosts, if there are any, else straight to the recipients' servers; what
delivery.redirect_all_to and delivery.allow_recipients say holds.";

const DELETE_EXAMPLES: &str = "\
Examples:
  postrider captured delete 0d3c9k2p5v8xq
  postrider captured delete --to ann@example.net
  postrider captured delete --all";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: CapturedCommand,
}

#[derive(Debug, Subcommand)]
enum CapturedCommand {
    /// What is captured, newest first
    #[command(after_help = LIST_EXAMPLES)]
    List(ListArgs),
    /// Read a message
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
    /// Send a message for real
    #[command(after_help = RELEASE_EXAMPLES)]
    Release(ReleaseArgs),
    /// Take messages away for good
    #[command(after_help = DELETE_EXAMPLES)]
    Delete(DeleteArgs),
}

#[derive(Debug, Default, clap::Args)]
pub(super) struct Filters {
    /// Recipient: an address, a domain or a local part
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// Sender or author, likewise
    #[arg(long, value_name = "ADDRESS")]
    from: Option<String>,
    /// A part of the subject
    #[arg(long, value_name = "TEXT")]
    subject: Option<String>,
    /// Captured since: a time (RFC 3339) or how long ago (2h)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
}

impl Filters {
    fn is_empty(&self) -> bool {
        self.parameters().is_empty()
    }

    pub(super) fn parameters(&self) -> Vec<(&'static str, String)> {
        let Filters { to, from, subject, since } = self;
        let all = [("to", to), ("from", from), ("subject", subject), ("since", since)];
        all.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
    }
}

#[derive(Debug, clap::Args)]
struct ListArgs {
    #[command(flatten)]
    filters: Filters,
    /// Messages to show; 0: all
    #[arg(long, value_name = "N", default_value_t = LIST_MESSAGES_DEFAULT)]
    limit: usize,
    /// If there is none, wait so long for one (at most 60s); exit status 1 if none comes
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    wait: Option<Duration>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// As in the list
    id: MessageId,
    /// Its text and no more
    #[arg(long, group = "part")]
    text: bool,
    /// Its HTML and no more
    #[arg(long, group = "part")]
    html: bool,
    /// All its bytes
    #[arg(long, group = "part")]
    source: bool,
    /// All header fields
    #[arg(long, group = "part")]
    headers: bool,
    /// The bytes of an attachment; the first is 1
    #[arg(long, value_name = "N", group = "part")]
    attachment: Option<usize>,
    /// One JSON object
    #[arg(long, group = "part")]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct ReleaseArgs {
    /// Messages
    #[arg(value_name = "ID", required = true)]
    ids: Vec<MessageId>,
    /// Send a copy to this address instead; may be given more than once
    #[arg(long, value_name = "ADDRESS")]
    to: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct DeleteArgs {
    /// Messages
    #[arg(value_name = "ID", conflicts_with_all = ["to", "from", "subject", "since", "all"])]
    ids: Vec<MessageId>,
    #[command(flatten)]
    filters: Filters,
    /// Everything that is captured
    #[arg(long, conflicts_with_all = ["to", "from", "subject", "since"])]
    all: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let client = client(config)?;
    match args.command {
        CapturedCommand::List(args) => list(&client, args).await,
        CapturedCommand::Show(args) => show(&client, args).await,
        CapturedCommand::Release(args) => release(&client, args).await,
        CapturedCommand::Delete(args) => delete(&client, args).await,
    }
}

async fn list(client: &Client, args: ListArgs) -> Result<(), Failure> {
    let wanted = if args.limit == 0 { usize::MAX } else { args.limit };
    let (mut shown, mut before) = (0, None);
    loop {
        let limit = (wanted - shown).min(LIMIT_MAX);
        let wait = args.wait.filter(|_| shown == 0);
        let page = client.captured(&args.filters, limit, before, wait).await?;
        shown += page.messages.len();
        if args.json {
            page.messages.iter().try_for_each(print_json)?;
        } else {
            for line in list_lines(&page.messages, Clock::System.now(), Paint::for_stdout()) {
                print(&line)?;
            }
        }
        before = page.next;
        if before.is_none() || shown >= wanted {
            break;
        }
    }
    if shown == 0
        && let Some(wait) = args.wait
    {
        return Err(Failure::new(format!("no such message was captured within {} s", wait.as_secs()))
            .remedy("`postrider log` shows what became of the mail of this server"));
    }
    if !args.json {
        let end = match (shown, before) {
            (0, _) if args.filters.is_empty() => "Nothing is captured.".to_owned(),
            (0, _) => "No captured message is like that.".to_owned(),
            (_, None) => format!("{}.", count(shown, "message", "messages")),
            (_, Some(_)) => format!("The newest {shown}; there are more: --limit 0 shows all."),
        };
        print(&end)?;
    }
    Ok(())
}

fn list_lines(messages: &[Captured], now: Millis, paint: Paint) -> Vec<String> {
    let cells = messages.iter().map(|message| {
        vec![
            message.id.to_string(),
            format!("{} UTC ({})", moment(message.captured_at), relative(message.captured_at, now)),
            size(message.size),
            format!("{} → {}", sender(message), clean(&recipients(message, NAMED_MAX))),
            shortened(&clean(&message.subject), SUBJECT_CHARS_MAX),
        ]
    });
    let bold_id = |line: String| match line.split_once(' ') {
        Some((id, rest)) => format!("{} {rest}", paint.bold(id)),
        None => line,
    };
    table(&cells.collect::<Vec<_>>()).into_iter().map(bold_id).collect()
}

fn sender(message: &Captured) -> String {
    match message.envelope.from.is_null() {
        true => "<>".to_owned(),
        false => clean(&message.envelope.from.to_string()),
    }
}

fn recipients(message: &Captured, most: usize) -> String {
    let all = &message.recipients;
    let named = all.iter().take(most).map(|one| match one.alias.as_ref().filter(|alias| **alias != one.address) {
        Some(alias) => format!("{} (through {alias})", one.address),
        None => one.address.to_string(),
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    if let Some(more) = all.len().checked_sub(most).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

async fn show(client: &Client, args: ShowArgs) -> Result<(), Failure> {
    if args.source {
        return write(&client.captured_part(args.id, "source").await?);
    }
    if let Some(number) = args.attachment {
        return write(&client.captured_part(args.id, &format!("attachments/{number}")).await?);
    }
    let message = client.captured_message(args.id).await?;
    let missing = |what: &str| {
        let why = message.unread.clone().map(|why| format!(": {why}")).unwrap_or_default();
        let remedy = format!("postrider captured show {} --source", args.id);
        Failure::new(format!("the message has no {what}{why}")).remedy(remedy)
    };
    match args {
        ShowArgs { json: true, .. } => print_json(&message),
        ShowArgs { text: true, .. } => write(message.text.as_ref().ok_or_else(|| missing("text"))?.as_bytes()),
        ShowArgs { html: true, .. } => write(message.html.as_ref().ok_or_else(|| missing("HTML"))?.as_bytes()),
        ShowArgs { headers: true, .. } => {
            let mut lines = message.headers.iter();
            Ok(lines.try_for_each(|(name, value)| print(&clean(&format!("{name}: {value}"))))?)
        }
        _ => {
            for line in show_lines(&message, Clock::System.now(), Paint::for_stdout()) {
                print(&line)?;
            }
            Ok(())
        }
    }
}

/// As it is into a file or another program; to a terminal without what could steer it.
fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if out.is_terminal() {
        let text = harmless(&String::from_utf8_lossy(bytes));
        out.write_all(text.as_bytes())?;
        if !text.ends_with('\n') {
            out.write_all(b"\n")?;
        }
    } else {
        out.write_all(bytes)?;
    }
    Ok(out.flush()?)
}

/// Its lines and blanks stay.
fn harmless(text: &str) -> String {
    let lines = text.split('\n').map(|line| {
        let line = line.strip_suffix('\r').unwrap_or(line);
        let blanks: String = line.chars().take_while(|c| *c == ' ' || *c == '\t').collect();
        let is_good = |c: char| c == '\t' || !(c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
        let rest = line.chars().skip(blanks.len()).map(|c| if is_good(c) { c } else { '?' });
        blanks + &rest.collect::<String>()
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn show_lines(read: &Read, now: Millis, paint: Paint) -> Vec<String> {
    let message = &read.message;
    let captured = format!(
        "{}  captured {} UTC ({}), {}",
        message.id,
        moment(message.captured_at),
        relative(message.captured_at, now),
        size(message.size)
    );
    let mut lines = vec![paint.bold(&captured)];
    let envelope = format!("{} → {}", sender(message), recipients(message, usize::MAX));
    let by = message.account.as_ref().map(|account| format!(", from the account {account}")).unwrap_or_default();
    let mut field = |name: &str, value: &str| {
        if !value.is_empty() {
            lines.push(format!("{name:<12}{}", clean(value)));
        }
    };
    field("Envelope:", &envelope);
    field("Stream:", &format!("{}{by}", message.stream));
    for (name, people) in [
        ("From:", &read.from),
        ("To:", &read.to),
        ("Cc:", &read.cc),
        ("Bcc:", &read.bcc),
        ("Reply-To:", &read.reply_to),
    ] {
        field(name, &people.iter().map(person).collect::<Vec<_>>().join(", "));
    }
    field("Date:", read.date.as_deref().unwrap_or_default());
    field("Subject:", &message.subject);
    lines.push(String::new());
    match (&read.text, &read.html, &read.unread) {
        (Some(text), _, _) => lines.extend(harmless(text.trim_end()).split('\n').map(str::to_owned)),
        (None, Some(_), _) => lines.push("(only HTML: --html writes it)".to_owned()),
        (None, None, Some(why)) => {
            lines.push(format!("(it is not taken apart: {}; --source has all of it)", clean(why)))
        }
        (None, None, None) => lines.push("(no text)".to_owned()),
    }
    if !read.attachments.is_empty() {
        lines.extend([String::new(), "Attachments:".to_owned()]);
        let cells = read.attachments.iter().map(|one| {
            let name = one.filename.as_deref().map(clean).unwrap_or_default();
            vec![format!("  {}", one.number), name, clean(&one.content_type), size(one.size as u64)]
        });
        lines.extend(table(&cells.collect::<Vec<_>>()));
    }
    lines
}

fn person(person: &Person) -> String {
    match person.name.is_empty() {
        true => person.address.clone(),
        false => format!("{} <{}>", person.name, person.address),
    }
}

async fn release(client: &Client, args: ReleaseArgs) -> Result<(), Failure> {
    for id in args.ids {
        let recipients = client.release_captured(id, &args.to).await?;
        if args.json {
            print_json(&serde_json::json!({ "id": id, "recipients": recipients }))?;
        } else {
            let whom = count(recipients, "recipient", "recipients");
            print(&format!("{id} is sent to {whom}; `postrider log {id}` tells what becomes of it."))?;
        }
        if recipients == 0 {
            return Err(Failure::new(format!("nothing of {id} was sent: it went while it was released"))
                .remedy(format!("`postrider log {id}` tells where it stands")));
        }
    }
    Ok(())
}

async fn delete(client: &Client, args: DeleteArgs) -> Result<(), Failure> {
    if args.ids.is_empty() && args.filters.is_empty() && !args.all {
        return Err(Failure::usage("nothing is selected".to_owned())
            .remedy("postrider captured delete ID…, or --to, --from, --subject, --since, or --all"));
    }
    let mut messages = 0;
    if args.ids.is_empty() {
        messages = client.delete_captured(&args.filters).await?;
    }
    for id in args.ids {
        messages += client.delete_one_captured(id).await?;
    }
    match args.json {
        true => print_json(&serde_json::json!({ "messages": messages })),
        false => Ok(print(&format!("{} deleted.", count(messages, "message", "messages")))?),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::admin::captured::{Attachment, CapturedRecipient, Envelope};
    use crate::message::{Address, ReversePath};

    fn message() -> Captured {
        let recipient = |number: u32, address: &str| CapturedRecipient {
            number,
            address: Address::parse(address).unwrap(),
            alias: None,
            target: None,
            captured_at: 1_795_300_017_000,
        };
        let recipients: Vec<_> = (0..5)
            .zip(["a@x.example", "b@x.example", "c@x.example", "d@x.example"])
            .map(|(n, to)| recipient(n, to))
            .collect();
        Captured {
            id: MessageId::from_u64(1),
            received_at: 1_795_300_017_000,
            captured_at: 1_795_300_017_000,
            envelope: Envelope {
                from: ReversePath::Null,
                to: recipients.iter().map(|one| one.address.clone()).collect(),
            },
            author: None,
            subject: "Hi\u{1b}[1m".into(),
            message_id: String::new(),
            size: 99,
            stream: "transactional".into(),
            account: None,
            recipients,
        }
    }

    #[test]
    fn lists_and_messages_are_lines_that_steer_no_terminal() {
        assert_eq!(
            list_lines(&[message()], 1_795_300_137_000, Paint::none()),
            ["0000000000001  2026-11-21 22:26:57 UTC (2 min ago)  99 B  \
              <> → a@x.example, b@x.example, c@x.example and 1 more  Hi?[1m"]
        );
        let person = Person { name: "Ann".into(), address: "a@x.example".into() };
        let read = Read {
            message: message(),
            from: Vec::new(),
            to: vec![person],
            cc: Vec::new(),
            bcc: Vec::new(),
            reply_to: Vec::new(),
            date: None,
            text: Some("one\r\n  two\u{7}\n\n".into()),
            html: None,
            headers: Vec::new(),
            attachments: vec![Attachment {
                number: 1,
                filename: Some("a\u{202e}b.pdf".into()),
                content_type: "application/pdf".into(),
                size: 2048,
                content_id: None,
                inline: false,
                url: String::new(),
            }],
            auth: None,
            unread: None,
        };
        let lines = show_lines(&read, 1_795_300_137_000, Paint::none());
        assert_eq!(
            lines,
            [
                "0000000000001  captured 2026-11-21 22:26:57 UTC (2 min ago), 99 B",
                "Envelope:   <> → a@x.example, b@x.example, c@x.example, d@x.example",
                "Stream:     transactional",
                "To:         Ann <a@x.example>",
                "Subject:    Hi?[1m",
                "",
                "one",
                "  two?",
                "",
                "Attachments:",
                "  1  a?b.pdf  application/pdf  2.0 KiB",
            ]
        );
    }
}
