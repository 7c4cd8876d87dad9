//! Mailboxes read by POP3, and what becomes of their messages here.

use super::house::*;

use super::remote::Remotes;
use postrider::intake::fetch::Ran;
use postrider::queue::record::{Message, Recipient, Status as Queued};

#[tokio::test]
async fn pop3_deletes_what_is_queued_and_reads_nothing_twice() {
    // The connection breaks before QUIT is answered: the server keeps both.
    let first = [
        POP_IN,
        &pop_list(&["a", "b"]),
        &retr(1, &message("one")),
        "C: DELE 1\nS: +OK\n",
        &retr(2, &message("two").replace("Hello.", "..Hello.")),
        "C: DELE 2\nS: +OK\nC: QUIT\ndrop\n",
    ]
    .concat();
    let second = [
        POP_IN,
        &pop_list(&["a", "b", "c"]),
        "C: DELE 1\nS: +OK\nC: DELE 2\nS: +OK\n",
        &retr(3, &message("three")),
        "C: DELE 3\nS: +OK\nC: QUIT\nS: +OK bye\ngone\n",
    ]
    .concat();
    let third = [POP_IN, &pop_list(&[]), "C: QUIT\nS: +OK bye\ngone\n"].concat();
    let remotes = Remotes::play(&[&[first, second, third].join("---\n")]).await;
    let site = pop_site(&format!("{TO_SALES}after = \"delete\"\n"));
    let house = site.open(&remotes, START).await;
    let ran = house.run().await;
    assert!(ran.error.is_some() && ran.fetched == 2, "{ran:?}");
    drop(house);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 1, fetched: 1, ..Ran::default() });
    assert_eq!(house.run().await, Ran::default());
    assert_eq!(house.subjects(), ["one", "three", "two"]);
    let (two, _) = house.queued().into_iter().find(|(message, _)| message.subject == "two").unwrap();
    assert!(house.body(&two).ends_with("\r\n\r\n.Hello.\r\n"));
    remotes.finish().await;
}

#[tokio::test]
async fn a_pop3_server_without_uidl_is_read_by_header_and_size() {
    let list =
        "C: LIST\nS: +OK\nS: 1 200\nS: .\nC: UIDL\nS: -ERR no\nC: TOP 1 0\nS: +OK\nS: Subject: one\nS> \\r\\n\nS: .\n";
    let first = [POP_IN, list, &retr(1, &message("one")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let second = [POP_IN, list, "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&format!("{first}---\n{second}")]).await;
    let house = pop_site(TO_SALES).open(&remotes, START).await;
    assert_eq!(house.run().await.fetched, 1);
    assert_eq!(house.run().await, Ran::default());
    remotes.finish().await;
}

#[tokio::test]
async fn pop3_servers_that_break_off_or_talk_nonsense_are_given_up() {
    let listed = [POP_IN, &pop_list(&["a"])].concat();
    for script in [
        "drop\n".to_owned(),
        "S: 220 this is SMTP\ngone\n".to_owned(),
        "S: -ERR [SYS/TEMP] later\ngone\n".to_owned(),
        format!("S: +OK {}\ngone\n", "x".repeat(9000)),
        "S: +OK hello\nC: USER box\nS: +OK\nC: PASS hunter2\nS: -ERR hunter2 is wrong\ngone\n".to_owned(),
        format!("{POP_IN}C: LIST\ndrop\n"),
        format!("{POP_IN}C: LIST\nS: +OK\nS: what\ngone\n"),
        format!("{POP_IN}C: LIST\nS: +OK\nS: 1 200\ndrop\n"),
        format!("{POP_IN}C: LIST\nS: +OK\nS: .\nC: UIDL\nS: +OK\nS: 1\ngone\n"),
        format!("{listed}C: RETR 1\ndrop\n"),
        format!("{listed}C: RETR 1\nS: +OK\nS: Subject: one\nS> \\r\\n\ndrop\n"),
    ] {
        let remotes = Remotes::play(&[&script]).await;
        let house = pop_site(TO_SALES).open(&remotes, START).await;
        let error = house.run().await.error.unwrap_or_else(|| panic!("{script}"));
        assert!(!error.contains("hunter2"), "{error}");
        assert!(house.queued().is_empty());
        remotes.finish().await;
    }
}

/// Limits and loops hold what was fetched: whoever sent it is gone.
#[tokio::test]
async fn what_others_would_be_refused_is_held() {
    let looping = format!("Received: x\r\nDelivered-To: sales@own.test\r\n{}", message("loop"));
    let hops = format!("{}{}", "Received: x\r\n".repeat(60), message("hops"));
    let doubled = format!("From: b@far.test\r\n{}", message("doubled"));
    let stranger = message("stranger").replace("sales@own.test", "b@far.test");
    let script = [
        POP_IN,
        &pop_list(&["a", "b", "c", "d", "e"]),
        &retr(1, &looping),
        &retr(2, &hops),
        &retr(3, &stranger),
        &retr(4, &message("good")),
        &retr(5, &doubled),
        "C: QUIT\nS: +OK\ngone\n",
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let house = pop_site("").open(&remotes, START).await;
    let ran = house.run().await;
    assert_eq!((ran.fetched, ran.left.len(), ran.error.as_deref()), (4, 1, None), "{ran:?}");
    assert!(ran.left[0].contains("names no address of ours"), "{ran:?}");
    let held = |(message, recipients): (Message, Vec<Recipient>)| {
        (message.subject, matches!(recipients[0].status, Queued::Held { .. }))
    };
    let mut held: Vec<(String, bool)> = house.queued().into_iter().map(held).collect();
    held.sort_unstable();
    assert_eq!(held, ["doubled", "good", "hops", "loop"].map(|subject| (subject.to_owned(), subject != "good")));
    remotes.finish().await;
}

#[tokio::test]
async fn a_sender_over_the_limit_is_held_and_not_refused() {
    let ids = ["1", "2", "3", "4", "5", "6", "7"];
    let letters: String = (1..=7).map(|number| retr(number, &message(&number.to_string()))).collect();
    let script = [POP_IN, &pop_list(&ids), &letters, "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&script]).await;
    let house = pop_site(TO_SALES).open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 7, fetched: 7, ..Ran::default() });
    let is_held = |recipients: &[Recipient]| matches!(recipients[0].status, Queued::Held { .. });
    assert_eq!(house.queued().iter().filter(|(_, recipients)| is_held(recipients)).count(), 2);
    remotes.finish().await;
}
