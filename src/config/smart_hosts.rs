//! Reads the outgoing servers, what a message may say it is from, and which stream is pinned where.
//!
//! A host's filter is typed here once, so that choosing never parses. Left out: which host a message
//! goes by (`routing::outbound`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::domains::MESSAGE_BYTES_MIN;
use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address_or_domain, read_domain};
use super::{AddressOrDomain, FromEntry, Login, ReplyTo, Sender, SmartHost, SmartHostTls, Stream, WayOut};
use crate::message::{Address, stream};

/// Longest name of a smart host, in characters.
const NAME_CHARS_MAX: usize = 64;
/// Longest user name, in bytes: it must fit into one line of AUTH (RFC 4954 4).
const USERNAME_BYTES_MAX: usize = 512;
const PRIORITY: u32 = 10;
const PRIORITY_MAX: i64 = 1_000_000;
/// RFC 6409 3.1, and RFC 8314 7.3 for implicit TLS.
const PORT: u16 = 587;
const PORT_IMPLICIT: u16 = 465;

const FILTER_FORM: &str =
    "a list of addresses and domains such as [\"example.com\", \"*.example.com\", \"ceo@example.org\"]";

/// In the order in which they are tried: by priority, then as in the file.
pub(super) fn smart_hosts(root: &Section<'_>) -> Vec<SmartHost> {
    let mut hosts = Vec::new();
    for (name, section) in root.section("smart_hosts").named() {
        if section.exists() {
            check_name(name, &section);
            hosts.extend(smart_host(name, &section));
        }
    }
    hosts.sort_by_key(|host| host.priority);
    hosts
}

fn check_name(name: &str, section: &Section<'_>) {
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(odd) {
        let remedy = format!("Use up to {NAME_CHARS_MAX} characters without spaces or control characters.");
        let what = "not a name for a smart host";
        section.report.problem(ProblemKind::BadValue, &section.place, &section.path, what, remedy);
    }
}

fn smart_host(name: &str, section: &Section<'_>) -> Option<SmartHost> {
    if let Some(item) = section.item("kind") {
        item.choice(&[("smtp", ())], &["graph"])?;
    }
    let modes = [
        ("off", SmartHostTls::Off),
        ("opportunistic", SmartHostTls::Opportunistic),
        ("required", SmartHostTls::Required),
        ("implicit", SmartHostTls::Implicit),
    ];
    let tls = section.choice("tls", &modes, SmartHostTls::Required);
    let default_port = if tls == SmartHostTls::Implicit { PORT_IMPLICIT } else { PORT };
    let port = section.count("port", 1..=65_535, default_port);
    let verify_certificate = section.boolean("verify_certificate", true);
    let login = login(section);
    let from_filter = section.item("from_filter").map(|item| host_filter(&item)).unwrap_or_default();
    let priority = section.count("priority", 0..=PRIORITY_MAX, PRIORITY);
    let active = section.boolean("active", true);
    let max_size = section.item("max_size").and_then(|item| max_size(&item));
    let debug = section.boolean("debug", false);
    let host = section.required("host", "Add the server's name, such as host = \"smtp.example.net\".");
    let host = host.and_then(|item| item.read("a host name", read_host))?;
    if login.is_some() && !is_loopback(&host) {
        check_secrecy(name, section, tls);
    }
    if !verify_certificate && tls != SmartHostTls::Off {
        section.report.warn(format!(
            "smart_hosts.{name}: verify_certificate is false, so anybody on the way can pass for {host}"
        ));
    }
    let name = name.to_owned();
    Some(SmartHost { name, host, port, tls, verify_certificate, login, from_filter, priority, active, max_size, debug })
}

/// A domain or an IP address, as it is looked up and as its certificate names it.
fn read_host(text: &str) -> Result<String, Wrong> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    if text.eq_ignore_ascii_case("localhost") {
        return Ok("localhost".to_owned());
    }
    let remedy =
        "Write the server's full name, such as \"smtp.example.net\", or its IP address; the port has a key of its own.";
    let domain = read_domain(text).map_err(|wrong| Wrong { remedy: remedy.to_owned(), ..wrong })?;
    Ok(domain.as_str().to_owned())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn login(section: &Section<'_>) -> Option<Login> {
    let username = section.item("username").map(|item| item.read("a user name", read_username));
    let password = section.item("password").map(|item| item.secret());
    match (username, password) {
        (None, None) => None,
        (None, Some(_)) => {
            section.missing("username", "Add the user name, or take the password out.");
            None
        }
        (Some(_), None) => {
            if !section.section("oauth").exists() {
                section.missing("password", "Add the password, or take the user name out.");
            }
            None
        }
        (Some(username), Some(password)) => Some(Login { username: username?, password: password? }),
    }
}

fn read_username(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.len() > USERNAME_BYTES_MAX || text.chars().any(char::is_control) {
        let remedy = format!("Write 1 to {USERNAME_BYTES_MAX} bytes without control characters.");
        return Err(Wrong::value("not a user name", remedy));
    }
    Ok(text.to_owned())
}

/// A password must not cross a network in the clear (RFC 4954 4, RFC 8314 3).
fn check_secrecy(name: &str, section: &Section<'_>, tls: SmartHostTls) {
    match (tls, section.item("tls")) {
        (SmartHostTls::Off, Some(item)) => item.wrong(Wrong::value(
            "without TLS the password would cross the network in the clear",
            "Set tls to \"required\" or \"implicit\", or take username and password out.",
        )),
        (SmartHostTls::Opportunistic, _) => section.report.warn(format!(
            "smart_hosts.{name}: tls is \"opportunistic\", so the login fails whenever the server offers no STARTTLS; \"required\" says so"
        )),
        _ => {}
    }
}

/// "auto" (none): what the server says after EHLO.
fn max_size(item: &Item<'_>) -> Option<u64> {
    let text = item.string("a size or \"auto\"")?;
    if text == "auto" { None } else { item.size(MESSAGE_BYTES_MIN) }
}

/// A filter that is there and empty would match nothing in one reading and everything in another.
fn host_filter(item: &Item<'_>) -> Vec<FromEntry> {
    let entries = from_filter(item);
    if item.elements(FILTER_FORM).is_some_and(|elements| elements.is_empty()) {
        let remedy = format!("Leave it out to take mail from everybody, or write {FILTER_FORM}.");
        item.problem(ProblemKind::BadValue, "the filter is empty", remedy);
    }
    entries
}

fn from_filter(item: &Item<'_>) -> Vec<FromEntry> {
    let lists = item.list(FILTER_FORM, read_entries).unwrap_or_default();
    let mut entries: Vec<FromEntry> = Vec::new();
    for entry in lists.into_iter().flatten() {
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    entries
}

/// One string may hold several entries with commas between them, as filters elsewhere are written.
fn read_entries(text: &str) -> Result<Vec<FromEntry>, Wrong> {
    let entries: Vec<&str> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    if entries.is_empty() {
        return Err(Wrong::value("an entry of the filter is empty", format!("Take it out, or write {FILTER_FORM}.")));
    }
    entries.into_iter().map(read_entry).collect()
}

fn read_entry(text: &str) -> Result<FromEntry, Wrong> {
    if let Some(parent) = text.strip_prefix("*.") {
        return read_domain(parent).map(FromEntry::Subdomains);
    }
    if text.contains('*') {
        let remedy = "Write \"*.example.com\" for all names below example.com.";
        return Err(Wrong::value(format!("{text:?}: a star stands for whole names at the beginning only"), remedy));
    }
    Ok(match read_address_or_domain(text)? {
        AddressOrDomain::Address(address) => FromEntry::Address(address),
        AddressOrDomain::Domain(domain) => FromEntry::Domain(domain),
    })
}

pub(super) fn sender(root: &Section<'_>) -> Sender {
    let section = root.section("sender");
    let default_from = section.item("default_from").and_then(|item| default_from(&item));
    let filter = section.item("from_filter");
    let from_filter = filter.as_ref().map(from_filter).unwrap_or_default();
    if !from_filter.is_empty() && section.item("default_from").is_none() {
        section.missing("default_from", "Add the address for mail whose From the filter does not pass.");
    }
    let reply_to = section.item("reply_to").and_then(|item| {
        item.choice(&[("keep_or_author", ReplyTo::KeepOrAuthor), ("none", ReplyTo::Keep)], &["catchall"])
    });
    if let Some(item) = section.item("return_path") {
        item.choice(&[("client", ())], &["bounce", "verp"]);
    }
    Sender { default_from, from_filter, reply_to: reply_to.unwrap_or(ReplyTo::KeepOrAuthor) }
}

/// Empty: as if it were not there.
fn default_from(item: &Item<'_>) -> Option<Address> {
    item.read(
        "an address",
        |text| {
            if text.is_empty() { Ok(None) } else { super::section::read_address(text).map(Some) }
        },
    )
    .flatten()
}

pub(super) fn streams(root: &Section<'_>, hosts: &[SmartHost]) -> BTreeMap<String, Stream> {
    let names: Vec<&str> = root.section("smart_hosts").named().into_iter().map(|(name, _)| name).collect();
    let mut streams = BTreeMap::new();
    for (name, section) in root.section("streams").named() {
        if !section.exists() {
            continue;
        }
        if !stream::BUILT_IN.contains(&name) {
            let remedy = format!("The streams are {}.", super::section::one_of(&stream::BUILT_IN));
            let what = format!("there is no stream named {name:?}");
            section.report.problem(ProblemKind::Reference, &section.place, &section.path, what, remedy);
        }
        let smart_host = section.item("smart_host").and_then(|item| pinned(&item, hosts, &names));
        streams.insert(name.to_owned(), Stream { smart_host });
    }
    streams
}

/// Empty: as if it were not there. A name counts as known even if its section has problems.
fn pinned(item: &Item<'_>, hosts: &[SmartHost], names: &[&str]) -> Option<String> {
    let name = item.string("the name of a smart host").filter(|name| !name.is_empty())?;
    if !names.contains(&name) {
        let remedy = match nearest(name, names.iter().copied()) {
            Some(near) => format!("Did you mean \"{near}\"?"),
            None => format!("Add [smart_hosts.{name}], or leave this out."),
        };
        item.problem(ProblemKind::Reference, format!("there is no smart host named {name:?}"), remedy);
    } else if hosts.iter().any(|host| host.name == name && !host.active) {
        let remedy = "Name an active one, or set active = true there.";
        item.problem(ProblemKind::BadValue, format!("the smart host {name:?} is not active"), remedy);
    }
    Some(name.to_owned())
}

/// A way out that leads nowhere would keep all mail in the queue.
pub(super) fn check_default(root: &Section<'_>, default: WayOut, hosts: &[SmartHost], sender: &Sender) {
    if default == WayOut::SmartHosts {
        warn_of_strangers(root, hosts, sender);
    }
    let Some(item) = root.section("delivery").item("default") else { return };
    if default != WayOut::SmartHosts || hosts.iter().any(|host| host.active) {
        return;
    }
    // Problems of a host that is there have been told.
    if root.section("smart_hosts").named().is_empty() {
        let remedy = "Add [smart_hosts.NAME] with its host, or use \"direct\".";
        item.problem(ProblemKind::Reference, "there is no smart host", remedy);
    } else if !hosts.is_empty() {
        item.problem(ProblemKind::Reference, "no smart host is active", "Set active = true in one of them.");
    }
}

/// Mail that no filter is for goes by the first host, which may refuse it.
fn warn_of_strangers(root: &Section<'_>, hosts: &[SmartHost], sender: &Sender) {
    let mut active = hosts.iter().filter(|host| host.active);
    let is_for_all = |host: &SmartHost| {
        host.from_filter.is_empty() || sender.default_from.as_ref().is_some_and(|from| host.accepts(from))
    };
    if let Some(first) = active.clone().next()
        && !active.any(is_for_all)
    {
        root.report.warn(format!(
            "no smart host is for every From: what no from_filter names goes by smart_hosts.{}, which may refuse it; \
             give one host no from_filter, or set sender.default_from to an address that a filter names",
            first.name
        ));
    }
}
