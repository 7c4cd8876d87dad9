//! `postrider target test`: the way to a target of inbound mail, leg by leg, with the time that each took. No
//! server is needed.

use std::path::Path;
use std::sync::Arc;

use clap::Subcommand;

use super::{Failure, load, tested};
use crate::clock::Clock;
use crate::delivery::smtp::SmtpTransport;
use crate::delivery::target_test::{Tester, Wish};
use crate::dns::Resolver;
use crate::message::Address;

const EXAMPLES: &str = "\
Examples:
  postrider target test crm                              a webhook: name, connection, TLS; nothing is posted
  postrider target test crm --send                       posts a test message, signed as all others are
  postrider target test dovecot --to sales@example.com   LMTP up to the recipient
  postrider target test sales-box                        may its folder be written to?
  postrider target test script --send --json             runs the program with a test message

A test message is queued nowhere. Run it as the user who runs the server: files and programs are tried as who asks.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: TargetCommand,
}

#[derive(Debug, Subcommand)]
enum TargetCommand {
    /// Go the way of a message, and say where it ends
    #[command(after_help = EXAMPLES)]
    Test {
        /// Of [targets]
        name: String,
        /// Hand over a small message; without it, the test ends before any content
        #[arg(long)]
        send: bool,
        /// The recipient; without it, an address whose mail goes there
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        to: Option<Address>,
        /// The sender; without it, the postmaster
        #[arg(long, value_name = "ADDRESS", value_parser = address)]
        from: Option<Address>,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn address(text: &str) -> Result<Address, String> {
    Address::parse(text).map_err(|error| error.to_string())
}

pub(super) async fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let TargetCommand::Test { name, send, to, from, json } = args.command;
    let config = Arc::new(load(config)?);
    let resolver = Resolver::new(&config.dns).map_err(|error| Failure::new(format!("dns: {error}")))?;
    let smtp = SmtpTransport::new(&config, resolver).map_err(|error| Failure::new(error.to_string()))?;
    let tester = Tester { config: &config, clock: &Clock::System, smtp: &smtp };
    let wish = Wish { name: name.clone(), from, to, send };
    let Some(tested) = tester.test(&wish).await else {
        let names: Vec<&str> = config.targets.keys().map(String::as_str).collect();
        let there =
            if names.is_empty() { "there is none".to_owned() } else { format!("there are: {}", names.join(", ")) };
        return Err(Failure::usage(format!("there is no target named {name:?}")).remedy(there));
    };
    let good = if send { "The target has taken the message." } else { "As far as it went, it does." };
    tested::tell(&tested, json, good)
}
