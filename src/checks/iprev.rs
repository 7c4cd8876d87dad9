//! Reverse DNS of the client (RFC 8601 2.7.3, "iprev"): has its address a name that leads back to it?

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::dns::{DnsError, Resolver};
use crate::message::findings::IprevFinding;

/// Names looked at; a client with more has no name of its own (RFC 7208 4.6.4 sets the same bound).
const NAMES_MAX: usize = 10;
/// For all of it.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct Iprev {
    /// In the words of RFC 8601 2.7.3.
    pub result: &'static str,
    pub client: IpAddr,
    /// The name that leads back, else empty.
    pub name: String,
}

impl Iprev {
    pub fn finding(&self) -> IprevFinding {
        IprevFinding { result: self.result.to_owned(), name: self.name.clone() }
    }
}

pub(super) async fn evaluate(resolver: &Resolver, client: IpAddr, deadline: Instant) -> Iprev {
    let client = client.to_canonical();
    let deadline = deadline.min(Instant::now() + DEADLINE);
    let found = timeout_at(deadline, confirmed(resolver, client)).await;
    let (result, name) = found.unwrap_or(("temperror", String::new()));
    Iprev { result, client, name }
}

async fn confirmed(resolver: &Resolver, client: IpAddr) -> (&'static str, String) {
    let names = match resolver.ptr(client).await {
        Ok(names) => names,
        Err(DnsError::Temporary(_)) => return ("temperror", String::new()),
        Err(_) => Vec::new(),
    };
    if names.is_empty() {
        return ("permerror", String::new());
    }
    let mut result = "fail";
    for name in names.iter().take(NAMES_MAX) {
        match resolver.addresses(name).await {
            Ok(addresses) if addresses.contains(&client) => return ("pass", name.to_string()),
            Err(DnsError::Temporary(_)) => result = "temperror",
            _ => {}
        }
    }
    (result, String::new())
}
