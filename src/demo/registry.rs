//! A read-only registry over OCI layout directories: what the OCI distribution spec asks of a pull, on a loopback port,
//! through a [`Link`] that is as slow as asked for, counting what it sends.

use std::collections::BTreeMap;
use std::io::SeekFrom;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use lazo_format::digest::Digest;
use serde_json::{Value, json};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::link::Link;

/// Bytes handed to the connection at a time: 2.6 ms at 200 Mbit/s, so that parallel replies share the link evenly.
const PIECE: usize = 64 * 1024;
/// Largest index.json or manifest that is read: the distribution spec's own suggested bound.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;

type Body = BoxBody<Bytes, std::io::Error>;

/// What a registry has answered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Requests of every kind.
    pub(crate) requests: u64,
    /// Bytes of bodies sent.
    pub(crate) bytes: u64,
}

impl Traffic {
    /// What came after `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { requests: self.requests - earlier.requests, bytes: self.bytes - earlier.bytes }
    }
}

struct Shared {
    layouts: BTreeMap<String, PathBuf>,
    link: Link,
    requests: AtomicU64,
    bytes: AtomicU64,
}

/// The running server; it stops when dropped.
pub(crate) struct Registry {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Registry {
    /// Serves each layout directory under its repository name, on a free port of 127.0.0.1.
    pub(crate) async fn start(layouts: BTreeMap<String, PathBuf>, link: Link) -> std::io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { layouts, link, requests: AtomicU64::new(0), bytes: AtomicU64::new(0) });
        let server = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { address, shared, server })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has answered so far.
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic {
            requests: self.shared.requests.load(Ordering::Relaxed),
            bytes: self.shared.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with the server: dropping the set aborts them.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // Delayed packets would add a latency that nobody stated.
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, std::convert::Infallible>(answer(&shared, &request).await) }
            });
            // A client that goes away in the middle is its own business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn answer(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<Body> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    shared.link.round_trip().await;
    let head = match *request.method() {
        Method::GET => false,
        Method::HEAD => true,
        _ => {
            let mut refused = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "read-only").response();
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
    };
    let range = request.headers().get(RANGE).and_then(|value| value.to_str().ok());
    let found = match route(request.uri().path()) {
        Some(Route::Base) => Ok(document(b"{}".to_vec(), "application/json", None)),
        Some(Route::Manifest { repository, reference }) => manifest(shared, repository, reference).await,
        Some(Route::Blob { repository, digest }) => blob(shared, repository, digest, range, head).await,
        None => Err(Refusal::not_found("NAME_UNKNOWN", request.uri().path())),
    };
    let response = found.unwrap_or_else(|refusal| refusal.response());
    if head {
        return response.map(|_| Full::default().map_err(|never| match never {}).boxed());
    }
    counted(shared, response)
}

enum Route<'a> {
    Base,
    Manifest { repository: &'a str, reference: &'a str },
    Blob { repository: &'a str, digest: &'a str },
}

fn route(path: &str) -> Option<Route<'_>> {
    let rest = path.strip_prefix("/v2")?;
    if rest.is_empty() || rest == "/" {
        return Some(Route::Base);
    }
    let (front, last) = rest.strip_prefix('/')?.rsplit_once('/')?;
    let (repository, kind) = front.rsplit_once('/')?;
    match kind {
        "manifests" => Some(Route::Manifest { repository, reference: last }),
        "blobs" => Some(Route::Blob { repository, digest: last }),
        _ => None,
    }
}

/// An error as the distribution spec words it.
struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn not_found(code: &'static str, what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, what)
    }

    fn broken(error: &std::io::Error) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string())
    }

    fn response(&self) -> Response<Body> {
        let errors = json!({ "errors": [{ "code": self.code, "message": self.message }] });
        let mut response = document(errors.to_string().into_bytes(), "application/json", None);
        *response.status_mut() = self.status;
        response
    }
}

fn document(bytes: Vec<u8>, media_type: &str, digest: Option<&Digest>) -> Response<Body> {
    let length = bytes.len();
    let mut response = Response::new(Full::from(bytes).map_err(|never| match never {}).boxed());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    if let Ok(media_type) = HeaderValue::from_str(media_type) {
        headers.insert(CONTENT_TYPE, media_type);
    }
    if let Some(digest) = digest {
        set_digest(&mut response, digest);
    }
    response
}

fn set_digest(response: &mut Response<Body>, digest: &Digest) {
    if let Ok(value) = HeaderValue::from_str(&digest.to_string()) {
        response.headers_mut().insert("docker-content-digest", value);
    }
}

fn layout<'a>(shared: &'a Shared, repository: &str) -> Result<&'a Path, Refusal> {
    let found = shared.layouts.get(repository).map(PathBuf::as_path);
    found.ok_or_else(|| Refusal::not_found("NAME_UNKNOWN", repository))
}

/// A digest is hexadecimal once parsed, so that no path can climb out of the layout.
fn blob_path(layout: &Path, digest: &Digest) -> PathBuf {
    layout.join("blobs").join(digest.to_string().replace(':', "/"))
}

async fn manifest(shared: &Shared, repository: &str, reference: &str) -> Result<Response<Body>, Refusal> {
    let layout = layout(shared, repository)?;
    let unknown = || Refusal::not_found("MANIFEST_UNKNOWN", reference);
    let digest = match Digest::from_str(reference) {
        Ok(digest) => digest,
        Err(_) => tagged(layout, reference).await?.ok_or_else(unknown)?,
    };
    let bytes = read_document(&blob_path(layout, &digest)).await?.ok_or_else(unknown)?;
    let parsed: Value = serde_json::from_slice(&bytes).map_err(|_| unknown())?;
    let media_type = parsed["mediaType"].as_str().unwrap_or(match parsed["manifests"] {
        Value::Array(_) => "application/vnd.oci.image.index.v1+json",
        _ => "application/vnd.oci.image.manifest.v1+json",
    });
    Ok(document(bytes, media_type, Some(&digest)))
}

/// The digest that the layout's index.json gives a tag.
async fn tagged(layout: &Path, tag: &str) -> Result<Option<Digest>, Refusal> {
    let bytes = read_document(&layout.join("index.json")).await?;
    let index: Value = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    let manifests = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
    let named = manifests.iter().find(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == tag);
    Ok(named.and_then(|entry| entry["digest"].as_str()).and_then(|digest| Digest::from_str(digest).ok()))
}

async fn read_document(path: &Path) -> Result<Option<Vec<u8>>, Refusal> {
    let file = match File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Refusal::broken(&error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT).read_to_end(&mut bytes).await.map_err(|error| Refusal::broken(&error))?;
    Ok(Some(bytes))
}

async fn blob(
    shared: &Shared,
    repository: &str,
    digest: &str,
    range: Option<&str>,
    head: bool,
) -> Result<Response<Body>, Refusal> {
    let unknown = || Refusal::not_found("BLOB_UNKNOWN", digest);
    let digest = Digest::from_str(digest).map_err(|_| unknown())?;
    let path = blob_path(layout(shared, repository)?, &digest);
    let mut file = File::open(&path).await.map_err(|_| unknown())?;
    let size = file.metadata().await.map_err(|error| Refusal::broken(&error))?.len();
    let part = match range.filter(|_| !head).map(|range| byte_range(range, size)) {
        None | Some(Range::Whole) => None,
        Some(Range::Part { first, last }) => Some((first, last)),
        Some(Range::Unsatisfiable) => {
            return Err(Refusal::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "SIZE_INVALID",
                format!("blob has {size} bytes"),
            ));
        }
    };
    let (start, length) = part.map_or((0, size), |(first, last)| (first, last - first + 1));
    file.seek(SeekFrom::Start(start)).await.map_err(|error| Refusal::broken(&error))?;
    let mut response = Response::new(StreamBody::new(pieces(file, length)).boxed());
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some((first, last)) = part
        && let Ok(value) = HeaderValue::from_str(&format!("bytes {first}-{last}/{size}"))
    {
        headers.insert(CONTENT_RANGE, value);
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    set_digest(&mut response, &digest);
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// No range that this server knows: RFC 9110 has it ignored.
    Whole,
    Part {
        first: u64,
        last: u64,
    },
    Unsatisfiable,
}

/// Reads a Range header's value against a blob of `size` bytes. Several ranges at once are not supported.
fn byte_range(value: &str, size: u64) -> Range {
    let Some((first, last)) = value.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Range::Whole;
    };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, size.saturating_sub(1)),
        (Err(_), Ok(suffix)) if first.is_empty() && suffix > 0 => (size.saturating_sub(suffix), size.saturating_sub(1)),
        (Err(_), Ok(0)) if first.is_empty() => return Range::Unsatisfiable,
        _ => return Range::Whole,
    };
    if first >= size { Range::Unsatisfiable } else { Range::Part { first, last } }
}

/// The next `length` bytes of a file; a file that ends early is an error, which cuts the connection.
fn pieces(file: File, length: u64) -> impl Stream<Item = std::io::Result<Frame<Bytes>>> + Send + Sync + 'static {
    stream::try_unfold((file, length), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
        file.read_exact(&mut piece).await?;
        let left = left - piece.len() as u64;
        Ok(Some((Frame::data(Bytes::from(piece)), (file, left))))
    })
}

/// Sends a body through the link, counting it.
fn counted(shared: &Arc<Shared>, response: Response<Body>) -> Response<Body> {
    let shared = Arc::clone(shared);
    response.map(|body| {
        let frames = stream::try_unfold((body, shared), |(mut body, shared)| async move {
            let Some(frame) = body.frame().await else { return Ok(None) };
            let frame = frame?;
            if let Some(data) = frame.data_ref() {
                shared.link.pass(data.len()).await;
                shared.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            Ok(Some((frame, (body, shared))))
        });
        StreamBody::new(frames).boxed()
    })
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
