//! `postrider dkim new|rotate`: another DKIM key for one of our domains. It signs once its record is in DNS,
//! which the running server looks for; without a server nothing is lost, the next one goes on from there.

use clap::Subcommand;

use super::{Failure, dns, text};
use crate::app::dkim::CHECK_EVERY;
use crate::config::Config;
use crate::config::value::render_duration;
use crate::intake::sign::life::{self, State};
use crate::intake::sign::{SignError, Signer};
use crate::message::Domain;

const EXAMPLES: &str = "\
Examples:
  postrider dkim rotate example.com                      a successor for each key that signs
  postrider dkim new example.com --selector 2027-ed      one key more

Publish what is printed. A new key signs once its record is seen; the old one keeps its record until
nothing that is queued needs it: `postrider dns example.com` says when it may be taken away.
Run it as the user who runs the server.";

const NEW_EXAMPLES: &str = "\
Examples:
  postrider dkim new example.com
  postrider dkim new example.com --selector 2027-ed
  postrider dkim new example.com --json

It signs once its record, which is printed, is seen in DNS.";

const ROTATE_EXAMPLES: &str = "\
Examples:
  postrider dkim rotate example.com
  postrider dkim rotate example.com --json | jq -r .value

The old keys sign until the records of the new ones, which are printed, are seen in DNS.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: DkimCommand,
}

#[derive(Debug, Subcommand)]
enum DkimCommand {
    /// Make one key more; Ed25519 if the selector ends in "ed", else RSA
    #[command(after_help = NEW_EXAMPLES)]
    New {
        /// One of [domains]
        domain: String,
        /// Its name in DNS; without it, the next free one
        #[arg(long)]
        selector: Option<String>,
        /// The records to publish, one JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Make a successor for each key that signs
    #[command(after_help = ROTATE_EXAMPLES)]
    Rotate {
        /// One of [domains]
        domain: String,
        /// The records to publish, one JSON object a line
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(config: &Config, args: Args) -> Result<(), Failure> {
    let (name, json) = match &args.command {
        DkimCommand::New { domain, json, .. } | DkimCommand::Rotate { domain, json } => (domain, *json),
    };
    let known = Domain::parse(name).ok().filter(|domain| config.is_own(domain));
    let domain = known.ok_or_else(|| Failure::usage(dns::not_ours(config, name)))?;
    let folder = config.data_dir.display();
    std::fs::create_dir_all(&config.data_dir).map_err(|error| {
        Failure::new(format!("data_dir {folder} cannot be made: {error}"))
            .remedy("run this as the user that runs the server, or make it for that user")
    })?;
    // Makes the keys of the configuration that are missing, so that there is something to replace.
    Signer::load(config).map_err(failed)?;
    let made = match &args.command {
        DkimCommand::New { selector, .. } => {
            let new = life::new_key(config, &domain, selector.as_deref()).map_err(failed)?;
            vec![format!("{new} is a new key of {domain}.")]
        }
        DkimCommand::Rotate { .. } => {
            let pairs = life::rotate(config, &domain).map_err(failed)?;
            pairs.into_iter().map(|(old, new)| format!("{new} will take the place of {old}, of {domain}.")).collect()
        }
    };
    let signer = Signer::load(config).map_err(failed)?;
    let waiting: Vec<String> = signer
        .standings(&domain)
        .into_iter()
        .filter(|key| matches!(key.state, State::Waiting { .. }))
        .map(|key| key.name)
        .collect();
    let mut records = dns::dkim(&signer, &domain);
    records.retain(|record| waiting.contains(&record.name));
    if json {
        return Ok(text::print(dns::json_lines(&records).trim_end())?);
    }
    let every = render_duration(CHECK_EVERY);
    let then = format!("A key signs once its record is seen; the running server looks every {every}. Publish:");
    Ok(text::print(&format!("{}\n{then}\n\n{}", made.join("\n"), dns::zone_lines(&records).trim_end()))?)
}

fn failed(error: SignError) -> Failure {
    let text = error.to_string();
    match text.split_once("; ") {
        Some((what, remedy)) => Failure::new(what).remedy(remedy),
        None => Failure::new(text),
    }
}
