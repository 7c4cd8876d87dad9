//! What an attempt would meet: the hosts for a domain in their order, and what TLS each has to show. Only
//! DNS and, for a policy of MTA-STS, HTTPS are asked; no mail server is.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::SmtpTransport;
use super::tls_policy::{By, Certificate, HostPolicy, Terms};
use crate::delivery::Outcome;
use crate::message::{Domain, TlsWish};

/// People wait for the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where mail for a domain would go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prospect {
    /// In the order of trying. Of equal preference, the order is another one each time.
    pub hosts: Vec<HostProspect>,
    /// Why there are none, or why not all of them are known.
    pub trouble: Option<String>,
    /// Mail would be given up for that at once.
    pub is_final: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProspect {
    pub host: String,
    /// What it has to show.
    pub tls: String,
    /// Who demands that, if somebody does.
    pub demanded_by: Option<String>,
    /// The key that makes the demand count.
    pub key: Option<String>,
    /// Why it would not be connected to.
    pub unused: Option<String>,
}

impl SmtpTransport {
    pub async fn prospect(&self, domain: &Domain, wish: TlsWish) -> Prospect {
        let deadline = Instant::now() + PATIENCE;
        let mut prospect = Prospect::default();
        let late = || Some(format!("the name servers have not answered all within {} s", PATIENCE.as_secs()));
        let (hosts, policy) = match timeout_at(deadline, self.hosts(domain, wish)).await {
            Ok(Ok(found)) => found,
            Ok(Err(outcome)) => {
                let (is_final, trouble) = match *outcome {
                    Outcome::Fail(why) => (true, Some(why.reason)),
                    Outcome::Defer { why, .. } => (false, Some(why.reason)),
                    _ => (false, None),
                };
                return Prospect { trouble, is_final, ..prospect };
            }
            Err(_) => return Prospect { trouble: late(), ..prospect },
        };
        for host in hosts {
            match timeout_at(deadline, self.policies.of_host(&policy, &host)).await {
                Ok(Ok(HostPolicy { terms, .. })) => prospect.hosts.push(told(&host, &terms)),
                Ok(Err(unused)) => prospect.hosts.push(HostProspect {
                    host: host.to_string(),
                    tls: "unknown".to_owned(),
                    demanded_by: None,
                    key: By::key_in(&unused.trouble.failure.reason).map(str::to_owned),
                    unused: Some(unused.trouble.failure.reason),
                }),
                Err(_) => {
                    prospect.trouble = late();
                    break;
                }
            }
        }
        prospect
    }
}

fn told(host: &Domain, terms: &Terms) -> HostProspect {
    let certificate = match &terms.certificate {
        Certificate::Any => "any certificate",
        Certificate::Authority => "a valid certificate for its name",
        Certificate::Tlsa(_) => "a certificate that its TLSA records name",
    };
    let tls = match (terms.enforced, &terms.certificate) {
        (true, _) => format!("TLS with {certificate}, or the mail waits"),
        (false, Certificate::Any) => "TLS if it is offered".to_owned(),
        (false, _) => format!("TLS if it is offered; whether it has {certificate} is reported"),
    };
    HostProspect {
        host: host.to_string(),
        tls,
        demanded_by: terms.by.name(),
        key: terms.by.key().map(str::to_owned),
        unused: None,
    }
}
