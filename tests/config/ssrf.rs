//! The URL of a webhook against the set in `data/ssrf`. It is the administrator's word and may lead into the
//! own network; what the set wants refused besides (schemes, users, line ends, tricks of writing) is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;

use postrider::config::{self, Target};

use super::folder;

/// What the set wants refused.
fn urls() -> Vec<String> {
    let text = std::fs::read_to_string(folder("tests/data/ssrf/webhook-urls.yml")).unwrap();
    let list = text.split("refuse:\n").nth(1).unwrap().split("behaviours:").next().unwrap();
    let unquoted = |line: &str| match line.starts_with('"') {
        true => serde_json::from_str::<String>(line).unwrap(),
        false => line.to_owned(),
    };
    list.lines().filter_map(|line| line.trim().strip_prefix("- ")).map(unquoted).collect()
}

/// As it is loaded, if it is.
fn loaded(url: &str) -> Option<reqwest::Url> {
    let quoted = serde_json::to_string(url).unwrap();
    let text = format!(
        "hostname = \"mail.example.com\"\ndata_dir = \"/nonexistent\"\n[targets.crm]\nkind = \"webhook\"\nurl = {quoted}\n"
    );
    match config::parse("test.toml", &text).ok()?.targets.remove("crm") {
        Some(Target::Webhook { url, .. }) => Some(reqwest::Url::parse(&url).unwrap()),
        other => panic!("{other:?}"),
    }
}

#[derive(serde::Deserialize)]
struct NotPassed {
    ssrf: BTreeMap<String, String>,
}

#[test]
fn the_set_of_urls_is_refused_but_for_the_own_network() {
    let text = std::fs::read_to_string(folder("tests/data/not-passed.toml")).unwrap();
    let not_passed = toml::from_str::<NotPassed>(&text).unwrap().ssrf;
    let urls = urls();
    assert_eq!(urls.len(), 40);
    let loads: Vec<&String> = urls.iter().filter(|url| loaded(url).is_some()).collect();
    let listed: Vec<&String> = urls.iter().filter(|url| not_passed.contains_key(*url)).collect();
    assert_eq!(loads, listed);
    assert_eq!(listed.len(), not_passed.len(), "a listed URL is not in the set");
}

/// However it is written, it is known where it leads: so nothing goes to a name that looks like another.
#[test]
fn what_is_loaded_is_what_was_written() {
    for url in urls() {
        let Some(loaded) = loaded(&url) else { continue };
        assert_eq!(loaded.scheme(), "http", "{url}");
        assert!(loaded.username().is_empty() && loaded.password().is_none(), "{url}");
        let host = loaded.host_str().unwrap();
        let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b));
        assert!(is_address || is_name, "{url}: {host}");
    }
}
