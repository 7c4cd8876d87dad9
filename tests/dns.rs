//! The resolver against a zone in the same process: what is there, what is not, and what nobody knows.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "support/zone.rs"]
mod zone;

use std::net::IpAddr;
use std::time::Duration;

use postrider::config::Dns;
use postrider::dns::{ADDRESSES_MAX, DnsError, MX_HOSTS_MAX, MxAnswer, MxHost, Resolver};
use postrider::message::Domain;
use zone::{Zone, ZoneServer};

fn domain(name: &str) -> Domain {
    Domain::parse(name).unwrap()
}

async fn serve(zone: Zone) -> (ZoneServer, Resolver) {
    let server = zone.serve().await;
    let resolver = Resolver::new(&server.config()).unwrap();
    (server, resolver)
}

#[tokio::test]
async fn mx_answers_are_told_apart() {
    let zone = Zone::new()
        .mx("example.test", 20, "MX2.example.test")
        .mx("example.test", 10, "mx1.example.test")
        .null_mx("null.test")
        .a("implicit.test", "192.0.2.1")
        .mx("odd.test", 10, "192.0.2.7")
        .fail("broken.test");
    let (_server, resolver) = serve(zone).await;
    let host = |preference, name| MxHost { preference, host: domain(name) };
    assert_eq!(
        resolver.mx(&domain("example.test")).await,
        Ok(MxAnswer::Hosts(vec![host(10, "mx1.example.test"), host(20, "mx2.example.test")]))
    );
    assert_eq!(resolver.mx(&domain("null.test")).await, Ok(MxAnswer::Null));
    assert_eq!(resolver.mx(&domain("implicit.test")).await, Ok(MxAnswer::Implicit));
    assert_eq!(resolver.mx(&domain("[192.0.2.1]")).await, Ok(MxAnswer::Implicit));
    assert_eq!(resolver.mx(&domain("nowhere.test")).await, Ok(MxAnswer::NoSuchDomain));
    assert!(matches!(resolver.mx(&domain("odd.test")).await, Err(DnsError::Unusable(_))));
    assert!(matches!(resolver.mx(&domain("broken.test")).await, Err(DnsError::Temporary(_))));
}

#[tokio::test]
async fn addresses_of_both_families() {
    let zone = Zone::new()
        .a("both.test", "192.0.2.1")
        .aaaa("both.test", "2001:db8::1")
        .cname("alias.test", "both.test")
        .txt("texts.test", "no address here")
        .fail("broken.test");
    let (_server, resolver) = serve(zone).await;
    let both: Vec<IpAddr> = vec!["2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
    assert_eq!(resolver.addresses(&domain("both.test")).await.as_ref(), Ok(&both));
    assert_eq!(resolver.addresses(&domain("alias.test")).await, Ok(both));
    assert_eq!(resolver.addresses(&domain("texts.test")).await, Ok(vec![]));
    assert_eq!(resolver.addresses(&domain("[IPv6:::1]")).await, Ok(vec!["::1".parse().unwrap()]));
    assert_eq!(resolver.addresses(&domain("nowhere.test")).await, Err(DnsError::NoSuchDomain));
    assert!(matches!(resolver.addresses(&domain("broken.test")).await, Err(DnsError::Temporary(_))));
}

#[tokio::test]
async fn long_txt_comes_over_tcp_and_joined() {
    let long = "a".repeat(2000);
    let mut zone = Zone::new();
    for number in 0..4 {
        zone = zone.txt("long.test", &format!("{long}{number}"));
    }
    let (_server, resolver) = serve(zone.ptr("192.0.2.9", "host.test")).await;
    let mut texts = resolver.txt("long.test").await.unwrap();
    texts.sort();
    assert_eq!(texts, (0..4).map(|number| format!("{long}{number}")).collect::<Vec<_>>());
    assert_eq!(resolver.ptr("192.0.2.9".parse().unwrap()).await, Ok(vec![domain("host.test")]));
    assert_eq!(resolver.ptr("192.0.2.8".parse().unwrap()).await, Ok(vec![]));
    assert!(matches!(resolver.txt("two..dots").await, Err(DnsError::Unusable(_))));
}

#[tokio::test]
async fn answers_are_capped_and_cached() {
    let mut zone = Zone::new();
    for number in 0..60u16 {
        zone = zone
            .mx("many.test", 60 - number, &format!("mx{number}.many.test"))
            .a("many.test", &format!("192.0.2.{}", number + 1));
    }
    let (server, resolver) = serve(zone).await;
    let Ok(MxAnswer::Hosts(hosts)) = resolver.mx(&domain("many.test")).await else { unreachable!("MX records") };
    assert_eq!(hosts.len(), MX_HOSTS_MAX);
    assert_eq!(hosts.first().map(|h| h.preference), Some(1));
    assert_eq!(resolver.addresses(&domain("many.test")).await.map(|a| a.len()), Ok(ADDRESSES_MAX));
    let asked = server.queries();
    assert!(resolver.clone().mx(&domain("many.test")).await.is_ok());
    assert_eq!(server.queries(), asked);
}

#[tokio::test]
async fn silence_is_temporary() {
    let server = Zone::new().silent("silent.test").serve().await;
    let config = Dns { nameservers: vec![server.addr()], timeout: Duration::from_millis(100) };
    let resolver = Resolver::new(&config).unwrap();
    assert!(matches!(resolver.mx(&domain("silent.test")).await, Err(DnsError::Temporary(_))));
    assert!(server.queries() > 0);
}

#[tokio::test]
async fn records_as_they_are() {
    let many = |zone: Zone| (0..40).fold(zone, |zone, n| zone.a("many.test", &format!("192.0.2.{n}")));
    let zone = many(Zone::new())
        .txt_strings("texts.test", &[b"v=spf1 ".to_vec(), b"\xff-all".to_vec()])
        .aaaa("many.test", "2001:db8::1")
        .mx("many.test", 10, "a b:c/%20.test")
        .mx("many.test", 10, "MX.test")
        .null_mx("many.test")
        .ptr("192.0.2.1", "Host.test")
        .pointer("2.2.0.192.in-addr.arpa", "x y.test")
        .txt("a b:c/%20.test", "odd")
        .fail("broken.test");
    let (_server, resolver) = serve(zone).await;
    assert_eq!(resolver.txt_octets("texts.test").await, Ok(vec![b"v=spf1 \xff-all".to_vec()]));
    assert_eq!(resolver.txt_octets("a b:c/%20.test").await, Ok(vec![b"odd".to_vec()]));
    assert_eq!(resolver.txt_octets("many.test").await, Ok(Vec::new()));
    assert_eq!(resolver.txt_octets("nowhere.test").await, Err(DnsError::NoSuchDomain));
    assert!(matches!(resolver.txt_octets("broken.test").await, Err(DnsError::Temporary(_))));
    assert!(matches!(resolver.txt_octets("a..test").await, Err(DnsError::Unusable(_))));
    assert_eq!(resolver.ip4_addresses("many.test").await.unwrap().len(), 40);
    assert_eq!(resolver.ip6_addresses("many.test").await, Ok(vec!["2001:db8::1".parse().unwrap()]));
    let mut hosts = resolver.mx_names("many.test").await.unwrap();
    hosts.sort();
    assert_eq!(hosts, ["", "MX.test", "a b:c/%20.test"]);
    assert_eq!(resolver.ptr_names("192.0.2.1".parse().unwrap()).await, Ok(vec!["Host.test".to_owned()]));
    assert_eq!(resolver.ptr_names("192.0.2.2".parse().unwrap()).await, Ok(vec!["x y.test".to_owned()]));
    assert_eq!(resolver.ptr_names("192.0.2.3".parse().unwrap()).await, Err(DnsError::NoSuchDomain));
}
