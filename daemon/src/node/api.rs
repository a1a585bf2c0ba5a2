//! The control API: HTTP and JSON over a Unix socket. `protocol` has the types, docs/API.md the words.
//!
//! Whoever can connect can neither hold memory nor threads: connections, requests under way, and the length of and the time for
//! each request are bounded. What waits for an image's registry is bounded apart from the rest, so that images which cannot be
//! had do not keep anybody from looking, nor from unmounting, nor from mounting an image whose files are at hand.

mod connection;
#[cfg(any(test, fuzzing))]
pub(in crate::node) mod fuzz;
mod peer;
mod room;
mod spare;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use lazo_base::lines::Lines;
use lazo_storage::cache::admin::{CachedBlob, Inventory, Removed};
use lazo_storage::metrics::{CONTENT_TYPE as METRICS_TYPE, Metrics};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

use super::config::MAX_OUTAGE_LIMIT;
use super::files;
use super::protocol::{
    API_VERSION, ApiError, ErrorKind, Health, ImageInfo, MAX_REFERENCES, MountInfo, MountRequest, PruneRequest,
    ReferencesRequest, ReleaseRequest, Released, StopInfo, StopRequest, UmountRequest, UpgradeInfo, UpgradeRequest,
    Version, WarmRequest,
};
use super::stats::Stats;
use connection::Connection;
use peer::User;
pub(super) use peer::{Access, listen};
use room::Room;
use spare::Spare;

/// Connections at a time; more wait in the kernel. Each holds at most [`MAX_HEAD`] bytes and what [`MAX_CHANGES`] and
/// [`MAX_VIEWS`] let through; that they are many keeps those who wait for their images from shutting out the others.
const MAX_CONNECTIONS: usize = 512;

/// Of the files that may be open, this part may be connections.
const CONNECTIONS_PART: u64 = 4;

/// Connections of those who may not use the API, at a time, for as long as they are told so; more are closed at once.
const MAX_STRANGERS: usize = 8;

/// Mounts of images whose files are at hand, prunes and upgrades at a time; others wait. None of them waits for a registry.
const MAX_CHANGES: usize = 64;

/// Mounts of images by their names at a time. Each may wait for a registry, so those on top are refused rather than kept waiting:
/// a quarter of the connections is left to all others.
const MAX_NAMED: usize = MAX_CONNECTIONS - 128;

/// Unmounts and answers being made at a time; others wait. All of them are short.
const MAX_VIEWS: usize = 64;

/// Longest body of a request, bytes: a list of blobs to release has 75 for each.
const MAX_BODY: usize = 256 << 10;

/// Longest body of a request for a mount, bytes, as hundreds of them may wait for their images. One with a hundred sources has 10 KB.
const MAX_MOUNT: usize = 64 << 10;

/// Bytes of a request's head, and of what a connection buffers.
const MAX_HEAD: usize = 16 << 10;

/// How long a client may take to send the head of a request, and to be silent between two.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long it may take to send the body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// After a failed accept, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What the API shows and changes.
pub(super) trait Node: Send + Sync + 'static {
    /// Mounts an image. All paths were checked to be absolute and without `..`. When nobody waits for the answer any more and this is
    /// dropped, the mount is either not made, or made and then ended.
    fn mount(&self, request: MountRequest) -> impl Future<Output = Result<MountInfo, ApiError>> + Send;

    /// Begins to prepare for an image.
    fn warm(&self, image: String) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Says by which names the image of a mount is known; a mount that is not there is [`ErrorKind::NotFound`].
    fn refer(&self, mount_point: PathBuf, images: Vec<String>) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// Ends a mount; one that is not there is [`ErrorKind::NotFound`].
    fn umount(&self, mount_point: PathBuf, lazy: bool) -> impl Future<Output = Result<(), ApiError>> + Send;

    /// All mounts, in the order in which they were made.
    fn mounts(&self) -> Vec<MountInfo>;

    /// All images that are mounted.
    fn images(&self) -> Vec<ImageInfo>;

    /// How it is.
    fn health(&self) -> Health;

    /// Whether it makes mounts.
    fn is_ready(&self) -> bool;

    /// Where the cache is.
    fn state_dir(&self) -> &Path;

    /// Something was taken out of the cache.
    fn removed(&self);

    /// What is counted.
    fn metrics(&self) -> &Arc<Metrics>;

    /// Ends the daemon, at once or when nothing is in use any more.
    fn stop(&self, force: bool) -> impl Future<Output = Result<StopInfo, ApiError>> + Send;

    /// Replaces the program. Whoever asks is answered on his connection when another worker serves.
    fn upgrade(
        &self,
        binary: Option<PathBuf>,
        connection: Option<Arc<UnixStream>>,
    ) -> impl Future<Output = Result<UpgradeInfo, ApiError>> + Send;
}

/// Answers at a socket until it is dropped.
///
/// # Errors
/// When the socket cannot be used at all.
pub(super) async fn serve<N: Node>(listener: StdUnixListener, access: Access, node: Arc<N>) -> io::Result<Infallible> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    // Where few files may be open, most of them are for other things.
    let most = usize::try_from(files::limit() / CONNECTIONS_PART).unwrap_or(usize::MAX).clamp(1, MAX_CONNECTIONS);
    let (connections, strangers) = (Arc::new(Semaphore::new(most)), Arc::new(Semaphore::new(MAX_STRANGERS)));
    let (mut spare, lines) = (Spare::new(), Lines::new());
    let room = Arc::new(Room::new(most));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let allowed = access.check(&stream);
                let permit = match &allowed {
                    Ok(_) => Arc::clone(&connections).acquire_owned().await.map_err(io::Error::other)?,
                    Err(_) => match Arc::clone(&strangers).try_acquire_owned() {
                        Ok(permit) => permit,
                        Err(_) => continue,
                    },
                };
                let (node, room) = (Arc::clone(&node), Arc::clone(&room));
                tokio::spawn(async move {
                    let stream = Arc::new(stream);
                    answer(Connection(Arc::clone(&stream)), allowed, node, room, Some(stream)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                lines.write(|left_out| {
                    tracing::warn!(%error, left_out, "cannot accept a connection to the control socket");
                });
                if is_no_room(&error) {
                    spare.refuse_one(&listener).await;
                } else {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Whether no more files can be opened, by this process or by all.
fn is_no_room(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// One connection. What goes wrong with it is the client's to see.
async fn answer<N: Node>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    allowed: Result<User, ApiError>,
    node: Arc<N>,
    room: Arc<Room>,
    connection: Option<Arc<UnixStream>>,
) {
    let stranger = allowed.is_err();
    let service = service_fn(move |request| {
        let (node, room, allowed) = (Arc::clone(&node), Arc::clone(&room), allowed.clone());
        let connection = connection.clone();
        async move {
            let answer = match allowed {
                Ok(user) => respond(request, user, &node, &room, connection).await,
                Err(denied) => Err(denied),
            };
            Ok::<_, Infallible>(answer.unwrap_or_else(|error| refuse(&error)))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(!stranger)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let _ = connection.await;
}

type Answer = Response<Full<Bytes>>;

/// What there is, and what can be done with it.
const PATHS: [(&str, &str); 14] = [
    ("/v1/version", "GET, HEAD"),
    ("/v1/health", "GET, HEAD"),
    ("/v1/ready", "GET, HEAD"),
    ("/v1/mounts", "GET, HEAD, POST, DELETE"),
    ("/v1/references", "POST"),
    ("/v1/images", "GET, HEAD"),
    ("/v1/stats", "GET, HEAD"),
    ("/v1/cache", "GET, HEAD"),
    ("/v1/cache/prune", "POST"),
    ("/v1/cache/release", "POST"),
    ("/v1/warm", "POST"),
    ("/v1/stop", "POST"),
    ("/v1/upgrade", "POST"),
    ("/metrics", "GET, HEAD"),
];

async fn respond<N: Node>(
    request: Request<Incoming>,
    user: User,
    node: &Arc<N>,
    room: &Room,
    connection: Option<Arc<UnixStream>>,
) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    let Some((_, methods)) = PATHS.iter().find(|(known, _)| *known == path) else {
        return Err(ApiError::new(ErrorKind::NotFound, format!("there is no {path}; docs/API.md has what there is")));
    };
    if !methods.split(", ").any(|method| method == head.method.as_str()) {
        return Ok(wrong_method(path, methods));
    }
    match (&head.method, path) {
        (&Method::POST, "/v1/mounts") => {
            let request = {
                let _permit = room.views.acquire().await.map_err(internal)?;
                read_up_to(MAX_MOUNT, body).await?
            };
            let _permit = room.mount(&request).await?;
            json(&mount(MountRequest { user, ..request }, node).await?)
        }
        (&Method::DELETE, _) => {
            let _permit = room.views.acquire().await.map_err(internal)?;
            let UmountRequest { mount_point, lazy } = read(body).await?;
            check_path(&mount_point)?;
            json(&finish(node, |node| async move { node.umount(mount_point, lazy).await }).await?)
        }
        (_, "/v1/references") => {
            let _permit = room.changes.acquire().await.map_err(internal)?;
            let ReferencesRequest { mount_point, images } = read(body).await?;
            check_path(&mount_point)?;
            check_count(images.len())?;
            json(&finish(node, |node| async move { node.refer(mount_point, images).await }).await?)
        }
        (_, "/v1/cache/prune" | "/v1/cache/release") => {
            let _permit = room.changes.acquire().await.map_err(internal)?;
            clear(path, body, node).await
        }
        (_, "/v1/warm") => {
            let _permit = room.views.acquire().await.map_err(internal)?;
            let WarmRequest { image } = read(body).await?;
            json(&node.warm(image).await?)
        }
        (_, "/v1/stop") => {
            let _permit = room.views.acquire().await.map_err(internal)?;
            let StopRequest { force } = read(body).await?;
            json(&finish(node, move |node| async move { node.stop(force).await }).await?)
        }
        (_, "/v1/upgrade") => {
            let _permit = room.changes.acquire().await.map_err(internal)?;
            let UpgradeRequest { binary } = read(body).await?;
            binary.iter().try_for_each(|binary| check_path(binary))?;
            json(&finish(node, |node| async move { node.upgrade(binary, connection).await }).await?)
        }
        _ => {
            let _permit = room.views.acquire().await.map_err(internal)?;
            show(path, node).await
        }
    }
}

/// Takes blobs out of the cache.
async fn clear<N: Node>(path: &str, body: Incoming, node: &Arc<N>) -> Result<Answer, ApiError> {
    let cleared = Arc::clone(node);
    if path == "/v1/cache/prune" {
        let PruneRequest { to } = read(body).await?;
        return json(&blocking(move || prune(&*cleared, to)).await?);
    }
    let ReleaseRequest { blobs } = read(body).await?;
    json(&blocking(move || release(&*cleared, blobs)).await?)
}

/// The answer to a `GET` of one of [`PATHS`].
async fn show<N: Node>(path: &str, node: &Arc<N>) -> Result<Answer, ApiError> {
    match path {
        "/v1/version" => json(&version(&**node)),
        "/v1/health" => json(&node.health()),
        "/v1/ready" => ready(&**node),
        "/v1/mounts" => json(&node.mounts()),
        "/v1/images" => json(&node.images()),
        "/v1/stats" => json(&stats(&**node)),
        "/v1/cache" => {
            let node = Arc::clone(node);
            json(&blocking(move || cache(&*node)).await?)
        }
        _ => {
            let mut response = Response::new(Full::from(node.metrics().encode()));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(METRICS_TYPE));
            Ok(response)
        }
    }
}

/// The health, with a status that tells those who send work here whether to.
fn ready(node: &impl Node) -> Result<Answer, ApiError> {
    let health = node.health();
    let mut response = json(&health)?;
    if !health.ok || !node.is_ready() {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

async fn mount<N: Node>(request: MountRequest, node: &Arc<N>) -> Result<MountInfo, ApiError> {
    check(&request)?;
    let (mut sender, receiver) = oneshot::channel();
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let made = tokio::select! {
            made = node.mount(request) => made,
            () = sender.closed() => return,
        };
        // Nobody waits any more: nobody would ever end the mount.
        if let Err(Ok(info)) = sender.send(made) {
            let MountInfo { mount_point, .. } = info;
            tracing::info!(mount_point = %mount_point.display(), "who asked for a mount has gone; it is ended again");
            if let Err(error) = node.umount(mount_point, true).await {
                tracing::warn!(%error, "a mount that nobody waits for cannot be ended");
            }
        }
    });
    receiver.await.map_err(|_| ApiError::new(ErrorKind::Internal, "the daemon gave up; see its log"))?
}

/// Runs what must not stop half-way when the client goes.
async fn finish<N: Node, F, T>(node: &Arc<N>, what: impl FnOnce(Arc<N>) -> F) -> Result<T, ApiError>
where
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
    T: Send + 'static,
{
    tokio::spawn(what(Arc::clone(node))).await.map_err(internal)?
}

async fn blocking<T: Send + 'static>(
    what: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(what).await.map_err(internal)?
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, ApiError> {
    read_up_to(MAX_BODY, body).await
}

async fn read_up_to<T: DeserializeOwned>(most: usize, body: Incoming) -> Result<T, ApiError> {
    let invalid = |error: String| ApiError::new(ErrorKind::Invalid, error);
    let body = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, most).collect()).await;
    let body = body.map_err(|_| invalid("the request did not come in time".to_owned()))?;
    let body = body.map_err(|error| match error.downcast_ref::<LengthLimitError>() {
        Some(_) => ApiError::new(ErrorKind::TooLong, format!("this request has at most {most} bytes")),
        None => invalid(format!("the request broke off: {error}")),
    })?;
    let body = body.to_bytes();
    // A request whose fields may all be missing may be missing itself.
    let body: &[u8] = if body.is_empty() { b"{}" } else { &body };
    serde_json::from_slice(body).map_err(|error| invalid(format!("the request is wrong: {error}")))
}

fn check(request: &MountRequest) -> Result<(), ApiError> {
    if request.outage_limit.is_some_and(|limit| limit > MAX_OUTAGE_LIMIT) {
        let error = format!("outage_limit is more than {MAX_OUTAGE_LIMIT} seconds");
        return Err(ApiError::new(ErrorKind::Invalid, error));
    }
    check_path(&request.mount_point)?;
    check_count(request.also.len() + 1)?;
    if let Some(super::protocol::Writable::Directory(directory)) = &request.writable {
        check_path(directory)?;
    }
    let registry = &request.registry;
    let hosts_dir = registry.hosts_dir.iter().filter(|dir| *dir != Path::new(super::config::NO_HOSTS_DIR));
    request.files.iter().try_for_each(|files| check_path(files))?;
    let mut paths = registry.ca.iter().chain(&registry.authfile).chain(&registry.token_file).chain(hosts_dir);
    paths.try_for_each(|path| check_path(path))
}

/// Whether an image may have so many names.
fn check_count(names: usize) -> Result<(), ApiError> {
    if (1..=MAX_REFERENCES).contains(&names) {
        return Ok(());
    }
    let error = format!("an image has 1 to {MAX_REFERENCES} names, not {names}");
    Err(ApiError::new(ErrorKind::Invalid, error))
}

/// What the daemon makes of a relative path would be another file than the client means.
fn check_path(path: &Path) -> Result<(), ApiError> {
    let plain = path.components().all(|part| part != Component::ParentDir);
    if path.is_absolute() && plain {
        return Ok(());
    }
    Err(ApiError::new(ErrorKind::Invalid, format!("{} is not an absolute path without ..", path.display())))
}

fn version(node: &impl Node) -> Version {
    let state_dir = node.state_dir().to_owned();
    Version { version: env!("CARGO_PKG_VERSION").to_owned(), api: API_VERSION, state_dir }
}

fn stats(node: &impl Node) -> Stats {
    let mut stats = Stats::scraped(&node.metrics().encode());
    let (health, images) = (node.health(), node.images());
    stats.mounts = node.mounts().len() as u64;
    stats.images = images.len() as u64;
    stats.failed_images = images.iter().filter(|image| image.failed.is_some()).count() as u64;
    (stats.since, stats.restarts, stats.upgrades) = (health.worker_since, health.restarts, health.upgrades);
    stats
}

/// `GET /v1/cache`.
#[derive(Debug, Serialize)]
struct CacheList {
    disk_bytes: u64,
    /// 0 if there is none.
    limit_bytes: i64,
    blobs: Vec<CachedBlob>,
}

fn cache(node: &impl Node) -> Result<CacheList, ApiError> {
    let inventory = Inventory::read(node.state_dir()).map_err(|error| ApiError::of(ErrorKind::Internal, &error))?;
    let limit_bytes = node.metrics().cache_limit.get();
    Ok(CacheList { disk_bytes: inventory.disk_bytes(), limit_bytes, blobs: inventory.blobs })
}

/// Answer to `POST /v1/cache/prune`.
#[derive(Debug, Serialize)]
struct Pruned {
    removed: Removed,
    disk_bytes: u64,
}

fn prune(node: &impl Node, to: u64) -> Result<Pruned, ApiError> {
    let failed = |error| ApiError::of(ErrorKind::Internal, &error);
    let mounted: Vec<String> = node.images().into_iter().map(|image| image.manifest).collect();
    let removed = Inventory::read(node.state_dir()).and_then(|all| all.prune(to, &mounted));
    node.removed();
    let removed = removed.map_err(failed)?;
    let disk_bytes = Inventory::read(node.state_dir()).map_err(failed)?.disk_bytes();
    Ok(Pruned { removed, disk_bytes })
}

fn release(node: &impl Node, blobs: Vec<String>) -> Result<Released, ApiError> {
    let failed = |error| ApiError::of(ErrorKind::Internal, &error);
    let mounted: Vec<String> = node.images().into_iter().map(|image| image.manifest).collect();
    let blobs = blobs.into_iter().collect();
    let released = Inventory::read(node.state_dir()).and_then(|all| all.release(&blobs, &mounted));
    node.removed();
    let (removed, in_use) = released.map_err(failed)?;
    Ok(Released { in_use, bytes: removed.bytes })
}

fn json(value: &impl Serialize) -> Result<Answer, ApiError> {
    let mut response = Response::new(Full::from(serde_json::to_vec(value).map_err(internal)?));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn refuse(error: &ApiError) -> Answer {
    // Strings are all that is in it.
    let mut response = json(error).unwrap_or_default();
    *response.status_mut() = StatusCode::from_u16(error.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn wrong_method(path: &str, allowed: &'static str) -> Answer {
    let mut response = refuse(&ApiError::new(ErrorKind::Method, format!("{path} takes {allowed} only")));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn internal(error: impl std::fmt::Display) -> ApiError {
    ApiError::new(ErrorKind::Internal, error.to_string())
}
