//! The bytes that are stored: trace fields of ours, signatures, then the message as it came.
//!
//! The body is never touched and never copied: it is stored in slices of what was received, as far as it
//! is not stored already. Fields
//! are taken out where they lie about us or would give recipients away; missing ones are added for
//! our own senders (RFC 6409 8).

use bytes::Bytes;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;

use crate::checks::{self, Checked};
use crate::clock::{Millis, rfc5322};
use crate::message::body::{Hash, relaxed_hash};
use crate::message::header::{self, Headers};
use crate::message::{Door, Draft, MessageId, Origin, stream};
use crate::queue::CHUNK_BYTES_MAX;
use crate::queue::record::Streamed;
use crate::routing::loops::trace;
use crate::smtp::reply::Refusal;

use super::Intake;
use super::plan::Plan;
use super::rewrite::Author;
use super::seal;

/// Fields that our own senders' mail must not carry out: blind copies, and what final delivery adds.
const NEVER_SUBMITTED: [&str; 3] = ["bcc", "resent-bcc", "return-path"];

/// A message as it goes into the store.
#[derive(Debug)]
pub struct Stored {
    pub chunks: Vec<Bytes>,
    /// What was stored while it came in.
    pub streamed: Option<Streamed>,
    /// Bytes of all of it.
    pub size: u64,
    pub message_id: String,
    /// `selector._domainkey.domain` of each signature.
    pub signed: Vec<String>,
}

/// What a message is made of.
pub struct Source<'a> {
    pub draft: &'a Draft,
    pub headers: &'a Headers<'a>,
    /// Milters have changed them. Then our results are among them, and what lies about us is not.
    pub is_filtered: bool,
    pub checked: &'a Checked,
    pub plan: &'a Plan,
    pub author: &'a Author<'a>,
}

pub fn assemble(intake: &Intake, source: &Source<'_>, id: MessageId, now: Millis) -> Result<Stored, Refusal> {
    let Source { draft, headers, is_filtered, checked, plan, author } = source;
    let mut removed = if *is_filtered { Vec::new() } else { removed_fields(intake, draft, headers) };
    let mut added = Vec::new();
    if let Some(replaced) = author.replaced(headers, &intake.config.sender.reply_to) {
        added = replaced.by;
        removed.extend(replaced.fields);
    }
    let given_id = headers.get("message-id").and_then(|field| header::message_id(field.value));
    let message_id = given_id.unwrap_or_else(|| format!("{id}@{}", intake.config.hostname));
    if draft.origin.door.is_trusted() {
        add_missing(&mut added, source, &message_id, now);
    }
    let rest = rest_of(source, &removed, added);

    let (signature_fields, mut signed) = sign(intake, source, &rest)?;
    let mut top = Vec::with_capacity(1024 + rest.header.len());
    if draft.origin.door != Door::Bounce {
        top.extend_from_slice(&received(intake, draft, id, now));
    }
    // Our own mark against loops on what is forwarded. A Maildir gets it at delivery.
    if plan.passes_on(&intake.config) {
        top.extend(trace::mark(&intake.marks, plan.guarded().iter().map(|own| &own.address)));
    }
    if !checked.authentication_results.is_empty() && !is_filtered {
        top.extend_from_slice(b"Authentication-Results: ");
        top.extend_from_slice(checked.authentication_results.as_bytes());
        top.extend_from_slice(b"\r\n");
    }
    top.extend_from_slice(&signature_fields);
    top.extend_from_slice(&rest.header);
    if let Some((fields, name)) = seal(intake, source, &top, &rest, now)? {
        top.splice(..0, fields);
        signed.push(name);
    }

    let mut chunks = cut(Bytes::from(top));
    chunks.extend(cut(rest.unchanged));
    let later = draft.content.rest();
    let size = chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>() + later.map_or(0, |rest| rest.bytes);
    let streamed = later.map(|rest| Streamed { chunks: rest.chunks, ascii: rest.is_ascii });
    Ok(Stored { chunks, streamed, size, message_id, signed })
}

/// What follows our trace fields: a header section that had to be written anew (empty if nothing in
/// it changed), then bytes as they came.
struct Rest {
    header: Vec<u8>,
    unchanged: Bytes,
}

fn rest_of(source: &Source<'_>, removed: &[usize], added: Vec<u8>) -> Rest {
    let (content, headers) = (source.draft.content.head(), source.headers);
    if removed.is_empty() && added.is_empty() && headers.has_empty_line() && !source.is_filtered {
        return Rest { header: Vec::new(), unchanged: content.clone() };
    }
    let mut header = added;
    for (index, field) in headers.fields().iter().enumerate() {
        if !removed.contains(&index) {
            header.extend_from_slice(field.raw);
        }
    }
    // Where no empty line stood, other readers must not take the body for more header.
    if !header.ends_with(b"\r\n") {
        header.extend_from_slice(b"\r\n");
    }
    header.extend_from_slice(b"\r\n");
    let body_at = content.len() - headers.body().len();
    Rest { header, unchanged: content.slice(body_at..) }
}

/// Fields, by number, that are not kept.
pub fn removed_fields(intake: &Intake, draft: &Draft, headers: &Headers<'_>) -> Vec<usize> {
    // RFC 8601 5: what claims to be our own result, from wherever, is a forgery.
    let mut removed = checks::forged_results(headers, &intake.config.hostname);
    if draft.origin.door.is_trusted() {
        let never = |field: &header::Field<'_>| NEVER_SUBMITTED.iter().any(|name| field.is(name));
        removed.extend(headers.fields().iter().enumerate().filter(|(_, field)| never(field)).map(|(index, _)| index));
    }
    let ours = |field: &header::Field<'_>| field.is(stream::FIELD);
    removed.extend(headers.fields().iter().enumerate().filter(|(_, field)| ours(field)).map(|(index, _)| index));
    removed
}

/// RFC 6409 8.1 to 8.3: From, Message-ID and Date, for senders that leave them out.
fn add_missing(added: &mut Vec<u8>, source: &Source<'_>, message_id: &str, now: Millis) {
    let Source { draft, headers, author, .. } = source;
    if headers.get("from").is_none() && !author.is_replaced() {
        added.extend_from_slice(&header::field("From", &format!("<{}>", draft.envelope.mail_from)));
    }
    if headers.get("date").is_none() {
        added.extend_from_slice(&header::field("Date", &rfc5322(now)));
    }
    if headers.get("message-id").is_none() {
        added.extend_from_slice(&header::field("Message-ID", &format!("<{message_id}>")));
    }
    let addressed = ["to", "cc", "resent-to"].iter().any(|name| headers.get(name).is_some());
    if !addressed {
        added.extend_from_slice(&header::field("To", "undisclosed-recipients:;"));
    }
}

/// Both signatures, if the message is one of our own senders', says it is from a domain of ours, and
/// goes out.
fn sign(intake: &Intake, source: &Source<'_>, rest: &Rest) -> Result<(Vec<u8>, Vec<String>), Refusal> {
    let Source { draft, headers, plan, author, .. } = source;
    let may_sign = draft.origin.door.is_trusted() || author.is_replaced();
    let author = author.shown().filter(|author| intake.config.is_own(author.domain()));
    let Some(author) = author.filter(|_| may_sign && plan.leaves()) else {
        return Ok((Vec::new(), Vec::new()));
    };
    let body = relaxed_body(draft, headers);
    let rewritten = Headers::parse(&rest.header);
    let leaving = if rest.header.is_empty() { *headers } else { &rewritten };
    let signatures = beside_the_others(|| intake.signer.sign_hashed(author.domain(), leaving, body))
        .map_err(|error| Refusal::inner(format!("the message could not be signed: {error}")))?;
    let mut fields = Vec::new();
    let mut names = Vec::new();
    for signature in signatures {
        fields.extend_from_slice(&signature.field);
        names.push(signature.name);
    }
    Ok((fields, names))
}

/// The fields of an ARC set and what to tell of it, if an alias sends the message elsewhere and the chain
/// before can be gone on with. `top`: all that comes before what is unchanged.
fn seal(
    intake: &Intake,
    source: &Source<'_>,
    top: &[u8],
    rest: &Rest,
    now: Millis,
) -> Result<Option<(Vec<u8>, String)>, Refusal> {
    let Source { draft, headers, checked, plan, .. } = source;
    let (Some(instance), Some(domain)) = (checked.next_seal, plan.forwarder()) else { return Ok(None) };
    let Some(key) = intake.signer.sealing(domain) else { return Ok(None) };
    let unchanged = if rest.header.is_empty() { headers.header_bytes() } else { b"" };
    let leaving = [top, unchanged].concat();
    let sealed = || {
        let sealed = seal::Sealed {
            instance,
            headers: &Headers::parse(&leaving),
            body: relaxed_body(draft, headers),
            results: &checked.authentication_results,
            hostname: intake.config.hostname.as_str(),
            now: now / 1000,
        };
        seal::fields(&key, &sealed)
    };
    let fields = beside_the_others(sealed)
        .map_err(|error| Refusal::inner(format!("the message could not be sealed (ARC): {error}")))?;
    let name = format!("{}._domainkey.{domain} (ARC set {instance})", key.selector());
    Ok(fields.map(|fields| (fields, name)))
}

fn relaxed_body(draft: &Draft, headers: &Headers<'_>) -> Hash {
    draft.content.rest().map_or_else(|| relaxed_hash(headers.body()), |rest| rest.hashes.relaxed)
}

/// Signing takes as long as all else that a message needs: meanwhile another thread looks after the
/// sessions of this one.
fn beside_the_others<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => block_in_place(work),
        _ => work(),
    }
}

/// RFC 5321 4.4, with the protocol words of RFC 3848 and RFC 6531.
fn received(intake: &Intake, draft: &Draft, id: MessageId, now: Millis) -> Vec<u8> {
    let hostname = &intake.config.hostname;
    let from = match &draft.origin.peer {
        Some(peer) => format!("from {} ([{}]) ", word(&peer.helo), tagged(peer.ip)),
        None => String::new(),
    };
    let tls = match draft.origin.peer.as_ref().and_then(|peer| peer.tls.as_ref()) {
        Some(tls) => format!(" ({})", comment(tls)),
        None => String::new(),
    };
    let recipient = match draft.envelope.recipients.as_slice() {
        [only] => format!(" for <{}>", only.address),
        _ => String::new(),
    };
    let with = protocol(&draft.origin, draft.envelope.smtputf8);
    let user = from_file(&draft.origin.door);
    let text = format!("{from}by {hostname} (postrider{user}) with {with} id {id}{tls}{recipient}; {}", rfc5322(now));
    header::field("Received", &text)
}

/// Whose file it was. Its name would tell readers how names are given here.
fn from_file(door: &Door) -> String {
    match door {
        Door::Pickup { owner: Some(owner), .. } => format!(", from userid {owner}"),
        _ => String::new(),
    }
}

fn protocol(origin: &Origin, smtputf8: bool) -> String {
    let Some(peer) = &origin.peer else {
        return origin.door.name().to_owned();
    };
    if !peer.esmtp {
        return "SMTP".to_owned();
    }
    let secure = if peer.tls.is_some() { "S" } else { "" };
    let authenticated = if origin.account.is_some() { "A" } else { "" };
    let base = if smtputf8 { "UTF8SMTP" } else { "ESMTP" };
    format!("{base}{secure}{authenticated}")
}

fn tagged(ip: std::net::IpAddr) -> String {
    match ip {
        std::net::IpAddr::V4(v4) => v4.to_string(),
        std::net::IpAddr::V6(v6) => format!("IPv6:{v6}"),
    }
}

/// What a client called itself, as one word that cannot end a clause or open a comment.
fn word(text: &str) -> String {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    let word: String = text.chars().filter(|c| legal(*c)).take(255).collect();
    if word.is_empty() { "unknown".to_owned() } else { word }
}

fn comment(text: &str) -> String {
    text.chars().filter(|c| !matches!(c, '(' | ')' | '\\') && !c.is_control()).collect()
}

/// Into pieces that fit a record, without copying.
fn cut(mut bytes: Bytes) -> Vec<Bytes> {
    let mut pieces = Vec::with_capacity(bytes.len() / CHUNK_BYTES_MAX + 1);
    while bytes.len() > CHUNK_BYTES_MAX {
        pieces.push(bytes.split_to(CHUNK_BYTES_MAX));
    }
    if !bytes.is_empty() {
        pieces.push(bytes);
    }
    pieces
}
