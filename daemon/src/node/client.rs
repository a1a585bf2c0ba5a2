//! Talks to a running daemon. Calls block, each for a limited time; what a restart of the worker interrupts is done again.

use std::io;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::runtime::Builder;

use super::protocol::{
    ApiError, ErrorKind, Health, ImageInfo, MountInfo, MountRequest, ReferencesRequest, ReleaseRequest, Released,
    SOCKET, StopInfo, StopRequest, UmountRequest, UpgradeInfo, UpgradeRequest, Version, WarmRequest,
};
use super::stats::Stats;
use crate::endpoint;

/// How long the daemon may take to say something about itself: a worker that is started again has most of this.
const LOOK: Duration = Duration::from_secs(20);

/// How long a mount may take: a registry that does not answer is tried several times, a minute each.
const MOUNT: Duration = Duration::from_secs(15 * 60);

/// How long an unmount may take.
const UMOUNT: Duration = Duration::from_secs(60);

/// How long an upgrade may take: a program that does not get ready has 20 s for it, and then the one before is used again.
const UPGRADE: Duration = Duration::from_secs(120);

/// Between two tries, while a worker is started again.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest answer, bytes: ten thousands of mounts.
const MAX_ANSWER: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is one: no.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The kernel does not let us connect.
    #[error("a node daemon listens at {}, but this user may not talk to it", socket.display())]
    Denied {
        /// Its socket.
        socket: PathBuf,
    },
    /// It does not answer.
    #[error("the node daemon at {} does not answer within {} s; its log says why", socket.display(), limit.as_secs())]
    Silent {
        /// Its socket.
        socket: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// The connection.
    #[error("cannot talk to the node daemon at {}", socket.display())]
    Broken {
        /// Its socket.
        socket: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl ClientError {
    /// What the daemon has against it, if it was the daemon.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(error) => Some(error.kind),
            _ => None,
        }
    }
}

/// Shorthand for this module's results.
pub type Result<T, E = ClientError> = std::result::Result<T, E>;

/// A running daemon, or another process of lazo that answers at a socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon of a run directory, if one listens there.
    ///
    /// # Errors
    /// When one listens, and this process cannot connect.
    pub fn find(run_dir: &Path) -> Result<Option<Self>> {
        let client = Self::at(run_dir.join(SOCKET));
        match client.connect() {
            Ok(_) => Ok(Some(client)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory => Ok(None),
                _ => Err(client.broken(error)),
            },
        }
    }

    /// Whoever listens at a socket.
    #[must_use]
    pub fn at(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Which daemon it is.
    ///
    /// # Errors
    /// [`ClientError`], as for all that follow.
    pub fn version(&self) -> Result<Version> {
        self.look("/v1/version")
    }

    /// How it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn health(&self) -> Result<Health> {
        self.look("/v1/health")
    }

    /// All mounts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn mounts(&self) -> Result<Vec<MountInfo>> {
        self.look("/v1/mounts")
    }

    /// All images.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn images(&self) -> Result<Vec<ImageInfo>> {
        self.look("/v1/images")
    }

    /// Its figures.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stats(&self) -> Result<Stats> {
        self.look("/v1/stats")
    }

    /// The figures of any process of lazo, a mount's own one too.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn scrape(&self) -> Result<Stats> {
        let answer = self.call(Method::GET, "/metrics", Bytes::new(), Instant::now() + LOOK, LOOK)?;
        Ok(Stats::scraped(&String::from_utf8_lossy(&answer)))
    }

    /// Mounts an image.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn mount(&self, request: &MountRequest) -> Result<MountInfo> {
        let until = Instant::now() + MOUNT;
        let mut interrupted = false;
        loop {
            match self.send(Method::POST, "/v1/mounts", request, until, MOUNT) {
                Err(error @ ClientError::Broken { .. }) if !interrupted => {
                    tracing::debug!(%error, "asking again");
                    interrupted = true;
                }
                // It was made before the worker that was to say so ended.
                Err(error) if interrupted && error.kind() == Some(ErrorKind::Exists) => {
                    let ours = |m: &MountInfo| m.mount_point == request.mount_point && m.image == request.image;
                    return self.mounts()?.into_iter().find(ours).ok_or(error);
                }
                result => return result,
            }
        }
    }

    /// Ends a mount.
    ///
    /// # Errors
    /// [`ClientError`]; of [`ErrorKind::NotFound`] if the daemon has no such mount.
    pub fn umount(&self, mount_point: &Path, lazy: bool) -> Result<()> {
        let until = Instant::now() + UMOUNT;
        let request = UmountRequest { mount_point: mount_point.to_owned(), lazy };
        let mut interrupted = false;
        loop {
            match self.send(Method::DELETE, "/v1/mounts", &request, until, UMOUNT) {
                Err(ClientError::Broken { .. }) if !interrupted => interrupted = true,
                Err(error) if interrupted && error.kind() == Some(ErrorKind::NotFound) => return Ok(()),
                result => return result,
            }
        }
    }

    /// Lets the daemon connect and log in to where an image's blobs are, before they are wanted. Returns at once.
    ///
    /// # Errors
    /// [`ClientError`]; not when the image's registry cannot be reached.
    pub fn warm(&self, image: &str) -> Result<()> {
        let request = WarmRequest { image: image.to_owned() };
        self.send(Method::POST, "/v1/warm", &request, Instant::now() + LOOK, LOOK)
    }

    /// Says by which names a mounted image is known: all of them, from now on.
    ///
    /// # Errors
    /// [`ClientError`]; not when one of the registries cannot be reached.
    pub fn refer(&self, mount_point: &Path, images: Vec<String>) -> Result<()> {
        let request = ReferencesRequest { mount_point: mount_point.to_owned(), images };
        self.send(Method::POST, "/v1/references", &request, Instant::now() + UMOUNT, UMOUNT)
    }

    /// Takes blobs out of the cache that nobody mounts.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn release(&self, blobs: Vec<String>) -> Result<Released> {
        self.send(Method::POST, "/v1/cache/release", &ReleaseRequest { blobs }, Instant::now() + UMOUNT, UMOUNT)
    }

    /// Ends the daemon: now if it is forced to, and otherwise when nobody uses what it serves.
    ///
    /// # Errors
    /// [`ClientError`]; of [`ErrorKind::Invalid`] when a service manager would start it again.
    pub fn stop(&self, force: bool) -> Result<StopInfo> {
        self.send(Method::POST, "/v1/stop", &StopRequest { force }, Instant::now() + UMOUNT, UMOUNT)
    }

    /// Replaces the daemon's program.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn upgrade(&self, binary: Option<&Path>) -> Result<UpgradeInfo> {
        let until = Instant::now() + UPGRADE;
        let before = self.health()?;
        let request = UpgradeRequest { binary: binary.map(Path::to_owned) };
        let begin = Instant::now();
        let version = match self.send::<UpgradeInfo>(Method::POST, "/v1/upgrade", &request, until, UPGRADE) {
            Ok(info) if info.worker_pid != before.worker_pid => return Ok(info),
            // Of an older version: the worker that was asked is the one that ends.
            Ok(info) => Some(info.version),
            Err(ClientError::Broken { .. }) => None,
            Err(error) => return Err(error),
        };
        let health = loop {
            let health = self.health()?;
            if health.upgrades > before.upgrades {
                break health;
            }
            if Instant::now() > until {
                return Err(ClientError::Silent { socket: self.socket.clone(), limit: UPGRADE });
            }
            std::thread::sleep(PAUSE);
        };
        let pause_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        let now = self.version()?.version;
        match version {
            Some(wanted) if wanted != now => {
                let error =
                    format!("lazo {wanted} did not get ready, so that {now} serves again; the daemon's log says why");
                Err(ApiError::new(ErrorKind::Internal, error).into())
            }
            _ => Ok(UpgradeInfo { version: now, worker_pid: health.worker_pid, pause_ms }),
        }
    }

    fn look<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let until = Instant::now() + LOOK;
        loop {
            match self.call(Method::GET, path, Bytes::new(), until, LOOK) {
                // Refused: there is no supervisor any more.
                Err(ClientError::Broken { source, .. })
                    if source.kind() != io::ErrorKind::ConnectionRefused && Instant::now() < until =>
                {
                    std::thread::sleep(PAUSE);
                }
                result => return self.parse(&result?),
            }
        }
    }

    fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        request: &impl Serialize,
        until: Instant,
        limit: Duration,
    ) -> Result<T> {
        let body = serde_json::to_vec(request).map_err(|error| {
            ApiError::new(ErrorKind::Invalid, format!("the node daemon takes paths that are UTF-8 only: {error}"))
        })?;
        let body = Bytes::from(body);
        let patience = until.min(Instant::now() + LOOK);
        loop {
            match self.call(method.clone(), path, body.clone(), until, limit) {
                // A worker that ends takes no more; the next one will.
                Err(error) if error.kind() == Some(ErrorKind::Unavailable) && Instant::now() < patience => {
                    std::thread::sleep(PAUSE);
                }
                result => return self.parse(&result?),
            }
        }
    }

    fn parse<T: DeserializeOwned>(&self, answer: &[u8]) -> Result<T> {
        serde_json::from_slice(answer).map_err(|error| self.broken(error.into()))
    }

    fn broken(&self, source: io::Error) -> ClientError {
        let socket = self.socket.clone();
        match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Denied { socket },
            _ => ClientError::Broken { socket, source },
        }
    }

    fn connect(&self) -> io::Result<StdUnixStream> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let (_dir, address) = endpoint::address_of(&self.socket)?;
        rustix::net::connect(&socket, &address)?;
        let stream = StdUnixStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(stream)
    }

    /// One request on a connection of its own; the body of a good answer.
    fn call(&self, method: Method, path: &str, body: Bytes, until: Instant, limit: Duration) -> Result<Bytes> {
        let stream = self.connect().map_err(|error| self.broken(error))?;
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|error| self.broken(error))?;
        let left = until.saturating_duration_since(Instant::now());
        let exchanged =
            runtime.block_on(async { tokio::time::timeout(left, exchange(stream, method, path, body)).await });
        match exchanged {
            Err(_) => Err(ClientError::Silent { socket: self.socket.clone(), limit }),
            Ok(Err(error)) => Err(self.broken(error)),
            Ok(Ok((status, body))) if status.is_success() => Ok(body),
            Ok(Ok((status, body))) => Err(serde_json::from_slice(&body)
                .unwrap_or_else(|_| ApiError::new(ErrorKind::Internal, format!("the daemon answered {status}")))
                .into()),
        }
    }
}

async fn exchange(stream: StdUnixStream, method: Method, path: &str, body: Bytes) -> io::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::from_std(stream)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let request = Request::builder().method(method).uri(path).header(HOST, "lazo");
    let request = request.header(CONTENT_TYPE, "application/json").body(Full::new(body)).map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.map_err(io::Error::other)?;
    connection.abort();
    Ok((status, body.to_bytes()))
}
