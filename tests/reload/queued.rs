//! Mail that is queued while the configuration changes.

use postrider::admin::Backend;
use postrider::admin::{Action, Filter, Selection, filter::Pick};
use postrider::events::Event;

use crate::endpoint::Endpoint;
use crate::house::{BASE, House, comes_in, letter, maildir};
use crate::sink::Sink;
use crate::zone::Zone;

async fn retry_all(house: &House) {
    let selection = Selection { pick: Pick::Matching(Filter::default()), dry_run: false };
    house.app.operator().change(Action::Retry, selection).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_for_a_target_that_is_gone_waits_with_the_reason_until_it_is_back() {
    let alias = "[aliases]\n\"a@home.test\" = \"late\"\n";
    let target = |path: &str| format!("[targets.late]\nkind = \"maildir\"\npath = \"DATA_DIR/{path}\"\n");
    // A folder that cannot be made: the first try fails.
    let house = House::start(&format!("{alias}{}", target("postrider.toml/below"))).await;
    let id = comes_in(&house, "a@home.test").await;
    let deferred = |event: &Event| matches!(event, Event::Deferred { .. });
    house.wait_until(id, |story| story.entries.iter().any(|entry| deferred(&entry.event))).await;

    house.takes("[aliases]\n\"a@home.test\" = \"box\"\n").await;
    retry_all(&house).await;
    let gone = "there is no target late in the configuration any more; add [targets.late] or cancel";
    let tells = |event: &Event| matches!(event, Event::Deferred { why, .. } if why.reason == gone);
    house.wait_until(id, |story| story.entries.iter().any(|entry| tells(&entry.event))).await;
    // What comes in now goes where the alias leads now.
    let second = comes_in(&house, "a@home.test").await;
    house.wait_done(second).await;
    assert_eq!(maildir(&house.path("box")).len(), 1);

    house.takes(&format!("{alias}{}", target("late"))).await;
    retry_all(&house).await;
    house.wait_done(id).await;
    assert_eq!(maildir(&house.path("late")).len(), 1);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_wanted_no_more_is_tried_again_when_its_url_is_another() {
    let gone = Endpoint::answering(&["HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"]).await;
    let good = Endpoint::answering(&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"; 2]).await;
    let hook = |url: &str| {
        format!("[aliases]\n\"a@home.test\" = \"hook\"\n[targets.hook]\nkind = \"webhook\"\nurl = \"{url}\"\n")
    };
    let house = House::start(&hook(&gone.url)).await;
    let first = comes_in(&house, "a@home.test").await;
    let held = |event: &Event| matches!(event, Event::Held { .. });
    house.wait_until(first, |story| story.entries.iter().any(|entry| held(&entry.event))).await;
    let second = comes_in(&house, "a@home.test").await;
    house.wait_until(second, |story| story.entries.iter().any(|entry| held(&entry.event))).await;

    let changes = house.takes(&hook(&good.url)).await;
    assert_eq!(changes, ["targets.hook.url: changed"], "what may be a secret is not shown");
    house.wait_done(first).await;
    house.wait_done(second).await;
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_way_out_holds_for_what_is_queued_already() {
    let (sink, zone) = (Sink::start().await, Zone::new().serve().await);
    let dns = format!("[dns]\nnameservers = [\"{}\"]\n", zone.addr());
    let held = format!("{dns}[delivery]\nallow_private_addresses = true\n");
    let house = House::start(&held).await;
    house.app.operator().suspend(postrider::queue::suspend::Suspension::All, true).await.unwrap();
    let mut client = house.client("submission").await;
    let queued = client.send("a@home.test", &["you@far.test"], &letter("a@home.test", "you@far.test")).await.unwrap();
    let host = format!(
        "{dns}[delivery]\nallow_private_addresses = true\ndefault = \"smart_hosts\"\n[smart_hosts.relay]\n\
         host = \"127.0.0.1\"\nport = {}\ntls = \"off\"\n",
        sink.address.port()
    );
    let changes = house.takes(&host).await;
    assert!(changes.iter().any(|change| change == "smart_hosts.relay.host: added, \"127.0.0.1\""), "{changes:?}");
    house.app.operator().suspend(postrider::queue::suspend::Suspension::All, false).await.unwrap();
    house.wait_done(crate::house::id(&queued)).await;
    assert_eq!(sink.count(), 1);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_account_has_sent_today_counts_under_other_limits() {
    let account = |limit: &str| format!("[accounts.app]\npassword = \"one\"\n{limit}");
    let held = "hold = true\n";
    let house = House::start(&account(&format!("daily_limit = 3\n{held}"))).await;
    let letter = letter("app@home.test", "you@far.test");
    let mut client = house.logged_in("app", "one").await;
    for _ in 0..2 {
        let reply = client.send("app@home.test", &["you@far.test"], &letter).await.unwrap();
        assert!(reply.starts_with("250"), "{reply}");
    }
    house.takes(&account(&format!("daily_limit = 2\n{held}"))).await;
    client.command("MAIL FROM:<app@home.test>", "250").await.unwrap();
    let full = client.command("RCPT TO:<you@far.test>", "450").await.unwrap();
    assert!(full.contains("daily limit of 2 recipients reached (2 sent)"), "{full}");
    house.takes_text(&format!("{BASE}{}", account(held))).await;
    client.command("RSET", "250").await.unwrap();
    let reply = client.send("app@home.test", &["you@far.test"], &letter).await.unwrap();
    assert!(reply.starts_with("250"), "{reply}");
    house.stop().await;
}
