//! The kubelet's image requests: passed on to containerd as they are, with a look at the credentials that come with a pull.
//!
//! The kubelet is pointed here by `--image-service-endpoint` (or `imageServiceEndpoint`). All that containerd's socket understands
//! passes, whatever its version, as bytes are not looked into but for those of a `PullImage` request.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Empty, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self as client, SendRequest};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::http::uri::{Authority, Scheme};
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use lazo_base::lines::Lines;
use prost::Message as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tonic::{Code, Status};

use crate::authority::Connection;
use crate::credentials::{Credentials, Login, Offer};
use crate::references::References;

/// Requests with credentials end so, whatever the API's version.
const PULL_IMAGE: &str = ".ImageService/PullImage";

/// Longest pull request, bytes: the kubelet's own bound for a message is 16 MiB, and a real one has some kilobytes.
const MAX_PULL: usize = 1 << 20;

/// How long it may take to arrive.
const PULL_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at a time; the kubelet has one.
const MAX_CONNECTIONS: usize = 64;

/// After a failed accept, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Flag and length before a gRPC message.
const FRAME: usize = 5;

/// What is read of a pull request.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub(crate) auth: Option<AuthConfig>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(crate) image: String,
}

/// Not to be shown.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(crate) struct AuthConfig {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
    #[prost(string, tag = "3")]
    auth: String,
    #[prost(string, tag = "4")]
    pub(crate) server_address: String,
    #[prost(string, tag = "5")]
    identity_token: String,
    #[prost(string, tag = "6")]
    registry_token: String,
}

pub(crate) type Body = Either<Incoming, Either<Full<Bytes>, Empty<Bytes>>>;

/// Passes requests on until it is dropped.
pub(crate) async fn serve(
    listener: UnixListener,
    containerd: PathBuf,
    credentials: Arc<Credentials>,
    references: Arc<References>,
) {
    let containerd = Arc::new(Containerd { path: containerd, connection: Mutex::default(), references });
    let (room, lines) = (Arc::new(Semaphore::new(MAX_CONNECTIONS)), Lines::new());
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                lines.write(
                    |left_out| tracing::warn!(%error, left_out, "cannot accept a connection for image requests"),
                );
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (containerd, credentials) = (Arc::clone(&containerd), Arc::clone(&credentials));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (containerd, credentials) = (Arc::clone(&containerd), Arc::clone(&credentials));
                async move { Ok::<_, std::convert::Infallible>(pass(request, &containerd, &credentials).await) }
            });
            let mut http = server::Builder::new(TokioExecutor::new());
            http.timer(TokioTimer::new());
            if let Err(error) = http.serve_connection(TokioIo::new(Connection::new(stream)), service).await {
                tracing::debug!(%error, "a connection for image requests broke");
            }
            drop(permit);
        });
    }
}

/// One request, and containerd's answer or why there is none.
async fn pass(request: Request<Incoming>, containerd: &Containerd, credentials: &Credentials) -> Response<Body> {
    let is_pull = request.uri().path().ends_with(PULL_IMAGE);
    let (mut head, body) = request.into_parts();
    head.uri = with_host(head.uri);
    let (body, offer, image) = if is_pull {
        match look(body, credentials).await {
            Ok((bytes, offer, image)) => (Either::Right(Either::Left(Full::new(bytes))), offer, image),
            Err(error) => return failure(Code::InvalidArgument, &format!("the pull request cannot be read: {error}")),
        }
    } else {
        (Either::Left(body), None, None)
    };
    let answer = containerd.send(Request::from_parts(head, body)).await;
    // The kubelet's answer comes when the pull is done, and all layers have been seen; but none of an image that is here by another name.
    if let (Ok(answer), Some(image)) = (&answer, image)
        && is_good(answer.headers())
    {
        containerd.references.pulled(&image).await;
    }
    drop(offer);
    match answer {
        Ok(answer) => answer.map(Either::Left),
        Err(error) => {
            let text = format!("containerd at {} does not answer: {error}", containerd.path.display());
            failure(Code::Unavailable, &text)
        }
    }
}

/// Whether an answer is not an error. gRPC says so in the head of an answer that has no body.
fn is_good(head: &HeaderMap) -> bool {
    head.get(Status::GRPC_STATUS).is_none_or(|status| status == "0")
}

/// A request may do without the name of a host where it comes from, but not where it goes.
fn with_host(uri: Uri) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme.get_or_insert(Scheme::HTTP);
    parts.authority.get_or_insert(Authority::from_static("localhost"));
    Uri::from_parts(parts).unwrap_or(uri)
}

/// A pull request's bytes, and the image's name; the login in it is on offer as long as the second part lives.
async fn look(body: Incoming, credentials: &Credentials) -> Result<(Bytes, Option<Offer<'_>>, Option<String>), String> {
    let body = tokio::time::timeout(PULL_TIMEOUT, Limited::new(body, MAX_PULL).collect()).await;
    let bytes = body.map_err(|_| "it does not come".to_owned())?.map_err(|error| error.to_string())?.to_bytes();
    let (offer, image) = match parse(&bytes) {
        Some(PullImageRequest { image: Some(ImageSpec { image }), auth: Some(auth) }) => {
            let server = auth.server_address.clone();
            (credentials.offer(&image, &server, auth.into()), Some(image))
        }
        Some(PullImageRequest { image, .. }) => (None, image.map(|spec| spec.image)),
        None => {
            tracing::warn!(
                "a pull request is not understood; if the image needs a login, its data cannot be fetched later"
            );
            (None, None)
        }
    };
    Ok((bytes, offer, image))
}

/// The one message of a request that is not compressed.
pub(crate) fn parse(bytes: &[u8]) -> Option<PullImageRequest> {
    let (frame, message) = bytes.split_at_checked(FRAME)?;
    let (compressed, length) = (frame[0], u32::from_be_bytes(frame[1..].try_into().ok()?));
    if compressed != 0 || usize::try_from(length) != Ok(message.len()) {
        return None;
    }
    PullImageRequest::decode(message).ok()
}

impl From<AuthConfig> for Login {
    fn from(auth: AuthConfig) -> Self {
        Self {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            identitytoken: auth.identity_token,
            registrytoken: auth.registry_token,
        }
    }
}

/// An answer of ours, as gRPC has errors.
pub(crate) fn failure(code: Code, message: &str) -> Response<Body> {
    let mut response = Response::new(Either::Right(Either::Right(Empty::new())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(i32::from(code)));
    let message: String = message.chars().map(|c| if c.is_ascii_graphic() && c != '%' { c } else { ' ' }).collect();
    headers.insert("grpc-message", HeaderValue::try_from(message).unwrap_or(HeaderValue::from_static("")));
    response
}

/// containerd, over one connection that is made anew when it breaks.
struct Containerd {
    path: PathBuf,
    connection: Mutex<Option<SendRequest<Body>>>,
    references: Arc<References>,
}

impl Containerd {
    async fn send(&self, request: Request<Body>) -> io::Result<Response<Incoming>> {
        let mut sender = self.sender().await?;
        sender.send_request(request).await.map_err(io::Error::other)
    }

    async fn sender(&self) -> io::Result<SendRequest<Body>> {
        let mut connection = self.connection.lock().await;
        if let Some(sender) = connection.as_mut().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let sender = connect(&self.path).await?;
        *connection = Some(sender.clone());
        Ok(sender)
    }
}

async fn connect(path: &Path) -> io::Result<SendRequest<Body>> {
    let stream = UnixStream::connect(path).await?;
    let builder = client::Builder::new(TokioExecutor::new());
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to containerd broke");
        }
    });
    Ok(sender)
}
