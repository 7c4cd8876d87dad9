//! Reads how the server runs: queue, limits, DNS, log.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::accounts::RECIPIENTS_MAX;
use super::domains::message_size;
use super::section::{Section, Wrong};
use super::value::{SECOND_UP, render_size};
use super::{Admin, Dns, Durability, Limits, Log, LogFormat, Queue, Rate};

const MIB: u64 = 1 << 20;
/// Enough for a few chunks of bodies, which is what one message takes, however large.
const MEMORY_BYTES_MIN: u64 = MIB;
const CONNECTIONS_MAX: i64 = 1_000_000;
const ERRORS_MAX: i64 = 1_000_000;

pub(super) fn queue(root: &Section<'_>) -> Queue {
    let section = root.section("queue");
    let durabilities = [("sync", Durability::Sync), ("relaxed", Durability::Relaxed)];
    let durability = section.choice("durability", &durabilities, Durability::Sync);
    if durability == Durability::Relaxed {
        section
            .report
            .warn("queue.durability is \"relaxed\": mail that was acknowledged can be lost when the power fails");
    }
    Queue { durability, min_free: section.size("min_free", 0, 1024 * MIB), memory: memory(&section) }
}

fn memory(section: &Section<'_>) -> u64 {
    let memory = section.size("memory", 1, 512 * MIB);
    if memory < MEMORY_BYTES_MIN {
        let (memory, least) = (render_size(memory), render_size(MEMORY_BYTES_MIN));
        section
            .report
            .warn(format!("queue.memory is {memory}; {least} is used, because no large message gets by on less"));
    }
    memory.max(MEMORY_BYTES_MIN)
}

pub(super) fn limits(root: &Section<'_>) -> Limits {
    let section = root.section("limits");
    let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
    Limits {
        max_size: section.item("max_size").and_then(|item| message_size(&item)).unwrap_or(35 * MIB),
        max_recipients: section.count("max_recipients", 1..=RECIPIENTS_MAX, 100),
        connections: section.count("connections", 1..=CONNECTIONS_MAX, 10_000),
        connections_per_ip: section.count("connections_per_ip", 1..=CONNECTIONS_MAX, 50),
        connection_rate: section.rate("connection_rate", Rate { count: 60, per: minutes(1) }),
        errors_per_session: section.count("errors_per_session", 1..=ERRORS_MAX, 10),
        auth_failures: section.rate("auth_failures", Rate { count: 10, per: minutes(15) }),
        command_timeout: section.duration("command_timeout", SECOND_UP, minutes(5)),
        data_timeout: section.duration("data_timeout", SECOND_UP, minutes(10)),
    }
}

pub(super) fn dns(root: &Section<'_>) -> Dns {
    let section = root.section("dns");
    let form = "a list of name servers such as [\"127.0.0.1:53\"]";
    Dns {
        nameservers: section.list("nameservers", form, read_nameserver).unwrap_or_default(),
        timeout: section.duration("timeout", SECOND_UP, Duration::from_secs(5)),
    }
}

/// `ip` or `ip:port`.
fn read_nameserver(text: &str) -> Result<SocketAddr, Wrong> {
    let remedy = "Write an IP address, with a port if it is not 53, such as \"127.0.0.1:5353\".";
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, 53));
    }
    let address = text.parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
    address.ok_or_else(|| Wrong::value(format!("{text:?} is not the address of a name server"), remedy))
}

/// A token shorter than this can be guessed, in bytes.
const TOKEN_BYTES_SAFE: usize = 16;

/// None: only the socket. Without `bind` the token is not looked at.
pub(super) fn admin(root: &Section<'_>) -> Option<Admin> {
    let section = root.section("admin");
    let token = section.item("token");
    let bind = section.item("bind");
    let bind = bind.and_then(|item| Some((item.string("an address to listen on")?, item)));
    let Some((text, item)) = bind.filter(|(text, _)| !text.is_empty()) else {
        if let Some(token) = token {
            token.check_secret_form();
        }
        return None;
    };
    if token.is_none() {
        let what = "HTTP would be open to whoever can connect: there is no token";
        item.wrong(Wrong::value(what, "Set `token` beside it; `openssl rand -hex 32` makes a good one."));
    }
    let token = token.and_then(|item| item.secret());
    if token.as_ref().is_some_and(|token| token.0.len() < TOKEN_BYTES_SAFE) {
        section.report.warn(format!(
            "admin.token has fewer than {TOKEN_BYTES_SAFE} characters: it can be guessed; `openssl rand -hex 32` makes \
             a good one"
        ));
    }
    let Ok(bind) = text.parse::<SocketAddr>() else {
        let what = format!("{text:?} is not an address to listen on");
        item.wrong(Wrong::value(what, "Write an IP address and a port, such as \"127.0.0.1:8025\"."));
        return None;
    };
    if !bind.ip().is_loopback() {
        section.report.warn(format!(
            "admin.bind is {bind}: token and mail go over the network in clear; put a proxy with TLS in front of it"
        ));
    }
    Some(Admin { bind, token: token? })
}

pub(super) fn log(root: &Section<'_>) -> Log {
    let section = root.section("log");
    let levels = ["error", "warn", "info", "debug", "trace"].map(|level| (level, level));
    let formats = [("text", LogFormat::Text), ("json", LogFormat::Json)];
    Log {
        level: section.choice("level", &levels, "info").to_owned(),
        format: section.choice("format", &formats, LogFormat::Text),
    }
}
