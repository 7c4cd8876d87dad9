//! `postrider account test`, `fetch test` and `target test` against servers of the test: how far each comes, what it says
//! of what goes wrong, and that no secret is in what it says. (`host_test.rs` has smart hosts.)
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "support/remote.rs"]
mod remote;
#[path = "support/server.rs"]
mod server;
#[path = "support/zone.rs"]
mod zone;

#[path = "connection_tests/accounts.rs"]
mod accounts;
#[path = "connection_tests/mailboxes.rs"]
mod mailboxes;
#[path = "connection_tests/targets.rs"]
mod targets;

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// In every test; it must be in no output, nor its form in base64.
const SECRET: &str = "pencil+sharpener";

fn write(folder: &Path, more: &str) -> PathBuf {
    let file = folder.join("postrider.toml");
    let base = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", folder.display());
    std::fs::write(&file, format!("{base}{more}")).unwrap();
    file
}

/// `input`: what comes on standard input.
async fn run_with(config: &Path, arguments: &[&str], input: &str, variable: &str) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    command.args(arguments).arg("--config").arg(config).env("SHOP_PASSWORD", variable);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that wants none may have ended.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes()).await;
    let output = child.wait_with_output().await.unwrap();
    let all = [output.stdout.as_slice(), &output.stderr].concat();
    let all = String::from_utf8_lossy(&all).into_owned();
    for secret in [SECRET, "cGVuY2lsK3NoYXJwZW5lc", "BlbmNpbCtzaGFycGVuZX", "wZW5jaWwrc2hhcnBlbmVy"] {
        assert!(!all.contains(secret), "{all}");
    }
    output
}

async fn run(config: &Path, arguments: &[&str]) -> Output {
    run_with(config, arguments, "", "").await
}

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.as_slice(), &output.stderr].concat()).unwrap()
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn legs(report: &Value) -> Vec<&str> {
    report["marks"].as_array().unwrap().iter().map(|mark| mark["leg"].as_str().unwrap()).collect()
}

/// Group and remedy.
fn problem(report: &Value) -> (&str, &str) {
    (report["problem"]["group"].as_str().unwrap(), report["problem"]["remedy"].as_str().unwrap())
}
