//! A connection that fails: what it means for the message that was on its way.

use super::{Client, State};
use crate::delivery::smtp::step::{Loss, Over, Stage, Tls, Trouble};
use crate::queue::record::Failure;

impl Client {
    /// The connection failed.
    pub fn lost(&mut self, loss: Loss) -> Over {
        let is_silence = matches!(loss, Loss::TimedOut);
        let mut over = self.lost_by(loss);
        over.trouble.is_silence = is_silence;
        over
    }

    fn lost_by(&mut self, loss: Loss) -> Over {
        let state = std::mem::replace(&mut self.state, State::Closed);
        let (what, mut failure) = self.describe(&loss);
        let (stage, when) = match &state {
            State::Greeting => (Stage::Greeting, "instead of greeting"),
            State::Ehlo | State::Helo if self.secured.is_some() => (Stage::Tls, "right after the TLS handshake"),
            State::Ehlo | State::Helo => (Stage::Hello, "instead of answering EHLO"),
            State::Handshake if self.tls == Tls::Implicit => (Stage::Tls, "instead of a TLS handshake"),
            State::Login(_) => (Stage::Login, "in the middle of the login"),
            State::StartTls | State::Handshake => (Stage::Tls, "instead of answering STARTTLS"),
            State::Envelope(_) => (Stage::Transaction, "before the envelope was through"),
            State::Content(_) => (Stage::Transaction, "before the message was through"),
            State::End(_) | State::EmptyDot(_) => (Stage::Transaction, "instead of answering the message"),
            State::Idle { .. } | State::Closed => (Stage::Hello, "between messages"),
        };
        failure.reason = format!("{} {what} {when}", self.peer);
        match state {
            State::End(transaction) if loss == Loss::Hurried => self.unsure(transaction, &what),
            State::End(transaction) => self.unsure(transaction, &format!("{what} {when}")),
            State::Content(transaction) => self.lost_in_content(transaction, &loss, failure),
            State::Envelope(transaction) | State::EmptyDot(transaction) => self.abandon(transaction, failure),
            _ if stage == Stage::Tls => Over { decided: Vec::new(), trouble: self.tls_trouble(failure, true) },
            _ => Over { decided: Vec::new(), trouble: Trouble::new(stage, failure) },
        }
    }

    /// What happened, as the middle of a sentence, and a failure whose reason is still to be written.
    fn describe(&self, loss: &Loss) -> (String, Failure) {
        let lost = |text: &str| (text.to_owned(), self.local("4.4.2", ""));
        match loss {
            Loss::Closed => lost("closed the connection"),
            Loss::Broken(error) => lost(&format!("was cut off ({error})")),
            Loss::TimedOut => lost("said nothing in time"),
            Loss::Hurried => lost("had not answered the message when this server was made to stop at once"),
            Loss::Garbage(error) => (format!("sent {error}"), self.local("4.5.0", "")),
            Loss::Desync => ("sent more replies than it was given commands".into(), self.local("4.5.0", "")),
            Loss::Interrupted(None) => ("interrupted".into(), self.local("4.5.0", "")),
            Loss::Interrupted(Some(raw)) => {
                let what = format!("interrupted with \"{}\"", raw.parsed());
                (what, self.host_failure("interrupted with", &raw.parsed()))
            }
        }
    }
}
