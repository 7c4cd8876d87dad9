//! Certificates: files of the user's, or an authority to get one from.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::message::Address;

/// A certificate's chain and its key, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub written: Written,
}

/// Where something stands in the configuration, for what turns out to be wrong with it later.
#[derive(Clone, Default)]
pub struct Written {
    pub file: String,
    /// From 1; 0: not known.
    pub line: u32,
    /// The section: `tls`, `tls.extra`.
    pub section: &'static str,
}

/// Two configurations are the same, wherever their lines stand.
impl PartialEq for Written {
    fn eq(&self, other: &Written) -> bool {
        self.section == other.section
    }
}

impl Eq for Written {}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.section)
    }
}

/// How an authority is shown that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcmeChallenge {
    /// RFC 8555 8.3
    Http01,
    /// RFC 8737
    TlsAlpn01,
}

impl AcmeChallenge {
    pub fn name(self) -> &'static str {
        match self {
            AcmeChallenge::Http01 => "http-01",
            AcmeChallenge::TlsAlpn01 => "tls-alpn-01",
        }
    }

    /// Where authorities connect to, whatever `bind` says.
    pub fn port(self) -> u16 {
        match self {
            AcmeChallenge::Http01 => 80,
            AcmeChallenge::TlsAlpn01 => 443,
        }
    }
}

/// An authority that gives certificates for names that answer (RFC 8555).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    pub contact: Address,
    /// URL of its directory.
    pub directory: String,
    pub challenge: AcmeChallenge,
    pub bind: SocketAddr,
}
