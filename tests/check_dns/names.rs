//! Names and ways: MX, addresses, PTR, port 25, the name servers themselves, the clock.

use postrider::app::world::{Clockwork, Level, Published, Topic};
use std::sync::Arc;

use super::place::{Place, good, level, lines};
use super::remote::Remotes;
use super::zone::Zone;

const FROM_HERE: &str = "source_addresses = [\"127.0.0.1\"]\n";

/// The resolver knows the names of loopback addresses by itself (RFC 6761), so names are asked for another one.
const FROM_THERE: &str = "source_addresses = [\"192.0.2.1\"]\n";

#[tokio::test]
async fn an_mx_that_leads_elsewhere_is_told_from_one_that_leads_here() {
    let table = [
        (good(), Published::There, Level::Ok, "10 mail.my.test"),
        (
            Zone::new()
                .mx("my.test", 10, "mx.other.test")
                .a("mx.other.test", "127.0.0.9")
                .a("mail.my.test", "127.0.0.1"),
            Published::Differs,
            Level::Problem,
            "10 mx.other.test: none of them is this server",
        ),
        (
            Zone::new().mx("my.test", 10, "mx.my.test").a("mx.my.test", "127.0.0.1").a("mail.my.test", "127.0.0.1"),
            Published::There,
            Level::Ok,
            "10 mx.my.test",
        ),
        (
            Zone::new()
                .mx("my.test", 10, "mx.other.test")
                .mx("my.test", 20, "mail.my.test")
                .a("mail.my.test", "127.0.0.1"),
            Published::There,
            Level::Note,
            "10 mx.other.test, 20 mail.my.test: this server is not the first, so most mail goes elsewhere",
        ),
        (
            Zone::new().null_mx("my.test"),
            Published::Differs,
            Level::Problem,
            "a null MX: the domain takes no mail at all",
        ),
        (
            Zone::new().a("my.test", "127.0.0.1"),
            Published::Missing,
            Level::Problem,
            "there is none, so mail goes to the address of the domain itself, if it has one",
        ),
        (Zone::new().a("x.test", "127.0.0.1"), Published::Missing, Level::Problem, "the domain does not exist in DNS"),
        (Zone::new().fail("my.test"), Published::Unknown, Level::Warning, "not known: "),
    ];
    for (zone, published, wanted, found) in table {
        let looked = Place::new(zone, FROM_HERE).await.record(Topic::Mx).await;
        assert_eq!((looked.published, looked.finding.level), (published, wanted), "{looked:?}");
        assert!(looked.finding.found.starts_with(found), "{looked:?}");
        if published != Published::There {
            assert_eq!(looked.record.line(), "my.test. IN MX 10 mail.my.test.");
        }
        let is_told = matches!(published, Published::Missing | Published::Differs);
        assert_eq!(lines(&looked.finding), vec![looked.record.line(); usize::from(is_told)]);
    }
}

#[tokio::test]
async fn a_domain_without_mail_of_its_own_may_have_its_mx_elsewhere() {
    let zone = Zone::new().mx("my.test", 10, "mx.other.test").a("mx.other.test", "127.0.0.9");
    let place = Place::new(zone, &format!("{FROM_HERE}[domains.\"other.test\"]\n")).await;
    let mut config = place.config();
    config.domains.values_mut().for_each(|own| own.catchall.clear());
    let resolver = postrider::dns::Resolver::new(&config.dns).unwrap();
    let world = postrider::app::world::World::new(Arc::new(config), resolver, Some(place.signer()));
    let looked = super::place::of(world.records(&super::place::domain()).await, Topic::Mx);
    assert_eq!(looked[0].finding.level, Level::Note, "{looked:?}");
}

#[tokio::test]
async fn an_address_has_a_name_that_leads_back_and_is_said_in_the_greeting() {
    let problem = Level::Problem;
    let ptr = "1.2.0.192.in-addr.arpa. IN PTR mail.my.test.";
    let base = || Zone::new().a("mail.my.test", "192.0.2.1");
    let table = [
        (base().ptr("192.0.2.1", "mail.my.test"), Level::Ok, "mail.my.test, which leads back", None),
        (base(), problem, "has no name", Some(ptr)),
        (base().ptr("192.0.2.1", "dyn.isp.test"), problem, "dyn.isp.test, which does not lead back", Some(ptr)),
        (
            base().ptr("192.0.2.1", "host.isp.test").a("host.isp.test", "192.0.2.1"),
            Level::Warning,
            "host.isp.test, which leads back; but this server greets as mail.my.test",
            Some(ptr),
        ),
        (
            Zone::new().a("mail.my.test", "192.0.2.2").ptr("192.0.2.1", "mail.my.test"),
            problem,
            "mail.my.test, which does not lead back",
            Some("mail.my.test. IN A 192.0.2.1"),
        ),
        (base().fail("192.in-addr.arpa"), Level::Warning, "not known: ", None),
    ];
    for (zone, wanted, found, line) in table {
        let place = Place::new(zone, FROM_THERE).await;
        let finding = place.finding(Topic::Ptr).await;
        assert_eq!((finding.of.as_str(), finding.level), ("192.0.2.1", wanted), "{finding:?}");
        assert!(finding.found.starts_with(found), "{finding:?}");
        assert_eq!(lines(&finding), line.into_iter().collect::<Vec<_>>());
        let source = place.finding(Topic::Source).await;
        assert_eq!(level(&source), (Level::Ok, "192.0.2.1 (delivery.source_addresses)"));
    }
}

#[tokio::test]
async fn where_mail_goes_by_smart_hosts_only_the_name_of_an_address_is_a_note() {
    let more =
        format!("default = \"smart_hosts\"\n{FROM_HERE}[smart_hosts.relay]\nhost = \"127.0.0.1\"\ntls = \"off\"\n");
    let place = Place::new(Zone::new().a("mail.my.test", "127.0.0.1"), &more).await;
    assert_eq!(place.finding(Topic::Ptr).await.level, Level::Note);
}

#[tokio::test]
async fn the_server_s_own_name_leads_somewhere() {
    let table = [
        (Zone::new().a("mail.my.test", "127.0.0.1"), "", Level::Ok, "127.0.0.1", None),
        (
            Zone::new().a("my.test", "127.0.0.1"),
            "",
            Level::Problem,
            "has no address",
            Some("mail.my.test. IN A 127.0.0.1"),
        ),
        (
            Zone::new().a("mail.my.test", "127.0.0.1").aaaa("mail.my.test", "::1"),
            "",
            Level::Warning,
            "::1, 127.0.0.1: no listener takes mail at ::1",
            None,
        ),
        (Zone::new().fail("mail.my.test"), "", Level::Warning, "not known: ", None),
    ];
    for (zone, more, wanted, found, line) in table {
        let finding = Place::new(zone, &format!("{FROM_HERE}{more}")).await.finding(Topic::Host).await;
        assert_eq!(finding.level, wanted, "{finding:?}");
        assert!(finding.found.starts_with(found), "{finding:?}");
        assert_eq!(lines(&finding), line.into_iter().collect::<Vec<_>>());
    }
    let place = Place::new(Zone::new().a("mail.my.test", "10.1.2.3"), FROM_HERE).await;
    let mut config = place.config();
    config.delivery.allow_private_addresses = false;
    let resolver = postrider::dns::Resolver::new(&config.dns).unwrap();
    let world = Arc::new(postrider::app::world::World::new(Arc::new(config), resolver, None));
    let all = world.check(|_, _| {}).await;
    let host = all.iter().find(|finding| finding.check == Topic::Host).unwrap();
    assert_eq!(level(host), (Level::Problem, "10.1.2.3: nobody outside reaches 10.1.2.3"));
    // Nothing to connect to, and so nothing is connected to.
    let port = all.iter().find(|finding| finding.check == Topic::Port25).unwrap();
    assert!(port.level == Level::Note && port.found.starts_with("not tried"), "{port:?}");
}

#[tokio::test]
async fn port_25_is_open_closed_or_answers_with_a_refusal() {
    let remotes = Remotes::play(&["S: 220 mx.far.test ESMTP\nC: QUIT\ngone\n"]).await;
    let place = Place::new(good(), &format!("{FROM_HERE}mx_port = {}\n", remotes.port)).await;
    let finding = place.finding(Topic::Port25).await;
    assert!(finding.level == Level::Ok && finding.found.starts_with("open: mx.far.test (127.0.0.1:"), "{finding:?}");
    let heard = remotes.finish().await;
    assert!(heard[0].contents.is_empty());

    let remotes = Remotes::play(&["S: 554 5.7.1 you are on a list\nC: QUIT\ngone\n"]).await;
    let place = Place::new(good(), &format!("{FROM_HERE}mx_port = {}\n", remotes.port)).await;
    let finding = place.finding(Topic::Port25).await;
    assert!(finding.level == Level::Warning && finding.found.contains("you are on a list"), "{finding:?}");
    let port = remotes.port;
    remotes.finish().await;

    // Nobody listens there any more.
    let place = Place::new(good(), &format!("{FROM_HERE}mx_port = {port}\n")).await;
    let finding = place.finding(Topic::Port25).await;
    assert!(
        finding.level == Level::Problem && finding.found.starts_with("cannot be connected to: 127.0.0.1:"),
        "{finding:?}"
    );
    assert!(finding.remedy.contains("smart host"), "{finding:?}");
    let hosts = "default = \"smart_hosts\"\n";
    let relay = "[smart_hosts.relay]\nhost = \"127.0.0.1\"\ntls = \"off\"\n";
    let place = Place::new(good(), &format!("{hosts}{FROM_HERE}mx_port = {port}\n{relay}")).await;
    assert_eq!(place.finding(Topic::Port25).await.level, Level::Note);
}

#[tokio::test]
async fn name_servers_that_do_not_answer_are_one_finding() {
    let (place, _socket) = Place::deaf(FROM_HERE).await;
    let all = Arc::new(place.world()).check(|_, _| {}).await;
    let problems: Vec<_> = all.iter().filter(|finding| finding.level == Level::Problem).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].check == Topic::Resolver && problems[0].remedy.contains("nameservers"), "{problems:?}");
    let asked = [Topic::Mx, Topic::Spf, Topic::Dkim, Topic::Dmarc, Topic::Ptr, Topic::Host, Topic::Port25];
    assert!(all.iter().all(|finding| !asked.contains(&finding.check)), "{all:?}");
    // What needs no name servers is looked at all the same.
    for topic in [Topic::Disk, Topic::Clock, Topic::Certificate] {
        assert!(all.iter().any(|finding| finding.check == topic), "{topic:?}");
    }
}

#[tokio::test]
async fn whether_answers_can_be_validated_is_tried_out() {
    let place = Place::new(good(), FROM_HERE).await;
    let finding = place.finding(Topic::Dnssec).await;
    assert!(finding.level == Level::Note && finding.why.contains("DANE"), "{finding:?}");
    let place = Place::new(good().signed(), FROM_HERE).await;
    let config = Arc::new(place.config());
    let resolver = postrider::dns::Resolver::with_trust_anchors(&config.dns, place.zone.anchors()).unwrap();
    let world = Arc::new(postrider::app::world::World::new(config, resolver, None));
    let all = world.check(|_, _| {}).await;
    let finding = all.iter().find(|finding| finding.check == Topic::Dnssec).unwrap();
    assert_eq!(finding.level, Level::Ok, "{finding:?}");
}

#[tokio::test]
async fn whoever_keeps_the_clock_is_asked() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new(good(), FROM_HERE).await;
    let program = |name: &str, says: &str| {
        let path = place.folder.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{says}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let none = place.folder.path().join("none");
    let (yes, no) = (program("yes", "echo yes"), program("no", "echo no"));
    let failing = program("failing", "exit 1");
    let good_leap = program("leap", "printf 'Stratum         : 3\\nLeap status     : Normal\\n'");
    let bad_leap = program("leapless", "printf 'Leap status     : Not synchronised\\n'");
    for (timedatectl, chronyc, wanted) in [
        (&yes, &none, (Level::Ok, "kept by NTP, says timedatectl")),
        (&no, &good_leap, (Level::Warning, "not kept by NTP, says timedatectl")),
        (&failing, &good_leap, (Level::Ok, "kept by NTP, says chronyc")),
        (&none, &bad_leap, (Level::Warning, "not kept by NTP, says chronyc")),
        (&none, &none, (Level::Note, "whether it is kept by NTP is not known: nobody to ask here")),
    ] {
        let clockwork = Clockwork { timedatectl: timedatectl.clone(), chronyc: chronyc.clone() };
        let all = Arc::new(place.world().with_clockwork(clockwork)).check(|_, _| {}).await;
        let finding = all.iter().find(|finding| finding.check == Topic::Clock).unwrap();
        assert_eq!(level(finding), wanted);
    }
}
