//! What events are called outside: in `only` of `[events.webhooks.*]`, in the `type` of what is pushed, and
//! which of them are trouble.

use super::Event;

/// A kind of event that webhooks may be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Accepted,
    Imported,
    Delivered,
    Captured,
    Deferred,
    /// The far end said no, or it came back.
    Bounced,
    /// It cannot be sent, for a reason found here.
    Failed,
    Expired,
    Suppressed,
    Complained,
    Held,
    Released,
    Cancelled,
    Discarded,
    Archived,
    NotArchived,
}

impl Kind {
    pub const ALL: [Kind; 16] = [
        Kind::Accepted,
        Kind::Imported,
        Kind::Delivered,
        Kind::Captured,
        Kind::Deferred,
        Kind::Bounced,
        Kind::Failed,
        Kind::Expired,
        Kind::Suppressed,
        Kind::Complained,
        Kind::Held,
        Kind::Released,
        Kind::Cancelled,
        Kind::Discarded,
        Kind::Archived,
        Kind::NotArchived,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Accepted => "accepted",
            Kind::Imported => "imported",
            Kind::Delivered => "delivered",
            Kind::Captured => "captured",
            Kind::Deferred => "deferred",
            Kind::Bounced => "bounced",
            Kind::Failed => "failed",
            Kind::Expired => "expired",
            Kind::Suppressed => "suppressed",
            Kind::Complained => "complained",
            Kind::Held => "held",
            Kind::Released => "released",
            Kind::Cancelled => "cancelled",
            Kind::Discarded => "discarded",
            Kind::Archived => "archived",
            Kind::NotArchived => "not_archived",
        }
    }

    /// None: it is part of the story only.
    pub fn of(event: &Event) -> Option<Kind> {
        Some(match event {
            Event::Accepted { .. } => Kind::Accepted,
            Event::Imported { .. } => Kind::Imported,
            Event::Delivered { .. } => Kind::Delivered,
            Event::Captured { .. } => Kind::Captured,
            Event::Deferred { .. } | Event::Unsure { .. } => Kind::Deferred,
            Event::Failed { why, .. } if why.reply.is_some() => Kind::Bounced,
            Event::Failed { .. } => Kind::Failed,
            Event::Expired { .. } => Kind::Expired,
            Event::Held { .. } => Kind::Held,
            Event::Released { .. } => Kind::Released,
            Event::Cancelled { .. } => Kind::Cancelled,
            Event::Discarded { .. } => Kind::Discarded,
            Event::Archived { .. } => Kind::Archived,
            Event::NotArchived { .. } => Kind::NotArchived,
            Event::Bounced { .. } => Kind::Bounced,
            Event::Complained { .. } => Kind::Complained,
            Event::Suppressed { .. } => Kind::Suppressed,
            Event::Routed { .. }
            | Event::DelayReported { .. }
            | Event::NotBelieved { .. }
            | Event::NoticeSent { .. }
            | Event::NoticeWithheld { .. } => return None,
        })
    }

    /// Did something not work?
    pub fn is_trouble(self) -> bool {
        use Kind::{Bounced, Complained, Deferred, Expired, Failed, NotArchived, Suppressed};
        matches!(self, Deferred | Bounced | Failed | Expired | Suppressed | Complained | NotArchived)
    }
}

/// Does it go to a log of what failed, and into an answer to `--failed`?
pub fn is_trouble(event: &Event) -> bool {
    Kind::of(event).is_some_and(Kind::is_trouble)
}
