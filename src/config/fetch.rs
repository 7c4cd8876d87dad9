//! Reads the mailboxes elsewhere: to bring mail in from, and to log in to before mail is sent
//! (`smart_hosts.*.pop_before_smtp`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::destinations::{Names, Origin};
use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address};
use super::smart_hosts::{is_loopback, read_host, read_username};
use super::tree::Value;
use super::value::{SECOND_UP, render_duration};
use super::{After, Destination, Fetch, FetchProtocol, Login, PopAccount, PopTls, Secret};
use crate::message::Address;

/// RFC 1939 3 and RFC 9051 2.1, and RFC 8314 7.2 and 7.3 for implicit TLS.
const POP3_PORTS: (u16, u16) = (110, 995);
const IMAP_PORTS: (u16, u16) = (143, 993);

const INTERVAL: Duration = Duration::from_secs(5 * 60);
/// Servers shut those out who log in more often.
const INTERVAL_USUAL: Duration = Duration::from_secs(10);
const NAME_CHARS_MAX: usize = 64;
const FOLDER_BYTES_MAX: usize = 512;
const FOLDER: &str = "INBOX";
/// What makes a mailbox one to fetch from, where a smart host logs in to it too.
const FETCHING: [&str; 4] = ["folder", "interval", "after", "deliver_to"];

/// A section that is there; without an account if it has problems, which have been told.
pub(super) struct Mailbox {
    name: String,
    account: Option<Fetch>,
}

pub(super) fn mailboxes(root: &Section<'_>) -> Vec<Mailbox> {
    let sections = root.section("fetch").named().into_iter().filter(|(_, section)| section.exists());
    sections.map(|(name, section)| Mailbox { name: name.to_owned(), account: account(name, &section) }).collect()
}

fn account(name: &str, section: &Section<'_>) -> Option<Fetch> {
    check_name(name, section);
    let protocol = section.required("protocol", "Add protocol = \"imap\" or protocol = \"pop3\".");
    let protocols = [("imap", FetchProtocol::Imap), ("pop3", FetchProtocol::Pop3)];
    let protocol = protocol.and_then(|item| item.choice(&protocols, &[]))?;
    let modes = [("off", PopTls::Off), ("required", PopTls::Required), ("implicit", PopTls::Implicit)];
    let tls = section.choice("tls", &modes, PopTls::Implicit);
    let (plain, implicit) = if protocol == FetchProtocol::Imap { IMAP_PORTS } else { POP3_PORTS };
    let port = section.count("port", 1..=65_535, if tls == PopTls::Implicit { implicit } else { plain });
    let username = section.required("username", "Add the user name of the mailbox.");
    let username = username.and_then(|item| item.read("a user name", read_username));
    let takes_tokens = section.section("oauth").exists();
    let oauth = super::oauth::oauth(section);
    let password = match takes_tokens {
        true => Some(Secret(String::new())),
        false => {
            let remedy = format!("Add the password of the mailbox, or [{}.oauth].", section.path);
            section.required("password", &remedy).and_then(|item| item.secret())
        }
    };
    let host = section.required("host", "Add the server's name, such as host = \"imap.example.net\".");
    let host = host.and_then(|item| item.read("a host name", read_host));
    let interval = section.duration("interval", SECOND_UP, INTERVAL);
    if interval < INTERVAL_USUAL {
        let shown = render_duration(interval);
        section.report.warn(format!("fetch.{name}.interval is {shown}: many servers shut out who logs in so often"));
    }
    let folder = folder(section, protocol);
    let after = after(section, protocol);
    let deliver_to = section.item("deliver_to").and_then(|item| item.read("an address", read_address));
    if let (Some(host), PopTls::Off, Some(item)) = (&host, tls, section.item("tls"))
        && !is_loopback(host)
    {
        item.wrong(Wrong::value(
            "without TLS the password would cross the network in the clear",
            "Set tls to \"required\" or \"implicit\".",
        ));
    }
    let login = Login { username: username?, password: password? };
    if takes_tokens && oauth.is_none() {
        return None;
    }
    Some(Fetch { protocol, host: host?, port, tls, login, oauth, folder: folder?, interval, after: after?, deliver_to })
}

/// It stands in keys of the store, in logs and on the command line.
fn check_name(name: &str, section: &Section<'_>) {
    let odd = |c: char| c.is_control() || c.is_whitespace();
    if name.is_empty() || name.chars().count() > NAME_CHARS_MAX || name.chars().any(odd) {
        let remedy = format!("Use up to {NAME_CHARS_MAX} characters without spaces or control characters.");
        let what = "not a name for a mailbox";
        section.report.problem(ProblemKind::BadValue, &section.place, &section.path, what, remedy);
    }
}

fn folder(section: &Section<'_>, protocol: FetchProtocol) -> Option<String> {
    let item = section.item("folder");
    match (protocol, item) {
        (FetchProtocol::Imap, None) => Some(FOLDER.to_owned()),
        (FetchProtocol::Imap, Some(item)) => item.read("a folder", read_folder),
        (FetchProtocol::Pop3, None) => Some(String::new()),
        (FetchProtocol::Pop3, Some(item)) => {
            // RFC 1939 knows one maildrop.
            if item.string("a folder")?.eq_ignore_ascii_case(FOLDER) {
                return Some(String::new());
            }
            item.wrong(Wrong::value("POP3 has no folders", "Take it out, or set protocol = \"imap\"."));
            None
        }
    }
}

fn read_folder(text: &str) -> Result<String, Wrong> {
    if text.is_empty() || text.len() > FOLDER_BYTES_MAX || text.chars().any(char::is_control) {
        let remedy = "Write the folder's name as the server shows it, such as \"INBOX\" or \"Archive/2026\".";
        return Err(Wrong::value("not a folder's name", remedy));
    }
    Ok(text.to_owned())
}

/// Where the protocol knows no marks, a message stays as it is unless the file says otherwise.
fn after(section: &Section<'_>, protocol: FetchProtocol) -> Option<After> {
    let is_imap = protocol == FetchProtocol::Imap;
    let Some(item) = section.item("after") else {
        return Some(if is_imap { After::Seen } else { After::Leave });
    };
    let after = item.read("a string", |text| match text.split_once(':') {
        None if text == "seen" => Ok(After::Seen),
        None if text == "delete" => Ok(After::Delete),
        None if text == "leave" => Ok(After::Leave),
        Some(("move", folder)) => read_folder(folder).map(After::Move),
        _ => Err(Wrong::value(
            format!("{text:?} is not one of the choices"),
            "Use \"seen\", \"delete\", \"move:FOLDER\" or \"leave\".",
        )),
    })?;
    if !is_imap && !matches!(after, After::Delete | After::Leave) {
        let what = "POP3 can neither mark nor move messages";
        item.wrong(Wrong::value(what, "Use \"delete\" or \"leave\", or set protocol = \"imap\"."));
        return None;
    }
    let same = |folder: &str| section.item("folder").is_some_and(|item| text(&item) == Some(folder));
    if let After::Move(folder) = &after
        && (same(folder) || (section.item("folder").is_none() && folder.eq_ignore_ascii_case(FOLDER)))
    {
        item.wrong(Wrong::value("the folder is the one that is fetched from", "Name another folder."));
    }
    Some(after)
}

/// The mailbox that `item` names; "" is none.
pub(super) fn named(item: &Item<'_>, mailboxes: &[Mailbox], is_graph: bool) -> Option<PopAccount> {
    let name = item.string("a string")?;
    if name.is_empty() {
        return None;
    }
    if is_graph {
        item.wrong(Wrong::value("a host of kind \"graph\" needs no login elsewhere", "Take it out."));
        return None;
    }
    let Some(found) = mailboxes.iter().find(|mailbox| mailbox.name == name) else {
        let remedy = match nearest(name, mailboxes.iter().map(|mailbox| mailbox.name.as_str())) {
            Some(near) => format!("Did you mean \"{near}\"?"),
            None => format!("Add [fetch.{name}] with protocol = \"pop3\", or take it out."),
        };
        item.problem(ProblemKind::Reference, format!("there is no [fetch] account named {name:?}"), remedy);
        return None;
    };
    let account = found.account.as_ref()?;
    if account.protocol != FetchProtocol::Pop3 {
        let what = format!("fetch.{name} is for IMAP, and a login there lets no mail be sent");
        item.wrong(Wrong::value(what, "Name an account with protocol = \"pop3\"."));
        return None;
    }
    if account.oauth.is_some() {
        let what = format!("fetch.{name} takes tokens, and POP before SMTP wants a password");
        item.wrong(Wrong::value(what, "Name an account with a password."));
        return None;
    }
    let Fetch { host, port, tls, login, .. } = account.clone();
    Some(PopAccount { name: name.to_owned(), host, port, tls, login })
}

/// The mailboxes to fetch from: all but those that a smart host logs in to and that say nothing of
/// fetching.
pub(super) fn fetched(root: &Section<'_>, mailboxes: Vec<Mailbox>, names: &Names) -> BTreeMap<String, Fetch> {
    let hosts = root.section("smart_hosts").named();
    let only_logins: Vec<&str> = hosts.iter().filter_map(|(_, section)| named_in(section)).collect();
    let mut fetched = BTreeMap::new();
    for Mailbox { name, account } in mailboxes {
        let section = root.section("fetch").section(&name);
        let says_how = FETCHING.iter().any(|key| section.item(key).is_some());
        if only_logins.contains(&name.as_str()) && !says_how {
            continue;
        }
        let Some(account) = account else { continue };
        check_recipient(&section, account.deliver_to.as_ref(), names);
        fetched.insert(name, account);
    }
    warn_of_twins(&fetched, root);
    fetched
}

fn check_recipient(section: &Section<'_>, deliver_to: Option<&Address>, names: &Names) {
    let own = || names.domains.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match (deliver_to, section.item("deliver_to")) {
        (Some(address), Some(item)) if !names.domains.contains(address.domain()) => {
            let what = format!("{} is not among [domains], so mail for {address} is not taken", address.domain());
            let remedy = match names.domains.is_empty() {
                true => "Add the domain to [domains], with an alias for the address.".to_owned(),
                false => format!("Name an address at one of: {}; an alias may lead it elsewhere.", own()),
            };
            item.problem(ProblemKind::Reference, what, remedy);
        }
        (None, None) if names.domains.is_empty() => {
            section.missing("deliver_to", "Name who gets the mail, and add the address's domain to [domains].");
        }
        (None, None) => section.report.warn(format!(
            "{}: without deliver_to a message goes to the addresses of ours in its header, which names no blind \
             copies; give each mailbox one address with deliver_to if you can",
            section.path
        )),
        _ => {}
    }
}

/// Addresses to follow: one that nothing takes is warned about.
pub(super) fn origins<'a>(root: &Section<'a>, fetched: &BTreeMap<String, Fetch>) -> Vec<Origin<'a>> {
    let origin = |(name, account): (&String, &Fetch)| {
        let item = root.section("fetch").section(name).item("deliver_to")?;
        let destinations = vec![Destination::Address(account.deliver_to.clone()?)];
        Some(Origin { item, address: None, destinations })
    };
    fetched.iter().filter_map(origin).collect()
}

/// Each of two accounts for one mailbox would bring in everything.
fn warn_of_twins(fetched: &BTreeMap<String, Fetch>, root: &Section<'_>) {
    let place = |account: &Fetch| (account.host.clone(), account.login.username.clone(), account.folder.clone());
    let mut places = BTreeMap::new();
    for (name, account) in fetched {
        if let Some(other) = places.insert(place(account), name) {
            root.report.warn(format!("fetch.{name}: the mailbox of fetch.{other} too, so its mail comes in twice"));
        }
    }
}

fn named_in<'a>(section: &Section<'a>) -> Option<&'a str> {
    section.item("pop_before_smtp").and_then(|item| text(&item))
}

fn text<'a>(item: &Item<'a>) -> Option<&'a str> {
    match &item.node.value {
        Value::String(text) => Some(text),
        _ => None,
    }
}
