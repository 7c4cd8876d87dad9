//! What is different in LMTP (RFC 2033): LHLO instead of EHLO, and behind the final dot a reply for each
//! recipient that was accepted, in the order of the RCPT commands.
//!
//! It ends at a mailbox, so reports of success are ours, and nothing of them is passed on; BDAT, whose
//! replies RFC 2033 does not know, is not used.

use super::{Client, State};
use crate::delivery::smtp::extensions::Extensions;
use crate::delivery::smtp::step::Step;
use crate::delivery::smtp::transaction::{Fate, Transaction};
use crate::delivery::{Delivered, Hop, Outcome};
use crate::smtp::Reply;

impl Client {
    /// For a server that speaks LMTP.
    pub fn lmtp(self) -> Client {
        Client { is_lmtp: true, ..self }
    }

    pub(super) fn hello_word(&self) -> &'static str {
        if self.is_lmtp { "LHLO" } else { "EHLO" }
    }

    /// What of an offer is used.
    pub(super) fn usable(&self, offers: Extensions) -> Extensions {
        if self.is_lmtp { Extensions { dsn: false, chunking: false, ..offers } } else { offers }
    }

    /// One of the replies behind the dot.
    pub(super) fn on_end_of_one(&mut self, mut transaction: Transaction, reply: Reply) -> Step {
        if (300..=399).contains(&reply.code) {
            return Step::Over(self.unsure(transaction, &format!("answered the message with nonsense ({reply})")));
        }
        let is_closing = reply.code == 421;
        let outcome = match reply.code {
            421 => self.deferred(self.host_failure("answered the message with", &reply)),
            200..=299 => {
                let (to, tls) = (self.peer.clone(), self.secured.clone());
                Outcome::Delivered(Delivered { to, reply: Some(reply.clone()), tls, hop: Hop::Final })
            }
            _ => self.refusal(&reply),
        };
        if let Some(fate) = transaction.fates.iter_mut().find(|fate| **fate == Fate::Accepted) {
            *fate = Fate::Decided(outcome);
        }
        match (transaction.has_accepted(), is_closing) {
            (true, true) => Step::Over(self.unsure(transaction, "closed before it had answered for all recipients")),
            (false, true) => {
                let failure = self.host_failure("answered the message with", &reply);
                Step::Over(self.abandon(transaction, failure))
            }
            (true, false) => {
                self.state = State::End(transaction);
                Step::Talk { send: Vec::new(), timeout: self.timeouts.dot, secret: false }
            }
            (false, false) if transaction.reopen() => self.envelope(transaction, false),
            (false, false) => self.finish(transaction, false),
        }
    }
}
