//! A target of inbound mail tested for a person: the way of a delivery, leg by leg.
//!
//! Promises: nothing is sent, written or run unless that is asked for (but for an empty file in a folder, which is
//! removed at once); no secret is in the report. With `send` the target gets one test message, which is queued
//! nowhere, in the form in which it gets all others.
//!
//! It is gone by the process of the person who asks: who may write a file or run a program is asked of that user,
//! and where the server is another one that is said.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Url;
use rustix::fs::{Access, access};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use super::host_test::{group_of, of_outcome, test_job};
use super::http::usable;
use super::smtp::{HostTarget, ProbeMode, SmtpTransport, Trouble, tls};
use super::transport::{TargetTransport, set_up};
use super::{Delivered, Job, Outcome};
use crate::clock::Clock;
use crate::config::targets::LmtpAddress;
use crate::config::{Config, Destination, SmartHostTls, Target};
use crate::dns::by_system;
use crate::message::Address;
use crate::queue::record::Route;
use crate::trail::{Group, Leg, Problem, Tested, Trail};

/// A TCP connection or a handshake that is not there by then will not come.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What to test, and how far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Of `[targets]`.
    pub name: String,
    pub from: Option<Address>,
    pub to: Option<Address>,
    pub send: bool,
}

#[derive(Debug)]
pub struct Tester<'a> {
    pub config: &'a Arc<Config>,
    pub clock: &'a Clock,
    pub smtp: &'a SmtpTransport,
}

type Result<T> = std::result::Result<T, (Group, String)>;

impl Tester<'_> {
    /// None: there is no such target.
    pub async fn test(&self, wish: &Wish) -> Option<Tested> {
        let target = self.config.targets.get(&wish.name)?;
        let trail = Trail::default();
        trail.mark(Leg::Configuration, Instant::now(), settings(self.config, target));
        let postmaster = self.config.postmaster.clone();
        let from = wish.from.clone().unwrap_or_else(|| postmaster.clone());
        let to = wish.to.clone().or_else(|| leads_to(self.config, &wish.name)).unwrap_or(postmaster);
        let (route, hostname) = (Route::Target(wish.name.clone()), self.config.hostname.as_str());
        let job = test_job(&from, &to, route, self.clock.now(), hostname);
        let gone = self.go(&wish.name, target, &job, wish.send, &trail).await;
        let problem = gone.err().map(|(group, what)| {
            let remedy = remedy(group, &wish.name, target);
            Problem { group, what, remedy }
        });
        Some(Tested {
            test: "target".to_owned(),
            name: wish.name.clone(),
            good: problem.is_none(),
            from: Some(from.to_string()),
            to: Some(to.to_string()),
            sent: wish.send && problem.is_none(),
            marks: trail.marks(),
            problem,
        })
    }

    async fn go(&self, name: &str, target: &Target, job: &Job, send: bool, trail: &Trail) -> Result<()> {
        let made = set_up(self.config, name, target, self.clock);
        let transport = made.map_err(|error| (Group::System, error.to_string()))?;
        match (target, &transport) {
            (_, TargetTransport::Lmtp(address)) => self.by_lmtp(job, address, send, trail).await,
            (_, TargetTransport::Smtp(host)) => self.by_smtp(job, host, send, trail).await,
            (Target::Webhook { url, .. }, TargetTransport::Webhook(webhook)) => {
                reach(url, self.config.delivery.allow_private_addresses, trail).await?;
                if send { delivered(webhook.deliver(job).await, Leg::Request, trail) } else { Ok(()) }
            }
            (Target::Maildir { path }, TargetTransport::Maildir(maildir)) => {
                let inner = path.join("tmp");
                writable(if inner.is_dir() { &inner } else { path }, trail)?;
                if send { delivered(maildir.deliver(job).await, Leg::Message, trail) } else { Ok(()) }
            }
            (Target::File { path }, TargetTransport::File(files)) => {
                writable(path.root(), trail)?;
                if send { delivered(files.deliver(job).await, Leg::Message, trail) } else { Ok(()) }
            }
            (Target::Pipe { command, .. }, TargetTransport::Pipe(pipe)) => {
                runnable(command.program(), trail)?;
                if send { delivered(pipe.deliver(job).await, Leg::Message, trail) } else { Ok(()) }
            }
            _ => Err((Group::Other, "there is no test for this kind of target".to_owned())),
        }
    }

    async fn by_lmtp(&self, job: &Job, address: &LmtpAddress, send: bool, trail: &Trail) -> Result<()> {
        let asked = self.smtp.probe_lmtp(job, address, mode(send), trail).await;
        of_outcome(asked.map_err(|trouble| told(&trouble))?)
    }

    async fn by_smtp(&self, job: &Job, host: &HostTarget, send: bool, trail: &Trail) -> Result<()> {
        let asked = self.smtp.probe(job, host, mode(send), trail).await;
        of_outcome(asked.map_err(|trouble| told(&trouble))?)
    }
}

fn mode(send: bool) -> ProbeMode {
    if send { ProbeMode::Send } else { ProbeMode::Rehearse }
}

fn told(trouble: &Trouble) -> (Group, String) {
    (group_of(trouble), trouble.failure.reason.clone())
}

/// What became of the one recipient.
fn delivered(outcomes: Vec<(u32, Outcome)>, leg: Leg, trail: &Trail) -> Result<()> {
    let outcome = outcomes.into_iter().next().map(|(_, outcome)| outcome);
    if let Some(Outcome::Delivered(Delivered { to, reply, .. })) = &outcome {
        let reply = reply.as_ref().map(|reply| format!(": {}", reply.to_string().trim_end())).unwrap_or_default();
        trail.mark(leg, Instant::now(), format!("{to}{reply}"));
    }
    match outcome {
        Some(Outcome::Held(why)) => Err((Group::Refused, why.to_string())),
        outcome => of_outcome(outcome).map_err(|(_, what)| (Group::Refused, what)),
    }
}

/// To where a webhook's requests go, and under TLS with its certificate checked. Names are resolved by the system, as
/// for the requests, and led to the same addresses.
async fn reach(url: &str, allow_private: bool, trail: &Trail) -> Result<()> {
    let url = Url::parse(url).map_err(|error| (Group::BadHostName, error.to_string()))?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let since = Instant::now();
    let found = match timeout(CONNECT_TIMEOUT, by_system(&host)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => return Err((Group::BadHostName, format!("the address of {host} is not known: {error}"))),
        Err(_) => return Err((Group::BadHostName, format!("the address of {host} could not be looked up in time"))),
    };
    let shown: Vec<String> = found.iter().map(IpAddr::to_string).collect();
    trail.mark(Leg::Dns, since, format!("{host} is at {}", shown.join(", ")));
    let (mut stream, mut last) = (None, format!("{host} has no address"));
    for ip in connectable(&url, found, allow_private)? {
        let address = SocketAddr::new(ip, port);
        let since = Instant::now();
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(connected)) => {
                trail.mark(Leg::Connect, since, format!("connected to {address}"));
                stream = Some(connected);
                break;
            }
            Ok(Err(error)) => last = format!("could not connect to {address}: {error}"),
            Err(_) => last = format!("could not connect to {address}: no answer in {} s", CONNECT_TIMEOUT.as_secs()),
        }
    }
    let stream = stream.ok_or((Group::NoResponse, last))?;
    if url.scheme() != "https" {
        return Ok(());
    }
    let broken = |why: String| (Group::Tls, format!("no TLS with {host}: {why}"));
    let roots = tokio::task::spawn_blocking(tls::system_roots).await.map_err(|error| broken(error.to_string()))?;
    let connector = tls::verified(roots.map_err(broken)?).map_err(|error| broken(error.to_string()))?;
    let name = ServerName::try_from(host.clone()).map_err(|error| broken(error.to_string()))?;
    let since = Instant::now();
    match timeout(CONNECT_TIMEOUT, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => {
            let session = stream.get_ref().1;
            trail.mark(Leg::Tls, since, format!("{}, {}", tls::description(session), tls::holder(session)));
            Ok(())
        }
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(_) => Err(broken("it took too long".to_owned())),
    }
}

/// Those that a request would go to: of a name all that are allowed, an address is what the administrator wrote.
fn connectable(url: &Url, found: Vec<IpAddr>, allow_private: bool) -> Result<Vec<IpAddr>> {
    match url.domain() {
        Some(name) => usable(name, &found, allow_private).map_err(|why| (Group::BadHostName, why)),
        None => Ok(found),
    }
}

/// A folder that is there gets an empty file for a moment; of one that is not there yet the one that it lies in is
/// only asked about.
fn writable(folder: &Path, trail: &Trail) -> Result<()> {
    let since = Instant::now();
    let failed = |path: &Path, error: io::Error| {
        let user = rustix::process::geteuid().as_raw();
        (Group::System, format!("user {user} cannot write in {}: {error}", path.display()))
    };
    if folder.is_dir() {
        let probe = probe_name(folder);
        fs::OpenOptions::new().write(true).create_new(true).open(&probe).map_err(|error| failed(folder, error))?;
        // One that stays is empty and hidden.
        fs::remove_file(&probe).map_err(|error| failed(folder, error))?;
        trail.mark(Leg::Writing, since, format!("{} can be written to", folder.display()));
        return Ok(());
    }
    if folder.exists() {
        return Err((Group::System, format!("{} is no folder", folder.display())));
    }
    let parent = folder.parent().unwrap_or(Path::new("/"));
    if !parent.is_dir() {
        let what = format!("{} is not there, nor is the folder that it is to lie in", folder.display());
        return Err((Group::System, what));
    }
    access(parent, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| failed(parent, error.into()))?;
    trail.mark(Leg::Writing, since, format!("{} is made with the first message", folder.display()));
    Ok(())
}

fn probe_name(folder: &Path) -> PathBuf {
    folder.join(format!(".postrider-test-{}", std::process::id()))
}

fn runnable(program: &Path, trail: &Trail) -> Result<()> {
    let since = Instant::now();
    let failed = |why: String| (Group::System, format!("{} cannot be run: {why}", program.display()));
    let found = fs::metadata(program).map_err(|error| failed(error.to_string()))?;
    if !found.is_file() {
        return Err(failed("it is no file".to_owned()));
    }
    if let Err(error) = access(program, Access::EXEC_OK) {
        let user = rustix::process::geteuid().as_raw();
        return Err(failed(format!("{error}, for user {user}")));
    }
    trail.mark(Leg::Program, since, format!("{} is there and may be run", program.display()));
    Ok(())
}

/// An address of ours whose mail goes there.
fn leads_to(config: &Config, name: &str) -> Option<Address> {
    let goes = |destinations: &[Destination]| destinations.contains(&Destination::Target(name.to_owned()));
    let exact = config.aliases.exact.iter().find(|(_, destinations)| goes(destinations));
    if let Some(address) = exact.and_then(|(address, _)| Address::parse(address).ok()) {
        return Some(address);
    }
    let (domain, _) = config.domains.iter().find(|(_, own)| goes(&own.catchall))?;
    Address::parse(&format!("test@{domain}")).ok()
}

fn settings(config: &Config, target: &Target) -> String {
    let said = match target {
        // Without what may be a secret.
        Target::Webhook { url, secret, .. } => {
            let place = Url::parse(url).map(|url| super::webhook::shown(&url)).unwrap_or_default();
            let signed = if secret.is_some() { "signed" } else { "not signed (no secret)" };
            format!("webhook {place}, {signed}")
        }
        Target::Maildir { path } => format!("maildir {}", path.display()),
        Target::File { path } => format!("files below {}", path.root().display()),
        Target::Pipe { command, .. } => format!("program {}", command.program().display()),
        Target::Lmtp { address } => format!("LMTP at {address}"),
        Target::Smtp { host, port, tls } => {
            let tls = match tls {
                SmartHostTls::Off => "off",
                SmartHostTls::Opportunistic => "opportunistic",
                SmartHostTls::Required => "required",
                SmartHostTls::Implicit => "implicit",
            };
            format!("SMTP at {host} port {port}, tls {tls}")
        }
    };
    let is_local = matches!(target, Target::Maildir { .. } | Target::File { .. } | Target::Pipe { .. });
    let (user, server) = (rustix::process::geteuid().as_raw(), fs::metadata(&config.data_dir).map(|found| found.uid()));
    match server {
        Ok(server) if is_local && server != user => {
            format!("{said}; tried as user {user}, but data_dir belongs to user {server}, as whom the server may run")
        }
        _ => said,
    }
}

fn remedy(group: Group, name: &str, target: &Target) -> String {
    let place = match target {
        Target::Webhook { .. } => format!("targets.{name}.url"),
        Target::Maildir { .. } | Target::File { .. } => format!("targets.{name}.path"),
        Target::Pipe { .. } => format!("targets.{name}.command"),
        Target::Lmtp { .. } => format!("targets.{name}.address"),
        Target::Smtp { .. } => format!("targets.{name}.host and port"),
    };
    match group {
        Group::BadHostName => format!("check {place}, and that this machine can resolve the name"),
        Group::NoResponse => format!("check {place}, whether the server there runs, and whether a firewall is between"),
        Group::Disconnected => format!("check {place}: another protocol may be spoken there; else try later"),
        Group::Tls => {
            format!("check that the name in {place} is one in the certificate, and that the system trusts its issuer")
        }
        Group::Refused => match target {
            Target::Webhook { .. } => format!("read what the endpoint says; check {place} and targets.{name}.secret"),
            Target::Pipe { .. } => "read what the program says; it gets the message on its standard input".to_owned(),
            _ => "read what the server says: it may want another --to, or not know its mailboxes".to_owned(),
        },
        Group::System => format!("correct {place}, or let the user that the server runs as use it"),
        Group::Login | Group::Unsupported | Group::Other => format!("check {place}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_that_no_request_would_follow_is_not_good_in_a_test_either() {
        let go = |url: &str, ip: &str, allow_private| {
            connectable(&Url::parse(url).unwrap(), vec![ip.parse().unwrap()], allow_private)
        };
        let (group, why) = go("https://crm.example.com/x", "10.0.0.1", false).unwrap_err();
        assert!(group == Group::BadHostName && why.contains("delivery.allow_private_addresses"), "{why}");
        for (url, ip, allowed) in [
            ("https://crm.example.com/x", "10.0.0.1", true),
            ("https://crm.example.com/x", "1.1.1.1", false),
            ("http://crm/x", "10.0.0.1", false),
            ("http://10.0.0.1/x", "10.0.0.1", false),
            ("http://[::1]/x", "::1", false),
        ] {
            assert_eq!(go(url, ip, allowed).unwrap(), [ip.parse::<IpAddr>().unwrap()], "{url}");
        }
    }
}
