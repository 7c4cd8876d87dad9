//! The HTTP API as schemathesis sees it: what the OpenAPI document says is what the server does, for what
//! it thinks up, good and bad.
//!
//! `POSTRIDER_TEST_SCHEMATHESIS` names its program. Without it the test says so and proves nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support {
    pub mod server;
}

use std::process::Stdio;

use postrider::admin::Backend;
use support::server::TestServer;
use tokio::process::Command;

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
/// Requests thought up for each operation.
const EXAMPLES: &str = "60";
/// The same requests in each run.
const SEED: &str = "7";

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
    let output = Command::new(program)
        .current_dir(scratch.path())
        .arg("run")
        .arg(format!("http://{http}/openapi.json"))
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
    assert!(said.contains("Operations:       15 selected / 15 total"), "{said}");
    // It deletes, too.
    let counted = server.app.operator().metrics().await;
    let captured =
        counted.lines().find_map(|line| line.strip_prefix("postrider_recipients_total{outcome=\"captured\"} "));
    assert!(captured.is_some_and(|number| number != "0"), "some of what it sent was taken: {counted}");
    server.stop().await;
}
