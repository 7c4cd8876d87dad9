//! A message on its way in: what every door hands to `intake`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::content::Content;
use super::envelope::Envelope;

/// A message that has not been queued yet. Dropping it forgets it.
#[derive(Clone, Debug)]
pub struct Draft {
    pub envelope: Envelope,
    /// The whole message as received: CRLF lines, no dot-stuffing, no trace fields of ours yet.
    pub content: Content,
    pub origin: Origin,
}

/// Where a message came from. Goes into the Received field, the story and the rights that apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    pub door: Door,
    /// The account whose rights apply; none for inbound mail and trusted networks.
    pub account: Option<String>,
    /// The SMTP client; none for local doors.
    pub peer: Option<Peer>,
}

/// The way a message came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// A listener with role `mx`: from outside, for our domains only, checked.
    Mx { listener: String },
    /// A listener with role `submission`: an account or a trusted network.
    Submission { listener: String },
    /// A pickup folder, the file's name and the user whose file it was.
    Pickup {
        folder: String,
        file: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<u32>,
    },
    /// The admin socket (`postrider send`).
    Admin,
    /// HTTP over TCP.
    Http,
    /// A mailbox elsewhere: from outside, for our domains only, checked as far as that is possible.
    Fetch { account: String },
    /// A delivery status notification of our own.
    Bounce,
}

impl Door {
    /// True where the sender has shown who it is, so that it may relay and be signed for.
    pub fn is_trusted(&self) -> bool {
        !self.is_outside()
    }

    /// True for what anybody can send here.
    pub fn is_outside(&self) -> bool {
        matches!(self, Door::Mx { .. } | Door::Fetch { .. })
    }

    /// True for what a client of ours gave us to send: not what anybody can send here, nor what this server
    /// writes itself.
    pub fn is_for_clients(&self) -> bool {
        !self.is_outside() && *self != Door::Bounce
    }

    /// One word or two for logs and Received.
    pub fn name(&self) -> &str {
        match self {
            Door::Mx { listener } | Door::Submission { listener } => listener,
            Door::Pickup { .. } => "pickup",
            Door::Admin => "admin",
            Door::Http => "http",
            Door::Fetch { .. } => "fetch",
            Door::Bounce => "bounce",
        }
    }
}

/// The other end of an SMTP session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub ip: IpAddr,
    /// EHLO or HELO argument, as given (printable ASCII).
    pub helo: String,
    /// True after EHLO, for the `with` clause of Received (RFC 3848).
    pub esmtp: bool,
    /// Protocol version and cipher, if the session is under TLS.
    pub tls: Option<String>,
}
