//! The HTTP API as schemathesis sees it: what the OpenAPI document says is what the server does, for what
//! it thinks up, good and bad.
//!
//! It is given the document without what nobody can try out blindly: `follow`, whose answer does not end, and the backup,
//! which writes wherever it is told to.
//!
//! `POSTRIDER_TEST_SCHEMATHESIS` names its program. Without it the test says so and proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod server;
}

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use postrider::admin::{Action, Backend};
use serde_json::Value;
use support::server::TestServer;
use tokio::process::Command;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Requests thought up for each operation.
const EXAMPLES: &str = "40";
/// The same requests in each run.
const SEED: &str = "7";
const DOCUMENT: &str = include_str!("../src/admin/openapi.json");
/// Writes wherever it is told to.
const BACKUP: &str = "/api/v1/store/backup";

/// The document as it is tried out.
fn tried() -> (Value, usize) {
    let mut document: Value = serde_json::from_str(DOCUMENT).unwrap();
    let paths = document["paths"].as_object_mut().unwrap();
    paths.remove(BACKUP).unwrap();
    // It knows how to write text, and nothing of this form; what comes is read as this form whatever it is called.
    let content = paths["/api/v1/queue/import"]["post"]["requestBody"]["content"].as_object_mut().unwrap();
    let schema = content.remove("application/x-postrider-message").unwrap();
    content.insert("text/plain".to_owned(), schema);
    let operations = paths.values().map(|path| path.as_object().unwrap().len()).sum();
    let parameters = paths["/api/v1/events"]["get"]["parameters"].as_array_mut().unwrap();
    let before = parameters.len();
    parameters.retain(|parameter| parameter["name"] != "follow");
    assert_eq!(parameters.len(), before - 1);
    (document, operations)
}

/// `METHOD /path` of every route in the source of the API; the pages for people are none of it.
fn routes(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("dashboard") {
            routes(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            for route in text.split(".route(").skip(1) {
                let Some((path, rest)) = route.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'))
                else {
                    assert!(route.starts_with("&format!(\"/api/v1/queue/{}\", action.name())"), "{route}");
                    found.extend(Action::ALL.map(|action| format!("POST /api/v1/queue/{}", action.name())));
                    continue;
                };
                let handlers = rest.split(['\n', ';']).next().unwrap();
                for method in ["get", "post", "put", "patch", "delete"] {
                    if handlers.contains(&format!(" {method}(")) || handlers.contains(&format!(".{method}(")) {
                        found.insert(format!("{} {path}", method.to_uppercase()));
                    }
                }
            }
        }
    }
}

#[test]
fn every_route_is_in_the_document_and_nothing_else() {
    let mut built = BTreeSet::new();
    routes(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin"), &mut built);
    assert!(built.contains("GET /api/v1/events") && built.contains("POST /api/v1/queue/cancel"), "{built:?}");
    let document: Value = serde_json::from_str(DOCUMENT).unwrap();
    let mut told = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        told.extend(methods.as_object().unwrap().keys().map(|method| format!("{} {path}", method.to_uppercase())));
    }
    assert_eq!(built, told);
}

#[tokio::test(flavor = "multi_thread")]
async fn schemathesis_finds_no_violation() {
    let Some(program) = std::env::var_os("POSTRIDER_TEST_SCHEMATHESIS") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_SCHEMATHESIS names no schemathesis; nothing was asked");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let more = format!(
        "[domains.\"example.com\"]\n[delivery]\ndefault = \"capture\"\n[admin]\nbind = \"127.0.0.1:0\"\ntoken = \"{TOKEN}\"\n"
    );
    let server = TestServer::start(folder.path(), &more).await;
    let http = server.app.listeners().iter().find(|listener| listener.role == "http").unwrap().address;
    let scratch = tempfile::tempdir().unwrap();
    let (document, operations) = tried();
    let written = scratch.path().join("openapi.json");
    std::fs::write(&written, document.to_string()).unwrap();
    let output = Command::new(program)
        .current_dir(scratch.path())
        .arg("run")
        .arg(&written)
        .args(["--url", &format!("http://{http}")])
        .args(["-H", &format!("Authorization: Bearer {TOKEN}")])
        .args(["--max-examples", EXAMPLES, "--seed", SEED, "--no-color", "--checks", "all"])
        // No schema can say which addresses exist: what has the right form may be refused all the same.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains(&format!("Operations:       {operations} selected / {operations} total")), "{said}");
    // It deletes, too.
    let counted = server.app.operator().metrics().await;
    let captured =
        counted.lines().find_map(|line| line.strip_prefix("postrider_recipients_total{outcome=\"captured\"} "));
    assert!(captured.is_some_and(|number| number != "0"), "some of what it sent was taken: {counted}");
    server.stop().await;
}
