//! `postrider completions SHELL`: what a shell has to know to complete our commands, written from
//! their definition, so that the two never differ.

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, Failure, text};

const EXAMPLES: &str = "\
Examples:
  postrider completions bash > ~/.local/share/bash-completion/completions/postrider
  postrider completions fish > ~/.config/fish/completions/postrider.fish
  postrider completions zsh > ~/.zfunc/_postrider       a folder of $fpath

A new shell knows them. The Debian package brings them along.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The shell to complete for
    #[arg(value_name = "SHELL")]
    shell: Known,
}

/// The shells that Debian has and that are tried.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Known {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let shell = match args.shell {
        Known::Bash => Shell::Bash,
        Known::Zsh => Shell::Zsh,
        Known::Fish => Shell::Fish,
    };
    // Into memory first: the generator panics where its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "postrider", &mut script);
    Ok(text::print(String::from_utf8_lossy(&script).trim_end())?)
}
