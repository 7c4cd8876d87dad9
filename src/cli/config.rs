//! `postrider config show`: what the configuration amounts to, with the defaults of what it leaves out; with
//! `--docs`, what each key means.

use std::path::Path;

use clap::Subcommand;
use serde_json::json;

use super::text::{Paint, print};
use super::{Failure, print_json};
use crate::config::effective::{Setting, apart, is_meant, settings};
use crate::config::reference::{Key, Standard, keys};

/// Columns of a line, as far as words can be broken.
const WIDTH: usize = 100;
/// Where the place of a setting stands.
const PLACE_COLUMN: usize = 60;

const EXAMPLES: &str = "\
Examples:
  postrider config show                              every setting, written or not
  postrider config show delivery.retry               of one section
  postrider config show --docs streams.*.suppress    what does it mean?";

const SHOW_EXAMPLES: &str = "\
Examples:
  postrider config show                              every setting, written or not, and where
  postrider config show delivery.retry               of one section
  postrider config show --written                    only what is not left to its default
  postrider config show --docs                       every key there is: type, default, meaning
  postrider config show --docs streams.*.suppress
  postrider config show --json | jq -r 'select(.default | not) | .key'

Secrets are shown as \"***\", or as where they come from. --docs needs no configuration.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Every setting, with where it comes from; or what the keys mean
    #[command(after_help = SHOW_EXAMPLES)]
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// Only this key, or all of this section
    #[arg(value_name = "KEY")]
    only: Option<String>,
    /// Every key there is, with its type, default and meaning
    #[arg(long)]
    docs: bool,
    /// Only what is written
    #[arg(long, conflicts_with = "docs")]
    written: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(config: &Path, args: Args) -> Result<(), Failure> {
    let ConfigCommand::Show(args) = args.command;
    let is_wanted = |key: &str| args.only.as_deref().is_none_or(|only| is_meant(key, only));
    if args.docs {
        let mut all = keys();
        all.retain(|key| is_wanted(key.path));
        return match all.is_empty() {
            true => Err(nothing(&args)),
            false => docs(&all, args.json),
        };
    }
    let unusable = |problems| Failure::usage(format!("the configuration cannot be used\n{problems}"));
    let mut all = settings(config).map_err(unusable)?;
    all.retain(|setting| is_wanted(&setting.key) && !(args.written && setting.default));
    if all.is_empty() && !keys().iter().any(|key| is_wanted(key.path)) {
        return Err(nothing(&args));
    }
    if args.json {
        return all.iter().try_for_each(print_json);
    }
    show(&all)
}

fn nothing(args: &ShowArgs) -> Failure {
    let what = args.only.as_deref().unwrap_or_default();
    Failure::usage(format!("there is no key or section {what:?}"))
        .remedy("`postrider config show --docs` has all of them")
}

/// As TOML, but for defaults that are no fixed values.
fn show(settings: &[Setting]) -> Result<(), Failure> {
    let paint = Paint::for_stdout();
    let mut section = "";
    for setting in settings {
        let (own, name) = apart(&setting.key);
        if own != section {
            section = own;
            print(&paint.bold(&format!("\n[{own}]")))?;
        }
        let line = match setting.literal {
            true => format!("{name} = {}", setting.value),
            false => format!("# {name}: {}", setting.value),
        };
        let place = match (&setting.file, setting.line) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            _ => "default".to_owned(),
        };
        let gap = PLACE_COLUMN.saturating_sub(line.chars().count()).max(2);
        let line = format!("{line}{}# {place}", " ".repeat(gap));
        print(&if setting.default { line } else { paint.green(&line) })?;
    }
    Ok(())
}

fn docs(keys: &[Key], json: bool) -> Result<(), Failure> {
    if json {
        return keys.iter().try_for_each(|key| print_json(&as_json(key)));
    }
    let paint = Paint::for_stdout();
    for key in keys {
        print(&paint.bold(key.path))?;
        let later = if key.is_supported { "" } else { "; not supported yet" };
        print(&format!("  {}; {}{later}", key.form(), standard(key)))?;
        for line in wrapped(&key.doc()) {
            print(&format!("  {line}"))?;
        }
        print("")?;
    }
    Ok(())
}

fn standard(key: &Key) -> String {
    match key.standard() {
        Standard::Required => "required".to_owned(),
        Standard::Value(value) if value.is_empty() => "none by default".to_owned(),
        Standard::Value(value) => format!("default {value}"),
        Standard::Words(words) => format!("default: {words}"),
    }
}

fn as_json(key: &Key) -> serde_json::Value {
    let (default, words) = match key.standard() {
        Standard::Required => (None, None),
        Standard::Value(value) => (Some(value), None),
        Standard::Words(words) => (None, Some(words)),
    };
    json!({
        "key": key.path,
        "type": key.form(),
        "required": key.is_required(),
        "default": default,
        "default_in_words": words,
        "example": key.said.first().map(|said| &said.value),
        "secret": key.is_secret,
        "supported": key.is_supported,
        "doc": key.doc(),
    })
}

/// Lines of words.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + word.chars().count() < WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
