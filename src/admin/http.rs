//! HTTP over TCP on `[admin] bind`: the API for whoever shows the token or an account's password (`caller`), and
//! the pages for people (`dashboard`).
//!
//! Bounded like all doors: so many connections at once, so long for the header of a request, so long for
//! a connection as a whole. There is no TLS here: loopback is the place for it, or behind a proxy.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::ConnectInfo;
use axum::middleware::from_fn_with_state;
use axum::routing::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::caller::{Gatekeeper, admit};
use super::{Backend, api, dashboard};
use crate::config::{Admin, Secret};
use crate::current::Current;

/// Connections served at once; more wait in the backlog.
pub const CONNECTIONS_MAX: usize = 256;
/// From one request to the end of the header of the next.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection with all its requests takes no longer.
const CONNECTION_MAX: Duration = Duration::from_secs(3600);
/// Wait after a connection could not be taken (no file descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no HTTP, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("admin.bind = \"{address}\": {source}; is another program listening there?")]
pub struct HttpError {
    address: SocketAddr,
    source: io::Error,
}

/// The open port.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
    address: SocketAddr,
}

impl Http {
    /// Needs a tokio runtime around it.
    pub fn bind(admin: &Admin) -> Result<Http, HttpError> {
        let open = || -> io::Result<Http> {
            let listener = StdListener::bind(admin.bind)?;
            listener.set_nonblocking(true)?;
            let listener = TcpListener::from_std(listener)?;
            Ok(Http { address: listener.local_addr()?, listener })
        };
        open().map_err(|source| HttpError { address: admin.bind, source })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `shutdown`, then finishes the requests that have begun. `max_size`: bytes of a message.
    pub async fn serve<B: Backend>(
        self,
        backend: Arc<B>,
        token: impl Into<Current<Secret>>,
        max_size: impl Into<Current<u64>>,
        shutdown: CancellationToken,
    ) {
        let token = token.into();
        let keeper = Arc::new(Gatekeeper { backend: backend.clone(), token: token.clone() });
        let api = api::router(backend.clone(), max_size.into()).layer(from_fn_with_state(keeper, admit::<B>));
        // The pages ask for their visitors themselves; what is not one of them is the API's.
        let router = dashboard::router(backend, token).fallback_service(api);
        let (free, connections) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), TaskTracker::new());
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = async {
                    // The semaphore is never closed; were it, there would be no bound, which is the lesser harm.
                    let permit = free.clone().acquire_owned().await.ok();
                    self.listener.accept().await.map(|(stream, peer)| (stream, peer, permit))
                } => accepted,
            };
            let Ok((stream, peer, permit)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (router, shutdown) = (router.clone(), shutdown.clone());
            connections.spawn(async move {
                // A client that takes too long, or leaves, is nobody's trouble.
                let _ = timeout(CONNECTION_MAX, converse(stream, peer, router, shutdown)).await;
                drop(permit);
            });
        }
        connections.close();
        connections.wait().await;
    }
}

async fn converse(stream: TcpStream, peer: SocketAddr, router: Router, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(router.layer(Extension(ConnectInfo(peer))));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
