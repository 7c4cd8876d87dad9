//! A mailbox by either protocol: which messages there are, their content, and what becomes of them.

use std::collections::HashSet;

use bytes::Bytes;

use super::collect::Collector;
use super::imap::{self, Folder, Imap};
use super::notes::{Note, Notes, State};
use super::pop3::Pop3;
use super::wire::{self, Trouble, Ways};
use super::{Credential, Listed};
use crate::clock::Millis;
use crate::config::{self, After, FetchProtocol};
use crate::store::{Batch, StoreError};

/// Notes looked at in one go.
const NOTES_AT_ONCE: usize = imap::AT_ONCE;

/// A message in the mailbox, and what its note is kept under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub listed: Listed,
    pub id: Bytes,
}

/// A mailbox that is open.
pub enum Mailbox {
    Imap { imap: Imap, folder: Folder },
    Pop3 { pop: Pop3, listed: HashSet<Bytes>, is_complete: bool },
}

impl Mailbox {
    pub async fn open(ways: &Ways, name: &str, account: &config::Fetch) -> Result<Mailbox, Trouble> {
        if account.oauth.is_none() {
            return Mailbox::log_in(ways, account, &Credential::of(&account.login)).await;
        }
        let Some(tokens) = &ways.tokens else {
            let what = format!("tokens are for the running server to get; try `postrider fetch run {name}`");
            return Err(Trouble::Ours(what));
        };
        let credential = |token| Credential::Token { username: account.login.username.clone(), token };
        let token = tokens.token(name, account).await.map_err(Trouble::Login)?;
        match Mailbox::log_in(ways, account, &credential(token.clone())).await {
            Err(Trouble::Login(_)) if tokens.refused(name, account, &token).await => {
                let another = tokens.token(name, account).await.map_err(Trouble::Login)?;
                Mailbox::log_in(ways, account, &credential(another)).await
            }
            opened => opened,
        }
    }

    async fn log_in(ways: &Ways, account: &config::Fetch, credential: &Credential) -> Result<Mailbox, Trouble> {
        let wire = wire::connect(ways, account).await?;
        Ok(match account.protocol {
            FetchProtocol::Imap => {
                let mut imap = Imap::open(wire, ways, &account.host, account.tls, credential).await?;
                let folder = imap.select(&account.folder).await?;
                Mailbox::Imap { imap, folder }
            }
            FetchProtocol::Pop3 => {
                let pop = Pop3::open(wire, ways, &account.host, account.tls, credential).await?;
                Mailbox::Pop3 { pop, listed: HashSet::new(), is_complete: false }
            }
        })
    }

    /// Where the server has numbered its messages anew, what was noted under the old numbers goes. True:
    /// `state` has changed, and is to be written with `batch`.
    pub fn renumbered(&self, notes: &Notes<'_>, state: &mut State, folder: &str, batch: &mut Batch) -> bool {
        let Mailbox::Imap { folder: selected, .. } = self else { return false };
        let is_known = state.folder == folder && state.validity.is_some();
        if is_known && state.validity == Some(selected.validity) {
            return false;
        }
        if is_known {
            notes.forget_all(batch);
        }
        state.compare_below = if is_known { selected.next.unwrap_or(u32::MAX) } else { 0 };
        (state.folder, state.validity) = (folder.to_owned(), Some(selected.validity));
        true
    }

    /// The messages to look at, oldest first; sizes are not known yet with IMAP.
    pub async fn list(&mut self, after: &After) -> Result<Vec<Found>, Trouble> {
        match self {
            Mailbox::Imap { imap, folder } => {
                let (uids, _) = imap.search(*folder, *after != After::Leave).await?;
                let found =
                    |uid| Found { listed: Listed { number: uid, size: None }, id: imap::key(folder.validity, uid) };
                Ok(uids.into_iter().map(found).collect())
            }
            Mailbox::Pop3 { pop, listed, is_complete } => {
                let (known, all) = pop.list().await?;
                *is_complete = all;
                listed.extend(known.iter().map(|known| known.id.clone()));
                Ok(known.into_iter().map(|known| Found { listed: known.listed, id: known.id }).collect())
            }
        }
    }

    /// Messages that are queued and were to go from the folder, but are there still: a crash may have come
    /// between marking one as deleted and removing it, and then no list has it.
    pub async fn unfinished(&mut self, notes: &Notes<'_>) -> Result<Vec<Found>, Trouble> {
        let Mailbox::Imap { imap, folder } = self else { return Ok(Vec::new()) };
        let ours = |error: StoreError| Trouble::Ours(error.to_string());
        let (mut last, mut found) = (Vec::new(), Vec::new());
        loop {
            let ids = notes.ids(&last, NOTES_AT_ONCE).map_err(ours)?;
            let Some(end) = ids.last() else { return Ok(found) };
            last.clone_from(end);
            let mut uids = Vec::new();
            for id in &ids {
                if notes.get(id).map_err(ours)? == Some(Note::Taken { applied: false }) {
                    uids.extend(uid_of(id));
                }
            }
            if uids.is_empty() {
                continue;
            }
            let there = imap.still_there(&uids).await?.into_iter().filter(|uid| uids.contains(uid));
            found.extend(
                there.map(|uid| Found {
                    listed: Listed { number: uid, size: None },
                    id: imap::key(folder.validity, uid),
                }),
            );
        }
    }

    /// What was listed with sizes, but for those that are gone. At most [`imap::AT_ONCE`].
    pub async fn sized(&mut self, found: &[Found]) -> Result<Vec<Found>, Trouble> {
        match self {
            Mailbox::Imap { imap, folder } => {
                let uids: Vec<u32> = found.iter().map(|found| found.listed.number).collect();
                let listed = imap.sizes(&uids).await?.into_iter();
                Ok(listed.map(|listed| Found { id: imap::key(folder.validity, listed.number), listed }).collect())
            }
            Mailbox::Pop3 { .. } => Ok(found.to_vec()),
        }
    }

    /// May it have been fetched under another number?
    pub fn may_be_known(&self, found: &Found, state: &State) -> bool {
        matches!(self, Mailbox::Imap { .. }) && found.listed.number < state.compare_below
    }

    /// False: it is gone.
    pub async fn read(&mut self, found: &Found, into: &mut Collector) -> Result<bool, Trouble> {
        match self {
            Mailbox::Imap { imap, .. } => imap.read(found.listed.number, into).await,
            Mailbox::Pop3 { pop, .. } => pop.read(found.listed.number, into).await.map(|()| true),
        }
    }

    /// Gives what is to be noted now: with POP3 a deletion counts only once the connection was closed in
    /// good order, and is then seen by what is listed the next time.
    pub async fn apply(&mut self, found: &Found, after: &After) -> Result<Option<Note>, Trouble> {
        match self {
            Mailbox::Imap { imap, .. } => {
                imap.apply(found.listed.number, after).await?;
                Ok(Some(Note::Taken { applied: true }))
            }
            Mailbox::Pop3 { pop, .. } => {
                if *after == After::Delete {
                    pop.delete(found.listed.number).await?;
                }
                Ok(None)
            }
        }
    }

    /// Forgets messages that are gone. Gives how many.
    pub async fn prune(&mut self, notes: &Notes<'_>, batch: &mut Batch) -> Result<usize, Trouble> {
        let ours = |error: StoreError| Trouble::Ours(error.to_string());
        let (mut last, mut forgotten) = (Vec::new(), 0);
        loop {
            let ids = notes.ids(&last, NOTES_AT_ONCE).map_err(ours)?;
            let Some(end) = ids.last() else { return Ok(forgotten) };
            last.clone_from(end);
            tokio::task::yield_now().await;
            let kept: HashSet<Vec<u8>> = match self {
                Mailbox::Imap { imap, folder } => {
                    let uids: Vec<u32> = ids.iter().filter_map(|id| uid_of(id)).collect();
                    let there = imap.still_there(&uids).await?.into_iter();
                    there.map(|uid| imap::key(folder.validity, uid).to_vec()).collect()
                }
                Mailbox::Pop3 { is_complete: false, .. } => return Ok(forgotten),
                Mailbox::Pop3 { listed, .. } => {
                    ids.iter().filter(|id| listed.contains(id.as_slice())).cloned().collect()
                }
            };
            for id in ids.iter().filter(|id| !kept.contains(*id)) {
                notes.forget(batch, id);
                forgotten += 1;
            }
        }
    }

    pub async fn close(self) -> Result<(), Trouble> {
        match self {
            Mailbox::Imap { imap, .. } => {
                imap.close().await;
                Ok(())
            }
            Mailbox::Pop3 { pop, .. } => pop.close().await,
        }
    }
}

/// In a key of [`imap::key`].
fn uid_of(id: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(id.get(4..)?.try_into().ok()?))
}

/// How long after the last look notes of what is gone are looked for again, where messages stay in the
/// mailbox.
pub const PRUNE_EVERY: Millis = 24 * 3600 * 1000;
