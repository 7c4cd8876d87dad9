//! Which way out: a smart host chosen by the From of a message, or straight to the recipient's MX,
//! and who the message may then say it is from.
//!
//! A tier is a reason to choose hosts; the first with a host wins, and failover stays inside it,
//! because a lower one would change the From. A From that cannot be read matches no filter; the
//! envelope sender stands in for it. Left out: changing the header (`intake::rewrite`).

use crate::config::{Config, FromEntry, SmartHost, WayOut};
use crate::message::{Address, Door, ReversePath};
use crate::queue::record::Message;
use crate::secret::Marks;

use super::return_path::{self, Token};

/// Why hosts were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    Pinned,
    FromAddress,
    FromDomain,
    Unfiltered,
    DefaultAddress,
    DefaultDomain,
    /// No filter fits: any host. Worth a warning.
    Any,
}

/// A host, and the envelope sender that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'c> {
    pub host: &'c SmartHost,
    pub envelope: ReversePath,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way<'c> {
    Direct {
        /// The envelope sender in place of the client's, if it is another.
        envelope: Option<ReversePath>,
    },
    /// Nothing leaves.
    Capture,
    /// Nothing leaves: it is written as `delivery.file_path` says, as it would leave for the recipient's MX. No
    /// host is chosen, not even one that a stream is pinned to: writing files is the safe way.
    File {
        /// As of [`Way::Direct`].
        envelope: Option<ReversePath>,
    },
    /// Tried in this order; never empty.
    Hosts { tier: Tier, hosts: Vec<Candidate<'c>> },
    /// The pinned host, or every host, is gone or not active: the mail waits.
    Nowhere,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'c> {
    pub way: Way<'c>,
    /// The address that takes the place of From.
    pub rewrite: Option<&'c Address>,
}

/// What `delivery.default` is for those whom a person has let go (`released`) although nothing leaves: they go
/// by the smart hosts, if there are any.
pub fn default_way(config: &Config, released: bool) -> WayOut {
    match config.delivery.default {
        WayOut::Capture if released => match config.smart_hosts.iter().any(|host| host.active) {
            true => WayOut::SmartHosts,
            false => WayOut::Direct,
        },
        default => default,
    }
}

/// For a message that is queued: what its From and its envelope lead to now. `released`: for recipients whom a
/// person has let go out of what is captured.
pub fn choose_for<'c>(config: &'c Config, message: &Message, released: bool) -> Choice<'c> {
    let (default, pinned) = (default_way(config, released), config.pinned(&message.stream));
    choose_with(config, default, message.header_from.as_ref(), &message.mail_from, pinned, Wanted::Usual)
}

/// As [`choose_for`], for a message that is forwarded and leaves with this envelope sender, whatever
/// `sender.return_path` says.
pub fn choose_forward<'c>(config: &'c Config, message: &Message, released: bool, return_path: &Address) -> Choice<'c> {
    let (default, pinned) = (default_way(config, released), config.pinned(&message.stream));
    let wanted = Wanted::Path(return_path);
    choose_with(config, default, message.header_from.as_ref(), &message.mail_from, pinned, wanted)
}

/// The same for one of its recipients, whose return path names it if the message is one that has such.
pub fn choose_for_one<'c>(
    config: &'c Config,
    message: &Message,
    released: bool,
    number: u32,
    marks: &Marks,
) -> Choice<'c> {
    let token = Token { id: message.id, number };
    let mark = |bounce: &Address| return_path::mark(config, marks, bounce, token);
    let wanted = if has_verp(config, message) { Wanted::Token(&mark) } else { Wanted::Usual };
    let (default, pinned) = (default_way(config, released), config.pinned(&message.stream));
    choose_with(config, default, message.header_from.as_ref(), &message.mail_from, pinned, wanted)
}

/// Does each of its recipients have a return path of its own, and so a transaction? Mail that is only passed
/// on does not: bounces of it belong to who sent it.
pub fn has_verp(config: &Config, message: &Message) -> bool {
    let is_ours = message.origin.door.is_trusted() && message.origin.door != Door::Bounce;
    is_ours && !message.mail_from.is_null() && config.uses_verp(&message.stream)
}

/// The return path in place of the client's.
#[derive(Clone, Copy)]
enum Wanted<'w> {
    /// As `sender.return_path` says.
    Usual,
    /// That of one recipient, made out of a bounce address.
    Token(&'w dyn Fn(&Address) -> Option<Address>),
    /// This one.
    Path(&'w Address),
}
/// `header_from`: the one mailbox of the From field, if it can be read. `pinned`: the host of the
/// message's stream.
pub fn choose<'c>(
    config: &'c Config,
    header_from: Option<&Address>,
    envelope: &ReversePath,
    pinned: Option<&str>,
) -> Choice<'c> {
    choose_with(config, config.delivery.default, header_from, envelope, pinned, Wanted::Usual)
}

fn choose_with<'c>(
    config: &'c Config,
    way_out: WayOut,
    header_from: Option<&Address>,
    envelope: &ReversePath,
    pinned: Option<&str>,
    wanted: Wanted<'_>,
) -> Choice<'c> {
    match way_out {
        WayOut::Capture => {
            // What is shown says what would leave, and what is released must pass.
            let sent = choose_with(config, default_way(config, true), header_from, envelope, pinned, wanted);
            return Choice { way: Way::Capture, rewrite: sent.rewrite };
        }
        WayOut::File => {
            let (rewrite, envelope) = alone(config, header_from, envelope, wanted);
            return Choice { way: Way::File { envelope }, rewrite };
        }
        WayOut::Direct | WayOut::SmartHosts => {}
    }
    let from = header_from.or(envelope.address());
    let default = config.sender.default_from.as_ref();
    let Some((tier, hosts)) = tier(config, way_out, from, default, pinned) else {
        if pinned.is_some() || way_out != WayOut::Direct {
            return Choice { way: Way::Nowhere, rewrite: None };
        }
        let (rewrite, envelope) = alone(config, header_from, envelope, wanted);
        return Choice { way: Way::Direct { envelope }, rewrite };
    };
    let keeps = match tier {
        Tier::FromAddress | Tier::FromDomain => true,
        Tier::Unfiltered => config.sender.passes(header_from),
        Tier::Pinned => hosts.iter().all(|host| match host.from_filter.is_empty() {
            true => config.sender.passes(header_from),
            false => header_from.is_some_and(|from| host.accepts(from)),
        }),
        Tier::DefaultAddress | Tier::DefaultDomain | Tier::Any => false,
    };
    let shown = if keeps { None } else { default };
    let last = shown.or(from);
    let back = Back::of(config, envelope, last, wanted);
    let candidate = |host| Candidate { host, envelope: envelope_for(config, host, envelope, &back, last) };
    let way = Way::Hosts { tier, hosts: hosts.into_iter().map(candidate).collect() };
    Choice { way, rewrite: shown.filter(|default| !same(header_from, default)) }
}

/// What takes the place of From and of the client's envelope sender where no host has a say.
fn alone<'c>(
    config: &'c Config,
    header_from: Option<&Address>,
    envelope: &ReversePath,
    wanted: Wanted<'_>,
) -> (Option<&'c Address>, Option<ReversePath>) {
    let from = header_from.or(envelope.address());
    let default = config.sender.default_from.as_ref().filter(|_| !config.sender.passes(header_from));
    let rewrite = default.filter(|default| !same(from, default));
    let back = Back::of(config, envelope, rewrite.or(from), wanted);
    (rewrite, back.marked.or(back.plain).map(ReversePath::Address))
}

fn same(from: Option<&Address>, other: &Address) -> bool {
    from.is_some_and(|from| from.lookup_key() == other.lookup_key())
}

/// The first tier that has an active host, with its hosts in order of priority.
fn tier<'c>(
    config: &'c Config,
    way_out: WayOut,
    from: Option<&Address>,
    default: Option<&Address>,
    pinned: Option<&str>,
) -> Option<(Tier, Vec<&'c SmartHost>)> {
    let find = |tier: Tier, fits: &dyn Fn(&SmartHost) -> bool| {
        let active = config.smart_hosts.iter().filter(|host| host.active);
        let hosts: Vec<&SmartHost> = active.filter(|host| fits(host)).collect();
        (!hosts.is_empty()).then_some((tier, hosts))
    };
    if let Some(name) = pinned {
        return find(Tier::Pinned, &|host| host.name == name);
    }
    let by_from = find(Tier::FromAddress, &|host| names(host, from, true))
        .or_else(|| find(Tier::FromDomain, &|host| names(host, from, false)));
    // What no filter takes goes the default way.
    if by_from.is_some() || way_out == WayOut::Direct {
        return by_from;
    }
    find(Tier::Unfiltered, &|host| host.from_filter.is_empty())
        .or_else(|| find(Tier::DefaultAddress, &|host| names(host, default, true)))
        .or_else(|| find(Tier::DefaultDomain, &|host| names(host, default, false)))
        .or_else(|| find(Tier::Any, &|_| true))
}

/// Does an entry for whole addresses (`whole`), or one for domains, fit?
fn names(host: &SmartHost, address: Option<&Address>, whole: bool) -> bool {
    let of_kind = |entry: &&FromEntry| matches!(entry, FromEntry::Address(_)) == whole;
    address.is_some_and(|address| host.from_filter.iter().filter(of_kind).any(|entry| entry.matches(address)))
}

/// What is wanted in place of an envelope sender, if anything.
struct Back {
    /// With the token of a recipient.
    marked: Option<Address>,
    plain: Option<Address>,
}

impl Back {
    /// `last`: the final From. The null sender stays: nobody is told of what becomes of a notice (RFC 5321
    /// 4.5.5).
    fn of(config: &Config, envelope: &ReversePath, last: Option<&Address>, wanted: Wanted<'_>) -> Back {
        match wanted {
            _ if envelope.is_null() => Back { marked: None, plain: None },
            Wanted::Usual => Back { marked: None, plain: config.bounce_address(last) },
            Wanted::Token(mark) => {
                let plain = config.return_address(last);
                Back { marked: plain.as_ref().and_then(mark), plain }
            }
            Wanted::Path(path) => Back { marked: None, plain: Some(path.clone()) },
        }
    }
}

/// Providers refuse foreign envelope senders, so one that the host's filter does not name gives way: the
/// bounce address of the final From's domain to the one for all other domains, each to the final From.
/// The null sender stays.
fn envelope_for(
    config: &Config,
    host: &SmartHost,
    envelope: &ReversePath,
    back: &Back,
    last: Option<&Address>,
) -> ReversePath {
    let (ReversePath::Address(client), Some(last)) = (envelope, last) else { return envelope.clone() };
    let wanted = [back.marked.as_ref(), Some(back.plain.as_ref().unwrap_or(client))];
    if let Some(wanted) = wanted.into_iter().flatten().find(|wanted| host.accepts(wanted)) {
        return ReversePath::Address(wanted.clone());
    }
    let other = config.bounce_address(None).filter(|other| host.accepts(other));
    ReversePath::Address(other.unwrap_or_else(|| last.clone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config;

    fn config(removed: &str, default: &str) -> Config {
        config_with(removed, default, "")
    }

    /// `more`: what follows in `[sender]`.
    fn config_with(removed: &str, default: &str, more: &str) -> Config {
        let mut text = format!(
            "hostname = \"mail.my.com\"\ndata_dir = \"/nonexistent\"\n[delivery]\ndefault = \"{default}\"\n\
             [sender]\ndefault_from = \"notifications@my.com\"\n{more}"
        );
        for (name, filter, priority) in [
            ("A", "alice@ex.com", 20),
            ("B", "ex.com", 10),
            ("C", "", 5),
            ("D", "notifications@my.com", 30),
            ("E", "my.com", 40),
        ] {
            let filter = if filter.is_empty() { String::new() } else { format!("from_filter = [\"{filter}\"]\n") };
            let active = !removed.contains(name);
            text += &format!(
                "[smart_hosts.{name}]\nhost = \"h.example\"\npriority = {priority}\nactive = {active}\n{filter}"
            );
        }
        config::parse("test.toml", &text).unwrap()
    }

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    /// From, hosts not active, envelope → host, tier, rewritten?, envelope.
    #[test]
    fn the_documented_order_row_by_row() {
        use Tier::*;
        let (bounce, default) = ("bounce@my.com", "notifications@my.com");
        for (row, from, removed, envelope, host, tier, rewritten, result) in [
            ("whole address", "alice@ex.com", "", bounce, "A", FromAddress, false, "alice@ex.com"),
            ("domain", "BOB@EX.com", "", bounce, "B", FromDomain, false, "BOB@ex.com"),
            ("no filter", "x@other.org", "", bounce, "C", Unfiltered, false, bounce),
            ("default address", "x@other.org", "C", bounce, "D", DefaultAddress, true, default),
            ("default domain", "x@other.org", "CD", bounce, "E", DefaultDomain, true, bounce),
            ("first of all", "x@other.org", "CDE", bounce, "B", Any, true, default),
            ("garbage", "", "", "", "C", Unfiltered, false, ""),
            ("garbage, envelope known", "", "", "bob@ex.com", "B", FromDomain, false, "bob@ex.com"),
            ("sub-domain", "x@sub.ex.com", "", bounce, "C", Unfiltered, false, bounce),
            ("host not active", "alice@ex.com", "A", bounce, "B", FromDomain, false, "alice@ex.com"),
            ("null sender", "x@other.org", "C", "", "D", DefaultAddress, true, ""),
        ] {
            let config = config(removed, "smart_hosts");
            let from = (!from.is_empty()).then(|| address(from));
            let envelope =
                if envelope.is_empty() { ReversePath::Null } else { ReversePath::Address(address(envelope)) };
            let choice = choose(&config, from.as_ref(), &envelope, None);
            let Way::Hosts { tier: found, hosts } = choice.way else { unreachable!("{row}") };
            assert_eq!((hosts[0].host.name.as_str(), found), (host, tier), "{row}");
            assert_eq!(choice.rewrite.is_some(), rewritten, "{row}");
            assert_eq!(hosts[0].envelope.to_string(), result, "{row}");
        }
    }

    /// From, hosts not active, envelope → the envelope sender that a message leaves with.
    #[test]
    fn bounces_come_back_to_the_domain_that_it_says_it_is_from() {
        let ours = "return_path = \"bounce\"\n[domains.\"my.com\"]\n[domains.\"ex.com\"]\nbounce = \"Back\"\n";
        let with = |removed: &str, default: &str| config_with(removed, default, ours);
        for (row, from, removed, default, envelope, result) in [
            ("own domain, direct", "ann@my.com", "ABCDE", "direct", "app@other.org", "bounce@my.com"),
            ("other own domain, direct", "ann@ex.com", "ABCDE", "direct", "app@other.org", "Back@ex.com"),
            ("foreign, direct", "x@other.org", "", "direct", "app@other.org", "bounce@my.com"),
            ("null sender, direct", "ann@my.com", "ABCDE", "direct", "", ""),
            ("garbage, direct", "", "ABCDE", "direct", "app@ex.com", "Back@ex.com"),
            ("a file", "ann@ex.com", "", "file", "app@other.org", "Back@ex.com"),
            ("a file of a foreign author", "x@other.org", "", "file", "app@other.org", "bounce@my.com"),
            ("a file, null sender", "ann@my.com", "", "file", "", ""),
            ("the host takes it", "bob@ex.com", "", "direct", "app@other.org", "Back@ex.com"),
            ("the host takes From only", "alice@ex.com", "", "smart_hosts", "bob@ex.com", "alice@ex.com"),
            ("any host", "x@other.org", "", "smart_hosts", "app@other.org", "bounce@my.com"),
            ("rewritten", "x@other.org", "C", "smart_hosts", "app@other.org", "notifications@my.com"),
            ("null sender", "x@other.org", "C", "smart_hosts", "", ""),
        ] {
            let config = with(removed, default);
            let from = (!from.is_empty()).then(|| address(from));
            let client = if envelope.is_empty() { ReversePath::Null } else { ReversePath::Address(address(envelope)) };
            let found = match choose(&config, from.as_ref(), &client, None).way {
                Way::Hosts { hosts, .. } => hosts[0].envelope.clone(),
                Way::Direct { envelope } | Way::File { envelope } => envelope.unwrap_or(client),
                other => unreachable!("{row}: {other:?}"),
            };
            assert_eq!(found.to_string(), result, "{row}");
        }
        // The host names the bounce address of another domain of ours.
        let mut config = with("", "smart_hosts");
        let a = config.smart_hosts.iter_mut().find(|host| host.name == "A").unwrap();
        a.from_filter.push(FromEntry::Address(address("bounce@my.com")));
        let client = ReversePath::Address(address("app@other.org"));
        let Way::Hosts { hosts, .. } = choose(&config, Some(&address("alice@ex.com")), &client, None).way else {
            unreachable!()
        };
        assert_eq!(hosts[0].envelope.to_string(), "bounce@my.com");
    }

    /// What is forwarded leaves with the path that was made for it, where the host takes that.
    #[test]
    fn a_return_path_of_its_own_goes_before_that_of_all_mail() {
        let ours = "return_path = \"bounce\"\n[domains.\"my.com\"]\n";
        let sealed = address("SRS0=h=d=other.org=app@my.com");
        let from = address("x@other.org");
        let client = ReversePath::Address(address("app@other.org"));
        let choice = |removed: &str, default: &str| {
            let config = config_with(removed, default, ours);
            match choose_with(&config, config.delivery.default, Some(&from), &client, None, Wanted::Path(&sealed)).way {
                Way::Hosts { hosts, .. } => hosts[0].envelope.to_string(),
                Way::Direct { envelope } => envelope.unwrap().to_string(),
                other => unreachable!("{other:?}"),
            }
        };
        assert_eq!(choice("ABCDE", "direct"), sealed.to_string());
        assert_eq!(choice("", "smart_hosts"), sealed.to_string());
        assert_eq!(choice("CD", "smart_hosts"), sealed.to_string(), "the host takes its domain");
        assert_eq!(choice("CDE", "smart_hosts"), "notifications@my.com", "the host takes others only");
    }

    #[test]
    fn pins_and_default_ways() {
        let direct = config("", "direct");
        let (bob, stranger) = (address("bob@ex.com"), address("x@other.org"));
        let way = |config: &Config, from: &Address, pin| match choose(config, Some(from), &ReversePath::Null, pin) {
            Choice { way: Way::Hosts { hosts, .. }, rewrite } => (hosts[0].host.name.clone(), rewrite.is_some()),
            Choice { way, rewrite } => (format!("{way:?}"), rewrite.is_some()),
        };
        assert_eq!(way(&direct, &bob, None), ("B".to_owned(), false));
        assert_eq!(way(&direct, &stranger, None), ("Direct { envelope: None }".to_owned(), false));
        assert_eq!(way(&direct, &stranger, Some("B")), ("B".to_owned(), true));
        assert_eq!(way(&direct, &bob, Some("B")), ("B".to_owned(), false));
        assert_eq!(way(&direct, &bob, Some("gone")), ("Nowhere".to_owned(), false));
        assert_eq!(way(&config("", "capture"), &bob, Some("B")), ("Capture".to_owned(), false));
        let file = "File { envelope: None }".to_owned();
        assert_eq!(way(&config("", "file"), &bob, Some("B")), (file.clone(), false));
        // Who may not pass is rewritten there as in what leaves.
        let strict = config_with("", "file", "from_filter = [\"ex.com\"]\n");
        assert_eq!((way(&strict, &bob, None), way(&strict, &stranger, None)), ((file.clone(), false), (file, true)));
    }

    fn queued(from: &str, mail_from: &str, door: Door) -> Message {
        let mail_from = if mail_from.is_empty() { ReversePath::Null } else { ReversePath::Address(address(mail_from)) };
        Message {
            id: crate::message::MessageId::first_at(1_900_000_000_000),
            received_at: 0,
            origin: crate::message::Origin { door, account: None, peer: None },
            mail_from,
            body_type: crate::message::BodyType::SevenBit,
            smtputf8: false,
            dsn: crate::message::DsnRequest::default(),
            header_from: Some(address(from)),
            size: 0,
            chunks: 0,
            streamed: None,
            message_id: String::new(),
            subject: String::new(),
            findings: None,
            recipients: 1,
            stream: "bulk".to_owned(),
            tls: crate::message::TlsWish::Usual,
            not_before: None,
            answers: None,
        }
    }

    /// From, hosts not active, envelope, door → with a token at this domain, or without one this address.
    #[test]
    fn a_token_goes_where_the_host_takes_it() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Marks::open(folder.path()).unwrap();
        let verp = "[domains.\"my.com\"]\n[domains.\"ex.com\"]\n[streams.bulk]\nverp = true\n";
        for (row, from, removed, envelope, door, result) in [
            ("direct", "ann@my.com", "ABCDE", "app@other.org", Door::Admin, "+my.com"),
            ("direct, of a foreign author", "x@other.org", "ABCDE", "app@other.org", Door::Admin, "+my.com"),
            ("null sender", "ann@my.com", "ABCDE", "", Door::Admin, ""),
            ("a notice of ours", "ann@my.com", "ABCDE", "app@other.org", Door::Bounce, "app@other.org"),
            ("passed on", "ann@my.com", "ABCDE", "a@other.org", Door::Mx { listener: "mx".into() }, "a@other.org"),
            ("the host takes the domain", "bob@ex.com", "A", "app@other.org", Door::Admin, "+ex.com"),
            ("the host takes the From only", "alice@ex.com", "B", "app@other.org", Door::Admin, "alice@ex.com"),
        ] {
            let config = config_with(removed, "direct", verp);
            let message = queued(from, envelope, door);
            let choice = choose_for_one(&config, &message, false, 3, &marks);
            let found = match choice.way {
                Way::Hosts { hosts, .. } => hosts[0].envelope.clone(),
                Way::Direct { envelope } => envelope.unwrap_or_else(|| message.mail_from.clone()),
                other => unreachable!("{row}: {other:?}"),
            };
            match (result.strip_prefix('+'), found.address()) {
                (Some(domain), Some(path)) => {
                    let token = Token { id: message.id, number: 3 };
                    assert_eq!(path.domain().as_str(), domain, "{row}");
                    let back = return_path::read(&config, &marks, path);
                    assert_eq!(back, Some(return_path::Back::Of(token)), "{row}");
                }
                _ => assert_eq!(found.to_string(), result, "{row}"),
            }
        }
    }
}
