//! POP before SMTP: a login to a mailbox by POP3 (RFC 1939), after which some servers take mail from our
//! address for a while.
//!
//! Promises: one login at a time for a host, and none while an earlier one still counts; every wait and
//! every line is bounded; the password crosses a network under TLS only, with the certificate checked; it
//! is in no text. What goes wrong is trouble of the host and never fails the mail.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::auth::LoginFault;
use super::connection::Io;
use super::host::{Attempted, host_domain};
use super::{SmtpTransport, tls};
use crate::clock::{Clock, Millis};
use crate::config::{PopAccount, PopTls, SmartHost};
use crate::delivery::{HostFailure, Outcome};
use crate::message::Domain;
use crate::queue::record::Failure;

/// A login counts for so long.
const VALID: Millis = 5 * 60 * 1000;
/// After one that failed, the mailbox is left alone for so long.
const REST: Millis = 60 * 1000;
/// The whole conversation takes no longer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Octets of a line; RFC 2449 4 allows 512.
const LINE_BYTES_MAX: usize = 2048;
/// Characters of a server's explanation that are passed on.
const EXPLANATION_CHARS_MAX: usize = 200;
/// RFC 2449 8, RFC 3206 4: it may work later.
const LATER_CODES: [&str; 3] = ["[IN-USE]", "[LOGIN-DELAY]", "[SYS/TEMP]"];

/// Who is logged in where. Share it.
#[derive(Debug)]
pub struct PopBeforeSmtp {
    clock: Clock,
    /// By name of the smart host.
    hosts: Mutex<HashMap<String, Arc<tokio::sync::Mutex<State>>>>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Unknown,
    LoggedIn {
        until: Millis,
    },
    Failed {
        until: Millis,
        failure: HostFailure,
    },
}

impl PopBeforeSmtp {
    pub fn new(clock: Clock) -> PopBeforeSmtp {
        PopBeforeSmtp { clock, hosts: Mutex::default() }
    }

    /// To be called before mail is offered to a host. Logs in to its mailbox, if it has one and that has
    /// not been done lately.
    pub async fn log_in(&self, transport: &SmtpTransport, host: &SmartHost) -> Result<(), HostFailure> {
        let Some(account) = &host.pop_before_smtp else { return Ok(()) };
        let state = self.state(host);
        let mut state = state.lock().await;
        let now = self.clock.now();
        match &*state {
            State::LoggedIn { until } if *until > now => return Ok(()),
            State::Failed { until, failure } if *until > now => {
                let left = until.saturating_sub(now).div_ceil(1000);
                return Err(HostFailure { not_before_secs: Some(left), ..failure.clone() });
            }
            _ => {}
        }
        let result = converse(transport, account).await;
        let now = self.clock.now();
        *state = match &result {
            Ok(()) => State::LoggedIn { until: now + VALID },
            Err(failure) => {
                tracing::warn!(host = host.name, reason = failure.failure.reason, "no login by POP3");
                State::Failed { until: now + REST, failure: failure.clone() }
            }
        };
        result
    }

    /// The recipients (by number) that this host has refused because it does not know us (any more): after
    /// another [`PopBeforeSmtp::log_in`] they are to be tried once more, the others not. What it says then
    /// counts.
    pub async fn refused(&self, host: &SmartHost, attempted: &Attempted) -> Vec<u32> {
        if host.pop_before_smtp.is_none() {
            return Vec::new();
        }
        let is_refused = |outcome: &Outcome| match outcome {
            Outcome::Fail(failure) | Outcome::Defer { why: failure, .. } => wants_login(host, failure),
            _ => false,
        };
        let outcomes = attempted.outcomes.iter().filter(|(_, outcome)| is_refused(outcome));
        let refused: Vec<u32> = outcomes.map(|(number, _)| *number).collect();
        if !refused.is_empty() {
            let state = self.state(host);
            let mut state = state.lock().await;
            if let State::LoggedIn { .. } = *state {
                *state = State::Unknown;
            }
        }
        refused
    }

    fn state(&self, host: &SmartHost) -> Arc<tokio::sync::Mutex<State>> {
        // Nothing in here panics half-way, so a poisoned lock still guards sound data.
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.entry(host.name.clone()).or_default().clone()
    }
}

/// Servers say it in many ways; these words are in most of them.
fn wants_login(host: &SmartHost, failure: &Failure) -> bool {
    let Some(reply) = &failure.reply else { return false };
    let is_from_host = failure.host.starts_with(&host.host) || failure.host.starts_with(&format!("[{}]", host.host));
    let text = reply.text.to_ascii_lowercase();
    let says_so = ["relay", "authentic", "pop before", "log in", "login"].iter().any(|word| text.contains(word));
    is_from_host && says_so && matches!(reply.code, 530 | 550 | 553 | 554)
}

async fn converse(transport: &SmtpTransport, account: &PopAccount) -> Result<(), HostFailure> {
    let conversation = async {
        let (host, stream) = connect(transport, account).await?;
        speak(transport, account, &host, stream).await
    };
    match timeout(TIMEOUT, conversation).await {
        Ok(result) => result,
        Err(_) => Err(trouble(account, "4.4.2", &format!("did not finish within {} s", TIMEOUT.as_secs()))),
    }
}

fn trouble(account: &PopAccount, status: &str, what: &str) -> HostFailure {
    failed(account, None, status, what)
}

fn failed(account: &PopAccount, login: Option<LoginFault>, status: &str, what: &str) -> HostFailure {
    let PopAccount { name, host, port, .. } = account;
    let reason = format!("no login to [fetch.{name}] before mail is sent: {host}:{port} {what}");
    HostFailure { login, failure: Failure::local(status, host.as_str(), reason), not_before_secs: None }
}

/// The first address that answers. Who names a host by hand may name one of his own network.
async fn connect(transport: &SmtpTransport, account: &PopAccount) -> Result<(Domain, TcpStream), HostFailure> {
    let Some(host) = host_domain(&account.host) else {
        return Err(failed(account, Some(LoginFault::Unusable), "4.3.5", "is no name of a host"));
    };
    let addresses = match host.as_str() {
        // RFC 6761 6.3: not a question for a name server.
        "localhost" => vec![IpAddr::V6(Ipv6Addr::LOCALHOST), IpAddr::V4(Ipv4Addr::LOCALHOST)],
        _ => transport.addresses(&host, &[], true).await.map_err(|why| trouble(account, "4.4.3", &why))?.usable,
    };
    let mut last = "has no address that can be connected to".to_owned();
    for ip in addresses {
        match TcpStream::connect((ip, account.port)).await {
            Ok(stream) => return Ok((host, stream)),
            Err(error) => last = format!("could not be connected to: {error}"),
        }
    }
    Err(trouble(account, "4.4.1", &last))
}

async fn speak(
    transport: &SmtpTransport,
    account: &PopAccount,
    host: &Domain,
    stream: TcpStream,
) -> Result<(), HostFailure> {
    let ip = stream.peer_addr().map_err(|error| trouble(account, "4.4.2", &error.to_string()))?.ip();
    let mut talk = Talk { account, stream: Box::new(stream), unread: Vec::new() };
    if account.tls == PopTls::Implicit {
        talk = talk.encrypted(transport, host, ip).await?;
    }
    talk.hear("greeted with").await?;
    if account.tls == PopTls::Required {
        talk.say("STLS", "STLS").await?;
        talk = talk.encrypted(transport, host, ip).await?;
    }
    if account.tls == PopTls::Off && !ip.to_canonical().is_loopback() {
        return Err(failed(account, Some(LoginFault::NotPrivate), "4.7.11", "is not this machine, and tls is \"off\""));
    }
    let (username, password) = (&account.login.username, &account.login.password.0);
    if password.chars().any(char::is_control) {
        return Err(failed(
            account,
            Some(LoginFault::Unusable),
            "4.3.5",
            "cannot be told a password with control characters",
        ));
    }
    talk.say(&format!("USER {username}"), "USER").await?;
    talk.say(&format!("PASS {password}"), "PASS").await?;
    // Some count a login only once something has been asked.
    talk.say("STAT", "STAT").await?;
    // We are known from here on, whatever becomes of the goodbye.
    let _ = talk.say("QUIT", "QUIT").await;
    Ok(())
}

struct Talk<'a> {
    account: &'a PopAccount,
    stream: Box<dyn Io>,
    unread: Vec<u8>,
}

impl<'a> Talk<'a> {
    async fn encrypted(self, transport: &SmtpTransport, host: &Domain, ip: IpAddr) -> Result<Talk<'a>, HostFailure> {
        let account = self.account;
        let broken = |why: &str| trouble(account, "4.7.5", &format!("has no TLS that can be trusted: {why}"));
        // What came in clear before the handshake may be from anybody (RFC 2595 2.4).
        if !self.unread.is_empty() {
            return Err(broken("it went on in clear"));
        }
        let connector = transport.verifying().await.map_err(|why| broken(&why))?;
        let handshake = connector.connect(tls::server_name(host, ip), self.stream);
        let stream = handshake.await.map_err(|error| broken(&error.to_string()))?;
        Ok(Talk { account, stream: Box::new(stream), unread: Vec::new() })
    }

    /// `name`: what of the command may be shown.
    async fn say(&mut self, command: &str, name: &str) -> Result<(), HostFailure> {
        let written = async {
            self.stream.write_all(format!("{command}\r\n").as_bytes()).await?;
            self.stream.flush().await
        };
        let account = self.account;
        if !self.unread.is_empty() {
            return Err(trouble(account, "4.5.0", "sent more answers than it was asked for"));
        }
        written.await.map_err(|error| trouble(account, "4.4.2", &format!("was cut off at {name}: {error}")))?;
        self.hear(&format!("answered {name} with")).await
    }

    /// One line, which has to be +OK.
    async fn hear(&mut self, did: &str) -> Result<(), HostFailure> {
        let line = self.line().await?;
        if line == "+OK" || line.starts_with("+OK ") {
            return Ok(());
        }
        let password = &self.account.login.password.0;
        let plain = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
        let shown: String = match line.contains(password.as_str()) {
            true => "something that repeats the password".to_owned(),
            false => line.chars().take(EXPLANATION_CHARS_MAX).map(plain).collect(),
        };
        let what = format!("{did} \"{shown}\"");
        let is_refusal = line.starts_with("-ERR") && !LATER_CODES.iter().any(|code| line.contains(code));
        Err(match is_refusal {
            true => failed(self.account, Some(LoginFault::Refused), "4.7.8", &what),
            false => trouble(self.account, "4.7.0", &what),
        })
    }

    async fn line(&mut self) -> Result<String, HostFailure> {
        let account = self.account;
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned());
            }
            if self.unread.len() > LINE_BYTES_MAX {
                return Err(trouble(account, "4.5.0", "sent a line that is too long"));
            }
            let mut bytes = [0; 512];
            let lost = |why: String| trouble(account, "4.4.2", &why);
            let read = self.stream.read(&mut bytes).await;
            let read = read.map_err(|error| lost(format!("was cut off: {error}")))?;
            match bytes.get(..read) {
                None | Some([]) => return Err(lost("closed the connection".to_owned())),
                Some(some) => self.unread.extend_from_slice(some),
            }
        }
    }
}
