//! A named host tested: the way of a delivery over a connection of its own, up to the recipient or to the end.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::Attempt;
use crate::delivery::smtp::connection::Connection;
use crate::delivery::smtp::host::HostTarget;
use crate::delivery::smtp::pool::{Channel, Way};
use crate::delivery::smtp::step::{Stage, Tls, Trouble};
use crate::delivery::smtp::tls_policy::Terms;
use crate::delivery::smtp::trail::{Leg, Trail};
use crate::delivery::smtp::{ProbeMode, SmtpTransport};
use crate::delivery::{Job, Outcome};
use crate::queue::record::Failure;

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
    let mut attempt = Attempt::new(transport, job)
        .await
        .map_err(|_| Trouble::new(Stage::Address, Failure::local("4.3.0", "", "the test message cannot be read")))?;
    attempt.deadline = Instant::now() + PROBE_MAX;
    attempt.trail = Some(trail.clone());
    attempt.mail_from = target.mail_from.as_ref().unwrap_or(&job.message.mail_from);
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
        let agreed = Some(target.agreed(ip));
        let (tls, terms, channel) = (target.tls.demand(), Terms::default(), Channel::Smtp);
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
