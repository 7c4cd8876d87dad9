//! MAIL, RCPT, DATA and BDAT: from an envelope that grows to a draft.

use std::mem;

use super::{Asked, RECIPIENTS_OVER_MAX, Refused, Sender, Session, State, Transaction, replies};
use crate::config::Role;
use crate::message::draft::{Door, Origin, Peer};
use crate::message::envelope::{BodyType, Envelope, Recipient};
use crate::message::{Address, Content, Draft, ReversePath};
use crate::server::step::{DataEnd, Question, Step};
use crate::smtp::Reply;
use crate::smtp::command::{MailParams, RcptParams};
use crate::smtp::reply::Severity;
use crate::smtp::wire::DRAIN_BYTES_MAX;

impl Session {
    pub(super) fn mail(&mut self, state: State, from: ReversePath, params: MailParams) -> Step {
        let refusal = match &state {
            State::Greeted(_) => self.mail_refusal(&params),
            State::Fresh => Some(replies::hello_first()),
            _ => Some(replies::in_transaction()),
        };
        let hello = match (refusal, state) {
            (None, State::Greeted(hello)) => hello,
            (None, _) => return self.out_of_step(),
            (Some(reply), state) => {
                let known = Refused { to: None, ..state.refused().with_from(&from) };
                let size = params.size.filter(|_| reply.code == 552);
                self.note(match size {
                    Some(size) => known.because(format!("{reply}; MAIL says SIZE={size}")),
                    None => known,
                });
                return self.say(state, reply);
            }
        };
        let account = self.account().map(str::to_owned);
        let question = Question::Sender { account, sender: from.clone(), size: params.size };
        self.ask(Asked::Sender(Sender { hello, from, params, over: 0 }), question)
    }

    /// Why no message may begin, as far as the session knows.
    fn mail_refusal(&self, params: &MailParams) -> Option<Reply> {
        let may_submit = self.policy.role == Role::Mx || self.account.is_some() || self.policy.trusted;
        if self.is_revoked {
            Some(replies::log_in_again())
        } else if self.needs_tls() {
            Some(replies::tls_first())
        } else if params.require_tls && self.tls.is_none() {
            Some(replies::requiretls_needs_tls())
        } else if !may_submit {
            Some(replies::auth_first())
        } else if params.size.is_some_and(|size| size > self.policy.max_size) {
            Some(replies::too_large(self.policy.max_size))
        } else {
            None
        }
    }

    fn max_recipients(&self) -> usize {
        self.account.as_ref().map_or(self.policy.max_recipients, |account| account.max_recipients)
    }

    pub(super) fn rcpt(&mut self, mut state: State, to: Address, params: RcptParams, utf8: bool) -> Step {
        if let Some(reply) = self.rcpt_answer(&mut state, &to, utf8) {
            if !reply.is_positive() {
                self.note(state.refused().with_to(&to));
            }
            return self.say(state, reply);
        }
        let (sender, before) = match &state {
            State::Sender(sender) => (sender.from.clone(), 0),
            State::Recipients(transaction) => (transaction.sender.from.clone(), transaction.recipients.len()),
            _ => return self.out_of_step(),
        };
        let account = self.account().map(str::to_owned);
        let question = Question::Recipient { account, sender, before, recipient: to.clone() };
        let recipient = Recipient { address: to, notify: params.notify, original: params.original };
        self.ask(Asked::Recipient { before: Box::new(state), recipient }, question)
    }

    /// The reply to a RCPT that nobody else need be asked about.
    fn rcpt_answer(&self, state: &mut State, to: &Address, utf8: bool) -> Option<Reply> {
        let max = self.max_recipients();
        let (sender, recipients): (&mut Sender, &[Recipient]) = match state {
            State::Sender(sender) => (sender, &[]),
            State::Recipients(transaction) => (&mut transaction.sender, &transaction.recipients),
            State::Chunks { .. } => return Some(replies::in_chunks()),
            _ => return Some(replies::mail_first()),
        };
        if utf8 && !sender.params.smtputf8 {
            return Some(replies::needs_smtputf8());
        }
        let is_named = recipients.iter().any(|recipient| recipient.address == *to);
        if !is_named && recipients.len() < max {
            return None;
        }
        sender.over += 1;
        Some(match is_named {
            _ if sender.over > RECIPIENTS_OVER_MAX => replies::too_many_errors(),
            true => replies::same_recipient(),
            false => replies::too_many_recipients(max),
        })
    }

    pub(super) fn recipient_taken(&mut self, before: State, recipient: Recipient, reply: Reply) -> Step {
        let transaction = match before {
            State::Sender(sender) => Transaction { sender, recipients: vec![recipient] },
            State::Recipients(mut transaction) => {
                transaction.recipients.push(recipient);
                transaction
            }
            _ => return self.out_of_step(),
        };
        self.say(State::Recipients(transaction), reply)
    }

    pub(super) fn data(&mut self, state: State) -> Step {
        match state {
            State::Recipients(transaction) => {
                self.state = State::Reading(transaction);
                Step::ReadData(replies::go_ahead())
            }
            other => {
                let reply = no_message_reply(&other);
                self.note(other.refused());
                self.say_alone(other, reply)
            }
        }
    }

    /// How the reading of DATA ended.
    pub fn data_read(&mut self, end: DataEnd) -> Step {
        match mem::replace(&mut self.state, State::Closed) {
            // Where this message ends depends on who reads it. What follows may have been part of it for
            // the server before us, so nothing of it is read as a command.
            State::Reading(transaction) if matches!(end, DataEnd::BareLineEnd) => {
                let reply = replies::bare_line_end();
                self.note(Refused::of(&transaction).because(format!(
                    "{reply}; the connection is closed, because where the message ends depends on who reads it"
                )));
                self.close(reply)
            }
            State::Reading(transaction) => self.message_read(transaction, end),
            _ => self.out_of_step(),
        }
    }

    /// RFC 3030: a chunk follows at once, whether it is welcome or not.
    pub(super) fn bdat(&mut self, state: State, size: u64, last: bool) -> Step {
        let (transaction, before) = match state {
            State::Recipients(transaction) => (transaction, None),
            State::Chunks { transaction, received } => (transaction, Some(received)),
            other => {
                let reply = no_message_reply(&other);
                self.note(other.refused());
                return self.drain(other, size, reply);
            }
        };
        let received = before.unwrap_or(0).saturating_add(size);
        if received > self.policy.max_size {
            let reply = replies::too_large(self.policy.max_size);
            self.note(Refused::of(&transaction));
            return self.drain(State::Greeted(transaction.sender.hello), size, reply);
        }
        if received == 0 && last {
            self.note(Refused::of(&transaction));
            return self.say(State::Greeted(transaction.sender.hello), replies::nothing_sent());
        }
        // One that holds nothing moves no mail.
        if size == 0 && !last && self.is_idle_too_long() {
            self.note(Refused::of(&transaction));
            return self.close(replies::too_idle());
        }
        self.state = State::ReadingChunk { transaction, size, received, last };
        Step::ReadChunk { size, first: before.is_none(), last, discard: false }
    }

    fn drain(&mut self, after: State, size: u64, reply: Reply) -> Step {
        if size == 0 {
            return self.say(after, reply);
        }
        if size > self.policy.max_size.saturating_add(DRAIN_BYTES_MAX) {
            return self.close(reply);
        }
        self.state = State::Draining { after: Box::new(after), reply };
        Step::ReadChunk { size, first: true, last: true, discard: true }
    }

    /// How the reading of a chunk ended.
    pub fn chunk_read(&mut self, end: DataEnd) -> Step {
        match (mem::replace(&mut self.state, State::Closed), end) {
            (State::Draining { reply, .. }, DataEnd::Endless) => self.close(reply),
            (State::Draining { after, reply }, _) => self.say(*after, reply),
            (State::ReadingChunk { transaction, size, received, last: false }, DataEnd::Partial) => {
                self.say(State::Chunks { transaction, received }, replies::chunk_read(size))
            }
            (State::ReadingChunk { transaction, last, .. }, end) if last || !matches!(end, DataEnd::Complete(_)) => {
                self.message_read(transaction, end)
            }
            _ => self.out_of_step(),
        }
    }

    fn message_read(&mut self, transaction: Transaction, end: DataEnd) -> Step {
        let reply = match end {
            DataEnd::Complete(content) => {
                let hello = transaction.sender.hello.clone();
                let draft = self.draft(transaction, content);
                return self.ask(Asked::Accept(hello), Question::Accept(Box::new(draft)));
            }
            DataEnd::TooLarge => replies::too_large(self.policy.max_size),
            DataEnd::BareLineEnd => replies::bare_line_end(),
            DataEnd::Nul => replies::nul(),
            DataEnd::NoRoom => replies::no_room(),
            DataEnd::Unstored => replies::not_stored(),
            DataEnd::Endless => {
                self.note(Refused::of(&transaction));
                return self.close(replies::too_large(self.policy.max_size));
            }
            DataEnd::Partial => return self.out_of_step(),
        };
        self.note(Refused::of(&transaction));
        self.refuse_message(State::Greeted(transaction.sender.hello), reply)
    }

    /// The verdict on a message is always said, also when it is one error too many: a 421 in its place
    /// would have the client send the message again. The next error ends the session.
    pub(super) fn refuse_message(&mut self, after: State, reply: Reply) -> Step {
        if reply.severity() == Severity::Permanent {
            self.errors = self.errors.saturating_add(1);
            self.state = after;
            return Step::Reply(reply);
        }
        self.say(after, reply)
    }

    fn draft(&self, transaction: Transaction, content: Content) -> Draft {
        let Transaction { sender, recipients } = transaction;
        // What the client declared, or what is there if it declared less.
        let is_eight_bit = sender.params.body == Some(BodyType::EightBitMime) || !content.is_ascii();
        let envelope = Envelope {
            mail_from: sender.from,
            recipients,
            body: if is_eight_bit { BodyType::EightBitMime } else { BodyType::SevenBit },
            smtputf8: sender.params.smtputf8,
            dsn: sender.params.dsn,
            require_tls: sender.params.require_tls,
            not_before: None,
        };
        let listener = self.policy.listener.clone();
        let origin = Origin {
            door: match self.policy.role {
                Role::Mx => Door::Mx { listener },
                Role::Submission => Door::Submission { listener },
            },
            account: self.account().map(str::to_owned),
            peer: Some(Peer {
                ip: self.policy.peer_ip,
                helo: sender.hello.name,
                esmtp: sender.hello.esmtp,
                tls: self.tls.clone(),
            }),
        };
        Draft { envelope, content, origin }
    }
}

/// Why no message can come now.
fn no_message_reply(state: &State) -> Reply {
    match state {
        State::Fresh => replies::hello_first(),
        State::Sender(_) => replies::no_recipients(),
        State::Chunks { .. } => replies::in_chunks(),
        _ => replies::mail_first(),
    }
}
