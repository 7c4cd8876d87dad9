//! `postrider suspend` and `postrider resume`: mail is taken and waits, or goes again.

use std::path::Path;

use super::progress::Progress;
use super::text::{clean, moment, print};
use super::{Failure, client, print_json};
use crate::admin::suspend::SuspendBody;
use crate::admin::{SuspendAnswer, Suspended};

pub(super) const SUSPEND_EXAMPLES: &str = "\
Examples:
  postrider suspend                          nothing leaves but the stream \"security\"
  postrider suspend --stream bulk
  postrider suspend --smart-host ses

Mail is taken and queued, attempts under way may end, and none starts, until `postrider resume`; a
restart changes nothing. Streams with exempt_from_suspend = true (by default \"security\") leave.

Mail that comes in waits too, also for a Maildir or a webhook: it goes by the stream \"transactional\".";

pub(super) const RESUME_EXAMPLES: &str = "\
Examples:
  postrider resume                           what `postrider suspend` stopped; all of it is sent at once
  postrider resume --stream bulk

What was suspended by name stays so until it is resumed by name; the answer tells of it.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this stream
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Only what goes by this smart host
    #[arg(long, value_name = "NAME", conflicts_with = "stream")]
    smart_host: Option<String>,
    /// Only bringing mail in from mailboxes elsewhere
    #[arg(long, conflicts_with_all = ["stream", "smart_host"])]
    fetch: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Path, args: Args, on: bool) -> Result<(), Failure> {
    let Args { stream, smart_host, fetch, json } = args;
    let (client, wish) = (client(config)?, SuspendBody { stream, smart_host, fetch });
    // What is held for a smart host is released one by one.
    let what = if on { "suspending" } else { "resuming" };
    let answer = Progress::new(what, 0).during(client.suspend(&wish, on)).await?;
    if json {
        return print_json(&answer);
    }
    for line in lines(&answer) {
        print(&line)?;
    }
    Ok(())
}

fn lines(answer: &SuspendAnswer) -> Vec<String> {
    let mut lines = Vec::new();
    if !answer.changed {
        lines.push("It was so already.".to_owned());
    }
    let line = |Suspended { what, since }: &Suspended| {
        format!("Suspended since {} UTC: {}", moment(*since), clean(&what.to_string()))
    };
    lines.extend(answer.suspended.iter().map(line));
    match (answer.suspended.is_empty(), answer.exempt.is_empty()) {
        (true, _) => lines.push("Nothing is suspended.".to_owned()),
        (false, true) => lines.push("No stream is exempt.".to_owned()),
        (false, false) => lines.push(format!("Exempt, and sent all the same: {}", clean(&answer.exempt.join(", ")))),
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::suspend::Suspension;

    #[test]
    fn the_answer_tells_what_is_suspended_now() {
        let suspended = vec![Suspended { what: Suspension::Stream("bulk".into()), since: 1_795_300_017_000 }];
        let answer = SuspendAnswer { changed: true, suspended, exempt: vec!["security".into()] };
        let wanted =
            ["Suspended since 2026-11-21 22:26:57 UTC: the stream bulk", "Exempt, and sent all the same: security"];
        assert_eq!(lines(&answer), wanted);
        let answer = SuspendAnswer { changed: false, suspended: Vec::new(), exempt: Vec::new() };
        assert_eq!(lines(&answer), ["It was so already.", "Nothing is suspended."]);
    }
}
