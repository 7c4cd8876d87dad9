//! The beginning of a conversation: the greeting, EHLO or HELO (RFC 5321 3.2), and what the offers lead to.

use super::{Client, State, TlsFlaw};
use crate::delivery::smtp::extensions::Extensions;
use crate::delivery::smtp::replies::RawReply;
use crate::delivery::smtp::step::{Over, Stage, Step, Tls, Trouble};

impl Client {
    pub(super) fn on_greeting(&mut self, raw: RawReply) -> Step {
        match raw.code {
            220 => self.hello(),
            400.. => self.refused_by_host(Stage::Greeting, "greeted with", &raw.plain()),
            _ => self.nonsense(Stage::Greeting, "greeted with", &raw.plain()),
        }
    }

    pub(super) fn hello(&mut self) -> Step {
        self.state = State::Ehlo;
        self.talk(format!("{} {}\r\n", self.hello_word(), self.helo))
    }

    pub(super) fn on_ehlo(&mut self, raw: RawReply) -> Step {
        match raw.code {
            250 => {
                self.offers = self.usable(Extensions::parse(raw.lines.iter().map(String::as_str)));
                self.after_hello()
            }
            500..=599 if !self.is_lmtp => {
                self.state = State::Helo;
                self.talk(format!("HELO {}\r\n", self.helo))
            }
            400.. => {
                let did = format!("answered {} with", self.hello_word());
                self.refused_by_host(Stage::Hello, &did, &raw.parsed())
            }
            _ => self.nonsense(Stage::Hello, &format!("answered {} with", self.hello_word()), &raw.plain()),
        }
    }

    pub(super) fn on_helo(&mut self, raw: RawReply) -> Step {
        match raw.code {
            250 => {
                self.offers = Extensions::default();
                self.after_hello()
            }
            400.. => self.refused_by_host(Stage::Hello, "answered HELO with", &raw.parsed()),
            _ => self.nonsense(Stage::Hello, "answered HELO with", &raw.plain()),
        }
    }

    fn after_hello(&mut self) -> Step {
        let wants_starttls = matches!(self.tls, Tls::IfOffered | Tls::Required);
        if self.secured.is_none() && wants_starttls && self.offers.starttls {
            self.state = State::StartTls;
            return self.talk("STARTTLS\r\n".to_owned());
        }
        if self.secured.is_none() && self.tls == Tls::Required {
            let reason = format!("{} does not offer TLS, which {}", self.peer, self.demands());
            let trouble = Trouble::new(Stage::Tls, self.local("4.7.10", reason));
            let trouble = Trouble { flaw: Some(TlsFlaw::StarttlsNotSupported), ..trouble };
            self.state = State::Closed;
            return Step::Over(Over { decided: Vec::new(), trouble });
        }
        self.log_in()
    }
}
