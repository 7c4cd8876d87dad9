//! The HTTP client for the protocol: ours, with its roots and its care, behind the library's trait.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::http::{Request, Response, StatusCode};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use reqwest::Client;

use crate::clock::Clock;
use crate::delivery::http::{beginning, innermost, retry_after};

/// For one request and its answer.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// Octets of an answer: a chain of certificates takes a few thousand.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The last answer that was a refusal.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub status: StatusCode,
    pub url: String,
    pub retry_after: Option<Duration>,
}

pub(super) type LastRefusal = Arc<Mutex<Option<Refused>>>;

#[derive(Clone)]
pub(super) struct Wire {
    client: Client,
    clock: Clock,
    last_refusal: LastRefusal,
}

impl Wire {
    pub fn new(client: Client, clock: Clock) -> Wire {
        Wire { client, clock, last_refusal: LastRefusal::default() }
    }

    pub fn last_refusal(&self) -> Option<Refused> {
        self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(self, request: Request<BodyWrapper<Bytes>>) -> Result<BytesResponse, Error> {
        let (parts, body) = request.into_parts();
        let Ok(body) = body.collect().await;
        let url = parts.uri.to_string();
        let sent = self
            .client
            .request(parts.method, url.as_str())
            .headers(parts.headers)
            .timeout(REQUEST_TIME)
            .body(body.to_bytes())
            .send()
            .await;
        let mut answer = sent.map_err(|error| other(format!("{url}: {}", innermost(&error))))?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        if !status.is_success() {
            let retry_after = retry_after(&headers, self.clock.now()).map(Duration::from_secs);
            let refused = Refused { status, url: url.clone(), retry_after };
            *self.last_refusal.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
        }
        let body = beginning(&mut answer, ANSWER_BYTES_MAX).await;
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        Ok(BytesResponse::from(response))
    }
}

fn other(text: String) -> Error {
    Error::Other(text.into())
}

impl HttpClient for Wire {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        Box::pin(self.clone().send(request))
    }
}
