//! Folders read by IMAP.

use super::house::*;

use super::remote::{Received, Remotes};
use postrider::intake::fetch::Ran;
use postrider::message::Door;

#[tokio::test]
async fn unread_messages_come_in_once_and_are_marked() {
    let one = [
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        &sizes(4, "3:4", &[3, 4]),
        &fetched(5, 3, &format!("Return-Path: <ann@far.test>\r\nDelivered-To: box@hoster.test\r\n{}", message("one"))),
        &seen(6, 3),
        &fetched(7, 4, &message("two").replace("\r\n", "\n")),
        &seen(8, 4),
        &pruned(9, "3:4", &[3, 4]),
        &out(10),
    ]
    .concat();
    let two = [IMAP_IN, "C: p2 SELECT \"INBOX\"\nS: * 0 EXISTS\nS: * OK [UIDVALIDITY 7] v\nS: p2 OK done\n", &out(3)]
        .concat();
    let remotes = Remotes::play(&[&format!("{one}---\n{two}")]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 2, fetched: 2, ..Ran::default() });
    assert_eq!(house.run().await, Ran::default());
    assert_eq!(house.subjects(), ["one", "two"]);
    let (first, recipients) = house.queued().into_iter().find(|(message, _)| message.subject == "one").unwrap();
    assert_eq!(first.mail_from.to_string(), "ann@far.test");
    assert_eq!(first.origin.door, Door::Fetch { account: "box".to_owned() });
    assert!(first.findings.is_some(), "it was checked");
    assert_eq!(recipients[0].alias.as_ref().unwrap().to_string(), "sales@own.test");
    let body = house.body(&first);
    assert!(body.contains("with fetch id") && body.ends_with("\r\n\r\nHello.\r\n"), "{body}");
    assert!(!body.contains("hoster.test") && !body.contains("Return-Path"), "{body}");
    let status = house.status();
    assert_eq!((status.fetched, status.state.as_str(), status.last_error), (2, "waiting", None));
    assert_eq!(status.next_run, Some(START + 5 * MINUTE));
    remotes.finish().await;
}

/// Each row: where the connection breaks in the first run; what the second one then sees.
#[tokio::test]
async fn a_connection_that_breaks_anywhere_loses_nothing_and_doubles_nothing() {
    let opened = [IMAP_IN, &select(7, 5, &[3, 4])].concat();
    let listed = [opened.as_str(), &sizes(4, "3:4", &[3, 4])].concat();
    let content = message("one");
    let half = format!(
        "{}{}drop\n",
        asked(5, 3),
        bytes(&format!("* 1 FETCH (UID 3 BODY[] {{{}}}\r\nSubject: o", content.len()))
    );
    let read = [listed.as_str(), &fetched(5, 3, &content)].concat();
    let whole = |from: u32| {
        [fetched(from, 3, &content), seen(from + 1, 3), fetched(from + 2, 4, &message("two")), seen(from + 3, 4)]
            .concat()
    };
    let again = [&listed, &whole(5)].map(String::as_str).concat() + &pruned(9, "3:4", &[3, 4]) + &out(10);
    // The one that the connection broke at comes last.
    let other_first = [
        opened.as_str(),
        &sizes(4, "4", &[4]),
        &fetched(5, 4, &message("two")),
        &seen(6, 4),
        &sizes(7, "3", &[3]),
        &fetched(8, 3, &content),
        &seen(9, 3),
        &pruned(10, "3:4", &[3, 4]),
        &out(11),
    ]
    .concat();
    let unmarked = [
        opened.as_str(),
        &seen(4, 3),
        &sizes(5, "4", &[4]),
        &fetched(6, 4, &message("two")),
        &seen(7, 4),
        &pruned(8, "3:4", &[3, 4]),
        &out(9),
    ]
    .concat();
    for (at, first, second) in [
        ("at once", "drop\n".to_owned(), &again),
        ("in the greeting", "S> * OK [CAPA\ndrop\n".to_owned(), &again),
        ("at the login", "S: * OK hello\nC: p1 CAPABILITY\ndrop\n".to_owned(), &again),
        ("behind the folder", format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\ndrop\n"), &again),
        ("in the list", format!("{opened}drop\n"), &again),
        ("before the content", format!("{listed}{}drop\n", asked(5, 3)), &other_first),
        ("in the content", format!("{listed}{half}"), &other_first),
        ("before it is marked", format!("{read}C: p6 ...\ndrop\n"), &unmarked),
    ] {
        let remotes = Remotes::play(&[&format!("{first}---\n{second}")]).await;
        let site = imap_site(TO_SALES);
        let house = site.open(&remotes, START).await;
        let ran = house.run().await;
        assert!(ran.error.is_some(), "{at}: {ran:?}");
        let status = house.status();
        assert_eq!((status.state.as_str(), status.next_run), ("failing", Some(START + 5 * MINUTE)), "{at}");
        // It starts anew: what it knows is on disk.
        drop(house);
        let house = site.open(&remotes, START + 5 * MINUTE).await;
        let ran = house.run().await;
        assert_eq!(ran.error, None, "{at}: {ran:?}");
        assert_eq!(house.subjects(), ["one", "two"], "{at}");
        assert_eq!(house.status().state, "waiting", "{at}");
        assert_eq!(remotes.finish().await, [Received { connections: 2, contents: Vec::new() }], "{at}");
    }
}

#[tokio::test]
async fn what_the_server_does_not_do_stops_only_that() {
    // No to one message, three times; then it is left, and the postmaster told once.
    let no = |tag: u32| format!("{}S: p{tag} NO [UNAVAILABLE] broken\n", asked(tag, 3));
    let other = |tag: u32| format!("{}{}", fetched(tag, 4, &message("two")), seen(tag + 1, 4));
    let end = |from: u32, set: &str| format!("{}{}", pruned(from, set, &[3, 4]), out(from + 1));
    let opened = [IMAP_IN, &select(7, 5, &[3, 4])].concat();
    let alone = [IMAP_IN, &select(7, 5, &[3])].concat();
    let script = [
        format!("{opened}{}{}{}{}", sizes(4, "3:4", &[3, 4]), no(5), other(6), end(8, "3:4")),
        format!("{alone}{}{}{}", sizes(4, "3", &[3]), no(5), out(6)),
        format!("{alone}{}{}{}", sizes(4, "3", &[3]), no(5), out(6)),
    ]
    .join("---\n");
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 2, fetched: 1, failed: 1, ..Ran::default() });
    assert_eq!(house.run().await, Ran { found: 1, failed: 1, ..Ran::default() });
    assert_eq!(house.notices(), 0);
    let ran = house.run().await;
    assert!(ran.left[0].contains("UID 3 in INBOX") && ran.left[0].contains("broken"), "{ran:?}");
    assert_eq!((house.notices(), house.status().left, house.subjects()), (1, 1, vec!["two".to_owned()]));
    remotes.finish().await;
}

#[tokio::test]
async fn what_is_too_large_stays_and_is_told_once() {
    let large = "S: * 1 FETCH (UID 3 RFC822.SIZE 9999999)\nS: * 2 FETCH (UID 4)\nS: p4 OK done\n";
    // The second one says nothing of its size beforehand.
    let content = format!("{}{}", message("two"), "x\r\n".repeat(400_000));
    let script = [
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        "C: p4 UID FETCH 3:4 (UID RFC822.SIZE)\n",
        large,
        &format!("{}S: * 1 FETCH (UID 4 BODY[] {{{}}}\n", asked(5, 4), content.len()),
        &bytes(&message("two")),
        "S* x 400000\n",
        "S: )\nS: p5 OK done\n",
        &pruned(6, "3:4", &[3, 4]),
        &out(7),
        "---\n",
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        &out(4),
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    let ran = house.run().await;
    assert_eq!((ran.fetched, ran.left.len(), ran.error.as_deref()), (0, 2, None));
    assert!(ran.left.iter().all(|left| left.contains("limits.max_size")), "{ran:?}");
    assert_eq!(house.notices(), 1);
    house.clock.advance(5 * MINUTE);
    // Not by hand, which would try them again.
    let watched = tokio::spawn(house.fetcher.clone().watch("box".to_owned()));
    remotes.finish().await;
    house.stop.cancel();
    watched.await.unwrap();
    assert_eq!((house.notices(), house.queued().len()), (1, 0));
}

#[tokio::test]
async fn a_large_message_goes_through_in_pieces() {
    let lines = 200_000;
    let head = message("large");
    let size = head.len() + 3 * lines;
    let script = [
        IMAP_IN,
        &select(7, 5, &[3]),
        &sizes(4, "3", &[3]),
        &format!("{}S: * 1 FETCH (BODY[] {{{size}}}\n", asked(5, 3)),
        &bytes(&head),
        &format!("S* y {lines}\n"),
        "S:  UID 3)\nS: p5 OK done\n",
        &seen(6, 3),
        &pruned(7, "3", &[3]),
        &out(8),
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 1, fetched: 1, ..Ran::default() });
    let (message, _) = house.queued().remove(0);
    assert!(message.streamed.is_some());
    let body = house.body(&message);
    assert!(body.ends_with(&format!("{head}{}", "y\r\n".repeat(lines))), "{} bytes", body.len());
    remotes.finish().await;
}

#[tokio::test]
async fn servers_that_talk_nonsense_are_given_up() {
    for script in [
        "S: 220 this is SMTP\ngone\n".to_owned(),
        "S: * BYE too many\ngone\n".to_owned(),
        format!("S: * OK {}\ngone\n", "x".repeat(300_000)),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS: p2 NO no such folder\ngone\n"),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS: * 1 EXISTS\nS: p2 OK no validity\ngone\n"),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS: * LIST () {{99999999}}\ngone\n"),
        format!("{IMAP_IN}C: p2 SELECT \"INBOX\"\nS* * 1 RECENT 100001\ngone\n"),
        // Far fewer than that, but each of them a large one that would be kept.
        format!(
            "{IMAP_IN}C: p2 SELECT \"INBOX\"\nS* * OK [X {}] y 2000\nS: * OK [UIDVALIDITY 7] v\nS: p2 OK done\ngone\n",
            "x".repeat(10_000)
        ),
        format!("{IMAP_IN}{}C: p4 UID FETCH 3 (UID RFC822.SIZE)\nS: p4 BAD what\ngone\n", select(7, 5, &[3])),
        format!(
            "{IMAP_IN}{}{}{}S: * 1 FETCH (UID 9 BODY[] {{1}}\nS: x)\nS: p5 OK\ngone\n",
            select(7, 5, &[3]),
            sizes(4, "3", &[3]),
            asked(5, 3)
        ),
        "S: * OK hi\nC: p1 CAPABILITY\nS: * CAPABILITY LOGINDISABLED\nS: p1 OK\ngone\n".to_owned(),
        "S: * OK [CAPABILITY IMAP4rev1] hi\nC: p1 LOGIN ...\nS: p1 NO hunter2 is wrong\ngone\n".to_owned(),
    ] {
        let remotes = Remotes::play(&[&script]).await;
        let house = imap_site(TO_SALES).open(&remotes, START).await;
        let ran = house.run().await;
        let error = ran.error.unwrap_or_else(|| panic!("{script}"));
        assert!(!error.contains("hunter2"), "{error}");
        assert!(house.queued().is_empty());
        remotes.finish().await;
    }
}

#[tokio::test]
async fn without_uidplus_and_move_only_our_own_messages_are_touched() {
    let greeting = "S: * OK [CAPABILITY IMAP4rev1 AUTH=PLAIN SASL-IR] hello\nC: p1 AUTHENTICATE PLAIN AGJveABodW50ZXIy\nS: p1 OK in\n\
        C: p2 CAPABILITY\nS: * CAPABILITY IMAP4rev1\nS: p2 OK done\n";
    let selected = select(7, 5, &[3]).replace("p3 ", "p4 ").replace("p2 ", "p3 ");
    let copied = "C: p7 UID COPY 3 \"Done\"\nS: p7 NO [TRYCREATE] no folder\nC: p8 CREATE \"Done\"\nS: p8 OK\nC: p9 UID COPY 3 \"Done\"\nS: p9 OK\n\
        C: p10 UID STORE 3 +FLAGS.SILENT (\\Seen \\Deleted)\nS: p10 OK\n";
    let script = [
        greeting,
        &selected,
        &sizes(5, "3", &[3]),
        &fetched(6, 3, &message("one")),
        copied,
        &pruned(11, "3", &[3]),
        &out(12),
    ]
    .concat();
    let remotes = Remotes::play(&[&script]).await;
    let house = imap_site(&format!("{TO_SALES}after = \"move:Done\"\n")).open(&remotes, START).await;
    assert_eq!(house.run().await, Ran { found: 1, fetched: 1, ..Ran::default() });
    remotes.finish().await;
}

#[tokio::test]
async fn messages_that_are_numbered_anew_are_known_by_their_content() {
    let first = [
        IMAP_IN,
        &select(7, 5, &[3, 4]),
        &sizes(4, "3:4", &[3, 4]),
        &fetched(5, 3, &message("one")),
        &seen(6, 3),
        &fetched(7, 4, &message("two")),
        &seen(8, 4),
        &pruned(9, "3:4", &[3, 4]),
        &out(10),
    ]
    .concat();
    // The third has come meanwhile; the fourth says the same as the first and came afterwards.
    let second = [
        IMAP_IN,
        &select(8, 4, &[1, 2, 3, 4]),
        &sizes(4, "1:4", &[1, 2, 3, 4]),
        &fetched(5, 1, &message("one")),
        &seen(6, 1),
        &fetched(7, 2, &message("two")),
        &seen(8, 2),
        &fetched(9, 3, &message("three")),
        &seen(10, 3),
        &fetched(11, 4, &message("one")),
        &seen(12, 4),
        &out(13),
    ]
    .concat();
    let remotes = Remotes::play(&[&format!("{first}---\n{second}")]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    assert_eq!(house.run().await.fetched, 2);
    drop(house);
    let house = site.open(&remotes, START + 10 * MINUTE).await;
    assert_eq!(house.run().await, Ran { found: 4, fetched: 2, known: 2, ..Ran::default() });
    assert_eq!(house.subjects(), ["one", "one", "three", "two"]);
    remotes.finish().await;
}
