//! The header by which a proxy says whose connection it passes on: PROXY protocol, versions 1 and 2.
//!
//! Reads bytes only; whom to believe is `listener`'s business. [`read`] looks at what has come so far and
//! says what it is, or that more is needed, in which case everything so far belongs to the header. So a
//! reader takes from the socket what the header has, and not a byte of what the client itself says.
//!
//! Left out: what version 2 adds behind the addresses (TLVs) is counted and skipped; a client's TLS session with the
//! proxy is not ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Octets of a header of version 1, with its CRLF: the protocol's own figure.
pub const V1_BYTES_MAX: usize = 107;
/// Octets of a header of version 2. The protocol wants 536 at least; certificates among the TLVs take more.
pub const V2_BYTES_MAX: usize = 4096;
/// What a reader has to be able to hold.
pub const HEADER_BYTES_MAX: usize = V2_BYTES_MAX;

const V1_PREFIX: &[u8] = b"PROXY ";
const V2_PREFIX: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// Prefix, version and command, family and protocol, length.
const V2_FIXED_BYTES: usize = 16;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The client's address. Canonical: never an IPv4 address in IPv6 clothes.
    Client(IpAddr),
    /// The proxy's own connection (a health check), or one whose client it does not tell.
    Proxy,
}

/// What has come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// All of it is part of a header that goes on.
    Begun,
    /// The header, and how many octets it has.
    Whole(Source, usize),
}

/// It is no header. For the log; nobody else hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("it does not begin with a PROXY header")]
    Other,
    #[error("the PROXY line (version 1) is longer than {V1_BYTES_MAX} octets")]
    LongLine,
    #[error("the PROXY line (version 1) is not well formed")]
    Line,
    #[error("the PROXY header (version 2) is longer than {V2_BYTES_MAX} octets")]
    Long,
    #[error("the PROXY header is of a version other than 1 and 2")]
    Version,
    #[error("the PROXY header has a command other than LOCAL and PROXY")]
    Command,
    #[error("the PROXY header (version 2) is too short for its addresses")]
    Short,
    #[error("something behind the addresses of the PROXY header (version 2) is longer than the header")]
    Vector,
    #[error("the PROXY header is of a datagram")]
    Datagram,
    #[error("the address in the PROXY header is no client's")]
    Address,
}

/// Reads the header at the front of `input`.
pub fn read(input: &[u8]) -> Result<Header, Malformed> {
    if common(input, V2_PREFIX) && !input.is_empty() {
        return version_2(input);
    }
    if common(input, V1_PREFIX) {
        return version_1(input);
    }
    Err(Malformed::Other)
}

/// Does one of the two begin with the other?
fn common(input: &[u8], prefix: &[u8]) -> bool {
    input.iter().zip(prefix).all(|(a, b)| a == b)
}

/// `PROXY TCP4 192.0.2.1 198.51.100.1 56324 25` and CRLF.
fn version_1(input: &[u8]) -> Result<Header, Malformed> {
    let window = input.get(..V1_BYTES_MAX).unwrap_or(input);
    let Some(end) = window.iter().position(|byte| *byte == b'\n') else {
        return if input.len() < V1_BYTES_MAX { Ok(Header::Begun) } else { Err(Malformed::LongLine) };
    };
    let line = window.get(V1_PREFIX.len()..end).and_then(|line| line.strip_suffix(b"\r")).ok_or(Malformed::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed::Line)?;
    let words: Vec<&str> = line.split(' ').collect();
    let source = match words.as_slice() {
        // Whatever follows is not to be looked at.
        ["UNKNOWN", ..] => Source::Proxy,
        ["TCP4", from, to, from_port, to_port] => {
            read_word::<Ipv4Addr>(to)?;
            ports(from_port, to_port)?;
            client(read_word::<Ipv4Addr>(from)?.into())?
        }
        ["TCP6", from, to, from_port, to_port] => {
            read_word::<Ipv6Addr>(to)?;
            ports(from_port, to_port)?;
            client(read_word::<Ipv6Addr>(from)?.into())?
        }
        _ => return Err(Malformed::Line),
    };
    Ok(Header::Whole(source, end + 1))
}

fn read_word<T: std::str::FromStr>(word: &str) -> Result<T, Malformed> {
    word.parse().map_err(|_| Malformed::Line)
}

/// Decimal, without leading zeros, 0 to 65535.
fn ports(from: &str, to: &str) -> Result<(), Malformed> {
    let is_port = |word: &str| {
        let plain = word == "0" || (!word.starts_with('0') && word.bytes().all(|byte| byte.is_ascii_digit()));
        plain && word.parse::<u16>().is_ok()
    };
    if is_port(from) && is_port(to) { Ok(()) } else { Err(Malformed::Line) }
}

fn version_2(input: &[u8]) -> Result<Header, Malformed> {
    let Some(&[command, family]) = input.get(12..14).and_then(|two| two.first_chunk::<2>()) else {
        return match input.get(12) {
            Some(command) => v2_command(*command).map(|_| Header::Begun),
            None => Ok(Header::Begun),
        };
    };
    let is_local = v2_command(command)?;
    if !is_local {
        v2_family(family)?;
    }
    let Some(&[high, low]) = input.get(14..16).and_then(|two| two.first_chunk::<2>()) else {
        return Ok(Header::Begun);
    };
    let whole = V2_FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if whole > V2_BYTES_MAX {
        return Err(Malformed::Long);
    }
    let Some(body) = input.get(V2_FIXED_BYTES..whole) else { return Ok(Header::Begun) };
    let source = if is_local { Source::Proxy } else { v2_source(family, body)? };
    Ok(Header::Whole(source, whole))
}

/// True for LOCAL.
fn v2_command(byte: u8) -> Result<bool, Malformed> {
    match (byte >> 4, byte & 0x0f) {
        (2, 0) => Ok(true),
        (2, 1) => Ok(false),
        (2, _) => Err(Malformed::Command),
        _ => Err(Malformed::Version),
    }
}

/// Family in the upper half, transport in the lower.
fn v2_family(byte: u8) -> Result<(), Malformed> {
    match (byte >> 4, byte & 0x0f) {
        // Unspecified, or a unix socket's stream: there is no address that we know.
        (0, _) | (3, 0 | 1) | (1 | 2, 0 | 1) => Ok(()),
        (1..=3, 2) => Err(Malformed::Datagram),
        _ => Err(Malformed::Address),
    }
}

fn v2_source(family: u8, body: &[u8]) -> Result<Source, Malformed> {
    match (family >> 4, family & 0x0f) {
        // From, to, two ports.
        (1, 1) => {
            let (addresses, more) = body.split_at_checked(12).ok_or(Malformed::Short)?;
            let from = addresses.first_chunk::<4>().ok_or(Malformed::Short)?;
            vectors(more)?;
            client(Ipv4Addr::from(*from).into())
        }
        (2, 1) => {
            let (addresses, more) = body.split_at_checked(36).ok_or(Malformed::Short)?;
            let from = addresses.first_chunk::<16>().ok_or(Malformed::Short)?;
            vectors(more)?;
            client(Ipv6Addr::from(*from).into())
        }
        _ => Ok(Source::Proxy),
    }
}

/// Type, length, value, and the next: whoever wrote a header whose parts do not add up to it means something else than
/// what is read here, and where the client's own words begin is then in doubt.
fn vectors(mut rest: &[u8]) -> Result<(), Malformed> {
    while !rest.is_empty() {
        let &[_, high, low] = rest.first_chunk::<3>().ok_or(Malformed::Vector)?;
        rest = rest.get(3 + usize::from(u16::from_be_bytes([high, low]))..).ok_or(Malformed::Vector)?;
    }
    Ok(())
}

/// An address that one client can have.
fn client(ip: IpAddr) -> Result<Source, Malformed> {
    let ip = ip.to_canonical();
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return Err(Malformed::Address);
    }
    Ok(Source::Client(ip))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use proptest::prelude::*;

    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [V2_PREFIX, &[command, family], &length, body].concat()
    }

    fn v2_of(ip: IpAddr, more: &[u8]) -> Vec<u8> {
        match ip {
            IpAddr::V4(ip) => v2(0x21, 0x11, &[&ip.octets()[..], &[198, 51, 100, 1], &[1, 2, 0, 25], more].concat()),
            IpAddr::V6(ip) => v2(0x21, 0x21, &[&ip.octets()[..], &[0x20; 16], &[1, 2, 0, 25], more].concat()),
        }
    }

    fn vector(value: &[u8]) -> Vec<u8> {
        [&[4], &(value.len() as u16).to_be_bytes()[..], value].concat()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_header_says_whose_connection_it_is() {
        let client = |text: &str| Source::Client(ip(text));
        let many: Vec<u8> = [4, 0, 0].repeat(1_000);
        let table: [(&[u8], Source); 13] = [
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 25\r\n", client("192.0.2.7")),
            (b"PROXY TCP4 255.255.255.254 255.255.255.255 65535 65535\r\n", client("255.255.255.254")),
            (b"PROXY TCP6 2001:db8::7 2001:db8::1 0 25\r\n", client("2001:db8::7")),
            (b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 25\r\n", client("192.0.2.7")),
            (b"PROXY UNKNOWN\r\n", Source::Proxy),
            (b"PROXY UNKNOWN ffff:f...f:ffff anything at all 65535\r\n", Source::Proxy),
            (&v2_of(ip("192.0.2.7"), b""), client("192.0.2.7")),
            (&v2_of(ip("2001:db8::7"), &[3, 0, 4, 1, 2, 3, 4]), client("2001:db8::7")),
            (&v2_of(ip("::ffff:192.0.2.7"), b""), client("192.0.2.7")),
            (&v2_of(ip("192.0.2.7"), &many), client("192.0.2.7")),
            (&v2(0x20, 0x00, b""), Source::Proxy),
            (&v2(0x20, 0x11, b"whatever"), Source::Proxy),
            (&v2(0x21, 0x31, &[0; 216]), Source::Proxy),
        ];
        for (header, source) in table {
            assert_eq!(read(header), Ok(Header::Whole(source, header.len())), "{}", header.escape_ascii());
            let more = [header, b"EHLO client.test\r\n"].concat();
            assert_eq!(read(&more), Ok(Header::Whole(source, header.len())), "what follows is the client's");
        }
    }

    #[test]
    fn what_is_no_header_is_named() {
        let long_v1 = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 100], b"\r\n"].concat();
        let table: [(&[u8], Malformed); 32] = [
            (&v2_of(ip("192.0.2.7"), &[0x20, 0, 2, 0]), Malformed::Vector),
            (&v2_of(ip("2001:db8::7"), &[0x20, 0, 1, 0, 0x20, 0xff, 0xff]), Malformed::Vector),
            (&v2_of(ip("192.0.2.7"), &[0x20, 0]), Malformed::Vector),
            (b"EHLO client.test\r\n", Malformed::Other),
            (b"\x16\x03\x01\x02\x00", Malformed::Other),
            (b"PROXX TCP4", Malformed::Other),
            (b"proxy TCP4 192.0.2.7 198.51.100.1 1 25\r\n", Malformed::Other),
            (b"\r\n\r\n\0\r\nQUIT\r\n", Malformed::Other),
            (&long_v1, Malformed::LongLine),
            (b"PROXY \r\n", Malformed::Line),
            (b"PROXY UNKNOWN\n", Malformed::Line),
            (b"PROXY TCP4\r\n", Malformed::Line),
            (b"PROXY UNKNOWNX\r\n", Malformed::Line),
            (b"PROXY TCP5 192.0.2.7 198.51.100.1 1 25\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 25 \r\n", Malformed::Line),
            (b"PROXY TCP4  192.0.2.7 198.51.100.1 1 25\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.07 198.51.100.1 1 25\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 nowhere 1 25\r\n", Malformed::Line),
            (b"PROXY TCP4 2001:db8::7 2001:db8::1 1 25\r\n", Malformed::Line),
            (b"PROXY TCP6 192.0.2.7 198.51.100.1 1 25\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 65536 25\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 +1 25\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 01 25\r\n", Malformed::Line),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 1 25\xff\r\n", Malformed::Line),
            (b"PROXY TCP4 0.0.0.0 198.51.100.1 1 25\r\n", Malformed::Address),
            (b"PROXY TCP6 ff02::1 2001:db8::1 1 25\r\n", Malformed::Address),
            (&v2(0x11, 0x11, &[1; 12]), Malformed::Version),
            (&v2(0x22, 0x11, &[1; 12]), Malformed::Command),
            (&v2(0x21, 0x12, &[1; 12]), Malformed::Datagram),
            (&v2(0x21, 0x41, &[1; 12]), Malformed::Address),
            (&v2(0x21, 0x21, &[1; 35]), Malformed::Short),
        ];
        for (input, wanted) in table {
            assert_eq!(read(input), Err(wanted), "{}", input.escape_ascii());
        }
        assert_eq!(read(&v2(0x21, 0x11, &[1; 11])), Err(Malformed::Short));
        assert_eq!(read(&v2_of(ip("255.255.255.255"), b"")), Err(Malformed::Address));
        assert_eq!(read(&v2(0x21, 0x11, &[1; V2_BYTES_MAX])[..16]), Err(Malformed::Long), "before it is read");
        let most = v2_of(ip("192.0.2.7"), &vec![0; V2_BYTES_MAX - V2_FIXED_BYTES - 12]);
        assert_eq!(read(&most), Ok(Header::Whole(Source::Client(ip("192.0.2.7")), V2_BYTES_MAX)));
    }

    /// The longest line of version 1 is taken, one octet more is not.
    #[test]
    fn the_line_has_its_length() {
        let line = |filling: usize| [b"PROXY UNKNOWN ".as_slice(), &vec![b'x'; filling], b"\r\n"].concat();
        let most = line(V1_BYTES_MAX - 16);
        assert_eq!(read(&most), Ok(Header::Whole(Source::Proxy, V1_BYTES_MAX)));
        assert_eq!(read(&most[..V1_BYTES_MAX - 1]), Ok(Header::Begun));
        assert_eq!(read(&line(V1_BYTES_MAX - 15)), Err(Malformed::LongLine));
    }

    /// Some header, or nearly one.
    fn input() -> impl Strategy<Value = Vec<u8>> {
        let v1 = "PROXY (TCP4|TCP6|UNKNOWN) [0-9a-f.:]{1,20} [0-9.:]{1,15} [0-9]{1,5} [0-9]{1,5}\r\n.{0,20}";
        let good = (any::<u32>(), any::<u16>(), any::<u16>()).prop_map(|(ip, from, to)| {
            format!("PROXY TCP4 {} 198.51.100.1 {from} {to}\r\nEHLO a\r\n", Ipv4Addr::from(ip)).into_bytes()
        });
        let version_2 = (any::<u8>(), any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(command, family, body)| v2(command, family, &body));
        let good_2 = (any::<u128>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(ip, more)| v2_of(Ipv6Addr::from(ip).into(), &more));
        let good_3 = (any::<u32>(), proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(ip, more)| v2_of(Ipv4Addr::from(ip).into(), &vector(&more)));
        prop_oneof![
            v1.prop_map(String::into_bytes),
            good,
            version_2,
            good_2,
            good_3,
            proptest::collection::vec(any::<u8>(), 0..200)
        ]
    }

    proptest! {
        /// However the octets arrive, the answer is the same: what has begun is a part of what it becomes,
        /// and what is settled stays so.
        #[test]
        fn any_split_gives_the_same(input in input()) {
            let whole = read(&input);
            for length in 0..=input.len() {
                let so_far = read(&input[..length]);
                match (so_far, whole) {
                    (Ok(Header::Begun), Ok(Header::Whole(_, end))) => prop_assert!(length < end),
                    (Ok(Header::Begun), _) => {}
                    (settled, whole) => prop_assert_eq!(settled, whole),
                }
            }
        }

        #[test]
        fn an_address_survives(v4 in any::<u32>(), v6 in any::<u128>(), more in proptest::collection::vec(any::<u8>(), 0..50)) {
            for (family, other, ip) in [("TCP4", "198.51.100.1", IpAddr::from(Ipv4Addr::from(v4))), ("TCP6", "::1", Ipv6Addr::from(v6).into())] {
                let wanted = client(ip);
                let line = format!("PROXY {family} {ip} {other} 1 25\r\n");
                prop_assert_eq!(read(line.as_bytes()), wanted.map(|source| Header::Whole(source, line.len())));
                let binary = v2_of(ip, &vector(&more));
                prop_assert_eq!(read(&binary), wanted.map(|source| Header::Whole(source, binary.len())));
            }
        }
    }
}
