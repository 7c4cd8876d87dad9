//! Reads the mailboxes elsewhere, as far as they are of use yet: to log in to before mail is sent
//! (`smart_hosts.*.pop_before_smtp`). Left out: fetching mail from them.

use super::nearest::nearest;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong};
use super::smart_hosts::{is_loopback, read_host, read_username};
use super::tree::Value;
use super::{Login, PopAccount, PopTls};

/// RFC 1939 3, and RFC 8314 7.2 for implicit TLS.
const PORT: u16 = 110;
const PORT_IMPLICIT: u16 = 995;

const UNUSED: &str = "Name it in pop_before_smtp of a smart host, or take this section out.";

/// A section that is there; without an account if it has problems, which have been told.
pub(super) struct Mailbox {
    name: String,
    account: Option<PopAccount>,
}

pub(super) fn mailboxes(root: &Section<'_>) -> Vec<Mailbox> {
    let sections = root.section("fetch").named().into_iter().filter(|(_, section)| section.exists());
    sections.map(|(name, section)| Mailbox { name: name.to_owned(), account: account(name, &section) }).collect()
}

fn account(name: &str, section: &Section<'_>) -> Option<PopAccount> {
    let protocol = section.required("protocol", "Add protocol = \"pop3\".");
    protocol.and_then(|item| item.choice(&[("pop3", ())], &["imap"]))?;
    let modes = [("off", PopTls::Off), ("required", PopTls::Required), ("implicit", PopTls::Implicit)];
    let tls = section.choice("tls", &modes, PopTls::Implicit);
    let default_port = if tls == PopTls::Implicit { PORT_IMPLICIT } else { PORT };
    let port = section.count("port", 1..=65_535, default_port);
    let username = section.required("username", "Add the user name of the mailbox.");
    let username = username.and_then(|item| item.read("a user name", read_username));
    let password = section.required("password", "Add the password of the mailbox.").and_then(|item| item.secret());
    let host = section.required("host", "Add the server's name, such as host = \"pop.example.net\".");
    let host = host.and_then(|item| item.read("a host name", read_host));
    if let (Some(host), PopTls::Off, Some(item)) = (&host, tls, section.item("tls"))
        && !is_loopback(host)
    {
        item.wrong(Wrong::value(
            "without TLS the password would cross the network in the clear",
            "Set tls to \"required\" or \"implicit\".",
        ));
    }
    let login = Login { username: username?, password: password? };
    Some(PopAccount { name: name.to_owned(), host: host?, port, tls, login })
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
    let found = mailboxes.iter().find(|mailbox| mailbox.name == name);
    if found.is_none() {
        let remedy = match nearest(name, mailboxes.iter().map(|mailbox| mailbox.name.as_str())) {
            Some(near) => format!("Did you mean \"{near}\"?"),
            None => format!("Add [fetch.{name}] with protocol = \"pop3\", or take it out."),
        };
        item.problem(ProblemKind::Reference, format!("there is no [fetch] account named {name:?}"), remedy);
    }
    found?.account.clone()
}

/// Mail is not fetched yet, so a mailbox that nobody logs in to would do nothing.
pub(super) fn check_use(root: &Section<'_>) {
    let hosts = root.section("smart_hosts").named();
    let named: Vec<&str> = hosts.iter().filter_map(|(_, section)| named_in(section)).collect();
    for (name, section) in root.section("fetch").named() {
        let is_pop = section.item("protocol").is_some_and(|item| text(&item) == Some("pop3"));
        if is_pop && !named.contains(&name) {
            let what = "fetching mail is not supported yet, and no smart host logs in here";
            section.report.problem(ProblemKind::NotSupportedYet, &section.place, &section.path, what, UNUSED);
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
