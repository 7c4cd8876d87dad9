//! `postrider reload`: the running server reads its configuration again, whole or not at all.

use std::path::Path;

use super::text::{clean, print};
use super::{Failure, client_of_running, print_json};
use crate::admin::reload::{ReloadAnswer, ReloadResult};

pub(super) const EXAMPLES: &str = "\
Examples:
  postrider reload                           take the changed configuration, and say what has changed
  postrider reload --json
  systemctl reload postrider                 does the same

The new configuration is taken whole, or refused with file, line and remedy while the old one goes on; then the exit
status is 2. No connection is dropped and no message lost. SIGHUP does the same, and the server also notices
by itself when one of its files (certificates and secrets, too) is another.";

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let answer = client_of_running(config)?.reload().await?;
    if args.json {
        print_json(&answer)?;
    } else if answer.result != ReloadResult::Refused {
        for line in lines(&answer) {
            print(&line)?;
        }
    }
    match answer.result {
        ReloadResult::Applied | ReloadResult::Unchanged => Ok(()),
        // The answer has said it all.
        ReloadResult::Refused if args.json => Err(Failure::usage("")),
        ReloadResult::Refused => Err(Failure::usage(refusal(&answer))
            .remedy("correct it and reload again; `postrider check` says the same without changing anything")),
    }
}

fn lines(answer: &ReloadAnswer) -> Vec<String> {
    let mut lines: Vec<String> = answer.changes.iter().map(|change| clean(&change.to_string())).collect();
    lines.extend(answer.warnings.iter().map(|warning| format!("warning: {}", clean(warning))));
    lines.push(match (answer.result, answer.changes.len()) {
        (ReloadResult::Unchanged, _) => "Nothing has changed.".to_owned(),
        (_, 1) => "Reloaded: 1 change.".to_owned(),
        (_, count) => format!("Reloaded: {count} changes."),
    });
    lines
}

fn refusal(answer: &ReloadAnswer) -> String {
    let mut text = "the configuration cannot be used, and the old one goes on".to_owned();
    for problem in &answer.problems {
        text.push('\n');
        text.push_str(&clean(&problem.to_string()));
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::{Change, ChangeKind, parse};

    #[test]
    fn what_has_changed_is_said_key_by_key() {
        let change = |key: &str, before: Option<&str>, after: Option<&str>| Change {
            key: key.to_owned(),
            what: ChangeKind::Changed,
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            file: "postrider.toml".to_owned(),
            line: 3,
        };
        let changes =
            vec![change("limits.connections", Some("100"), Some("200")), change("accounts.app.password", None, None)];
        let answer = ReloadAnswer {
            result: ReloadResult::Applied,
            changes,
            warnings: vec!["something deserves a word".to_owned()],
            problems: Vec::new(),
        };
        let wanted = [
            "limits.connections: 100 → 200",
            "accounts.app.password: changed",
            "warning: something deserves a word",
            "Reloaded: 2 changes.",
        ];
        assert_eq!(lines(&answer), wanted);
    }

    #[test]
    fn a_refusal_names_file_line_and_remedy_of_each_problem() {
        let problems = parse("postrider.toml", "hostname = \"mail.own.test\"\ndata_dir = \"/nowhere\"\nhostnam = 1\n");
        let answer = ReloadAnswer::refused(problems.unwrap_err().iter().cloned().collect());
        let text = refusal(&answer);
        assert!(text.contains("the old one goes on\npostrider.toml:3: hostnam: "), "{text}");
    }
}
