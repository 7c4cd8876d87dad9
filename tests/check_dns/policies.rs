//! MTA-STS and TLSRPT.

use std::sync::Arc;

use postrider::app::world::{Finding, Level, Published, Topic, World};
use postrider::delivery::https::Https;
use postrider::dns::Resolver;

use super::authority::Authority;
use super::place::{Place, domain, good, lines, of};
use super::web::{self, Web};

const FROM_HERE: &str = "source_addresses = [\"127.0.0.1\"]\n";
const RECORD: &str = "v=STSv1; id=1";

/// What is found where the record is there, and the policy host answers so.
async fn with_policy(answer: String) -> Finding {
    let authority = Authority::new();
    let web = Web::serve(authority.issue(&["mta-sts.my.test"]).server_config(), answer).await;
    let zone = good().txt("_mta-sts.my.test", RECORD).a("mta-sts.my.test", "127.0.0.1");
    let place = Place::new(zone, FROM_HERE).await;
    let config = Arc::new(place.config());
    let resolver = Resolver::new(&config.dns).unwrap();
    let https = Https::new(resolver.clone(), true).with_roots(authority.roots()).with_port(web.port);
    let world = World::new(config, resolver, Some(place.signer())).with_https(https);
    let mut looked = of(world.records(&domain()).await, Topic::MtaSts);
    assert_eq!(looked[0].published, Published::There);
    assert_eq!(web.asked().len(), 1);
    looked.remove(0).finding
}

fn policy(mode: &str, mx: &str, max_age: u64) -> String {
    let text = format!("version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: {max_age}\n");
    web::answer("200 OK", "text/plain", &text)
}

#[tokio::test]
async fn the_policy_is_fetched_and_has_to_name_the_servers_that_there_are() {
    let week = 604_800;
    for (answer, wanted, found) in [
        (policy("enforce", "mail.my.test", week), Level::Ok, "mode enforce, and it names every mail server"),
        (policy("testing", "*.my.test", week), Level::Ok, "mode testing"),
        (policy("enforce", "mx.my.test", week), Level::Problem, "mode enforce; the policy does not name mail.my.test"),
        (policy("testing", "mx.my.test", week), Level::Warning, "mode testing; the policy does not name mail.my.test"),
        (policy("enforce", "mail.my.test", 60), Level::Note, "mode enforce, for 60 s only"),
        (web::answer("404 Not Found", "text/plain", ""), Level::Problem, "the record is there, but not the policy: "),
        (web::answer("200 OK", "text/html", "x"), Level::Problem, "the record is there, but not the policy: "),
        (web::answer("200 OK", "text/plain", "x"), Level::Problem, "the record is there, but not the policy: "),
    ] {
        let finding = with_policy(answer.clone()).await;
        assert_eq!(finding.level, wanted, "{answer}: {finding:?}");
        assert!(finding.found.starts_with(found), "{finding:?}");
    }
}

#[tokio::test]
async fn records_about_tls_are_optional_but_have_to_be_right() {
    let place = Place::new(good(), FROM_HERE).await;
    let none = place.record(Topic::MtaSts).await;
    assert_eq!((none.published, none.finding.level), (Published::Missing, Level::Note), "{none:?}");
    assert!(lines(&none.finding)[0].starts_with("_mta-sts.my.test. IN TXT \"v=STSv1; id="), "{none:?}");
    assert!(none.record.comment.contains("mx: mail.my.test"), "{none:?}");
    place.zone.replace(good().txt("_mta-sts.my.test", "v=STSv1;"));
    let wrong = place.record(Topic::MtaSts).await;
    assert_eq!((wrong.published, wrong.finding.level), (Published::Differs, Level::Problem), "{wrong:?}");

    let reports = place.record(Topic::TlsRpt).await;
    assert_eq!((reports.finding.level, reports.finding.found.as_str()), (Level::Ok, "reports go to tls@my.test"));
    let other = |text: Option<&str>| {
        let zone = super::zone::Zone::new().mx("my.test", 10, "mail.my.test").a("mail.my.test", "127.0.0.1");
        text.map_or(zone.clone(), |text| zone.txt("_smtp._tls.my.test", text))
    };
    let line = "_smtp._tls.my.test. IN TXT \"v=TLSRPTv1; rua=mailto:postmaster@my.test\"";
    for (text, published, level) in
        [(None, Published::Missing, Level::Note), (Some("v=TLSRPTv1;"), Published::Differs, Level::Warning)]
    {
        let looked = Place::new(other(text), FROM_HERE).await.record(Topic::TlsRpt).await;
        assert_eq!((looked.published, looked.finding.level), (published, level), "{looked:?}");
        assert_eq!(lines(&looked.finding), [line]);
    }
}
