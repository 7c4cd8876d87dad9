//! `postrider log`: what happened, oldest line first as in any log, and what happens (`--follow`).
//!
//! The server answers a page at a time, from the newest message on; pages are asked for until there are as many
//! lines as wanted.

use std::path::Path;

use super::text::{self, Paint};
use super::{Failure, print_json, story};
use crate::admin::EventLine;
use crate::events::Entry;
use crate::message::MessageId;

pub(super) const EXAMPLES: &str = "\
Examples:
  postrider log                                   the last 100 lines
  postrider log 0b1c2d3e4f5g6                     the story of a message, by the id of its 250 reply
  postrider log '<17.abc@example.com>'            by Message-ID
  postrider log bob@example.net --since 2h        what happened to mail for, or from, an address
  postrider log @example.net --failed             what did not work for a domain
  postrider log --account shop --limit 1000
  postrider log --smart-host relay --follow       watch what a server takes
  postrider log --failed --follow --json | my-alarm

Stories are kept for events.keep of the configuration. Lines are those of the newest messages, in the order of time.";

/// Lines of one answer.
const PAGE_LINES: usize = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A queue id, a Message-ID, an address, or @ and a domain
    #[arg(value_name = "ID|MESSAGE-ID|ADDRESS")]
    what: Option<String>,
    /// Only what did not work: deferred, refused, given up, come back
    #[arg(long)]
    failed: bool,
    /// Not what is longer ago (2h, 3d), or before a time (2026-11-22T08:00:00Z)
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only mail of this account
    #[arg(long, value_name = "NAME")]
    account: Option<String>,
    /// Only tries at this smart host
    #[arg(long, value_name = "NAME")]
    smart_host: Option<String>,
    /// Lines at most
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Go on with what happens from now on, until interrupted
    #[arg(long, short)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let client = super::client(config)?;
    let paint = Paint::for_stdout();
    if args.follow {
        let mut parameters = args.parameters();
        parameters.push(("follow", "true".to_owned()));
        let done = client.follow(&parameters, |line| show_live(line, args.json, paint)).await;
        return done.and_then(|()| Err(Failure::new("the server has ended").remedy("follow again when it runs")));
    }
    let limit = args.limit as usize;
    let (mut lines, mut before): (Vec<EventLine>, Option<MessageId>) = (Vec::new(), None);
    loop {
        let mut parameters = args.parameters();
        parameters.push(("limit", (limit - lines.len()).clamp(1, PAGE_LINES).to_string()));
        parameters.extend(before.map(|id| ("before", id.to_string())));
        let page = client.events(&parameters).await?;
        lines.extend(page.events);
        before = page.next;
        if before.is_none() || lines.len() >= limit {
            break;
        }
    }
    // Several messages happen at once: by time, and within a moment message by message.
    lines.reverse();
    lines.sort_by_key(|line| line.at);
    let first = lines.len().saturating_sub(limit);
    let more = before.is_some() || first > 0;
    for line in lines.iter().skip(first) {
        show(line, args.json, paint)?;
    }
    if args.json {
        return Ok(());
    }
    if lines.is_empty() {
        text::print("nothing is found (stories are kept for events.keep)")?;
    } else if more {
        text::print(&format!("there is more: these are {limit} lines of the newest messages (--limit)"))?;
    }
    Ok(())
}

impl Args {
    fn parameters(&self) -> Vec<(&'static str, String)> {
        let given = [
            ("q", self.what.clone()),
            ("account", self.account.clone()),
            ("smart_host", self.smart_host.clone()),
            ("since", self.since.clone()),
            ("failed", self.failed.then(|| "true".to_owned())),
        ];
        given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

fn show(line: &EventLine, json: bool, paint: Paint) -> Result<(), Failure> {
    if json {
        return print_json(line);
    }
    let entry = Entry { at: line.at, event: line.event.clone() };
    Ok(text::print(&story::alone(line.queue_id, &entry, paint))?)
}

fn show_live(line: &str, json: bool, paint: Paint) -> Result<(), Failure> {
    if line.is_empty() {
        return Ok(());
    }
    if json {
        return Ok(text::print(line)?);
    }
    match serde_json::from_str::<EventLine>(line) {
        Ok(line) => show(&line, json, paint),
        Err(_) => Ok(text::print(&format!("({})", text::clean(line)))?),
    }
}
