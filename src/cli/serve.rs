//! `postrider serve`: the server in the foreground, log on standard error. SIGTERM and SIGINT drain,
//! a second one stops at once (`app` sees to that).

use std::path::Path;

use super::confine::confine;
use super::{Failure, Threads, block_on, load, log};
use crate::app;

const EXAMPLES: &str = "\
Examples:
  postrider serve                                        with /etc/postrider/postrider.toml
  postrider serve --config ./postrider.toml

SIGTERM or Ctrl-C: takes no new mail, finishes what is under way, ends. A second one ends at once;
nothing that was acknowledged is lost. SIGHUP takes a changed configuration, as `postrider reload` does. The log goes to
standard error.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {}

pub(super) fn run(config: &Path, _args: Args) -> Result<(), Failure> {
    let config = load(config)?;
    // Before anything starts a thread.
    let confinement = confine(&config);
    let started = log::start(&config.log)?;
    confinement.tell();
    block_on(Threads::Many, async {
        app::serve(config, started.setter()).await.map_err(|error| Failure::new(error.to_string()))
    })
}
