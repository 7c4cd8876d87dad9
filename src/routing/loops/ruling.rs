//! What becomes of a message after the guard has judged it, and how that is said.

use super::{Action, Ruling, Verdict};
use crate::clock::{self, Millis};
use crate::config::{Loops, OnAutomatic, OnLimit};
use crate::message::{HeldBy, Hold};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// Characters of an address that a reply shows, so that the line stays within 512 bytes.
const SHOWN_CHARS_MAX: usize = 120;

impl Ruling {
    /// What becomes of the message. If every recipient would be refused, the message is, and the
    /// other side tells its user: no backscatter. A message that is taken for some cannot be
    /// refused for others after DATA, so those are held. `others`: the message has recipients that
    /// were not put before the guard, or comes from where nobody hears of a refusal.
    pub fn settle(&self, config: &Loops, others: bool) -> Result<Vec<Action>, Refusal> {
        let wanted: Vec<_> = self.verdicts.iter().map(|verdict| verdict.wanted(config)).collect();
        let taken = others || wanted.iter().any(|w| matches!(w, Ok(Action::Take | Action::Hold(_))));
        if !taken && let Some(refusal) = wanted.iter().find_map(|w| w.as_ref().err()) {
            return Err(refusal.clone());
        }
        let held = |verdict: &Verdict, refusal: Refusal| Action::Hold(verdict.hold(refusal.reason));
        let actions = self.verdicts.iter().zip(wanted);
        Ok(actions.map(|(verdict, w)| w.unwrap_or_else(|refusal| held(verdict, refusal))).collect())
    }
}

impl Verdict {
    /// What the configuration wants for this recipient alone.
    fn wanted(&self, config: &Loops) -> Result<Action, Refusal> {
        let refuse = |code, enhanced, text: String| {
            let reply = Reply::new(code, enhanced, ascii(&text));
            Err(Refusal { reply, reason: text })
        };
        match self {
            Verdict::Pass => Ok(Action::Take),
            Verdict::Duplicate { reason } | Verdict::OwnNotice { reason } => Ok(Action::Discard(reason.clone())),
            Verdict::Loop { reason } => refuse(554, (4, 6), format!("mail loop: {reason}")),
            Verdict::Automatic { reason, policy } => match policy {
                OnAutomatic::Accept => Ok(Action::Take),
                OnAutomatic::Hold => Ok(Action::Hold(self.hold(reason.clone()))),
                OnAutomatic::Discard => Ok(Action::Discard(reason.clone())),
                OnAutomatic::Reject => refuse(550, (7, 1), format!("not accepted here: {reason}")),
            },
            Verdict::Violation { reason, retry_after } => match config.on_limit {
                OnLimit::Hold => Ok(Action::Hold(self.hold(reason.clone()))),
                OnLimit::Discard => Ok(Action::Discard(reason.clone())),
                // Waiting only helps where a limit counts a period.
                OnLimit::Defer if retry_after.is_some() => refuse(450, (7, 1), reason.clone()),
                OnLimit::Reject | OnLimit::Defer => refuse(554, (4, 6), reason.clone()),
            },
        }
    }
}

impl Verdict {
    fn hold(&self, reason: String) -> Hold {
        let by = match self {
            Verdict::Loop { .. } => HeldBy::Loop,
            Verdict::Automatic { .. } => HeldBy::Automatic,
            Verdict::Violation { .. } => HeldBy::LoopLimit,
            // None of them is ever held.
            Verdict::Pass | Verdict::OwnNotice { .. } | Verdict::Duplicate { .. } => HeldBy::Other,
        };
        Hold::new(by, reason)
    }
}

pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((cut, _)) => format!("{}...", &text[..cut]),
        None => text.to_owned(),
    }
}

/// A reply is ASCII unless the session is SMTPUTF8 (RFC 6531 3.7.4.1), which is not known here.
fn ascii(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii() { c } else { '?' }).collect()
}

pub(super) fn period_text(period: Millis) -> String {
    let seconds = period / 1000;
    if seconds.is_multiple_of(60) { format!("{} minutes", seconds / 60) } else { format!("{seconds} seconds") }
}

/// To the full second after it, so that who waits until then has waited long enough.
pub(super) fn utc(time: Millis) -> String {
    clock::rfc3339(time.div_ceil(1000).saturating_mul(1000)).replace(".000Z", "Z")
}
