//! Who gets it, by example.
#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::config::ReturnPath;
use crate::config::targets::LmtpAddress;
use crate::routing::fixture;

fn address(text: &str) -> Address {
    Address::parse(text).unwrap()
}

fn target(name: &str) -> Destination {
    Destination::Target(name.to_owned())
}

fn to(text: &str) -> Destination {
    Destination::Address(address(text))
}

/// example.com with a catchall, plain.example without.
fn config(aliases: &[(&str, &[Destination])]) -> Config {
    let mut config = fixture::config();
    for (key, destinations) in aliases {
        config.aliases.exact.insert((*key).to_owned(), destinations.to_vec());
    }
    config
}

fn lines(config: &Config, recipient: &str) -> Vec<String> {
    match resolve(config, &address(recipient)) {
        Resolution::Deliveries(deliveries) => {
            assert!(deliveries.iter().all(|d| d.alias == address(recipient)));
            deliveries.iter().map(|d| describe(config, d)).collect()
        }
        other => panic!("{recipient}: {other:?}"),
    }
}

#[test]
fn a_server_with_mailboxes_is_told_which_they_are() {
    let mut config = config(&[
        ("all@example.com", &[to("ann@example.com"), to("bob@example.com")]),
        ("ann@example.com", &[target("box"), target("mailboxes")]),
        ("bob@example.com", &[target("box"), target("mailboxes")]),
    ]);
    let address = LmtpAddress::Unix("/run/lmtp".into());
    config.targets.insert("mailboxes".into(), Target::Lmtp { address });
    config.targets.insert("box".into(), Target::Maildir { path: "/var/mail/box".into() });
    let Resolution::Deliveries(found) = resolve(&config, &self::address("all@example.com")) else { panic!() };
    let found: Vec<(String, String)> =
        found.iter().map(|one| (one.address.to_string(), describe(&config, one))).collect();
    let wanted = [
        ("all@example.com", "maildir box"),
        ("ann@example.com", "lmtp mailboxes"),
        ("bob@example.com", "lmtp mailboxes"),
    ];
    assert_eq!(found, wanted.map(|(address, place)| (address.to_owned(), place.to_owned())));
}

#[test]
fn order_is_exact_pattern_subaddress_postmaster_catchall() {
    let mut config = config(&[
        ("sales@example.com", &[target("sales-box")]),
        ("sales+vip@example.com", &[to("bob@partner.example")]),
        ("sales-2@example.com", &[target("sales-box")]),
    ]);
    let pattern = fixture::pattern("sales\\+[0-9]+@example\\.com", vec![target("crm")]);
    config.aliases.patterns.push(pattern);
    for (recipient, line) in [
        ("Sales@Example.COM", "maildir sales-box"),
        ("sales+vip@example.com", "forward to bob@partner.example"),
        ("sales+77@example.com", "webhook crm"),
        ("x-sales+77@example.com", "webhook catch"),
        ("sales+other@example.com", "maildir sales-box"),
        ("postmaster@example.com", "forward to ops@elsewhere.example"),
        ("PostMaster+x@plain.example", "forward to ops@elsewhere.example"),
        ("whoever@example.com", "webhook catch"),
        ("+sales@example.com", "webhook catch"),
    ] {
        assert_eq!(lines(&config, recipient), [line], "{recipient}");
    }
    assert_eq!(resolve(&config, &address("x@plain.example")), Resolution::Unknown);
    assert_eq!(resolve(&config, &address("x@foreign.example")), Resolution::NotOurs);
    config.domains.get_mut(address("x@example.com").domain()).unwrap().subaddress = None;
    assert_eq!(lines(&config, "sales+other@example.com"), ["webhook catch"]);
}

#[test]
fn bounces_of_our_mail_go_to_the_postmaster() {
    let mut config = config(&[("bounce+vip@example.com", &[target("crm")])]);
    assert_eq!(resolve(&config, &address("bounce@plain.example")), Resolution::Unknown);
    let otherwise = address("x@example.com").domain().clone();
    config.sender.return_path = ReturnPath::Bounce { otherwise };
    for (recipient, line) in [
        ("Bounce@plain.example", "forward to ops@elsewhere.example"),
        ("bounce+token@plain.example", "forward to ops@elsewhere.example"),
        ("bounce@example.com", "forward to ops@elsewhere.example"),
        ("bounce+vip@example.com", "webhook crm"),
        ("bounces@example.com", "webhook catch"),
    ] {
        assert_eq!(lines(&config, recipient), [line], "{recipient}");
    }
    assert_eq!(resolve(&config, &address("bounces@plain.example")), Resolution::Unknown);
    let Resolution::Deliveries(found) = resolve(&config, &address("bounce+x@plain.example")) else { panic!() };
    assert_eq!(found[0].counted_as, "bounce@plain.example");
    // As for any postmaster: an alias decides where that mail goes, and without anybody it waits.
    config.aliases.exact.insert("postmaster@plain.example".to_owned(), vec![target("sales-box")]);
    assert_eq!(lines(&config, "bounce@plain.example"), ["maildir sales-box"]);
    config.aliases.exact.clear();
    config.postmaster = address("postmaster@plain.example");
    let held = lines(&config, "bounce@plain.example");
    assert!(held[0].starts_with("held: nobody is named for bounce@plain.example"), "{held:?}");
}

#[test]
fn abuse_is_the_postmaster_unless_an_alias_says_otherwise() {
    let mut config = config(&[("abuse@example.com", &[target("sales-box")])]);
    assert_eq!(lines(&config, "Abuse@example.com"), ["maildir sales-box"]);
    assert_eq!(lines(&config, "abuse@plain.example"), ["forward to ops@elsewhere.example"]);
    assert_eq!(lines(&config, "abuse+x@plain.example"), ["forward to ops@elsewhere.example"]);
    config.aliases.exact.insert("postmaster@plain.example".to_owned(), vec![target("crm")]);
    assert_eq!(lines(&config, "abuse@plain.example"), ["webhook crm"]);
    // It is the postmaster itself: nobody is named, so its mail waits.
    config.aliases.exact.clear();
    config.postmaster = address("abuse@plain.example");
    for recipient in ["abuse@plain.example", "postmaster@plain.example"] {
        let held = lines(&config, recipient);
        assert!(held[0].starts_with(&format!("held: nobody is named for {recipient}")), "{held:?}");
    }
}

#[test]
fn names_that_were_in_use_are_taken_still() {
    let mut config = config(&[]);
    for own in config.domains.values_mut() {
        own.previous_names = vec!["old".to_owned()];
    }
    for (recipient, line) in [
        // It was a return path: only those have tokens.
        ("old+token@example.com", "forward to ops@elsewhere.example"),
        ("OLD+token@plain.example", "forward to ops@elsewhere.example"),
        // It may have been the catchall's name.
        ("old@example.com", "webhook catch"),
        ("Old@plain.example", "forward to ops@elsewhere.example"),
    ] {
        assert_eq!(lines(&config, recipient), [line], "{recipient}");
    }
    assert_eq!(resolve(&config, &address("older@plain.example")), Resolution::Unknown);
}

#[test]
fn groups_of_a_pattern_reach_the_target() {
    let mut config = config(&[("ticket-7@example.com", &[target("crm")])]);
    let pattern = "(?P<kind>ticket|order)-(?P<id>[0-9]+)(?P<rest>-x)?@example\\.com";
    config.aliases.patterns.push(fixture::pattern(pattern, vec![target("crm")]));
    let found = |text: &str| {
        let groups = groups(&config, &address(text));
        groups.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found("Ticket-42@example.com"), "id=42 kind=ticket");
    assert_eq!(found("order-1-x+sub@example.com"), "id=1 kind=order rest=-x");
    assert_eq!(found("ticket-7@example.com"), "", "an alias of its own");
    assert_eq!(found("who@example.com"), "");
}

#[test]
fn limits_are_those_of_the_alias_that_took_it() {
    let mut config = config(&[("sales@example.com", &[target("crm")])]);
    config.aliases.patterns.push(fixture::pattern("p[0-9]@example\\.com", vec![target("crm")]));
    let limits = |limit| AliasLimits { limit: Some(limit), ..AliasLimits::default() };
    config.aliases.limits.insert("sales@example.com".to_owned(), limits(7));
    config.aliases.limits.insert("/p[0-9]@example\\.com/".to_owned(), limits(8));
    for (recipient, limit) in [("Sales+x@example.com", Some(7)), ("p1@example.com", Some(8)), ("who@example.com", None)]
    {
        let Resolution::Deliveries(found) = resolve(&config, &address(recipient)) else { panic!("{recipient}") };
        assert_eq!(found[0].limits.limit, limit, "{recipient}");
    }
}

#[test]
fn says_what_limits_count() {
    let config = config(&[("sales@example.com", &[target("crm")])]);
    for (recipient, counted_as, via_catchall) in [
        ("SALES+x@example.com", "sales@example.com", false),
        ("who@example.com", "@example.com", true),
        ("postmaster@plain.example", "postmaster@plain.example", false),
    ] {
        let Resolution::Deliveries(found) = resolve(&config, &address(recipient)) else { panic!("{recipient}") };
        assert_eq!((found[0].counted_as.as_str(), found[0].via_catchall), (counted_as, via_catchall));
    }
}

#[test]
fn lists_and_chains_are_followed_and_merged() {
    let config = config(&[
        ("all@example.com", &[to("team@example.com"), to("bob@partner.example"), to("all@example.com")]),
        ("team@example.com", &[target("crm"), to("bob@partner.example"), Destination::Reject]),
    ]);
    assert_eq!(lines(&config, "all@example.com"), ["webhook crm", "forward to bob@partner.example"]);
    let Resolution::Deliveries(found) = resolve(&config, &address("all+x@example.com")) else { panic!() };
    assert_eq!(found[0].address, address("all+x@example.com"), "a target sees the address it came in for");
    assert_eq!(found[1].address, address("bob@partner.example"));
}

#[test]
fn discard_and_reject_count_where_they_stand_alone() {
    let config = config(&[
        ("a@plain.example", &[Destination::Discard]),
        ("b@plain.example", &[Destination::Reject]),
        ("c@plain.example", &[Destination::Discard, target("crm")]),
        ("d@plain.example", &[Destination::Reject, Destination::Discard]),
        ("e@plain.example", &[to("b@plain.example")]),
    ]);
    assert_eq!(lines(&config, "a@plain.example"), ["discard"]);
    assert_eq!(resolve(&config, &address("b@plain.example")), Resolution::Rejected);
    assert_eq!(lines(&config, "c@plain.example"), ["webhook crm"]);
    assert_eq!(lines(&config, "d@plain.example"), ["discard"]);
    assert_eq!(resolve(&config, &address("e@plain.example")), Resolution::Rejected);
}

#[test]
fn mistakes_are_held_and_unknown_ends_refused() {
    let config = config(&[
        ("a@plain.example", &[to("b@plain.example")]),
        ("b@plain.example", &[to("a@plain.example")]),
        ("c@plain.example", &[to("gone@plain.example")]),
        ("d@plain.example", &[to("gone@plain.example"), target("crm")]),
    ]);
    assert_eq!(lines(&config, "a@plain.example"), ["held: its aliases lead only back to themselves"]);
    assert_eq!(resolve(&config, &address("c@plain.example")), Resolution::Unknown);
    assert_eq!(
        lines(&config, "d@plain.example"),
        ["webhook crm", "held: an alias leads to gone@plain.example, which does not exist"]
    );
}

#[test]
fn a_postmaster_nobody_is_named_for_is_held() {
    let mut config = config(&[]);
    config.postmaster = address("postmaster@plain.example");
    let held = lines(&config, "postmaster@plain.example");
    assert!(held[0].starts_with("held: nobody is named for postmaster@plain.example"), "{held:?}");
    // Another domain's postmaster goes the same way; one with a catchall has a place.
    assert!(lines(&config, "postmaster@example.com")[0].starts_with("held: nobody is named"));
    config.postmaster = address("postmaster@example.com");
    assert_eq!(lines(&config, "postmaster@example.com"), ["webhook catch"]);
    assert_eq!(lines(&config, "postmaster@plain.example"), ["webhook catch"]);
}

#[test]
fn chains_and_lists_are_bounded() {
    let mut config = config(&[]);
    for step in 0..CHAIN_DEPTH_MAX + 2 {
        let next = to(&format!("s{}@plain.example", step + 1));
        config.aliases.exact.insert(format!("s{step}@plain.example"), vec![next.clone(), next]);
    }
    assert_eq!(lines(&config, "s0@plain.example"), ["held: more than 10 aliases lead from one to the next"]);
    let many = (0..=DELIVERIES_MAX).map(|n| to(&format!("n{n}@partner.example"))).collect();
    config.aliases.exact.insert("many@plain.example".to_owned(), many);
    let found = lines(&config, "many@plain.example");
    assert_eq!(found.len(), DELIVERIES_MAX + 1);
    assert_eq!(found.last().unwrap(), "held: the alias leads to more than 100 places");
}
