//! Reads the outgoing servers.
//!
//! A host's filter is typed here once, so that choosing never parses. Left out: which host a message
//! goes by (`routing::outbound`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::domains::message_size;
use super::fetch::{self, Mailbox};
use super::oauth;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address_or_domain, read_domain};
use super::tree::Place;
use super::{AddressOrDomain, FromEntry, Login, Sender, SmartHost, SmartHostKind, SmartHostTls, Stream, WayOut};

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
pub(super) fn smart_hosts(root: &Section<'_>, mailboxes: &[Mailbox]) -> Vec<SmartHost> {
    let mut hosts = Vec::new();
    for (name, section) in root.section("smart_hosts").named() {
        if section.exists() {
            check_name(name, &section);
            hosts.extend(smart_host(name, &section, mailboxes));
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

fn smart_host(name: &str, section: &Section<'_>, mailboxes: &[Mailbox]) -> Option<SmartHost> {
    let is_graph = section.choice("kind", &[("smtp", false), ("graph", true)], false);
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
    let oauth = oauth::oauth(section);
    let graph_url = oauth::graph_url(section, is_graph, oauth.as_ref());
    let from_filter = section.item("from_filter").map(|item| host_filter(&item)).unwrap_or_default();
    let priority = section.count("priority", 0..=PRIORITY_MAX, PRIORITY);
    let active = section.boolean("active", true);
    let max_size = section.item("max_size").and_then(|item| max_size(&item));
    let pop_before_smtp = section.item("pop_before_smtp").and_then(|item| fetch::named(&item, mailboxes, is_graph));
    let debug = section.boolean("debug", false);
    let host = host_name(section, is_graph)?;
    if (login.is_some() || oauth.is_some()) && !host.is_empty() && !is_loopback(&host) {
        check_secrecy(name, section, tls);
    }
    if !verify_certificate && tls != SmartHostTls::Off && !host.is_empty() {
        section.report.warn(format!(
            "smart_hosts.{name}: verify_certificate is false, so anybody on the way can pass for {host}"
        ));
    }
    let kind = if is_graph { SmartHostKind::Graph { url: graph_url } } else { SmartHostKind::Smtp };
    Some(SmartHost {
        name: name.to_owned(),
        kind,
        host,
        port,
        tls,
        verify_certificate,
        login,
        oauth,
        from_filter,
        priority,
        active,
        max_size,
        pop_before_smtp,
        debug,
    })
}

/// A host that is reached by HTTP alone needs no name.
fn host_name(section: &Section<'_>, is_graph: bool) -> Option<String> {
    if is_graph && section.item("host").is_none() {
        return Some(String::new());
    }
    let host = section.required("host", "Add the server's name, such as host = \"smtp.example.net\".");
    host.and_then(|item| item.read("a host name", read_host))
}

/// A domain or an IP address, as it is looked up and as its certificate names it.
pub(super) fn read_host(text: &str) -> Result<String, Wrong> {
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

pub(super) fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// With a password. Where there is a section for OAuth, the user name belongs to that.
fn login(section: &Section<'_>) -> Option<Login> {
    let username = section.item("username").map(|item| item.read("a user name", read_username));
    let password = section.item("password").map(|item| item.secret());
    match (username, password) {
        _ if section.section("oauth").exists() => None,
        (None, None) => None,
        (None, Some(_)) => {
            section.missing("username", "Add the user name, or take the password out.");
            None
        }
        (Some(_), None) => {
            let remedy = format!("Add the password or [{}.oauth], or take the user name out.", section.path);
            section.missing("password", &remedy);
            None
        }
        (Some(username), Some(password)) => Some(Login { username: username?, password: password? }),
    }
}

pub(super) fn read_username(text: &str) -> Result<String, Wrong> {
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
    if text == "auto" { None } else { message_size(item) }
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

pub(super) fn from_filter(item: &Item<'_>) -> Vec<FromEntry> {
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

/// What is set and has no effect on any mail. With "capture" all of it holds for what a person releases.
pub(super) fn warn_of_unused(
    root: &Section<'_>,
    default: WayOut,
    hosts: &[SmartHost],
    streams: &BTreeMap<String, Stream>,
) {
    match default {
        WayOut::File => warn_of_pins(root),
        WayOut::Direct => {
            let pins: Vec<&String> = streams.values().filter_map(|stream| stream.smart_host.as_ref()).collect();
            let unused = |host: &&SmartHost| host.active && host.from_filter.is_empty() && !pins.contains(&&host.name);
            for SmartHost { name, .. } in hosts.iter().filter(unused) {
                let place = root.section("smart_hosts").section(name).place;
                root.report.warn(format!(
                    "smart_hosts.{name} ({}:{}) is never used: delivery.default is \"direct\", and it has no from_filter; \
                     set delivery.default = \"smart_hosts\", give it a from_filter, or pin a stream to it \
                     (streams.NAME.smart_host = \"{name}\")",
                    place.file, place.line
                ));
            }
        }
        WayOut::SmartHosts | WayOut::Capture => {}
    }
}

fn warn_of_pins(root: &Section<'_>) {
    for (name, section) in root.section("streams").named() {
        let Some(item) = section.item("smart_host") else { continue };
        let Some(host) = item.string("the name of a smart host").filter(|host| !host.is_empty()) else { continue };
        let Place { file, line, .. } = &item.node.place;
        root.report.warn(format!(
            "streams.{name}.smart_host ({file}:{line}) has no effect while delivery.default is \"file\": mail of this \
             stream becomes files and does not go to {host}; set delivery.default to \"direct\" or \"smart_hosts\", \
             or take this out"
        ));
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
