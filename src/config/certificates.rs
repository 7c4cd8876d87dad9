//! Reads `[tls]`: the certificate, further ones, and the authority that gives one.

use std::collections::BTreeMap;
use std::net::{Ipv6Addr, SocketAddr};

use super::doors::read_socket_address;
use super::oauth::read_https;
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong, read_address};
use super::{Acme, AcmeChallenge, Certificate, Listener, Written};
use crate::message::Address;

/// Pairs in `[[tls.extra]]`: each is read at every start and reload.
const EXTRA_MAX: usize = 1000;

const EXTRA_FORM: &str = "sections with the header [[tls.extra]]";
const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";
const DIRECTORY_FORM: &str = "Write an https address such as \"https://acme-v02.api.letsencrypt.org/directory\".";

/// What `[tls]` amounts to.
#[derive(Default)]
pub(super) struct Tls {
    pub pair: Option<Certificate>,
    pub extra: Vec<Certificate>,
    pub acme: Option<Acme>,
}

pub(super) fn tls(root: &Section<'_>, postmaster: Option<&Address>, listeners: &BTreeMap<String, Listener>) -> Tls {
    let section = root.section("tls");
    let extra = extra(&section);
    let acme_section = section.section("acme");
    let is_enabled = acme_section.boolean("enabled", false);
    let acme = acme(&acme_section, is_enabled, postmaster, listeners);
    if is_enabled {
        refuse_pair(&section);
        return Tls { pair: None, extra, acme };
    }
    if section.item("certificate").is_none() && section.item("private_key").is_none() {
        section.report.warn(
            "tls: no certificate is configured, so a self-signed one is used; clients that verify will refuse it",
        );
        return Tls { pair: None, extra, acme: None };
    }
    Tls { pair: pair(&section, "tls"), extra, acme: None }
}

/// A chain and its key; one without the other is a mistake.
fn pair(section: &Section<'_>, name: &'static str) -> Option<Certificate> {
    let (certificate, private_key) = (section.item("certificate"), section.item("private_key"));
    match (&certificate, &private_key) {
        (Some(_), None) => section.missing("private_key", "Add the key's file, or take the certificate out."),
        (None, Some(_)) => section.missing("certificate", "Add the certificate's file, or take the key out."),
        _ => {}
    }
    let place = certificate.as_ref().map_or(&section.place, |item| &item.node.place);
    let written = Written { file: place.file.to_string(), line: place.line, section: name };
    let certificate = certificate.and_then(|item| item.readable_file());
    let private_key = private_key.and_then(|item| item.readable_file());
    Some(Certificate { certificate: certificate?, private_key: private_key?, written })
}

fn extra(section: &Section<'_>) -> Vec<Certificate> {
    let Some(item) = section.item("extra") else { return Vec::new() };
    let elements = item.elements(EXTRA_FORM).unwrap_or_default();
    if elements.len() > EXTRA_MAX {
        let remedy = format!("Keep {EXTRA_MAX} at most; one certificate may have many names.");
        item.problem(ProblemKind::BadValue, format!("{} are too many", elements.len()), remedy);
    }
    let mut pairs: Vec<Certificate> = Vec::new();
    for section in elements.iter().filter_map(Item::section) {
        if section.is_empty() {
            section.missing("certificate", "Add the files certificate and private_key, or take the section out.");
        }
        pairs.extend(pair(&section, "tls.extra"));
    }
    pairs
}

/// Every key is read, enabled or not, so that a mistake shows before it matters.
fn acme(
    section: &Section<'_>,
    is_enabled: bool,
    postmaster: Option<&Address>,
    listeners: &BTreeMap<String, Listener>,
) -> Option<Acme> {
    let contact = match section.item("contact") {
        Some(item) => item.read("a string", read_address),
        None => postmaster.cloned(),
    };
    let directory = match section.item("directory") {
        Some(item) => item.read("a string", |text| read_https(text, DIRECTORY_FORM)),
        None => Some(DIRECTORY.to_owned()),
    };
    let challenges = [AcmeChallenge::Http01, AcmeChallenge::TlsAlpn01].map(|challenge| (challenge.name(), challenge));
    let challenge = section.choice("challenge", &challenges, AcmeChallenge::Http01);
    let bind = match section.item("bind") {
        Some(item) => acme_bind(&item, challenge, is_enabled, listeners),
        None if is_enabled && challenge == AcmeChallenge::TlsAlpn01 => {
            section.missing(
                "bind",
                "Add bind = \"[::]:443\": for tls-alpn-01 the authority connects to port 443, not to port 80.",
            );
            None
        }
        None => Some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, AcmeChallenge::Http01.port()))),
    };
    let acme = Acme { contact: contact?, directory: directory?, challenge, bind: bind? };
    is_enabled.then_some(acme)
}

fn acme_bind(
    item: &Item<'_>,
    challenge: AcmeChallenge,
    is_enabled: bool,
    listeners: &BTreeMap<String, Listener>,
) -> Option<SocketAddr> {
    let bind = item.read("a string", read_socket_address)?;
    if !is_enabled {
        return Some(bind);
    }
    let (name, port) = (challenge.name(), challenge.port());
    let taken = listeners.iter().find(|(_, listener)| listener.bind.contains(&bind));
    if let Some((listener, _)) = taken.filter(|_| bind.port() != 0) {
        let what = format!("{bind} is bound by listeners.{listener}.bind already");
        item.problem(ProblemKind::Duplicate, what, format!("{name} needs a port of its own, such as {port}."));
    } else if challenge == AcmeChallenge::TlsAlpn01 && bind.port() == AcmeChallenge::Http01.port() {
        item.wrong(Wrong::value(
            "port 80 is for http-01, and for tls-alpn-01 the authority connects to port 443",
            "Write bind = \"[::]:443\", or set challenge = \"http-01\".",
        ));
    } else if bind.port() != port {
        item.report.warn(format!(
            "tls.acme.bind: for {name} the authority connects to port {port}, so what comes in there has to be passed \
             on to {bind}"
        ));
    }
    Some(bind)
}

/// An authority's certificate takes the place of the files: naming both is a mistake.
fn refuse_pair(section: &Section<'_>) {
    for name in ["certificate", "private_key"] {
        if let Some(item) = section.item(name) {
            item.problem(
                ProblemKind::BadValue,
                "tls.acme.enabled is true, and the certificate that it gets takes the place of this one",
                "Take this line out, or set tls.acme.enabled = false; more certificates go under [[tls.extra]].",
            );
        }
    }
}
