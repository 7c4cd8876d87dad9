//! A named host tested: the way of a delivery over a connection of its own, up to the recipient or to the end.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::Attempt;
use super::lmtp::{lmtp_target, socket_way};
use crate::config::targets::LmtpAddress;
use crate::delivery::smtp::connection::Connection;
use crate::delivery::smtp::host::HostTarget;
use crate::delivery::smtp::pool::{Channel, Way};
use crate::delivery::smtp::step::{Stage, Tls, Trouble};
use crate::delivery::smtp::tls_policy::Terms;
use crate::delivery::smtp::{ProbeMode, SmtpTransport};
use crate::delivery::{Job, Outcome};
use crate::queue::record::Failure;
use crate::trail::{Leg, Trail};

/// A test takes no longer: a person waits for it.
const PROBE_MAX: std::time::Duration = std::time::Duration::from_secs(120);

/// The outcome for the one recipient; none: it was accepted, and nothing was sent.
pub async fn probe(
    transport: &SmtpTransport,
    job: &Job,
    target: &HostTarget,
    mode: ProbeMode,
    trail: &Trail,
) -> Result<Option<Outcome>, Trouble> {
    let mut attempt = prepared(transport, job, trail).await?;
    attempt.mail_from = target.mail_from.as_ref().unwrap_or(&job.message.mail_from);
    at_host(attempt, target, &Channel::Smtp, mode, trail).await
}

/// The same for a server that speaks LMTP.
pub async fn probe_lmtp(
    transport: &SmtpTransport,
    job: &Job,
    address: &LmtpAddress,
    mode: ProbeMode,
    trail: &Trail,
) -> Result<Option<Outcome>, Trouble> {
    let mut attempt = prepared(transport, job, trail).await?;
    attempt.is_final = true;
    match address {
        LmtpAddress::Tcp { host, port } => {
            at_host(attempt, &lmtp_target(host, *port), &Channel::Lmtp, mode, trail).await
        }
        LmtpAddress::Unix(path) => {
            let no_way = || Trouble::new(Stage::Address, Failure::local("4.3.5", "", "there is no way to a socket"));
            let way = socket_way(Channel::LmtpSocket(path.clone())).ok_or_else(no_way)?;
            let connection = attempt.connect(&way).await?;
            converse(&attempt, connection, mode).await
        }
    }
}

async fn prepared<'a>(transport: &'a SmtpTransport, job: &'a Job, trail: &Trail) -> Result<Attempt<'a>, Trouble> {
    let mut attempt = Attempt::new(transport, job)
        .await
        .map_err(|_| Trouble::new(Stage::Address, Failure::local("4.3.0", "", "the test message cannot be read")))?;
    attempt.deadline = Instant::now() + PROBE_MAX;
    attempt.trail = Some(trail.clone());
    Ok(attempt)
}

async fn at_host(
    mut attempt: Attempt<'_>,
    target: &HostTarget,
    channel: &Channel,
    mode: ProbeMode,
    trail: &Trail,
) -> Result<Option<Outcome>, Trouble> {
    let since = std::time::Instant::now();
    let (host, found) = attempt.find(target).await?;
    let shown: Vec<String> = found.usable.iter().map(ToString::to_string).collect();
    trail.mark(Leg::Dns, since, format!("{host} is at {}", shown.join(", ")));
    attempt.servers = std::sync::Arc::from([host.clone()]);
    let mut last = Trouble::new(
        Stage::Address,
        Failure::local("4.4.4", host.as_str(), format!("{host} has no address that can be connected to")),
    );
    for ip in found.usable {
        let address = SocketAddr::new(ip, target.port);
        let agreed = (*channel == Channel::Smtp).then(|| target.agreed(ip));
        let (tls, terms, channel) = (target.tls.demand(), Terms::default(), channel.clone());
        let mut way = Way { host: host.clone(), address, tls, terms, agreed, channel };
        let mut opened = attempt.connect(&way).await;
        // As in a delivery: in clear only where nothing is lost by it.
        if let Err(trouble) = &opened
            && trouble.clear_may_help
            && !target.verify_certificate
            && target.login.is_none()
        {
            let what = format!("{}; mail would go in clear", trouble.failure.reason);
            trail.mark(Leg::Tls, std::time::Instant::now(), what);
            way.tls = Tls::Never;
            opened = attempt.connect(&way).await;
        }
        match opened {
            Ok(connection) => return converse(&attempt, connection, mode).await,
            // Another address of the host knows the same accounts: only the way there may be better.
            Err(trouble) if trouble.stage == Stage::Connect && Instant::now() < attempt.deadline => last = trouble,
            Err(trouble) => return Err(trouble),
        }
    }
    Err(last)
}

async fn converse(
    attempt: &Attempt<'_>,
    mut connection: Connection,
    mode: ProbeMode,
) -> Result<Option<Outcome>, Trouble> {
    let mail = attempt.mail(&attempt.undecided());
    let sent = match mode {
        ProbeMode::Rehearse => connection.rehearse(mail, attempt.deadline).await,
        ProbeMode::Send => connection.send(mail, &attempt.job.body, attempt.deadline).await,
    };
    let decided = sent.decided.into_iter().next().map(|(_, outcome)| outcome);
    match sent.trouble {
        None => {
            connection.quit().await;
            Ok(decided)
        }
        Some(_) if decided.is_some() => Ok(decided),
        Some(trouble) => Err(trouble),
    }
}
