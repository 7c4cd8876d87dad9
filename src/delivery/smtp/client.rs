//! Our side of an SMTP conversation, as a state machine: replies in, steps out. No socket, no clock.
//!
//! Promises: a recipient's fate is decided only by a reply to a command about it, in order; a message
//! counts as delivered only after the reply to its end; a connection that is lost between the end and
//! that reply leaves the fate unsure and says so. What goes wrong with the host (greeting,
//! EHLO, STARTTLS, AUTH, 421 anywhere, nonsense) is [`Trouble`] of the host and never fails the mail.
//!
//! ```text
//!  Greeting → Ehlo → [StartTls → Handshake → Ehlo] → [Login] → Idle → Envelope → Content → End → Idle …
//!                └→ Helo (RFC 5321 3.2)                         └→ EmptyDot (RFC 2920 3.1) ┘
//! ```
//!
//! Under implicit TLS the handshake comes first of all. How the content goes is decided in `content`, what is
//! different in LMTP in `lmtp`.

use std::time::Duration;

use super::auth::Exchange;
use super::commands::{Mail, write_mail, write_rcpt};
use super::extensions::{Extensions, SizeOffer};
use super::replies::RawReply;
use super::step::{Framing, Loss, Over, Stage, Step, Timeouts, Tls, Trouble};
use super::tls::Fault;
use super::tls_policy::By;
use super::transaction::{Command, Fate, Transaction};
use crate::delivery::Outcome;
use crate::delivery::tls_report::Flaw as TlsFlaw;
use crate::message::Domain;
use crate::queue::record::Failure;
use crate::smtp::Reply;
use crate::trail::{Leg, Trail};

/// One conversation.
#[derive(Debug)]
pub struct Client {
    /// `mx1.example.com [192.0.2.1]:25`
    peer: String,
    helo: Domain,
    is_lmtp: bool,
    tls: Tls,
    timeouts: Timeouts,
    /// Version and cipher, once under TLS.
    secured: Option<String>,
    offers: Extensions,
    account: Option<Account>,
    /// Who demands TLS, and what can be done about it.
    demanded: By,
    /// Where the way is noted; none but for a test.
    trail: Option<Trail>,
    state: State,
}

#[derive(Debug)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Handshake,
    Login(Exchange),
    /// `reset`: the last transaction was not ended by a dot, so RSET comes before the next.
    Idle {
        reset: bool,
    },
    Envelope(Transaction),
    Content(Transaction),
    /// All of the content has gone out.
    End(Transaction),
    /// 354 although nobody is left to receive: an empty message ends it (RFC 2920 3.1).
    EmptyDot(Transaction),
    Closed,
}

impl Client {
    pub fn new(peer: String, helo: Domain, tls: Tls, timeouts: Timeouts) -> Client {
        let offers = Extensions::default();
        let (demanded, state) = (By::Nobody, State::Greeting);
        let (is_lmtp, secured, account, trail) = (false, None, None, None);
        Client { peer, helo, is_lmtp, tls, timeouts, secured, offers, account, demanded, trail, state }
    }

    /// For a server that somebody has named, with what was agreed with it.
    pub fn with_account(self, account: Account) -> Client {
        Client { account: Some(account), ..self }
    }

    /// For a server of which somebody demands TLS.
    pub fn demanded_by(self, demanded: By) -> Client {
        Client { demanded, ..self }
    }

    /// For a person who tests a server.
    pub fn with_trail(self, trail: Option<Trail>) -> Client {
        Client { trail, ..self }
    }

    pub fn trail(&self) -> Option<&Trail> {
        self.trail.as_ref()
    }

    /// What the next reply is about.
    pub fn leg(&self) -> Option<Leg> {
        Some(match &self.state {
            State::Greeting => Leg::Banner,
            State::Ehlo | State::Helo => Leg::Ehlo,
            State::StartTls => Leg::Starttls,
            State::Handshake => Leg::Tls,
            State::Login(_) => Leg::Auth,
            State::Envelope(transaction) => match transaction.unanswered.front()? {
                Command::Reset => Leg::Reset,
                Command::Mail => Leg::Mail,
                Command::Rcpt(_) => Leg::Rcpt,
                Command::Data => Leg::Data,
            },
            State::End(_) | State::EmptyDot(_) => Leg::Message,
            State::Idle { .. } | State::Content(_) | State::Closed => return None,
        })
    }

    /// The first step: wait for the greeting, under TLS if that comes before anything else.
    pub fn start(&mut self) -> Step {
        if self.tls == Tls::Implicit {
            self.state = State::Handshake;
            return Step::StartTls;
        }
        self.await_greeting()
    }

    fn await_greeting(&mut self) -> Step {
        self.state = State::Greeting;
        Step::Talk { send: Vec::new(), timeout: self.timeouts.greeting, secret: false }
    }

    /// A reply has come.
    pub fn reply(&mut self, raw: RawReply) -> Step {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Greeting => self.on_greeting(raw),
            State::Ehlo => self.on_ehlo(raw),
            State::Helo => self.on_helo(raw),
            State::StartTls => self.on_starttls(raw),
            State::Login(exchange) => self.on_login(exchange, &raw),
            State::Envelope(transaction) => self.on_envelope(transaction, raw.parsed()),
            State::End(transaction) if self.is_lmtp => self.on_end_of_one(transaction, raw.parsed()),
            State::End(transaction) => self.on_end(transaction, raw.parsed()),
            State::EmptyDot(transaction) => self.finish(transaction, false),
            // Nothing was asked.
            State::Handshake | State::Idle { .. } | State::Content(_) | State::Closed => {
                Step::Over(self.lost(Loss::Desync))
            }
        }
    }

    fn talk(&self, command: String) -> Step {
        Step::Talk { send: command.into_bytes(), timeout: self.timeouts.command, secret: false }
    }

    fn on_starttls(&mut self, raw: RawReply) -> Step {
        if raw.code == 220 {
            self.state = State::Handshake;
            return Step::StartTls;
        }
        let mut failure = Failure::refused(&self.peer, raw.parsed());
        failure.reason =
            format!("{} offered STARTTLS and answered it with: {}{}", self.peer, raw.parsed(), self.told());
        failure.status = "4.7.10".into();
        // 421 closes the service as a whole; anything else is about TLS.
        let trouble = self.tls_trouble(failure, raw.code != 421);
        Step::Over(Over { decided: Vec::new(), trouble })
    }

    /// The handshake is done; what the server said before it is forgotten (RFC 3207 4.2).
    pub fn secured(&mut self, description: String) -> Step {
        self.secured = Some(description);
        self.offers = Extensions::default();
        if self.tls == Tls::Implicit { self.await_greeting() } else { self.hello() }
    }

    pub fn handshake_failed(&mut self, why: &str) -> Trouble {
        let reason = format!("the TLS handshake with {} failed: {why}{}", self.peer, self.told());
        self.tls_trouble(self.local("4.7.5", reason), true)
    }

    /// The handshake is done, and the server is not who it has to be: nothing more is said to it.
    pub fn certificate_refused(&mut self, fault: &Fault) -> Trouble {
        let reason = format!("{} has no valid certificate ({}), which {}", self.peer, fault.what, self.demands());
        let trouble = self.tls_trouble(self.local("4.7.5", reason), false);
        Trouble { flaw: Some(fault.flaw), ..trouble }
    }

    /// A bad certificate is the end.
    pub fn demands_certificate(&self) -> bool {
        self.tls == Tls::Required
    }

    pub fn is_under_tls(&self) -> bool {
        self.secured.is_some()
    }

    /// For "…, which X demands".
    fn demands(&self) -> String {
        match self.demanded.name() {
            Some(name) => format!("{name} demands{}", self.demanded.remedy()),
            None => "tls = \"required\" demands".to_owned(),
        }
    }

    /// Who demands TLS, after what went wrong with it.
    fn told(&self) -> String {
        let name = self.demanded.name().filter(|_| self.tls == Tls::Required);
        name.map_or_else(String::new, |name| format!("; {name} demands TLS{}", self.demanded.remedy()))
    }

    fn tls_trouble(&mut self, failure: Failure, tls_at_fault: bool) -> Trouble {
        self.state = State::Closed;
        let clear_may_help = tls_at_fault && self.tls == Tls::IfOffered;
        let flaw = tls_at_fault.then_some(TlsFlaw::ValidationFailure);
        Trouble { clear_may_help, flaw, ..Trouble::new(Stage::Tls, failure) }
    }

    /// Offers a message to the server. Only when [`Step::Ready`] or [`Step::Done`] has been given.
    pub fn begin(&mut self, mail: Mail) -> Step {
        self.offer(Transaction::new(mail))
    }

    /// As [`Client::begin`], but ends with RSET in place of DATA: nothing is sent. Recipients that are
    /// accepted are not among those of [`Step::Done`].
    pub fn rehearse(&mut self, mail: Mail) -> Step {
        self.offer(Transaction { ends_with: Command::Reset, ..Transaction::new(mail) })
    }

    fn offer(&mut self, mut transaction: Transaction) -> Step {
        let State::Idle { reset } = self.state else { return Step::Over(self.lost(Loss::Desync)) };
        let mail = &transaction.mail;
        for (fate, recipient) in transaction.fates.iter_mut().zip(&mail.recipients) {
            let needs_smtputf8 = mail.needs_smtputf8() || recipient.address.needs_smtputf8();
            if let Some(failure) = self.unfit(mail, needs_smtputf8) {
                *fate = Fate::Decided(Outcome::Fail(failure));
            }
        }
        if transaction.open().is_empty() {
            return self.finish(transaction, reset);
        }
        self.envelope(transaction, reset)
    }

    /// MAIL, RCPT for those whose fate is open, and DATA unless the content goes by BDAT.
    fn envelope(&mut self, mut transaction: Transaction, reset: bool) -> Step {
        let open = transaction.open();
        if matches!(transaction.ends_with, Command::Data) {
            transaction.framing = self.framing(&transaction.mail);
        }
        transaction.unsent.extend(reset.then_some(Command::Reset));
        transaction.unsent.push_back(Command::Mail);
        transaction.unsent.extend(open.into_iter().map(Command::Rcpt));
        transaction.unsent.extend((transaction.framing == Framing::Dot).then_some(transaction.ends_with));
        self.proceed(transaction)
    }

    /// What this server has told us that it cannot take.
    fn unfit(&self, mail: &Mail, needs_smtputf8: bool) -> Option<Failure> {
        match self.offers.size {
            Some(SizeOffer::Max(max)) if mail.size > max => {
                let reason = format!("{} takes messages of up to {max} bytes; this one has {}", self.peer, mail.size);
                return Some(self.local("5.3.4", reason));
            }
            _ => {}
        }
        if mail.require_tls && !(self.offers.require_tls && self.secured.is_some()) {
            let reason = format!("{} does not offer REQUIRETLS, which {}", self.peer, By::Sender.demanding());
            return Some(self.local("5.7.30", reason));
        }
        let reason = "cannot take addresses or header fields outside ASCII (it does not offer SMTPUTF8)";
        (needs_smtputf8 && !self.offers.smtputf8).then(|| self.local("5.6.7", format!("{} {reason}", self.peer)))
    }

    /// Sends what can be sent now: all commands at once under PIPELINING, else the next.
    fn proceed(&mut self, mut transaction: Transaction) -> Step {
        let mut send = Vec::new();
        if transaction.unanswered.is_empty() {
            while let Some(command) = transaction.unsent.pop_front() {
                if !self.offers.pipelining && transaction.is_pointless(command) {
                    continue;
                }
                self.write_command(&transaction.mail, command, &mut send);
                transaction.unanswered.push_back(command);
                if !self.offers.pipelining {
                    break;
                }
            }
        }
        let timeout = match transaction.unanswered.front() {
            None => return self.after_envelope(transaction),
            Some(Command::Reset) => self.timeouts.command,
            Some(Command::Mail) => self.timeouts.mail,
            Some(Command::Rcpt(_)) => self.timeouts.rcpt,
            Some(Command::Data) => self.timeouts.data,
        };
        self.state = State::Envelope(transaction);
        Step::Talk { send, timeout, secret: false }
    }

    fn write_command(&self, mail: &Mail, command: Command, out: &mut Vec<u8>) {
        match command {
            Command::Reset => out.extend_from_slice(b"RSET\r\n"),
            Command::Mail => write_mail(mail, &self.offers, out),
            Command::Rcpt(at) => {
                if let Some(recipient) = mail.recipients.get(at) {
                    write_rcpt(recipient, &self.offers, out);
                }
            }
            Command::Data => out.extend_from_slice(b"DATA\r\n"),
        }
    }

    fn on_envelope(&mut self, mut transaction: Transaction, reply: Reply) -> Step {
        let Some(command) = transaction.unanswered.pop_front() else {
            return Step::Over(self.abandon(transaction, self.local("4.5.0", self.desync())));
        };
        let is_data = matches!(command, Command::Data);
        let makes_sense = if is_data { reply.code == 354 || reply.code >= 400 } else { reply.code / 100 != 3 };
        if reply.code == 421 || !makes_sense {
            let failure = self.host_failure(&format!("answered {} with", command.name()), &reply);
            return Step::Over(self.abandon(transaction, failure));
        }
        if self.is_about_login(&reply) {
            return Step::Over(self.login_wanted(transaction, command.name(), &reply));
        }
        match command {
            Command::Reset if !reply.is_positive() => {
                let failure = self.host_failure("answered RSET with", &reply);
                return Step::Over(self.abandon(transaction, failure));
            }
            Command::Reset => {}
            Command::Mail if !reply.is_positive() => {
                // RFC 3207 4: the server wants TLS (or AUTH) and says so only now. We have just been
                // unable to give it TLS, which is no fault of the mail.
                if reply.code == 530 && self.tls == Tls::Never {
                    let failure = self.host_failure("answered MAIL with", &reply);
                    return Step::Over(self.abandon(transaction, failure));
                }
                transaction.mail_refused = true;
                transaction.decide_open(|| of_sender(self.refusal(&reply)));
            }
            Command::Mail => {}
            Command::Rcpt(at) => self.on_rcpt(&mut transaction, at, &reply),
            Command::Data => return self.on_data(transaction, reply),
        }
        self.proceed(transaction)
    }

    fn on_rcpt(&self, transaction: &mut Transaction, at: usize, reply: &Reply) {
        if transaction.mail_refused {
            transaction.confused |= reply.is_positive();
            return;
        }
        let fate = match reply.is_positive() {
            true => Fate::Accepted,
            false if is_too_many(reply) => Fate::Postponed(self.too_many(reply)),
            false => Fate::Decided(self.refusal(reply)),
        };
        if let Some(slot) = transaction.fates.get_mut(at) {
            *slot = fate;
        }
    }

    fn finish(&mut self, mut transaction: Transaction, reset: bool) -> Step {
        transaction.decide_postponed();
        // Nothing is left open here; should it be, the mail waits rather than gets lost.
        transaction.decide_open(|| self.deferred(self.local("4.5.0", self.desync())));
        self.state = State::Idle { reset };
        Step::Done(transaction.decided())
    }

    /// The goodbye, and how long to wait for its echo.
    pub fn quit(&mut self) -> (&'static [u8], Duration) {
        self.state = State::Closed;
        (b"QUIT\r\n", self.timeouts.quit)
    }

    pub fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    fn over(&mut self, stage: Stage, failure: Failure) -> Step {
        self.state = State::Closed;
        Step::Over(Over { decided: Vec::new(), trouble: Trouble::new(stage, failure) })
    }

    fn abandon(&mut self, transaction: Transaction, failure: Failure) -> Over {
        self.state = State::Closed;
        let trouble = Trouble::new(Stage::Transaction, failure);
        Over { decided: transaction.decided(), trouble }
    }

    fn refused_by_host(&mut self, stage: Stage, did: &str, reply: &Reply) -> Step {
        self.over(stage, self.host_failure(did, reply))
    }

    fn nonsense(&mut self, stage: Stage, did: &str, reply: &Reply) -> Step {
        let reason = format!("{} {did} \"{reply}\", which is no answer to that", self.peer);
        self.over(stage, self.local("4.5.0", reason))
    }

    /// A reply that speaks for the host and not about the mail: never permanent.
    fn host_failure(&self, did: &str, reply: &Reply) -> Failure {
        let status = match (reply.code, &reply.enhanced) {
            (400.., Some(enhanced)) => format!("4.{}.{}", enhanced.0, enhanced.1),
            (421 | 520..=599, None) => "4.3.2".to_owned(),
            _ => "4.5.0".to_owned(),
        };
        let reason = format!("{} {did}: {reply}", self.peer);
        Failure { reply: Some(reply.clone()), ..self.local(&status, reason) }
    }

    fn refusal(&self, reply: &Reply) -> Outcome {
        let failure = Failure::refused(&self.peer, reply.clone());
        if reply.code / 100 == 5 { Outcome::Fail(failure) } else { self.deferred(failure) }
    }

    /// What it means should there be no further transaction.
    fn too_many(&self, reply: &Reply) -> Outcome {
        let failure = Failure::refused(&self.peer, reply.clone());
        self.deferred(Failure { status: "4.5.3".into(), ..failure })
    }

    fn deferred(&self, why: Failure) -> Outcome {
        Outcome::Defer { why, not_before_secs: None }
    }

    fn local(&self, status: &str, reason: impl Into<String>) -> Failure {
        Failure::local(status, &self.peer, reason)
    }

    fn desync(&self) -> String {
        format!("the replies of {} do not fit the commands", self.peer)
    }
}

fn of_sender(mut outcome: Outcome) -> Outcome {
    if let Outcome::Fail(why) | Outcome::Defer { why, .. } = &mut outcome {
        why.of_sender = true;
    }
    outcome
}

/// 452, and 552 where old servers mean 452 (RFC 5321 4.5.3.1.10): too many recipients for one transaction.
fn is_too_many(reply: &Reply) -> bool {
    let may_be = reply.enhanced.is_none_or(|enhanced| (enhanced.0, enhanced.1) == (5, 3));
    may_be && matches!(reply.code, 452 | 552)
}

mod content;
mod hello;
mod lmtp;
mod login;
mod losses;

pub use login::Account;

#[cfg(test)]
mod tests;

#[cfg(test)]
mod login_tests;
