//! A registry that answers as told: for what a good one never does.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{Request, Response, body::Frame, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use lazo_registry::ImageRef;
use tokio::net::{TcpListener, TcpStream};

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Bytes,
    /// Which request this is, from 0.
    pub(crate) number: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// `METHOD /path`.
    pub(crate) fn line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// Between two bytes of [`End::Drip`].
const DRIP: std::time::Duration = std::time::Duration::from_millis(20);

/// How the answer's body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Good,
    /// The connection breaks.
    Cut,
    /// Nothing more comes.
    Hang,
    /// A byte comes now and then.
    Drip,
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), end: End::Good }
    }

    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(200) }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    /// Announces more than comes before the connection breaks, falls silent or drips.
    pub(crate) fn short_of(mut self, announced: usize, end: End) -> Self {
        self.end = end;
        self.with("content-length", announced)
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

impl Server {
    pub(crate) async fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let (log, handler) = (seen.clone(), Arc::new(handler));
        let connections = Arc::<AtomicUsize>::default();
        let counter = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::Relaxed);
                let (log, handler) = (log.clone(), handler.clone());
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(request, log.clone(), handler.clone()));
                    // Broken connections are what these tests are about.
                    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, seen, connections }
    }

    pub(crate) fn reference(&self, rest: &str) -> ImageRef {
        format!("docker://{}/{rest}", self.address).parse().unwrap()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self, line: &str) -> usize {
        self.seen().iter().filter(|s| s.line() == line).count()
    }
}

type Body = BoxBody<Bytes, std::io::Error>;

async fn answer(
    request: Request<Incoming>,
    log: Arc<Mutex<Vec<Seen>>>,
    handler: Arc<impl Fn(&Seen) -> Reply>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let headers = parts.headers.iter().map(|(n, v)| (n.to_string(), v.to_str().unwrap().to_owned())).collect();
    let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let seen = {
        let mut log = log.lock().unwrap();
        let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default().to_owned());
        let seen = Seen { method: parts.method.to_string(), path, query, headers, body, number: log.len() };
        log.push(seen.clone());
        seen
    };
    let reply = handler(&seen);
    let mut response = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        response = response.header(*name, value);
    }
    let data = futures_util::stream::iter([Ok(Frame::data(Bytes::from(reply.body)))]);
    let body = match reply.end {
        End::Good => StreamBody::new(data).boxed(),
        End::Cut => {
            let cut = futures_util::stream::iter([Err(std::io::Error::other("cut on purpose"))]);
            StreamBody::new(futures_util::StreamExt::chain(data, cut)).boxed()
        }
        End::Drip => {
            let drops = futures_util::stream::unfold((), |()| async {
                tokio::time::sleep(DRIP).await;
                Some((Ok(Frame::data(Bytes::from_static(b" "))), ()))
            });
            StreamBody::new(futures_util::StreamExt::chain(data, drops)).boxed()
        }
        End::Hang => {
            let silence = futures_util::stream::pending();
            StreamBody::new(futures_util::StreamExt::chain(data, silence)).boxed()
        }
    };
    Ok(response.body(body).unwrap())
}

/// Forwards TCP connections to `to`; each is cut once it has carried as many bytes to the server as `limits` says for
/// it, in order. Later connections are not cut.
pub(crate) async fn cutting_proxy(to: String, limits: Vec<u64>) -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut limits = limits.into_iter();
        while let Ok((client, _)) = listener.accept().await {
            let limit = limits.next().unwrap_or(u64::MAX);
            let to = to.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect(to).await.unwrap();
                let (client_in, mut client_out) = client.into_split();
                let (mut server_in, mut server_out) = server.into_split();
                let up = async move {
                    drop(copy(&mut client_in.take(limit), &mut server_out).await);
                    drop(server_out.shutdown().await);
                };
                let down = async move { drop(copy(&mut server_in, &mut client_out).await) };
                // Both directions end with the first.
                tokio::select! { () = up => {}, () = down => {} }
            });
        }
    });
    address
}
