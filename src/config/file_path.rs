//! Paths with placeholders, such as `/var/spool/mail-out/{date}/{id}.eml`. Pure.
//!
//! Promises: whatever the values hold, the path made of them lies under the part that has no
//! placeholder, has as many components as were written, and none of them is longer than
//! [`NAME_BYTES_MAX`] (unless it was written so, without a placeholder). `{id}` is never cut and has to
//! be there, so two messages never get the same path, unless whoever writes sees to that. Left out: functions,
//! fields of the header, counters.

use std::path::{Path, PathBuf};

use super::nearest::nearest;
use super::section::{Wrong, one_of};

/// Bytes of a component in which something was filled in. File systems take 255; the name under
/// which a file is written first is longer by a few.
pub const NAME_BYTES_MAX: usize = 180;
/// Bytes of what is never cut in one component: what was written, `{id}`, `{date}` and `{time}`.
const FIXED_BYTES_MAX: usize = 120;
/// Bytes of the whole, as written.
const TEXT_BYTES_MAX: usize = 1000;
const COMPONENTS_MAX: usize = 16;
/// Placeholders in one component.
const PLACEHOLDERS_MAX: usize = 6;
/// Between queue id and number of the recipient. It is in no other value, so that none looks like a number.
pub const NUMBER_MARK: char = '~';
/// What stands for a value that is empty.
const NOTHING: &str = "_";
/// Names that are devices on the systems to which such files are often copied.
const DEVICES: [&str; 4] = ["CON", "PRN", "AUX", "NUL"];
const NUMBERED_DEVICES: [&str; 2] = ["COM", "LPT"];

const REMEDY: &str = "Write the whole path, such as \"/var/spool/mail-out/{date}/{id}.eml\".";

/// What can be filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// The day it came in, UTC: `2026-11-21`.
    Date,
    /// The time it came in, UTC: `22-26-57`.
    Time,
    /// The queue id; from the second recipient on with its number behind [`NUMBER_MARK`].
    Id,
    MessageId,
    Account,
    Stream,
    Sender,
    Recipient,
    RecipientDomain,
    Subject,
}

impl Placeholder {
    pub const ALL: [(&'static str, Placeholder); 10] = [
        ("date", Placeholder::Date),
        ("time", Placeholder::Time),
        ("id", Placeholder::Id),
        ("message_id", Placeholder::MessageId),
        ("account", Placeholder::Account),
        ("stream", Placeholder::Stream),
        ("sender", Placeholder::Sender),
        ("recipient", Placeholder::Recipient),
        ("recipient_domain", Placeholder::RecipientDomain),
        ("subject", Placeholder::Subject),
    ];

    /// Most bytes of a value that is never cut: those that tell files apart.
    fn fixed_bytes(self) -> Option<usize> {
        match self {
            Placeholder::Date => Some(10),
            Placeholder::Time => Some(8),
            // 13 letters, the mark and a number of 32 bits.
            Placeholder::Id => Some(24),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Placeholder),
}

/// A path with placeholders, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePath {
    /// What comes before the first placeholder. Absolute.
    root: PathBuf,
    /// What comes behind it.
    components: Vec<Vec<Part>>,
}

impl FilePath {
    /// Every path made lies under it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path for these values.
    pub fn fill(&self, value: impl Fn(Placeholder) -> String) -> PathBuf {
        let mut path = self.root.clone();
        for component in &self.components {
            path.push(name(component, &value));
        }
        path
    }

    pub(super) fn parse(text: &str) -> Result<FilePath, Wrong> {
        let path = FilePath::read(text)?;
        if !path.components.iter().flatten().any(|part| *part == Part::Value(Placeholder::Id)) {
            let what = format!("{text:?} does not have {{id}}, so one message would replace another");
            return Err(Wrong::value(what, REMEDY));
        }
        Ok(path)
    }

    /// For one who gives a name that is taken a number, so that `{id}` may be missing.
    pub(super) fn parse_numbered(text: &str) -> Result<FilePath, Wrong> {
        let path = FilePath::read(text)?;
        if path.components.is_empty() {
            return Err(Wrong::value(format!("{text:?} has no placeholder, so all would get one name"), REMEDY));
        }
        Ok(path)
    }

    fn read(text: &str) -> Result<FilePath, Wrong> {
        let wrong = |what: String| Wrong::value(what, REMEDY);
        let plain = text.starts_with('/') && !text.chars().any(char::is_control);
        if !plain || text.len() > TEXT_BYTES_MAX {
            return Err(wrong(format!("{text:?} is not an absolute path of at most {TEXT_BYTES_MAX} bytes")));
        }
        let names: Vec<&str> = text.split('/').skip(1).collect();
        if names.iter().any(|name| matches!(*name, "" | "." | "..")) {
            return Err(wrong(format!("{text:?} has a part that is empty, \".\" or \"..\"")));
        }
        let parsed: Vec<Vec<Part>> = names.iter().map(|name| parts(name)).collect::<Result<_, _>>()?;
        let is_fixed = |parts: &Vec<Part>| parts.iter().all(|part| matches!(part, Part::Text(_)));
        let fixed = parsed.iter().take_while(|parts| is_fixed(parts)).count();
        let root = names.iter().take(fixed).fold(PathBuf::from("/"), |root, name| root.join(name));
        let components: Vec<Vec<Part>> = parsed.into_iter().skip(fixed).collect();
        if fixed == 0 {
            return Err(wrong(format!("{text:?} needs a folder before the first placeholder")));
        }
        if components.len() > COMPONENTS_MAX {
            return Err(wrong(format!("{text:?} has more than {COMPONENTS_MAX} parts from the first placeholder on")));
        }
        Ok(FilePath { root, components })
    }
}

/// The parts of a component as it was written.
fn parts(written: &str) -> Result<Vec<Part>, Wrong> {
    let mut parts = Vec::new();
    let mut rest = written;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((word, tail)) = after.split_once('}') else {
            return Err(Wrong::value(format!("{written:?} has a {{ without a }}"), REMEDY));
        };
        if !before.is_empty() {
            parts.push(Part::Text(before.to_owned()));
        }
        parts.push(Part::Value(placeholder(word)?));
        rest = tail;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    let placeholders = parts.iter().filter(|part| matches!(part, Part::Value(_))).count();
    let touching = |pair: &[Part]| matches!(pair, [Part::Value(Placeholder::Id), Part::Value(_)]);
    if parts.windows(2).any(touching) {
        let what = format!("{written:?} has another placeholder right behind {{id}}");
        return Err(Wrong::value(what, "Write something in between, such as a hyphen."));
    }
    let too_long = placeholders > 0 && parts.iter().map(fixed_bytes).sum::<usize>() > FIXED_BYTES_MAX;
    if too_long || placeholders > PLACEHOLDERS_MAX {
        let what =
            format!("{written:?} is too long for the name of a file or has more than {PLACEHOLDERS_MAX} placeholders");
        return Err(Wrong::value(what, "Make it shorter, or put a / in between."));
    }
    Ok(parts)
}

fn fixed_bytes(part: &Part) -> usize {
    match part {
        Part::Text(text) => text.len(),
        Part::Value(placeholder) => placeholder.fixed_bytes().unwrap_or(0),
    }
}

fn placeholder(word: &str) -> Result<Placeholder, Wrong> {
    let found = Placeholder::ALL.iter().find(|(name, _)| *name == word);
    found.map(|(_, placeholder)| *placeholder).ok_or_else(|| {
        let names = Placeholder::ALL.map(|(name, _)| name);
        let form = format!("Use {}, each in braces.", one_of(&names));
        let guess = nearest(word, names).map_or(String::new(), |guess| format!(" Did you mean {{{guess}}}?"));
        Wrong::value(format!("{{{word}}} is not a placeholder"), format!("{form}{guess}"))
    })
}

/// One component, filled in.
fn name(parts: &[Part], value: &impl Fn(Placeholder) -> String) -> String {
    let is_open = |part: &&Part| matches!(part, Part::Value(placeholder) if placeholder.fixed_bytes().is_none());
    let open = parts.iter().filter(is_open).count().max(1);
    let fixed: usize = parts.iter().map(fixed_bytes).sum();
    // One byte is for the mark in front of what would be a device.
    let each = NAME_BYTES_MAX.saturating_sub(fixed + 1) / open;
    let mut name = String::new();
    for part in parts {
        match part {
            Part::Text(text) => name.push_str(text),
            Part::Value(placeholder) => {
                let value = value(*placeholder);
                // Ours, and never cut.
                let is_fixed = placeholder.fixed_bytes().is_some();
                name.push_str(&if is_fixed { value } else { clean(&value, each) });
            }
        }
    }
    let name = name.trim_start_matches('.').trim_end_matches(['.', ' ']);
    if name.is_empty() {
        return NOTHING.to_owned();
    }
    if is_device(name) { format!("{NOTHING}{name}") } else { name.to_owned() }
}

/// A value without what a file system, a shell or a reader could take for something else, and of at
/// most so many bytes.
fn clean(value: &str, bytes_max: usize) -> String {
    let mut clean = String::new();
    for c in value.trim().chars() {
        let c = if is_harmless(c) { c } else { '_' };
        if clean.len() + c.len_utf8() > bytes_max {
            break;
        }
        clean.push(c);
    }
    if clean.is_empty() { NOTHING.to_owned() } else { clean }
}

fn is_harmless(c: char) -> bool {
    // Line and paragraph separators, and what turns the direction of text or is not seen at all.
    let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !hidden && !matches!(c, NUMBER_MARK | '/' | '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|')
}

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default().trim_end().to_ascii_uppercase();
    let numbered = |device: &&str| {
        stem.strip_prefix(*device).is_some_and(|rest| rest.len() == 1 && rest.bytes().all(|b| b.is_ascii_digit()))
    };
    DEVICES.contains(&stem.as_str()) || NUMBERED_DEVICES.iter().any(numbered)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> FilePath {
        FilePath::parse(text).map_err(|wrong| wrong.what).unwrap()
    }

    fn filled(text: &str, other: &str) -> String {
        let value = |placeholder: Placeholder| match placeholder {
            Placeholder::Date => "2026-11-21".to_owned(),
            Placeholder::Time => "22-26-57".to_owned(),
            Placeholder::Id => "0123456789abc~4294967295".to_owned(),
            _ => other.to_owned(),
        };
        path(text).fill(value).to_str().unwrap().to_owned()
    }

    #[test]
    fn values_are_filled_in_and_made_harmless() {
        let mail = "/var/spool/mail-out/{date}/{id}.eml";
        assert_eq!(filled(mail, ""), "/var/spool/mail-out/2026-11-21/0123456789abc~4294967295.eml");
        assert_eq!(path(mail).root(), Path::new("/var/spool/mail-out"));
        for (value, made) in [
            ("shop", "shop"),
            ("", "_"),
            (" . ", "_"),
            ("..", "_"),
            ("../../etc/passwd", "_.._etc_passwd"),
            ("a/b\\c:d*e?f\"g<h>i|j\0k\nl", "a_b_c_d_e_f_g_h_i_j_k_l"),
            (".hidden. . ", "hidden"),
            ("con.txt", "_con.txt"),
            ("LPT1", "_LPT1"),
            ("lpt12", "lpt12"),
            ("a~1", "a_1"),
            ("Grüße \u{202e}gpj", "Grüße _gpj"),
        ] {
            assert_eq!(filled("/a/{subject}/{id}", value), format!("/a/{made}/0123456789abc~4294967295"), "{value:?}");
        }
    }

    #[test]
    fn what_is_long_is_cut_and_the_id_stays() {
        let made = filled("/a/{account}-{subject}-{id}.eml", &"ü".repeat(500));
        let name = made.strip_prefix("/a/").unwrap();
        assert!(name.len() <= NAME_BYTES_MAX && name.len() > NAME_BYTES_MAX - 6, "{}", name.len());
        assert!(name.ends_with("-0123456789abc~4294967295.eml"), "{name}");
    }

    #[test]
    fn mistakes_are_found() {
        let wrong = |text: &str| FilePath::parse(text).map_err(|wrong| wrong.what).unwrap_err();
        for (text, what) in [
            ("var/{id}", "not an absolute path"),
            ("", "not an absolute path"),
            ("/var/\n{id}", "not an absolute path"),
            ("/var/../{id}", "\"..\""),
            ("/var//{id}", "empty"),
            ("/var/{id}/", "empty"),
            ("/{id}", "needs a folder"),
            ("/var/{date}.eml", "does not have {id}"),
            ("/var/{di}", "{di} is not a placeholder"),
            ("/var/{id", "without a }"),
            ("/var/{id}-{id}-{id}-{id}-{id}-{id}", "too long"),
            ("/var/{id}{subject}", "right behind"),
        ] {
            assert!(wrong(text).contains(what), "{text}: {}", wrong(text));
        }
        let guess = FilePath::parse("/var/{subjekt}-{id}").map_err(|wrong| wrong.remedy).unwrap_err();
        assert!(guess.ends_with("Did you mean {subject}?"), "{guess}");
    }

    proptest! {
        #[test]
        fn no_value_leads_out_of_the_fixed_part(
            value in "(\\PC|[./\\\\ \0\n:]|\\.\\./|CON|\u{202e}){0,400}",
            text in "(x|\\{subject\\}|\\{sender\\}|\\.|\\{id\\}){1,3}(/(x|\\{recipient\\}|\\{account\\}|\\.\\.y| ){1,4}){0,4}",
        ) {
            let text = format!("/fixed/part/{{id}}/{text}");
            if let Ok(template) = FilePath::parse(&text) {
                let made = template.fill(|placeholder| match placeholder {
                    Placeholder::Id => "0123456789abc".to_owned(),
                    _ => value.clone(),
                });
                let made = made.to_str().unwrap();
                let names: Vec<&str> = made.strip_prefix("/fixed/part/0123456789abc/").unwrap().split('/').collect();
                prop_assert_eq!(names.len(), text.split('/').count() - 4, "{}", made);
                for name in names {
                    prop_assert!(!matches!(name, "" | "." | "..") && name.len() <= NAME_BYTES_MAX, "{made}");
                    prop_assert!(!name.contains('\0') && !name.chars().any(char::is_control), "{made}");
                }
            }
        }
    }
}
