//! The server's side: the request passed on, and the answer's body as the link and the fault have it.

use std::{io, net::SocketAddr, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::{
    HeaderMap, Request, Response,
    body::{Frame, Incoming},
    client::conn::http1::{self, SendRequest},
    header::{CONTENT_RANGE, HeaderValue, RANGE},
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::Mutex};

use super::{
    Fault, Shared,
    server::{Body, range},
};

/// Bytes taken from the server at a time, at most: 2.6 ms at 200 Mbit/s, so that parallel answers share the link evenly.
const PIECE: usize = 64 << 10;

/// A connection to the server for each of the client's.
pub(super) struct Upstream {
    address: SocketAddr,
    connection: Mutex<Option<SendRequest<Incoming>>>,
}

impl Upstream {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self { address, connection: Mutex::default() }
    }

    /// Passes a request on. `number`: its place in the log.
    pub(super) async fn forward(
        &self,
        mut request: Request<Incoming>,
        fault: Option<Fault>,
        number: usize,
        shared: &Arc<Shared>,
    ) -> io::Result<Response<Body>> {
        if let Some(range) = range(request.headers()) {
            let bounds = match &fault {
                Some(Fault::OtherBounds) => Some((range.start + 1, range.end)),
                Some(Fault::FirstByteOnly) => Some((range.start, range.start)),
                _ => None,
            };
            if let Some((first, last)) = bounds {
                let value = HeaderValue::try_from(format!("bytes={first}-{last}")).map_err(io::Error::other)?;
                request.headers_mut().insert(RANGE, value);
            }
        }
        if matches!(fault, Some(Fault::Whole)) {
            request.headers_mut().remove(RANGE);
        }
        let mut connection = self.connection.lock().await;
        let mut sender = match connection.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.connect().await?,
        };
        if sender.ready().await.is_err() {
            sender = self.connect().await?;
        }
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        *connection = Some(sender);
        let offset = first_byte(response.headers());
        let shared = Arc::clone(shared);
        Ok(response.map(|body| passing(Passing { body, fault, offset, passed: 0, number, shared, held: None })))
    }

    async fn connect(&self) -> io::Result<SendRequest<Incoming>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(PIECE)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// Where in the blob an answer begins: the first number of `bytes FIRST-LAST/SIZE`.
fn first_byte(headers: &HeaderMap) -> u64 {
    let value = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let first = value.and_then(|value| value.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok());
    first.unwrap_or(0)
}

/// A body on its way.
struct Passing {
    body: Incoming,
    fault: Option<Fault>,
    /// Of the body's first byte in the blob.
    offset: u64,
    passed: u64,
    number: usize,
    shared: Arc<Shared>,
    /// What came but may not pass yet.
    held: Option<Bytes>,
}

fn passing(passing: Passing) -> Body {
    let frames = stream::try_unfold(passing, |mut passing| async move {
        let piece = passing.next().await?;
        Ok(piece.map(|piece| (Frame::data(piece), passing)))
    });
    StreamBody::new(frames).boxed()
}

impl Passing {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let data = match self.held.take() {
            Some(held) => held,
            None => loop {
                match self.body.frame().await.transpose().map_err(io::Error::other)?.map(Frame::into_data) {
                    None => return Ok(None),
                    Some(Ok(data)) => break data,
                    // Trailers.
                    Some(Err(_)) => {}
                }
            },
        };
        let piece = self.meddle(data).await?;
        self.shared.link().pass(piece.len()).await;
        self.passed += piece.len() as u64;
        self.shared.note(self.number, |exchange| exchange.bytes += piece.len() as u64);
        Ok(Some(piece))
    }

    /// What the fault makes of the next bytes.
    async fn meddle(&mut self, mut data: Bytes) -> io::Result<Bytes> {
        let (start, end) = (self.passed, self.passed + data.len() as u64);
        match self.fault {
            Some(Fault::Cut(at)) if start >= at => Err(io::ErrorKind::ConnectionAborted.into()),
            Some(Fault::Stall(at)) if start >= at => {
                // The rules are lifted or others: what they are is for later requests to see.
                let mut rules = self.shared.rules.subscribe();
                let lifted = |rules: &Vec<super::Rule>| !rules.iter().any(|rule| matches!(rule.fault, Fault::Stall(_)));
                rules.wait_for(lifted).await.map_err(io::Error::other)?;
                self.fault = None;
                Ok(data)
            }
            Some(Fault::Drip(at, every)) if start >= at => {
                let mut rules = self.shared.rules.subscribe();
                let lifted = |rules: &Vec<super::Rule>| !rules.iter().any(|rule| matches!(rule.fault, Fault::Drip(..)));
                if tokio::time::timeout(every, rules.wait_for(lifted)).await.is_ok() {
                    self.fault = None;
                    return Ok(data);
                }
                let drop = data.split_to(1);
                self.held = Some(data).filter(|rest| !rest.is_empty());
                Ok(drop)
            }
            Some(Fault::Cut(at) | Fault::Stall(at) | Fault::Drip(at, _)) if end > at => {
                let allowed = usize::try_from(at - start).map_err(io::Error::other)?;
                let piece = data.split_to(allowed);
                self.held = Some(data);
                Ok(piece)
            }
            Some(Fault::Flip(at)) if (self.offset + start..self.offset + end).contains(&at) => {
                let mut bytes = BytesMut::from(data);
                bytes[usize::try_from(at - self.offset - start).map_err(io::Error::other)?] ^= 0x04;
                Ok(bytes.freeze())
            }
            Some(Fault::Garble) => Ok(data.iter().map(|byte| !byte).collect()),
            _ => Ok(data),
        }
    }
}
