//! The content of a message: by DATA (RFC 5321 4.1.1.4) or by BDAT (RFC 3030).
//!
//! Promises: nothing of the content is sent before a recipient was taken; fates of those that were taken
//! are decided by the reply to the whole of it, or are unsure from its last octets on.
//!
//! Which one, where the server offers both: what takes fewer round trips, and DATA where none is saved
//! and little else. Under PIPELINING both take two, because DATA goes along with RCPT, and BDAT has to
//! wait for the replies to RCPT. Without it BDAT saves the wait for 354. What is long goes by BDAT in any
//! case: neither side has to look at its lines, and how much is to come is known before it comes. What
//! is short does not gain by it, and DATA is what every server knows: one that offers BDAT and does
//! not know it takes content for commands.

use super::{Client, State};
use crate::delivery::smtp::commands::Mail;
use crate::delivery::smtp::step::{Framing, Loss, Over, Step, Trouble};
use crate::delivery::smtp::transaction::Transaction;
use crate::delivery::{Delivered, Hop, Outcome};
use crate::queue::record::Failure;
use crate::smtp::Reply;
use crate::smtp::wire::Flaw;

/// Octets of content from which on BDAT is used although it saves no round trip.
pub(super) const LONG_BYTES: u64 = 256 * 1024;

impl Client {
    pub(super) fn framing(&self, mail: &Mail) -> Framing {
        let is_worthwhile = !self.offers.pipelining || mail.size >= LONG_BYTES;
        if self.offers.chunking && is_worthwhile && !mail.without_bdat { Framing::Counted } else { Framing::Dot }
    }

    /// All replies to MAIL and RCPT are there, and no DATA is to come: the content, if anybody wants it.
    pub(super) fn after_envelope(&mut self, transaction: Transaction) -> Step {
        if transaction.framing == Framing::Counted && transaction.has_accepted() {
            return self.content(transaction);
        }
        self.finish(transaction, true)
    }

    fn content(&mut self, transaction: Transaction) -> Step {
        let framing = transaction.framing;
        self.state = State::Content(transaction);
        Step::Content(framing)
    }

    pub(super) fn on_data(&mut self, mut transaction: Transaction, reply: Reply) -> Step {
        if reply.code != 354 {
            // If nobody was accepted this answers nothing that is still open.
            transaction.decide_accepted(|| self.refusal(&reply));
            return self.finish(transaction, true);
        }
        if transaction.has_accepted() {
            return self.content(transaction);
        }
        // RFC 2033 4.2: there is nobody to answer for.
        if transaction.confused || self.is_lmtp {
            // An empty message would reach those that it accepted.
            return Step::Over(self.abandon(transaction, self.local("4.5.0", self.desync())));
        }
        self.state = State::EmptyDot(transaction);
        Step::Talk { send: b".\r\n".to_vec(), timeout: self.timeouts.dot, secret: false }
    }

    /// The last block of content, with the final dot or the last octet of the chunk in it: from here on the message may have arrived.
    pub fn end_content(&mut self, last_block: Vec<u8>) -> Step {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Content(transaction) => {
                self.state = State::End(transaction);
                Step::Talk { send: last_block, timeout: self.timeouts.dot, secret: false }
            }
            _ => Step::Over(self.lost(Loss::Desync)),
        }
    }

    /// Is what is waited for now the verdict on a message that the server has?
    pub fn has_sent_all(&self) -> bool {
        matches!(self.state, State::End(_))
    }

    pub(super) fn on_end(&mut self, mut transaction: Transaction, reply: Reply) -> Step {
        let is_counted = transaction.framing == Framing::Counted;
        match reply.code {
            // The server said that it did not take the mail, and that it is closing.
            421 => {
                let failure = self.host_failure("answered the message with", &reply);
                Step::Over(self.abandon(transaction, failure))
            }
            300..=399 => Step::Over(self.unsure(transaction, &format!("answered the message with nonsense ({reply})"))),
            200..=299 => {
                let hop = if self.offers.dsn { Hop::PassedOn } else { Hop::Relayed };
                let to = self.peer.clone();
                let delivered = Delivered { to, reply: Some(reply), tls: self.secured.clone(), hop };
                transaction.decide_accepted(|| Outcome::Delivered(delivered.clone()));
                if transaction.reopen() { self.envelope(transaction, false) } else { self.finish(transaction, false) }
            }
            _ if is_counted && is_unknown(&reply) => Step::Over(self.bdat_unknown(transaction, &reply)),
            _ if self.is_about_login(&reply) => Step::Over(self.login_wanted(transaction, "the message", &reply)),
            _ => {
                transaction.decide_accepted(|| self.refusal(&reply));
                // RFC 3030 2: what state a refused BDAT leaves is not known before RSET.
                self.finish(transaction, is_counted)
            }
        }
    }

    /// The server offers BDAT and does not know it. What it made of the content cannot be known, so this
    /// connection is of no more use.
    fn bdat_unknown(&mut self, transaction: Transaction, reply: &Reply) -> Over {
        let failure = self.host_failure("offers CHUNKING and answered BDAT with", reply);
        let over = self.abandon(transaction, failure);
        Over { trouble: Trouble { data_may_help: true, ..over.trouble }, ..over }
    }

    /// The connection failed while the content was on its way, which the server has not taken whole.
    pub(super) fn lost_in_content(&mut self, transaction: Transaction, loss: &Loss, failure: Failure) -> Over {
        match loss {
            Loss::Interrupted(Some(raw)) if transaction.framing == Framing::Counted && is_unknown(&raw.parsed()) => {
                self.bdat_unknown(transaction, &raw.parsed())
            }
            _ => self.abandon(transaction, failure),
        }
    }

    /// The end went out and no verdict came back: tried again later, but at no other host now.
    pub(super) fn unsure(&mut self, mut transaction: Transaction, what: &str) -> Over {
        let reason = format!("{} {what}; the message may have arrived", self.peer);
        let failure = Failure { unsure: true, ..self.local("4.4.2", reason) };
        transaction.decide_accepted(|| self.deferred(failure.clone()));
        self.abandon(transaction, failure)
    }

    /// The content must not be ended, because another server could read it as two messages. No host
    /// will ever get it.
    pub fn unsendable(&mut self, flaw: Flaw) -> Over {
        let failure = Failure::local("5.6.0", "", format!("the message was not sent: {flaw}"));
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Content(mut transaction) => {
                transaction.decide_accepted(|| Outcome::Fail(failure.clone()));
                self.abandon(transaction, failure)
            }
            _ => self.lost(Loss::Desync),
        }
    }

    /// The rest of the content cannot be had from our own store: nobody else gets it either, for now.
    pub fn unread(&mut self, why: &str) -> Over {
        let failure = Failure::local("4.3.0", "", format!("the stored message cannot be read: {why}"));
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Content(mut transaction) => {
                transaction.decide_accepted(|| self.deferred(failure.clone()));
                self.abandon(transaction, failure)
            }
            _ => self.lost(Loss::Desync),
        }
    }
}

/// x0z is about the syntax of a command (RFC 5321 4.2.1), not about the mail.
fn is_unknown(reply: &Reply) -> bool {
    let may_be = reply.enhanced.is_none_or(|enhanced| matches!(enhanced.0, 0 | 5));
    may_be && matches!(reply.code, 500..=504)
}
