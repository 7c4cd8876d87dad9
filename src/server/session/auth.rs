//! AUTH (RFC 4954): when it may be said, and the steps between the lines of an exchange.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Account, Asked, Hello, Session, State, replies};
use crate::config::Role;
use crate::server::sasl::{Exchange, Mechanism, Turn};
use crate::server::step::{Question, Step};
use crate::smtp::Reply;
use crate::smtp::command::Credentials;

impl Session {
    pub(super) fn auth(&mut self, state: State, mechanism: &str, initial: Option<Credentials>) -> Step {
        let refusal = if self.policy.role == Role::Mx {
            Some(replies::auth_not_offered())
        } else if self.account.is_some() {
            Some(replies::auth_already())
        } else if state.is_transaction() {
            Some(replies::in_transaction())
        } else if self.needs_tls() {
            Some(replies::tls_first())
        } else if !self.may_authenticate() {
            Some(replies::auth_needs_tls())
        } else {
            None
        };
        if let Some(reply) = refusal {
            return self.say(state, reply);
        }
        let hello = match state {
            State::Greeted(hello) if hello.esmtp => hello,
            other => return self.say(other, replies::hello_first()),
        };
        let known = Mechanism::named(mechanism).filter(|m| *m != Mechanism::ScramSha256 || self.policy.scram);
        let Some(mechanism) = known else {
            return self.say(State::Greeted(hello), replies::unknown_mechanism());
        };
        self.turn(hello, Exchange::start(mechanism, initial.as_ref().map(|i| i.0.as_str())), None)
    }

    pub(super) fn turn(&mut self, hello: Hello, turn: Turn, proven: Option<Account>) -> Step {
        match (turn, proven) {
            (Turn::Challenge(exchange, message), proven) => {
                self.state = State::LoggingIn { hello, exchange, proven };
                Step::Reply(Reply::bare(334, STANDARD.encode(message)))
            }
            (Turn::Check(login), _) => self.ask(Asked::Login(hello), Question::Authenticate(login)),
            (Turn::FetchKeys(account, scram), _) => {
                self.ask(Asked::ScramKeys(hello, scram), Question::Scram { account })
            }
            (Turn::Proven(success), _) => {
                let account = success.account.clone();
                self.ask(Asked::ScramResult(hello, Some(success)), Question::ScramResult { account, good: true })
            }
            (Turn::Disproven(account), _) => {
                self.ask(Asked::ScramResult(hello, None), Question::ScramResult { account, good: false })
            }
            (Turn::Finished, Some(account)) => self.logged_in(hello, account),
            (Turn::Finished, None) => self.out_of_step(),
            (Turn::Refused(error), _) => self.say(State::Greeted(hello), error.reply()),
        }
    }

    pub(super) fn logged_in(&mut self, hello: Hello, account: Account) -> Step {
        (self.account, self.is_revoked) = (Some(account), false);
        self.say(State::Greeted(hello), replies::authenticated())
    }
}
