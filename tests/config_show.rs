//! `postrider config show`: every setting with where it comes from, and what each key means, out of the reference.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const CONF: &str = r#"hostname = "mail.home.test"
data_dir = "/nowhere"
include = ["more.toml"]
[domains."home.test"]
catchall = "box"
[accounts.shop]
password = "hush-hush"
[targets.box]
kind = "maildir"
path = "/var/mail/box"
[targets.hook]
kind = "webhook"
url = "https://hook.test/in"
secret = { env = "SHOW_TEST_SECRET" }
[streams.bulk]
daily_limit = 5
[streams.own]
[[archive]]
path = "/var/spool/archive/{id}.eml"
[destinations."far.test"]
connections = 2
"#;

fn house() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("postrider.toml");
    std::fs::write(&file, CONF).unwrap();
    std::fs::write(folder.path().join("more.toml"), "[queue]\nmin_free = \"2GiB\"\n").unwrap();
    (folder, file)
}

fn show(config: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(["config", "show"]).args(arguments).arg("--config").arg(config);
    command.env("SHOW_TEST_SECRET", "very-secret").env_remove("COLUMNS").output().unwrap()
}

fn said(config: &Path, arguments: &[&str]) -> String {
    let output = show(config, arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("hush-hush") && !text.contains("very-secret"), "a secret is shown: {text}");
    text
}

#[test]
fn what_is_set_and_what_is_not_is_shown_with_where_it_comes_from() {
    let (folder, file) = house();
    let text = said(&file, &[]);
    let line = |start: &str, section: &str| {
        let inside = text.split(&format!("[{section}]\n")).nth(1).unwrap_or_else(|| panic!("no [{section}]: {text}"));
        let found = inside.lines().take_while(|line| !line.starts_with('[')).find(|line| line.starts_with(start));
        let found = found.unwrap_or_else(|| panic!("no {start} in [{section}]: {text}"));
        found.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let place = |line: u32| format!("# {}:{line}", file.display());
    assert!(text.lines().next().unwrap().starts_with("hostname = \"mail.home.test\""), "{text}");
    assert_eq!(line("catchall", "domains.\"home.test\""), format!("catchall = \"box\" {}", place(5)));
    assert_eq!(line("bounce", "domains.\"home.test\""), "bounce = \"bounce\" # default");
    assert_eq!(line("password =", "accounts.shop"), format!("password = \"***\" {}", place(7)));
    assert_eq!(line("stream ", "accounts.shop"), "stream = \"transactional\" # default");
    let secret = format!("secret = {{ env = \"SHOW_TEST_SECRET\" }} {}", place(14));
    assert_eq!(line("secret", "targets.hook"), secret);
    assert_eq!(line("timeout", "targets.hook"), "timeout = \"15s\" # default");
    let included = format!("min_free = \"2GiB\" # {}:2", folder.path().join("more.toml").display());
    assert_eq!(line("min_free", "queue"), included);
    assert_eq!(line("durability", "queue"), "durability = \"sync\" # default");
    // What is always there without being written, and what differs between those.
    assert_eq!(line("suppress", "streams.bulk"), "suppress = true # default");
    assert_eq!(line("suppress", "streams.own"), "suppress = false # default");
    assert_eq!(line("exempt", "streams.security"), "exempt_from_suspend = true # default");
    assert_eq!(line("connections", "destinations.default"), "connections = 10 # default");
    assert_eq!(line("# rate", "destinations.\"far.test\""), "# rate: as in [destinations.default] # default");
    assert_eq!(line("tls", "listeners.submissions"), "tls = \"implicit\" # default");
    assert_eq!(line("per", "archive[0]"), "per = \"message\" # default");
    assert_eq!(line("schedule", "delivery.retry").split(" #").nth(1), Some(" default"));
    assert_eq!(line("# helo_name", "delivery"), "# helo_name: hostname # default");
    // A Maildir has no secret, and there is no smart host.
    assert!(!text.split("[targets.box]").nth(1).unwrap().split("\n[").next().unwrap().contains("timeout"), "{text}");
    assert!(!text.contains("[smart_hosts"), "{text}");

    let section = said(&file, &["streams.bulk"]);
    assert!(section.contains("daily_limit = 5") && !section.contains("hostname"), "{section}");
    let written = said(&file, &["--written"]);
    assert!(written.contains("daily_limit = 5") && !written.contains("# default"), "{written}");
    let wrong = show(&file, &["stream.bulk"]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("→ `postrider config show --docs`"), "{wrong:?}");
    std::fs::write(&file, "hostnam = 1\n").unwrap();
    assert_eq!(show(&file, &[]).status.code(), Some(2));
}

/// What stands there as a value is one, so it loads again; and it changes nothing.
#[test]
fn what_is_shown_loads_and_means_the_same() {
    let (_folder, file) = house();
    let without_warnings = |mut config: postrider::config::Config| {
        config.warnings.clear();
        config.source = postrider::config::Source::default();
        format!("{config:#?}")
    };
    let text = CONF.replace("{ env = \"SHOW_TEST_SECRET\" }", "\"very\"");
    std::fs::write(&file, &text).unwrap();
    let before = without_warnings(postrider::config::load(&file).unwrap());
    let shown = said(&file, &[]).replace("[archive[0]]", "[[archive]]");
    let mut secrets = ["hush-hush", "very"].into_iter();
    let mut filled = String::new();
    for line in shown.lines().filter(|line| !line.starts_with("include")) {
        let line = match line.contains("\"***\"") {
            true => line.replace("***", secrets.next().unwrap()),
            false => line.to_owned(),
        };
        filled.push_str(&line);
        filled.push('\n');
    }
    let after =
        postrider::config::parse("shown.toml", &filled).unwrap_or_else(|problems| panic!("{problems}\n{filled}"));
    // A default that is written may be one that does nothing, which is warned about.
    assert_eq!(before, without_warnings(after));
}

#[test]
fn a_default_that_follows_from_another_key_is_shown_as_it_is() {
    let (folder, file) = house();
    let key = folder.path().join("s1.pem");
    std::fs::write(&key, "a key").unwrap();
    let dkim = format!("[domains.\"home.test\".dkim]\nkey_files = {{ s1 = {key:?} }}\n[domains.\"other.test\"]\n");
    std::fs::write(&file, format!("{CONF}{dkim}[bounces]\nwithin = \"7d\"\n")).unwrap();
    let line =
        |section: &str| said(&file, &[section]).lines().find(|line| line.starts_with("selectors")).map(str::to_owned);
    let shown = |section: &str| line(section).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(shown("domains.\"home.test\".dkim"), "selectors = [] # default");
    assert_eq!(shown("domains.\"other.test\".dkim"), "selectors = [\"pr-rsa\", \"pr-ed\"] # default");
    assert!(said(&file, &["bounces"]).lines().any(|line| line.starts_with("spread") && line.contains("\"84h\"")));
}

/// The log and the report of a reload do not show it either. Whoever asks for help shows this to others.
#[test]
fn a_key_in_the_query_of_a_url_is_not_shown() {
    let (_folder, file) = house();
    let hooks = "[targets.login]\nkind = \"webhook\"\nurl = \"https://hook.test:8443/in/a@b?key=very-secret\"\n\
                 [events.webhooks.login]\nurl = \"http://hook.test?very-secret\"\n";
    std::fs::write(&file, format!("{CONF}{hooks}")).unwrap();
    let text = said(&file, &["targets"]);
    assert!(text.contains("url = \"https://hook.test:8443/in/a@b?***\" "), "{text}");
    assert!(text.contains("url = \"https://hook.test/in\" "), "{text}");
    assert!(said(&file, &["events", "--json"]).contains("http://hook.test?***"));
}

#[test]
fn programs_get_one_object_a_key() {
    let (_folder, file) = house();
    let json = said(&file, &["--json"]);
    let settings: BTreeMap<String, Value> = json
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|setting| (setting["key"].as_str().unwrap().to_owned(), setting))
        .collect();
    assert_eq!(settings.len(), json.lines().count());
    let bulk = &settings["streams.bulk.daily_limit"];
    assert_eq!((&bulk["value"], &bulk["default"], &bulk["line"]), (&"5".into(), &false.into(), &16.into()));
    assert_eq!(settings["queue.durability"]["default"], true);
    assert_eq!(settings["accounts.shop.password"]["value"], "\"***\"");
    let all = show(Path::new("/nowhere/p.toml"), &["--docs", "--json"]);
    let all = String::from_utf8(all.stdout).unwrap();
    let keys: Vec<Value> = all.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let known: Vec<String> = postrider::config::known_keys().into_iter().map(|(key, _)| key.to_owned()).collect();
    assert_eq!(keys.iter().map(|key| key["key"].as_str().unwrap()).collect::<Vec<_>>(), known);
    assert!(keys.iter().all(|key| key["type"].is_string() && key["required"].is_boolean()));
}

#[test]
fn every_key_is_told_with_type_default_and_meaning() {
    let nowhere = Path::new("/nowhere/p.toml");
    let all = said(nowhere, &["--docs"]);
    for (key, _) in postrider::config::known_keys() {
        let lines: Vec<&str> = all.lines().skip_while(|line| *line != key).take(3).collect();
        assert_eq!(lines.first(), Some(&key), "{key} is not told of");
        assert!(
            lines[1].contains("; default") || lines[1].contains("; required") || lines[1].contains("none by"),
            "{lines:?}"
        );
    }
    let one = said(nowhere, &["--docs", "queue.min_free"]);
    assert_eq!(
        one,
        "queue.min_free\n  size; default \"1GiB\"\n  less free disk than this: 452 4.3.1; deliveries go on\n\n"
    );
}
