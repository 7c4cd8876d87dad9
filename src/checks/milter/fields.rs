//! The header section as milters see and change it.
//!
//! Fields that a milter leaves alone stay as they came, byte for byte. Promises: what it writes is exactly one field
//! with a legal name, whatever the value holds: line ends only where the field is folded, no other
//! control characters, no line over 998 bytes; and the section stays within what we take from others.

use std::borrow::Cow;

use crate::message::header::{FIELDS_MAX, Field as Received, HEADER_BYTES_MAX, HeaderError};

/// Bytes of the name of a field that a milter writes; with its colon it leaves room for a value in the line.
const NAME_BYTES_MAX: usize = 200;
/// Bytes of a line without its CRLF (RFC 5322 2.1.1).
const LINE_BYTES_MAX: usize = 998;

/// A change that a milter asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Behind all others.
    Add { name: Vec<u8>, value: Vec<u8> },
    /// Before the field with this number. 0 is before the Received field that its server puts on top, which
    /// milters do not see, and 1 behind it. Ours stays on top, so both are the same.
    Insert { index: u32, name: Vec<u8>, value: Vec<u8> },
    /// The field with this number, from 1, among those of this name. An empty value takes it away.
    Replace { index: u32, name: Vec<u8>, value: Vec<u8> },
}

/// Why a change cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("it names a field in a way that is none")]
    BadName,
    #[error("with its changes {0}")]
    TooMuch(HeaderError),
}

#[derive(Clone, Debug)]
pub struct Field<'a> {
    /// With its CRLF.
    raw: Cow<'a, [u8]>,
    name_len: usize,
    /// Behind the colon.
    value_at: usize,
}

impl<'a> Field<'a> {
    fn received(field: &Received<'a>) -> Field<'a> {
        let raw = match field.raw.ends_with(b"\r\n") {
            true => Cow::Borrowed(field.raw),
            false => Cow::Owned([field.raw, b"\r\n"].concat()),
        };
        let value_at = field.raw.iter().position(|byte| *byte == b':').map_or(0, |colon| colon + 1);
        Field { raw, name_len: field.name.len(), value_at }
    }

    /// `verbatim`: the value brings the blank before it along.
    fn new(name: &[u8], value: &[u8], verbatim: bool) -> Result<Field<'a>, FieldError> {
        let legal = |byte: &u8| matches!(byte, 33..=57 | 59..=126);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.iter().all(legal) {
            return Err(FieldError::BadName);
        }
        let mut raw = name.to_vec();
        raw.push(b':');
        let value_at = raw.len();
        if !verbatim && !value.is_empty() {
            raw.push(b' ');
        }
        fold(&mut raw, value);
        Ok(Field { raw: raw.into(), name_len: name.len(), value_at })
    }

    pub fn name(&self) -> &[u8] {
        self.raw.get(..self.name_len).unwrap_or_default()
    }

    /// As the protocol has it: lines end with LF.
    pub fn value(&self, verbatim: bool) -> Vec<u8> {
        let value = self.raw.get(self.value_at..).unwrap_or_default();
        let value = value.strip_suffix(b"\r\n").unwrap_or(value);
        let blanks = value.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
        let value = value.get(if verbatim { 0 } else { blanks }..).unwrap_or_default();
        // What we take has a CR only before an LF.
        value.iter().copied().filter(|byte| *byte != b'\r').collect()
    }
}

/// Appends a value, folded where it is, and where a line would be too long.
fn fold(raw: &mut Vec<u8>, value: &[u8]) {
    let plain = |byte: &u8| if byte.is_ascii_control() && *byte != b'\t' { b' ' } else { *byte };
    let mut column = raw.len();
    for (number, line) in value.split(|byte| *byte == b'\n').enumerate() {
        let line: Vec<u8> = line.strip_suffix(b"\r").unwrap_or(line).iter().map(plain).collect();
        if number > 0 {
            // A line of blanks only could be taken for the end of the section.
            if line.iter().all(is_blank) {
                continue;
            }
            raw.extend_from_slice(b"\r\n");
            column = 0;
            // Without a blank it would be a field of its own.
            if !line.first().is_some_and(is_blank) {
                raw.push(b'\t');
                column = 1;
            }
        }
        put(raw, column, &line);
    }
    raw.extend_from_slice(b"\r\n");
}

/// Appends a line of a value without its end, from this column on, in several where it is too long.
fn put(raw: &mut Vec<u8>, mut column: usize, line: &[u8]) {
    let mut rest = line;
    while column + rest.len() > LINE_BYTES_MAX {
        let window = rest.get(..LINE_BYTES_MAX.saturating_sub(column)).unwrap_or(rest);
        let blank = window.iter().rposition(is_blank).filter(|at| *at > 0);
        let (now, later) = rest.split_at(blank.unwrap_or(window.len()));
        rest = later.trim_ascii_end();
        if now.iter().all(is_blank) {
            continue;
        }
        raw.extend_from_slice(now);
        if rest.is_empty() {
            return;
        }
        raw.extend_from_slice(if blank.is_some() { b"\r\n" } else { b"\r\n\t" });
        column = usize::from(blank.is_none());
    }
    raw.extend_from_slice(rest);
}

fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The fields in their order.
#[derive(Clone, Debug, Default)]
pub struct Fields<'a> {
    list: Vec<Field<'a>>,
    changed: bool,
}

impl<'a> Fields<'a> {
    /// `ours`: what we write above those received, without name and final CRLF, under this name.
    pub fn new(ours: Option<(&str, &str)>, received: impl IntoIterator<Item = &'a Received<'a>>) -> Fields<'a> {
        // What we write is well folded; a name of ours is legal.
        let ours = ours.and_then(|(name, value)| Field::new(name.as_bytes(), value.as_bytes(), false).ok());
        let received = received.into_iter().map(Field::received);
        Fields { list: ours.into_iter().chain(received).collect(), changed: false }
    }

    pub fn list(&self) -> &[Field<'a>] {
        &self.list
    }

    /// `verbatim`: values bring the blanks before them along.
    pub fn apply(&mut self, change: &Change, verbatim: bool) -> Result<(), FieldError> {
        match change {
            Change::Add { name, value } => self.list.push(Field::new(name, value, verbatim)?),
            Change::Insert { index, name, value } => {
                let at = usize::try_from(index.saturating_sub(1)).unwrap_or(usize::MAX).min(self.list.len());
                self.list.insert(at, Field::new(name, value, verbatim)?);
            }
            Change::Replace { index, name, value } => {
                let same = self.list.iter().enumerate().filter(|(_, field)| field.name().eq_ignore_ascii_case(name));
                let nth = usize::try_from(index.saturating_sub(1)).unwrap_or(usize::MAX);
                let at = same.map(|(at, _)| at).nth(nth);
                let written = Field::new(name, value, verbatim)?;
                match at.and_then(|at| self.list.get_mut(at).map(|field| (at, field))) {
                    Some((at, _)) if value.is_empty() => drop(self.list.remove(at)),
                    Some((_, field)) => *field = written,
                    None if value.is_empty() => return Ok(()),
                    // As Sendmail does it.
                    None => self.list.push(written),
                }
            }
        }
        self.changed = true;
        self.within_limits().map_err(FieldError::TooMuch)
    }

    fn within_limits(&self) -> Result<(), HeaderError> {
        if self.list.len() > FIELDS_MAX {
            return Err(HeaderError::TooManyFields);
        }
        let bytes: usize = self.list.iter().map(|field| field.raw.len()).sum();
        if bytes > HEADER_BYTES_MAX { Err(HeaderError::TooLong) } else { Ok(()) }
    }

    /// The section without its empty line, if anything in it was changed.
    pub fn changed(&self) -> Option<Vec<u8>> {
        self.changed.then(|| self.list.iter().flat_map(|field| field.raw.iter().copied()).collect())
    }
}
