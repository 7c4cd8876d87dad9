//! The route for the pickup folders: to look into them now.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::routing::{Router, post};
use serde::{Deserialize, Serialize};

use super::Backend;
use super::api::{Answer, Api, ApiError, Sent, to_its_end};
use crate::intake::pickup::Report;

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new().route("/api/v1/pickup/once", post(once::<B>))
}

/// One of `[pickup]`; none: all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PickupBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What each folder gave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PickupAnswer {
    pub folders: Vec<Report>,
}

async fn once<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    body: Result<Sent<PickupBody>, ApiError>,
) -> Answer<PickupAnswer> {
    let (Sent(body), backend) = (body?, api.backend.clone());
    let folders = to_its_end(async move { backend.pick_up(body.name).await }).await??;
    Ok(Json(PickupAnswer { folders }))
}
