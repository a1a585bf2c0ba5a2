//! What every source that speaks HTTP must do when its server, or what is before it, misbehaves.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lazo_format::BlobRecord;
use lazo_storage::{BlobSource, ErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::faults::{Fault, Proxy, Target};
use super::servers::Server;
use super::suite::{bytes, drain, failure, part, read, record, told};

/// How to reach a source at an address: of its server, or of what is before it.
pub(crate) type Reach = fn(SocketAddr) -> Arc<dyn BlobSource>;

/// A source behind a proxy that misbehaves when told to.
pub(crate) struct Fixture {
    _server: Server,
    pub(crate) proxy: Proxy,
    pub(crate) source: Arc<dyn BlobSource>,
    pub(crate) bytes: Vec<u8>,
    pub(crate) blob: BlobRecord,
}

impl Fixture {
    pub(crate) fn new(server: Server, reach: Reach) -> Self {
        let proxy = Proxy::start(&server.address.to_string());
        let source = reach(proxy.host().parse().unwrap());
        let bytes = bytes();
        let blob = record(&bytes);
        Self { _server: server, proxy, source, bytes, blob }
    }

    /// The kind of failure that a fault makes, in one request and no more.
    async fn kind_of(&self, fault: Fault) -> (ErrorKind, Option<Duration>) {
        self.proxy.set(Target::Blobs, fault);
        let before = self.proxy.log().len();
        let error = failure(&*self.source, &self.blob, 10..20).await;
        assert_eq!(self.proxy.log().len(), before + 1, "{error}: not one request");
        (error.kind, error.retry_after)
    }

    async fn assert_good(&self) {
        assert!(read(&*self.source, &self.blob, 10..100_000).await == part(&self.bytes, &(10..100_000)));
    }
}

/// Each status is what it is, once; and what is good afterwards is good.
pub(crate) async fn refusals(fixture: Fixture) {
    let cases = [
        (401, ErrorKind::Denied),
        (403, ErrorKind::Denied),
        (404, ErrorKind::NotFound),
        (408, ErrorKind::Server),
        (416, ErrorKind::BadAnswer),
        (418, ErrorKind::BadAnswer),
        (429, ErrorKind::Busy),
        (500, ErrorKind::Server),
        (502, ErrorKind::Server),
        (503, ErrorKind::Server),
        (504, ErrorKind::Server),
    ];
    for (status, kind) in cases {
        assert_eq!(fixture.kind_of(Fault::Status(status)).await, (kind, None), "status {status}");
    }
    assert_eq!(fixture.kind_of(Fault::Busy(7)).await, (ErrorKind::Busy, Some(Duration::from_secs(7))));
    fixture.proxy.heal();
    fixture.assert_good().await;
}

/// Another range than the one asked for, or the whole blob.
pub(crate) async fn other_answers(fixture: Fixture) {
    assert_eq!(fixture.kind_of(Fault::OtherBounds).await, (ErrorKind::BadAnswer, None));
    assert_eq!(fixture.kind_of(Fault::FirstByteOnly).await, (ErrorKind::BadAnswer, None));
    fixture.proxy.set(Target::Blobs, Fault::Whole);
    fixture.assert_good().await;
    let end = fixture.blob.compressed_size;
    assert!(read(&*fixture.source, &fixture.blob, end - 5..end).await == part(&fixture.bytes, &(end - 5..end)));
}

/// No server, and connections that break; nothing of it lasts.
pub(crate) async fn broken_connections(fixture: Fixture) {
    fixture.assert_good().await;
    fixture.proxy.refuse();
    assert_eq!(failure(&*fixture.source, &fixture.blob, 0..10).await.kind, ErrorKind::Unreachable);
    fixture.proxy.listen();
    fixture.assert_good().await;
    fixture.proxy.set(Target::Blobs, Fault::Reset);
    assert_eq!(failure(&*fixture.source, &fixture.blob, 0..10).await.kind, ErrorKind::Unreachable);
    for cut in [0, 1, 100_000, 1_000_000] {
        fixture.proxy.set(Target::Blobs, Fault::Cut(cut));
        let range = 5..2_000_000;
        let (read, error) = match fixture.source.open_range(&fixture.blob, range.clone()).await {
            Ok(stream) => drain(stream).await,
            Err(error) => (Vec::new(), Some(error)),
        };
        assert_eq!(told(error.expect("an error in place of the end")).kind, ErrorKind::Unreachable, "cut after {cut}");
        assert!(read.len() as u64 <= cut && part(&fixture.bytes, &range).starts_with(&read));
    }
    fixture.proxy.heal();
    fixture.assert_good().await;
}

/// A server that hangs makes nobody fail: the request is under way until it is answered.
pub(crate) async fn hung_server(fixture: Fixture) {
    fixture.proxy.set(Target::Blobs, Fault::Hang);
    {
        let mut opening = fixture.source.open_range(&fixture.blob, 10..20);
        while fixture.proxy.log().is_empty() {
            assert!(futures_util::poll!(&mut opening).is_pending());
            tokio::task::yield_now().await;
        }
        let silence = tokio::time::timeout(Duration::from_millis(300), &mut opening).await;
        assert!(silence.is_err(), "an answer from a server that gives none");
        fixture.proxy.heal();
        assert_eq!(drain(opening.await.unwrap()).await.0, part(&fixture.bytes, &(10..20)));
    }
    fixture.proxy.set(Target::Blobs, Fault::Stall(100_000));
    let mut stream = fixture.source.open_range(&fixture.blob, 10..1_000_000).await.unwrap();
    let mut read = Vec::new();
    while read.len() < 100_000 {
        read.extend_from_slice(&stream.next().await.unwrap().unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(300), stream.next()).await.is_err());
    fixture.proxy.heal();
    let (rest, error) = drain(stream).await;
    assert!(error.is_none());
    assert!([read, rest].concat() == part(&fixture.bytes, &(10..1_000_000)));
}

/// Who has taken a source's request, and answers by hand.
struct Peer(TcpStream);

impl Peer {
    async fn accept(listener: &TcpListener) -> Self {
        let mut stream = listener.accept().await.unwrap().0;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        Self(stream)
    }

    async fn say(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// Until the source has closed the connection.
    async fn until_closed(&mut self) {
        // The end may come as a reset.
        assert!(matches!(self.0.read(&mut [0]).await, Ok(0) | Err(_)));
    }
}

const HEAD: &str = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-19/100\r\nContent-Length: 10\r\n\r\n";

/// To drop a request, or its answer half-way, is to close its connection. What came before a connection ends is good.
pub(crate) async fn connections(reach: Reach) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let source = reach(listener.local_addr().unwrap());
    let blob = BlobRecord { compressed_size: 100, ..record(b"never sent") };
    let open = || {
        let (source, blob) = (source.clone(), blob.clone());
        tokio::spawn(async move { source.open_range(&blob, 10..20).await })
    };

    let opening = open();
    let mut peer = Peer::accept(&listener).await;
    opening.abort();
    peer.until_closed().await;

    let opening = open();
    let mut peer = Peer::accept(&listener).await;
    peer.say(HEAD).await;
    let mut stream = opening.await.unwrap().unwrap();
    peer.say("01234").await;
    assert_eq!(stream.next().await.unwrap().unwrap(), "01234");
    drop(stream);
    peer.until_closed().await;

    let opening = open();
    let mut peer = Peer::accept(&listener).await;
    peer.say(HEAD).await;
    peer.say("0123").await;
    let mut stream = opening.await.unwrap().unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap(), "0123");
    drop(peer);
    assert_eq!(told(stream.next().await.unwrap().unwrap_err()).kind, ErrorKind::Unreachable);
    assert!(stream.next().await.is_none());

    // No length announced, and more or less than the bounds say.
    for body in ["0123456789ABC", "012345"] {
        let opening = open();
        let mut peer = Peer::accept(&listener).await;
        peer.say("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 10-19/100\r\nConnection: close\r\n\r\n").await;
        peer.say(body).await;
        drop(peer);
        let (read, error) = drain(opening.await.unwrap().unwrap()).await;
        assert_eq!(told(error.expect("an error in place of the end")).kind, ErrorKind::BadAnswer);
        assert!(body.as_bytes().starts_with(&read) && read.len() <= 10);
    }
}
