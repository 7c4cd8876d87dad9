//! `postrider check`: says everything that is wrong with a configuration, or what it amounts to.
//!
//! Problems go to stderr and the exit status is 2; a good configuration's summary goes to stdout.
//! With `--json` both are JSON, one object a line. With `--explain-retry` the summary is the table of tries
//! that `[delivery.retry]` makes, from the function by which the queue goes; with `--dns` it is what the world around is like (`world`). Else nothing is opened, bound or sent, except that the
//! files which the configuration names are read.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::{self, Config, ListenerTls, OutboundTls, Problem, ProblemKind, Problems, Role, WayOut};
use crate::intake::sign::{self, SignError};
use crate::server;
use crate::server::tls::TlsError;

pub mod retry;
pub mod world;

/// Exit status for a configuration that does not load.
const STATUS_PROBLEMS: u8 = 2;

pub fn run(path: &Path, json: bool, explain_retry: bool) -> ExitCode {
    match config::load(path).and_then(|config| files(path, config)) {
        Ok(config) => {
            let text = match (explain_retry, json) {
                (true, true) => retry::lines_json(&config.delivery.retry),
                (true, false) => retry::table(&config.delivery.retry),
                (false, true) => format!("{}\n", summary_json(&config)),
                (false, false) => summary(path, &config),
            };
            print(&mut std::io::stdout().lock(), &text);
            ExitCode::SUCCESS
        }
        Err(problems) => {
            print(&mut std::io::stderr().lock(), &complaint(&problems, json));
            ExitCode::from(STATUS_PROBLEMS)
        }
    }
}

/// Reading the configuration only finds out that these files can be read; a server that will not start
/// with them must not be called good.
fn files(path: &Path, mut config: Config) -> Result<Config, Problems> {
    let mut problems: Vec<Problem> = sign::check::key_files(&config).into_iter().map(|e| of_key(path, e)).collect();
    match server::tls::check(&config) {
        Ok(warnings) => config.warnings.extend(warnings),
        Err(error) => problems.push(of_certificate(path, error)),
    }
    if problems.is_empty() { Ok(config) } else { Err(Problems::new(problems)) }
}

fn of_key(path: &Path, error: SignError) -> Problem {
    let (file, line, key, error) = match error {
        SignError::Written { file, line, key, error } => (file, line, key, *error),
        error => (path.display().to_string(), 0, "domains".to_owned(), error),
    };
    let (kind, remedy) = match error {
        SignError::Read { .. } => (ProblemKind::Unreadable, "Let postrider's user read the file."),
        SignError::BadSelector { .. } => (ProblemKind::BadValue, "Take keys out that nobody needs any more."),
        _ => (
            ProblemKind::BadValue,
            "Name a file with an RSA or Ed25519 private key in PEM form (PKCS#8, or PKCS#1 for RSA).",
        ),
    };
    Problem { file, line, column: 0, key, what: error.to_string(), remedy: remedy.to_owned(), kind }
}

fn of_certificate(path: &Path, error: TlsError) -> Problem {
    let (file, line, key, error) = match error {
        TlsError::Written { written, error } => (written.file, written.line, written.section, *error),
        error => (path.display().to_string(), 0, "tls", error),
    };
    let text = error.to_string();
    let (what, remedy) = text.split_once("; ").unwrap_or((text.as_str(), ""));
    Problem {
        file,
        line,
        column: 0,
        key: key.to_owned(),
        what: what.to_owned(),
        remedy: if remedy.is_empty() { String::new() } else { format!("{}.", capitalized(remedy)) },
        kind: ProblemKind::BadValue,
    }
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    // Names of keys and files stay as they are.
    match chars.next() {
        Some(first) if !text.starts_with("tls.") => first.to_uppercase().chain(chars).collect(),
        _ => text.to_owned(),
    }
}

/// A closed pipe is the reader's choice, not an error.
fn print(to: &mut impl std::io::Write, text: &str) {
    let _ = to.write_all(text.as_bytes());
    let _ = to.flush();
}

/// All problems and their number; as JSON one object a line.
pub fn complaint(problems: &Problems, json: bool) -> String {
    if !json {
        return format!("{problems}\n");
    }
    problems.iter().map(|problem| format!("{}\n", json!(problem))).collect()
}

/// What a configuration amounts to, for people.
pub fn summary(path: &Path, config: &Config) -> String {
    let mut text = format!("{}: good\n", path.display());
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    row("hostname", config.hostname.as_str());
    row("data", &config.data_dir.display().to_string());
    for line in listeners(config) {
        row("listener", &line);
    }
    row("accounts", &config.accounts.len().to_string());
    row("domains", &list(config.domains.keys().map(|domain| domain.to_string())));
    row("aliases", &aliases(config));
    row("targets", &list(config.targets.iter().map(|(name, target)| format!("{name} ({})", target.kind()))));
    row("way out", way_out(config));
    row("TLS out", &tls_out(config));
    for warning in &config.warnings {
        row("warning", warning);
    }
    text
}

fn listeners(config: &Config) -> Vec<String> {
    let lines = config.listeners.iter().map(|(name, listener)| {
        let addresses: Vec<String> = listener.bind.iter().map(ToString::to_string).collect();
        let (role, tls) = (role(listener.role), tls(listener.tls));
        let behind = if listener.proxy_protocol { ", behind proxies" } else { "" };
        format!("{name}: {} as {role}, TLS {tls}{behind}", addresses.join(", "))
    });
    lines.collect()
}

fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn aliases(config: &Config) -> String {
    let (exact, patterns) = (config.aliases.exact.len(), config.aliases.patterns.len());
    let catchalls = config.domains.values().filter(|domain| !domain.catchall.is_empty()).count();
    format!("{exact} exact, {patterns} by pattern, {catchalls} catchall")
}

fn summary_json(config: &Config) -> Value {
    let listeners = config.listeners.iter().map(|(name, listener)| {
        let bind: Vec<String> = listener.bind.iter().map(ToString::to_string).collect();
        json!({ "name": name, "role": role(listener.role), "bind": bind, "tls": tls(listener.tls),
                "proxy_protocol": listener.proxy_protocol })
    });
    let targets = config.targets.iter().map(|(name, target)| json!({ "name": name, "kind": target.kind() }));
    json!({
        "ok": true,
        "hostname": config.hostname.as_str(),
        "data_dir": config.data_dir.display().to_string(),
        "listeners": listeners.collect::<Vec<_>>(),
        "accounts": config.accounts.keys().collect::<Vec<_>>(),
        "domains": config.domains.keys().map(|domain| domain.as_str()).collect::<Vec<_>>(),
        "aliases": config.aliases.exact.len() + config.aliases.patterns.len(),
        "targets": targets.collect::<Vec<_>>(),
        "way_out": way_out(config),
        "warnings": config.warnings,
    })
}

fn role(role: Role) -> &'static str {
    match role {
        Role::Mx => "mx",
        Role::Submission => "submission",
    }
}

fn tls(tls: ListenerTls) -> &'static str {
    match tls {
        ListenerTls::Off => "off",
        ListenerTls::Opportunistic => "opportunistic",
        ListenerTls::Required => "required",
        ListenerTls::Implicit => "implicit",
    }
}

/// What is demanded of mail exchangers. Whether the name servers validate is not asked here.
fn tls_out(config: &Config) -> String {
    let delivery = &config.delivery;
    let policy = match delivery.tls {
        OutboundTls::Opportunistic => "where it is offered",
        OutboundTls::Required => "demanded of every server",
    };
    let on = |is_on: bool, text: &'static str| if is_on { text } else { "" };
    format!(
        "{policy}{}{}",
        on(delivery.mta_sts, "; demanded where MTA-STS says so"),
        on(delivery.dane, "; demanded where DANE says so (if the name servers validate DNSSEC)")
    )
}

fn way_out(config: &Config) -> &'static str {
    match config.delivery.default {
        WayOut::Direct => "direct",
        WayOut::File => "file",
        WayOut::SmartHosts => "smart hosts",
        WayOut::Capture => "capture",
    }
}
