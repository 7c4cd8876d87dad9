//! The routes for the store as a whole, for messages as files, and for those who watch the server.

use std::path::PathBuf;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Router, get, post};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};

use super::api::{Answer, Api, ApiError, Sent, parse_id, to_its_end, unknown};
use super::caller::Stranger;
use super::submit::read;
use super::transfer::{self, Imported};
use super::{BackedUp, Backend, Compacted, Complaint, Readiness, metrics};

/// Bytes of a list of imports that are done.
const KEYS_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) fn routes<B: Backend>() -> Router<Arc<Api<B>>> {
    Router::new()
        .route("/api/v1/queue/{id}/export", get(export::<B>))
        .route("/api/v1/queue/import", post(import::<B>))
        .route("/api/v1/queue/imported", post(imported::<B>).layer(DefaultBodyLimit::max(KEYS_BYTES_MAX)))
        .route("/api/v1/store/backup", post(back_up::<B>))
        .route("/api/v1/store/compact", post(compact::<B>))
        .route("/readyz", get(readyz::<B>))
        .route("/metrics", get(metrics_page::<B>))
}

impl From<Complaint> for ApiError {
    fn from(complaint: Complaint) -> ApiError {
        let status = if complaint.of_wish { StatusCode::BAD_REQUEST } else { StatusCode::CONFLICT };
        ApiError::new(status, complaint.what, complaint.remedy)
    }
}

async fn export<B: Backend>(State(api): State<Arc<Api<B>>>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let id = parse_id(&id)?;
    let _place = api.submissions.acquire().await;
    let message = api.backend.export(id).await?.ok_or_else(|| unknown(id))?;
    Ok(([(header::CONTENT_TYPE, transfer::CONTENT_TYPE)], message).into_response())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportQuery {
    name: String,
}

async fn import<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    query: Result<Query<ImportQuery>, QueryRejection>,
    body: Body,
) -> Result<(StatusCode, Json<Imported>), ApiError> {
    let Query(query) =
        query.map_err(|rejection| ApiError::bad(rejection.body_text(), "name=… says which file it is"))?;
    let _place = api.submissions.acquire().await;
    let bytes_max =
        api.max_size().saturating_add(transfer::TRACE_BYTES_MAX).saturating_add(transfer::ENVELOPE_BYTES_MAX);
    let bytes = read(body, bytes_max).await?;
    let wrong = |what: String| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, what, "export the message again");
    let (exported, message) = transfer::split(bytes).map_err(wrong)?;
    exported.fits(&message).map_err(|what| {
        let remedy =
            "take the file of the export, or take sha256 out of the .json if the message was changed on purpose";
        ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, what, remedy)
    })?;
    if message.len() > api.max_size().saturating_add(transfer::TRACE_BYTES_MAX) {
        let what = format!("the message has {} bytes, more than limits.max_size allows", message.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, what, "raise limits.max_size for the import"));
    }
    let backend = api.backend.clone();
    let imported = to_its_end(async move { backend.import(query.name, exported, message).await }).await??;
    let status = if imported.already { StatusCode::OK } else { StatusCode::CREATED };
    Ok((status, Json(imported)))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportedBody {
    pub keys: Vec<String>,
}

async fn imported<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    body: Result<Sent<ImportedBody>, ApiError>,
) -> Answer<serde_json::Value> {
    let Sent(body) = body?;
    let backend = api.backend.clone();
    to_its_end(async move { backend.forget_imports(body.keys).await }).await??;
    Ok(Json(serde_json::json!({})))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BackupBody {
    /// An absolute path on the machine of the server.
    pub to: PathBuf,
}

async fn back_up<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    body: Result<Sent<BackupBody>, ApiError>,
) -> Answer<BackedUp> {
    let Sent(body) = body?;
    let backend = api.backend.clone();
    Ok(Json(to_its_end(async move { backend.back_up(body.to).await }).await??))
}

async fn compact<B: Backend>(State(api): State<Arc<Api<B>>>) -> Answer<Compacted> {
    let backend = api.backend.clone();
    Ok(Json(to_its_end(async move { backend.compact().await }).await??))
}

/// 200 while mail can be taken, else 503; what stands in the way is in the answer.
async fn readyz<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    stranger: Option<Extension<Stranger>>,
) -> Result<(StatusCode, Json<Readiness>), ApiError> {
    let mut readiness = api.backend.readiness().await.ok_or_else(|| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server does not know whether it is ready", "see /healthz")
    })?;
    // What is wrong with a configuration quotes it: addresses, paths, what somebody has put into the wrong place.
    if let (Some(_), Some(refused)) = (stranger, &mut readiness.configuration.refused) {
        refused.problems.clear();
    }
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(readiness)))
}

async fn metrics_page<B: Backend>(State(api): State<Arc<Api<B>>>) -> Response {
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], api.backend.metrics().await).into_response()
}
