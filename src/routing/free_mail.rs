//! Providers of mailboxes for everybody: two senders there have nothing to do with each other.

use crate::message::Domain;

const DOMAINS: [&str; 46] = [
    "126.com",
    "163.com",
    "aol.com",
    "arcor.de",
    "bk.ru",
    "bluewin.ch",
    "btinternet.com",
    "comcast.net",
    "fastmail.com",
    "free.fr",
    "freenet.de",
    "gmail.com",
    "gmx.at",
    "gmx.ch",
    "gmx.com",
    "gmx.de",
    "gmx.net",
    "googlemail.com",
    "hotmail.co.uk",
    "hotmail.com",
    "hotmail.fr",
    "icloud.com",
    "inbox.ru",
    "laposte.net",
    "libero.it",
    "list.ru",
    "live.com",
    "mac.com",
    "mail.com",
    "mail.ru",
    "me.com",
    "msn.com",
    "naver.com",
    "orange.fr",
    "outlook.com",
    "posteo.de",
    "proton.me",
    "protonmail.com",
    "qq.com",
    "seznam.cz",
    "t-online.de",
    "web.de",
    "yahoo.co.jp",
    "yahoo.com",
    "yandex.ru",
    "ymail.com",
];

pub fn is(domain: &Domain) -> bool {
    DOMAINS.binary_search(&domain.as_str()).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_of_them_are_found() {
        assert!(DOMAINS.is_sorted());
        for (domain, known) in [("GMail.com", true), ("126.com", true), ("ymail.com", true), ("example.com", false)] {
            assert_eq!(is(&Domain::parse(domain).unwrap()), known, "{domain}");
        }
    }
}
