//! `postrider serve`: the server in the foreground, log on standard error. SIGTERM and SIGINT drain,
//! a second one stops at once (`app` sees to that).

use std::path::Path;

use tracing_subscriber::EnvFilter;

use super::{Failure, load};
use crate::app;
use crate::config::{Log, LogFormat};

const EXAMPLES: &str = "\
Examples:
  postrider serve                                        with /etc/postrider/postrider.toml
  postrider serve --config ./postrider.toml

SIGTERM or Ctrl-C: takes no new mail, finishes what is under way, ends. A second one ends at once;
nothing that was acknowledged is lost. The log goes to standard error.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {}

pub(super) async fn run(config: &Path, _args: Args) -> Result<(), Failure> {
    let config = load(config)?;
    start_log(&config.log)?;
    app::serve(config).await.map_err(|error| Failure::new(error.to_string()))
}

/// The process' log. Ours at the configured level, libraries only from warnings up.
pub(super) fn start_log(log: &Log) -> Result<(), Failure> {
    let ours = format!("warn,postrider={}", log.level);
    let filter = EnvFilter::try_new(&ours)
        .map_err(|error| Failure::usage(format!("log.level {:?}: {error}", log.level)).remedy("use info"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => {
            use std::io::IsTerminal;
            builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).try_init()
        }
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).try_init(),
    };
    started.map_err(|error| Failure::new(format!("cannot start the log: {error}")))
}
