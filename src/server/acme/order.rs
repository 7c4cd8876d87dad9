//! One order: account, order, challenge, certificate (RFC 8555 7).

use std::time::Duration;

use instant_acme::{
    Account, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount, NewOrder, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::keep::{KeptAccount, Shelf};
use super::respond::Answers;
use super::wire::Wire;
use crate::clock::Clock;
use crate::config::{Acme, AcmeChallenge};
use crate::delivery::http;
use crate::message::Domain;

/// How long the authority may take to look at our answer, and to make the certificate.
const POLL_TIME: Duration = Duration::from_secs(3 * 60);
const POLL_FIRST: Duration = Duration::from_millis(250);
const POLL_GROWTH: f32 = 1.5;

/// RFC 8555 6.7
const NO_ACCOUNT: &str = "urn:ietf:params:acme:error:accountDoesNotExist";

/// Why there is no certificate.
#[derive(Debug)]
pub(super) struct Trouble {
    pub why: String,
    /// The authority's wish.
    pub retry_after: Option<Duration>,
}

impl Trouble {
    pub fn of(why: impl Into<String>) -> Trouble {
        Trouble { why: why.into(), retry_after: None }
    }
}

pub(super) struct Order<'a> {
    pub acme: &'a Acme,
    pub hostname: &'a Domain,
    pub shelf: &'a Shelf,
    pub answers: &'a Answers,
    pub clock: &'a Clock,
}

impl Order<'_> {
    /// The key and the chain, as PEM.
    pub async fn run(&self) -> Result<String, Trouble> {
        let client = tokio::task::spawn_blocking(|| http::client(true)).await;
        let client = client.map_err(|error| Trouble::of(error.to_string()))?;
        let client = client.map_err(|error| Trouble::of(error.to_string()))?;
        let wire = Wire::new(client, self.clock.clone());
        self.obtain(&wire).await.map_err(|failure| match failure {
            Failure::Own(why) => Trouble::of(why),
            Failure::Protocol(error) => explain(error, &wire),
        })
    }

    async fn obtain(&self, wire: &Wire) -> Result<String, Failure> {
        let mut account = self.account(wire).await?;
        let names = [Identifier::Dns(self.hostname.to_string())];
        let mut order = match account.new_order(&NewOrder::new(&names)).await {
            Err(Error::Api(problem)) if problem.r#type.as_deref() == Some(NO_ACCOUNT) => {
                self.shelf.forget_account();
                account = self.account(wire).await?;
                account.new_order(&NewOrder::new(&names)).await?
            }
            order => order?,
        };
        self.answer(&mut order).await?;
        let polls = RetryPolicy::new().initial_delay(POLL_FIRST).backoff(POLL_GROWTH).timeout(POLL_TIME);
        if order.poll_ready(&polls).await? != OrderStatus::Ready {
            return Err(Failure::Own(self.why_not(&mut order).await));
        }
        let key = KeyPair::generate().map_err(own)?;
        let mut params = CertificateParams::new(vec![self.hostname.to_string()]).map_err(own)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(own)?;
        order.finalize_csr(request.der()).await?;
        let chain = order.poll_certificate(&polls).await?;
        Ok(format!("{}{chain}", key.serialize_pem()))
    }

    /// The account of earlier orders, or a new one, which is kept before it is used.
    async fn account(&self, wire: &Wire) -> Result<Account, Failure> {
        let contact = format!("mailto:{}", self.acme.contact);
        let builder = Account::builder_with_http(Box::new(wire.clone()));
        if let Some(KeptAccount { contact: told, credentials }) = self.shelf.account() {
            let copy = serde_json::to_value(&credentials).ok();
            let account = builder.from_credentials(credentials).await?;
            if told != contact {
                account.update_contacts(&[&contact]).await?;
                if let Some(credentials) = copy.and_then(|copy| serde_json::from_value(copy).ok()) {
                    self.shelf.write_account(&KeptAccount { contact, credentials }).map_err(own)?;
                }
            }
            return Ok(account);
        }
        let new = NewAccount { contact: &[&contact], terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, self.acme.directory.clone(), None).await?;
        self.shelf.write_account(&KeptAccount { contact, credentials }).map_err(own)?;
        Ok(account)
    }

    /// Puts the answer where the authority will look, and says that it is there.
    async fn answer(&self, order: &mut instant_acme::Order) -> Result<(), Failure> {
        let kind = match self.acme.challenge {
            AcmeChallenge::Http01 => ChallengeType::Http01,
            AcmeChallenge::TlsAlpn01 => ChallengeType::TlsAlpn01,
        };
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                // Shown by an earlier order.
                AuthorizationStatus::Valid => continue,
                status => return Err(Failure::Own(format!("the authority says that the name is {status:?}"))),
            }
            let Some(mut challenge) = authorization.challenge(kind.clone()) else {
                let name = self.acme.challenge.name();
                return Err(Failure::Own(format!(
                    "the authority does not offer {name}; set another tls.acme.challenge"
                )));
            };
            let text = challenge.key_authorization();
            match self.acme.challenge {
                AcmeChallenge::Http01 => self.answers.set_http(&challenge.token, text.as_str()),
                AcmeChallenge::TlsAlpn01 => {
                    self.answers.set_tls(self.hostname, text.digest().as_ref()).map_err(Failure::Own)?;
                }
            }
            challenge.set_ready().await?;
        }
        Ok(())
    }

    /// What the authority says of the challenge that it was not content with.
    async fn why_not(&self, order: &mut instant_acme::Order) -> String {
        let mut said = String::from("it does not say why");
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if let Ok(state) = authorization.refresh().await
                && let Some(problem) = state.challenges.iter().find_map(|challenge| challenge.error.as_ref())
            {
                said = problem.detail.clone().unwrap_or_else(|| problem.to_string());
            }
        }
        let (name, port, bind) = (self.acme.challenge.name(), self.acme.challenge.port(), self.acme.bind);
        format!(
            "the authority could not see by {name} that {} is ours: {said}; the name has to lead to this machine, and \
             its port {port} to {bind}",
            self.hostname
        )
    }
}

enum Failure {
    Own(String),
    Protocol(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Protocol(error)
    }
}

fn own(error: impl std::fmt::Display) -> Failure {
    Failure::Own(error.to_string())
}

/// In one line, with what the authority wants of us.
fn explain(error: Error, wire: &Wire) -> Trouble {
    let refused = wire.last_refusal();
    let why = match (&error, &refused) {
        (Error::Api(problem), _) => {
            let detail = problem.detail.clone().unwrap_or_default();
            let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next()).unwrap_or("no type");
            let more: Vec<String> = problem.subproblems.iter().map(ToString::to_string).collect();
            format!("the authority refuses: {detail} ({kind}) {}", more.join(", "))
        }
        // An answer that is no problem document either.
        (Error::Json(_), Some(refused)) => format!("the authority answers {} to {}", refused.status, refused.url),
        (error, _) => error.to_string(),
    };
    let is_refusal = matches!(error, Error::Api(_) | Error::Json(_));
    let retry_after = refused.filter(|_| is_refusal).and_then(|refused| refused.retry_after);
    Trouble { why: http::one_line(why.as_bytes(), 500), retry_after }
}
