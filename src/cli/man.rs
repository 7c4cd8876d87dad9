//! `postrider man`: manual pages, one a command, written from the definition of the command line, so
//! that they say what `--help` says. Nothing in them depends on the day or the machine.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, Failure, text};

const EXAMPLES: &str = "\
Examples:
  postrider man | man -l -                        the page of postrider itself
  postrider man queue list | man -l -             of one command
  postrider man --out /usr/local/share/man/man1   a file for each: postrider.1, postrider-queue-list.1, …";

/// User commands: an application's developer needs them as much as an administrator.
const SECTION: &str = "1";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// The command whose page it is; default: postrider itself
    #[arg(value_name = "COMMAND", conflicts_with = "out")]
    command: Vec<String>,
    /// Write the pages of all commands into this folder, which is made if it is missing
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // `help` says the same as `--help`, command by command; pages for it would say it a third time.
    let mut all = Cli::command().disable_help_subcommand(true);
    all.build();
    if let Some(folder) = &args.out {
        fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
        return write(&all, folder);
    }
    let mut command = &all;
    for word in &args.command {
        command = command.find_subcommand(word).ok_or_else(|| {
            Failure::usage(format!("there is no command {}", args.command.join(" ")))
                .remedy("`postrider --help` names them")
        })?;
    }
    let page = page(command)?;
    Ok(text::print(String::from_utf8_lossy(&page).trim_end())?)
}

/// The page of a command and those of the commands below it.
fn write(command: &clap::Command, folder: &Path) -> Result<(), Failure> {
    let path = folder.join(format!("{}.{SECTION}", name(command)));
    fs::write(&path, page(command)?).map_err(|error| cannot_write(&path, &error))?;
    command.get_subcommands().filter(|sub| !sub.is_hide_set()).try_for_each(|sub| write(sub, folder))
}

/// `postrider-queue-list`
fn name(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}

fn page(command: &clap::Command) -> Result<Vec<u8>, Failure> {
    let man = Man::new(command.clone())
        .title(name(command).to_uppercase())
        .section(SECTION)
        .source(concat!("postrider ", env!("CARGO_PKG_VERSION")))
        .manual("postrider");
    let mut out = Vec::new();
    man.render_title(&mut out)?;
    man.render_name_section(&mut out)?;
    man.render_synopsis_section(&mut out)?;
    man.render_description_section(&mut out)?;
    man.render_options_section(&mut out)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut out)?;
    }
    examples(command).to_writer(&mut out)?;
    Ok(out)
}

/// What stands below the options in `--help`, line by line as it is there: its columns would be lost in
/// filled text.
fn examples(command: &clap::Command) -> Roff {
    let mut roff = Roff::new();
    let Some(help) = command.get_after_help() else { return roff };
    let help = help.to_string();
    roff.control("SH", ["EXAMPLES"]);
    roff.control("nf", []);
    for line in help.strip_prefix("Examples:\n").unwrap_or(&help).lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display())).remedy("name a folder that this user may write with --out")
}
