//! `postrider smart-host test`: the way to a smart host, leg by leg, with the time that each took.
//!
//! It is gone by the running server, which has the tokens; without one, in this process, for hosts with a
//! password or no login.

use std::path::Path;

use clap::Subcommand;

use super::client::{Client, Reached};
use super::target::address;
use super::text::{Paint, clean, print};
use super::{Failure, load, print_json, tested};
use crate::clock::Clock;
use crate::config::Config;
use crate::delivery::host_test::{self, NoTest, Report, Tester, Wish};
use crate::delivery::smtp::{PopBeforeSmtp, SmtpTransport};
use crate::dns::Resolver;
use crate::message::Address;

const EXAMPLES: &str = "\
Examples:
  postrider smart-host test relay                                     up to the recipient; nothing is sent
  postrider smart-host test relay --from shop@example.com --to you@example.net
  postrider smart-host test relay --send --to you@example.net         a small message, neither queued nor signed

A good test says that the server takes mail, not that it arrives.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: SmartHostCommand,
}

#[derive(Debug, Subcommand)]
enum SmartHostCommand {
    /// Go the way of a message, and say where it ends
    #[command(after_help = EXAMPLES)]
    Test {
        /// Of [smart_hosts]
        name: String,
        /// Send a small message; without it, the test ends before any content
        #[arg(long, requires = "to")]
        send: bool,
        /// The recipient; without it, postmaster at our own domain
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        to: Option<Address>,
        /// The sender; without it, one that the host is for
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        from: Option<Address>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let SmartHostCommand::Test { name, send, to, from, json } = args.command;
    let config = load(config)?;
    let wish = Wish { name, from, to, send };
    host_test::check(&config, &wish).map_err(|no_test| complaint(no_test, Failure::usage))?;
    let client = Client::new(&config.data_dir);
    let report = match client.reach().await {
        Reached::Server => client.test_host(&wish).await?,
        Reached::Nobody => alone(&config, &wish).await?,
        Reached::Trouble(failure) => return Err(failure),
    };
    if json {
        print_json(&report)?;
    } else {
        for line in lines(&report, Paint::for_stdout()) {
            print(&line)?;
        }
    }
    tested::ended(report.problem.as_ref(), json)
}

/// Without a server.
async fn alone(config: &Config, wish: &Wish) -> Result<Report, Failure> {
    let resolver = Resolver::new(&config.dns).map_err(|error| Failure::new(format!("dns: {error}")))?;
    let smtp = SmtpTransport::new(config, resolver).map_err(|error| Failure::new(error.to_string()))?;
    let clock = Clock::System;
    let pop_before = PopBeforeSmtp::new(clock.clone());
    let tester = Tester { config, clock: &clock, smtp: &smtp, pop_before: &pop_before, oauth: None };
    tester.test(wish).await.map_err(|no_test| complaint(no_test, Failure::usage))
}

fn complaint(NoTest { what, remedy }: NoTest, of: impl Fn(String) -> Failure) -> Failure {
    of(what).remedy(remedy)
}

fn lines(report: &Report, paint: Paint) -> Vec<String> {
    let mut lines = vec![format!("{}: from <{}> to <{}>", clean(&report.host), clean(&report.from), clean(&report.to))];
    lines.extend(tested::legs(&report.marks));
    match (&report.problem, report.sent) {
        (Some(_), _) => lines.push(paint.red("It does not do.")),
        (None, true) => lines.push(paint.green("The server has taken the message.")),
        (None, false) => lines.push(paint.green("The server would take mail.")),
    }
    if report.good {
        lines.push(
            "That does not prove that mail arrives: what happens behind this server is not seen from here.".to_owned(),
        );
    }
    lines
}
