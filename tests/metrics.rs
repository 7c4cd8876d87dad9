//! `/metrics`: promtool reads it without a complaint; `docs/metrics.md` names exactly what is served; there are no
//! more series however many places mail goes to; the dashboard and the alarms in `conf/` use names that there are.
//!
//! `POSTRIDER_TEST_PROMETHEUS` names the folder into which `.ci/prometheus.sh` has unpacked promtool. Without it the
//! tests with it say so and prove nothing. `UPDATE=1 cargo test --test metrics` writes the table in the guide anew.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod server;
    pub mod zone;
}

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use postrider::admin::Backend;
use postrider::message::MessageId;
use regex::Regex;
use support::client::Client;
use support::server::{TestServer, queued_id};
use support::zone::{Zone, ZoneServer};

/// Something of everything that has metrics.
const CONF: &str = "[domains.\"home.test\"]\n[networks]\ntrusted = [\"127.0.0.0/8\"]\n[events.webhooks.crm]\n\
                    url = \"http://127.0.0.1:1/hook\"\n[aliases]\n\"box@home.test\" = \"box\"\n[targets.box]\n\
                    kind = \"maildir\"\npath = \"DATA_DIR/box\"\n[limits]\n";

fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(manifest(path)).unwrap()
}

struct House {
    server: TestServer,
    _zone: ZoneServer,
    _folder: tempfile::TempDir,
}

impl House {
    async fn new() -> House {
        let (folder, zone) = (tempfile::tempdir().unwrap(), Zone::new().serve().await);
        let conf = CONF.replace("[limits]\n", &format!("[dns]\nnameservers = [\"{}\"]\n", zone.addr()));
        let server = TestServer::start(folder.path(), &conf).await;
        House { server, _zone: zone, _folder: folder }
    }

    /// A message to all of these, and waits until nothing of it is queued.
    async fn send(&self, to: &[&str]) {
        self.server.wait_done(self.submit(to).await).await;
    }

    async fn submit(&self, to: &[&str]) -> MessageId {
        let mut client = Client::connect(self.server.submission).await.unwrap();
        let content = "From: <me@home.test>\r\nSubject: x\r\n\r\nhello\r\n";
        let reply = client.send("me@home.test", to, content).await.unwrap();
        queued_id(&reply)
    }

    async fn page(&self) -> String {
        self.server.app.operator().metrics().await
    }
}

/// A metric as the guide names it.
#[derive(Debug, PartialEq, Eq)]
struct Metric {
    kind: String,
    label: String,
    help: String,
}

fn metrics(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics = BTreeMap::new();
    for line in page.lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (name, help) = line.split_once(' ').unwrap();
        let kind = page.lines().find_map(|line| line.strip_prefix(&format!("# TYPE {name} "))).unwrap();
        let series = page.lines().filter_map(|line| line.strip_prefix(&format!("{name}{{")));
        let values: Vec<(&str, &str)> = series.filter_map(|rest| rest.split_once('=')).collect();
        let label = match values.first() {
            None => String::new(),
            // Its values are chosen in the configuration, or change with each version.
            Some((label @ ("webhook" | "version"), _)) => format!("`{label}`"),
            Some((label, _)) => {
                let words = values.iter().filter_map(|(_, rest)| rest.split('"').nth(1));
                format!("`{label}`: {}", words.collect::<Vec<_>>().join(", "))
            }
        };
        let metric = Metric { kind: kind.to_owned(), label, help: help.to_owned() };
        assert!(metrics.insert(name.to_owned(), metric).is_none(), "{name} is there twice");
    }
    metrics
}

fn series(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// None, said loudly, where there is no promtool.
fn promtool() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("POSTRIDER_TEST_PROMETHEUS").map(PathBuf::from) else {
        eprintln!("SKIPPED: POSTRIDER_TEST_PROMETHEUS does not name an unpacked Prometheus (.ci/prometheus.sh)");
        return None;
    };
    Some(folder.join("usr/bin/promtool"))
}

#[tokio::test(flavor = "multi_thread")]
async fn promtool_has_nothing_to_say_against_what_is_served() {
    let house = House::new().await;
    house.send(&["box@home.test"]).await;
    house.send(&["you@nowhere.test"]).await;
    let mut outside = Client::connect(house.server.mx).await.unwrap();
    outside.send("me@far.test", &["you@elsewhere.test"], "Subject: x\r\n\r\nhello\r\n").await.unwrap_err();
    let page = house.page().await;
    assert!(page.contains("postrider_messages_accepted_total{door=\"submission\"} 2"), "{page}");
    let Some(promtool) = promtool() else { return };
    let mut check = Command::new(promtool);
    let mut check = check
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    check.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guide_names_what_is_served_and_nothing_else() {
    let house = House::new().await;
    let page = house.page().await;
    let mut rows = String::new();
    for (name, Metric { kind, label, help }) in metrics(&page) {
        // promtool asks for the same, and where it is not this tells.
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        assert!(name.starts_with("postrider_") && !help.contains('|'), "{name}");
        rows.push_str(&format!("| `{name}` | {kind} | {label} | {help} |\n"));
    }
    let guide = read("docs/metrics.md");
    let (head, rest) = guide.split_once("|---|---|---|---|\n").unwrap();
    let table: String = rest.lines().take_while(|line| line.starts_with('|')).map(|line| format!("{line}\n")).collect();
    if std::env::var_os("UPDATE").is_some() {
        let after = &rest[table.len()..];
        std::fs::write(manifest("docs/metrics.md"), format!("{head}|---|---|---|---|\n{rows}{after}")).unwrap();
        return;
    }
    for line in table.lines() {
        assert!(rows.contains(line), "docs/metrics.md names what is not served so: {line}");
    }
    for line in rows.lines() {
        assert!(table.contains(line), "docs/metrics.md does not name {line}");
    }
    house.server.stop().await;
}

/// Ten thousand places that mail goes to, and as many senders and subjects, make no series more.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_domains_make_no_series_more() {
    let house = House::new().await;
    let before = series(&house.page().await);
    let mut sent = Vec::new();
    for part in 0..100 {
        let to: Vec<String> = (0..100).map(|number| format!("you@d{part}-{number}.test")).collect();
        sent.push(house.submit(&to.iter().map(String::as_str).collect::<Vec<_>>()).await);
    }
    for id in sent {
        house.server.wait_done(id).await;
    }
    let page = house.page().await;
    let failed = page.lines().find_map(|line| line.strip_prefix("postrider_recipients_total{outcome=\"failed\"} "));
    assert!(failed.unwrap().parse::<u64>().unwrap() >= 10_000, "{page}");
    assert_eq!(series(&page), before);
    assert!(before.len() < 150, "{}", before.len());
    house.server.stop().await;
}

/// The names that a query speaks of.
fn names(query: &str) -> BTreeSet<String> {
    let name = Regex::new(r"\bpostrider_[a-z0-9_]+").unwrap();
    let series = ["_bucket", "_sum", "_count"];
    let plain = |name: &str| series.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned();
    name.find_iter(query).map(|found| plain(found.as_str())).collect()
}

fn documented() -> BTreeSet<String> {
    let guide = read("docs/metrics.md");
    let rows = guide.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next()).map(str::to_owned).collect()
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let dashboard: serde_json::Value = serde_json::from_str(&read("conf/grafana.json")).unwrap();
    let known = documented();
    let panels = dashboard["panels"].as_array().unwrap();
    let (mut ids, mut used) = (BTreeSet::new(), BTreeSet::new());
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(panel["title"].is_string() && panel["gridPos"]["w"].is_u64(), "{panel}");
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty() && panel["description"].is_string(), "{panel}");
        for target in targets {
            let query = target["expr"].as_str().unwrap();
            let names = names(query);
            assert!(!names.is_empty(), "{query}");
            assert!(names.is_subset(&known), "{query}: {:?}", names.difference(&known));
            used.extend(names);
        }
    }
    assert!(panels.len() >= 10 && used.len() >= 15, "{used:?}");
    // It asks the data source that its reader chooses.
    assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource");
}

#[test]
fn the_alarms_ask_for_what_there_is_and_promtool_reads_them() {
    let text = read("conf/prometheus-alerts.yml");
    let known = documented();
    let mut alarms = 0;
    for rule in text.split("- alert: ").skip(1) {
        alarms += 1;
        let name = rule.lines().next().unwrap();
        // On one line, or folded over several.
        let from = rule.split("expr: ").nth(1).unwrap();
        let ends = ["\n        labels:", "\n        for:"].into_iter().filter_map(|mark| from.find(mark));
        let query = &from[..ends.min().unwrap_or(from.len())];
        let names = names(query);
        assert!(!names.is_empty() || query.contains("up{"), "{name}: {query}");
        assert!(names.is_subset(&known), "{name}: {query}");
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "{name} has no {part}");
        }
    }
    assert!(alarms >= 8, "{alarms}");
    let Some(promtool) = promtool() else { return };
    let output =
        Command::new(promtool).args(["check", "rules"]).arg(manifest("conf/prometheus-alerts.yml")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(&format!("{alarms} rules found")), "{said}");
}
