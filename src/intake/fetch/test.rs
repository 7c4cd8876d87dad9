//! A mailbox elsewhere tested for a person: the way of a run, leg by leg, up to how many messages there are.
//!
//! Promises: nothing is fetched, marked or deleted, nothing is noted in the store, and no secret is in what is
//! told. A mailbox whose server lets one session in at a time may be found in use by a run of the server.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::Credential;
use super::mailbox::Mailbox;
use super::pop3::Pop3;
use super::wire::{self, Trouble, Ways};
use crate::config::{After, Fetch, FetchProtocol, PopAccount, PopTls};
use crate::trail::{Group, Leg, Mark, Problem, Tested, Trail};

/// A test takes no longer: a person waits for it.
const TEST_MAX: Duration = Duration::from_secs(120);

/// Goes the way of a run of `[fetch.NAME]`.
pub async fn test(ways: &Ways, name: &str, account: &Fetch) -> Tested {
    let said = settings(account.protocol, &account.host, account.port, account.tls);
    let folder = if account.folder.is_empty() { String::new() } else { format!(", folder {}", account.folder) };
    let kept = match &account.after {
        After::Seen => "after = \"seen\"".to_owned(),
        After::Delete => "after = \"delete\"".to_owned(),
        After::Move(folder) => format!("after = \"move:{folder}\""),
        After::Leave => "after = \"leave\"".to_owned(),
    };
    let said = format!("{said}, user {}{folder}, {kept}", account.login.username);
    run(ways, name, account, said, |ways| async move { look(&ways, name, account).await }).await
}

/// Goes as far as a smart host does that names a mailbox in `pop_before_smtp`: to the login.
pub async fn test_login(ways: &Ways, account: &PopAccount) -> Tested {
    let PopAccount { name, host, port, tls, login } = account.clone();
    let said = settings(FetchProtocol::Pop3, &host, port, tls);
    let said = format!("{said}, user {}; for pop_before_smtp only: nothing is fetched", login.username);
    let (folder, after, interval) = (String::new(), After::Leave, Duration::ZERO);
    let protocol = FetchProtocol::Pop3;
    let as_fetched = Fetch { protocol, host, port, tls, login, oauth: None, folder, interval, after, deliver_to: None };
    let account = &as_fetched;
    let log_in = |ways: Ways| async move {
        let wire = wire::connect(&ways, account).await?;
        let pop = Pop3::open(wire, &ways, &account.host, account.tls, &Credential::of(&account.login)).await?;
        pop.close().await
    };
    run(ways, &name, account, said, log_in).await
}

async fn run<F: Future<Output = Result<(), Trouble>>>(
    ways: &Ways,
    name: &str,
    account: &Fetch,
    said: String,
    go: impl FnOnce(Ways) -> F,
) -> Tested {
    let trail = Trail::default();
    trail.mark(Leg::Configuration, Instant::now(), said);
    let ways = Ways { trail: Some(trail.clone()), ..ways.clone() };
    let gone = timeout(TEST_MAX, go(ways)).await;
    let gone = gone.unwrap_or_else(|_| Err(Trouble::connection(format!("no end within {} s", TEST_MAX.as_secs()))));
    let marks = trail.marks();
    let problem = gone.err().map(|trouble| {
        let group = group(&trouble, &marks, account.tls);
        let what = Credential::of(&account.login).without_secrets(&trouble.to_string());
        Problem { group, what, remedy: remedy(group, name, &marks) }
    });
    Tested {
        test: "fetch".to_owned(),
        name: name.to_owned(),
        good: problem.is_none(),
        from: None,
        to: None,
        sent: false,
        marks,
        problem,
    }
}

async fn look(ways: &Ways, name: &str, account: &Fetch) -> Result<(), Trouble> {
    let since = Instant::now();
    let mut mailbox = Mailbox::open(ways, name, account).await?;
    if let Mailbox::Imap { folder, .. } = &mailbox {
        let count = folder.messages;
        ways.mark(Leg::Folder, since, format!("{} is open; it holds {}", account.folder, messages(count as usize)));
    }
    let since = Instant::now();
    let found = mailbox.list(&account.after).await?.len();
    let what = match (account.protocol, &account.after) {
        (FetchProtocol::Imap, After::Leave) => format!("{} to look at", messages(found)),
        (FetchProtocol::Imap, _) => format!("{} not read yet", messages(found)),
        (FetchProtocol::Pop3, _) => format!("{} in the mailbox", messages(found)),
    };
    ways.mark(Leg::Messages, since, what);
    mailbox.close().await
}

fn messages(count: usize) -> String {
    format!("{count} {}", if count == 1 { "message" } else { "messages" })
}

fn settings(protocol: FetchProtocol, host: &str, port: u16, tls: PopTls) -> String {
    let protocol = match protocol {
        FetchProtocol::Imap => "IMAP",
        FetchProtocol::Pop3 => "POP3",
    };
    let tls = match tls {
        PopTls::Off => "off",
        PopTls::Required => "required",
        PopTls::Implicit => "implicit",
    };
    format!("{protocol} at {host} port {port}, tls {tls}")
}

/// By how far it has come.
fn group(trouble: &Trouble, marks: &[Mark], tls: PopTls) -> Group {
    let has = |leg: Leg| marks.iter().any(|mark| mark.leg == leg);
    match trouble {
        Trouble::Login(_) => Group::Login,
        Trouble::Refused(_) => Group::Refused,
        Trouble::Protocol(_) if has(Leg::Auth) => Group::Refused,
        Trouble::Protocol(_) => Group::Unsupported,
        Trouble::Ours(_) | Trouble::Stopped => Group::Other,
        Trouble::Connection(_) if !has(Leg::Dns) => Group::BadHostName,
        Trouble::Connection(_) if !has(Leg::Connect) => Group::NoResponse,
        Trouble::Connection(_) if !has(Leg::Tls) && (tls == PopTls::Implicit || has(Leg::Starttls)) => Group::Tls,
        Trouble::Connection(_) => Group::Disconnected,
    }
}

fn remedy(group: Group, name: &str, marks: &[Mark]) -> String {
    let section = format!("fetch.{name}");
    match group {
        Group::BadHostName => format!("check {section}.host, and that this machine can ask its name servers"),
        Group::NoResponse => format!("check {section}.host and port, and whether a firewall blocks that port"),
        Group::Tls => {
            format!("check that {section}.host is the name in the certificate, and that port and tls fit each other")
        }
        Group::Login => {
            format!("check {section}.username and password, and that the provider allows this protocol for the account")
        }
        Group::Disconnected => format!(
            "check that {section}.port and tls fit each other (993 and 995 want \"implicit\", 143 and 110 \"required\")"
        ),
        Group::Refused if marks.iter().any(|mark| mark.leg == Leg::Auth) => {
            format!("check {section}.folder: it has to be named as the server names it, such as \"INBOX\"")
        }
        Group::Refused => format!("read what the server says; check {section}.username and password"),
        Group::Unsupported => {
            format!("check {section}.protocol, port and tls: this server speaks another protocol there")
        }
        Group::System | Group::Other => "look into the text above, then try again".to_owned(),
    }
}
