//! The names of loopback addresses, as the name servers give them.
//!
//! For those hickory has an answer of its own, "localhost", and asks nobody. RFC 6761 6.3 wants that of the name
//! localhost; a client that connects from loopback is asked about like any other, so these questions go past it.
//! They are rare, and nothing is cached.

use std::sync::Arc;

use hickory_resolver::config::{NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::FirstAnswer;
use hickory_resolver::net::{DnsError as Negative, DnsHandle, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, Query};
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};

use super::{DnsError, no_tls};

#[derive(Clone)]
pub(super) struct Loopback(NameServerPool<TokioRuntimeProvider>);

impl Loopback {
    pub fn new(servers: Vec<NameServerConfig>, options: ResolverOpts) -> Result<Loopback, DnsError> {
        let context = Arc::new(PoolContext::new(options, TlsConfig { config: no_tls()? }));
        Ok(Loopback(NameServerPool::from_config(servers, context, TokioRuntimeProvider::default())))
    }

    pub async fn ptr(&self, name: Name) -> Result<Vec<Record>, NetError> {
        let asked = self.0.lookup(Query::query(name, RecordType::PTR), DnsRequestOptions::default());
        let response = Negative::from_response(asked.first_answer().await?)?;
        Ok(response.answers.clone())
    }
}
