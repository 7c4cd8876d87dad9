//! The SMTP session as a state machine without I/O, clock or look-ups.
//!
//! The pump gives it lines, answers and the ends of what it read; it gives back a [`Step`]. Each state
//! carries what belongs to it and is consumed by the next input, so that a message without a
//! sender or recipient cannot be written down, and nothing is left over from a transaction that ended.
//!
//! ```text
//! Fresh ─EHLO─► Greeted ─MAIL─► Sender ─RCPT─► Recipients ─DATA─► Reading ─► accepted or refused ─► Greeted
//!                  │ ▲                              └──BDAT─► Chunks ─LAST──┘
//!                  └─┴─ AUTH: LoggingIn             `Asked`: an answer from outside is due
//! ```
//!
//! Choices that the RFCs leave open: a second EHLO forgets the log-in as well as the transaction. A
//! client on loopback may AUTH without TLS, because nobody is in between; where the listener requires
//! TLS it may not. A BDAT whose count cannot be read closes the connection, because the octets that
//! follow are content and would be read as commands.
//!
//! Leaves out: whose sender and recipients are good and who knows which password (`Question`),
//! time-outs and connection limits (`connection`, `limits`).

mod auth;
mod refused;
pub(crate) mod replies;
mod transaction;

pub use refused::Refused;

use std::mem;

use super::sasl::{Exchange, ScramHello, ScramSuccess};
use super::step::{Answer, Policy, Question, Step};
use crate::config::{ListenerTls, Role};
use crate::message::ReversePath;
use crate::message::envelope::Recipient;
use crate::smtp::Reply;
use crate::smtp::command::{Command, CommandError, MailParams};
use crate::smtp::reply::{Refusal, Severity};
use crate::smtp::wire::LineError;

/// Commands that move no mail (NOOP, RSET, EHLO …) between two messages.
pub const IDLE_COMMANDS_MAX: u32 = 100;
/// RCPTs refused with 452 in one transaction because it is full.
pub const RECIPIENTS_OVER_MAX: usize = 1000;

/// One connection's conversation.
#[derive(Debug)]
pub struct Session {
    policy: Policy,
    tls: Option<String>,
    account: Option<Account>,
    /// The log-in is not good any more.
    is_revoked: bool,
    /// Replies of the 5yz kind so far.
    errors: u32,
    idle_commands: u32,
    /// What the log is to say with the next reply.
    refused: Option<Box<Refused>>,
    state: State,
}

#[derive(Clone, Debug)]
struct Account {
    name: String,
    max_recipients: usize,
}

/// How the client introduced itself.
#[derive(Clone, Debug)]
struct Hello {
    name: String,
    esmtp: bool,
}

/// After MAIL.
#[derive(Debug)]
struct Sender {
    hello: Hello,
    from: ReversePath,
    params: MailParams,
    /// RCPTs refused because there were enough.
    over: usize,
}

/// After the first RCPT that was taken: there is always a recipient.
#[derive(Debug)]
struct Transaction {
    sender: Sender,
    recipients: Vec<Recipient>,
}

#[derive(Debug)]
enum State {
    /// Connected, or TLS has just started: nothing is known.
    Fresh,
    Greeted(Hello),
    /// `proven`: the account to take once the client has seen our half of SCRAM.
    LoggingIn {
        hello: Hello,
        exchange: Exchange,
        proven: Option<Account>,
    },
    Sender(Sender),
    Recipients(Transaction),
    /// Between the chunks of a message.
    Chunks {
        transaction: Transaction,
        received: u64,
    },
    Asked(Asked),
    /// The pump reads DATA.
    Reading(Transaction),
    /// The pump reads a chunk; `received` counts it in.
    ReadingChunk {
        transaction: Transaction,
        size: u64,
        received: u64,
        last: bool,
    },
    /// The pump drains a refused chunk, which is then answered with `reply`.
    Draining {
        after: Box<State>,
        reply: Reply,
    },
    /// The pump does the handshake.
    Handshake,
    Closed,
}

/// What the outside was asked, and what goes on with the answer.
#[derive(Debug)]
enum Asked {
    Login(Hello),
    ScramKeys(Hello, ScramHello),
    /// Without a success the only answer is a refusal.
    ScramResult(Hello, Option<ScramSuccess>),
    Sender(Sender),
    Recipient {
        before: Box<State>,
        recipient: Recipient,
    },
    Accept(Hello),
}

impl State {
    /// Where RSET leads.
    fn reset(self) -> State {
        match self {
            State::Greeted(hello) | State::LoggingIn { hello, .. } => State::Greeted(hello),
            State::Sender(sender) => State::Greeted(sender.hello),
            State::Recipients(transaction)
            | State::Chunks { transaction, .. }
            | State::Reading(transaction)
            | State::ReadingChunk { transaction, .. } => State::Greeted(transaction.sender.hello),
            _ => State::Fresh,
        }
    }

    fn is_transaction(&self) -> bool {
        matches!(self, State::Sender(_) | State::Recipients(_) | State::Chunks { .. })
    }
}

impl Session {
    /// With the greeting. Under implicit TLS the handshake comes first: call
    /// [`Session::tls_started`] before the first line.
    pub fn new(policy: Policy) -> (Session, Reply) {
        let greeting = replies::greeting(&policy);
        let session = Session {
            policy,
            tls: None,
            account: None,
            is_revoked: false,
            errors: 0,
            idle_commands: 0,
            refused: None,
            state: State::Fresh,
        };
        (session, greeting)
    }

    /// The account that is logged in.
    pub fn account(&self) -> Option<&str> {
        self.account.as_ref().map(|account| account.name.as_str())
    }

    /// No message is under way, nor a log-in.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Fresh | State::Greeted(_))
    }

    /// Something else holds from the next command on. `max_recipients` of the account that is logged in; none if
    /// it would not be let in any more. Only while [`Session::is_idle`].
    pub fn renew(&mut self, policy: Policy, max_recipients: Option<usize>) {
        self.policy = policy;
        match (&mut self.account, max_recipients) {
            (Some(account), Some(max)) => account.max_recipients = max,
            (Some(_), None) => (self.account, self.is_revoked) = (None, true),
            (None, _) => {}
        }
    }

    /// True between the chunks of a message: the pump keeps what it has read. In any other state it
    /// can let go of it.
    pub fn is_between_chunks(&self) -> bool {
        matches!(self.state, State::Chunks { .. } | State::ReadingChunk { .. })
    }

    /// A line without its CRLF.
    pub fn line(&mut self, line: &[u8]) -> Step {
        match mem::replace(&mut self.state, State::Closed) {
            State::LoggingIn { hello, exchange, proven } => self.turn(hello, exchange.respond(line), proven),
            state @ (State::Fresh
            | State::Greeted(_)
            | State::Sender(_)
            | State::Recipients(_)
            | State::Chunks { .. }) => self.command(state, line),
            _ => self.out_of_step(),
        }
    }

    /// The framing cannot go on.
    pub fn bad_line(&mut self, error: LineError) -> Step {
        self.note(self.state.refused());
        self.close(replies::bad_line(error))
    }

    /// RFC 3207 4.2: everything the client said before is forgotten.
    pub fn tls_started(&mut self, description: String) {
        self.tls = Some(description);
        (self.account, self.is_revoked) = (None, false);
        self.state = State::Fresh;
    }

    /// What the outside found for the last [`Step::Ask`].
    pub fn answer(&mut self, answer: Answer) -> Step {
        let State::Asked(asked) = mem::replace(&mut self.state, State::Closed) else {
            return self.out_of_step();
        };
        match (asked, answer) {
            (Asked::Login(hello), Answer::Account { name, max_recipients }) => {
                self.logged_in(hello, Account { name, max_recipients })
            }
            (Asked::ScramKeys(hello, scram), Answer::Scram(keys)) => self.turn(hello, scram.challenge(keys), None),
            (Asked::ScramResult(hello, Some(success)), Answer::Account { name, max_recipients }) => {
                self.turn(hello, success.challenge(), Some(Account { name, max_recipients }))
            }
            (Asked::Sender(sender), Answer::Ok(reply)) => self.say(State::Sender(sender), reply),
            (Asked::Recipient { before, recipient }, Answer::Ok(reply)) => {
                self.recipient_taken(*before, recipient, reply)
            }
            (Asked::Accept(hello), Answer::Ok(reply)) => {
                self.idle_commands = 0;
                self.say(State::Greeted(hello), reply)
            }
            (asked, Answer::Refused(refusal)) => self.refused_outside(asked, refusal),
            _ => self.out_of_step(),
        }
    }

    fn refused_outside(&mut self, asked: Asked, refusal: Refusal) -> Step {
        let Refusal { reply, reason } = refusal;
        // Of a draft, the pump has said whose it was.
        let noted = self.refused.take().map(|noted| *noted);
        match asked {
            Asked::Accept(hello) => {
                let state = State::Greeted(hello);
                self.note(noted.unwrap_or_else(|| state.refused()).because(reason));
                self.refuse_message(state, reply)
            }
            Asked::Login(hello) | Asked::ScramKeys(hello, _) | Asked::ScramResult(hello, _) => {
                let state = State::Greeted(hello);
                self.note(state.refused().because(reason));
                self.say(state, reply)
            }
            Asked::Sender(sender) => {
                let state = State::Greeted(sender.hello);
                self.note(state.refused().with_from(&sender.from).because(reason));
                self.say(state, reply)
            }
            Asked::Recipient { before, recipient } => {
                self.note(before.refused().with_to(&recipient.address).because(reason));
                self.say(*before, reply)
            }
        }
    }

    fn close(&mut self, reply: Reply) -> Step {
        self.state = State::Closed;
        Step::Close(reply)
    }

    fn out_of_step(&mut self) -> Step {
        self.close(replies::out_of_step())
    }

    /// Goes to `state` and says this. Errors are counted, and one too many ends the session.
    fn say(&mut self, state: State, reply: Reply) -> Step {
        if reply.severity() == Severity::Permanent {
            self.errors = self.errors.saturating_add(1);
            if self.errors > self.policy.errors_max {
                if let Some(refused) = &mut self.refused {
                    refused.reason.get_or_insert_with(|| reply.to_string());
                }
                return self.close(replies::too_many_errors());
            }
        }
        if reply.code == 421 {
            return self.close(reply);
        }
        self.state = state;
        Step::Reply(reply)
    }

    fn ask(&mut self, asked: Asked, question: Question) -> Step {
        self.state = State::Asked(asked);
        Step::Ask(question)
    }

    /// As `say`, to a client that had to wait for the reply.
    fn say_alone(&mut self, state: State, reply: Reply) -> Step {
        match self.say(state, reply) {
            Step::Reply(reply) => Step::ReplyAlone(reply),
            other => other,
        }
    }

    /// As `say`, for a command that moves no mail.
    fn say_idle(&mut self, state: State, reply: Reply) -> Step {
        if self.is_idle_too_long() {
            return self.close(replies::too_idle());
        }
        self.say(state, reply)
    }

    /// Counts a command that moves no mail.
    fn is_idle_too_long(&mut self) -> bool {
        self.idle_commands += 1;
        self.idle_commands > IDLE_COMMANDS_MAX
    }

    fn command(&mut self, state: State, line: &[u8]) -> Step {
        let command = match Command::parse(line, &self.policy.hostname) {
            Ok(command) => command,
            Err(error @ CommandError::OtherProtocol) => return self.close(error.reply()),
            Err(error) => {
                if is_about_mail(line) {
                    self.note(state.refused().with_line(line));
                }
                return if is_bdat(line) { self.close(error.reply()) } else { self.say(state, error.reply()) };
            }
        };
        match command {
            Command::Ehlo(name) => self.hello(Hello { name, esmtp: true }),
            Command::Helo(name) => self.hello(Hello { name, esmtp: false }),
            Command::Mail { from, params } => self.mail(state, from, params),
            Command::Rcpt { to, params, utf8 } => self.rcpt(state, to, params, utf8),
            Command::Data => self.data(state),
            Command::Bdat { size, last } => self.bdat(state, size, last),
            Command::Rset => self.say_idle(state.reset(), replies::ok()),
            Command::Noop => self.say_idle(state, replies::ok()),
            Command::Help => self.say_idle(state, replies::help()),
            Command::Vrfy => self.say_idle(state, replies::will_not_verify()),
            Command::Expn => self.say(state, replies::no_expn()),
            Command::Quit => self.close(replies::bye()),
            Command::StartTls => self.start_tls(state),
            Command::Auth { mechanism, initial } => self.auth(state, &mechanism, initial),
        }
    }

    fn hello(&mut self, hello: Hello) -> Step {
        (self.account, self.is_revoked) = (None, false);
        let reply = if hello.esmtp {
            replies::ehlo(&self.policy, self.may_start_tls(), self.may_authenticate(), self.tls.is_some())
        } else {
            replies::helo(&self.policy)
        };
        self.say_idle(State::Greeted(hello), reply)
    }

    fn offers_tls(&self) -> bool {
        matches!(self.policy.tls, ListenerTls::Opportunistic | ListenerTls::Required)
    }

    fn may_start_tls(&self) -> bool {
        self.offers_tls() && self.tls.is_none()
    }

    /// The listener requires TLS and has not got it.
    fn needs_tls(&self) -> bool {
        self.policy.tls == ListenerTls::Required && self.tls.is_none()
    }

    fn may_authenticate(&self) -> bool {
        self.policy.role == Role::Submission && (self.tls.is_some() || (self.policy.loopback && !self.needs_tls()))
    }

    fn start_tls(&mut self, state: State) -> Step {
        if self.tls.is_some() {
            return self.say(state, replies::tls_already());
        }
        if !self.offers_tls() {
            return self.say(state, replies::tls_not_offered());
        }
        if state.is_transaction() {
            return self.say(state, replies::in_transaction());
        }
        self.state = State::Handshake;
        Step::StartTls(replies::start_tls())
    }
}

/// True if the line would have announced octets.
fn is_bdat(line: &[u8]) -> bool {
    begins_with(line, b"BDAT")
}

fn is_about_mail(line: &[u8]) -> bool {
    is_bdat(line) || [b"MAIL", b"RCPT", b"DATA"].iter().any(|verb| begins_with(line, verb))
}

fn begins_with(line: &[u8], verb: &[u8; 4]) -> bool {
    line.get(..4).is_some_and(|begin| begin.eq_ignore_ascii_case(verb))
}
