//! A host that somebody has named as the way out (a smart host), beside those that DNS names.

use std::net::IpAddr;

use super::auth::{Login, LoginFault};
use super::step::Tls;
use crate::delivery::Outcome;
use crate::message::{Domain, ReversePath};
use crate::queue::record::Failure;

/// A named host, and how to talk to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostTarget {
    /// A name, or an address with or without brackets.
    pub host: String,
    pub port: u16,
    pub tls: TlsMode,
    /// The certificate has to be for `host` and from an authority that the system trusts.
    pub verify_certificate: bool,
    pub login: Option<Login>,
    /// The envelope sender that it takes instead of the message's own.
    pub mail_from: Option<ReversePath>,
}

/// How a named host wants TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsMode {
    Off,
    /// STARTTLS where it is offered.
    Opportunistic,
    /// STARTTLS or nothing.
    Required,
    /// From the first octet on.
    Implicit,
}

impl TlsMode {
    pub(super) fn demand(self) -> Tls {
        match self {
            TlsMode::Off => Tls::Never,
            TlsMode::Opportunistic => Tls::IfOffered,
            TlsMode::Required => Tls::Required,
            TlsMode::Implicit => Tls::Implicit,
        }
    }
}

impl HostTarget {
    /// The host as a word of ours; None if it is no host at all.
    pub(super) fn domain(&self) -> Option<Domain> {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(IpAddr::V4(v4)) => Domain::parse(&format!("[{v4}]")).ok(),
            Ok(IpAddr::V6(v6)) => Domain::parse(&format!("[IPv6:{v6}]")).ok(),
            Err(_) => Domain::parse(&self.host).ok(),
        }
    }

    /// RFC 4954 9: a secret in clear is for this machine alone.
    pub(super) fn agreed(&self, ip: IpAddr) -> Agreed {
        Agreed {
            verify_certificate: self.verify_certificate,
            login: self.login.clone(),
            may_show_secret: self.tls == TlsMode::Off && ip.to_canonical().is_loopback(),
        }
    }
}

/// What sets a connection to a named host apart from one to a mail exchanger at the same address, and
/// from one with another login.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Agreed {
    pub verify_certificate: bool,
    pub login: Option<Login>,
    pub may_show_secret: bool,
}

/// What came of a job that was offered to named hosts.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempted {
    /// One per recipient.
    pub outcomes: Vec<(u32, Outcome)>,
    /// Of the hosts that did not do, in the order of trying.
    pub troubles: Vec<HostTrouble>,
}

/// Why a named host did not do. It is never about the mail.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTrouble {
    /// Its place among the targets.
    pub target: usize,
    /// It is about our account there.
    pub login: Option<LoginFault>,
    pub failure: Failure,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn target(host: &str, tls: TlsMode) -> HostTarget {
        HostTarget { host: host.into(), port: 587, tls, verify_certificate: true, login: None, mail_from: None }
    }

    #[test]
    fn names_and_addresses_are_hosts() {
        let table = [
            ("smtp.far.test", "smtp.far.test"),
            ("192.0.2.1", "[192.0.2.1]"),
            ("[192.0.2.1]", "[192.0.2.1]"),
            ("2001:db8::1", "[IPv6:2001:db8::1]"),
            ("[2001:db8::1]", "[IPv6:2001:db8::1]"),
            ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ];
        for (host, domain) in table {
            assert_eq!(target(host, TlsMode::Off).domain().unwrap().as_str(), domain);
        }
        for host in ["", "a b", "-", "[far.test]"] {
            assert_eq!(target(host, TlsMode::Off).domain(), None, "{host}");
        }
    }

    #[test]
    fn secrets_in_clear_only_on_this_machine_and_on_purpose() {
        for tls in [TlsMode::Off, TlsMode::Opportunistic, TlsMode::Required, TlsMode::Implicit] {
            for (ip, here) in
                [("127.0.0.1", true), ("::1", true), ("::ffff:127.0.0.1", true), ("10.0.0.1", false), ("::", false)]
            {
                let agreed = target("mx", tls).agreed(ip.parse().unwrap());
                assert_eq!(agreed.may_show_secret, here && tls == TlsMode::Off, "{tls:?} {ip}");
            }
        }
    }
}
