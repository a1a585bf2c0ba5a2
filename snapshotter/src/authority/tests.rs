//! Blocks of RFC 7541, crafted connections, and a real client and server with the filter between them.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Connection;
use super::frames::rewritten;
use super::hpack::{Decoder, Field, literal};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn decoded(decoder: &mut Decoder, block: &[u8]) -> Option<Vec<(String, String)>> {
    let mut fields = Vec::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    decoder.decode(block, |field| fields.push((text(field.name), text(field.value)))).ok().map(|()| fields)
}

fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let [.., a, b, c] = payload.len().to_be_bytes();
    [&[a, b, c, kind, flags, 0, 0, 0, stream], payload].concat()
}

fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
    [PREFACE, &frames.concat()].concat()
}

/// The fields of a connection's header blocks, as the other end gets them, and its frames' types.
fn received(mut output: &[u8]) -> (Vec<(String, String)>, Vec<u8>) {
    output = output.strip_prefix(PREFACE).unwrap();
    let (mut fields, mut kinds, mut block) = (Vec::new(), Vec::new(), Vec::new());
    while let Some((&[a, b, c, kind, flags, ..], rest)) = output.split_first_chunk::<9>() {
        let (payload, rest) = rest.split_at(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c));
        assert!(payload.len() <= 1 << 14);
        kinds.push(kind);
        if matches!(kind, 1 | 9) {
            block.extend_from_slice(payload);
            if flags & 4 != 0 {
                // Each block by itself: none needs a table.
                fields.extend(decoded(&mut Decoder::default(), &block).unwrap());
                block.clear();
            }
        }
        output = rest;
    }
    (fields, kinds)
}

fn named(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// RFC 7541, appendices C.3 and C.4: the same three requests, without and with Huffman codes.
#[test]
fn blocks_of_the_rfc() {
    let plain = [
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ];
    let coded = [
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ];
    let authority = named(":authority", "www.example.com");
    for blocks in [plain, coded] {
        let mut decoder = Decoder::default();
        let mut next = |index: usize| decoded(&mut decoder, &bytes(blocks[index])).unwrap();
        let [method, scheme, path] = [named(":method", "GET"), named(":scheme", "http"), named(":path", "/")];
        assert_eq!(next(0), [method.clone(), scheme.clone(), path.clone(), authority.clone()]);
        assert_eq!(next(1), [method.clone(), scheme, path, authority.clone(), named("cache-control", "no-cache")]);
        let [scheme, path] = [named(":scheme", "https"), named(":path", "/index.html")];
        assert_eq!(next(2), [method, scheme, path, authority.clone(), named("custom-key", "custom-value")]);
    }
}

/// RFC 7541, appendix C.6: a table of 256 bytes, from which fields go.
#[test]
fn a_small_table() {
    let mut decoder = Decoder::default();
    let first = "3fe101 488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3";
    let fields = decoded(&mut decoder, &bytes(first)).unwrap();
    let date = named("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    let location = named("location", "https://www.example.com");
    assert_eq!(fields, [named(":status", "302"), named("cache-control", "private"), date.clone(), location.clone()]);
    let fields = decoded(&mut decoder, &bytes("4883640effc1c0bf")).unwrap();
    assert_eq!(fields, [named(":status", "307"), named("cache-control", "private"), date, location]);
    // The first status has made room for the second.
    assert_eq!(decoded(&mut decoder, &bytes("c2")), None);
}

#[test]
fn what_is_no_authority_becomes_localhost() {
    let long = "/run/".repeat(40);
    for (given, expected) in [
        ("/run/lazo/cri.sock", "localhost"),
        ("%2Frun%2Flazo%2Fcri.sock", "localhost"),
        ("unix:///run/lazo/cri.sock", "localhost"),
        (&long, "localhost"),
        ("", "localhost"),
        ("localhost", "localhost"),
        ("h.example:443", "h.example:443"),
        ("[::1]:5", "[::1]:5"),
    ] {
        let mut field = Vec::new();
        literal(&Field { name: b":authority", value: given.as_bytes(), sensitive: false }, &mut field);
        // A field of the table from now on, its name spelt out or by its number.
        field[0] = 0x40;
        let numbered = [&[0x41], &field[12..]].concat();
        for first in [field, numbered] {
            let blocks = [[&[0x83, 0x86], &first[..], &[0x84]].concat(), vec![0x83, 0x86, 0xbe, 0x84]];
            let frames = blocks.map(|block| frame(1, 5, 1, &block));
            let (fields, _) = received(&rewritten(&connection(&frames)).unwrap());
            let [method, scheme, path] = [named(":method", "POST"), named(":scheme", "http"), named(":path", "/")];
            let request = [method, scheme, named(":authority", expected), path];
            assert_eq!(fields, [request.clone(), request].concat(), "{given}");
        }
    }
}

#[test]
fn padding_priority_and_continuations() {
    let block = bytes("828684418cf1e3c2e5f23a6ba0ab90f4ff");
    let padded = [&[2], &[0, 0, 0, 0, 9][..], &block[..5], &[7, 7]].concat();
    let settings = frame(4, 0, 0, &[]);
    let data = frame(0, 1, 1, b"some data");
    let frames = [
        settings.clone(),
        frame(1, 0x28, 1, &padded),
        frame(9, 0, 1, &block[5..9]),
        frame(9, 4, 1, &block[9..]),
        data.clone(),
    ];
    let output = rewritten(&connection(&frames)).unwrap();
    let (fields, kinds) = received(&output);
    assert_eq!((fields.len(), &fields[3]), (4, &named(":authority", "www.example.com")));
    assert_eq!(kinds, [4, 1, 0]);
    assert!(output.starts_with(&[PREFACE, &settings].concat()) && output.ends_with(&data));

    // A block that no frame can hold any more.
    let mut block = Vec::new();
    for _ in 0..100 {
        let field = Field { name: b"name", value: &[b'x'; 400], sensitive: false };
        literal(&field, &mut block);
    }
    let mut parts: Vec<_> = block.chunks(1 << 14).map(|part| frame(9, 0, 1, part)).collect();
    parts[0][3] = 1;
    parts.last_mut().unwrap()[4] = 4;
    assert_eq!(rewritten(&connection(&parts)).unwrap(), connection(&parts));
}

#[test]
fn what_is_out_of_bounds_ends_the_connection() {
    let large = [&[0x40, 1, b'n', 0x7f, 0xa1, 0x1e], &[b'v'; 4000][..]].concat();
    assert!(rewritten(&connection(&[frame(1, 4, 1, &large)])).is_some());
    let parts = [frame(1, 0, 1, &[0x82]), frame(9, 0, 1, &[]).repeat(14), frame(9, 4, 1, &[])];
    assert!(rewritten(&connection(&parts)).is_some());
    let bomb = [&large[..], &[0xbe; 17]].concat();
    for (what, frames) in [
        ("few bytes that stand for many", vec![frame(1, 4, 1, &bomb)]),
        ("a long block", vec![[frame(1, 0, 1, &[]), frame(9, 0, 1, &[0x82; 1 << 14]).repeat(5)].concat()]),
        ("a block in many frames", vec![frame(1, 0, 1, &[0x82]), frame(9, 0, 1, &[]).repeat(15), frame(9, 4, 1, &[])]),
        ("a block without an end", vec![frame(1, 0, 1, &[0x82]), frame(9, 0, 1, &[]).repeat(16)]),
        ("a long frame", vec![frame(1, 4, 1, &[0x82; (1 << 14) + 1])]),
        ("a field of no table", vec![frame(1, 4, 1, &[0xbe])]),
        ("a field without a number", vec![frame(1, 4, 1, &[0x80])]),
        ("a large number", vec![frame(1, 4, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1])]),
        ("a large table", vec![frame(1, 4, 1, &bytes("3fe21f"))]),
        ("a table resized late", vec![frame(1, 4, 1, &[0x82, 0x20])]),
        ("a string that is cut off", vec![frame(1, 4, 1, &[0x41, 5, b'x'])]),
        ("a code that is cut off", vec![frame(1, 4, 1, &[0x41, 0x81, 0])]),
        ("padding of more than a byte", vec![frame(1, 4, 1, &[0x41, 0x82, 0x1f, 0xff])]),
        ("the code for the end", vec![frame(1, 4, 1, &[0x41, 0x84, 0xff, 0xff, 0xff, 0xff])]),
        ("too much padding", vec![frame(1, 0xc, 1, &[9, 0x82])]),
        ("a priority that is cut off", vec![frame(1, 0x24, 1, &[0; 4])]),
        ("a block that is broken off", vec![frame(1, 0, 1, &[0x82]), frame(0, 0, 1, &[])]),
        ("a block in two streams", vec![frame(1, 0, 1, &[0x82]), frame(9, 4, 3, &[0x83])]),
        ("a block without a beginning", vec![frame(9, 4, 1, &[0x82])]),
        ("a promise", vec![frame(5, 4, 1, &[0, 0, 0, 2, 0x82])]),
    ] {
        assert!(rewritten(&connection(&frames)).is_none(), "{what}");
    }
}

/// However a stream is cut into pieces, the same is read.
#[tokio::test]
async fn pieces_of_a_stream() {
    let request = bytes("828684418cf1e3c2e5f23a6ba0ab90f4ff");
    let frames: Vec<_> = (0..20).map(|n| [frame(1, 4, 1, &request), frame(0, 0, 1, &[n; 700])].concat()).collect();
    let input = connection(&frames);
    let expected = rewritten(&input).unwrap();
    for room in [1, 7, 1000, 1 << 20] {
        let (mut writer, reader) = tokio::io::duplex(room);
        let sent = input.clone();
        let writing = tokio::spawn(async move { writer.write_all(&sent).await });
        let mut got = Vec::new();
        Connection::new(reader).read_to_end(&mut got).await.unwrap();
        writing.await.unwrap().unwrap();
        assert!(got == expected, "{room}");
    }
}

/// Writes into memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_log_says_why_a_connection_is_ended() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let sent = connection(&[frame(5, 4, 1, &[0, 0, 0, 2, 0x82])]);
    let error = Connection::new(&sent[..]).read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let said = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(said.contains("WARN") && said.contains("it sends a promise"), "{said}");
}

/// Header values with all bytes that can be in them, often enough for the client's table to be filled and emptied.
#[tokio::test]
async fn a_real_client_is_understood() {
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(async move {
        let echo = service_fn(|request: Request<Incoming>| async move {
            let (parts, body) = request.into_parts();
            let mut response = Response::new(Full::new(body.collect().await?.to_bytes()));
            *response.headers_mut() = parts.headers;
            Ok::<_, hyper::Error>(response)
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        server.serve_connection(TokioIo::new(Connection::new(far)), echo).await.unwrap();
    });
    let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (mut sender, connection) = client.handshake::<_, Full<Bytes>>(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    let all: Vec<u8> = (0x20..=0xff).filter(|byte| *byte != 0x7f).collect();
    for round in 0..60_usize {
        let mut headers = HeaderMap::new();
        for (index, part) in all.chunks(1 + round % 50).enumerate() {
            let name = HeaderName::from_bytes(format!("x-{index}").as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(&[b"a", part, b"z"].concat()).unwrap());
        }
        let mut secret = HeaderValue::from_static("secret");
        secret.set_sensitive(true);
        headers.append("authorization", secret);
        let body = Bytes::from(vec![1; round * 5000]);
        let mut request = Request::post("http://h.example/p").body(Full::new(body.clone())).unwrap();
        *request.headers_mut() = headers.clone();
        let (parts, received) = sender.send_request(request).await.unwrap().into_parts();
        for (name, value) in &headers {
            assert_eq!(parts.headers.get(name), Some(value), "{name} in round {round}");
        }
        assert_eq!(received.collect().await.unwrap().to_bytes(), body);
    }
}
