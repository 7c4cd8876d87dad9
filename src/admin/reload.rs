//! The route that has the configuration read again, and its words.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, post};
use serde::{Deserialize, Serialize};

use super::api::{Api, ApiError, to_its_end};
use super::{Backend, view};
use crate::clock::Millis;
use crate::config::{Change, Problem};

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new().route("/api/v1/reload", post(reload::<B>))
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadResult {
    /// The new configuration holds.
    Applied,
    /// It was read, and nothing in it is new.
    Unchanged,
    /// The old one goes on, whole.
    Refused,
}

/// What a reload has done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadAnswer {
    pub result: ReloadResult,
    #[serde(default)]
    pub changes: Vec<Change>,
    /// What deserves a word and yet holds.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why it was refused.
    #[serde(default)]
    pub problems: Vec<Problem>,
}

impl ReloadAnswer {
    pub fn refused(problems: Vec<Problem>) -> ReloadAnswer {
        ReloadAnswer { result: ReloadResult::Refused, changes: Vec::new(), warnings: Vec::new(), problems }
    }
}

/// The configuration that holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// Since when.
    #[serde(with = "view::time")]
    pub since: Millis,
    /// A newer one in the files was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusedConfiguration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedConfiguration {
    #[serde(with = "view::time")]
    pub at: Millis,
    /// Why, at most [`PROBLEMS_KEPT`].
    pub problems: Vec<Problem>,
}

/// Problems that are remembered of a configuration that was refused.
pub const PROBLEMS_KEPT: usize = 100;

/// As other errors, with all that is wrong.
#[derive(Serialize)]
struct RefusedAnswer {
    error: String,
    remedy: &'static str,
    #[serde(flatten)]
    answer: ReloadAnswer,
}

async fn reload<B: Backend>(State(api): State<Arc<Api<B>>>) -> Result<Response, ApiError> {
    let backend = api.backend.clone();
    let answer = to_its_end(async move { backend.reload().await }).await??;
    if answer.result != ReloadResult::Refused {
        return Ok(Json(answer).into_response());
    }
    let lines: Vec<String> = answer.problems.iter().map(ToString::to_string).collect();
    let error = format!("the configuration cannot be used, and the old one goes on:\n{}", lines.join("\n"));
    let remedy = "correct it and reload again; `postrider check` says the same without changing anything";
    Ok((StatusCode::UNPROCESSABLE_ENTITY, Json(RefusedAnswer { error, remedy, answer })).into_response())
}
