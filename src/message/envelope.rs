//! The envelope: who sends, who receives, and what the sender asked of the transport
//! (SIZE and BODY of RFC 6152, DSN of RFC 3461, SMTPUTF8 of RFC 6531).

use serde::{Deserialize, Serialize};

use super::address::{Address, ReversePath};

/// Everything MAIL and RCPT said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    pub mail_from: ReversePath,
    pub recipients: Vec<Recipient>,
    pub body: BodyType,
    pub smtputf8: bool,
    pub dsn: DsnRequest,
    /// REQUIRETLS (RFC 8689 2).
    #[serde(default)]
    pub require_tls: bool,
    /// When it may be sent, if that is not at once: milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<u64>,
}

/// What the sender asks of TLS on the further way (RFC 8689).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsWish {
    /// As the policies have it.
    #[default]
    Usual,
    /// REQUIRETLS: rather not at all than without.
    Required,
    /// The field `TLS-Required: No`: rather without than not at all.
    Optional,
}

impl Envelope {
    /// An envelope with defaults for all that a plain MAIL and RCPT leave out.
    pub fn new(mail_from: ReversePath, recipients: impl IntoIterator<Item = Address>) -> Envelope {
        Envelope {
            mail_from,
            recipients: recipients.into_iter().map(Recipient::new).collect(),
            body: BodyType::EightBitMime,
            smtputf8: false,
            dsn: DsnRequest::default(),
            require_tls: false,
            not_before: None,
        }
    }
}

/// One RCPT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    pub address: Address,
    #[serde(default)]
    pub notify: Notify,
    #[serde(default)]
    pub original: Option<OriginalRecipient>,
}

impl Recipient {
    pub fn new(address: Address) -> Recipient {
        Recipient { address, notify: Notify::default(), original: None }
    }
}

/// ORCPT (RFC 3461 4.2), decoded from xtext.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginalRecipient {
    /// Address type, usually `rfc822`.
    pub kind: String,
    pub address: String,
}

/// NOTIFY (RFC 3461 4.1): the events the sender wants to hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Notify {
    /// NOTIFY=NEVER.
    Never,
    On {
        success: bool,
        failure: bool,
        delay: bool,
    },
}

/// RFC 3461 4.1: without NOTIFY the server decides; we tell failures and delays.
impl Default for Notify {
    fn default() -> Notify {
        Notify::On { success: false, failure: true, delay: true }
    }
}

impl Notify {
    pub fn on_failure(self) -> bool {
        matches!(self, Notify::On { failure: true, .. })
    }

    pub fn on_delay(self) -> bool {
        matches!(self, Notify::On { delay: true, .. })
    }

    pub fn on_success(self) -> bool {
        matches!(self, Notify::On { success: true, .. })
    }

    /// What is left to ask another server for, where reports of success are ours.
    pub fn without_success(self) -> Notify {
        match self {
            Notify::On { success: true, failure: false, delay: false } => Notify::Never,
            Notify::On { failure, delay, .. } => Notify::On { success: false, failure, delay },
            Notify::Never => Notify::Never,
        }
    }
}

/// RET and ENVID (RFC 3461 4.3, 4.4).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DsnRequest {
    pub ret: Option<Ret>,
    /// Decoded from xtext; holds printable ASCII only.
    pub envid: Option<String>,
}

/// How much of the message a DSN shall carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ret {
    Full,
    Headers,
}

/// BODY (RFC 6152). BINARYMIME is not offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyType {
    SevenBit,
    EightBitMime,
}
