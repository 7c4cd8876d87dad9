//! HTTP for people who run the server: the queue, a message's story, submission, health.
//!
//! It listens on `data_dir/admin.sock`, which only the server's own user (and root) may open: being
//! able to connect is the permission; and on `[admin] bind`, for whoever shows the token, or the password
//! of an account (`caller`). `socket` and `http` open them, `api` answers, `submit` takes messages and
//! `compose` makes them of their parts, `view` and `filter` are the
//! words of both sides, so that the command line cannot disagree with the server (`text` and `sentence` are
//! how they read). The pages for people are in `dashboard`, on [admin] only. What the server
//! can do is the trait [`Backend`], which `app` implements and tests fake.

use std::fmt::Display;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Receiver;

use crate::bounce::suppression::{self, Who};
use crate::clock::Millis;
use crate::config::Secret;
use crate::delivery::host_test::{self, Wish};
use crate::delivery::standing::Places;
use crate::events::Entry;
use crate::intake::Once;
use crate::intake::fetch::Ran;
use crate::intake::idempotency::Key;
use crate::intake::pickup::Report;
use crate::intake::suppress::NewEntry;
use crate::message::{Address, Draft, MessageId};
use crate::queue::suspend::Suspension;
use crate::smtp::reply::Refusal;

pub(crate) mod api;
pub mod caller;
pub mod captured;
pub(crate) mod compose;
mod dashboard;
pub mod events;
pub mod explain;
pub(crate) mod fetch;
pub mod filter;
pub mod history;
pub mod http;
pub mod metrics;
pub(crate) mod pickup;
pub mod reload;
pub(crate) mod sentence;
pub mod socket;
pub(crate) mod submit;
pub mod suppress;
pub(crate) mod suspend;
pub(crate) mod text;
pub mod transfer;
pub(crate) mod upkeep;
pub mod view;

pub use caller::Caller;
pub use captured::{Captured, CapturedFilter, CapturedPage, CapturedWish, Kept};
pub use events::{EventLine, EventsPage, EventsWish};
pub use explain::{Cause, Explained, Explanation};
pub use fetch::FetchStatus;
pub use filter::{Filter, Page, Pick, Selection};
use history::History;
pub use http::{Http, HttpError};
pub use socket::{AdminSocket, SocketError};
pub use transfer::{Exported, Imported};
pub use view::{Listed, Story};

/// File name of the socket inside `data_dir`.
pub const SOCKET_NAME: &str = "admin.sock";

/// What the running server does for whoever may open its admin socket.
pub trait Backend: Send + Sync + 'static {
    /// Messages in the queue, oldest id first, after `page.after`, at most `page.limit`; of each only
    /// the recipients that the filter takes ([`Filter::apply`]).
    fn list(&self, filter: Filter, page: Page) -> impl Future<Output = Result<Vec<Listed>, Trouble>> + Send;

    /// All that happened to a message, also after it is done. None: no such id is known (any more).
    fn story(&self, id: MessageId) -> impl Future<Output = Result<Option<Story>, Trouble>> + Send;

    /// Does something to every recipient that is selected and in a state which allows it. With
    /// `selection.dry_run` it only counts.
    fn change(&self, action: Action, selection: Selection) -> impl Future<Output = Result<Changed, Trouble>> + Send;

    /// Queues a message, with a key once; the id is given when it is safely on disk.
    fn submit(&self, draft: Draft, key: Option<Key>) -> impl Future<Output = Result<Once, Refusal>> + Send;

    /// Is this the password of an account that may send?
    fn log_in(
        &self,
        _peer: IpAddr,
        _name: String,
        _password: Secret,
    ) -> impl Future<Output = Result<Caller, Refusal>> + Send {
        async { Err(Refusal::inner(CANNOT)) }
    }

    /// May this client try a token?
    fn may_log_in(&self, _peer: IpAddr) -> Result<(), Refusal> {
        Ok(())
    }

    /// It was the wrong one.
    fn login_failed(&self, _peer: IpAddr) -> impl Future<Output = ()> + Send {
        async {}
    }

    fn now(&self) -> Millis;

    fn status(&self) -> impl Future<Output = ServerStatus> + Send;

    /// What is damaged and set aside.
    fn damaged(&self) -> impl Future<Output = Result<Vec<Damaged>, Trouble>> + Send {
        async { Ok(Vec::new()) }
    }

    /// A message with its envelope, as it is queued. None: it is not (any more).
    fn export(&self, _id: MessageId) -> impl Future<Output = Result<Option<Bytes>, Trouble>> + Send {
        async { Err(Trouble::new(CANNOT)) }
    }

    /// Queues what was exported under a new id, durably, and once only for each file.
    fn import(
        &self,
        _name: String,
        _exported: Exported,
        _body: Bytes,
    ) -> impl Future<Output = Result<Imported, Refusal>> + Send {
        async { Err(Refusal::inner(CANNOT)) }
    }

    /// The files of these imports will not be given again.
    fn forget_imports(&self, _keys: Vec<String>) -> impl Future<Output = Result<(), Trouble>> + Send {
        async { Err(Trouble::new(CANNOT)) }
    }

    /// Writes a backup into a folder of this machine.
    fn back_up(&self, _to: PathBuf) -> impl Future<Output = Result<BackedUp, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// Gives back the space of what was deleted.
    fn compact(&self) -> impl Future<Output = Result<Compacted, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// Lets nothing more of this start, also after a restart, or (`on` false) lets it go again.
    fn suspend(&self, _what: Suspension, _on: bool) -> impl Future<Output = Result<SuspendAnswer, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// Why a message is where it is, or what became of it. None: no such id is known (any more).
    fn explain(&self, _id: MessageId) -> impl Future<Output = Result<Option<Explanation>, Trouble>> + Send {
        async { Err(Trouble::new(CANNOT)) }
    }

    /// Tests a smart host with what this server knows of it.
    fn test_host(&self, _wish: Wish) -> impl Future<Output = Result<host_test::Report, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// Takes what is ready in this pickup folder, or in all, and tells what became of it.
    fn pick_up(&self, _folder: Option<String>) -> impl Future<Output = Result<Vec<Report>, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// Entries of the suppression list in their order, after that of this address and scope.
    fn suppressions(
        &self,
        _after: Option<(String, String)>,
        _limit: usize,
    ) -> impl Future<Output = Result<Vec<suppression::Listed>, Trouble>> + Send {
        async { Ok(Vec::new()) }
    }

    /// Puts them on the list; gives how many entries are new or changed.
    fn suppress(&self, _entries: Vec<NewEntry>) -> impl Future<Output = Result<usize, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// Takes them off the list; gives how many entries are gone.
    fn unsuppress(
        &self,
        _whom: Vec<Who>,
        _scope: Option<String>,
        _force: bool,
    ) -> impl Future<Output = Result<usize, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// All that is known of an address.
    fn explain_suppression(&self, _who: Who) -> impl Future<Output = Result<suppress::Explained, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// The mailboxes elsewhere that mail is brought in from.
    fn fetch_list(&self) -> impl Future<Output = Vec<FetchStatus>> + Send {
        async { Vec::new() }
    }

    /// Reads one of them now; `dry_run`: only counts what is new there.
    fn fetch_run(&self, _name: String, _dry_run: bool) -> impl Future<Output = Result<Ran, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// A page of what has happened, newest message first.
    fn events(&self, _wish: EventsWish) -> impl Future<Output = Result<EventsPage, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// What happens from now on, as lines of JSON, until the receiver is dropped or the server stops.
    fn follow(&self, _wish: EventsWish) -> impl Future<Output = Result<Receiver<Bytes>, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// Reads the configuration again: it holds whole from now on, or not at all.
    fn reload(&self) -> impl Future<Output = Result<reload::ReloadAnswer, Complaint>> + Send {
        async { Err(Complaint::new(CANNOT, CANNOT_REMEDY)) }
    }

    /// A page of what is captured, newest first.
    fn list_captured(&self, _wish: CapturedWish) -> impl Future<Output = Result<CapturedPage, Trouble>> + Send {
        async { Ok(CapturedPage::default()) }
    }

    /// The same; where nothing is like that, the answer comes when something is, or after `_patience`.
    fn wait_captured(
        &self,
        wish: CapturedWish,
        _patience: Duration,
    ) -> impl Future<Output = Result<CapturedPage, Complaint>> + Send {
        async {
            let listed = self.list_captured(wish).await;
            listed.map_err(|Trouble(why)| Complaint::new(why, CANNOT_REMEDY))
        }
    }

    /// A captured message with its bytes. None: it is not captured (any more).
    fn captured(&self, _id: MessageId) -> impl Future<Output = Result<Option<Kept>, Trouble>> + Send {
        async { Ok(None) }
    }

    /// Sends a captured message for real: to those whom it was for, and then it is not captured any more; or to
    /// `to`, and then it stays. Gives the number of recipients. None: it is not captured.
    fn release_captured(
        &self,
        _id: MessageId,
        _to: Vec<Address>,
    ) -> impl Future<Output = Result<Option<usize>, Trouble>> + Send {
        async { Ok(None) }
    }

    /// Takes a captured message away. False: it is not captured (any more).
    fn delete_one_captured(&self, _id: MessageId) -> impl Future<Output = Result<bool, Trouble>> + Send {
        async { Ok(false) }
    }

    /// Takes all away that the filter takes; gives how many messages are gone.
    fn delete_captured(&self, _filter: CapturedFilter) -> impl Future<Output = Result<usize, Trouble>> + Send {
        async { Ok(0) }
    }

    /// Can it take mail right now, and what stands in the way? None: it does not know.
    fn readiness(&self) -> impl Future<Output = Option<Readiness>> + Send {
        async { None }
    }

    /// As [`Backend::list`], but stops after so many recipients that it has looked at, whatever the filter.
    fn look(
        &self,
        filter: Filter,
        page: Page,
        _looked_at_max: usize,
    ) -> impl Future<Output = Result<Part, Trouble>> + Send {
        async move {
            let messages = self.list(filter, page).await?;
            let next = messages.last().map(|last| last.id).filter(|_| messages.len() >= page.limit);
            Ok(Part { looked_at: messages.len(), messages, next })
        }
    }

    /// How many messages are queued; none: they are not all counted yet.
    fn queued(&self) -> Option<u64> {
        None
    }

    /// How it went lately.
    fn history(&self) -> History {
        History::default()
    }

    /// What went wrong last, the newest first.
    fn troubles(&self, _max: usize) -> Vec<(MessageId, Entry)> {
        Vec::new()
    }

    /// The places that mail goes to, where there is something to do or trouble. None: that cannot be told now.
    fn destinations(&self) -> impl Future<Output = Option<Places>> + Send {
        async { None }
    }

    /// What is configured of the ways out and in.
    fn ways(&self) -> Ways {
        Ways::default()
    }

    /// Everything that is counted, in the text format of [`metrics`].
    fn metrics(&self) -> impl Future<Output = String> + Send {
        async { String::new() }
    }
}

/// What a backend without a store answers.
const CANNOT: &str = "this server has no store";
const CANNOT_REMEDY: &str = "ask the one that has it";

/// What can be done to queued recipients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Waiting → due now; held → due now. Captured ones stay.
    Retry,
    /// Waiting → held.
    Hold,
    /// Held → due now.
    Release,
    /// Waiting, held or captured → gone, without a notice to the sender.
    Cancel,
}

impl Action {
    pub const ALL: [Action; 4] = [Action::Retry, Action::Hold, Action::Release, Action::Cancel];

    /// As in the path of the API and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Hold => "hold",
            Action::Release => "release",
            Action::Cancel => "cancel",
        }
    }

    /// May it be done to a recipient in this state?
    pub fn fits(self, status: view::Status) -> bool {
        use view::Status::{Captured, Held, Waiting};
        match self {
            Action::Retry => matches!(status, Waiting | Held),
            Action::Hold => matches!(status, Waiting),
            Action::Release => matches!(status, Held),
            Action::Cancel => matches!(status, Waiting | Held | Captured),
        }
    }
}

/// What an action did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    pub recipients: usize,
    /// Of those that are due now, the ones that wait all the same.
    pub waiting: Vec<Waiting>,
}

/// So many recipients wait, though they are due: the reason lasts, and may say until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub recipients: usize,
    pub why: String,
}

impl Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let wait = if self.recipients == 1 { "waits" } else { "wait" };
        write!(f, "{} of them {wait} all the same: {}", self.recipients, self.why)
    }
}

/// Trouble of the server's own, in a sentence for the one who runs it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

impl Trouble {
    pub fn new(why: impl Display) -> Trouble {
        Trouble(why.to_string())
    }
}

/// Why something was not done, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Complaint {
    pub what: String,
    pub remedy: String,
    /// What was asked for is wrong, whatever the state of the server: it names what is not there.
    pub of_wish: bool,
}

impl Complaint {
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Complaint {
        Complaint { what: what.into(), remedy: remedy.into(), of_wish: false }
    }

    /// What was asked for names what is not there; `known` are the names that there are.
    pub fn unknown<'a>(what: impl Into<String>, known: impl IntoIterator<Item = &'a str>) -> Complaint {
        let known: Vec<&str> = known.into_iter().collect();
        let remedy =
            if known.is_empty() { "there is none".to_owned() } else { format!("there are: {}", known.join(", ")) };
        Complaint { of_wish: true, ..Complaint::new(what, remedy) }
    }
}

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUp {
    pub to: String,
    pub bytes: u64,
    pub files: u64,
}

/// Something that is suspended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspended {
    pub what: Suspension,
    #[serde(with = "view::time")]
    pub since: Millis,
}

/// What a command to suspend or resume has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendAnswer {
    /// False: it was so already.
    pub changed: bool,
    /// All that is suspended now.
    pub suspended: Vec<Suspended>,
    /// The streams that leave all the same.
    pub exempt: Vec<String>,
}

/// Bytes of the store's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compacted {
    pub before: u64,
    pub after: u64,
}

/// A queued record that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damaged {
    pub id: MessageId,
    /// None: the message's own record.
    pub recipient: Option<u32>,
    pub why: String,
}

/// Whether mail can be taken, part by part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    pub ready: bool,
    pub store: StoreState,
    pub disk: Disk,
    pub memory: Memory,
    pub listeners: Vec<ListenerStatus>,
    /// Domains whose mail is signed.
    pub signing: Vec<String>,
    pub resolver: ResolverState,
    /// What a person has suspended. Mail is taken all the same.
    #[serde(default)]
    pub suspended: Vec<Suspended>,
    /// Since when the configuration holds, and whether a newer one was refused. Mail is taken all the same.
    #[serde(default)]
    pub configuration: reload::Configuration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreState {
    /// `good` or `failed`.
    pub state: String,
    #[serde(with = "view::time::option")]
    pub since: Option<Millis>,
    pub why: Option<String>,
    /// What was found to be damaged at the start or since, and is set aside.
    pub damages: Vec<String>,
}

/// In bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    pub free: u64,
    pub min_free: u64,
    pub accepting: bool,
}

impl Disk {
    /// There are bytes, but its inodes are used up.
    pub fn is_short_of_files(&self) -> bool {
        !self.accepting && self.free >= self.min_free
    }
}

/// For message bodies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    pub used: u64,
    pub limit: u64,
}

/// What is known of the name servers without asking them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResolverState {
    /// Nothing has been asked yet.
    Unknown,
    /// The last question was answered.
    Answering,
    /// The last question was not.
    Failing,
}

/// A part of the queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    pub messages: Vec<Listed>,
    /// Messages that were looked at for it.
    pub looked_at: usize,
    /// Where to go on; none: that was the end of the queue.
    pub next: Option<MessageId>,
}

/// What can be suspended by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ways {
    pub streams: Vec<StreamWay>,
    pub smart_hosts: Vec<String>,
    /// There are mailboxes elsewhere.
    pub fetches: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamWay {
    pub name: String,
    /// It leaves even while sending is suspended.
    pub is_exempt: bool,
    /// It skips addresses on the suppression list.
    pub suppresses: bool,
}

/// The server about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    pub version: String,
    pub hostname: String,
    #[serde(with = "view::time")]
    pub started_at: Millis,
    pub listeners: Vec<ListenerStatus>,
}

/// A door that is open, with the address it really has (the configuration may say port 0).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    pub name: String,
    /// `mx`, `submission` or `http`.
    pub role: String,
    pub address: SocketAddr,
}
