//! Telling a sender that what lay in a folder was not sent: in place of the file where its sender is one of
//! ours and all of it fits into the notice. Nobody else is told: whoever can write to a folder could
//! have us write to anybody.

use crate::bounce::dsn::{self, Action, FULL_BYTES_MAX, Notice};
use crate::clock::Millis;
use crate::config::Config;
use crate::message::header::{self, Headers};
use crate::message::{Address, Door, Draft, Envelope, MessageId, Origin, Recipient, Ret, ReversePath, TlsWish, stream};
use crate::queue::record::{self, Failure, Route, Status};
use crate::routing::notice_id;
use crate::secret::Marks;
use crate::smtp::reply::Refusal;

/// Recipients that one notice names.
const NAMED_MAX: usize = 100;

/// A message that was not sent, to some or to all.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    pub envelope: &'a Envelope,
    pub content: &'a [u8],
    pub origin: &'a Origin,
    /// Who does not get it, and why.
    pub refused: &'a [(&'a Recipient, &'a Refusal)],
    /// It is what is left of the file.
    pub in_its_place: bool,
}

/// None: the sender is nobody, or somebody else's, or does not want to know.
/// `id`: by what people may find it in the log.
pub fn write(config: &Config, marks: &Marks, about: &About<'_>, id: MessageId, now: Millis) -> Option<Draft> {
    let ReversePath::Address(sender) = &about.envelope.mail_from else { return None };
    let too_long = about.in_its_place && about.content.len() > FULL_BYTES_MAX;
    if !config.is_own(sender.domain()) || too_long {
        return None;
    }
    let seed = getrandom::u64().unwrap_or(now);
    let message = record::Message { id, ..message(about, now) };
    let refused = about.refused.iter().take(NAMED_MAX);
    let recipients: Vec<_> = refused.map(|(recipient, refusal)| failed(recipient, refusal)).collect();
    let wanted: Vec<_> = recipients
        .iter()
        .filter(|(recipient, _)| dsn::wanted(&message, recipient, Action::Failed))
        .map(|(recipient, failure)| (recipient, failure))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    let from = Address::new("MAILER-DAEMON", sender.domain().clone()).ok()?;
    let notice = Notice {
        hostname: &config.hostname,
        from: &from,
        to: sender,
        message: &message,
        recipients: &wanted,
        action: Action::Failed,
        original: about.content,
        now,
        id: &notice_id::make(marks, id, seed, &config.hostname),
        seed,
    };
    let mut envelope = Envelope::new(ReversePath::Null, [sender.clone()]);
    envelope.smtputf8 = dsn::needs_smtputf8(&notice);
    let origin = Origin { door: Door::Bounce, account: None, peer: None };
    Some(Draft { envelope, content: dsn::write(&notice).into(), origin })
}

/// As if it had been queued and failed.
fn message(about: &About<'_>, now: Millis) -> record::Message {
    let headers = Headers::parse(about.content);
    let text = |name: &str| headers.get(name).map(|field| header::unfold(field.value)).unwrap_or_default();
    let mut dsn = about.envelope.dsn.clone();
    if about.in_its_place {
        dsn.ret = Some(Ret::Full);
    }
    record::Message {
        id: MessageId::from_u64(0),
        received_at: now,
        origin: about.origin.clone(),
        mail_from: about.envelope.mail_from.clone(),
        body_type: about.envelope.body,
        smtputf8: about.envelope.smtputf8,
        dsn,
        header_from: None,
        size: about.content.len() as u64,
        chunks: 0,
        streamed: None,
        message_id: headers.get("message-id").and_then(|field| header::message_id(field.value)).unwrap_or_default(),
        subject: text("subject").trim().to_owned(),
        findings: None,
        recipients: about.refused.len() as u32,
        stream: stream::default_name(),
        tls: TlsWish::Usual,
        not_before: None,
        answers: None,
    }
}

fn failed(recipient: &Recipient, refusal: &Refusal) -> (record::Recipient, Failure) {
    let failure = Failure::local(&refusal.reply.status(), "", refusal.reply.to_string());
    let recipient = record::Recipient {
        address: recipient.address.clone(),
        alias: None,
        route: Route::Remote,
        notify: recipient.notify,
        original: recipient.original.clone(),
        status: Status::Waiting { due: 0 },
        attempts: 0,
        last_failure: None,
        delay_notified: false,
        by_hand: None,
        released: None,
    };
    (recipient, failure)
}
