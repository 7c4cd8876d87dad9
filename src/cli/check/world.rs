//! `postrider check --dns`: the configuration and the world around it. Each finding says how bad it is, what is there,
//! what should be, and why it matters. Works without a server.
//!
//! Exit status: 0 if there is no problem (warnings are none), 1 if there is one, 2 for a configuration that does
//! not load.

use std::cell::Cell;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::{STATUS_PROBLEMS, complaint, files, print};
use crate::app::world::{Finding, Level, Topic, World};
use crate::cli::progress::Progress;
use crate::cli::text::{Paint, clean, count};
use crate::config::{self, Config};
use crate::dns::Resolver;
use crate::intake::sign::Signer;
use crate::intake::sign::check::missing_keys;

/// Widest name of a check.
const NAME_CHARS: usize = 13;

pub async fn run(path: &Path, json: bool) -> ExitCode {
    let config = match config::load(path).and_then(|config| files(path, config)) {
        Ok(config) => Arc::new(config),
        Err(problems) => {
            print(&mut std::io::stderr().lock(), &complaint(&problems, json));
            return ExitCode::from(STATUS_PROBLEMS);
        }
    };
    let mut findings = configuration(path, &config);
    if let Some(world) = world(&config, &mut findings) {
        let told = Cell::new((0, 0));
        let looking = Arc::new(world).check(|done, total| told.set((done, total)));
        findings.extend(Progress::new("looking around", 0).following(&told, looking).await);
    }
    let text = if json { lines_json(&findings) } else { lines(&findings, Paint::for_stdout()) };
    print(&mut std::io::stdout().lock(), &text);
    let is_bad = findings.iter().any(|finding| finding.level == Level::Problem);
    if is_bad { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// None: there are no name servers to ask. Keys are read, and not made: who runs this may be another user than the
/// server.
fn world(config: &Arc<Config>, findings: &mut Vec<Finding>) -> Option<World> {
    let signer = match missing_keys(config).is_empty() {
        true => Signer::load(config),
        false => return resolver(config, findings).map(|resolver| World::new(config.clone(), resolver, None)),
    };
    let signer = signer.map_err(|error| {
        let finding = Finding::new(Topic::Dkim, "keys", Level::Problem, error.to_string());
        findings.push(finding.remedy("correct that, or run this as the user that runs the server"));
    });
    resolver(config, findings).map(|resolver| World::new(config.clone(), resolver, signer.ok()))
}

fn resolver(config: &Config, findings: &mut Vec<Finding>) -> Option<Resolver> {
    let made = Resolver::new(&config.dns).map_err(|error| {
        let finding = Finding::new(Topic::Resolver, "name servers", Level::Problem, error.to_string());
        findings.push(finding.remedy("name them in [dns] nameservers"));
    });
    made.ok()
}

fn configuration(path: &Path, config: &Config) -> Vec<Finding> {
    let file = path.display().to_string();
    let mut all = vec![Finding::new(Topic::Configuration, file.as_str(), Level::Ok, "good")];
    let warning = |text: &String| Finding::new(Topic::Configuration, file.as_str(), Level::Warning, text.as_str());
    all.extend(config.warnings.iter().map(warning));
    all
}

fn lines_json(findings: &[Finding]) -> String {
    let lines = findings.iter().filter_map(|finding| serde_json::to_string(finding).ok());
    lines.map(|line| line + "\n").collect()
}

/// For people: a line for each finding, below it what to do and why. What comes from DNS cannot steer the terminal.
fn lines(findings: &[Finding], paint: Paint) -> String {
    let mut out = Vec::new();
    for finding in findings {
        let level = format!("{:<8}", finding.level.name());
        let level = match finding.level {
            Level::Ok => paint.green(&level),
            Level::Note => level,
            Level::Warning => paint.yellow(&level),
            Level::Problem => paint.red(&level),
        };
        let (name, of, found) = (finding.check.name(), clean(&finding.of), clean(&finding.found));
        out.push(format!("{level} {name:<NAME_CHARS$} {of}: {found}"));
        let below = |text: &str| format!("{:1$}{text}", "", 9);
        out.extend(finding.publish.iter().map(|record| below(&format!("publish: {}", clean(&record.line())))));
        for (number, line) in finding.remedy.lines().enumerate() {
            out.push(below(&format!("{}{line}", if number == 0 { "→ " } else { "  " })));
        }
        if !finding.why.is_empty() {
            out.push(below(&finding.why));
        }
    }
    let many = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    let (problems, warnings) = (many(Level::Problem), many(Level::Warning));
    let sum = format!("{}, {}", count(problems, "problem", "problems"), count(warnings, "warning", "warnings"));
    out.push(if problems > 0 { paint.red(&sum) } else { paint.bold(&sum) });
    out.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_lines_with_what_to_do_below() {
        let all = [
            Finding::new(Topic::Mx, "my.test", Level::Ok, "10 mail.my.test"),
            Finding::new(Topic::Clock, "this machine", Level::Warning, "slow\x1b[2J").remedy("first\nthen"),
        ];
        let wanted = "ok       MX            my.test: 10 mail.my.test\n\
            warning  clock         this machine: slow?[2J\n         → first\n           then\n\
            0 problems, 1 warning\n";
        assert_eq!(lines(&all, Paint::none()), wanted);
    }
}
