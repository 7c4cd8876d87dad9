//! `conf/`: the reference and the examples.

use std::collections::BTreeSet;

use postrider::config::{self, ProblemKind};
use tempfile::TempDir;

use super::{conf, lines, load};

/// The reference, with the files and variables that it names replaced by ones that are there.
fn reference() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut text = conf("postrider.toml");
    for name in ["fullchain.pem", "privkey.pem", "other.pem", "other.key", "ses.secret", "office.secret"] {
        let path = folder.path().join(name);
        std::fs::write(&path, "hush").unwrap();
        let old = format!("\"/etc/postrider/{name}\"");
        assert!(text.contains(&old), "{old}");
        text = text.replace(&old, &format!("\"{}\"", path.display()));
    }
    for name in ["CRM_HOOK_SECRET", "SALES_IMAP"] {
        let old = format!("{{ env = \"{name}\" }}");
        assert!(text.contains(&old));
        text = text.replace(&old, "\"whsec_c2VjcmV0\"");
    }
    (folder, text)
}

#[test]
fn the_reference_loads_without_a_warning() {
    let (_folder, text) = reference();
    let config = load(&text);
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.listeners.len(), 3);
    assert_eq!(config.aliases.exact.len(), 3);
    assert_eq!(config.aliases.patterns.len(), 1);
}

/// A line that gives a key: where, which, and the comment behind it.
struct Line<'t> {
    number: usize,
    section: String,
    key: &'t str,
    marked: bool,
    comment: &'t str,
}

/// Every key of a text written as the reference is: one a line, comments starting with `#`.
fn key_lines(text: &str) -> Vec<Line<'_>> {
    let mut section = String::new();
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let marked = line.starts_with('#');
        let line = line.trim_start_matches("# ");
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_start_matches('[').split(']').next().unwrap().to_owned();
            continue;
        }
        let Some((key, rest)) = line.split_once('=') else { continue };
        let key = key.trim();
        if key.contains(' ') && !key.starts_with('"') {
            continue;
        }
        let comment = rest.rfind(" # ").map_or("", |at| &rest[at..]);
        found.push(Line { number, section: section.clone(), key, marked, comment });
    }
    found
}

/// The key's path in the table of known keys: names that users choose become `*`.
fn pattern(line: &Line<'_>) -> String {
    let path = if line.section.is_empty() { line.key.to_owned() } else { format!("{}.{}", line.section, line.key) };
    // A quoted name may hold dots.
    let mut names = Vec::new();
    for (at, part) in path.split('"').enumerate() {
        if at % 2 == 1 {
            names.push("*".to_owned());
        } else {
            names.extend(part.split('.').filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    let known = config::known_keys();
    let fits = |names: &[String]| {
        let path = names.join(".");
        known.iter().any(|(key, _)| *key == path)
    };
    for at in 0..names.len() {
        if fits(&names) {
            break;
        }
        let literal = format!("{}.", names[..=at].join("."));
        if known.iter().any(|(key, _)| key.starts_with(&literal)) {
            continue;
        }
        let old = std::mem::replace(&mut names[at], "*".to_owned());
        let prefix = format!("{}.", names[..=at].join("."));
        let known_name = !known.iter().any(|(key, _)| key.starts_with(&prefix) || format!("{key}.") == prefix);
        if known_name {
            names[at] = old;
        }
    }
    names.join(".")
}

#[test]
fn the_reference_names_every_key_and_only_those() {
    let (_folder, text) = reference();
    let lines = key_lines(&text);
    let named: BTreeSet<String> = lines.iter().map(pattern).collect();
    let unmarked: BTreeSet<String> = lines.iter().filter(|line| !line.marked).map(pattern).collect();
    // They are given in place of others, or are for a case that the rest is not, so they stand in comments.
    let in_comments = [
        "accounts.*.password",
        "domains.*.dkim.key_files",
        "smart_hosts.*.graph_url",
        "smart_hosts.*.oauth.refresh_token",
        "smart_hosts.*.oauth.token_url",
        "smart_hosts.*.oauth.scope",
        "fetch.*.oauth.refresh_token",
        "fetch.*.oauth.token_url",
        "fetch.*.oauth.scope",
    ];
    for (key, supported) in config::known_keys() {
        let key = if key == "aliases.limits.*.limit" || key.starts_with("aliases.limits.*.") {
            "aliases.limits.*".to_owned()
        } else {
            key.to_owned()
        };
        assert!(
            named.contains(&key) || key == "tls.extra" || key == "archive" || is_section(&key),
            "{key} is not named"
        );
        if supported && !in_comments.contains(&key.as_str()) {
            assert!(unmarked.contains(&key), "{key} is supported, but only in a comment");
        }
    }
}

/// Named by its header alone.
fn is_section(key: &str) -> bool {
    config::known_keys().iter().any(|(other, _)| other.starts_with(&format!("{key}.")))
}

/// Without the line, the configuration stays the same; or the comment says which value it then has,
/// or that there is no default.
#[test]
fn documented_defaults_are_the_real_ones() {
    let (_folder, text) = reference();
    let whole = format!("{:?}", load(&text));
    let (mut same, mut documented) = (0, 0);
    for line in key_lines(&text) {
        if line.marked || line.section.starts_with("aliases") {
            continue;
        }
        let without = replace_line(&text, line.number, "");
        let parsed = config::parse("postrider.toml", &without);
        if line.comment.starts_with(" # required") {
            let problems = lines(&parsed.expect_err(&format!("{}.{} is not required", line.section, line.key)));
            assert!(problems.iter().any(|problem| problem.contains("missing")), "{problems:?}");
            continue;
        }
        let now = format!("{:?}", parsed.unwrap_or_else(|problems| panic!("{}: {problems}", line.key)));
        let default = line.comment.split("default: ").nth(1).or_else(|| line.comment.split("default ").nth(1));
        let literal =
            default.filter(|default| default.starts_with('"')).map(|default| default.split('"').nth(1).unwrap());
        match (default, literal) {
            (_, Some(literal)) => {
                let with = replace_line(&text, line.number, &format!("{} = \"{literal}\"", line.key));
                assert_eq!(now, format!("{:?}", load(&with)), "{}.{}", line.section, line.key);
                documented += 1;
            }
            (Some(other), None) if !other.starts_with("these") => {}
            _ => {
                assert_eq!(now, whole, "line {}: {}.{} is not its default", line.number + 1, line.section, line.key);
                same += 1;
            }
        }
    }
    assert!(same > 60 && documented >= 3, "{same} {documented}");
}

fn replace_line(text: &str, number: usize, new: &str) -> String {
    let lines = text.lines().enumerate().map(|(at, line)| if at == number { new } else { line });
    lines.map(|line| format!("{line}\n")).collect()
}

/// A date is right nowhere: so each key that is said to be supported must complain about one.
#[test]
fn every_supported_key_is_read() {
    for (key, supported) in config::known_keys() {
        if !supported {
            continue;
        }
        let names: Vec<String> =
            key.split('.').map(|name| if name == "*" { "\"a.example\"".to_owned() } else { name.to_owned() }).collect();
        let path = names.join(".");
        let mut text = String::new();
        for (needed, value) in [("hostname", "\"mail.example.com\""), ("data_dir", "\"/var/lib/postrider\"")] {
            if needed != path {
                text += &format!("{needed} = {value}\n");
            }
        }
        if path.starts_with("targets") && !path.ends_with("kind") {
            let kind = match path.rsplit('.').next().unwrap() {
                "path" => "maildir",
                "address" => "lmtp",
                "command" => "pipe",
                "host" | "port" | "tls" => "smtp",
                _ => "webhook",
            };
            text += &format!("targets.\"a.example\".kind = \"{kind}\"\n");
        }
        if path.starts_with("smart_hosts") && !path.ends_with("host") {
            text += "smart_hosts.\"a.example\".host = \"a.example\"\n";
        }
        if path.starts_with("fetch") && !path.ends_with("protocol") {
            text += "fetch.\"a.example\".protocol = \"pop3\"\n";
        }
        let listed = ["archive", "tls.extra"];
        text += &match listed.iter().find_map(|list| Some((list, path.strip_prefix(&format!("{list}."))?))) {
            Some((list, key)) => format!("[[{list}]]\n{key} = 1979-05-27\n"),
            None => format!("{path} = 1979-05-27\n"),
        };
        let problems = config::parse("postrider.toml", &text).expect_err(&text);
        let about = problems
            .iter()
            .any(|p| p.key.replace('"', "") == path.replace('"', "") && p.kind == ProblemKind::WrongType);
        assert!(about, "{key} is not read:\n{text}{problems}");
    }
}

/// An example, with the secrets that its user brings along in the place of where they come from.
fn example(name: &str) -> config::Config {
    let mut text = conf(name);
    for source in ["{ env = ", "{ file = "] {
        while let Some(start) = text.find(source) {
            let end = start + text[start..].find('}').unwrap() + 1;
            text.replace_range(start..end, "\"hush\"");
        }
    }
    load(&text)
}

#[test]
fn the_examples_load() {
    let minimal = example("minimal.toml");
    assert_eq!(minimal.postmaster.to_string(), "postmaster@example.com");
    assert_eq!(minimal.warnings.len(), 1, "{:?}", minimal.warnings);

    let relay = example("relay.toml");
    assert_eq!(relay.listeners.len(), 2);
    assert_eq!(relay.accounts["shop"].max_recipients, 50);

    let inbound = example("inbound.toml");
    assert_eq!(inbound.aliases.exact.len(), 5);
    assert_eq!(inbound.loops.limit, 10);

    let development = example("development.toml");
    assert_eq!(development.delivery.default, config::WayOut::Capture);
    assert!(only_loopback(&development));
}

fn only_loopback(config: &config::Config) -> bool {
    config.listeners.values().flat_map(|listener| &listener.bind).all(|address| address.ip().is_loopback())
}

#[test]
fn a_staging_server_writes_to_testers_only() {
    let staging = example("staging.toml");
    assert_eq!(staging.delivery.allow_recipients.len(), 2);
    let guard = "delivery.allow_recipients: only mail for example.com, tester@partner.example leaves, the rest is held";
    assert!(staging.warnings.iter().any(|warning| warning == guard), "{:?}", staging.warnings);
}

#[test]
fn microsoft_365_takes_mail_from_the_mailbox_that_logs_in() {
    let office = example("microsoft365.toml");
    assert_eq!(office.delivery.default, config::WayOut::SmartHosts);
    assert!(office.smart_hosts.iter().all(|host| host.oauth.is_some()));
    assert!(office.warnings.iter().all(|warning| warning.starts_with("tls:")), "{:?}", office.warnings);
}

#[test]
fn a_postfix_told_again_asks_the_host_for_some_senders_first() {
    let moved = example("from-postfix.toml");
    let order: Vec<(&str, bool)> =
        moved.smart_hosts.iter().map(|host| (host.name.as_str(), host.from_filter.is_empty())).collect();
    assert_eq!(order, [("newsletter", false), ("provider", true)]);
    assert!(moved.warnings.iter().all(|warning| warning.starts_with("tls:")), "{:?}", moved.warnings);
}

/// It runs as soon as it is installed, on whatever machine that is.
#[test]
fn a_fresh_package_is_open_to_its_own_machine_only_and_sends_nothing() {
    let package = example("package.toml");
    assert!(only_loopback(&package));
    assert_eq!(package.delivery.default, config::WayOut::Capture);
    assert!(package.accounts.is_empty() && package.warnings.len() == 1, "{:?}", package.warnings);
}

#[test]
fn every_file_in_conf_is_tested() {
    let entries = std::fs::read_dir(super::folder("conf")).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let mut names: BTreeSet<String> = files.map(|entry| entry.file_name().into_string().unwrap()).collect();
    // Those of Prometheus and Grafana: tests/metrics.rs.
    assert!(names.remove("grafana.json") && names.remove("prometheus-alerts.yml"));
    let tested = [
        "postrider.toml",
        "minimal.toml",
        "relay.toml",
        "inbound.toml",
        "development.toml",
        "staging.toml",
        "microsoft365.toml",
        "from-postfix.toml",
        "package.toml",
    ];
    assert_eq!(names, tested.into_iter().map(str::to_owned).collect());
}
