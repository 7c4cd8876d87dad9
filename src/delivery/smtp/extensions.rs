//! What a server's EHLO reply offers (RFC 5321 4.1.1.1), as far as we can use it.

use super::auth::Mechanism;

/// Offers of one connection; nothing is offered after HELO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 3030.
    pub chunking: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 8689.
    pub require_tls: bool,
    /// RFC 1870.
    pub size: Option<SizeOffer>,
    /// RFC 4954: what we know of it.
    pub auth: Vec<Mechanism>,
}

/// SIZE, with or without a limit in octets. `SIZE 0` and a number that no mail can reach say "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SizeOffer {
    Unlimited,
    Max(u64),
}

impl Extensions {
    /// From the lines of an EHLO reply, the first of which is the server's name.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Extensions {
        let mut offers = Extensions::default();
        for line in lines.into_iter().skip(1) {
            let mut words = line.split_ascii_whitespace();
            let keyword = words.next().unwrap_or_default().to_ascii_uppercase();
            match keyword.as_str() {
                "PIPELINING" => offers.pipelining = true,
                "CHUNKING" => offers.chunking = true,
                "STARTTLS" => offers.starttls = true,
                "8BITMIME" => offers.eight_bit_mime = true,
                "SMTPUTF8" => offers.smtputf8 = true,
                "DSN" => offers.dsn = true,
                "REQUIRETLS" => offers.require_tls = true,
                "SIZE" => offers.size = Some(size_offer(words.next())),
                "AUTH" => offers.add_mechanisms(words),
                // A form from before RFC 2554 that some servers still write besides the other.
                _ => {
                    if let Some(first) = keyword.strip_prefix("AUTH=") {
                        offers.add_mechanisms([first].into_iter().chain(words));
                    }
                }
            }
        }
        offers
    }

    fn add_mechanisms<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) {
        for mechanism in names.into_iter().filter_map(Mechanism::named) {
            if !self.auth.contains(&mechanism) {
                self.auth.push(mechanism);
            }
        }
    }
}

fn size_offer(argument: Option<&str>) -> SizeOffer {
    match argument.and_then(|digits| digits.parse().ok()) {
        None | Some(0) => SizeOffer::Unlimited,
        Some(max) => SizeOffer::Max(max),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_servers_write() {
        let offers =
            Extensions::parse(["STARTTLS.example DSN", "size 1000", "Pipelining", "8BITMIME", "AUTH PLAIN", ""]);
        let expected = Extensions {
            pipelining: true,
            eight_bit_mime: true,
            size: Some(SizeOffer::Max(1000)),
            auth: vec![Mechanism::Plain],
            ..Extensions::default()
        };
        assert_eq!(offers, expected);
    }

    #[test]
    fn mechanisms_in_either_form_and_once() {
        let offers =
            Extensions::parse(["mx", "AUTH=LOGIN plain", "AUTH GSSAPI PLAIN LOGIN SCRAM-SHA-256-PLUS XOAUTH2"]);
        assert_eq!(offers.auth, [Mechanism::Login, Mechanism::Plain, Mechanism::Xoauth2]);
        assert_eq!(Extensions::parse(["mx", "AUTH", "AUTH=", "AUTHENTICATE PLAIN"]).auth, []);
    }

    #[test]
    fn chunking_is_its_own_word() {
        assert!(Extensions::parse(["mx", "chunking"]).chunking);
        assert!(!Extensions::parse(["CHUNKING", "BINARYMIME", "XCHUNKING"]).chunking);
    }

    #[test]
    fn a_size_that_is_no_limit_is_none() {
        for line in ["SIZE", "SIZE 0", "SIZE 18446744073709551616", "SIZE many"] {
            assert_eq!(Extensions::parse(["mx", line]).size, Some(SizeOffer::Unlimited), "{line}");
        }
    }
}
