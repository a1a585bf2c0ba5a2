use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::*;

const BLOB: &[u8] = b"0123456789";

/// A layout with one blob and a manifest tagged `v1`.
fn sample() -> (tempfile::TempDir, Digest, Digest) {
    let temporary = tempfile::tempdir().unwrap();
    let layout = temporary.path();
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let blob = Digest::sha256_of(BLOB);
    let manifest = json!({ "schemaVersion": 2, "layers": [] }).to_string();
    let manifest_digest = Digest::sha256_of(manifest.as_bytes());
    std::fs::write(blob_path(layout, &blob), BLOB).unwrap();
    std::fs::write(blob_path(layout, &manifest_digest), manifest).unwrap();
    let index = json!({ "manifests": [{
        "digest": manifest_digest.to_string(), "annotations": { "org.opencontainers.image.ref.name": "v1" },
    }] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    (temporary, blob, manifest_digest)
}

async fn start(layout: &Path, link: Link) -> Registry {
    Registry::start(BTreeMap::from([("some/repo".to_owned(), layout.to_path_buf())]), link).await.unwrap()
}

fn fast() -> Link {
    Link::new(Duration::ZERO, u64::MAX)
}

/// Status, head and body of a reply.
async fn ask(registry: &Registry, method: &str, path: &str, headers: &str) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(registry.address()).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).await.unwrap();
    let end = reply.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(reply[..end].to_vec()).unwrap().to_lowercase();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head, reply[end + 4..].to_vec())
}

#[tokio::test]
async fn answers_a_pull() {
    let (layout, blob, manifest) = sample();
    let registry = start(layout.path(), fast()).await;
    assert_eq!(ask(&registry, "GET", "/v2/", "").await.0, 200);
    for reference in ["v1", &manifest.to_string()] {
        let (status, head, body) = ask(&registry, "GET", &format!("/v2/some/repo/manifests/{reference}"), "").await;
        assert_eq!(status, 200);
        assert_eq!(Digest::sha256_of(&body), manifest);
        assert!(head.contains(&format!("docker-content-digest: {manifest}")), "{head}");
        assert!(head.contains("content-type: application/vnd.oci.image.manifest.v1+json"), "{head}");
    }
    let path = format!("/v2/some/repo/blobs/{blob}");
    let (status, head, body) = ask(&registry, "GET", &path, "").await;
    assert_eq!((status, body.as_slice()), (200, BLOB));
    assert!(head.contains("content-length: 10"), "{head}");
    let (status, head, body) = ask(&registry, "HEAD", &path, "").await;
    assert_eq!((status, body.len()), (200, 0));
    assert!(head.contains("content-length: 10"), "{head}");
    let manifest_bytes = std::fs::metadata(blob_path(layout.path(), &manifest)).unwrap().len();
    assert_eq!(registry.traffic(), Traffic { requests: 5, bytes: 2 + 2 * manifest_bytes + 10 });
}

#[tokio::test]
async fn answers_ranges() {
    let (layout, blob, _) = sample();
    let registry = start(layout.path(), fast()).await;
    let path = format!("/v2/some/repo/blobs/{blob}");
    for (range, expected) in [("2-4", "234"), ("7-", "789"), ("7-100", "789"), ("-3", "789"), ("-100", "0123456789")] {
        let (status, head, body) = ask(&registry, "GET", &path, &format!("Range: bytes={range}\r\n")).await;
        assert_eq!((status, body.as_slice()), (206, expected.as_bytes()), "{range}");
        assert!(head.contains("content-range: bytes "), "{head}");
    }
    for range in ["10-", "12-13", "-0"] {
        assert_eq!(ask(&registry, "GET", &path, &format!("Range: bytes={range}\r\n")).await.0, 416, "{range}");
    }
    for range in ["bytes=1-2,4-5", "bytes=4-2", "bytes=x-", "lines=1-2"] {
        let (status, _, body) = ask(&registry, "GET", &path, &format!("Range: {range}\r\n")).await;
        assert_eq!((status, body.as_slice()), (200, BLOB), "{range}");
    }
}

#[tokio::test]
async fn refuses_the_rest() {
    let (layout, _, manifest) = sample();
    let registry = start(layout.path(), fast()).await;
    let absent = Digest::sha256_of(b"absent");
    for (method, path, expected) in [
        ("GET", "/".to_owned(), 404),
        ("GET", "/v2/some/repo".to_owned(), 404),
        ("GET", "/v2/some/repo/tags/list".to_owned(), 404),
        ("GET", "/v2/other/manifests/v1".to_owned(), 404),
        ("GET", "/v2/some/repo/manifests/v2".to_owned(), 404),
        ("GET", format!("/v2/some/repo/manifests/{absent}"), 404),
        ("GET", format!("/v2/some/repo/blobs/{absent}"), 404),
        ("HEAD", format!("/v2/some/repo/blobs/{absent}"), 404),
        ("GET", format!("/v2/some/blobs/{manifest}"), 404),
        ("GET", "/v2/some/repo/blobs/sha256:..%2f..%2findex.json".to_owned(), 404),
        ("PUT", "/v2/some/repo/manifests/v1".to_owned(), 405),
    ] {
        assert_eq!(ask(&registry, method, &path, "").await.0, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn is_as_slow_as_asked_for() {
    let (layout, blob, _) = sample();
    // Ten bytes at 50 bytes a second, less the link's credit of 10 ms, after 100 ms.
    let registry = start(layout.path(), Link::new(Duration::from_millis(100), 50)).await;
    let start = Instant::now();
    ask(&registry, "GET", &format!("/v2/some/repo/blobs/{blob}"), "").await;
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
}
