//! The part of the conversation that is about our account with a server: AUTH (RFC 4954), and replies
//! that ask for it later.
//!
//! Promises: whatever goes wrong here is [`Trouble`] of the host at [`Stage::Login`] with its
//! [`LoginFault`], and never fails the mail; no reply that repeats a secret gets into a text.

use super::{Client, Over, State, Transaction};
use crate::delivery::smtp::auth::{Exchange, Login, LoginFault, Place, choose};
use crate::delivery::smtp::replies::RawReply;
use crate::delivery::smtp::step::{Stage, Step, Trouble};
use crate::queue::record::Failure;
use crate::smtp::{Enhanced, Reply};

/// What was agreed with a server that somebody has named, and what is needed to log in there.
#[derive(Clone, Debug)]
pub struct Account {
    pub login: Option<Login>,
    /// The secret may be said in clear: TLS is off on purpose and the server is on this machine.
    pub may_show_secret: bool,
    /// The dialogue goes to the log.
    pub debug: bool,
    pub host: String,
    pub port: u16,
    /// Random, printable, without a comma.
    pub nonce: String,
}

impl Client {
    /// After EHLO: AUTH if we have an account, else ready.
    pub(super) fn log_in(&mut self) -> Step {
        let Some((account, login)) = self.account_and_login() else {
            self.state = State::Idle { reset: false };
            return Step::Ready;
        };
        let is_private = self.secured.is_some() || account.may_show_secret;
        let mechanism = match choose(&self.offers.auth, login, is_private) {
            Ok(mechanism) => mechanism,
            Err(fault) => return self.cannot_log_in(fault),
        };
        let place = Place { host: &account.host, port: account.port, nonce: &account.nonce };
        let (exchange, command) = Exchange::start(mechanism, login, place);
        self.say(exchange, command)
    }

    fn account_and_login(&self) -> Option<(&Account, &Login)> {
        let account = self.account.as_ref()?;
        account.login.as_ref().map(|login| (account, login))
    }

    fn say(&mut self, exchange: Exchange, line: String) -> Step {
        self.state = State::Login(exchange);
        Step::Talk { send: format!("{line}\r\n").into_bytes(), timeout: self.timeouts.command, secret: true }
    }

    pub(super) fn on_login(&mut self, mut exchange: Exchange, raw: &RawReply) -> Step {
        let Some((_, login)) = self.account_and_login() else { return self.cannot_log_in(LoginFault::Broken) };
        let went_on = match (raw.code, raw.lines.as_slice()) {
            (334, [text]) => exchange.challenged(login, text).map(Some),
            (235, _) => exchange.accepted().map(|()| None),
            (400.., _) => return self.login_refused(&exchange, raw),
            _ => Err(LoginFault::Broken),
        };
        match went_on {
            Ok(Some(answer)) => self.say(exchange, answer),
            Ok(None) => {
                self.state = State::Idle { reset: false };
                Step::Ready
            }
            Err(fault) => self.cannot_log_in(fault),
        }
    }

    fn login_refused(&mut self, exchange: &Exchange, raw: &RawReply) -> Step {
        // RFC 4954 4 and 6: not this mechanism, or not for this user. Another one may do.
        if matches!(raw.code, 504 | 534) {
            self.offers.auth.retain(|offered| *offered != exchange.mechanism);
            if !self.offers.auth.is_empty() {
                return self.log_in();
            }
        }
        let mut reply = raw.parsed();
        let mut explanation = String::new();
        let mut name = String::new();
        if let Some((_, login)) = self.account_and_login() {
            if exchange.is_repeated_in(login, &reply.text) {
                reply = Reply { enhanced: reply.enhanced, ..Reply::bare(reply.code, "(it repeated the secret)") };
            }
            name = format!("{:?}", login.username);
            explanation = exchange.explanation(login).map(|text| format!(" ({text})")).unwrap_or_default();
        }
        let did = format!("answered the login of {name} by {} with", exchange.mechanism.name());
        let mut failure = self.login_failure(&did, &reply);
        failure.reason += &explanation;
        let fault = if raw.code >= 500 { LoginFault::Refused } else { LoginFault::Later };
        self.login_trouble(fault, failure)
    }

    fn cannot_log_in(&mut self, fault: LoginFault) -> Step {
        let peer = &self.peer;
        let (status, reason) = match fault {
            LoginFault::NoMechanism => ("4.7.4", format!("{peer} offers no way to log in that fits our account there")),
            LoginFault::NotPrivate => {
                ("4.7.11", format!("{peer} wants the secret of our account in clear, and the connection has no TLS"))
            }
            LoginFault::Unusable => {
                ("4.3.5", format!("the user name or the secret for {peer} is empty or has control characters in it"))
            }
            LoginFault::Broken | LoginFault::Refused | LoginFault::Later => {
                let what = "broke the rules of the login, or did not prove that it knows the password";
                ("4.7.5", format!("{peer} {what}"))
            }
        };
        let failure = self.local(status, reason);
        self.login_trouble(fault, failure)
    }

    fn login_trouble(&mut self, fault: LoginFault, failure: Failure) -> Step {
        self.state = State::Closed;
        Step::Over(Over { decided: Vec::new(), trouble: Trouble::login(fault, failure) })
    }

    /// By which the login that is under way is made.
    pub fn mechanism(&self) -> Option<&'static str> {
        match &self.state {
            State::Login(exchange) => Some(exchange.mechanism.name()),
            _ => None,
        }
    }

    /// For whom the dialogue is logged, if it is.
    pub fn logged_peer(&self) -> Option<&str> {
        self.account.as_ref().filter(|account| account.debug).map(|_| self.peer.as_str())
    }

    /// Whether a reply is a challenge of a login, or repeats a secret.
    pub fn is_secret(&self, raw: &RawReply) -> bool {
        let (State::Login(exchange), Some((_, login))) = (&self.state, self.account_and_login()) else { return false };
        raw.code == 334 || raw.lines.iter().any(|line| exchange.is_repeated_in(login, line))
    }

    /// RFC 4954 6, where the reply has no enhanced code: credentials invalid, or "temporary".
    fn login_failure(&self, did: &str, reply: &Reply) -> Failure {
        let failure = self.host_failure(did, reply);
        match (reply.code, &reply.enhanced) {
            (500.., None) => Failure { status: "4.7.8".into(), ..failure },
            (_, None) => Failure { status: "4.7.0".into(), ..failure },
            _ => failure,
        }
    }

    /// A server that somebody has named says that we are not logged in, or not well enough: 530, 534, 535,
    /// 538 (RFC 4954 6), or 5.7.30 and its kin (Exchange Online). A mail exchanger that says so means the mail.
    pub(super) fn is_about_login(&self, reply: &Reply) -> bool {
        let by_code = matches!(reply.code, 530 | 534 | 535 | 538);
        let by_status =
            reply.code >= 500 && matches!(reply.enhanced, Some(Enhanced(7, 3 | 8 | 9 | 11 | 30 | 57 | 139)));
        self.account.is_some() && (by_code || by_status)
    }

    pub(super) fn login_wanted(&mut self, transaction: Transaction, to: &str, reply: &Reply) -> Over {
        let failure = self.login_failure(&format!("answered {to} with"), reply);
        let over = self.abandon(transaction, failure);
        let trouble = Trouble { login: Some(LoginFault::Refused), stage: Stage::Login, ..over.trouble };
        Over { trouble, ..over }
    }
}
