//! The routes for the ways out: to suspend sending and let it go again, and to test a smart host.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::routing::{Router, post};
use serde::{Deserialize, Serialize};

use super::api::{Answer, Api, ApiError, Sent, to_its_end};
use super::{Backend, SuspendAnswer};
use crate::delivery::host_test::{Report, Wish};
use crate::queue::suspend::Suspension;

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new()
        .route("/api/v1/suspend", post(|state, body| change::<B>(true, state, body)))
        .route("/api/v1/resume", post(|state, body| change::<B>(false, state, body)))
        .route("/api/v1/smart-hosts/test", post(test::<B>))
}

/// At most one of them; none: all that leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SuspendBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub smart_host: Option<String>,
    pub fetch: bool,
}

impl SuspendBody {
    pub(super) fn what(self) -> Result<Suspension, ApiError> {
        match self {
            SuspendBody { stream: None, smart_host: None, fetch: false } => Ok(Suspension::All),
            SuspendBody { stream: Some(name), smart_host: None, fetch: false } => Ok(Suspension::Stream(name)),
            SuspendBody { stream: None, smart_host: Some(name), fetch: false } => Ok(Suspension::SmartHost(name)),
            SuspendBody { stream: None, smart_host: None, fetch: true } => Ok(Suspension::Fetch),
            _ => Err(ApiError::bad(
                "more than one thing is named",
                "name one stream, one smart host, or fetch; or nothing for all",
            )),
        }
    }
}

async fn change<B: Backend>(
    on: bool,
    State(api): State<Arc<Api<B>>>,
    body: Result<Sent<SuspendBody>, ApiError>,
) -> Answer<SuspendAnswer> {
    let Sent(body) = body?;
    let (what, backend) = (body.what()?, api.backend.clone());
    Ok(Json(to_its_end(async move { backend.suspend(what, on).await }).await??))
}

async fn test<B: Backend>(State(api): State<Arc<Api<B>>>, body: Result<Sent<Wish>, ApiError>) -> Answer<Report> {
    let (Sent(wish), backend) = (body?, api.backend.clone());
    Ok(Json(to_its_end(async move { backend.test_host(wish).await }).await??))
}
