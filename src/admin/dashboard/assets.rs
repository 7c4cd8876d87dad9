//! The style and the script, in the program itself. Their names hold a digest of what is in them, so that a
//! browser may keep them for good.

use aws_lc_rs::digest::{SHA256, digest};
use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::answer::guarded;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");
const ICON: &str = include_str!("icon.svg");

fn name(text: &str, extension: &str) -> String {
    let digest = digest(&SHA256, text.as_bytes());
    let digest: String = digest.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{digest}.{extension}")
}

pub(super) fn style() -> String {
    format!("/assets/{}", name(STYLE, "css"))
}

pub(super) fn script() -> String {
    format!("/assets/{}", name(SCRIPT, "js"))
}

pub(super) fn icon() -> String {
    format!("/assets/{}", name(ICON, "svg"))
}

/// Open to everybody: the login page needs them.
pub(super) async fn serve(Path(wanted): Path<String>) -> Response {
    let all = [
        (STYLE, "css", "text/css; charset=utf-8"),
        (SCRIPT, "js", "text/javascript; charset=utf-8"),
        (ICON, "svg", "image/svg+xml"),
    ];
    let found = all.into_iter().find(|(text, extension, _)| name(text, extension) == wanted);
    guarded(match found {
        Some((text, _, media_type)) => {
            let kept = "public, max-age=31536000, immutable";
            ([(header::CONTENT_TYPE, media_type), (header::CACHE_CONTROL, kept)], text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    })
}
