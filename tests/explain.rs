//! `postrider explain ID`: for each thing that can hold a message up, a real server is made to hold one up by
//! it, and has to name it, with the setting. What became of messages that are done, and the command itself.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "support/client.rs"]
mod client;
#[path = "support/endpoint.rs"]
mod endpoint;
#[path = "explain/held.rs"]
mod held;
#[path = "explain/house.rs"]
mod house;
#[path = "support/remote.rs"]
mod remote;
#[path = "support/server.rs"]
mod server;
#[path = "support/sink.rs"]
mod sink;
#[path = "support/zone.rs"]
mod zone;

use std::process::{Command, Stdio};

use crate::sink::Sink;
use bytes::Bytes;
use house::*;
use postrider::admin::explain::Condition;
use postrider::admin::{Backend, Cause};
use postrider::events::Event;
use postrider::message::{Address, Content, Door, Draft, Envelope, MessageId, Origin, ReversePath};
use postrider::queue::suspend::Suspension;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_has_suspended_is_named_with_how_to_resume_it() {
    let sink = Sink::start().await;
    let house = House::new(sink.address.port(), "").await;
    house.suspend(Suspension::Stream("bulk".into()), true).await;
    let id = house.submit("news", "you@far.test").await;
    let explained = house.wait_for(id, Cause::Suspended).await;
    holds(&explained, "streams.bulk.exempt_from_suspend", &["the stream bulk is suspended since 2027-"]);
    assert_eq!(commands(&explained)[0], "postrider resume --stream bulk");
    assert_eq!((explained.state, explained.next, explained.attempts), (Condition::Waiting, None, 0));
    // Where it would go stands there all the same.
    assert!(explained.then.iter().any(|line| line == "mx.far.test: TLS if it is offered"), "{explained:#?}");

    house.suspend(Suspension::Stream("bulk".into()), false).await;
    house.suspend(Suspension::All, true).await;
    let other = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(other, Cause::Suspended).await;
    holds(&explained, "streams.transactional.exempt_from_suspend", &["all sending is suspended"]);
    assert_eq!(commands(&explained)[0], "postrider resume");
    house.suspend(Suspension::All, false).await;
    house.server.wait_done(other).await;
    house.server.wait_done(id).await;
    house.server.stop().await;
}

const RELAY: &str = "default = \"smart_hosts\"\n[sender]\ndefault_from = \"me@home.test\"\n[smart_hosts.relay]\n\
                     host = \"127.0.0.1\"\ntls = \"off\"\nfrom_filter = [\"home.test\"]\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_smart_host_is_named_by_what_is_pinned_there_and_by_what_is_not() {
    let sink = Sink::start().await;
    let port = sink.address.port();
    let more = format!("{RELAY}port = {port}\n[streams.bulk]\nsmart_host = \"relay\"\n");
    let house = House::new(port, &more).await;
    house.suspend(Suspension::SmartHost("relay".into()), true).await;
    let (pinned, other) = (house.submit("news", "you@far.test").await, house.submit("app", "you@far.test").await);
    let explained = house.wait_for(pinned, Cause::Suspended).await;
    holds(&explained, "streams.bulk.smart_host", &["the smart host relay is suspended"]);
    assert!(explained.then[0].contains("the stream bulk is for that host alone"), "{explained:#?}");
    assert!(explained.then[1].ends_with("; suspended"), "{explained:#?}");
    let explained = house.wait_for(other, Cause::Suspended).await;
    holds(&explained, "smart_hosts.relay", &["the smart host relay is suspended"]);
    assert_eq!(explained.state, Condition::Held);
    assert_eq!(commands(&explained)[0], "postrider resume --smart-host relay");
    assert!(explained.then[0].contains("its from_filter names the domain of <me@home.test>"), "{explained:#?}");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_stream_are_named_with_when_it_goes_on() {
    let sink = Sink::start().await;
    let more = "[streams.bulk]\ndaily_limit = 1\n[streams.transactional]\nblock_size = 1\nblock_pause = \"1h\"\n";
    let house = House::new(sink.address.port(), more).await;
    for account in ["news", "app"] {
        let first = house.submit(account, "you@far.test").await;
        house.server.wait_done(first).await;
    }
    let second = house.submit("news", "you@far.test").await;
    let explained = house.wait_for(second, Cause::DailyLimit).await;
    holds(&explained, "streams.bulk.daily_limit", &["1 recipients of a day"]);
    assert_eq!(explained.next.unwrap() % (24 * HOUR), 0, "midnight");
    let second = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(second, Cause::BlockPause).await;
    holds(&explained, "streams.transactional.block_pause", &["pauses behind a block of 1"]);
    assert_eq!(explained.next, Some(START + HOUR));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_turn_us_away_hold_up_what_comes_after() {
    let remotes = far("S: 421 4.3.2 too busy today\ndrop", 1).await;
    let house = House::new(remotes.port, "[destinations.\"mx.far.test\"]\nconnections = 1\n").await;
    let first = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(first, Cause::Reply).await;
    holds(&explained, "delivery.retry.schedule", &["421 4.3.2 too busy today"]);
    assert_eq!(explained.last.unwrap().reply.unwrap().code, 421);
    assert!(explained.next.unwrap() >= START + MINUTE / 2 && explained.attempts == 1);
    // The clock stands still, and so does the pause of five seconds.
    let second = house.submit("app", "other@far.test").await;
    let explained = house.wait_for(second, Cause::BackOff).await;
    holds(
        &explained,
        "destinations.\"mx.far.test\".connections",
        &["mx.far.test has turned us away", "too busy today"],
    );
    assert_eq!((explained.next, explained.attempts), (Some(START + 5_000), 0));
    assert!(commands(&explained).contains(&format!("postrider queue retry {second}").as_str()));
    remotes.finish().await;
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_is_used_up_is_named_with_its_section() {
    let sink = Sink::start().await;
    let house = House::new(sink.address.port(), "[destinations.\"far.test\"]\nrate = \"1/h\"\n").await;
    let first = house.submit("app", "you@far.test").await;
    house.server.wait_done(first).await;
    let second = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(second, Cause::Rate).await;
    holds(&explained, "destinations.\"far.test\".rate", &["at most 1 messages in 3600 s"]);
    assert!(explained.next.unwrap() > START + HOUR - MINUTE, "{explained:#?}");
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_the_tls_that_is_demanded_is_named_with_who_demands_it() {
    let sink = Sink::start().await;
    let house = House::new(sink.address.port(), "[delivery.tls]\npolicy = \"required\"\n").await;
    let id = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(id, Cause::TlsPolicy).await;
    holds(&explained, "delivery.tls.policy", &["a TLS policy was not met", "mx.far.test", "does not offer TLS"]);
    let demand =
        "mx.far.test: TLS with any certificate, or the mail waits; demanded by delivery.tls.policy = \"required\"";
    assert!(explained.then.iter().any(|line| line == demand), "{explained:#?}");
    tried(&explained, "does not offer TLS");
    assert_eq!(sink.count(), 0);
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_for_the_connections_to_its_servers_says_so() {
    let remotes = far("S: 220 mx.far.test ESMTP\nC: EHLO...\nstall", 1).await;
    let house = House::new(remotes.port, "[destinations.default]\nconnections = 1\n").await;
    let first = house.submit("app", "you@far.test").await;
    let second = house.submit("app", "other@far.test").await;
    let explained = house.wait_for(second, Cause::Connections).await;
    holds(&explained, "destinations.default.connections", &["1 attempts to mx.far.test are under way"]);
    let explained = house.wait_for(first, Cause::UnderWay).await;
    assert_eq!((explained.why.as_str(), explained.key), ("It is being tried now at mx.far.test: try 1", None));
    house.server.app.stop(std::future::ready(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_may_have_arrived_and_one_that_is_to_go_later_say_so() {
    let script = "S: 220 mx.far.test ESMTP\nC: EHLO...\nS: 250 mx.far.test\nC: MAIL...\nS: 250 ok\nC: RCPT...\nS: 250 ok\n\
                  C: DATA\nS: 354 go on\ncontent\ndrop";
    let remotes = far(script, 1).await;
    let house = House::new(remotes.port, "").await;
    let id = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(id, Cause::Unsure).await;
    holds(&explained, "delivery.retry.schedule", &["may have arrived"]);
    tried(&explained, "mx.far.test");
    remotes.finish().await;

    let sender = ReversePath::Address(Address::parse("me@home.test").unwrap());
    let mut envelope = Envelope::new(sender, [Address::parse("you@far.test").unwrap()]);
    envelope.not_before = Some(START + HOUR);
    let content = Content::from(Bytes::from_static(b"From: <me@home.test>\r\nSubject: x\r\n\r\nhello\r\n"));
    let origin = Origin { door: Door::Admin, account: None, peer: None };
    let draft = Draft { envelope, content, origin };
    let id = house.server.app.operator().submit(draft, None).await.unwrap().id;
    let explained = house.wait_for(id, Cause::NotBefore).await;
    assert!(explained.why.contains("its sender wanted it to go at 2027-"), "{explained:#?}");
    assert_eq!((explained.next, explained.key), (Some(START + HOUR), None));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_smart_host_that_does_not_take_our_login_is_named_with_its_password() {
    let script = "S: 220 relay.test ESMTP\nC: EHLO...\nS: 250-relay.test\nS: 250 AUTH PLAIN\nC: AUTH PLAIN...\n\
                  S: 535 5.7.8 wrong password\ndrop";
    let remotes = far(script, 1).await;
    let more = format!("{RELAY}port = {}\nusername = \"me\"\npassword = \"hush-hush\"\n", remotes.port);
    let house = House::new(remotes.port, &more).await;
    let id = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(id, Cause::SmartHostLogin).await;
    holds(&explained, "smart_hosts.relay.password", &["does not take our login", "535 5.7.8 wrong password"]);
    assert_eq!(commands(&explained)[0], "postrider smart-host test relay");
    assert!(explained.then[1].contains("left alone until") && explained.then[1].contains("login me"), "{explained:#?}");
    assert!(!serde_json::to_string(&house.explain(id).await).unwrap().contains("hush-hush"));
    remotes.finish().await;
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_on_the_way_are_told_apart() {
    let remotes = far(&at_rcpt("450 4.2.1 mailbox busy"), 1).await;
    let house = House::new(remotes.port, "").await;
    let id = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(id, Cause::Reply).await;
    holds(&explained, "delivery.retry.schedule", &["refused it for now", "450 4.2.1 mailbox busy"]);
    tried(&explained, "450 4.2.1 mailbox busy");
    remotes.finish().await;
    let lost = house.submit("app", "you@lost.test").await;
    let explained = house.wait_for(lost, Cause::Dns).await;
    holds(&explained, "dns.nameservers", &["the name servers gave no answer"]);
    tried(&explained, "MX of lost.test");
    assert!(explained.then.iter().any(|line| line.starts_with("it waits: ")), "{explained:#?}");
    // Nobody listens there any more.
    let id = house.submit("app", "other@far.test").await;
    let explained = house.wait_for(id, Cause::NoConnection).await;
    holds(&explained, "delivery.retry.schedule", &["no connection was to be had"]);
    tried(&explained, "mx.far.test");
    house.server.stop().await;

    let remotes = far(&at_rcpt("450 4.7.1 Greylisted, come back in 5 minutes"), 1).await;
    let house = House::new(remotes.port, "").await;
    let id = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(id, Cause::Greylisted).await;
    holds(&explained, "delivery.retry.schedule", &["(greylisting)", "come back in 5 minutes"]);
    tried(&explained, "450 4.7.1 Greylisted");
    remotes.finish().await;
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_captured_stays_and_says_so() {
    let house = House::new(nobody(), "default = \"capture\"\n").await;
    let id = house.submit("app", "you@far.test").await;
    let explained = house.wait_for(id, Cause::Captured).await;
    holds(&explained, "delivery.default", &["It was captured at 2027-"]);
    assert_eq!((explained.state, explained.then.len()), (Condition::Captured, 0));
    house.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_is_told_in_a_sentence_for_each_recipient() {
    let sink = Sink::start().await;
    let house = House::new(sink.address.port(), "").await;
    let good = house.submit("app", "you@far.test").await;
    house.server.wait_done(good).await;
    let explanation = house.explain(good).await;
    assert!(!explanation.queued && explanation.recipients.len() == 1, "{explanation:#?}");
    let done = &explanation.recipients[0];
    assert_eq!((done.state, done.cause), (Condition::Done, Cause::Delivered));
    assert!(done.why.starts_with("It was delivered to mx.far.test [127.0.0.1]"), "{}", done.why);
    assert_eq!(explanation.from.unwrap().to_string(), "me@home.test");

    let refused = house.submit("app", "refused@far.test").await;
    house.server.wait_for(refused, |event| matches!(event, Event::Failed { .. })).await;
    let done = house.wait_for(refused, Cause::Failed).await;
    assert!(done.why.contains("failed for good") && done.can.is_empty(), "{done:#?}");
    // One of two is done: what waits comes first.
    let both = house.submit_to("app", &["you@lost.test", "you@far.test"]).await;
    house.server.wait_for(both, |event| matches!(event, Event::Delivered { .. })).await;
    house.wait_for(both, Cause::Dns).await;
    let explanation = house.explain(both).await;
    let causes: Vec<Cause> = explanation.recipients.iter().map(|recipient| recipient.cause).collect();
    assert!(explanation.queued && causes == [Cause::Dns, Cause::Delivered], "{explanation:#?}");
    let other = MessageId::from_u64(77);
    assert!(house.server.app.operator().explain(other).await.unwrap().is_none());
    house.server.stop().await;
}

/// The command against the running server: the sentence, the line of the key in the file, and JSON.
#[tokio::test(flavor = "multi_thread")]
async fn the_command_names_the_line_of_the_setting() {
    let sink = Sink::start().await;
    let house = House::new(sink.address.port(), "[streams.bulk]\ndaily_limit = 1\n").await;
    let first = house.submit("news", "you@far.test").await;
    house.server.wait_done(first).await;
    let second = house.submit("news", "you@far.test").await;
    house.wait_for(second, Cause::DailyLimit).await;
    let file = house.folder.path().join("p.toml");
    let text = format!(
        "hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n[streams.bulk]\ndaily_limit = 1\n",
        house.folder.path().display()
    );
    std::fs::write(&file, text).unwrap();
    let ask = |arguments: Vec<String>| {
        let file = file.clone();
        tokio::task::spawn_blocking(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
            let output = command.arg("explain").arg("--config").arg(file).args(arguments).stdin(Stdio::null()).output();
            let output = output.unwrap();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        })
    };
    let (status, said, complaint) = ask(vec![second.to_string()]).await.unwrap();
    assert_eq!(status, Some(0), "{complaint}");
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], format!("{second} from me@home.test, stream bulk is queued"));
    assert!(lines[1].starts_with("you@far.test: It waits because the stream bulk has had the 1 recipients"), "{said}");
    assert_eq!(lines[2], format!("  setting     streams.bulk.daily_limit ({}:4)", file.display()));
    assert!(lines[3].starts_with("  next try    2027-01-15 00:00:00 UTC, in "), "{said}");
    let (_, json, _) = ask(vec![second.to_string(), "--json".into()]).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let recipient = &json["recipients"][0];
    assert_eq!(recipient["cause"], "daily_limit");
    assert_eq!(recipient["key"], "streams.bulk.daily_limit");
    assert_eq!(recipient["state"], "waiting");
    assert_eq!(recipient["next"], "2027-01-15T00:00:00.000Z");
    let (status, _, complaint) = ask(vec!["0000000000077".into()]).await.unwrap();
    assert_eq!(status, Some(1));
    assert!(complaint.contains("0000000000077"), "{complaint}");
    house.server.stop().await;
    house.clock.advance(1);
}

/// That they are due is not the whole truth.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_says_until_when_the_stream_waits() {
    let sink = Sink::start().await;
    let house = House::new(sink.address.port(), "[streams.bulk]\ndaily_limit = 1\n").await;
    house.server.wait_done(house.submit("news", "you@far.test").await).await;
    let second = house.submit("news", "you@far.test").await;
    house.wait_for(second, Cause::DailyLimit).await;
    let file = house.folder.path().join("p.toml");
    let text = format!("hostname = \"mail.home.test\"\ndata_dir = \"{}\"\n", house.folder.path().display());
    std::fs::write(&file, text).unwrap();
    let ask = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
        command.args(["queue", "retry", "--config"]).arg(&file).args(arguments).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || String::from_utf8(command.output().unwrap().stdout).unwrap())
    };
    let why = "the stream bulk has had the 1 recipients of a day (streams.bulk.daily_limit); it goes on at 2027-01-15T00:00:00";
    let dry = ask(&["--stream", "bulk", "--dry-run"]).await.unwrap();
    let lines: Vec<&str> = dry.lines().collect();
    assert_eq!(lines[0], "1 recipient would be due now; nothing was changed.");
    assert!(lines[1].starts_with(&format!("1 of them waits all the same: {why}")), "{dry}");
    let said = ask(&["--stream", "bulk"]).await.unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[0]), (2, "1 recipient due now."), "{said}");
    assert!(lines[1].starts_with(&format!("1 of them waits all the same: {why}")), "{said}");
    let json: serde_json::Value = serde_json::from_str(&ask(&["--all", "--json"]).await.unwrap()).unwrap();
    assert_eq!((&json["recipients"], &json["waiting"][0]["recipients"]), (&1.into(), &1.into()), "{json}");
    assert!(json["waiting"][0]["why"].as_str().unwrap().starts_with(why), "{json}");

    // What a person has suspended is told as well; where nothing holds it there is nothing to tell.
    house.suspend(Suspension::All, true).await;
    let said = ask(&["--all"]).await.unwrap();
    assert!(said.contains("1 of them waits all the same: ") && said.contains("postrider resume"), "{said}");
    house.suspend(Suspension::All, false).await;
    house.server.stop().await;
}
