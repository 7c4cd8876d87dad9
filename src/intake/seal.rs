//! ARC sets of our own (RFC 8617 5.1) on what an alias sends elsewhere: what we found when the message came,
//! signed together with the message and with all sets before it, by the domain of the alias.
//!
//! Promises: nothing of the message is changed; a chain that has ended, is broken or is in doubt gets no
//! further set, so that others may still judge it themselves.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::message::arc::{self, Set};
use crate::message::body::Hash;
use crate::message::canonical::{self, Form};
use crate::message::header::{Field, Headers};
use crate::message::tags::Tags;

use super::sign::sealing::Sealing;
use super::sign::{SignError, signed_fields};

/// Bytes of a line without its CRLF (RFC 5322 2.1.1).
const LINE_BYTES_MAX: usize = 78;
/// What a tab is taken for.
const TAB_BYTES: usize = 8;

/// What is sealed.
pub struct Sealed<'a> {
    /// The number of the set: one more than there are.
    pub instance: usize,
    /// The fields of the message as it leaves, without the new set.
    pub headers: &'a Headers<'a>,
    /// Of the body, in the relaxed form.
    pub body: Hash,
    /// The value of our Authentication-Results field; may be empty.
    pub results: &'a str,
    /// The name of this server.
    pub hostname: &'a str,
    /// Seconds since 1970.
    pub now: u64,
}

/// The three fields, to be put in front of the message; none if the sets before do not fit the number.
pub fn fields(key: &Sealing, sealed: &Sealed<'_>) -> Result<Option<Vec<u8>>, SignError> {
    let Some(before) = arc::sets(sealed.headers).ok().filter(|sets| sets.len() + 1 == sealed.instance) else {
        return Ok(None);
    };
    let results = results_field(sealed);
    let signature = signature_field(key, sealed)?;
    let seal = seal_template(key, sealed);
    let new = [&results[..], &signature, &seal].concat();
    let new = Headers::parse(&new);
    let [results_field, signature_field, seal_field] = new.fields() else { return Ok(None) };
    let Some(seal_tags) = Tags::parse(seal_field.value) else { return Ok(None) };
    let own = Set { results: *results_field, signature: *signature_field, seal: *seal_field, seal_tags };
    let mut data = Vec::with_capacity(4096);
    let sets: Vec<Set<'_>> = before.into_iter().chain([own]).collect();
    arc::write_before_seal(&sets, &mut data);
    let seal = completed(key, &seal, seal_field, data)?;
    Ok(Some([seal, signature, results].concat()))
}

fn results_field(sealed: &Sealed<'_>) -> Vec<u8> {
    let none = format!("{}; none", sealed.hostname);
    let results = if sealed.results.is_empty() { &none } else { sealed.results };
    format!("{}: i={}; {results}\r\n", arc::RESULTS, sealed.instance).into_bytes()
}

fn signature_field(key: &Sealing, sealed: &Sealed<'_>) -> Result<Vec<u8>, SignError> {
    let (names, _) = signed_fields(sealed.headers);
    // RFC 8617 4.1.2: signatures that hold now can be checked later, if they are still the same.
    let signatures = sealed.headers.all("DKIM-Signature").count();
    let names: Vec<String> =
        names.into_iter().chain(std::iter::repeat_n("DKIM-Signature".to_owned(), signatures)).collect();
    let mut field = Folded::new(arc::SIGNATURE);
    field.words(&[&format!("i={};", sealed.instance), "a=rsa-sha256;", "c=relaxed/relaxed;"]);
    field.words(&[&format!("d={};", key.domain()), &format!("s={};", key.selector()), &format!("t={};", sealed.now)]);
    for (at, name) in names.iter().enumerate() {
        let start = if at == 0 { " h=" } else { "" };
        let end = if at + 1 == names.len() { ";" } else { ":" };
        field.piece(&format!("{start}{name}{end}"));
    }
    field.words(&[&format!("bh={};", BASE64.encode(sealed.body))]);
    let template = field.finish();
    let mut data = Vec::with_capacity(4096);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for field in canonical::meant(sealed.headers, &names) {
        canonical::write(Form::Relaxed, field, &mut data);
    }
    let headers = Headers::parse(&template);
    match headers.fields() {
        [field] => completed(key, &template, field, data),
        _ => Err(SignError::Failed(arc::SIGNATURE.to_owned())),
    }
}

fn seal_template(key: &Sealing, sealed: &Sealed<'_>) -> Vec<u8> {
    let cv = if sealed.instance == 1 { "cv=none;" } else { "cv=pass;" };
    let mut field = Folded::new(arc::SEAL);
    field.words(&[&format!("i={};", sealed.instance), "a=rsa-sha256;", cv]);
    field.words(&[&format!("d={};", key.domain()), &format!("s={};", key.selector()), &format!("t={};", sealed.now)]);
    field.finish()
}

/// Signs the data and the field itself, whose b= is empty and comes last, and puts the signature there.
fn completed(key: &Sealing, template: &[u8], field: &Field<'_>, mut data: Vec<u8>) -> Result<Vec<u8>, SignError> {
    let tags = Tags::parse(field.value).ok_or_else(|| SignError::Failed(String::from_utf8_lossy(field.name).into()))?;
    canonical::write_unsigned(Form::Relaxed, field, &tags, &mut data);
    let signature = BASE64.encode(key.sign(&data)?);
    let mut whole = template.strip_suffix(b"\r\n").unwrap_or(template).to_vec();
    for (at, line) in signature.as_bytes().chunks(LINE_BYTES_MAX - TAB_BYTES - 2).enumerate() {
        whole.extend_from_slice(if at == 0 { b"" } else { b"\r\n\t" });
        whole.extend_from_slice(line);
    }
    whole.extend_from_slice(b"\r\n");
    Ok(whole)
}

/// A field that grows, folded in time.
struct Folded {
    text: String,
    column: usize,
}

impl Folded {
    fn new(name: &str) -> Folded {
        Folded { text: format!("{name}:"), column: name.len() + 1 }
    }

    /// Each with a blank before it.
    fn words(&mut self, words: &[&str]) {
        words.iter().for_each(|word| self.piece(&format!(" {word}")));
    }

    fn piece(&mut self, piece: &str) {
        let wide = self.column + piece.len() > LINE_BYTES_MAX;
        let piece = if wide { piece.trim_start() } else { piece };
        if wide {
            self.text.push_str("\r\n\t");
            self.column = TAB_BYTES;
        }
        self.text.push_str(piece);
        self.column += piece.len();
    }

    /// With an empty b= on a line of its own.
    fn finish(self) -> Vec<u8> {
        (self.text + "\r\n\tb=\r\n").into_bytes()
    }
}
