//! SPF against the published suites, in memory and over a socket, and against its own limits.

#![allow(clippy::unwrap_used, clippy::panic, reason = "test code")]

#[path = "support/spf_suites.rs"]
mod spf_suites;
#[path = "support/zone.rs"]
mod zone;

use std::collections::BTreeMap;
use std::future::pending;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::time::Duration;

use postrider::checks::spf::{
    Answer, EXPLANATION_BYTES_MAX, Lookup, Outcome, QUERIES_MAX, Query, SpfResult, check_host,
};
use postrider::dns::{DnsError, Resolver};
use proptest::prelude::*;
use spf_suites::{Memory, SUITES, load, not_passed};
use tokio::time::Instant;
use zone::Zone;

const CLIENT: &str = "192.0.2.1";

/// Far enough off that it does not matter.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(300)
}

#[tokio::test]
async fn the_published_suites_pass_but_for_the_cases_that_are_listed() {
    let mut listed = not_passed();
    let mut wrong = Vec::new();
    for suite in SUITES {
        let (mut passed, mut known) = (0, 0);
        for group in load(suite) {
            let zone = group.in_memory();
            for case in &group.cases {
                let name = format!("{suite}/{}", case.name);
                match (case.complaint(&case.run(&zone, later()).await), listed.remove(&name)) {
                    (None, None) => passed += 1,
                    (Some(_), Some(_)) => known += 1,
                    (None, Some(_)) => wrong.push(format!("{name} passes, but is listed")),
                    (Some(complaint), None) => wrong.push(format!("{name} ({}): {complaint}", group.group)),
                }
            }
        }
        println!("{suite}: {passed} pass, {known} are listed as not passing");
    }
    wrong.extend(listed.keys().map(|name| format!("{name} is listed, but there is no such case")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same answers when a resolver asks a name server over a socket.
#[tokio::test]
async fn the_suite_of_rfc_7208_passes_over_a_socket() {
    let mut wrong = Vec::new();
    let mut passed = 0;
    for group in load("rfc7208") {
        let server = group.served().serve().await;
        let resolver = Resolver::new(&server.config()).unwrap();
        for case in &group.cases {
            match case.complaint(&case.run(&resolver, later()).await) {
                None => passed += 1,
                Some(complaint) => wrong.push(format!("{} ({}): {complaint}", case.name, group.group)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(passed, 203);
}

fn query(domain: &str) -> Query<'_> {
    Query { client: CLIENT.parse().unwrap(), local: "a", domain, helo: "h.test", receiver: "own.test", now: 0 }
}

/// The result for `domain`, why, and how many questions it took.
async fn result(zone: &Memory, domain: &str) -> (&'static str, &'static str, usize) {
    let before = zone.queries();
    let Outcome { result, why, .. } = check_host(zone, &query(domain), later()).await;
    (result.as_str(), why, zone.queries() - before)
}

#[tokio::test]
async fn ten_terms_may_ask_dns_and_no_more() {
    let terms = |count: usize| format!("v=spf1 {} ip4:{CLIENT} -all", "a:there.test ".repeat(count));
    let (ten, eleven) = (terms(10), terms(11));
    let mut records =
        vec![("there.test", "A", "192.0.2.9"), ("ten.test", "TXT", &ten), ("eleven.test", "TXT", &eleven)];
    let chain: Vec<(String, String)> = (0..12)
        .map(|n| (format!("c{n}.test"), format!("v=spf1 include:c{}.test {}", n + 1, if n == 9 { "+all" } else { "" })))
        .collect();
    records.extend(chain.iter().map(|(name, text)| (name.as_str(), "TXT", text.as_str())));
    records.push(("loop.test", "TXT", "v=spf1 redirect=loop.test"));
    records.push(("p.test", "TXT", "v=spf1 exists:%{p}.a.test redirect=ten.test"));
    let zone = Memory::new(&records);
    let over = "more than 10 terms that ask DNS";
    assert_eq!(result(&zone, "ten.test").await, ("pass", "", 11));
    assert_eq!(result(&zone, "eleven.test").await, ("permerror", over, 11));
    assert_eq!(result(&zone, "c0.test").await, ("permerror", over, 11));
    assert_eq!(result(&zone, "loop.test").await, ("permerror", over, 11));
    assert_eq!(result(&zone, "p.test").await.0, "permerror");
}

#[tokio::test]
async fn two_terms_may_find_nothing_and_no_more() {
    let zone = Memory::new(&[
        ("two.test", "TXT", "v=spf1 a:n1.test exists:n2.test ip4:192.0.2.1 -all"),
        ("three.test", "TXT", "v=spf1 a:n1.test exists:n2.test mx:n3.test ip4:192.0.2.1 -all"),
        ("spread.test", "TXT", "v=spf1 include:two-of.test a:n3.test -all"),
        ("two-of.test", "TXT", "v=spf1 a:n1.test a:n2.test"),
        ("below.n1.test", "A", "192.0.2.1"),
        // A term counts once, whatever becomes of its hosts.
        ("hosts.test", "TXT", "v=spf1 mx a:n1.test ip4:192.0.2.1 -all"),
        ("hosts.test", "MX", "n4.test"),
        ("hosts.test", "MX", "n5.test"),
        ("hosts.test", "MX", "n6.test"),
        // Names that cannot be asked for find nothing, but ask nothing either.
        ("odd.test", "TXT", "v=spf1 a:a..b.test a:a..c.test a:a..d.test ip4:192.0.2.1 -all"),
    ]);
    let over = "more than 2 void look-ups";
    assert_eq!(result(&zone, "two.test").await, ("pass", "", 3));
    assert_eq!(result(&zone, "three.test").await, ("permerror", over, 4));
    assert_eq!(result(&zone, "spread.test").await, ("permerror", over, 5));
    assert_eq!(result(&zone, "hosts.test").await, ("pass", "", 6));
    assert_eq!(result(&zone, "odd.test").await, ("pass", "", 1));
}

#[tokio::test]
async fn eleven_mail_hosts_are_an_error_and_an_eleventh_name_of_the_client_is_ignored() {
    let hosts: Vec<String> = (0..11).map(|n| format!("mx{n}.test")).collect();
    let mut records = vec![
        ("ten.test", "TXT", "v=spf1 mx -all"),
        ("eleven.test", "TXT", "v=spf1 mx -all"),
        ("names.test", "TXT", "v=spf1 ptr:mx9.test -all"),
        ("eleventh.test", "TXT", "v=spf1 ptr:mx10.test -all"),
        ("mx9.test", "A", CLIENT),
        ("mx10.test", "A", CLIENT),
    ];
    for host in &hosts {
        records.push(("1.2.0.192.in-addr.arpa", "PTR", host));
        records.push(("eleven.test", "MX", host));
    }
    records.extend(hosts.iter().take(10).map(|host| ("ten.test", "MX", host.as_str())));
    let zone = Memory::new(&records);
    assert_eq!(result(&zone, "ten.test").await, ("pass", "", 12));
    assert_eq!(result(&zone, "eleven.test").await, ("permerror", "more than 10 MX hosts", 2));
    assert_eq!(result(&zone, "names.test").await, ("pass", "", 12));
    assert_eq!(result(&zone, "eleventh.test").await, ("fail", "", 12));
}

#[tokio::test]
async fn the_most_questions_that_terms_can_ask() {
    let mut records = vec![("most.test".to_owned(), "TXT", format!("v=spf1 {} -all", "mx:hosts.test ".repeat(10)))];
    for n in 0..10 {
        records.push(("hosts.test".to_owned(), "MX", format!("mx{n}.test")));
        records.push((format!("mx{n}.test"), "A", "198.51.100.1".to_owned()));
    }
    let records: Vec<(&str, &str, &str)> = records.iter().map(|(n, kind, v)| (n.as_str(), *kind, v.as_str())).collect();
    let zone = Memory::new(&records);
    assert_eq!(result(&zone, "most.test").await, ("fail", "", 1 + 10 * 11));
}

/// A record of 58 kB, and 500 names of the client, of which ten are looked at.
#[tokio::test]
async fn large_answers_are_read_whole_and_cost_no_more_questions() {
    let many = "ip4:198.51.100.1 ".repeat(3_400);
    let zone = Zone::new()
        .txt("large.test", &format!("v=spf1 {many} ip4:{CLIENT} -all"))
        .txt("broken.test", &format!("v=spf1 ip4:{CLIENT} {many} ip4:198.51.100.256"))
        .txt("names.test", "v=spf1 ptr -all");
    let zone = (0..500).fold(zone, |zone, n| zone.ptr(CLIENT, &format!("n{n}.names.test")));
    let server = zone.serve().await;
    let resolver = Resolver::new(&server.config()).unwrap();
    for (name, expected) in [("large.test", "pass"), ("broken.test", "permerror")] {
        assert_eq!(check_host(&resolver, &query(name), later()).await.result.as_str(), expected, "{name}");
    }
    let before = server.queries();
    assert_eq!(check_host(&resolver, &query("names.test"), later()).await.result, SpfResult::Fail);
    // The record, the names by UDP and then by TCP, and their addresses.
    assert_eq!(server.queries() - before, 1 + 2 + 10);
}

/// Answers at once, but for one name: never.
struct Stuck<'a>(&'a Memory, &'static str);

impl Stuck<'_> {
    async fn wait(&self, name: &str) {
        if name == self.1 {
            pending::<()>().await;
        }
    }
}

impl Lookup for Stuck<'_> {
    async fn txt(&self, name: &str) -> Answer<Vec<u8>> {
        self.wait(name).await;
        self.0.txt(name).await
    }

    async fn ip4(&self, name: &str) -> Answer<Ipv4Addr> {
        self.wait(name).await;
        self.0.ip4(name).await
    }

    async fn ip6(&self, name: &str) -> Answer<Ipv6Addr> {
        self.0.ip6(name).await
    }

    async fn mx(&self, name: &str) -> Answer<String> {
        self.0.mx(name).await
    }

    async fn ptr(&self, ip: IpAddr) -> Answer<String> {
        self.0.ptr(ip).await
    }
}

#[tokio::test]
async fn what_is_not_known_in_time_is_a_temporary_error_and_an_explanation_is_left_out() {
    let zone = Memory::new(&[
        ("slow.test", "TXT", "v=spf1 include:stuck.test +all"),
        ("explained.test", "TXT", "v=spf1 -all exp=stuck.test"),
    ]);
    let zone = Stuck(&zone, "stuck.test");
    let over = Instant::now();
    let outcome = check_host(&zone, &query("slow.test"), over).await;
    assert_eq!((outcome.result, outcome.why), (SpfResult::TempError, "not evaluated in time"));
    let outcome = check_host(&zone, &query("explained.test"), over).await;
    assert_eq!((outcome.result, outcome.explanation), (SpfResult::Fail, None));
}

#[tokio::test]
async fn dns_errors_are_temporary_errors_but_for_names_of_the_client_and_explanations() {
    let zone = Memory::new(&[
        ("broken.test", "FAIL", ""),
        ("a.test", "TXT", "v=spf1 a:broken.test +all"),
        ("mx.test", "TXT", "v=spf1 mx:hosts.test +all"),
        ("hosts.test", "MX", "broken.test"),
        ("exists.test", "TXT", "v=spf1 -exists:broken.test +all"),
        ("include.test", "TXT", "v=spf1 include:broken.test +all"),
        ("redirect.test", "TXT", "v=spf1 redirect=broken.test"),
        ("ptr.test", "TXT", "v=spf1 ptr ~all"),
        ("exp.test", "TXT", "v=spf1 -all exp=broken.test"),
        ("1.2.0.192.in-addr.arpa", "FAIL", ""),
    ]);
    for name in ["broken.test", "a.test", "mx.test", "exists.test", "include.test", "redirect.test"] {
        assert_eq!(result(&zone, name).await.0, "temperror", "{name}");
    }
    assert_eq!(result(&zone, "ptr.test").await, ("softfail", "", 2));
    assert_eq!(result(&zone, "exp.test").await, ("fail", "", 2));
}

#[tokio::test]
async fn explanations_are_printable_and_bounded() {
    let long = "%{s} ".repeat(5_000);
    let zone = Memory::new(&[
        ("long.test", "TXT", "v=spf1 -all exp=text.long.test"),
        ("text.long.test", "TXT", &long),
        ("local.test", "TXT", "v=spf1 -all exp=text.local.test"),
        ("text.local.test", "TXT", "not %{l}"),
        ("crlf.test", "TXT", "v=spf1 -all exp=text.crlf.test"),
        ("text.crlf.test", "TXT", "no\r\n250 ok"),
        ("empty.test", "TXT", "v=spf1 -all exp=text.empty.test"),
        ("text.empty.test", "TXT", ""),
    ]);
    let explanation = async |domain, local| {
        let query = Query { local, ..query(domain) };
        check_host(&zone, &query, later()).await.explanation.map(|explanation| explanation.text)
    };
    assert_eq!(explanation("long.test", "a").await.unwrap().len(), EXPLANATION_BYTES_MAX);
    assert_eq!(explanation("local.test", "\"a\\\u{1}é\"").await.unwrap(), "not \"a\\??\"");
    assert_eq!(explanation("crlf.test", "a").await, None);
    assert_eq!(explanation("empty.test", "a").await, None);
}

/// Answers that are made up, kept within what a resolver may be asked for.
#[derive(Debug, Default)]
struct Made {
    texts: BTreeMap<String, Vec<Vec<u8>>>,
    hosts: Vec<String>,
    names: Vec<String>,
    addresses: Vec<Ipv4Addr>,
    /// Which of the questions nobody answers, and which have no answer.
    failing: Vec<bool>,
    void: Vec<bool>,
    asked: Mutex<Vec<String>>,
}

impl Made {
    fn answer<T>(&self, name: &str, answer: Vec<T>) -> Answer<T> {
        let mut asked = self.asked.lock().unwrap();
        let number = asked.len();
        asked.push(name.to_owned());
        let is = |flags: &[bool]| flags.get(number % flags.len().max(1)).copied().unwrap_or(false);
        if is(&self.failing) {
            return Err(DnsError::Temporary(String::new()));
        }
        if is(&self.void) { Err(DnsError::NoSuchDomain) } else { Ok(answer) }
    }
}

impl Lookup for Made {
    async fn txt(&self, name: &str) -> Answer<Vec<u8>> {
        let texts = self.texts.get(name).or(self.texts.values().next()).cloned().unwrap_or_default();
        self.answer(name, texts)
    }

    async fn ip4(&self, name: &str) -> Answer<Ipv4Addr> {
        self.answer(name, self.addresses.clone())
    }

    async fn ip6(&self, name: &str) -> Answer<Ipv6Addr> {
        self.answer(name, self.addresses.iter().map(Ipv4Addr::to_ipv6_compatible).collect())
    }

    async fn mx(&self, name: &str) -> Answer<String> {
        self.answer(name, self.hosts.clone())
    }

    async fn ptr(&self, _ip: IpAddr) -> Answer<String> {
        self.answer("a", self.names.clone())
    }
}

fn domain() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-c]\\.test",
        1 => "%\\{[sldoipvhcrtSLDOIPVHCRTx][0-9]{0,3}r?[-.+,/_=]{0,2}\\}(\\.test)?",
        1 => "([a-z%_-]{0,70}\\.){1,6}test\\.?",
        1 => "[ -~]{0,12}",
    ]
}

/// Terms with and without a domain of their own, and what is none.
fn term() -> impl Strategy<Value = String> {
    let heads = ["include:", "a:", "mx:", "ptr:", "exists:", "MX:", "redirect=", "exp=", "x="];
    let whole = [
        "a",
        "mx",
        "ptr",
        "all",
        "a/24",
        "mx//64",
        "a/24//64",
        "a/33",
        "ip4:192.0.2.0/24",
        "ip6:::/0",
        "ip4:1.2.3.4/032",
    ];
    let term = prop_oneof![
        4 => (select(&heads), domain()).prop_map(|(head, domain)| format!("{head}{domain}")),
        4 => select(&whole),
        1 => "[ -~]{0,10}",
    ];
    ("[-+~?]?", term).prop_map(|(qualifier, term)| qualifier + &term)
}

fn select(texts: &[&str]) -> proptest::sample::Select<String> {
    proptest::sample::select(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
}

fn text(seeds: Vec<String>) -> impl Strategy<Value = Vec<u8>> {
    let terms = proptest::collection::vec(term(), 0..14);
    let octets = |text: String| text.chars().map(|c| u32::from(c) as u8).collect();
    prop_oneof![
        6 => terms.prop_map(|terms| format!("v=spf1 {}", terms.join(" ")).into_bytes()),
        2 => proptest::sample::select(seeds).prop_map(octets),
        1 => proptest::collection::vec(any::<u8>(), 0..60).prop_map(|tail| [b"v=spf1 ".as_slice(), &tail].concat()),
        1 => "[ -~]{0,30}(%\\{[cprtsl]\\})?".prop_map(String::into_bytes),
    ]
}

fn made() -> impl Strategy<Value = Made> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/spf/seeds.json");
    let seeds: Vec<String> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let texts = proptest::collection::btree_map("[a-c]\\.test", proptest::collection::vec(text(seeds), 0..3), 1..4);
    let names = || proptest::collection::vec(domain(), 0..13);
    let addresses = proptest::collection::vec(
        proptest::sample::select(vec![Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::LOCALHOST]),
        0..4,
    );
    let flags = || prop_oneof![3 => Just(vec![false]), 1 => proptest::collection::vec(any::<bool>(), 1..20)];
    (texts, names(), names(), addresses, flags(), flags()).prop_map(
        |(texts, hosts, names, addresses, failing, void)| Made {
            texts,
            hosts,
            names,
            addresses,
            failing,
            void,
            asked: Mutex::default(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever DNS holds and the client says: an answer within the bounds, and only names that can be asked for.
    #[test]
    fn no_record_and_no_answer_breaks_the_bounds(
        made in made(),
        client in select(&["192.0.2.1", "::c000:201", "::ffff:192.0.2.1"]),
        local in "\\PC{0,64}",
        helo in "\\PC{0,80}",
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let query = Query { client: client.parse().unwrap(), local: &local, domain: "a.test", helo: &helo, receiver: "own.test", now: 1 };
        let outcome = runtime.block_on(check_host(&made, &query, later()));
        let asked = made.asked.lock().unwrap();
        prop_assert!(asked.len() <= QUERIES_MAX, "{} questions", asked.len());
        for name in asked.iter() {
            let legal = name.len() <= 253 && name.is_ascii() && name.split('.').all(|label| (1..64).contains(&label.len()));
            prop_assert!(legal, "{name:?}");
        }
        let is_error = matches!(outcome.result, SpfResult::TempError | SpfResult::PermError);
        prop_assert_eq!(is_error, !outcome.why.is_empty());
        prop_assert!(outcome.explanation.is_none() || outcome.result == SpfResult::Fail);
        if let Some(explanation) = outcome.explanation {
            prop_assert!((1..=EXPLANATION_BYTES_MAX).contains(&explanation.text.len()));
            prop_assert!(explanation.text.bytes().all(|b| matches!(b, b' '..=b'~')));
        }
    }
}
