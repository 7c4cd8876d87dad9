//! The session's questions, taken to those who know: accounts, limits, and the outside.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{debug, info};

use super::Connection;
use super::memory::OwnPart;
use crate::server::accounts::Verified;
use crate::server::outside::Outside;
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
                let accepted = Box::pin(self.shared.outside.accept(*draft)).await.map(Answer::Ok);
                self.held = OwnPart::default();
                accepted
            }
        };
        answer.unwrap_or_else(|refusal| {
            log_refusal(&refusal);
            Answer::Refused(refusal)
        })
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

fn log_refusal(refusal: &Refusal) {
    info!(reply = refusal.reply.to_string(), reason = refusal.reason, "refused");
}
