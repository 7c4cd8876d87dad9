//! Reads the targets: where inbound mail is handed over.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use reqwest::Url;

pub use super::command::{LooksLikeOption, PipeCommand, Word};
use super::problem::ProblemKind;
use super::section::{Item, Section, Wrong};
use super::smart_hosts::{is_loopback as is_loopback_host, read_host};
use super::value::SECOND_UP;
use super::{FilePath, Secret, SmartHostTls};
use crate::message::ip::{Refused, is_plainly_own, refused};

/// Longest name of a target, in characters.
const NAME_CHARS_MAX: usize = 64;
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(15);
const PIPE_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of the path of a unix socket (`sun_path` of Linux, with its NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Where SMTP servers listen; LMTP must not be spoken there (RFC 2033 5).
const SMTP_PORT: u16 = 25;

/// Targets that are there without a section.
pub(super) const BUILT_IN: [&str; 2] = ["discard", "reject"];

/// A `[targets.*]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Target {
    Webhook { url: String, secret: Option<Secret>, format: WebhookFormat, timeout: Duration },
    Maildir { path: PathBuf },
    Lmtp { address: LmtpAddress },
    Pipe { command: PipeCommand, timeout: Duration },
    File { path: FilePath },
    Smtp { host: String, port: u16, tls: SmartHostTls },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookFormat {
    /// Taken apart.
    Json,
    /// The message as it is, the envelope in header fields.
    Raw,
}

/// Where a server for LMTP listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LmtpAddress {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

impl std::fmt::Display for LmtpAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LmtpAddress::Unix(path) => write!(f, "unix:{}", path.display()),
            LmtpAddress::Tcp { host, port } if host.parse::<Ipv6Addr>().is_ok() => write!(f, "[{host}]:{port}"),
            LmtpAddress::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Target {
    /// Is it a server to which it matters for which address mail is?
    pub fn has_mailboxes(&self) -> bool {
        matches!(self, Target::Lmtp { .. } | Target::Smtp { .. })
    }

    /// The word in `kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            Target::Webhook { .. } => "webhook",
            Target::Maildir { .. } => "maildir",
            Target::Lmtp { .. } => "lmtp",
            Target::Pipe { .. } => "pipe",
            Target::File { .. } => "file",
            Target::Smtp { .. } => "smtp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Webhook,
    Maildir,
    Lmtp,
    Pipe,
    File,
    Smtp,
}

const KINDS: [(&str, Kind); 6] = [
    ("webhook", Kind::Webhook),
    ("maildir", Kind::Maildir),
    ("lmtp", Kind::Lmtp),
    ("pipe", Kind::Pipe),
    ("file", Kind::File),
    ("smtp", Kind::Smtp),
];

/// Keys that belong to some kinds of target only.
const KIND_KEYS: [(&str, &[Kind]); 10] = [
    ("url", &[Kind::Webhook]),
    ("secret", &[Kind::Webhook]),
    ("format", &[Kind::Webhook]),
    ("timeout", &[Kind::Webhook, Kind::Pipe]),
    ("path", &[Kind::Maildir, Kind::File]),
    ("address", &[Kind::Lmtp]),
    ("command", &[Kind::Pipe]),
    ("host", &[Kind::Smtp]),
    ("port", &[Kind::Smtp]),
    ("tls", &[Kind::Smtp]),
];

pub(super) fn targets(root: &Section<'_>) -> BTreeMap<String, Target> {
    let mut targets = BTreeMap::new();
    for (name, section) in root.section("targets").named() {
        if !section.exists() {
            continue;
        }
        check_name(name, &section);
        let remedy = "Add kind = \"webhook\", \"maildir\", \"lmtp\", \"pipe\", \"file\" or \"smtp\".";
        let kind = section.required("kind", remedy).and_then(|item| item.choice(&KINDS, &[]));
        let Some(kind) = kind else { continue };
        check_kind_keys(&section, kind);
        let target = match kind {
            Kind::Webhook => webhook(name, &section),
            Kind::Maildir => maildir(&section),
            Kind::Lmtp => lmtp(name, &section),
            Kind::Pipe => pipe(&section),
            Kind::File => file(&section),
            Kind::Smtp => smtp(name, &section),
        };
        targets.extend(target.map(|target| (name.to_owned(), target)));
    }
    targets
}

fn check_name(name: &str, section: &Section<'_>) {
    let (what, remedy) = if BUILT_IN.contains(&name) {
        (format!("{name:?} is built in"), "Give the target another name.")
    } else if name.is_empty()
        || name.chars().count() > NAME_CHARS_MAX
        || name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '@')
    {
        ("not a name for a target".to_owned(), "Use up to 64 characters without spaces, control characters or @.")
    } else {
        return;
    };
    section.report.problem(ProblemKind::BadValue, &section.place, &section.path, what, remedy);
}

fn check_kind_keys(section: &Section<'_>, kind: Kind) {
    let name_of = |kind: Kind| KINDS.iter().find(|(_, k)| *k == kind).map_or("", |(name, _)| name);
    for (key, kinds) in KIND_KEYS {
        if kinds.contains(&kind) {
            continue;
        }
        if let Some(item) = section.item(key) {
            let what = format!("a target of kind \"{}\" has no {key}", name_of(kind));
            item.problem(ProblemKind::BadValue, what, "Take it out, or correct the kind.");
        }
    }
}

fn webhook(name: &str, section: &Section<'_>) -> Option<Target> {
    let secret = section.item("secret").map(|item| webhook_secret(&item)).unwrap_or_default();
    let timeout = section.duration("timeout", SECOND_UP, WEBHOOK_TIMEOUT);
    let formats = [("json", WebhookFormat::Json), ("raw", WebhookFormat::Raw)];
    let format = section.choice("format", &formats, WebhookFormat::Json);
    let item =
        section.required("url", "Add the address to post to, such as url = \"https://crm.example.com/hooks/mail\".")?;
    let url = item.read("a URL", read_url)?;
    if url.scheme() == "http" && !is_loopback(&url) {
        section.report.warn(format!("targets.{name}: the URL is plain http, so mail crosses the network unencrypted"));
    }
    Some(Target::Webhook { url: url.into(), secret, format, timeout })
}

/// Standard Webhooks writes keys as `whsec_` and base64; any other text is a key as it stands.
pub(super) fn webhook_secret(item: &Item<'_>) -> Option<Secret> {
    let secret = item.secret()?;
    let encoded = secret.0.strip_prefix("whsec_").unwrap_or_default();
    if STANDARD_NO_PAD.decode(encoded.trim_end_matches('=')).is_ok() {
        return Some(secret);
    }
    item.wrong(Wrong::value(
        "begins with whsec_, but what follows is not base64",
        "Copy the whole secret from the receiver, or make one: echo \"whsec_$(openssl rand -base64 24)\".",
    ));
    None
}

pub(super) fn read_url(text: &str) -> Result<Url, Wrong> {
    let form = "Write an https address such as \"https://crm.example.com/hooks/mail\".";
    // What a parser would leave out in silence (CR, LF, tab) or read as a slash: it was not meant so.
    if text.chars().any(|c| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err(Wrong::value("a URL has no blanks, control characters or backslashes", form));
    }
    let url = Url::parse(text).map_err(|error| Wrong::value(format!("not a URL: {error}"), form))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(Wrong::value("not an http or https URL", form));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Wrong::value("a URL may not hold a user or password, since URLs are shown", "Use the key secret."));
    }
    if url.fragment().is_some() {
        return Err(Wrong::value("what follows the # is never sent", form));
    }
    if url.port() == Some(SMTP_PORT) {
        return Err(Wrong::value("port 25 is for SMTP, not for HTTP", form));
    }
    check_host(text, &url)?;
    Ok(url)
}

/// The host has to be written as it is understood: what only looks like one thing was not meant so.
fn check_host(text: &str, url: &Url) -> Result<(), Wrong> {
    let behind = text.split_once("://").map_or("", |(_, rest)| rest);
    let place = behind.split(['/', '?']).next().unwrap_or_default();
    let written = match url.port_or_known_default().map(|port| format!(":{port}")) {
        Some(port) => place.strip_suffix(port.as_str()).unwrap_or(place).to_lowercase(),
        None => place.to_lowercase(),
    };
    let host = url.host_str().unwrap_or_default();
    let (is_address, is_unicode_name) = (host.starts_with('['), host.contains("xn--") && !written.is_ascii());
    if written != host && !is_address && !is_unicode_name {
        return Err(Wrong::value(format!("{written:?} is read as {host}"), format!("Write {host}, if that is meant.")));
    }
    let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() else { return Ok(()) };
    match refused(ip, false) {
        Some(Refused::NoHost(_)) => {
            Err(Wrong::value(format!("{host} is no address of anybody"), "Write the address of the receiver."))
        }
        // An own address that stands here plainly was meant; one that has to be worked out, or that only the machines
        // of a cloud have, was not.
        Some(reason) if !is_plainly_own(ip, reason) => Err(Wrong::value(
            format!("{host} is a {} address", reason.kind()),
            "Write the public address or the name of the receiver, or one of the private ranges as IPv4.",
        )),
        _ => Ok(()),
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or("");
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn maildir(section: &Section<'_>) -> Option<Target> {
    let item = section.required("path", "Add the folder, such as path = \"/var/mail/sales\".")?;
    item.absolute_path().map(|path| Target::Maildir { path })
}

fn lmtp(name: &str, section: &Section<'_>) -> Option<Target> {
    let remedy = "Add where it listens, such as address = \"unix:/run/dovecot/lmtp\" or \"mail.example.net:24\".";
    let address = section.required("address", remedy)?.read("an address", read_lmtp)?;
    if let LmtpAddress::Tcp { host, .. } = &address
        && !is_loopback_host(host)
    {
        section.report.warn(format!(
            "targets.{name}: LMTP to another machine ({host}), so mail crosses the network unencrypted where that \
             server offers no STARTTLS"
        ));
    }
    Some(Target::Lmtp { address })
}

fn read_lmtp(text: &str) -> Result<LmtpAddress, Wrong> {
    let form = "Write \"unix:/run/dovecot/lmtp\", or a host and a port such as \"mail.example.net:24\".";
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') || path.contains('\0') || path.len() > SOCKET_PATH_BYTES_MAX {
            let what = format!("{path:?} is not an absolute path of at most {SOCKET_PATH_BYTES_MAX} bytes");
            return Err(Wrong::value(what, form));
        }
        return Ok(LmtpAddress::Unix(Path::new(path).to_owned()));
    }
    let parted = text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let Some((host, port)) = parted else {
        return Err(Wrong::value(format!("{text:?} has no port"), form));
    };
    let port = port.parse::<u16>().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| Wrong::value(format!("{text:?} does not end with a port"), form))?;
    if port == SMTP_PORT {
        let what = "port 25 is for SMTP, and LMTP must not be spoken there (RFC 2033 5)";
        return Err(Wrong::value(what, "Use kind = \"smtp\" for an SMTP server, or LMTP's own port, such as 24."));
    }
    let host = read_host(host).map_err(|wrong| Wrong { remedy: form.to_owned(), ..wrong })?;
    Ok(LmtpAddress::Tcp { host, port })
}

fn pipe(section: &Section<'_>) -> Option<Target> {
    let timeout = section.duration("timeout", SECOND_UP, PIPE_TIMEOUT);
    let remedy = "Add the program and its arguments, such as command = [\"/usr/local/bin/on-mail\", \"{recipient}\"].";
    let command = PipeCommand::read(&section.required("command", remedy)?)?;
    Some(Target::Pipe { command, timeout })
}

fn file(section: &Section<'_>) -> Option<Target> {
    let item = section.required("path", "Add the path, such as path = \"/var/spool/mail-in/{date}/{id}.eml\".")?;
    item.read("a path", FilePath::parse).map(|path| Target::File { path })
}

fn smtp(name: &str, section: &Section<'_>) -> Option<Target> {
    let modes = [
        ("off", SmartHostTls::Off),
        ("opportunistic", SmartHostTls::Opportunistic),
        ("required", SmartHostTls::Required),
        ("implicit", SmartHostTls::Implicit),
    ];
    let tls = section.choice("tls", &modes, SmartHostTls::Opportunistic);
    let port = section.count("port", 1..=65_535, SMTP_PORT);
    let item = section.required("host", "Add the server's name or address, such as host = \"10.0.0.5\".")?;
    let host = item.read("a host name", read_host)?;
    if tls == SmartHostTls::Off && !is_loopback_host(&host) {
        section.report.warn(format!("targets.{name}: tls is \"off\", so mail crosses the network unencrypted"));
    }
    Some(Target::Smtp { host, port, tls })
}
