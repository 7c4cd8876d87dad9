//! What the checks found out about an inbound message, in the words of RFC 8601. Kept with the
//! message, so that a webhook can tell.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Findings {
    /// None: the check is off.
    pub spf: Option<SpfFinding>,
    pub dkim: Vec<DkimFinding>,
    pub dmarc: Option<DmarcFinding>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iprev: Option<IprevFinding>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dnsbl: Vec<DnsblFinding>,
    #[serde(default)]
    pub arc: Option<ArcFinding>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpfFinding {
    /// `pass`, `fail`, `softfail`, `neutral`, `none`, `temperror`, `permerror`.
    pub result: String,
    /// The domain that was asked: of MAIL FROM, or of EHLO for the null sender.
    pub domain: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DkimFinding {
    /// `pass`, `fail`, `policy`, `neutral`, `temperror`, `permerror`; `none` stands alone.
    pub result: String,
    pub domain: String,
    pub selector: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmarcFinding {
    /// `pass`, `fail`, `none`, `temperror`, `permerror`.
    pub result: String,
    /// `none`, `quarantine`, `reject`; empty if the domain publishes none.
    pub policy: String,
    /// Domain of the From field.
    pub domain: String,
}

/// Reverse DNS of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IprevFinding {
    /// `pass`, `fail`, `temperror`, `permerror`.
    pub result: String,
    /// The client's name, if it leads back to the client.
    pub name: String,
}

/// What a DNS list says of the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsblFinding {
    pub list: String,
    /// `pass` (not listed), `fail`, `temperror`, `permerror` (the list does not serve us).
    pub result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArcFinding {
    /// `pass`, `fail`, `none`, `temperror`.
    pub result: String,
    /// Who has sealed it, the oldest first; empty unless the chain passes.
    pub sealers: Vec<String>,
    /// A sealer that is trusted has vouched for the author, and so a DMARC failure does not count.
    pub overrides_dmarc: bool,
}
