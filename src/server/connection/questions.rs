//! The session's questions, taken to those who know: accounts, limits, and the outside.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{debug, info};

use super::Connection;
use super::memory::OwnPart;
use crate::server::accounts::Verified;
use crate::server::outside::Outside;
use crate::server::session::Refused;
use crate::server::step::{Answer, Question};
use crate::smtp::Reply;
use crate::smtp::reply::Refusal;

/// Before the reply to a failed login. It slows one connection down; `limits` does the rest.
pub const AUTH_FAILURE_DELAY: Duration = Duration::from_millis(500);

impl<S, O> Connection<S, O>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    O: Outside,
{
    pub(super) async fn find_out(&mut self, question: Question) -> Answer {
        let answer = match question {
            Question::Authenticate(login) => {
                let account = login.account.clone();
                match self.may_log_in(&account) {
                    Ok(()) => {
                        let verified = Box::pin(self.shared.accounts.verify(login)).await;
                        self.logged_in(&account, verified).await
                    }
                    Err(refusal) => Err(refusal),
                }
            }
            Question::Scram { account } => match self.may_log_in(&account) {
                Ok(()) => Box::pin(self.shared.accounts.scram_keys(&account)).await.map(Answer::Scram),
                Err(refusal) => Err(refusal),
            },
            Question::ScramResult { account, good } => {
                let verified = self.shared.accounts.scram_result(&account, good);
                self.logged_in(&account, verified).await
            }
            Question::Sender { account, sender, size } => {
                self.declared = size;
                let asked = self.shared.outside.sender(account.as_deref(), &sender, size);
                asked.map(|()| Answer::Ok(Reply::new(250, (1, 0), "sender ok")))
            }
            Question::Recipient { account, sender, before, recipient } => {
                let role = self.arrival.role;
                let asked = self.shared.outside.recipient(role, account.as_deref(), &sender, (before, &recipient));
                asked.map(|()| Answer::Ok(Reply::new(250, (1, 5), "recipient ok")))
            }
            Question::Accept(draft) => {
                let accepted = Box::pin(self.shared.outside.accept(&draft)).await.map(Answer::Ok);
                if accepted.is_err() {
                    self.session.note_draft(&draft);
                }
                // What it held of the memory goes with it.
                drop(draft);
                self.held = OwnPart::default();
                accepted
            }
        };
        answer.unwrap_or_else(Answer::Refused)
    }

    /// One line for a reply, so that who misses a message finds out why: the span names the peer.
    pub(super) fn log_refusal(&self, reply: &Reply, refused: &Refused) {
        let reply = reply.to_string();
        let Refused { helo, from, to, line, reason } = refused;
        let (helo, from, to) = (helo.as_deref(), from.as_deref(), to.as_deref());
        let account = self.session.account();
        let reason = reason.as_deref().unwrap_or(&reply);
        info!(helo, account, from, to, line = line.as_deref(), reply, reason, "refused");
    }

    fn may_log_in(&self, account: &str) -> Result<(), Refusal> {
        let shared = &self.shared;
        shared.limits.may_log_in(&shared.config, self.arrival.peer, account, shared.clock.now())
    }

    async fn logged_in(&self, account: &str, verified: Result<Verified, Refusal>) -> Result<Answer, Refusal> {
        match verified {
            Ok(verified) => {
                debug!(account, "logged in");
                Ok(Answer::Account { name: verified.name, max_recipients: verified.max_recipients })
            }
            Err(refusal) => {
                // 454 is our trouble, not a wrong guess.
                if refusal.reply.code == 535 {
                    let shared = &self.shared;
                    let now = shared.clock.now();
                    shared.limits.login_failed(&shared.config, self.arrival.peer, Some(account), now);
                    tokio::time::sleep(AUTH_FAILURE_DELAY).await;
                }
                Err(refusal)
            }
        }
    }
}
