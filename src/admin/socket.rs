//! The socket `data_dir/admin.sock`: opened for its owner alone, served with bounds, removed at the
//! end. One server a folder: if another one answers, opening fails.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use socket2::{SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{Backend, SOCKET_NAME, api};
use crate::current::Current;

/// Connections served at once; more wait in the backlog.
pub const CONNECTIONS_MAX: usize = 64;
/// Connections that the kernel keeps waiting.
const BACKLOG: i32 = 128;

/// Why the socket cannot be opened, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("another postrider is running with this data_dir (it answers on {0}); stop it first")]
    Running(PathBuf),
    #[error("{0} is not a socket; move it away, the server needs that name")]
    NotASocket(PathBuf),
    #[error("{path}: {source}; the path of the socket may have about 100 bytes, so choose a shorter data_dir")]
    BadPath { path: PathBuf, source: io::Error },
    #[error("{path}: {source}; the user who runs the server must be able to write to this folder")]
    Io { path: PathBuf, source: io::Error },
}

/// The open socket. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Nothing depends on it: the next start removes what is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl AdminSocket {
    /// Opens the socket in this folder. Needs a tokio runtime around it.
    pub fn bind(data_dir: &Path) -> Result<AdminSocket, SocketError> {
        let path = data_dir.join(SOCKET_NAME);
        remove_stale(&path)?;
        let address = SockAddr::unix(&path).map_err(|source| SocketError::BadPath { path: path.clone(), source })?;
        let open = || -> io::Result<UnixListener> {
            let socket = Socket::new(socket2::Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&address)?;
            // Before listen(2), so that nobody can connect while the mode is what the umask left.
            std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            UnixListener::from_std(socket.into())
        };
        let listener = open().map_err(|source| SocketError::Io { path: path.clone(), source })?;
        Ok(AdminSocket { listener, file: SocketFile(path) })
    }

    pub fn path(&self) -> &Path {
        &self.file.0
    }

    /// Answers until `shutdown`, then finishes what has begun. `max_size`: bytes of a message that
    /// is submitted here.
    pub async fn serve<B: Backend>(
        self,
        backend: Arc<B>,
        max_size: impl Into<Current<u64>>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let gate = Gate { listener: self.listener, free: Arc::new(Semaphore::new(CONNECTIONS_MAX)) };
        let router = api::router(backend, max_size.into());
        let result = axum::serve(gate, router).with_graceful_shutdown(shutdown.cancelled_owned()).await;
        drop(self.file);
        result
    }
}

/// A socket that nobody answers on is left from a server that was killed.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |source| SocketError::Io { path: path.to_owned(), source };
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(SocketError::Running(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path).map_err(failed),
        Err(error) => Err(failed(error)),
    }
}

/// Takes a connection only when one is free to serve it.
struct Gate {
    listener: UnixListener,
    free: Arc<Semaphore>,
}

impl axum::serve::Listener for Gate {
    type Io = Admitted;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Admitted, Self::Addr) {
        // The semaphore is never closed; were it, there would be no bound, which is the lesser harm.
        let permit = self.free.clone().acquire_owned().await.ok();
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (Admitted { stream, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// A connection with its place among [`CONNECTIONS_MAX`].
struct Admitted {
    stream: UnixStream,
    _permit: Option<OwnedSemaphorePermit>,
}

impl AsyncRead for Admitted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Admitted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn one_server_a_folder_and_stale_sockets_go() {
        let folder = tempfile::tempdir().unwrap();
        let first = AdminSocket::bind(folder.path()).unwrap();
        let mode = std::fs::metadata(first.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(AdminSocket::bind(folder.path()), Err(SocketError::Running(_))));
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists());

        // Left behind by a killed server: the listener is gone, the file is not.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        AdminSocket::bind(folder.path()).unwrap();
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(SOCKET_NAME), "precious").unwrap();
        assert!(matches!(AdminSocket::bind(folder.path()), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read(folder.path().join(SOCKET_NAME)).unwrap(), b"precious");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_is_said_so() {
        let folder = tempfile::tempdir().unwrap().path().join("x".repeat(120));
        assert!(matches!(AdminSocket::bind(&folder), Err(SocketError::BadPath { .. })));
    }
}
