//! Who is kept here in place of being sent (`delivery.default = "capture"`), and the addresses that stand for
//! what a far end may do.
//!
//! Nothing goes to a mail server of others: not by SMTP to the recipient's domain, nor through an alias, nor by a
//! target of kind `smtp`. Targets that end here (Maildir, file, program, LMTP, webhook) work as ever: whoever
//! develops with mail that comes in wants to see it arrive. Who is let go by a person is sent.

use crate::config::{Config, Target, WayOut};
use crate::message::Address;
use crate::queue::record::{Recipient, Route};

/// Where the addresses are that stand for something; an ordinary domain while mail is sent.
pub const DOMAIN: &str = "capture.test";

/// What a far end does with a recipient whose mail is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The mail is kept, and can be read.
    Kept,
    /// `bounce@capture.test`: there is no such mailbox.
    Refused,
    /// `defer@capture.test`: not now.
    Deferred,
    /// `complain@capture.test`: it is kept, and called spam by its reader.
    Complained,
}

/// What becomes of a recipient where nothing leaves. None: it is no matter of capture.
pub fn answer(config: &Config, recipient: &Recipient) -> Option<Answer> {
    if config.delivery.default != WayOut::Capture || recipient.released.is_some() {
        return None;
    }
    match &recipient.route {
        Route::Remote if config.is_own(recipient.address.domain()) => None,
        Route::Remote => Some(stands_for(&recipient.address)),
        Route::Target(name) => matches!(config.targets.get(name), Some(Target::Smtp { .. })).then_some(Answer::Kept),
    }
}

/// What an address stands for, with or without a `+tag`.
pub fn stands_for(address: &Address) -> Answer {
    if address.domain().as_str() != DOMAIN {
        return Answer::Kept;
    }
    let local = address.local().to_ascii_lowercase();
    match local.split('+').next().unwrap_or_default() {
        "bounce" => Answer::Refused,
        "defer" => Answer::Deferred,
        "complain" => Answer::Complained,
        _ => Answer::Kept,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_stand_for_what_a_far_end_may_do() {
        for (address, answer) in [
            ("bounce@capture.test", Answer::Refused),
            ("Bounce+17@CAPTURE.test", Answer::Refused),
            ("defer@capture.test", Answer::Deferred),
            ("complain+a+b@capture.test", Answer::Complained),
            ("bouncer@capture.test", Answer::Kept),
            ("bob@capture.test", Answer::Kept),
            ("bounce@sub.capture.test", Answer::Kept),
            ("bounce@example.net", Answer::Kept),
        ] {
            assert_eq!(stands_for(&Address::parse(address).unwrap()), answer, "{address}");
        }
    }
}
