//! Framing, commands and replies.

use super::{cut, is_stray, reads};
use crate::delivery::smtp::replies::ReplyReader;
use crate::message::address::{parse_forward_path, parse_reverse_path};
use crate::message::{Address, Domain};
use crate::server::sasl::{Exchange, Mechanism, Turn};
use crate::smtp::command::Command;
use crate::smtp::wire::{ChunkDecoder, DataDecoder, DotStuffer, Flaw, LINE_END_BYTES, LineCutter, Progress};

const LIMIT: u64 = 4096;

fn own() -> Domain {
    Domain::parse("own.test").unwrap()
}

fn check_address(address: &Address) {
    let text = address.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?}");
    assert_eq!(Address::parse(&text).as_ref(), Ok(address), "{text:?} is read otherwise than it was written");
    assert_eq!(address.lookup_key(), Address::parse(&text).unwrap().lookup_key());
}

/// A line of a client.
pub fn command(line: &[u8]) {
    match Command::parse(line, &own()) {
        Ok(Command::Mail { from, params }) => {
            from.address().into_iter().for_each(check_address);
            assert!(params.dsn.envid.is_none_or(|envid| !envid.chars().any(char::is_control)));
        }
        Ok(Command::Rcpt { to, params, utf8 }) => {
            check_address(&to);
            assert!(!utf8 || !line.is_ascii());
            assert!(params.original.is_none_or(|original| !original.address.chars().any(char::is_control)));
        }
        Ok(_) => {}
        Err(error) => assert!(matches!(error.reply().code, 500..=599)),
    }
}

/// What DATA brings: judged by a decoder that is too simple to be wrong, and written again as it was.
pub fn data(input: &[u8]) {
    let (pieces, whole) = reads(input);
    let read = decode(std::iter::once(whole));
    assert_eq!(read, decode(pieces), "what comes depends on how it was cut");
    let Some((content, flaw, used)) = read else {
        assert!(!ends(whole), "the end was not seen");
        return;
    };
    let simple = simple_end(whole).expect("an end where there is none");
    assert_eq!(used, simple, "the end is elsewhere");
    let framed = &whole[..simple - b".\r\n".len()];
    if is_stray(framed) {
        assert!(matches!(flaw, Some(Flaw::BareLineEnd | Flaw::Nul)), "{flaw:?}");
    } else if content.len() as u64 <= LIMIT && flaw.is_none() {
        let mut wire = Vec::new();
        let mut stuffer = DotStuffer::new();
        stuffer.encode(&content, &mut wire).unwrap();
        stuffer.finish(&mut wire).unwrap();
        assert_eq!(decode(std::iter::once(&wire[..])), Some((content, None, wire.len())));
    }
}

/// What was kept, what is wrong with it, and how many octets it took; none without an end.
fn decode<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<(Vec<u8>, Option<Flaw>, usize)> {
    let (mut decoder, mut content, mut used) = (DataDecoder::new(LIMIT), Vec::new(), 0);
    for piece in pieces {
        let fed = decoder.feed(piece, &mut content);
        used += fed.consumed;
        if fed.progress == Progress::Ended {
            let kept = if decoder.flaw().is_some() { Vec::new() } else { content };
            return Some((kept, decoder.flaw(), used));
        }
        assert_eq!(fed.consumed, piece.len());
    }
    None
}

/// Behind the CRLF.CRLF that ends it, or the .CRLF that it begins with.
fn simple_end(input: &[u8]) -> Option<usize> {
    if input.starts_with(b".\r\n") {
        return Some(3);
    }
    input.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 5)
}

fn ends(input: &[u8]) -> bool {
    simple_end(input).is_some()
}

/// What BDAT brings, in two chunks.
pub fn chunks(input: &[u8]) {
    let (first, second) = cut(input);
    let read = |pieces: &[&[u8]]| {
        let (mut decoder, mut content) = (ChunkDecoder::new(LIMIT), Vec::new());
        for piece in pieces {
            decoder.begin(piece.len() as u64);
            let fed = decoder.feed(piece, &mut content);
            assert_eq!((fed.consumed, fed.progress), (piece.len(), Progress::Ended));
        }
        (decoder.finish(), content)
    };
    let whole = [first, second].concat();
    let (flaw, content) = read(&[&whole]);
    let (other_flaw, other_content) = read(&[first, second]);
    assert_eq!(flaw, other_flaw, "what is wrong depends on where the chunks end");
    match flaw {
        None => assert_eq!((&content, &other_content), (&whole, &whole)),
        Some(Flaw::TooLarge) => assert!(whole.len() as u64 > LIMIT),
        Some(_) => assert!(is_stray(&whole)),
    }
    assert!(flaw.is_some() || !is_stray(&whole));
}

/// The paths of MAIL and RCPT, and addresses of files.
pub fn path(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(path) = parse_reverse_path(text) {
        path.address().into_iter().for_each(check_address);
    }
    if let Ok(address) = parse_forward_path(text, &own()) {
        check_address(&address);
    }
    if let Ok(address) = Address::parse(text) {
        check_address(&address);
    }
}

/// The lines of a login.
pub fn sasl(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let mechanism = [Mechanism::Plain, Mechanism::Login, Mechanism::ScramSha256][*choice as usize % 3];
    let mut lines = rest.split(|byte| *byte == b'\n');
    let initial = lines.next().and_then(|line| std::str::from_utf8(line).ok()).filter(|_| choice & 0x80 != 0);
    let mut turn = Exchange::start(mechanism, initial);
    loop {
        turn = match turn {
            Turn::Challenge(exchange, _) => match lines.next() {
                Some(line) => exchange.respond(line),
                None => return,
            },
            Turn::Check(login) => {
                assert!(!login.account.contains('\0'));
                return;
            }
            Turn::Refused(error) => {
                assert!(matches!(error.reply().code, 500..=599));
                return;
            }
            _ => return,
        };
    }
}

/// What a server answers.
pub fn replies(input: &[u8]) {
    let (pieces, whole) = reads(input);
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut reader, mut found) = (ReplyReader::default(), Vec::new());
        for piece in pieces {
            reader.push(piece);
            loop {
                match reader.next() {
                    Ok(Some(reply)) => {
                        assert!(matches!(reply.code, 200..=599) && !reply.lines.is_empty());
                        assert!(!reply.parsed().to_string().contains('\r'));
                        found.push(Ok(reply));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        found.push(Err(error));
                        return found;
                    }
                }
            }
        }
        found
    };
    let (together, cut) = (read(&mut std::iter::once(whole)), read(&mut { pieces }));
    assert_eq!(together, cut, "what was answered depends on how it was cut");
}

/// Lines out of a buffer, for the session.
pub(super) fn line_of(
    cutter: &mut LineCutter,
    buffer: &mut Vec<u8>,
) -> Option<Result<Vec<u8>, crate::smtp::wire::LineError>> {
    match cutter.cut(buffer) {
        Ok(None) => None,
        Ok(Some(length)) => {
            let rest = buffer.split_off(length + LINE_END_BYTES);
            let mut line = std::mem::replace(buffer, rest);
            line.truncate(length);
            Some(Ok(line))
        }
        Err(error) => Some(Err(error)),
    }
}
