//! Reading a folder by IMAP (RFC 9051; servers that know RFC 3501 only will do).
//!
//! Promises: nothing is marked by reading (`BODY.PEEK[]`); messages are named by UID, and only those that
//! we name are marked, moved or expunged; every line, literal and wait is bounded.
//!
//! `frame` cuts what comes in, `answer` understands it, both without I/O. Left out: IDLE, several folders
//! of one account.

pub(crate) mod answer;
pub(crate) mod frame;
mod name;

use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;

use super::collect::Collector;
use super::wire::{Trouble, Ways, Wire};
use super::{Credential, Listed, shown};
use crate::config::{After, PopTls};
use crate::trail::Leg;

use answer::{Answer, Body, Fetched, Status};
use frame::{Framing, Piece};

/// Messages of one search.
const WINDOW: u32 = 10_000;
/// Messages whose sizes are asked for at once, and that are looked for by UID at once.
pub const AT_ONCE: usize = 200;
/// UIDs that are remembered of one folder at once, four bytes each.
const UIDS_MAX: usize = 2_000_000;
/// Answers to one command.
const ANSWERS_MAX: usize = 100_000;
/// Bytes of the answers to one command, as far as they are kept.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Bytes of a literal that is no message: a folder's name, a text.
const SMALL_LITERAL_MAX: u64 = 64 * 1024;
/// Bytes beyond the largest message that are read to no purpose, so that the connection stays good.
const PASSED_OVER_MAX: u64 = 16 * 1024 * 1024;

/// A connection that is logged in.
pub struct Imap {
    wire: Wire,
    framing: Framing,
    commands: u32,
    /// Bytes of the answers to the last command.
    heard: usize,
    capabilities: Vec<String>,
}

/// What the folder is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Folder {
    pub messages: u32,
    pub validity: u32,
    /// UIDs from this one on are given to messages that come from now on.
    pub next: Option<u32>,
}

/// How a command ended.
#[derive(Debug)]
struct End {
    code: Option<String>,
    answers: Vec<Answer>,
}

impl Imap {
    /// `account.tls` implicit: the wire is under TLS already.
    pub async fn open(
        wire: Wire,
        ways: &Ways,
        host: &str,
        tls: PopTls,
        credential: &Credential,
    ) -> Result<Imap, Trouble> {
        let mut imap = Imap { wire, framing: Framing::default(), commands: 0, heard: 0, capabilities: Vec::new() };
        let since = Instant::now();
        let greeting = imap.answer(&mut None).await?;
        if let Answer::Told { text, .. } = &greeting {
            ways.mark(Leg::Banner, since, text.clone());
        }
        let is_in = match greeting {
            Answer::Told { status: Status::Ok, code, .. } => {
                imap.note_capabilities(code.as_deref());
                false
            }
            Answer::Told { status: Status::PreAuth, .. } => true,
            Answer::Bye(text) => return Err(Trouble::connection(format!("the server does not talk to us: {text}"))),
            _ => return Err(Trouble::protocol("this is no IMAP server")),
        };
        if tls == PopTls::Required {
            // Whoever is in the way could say that we are in already (RFC 9051 7.1.4).
            if is_in {
                return Err(Trouble::connection("the server skips STARTTLS"));
            }
            let since = Instant::now();
            imap.command("STARTTLS", "STARTTLS").await?;
            ways.mark(Leg::Starttls, since, "the server is ready for TLS");
            imap.wire = imap.wire.start_tls(ways, host).await?;
            imap.capabilities.clear();
        }
        if imap.capabilities.is_empty() {
            imap.ask_capabilities().await?;
        }
        if !is_in {
            let (since, mechanism) = (Instant::now(), imap.mechanism(credential));
            imap.log_in(credential).await?;
            ways.mark(Leg::Auth, since, format!("logged in by {mechanism}"));
        }
        Ok(imap)
    }

    fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|has| has == capability)
    }

    fn note_capabilities(&mut self, code: Option<&str>) {
        if let Some(("CAPABILITY", list)) = code.and_then(|code| code.split_once(' ')) {
            self.capabilities = answer::capabilities(list);
        }
    }

    async fn ask_capabilities(&mut self) -> Result<(), Trouble> {
        for answer in self.command("CAPABILITY", "CAPABILITY").await?.answers {
            if let Answer::Capability(capabilities) = answer {
                self.capabilities = capabilities;
            }
        }
        Ok(())
    }

    /// What [`Imap::log_in`] does it by.
    fn mechanism(&self, credential: &Credential) -> &'static str {
        match credential {
            Credential::Token { .. } => "XOAUTH2",
            Credential::Password { .. } if self.can("AUTH=PLAIN") => "PLAIN",
            Credential::Password { .. } => "LOGIN",
        }
    }

    async fn log_in(&mut self, credential: &Credential) -> Result<(), Trouble> {
        let done = match credential {
            Credential::Token { .. } => self.authenticate("XOAUTH2", &credential.xoauth2()).await,
            Credential::Password { .. } if self.can("AUTH=PLAIN") => {
                self.authenticate("PLAIN", &credential.plain()).await
            }
            Credential::Password { .. } if self.can("LOGINDISABLED") => {
                return Err(Trouble::protocol("the server takes no password here; is tls as it has to be?"));
            }
            Credential::Password { username, password } => {
                let command = format!("LOGIN {} {}", name::quoted(username)?, name::quoted(&password.0)?);
                self.command(&command, "LOGIN").await
            }
        };
        let end = done.map_err(|trouble| match trouble {
            Trouble::Refused(what) => Trouble::Login(credential.without_secrets(&what)),
            other => other,
        })?;
        self.capabilities.clear();
        self.note_capabilities(end.code.as_deref());
        for answer in end.answers {
            if let Answer::Capability(capabilities) = answer {
                self.capabilities = capabilities;
            }
        }
        if self.capabilities.is_empty() {
            self.ask_capabilities().await?;
        }
        Ok(())
    }

    /// RFC 9051 6.2.2, with the first response in the command where that is offered (RFC 4959).
    async fn authenticate(&mut self, mechanism: &str, response: &[u8]) -> Result<End, Trouble> {
        let response = BASE64_STANDARD.encode(response);
        if self.can("SASL-IR") {
            let command = format!("AUTHENTICATE {mechanism} {response}");
            return self.exchange(&command, "AUTHENTICATE", &[]).await;
        }
        self.exchange(&format!("AUTHENTICATE {mechanism}"), "AUTHENTICATE", &[&response]).await
    }

    /// Opens the folder for reading and marking.
    pub async fn select(&mut self, folder: &str) -> Result<Folder, Trouble> {
        let end = self.command(&format!("SELECT {}", name::mailbox(folder)), "SELECT").await;
        let end = end.map_err(|trouble| match trouble {
            Trouble::Refused(what) => Trouble::protocol(format!("the folder {folder:?} cannot be opened: {what}")),
            other => other,
        })?;
        let (mut messages, mut validity, mut next) = (0, None, None);
        for answer in end.answers {
            match answer {
                Answer::Exists(count) => messages = count,
                Answer::Told { status: Status::Ok, code: Some(code), .. } => {
                    match code.to_ascii_uppercase().split_once(' ') {
                        Some(("UIDVALIDITY", number)) => validity = number.trim().parse().ok(),
                        Some(("UIDNEXT", number)) => next = number.trim().parse().ok(),
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if end.code.is_some_and(|code| code.eq_ignore_ascii_case("READ-ONLY")) {
            tracing::debug!(folder, "the folder may be read only");
        }
        let validity = validity.ok_or_else(|| Trouble::protocol("the server keeps no UIDs for this folder"))?;
        Ok(Folder { messages, validity, next })
    }

    /// The UIDs of the messages that are to be looked at, and whether these are all.
    pub async fn search(&mut self, folder: Folder, unseen_only: bool) -> Result<(Vec<u32>, bool), Trouble> {
        let wanted = if unseen_only { "UNDELETED UNSEEN" } else { "UNDELETED" };
        let mut found = Vec::new();
        let mut from = 1;
        while from <= folder.messages {
            let to = from.saturating_add(WINDOW - 1).min(folder.messages);
            // The sequence numbers only cut a long answer into pieces; what moves meanwhile is found the
            // next time.
            found.extend(self.searched(&format!("UID SEARCH {from}:{to} {wanted}")).await?);
            if found.len() > UIDS_MAX {
                return Ok((found, false));
            }
            let Some(next) = to.checked_add(1) else { break };
            from = next;
        }
        found.sort_unstable();
        found.dedup();
        Ok((found, true))
    }

    /// Those of the UIDs (at most [`AT_ONCE`]) that are in the folder.
    pub async fn still_there(&mut self, uids: &[u32]) -> Result<Vec<u32>, Trouble> {
        self.searched(&format!("UID SEARCH UID {}", set(uids))).await
    }

    async fn searched(&mut self, command: &str) -> Result<Vec<u32>, Trouble> {
        let answers = self.command(command, "UID SEARCH").await?.answers.into_iter();
        let found = answers.filter_map(|answer| match answer {
            Answer::Search(uids) => Some(uids),
            _ => None,
        });
        Ok(found.flatten().collect())
    }

    /// Their sizes, as far as the server tells; those that are gone are not among them.
    pub async fn sizes(&mut self, uids: &[u32]) -> Result<Vec<Listed>, Trouble> {
        let answers = self.command(&format!("UID FETCH {} (UID RFC822.SIZE)", set(uids)), "UID FETCH").await?.answers;
        let listed = answers.into_iter().filter_map(|answer| match answer {
            Answer::Fetch(Fetched { uid: Some(uid), size, .. }) if uids.contains(&uid) => {
                Some(Listed { number: uid, size })
            }
            _ => None,
        });
        let mut listed: Vec<Listed> = listed.collect();
        listed.sort_unstable_by_key(|listed| listed.number);
        listed.dedup_by_key(|listed| listed.number);
        Ok(listed)
    }

    /// The content of one message. False: it is not there any more.
    pub async fn read(&mut self, uid: u32, into: &mut Collector) -> Result<bool, Trouble> {
        let tag = self.say(&format!("UID FETCH {uid} (UID BODY.PEEK[])")).await?;
        let mut is_there = false;
        let mut into = Some(into);
        for _ in 0..ANSWERS_MAX {
            match self.answer(&mut into).await? {
                Answer::Fetch(Fetched { uid: told, body: Some(body), .. }) => {
                    if is_there || told.is_some_and(|told| told != uid) {
                        return Err(Trouble::protocol("the server sent a message that was not asked for"));
                    }
                    is_there = true;
                    if let (Body::Quoted(bytes), Some(into)) = (&body, &mut into) {
                        into.push(bytes).await;
                    }
                }
                Answer::Done { tag: ended, status, text, .. } if ended == tag => {
                    return match status {
                        Status::Ok => Ok(is_there),
                        _ => Err(refused("UID FETCH", &text)),
                    };
                }
                Answer::Bye(text) => return Err(said_goodbye(&text)),
                _ => {}
            }
        }
        Err(endless())
    }

    /// Does to a message, which is queued, what the configuration wants.
    pub async fn apply(&mut self, uid: u32, after: &After) -> Result<(), Trouble> {
        match after {
            After::Leave => Ok(()),
            After::Seen => self.store(uid, "\\Seen").await,
            After::Delete => self.delete(uid).await,
            After::Move(folder) if self.can("MOVE") => self.transfer("UID MOVE", uid, folder).await,
            After::Move(folder) => {
                self.transfer("UID COPY", uid, folder).await?;
                self.delete(uid).await
            }
        }
    }

    async fn store(&mut self, uid: u32, flag: &str) -> Result<(), Trouble> {
        self.command(&format!("UID STORE {uid} +FLAGS.SILENT ({flag})"), "UID STORE").await.map(|_| ())
    }

    /// Without UIDPLUS the message is marked only: a plain EXPUNGE would take others' with it.
    async fn delete(&mut self, uid: u32) -> Result<(), Trouble> {
        self.store(uid, "\\Seen \\Deleted").await?;
        if self.can("UIDPLUS") || self.can("IMAP4REV2") {
            self.command(&format!("UID EXPUNGE {uid}"), "UID EXPUNGE").await?;
        }
        Ok(())
    }

    /// RFC 9051 6.4.7: a server that wants us to make the folder says so.
    async fn transfer(&mut self, how: &str, uid: u32, folder: &str) -> Result<(), Trouble> {
        let folder = name::mailbox(folder);
        let command = format!("{how} {uid} {folder}");
        match self.command(&command, how).await {
            Err(Trouble::Refused(what)) if what.contains("TRYCREATE") => {
                self.command(&format!("CREATE {folder}"), "CREATE").await?;
                self.command(&command, how).await.map(|_| ())
            }
            done => done.map(|_| ()),
        }
    }

    /// What it says to that changes nothing.
    pub async fn close(mut self) {
        let _ = self.command("LOGOUT", "LOGOUT").await;
    }

    async fn command(&mut self, command: &str, name: &str) -> Result<End, Trouble> {
        self.exchange(command, name, &[]).await
    }

    async fn say(&mut self, command: &str) -> Result<String, Trouble> {
        self.commands += 1;
        self.heard = 0;
        let tag = format!("p{}", self.commands);
        self.wire.send(format!("{tag} {command}\r\n").as_bytes()).await?;
        Ok(tag)
    }

    /// `name`: what of the command may be shown. `lines`: what to go on with where the server waits for more.
    async fn exchange(&mut self, command: &str, name: &str, lines: &[&str]) -> Result<End, Trouble> {
        let tag = self.say(command).await?;
        let mut lines = lines.iter();
        let mut answers = Vec::new();
        for _ in 0..ANSWERS_MAX {
            match self.answer(&mut None).await? {
                Answer::Done { tag: ended, status, code, text } if ended == tag => {
                    return match status {
                        Status::Ok => Ok(End { code, answers }),
                        Status::Bad => Err(Trouble::Refused(format!("{name} was not understood: {text}"))),
                        _ => Err(refused(name, &[code.as_deref().unwrap_or_default(), " ", &text].concat())),
                    };
                }
                Answer::Continue(_) => {
                    // A mechanism that is refused may say why first, and waits for an empty line.
                    let line = lines.next().copied().unwrap_or_default();
                    self.wire.send(format!("{line}\r\n").as_bytes()).await?;
                }
                Answer::Bye(text) if name != "LOGOUT" => return Err(said_goodbye(&text)),
                Answer::Other => {}
                answer => answers.push(answer),
            }
        }
        Err(endless())
    }

    /// The next answer. The content of a message goes to `body`, if there is one.
    async fn answer(&mut self, body: &mut Option<&mut Collector>) -> Result<Answer, Trouble> {
        let mut whole = Vec::new();
        loop {
            let Piece::Text { text, literal } = self.piece().await? else {
                return Err(Trouble::protocol("data came where a line was due"));
            };
            whole.extend_from_slice(&text);
            if whole.len() > frame::LINE_BYTES_MAX {
                return Err(Trouble::protocol("an answer is too long"));
            }
            self.heard = self.heard.saturating_add(text.len());
            if self.heard > ANSWER_BYTES_MAX {
                return Err(Trouble::protocol(format!("more than {ANSWER_BYTES_MAX} bytes of answers to one command")));
            }
            let Some(bytes) = literal else { return Ok(Answer::read(&whole)) };
            if answer::announces_body(&whole) {
                self.pass(bytes, body).await?;
            } else if bytes > SMALL_LITERAL_MAX {
                return Err(Trouble::protocol("the server sent data that was not asked for"));
            } else {
                self.pass(bytes, &mut None).await?;
            }
            answer::mark_literal(&mut whole);
        }
    }

    async fn pass(&mut self, bytes: u64, to: &mut Option<&mut Collector>) -> Result<(), Trouble> {
        let mut left = bytes;
        let mut passed_over = 0;
        while left > 0 {
            let Piece::Data(data) = self.piece().await? else {
                return Err(Trouble::protocol("a line came where data was due"));
            };
            left = left.saturating_sub(data.len() as u64);
            match to {
                Some(collector) if !collector.is_unfit() => collector.push(&data).await,
                _ => passed_over += data.len() as u64,
            }
            if passed_over > PASSED_OVER_MAX {
                return Err(Trouble::connection("a message is far larger than the server had said"));
            }
        }
        Ok(())
    }

    async fn piece(&mut self) -> Result<Piece, Trouble> {
        loop {
            let next = self.framing.next(&mut self.wire.input);
            if let Some(piece) = next.map_err(|flaw| Trouble::protocol(flaw.to_string()))? {
                return Ok(piece);
            }
            self.wire.fill().await?;
        }
    }
}

fn refused(name: &str, text: &str) -> Trouble {
    Trouble::Refused(format!("{name} was answered with \"{}\"", shown(text.trim().as_bytes())))
}

fn said_goodbye(text: &str) -> Trouble {
    Trouble::connection(format!("the server ended the conversation: {text}"))
}

fn endless() -> Trouble {
    Trouble::protocol(format!("more than {ANSWERS_MAX} answers to one command"))
}

/// `1:3,7`, for numbers in order.
fn set(uids: &[u32]) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for uid in uids {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*uid) => *last = *uid,
            _ => ranges.push((*uid, *uid)),
        }
    }
    let shown = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}:{last}"),
    });
    shown.collect::<Vec<_>>().join(",")
}

/// Where UIDs are kept: in order, and of one validity.
pub fn key(validity: u32, uid: u32) -> Bytes {
    let mut key = validity.to_be_bytes().to_vec();
    key.extend_from_slice(&uid.to_be_bytes());
    Bytes::from(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_become_a_range() {
        assert_eq!(set(&[1, 2, 3, 7, 9, 10]), "1:3,7,9:10");
        assert_eq!(set(&[u32::MAX]), u32::MAX.to_string());
    }
}
