//! What servers say that we are the client of.

use bytes::BytesMut;

use super::reads;
use crate::checks::milter::wire::Replies;
use crate::intake::fetch::imap::answer::Answer;
use crate::intake::fetch::imap::frame::{Framing, Piece};
use crate::intake::fetch::pop3::{Dots, Lines};

pub fn imap(input: &[u8]) {
    let (pieces, whole) = reads(input);
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut framing, mut buffer) = (Framing::default(), BytesMut::new());
        let (mut texts, mut data) = (Vec::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match framing.next(&mut buffer) {
                    Ok(Some(Piece::Text { text, literal })) => {
                        let _ = Answer::read(&text);
                        texts.push((text, literal));
                    }
                    Ok(Some(Piece::Data(bytes))) => data.extend_from_slice(&bytes),
                    Ok(None) => break,
                    Err(_) => return (texts, data),
                }
            }
        }
        (texts, data)
    };
    assert_eq!(read(&mut std::iter::once(whole)), read(&mut { pieces }), "what came depends on how it was cut");
}

pub fn pop3(input: &[u8]) {
    let (pieces, whole) = reads(input);
    let dots = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut dots, mut out) = (Dots::default(), Vec::new());
        let used: usize = pieces.map(|piece| dots.feed(piece, &mut out)).sum();
        (used, out)
    };
    assert_eq!(dots(&mut std::iter::once(whole)), dots(&mut { pieces }));
    let (mut lines, mut buffer) = (Lines::default(), BytesMut::from(whole));
    while let Ok(Some(line)) = lines.next(&mut buffer) {
        assert!(!line.contains(&b'\n'));
    }
}

pub fn milter(input: &[u8]) {
    let mut replies = Replies::default();
    let (pieces, _) = reads(input);
    for piece in pieces {
        replies.push(piece);
        loop {
            match replies.take() {
                Ok(Some(reply)) => assert!(!reply.name().is_empty()),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
