//! What the log says of a refusal beside the reply: whose message it was, as far as the session knows.
//!
//! It is put together only where something is refused. Of what a client sends, AUTH is never in it.

use super::{Sender, Session, State, Transaction};
use crate::message::envelope::{Envelope, Recipient};
use crate::message::text::harmless;
use crate::message::{Address, Draft, ReversePath};

/// Recipients of a refused message that are named; of the others it is said how many they are.
const RECIPIENTS_NAMED: usize = 3;
/// Characters of a line that could not be read which are shown.
const LINE_CHARS_MAX: usize = 200;

/// A refusal, beside its reply.
#[derive(Debug, Default)]
pub struct Refused {
    pub helo: Option<String>,
    pub from: Option<String>,
    /// Empty if there is no recipient yet.
    pub to: Option<String>,
    /// The beginning of a line that is not a command.
    pub line: Option<String>,
    /// Where there is more to say than the reply does.
    pub reason: Option<String>,
}

impl Refused {
    fn of_sender(sender: &Sender) -> Refused {
        Refused { helo: Some(sender.hello.name.clone()), ..Refused::default() }.with_from(&sender.from)
    }

    pub(super) fn of(transaction: &Transaction) -> Refused {
        Refused { to: named(&transaction.recipients), ..Refused::of_sender(&transaction.sender) }
    }

    pub(super) fn with_from(self, from: &ReversePath) -> Refused {
        // As in SMTP, so that the null sender does not look like a gap.
        Refused { from: Some(if from.is_null() { "<>".to_owned() } else { from.to_string() }), ..self }
    }

    /// This recipient only, whoever else was named before.
    pub(super) fn with_to(self, to: &Address) -> Refused {
        Refused { to: Some(to.to_string()), ..self }
    }

    pub(super) fn with_line(self, line: &[u8]) -> Refused {
        let text = String::from_utf8_lossy(line).chars().take(LINE_CHARS_MAX).collect();
        Refused { line: Some(harmless(text)), ..self }
    }

    pub(super) fn because(self, reason: impl Into<String>) -> Refused {
        Refused { reason: Some(reason.into()), ..self }
    }
}

fn named(recipients: &[Recipient]) -> Option<String> {
    let shown: Vec<_> = recipients.iter().take(RECIPIENTS_NAMED).map(|to| to.address.to_string()).collect();
    let more = recipients.len().saturating_sub(RECIPIENTS_NAMED);
    match more {
        0 if shown.is_empty() => None,
        0 => Some(shown.join(", ")),
        _ => Some(format!("{} and {more} more", shown.join(", "))),
    }
}

impl State {
    /// What is known of the message that is under way, and of its client.
    pub(super) fn refused(&self) -> Refused {
        match self {
            State::Greeted(hello) | State::LoggingIn { hello, .. } => {
                Refused { helo: Some(hello.name.clone()), ..Refused::default() }
            }
            State::Sender(sender) => Refused::of_sender(sender),
            State::Recipients(transaction)
            | State::Chunks { transaction, .. }
            | State::Reading(transaction)
            | State::ReadingChunk { transaction, .. } => Refused::of(transaction),
            _ => Refused::default(),
        }
    }
}

impl Session {
    /// For the log, with the next reply.
    pub(super) fn note(&mut self, refused: Refused) {
        self.refused = Some(Box::new(refused));
    }

    /// The draft that the last question was about is refused: the session has not got it any more.
    pub fn note_draft(&mut self, draft: &Draft) {
        let Envelope { mail_from, recipients, .. } = &draft.envelope;
        let helo = draft.origin.peer.as_ref().map(|peer| peer.helo.clone());
        self.note(Refused { helo, to: named(recipients), ..Refused::default() }.with_from(mail_from));
    }

    /// What the log is to say with the reply that comes now. A reply to something else than mail has nothing.
    pub fn take_refused(&mut self) -> Option<Box<Refused>> {
        self.refused.take()
    }
}
