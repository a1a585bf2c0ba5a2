//! Ranges streamed from one endpoint in one attempt.

use std::{fs, ops::Range, time::Duration};

use futures_util::TryStreamExt;
use lazo_format::Digest;
use lazo_registry::{Endpoint, Error, ErrorKind, ImageRef, Options, Source};

use crate::{
    common::{
        Image, Registry,
        nginx::Nginx,
        open, run,
        server::{End, Reply, Server},
    },
    docker_registry::certificates,
    failures::{BLOB, blob, hasty, serve, source},
};

/// All bytes of a range.
pub(crate) async fn range(
    endpoint: &Endpoint,
    digest: &Digest,
    size: u64,
    range: Range<u64>,
) -> Result<Vec<u8>, Error> {
    let pieces: Vec<_> = endpoint.open_range(digest, size, range).await?.try_collect().await?;
    assert!(pieces.iter().all(|p| !p.is_empty()));
    Ok(pieces.concat())
}

async fn only(reference: &ImageRef) -> Endpoint {
    let [endpoint] = open(reference).await.endpoints().try_into().unwrap();
    endpoint
}

#[tokio::test]
async fn streams_ranges_from_wherever_the_image_is() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let image = Image::sample();
    let remote = registry.reference("team/app:1");
    let layout: ImageRef = format!("oci:{}:1", path("layout")).parse().unwrap();
    let archive: ImageRef = format!("oci-archive:{}:1", path("archive.tar")).parse().unwrap();
    for reference in [&remote, &layout, &archive] {
        image.write(reference, &Options::default()).await;
    }
    let saved: ImageRef = format!("docker-archive:{}:app:1", path("saved.tar")).parse().unwrap();
    run("skopeo", &["--insecure-policy", "copy", &layout.to_string(), &saved.to_string()]);
    for (reference, name) in [
        (&remote, format!("docker://{}/team/app", registry.address)),
        (&layout, format!("oci:{}", path("layout"))),
        (&archive, format!("oci-archive:{}", path("archive.tar"))),
        (&saved, format!("docker-archive:{}", path("saved.tar"))),
    ] {
        let endpoint = only(reference).await;
        assert_eq!(endpoint.name(), name);
        for (descriptor, bytes) in &image.layers {
            let digest = lazo_registry::digest_of(descriptor).unwrap();
            let size = bytes.len();
            for part in [0..1, 3..700, size - 1..size, 0..size, 5..5] {
                let found = range(&endpoint, &digest, size as u64, part.start as u64..part.end as u64).await.unwrap();
                assert!(found == bytes[part.clone()], "{name} {part:?}");
            }
            let fails = async |size: u64, part: Range<u64>| range(&endpoint, &digest, size, part).await.unwrap_err();
            assert_eq!(fails(size as u64, 1..size as u64 + 1).await.kind(), ErrorKind::BadAnswer);
            assert_eq!(fails(size as u64 + 1, 0..1).await.kind(), ErrorKind::BadAnswer, "a blob of another size");
        }
        let missing = range(&endpoint, &Digest::sha256_of(b"none"), 9, 0..9).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound, "{missing}");
    }
}

#[tokio::test]
async fn tells_kinds_of_failure_apart_and_tries_once() {
    let (descriptor, _) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    let partial = || Reply::status(206).with("content-range", format!("bytes 100-199/{BLOB}"));
    for (reply, kind) in [
        (Reply::status(404), ErrorKind::NotFound),
        (Reply::status(401), ErrorKind::Denied),
        (Reply::status(403), ErrorKind::Denied),
        (Reply::status(429).with("retry-after", 7), ErrorKind::Busy),
        (Reply::status(408), ErrorKind::Server),
        (Reply::status(500), ErrorKind::Server),
        (Reply::status(503), ErrorKind::Server),
        (Reply::status(400), ErrorKind::BadAnswer),
        (Reply::status(416), ErrorKind::BadAnswer),
        (Reply::status(204), ErrorKind::BadAnswer),
        (Reply::ok("short").with("content-length", 5), ErrorKind::BadAnswer),
        (partial().with("content-length", 0), ErrorKind::BadAnswer),
        (partial(), ErrorKind::BadAnswer),
        (partial().short_of(100, End::Cut), ErrorKind::Unreachable),
        (partial().short_of(100, End::Hang), ErrorKind::Timeout),
    ] {
        let shown = format!("{reply:?}");
        let server = Server::start(move |_| reply.clone()).await;
        let endpoint = source(&server).await.endpoints().remove(0);
        let error = range(&endpoint, &digest, BLOB as u64, 100..200).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{shown}: {error}");
        assert_eq!(error.retry_after(), (kind == ErrorKind::Busy).then_some(Duration::from_secs(7)));
        assert_eq!(server.seen().len(), 1, "{shown}");
    }
    let nobody: ImageRef = "docker://127.0.0.1:1/app:1".parse().unwrap();
    let error = range(&only(&nobody).await, &digest, BLOB as u64, 0..9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    let tls = Options { loopback_tls: true, ..hasty() };
    let server = Server::start(|_| Reply::status(200)).await;
    let endpoint = Source::open(&server.reference("app:1"), &tls).await.unwrap().endpoints().remove(0);
    let error = range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error}");
}

#[tokio::test]
async fn hands_on_what_comes_before_a_body_breaks_and_skips_what_was_not_asked_for() {
    let (descriptor, bytes) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    let data = bytes.clone();
    let server = Server::start(move |_| {
        let reply = Reply { status: 206, ..Reply::ok(&data[100..BLOB / 2]) };
        reply.with("content-range", format!("bytes 100-{}/{BLOB}", BLOB - 1)).short_of(BLOB - 100, End::Cut)
    })
    .await;
    let endpoint = source(&server).await.endpoints().remove(0);
    let mut stream = endpoint.open_range(&digest, BLOB as u64, 100..BLOB as u64).await.unwrap();
    let mut came = Vec::new();
    let error = loop {
        match stream.try_next().await {
            Ok(piece) => came.extend(piece.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(came.len() > BLOB / 4 && came == bytes[100..100 + came.len()], "{}", came.len());

    // A server without ranges; and one that never ends what it has announced.
    let data = bytes.clone();
    let plain = Server::start(move |_| Reply::ok(data.clone())).await;
    let data = bytes.clone();
    let endless = Server::start(move |seen| serve(seen, &data).with("content-length", 100)).await;
    for server in [plain, endless] {
        let endpoint = source(&server).await.endpoints().remove(0);
        assert_eq!(range(&endpoint, &digest, BLOB as u64, 100..200).await.unwrap(), bytes[100..200]);
    }
}

/// Ranges that nobody reads on for the moment, as those that a rate limit holds back.
const UNREAD: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn unread_bodies_hold_up_no_other_request_of_an_http2_connection() {
    let (descriptor, bytes) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name);
    let (certificate, key) = (file("cert.pem"), file("key.pem"));
    let nginx = Nginx::start(
        "ssl http2",
        &format!("ssl_certificate {}; ssl_certificate_key {};\nroot DIR;", certificate.display(), key.display()),
    );
    let path = nginx.directory.path().join("v2/app/blobs").join(digest.to_string());
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, &bytes).unwrap();
    run("chmod", &["-R", "a+rX", nginx.directory.path().join("v2").to_str().unwrap()]);
    let options = Options { loopback_tls: true, extra_ca: vec![file("ca.pem")], ..Options::default() };
    let reference: ImageRef = format!("docker://127.0.0.1:{}/app:1", nginx.port).parse().unwrap();
    let endpoint = Source::open(&reference, &options).await.unwrap().endpoints().remove(0);
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        unread.push(endpoint.open_range(&digest, BLOB as u64, 0..BLOB as u64).await.unwrap());
    }
    let read = range(&endpoint, &digest, BLOB as u64, 0..BLOB as u64);
    assert!(tokio::time::timeout(Duration::from_secs(20), read).await.expect("held up").unwrap() == bytes);
    for stream in unread {
        assert!(stream.try_collect::<Vec<_>>().await.unwrap().concat() == bytes);
    }
    assert!(nginx.requests().iter().all(|line| line.contains("HTTP/2")));
}
