//! HTTP for people who run the server: the queue, a message's story, submission, health.
//!
//! It listens on `data_dir/admin.sock`, which only the server's own user (and root) may open: being
//! able to connect is the permission. `socket` opens it, `api` answers, `view` and `filter` are the
//! words of both sides, so that the command line cannot disagree with the server. What the server
//! can do is the trait [`Backend`], which `app` implements and tests fake. There is no TCP port, no
//! dashboard and no metrics here yet.

use std::fmt::Display;
use std::future::Future;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::clock::Millis;
use crate::message::{Draft, MessageId};
use crate::smtp::reply::Refusal;

pub(crate) mod api;
pub mod filter;
pub mod socket;
pub mod view;

pub use filter::{Filter, Page, Pick, Selection};
pub use socket::{AdminSocket, SocketError};
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

    /// Does something to every recipient that is selected and in a state which allows it; gives
    /// their number. With `selection.dry_run` it only counts.
    fn change(&self, action: Action, selection: Selection) -> impl Future<Output = Result<usize, Trouble>> + Send;

    /// Queues a message; the id is given once it is safely on disk.
    fn submit(&self, draft: Draft) -> impl Future<Output = Result<MessageId, Refusal>> + Send;

    fn status(&self) -> impl Future<Output = ServerStatus> + Send;
}

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

/// Trouble of the server's own, in a sentence for the one who runs it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Trouble(pub String);

impl Trouble {
    pub fn new(why: impl Display) -> Trouble {
        Trouble(why.to_string())
    }
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
    /// `mx` or `submission`.
    pub role: String,
    pub address: SocketAddr,
}
