//! What the guides name is there: commands with their options, keys of the configuration, metrics, tests.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;

use crate::support::pages::{commands, page, pages, root};

/// Words that stand for something of the reader's.
fn filled_in(word: &str) -> String {
    let word = match word {
        "ID" => "0d3c9k2p5v8xq",
        "A" => "a@example.com",
        "B" | "ADDRESS" => "b@example.net",
        "NAME" => "relay",
        word => word,
    };
    word.to_owned()
}

/// `words` without what runs a command as somebody else.
fn of_postrider(words: &[String]) -> Option<Vec<OsString>> {
    let at = words.iter().position(|word| word == "postrider")?;
    matches!(words[..at].join(" ").as_str(), "" | "sudo -u postrider")
        .then(|| words[at..].iter().map(|word| filled_in(word).into()).collect())
}

#[test]
fn every_command_in_the_guides_is_one() {
    let mut count = 0;
    for page in pages() {
        for block in page.blocks().iter().filter(|block| block.language == "sh") {
            for words in commands(&block.text).iter().filter_map(|words| of_postrider(words)) {
                count += 1;
                let done = postrider::cli::understands(words.clone());
                assert!(done.is_ok(), "{}: {words:?}\n{}", block.place, done.unwrap_err());
            }
        }
    }
    assert!(count > 40, "{count} commands were found");
}

/// Within a sentence a command may be cut short, but not be another than there is.
#[test]
fn every_command_in_a_sentence_is_one() {
    use clap::error::ErrorKind::{
        DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion, MissingRequiredArgument,
        MissingSubcommand,
    };
    let conf: Vec<_> = std::fs::read_dir(root().join("conf")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let conf = conf.iter().filter(|path| path.extension().is_some_and(|extension| extension == "toml"));
    let conf = conf.map(|path| page(path.strip_prefix(root()).unwrap().to_str().unwrap()));
    let mut count = 0;
    for page in pages().into_iter().chain(conf) {
        for (place, span) in page.spans().into_iter().filter(|(_, span)| span.starts_with("postrider ")) {
            // A sentence names several ends at once: `postrider queue list|show`.
            let words = of_postrider(&commands(&span)[0]).unwrap();
            count += 1;
            if let Err(error) = postrider::cli::understands(words) {
                let cut_short = [
                    DisplayHelp,
                    DisplayVersion,
                    DisplayHelpOnMissingArgumentOrSubcommand,
                    MissingRequiredArgument,
                    MissingSubcommand,
                ];
                assert!(cut_short.contains(&error.kind()), "{place}: {span}\n{error}");
            }
        }
    }
    assert!(count > 30, "{count} commands were found");
}

/// The paths of all keys, with `*` for names that are the reader's.
fn keys() -> BTreeSet<String> {
    /// Sections whose next word is a name.
    const NAMED: [&str; 12] = [
        "listeners",
        "accounts",
        "domains",
        "aliases",
        "targets",
        "streams",
        "smart_hosts",
        "destinations",
        "pickup",
        "fetch",
        "webhooks",
        "limits",
    ];
    let text = std::fs::read_to_string(root().join("conf/postrider.toml")).unwrap();
    let (mut section, mut keys) = (Vec::<String>::new(), BTreeSet::new());
    for line in text.lines() {
        let line = line.trim_start_matches("#:").trim_start_matches("# ").trim();
        if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
            section = segments(header.trim_start_matches('['));
            for at in 1..section.len() {
                let of_alias_limits = section[at - 1] == "limits" && at == 1;
                if NAMED.contains(&section[at - 1].as_str()) && !of_alias_limits && section[at] != "limits" {
                    section[at] = "*".to_owned();
                }
            }
            keys.insert(section.join("."));
        } else if let Some((key, _)) = line.split_once('=') {
            let key = key.trim();
            if key.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
                keys.insert(section.iter().map(String::as_str).chain([key]).collect::<Vec<_>>().join("."));
            }
        }
    }
    keys
}

/// `domains."example.com".dkim`: its words, without quotes.
fn segments(path: &str) -> Vec<String> {
    let (mut segments, mut quoted) = (vec![String::new()], false);
    for c in path.chars() {
        match c {
            '"' => quoted = !quoted,
            '.' if !quoted => segments.push(String::new()),
            c => segments.last_mut().unwrap().push(c),
        }
    }
    segments
}

fn is_a_key(keys: &BTreeSet<String>, path: &[String]) -> bool {
    keys.iter().any(|key| {
        let key: Vec<&str> = key.split('.').collect();
        key.len() >= path.len() && key.iter().zip(path).all(|(known, word)| *known == "*" || known == word)
    })
}

#[test]
fn every_key_in_a_sentence_is_one() {
    let keys = keys();
    let sections: BTreeSet<&str> = keys.iter().map(|key| key.split('.').next().unwrap()).collect();
    let mut count = 0;
    for page in pages() {
        for (place, span) in page.spans() {
            // `delivery.tls.policy`, `queue.min_free = "1GiB"`, `[loops] limit`, `[domains."example.com"]`
            let named = span.split(" = ").next().unwrap();
            let path = match named.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((section, key)) => format!("{}.{}", section.trim_start_matches('['), key.trim_matches([']', ' '])),
                None => named.to_owned(),
            };
            let mut path = segments(path.trim_end_matches('.'));
            path.retain(|word| !word.is_empty());
            let is_path = named.starts_with('[') || path.len() > 1;
            let is_words = path.iter().all(|word| !word.contains([' ', '/', '(']));
            // An event's name.
            if span == "events.gap" {
                continue;
            }
            if is_path && is_words && path.first().is_some_and(|first| sections.contains(first.as_str())) {
                count += 1;
                assert!(is_a_key(&keys, &path), "{place}: {span}");
            }
        }
    }
    assert!(count > 40, "{count} keys were found");
}

/// All text below `folder` of files with this ending.
fn sources(folder: &Path, into: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            into.push((name, std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_test_that_is_named_is_there() {
    let mut all = Vec::new();
    sources(&root().join("tests"), &mut all);
    sources(&root().join("src"), &mut all);
    let mut count = 0;
    for page in pages() {
        for (place, span) in page.spans() {
            let Some((file, test)) = span.split_once("::") else { continue };
            if ["file", "std"].contains(&file) && test == "test" {
                continue;
            }
            count += 1;
            let of = |name: &str| match file {
                "src" => name.starts_with("src/"),
                file => name == format!("tests/{file}.rs") || name.starts_with(&format!("tests/{file}/")),
            };
            let is_test = |text: &str| {
                let Some((before, _)) = text.split_once(&format!("fn {test}(")) else { return false };
                before.lines().rev().take(4).any(|line| line.contains("test]") || line.contains("::test("))
            };
            assert!(all.iter().any(|(name, text)| of(name) && is_test(text)), "{place}: {span}");
        }
    }
    assert!(count > 40, "{count} tests were found");
}

/// A metric is a name in the sources, written out or put together.
#[test]
fn every_metric_that_is_named_is_there() {
    let mut all = Vec::new();
    sources(&root().join("src"), &mut all);
    let mut count = 0;
    for page in pages() {
        for (place, span) in page.spans().into_iter().filter(|(_, span)| span.starts_with("postrider_")) {
            let name = span.split('{').next().unwrap();
            let last = name.strip_prefix("postrider_event_webhook_").map(|last| format!("tell(\"{last}\""));
            let wanted = last.unwrap_or_else(|| format!("\"{name}\""));
            count += 1;
            assert!(all.iter().any(|(_, text)| text.contains(&wanted)), "{place}: {span}");
        }
    }
    assert!(count > 10, "{count} metrics were found");
}

/// Whoever is woken by an alarm finds it on the page about running.
#[test]
fn every_alert_is_explained() {
    let Ok(rules) = std::fs::read_to_string(root().join("conf/prometheus-alerts.yml")) else { return };
    let operations = page("docs/operations.md");
    for alert in rules.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("alert: ")) {
        assert!(operations.text.contains(&format!("`{}`", alert.trim())), "{alert}");
    }
}

/// The left column of the table of settings has names that Postfix knows.
#[test]
fn what_is_said_to_be_a_setting_of_postfix_is_one() {
    let Some(folder) = std::env::var_os("POSTRIDER_TEST_POSTFIX") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_POSTFIX names no Postfix; nothing was shown");
        return;
    };
    let usr = Path::new(&folder).join("usr");
    let lib = usr.join("lib");
    let mut libraries: Vec<_> = std::fs::read_dir(&lib).unwrap().map(|entry| entry.unwrap().path()).collect();
    libraries.retain(|path| path.is_dir());
    let mut postconf = std::process::Command::new(usr.join("sbin/postconf"));
    let defaults =
        postconf.arg("-d").env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap()).output().unwrap();
    let defaults = String::from_utf8(defaults.stdout).unwrap();
    let known: BTreeSet<&str> = defaults.lines().filter_map(|line| line.split(" =").next()).collect();
    let guide = page("docs/migrate-from-postfix.md");
    let (mut count, table) =
        (0, guide.text.split("## What becomes of main.cf").nth(1).unwrap().split("## ").next().unwrap());
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        for span in row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2) {
            let name = span.split(" = ").next().unwrap();
            // Restrictions and files are no parameters.
            if name.contains('_') && !name.starts_with("reject_") && !name.starts_with("permit_") {
                count += 1;
                assert!(known.contains(name), "{name}: {row}");
            }
        }
    }
    assert!(count > 30, "{count} settings were found");
}
