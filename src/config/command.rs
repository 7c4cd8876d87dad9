//! The command of a pipe target: an array of arguments with placeholders, such as
//! `["/usr/local/bin/on-mail", "--to", "{recipient}"]`. Pure.
//!
//! Promises: no shell has a part in it; there are as many arguments as were written, whatever the values
//! hold; the program is the one that was written; and no value becomes an option: where an argument begins
//! with a placeholder, a value that begins with a hyphen is refused, unless `--` was written before.

use std::path::{Path, PathBuf};

use super::nearest::nearest;
use super::section::{Item, Wrong, one_of};

/// Arguments of one command, the program among them.
const ARGUMENTS_MAX: usize = 64;
/// Bytes of one argument as it is written.
const ARGUMENT_BYTES_MAX: usize = 4096;

const FORM: &str = "a list of strings such as [\"/usr/local/bin/on-mail\", \"--to\", \"{recipient}\"]";

/// Begins the placeholder of a named group of the pattern that took the address.
const GROUP: &str = "group.";

/// What can be filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    Id,
    /// Of the envelope; empty for the null sender.
    Sender,
    /// The address it came in for.
    Recipient,
    Local,
    Domain,
    /// The address that was written in RCPT.
    Alias,
    /// What the group of this name has found in it; empty where no pattern took it, or that has no such group.
    Group(String),
}

impl Word {
    /// Those that there are always.
    pub const ALL: [(&'static str, Word); 6] = [
        ("id", Word::Id),
        ("sender", Word::Sender),
        ("recipient", Word::Recipient),
        ("local", Word::Local),
        ("domain", Word::Domain),
        ("alias", Word::Alias),
    ];

    pub fn name(&self) -> String {
        match self {
            Word::Group(name) => format!("{GROUP}{name}"),
            _ => Word::ALL.iter().find(|(_, word)| word == self).map_or("", |(name, _)| name).to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Word),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Argument {
    parts: Vec<Part>,
    /// It comes after `--`.
    is_plain: bool,
}

/// A command, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipeCommand {
    program: PathBuf,
    arguments: Vec<Argument>,
}

/// A value would have become an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LooksLikeOption(pub Word);

impl PipeCommand {
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The arguments behind the program.
    pub fn arguments(&self, value: impl Fn(&Word) -> String) -> Result<Vec<String>, LooksLikeOption> {
        self.arguments.iter().map(|argument| fill(argument, &value)).collect()
    }

    pub(super) fn read(item: &Item<'_>) -> Option<PipeCommand> {
        let words = item.list(FORM, |text| Ok(text.to_owned()))?;
        match PipeCommand::parse(&words) {
            Ok(command) => Some(command),
            Err(wrong) => {
                item.wrong(wrong);
                None
            }
        }
    }

    fn parse(words: &[String]) -> Result<PipeCommand, Wrong> {
        let remedy = format!("Write it as {FORM}.");
        let Some((program, rest)) = words.split_first() else {
            return Err(Wrong::value("the list is empty", remedy));
        };
        if !program.starts_with('/') || program.contains(['{', '\0']) {
            let what = format!("{program:?} is not the whole path of a program");
            return Err(Wrong::value(what, "Write the path from / on, without placeholders; no shell looks for it."));
        }
        if words.len() > ARGUMENTS_MAX || words.iter().any(|word| word.len() > ARGUMENT_BYTES_MAX) {
            let what = format!("more than {ARGUMENTS_MAX} arguments, or one of more than {ARGUMENT_BYTES_MAX} bytes");
            return Err(Wrong::value(what, "Put what is fixed into a script."));
        }
        let end = rest.iter().position(|word| word == "--").unwrap_or(rest.len());
        let argument = |(at, word): (usize, &String)| Ok(Argument { parts: parts(word)?, is_plain: at > end });
        let arguments = rest.iter().enumerate().map(argument).collect::<Result<_, Wrong>>()?;
        Ok(PipeCommand { program: program.into(), arguments })
    }
}

/// `{{` stands for a brace.
fn parts(written: &str) -> Result<Vec<Part>, Wrong> {
    let mut parts: Vec<Part> = Vec::new();
    let mut text = String::new();
    let mut rest = written;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix('{') {
            text.push('{');
            rest = after;
            continue;
        }
        let Some((word, tail)) = after.split_once('}') else {
            return Err(Wrong::value(format!("{written:?} has a {{ without a }}"), "Write {{ for a brace."));
        };
        if !text.is_empty() {
            parts.push(Part::Text(std::mem::take(&mut text)));
        }
        parts.push(Part::Value(word_of(word)?));
        rest = tail;
    }
    text.push_str(rest);
    if text.contains('\0') {
        return Err(Wrong::value(format!("{written:?} has a NUL in it"), "Take it out."));
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

fn word_of(text: &str) -> Result<Word, Wrong> {
    if let Some(name) = text.strip_prefix(GROUP).filter(|name| !name.is_empty()) {
        return Ok(Word::Group(name.to_owned()));
    }
    let found = Word::ALL.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, word)| word).ok_or_else(|| {
        let names = Word::ALL.map(|(name, _)| name);
        let form = format!(
            "Use {} or group.NAME for a named group of a pattern, each in braces, or write {{{{ for a brace.",
            one_of(&names)
        );
        let guess = nearest(text, names).map_or(String::new(), |guess| format!(" Did you mean {{{guess}}}?"));
        Wrong::value(format!("{{{text}}} is not a placeholder"), format!("{form}{guess}"))
    })
}

fn fill(argument: &Argument, value: &impl Fn(&Word) -> String) -> Result<String, LooksLikeOption> {
    let mut filled = String::new();
    for part in &argument.parts {
        match part {
            Part::Text(text) => filled.push_str(text),
            Part::Value(word) => {
                let value = value(word);
                // What was written before decides what the argument is.
                if filled.is_empty() && value.starts_with('-') && !argument.is_plain {
                    return Err(LooksLikeOption(word.clone()));
                }
                filled.extend(value.chars().map(|c| if c.is_control() { '_' } else { c }));
            }
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn command(words: &[&str]) -> Result<PipeCommand, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        PipeCommand::parse(&words).map_err(|wrong| wrong.what)
    }

    fn filled(words: &[&str], value: &str) -> Result<Vec<String>, LooksLikeOption> {
        command(words).unwrap().arguments(|_| value.to_owned())
    }

    #[test]
    fn values_stay_in_their_arguments() {
        let words = ["/bin/x", "--to={recipient}", "{sender}/{id}", "{{a}", "{alias}"];
        let made = filled(&words, "$(id) \"; rm\t'").unwrap();
        let value = "$(id) \"; rm_'";
        assert_eq!(made, [format!("--to={value}"), format!("{value}/{value}"), "{a}".to_owned(), value.to_owned()]);
        assert_eq!(filled(&["/bin/x", "{sender}"], "").unwrap(), [""], "an empty value is an argument all the same");
    }

    #[test]
    fn no_value_becomes_an_option() {
        assert_eq!(filled(&["/bin/x", "--to", "{recipient}"], "-oQ/tmp"), Err(LooksLikeOption(Word::Recipient)));
        assert_eq!(filled(&["/bin/x", "{local}@{domain}"], "-x"), Err(LooksLikeOption(Word::Local)));
        assert_eq!(filled(&["/bin/x", "--to={recipient}"], "-x").unwrap(), ["--to=-x"]);
        assert_eq!(filled(&["/bin/x", "-f", "--", "{sender}"], "-x").unwrap(), ["-f", "--", "-x"]);
        // Nothing in front of it but what was empty.
        let two = command(&["/bin/x", "{sender}{id}"]).unwrap();
        let value = |word: &Word| if *word == Word::Id { "-x".to_owned() } else { String::new() };
        assert_eq!(two.arguments(value), Err(LooksLikeOption(Word::Id)));
    }

    #[test]
    fn a_group_is_filled_in_as_any_other_value() {
        let group = || Word::Group("id".to_owned());
        let command = command(&["/bin/x", "--ticket={group.id}", "{group.id}"]).unwrap();
        let value = |found: &'static str| {
            move |word: &Word| if *word == group() { found.to_owned() } else { unreachable!("{word:?}") }
        };
        assert_eq!(command.arguments(value("42")).unwrap(), ["--ticket=42", "42"]);
        assert_eq!(command.arguments(value("")).unwrap(), ["--ticket=", ""]);
        assert_eq!(command.arguments(value("-x")), Err(LooksLikeOption(group())));
        assert_eq!(group().name(), "group.id");
    }

    #[test]
    fn mistakes_are_found() {
        for (words, what) in [
            (&[] as &[&str], "empty"),
            (&["on-mail"], "whole path"),
            (&["/bin/{id}"], "whole path"),
            (&["/bin/x", "{recipent}"], "{recipent} is not a placeholder"),
            (&["/bin/x", "{group.}"], "{group.} is not a placeholder"),
            (&["/bin/x", "{id"], "without a }"),
            (&["/bin/x", "a\0b"], "NUL"),
            (&["/bin/x"; 65], "more than 64 arguments"),
        ] {
            let wrong = command(words).unwrap_err();
            assert!(wrong.contains(what), "{words:?}: {wrong}");
        }
    }
}
