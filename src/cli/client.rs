//! The command line's side of the admin socket: HTTP over `data_dir/admin.sock`. If no server
//! answers there, the error says which socket was tried and what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::Failure;
use super::captured::Filters;
use crate::admin::api::{ChangeAnswer, ListAnswer};
use crate::admin::captured::{DeleteAnswer, Many, Read, ReleaseAnswer, ReleaseBody};
use crate::admin::fetch::{FetchAnswer, FetchBody};
use crate::admin::filter::SelectionBody;
use crate::admin::pickup::{PickupAnswer, PickupBody};
use crate::admin::reload::ReloadAnswer;
use crate::admin::submit::SubmitAnswer;
use crate::admin::suppress::{self, Suppressed};
use crate::admin::suspend::SuspendBody;
use crate::admin::transfer::{self, Imported};
use crate::admin::upkeep::{BackupBody, ImportedBody};
use crate::admin::{
    Action, BackedUp, CapturedPage, Compacted, EventsPage, Explanation, FetchStatus, Filter, Page, Readiness,
    SOCKET_NAME, ServerStatus, Story, SuspendAnswer,
};
use crate::delivery::host_test::{Report, Wish};
use crate::intake::fetch::Ran;
use crate::message::MessageId;

/// Bytes of an answer that are read at most: a full page of messages with many recipients.
const ANSWER_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of a line of an answer that goes on and on.
const LINE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The longest wait for an answer; an action on a long queue takes a while.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(600);
/// The same for the question whether it is well: who asks wants to know soon.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for work on the whole store.
const WORK_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// Talks to the server of one data folder; a connection a request.
#[derive(Clone, Debug)]
pub(super) struct Client {
    socket: PathBuf,
}

#[derive(serde::Deserialize)]
struct ErrorAnswer {
    error: String,
    remedy: String,
}

/// Who answers on the socket.
pub(super) enum Reached {
    Server,
    /// No server runs with this data_dir.
    Nobody,
    /// It cannot be told, or not by this user.
    Trouble(Failure),
}

impl Client {
    /// Does a server run?
    pub(super) async fn reach(&self) -> Reached {
        match UnixStream::connect(&self.socket).await {
            Ok(_) => Reached::Server,
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Reached::Nobody,
                _ => Reached::Trouble(self.unreachable(&error)),
            },
        }
    }

    pub(super) async fn export(&self, id: MessageId) -> Result<Option<Bytes>, Failure> {
        let path = format!("/api/v1/queue/{id}/export");
        let (status, body) = self.talk(Method::GET, &path, None, Bytes::new(), ANSWER_TIMEOUT).await?;
        match status {
            StatusCode::NOT_FOUND => Ok(None),
            status if status.is_success() => Ok(Some(body)),
            status => Err(self.refused(status, &body)),
        }
    }

    pub(super) async fn import(&self, name: &str, message: Bytes) -> Result<Imported, Failure> {
        let path = format!("/api/v1/queue/import?{}", query(std::iter::once(("name", name))));
        self.post(&path, transfer::CONTENT_TYPE, message).await
    }

    pub(super) async fn forget_imports(&self, keys: Vec<String>) -> Result<(), Failure> {
        let body = serde_json::to_vec(&ImportedBody { keys }).map_err(|error| Failure::new(error.to_string()))?;
        let _: serde_json::Value = self.post("/api/v1/queue/imported", "application/json", body.into()).await?;
        Ok(())
    }

    pub(super) async fn back_up(&self, to: &Path) -> Result<BackedUp, Failure> {
        let body = serde_json::to_vec(&BackupBody { to: to.to_owned() })
            .map_err(|error| Failure::usage(format!("{}: {error}", to.display())))?;
        self.work("/api/v1/store/backup", body.into()).await
    }

    pub(super) async fn compact(&self) -> Result<Compacted, Failure> {
        self.work("/api/v1/store/compact", Bytes::new()).await
    }

    /// Waits as long as it takes: it is done by a running server, which answers or ends.
    async fn work<T: DeserializeOwned>(&self, path: &str, body: Bytes) -> Result<T, Failure> {
        let answer = self.talk(Method::POST, path, Some("application/json"), body, WORK_TIMEOUT).await?;
        self.understand(answer)
    }

    pub(super) fn new(data_dir: &Path) -> Client {
        Client { socket: data_dir.join(SOCKET_NAME) }
    }

    pub(super) async fn list(&self, filter: &Filter, page: Page) -> Result<ListAnswer, Failure> {
        let limit = page.limit.to_string();
        let after = page.after.map(|id| id.to_string());
        let age = filter.older_than.map(|age| format!("{}s", age.as_secs()));
        let parameters = [
            ("limit", Some(limit.as_str())),
            ("after", after.as_deref()),
            ("to", filter.to.as_deref()),
            ("from", filter.from.as_deref()),
            ("domain", filter.domain.as_deref()),
            ("stream", filter.stream.as_deref()),
            ("status", filter.status.map(|status| status.name())),
            ("older_than", age.as_deref()),
        ];
        let given = parameters.iter().filter_map(|(name, value)| value.map(|value| (*name, value)));
        self.get(&format!("/api/v1/queue?{}", query(given))).await
    }

    pub(super) async fn story(&self, id: MessageId) -> Result<Story, Failure> {
        self.get(&format!("/api/v1/queue/{id}")).await
    }

    pub(super) async fn change(&self, action: Action, selection: &SelectionBody) -> Result<ChangeAnswer, Failure> {
        let body = serde_json::to_vec(selection).map_err(|error| Failure::new(error.to_string()))?;
        self.post(&format!("/api/v1/queue/{}", action.name()), "application/json", body.into()).await
    }

    pub(super) async fn suspend(&self, body: &SuspendBody, on: bool) -> Result<SuspendAnswer, Failure> {
        let path = if on { "/api/v1/suspend" } else { "/api/v1/resume" };
        let body = serde_json::to_vec(body).map_err(|error| Failure::new(error.to_string()))?;
        self.post(path, "application/json", body.into()).await
    }

    /// The next page, after this entry.
    pub(super) async fn suppressions(&self, after: Option<&Suppressed>) -> Result<suppress::ListAnswer, Failure> {
        let limit = suppress::PAGE_MAX.to_string();
        let address = after.map(|entry| ("address", entry.address.as_str()));
        let scope = after.and_then(|entry| entry.scope.as_deref()).map(|scope| ("scope", scope));
        let parameters = std::iter::once(("limit", limit.as_str())).chain(address).chain(scope);
        self.get(&format!("/api/v1/suppressions?{}", query(parameters))).await
    }

    pub(super) async fn suppress(&self, suppressions: Vec<Suppressed>) -> Result<usize, Failure> {
        self.change_list("/api/v1/suppressions", &suppress::AddBody { suppressions }).await
    }

    pub(super) async fn unsuppress(
        &self,
        addresses: Vec<String>,
        scope: Option<String>,
        force: bool,
    ) -> Result<usize, Failure> {
        self.change_list("/api/v1/suppressions/remove", &suppress::RemoveBody { addresses, scope, force }).await
    }

    async fn change_list(&self, path: &str, body: &impl serde::Serialize) -> Result<usize, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::new(error.to_string()))?;
        let answer: suppress::ChangeAnswer = self.post(path, "application/json", body.into()).await?;
        Ok(answer.changed)
    }

    pub(super) async fn explain_suppression(&self, address: &str) -> Result<suppress::Explained, Failure> {
        let query = query(std::iter::once(("address", address)));
        self.get(&format!("/api/v1/suppressions/explain?{query}")).await
    }

    pub(super) async fn pick_up(&self, body: &PickupBody) -> Result<PickupAnswer, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::new(error.to_string()))?;
        self.work("/api/v1/pickup/once", body.into()).await
    }

    pub(super) async fn fetch_list(&self) -> Result<Vec<FetchStatus>, Failure> {
        let FetchAnswer { accounts } = self.get("/api/v1/fetch").await?;
        Ok(accounts)
    }

    pub(super) async fn fetch_run(&self, body: &FetchBody) -> Result<Ran, Failure> {
        let body = serde_json::to_vec(body).map_err(|error| Failure::new(error.to_string()))?;
        let kind = Some("application/json");
        let answer = self.talk(Method::POST, "/api/v1/fetch/run", kind, body.into(), WORK_TIMEOUT).await?;
        self.understand(answer)
    }

    pub(super) async fn explain(&self, id: MessageId) -> Result<Explanation, Failure> {
        self.get(&format!("/api/v1/explain/{id}")).await
    }

    pub(super) async fn test_host(&self, wish: &Wish) -> Result<Report, Failure> {
        let body = serde_json::to_vec(wish).map_err(|error| Failure::new(error.to_string()))?;
        self.post("/api/v1/smart-hosts/test", "application/json", body.into()).await
    }

    /// A page of events; the parameters as in the URL.
    pub(super) async fn events(&self, parameters: &[(&str, String)]) -> Result<EventsPage, Failure> {
        self.get(&events_path(parameters)).await
    }

    /// Gives each line of events as they happen to `take`, until it fails or the server ends.
    pub(super) async fn follow(
        &self,
        parameters: &[(&str, String)],
        mut take: impl FnMut(&str) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let request = Request::builder().uri(events_path(parameters)).header(header::HOST, "postrider");
        let request = request.body(Full::new(Bytes::new())).map_err(|error| Failure::new(error.to_string()))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error.to_string()))?;
        let connection = tokio::spawn(connection);
        let read = async {
            let response = sender.send_request(request).await.map_err(|error| self.broken(&error.to_string()))?;
            let status = response.status();
            if !status.is_success() {
                let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
                return Err(self.refused(status, &body.map(|body| body.to_bytes()).unwrap_or_default()));
            }
            let (mut body, mut rest) = (response.into_body(), Vec::new());
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| self.broken("the connection ended"))?;
                rest.extend_from_slice(frame.data_ref().map(|data| &data[..]).unwrap_or_default());
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    take(String::from_utf8_lossy(&line).trim())?;
                }
                if rest.len() > LINE_BYTES_MAX {
                    return Err(self.broken("a line is too long"));
                }
            }
            Ok(())
        };
        let done = read.await;
        connection.abort();
        done
    }

    /// The newest before `before`, at most so many; none: perhaps some later, within `wait`.
    pub(super) async fn captured(
        &self,
        filters: &Filters,
        limit: usize,
        before: Option<MessageId>,
        wait: Option<Duration>,
    ) -> Result<CapturedPage, Failure> {
        let mut parameters = filters.parameters();
        parameters.push(("limit", limit.to_string()));
        parameters.extend(before.map(|id| ("before", id.to_string())));
        parameters.extend(wait.map(|wait| ("wait", format!("{}s", wait.as_secs()))));
        self.get(&captured_path(&parameters)).await
    }

    pub(super) async fn captured_message(&self, id: MessageId) -> Result<Read, Failure> {
        self.get(&format!("/api/v1/captured/{id}")).await
    }

    /// The bytes of the source or of an attachment.
    pub(super) async fn captured_part(&self, id: MessageId, part: &str) -> Result<Bytes, Failure> {
        let path = format!("/api/v1/captured/{id}/{part}");
        let (status, body) = self.talk(Method::GET, &path, None, Bytes::new(), ANSWER_TIMEOUT).await?;
        if status.is_success() { Ok(body) } else { Err(self.refused(status, &body)) }
    }

    /// Gives the number of recipients.
    pub(super) async fn release_captured(&self, id: MessageId, to: &[String]) -> Result<usize, Failure> {
        let to = (!to.is_empty()).then(|| Many::All(to.to_vec()));
        let body = serde_json::to_vec(&ReleaseBody { to }).map_err(|error| Failure::new(error.to_string()))?;
        let path = format!("/api/v1/captured/{id}/release");
        let answer: ReleaseAnswer = self.post(&path, "application/json", body.into()).await?;
        Ok(answer.recipients)
    }

    pub(super) async fn delete_one_captured(&self, id: MessageId) -> Result<usize, Failure> {
        let path = format!("/api/v1/captured/{id}");
        let answer: DeleteAnswer = self.ask(Method::DELETE, &path, None, Bytes::new()).await?;
        Ok(answer.messages)
    }

    /// Without filters all; gives the number of messages.
    pub(super) async fn delete_captured(&self, filters: &Filters) -> Result<usize, Failure> {
        let path = captured_path(&filters.parameters());
        let answer: DeleteAnswer = self.ask(Method::DELETE, &path, None, Bytes::new()).await?;
        Ok(answer.messages)
    }

    pub(super) async fn submit(&self, from: &str, to: &[String], raw: Bytes) -> Result<MessageId, Failure> {
        let parameters = std::iter::once(("from", from)).chain(to.iter().map(|to| ("to", to.as_str())));
        let path = format!("/api/v1/messages?{}", query(parameters));
        let answer: SubmitAnswer = self.post(&path, "message/rfc822", raw).await?;
        Ok(answer.id)
    }

    /// A refusal is an answer, too.
    pub(super) async fn reload(&self) -> Result<ReloadAnswer, Failure> {
        let kind = Some("application/json");
        let (status, body) = self.talk(Method::POST, "/api/v1/reload", kind, Bytes::new(), ANSWER_TIMEOUT).await?;
        serde_json::from_slice(&body).map_err(|_| self.refused(status, &body))
    }

    pub(super) async fn status(&self) -> Result<ServerStatus, Failure> {
        self.get("/api/v1/status").await
    }

    /// Whether mail can be taken. A 503 is an answer, too.
    pub(super) async fn readiness(&self) -> Result<Readiness, Failure> {
        let (status, body) = self.talk(Method::GET, "/readyz", None, Bytes::new(), HEALTH_TIMEOUT).await?;
        serde_json::from_slice(&body).map_err(|_| self.refused(status, &body))
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.ask(Method::GET, path, None, Bytes::new()).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str, kind: &str, body: Bytes) -> Result<T, Failure> {
        self.ask(Method::POST, path, Some(kind), body).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Bytes,
    ) -> Result<T, Failure> {
        let answer = self.talk(method, path, kind, body, ANSWER_TIMEOUT).await?;
        self.understand(answer)
    }

    async fn talk(
        &self,
        method: Method,
        path: &str,
        kind: Option<&str>,
        body: Bytes,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(&error))?;
        let request = Request::builder().method(method).uri(path).header(header::HOST, "postrider");
        let request = match kind {
            Some(kind) => request.header(header::CONTENT_TYPE, kind),
            None => request,
        };
        let request = request.body(Full::new(body)).map_err(|error| Failure::new(error.to_string()))?;
        let answered = tokio::time::timeout(patience, exchange(stream, request)).await;
        answered
            .map_err(|_| self.broken(&format!("no answer in {} s", patience.as_secs())))?
            .map_err(|error| self.broken(&error))
    }

    fn understand<T: DeserializeOwned>(&self, (status, body): (StatusCode, Bytes)) -> Result<T, Failure> {
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                self.broken(&format!("the answer is not understood ({error}); is the server of another version?"))
            });
        }
        Err(self.refused(status, &body))
    }

    fn refused(&self, status: StatusCode, body: &[u8]) -> Failure {
        match serde_json::from_slice::<ErrorAnswer>(body) {
            // It does not understand what was asked for: that is wrong in the command.
            Ok(answer) if status == StatusCode::BAD_REQUEST => Failure::usage(answer.error).remedy(answer.remedy),
            Ok(answer) => Failure::new(answer.error).remedy(answer.remedy),
            Err(_) => self.broken(&format!("the server answered {status}")),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Failure::new(format!("no server is running: nobody answers on {socket}"))
                    .remedy("start it with `postrider serve`, or name the server's configuration with --config")
            }
            io::ErrorKind::PermissionDenied => Failure::new(format!("{socket} may not be opened by this user"))
                .remedy("run the command as the user who runs the server, or as root"),
            _ => Failure::new(format!("{socket}: {error}")).remedy("check data_dir in the configuration"),
        }
    }

    fn broken(&self, why: &str) -> Failure {
        Failure::new(format!("the server on {} could not be asked: {why}", self.socket.display()))
            .remedy("look into the server's log, then try again")
    }
}

fn events_path(parameters: &[(&str, String)]) -> String {
    format!("/api/v1/events?{}", query(parameters.iter().map(|(name, value)| (*name, value.as_str()))))
}

fn captured_path(parameters: &[(&str, String)]) -> String {
    format!("/api/v1/captured?{}", query(parameters.iter().map(|(name, value)| (*name, value.as_str()))))
}

async fn exchange(stream: UnixStream, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
    };
    // The connection only moves the bytes of this one request; its own error comes out of `talk` too.
    let connection = async {
        let _ = connection.await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        result = talk => result,
        () = connection => Err("the connection ended".to_owned()),
    }
}

/// `a=1&b=two%20words`
fn query<'a>(parameters: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut out = String::new();
    for (name, value) in parameters {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                out.push(byte.into());
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn parameters_are_escaped() {
        let parameters = [("to", "a+b&c@example.net"), ("to", "ü")];
        assert_eq!(query(parameters.into_iter()), "to=a%2Bb%26c%40example.net&to=%C3%BC");
    }

    #[tokio::test]
    async fn without_a_server_the_socket_and_the_remedy_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let failure = Client::new(folder.path()).status().await.unwrap_err();
        let text = failure.to_string();
        assert!(text.contains("admin.sock") && text.contains("postrider serve"), "{text}");
    }
}
