//! Mail from mailboxes elsewhere: the servers play scripts on loopback and break off at each stage; the
//! store, the queue and intake are real, the clock is the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "fetch/by_imap.rs"]
mod by_imap;
#[path = "fetch/by_pop3.rs"]
mod by_pop3;
#[path = "fetch/house.rs"]
mod house;
#[path = "support/remote.rs"]
mod remote;
#[path = "support/zone.rs"]
mod zone;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use postrider::config::{self};
use postrider::dns::Resolver;
use postrider::intake::fetch::collect::Collector;
use postrider::intake::fetch::{Credential, NotRun, Ran, Ways, imap, pop3, wire};
use postrider::queue::suspend::Suspension;
use remote::Remotes;
use tokio::io::AsyncWriteExt;

use house::*;

#[tokio::test]
async fn tls_is_checked_before_the_password_is_said() {
    let imap = "C: p2 LOGIN \"box\" \"hunter2\"\nS: p2 NO no\ngone\n";
    for (protocol, tls, host, script, wanted) in [
        (
            "imap",
            "implicit",
            CERTIFIED,
            format!("starttls\nS: * OK [CAPABILITY X] hi\n{}", imap.replace("p2", "p1")),
            "login",
        ),
        (
            "imap",
            "required",
            CERTIFIED,
            format!(
                "S: * OK [CAPABILITY X] hi\nC: p1 STARTTLS\nS: p1 OK go\nstarttls\nC: p2 CAPABILITY\nS: * CAPABILITY X\nS: p2 OK\n{}",
                imap.replace("p2", "p3")
            ),
            "login",
        ),
        ("imap", "implicit", "other.test", "unfinished\n".to_owned(), "no TLS that can be trusted"),
        ("imap", "required", CERTIFIED, "S: * PREAUTH [CAPABILITY X] in\ngone\n".to_owned(), "skips STARTTLS"),
        (
            "imap",
            "required",
            CERTIFIED,
            "S: * OK [CAPABILITY X] hi\nC: p1 STARTTLS\nS: p1 OK go\nS: * OK more\ngone\n".to_owned(),
            "in clear",
        ),
        (
            "imap",
            "required",
            CERTIFIED,
            "S: * OK [CAPABILITY X] hi\nC: p1 STARTTLS\nS: p1 BAD no\ngone\n".to_owned(),
            "STARTTLS",
        ),
        ("pop3", "implicit", CERTIFIED, "starttls\nS: +OK hi\nC: USER box\nS: -ERR no\ngone\n".to_owned(), "login"),
        (
            "pop3",
            "required",
            CERTIFIED,
            "S: +OK hi\nC: STLS\nS: +OK go\nstarttls\nC: USER box\nS: -ERR no\ngone\n".to_owned(),
            "login",
        ),
        ("pop3", "required", CERTIFIED, "S: +OK hi\nC: STLS\nS: -ERR no\ngone\n".to_owned(), "STLS"),
        ("pop3", "required", "other.test", "S: +OK hi\nC: STLS\nS: +OK go\nunfinished\n".to_owned(), "no TLS"),
    ] {
        let remotes = Remotes::play(&[&script]).await;
        let site = Site::new(&format!("protocol = \"{protocol}\"\nhost = \"{host}\"\ntls = \"{tls}\"\n{TO_SALES}"));
        let error = site.open(&remotes, START).await.run().await.error.unwrap();
        assert!(error.contains(wanted), "{script}: {error}");
        remotes.finish().await;
    }
}

/// No configuration asks for tokens yet; the clients know how.
#[tokio::test]
async fn tokens_are_shown_by_xoauth2() {
    let credential = Credential::Token { username: "box".to_owned(), token: config::Secret("tok".to_owned()) };
    let response = "dXNlcj1ib3gBYXV0aD1CZWFyZXIgdG9rAQE=";
    let script = format!(
        "S: * OK [CAPABILITY IMAP4rev1 AUTH=XOAUTH2] hi\nC: p1 AUTHENTICATE XOAUTH2\nS: + \nC: {response}\nS: + eyJzdGF0dXMiOiI0MDAifQ==\nC: \nS: p1 NO tok is over\ngone\n\
         ---\nS: +OK hi\nC: AUTH XOAUTH2\nS: + \nC: {response}\nS: +OK in\nC: QUIT\nS: +OK\ngone\n"
    );
    let remotes = Remotes::play(&[&script]).await;
    let site = imap_site(TO_SALES);
    let ways = Ways {
        resolver: Resolver::new(&site.config(1).dns).unwrap(),
        tls: Err("not needed".to_owned()),
        trail: None,
        tokens: None,
    };
    let account = site.config(remotes.port).fetch.remove("box").unwrap();
    let open = || wire::connect(&ways, &account);
    let refused = imap::Imap::open(open().await.unwrap(), &ways, "x", account.tls, &credential).await;
    let trouble = refused.map(|_| ()).unwrap_err();
    assert!(matches!(trouble, wire::Trouble::Login(_)) && !trouble.to_string().contains("tok is"), "{trouble}");
    let pop = pop3::Pop3::open(open().await.unwrap(), &ways, "x", account.tls, &credential).await.unwrap();
    pop.close().await.unwrap();
    remotes.finish().await;
}

#[tokio::test]
async fn a_suspended_server_fetches_nothing_until_it_goes_on() {
    let script = [POP_IN, &pop_list(&["a"]), &retr(1, &message("one")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&script]).await;
    let house = pop_site(TO_SALES).open(&remotes, START).await;
    house.queue.suspend(&Suspension::Fetch).await.unwrap();
    let watched = tokio::spawn(house.fetcher.clone().watch("box".to_owned()));
    assert_eq!(house.fetcher.run_now("box", false).await, Err(NotRun::Suspended));
    assert_eq!((house.status().state.as_str(), house.status().next_run), ("suspended", None));
    house.queue.lift(&Suspension::Fetch).await.unwrap();
    house.fetcher.wake();
    remotes.finish().await;
    house.stop.cancel();
    watched.await.unwrap();
    assert_eq!(house.subjects(), ["one"]);
    assert_eq!(house.fetcher.run_now("other", false).await, Err(NotRun::Unknown("other".to_owned())));
}

#[tokio::test]
async fn a_dry_run_changes_nothing() {
    let look = [POP_IN, &pop_list(&["a", "b"]), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&look]).await;
    let house = pop_site(&format!("{TO_SALES}after = \"delete\"\n")).open(&remotes, START).await;
    let ran = house.fetcher.run_now("box", true).await.unwrap();
    assert_eq!(ran, Ran { found: 2, ..Ran::default() });
    assert_eq!((house.status().last_run, house.queued().len()), (None, 0));
    remotes.finish().await;
}

#[tokio::test]
async fn after_five_days_of_failure_nobody_tries_until_a_person_does() {
    let refused = "S: +OK hi\nC: USER box\nS: -ERR no\ngone\n";
    let good = [POP_IN, &pop_list(&[]), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&format!("{refused}---\n{refused}---\n{good}")]).await;
    let site = pop_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    house.run().await;
    assert_eq!((house.status().state.as_str(), house.notices()), ("failing", 0));
    house.clock.advance(5 * 24 * 60 * MINUTE);
    house.run().await;
    assert_eq!((house.status().state.as_str(), house.status().next_run, house.notices()), ("inactive", None, 1));
    let now = house.clock.now();
    drop(house);
    let house = site.open(&remotes, now).await;
    assert_eq!(house.status().state, "inactive", "also after a restart");
    assert_eq!(house.run().await.error, None);
    assert_eq!(house.status().state, "waiting");
    remotes.finish().await;
}

/// A server that says all of this whatever it hears, so many bytes at a time.
fn talking(words: &'static str, at_once: usize) -> wire::Wire {
    let (ours, theirs) = tokio::io::duplex(at_once);
    let (mut heard, mut said) = tokio::io::split(theirs);
    tokio::spawn(async move { tokio::io::copy(&mut heard, &mut tokio::io::sink()).await });
    tokio::spawn(async move {
        said.write_all(words.as_bytes()).await.unwrap();
        said.shutdown().await.unwrap();
    });
    wire::Wire::new(ours)
}

#[tokio::test]
async fn it_is_the_same_however_the_words_of_a_server_are_cut() {
    const CONTENT: &str = "Subject: cut\r\n\r\n.\r\n..two\r\n";
    const IMAP: &str = "* OK [CAPABILITY X] hi {4}\r\np1 OK [CAPABILITY X] in\r\n* 1 EXISTS\r\n* OK [UIDVALIDITY 7] v\r\np2 OK done\r\n\
        * LIST () \"/\" {3}\r\nabc\r\n* SEARCH 3\r\np3 OK done\r\n* 1 FETCH (BODY[] {26}\r\nSubject: cut\r\n\r\n.\r\n..two\r\n UID 3)\r\np4 OK done\r\n";
    const POP: &str = "+OK hi\r\n+OK\r\n+OK in\r\n+OK\r\nSubject: cut\r\n\r\n..\r\n...two\r\n.\r\n";
    let remotes = Remotes::play(&[]).await;
    let site = imap_site(TO_SALES);
    let house = site.open(&remotes, START).await;
    let config = site.config(1);
    let account = &config.fetch["box"];
    let ways = Ways {
        resolver: Resolver::new(&config.dns).unwrap(),
        tls: Err("not needed".to_owned()),
        trail: None,
        tokens: None,
    };
    let credential = Credential::of(&account.login);
    let mut found = Vec::new();
    for at_once in [1, 2, 3, 5, 7, 11, 64, 4096] {
        let mut collector = Collector::new(house.queue.clone(), 1000);
        let mut imap = imap::Imap::open(talking(IMAP, at_once), &ways, "x", account.tls, &credential).await.unwrap();
        let folder = imap.select("INBOX").await.unwrap();
        assert_eq!(imap.search(folder, true).await.unwrap(), (vec![3], true));
        assert!(imap.read(3, &mut collector).await.unwrap());
        found.push(collector.finish().await.unwrap());
    }
    // POP3 servers answer one command at a time; what is too early is no answer.
    let mut collector = Collector::new(house.queue.clone(), 1000);
    let mut pop = pop3::Pop3::open(talking(POP, 1), &ways, "x", account.tls, &credential).await.unwrap();
    pop.read(1, &mut collector).await.unwrap();
    found.push(collector.finish().await.unwrap());
    for collected in found {
        assert_eq!((collected.size, &**collected.content.head()), (CONTENT.len() as u64, CONTENT.as_bytes()));
        assert_eq!(collected.original_header, "Subject: cut\r\n");
    }
}

fn postrider(site: &Site, arguments: &[&str]) -> (bool, String) {
    let config = site.folder.path().join("postrider.toml");
    let mut command = Command::new(env!("CARGO_BIN_EXE_postrider"));
    let output = command.args(arguments).arg("--config").arg(config).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_shows_the_mailboxes_and_reads_one() {
    let first = [POP_IN, &pop_list(&["a"]), &retr(1, &message("one")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let second = [POP_IN, &pop_list(&["a", "b"]), &retr(2, &message("two")), "C: QUIT\nS: +OK\ngone\n"].concat();
    let third = [POP_IN, &pop_list(&["a", "b", "c"]), "C: QUIT\nS: +OK\ngone\n"].concat();
    let remotes = Remotes::play(&[&[first, second, third.clone(), third].join("---\n")]).await;
    let site = pop_site(TO_SALES);
    let text = format!(
        "{}\n[listeners.mx]\nrole = \"mx\"\nbind = [\"127.0.0.1:0\"]\n[checks]\nspf = \"off\"\ndkim = \"off\"\ndmarc = \"off\"\n",
        site.text(remotes.port)
    );
    std::fs::write(site.folder.path().join("postrider.toml"), text).unwrap();
    let mut server = tokio::process::Command::new(env!("CARGO_BIN_EXE_postrider"));
    server.arg("serve").arg("--config").arg(site.folder.path().join("postrider.toml"));
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let list = loop {
        // There is nothing else to wait for from outside.
        let (_, list) = postrider(&site, &["fetch", "list", "--json"]);
        if list.contains("\"last_success\":\"") {
            break list;
        }
        assert!(Instant::now() < deadline, "{list}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(list.contains("\"name\":\"box\"") && list.contains("\"fetched\":1"), "{list}");
    assert_eq!(postrider(&site, &["fetch", "run", "box"]), (true, "1 message fetched.\n".to_owned()));
    assert_eq!(
        postrider(&site, &["fetch", "run", "box", "--dry-run"]),
        (true, "1 message would be fetched.\n".to_owned())
    );
    let (good, json) = postrider(&site, &["fetch", "run", "box", "--dry-run", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(good && json["found"] == 1 && json["fetched"] == 0, "{json}");
    remotes.finish().await;
    let (good, failed) = postrider(&site, &["fetch", "run", "box"]);
    assert!(!good && failed.contains("cannot be connected to"), "{failed}");
    let (_, list) = postrider(&site, &["fetch", "list"]);
    assert!(list.contains("box failing pop3 box at 127.0.0.1") && list.contains("2 fetched, 0 left"), "{list}");
    let (good, unknown) = postrider(&site, &["fetch", "run", "bax"]);
    assert!(
        !good && unknown.contains("no [fetch] account named \"bax\"") && unknown.contains("there are: box"),
        "{unknown}"
    );
    assert!(postrider(&site, &["suspend", "--fetch"]).0);
    let (good, suspended) = postrider(&site, &["fetch", "run", "box"]);
    assert!(!good && suspended.contains("postrider resume --fetch"), "{suspended}");
    server.kill().await.unwrap();
}
