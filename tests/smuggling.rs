//! `tests/data/smtp-smuggling`: forms of a false end of a message, wherever they stand, however they are cut and
//! whichever way they come in. One message in is one message out, or none, for the laxest of readers behind us.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/conversation.rs"]
mod conversation;
#[path = "support/flow.rs"]
mod flow;
#[path = "support/server.rs"]
mod server;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/zone.rs"]
mod zone;

/// What all tests share.
mod support {
    pub(crate) use super::conversation;
    pub(crate) use super::flow;
    pub(crate) use super::server;
    pub(crate) use super::sink;
    pub(crate) use super::zone;
}
#[path = "support/bare.rs"]
mod bare;
#[path = "../benches/support/mod.rs"]
mod bench;
#[path = "smuggling/carriers.rs"]
mod carriers;
#[path = "smuggling/commands.rs"]
mod commands;
#[path = "smuggling/forms.rs"]
mod forms;
#[path = "smuggling/session.rs"]
mod session;
#[path = "support/tcp.rs"]
mod tcp;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

// `tcp` takes its configuration from a file that names these as the library does.
use postrider::config;

use bench::postfix::{Package, Postfix, Then};
use carriers::{Doors, Probe, carry};
use forms::{Content, MAX_SIZE, boundary, forms, is_unclean, named, tail};
use support::server::TestServer;
use support::sink::Sink;
use support::zone::Zone;
use tokio::sync::Semaphore;

const CONF: &str = r#"
[networks]
trusted = ["127.0.0.0/8", "192.0.2.7"]
proxies = ["127.0.0.1"]
[listeners.proxied]
role = "submission"
bind = ["127.0.0.1:0"]
proxy_protocol = true
[listeners.implicit]
role = "submission"
bind = ["127.0.0.1:0"]
tls = "implicit"
[domains."home.test"]
[accounts.shop]
password = "correct horse"
[pickup.in]
path = "DATA_DIR/in"
account = "shop"
settle = "1s"
[delivery]
mx_port = PORT
allow_private_addresses = true
[dns]
nameservers = ["ZONE"]
"#;
/// Probes at once.
const AT_ONCE: usize = 48;

/// Every form at every place by every carrier, and each of them with each of the splits in turn.
fn probes() -> Vec<(bool, String, Probe)> {
    let (positions, splits, carriers) = (named("positions", 8), named("splits", 10), named("carriers", 9));
    let mut probes = Vec::new();
    for (f, form) in forms().iter().enumerate() {
        for (p, position) in positions.iter().enumerate() {
            for (c, carrier) in carriers.iter().enumerate() {
                let number = probes.len();
                let split = splits[(f + 3 * p + 7 * c) % splits.len()].clone();
                let content = Content::new(position, form, &tail(&format!("v{number}@far.test")), boundary(&split));
                let what = format!("{} {position} {split} {carrier}", form.id);
                let recipient = format!("p{number}@far.test");
                probes.push((form.is_end, what, Probe { carrier: carrier.clone(), split, recipient, content }));
            }
        }
    }
    assert_eq!(probes.len(), 29 * 8 * 9);
    probes
}

async fn run(next: SocketAddr, probes: Vec<(bool, String, Probe)>) -> Vec<(bool, String, Probe, usize)> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("in")).unwrap();
    let zone = Zone::new().mx("far.test", 10, "mx.far.test").a("mx.far.test", "127.0.0.1").serve().await;
    let conf = CONF.replace("PORT", &next.port().to_string()).replace("ZONE", &zone.addr().to_string());
    let limits = ("connections_per_ip", format!("max_size = \"{}KiB\"\nconnections_per_ip", MAX_SIZE / 1024));
    let server = TestServer::start_with(folder.path(), &conf, limits.0, &limits.1).await;
    let door = |name: &str| server.app.listeners().iter().find(|listener| listener.name == name).unwrap().address;
    let doors = Doors::new([server.submission, door("implicit"), door("proxied")], folder.path());
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut carrying = tokio::task::JoinSet::new();
    for (is_end, what, probe) in probes {
        let (doors, places) = (doors.clone(), places.clone());
        carrying.spawn(async move {
            let _place = places.acquire().await.unwrap();
            let said = carry(&doors, &probe).await;
            (is_end, what, probe, said)
        });
    }
    let done = carrying.join_all().await;
    while !server.queue().await.is_empty() {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    server.stop().await;
    done
}

/// What arrived for whom.
fn arrived(sink: &Sink) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for message in sink.taken() {
        assert!(!is_unclean(&message.content), "to {:?}", message.recipients);
        assert_eq!(message.recipients.len(), 1);
        *count.entry(message.recipients[0].clone()).or_default() += 1;
    }
    count
}

/// As many as the server has taken arrive, none of them a second one.
fn judge(done: &[(bool, String, Probe, usize)], arrived: &BTreeMap<String, usize>) {
    let mut total = 0;
    for (is_end, what, probe, said) in done {
        let of = |address: &str| arrived.get(address).copied().unwrap_or(0);
        let (honest, smuggled) = (of(&probe.recipient), of(&probe.recipient.replacen('p', "v", 1)));
        total += honest + smuggled;
        // What follows a legal end of DATA are commands of this client, said in the open.
        let is_data = probe.carrier.starts_with("DATA") || probe.carrier == "after-PROXY-v2-header";
        let most = if *is_end && is_data { 2 } else { 1 };
        assert!(*said <= most && honest <= 1, "{what}: {said} taken");
        assert_eq!(honest + smuggled, *said, "{what}: {honest} and {smuggled} arrived");
        assert!(smuggled == 0 || most == 2, "{what}");
        // Only these may make line ends of what is none, as programs write files with other ones.
        let is_lenient = ["pickup-file", "http-api"].contains(&probe.carrier.as_str());
        if probe.content.is_unclean() && !is_end && !is_lenient {
            assert_eq!(*said, 0, "{what}");
        }
        // And the run proves something: what is clean passes. A file may be refused for its header.
        let may_pass = match probe.carrier.as_str() {
            "pickup-file" => what.contains("after-body-line"),
            _ => true,
        };
        if may_pass && !probe.content.is_unclean() && !probe.content.is_over {
            assert_eq!(honest, 1, "{what}");
        }
    }
    assert_eq!(total, arrived.values().sum::<usize>(), "something arrived that nobody sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_message_never_becomes_two_on_its_way_through() {
    let sink = Sink::start_lax().await;
    let done = run(sink.address, probes()).await;
    assert_eq!(done.len(), 29 * 8 * 9);
    judge(&done, &arrived(&sink));
}

/// The same through a real server that takes a bare LF for a line end, as Postfix did before 3.9.
#[tokio::test(flavor = "multi_thread")]
async fn one_message_never_becomes_two_in_a_lenient_postfix() {
    let Some(folder) = std::env::var_os("POSTRIDER_TEST_POSTFIX") else {
        eprintln!("SKIPPED: POSTRIDER_TEST_POSTFIX names no Postfix; nothing was sent");
        return;
    };
    let package = Package::at(folder.into()).unwrap();
    if let Err(why) = package.may_serve() {
        eprintln!("SKIPPED: {why}; nothing was sent");
        return;
    }
    let sink = Sink::start().await;
    let postfix = Postfix::start(&package, Then::Pass { to: sink.address.port(), login: None });
    let done = run(postfix.address, probes()).await;
    let said = done.iter().map(|(.., said)| said).sum();
    sink.wait_for(said).await;
    while postfix.queued() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    judge(&done, &arrived(&sink));
}
