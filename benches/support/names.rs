//! A name server for the benches: every domain has a mail exchanger of its own, or all have the same. It
//! is 127.0.0.1, or 127.0.0.2 for those below `slow.test`. Small, because it answers within the measured
//! time.

use std::net::{SocketAddr, UdpSocket};

/// Record types: RFC 1035 3.2.2.
const TYPE_A: u16 = 1;
const TYPE_SOA: u16 = 6;
const TYPE_MX: u16 = 15;
/// Seconds that an answer may be cached: longer than a bench runs.
const TTL: u32 = 3600;
const HEADER_BYTES: usize = 12;
/// How the names end whose address is that of the slow one, in the form of a packet.
const SLOW: &[u8] = b"\x04slow\x04test\x00";

#[derive(Clone, Copy, Debug)]
pub enum Exchangers {
    /// Each domain is a destination of its own.
    Own,
    /// All domains are one destination, as those of a large provider are.
    Shared,
}

/// Answers on a thread of its own until the process ends.
pub fn serve(exchangers: Exchangers) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 1500];
        loop {
            let Ok((length, client)) = socket.recv_from(&mut packet) else { continue };
            if let Some(answer) = answer(&packet[..length], exchangers) {
                // A client that has gone is not the name server's trouble.
                let _ = socket.send_to(&answer, client);
            }
        }
    });
    address
}

/// MX of a name is `mx.` before it, or `mx.test`; other types than A and MX have no records. That answer is cached for
/// as long as the others: it has the SOA record without which nobody would (RFC 2308 5).
fn answer(query: &[u8], exchangers: Exchangers) -> Option<Vec<u8>> {
    let question_end = question_end(query)?;
    let kind = u16::from_be_bytes(query.get(question_end - 4..question_end - 2)?.try_into().ok()?);
    let name = query.get(HEADER_BYTES..question_end - 4)?;
    let data: Option<&[u8]> = match kind {
        TYPE_A if name.ends_with(SLOW) => Some(&[127, 0, 0, 2]),
        TYPE_A => Some(&[127, 0, 0, 1]),
        TYPE_MX => Some(match exchangers {
            // The rest of it is the name of the question (RFC 1035 4.1.4).
            Exchangers::Own => &b"\x00\x0a\x02mx\xc0\x0c"[..],
            Exchangers::Shared => &b"\x00\x0a\x02mx\x04test\x00"[..],
        }),
        _ => None,
    };
    let mut answer = query.get(..question_end)?.to_vec();
    // QR, AA, RD as asked, RA; one question, one answer or one authority (RFC 1035 4.1.1).
    answer[2] = 0x84 | (query[2] & 1);
    answer[3] = 0x80;
    let has = u8::from(data.is_some());
    answer[4..HEADER_BYTES].copy_from_slice(&[0, 1, 0, has, 0, 1 - has, 0, 0]);
    match data {
        Some(data) => put_record(&mut answer, kind, data),
        None => put_record(&mut answer, TYPE_SOA, &soa()),
    }
    Some(answer)
}

/// Of the name that was asked for (RFC 1035 4.1.4).
fn put_record(answer: &mut Vec<u8>, kind: u16, data: &[u8]) {
    answer.extend_from_slice(&[0xc0, HEADER_BYTES as u8]);
    answer.extend_from_slice(&kind.to_be_bytes());
    answer.extend_from_slice(&1u16.to_be_bytes());
    answer.extend_from_slice(&TTL.to_be_bytes());
    answer.extend_from_slice(&(data.len() as u16).to_be_bytes());
    answer.extend_from_slice(data);
}

/// MNAME, RNAME, SERIAL, REFRESH, RETRY, EXPIRE, MINIMUM (RFC 1035 3.3.13).
fn soa() -> Vec<u8> {
    let mut data = b"\x02ns\x04test\x00\x0ahostmaster\x04test\x00".to_vec();
    [1, TTL, TTL, TTL, TTL].iter().for_each(|number| data.extend_from_slice(&number.to_be_bytes()));
    data
}

/// Behind the name, type and class of the first question.
fn question_end(query: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1 + length;
        if length == 0 {
            return (at + 4 <= query.len()).then_some(at + 4);
        }
    }
}
