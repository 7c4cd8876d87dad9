//! The routes for mailboxes elsewhere: how they are doing, and a run at once.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::routing::{Router, get, post};
use serde::{Deserialize, Serialize};

use super::api::{Answer, Api, ApiError, Sent, to_its_end};
use super::{Backend, view};
use crate::clock::Millis;
use crate::intake::fetch::{Ran, Status};

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new().route("/api/v1/fetch", get(list::<B>)).route("/api/v1/fetch/run", post(run::<B>))
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FetchAnswer {
    pub accounts: Vec<FetchStatus>,
}

/// How a mailbox elsewhere is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchStatus {
    pub name: String,
    pub protocol: String,
    pub host: String,
    pub username: String,
    /// Empty with POP3.
    pub folder: String,
    /// `waiting`, `running`, `failing`, `suspended` or `inactive`.
    pub state: String,
    #[serde(with = "view::time::option")]
    pub last_run: Option<Millis>,
    /// The last run that came to its end.
    #[serde(with = "view::time::option")]
    pub last_success: Option<Millis>,
    pub last_error: Option<String>,
    /// None: not before a person says so.
    #[serde(with = "view::time::option")]
    pub next_run: Option<Millis>,
    /// Messages, ever.
    pub fetched: u64,
    /// Messages that were given up, ever.
    pub left: u64,
}

impl From<Status> for FetchStatus {
    fn from(status: Status) -> FetchStatus {
        FetchStatus {
            name: status.name,
            protocol: status.protocol,
            host: status.host,
            username: status.username,
            folder: status.folder,
            state: status.state,
            last_run: status.last_run,
            last_success: status.last_success,
            last_error: status.last_error,
            next_run: status.next_run,
            fetched: status.fetched,
            left: status.left,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FetchBody {
    pub account: String,
    #[serde(default)]
    pub dry_run: bool,
}

async fn list<B: Backend>(State(api): State<Arc<Api<B>>>) -> Json<FetchAnswer> {
    Json(FetchAnswer { accounts: api.backend.fetch_list().await })
}

async fn run<B: Backend>(State(api): State<Arc<Api<B>>>, body: Result<Sent<FetchBody>, ApiError>) -> Answer<Ran> {
    let (Sent(body), backend) = (body?, api.backend.clone());
    Ok(Json(to_its_end(async move { backend.fetch_run(body.account, body.dry_run).await }).await??))
}
