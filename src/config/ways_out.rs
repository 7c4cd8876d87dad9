//! Reads how mail leaves.

use std::net::IpAddr;
use std::time::Duration;

use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address, read_address_or_domain, read_domain};
use super::value::{DURATION_FORM, SECOND_UP, parse_duration};
use super::{AddressOrDomain, Archive, ArchivePer, Delivery, FilePath, OutboundTls, Retry, WayOut};
use crate::message::{Address, Domain};

const CONNECTIONS_MAX: i64 = 1_000_000;
const ATTEMPTS_MAX: i64 = 1_000_000;
/// Steps of the retry schedule.
const SCHEDULE_STEPS_MAX: usize = 100;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// Seconds: 1m 5m 15m 30m 1h 2h 4h.
const SCHEDULE: [u64; 7] = [MINUTE, 5 * MINUTE, 15 * MINUTE, 30 * MINUTE, HOUR, 2 * HOUR, 4 * HOUR];

const FILE_PATH: &str = "/var/spool/mail-out/{date}/{id}.eml";
const ARCHIVE_FORM: &str = "sections with the header [[archive]]";
const ALLOW_FORM: &str = "a list of addresses and domains such as [\"example.com\"]";
const SOURCE_FORM: &str = "a list of IP addresses such as [\"192.0.2.1\", \"2001:db8::1\"]";
const SCHEDULE_FORM: &str = "a list of durations such as [\"1m\", \"5m\", \"1h\"]";

pub(super) fn delivery(root: &Section<'_>, hostname: Option<&Domain>) -> Option<Delivery> {
    let section = root.section("delivery");
    let ways = [
        ("direct", WayOut::Direct),
        ("smart_hosts", WayOut::SmartHosts),
        ("file", WayOut::File),
        ("capture", WayOut::Capture),
    ];
    let default = section.item("default").and_then(|item| item.choice(&ways, &[]));
    let file_path = match section.item("file_path") {
        Some(item) => item.read("a path", FilePath::parse),
        None => FilePath::parse(FILE_PATH).ok(),
    };
    let helo_name = section.item("helo_name").and_then(|item| helo_name(&item));
    let source_addresses = section.list("source_addresses", SOURCE_FORM, read_source).unwrap_or_default();
    let concurrency = section.count("concurrency", 1..=CONNECTIONS_MAX, 500);
    let mx_port = section.count("mx_port", 1..=65_535, 25);
    let allow_private_addresses = section.boolean("allow_private_addresses", false);
    let (redirect_all_to, allow_recipients) = staging(&section);
    let retry = retry(&section.section("retry"));
    let policies = [("opportunistic", OutboundTls::Opportunistic), ("required", OutboundTls::Required)];
    let tls_section = section.section("tls");
    let tls = tls_section.choice("policy", &policies, OutboundTls::Opportunistic);
    let mta_sts = tls_section.boolean("mta_sts", true);
    let dane = tls_section.boolean("dane", true);
    let tls_rpt = tls_section.boolean("tls_rpt", true);
    Some(Delivery {
        default: default.unwrap_or(WayOut::Direct),
        file_path: file_path?,
        helo_name: helo_name.or_else(|| hostname.cloned())?,
        source_addresses,
        concurrency,
        mx_port,
        allow_private_addresses,
        redirect_all_to,
        allow_recipients,
        retry,
        tls,
        mta_sts,
        dane,
        tls_rpt,
    })
}

pub(super) fn archive(root: &Section<'_>) -> Vec<Archive> {
    let elements = root.item("archive").and_then(|item| item.elements(ARCHIVE_FORM)).unwrap_or_default();
    let mut archives: Vec<Archive> = Vec::new();
    for section in elements.iter().filter_map(Item::section) {
        let pers = [("message", ArchivePer::Message), ("recipient", ArchivePer::Recipient)];
        let per = section.choice("per", &pers, ArchivePer::Message);
        let remedy = "Add where copies are kept, such as path = \"/var/spool/archive/{date}/{id}.eml\".";
        let Some(item) = section.required("path", remedy) else { continue };
        let read = |text: &str| FilePath::parse_numbered(text).map(|path| (text.to_owned(), path));
        let Some((name, path)) = item.read("a path", read) else { continue };
        if archives.iter().any(|other| other.name == name) {
            item.problem(ProblemKind::Duplicate, format!("{name:?} is archived to twice"), "Keep one of the two.");
        }
        archives.push(Archive { name, path, per });
    }
    archives
}

/// What keeps a copy of a real system from writing to real people. It must not go unnoticed elsewhere.
fn staging(section: &Section<'_>) -> (Option<Address>, Vec<AddressOrDomain>) {
    let item = section.item("redirect_all_to");
    let read = |text: &str| if text.is_empty() { Ok(None) } else { read_address(text).map(Some) };
    let redirect = item.as_ref().and_then(|item| item.read("an address", read)).flatten();
    let allowed = section.list("allow_recipients", ALLOW_FORM, read_address_or_domain).unwrap_or_default();
    if let (Some(item), Some(address)) = (&item, &redirect) {
        section.report.warn(format!(
            "delivery.redirect_all_to: all mail goes to {address} instead, also what is for addresses of ours"
        ));
        if !allowed.is_empty() && !allowed.iter().any(|allowed| allowed.matches(address)) {
            let what = format!("{address} is not among delivery.allow_recipients, so nothing would leave");
            item.problem(ProblemKind::BadValue, what, "Add it there, or take one of the two out.");
        }
    }
    if !allowed.is_empty() {
        let names: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let names = names.join(", ");
        section.report.warn(format!("delivery.allow_recipients: only mail for {names} leaves, the rest is held"));
    }
    (redirect, allowed)
}

/// Empty: as if it were not there.
fn helo_name(item: &Item<'_>) -> Option<Domain> {
    item.read("a domain", |text| if text.is_empty() { Ok(None) } else { read_domain(text).map(Some) }).flatten()
}

/// An address that one machine can have. Whether this one has it shows when it is used.
fn read_source(text: &str) -> Result<IpAddr, Wrong> {
    let remedy = "Write an address of this machine, such as \"192.0.2.1\", without brackets or port.";
    let wrong = || Wrong::value(format!("{text:?} is not an address to send from"), remedy);
    let ip: IpAddr = text.parse().map_err(|_| wrong())?;
    if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(std::net::Ipv4Addr::BROADCAST) {
        return Err(wrong());
    }
    Ok(ip.to_canonical())
}

fn retry(section: &Section<'_>) -> Retry {
    let schedule = section.item("schedule").and_then(|item| schedule(&item));
    let delay_notice = match section.item("delay_notice") {
        None => Some(Duration::from_secs(4 * HOUR)),
        Some(item) => delay_notice(&item),
    };
    Retry {
        schedule: schedule.unwrap_or_else(|| SCHEDULE.into_iter().map(Duration::from_secs).collect()),
        expire: section.duration("expire", SECOND_UP, Duration::from_secs(5 * DAY)),
        delay_notice,
        max_attempts: section.count("max_attempts", 0..=ATTEMPTS_MAX, 0),
    }
}

fn schedule(item: &Item<'_>) -> Option<Vec<Duration>> {
    let elements = item.elements(SCHEDULE_FORM)?;
    if elements.is_empty() || elements.len() > SCHEDULE_STEPS_MAX {
        let what = format!("the schedule needs 1 to {SCHEDULE_STEPS_MAX} steps");
        item.problem(ProblemKind::BadValue, what, format!("Write {SCHEDULE_FORM}."));
        return None;
    }
    Some(elements.iter().filter_map(|element| element.duration(SECOND_UP)).collect())
}

fn delay_notice(item: &Item<'_>) -> Option<Duration> {
    let text = item.string("a duration or \"never\"")?;
    if text == "never" {
        return None;
    }
    if parse_duration(text).is_none() {
        let remedy = format!("{DURATION_FORM} \"never\" turns it off.");
        item.problem(ProblemKind::BadValue, format!("{text:?} is neither a duration nor \"never\""), remedy);
        return None;
    }
    item.duration(SECOND_UP)
}
