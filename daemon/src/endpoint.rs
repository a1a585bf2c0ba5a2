//! Answers `GET /metrics`, on a TCP address or a Unix socket.
//!
//! Every mount has a socket of its own beside its record; `--metrics` adds an address for scrapers. One request a connection,
//! few connections at a time, and little time for each: whoever can connect can neither hold memory nor threads.

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::{TcpListener as StdTcpListener, ToSocketAddrs as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lazo_storage::metrics::{CONTENT_TYPE as METRICS_TYPE, Metrics};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Connections of one endpoint at a time; more wait to be accepted. A scraper has one.
const MAX_CONNECTIONS: usize = 8;

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may last in all, the time in which the client reads the answer included.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);

/// Bytes of a request's head, and of what a connection buffers. hyper takes no less than 8 KiB.
const MAX_HEAD: usize = 8 << 10;

/// Connections that the kernel holds until they are accepted: a node's containers that start at once, while a worker begins.
const BACKLOG: i32 = 512;

/// After a failed accept, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The one path.
const PATH: &str = "/metrics";

/// Where metrics can be read: `HOST:PORT` or `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddr {
    /// A host and port to listen at.
    Tcp(String),
    /// A socket file to make.
    Unix(PathBuf),
}

impl FromStr for MetricsAddr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { Err("no path behind unix:".into()) } else { Ok(Self::Unix(path.into())) };
        }
        let port = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
        match port {
            Some(Ok(_)) => Ok(Self::Tcp(text.to_owned())),
            _ => Err("neither HOST:PORT nor unix:PATH".into()),
        }
    }
}

impl fmt::Display for MetricsAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// An address that is answered until this is dropped. A socket file goes with it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    task: JoinHandle<()>,
    file: Option<PathBuf>,
}

impl Endpoint {
    /// Listens at an address.
    pub(crate) fn start(address: &MetricsAddr, metrics: Arc<Metrics>, runtime: &Handle) -> io::Result<Self> {
        // The listeners need a runtime to be made in.
        let _entered = runtime.enter();
        match address {
            MetricsAddr::Tcp(address) => {
                let listener = listen_tcp(address)?;
                tracing::info!(address = %listener.local_addr()?, "metrics can be read here");
                let accept = move || {
                    let listener = Arc::clone(&listener);
                    async move { Ok(listener.accept().await?.0) }
                };
                Ok(Self { task: runtime.spawn(serve(accept, metrics)), file: None })
            }
            MetricsAddr::Unix(path) => {
                let listener = listen_unix(path)?;
                let accept = move || {
                    let listener = Arc::clone(&listener);
                    async move { Ok(listener.accept().await?.0) }
                };
                Ok(Self { task: runtime.spawn(serve(accept, metrics)), file: Some(path.clone()) })
            }
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(file) = &self.file {
            // If it stays, nobody listens there, and the next who wants the path takes it.
            let _ = fs::remove_file(file);
        }
    }
}

fn listen_tcp(address: &str) -> io::Result<Arc<TcpListener>> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for address in address.to_socket_addrs()? {
        let bound = StdTcpListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        match bound {
            Ok(listener) => return Ok(Arc::new(listener)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen_unix(path: &Path) -> io::Result<Arc<UnixListener>> {
    Ok(Arc::new(UnixListener::from_std(bind_unix(path, Mode::RUSR | Mode::WUSR)?)?))
}

/// Listens at a socket file that is made with this mode. One at which nobody listens is replaced.
///
/// # Errors
/// When somebody listens there, or something else than a socket is there.
pub fn bind_unix(path: &Path, mode: Mode) -> io::Result<StdUnixListener> {
    remove_dead_socket(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The file gets the mode that the socket has when it is bound, less the umask, so that nobody else can ever connect.
    rustix::fs::fchmod(&socket, mode)?;
    let (dir, address) = address_of(path)?;
    rustix::net::bind(&socket, &address)?;
    let name = path.file_name().unwrap_or_default();
    rustix::fs::chmodat(&dir, name, mode, rustix::fs::AtFlags::empty())?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(StdUnixListener::from(socket))
}

/// The address of a socket file whose path may be longer than the 107 bytes that an address has room for. It is good as long
/// as the descriptor is open.
pub(crate) fn address_of(path: &Path) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, "not the path of a file");
    let name = path.file_name().ok_or_else(bad)?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let dir =
        OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::DIRECTORY.bits().cast_signed()).open(dir)?;
    let address = SocketAddrUnix::new(Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name))?;
    Ok((dir.into(), address))
}

/// Removes a socket file at which nobody listens: that of a process which was killed.
fn remove_dead_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket"));
        }
        Ok(_) => {}
    }
    let (_dir, address) = address_of(path)?;
    // A live one that is busy does not make this wait.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Err(rustix::io::Errno::CONNREFUSED) => fs::remove_file(path),
        _ => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
    }
}

async fn serve<S, F>(accept: impl Fn() -> F, metrics: Arc<Metrics>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = io::Result<S>>,
{
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The semaphore is never closed.
    while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
        match accept().await {
            Ok(stream) => {
                let metrics = Arc::clone(&metrics);
                tokio::spawn(async move {
                    answer(stream, metrics).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, one request. What goes wrong is the client's to see.
async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, metrics: Arc<Metrics>) {
    let service = service_fn(move |request| {
        let response = respond(&request, &metrics);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
}

fn respond(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let text = |status, content_type, text: String| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response
    };
    let plain = "text/plain; charset=utf-8";
    if request.uri().path() != PATH {
        return text(StatusCode::NOT_FOUND, plain, format!("there is {PATH} only\n"));
    }
    // hyper leaves the body out of an answer to HEAD.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, plain, format!("{PATH} can only be read\n"));
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    text(StatusCode::OK, METRICS_TYPE, metrics.encode())
}
