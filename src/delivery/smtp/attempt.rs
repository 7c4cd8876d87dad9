//! One attempt at one job: host after host until every recipient's fate is known or nobody is left
//! to ask, for each of its `parts`. What TLS policies demand of a host is known before it is connected to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::addresses::{Refused, Source};
use super::client::Client;
use super::commands::{Mail, MailRecipient, Smtputf8};
use super::connection::Connection;
use super::connection::Io;
use super::pool::{Channel, Way};
use super::step::{Stage, Tls, Trouble};
use super::tls_policy::{Certificate, DomainPolicy, HostPolicy, Terms};
use super::{SmtpTransport, mx, tls};
use crate::config::GroupLimits;
use crate::delivery::{Body, Delivered, Hop, Job, Outcome};
use crate::message::{Domain, ReversePath, TlsWish};
use crate::queue::record::Failure;
use crate::store::StoreError;
use crate::trail::{Leg, Trail};

/// An attempt takes no longer, hosts, addresses and all. A server that is slow but moving gets most
/// of it; one that trickles does not hold a connection for days.
const ATTEMPT_MAX: Duration = Duration::from_secs(60 * 60);
/// A TCP connection that is not there by then is tried elsewhere.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
mod lmtp;
mod parts;
mod probe;
mod through;

pub use lmtp::run_lmtp;
use parts::{Part, Parts};
pub use probe::{probe, probe_lmtp};
pub use through::run_through;

pub async fn run(transport: &SmtpTransport, job: &Job, mail_from: &ReversePath) -> Vec<(u32, Outcome)> {
    let deadline = Instant::now() + ATTEMPT_MAX;
    let Parts { parts, decided: mut outcomes } = Parts::of(transport, job, deadline).await;
    for part in parts {
        let job = part.of_job(job);
        let Part { hosts, limits, policies, .. } = part;
        match Attempt::new(transport, &job).await {
            Ok(attempt) => {
                let mut attempt = Attempt { mail_from, deadline, limits, servers: hosts.into(), ..attempt };
                attempt.at_servers(&policies).await;
                outcomes.extend(attempt.finish());
            }
            Err(unreadable) => outcomes.extend(unreadable),
        }
    }
    outcomes
}

fn too_long() -> Failure {
    Failure::local("4.4.7", "", "the attempt took too long and was given up")
}

struct Attempt<'a> {
    transport: &'a SmtpTransport,
    job: &'a Job,
    mail_from: &'a ReversePath,
    /// One per recipient of the job, in their order.
    outcomes: Vec<Option<Outcome>>,
    traits: Traits,
    /// The servers that share what is remembered and allowed; none before they are known.
    servers: Arc<[Domain]>,
    limits: GroupLimits,
    deadline: Instant,
    /// Of the hosts that did not do, the one that got furthest; the first of equals.
    worst: Option<Trouble>,
    /// Connections tried in vain.
    tries: usize,
    /// What holds for the host that is tried, one per domain of the recipients; none for a named one.
    policies: Vec<HostPolicy>,
    /// Where its way is noted; none but for a test.
    trail: Option<Trail>,
    /// A server did not know BDAT: from here on all goes by DATA.
    without_bdat: bool,
    /// It ends at a mailbox: nothing is asked of a further way.
    is_final: bool,
}

impl<'a> Attempt<'a> {
    /// Gives the outcomes at once if the message cannot be read.
    async fn new(transport: &'a SmtpTransport, job: &'a Job) -> Result<Attempt<'a>, Vec<(u32, Outcome)>> {
        let traits = Traits::of(job).await.map_err(|error| {
            let why = Failure::local("4.3.0", "", format!("the stored message cannot be read: {error}"));
            let defer = Outcome::Defer { why, not_before_secs: None };
            job.recipients.iter().map(|(number, _)| (*number, defer.clone())).collect::<Vec<_>>()
        })?;
        Ok(Attempt {
            transport,
            job,
            mail_from: &job.message.mail_from,
            outcomes: job.recipients.iter().map(|_| None).collect(),
            traits,
            servers: Arc::default(),
            limits: transport.destinations.default,
            deadline: Instant::now() + ATTEMPT_MAX,
            worst: None,
            tries: 0,
            policies: Vec::new(),
            trail: None,
            without_bdat: false,
            is_final: false,
        })
    }

    /// `policies`: of the recipients' domains, whose servers these are.
    async fn at_servers(&mut self, policies: &[DomainPolicy]) {
        let hosts = self.servers.clone();
        let mut forbidden = None;
        for host in &*hosts {
            if self.undecided().is_empty() || Instant::now() >= self.deadline {
                return;
            }
            self.at_host(host, policies, &mut forbidden).await;
        }
        // Nothing was tried, for reasons that will not pass.
        if self.worst.is_none()
            && let Some(DomainPolicy { domain, .. }) = policies.first()
        {
            let outcome = match forbidden {
                Some((host, ip, reason)) => mx::all_refused(domain, &host, ip, reason),
                None => mx::no_addresses(domain, &hosts),
            };
            self.decide_rest(&outcome);
        }
    }

    async fn at_host(
        &mut self,
        host: &Domain,
        policies: &[DomainPolicy],
        forbidden: &mut Option<(Domain, IpAddr, Refused)>,
    ) {
        let mut found = Vec::with_capacity(policies.len());
        for policy in policies {
            match timeout_at(self.deadline, self.transport.policies.of_host(policy, host)).await {
                Ok(Ok(policy)) => found.push(policy),
                Ok(Err(unused)) => {
                    self.transport.tell_unused(&unused.policy, host);
                    return self.note(unused.trouble);
                }
                Err(_) => return,
            }
        }
        // The same for all of them, as they share transactions.
        let Some(terms) = found.first().map(|policy| policy.terms.clone()) else { return };
        self.policies = found;
        let found = match timeout_at(
            self.deadline,
            self.transport.addresses(host, &self.servers, self.transport.settings.allow_private_addresses),
        )
        .await
        {
            Ok(found) => found,
            Err(_) => Err(format!("the addresses of {host} could not be looked up in time")),
        };
        let found = match found {
            Ok(found) => found,
            Err(reason) => {
                return self.note(Trouble::new(Stage::Address, Failure::local("4.4.3", host.as_str(), reason)));
            }
        };
        if let (None, Some((ip, reason))) = (&forbidden, found.refused.first()) {
            *forbidden = Some((host.clone(), *ip, *reason));
        }
        for ip in found.usable {
            if self.undecided().is_empty() || Instant::now() >= self.deadline {
                return;
            }
            self.at_address(host, ip, &terms).await;
        }
    }

    /// With TLS as the policy has it; where that is broken and nothing demands it, once more without.
    async fn at_address(&mut self, host: &Domain, ip: IpAddr, terms: &Terms) {
        let (first, terms) = (terms.tls(), terms.clone());
        let address = SocketAddr::new(ip, self.transport.settings.mx_port);
        let mut way = Way { host: host.clone(), address, tls: first, terms, agreed: None, channel: Channel::Smtp };
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

    /// Over a connection that is there already, if there is one; else, or where that breaks, over a new one.
    async fn by_way(&mut self, way: &Way) -> Result<(), Trouble> {
        if let Some(connection) = self.transport.pool.take(way).await {
            // That a server has had enough of an old connection says nothing about the host, so it is
            // asked once more on a new one, for those whose fate is open: none that may have got it.
            if self.over(connection, way).await.is_ok() || self.undecided().is_empty() {
                return Ok(());
            }
        }
        let connection = self.connect(way).await?;
        match self.over(connection, way).await {
            // Once: no BDAT is sent any more.
            Err(trouble) if trouble.data_may_help => {
                let connection = self.connect(way).await?;
                self.over(connection, way).await
            }
            result => result,
        }
    }

    async fn over(&mut self, mut connection: Connection, way: &Way) -> Result<(), Trouble> {
        let undecided = self.undecided();
        // More recipients go in further transactions on the same connection.
        for some in undecided.chunks(self.limits.recipients_per_message.max(1)) {
            if connection.messages() >= self.limits.messages_per_connection {
                let full = std::mem::replace(&mut connection, self.connect(way).await?);
                self.transport.pool.give(way.clone(), full, &self.limits);
            }
            let mail = self.mail(some);
            let sent = connection.send(mail, &self.job.body, self.deadline).await;
            for (number, outcome) in sent.decided {
                self.decide(number, outcome);
            }
            if let Some(trouble) = sent.trouble {
                self.without_bdat |= trouble.data_may_help;
                return Err(trouble);
            }
        }
        self.transport.pool.give(way.clone(), connection, &self.limits);
        Ok(())
    }

    async fn connect(&self, way: &Way) -> Result<Connection, Trouble> {
        let transport = self.transport;
        let Way { host, address, tls: mode, terms, agreed, channel } = way;
        let since = std::time::Instant::now();
        let (peer, stream): (String, Box<dyn Io>) = match channel {
            Channel::Smtp | Channel::Lmtp => {
                let peer = peer_text(host, *address);
                let stream = self.connect_to(*address, &peer).await?;
                (peer, stream)
            }
            Channel::LmtpSocket(path) => {
                let peer = format!("unix:{}", path.display());
                let stream = lmtp::connect_to_socket(path, &peer).await?;
                (peer, Box::new(stream))
            }
        };
        if let Some(trail) = &self.trail {
            trail.mark(Leg::Connect, since, format!("connected to {peer}"));
        }
        let mut client = Client::new(peer.clone(), transport.settings.helo_name.clone(), *mode, transport.timeouts);
        client = client.demanded_by(terms.by.clone()).with_trail(self.trail.clone());
        if *channel != Channel::Smtp {
            client = client.lmtp();
        }
        let judge = transport.judge(terms).await.map_err(|why| {
            Trouble::new(Stage::Tls, Failure::local("4.7.5", &peer, format!("no TLS with {peer}: {why}")))
        })?;
        let mut connector =
            if terms.certificate == Certificate::Any { &transport.connector.0 } else { &transport.unjudged.0 };
        if let Some(agreed) = agreed {
            client = client.with_account(through::account(agreed, host, *address, &peer)?);
            if agreed.verify_certificate && *mode != Tls::Never {
                connector = transport.verifying().await.map_err(|why| {
                    Trouble::new(Stage::Tls, Failure::local("4.7.5", &peer, format!("no TLS with {peer}: {why}")))
                })?;
            }
        }
        let name = tls::server_name(host, address.ip());
        let opened = Connection::open(stream, client, connector, name, &judge, self.deadline).await;
        let flaw = super::flaw(&opened).filter(|_| *mode != Tls::Never);
        if let Some(flaw) = flaw {
            for policy in &self.policies {
                transport.tell(policy, host, address.ip(), flaw.clone()).await;
            }
        }
        opened.map(|connection| connection.hurried_by(transport.hurry.clone()))
    }

    /// From one of our addresses, and remembers whether addresses of this family can be connected to.
    async fn connect_to(&self, address: SocketAddr, peer: &str) -> Result<Box<dyn Io>, Trouble> {
        let ours = |reason: String| Trouble::new(Stage::Connect, Failure::local("4.3.5", peer, reason));
        let socket = match self.transport.sources.next(address.ip()) {
            Source::Any => None,
            Source::Bound(source) => Some(bound(source).map_err(|error| {
                ours(format!("cannot connect to {peer} from {source}, one of delivery.source_addresses: {error}"))
            })?),
            Source::Missing => {
                let reason = format!("cannot connect to {peer}: delivery.source_addresses has none of its family");
                return Err(ours(reason));
            }
        };
        let connecting = async {
            if let Some(network) = &self.transport.network {
                return network.connect(address).await;
            }
            let stream = match socket {
                Some(socket) => socket.connect(address).await?,
                None => TcpStream::connect(address).await?,
            };
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Io>)
        };
        let stream: std::io::Result<Box<dyn Io>> = match timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(result) => result,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        };
        self.transport.note_family(&self.servers, address.ip(), stream.is_ok());
        stream.map_err(|error| {
            let reason = format!("could not connect to {peer}: {error}");
            Trouble::new(Stage::Connect, Failure::local("4.4.1", peer, reason))
        })
    }

    fn mail(&self, some: &[usize]) -> Mail {
        let recipients = some.iter().filter_map(|at| self.job.recipients.get(*at));
        let message = &self.job.message;
        let is_ours = self.is_return_path_ours();
        Mail {
            mail_from: self.mail_from.clone(),
            size: self.job.body.len(),
            eight_bit: self.traits.eight_bit,
            smtputf8: self.traits.smtputf8,
            dsn: message.dsn.clone(),
            require_tls: message.tls == TlsWish::Required && !self.is_final,
            without_bdat: self.without_bdat,
            recipients: recipients
                .map(|(number, recipient)| MailRecipient {
                    number: *number,
                    address: recipient.address.clone(),
                    notify: if is_ours { recipient.passed_on().without_success() } else { recipient.passed_on() },
                    original: recipient.original.clone(),
                })
                .collect(),
        }
    }

    fn undecided(&self) -> Vec<usize> {
        let open = self.outcomes.iter().enumerate().filter(|(_, outcome)| outcome.is_none());
        open.map(|(at, _)| at).collect()
    }

    /// What another server reports then does not go to the sender, so reports of success are ours.
    fn is_return_path_ours(&self) -> bool {
        *self.mail_from != self.job.message.mail_from
    }

    fn decide(&mut self, number: u32, mut outcome: Outcome) {
        if let Outcome::Delivered(Delivered { hop: hop @ Hop::PassedOn, .. }) = &mut outcome
            && self.is_return_path_ours()
        {
            *hop = Hop::Relayed;
        }
        let recipients = self.job.recipients.iter().zip(&mut self.outcomes);
        for (_, slot) in recipients.filter(|((known, _), _)| *known == number) {
            slot.get_or_insert_with(|| outcome.clone());
        }
    }

    fn decide_rest(&mut self, outcome: &Outcome) {
        for slot in &mut self.outcomes {
            slot.get_or_insert_with(|| outcome.clone());
        }
    }

    fn note(&mut self, trouble: Trouble) {
        self.tries += 1;
        if self.worst.as_ref().is_none_or(|worst| trouble.stage > worst.stage) {
            self.worst = Some(trouble);
        }
    }

    fn finish(mut self) -> Vec<(u32, Outcome)> {
        let for_want_of_tls = self.worst.as_ref().is_some_and(|worst| worst.stage == Stage::Tls);
        let mut why = match self.worst.take() {
            Some(trouble) => trouble.failure,
            None => too_long(),
        };
        match self.tries {
            0 | 1 => {}
            2 => why.reason += "; one other try did no better",
            tries => why.reason += &format!("; {} other tries did no better", tries - 1),
        }
        if for_want_of_tls && !self.is_final && self.job.message.tls == TlsWish::Required {
            // RFC 8689 4.2.1, 5: without TLS that can be relied on it goes back.
            why.status = "5.7.30".into();
            self.decide_rest(&Outcome::Fail(why));
        } else {
            self.decide_rest(&Outcome::Defer { why, not_before_secs: None });
        }
        let numbers = self.job.recipients.iter().map(|(number, _)| *number);
        numbers.zip(self.outcomes.into_iter().flatten()).collect()
    }
}

fn bound(source: IpAddr) -> std::io::Result<TcpSocket> {
    let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(source, 0))?;
    Ok(socket)
}

/// `mx1.example.com [192.0.2.1]:25`; an address literal is not said twice.
fn peer_text(host: &Domain, address: SocketAddr) -> String {
    let place = format!("[{}]:{}", address.ip(), address.port());
    if host.literal().is_some() { place } else { format!("{host} {place}") }
}

/// What the content asks of a server.
#[derive(Clone, Copy, Debug)]
struct Traits {
    eight_bit: bool,
    smtputf8: Smtputf8,
}

impl Traits {
    async fn of(job: &Job) -> Result<Traits, StoreError> {
        let eight_bit = !job.body.is_ascii().await?;
        let smtputf8 = match job.message.smtputf8 {
            false => Smtputf8::No,
            true if eight_bit && !has_ascii_header(&job.body).await? => Smtputf8::Needed,
            true => Smtputf8::Welcome,
        };
        Ok(Traits { eight_bit, smtputf8 })
    }
}

/// The header ends at the first empty line.
async fn has_ascii_header(body: &Body) -> Result<bool, StoreError> {
    let mut line_is_empty = true;
    let mut pieces = body.pieces();
    while let Some(piece) = pieces.next().await? {
        for byte in &piece {
            match byte {
                b'\r' => {}
                b'\n' if line_is_empty => return Ok(true),
                b'\n' => line_is_empty = true,
                0..=127 => line_is_empty = false,
                _ => return Ok(false),
            }
        }
    }
    Ok(true)
}
