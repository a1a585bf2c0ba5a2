//! What a good registry never does: a server that misbehaves on purpose.

use std::{
    fs,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crate::common::{
    Image, digest, noise, open, read,
    server::{End, Reply, Seen, Server},
};
use lazo_format::{Algorithm, Digest};
use lazo_registry::{
    Destination, Document, Error, ImageRef, Options, Outcome, Source, descriptor,
    oci_spec::image::{Descriptor, MediaType},
};

pub(crate) const BLOB: usize = 3 << 20;

pub(crate) fn blob() -> (Descriptor, Vec<u8>) {
    let bytes = noise(BLOB, 3);
    (descriptor(MediaType::ImageLayerGzip, &Digest::sha256_of(&bytes), BLOB as u64), bytes)
}

/// Few attempts and little patience, so that tests end.
pub(crate) fn hasty() -> Options {
    Options { attempts: 3, stall_timeout: Duration::from_millis(300), ..Options::default() }
}

pub(crate) async fn source(server: &Server) -> Source {
    Source::open(&server.reference("app:1"), &hasty()).await.unwrap()
}

/// First and last byte of a `Range` header.
pub(crate) fn asked(seen: &Seen) -> Option<(usize, usize)> {
    let (first, last) = seen.header("range").strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().unwrap(), last.parse().unwrap()))
}

/// Answers as a good server would, ranges included.
pub(crate) fn serve(seen: &Seen, bytes: &[u8]) -> Reply {
    match asked(seen) {
        None => Reply::ok(bytes),
        Some((first, last)) => Reply { status: 206, ..Reply::ok(&bytes[first..=last]) }
            .with("content-range", format!("bytes {first}-{last}/{}", bytes.len())),
    }
}

#[tokio::test]
async fn takes_up_a_broken_download() {
    let (descriptor, bytes) = blob();
    let data = bytes.clone();
    // Every connection breaks after a third; the second also answers 503 once.
    let server = Server::start(move |seen| {
        let first = asked(seen).map_or(0, |a| a.0);
        match seen.number {
            1 => Reply::status(503),
            3 => serve(seen, &data),
            _ => {
                let mut reply = serve(seen, &data[..]);
                let rest = data.len() - first;
                reply.body.truncate(BLOB / 3);
                reply.short_of(rest, End::Cut)
            }
        }
    })
    .await;
    assert_eq!(read(&source(&server).await, &descriptor).await.unwrap(), bytes);
    let ranges: Vec<String> = server.seen().iter().map(|s| s.header("range").to_owned()).collect();
    let (third, last) = (BLOB / 3, BLOB - 1);
    assert_eq!(
        ranges,
        [
            "".into(),
            format!("bytes={third}-{last}"),
            format!("bytes={third}-{last}"),
            format!("bytes={}-{last}", 2 * third)
        ]
    );
}

#[tokio::test]
async fn takes_up_a_broken_download_without_ranges() {
    let (descriptor, bytes) = blob();
    let data = bytes.clone();
    let server = Server::start(move |seen| match seen.number {
        0 => Reply::ok(&data[..BLOB / 2]).short_of(BLOB, End::Cut),
        _ => Reply::ok(&data[..]),
    })
    .await;
    assert_eq!(read(&source(&server).await, &descriptor).await.unwrap(), bytes);
}

#[tokio::test]
async fn gives_up_when_nothing_moves() {
    let (descriptor, bytes) = blob();
    let data = bytes.clone();
    let server = Server::start(move |seen| match asked(seen) {
        None => Reply::ok(&data[..1000]).short_of(BLOB, End::Hang),
        Some((first, last)) => Reply { status: 206, ..Reply::ok([]) }
            .with("content-range", format!("bytes {first}-{last}/{BLOB}"))
            .short_of(last + 1 - first, End::Hang),
    })
    .await;
    let error = read(&source(&server).await, &descriptor).await.unwrap_err();
    assert!(matches!(error, Error::Transport { .. }), "{error}");
    assert_eq!(server.seen().len(), 3);
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    assert!(source(&server).await.blob_range(&digest, BLOB as u64, 5..10).await.is_err());
    assert_eq!(server.seen().len(), 6);
}

#[tokio::test]
async fn refuses_bodies_of_another_size_or_content() {
    let (descriptor, bytes) = blob();
    // Announced and not: with a chunked body only the count tells.
    for (wrong, announced) in [(BLOB - 1, true), (BLOB + 1, true), (BLOB - 1, false), (BLOB + 1, false)] {
        let mut data = bytes.clone();
        data.resize(wrong, 0);
        let server = Server::start(move |_| {
            let reply = Reply::ok(data.clone());
            if announced { reply.with("content-length", data.len()) } else { reply }
        })
        .await;
        let error = read(&source(&server).await, &descriptor).await.unwrap_err();
        assert!(matches!(error, Error::SizeMismatch { actual, .. } if actual == wrong as u64), "{error}");
        assert_eq!(server.seen().len(), 1, "no use asking again");
    }
    let mut flipped = bytes;
    flipped[77] ^= 1;
    let server = Server::start(move |_| Reply::ok(flipped.clone())).await;
    let error = read(&source(&server).await, &descriptor).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn ranges_are_what_was_asked_for() {
    let (descriptor, bytes) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    let size = BLOB as u64;
    let good = |content_range: &str, body: &[u8]| {
        Reply { status: 206, ..Reply::ok(body) }.with("content-range", content_range)
    };
    let lies: Vec<(&str, Reply)> = vec![
        ("shifted", good(&format!("bytes 101-200/{BLOB}"), &bytes[100..200])),
        ("shorter", good(&format!("bytes 100-198/{BLOB}"), &bytes[100..199])),
        ("longer", good(&format!("bytes 100-200/{BLOB}"), &bytes[100..201])),
        ("of another blob", good("bytes 100-199/1000", &bytes[100..200])),
        ("no Content-Range", Reply { status: 206, ..Reply::ok(&bytes[100..200]) }),
        ("garbage", good("bytes a-b/c", &bytes[100..200])),
        ("too little, unannounced", good(&format!("bytes 100-199/{BLOB}"), &bytes[100..150])),
        ("too much, unannounced", good(&format!("bytes 100-199/{BLOB}"), &bytes[100..250])),
        ("too much, announced", good(&format!("bytes 100-199/{BLOB}"), &bytes[100..250]).with("content-length", 150)),
        ("416", Reply::status(416)),
        ("whole, of another size", Reply::ok(&bytes[..1000]).with("content-length", 1000)),
        ("whole, too short", Reply::ok(&bytes[..150])),
    ];
    for (name, reply) in lies {
        let server = Server::start(move |_| reply.clone()).await;
        let result = source(&server).await.blob_range(&digest, size, 100..200).await;
        assert!(matches!(result, Err(Error::Invalid { .. } | Error::SizeMismatch { .. })), "{name}: {result:?}");
        assert_eq!(server.seen().len(), 1, "{name}");
    }
    for reply in [
        good(&format!("bytes 100-199/{BLOB}"), &bytes[100..200]),
        good("bytes 100-199/*", &bytes[100..200]),
        Reply::ok(bytes.clone()),
    ] {
        let server = Server::start(move |_| reply.clone()).await;
        assert_eq!(source(&server).await.blob_range(&digest, size, 100..200).await.unwrap(), bytes[100..200]);
    }
    // A range that breaks is fetched again.
    let data = bytes.clone();
    let server = Server::start(move |seen| match seen.number {
        0 => serve(seen, &data).short_of(100, End::Cut),
        _ => serve(seen, &data),
    })
    .await;
    assert_eq!(source(&server).await.blob_range(&digest, size, 100..200).await.unwrap(), bytes[100..200]);
}

#[tokio::test]
async fn tries_again_what_may_pass() {
    let image = Image::new("amd64", &[], Algorithm::Sha256);
    for (status, requests) in
        [(500, 3), (502, 3), (503, 3), (504, 3), (429, 3), (408, 3), (501, 1), (400, 1), (404, 1), (403, 1), (418, 1)]
    {
        let server = Server::start(move |_| Reply::status(status)).await;
        source(&server).await.root().await.unwrap_err();
        assert_eq!(server.seen().len(), requests, "{status}");
    }
    let (media_type, bytes) = (image.manifest.descriptor.media_type().to_string(), image.manifest.bytes.clone());
    let server = Server::start(move |seen| match seen.number {
        0 => Reply::status(429).with("retry-after", 1),
        1 => Reply::ok(&bytes[..5]).short_of(bytes.len(), End::Cut),
        _ => Reply::ok(&bytes[..]).with("content-type", &media_type),
    })
    .await;
    let start = std::time::Instant::now();
    assert_eq!(source(&server).await.root().await.unwrap(), image.manifest);
    assert!(start.elapsed() >= Duration::from_secs(1), "Retry-After is heeded");
    let nobody: ImageRef = "docker://127.0.0.1:1/app:1".parse().unwrap();
    let error = Source::open(&nobody, &hasty()).await.unwrap().root().await.unwrap_err();
    assert!(matches!(&error, Error::Transport { url, .. } if url.contains("127.0.0.1:1/v2/app")), "{error}");
}

#[tokio::test]
async fn bounds_and_checks_manifests() {
    let image = Image::new("amd64", &[], Algorithm::Sha256);
    let manifest = image.manifest.bytes.clone();
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let root = async |reply: Reply| {
        let server = Server::start(move |_| reply.clone()).await;
        source(&server).await.root().await
    };
    let huge = vec![b' '; (4 << 20) + 1];
    assert!(matches!(
        root(Reply::ok(huge.clone()).with("content-length", huge.len())).await,
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(root(Reply::ok(huge)).await, Err(Error::TooLarge { .. })));
    let lying = Reply::ok(manifest.clone()).with("docker-content-digest", Digest::sha256_of(b"x"));
    assert!(matches!(root(lying.with("content-type", oci)).await, Err(Error::DigestMismatch { .. })));
    let sha512 = digest(Algorithm::Sha512, &manifest);
    let other = Reply::ok(manifest.clone()).with("docker-content-digest", sha512).with("content-type", oci);
    assert_eq!(root(other).await.unwrap().digest().unwrap(), sha512);
    let untyped = root(Reply::ok(manifest.clone()).with("content-type", "text/plain")).await.unwrap();
    assert_eq!(untyped, image.manifest);
    let page = root(Reply::ok("<html>").with("content-type", "text/html")).await.unwrap_err().to_string();
    assert!(page.contains("text/html"), "{page}");
    let old = Reply::ok("{}").with("content-type", "application/vnd.docker.distribution.manifest.v1+prettyjws");
    assert!(root(old).await.unwrap_err().to_string().contains("schema 1"));
    // HEAD without a digest falls back to the document.
    let (bytes, media_type) = (manifest, oci);
    let server = Server::start(move |_| Reply::ok(bytes.clone()).with("content-type", media_type)).await;
    assert_eq!(source(&server).await.root_digest().await.unwrap(), image.manifest.digest().unwrap());
    let denied =
        Reply { body: br#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#.to_vec(), ..Reply::status(403) };
    assert!(root(denied).await.unwrap_err().to_string().contains("DENIED: not yours"));
}

/// A login of each kind for the server, and options that use it.
fn login(server: &Server, directory: &tempfile::TempDir, entry: serde_json::Value) -> Options {
    let file = directory.path().join("auth.json");
    fs::write(&file, serde_json::json!({"auths": {server.address.to_string(): entry}}).to_string()).unwrap();
    Options { auth_file: Some(file), ..hasty() }
}

/// A registry that wants tokens, and its token server: tokens are numbered, and only the newest is good.
async fn token_server(expires_in: u64) -> Server {
    let issued = AtomicUsize::new(0);
    let image = Image::new("amd64", &[], Algorithm::Sha256);
    Server::start(move |seen| match seen.path.as_str() {
        "/token" => {
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            Reply::ok(format!(r#"{{"token":"secret-token-{number}","expires_in":{expires_in}}}"#))
        }
        "/revoke" => {
            issued.fetch_add(1, Ordering::Relaxed);
            Reply::status(200)
        }
        _ if seen.header("authorization") == format!("Bearer secret-token-{}", issued.load(Ordering::Relaxed)) => {
            Reply::ok(image.manifest.bytes.clone()).with("content-type", "application/vnd.oci.image.manifest.v1+json")
        }
        _ => Reply::status(401).with(
            "www-authenticate",
            format!(
                r#"Bearer realm="http://{}/token",service="the registry",scope="repository:app:pull""#,
                seen.header("host")
            ),
        ),
    })
    .await
}

#[tokio::test]
async fn gets_keeps_and_renews_tokens() {
    let server = token_server(300).await;
    let directory = tempfile::tempdir().unwrap();
    let options = login(&server, &directory, serde_json::json!({"username": "me", "password": "secret-pw"}));
    let source = Source::open(&server.reference("app:1"), &options).await.unwrap();
    for _ in 0..3 {
        source.root().await.unwrap();
    }
    let seen = server.seen();
    assert_eq!(server.count("GET /token"), 1);
    assert_eq!(seen.len(), 5, "one 401, one token, three answers");
    let asked = &seen[1];
    assert_eq!(asked.query, "service=the+registry&scope=repository%3Aapp%3Apull&account=me");
    assert_eq!(asked.header("authorization"), "Basic bWU6c2VjcmV0LXB3");

    reqwest_get(&format!("http://{}/revoke", server.address)).await;
    // Many at once share the renewal.
    let all = futures_util::future::join_all((0..8).map(|_| source.root())).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert!(server.count("GET /token") <= 2 + 7, "no token storm");
    assert_eq!(server.count("GET /token"), 2);
}

#[tokio::test]
async fn does_not_use_a_token_to_its_end() {
    // A token of no lifetime is good for one request.
    let server = token_server(0).await;
    let source = source(&server).await;
    source.root().await.unwrap();
    source.root().await.unwrap();
    assert!(server.count("GET /token") >= 2);
    assert_eq!(
        server.seen().iter().filter(|s| s.path == "/token").map(|s| s.header("authorization").len()).sum::<usize>(),
        0
    );
}

async fn reqwest_get(url: &str) {
    // Any client will do.
    let url = url.to_owned();
    tokio::task::spawn_blocking(move || crate::common::run("curl", &["-sf", &url])).await.unwrap();
}

#[tokio::test]
async fn trades_identity_tokens_and_uses_access_tokens() {
    let server = token_server(300).await;
    let directory = tempfile::tempdir().unwrap();
    let options = login(&server, &directory, serde_json::json!({"identitytoken": "secret-refresh/+"}));
    Source::open(&server.reference("app:1"), &options).await.unwrap().root().await.unwrap();
    let asked = server.seen()[1].clone();
    assert_eq!(asked.line(), "POST /token");
    assert_eq!(asked.header("content-type"), "application/x-www-form-urlencoded");
    assert_eq!(
        asked.body,
        "grant_type=refresh_token&client_id=lazo&service=the+registry&scope=repository%3Aapp%3Apull\
         &refresh_token=secret-refresh%2F%2B"
    );

    let server = token_server(300).await;
    reqwest_get(&format!("http://{}/token", server.address)).await;
    let options = login(&server, &directory, serde_json::json!({"registrytoken": "secret-token-1"}));
    Source::open(&server.reference("app:1"), &options).await.unwrap().root().await.unwrap();
    let options = login(&server, &directory, serde_json::json!({"registrytoken": "secret-stale"}));
    let error = Source::open(&server.reference("app:1"), &options).await.unwrap().root().await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("refuses the token") && !shown.contains("secret"), "{shown}");
    assert_eq!(server.count("GET /token"), 1, "an access token is used as it is");
}

#[tokio::test]
async fn asks_for_the_rights_it_needs() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.header("authorization")) {
        ("/token", _) => Reply::ok(r#"{"access_token":"t"}"#),
        (_, "") => Reply::status(401)
            .with("www-authenticate", format!("Bearer realm=\"http://{}/token\"", seen.header("host"))),
        ("/v2/app/blobs/uploads/", _) if seen.method == "POST" => Reply::status(201),
        _ => Reply::status(404),
    })
    .await;
    let (descriptor, bytes) = blob();
    let destination = Destination::open(&server.reference("app:1"), &hasty()).await.unwrap();
    let file = destination.staging_dir().join("blob");
    fs::write(&file, bytes).unwrap();
    let from = server.reference("lib/base:2");
    let outcome = destination.put_blob_file(&file, &descriptor, Some(&from)).await.unwrap();
    assert_eq!(outcome, Outcome::Mounted);
    let scopes: Vec<String> = server.seen().into_iter().filter(|s| s.path == "/token").map(|s| s.query).collect();
    assert_eq!(
        scopes,
        [
            "scope=repository%3Aapp%3Apull%2Cpush",
            "scope=repository%3Aapp%3Apull%2Cpush&scope=repository%3Alib%2Fbase%3Apull"
        ]
    );
}

#[tokio::test]
async fn keeps_logins_from_other_servers() {
    let (descriptor, bytes) = blob();
    let data = bytes.clone();
    let storage = Server::start(move |seen| match seen.path.as_str() {
        "/signed" => serve(seen, &data),
        _ => Reply::status(403),
    })
    .await;
    let target = format!("http://{}/signed?signature=secret-signature", storage.address);
    let server = Server::start(move |seen| match seen.header("authorization") {
        "" => Reply::status(401).with("www-authenticate", "Basic realm=\"r\""),
        _ => Reply::status(307).with("location", &target),
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let options = login(&server, &directory, serde_json::json!({"auth": "bWU6c2VjcmV0LXB3"}));
    let source = Source::open(&server.reference("app:1"), &options).await.unwrap();
    assert_eq!(read(&source, &descriptor).await.unwrap(), bytes);
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    assert_eq!(source.blob_range(&digest, BLOB as u64, 7..9).await.unwrap(), bytes[7..9]);
    assert_eq!(storage.seen().len(), 2);
    for seen in storage.seen() {
        assert_eq!((seen.header("authorization"), seen.header("referer")), ("", ""));
    }

    // What the storage refuses is reported without the signature.
    let target = format!("http://{}/gone?signature=secret-signature", storage.address);
    let server = Server::start(move |_| Reply::status(307).with("location", &target)).await;
    let error = read(&crate::common::open(&server.reference("app:1")).await, &descriptor).await.unwrap_err();
    let shown = format!("{error} {error:?}");
    assert!(shown.contains("/gone") && !shown.contains("secret"), "{shown}");
    // Redirects that lead nowhere, or in circles.
    for location in [None, Some("/v2/app/blobs/again"), Some("ftp://127.0.0.1/x"), Some("http://[")] {
        let server = Server::start(move |_| match location {
            Some(location) => Reply::status(302).with("location", location),
            None => Reply::status(302),
        })
        .await;
        let error = read(&open(&server.reference("app:1")).await, &descriptor).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{location:?}: {error}");
    }
}

#[tokio::test]
async fn sends_no_password_to_a_strange_place() {
    for challenge in ["Bearer realm=\"ftp://x/token\"", "Bearer realm=\"not a url\"", "Negotiate", ""] {
        let server = Server::start(move |_| match challenge {
            "" => Reply::status(401),
            challenge => Reply::status(401).with("www-authenticate", challenge),
        })
        .await;
        let error = source(&server).await.root().await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{challenge}: {error}");
        assert_eq!(server.seen().len(), 1);
    }
    // A token server that refuses, or that sends nonsense.
    for (status, body) in [(401, ""), (403, ""), (200, "secret-nonsense"), (200, "{}")] {
        let server = Server::start(move |seen| match seen.path.as_str() {
            "/token" => Reply { body: body.into(), ..Reply::status(status) },
            _ => Reply::status(401)
                .with("www-authenticate", format!("Bearer realm=\"http://{}/token\"", seen.header("host"))),
        })
        .await;
        let error = source(&server).await.root().await.unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("token") && !shown.contains("secret"), "{shown}");
    }
}

#[tokio::test]
async fn goes_on_with_an_upload_where_the_registry_is() {
    let (descriptor, bytes) = blob();
    let part = BLOB / 3;
    let stored = AtomicUsize::new(0);
    let expected = bytes.clone();
    let server = Server::start(move |seen| {
        let at = |r: Reply| {
            let last = stored.load(Ordering::Relaxed).saturating_sub(1);
            r.with("location", "/upload/1?state=x").with("range", format!("0-{last}"))
        };
        match (seen.method.as_str(), seen.number) {
            ("HEAD", _) => Reply::status(404),
            ("POST", _) => at(Reply::status(202)),
            // The second part is taken by half, then the server fails.
            ("PATCH", 3) => {
                stored.store(part + part / 2, Ordering::Relaxed);
                Reply::status(500)
            }
            ("PATCH", _) => {
                let (first, last) = seen.header("content-range").split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                assert_eq!(first, stored.load(Ordering::Relaxed));
                assert_eq!(seen.body, &expected[first..=last]);
                stored.store(last + 1, Ordering::Relaxed);
                at(Reply::status(202))
            }
            ("GET", _) => at(Reply::status(204)),
            ("PUT", _) => Reply::status(201),
            other => panic!("{other:?}"),
        }
    })
    .await;
    let options = Options { upload_chunk: part as u64, ..hasty() };
    let destination = Destination::open(&server.reference("app:1"), &options).await.unwrap();
    let outcome = destination.put_blob_bytes(bytes, &descriptor).await.unwrap();
    assert_eq!(outcome, Outcome::Uploaded);
    let lines: Vec<String> =
        server.seen().iter().map(|s| format!("{} {}", s.method, s.header("content-range"))).collect();
    let (half, last) = (part + part / 2, BLOB - 1);
    assert_eq!(
        lines,
        [
            "HEAD ".to_owned(),
            "POST ".into(),
            format!("PATCH 0-{}", part - 1),
            format!("PATCH {part}-{}", 2 * part - 1),
            "GET ".into(),
            format!("PATCH {half}-{}", half + part - 1),
            format!("PATCH {}-{last}", half + part),
            "PUT ".into(),
        ]
    );
    assert!(server.seen().last().unwrap().query.contains("state=x&digest=sha256%3A"));
}

#[tokio::test]
async fn gives_up_uploads_that_get_nowhere() {
    let (descriptor, bytes) = blob();
    let options = Options { upload_chunk: 1 << 20, ..hasty() };
    let put = async |server: &Server, options: &Options| {
        let destination = Destination::open(&server.reference("app:1"), options).await.unwrap();
        destination.put_blob_bytes(bytes.clone(), &descriptor).await.unwrap_err()
    };
    let begun = || Reply::status(202).with("location", "/upload/1");
    // Parts vanish; the registry claims too much; it refuses; it loses each upload; it stores something else.
    let lost = Server::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::status(404),
        "GET" => Reply::status(204).with("range", "0-0"),
        "POST" => begun(),
        _ => begun().with("range", "0-0"),
    })
    .await;
    assert!(matches!(put(&lost, &options).await, Error::Transport { .. }));
    assert!(lost.seen().len() < 30, "{}", lost.seen().len());
    let greedy = Server::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::status(404),
        _ => begun().with("range", format!("0-{}", BLOB)),
    })
    .await;
    assert!(matches!(put(&greedy, &options).await, Error::SizeMismatch { .. }));
    let refusing = Server::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::status(404),
        "POST" => begun(),
        _ => Reply::status(413),
    })
    .await;
    assert!(matches!(put(&refusing, &options).await, Error::Status { status: 413, .. }));
    let forgetful = Server::start(move |seen| match seen.method.as_str() {
        "POST" => begun(),
        "PATCH" => Reply::status(500),
        _ => Reply::status(404),
    })
    .await;
    assert!(matches!(put(&forgetful, &options).await, Error::Transport { .. }));
    assert_eq!(forgetful.count("POST /v2/app/blobs/uploads/"), 3);
    let liar = Server::start(move |seen| match seen.method.as_str() {
        "HEAD" => Reply::status(404),
        "PUT" => Reply::status(201).with("docker-content-digest", Digest::sha256_of(b"else")),
        _ => begun(),
    })
    .await;
    assert!(matches!(put(&liar, &options).await, Error::DigestMismatch { .. }));
    let nowhere = Server::start(move |seen| Reply::status(if seen.method == "HEAD" { 404 } else { 202 })).await;
    assert!(matches!(put(&nowhere, &options).await, Error::Invalid { .. }));
}

#[tokio::test]
async fn fetches_foreign_layers_from_their_urls() {
    let (_, bytes) = blob();
    let data = bytes.clone();
    let elsewhere = Server::start(move |seen| match seen.path.as_str() {
        "/layer" => Reply::ok(data.clone()),
        "/moved" => Reply::status(302).with("location", "/layer"),
        "/wrong" => Reply::ok(vec![0; BLOB]),
        _ => Reply::status(404),
    })
    .await;
    let server = Server::start(|_| Reply::status(404)).await;
    let source = source(&server).await;
    let url = |path: &str| format!("http://{}/{path}", elsewhere.address);
    let layer = |media_type: &str, urls: Vec<String>| {
        let mut layer = descriptor(media_type.into(), &Digest::sha256_of(&bytes), BLOB as u64);
        layer.set_urls((!urls.is_empty()).then_some(urls));
        layer
    };
    for foreign in [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ] {
        for urls in [vec![url("layer")], vec![url("none"), "ftp://x/y".into(), url("moved")]] {
            assert_eq!(read(&source, &layer(foreign, urls)).await.unwrap(), bytes);
        }
        let wrong = read(&source, &layer(foreign, vec![url("wrong")])).await.unwrap_err();
        assert!(matches!(wrong, Error::DigestMismatch { .. }), "{wrong}");
        let refused = read(&source, &layer(foreign, vec![])).await.unwrap_err().to_string();
        assert!(refused.contains("foreign layer sha256:") && refused.contains("no URL"), "{refused}");
        let gone = read(&source, &layer(foreign, vec![url("none")])).await.unwrap_err().to_string();
        assert!(gone.contains("foreign layer sha256:") && gone.contains("/none"), "{gone}");
    }
    // An ordinary layer's URLs are not used.
    let count = elsewhere.seen().len();
    assert!(read(&source, &layer("application/vnd.oci.image.layer.v1.tar+gzip", vec![url("layer")])).await.is_err());
    assert_eq!(elsewhere.seen().len(), count);
}

#[tokio::test]
async fn stops_at_deep_and_wide_indexes() {
    // An index that holds only an index that holds only ...
    let index = |entry: &Descriptor| {
        let json = serde_json::json!({"schemaVersion": 2, "mediaType": MediaType::ImageIndex.to_string(), "manifests": [entry]});
        Document::new(MediaType::ImageIndex, lazo_registry::to_json(&json).unwrap())
    };
    let image = Image::new("amd64", &[], Algorithm::Sha256);
    let mut documents = vec![image.manifest];
    for _ in 0..8 {
        documents.push(index(&documents.last().unwrap().descriptor));
    }
    let root = documents.last().unwrap().clone();
    let wide = serde_json::json!({"schemaVersion": 2, "manifests": (0..1100).map(|n| {
        descriptor(MediaType::ImageManifest, &Digest::sha256_of(format!("{n}").as_bytes()), 1)
    }).collect::<Vec<_>>()});
    let wide = lazo_registry::to_json(&wide).unwrap();
    let server = Server::start(move |seen| {
        let by_digest = documents.iter().find(|d| seen.path.ends_with(&d.descriptor.digest().to_string()));
        match by_digest.or(seen.path.ends_with(":1").then_some(&root)) {
            _ if seen.path.ends_with("/wide") => Reply::ok(wide.clone()).with("content-type", MediaType::ImageIndex),
            Some(d) => Reply::ok(d.bytes.clone()).with("content-type", d.descriptor.media_type()),
            None => Reply::ok(root.bytes.clone()).with("content-type", MediaType::ImageIndex),
        }
    })
    .await;
    let source = source(&server).await;
    let error = source.resolve(&"linux/amd64".parse().unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("nest deeper"), "{error}");
    assert!(source.images().await.unwrap_err().to_string().contains("nest deeper"));
    let wide = Source::open(&server.reference("app:wide"), &hasty()).await.unwrap();
    assert!(wide.images().await.unwrap_err().to_string().contains("1024"));
}
