//! What a server's EHLO reply offers (RFC 5321 4.1.1.1), as far as we can use it.

/// Offers of one connection; nothing is offered after HELO.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions {
    /// RFC 2920.
    pub pipelining: bool,
    /// RFC 3207.
    pub starttls: bool,
    /// RFC 6152.
    pub eight_bit_mime: bool,
    /// RFC 6531.
    pub smtputf8: bool,
    /// RFC 3461.
    pub dsn: bool,
    /// RFC 1870.
    pub size: Option<SizeOffer>,
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
                "STARTTLS" => offers.starttls = true,
                "8BITMIME" => offers.eight_bit_mime = true,
                "SMTPUTF8" => offers.smtputf8 = true,
                "DSN" => offers.dsn = true,
                "SIZE" => offers.size = Some(size_offer(words.next())),
                _ => {}
            }
        }
        offers
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
            ..Extensions::default()
        };
        assert_eq!(offers, expected);
    }

    #[test]
    fn a_size_that_is_no_limit_is_none() {
        for line in ["SIZE", "SIZE 0", "SIZE 18446744073709551616", "SIZE many"] {
            assert_eq!(Extensions::parse(["mx", line]).size, Some(SizeOffer::Unlimited), "{line}");
        }
    }
}
