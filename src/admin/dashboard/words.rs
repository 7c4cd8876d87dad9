//! Small pieces that all pages use: times, addresses, states, buttons.

use maud::{Markup, html};

use super::act::{BACK, CSRF};
use super::session::Visitor;
use crate::admin::text::{clean, moment, relative};
use crate::admin::view::Status;
use crate::clock::{Millis, rfc3339};
use crate::events::Event;
use crate::message::{MessageId, ReversePath};

/// How good a thing is; also the name of its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    Good,
    Warn,
    Bad,
    Calm,
}

impl Tone {
    pub(super) fn name(self) -> &'static str {
        match self {
            Tone::Good => "good",
            Tone::Warn => "warn",
            Tone::Bad => "bad",
            Tone::Calm => "calm",
        }
    }
}

/// What somebody else has written: harmless, and kept from turning the direction of what stands beside it.
pub(super) fn said(text: &str) -> Markup {
    html! { bdi { (clean(text)) } }
}

/// `3 min ago`; the whole time in UTC on a longer look.
pub(super) fn ago(at: Millis, now: Millis) -> Markup {
    html! { time datetime=(rfc3339(at)) title={ (moment(at)) " UTC" } { (relative(at, now)) } }
}

/// `2026-11-21 22:30:01 UTC (3 min ago)`
pub(super) fn when(at: Millis, now: Millis) -> Markup {
    html! { time datetime=(rfc3339(at)) { (moment(at)) " UTC" } " " span.muted { "(" (relative(at, now)) ")" } }
}

/// How long something took or lasts.
pub(super) fn duration(millis: Millis) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..120_000 => format!("{} s", millis / 1_000),
        120_000..7_200_000 => format!("{} min", millis / 60_000),
        7_200_000..172_800_000 => format!("{} h", millis / 3_600_000),
        _ => format!("{} days", millis / 86_400_000),
    }
}

pub(super) fn pill(tone: Tone, text: &str) -> Markup {
    html! { span class={ "pill " (tone.name()) } { (text) } }
}

pub(super) fn status(status: Status) -> Markup {
    let tone = match status {
        Status::Waiting => Tone::Calm,
        Status::Held => Tone::Warn,
        Status::Captured => Tone::Good,
        Status::Damaged => Tone::Bad,
    };
    pill(tone, status.name())
}

pub(super) fn sender(from: &ReversePath) -> Markup {
    if from.is_null() {
        html! { span title="the null sender: a notice" { "<>" } }
    } else {
        said(&from.to_string())
    }
}

pub(super) fn subject(text: &str) -> Markup {
    if clean(text).is_empty() {
        html! { span.muted { "(no subject)" } }
    } else {
        said(text)
    }
}

pub(super) fn message_link(id: MessageId) -> Markup {
    html! { a.id href={ "/messages/" (id) } { (id) } }
}

/// What an event is, in a word, and how good that is.
pub(super) fn event(event: &Event) -> (Tone, &'static str) {
    match event {
        Event::Accepted { .. } => (Tone::Calm, "accepted"),
        Event::Imported { .. } => (Tone::Calm, "imported"),
        Event::Routed { .. } => (Tone::Calm, "routed"),
        Event::Delivered { .. } => (Tone::Good, "delivered"),
        Event::Captured { .. } => (Tone::Good, "captured"),
        Event::Deferred { .. } => (Tone::Warn, "deferred"),
        Event::Unsure { .. } => (Tone::Warn, "unsure"),
        Event::Failed { .. } => (Tone::Bad, "failed"),
        Event::Archived { .. } => (Tone::Calm, "archived"),
        Event::NotArchived { .. } => (Tone::Warn, "not archived"),
        Event::Expired { .. } => (Tone::Bad, "expired"),
        Event::Held { .. } => (Tone::Warn, "held"),
        Event::Released { .. } => (Tone::Calm, "released"),
        Event::Cancelled { .. } => (Tone::Calm, "cancelled"),
        Event::Discarded { .. } => (Tone::Calm, "discarded"),
        Event::Bounced { .. } => (Tone::Bad, "bounced"),
        Event::DelayReported { .. } => (Tone::Warn, "late"),
        Event::Complained { .. } => (Tone::Bad, "complained"),
        Event::Suppressed { .. } => (Tone::Warn, "suppressed"),
        Event::NotBelieved { .. } => (Tone::Calm, "not believed"),
        Event::NoticeSent { .. } => (Tone::Calm, "notice sent"),
        Event::NoticeWithheld { .. } => (Tone::Calm, "no notice"),
    }
}

/// What every form of ours has: the session's token, and which page comes next.
pub(super) fn hidden(visitor: &Visitor, back: &str) -> Markup {
    html! {
        input type="hidden" name=(CSRF) value=(visitor.csrf);
        input type="hidden" name=(BACK) value=(back);
    }
}

/// A form that is a button. `fields` go with it.
pub(super) fn button(
    visitor: &Visitor,
    to: &str,
    back: &str,
    text: &str,
    fields: &[(&str, &str)],
    ask: Option<&str>,
) -> Markup {
    html! {
        form.inline method="post" action=(to) {
            (hidden(visitor, back))
            @for (name, value) in fields { input type="hidden" name=(name) value=(value); }
            button type="submit" data-ask=[ask] { (text) }
        }
    }
}

/// A path with its query, of those parameters that have a value.
pub(super) fn link(path: &str, parameters: &[(&str, Option<&str>)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in parameters {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") }
}

/// `12345678` as `12,345,678`.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_is_text() {
        let shown = said("<script>alert(1)</script>\"'&\u{202e}x\u{0}\r\ny").into_string();
        assert_eq!(shown, "<bdi>&lt;script&gt;alert(1)&lt;/script&gt;&quot;'&amp;?x? y</bdi>");
    }

    #[test]
    fn numbers_and_links() {
        let all = [0, 999, 1_000, 12_345, 1_234_567].map(number);
        assert_eq!(all, ["0", "999", "1,000", "12,345", "1,234,567"]);
        assert_eq!(link("/queue", &[("to", Some("a&b=\"@x")), ("from", None)]), "/queue?to=a%26b%3D%22%40x");
        assert_eq!(duration(130_000), "2 min");
    }
}
