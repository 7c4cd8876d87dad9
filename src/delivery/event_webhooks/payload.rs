//! The JSON of an event as it is pushed: `{"type": "message.delivered", "id", "created_at", "data": {…}}`.
//!
//! It is made of the event as it is in the journal, so what is added to an event is pushed as it is called there;
//! what other services have a word for is called by it: `smtp{code, enhanced, text}`, `mx`, `bounce.class`.

use serde_json::{Map, Value, json};

use crate::clock::{Millis, rfc3339};
use crate::events::kind::Kind;
use crate::events::outbox::{GAP, Waiting};
use crate::events::search::Context;
use crate::events::{Entry, Event};
use crate::message::MessageId;
use crate::routing::capture;

/// How an event is known to a webhook: the same in every try.
pub fn event_id(Waiting { number, journal_key, value, .. }: &Waiting) -> String {
    if *journal_key == GAP {
        // Numbers may begin anew; the time does not.
        let dropped: Value = serde_json::from_slice(value).unwrap_or_default();
        let until = dropped.get("until").and_then(Value::as_str).unwrap_or_default();
        let digits: String = until.chars().filter(char::is_ascii_digit).collect();
        return format!("gap_{digits}_{number}");
    }
    let (id, rest) = journal_key.split_at(8);
    let id = MessageId::from_prefix(id).map(|id| id.to_string()).unwrap_or_default();
    let hex: String = rest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("evt_{id}_{hex}")
}

/// Events that were dropped.
pub fn gap(id: &str, dropped: &Value) -> Vec<u8> {
    let created_at = dropped.get("until").cloned().unwrap_or_default();
    json!({ "type": "events.gap", "id": id, "created_at": created_at, "data": dropped }).to_string().into_bytes()
}

/// None: it is of no kind that is pushed, or cannot be read.
pub fn event(id: &str, message: MessageId, context: &Context, value: &[u8]) -> Option<Vec<u8>> {
    let entry: Entry = serde_json::from_slice(value).ok()?;
    let kind = Kind::of(&entry.event)?;
    let Value::Object(mut event) = serde_json::to_value(&entry.event).ok()? else { return None };
    let name = event.remove("event");
    let mut data = Map::new();
    data.insert("queue_id".to_owned(), json!(message));
    for (key, value) in [
        ("message_id", &context.message_id),
        ("from", &context.from),
        ("account", &context.account),
        ("stream", &context.stream),
    ] {
        // The event itself may say it (`accepted`); what it says is the same.
        event.remove(key);
        data.insert(key.to_owned(), json!(value));
    }
    data.insert("test".to_owned(), json!(is_test(&entry.event)));
    if name.as_ref().and_then(Value::as_str) == Some("unsure") {
        data.insert("unsure".to_owned(), json!(true));
    }
    match kind {
        Kind::Bounced => bounce(&mut event, &mut data),
        _ => {
            failure(&mut event, &mut data);
        }
    }
    rename(kind, &mut event);
    data.extend(event);
    let created_at = rfc3339(entry.at);
    let whole = json!({
        "type": format!("message.{}", kind.name()), "id": id, "created_at": created_at, "data": data
    });
    Some(whole.to_string().into_bytes())
}

/// Has it happened because nothing leaves, and not elsewhere?
fn is_test(event: &Event) -> bool {
    match event {
        Event::Captured { .. } => true,
        Event::Delivered { to, .. } => to == capture::DOMAIN,
        Event::Failed { why, .. } | Event::Deferred { why, .. } | Event::Expired { why, .. } => {
            why.host == capture::DOMAIN
        }
        Event::Complained { agent, message, report, .. } => message == report && agent == capture::DOMAIN,
        _ => false,
    }
}

/// Takes `why` apart; gives the status.
fn failure(event: &mut Map<String, Value>, data: &mut Map<String, Value>) -> Option<String> {
    let Some(Value::Object(mut why)) = event.remove("why") else { return None };
    let status = why.get("status").and_then(Value::as_str).map(str::to_owned);
    let reply = why.remove("reply").unwrap_or_default();
    data.insert("smtp".to_owned(), json!({ "code": reply.get("code"), "enhanced": status, "text": reply.get("text") }));
    data.insert("mx".to_owned(), why.remove("host").filter(|host| host != "").unwrap_or_default());
    data.insert("reason".to_owned(), why.remove("reason").unwrap_or_default());
    status
}

/// What was refused at once, or reported later.
fn bounce(event: &mut Map<String, Value>, data: &mut Map<String, Value>) {
    let at_once = failure(event, data);
    let class = match event.remove("class") {
        Some(class) => class,
        None => json!(class(at_once.as_deref().unwrap_or_default())),
    };
    if at_once.is_none() {
        let (status, text) = (event.remove("status"), event.remove("diagnostic"));
        data.insert("smtp".to_owned(), json!({ "code": null, "enhanced": status, "text": text }));
    }
    data.insert("bounce".to_owned(), json!({ "class": class }));
}

/// By RFC 3463: the words are those of reports that come back.
fn class(status: &str) -> &'static str {
    let mut numbers = status.split('.').skip(1).map(|number| number.parse::<u16>().unwrap_or_default());
    match (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default()) {
        (1, _) | (2, 1) => "hard",
        (2, 2) => "full",
        (2, 3) | (3, 4) => "size",
        (4, 6) => "loop",
        (7, _) => "policy",
        // A refusal without a status of its own: most often there is no such mailbox.
        (0, 0) => "hard",
        _ => "soft",
    }
}

/// Names of the journal that other services call otherwise.
fn rename(kind: Kind, event: &mut Map<String, Value>) {
    if let Some(next) = event.remove("next") {
        let next = next.as_u64().map(|at: Millis| rfc3339(at));
        event.insert("next_attempt_at".to_owned(), json!(next));
    }
    for (from, to) in [("to", "mx"), ("report", "report_id"), ("was", "was_queue_id")] {
        // A copy goes to a file.
        if from == "to" && kind != Kind::Delivered {
            continue;
        }
        if let Some(value) = event.remove(from) {
            event.insert(to.to_owned(), value);
        }
    }
    if let Some(reply) = event.remove("reply") {
        event.insert("smtp".to_owned(), taken(reply.as_str().unwrap_or_default()));
    }
    // The message of a report is the one that the event is about.
    event.remove("message");
}

/// `250 2.0.0 ok` in its parts; null where nothing was said.
fn taken(reply: &str) -> Value {
    let (code, rest) = reply.split_once(' ').unwrap_or((reply, ""));
    let Ok(code) = code.parse::<u16>() else { return Value::Null };
    let is_status = |word: &str| {
        let mut parts = word.split('.');
        parts.clone().count() == 3 && parts.all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    match rest.split_once(' ').unwrap_or((rest, "")) {
        (status, text) if is_status(status) => json!({ "code": code, "enhanced": status, "text": text }),
        _ => json!({ "code": code, "enhanced": null, "text": rest }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::message::Address;
    use crate::queue::record::Failure;
    use crate::smtp::Reply;

    fn made(event: Event) -> Value {
        let entry = Entry { at: 1_795_300_017_123, event };
        let id = MessageId::first_at(1_795_300_000_000);
        let context =
            Context { from: Some("a@example.com".into()), message_id: Some("1@x".into()), ..Context::default() };
        let bytes = super::event("evt_1", id, &context, &serde_json::to_vec(&entry).unwrap()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    fn bob() -> Address {
        Address::parse("bob@example.net").unwrap()
    }

    #[test]
    fn what_was_delivered() {
        let event = Event::Delivered {
            recipient: bob(),
            to: "mx.example.net [192.0.2.9]".into(),
            reply: "250 2.0.0 ok as 17".into(),
            tls: Some("TLSv1.3".into()),
            attempt: 2,
        };
        let wanted = json!({
            "type": "message.delivered", "id": "evt_1", "created_at": "2026-11-21T22:26:57.123Z",
            "data": {
                "queue_id": MessageId::first_at(1_795_300_000_000), "message_id": "1@x", "from": "a@example.com",
                "account": null, "stream": null, "test": false, "recipient": "bob@example.net",
                "mx": "mx.example.net [192.0.2.9]", "tls": "TLSv1.3", "attempt": 2,
                "smtp": {"code": 250, "enhanced": "2.0.0", "text": "ok as 17"},
            },
        });
        assert_eq!(made(event), wanted);
    }

    #[test]
    fn what_was_refused_and_what_waits() {
        let why = Failure::refused("mx.example.net", Reply::new(550, (1, 1), "no such user"));
        let refused = made(Event::Failed { recipient: bob(), why, attempt: 1 });
        assert_eq!(refused["type"], "message.bounced");
        assert_eq!(refused["data"]["bounce"]["class"], "hard");
        assert_eq!(refused["data"]["smtp"], json!({"code": 550, "enhanced": "5.1.1", "text": "no such user"}));
        assert_eq!(refused["data"]["mx"], "mx.example.net");

        let why = Failure::local("4.4.1", "mx.example.net", "no connection");
        let waits = made(Event::Unsure { recipient: bob(), why: why.clone(), attempt: 1, next: 1_795_300_018_000 });
        assert_eq!((&waits["type"], &waits["data"]["unsure"]), (&json!("message.deferred"), &json!(true)));
        assert_eq!(waits["data"]["next_attempt_at"], "2026-11-21T22:26:58.000Z");
        assert_eq!(waits["data"]["smtp"], json!({"code": null, "enhanced": "4.4.1", "text": null}));
        assert_eq!(made(Event::Failed { recipient: bob(), why, attempt: 1 })["type"], "message.failed");
        assert_eq!(made(Event::Captured { recipient: bob() })["data"]["test"], true);
    }

    #[test]
    fn what_came_back() {
        let (message, report) = (MessageId::from_u64(1), MessageId::from_u64(2));
        let bounced = made(Event::Bounced {
            recipient: bob(),
            class: "full".into(),
            status: "5.2.2".into(),
            diagnostic: "552 mailbox full".into(),
            message,
            report,
            counted: true,
        });
        assert_eq!(bounced["type"], "message.bounced");
        assert_eq!(bounced["data"]["bounce"]["class"], "full");
        let smtp = json!({"code": null, "enhanced": "5.2.2", "text": "552 mailbox full"});
        assert_eq!((&bounced["data"]["smtp"], &bounced["data"]["report_id"]), (&smtp, &json!(report)));
        let (kind, agent) = ("abuse".into(), "Example/1.0".into());
        let complained = made(Event::Complained { recipient: bob(), kind, agent, message, report });
        assert_eq!((&complained["type"], &complained["data"]["kind"]), (&json!("message.complained"), &json!("abuse")));
        let suppressed = made(Event::Suppressed { recipient: bob(), reason: "hard_bounce".into() });
        assert_eq!(suppressed["type"], "message.suppressed");
        assert_eq!(suppressed["data"]["reason"], "hard_bounce");
    }

    #[test]
    fn classes_follow_the_status() {
        for (status, wanted) in [
            ("5.1.1", "hard"),
            ("5.2.2", "full"),
            ("5.3.4", "size"),
            ("5.4.6", "loop"),
            ("5.7.26", "policy"),
            ("", "hard"),
            ("5.3.0", "soft"),
        ] {
            assert_eq!(class(status), wanted, "{status}");
        }
    }
}
