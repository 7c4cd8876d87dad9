//! Addresses of the net that are not public: which they are, and what may be done with them.
//!
//! A domain's owner writes any address into DNS. One that leads back to this machine or into its network would make a
//! loop, or make us knock at doors that are not meant for strangers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Leads back to this machine.
    Loopback,
    /// `delivery.allow_private_addresses` opens it.
    NotPublic(&'static str),
    /// No host can have it; no setting opens it.
    NoHost(&'static str),
}

impl Refused {
    /// For a sentence: "… is a private address".
    pub fn kind(self) -> &'static str {
        match self {
            Refused::Loopback => "loopback",
            Refused::NotPublic(kind) | Refused::NoHost(kind) => kind,
        }
    }
}

/// None: may be connected to. With `allow_private` only what is no host's address is refused.
pub fn refused(ip: IpAddr, allow_private: bool) -> Option<Refused> {
    let reason = match ip {
        IpAddr::V4(v4) => refused_v4(v4),
        IpAddr::V6(v6) => refused_v6(v6),
    };
    reason.filter(|reason| !allow_private || matches!(reason, Refused::NoHost(_)))
}

/// The IANA special-purpose registry (RFC 6890), as far as it is not global.
fn refused_v4(ip: Ipv4Addr) -> Option<Refused> {
    use Refused::{Loopback, NoHost, NotPublic};
    let table = [
        ([0, 0, 0, 0], 8, NoHost("unspecified")),
        ([10, 0, 0, 0], 8, NotPublic("private")),
        ([100, 64, 0, 0], 10, NotPublic("carrier-grade NAT")),
        ([127, 0, 0, 0], 8, Loopback),
        ([169, 254, 0, 0], 16, NotPublic("link-local")),
        ([172, 16, 0, 0], 12, NotPublic("private")),
        ([192, 0, 0, 0], 24, NotPublic("reserved")),
        ([192, 0, 2, 0], 24, NotPublic("documentation")),
        ([192, 168, 0, 0], 16, NotPublic("private")),
        ([198, 18, 0, 0], 15, NotPublic("benchmarking")),
        ([198, 51, 100, 0], 24, NotPublic("documentation")),
        ([203, 0, 113, 0], 24, NotPublic("documentation")),
        ([224, 0, 0, 0], 4, NoHost("multicast")),
        ([240, 0, 0, 0], 4, NoHost("reserved")),
    ];
    let inside = |(net, length, _): &([u8; 4], u8, Refused)| {
        Ipv4Net::new(Ipv4Addr::from(*net), *length).is_ok_and(|net| net.contains(&ip))
    };
    table.into_iter().find(inside).map(|(_, _, reason)| reason)
}

fn refused_v6(ip: Ipv6Addr) -> Option<Refused> {
    use Refused::{Loopback, NoHost, NotPublic};
    if ip.is_unspecified() {
        return Some(NoHost("unspecified"));
    }
    if ip.is_loopback() {
        return Some(Loopback);
    }
    if let Some(embedded) = embedded_v4(ip) {
        return embedded.into_iter().find_map(refused_v4);
    }
    let table = [
        ([0x64, 0xff9b, 1, 0], 48, NotPublic("local NAT64")),
        ([0x100, 0, 0, 0], 64, NoHost("discard-only")),
        ([0x2001, 2, 0, 0], 48, NotPublic("benchmarking")),
        ([0x2001, 0xdb8, 0, 0], 32, NotPublic("documentation")),
        ([0x3fff, 0, 0, 0], 20, NotPublic("documentation")),
        ([0x5f00, 0, 0, 0], 16, NotPublic("segment routing")),
        ([0xfc00, 0, 0, 0], 7, NotPublic("unique local")),
        ([0xfe80, 0, 0, 0], 10, NotPublic("link-local")),
        ([0xfec0, 0, 0, 0], 10, NotPublic("site-local")),
        ([0xff00, 0, 0, 0], 8, NoHost("multicast")),
    ];
    let inside = |([a, b, c, d], length, _): &([u16; 4], u8, Refused)| {
        let net = Ipv6Addr::new(*a, *b, *c, *d, 0, 0, 0, 0);
        Ipv6Net::new(net, *length).is_ok_and(|net| net.contains(&ip))
    };
    table.into_iter().find(inside).map(|(_, _, reason)| reason)
}

/// IPv4 addresses that an IPv6 address stands for: a packet to it may arrive there.
fn embedded_v4(ip: Ipv6Addr) -> Option<Vec<Ipv4Addr>> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match ip.segments() {
        // Mapped (RFC 4291 2.5.5.2), compatible (2.5.5.1), translated (RFC 2765).
        [0, 0, 0, 0, 0, 0xffff | 0, a, b] | [0, 0, 0, 0, 0xffff, 0, a, b] => Some(vec![v4(a, b)]),
        // NAT64 (RFC 6052 2.1).
        [0x64, 0xff9b, 0, 0, 0, 0, a, b] => Some(vec![v4(a, b)]),
        // 6to4 (RFC 3056 2).
        [0x2002, a, b, ..] => Some(vec![v4(a, b)]),
        // Teredo (RFC 4380 4): the server, and the client with its bits turned over.
        [0x2001, 0, a, b, _, _, c, d] => Some(vec![v4(a, b), v4(!c, !d)]),
        _ => None,
    }
}

/// True if this is an address as people write them who mean their own machine or network: loopback, the private ranges,
/// unique local ones. Not what machines of a cloud are told by (link-local), and not IPv4 in IPv6 clothes.
pub fn is_plainly_own(ip: IpAddr, reason: Refused) -> bool {
    let is_disguised = matches!(ip, IpAddr::V6(v6) if !v6.is_loopback() && embedded_v4(v6).is_some());
    !is_disguised && matches!(reason, Refused::Loopback | Refused::NotPublic("private" | "unique local"))
}

/// True for names that are nobody's in the public DNS: of one label, or below one that is set aside for own networks
/// (RFC 6761 6.3, RFC 6762 3, RFC 8375, and `internal`, which ICANN will not delegate).
pub fn is_private(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let set_aside = ["localhost", "local", "internal", "home.arpa"];
    !name.contains('.') || set_aside.iter().any(|top| name.strip_suffix(top).is_some_and(|rest| rest.ends_with('.')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_table_of_addresses() {
        let table = [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("10.0.0.1", "private"),
            ("100.64.0.1", "carrier-grade NAT"),
            ("100.127.255.255", "carrier-grade NAT"),
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("169.254.169.254", "link-local"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.0.0.8", "reserved"),
            ("192.0.2.1", "documentation"),
            ("192.168.0.1", "private"),
            ("198.19.0.1", "benchmarking"),
            ("198.51.100.7", "documentation"),
            ("203.0.113.9", "documentation"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "reserved"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:10.1.1.1", "private"),
            ("::127.0.0.1", "loopback"),
            ("::ffff:0:127.0.0.1", "loopback"),
            ("64:ff9b::127.0.0.1", "loopback"),
            ("64:ff9b::192.168.1.1", "private"),
            ("64:ff9b:1::1", "local NAT64"),
            ("2002:7f00:1::", "loopback"),
            ("2002:c0a8:1::1", "private"),
            // Teredo: a private server, then a public one with a loopback client.
            ("2001:0:a00:1::f7f7:f7f7", "private"),
            ("2001:0:808:808::80ff:fffe", "loopback"),
            ("100::1", "discard-only"),
            ("2001:2::1", "benchmarking"),
            ("2001:db8::1", "documentation"),
            ("3fff::1", "documentation"),
            ("5f00::1", "segment routing"),
            ("fc00::1", "unique local"),
            ("fd12:3456::1", "unique local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("fec0::1", "site-local"),
            ("ff02::1", "multicast"),
        ];
        for (ip, kind) in table {
            assert_eq!(refused(ip.parse().unwrap(), false).map(Refused::kind), Some(kind), "{ip}");
        }
    }

    #[test]
    fn public_addresses_pass() {
        for ip in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.1",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00:1450:4001::1a",
            "::ffff:8.8.8.8",
            "64:ff9b::8.8.8.8",
            "2002:808:808::1",
            "2001:0:808:808::f7f7:f7f7",
        ] {
            assert_eq!(refused(ip.parse().unwrap(), false), None, "{ip}");
        }
    }

    #[test]
    fn the_setting_opens_all_but_what_no_host_has() {
        for ip in ["127.0.0.1", "::1", "10.0.0.1", "fe80::1", "192.0.2.1", "::ffff:127.0.0.1", "2002:7f00:1::"] {
            assert_eq!(refused(ip.parse().unwrap(), true), None, "{ip}");
        }
        for ip in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "::ffff:0.0.0.0"] {
            assert!(refused(ip.parse().unwrap(), true).is_some(), "{ip}");
        }
    }

    #[test]
    fn names_and_addresses_of_an_own_network() {
        for name in [
            "crm",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "printer.local",
            "metadata.google.internal",
            "x.home.arpa",
        ] {
            assert!(is_private(name), "{name}");
        }
        for name in ["crm.example.com", "my.notlocal", "local.example"] {
            assert!(!is_private(name), "{name}");
        }
        let own = |ip: &str| {
            let ip = ip.parse().unwrap();
            refused(ip, false).is_some_and(|reason| is_plainly_own(ip, reason))
        };
        for ip in ["127.0.0.1", "::1", "10.0.0.1", "172.31.255.255", "192.168.0.1", "fc00::1"] {
            assert!(own(ip), "{ip}");
        }
        for ip in [
            "169.254.169.254",
            "fe80::1",
            "100.64.0.1",
            "100.100.100.200",
            "0.0.0.0",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "224.0.0.1",
            "1.1.1.1",
        ] {
            assert!(!own(ip), "{ip}");
        }
    }
}
