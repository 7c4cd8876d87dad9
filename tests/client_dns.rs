//! What DNS says of a client: its reverse name, and lists that it may be on; against a zone in the same
//! process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

#[path = "support/client.rs"]
mod client;
#[path = "support/plain.rs"]
mod plain;
#[path = "support/server.rs"]
mod server;
#[path = "support/zone.rs"]
mod zone;

use std::time::Duration;

use postrider::checks::{Checked, Verdict, check};
use postrider::config::{CheckMode, Config, DmarcMode};
use postrider::dns::Resolver;
use postrider::message::{Address, Door, Draft, Envelope, Origin, Peer, ReversePath};
use zone::{Zone, ZoneServer};

struct World {
    server: ZoneServer,
    resolver: Resolver,
    config: Config,
    _folder: tempfile::TempDir,
}

impl World {
    /// Only what is tested here is on.
    async fn new(zone: Zone, rdns: CheckMode, lists: &[&str]) -> World {
        let folder = tempfile::tempdir().unwrap();
        let mut config = plain::config(folder.path());
        let checks = &mut config.checks;
        (checks.spf, checks.dkim, checks.dmarc) = (CheckMode::Off, CheckMode::Off, DmarcMode::Off);
        checks.rdns = rdns;
        checks.dnsbl = lists.iter().map(|list| plain::domain(list)).collect();
        let server = zone.serve().await;
        let mut dns = server.config();
        dns.timeout = Duration::from_millis(200);
        World { resolver: Resolver::new(&dns).unwrap(), server, config, _folder: folder }
    }

    async fn check(&self, client: &str) -> Checked {
        self.check_of(client, None).await
    }

    async fn check_of(&self, client: &str, account: Option<&str>) -> Checked {
        let peer = Peer { ip: client.parse().unwrap(), helo: "h.test".to_owned(), esmtp: true, tls: None };
        let draft = Draft {
            envelope: Envelope::new(ReversePath::Null, [Address::parse("sales@own.test").unwrap()]),
            content: b"From: a@far.test\r\n\r\nHello.\r\n".to_vec().into(),
            origin: Origin {
                door: Door::Mx { listener: "mx".to_owned() },
                account: account.map(str::to_owned),
                peer: Some(peer),
            },
        };
        check(&self.resolver, &self.config, &draft).await
    }
}

fn results(checked: &Checked) -> String {
    let value = checked.authentication_results.replace("\r\n\t", " ");
    value.strip_prefix("mail.own.test").unwrap_or(&value).trim_start_matches("; ").to_owned()
}

fn refusal(checked: &Checked) -> String {
    match &checked.verdict {
        Verdict::Accept => String::new(),
        Verdict::Reject(refusal) => refusal.reply.to_string().trim_end().to_owned(),
        Verdict::Hold(reason) => format!("hold: {reason}"),
    }
}

fn names() -> Zone {
    Zone::new()
        .ptr("192.0.2.1", "good.test")
        .a("good.test", "192.0.2.1")
        .ptr("192.0.2.2", "lies.test")
        .a("lies.test", "192.0.2.1")
        .ptr("192.0.2.3", "nowhere.test")
        .ptr("192.0.2.4", "lies.test")
        .ptr("192.0.2.4", "second.test")
        .a("second.test", "192.0.2.4")
        .fail("6.2.0.192.in-addr.arpa")
        .ptr("192.0.2.7", "down.test")
        .fail("down.test")
        .ptr("2001:db8::1", "six.test")
        .aaaa("six.test", "2001:db8::1")
}

#[tokio::test]
async fn a_name_counts_that_leads_back() {
    let world = World::new(names(), CheckMode::Annotate, &[]).await;
    for (client, expected) in [
        ("192.0.2.1", "iprev=pass (good.test) policy.iprev=192.0.2.1"),
        ("::ffff:192.0.2.1", "iprev=pass (good.test) policy.iprev=192.0.2.1"),
        ("192.0.2.2", "iprev=fail policy.iprev=192.0.2.2"),
        ("192.0.2.3", "iprev=fail policy.iprev=192.0.2.3"),
        ("192.0.2.4", "iprev=pass (second.test) policy.iprev=192.0.2.4"),
        ("192.0.2.5", "iprev=permerror policy.iprev=192.0.2.5"),
        ("192.0.2.6", "iprev=temperror policy.iprev=192.0.2.6"),
        ("192.0.2.7", "iprev=temperror policy.iprev=192.0.2.7"),
        ("2001:db8::1", "iprev=pass (six.test) policy.iprev=\"2001:db8::1\""),
    ] {
        let checked = world.check(client).await;
        assert_eq!(results(&checked), expected);
        assert_eq!(refusal(&checked), "");
        let finding = checked.findings.iprev.unwrap();
        assert!(expected.starts_with(&format!("iprev={} ", finding.result)), "{finding:?}");
        assert_eq!(finding.name.is_empty(), finding.result != "pass");
    }
}

#[tokio::test]
async fn a_client_without_a_name_may_be_turned_away() {
    let world = World::new(names(), CheckMode::Reject, &[]).await;
    for (client, expected) in [
        ("192.0.2.1", ""),
        ("192.0.2.2", "550 5.7.25 [192.0.2.2] has no name in DNS that leads back to it"),
        ("192.0.2.5", "550 5.7.25 [192.0.2.5] has no name in DNS that leads back to it"),
        ("192.0.2.6", "451 4.7.25 reverse DNS of [192.0.2.6] could not be looked up right now, please try again"),
    ] {
        assert_eq!(refusal(&world.check(client).await), expected);
    }
}

/// Only who is trusted is passed over, and this machine is not trusted unless `networks.trusted` says so.
#[tokio::test]
async fn loopback_is_asked_about_like_any_other_client() {
    let zone = Zone::new()
        .a("1.0.0.127.bl.test", "127.0.0.2")
        .a("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.bl.test", "127.0.0.2")
        .ptr("127.0.0.2", "here.test")
        .a("here.test", "127.0.0.2");
    let mut world = World::new(zone, CheckMode::Reject, &["bl.test"]).await;
    for (client, expected) in [
        ("127.0.0.1", "554 5.7.1 [127.0.0.1] is listed by bl.test"),
        ("::1", "554 5.7.1 [::1] is listed by bl.test"),
        ("127.0.0.2", ""),
        ("127.0.0.3", "550 5.7.25 [127.0.0.3] has no name in DNS that leads back to it"),
    ] {
        assert_eq!(refusal(&world.check(client).await), expected);
    }
    assert!(results(&world.check("127.0.0.2").await).starts_with("iprev=pass (here.test) policy.iprev=127.0.0.2"));
    world.config.networks.trusted = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
    let before = world.server.queries();
    for client in ["127.0.0.1", "::1", "127.0.0.3"] {
        assert_eq!(refusal(&world.check(client).await), "");
    }
    assert_eq!(world.server.queries(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_on_this_machine_that_is_on_a_list_gets_554_unless_it_is_trusted() {
    let zone = Zone::new().a("1.0.0.127.bl.test", "127.0.0.2").serve().await;
    for (networks, expected) in [("", "554 5.7.1 [127.0.0.1] is listed by bl.test"), ("[\"127.0.0.0/8\"]", "250 ")] {
        let folder = tempfile::tempdir().unwrap();
        let trusted = if networks.is_empty() { String::new() } else { format!("[networks]\ntrusted = {networks}\n") };
        let more = format!(
            "[dns]\nnameservers = {:?}\n[checks]\ndnsbl = [\"bl.test\"]\n{trusted}[domains.\"home.test\"]\ncatchall = \"discard\"\n",
            zone.config().nameservers.iter().map(ToString::to_string).collect::<Vec<_>>()
        );
        let server = server::TestServer::start(folder.path(), &more).await;
        let mut client = client::Client::connect(server.mx).await.unwrap();
        let reply = client.send("a@far.test", &["b@home.test"], "From: <a@far.test>\r\n\r\nHello.\r\n").await.unwrap();
        assert!(reply.starts_with(expected), "{reply}");
        server.stop().await;
    }
}

fn lists() -> Zone {
    Zone::new()
        .a("1.2.0.192.bl.test", "127.0.0.2")
        .txt("1.2.0.192.bl.test", "spam source, see https://bl.test/?\r\n250 ok \0 192.0.2.1")
        .a("2.2.0.192.bl.test", "127.0.0.11")
        .a("3.2.0.192.bl.test", "127.255.255.254")
        .a("4.2.0.192.bl.test", "198.51.100.7")
        .a("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.test", "127.0.0.3")
        .fail("down.test")
        .silent("mute.test")
        .a("9.2.0.192.second.test", "127.0.0.4")
}

#[tokio::test]
async fn clients_on_a_list_are_turned_away() {
    let world = World::new(lists(), CheckMode::Off, &["bl.test"]).await;
    for (client, expected) in [
        (
            "192.0.2.1",
            "554 5.7.1 [192.0.2.1] is listed by bl.test: spam source, see https://bl.test/? 250 ok 192.0.2.1",
        ),
        ("192.0.2.2", "554 5.7.1 [192.0.2.2] is listed by bl.test"),
        ("::ffff:192.0.2.2", "554 5.7.1 [192.0.2.2] is listed by bl.test"),
        ("2001:db8::1", "554 5.7.1 [2001:db8::1] is listed by bl.test"),
        // An error of the list, and an answer that somebody made up, are no hits.
        ("192.0.2.3", ""),
        ("192.0.2.4", ""),
        ("192.0.2.5", ""),
    ] {
        assert_eq!(refusal(&world.check(client).await), expected);
    }
    let told = world.check("192.0.2.3").await;
    assert_eq!(
        results(&told),
        "x-dnsbl=permerror (the list refuses our questions) dns.zone=bl.test policy.ip=127.255.255.254"
    );
    let [(list, text)] = told.troubles.as_slice() else { unreachable!("{:?}", told.troubles) };
    assert!(list.as_str() == "bl.test" && text.starts_with("127.255.255.254: the list refuses"), "{text}");
    assert!(world.check("192.0.2.1").await.troubles.is_empty());
}

#[tokio::test]
async fn a_list_that_is_down_stops_no_mail() {
    let world = World::new(lists(), CheckMode::Off, &["down.test", "mute.test", "bl.test"]).await;
    let checked = world.check("192.0.2.5").await;
    assert_eq!(refusal(&checked), "");
    assert_eq!(
        results(&checked),
        "x-dnsbl=temperror (the list did not answer) dns.zone=down.test; \
         x-dnsbl=temperror (the list did not answer) dns.zone=mute.test; x-dnsbl=pass dns.zone=bl.test"
    );
    let found: Vec<_> =
        checked.findings.dnsbl.iter().map(|found| (found.list.as_str(), found.result.as_str())).collect();
    assert_eq!(found, [("down.test", "temperror"), ("mute.test", "temperror"), ("bl.test", "pass")]);
    // And hides no other.
    assert!(refusal(&world.check("192.0.2.2").await).starts_with("554 "));
}

#[tokio::test]
async fn who_is_trusted_is_not_asked_about() {
    let mut world = World::new(lists(), CheckMode::Reject, &["bl.test", "second.test"]).await;
    assert!(refusal(&world.check("192.0.2.9").await).contains("is listed by second.test"));
    let before = world.server.queries();
    assert_eq!(refusal(&world.check_of("192.0.2.9", Some("shop")).await), "");
    world.config.networks.trusted = vec!["192.0.2.0/24".parse().unwrap()];
    for client in ["192.0.2.1", "::ffff:192.0.2.9"] {
        let checked = world.check(client).await;
        assert_eq!((refusal(&checked), checked.authentication_results.as_str()), (String::new(), ""), "{client}");
    }
    assert_eq!(world.server.queries(), before);
}

#[test]
fn lists_are_names() {
    let parse = |value: &str| {
        let text = format!("hostname = \"m.own.test\"\ndata_dir = \"/nowhere\"\n[checks]\n{value}\n");
        postrider::config::parse("test.toml", &text)
    };
    let config = parse("rdns = \"reject\"\ndnsbl = [\"zen.spamhaus.org\", \"BL.test.\"]").unwrap();
    assert_eq!(config.checks.rdns, CheckMode::Reject);
    let names: Vec<_> = config.checks.dnsbl.iter().map(|list| list.as_str()).collect();
    assert_eq!(names, ["zen.spamhaus.org", "bl.test"]);
    assert_eq!(parse("").unwrap().checks.rdns, CheckMode::Annotate);
    let eleven = format!("dnsbl = {:?}", (0..11).map(|n| format!("bl{n}.test")).collect::<Vec<_>>());
    for (wrong, word) in [
        ("dnsbl = [\"bl\"]", "not the name of a DNS list"),
        ("dnsbl = [\"192.0.2.1\"]", "not the name"),
        (&eleven, "11 lists"),
    ] {
        let problems = parse(wrong).unwrap_err().to_string();
        assert!(problems.contains(word), "{problems}");
    }
}
