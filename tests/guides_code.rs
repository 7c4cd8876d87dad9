//! The programs in the guides, run as they are written there: they submit to a server of ours, and they tell requests of
//! ours from others. Only names of hosts, ports and files are exchanged for those of the test.
//!
//! Python, Node with Nodemailer, PHP and Go come from the test script (`POSTRIDER_TEST_PYTHON`, `…_NODE`, `…_PHP`, `…_GO`);
//! where one is missing its part says SKIPPED. Ruby and .NET are not run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support {
    pub mod client;
    pub mod endpoint;
    pub mod pages;
    pub mod server;
    pub mod sink;
    pub mod zone;
}

#[path = "guides/signatures.rs"]
mod signatures;
#[path = "guides/submission.rs"]
mod submission;

use std::path::PathBuf;
use std::process::{Output, Stdio};

use tokio::process::Command;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Language {
    Python,
    Node,
    Php,
    Go,
}

impl Language {
    const ALL: [Language; 4] = [Language::Python, Language::Node, Language::Php, Language::Go];

    /// As fences and files are called.
    fn word(self) -> &'static str {
        match self {
            Language::Python => "python",
            Language::Node => "js",
            Language::Php => "php",
            Language::Go => "go",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Language::Python => "POSTRIDER_TEST_PYTHON",
            Language::Node => "POSTRIDER_TEST_NODE",
            Language::Php => "POSTRIDER_TEST_PHP",
            Language::Go => "POSTRIDER_TEST_GO",
        }
    }

    /// What runs a file of it. None: it is not there, which was said.
    fn program(self) -> Option<Command> {
        let named = std::env::var(self.variable());
        // Of Node the variable names the packages.
        let (program, argument, probe) = match self {
            Language::Python => (named.clone().unwrap_or_else(|_| "python3".into()), None, "--version"),
            Language::Node => ("node".to_owned(), None, "--version"),
            Language::Php => (named.clone().unwrap_or_else(|_| "php".into()), None, "--version"),
            Language::Go => (named.clone().unwrap_or_else(|_| "go".into()), Some("run"), "version"),
        };
        let there =
            std::process::Command::new(&program).arg(probe).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            assert!(named.is_err(), "{program} does not work");
            eprintln!("SKIPPED: there is no {program} here; nothing was shown of it");
            return None;
        }
        let mut command = Command::new(program);
        command.args(argument);
        if let (Language::Node, Ok(packages)) = (self, named) {
            command.env("NODE_PATH", PathBuf::from(packages).join("node_modules"));
        }
        Some(command)
    }
}

async fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).kill_on_drop(true).output().await.unwrap()
}

fn show(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
