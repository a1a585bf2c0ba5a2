//! The client's side: connections, and what a fault makes of a request.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Exchange, Fault, Shared, forward::Upstream, lock};

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// Before the path of a signed URL; the time of its expiry comes next, in milliseconds since 1970.
const SIGNED: &str = "/signed/";

/// Takes connections for ever; dropping this cuts them all.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        connections.spawn(connection(stream, Arc::clone(&shared)));
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    // Delayed packets would add a latency that nobody stated.
    let _ = stream.set_nodelay(true);
    let Ok(socket) = stream.as_fd().try_clone_to_owned() else { return };
    let client = Arc::new(Client { upstream: Upstream::new(shared.upstream), socket, shared });
    let service = service_fn(move |request| {
        let client = Arc::clone(&client);
        async move { client.answer(request).await }
    });
    // A client that goes away, or is sent away, is no news.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

struct Client {
    shared: Arc<Shared>,
    upstream: Upstream,
    socket: OwnedFd,
}

impl Client {
    async fn answer(&self, mut request: Request<Incoming>) -> io::Result<Response<Body>> {
        let shared = &self.shared;
        let exchange = record(&request, shared);
        let number = {
            let mut log = lock(&shared.log);
            log.push(exchange.clone());
            log.len() - 1
        };
        shared.link().round_trip().await;
        let fault = self.fault(&exchange).await;
        let response = match fault {
            Some(Fault::Status(status)) => empty(StatusCode::from_u16(status).expect("a status")),
            Some(Fault::Busy(seconds)) => {
                let mut response = empty(StatusCode::TOO_MANY_REQUESTS);
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
                response
            }
            Some(Fault::Reset) => {
                let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            fault => match self.redirect(&mut request, &exchange) {
                Some(response) => response,
                None => self.upstream.forward(request, fault, number, shared).await?,
            },
        };
        shared.note(number, |exchange| exchange.status = response.status().as_u16());
        Ok(response)
    }

    /// The fault that hits a request, once it does not hang any more.
    async fn fault(&self, exchange: &Exchange) -> Option<Fault> {
        let mut rules = self.shared.rules.subscribe();
        loop {
            rules.borrow_and_update();
            match self.shared.fault(exchange) {
                Some(Fault::Hang) => rules.changed().await.ok()?,
                fault => return fault,
            }
        }
    }

    /// Sends blobs to signed URLs where that is asked for. What comes with a signed URL that is valid is made an ordinary request.
    fn redirect(&self, request: &mut Request<Incoming>, exchange: &Exchange) -> Option<Response<Body>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        if let Some(signed) = exchange.path.strip_prefix(SIGNED) {
            let (expiry, path) = signed.split_once('/')?;
            if expiry.parse::<u64>().ok()? < now {
                return Some(empty(StatusCode::FORBIDDEN));
            }
            *request.uri_mut() = format!("/{path}").parse().ok()?;
            return None;
        }
        match self.shared.signed_for.load(Ordering::Relaxed) {
            validity if validity > 0 && exchange.is_blob_range() => {
                let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
                let (port, expiry) = (self.shared.own.port(), now.saturating_add(validity));
                let location = format!("http://localhost:{port}{SIGNED}{expiry}{}", exchange.path);
                response.headers_mut().insert(LOCATION, HeaderValue::try_from(location).ok()?);
                Some(response)
            }
            _ => None,
        }
    }
}

fn record(request: &Request<Incoming>, shared: &Shared) -> Exchange {
    let now = shared.start.elapsed();
    Exchange {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        range: range(request.headers()),
        authorized: request.headers().contains_key(AUTHORIZATION),
        status: 0,
        bytes: 0,
        began: now,
        last: now,
    }
}

/// `bytes=FIRST-LAST`
pub(super) fn range(headers: &HeaderMap) -> Option<std::ops::Range<u64>> {
    let value = headers.get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (first, last) = value.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?)
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
