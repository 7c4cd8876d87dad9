//! Sessions that are open while the configuration changes.

use crate::house::{BASE, House, id, letter, log_in, maildir};

/// `home.test` with everything for one target.
const CAUGHT: &str = "catchall = \"box\"\n";

fn with_catchall(more: &str) -> String {
    BASE.replace("[domains.\"home.test\"]\n", &format!("[domains.\"home.test\"]\n{CAUGHT}")) + more
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_judged_by_the_configuration_that_held_at_its_mail() {
    let house = House::start("[aliases]\n\"old@home.test\" = \"box\"\n").await;
    let mut open = house.client("mx").await;
    open.command("MAIL FROM:<a@far.test>", "250").await.unwrap();
    open.command("RCPT TO:<old@home.test>", "250").await.unwrap();
    open.command("DATA", "354").await.unwrap();
    let mut half = house.client("mx").await;
    half.command("MAIL FROM:<a@far.test>", "250").await.unwrap();

    house.takes("[aliases]\n\"new@home.test\" = \"box\"\n").await;
    // Also what comes before the final dot.
    half.command("RCPT TO:<new@home.test>", "550").await.unwrap();
    half.command("RCPT TO:<old@home.test>", "250").await.unwrap();
    half.command("DATA", "354").await.unwrap();
    for client in [&mut open, &mut half] {
        let queued = client.say(&format!("{}.", letter("a@far.test", "old@home.test"))).await.unwrap();
        house.wait_done(id(&queued)).await;
        // The next message goes by what holds now.
        client.command("MAIL FROM:<a@far.test>", "250").await.unwrap();
        client.command("RCPT TO:<old@home.test>", "550").await.unwrap();
        client.command("RCPT TO:<new@home.test>", "250").await.unwrap();
        client.command("QUIT", "221").await.unwrap();
    }
    assert_eq!(maildir(&house.path("box")).len(), 2);
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_logged_in_goes_on_unless_the_account_has_changed() {
    let accounts = |lines: &[&str]| format!("[accounts.app]\n{}\n", lines.join("\n"));
    let house = House::start(&accounts(&["password = \"one\""])).await;
    let mut client = house.logged_in("app", "one").await;
    let mail = "MAIL FROM:<app@home.test>";
    house.takes(&accounts(&["password = \"one\"", "label = \"The app\""])).await;
    client.command(mail, "250").await.unwrap();
    client.command("RSET", "250").await.unwrap();

    for changed in [
        accounts(&["password = \"two\""]),
        accounts(&["password = \"one\"", "active = false"]),
        "[accounts.other]\npassword = \"one\"\n".to_owned(),
    ] {
        let mut under_way = house.logged_in("app", "one").await;
        under_way.command(mail, "250").await.unwrap();
        under_way.command("RCPT TO:<you@far.test>", "250").await.unwrap();
        let mut client = house.logged_in("app", "one").await;
        house.takes(&changed).await;
        client.command(mail, "421").await.unwrap();
        // What had begun ends.
        under_way.command("DATA", "354").await.unwrap();
        let queued = under_way.say(&format!("{}.", letter("app@home.test", "you@far.test"))).await.unwrap();
        assert!(queued.starts_with("250"), "{queued}");
        under_way.command(mail, "421").await.unwrap();
        let mut again = house.client("submission").await;
        log_in(&mut again, "app", "one", "535").await;
        house.takes(&accounts(&["password = \"one\""])).await;
        // A session may log in again over the same connection once it has said hello.
        log_in(&mut again, "app", "one", "235").await;
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_password_counts_at_once_and_the_old_one_no_more() {
    let account = |password: &str| format!("[accounts.app]\npassword = \"{password}\"\n");
    let house = House::start(&account("one")).await;
    let mut client = house.logged_in("app", "one").await;
    client.command("QUIT", "221").await.unwrap();
    let changes = house.takes(&account("two")).await;
    assert_eq!(changes, ["accounts.app.password: changed"]);
    let mut client = house.client("submission").await;
    log_in(&mut client, "app", "one", "535").await;
    log_in(&mut client, "app", "two", "235").await;
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_for_the_next_message_of_an_open_session() {
    let house = House::start_text(&with_catchall("")).await;
    let mut client = house.client("mx").await;
    house
        .takes_text(&with_catchall("").replace("[limits]", "[limits]\nmax_size = \"10KiB\"\nmax_recipients = 1"))
        .await;
    client.command("MAIL FROM:<a@far.test> SIZE=20000", "552").await.unwrap();
    client.command("MAIL FROM:<a@far.test>", "250").await.unwrap();
    client.command("RCPT TO:<a@home.test>", "250").await.unwrap();
    client.command("RCPT TO:<b@home.test>", "452").await.unwrap();
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_name_is_said_in_the_next_greeting_and_hello() {
    let house = House::start("").await;
    let mut open = house.client("mx").await;
    house.takes_text(&BASE.replace("mail.home.test", "other.home.test")).await;
    let hello = open.command("EHLO client.test", "250").await.unwrap();
    assert!(hello.starts_with("250-other.home.test"), "{hello}");
    house.stop().await;
}
