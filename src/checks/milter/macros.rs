//! What a milter is told beside the commands: the macros of Sendmail, by its names.

use super::About;
use crate::message::Recipient;

pub(super) type Macros = Vec<(&'static str, String)>;

pub(super) fn connect(about: &About<'_>) -> Macros {
    let (name, ip) = (about.client_name(), about.ip());
    vec![
        ("j", about.hostname.to_string()),
        ("{daemon_name}", about.origin.door.name().to_owned()),
        ("v", concat!("postrider ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("_", format!("{name} [{ip}]")),
        ("{client_addr}", ip.to_string()),
        ("{client_name}", name.to_owned()),
    ]
}

/// Nothing, if the session is not under TLS.
pub(super) fn helo(about: &About<'_>) -> Macros {
    let Some(tls) = about.origin.peer.as_ref().and_then(|peer| peer.tls.as_deref()) else { return Vec::new() };
    match tls.split_once(" with cipher ") {
        Some((version, cipher)) => vec![("{tls_version}", version.to_owned()), ("{cipher}", cipher.to_owned())],
        None => vec![("{tls_version}", tls.to_owned())],
    }
}

pub(super) fn mail(about: &About<'_>) -> Macros {
    let mut macros = later(about);
    macros.push(("{mail_addr}", about.envelope.mail_from.to_string()));
    if let Some(account) = &about.origin.account {
        macros.push(("{auth_authen}", account.clone()));
    }
    macros
}

pub(super) fn rcpt(about: &About<'_>, recipient: &Recipient) -> Macros {
    vec![("i", about.id.to_string()), ("{rcpt_addr}", recipient.address.to_string())]
}

/// With every later command.
pub(super) fn later(about: &About<'_>) -> Macros {
    vec![("i", about.id.to_string())]
}
