//! One attempt at a server for LMTP, which somebody has named.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::time::Instant;

use super::Attempt;
use crate::config::targets::LmtpAddress;
use crate::delivery::smtp::host::{HostTarget, TlsMode};
use crate::delivery::smtp::pool::{Channel, Way};
use crate::delivery::smtp::step::{Stage, Tls, Trouble};
use crate::delivery::smtp::tls_policy::Terms;
use crate::delivery::smtp::{SmtpTransport, host};
use crate::delivery::{Job, Outcome};
use crate::queue::record::Failure;

/// Recipients of one message in one transaction.
const RECIPIENTS_MAX: usize = 1000;

pub async fn run_lmtp(transport: &SmtpTransport, job: &Job, address: &LmtpAddress) -> Vec<(u32, Outcome)> {
    let mut attempt = match Attempt::new(transport, job).await {
        Ok(attempt) => attempt,
        Err(outcomes) => return outcomes,
    };
    attempt.is_final = true;
    attempt.limits.recipients_per_message = RECIPIENTS_MAX;
    match address {
        LmtpAddress::Unix(path) => attempt.at_socket(Channel::LmtpSocket(path.clone())).await,
        LmtpAddress::Tcp { host, port } => attempt.at_lmtp_host(host, *port).await,
    }
    attempt.finish()
}

impl Attempt<'_> {
    async fn at_socket(&mut self, channel: Channel) {
        let Some(way) = socket_way(channel) else { return };
        if let Err(trouble) = self.by_way(&way).await {
            self.note(trouble);
        }
    }

    async fn at_lmtp_host(&mut self, host: &str, port: u16) {
        let target = lmtp_target(host, port);
        let (host, found) = match self.find(&target).await {
            Ok(found) => found,
            Err(trouble) => return self.note(trouble),
        };
        self.servers = [host.clone()].into();
        for ip in found.usable {
            if self.undecided().is_empty() || Instant::now() >= self.deadline {
                return;
            }
            let (address, channel) = (SocketAddr::new(ip, port), Channel::Lmtp);
            let (terms, agreed) = (Terms::default(), None);
            let mut way = Way { host: host.clone(), address, tls: Tls::IfOffered, terms, agreed, channel };
            let Err(trouble) = self.by_way(&way).await else { return };
            let in_clear = trouble.clear_may_help;
            self.note(trouble);
            if in_clear {
                way.tls = Tls::Never;
                if let Err(trouble) = self.by_way(&way).await {
                    self.note(trouble);
                }
            }
        }
    }
}

/// The way to a socket.
pub(super) fn socket_way(channel: Channel) -> Option<Way> {
    let host = host::host_domain("localhost")?;
    // Of no meaning for a socket.
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    Some(Way { host, address, tls: Tls::Never, terms: Terms::default(), agreed: None, channel })
}

pub(super) fn lmtp_target(host: &str, port: u16) -> HostTarget {
    HostTarget {
        host: host.to_owned(),
        port,
        tls: TlsMode::Opportunistic,
        verify_certificate: false,
        login: None,
        mail_from: None,
        debug: false,
    }
}

/// A connection to a unix socket.
pub(super) async fn connect_to_socket(path: &std::path::Path, peer: &str) -> Result<tokio::net::UnixStream, Trouble> {
    let connected = tokio::time::timeout(super::CONNECT_TIMEOUT, tokio::net::UnixStream::connect(path)).await;
    let connected = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    connected.map_err(|error| {
        let reason = format!("could not connect to {peer}: {error}");
        Trouble::new(Stage::Connect, Failure::local("4.4.1", peer, reason))
    })
}
