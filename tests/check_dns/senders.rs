//! SPF and DKIM: who may send for the domain, and can what we sign be verified?

use postrider::app::world::{Level, Published, Topic};
use postrider::intake::sign::life;

use super::place::{Place, domain, good, level, lines, with_keys};
use super::zone::Zone;

const FROM_HERE: &str = "source_addresses = [\"127.0.0.1\"]\n";

/// Texts in DNS; where the record stands, how bad it is, how the finding begins, the line to publish.
type Case<'a> = (&'a [&'a str], Published, Level, &'a str, Option<&'a str>);

fn base() -> Zone {
    Zone::new().mx("my.test", 10, "mail.my.test").a("mail.my.test", "127.0.0.1")
}

#[tokio::test]
async fn spf_is_evaluated_as_receivers_do_and_the_better_record_is_printed() {
    let (missing, differs, problem) = (Published::Missing, Published::Differs, Level::Problem);
    let fresh = "my.test. IN TXT \"v=spf1 mx a:mail.my.test -all\"";
    let many = format!("v=spf1 {}-all", "a:x.test ".repeat(11));
    let table: [Case<'_>; 9] = [
        (&["v=spf1 mx -all"], Published::There, Level::Ok, "127.0.0.1 gets \"pass\"", None),
        (&["v=spf1 ip4:127.0.0.0/8 ~all", "other"], Published::There, Level::Ok, "127.0.0.1 gets \"pass\"", None),
        (&[], missing, problem, "there is no record", Some(fresh)),
        (
            &["v=spf1 include:other.test ~all"],
            differs,
            problem,
            "\"v=spf1 include:other.test ~all\": 127.0.0.1 gets \"softfail\"",
            Some("my.test. IN TXT \"v=spf1 ip4:127.0.0.1 include:other.test ~all\""),
        ),
        (&["v=spf1 mx -all", "v=spf1 a -all"], differs, problem, "there are 2 records", Some(fresh)),
        (&["v=spf1 mxx -all"], differs, problem, "\"v=spf1 mxx -all\" is an error: ", Some(fresh)),
        (&[&many], differs, problem, "\"v=spf1 a:x.test", Some(fresh)),
        (&["v=spf1 mx +all"], Published::There, Level::Warning, "\"v=spf1 mx +all\" lets everybody send", None),
        (&["v=spf1 mx"], Published::There, Level::Note, "\"v=spf1 mx\" says nothing of all others", None),
    ];
    for (texts, published, wanted, found, line) in table {
        let zone = texts.iter().fold(base(), |zone, text| zone.txt("my.test", text));
        let zone = zone.txt("other.test", "v=spf1 ip4:192.0.2.9 -all").a("x.test", "192.0.2.1");
        let looked = Place::new(zone, FROM_HERE).await.record(Topic::Spf).await;
        assert_eq!((looked.published, looked.finding.level), (published, wanted), "{looked:?}");
        assert!(looked.finding.found.starts_with(found), "{looked:?}");
        assert_eq!(lines(&looked.finding), line.into_iter().collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn smart_hosts_have_to_be_included() {
    let hosts = "default = \"smart_hosts\"\n[smart_hosts.office]\nhost = \"smtp.office365.com\"\n\
        [smart_hosts.relay]\nhost = \"relay.far.test\"\n";
    let zone = |spf: &str| {
        base()
            .txt("my.test", spf)
            .txt("spf.protection.outlook.com", "v=spf1 ip4:192.0.2.0/24 -all")
            .txt("between.test", "v=spf1 include:spf.protection.outlook.com ?all")
            .a("relay.far.test", "127.0.0.8")
    };
    let looked = Place::new(zone("v=spf1 -all"), hosts).await.record(Topic::Spf).await;
    assert_eq!(looked.finding.level, Level::Problem, "{looked:?}");
    let line = "my.test. IN TXT \"v=spf1 include:spf.protection.outlook.com a:relay.far.test -all\"";
    assert_eq!(lines(&looked.finding), [line]);
    assert!(!looked.finding.found.contains("127.0.0.1"), "our own address sends nothing: {looked:?}");
    // By way of another record counts, too. Where a relay sends from is not known for sure.
    let looked = Place::new(zone("v=spf1 include:between.test -all"), hosts).await.record(Topic::Spf).await;
    assert_eq!(looked.finding.level, Level::Warning, "{looked:?}");
    assert_eq!(lines(&looked.finding), ["my.test. IN TXT \"v=spf1 a:relay.far.test include:between.test -all\""]);
    let all = "v=spf1 include:between.test ip4:127.0.0.8 -all";
    assert_eq!(Place::new(zone(all), hosts).await.record(Topic::Spf).await.finding.level, Level::Ok);
}

#[tokio::test]
async fn bounces_are_asked_about_by_the_name_in_the_greeting() {
    let name = |zone: Zone| async move {
        let mut looked = Place::new(zone, FROM_HERE).await.records(Topic::Spf).await;
        assert_eq!(looked.len(), 2);
        looked.remove(1)
    };
    let looked = name(good()).await;
    assert_eq!((looked.published, looked.finding.level), (Published::There, Level::Ok), "{looked:?}");
    let looked = name(base()).await;
    assert_eq!((looked.published, looked.finding.level), (Published::Missing, Level::Note), "{looked:?}");
    assert_eq!(lines(&looked.finding), ["mail.my.test. IN TXT \"v=spf1 a -all\""]);
    let looked = name(base().txt("mail.my.test", "v=spf1 -all")).await;
    assert_eq!((looked.published, looked.finding.level), (Published::Differs, Level::Warning), "{looked:?}");
}

#[tokio::test]
async fn a_record_of_dkim_has_to_have_the_key_that_signs() {
    let place = Place::new(good(), FROM_HERE).await;
    let signer = place.signer();
    let missing = place.records(Topic::Dkim).await;
    assert_eq!(missing.len(), 2);
    for (looked, key) in missing.iter().zip(signer.standings(&domain())) {
        assert_eq!((looked.published, looked.finding.level), (Published::Missing, Level::Problem), "{looked:?}");
        assert_eq!(
            (looked.record.name.as_str(), looked.record.value.as_str()),
            (key.name.as_str(), key.record.as_str())
        );
    }
    place.zone.replace(with_keys(good(), &signer));
    assert!(place.records(Topic::Dkim).await.iter().all(|looked| looked.finding.level == Level::Ok));
    let one = |text: &str| good().txt("pr-rsa._domainkey.my.test", text);
    place.zone.replace(one("v=DKIM1; k=rsa; p=AAAA"));
    let other = place.record(Topic::Dkim).await;
    assert_eq!((other.published, other.finding.level), (Published::Differs, Level::Problem), "{other:?}");
    assert!(other.finding.found.contains("another key than ours: \"v=DKIM1; k=rsa; p=AAAA\""), "{other:?}");
    place.zone.replace(one("v=DKIM1; k=rsa; p="));
    assert!(place.record(Topic::Dkim).await.finding.found.contains("revoked"));
}

#[tokio::test]
async fn a_key_that_waits_for_its_record_is_no_problem() {
    let place = Place::new(good(), FROM_HERE).await;
    let old = place.signer();
    life::rotate(&place.config(), &domain()).unwrap();
    place.zone.replace(with_keys(good(), &old));
    let looked = place.records(Topic::Dkim).await;
    let levels: Vec<_> = looked.iter().map(|looked| looked.finding.level).collect();
    assert_eq!(levels, [Level::Ok, Level::Ok, Level::Note, Level::Note], "{looked:?}");
    assert_eq!(looked[2].published, Published::Missing);
    place.zone.replace(with_keys(good(), &place.signer()));
    let looked = place.records(Topic::Dkim).await;
    assert!(looked[2].finding.found.contains("signs as soon as the server sees it"), "{looked:?}");
}

#[tokio::test]
async fn dmarc_is_one_record_that_can_be_used_and_whose_reports_arrive() {
    let (there, missing, differs) = (Published::There, Published::Missing, Published::Differs);
    let fresh = "_dmarc.my.test. IN TXT \"v=DMARC1; p=none; rua=mailto:postmaster@my.test\"";
    let table: [Case<'_>; 8] = [
        (&["v=DMARC1; p=reject; rua=mailto:a@my.test"], there, Level::Ok, "p=reject; our signatures", None),
        (&["v=DMARC1; p=none; rua=mailto:a@my.test"], there, Level::Note, "p=none; our signatures", None),
        (
            &["v=DMARC1; p=reject"],
            there,
            Level::Note,
            "p=reject; our signatures are of this domain, so what they sign passes; it asks for no reports",
            None,
        ),
        (&[], missing, Level::Problem, "there is none", Some(fresh)),
        (&["v=DMARC1; p=rejekt"], differs, Level::Problem, "\"v=DMARC1; p=rejekt\" cannot be used", Some(fresh)),
        (&["DMARC1 p=none"], differs, Level::Problem, "\"DMARC1 p=none\" is no record of DMARC", Some(fresh)),
        (&["v=DMARC1; p=none", "v=DMARC1; p=reject"], differs, Level::Problem, "there are 2 records", Some(fresh)),
        (
            &["v=DMARC1; p=reject; rua=mailto:a@reports.example"],
            there,
            Level::Warning,
            "p=reject; reports.example has not agreed",
            Some("my.test._report._dmarc.reports.example. IN TXT \"v=DMARC1\""),
        ),
    ];
    for (texts, published, wanted, found, line) in table {
        let zone = texts.iter().fold(base(), |zone, text| zone.txt("_dmarc.my.test", text));
        let looked = Place::new(zone, FROM_HERE).await.record(Topic::Dmarc).await;
        assert_eq!((looked.published, looked.finding.level), (published, wanted), "{looked:?}");
        assert!(looked.finding.found.starts_with(found), "{looked:?}");
        assert_eq!(lines(&looked.finding), line.into_iter().collect::<Vec<_>>());
    }
    let zone = base().txt("_dmarc.test", "v=DMARC1; p=none; sp=quarantine; rua=mailto:a@test");
    let above = Place::new(zone, FROM_HERE).await.record(Topic::Dmarc).await;
    assert!(level(&above.finding).1.starts_with("p=quarantine (the record of test applies)"), "{above:?}");
}
