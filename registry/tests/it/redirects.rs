//! Redirects to storage: kept while they are good, asked for anew when they are not.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use lazo_format::Digest;
use lazo_registry::{Endpoint, ErrorKind, Options, Source};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    common::{
        nginx::Nginx,
        read, run,
        server::{Reply, Seen, Server},
    },
    docker_registry::certificates_for,
    endpoints::range,
    failures::{BLOB, blob, hasty, serve, source},
};

async fn endpoint(server: &Server) -> Endpoint {
    source(server).await.endpoints().remove(0)
}

/// A registry that redirects to `/signed/N` of `storage`, N growing, with what `reply` adds.
async fn redirecting(storage: String, reply: impl Fn(Reply) -> Reply + Send + Sync + 'static) -> Server {
    let issued = AtomicUsize::new(0);
    Server::start(move |_| {
        let number = issued.fetch_add(1, Ordering::Relaxed);
        reply(Reply::status(307).with("location", format!("{storage}/signed/{number}?X-Sig=secret-signature")))
    })
    .await
}

fn number(seen: &Seen) -> usize {
    seen.path.strip_prefix("/signed/").unwrap().parse().unwrap()
}

#[tokio::test]
async fn asks_the_registry_once_for_many_ranges() {
    let (descriptor, bytes) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    let data = bytes.clone();
    let storage = Server::start(move |seen| serve(seen, &data)).await;
    let server = redirecting(format!("http://{}", storage.address), |r| r).await;
    let endpoint = endpoint(&server).await;
    for start in [5, 900, 70_000] {
        assert_eq!(range(&endpoint, &digest, BLOB as u64, start..start + 9).await.unwrap().len(), 9);
    }
    assert_eq!((server.seen().len(), storage.seen().len()), (1, 3));
    // Another blob has another place.
    let other = Digest::sha256_of(b"other");
    range(&endpoint, &other, BLOB as u64, 0..9).await.unwrap();
    assert_eq!((server.seen().len(), storage.seen().len()), (2, 4));
    // What the registry forbids to keep is not kept.
    let server = redirecting(format!("http://{}", storage.address), |r| r.with("cache-control", "no-store")).await;
    let endpoint = self::endpoint(&server).await;
    for _ in 0..3 {
        range(&endpoint, &digest, BLOB as u64, 5..9).await.unwrap();
    }
    assert_eq!(server.seen().len(), 3);
}

#[tokio::test]
async fn asks_anew_within_one_attempt_when_a_target_has_ended() {
    let (descriptor, bytes) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    for status in [400, 401, 403, 404, 410] {
        let data = bytes.clone();
        // The first target serves one request.
        let storage = Server::start(move |seen| match (number(seen), seen.number) {
            (0, 1..) => Reply::status(status),
            _ => serve(seen, &data),
        })
        .await;
        let server = redirecting(format!("http://{}", storage.address), |r| r).await;
        let endpoint = endpoint(&server).await;
        for _ in 0..3 {
            assert_eq!(range(&endpoint, &digest, BLOB as u64, 7..99).await.unwrap(), bytes[7..99], "{status}");
        }
        assert_eq!((server.seen().len(), storage.seen().len()), (2, 4), "{status}");
    }
    // Other errors are the answer; and an error of a fresh target is, too.
    for (status, requests) in [(500, 1), (429, 1), (403, 2)] {
        let data = bytes.clone();
        let storage = Server::start(move |seen| match seen.number {
            0 => serve(seen, &data),
            _ => Reply::status(status),
        })
        .await;
        let server = redirecting(format!("http://{}", storage.address), |r| r).await;
        let endpoint = endpoint(&server).await;
        range(&endpoint, &digest, BLOB as u64, 7..99).await.unwrap();
        let error = range(&endpoint, &digest, BLOB as u64, 7..99).await.unwrap_err();
        assert_eq!((server.seen().len(), storage.seen().len()), (requests, 1 + requests), "{status}: {error}");
        assert!(!format!("{error} {error:?}").contains("secret-"), "{error:?}");
    }
}

/// Answers one request for bytes 7 to 98 of `data`; then is gone, or silent.
async fn once(data: Vec<u8>, silent: bool) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        let head = format!(
            "HTTP/1.1 206 x\r\ncontent-range: bytes 7-98/{BLOB}\r\ncontent-length: 92\r\nconnection: close\r\n\r\n"
        );
        let listener = silent.then_some(listener);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&data[7..99]).await.unwrap();
        if let Some(listener) = listener {
            let _held = listener.accept().await.unwrap();
            std::future::pending::<()>().await;
        }
    });
    address
}

#[tokio::test]
async fn leaves_targets_that_are_gone_or_silent() {
    let (descriptor, bytes) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    for silent in [false, true] {
        let first = once(bytes.clone(), silent).await;
        let data = bytes.clone();
        let storage = Server::start(move |seen| serve(seen, &data)).await;
        let second = storage.address;
        let server = Server::start(move |seen| {
            let to = if seen.number == 0 { first } else { second };
            Reply::status(302).with("location", format!("http://{to}/blob"))
        })
        .await;
        let endpoint = endpoint(&server).await;
        let read = || range(&endpoint, &digest, BLOB as u64, 7..99);
        assert_eq!(read().await.unwrap(), bytes[7..99]);
        if silent {
            // Whoever gives up before there is a head leaves the target forgotten.
            assert!(tokio::time::timeout(Duration::from_millis(100), read()).await.is_err());
            assert_eq!(server.seen().len(), 1);
        }
        assert_eq!(read().await.unwrap(), bytes[7..99]);
        assert_eq!((server.seen().len(), storage.seen().len()), (2, 1));
    }
}

/// nginx's signature for a path that is good until `expires`, seconds since 1970.
fn sign(expires: u64, path: &str) -> String {
    let script =
        format!("printf '%s' '{expires}{path} secret' | openssl md5 -binary | openssl base64 | tr +/ -_ | tr -d =");
    run("sh", &["-c", &script]).trim().to_owned()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// How long a signed URL is good, seconds: enough for a busy machine to use it.
const LIFETIME: u64 = 6;

/// An nginx with a blob, and a registry that redirects to it; `parameter` says when a URL ends.
async fn expiring(parameter: &'static str) -> (Nginx, Server) {
    let (_, bytes) = blob();
    let nginx = Nginx::start(
        "",
        &format!(
            "secure_link $arg_md5,$arg_{parameter}; secure_link_md5 \"$secure_link_expires$uri secret\"; root DIR/files;\n\
             if ($secure_link = \"\") {{ return 403; }} if ($secure_link = \"0\") {{ return 410; }}"
        ),
    );
    let files = nginx.directory.path().join("files");
    fs::create_dir(&files).unwrap();
    fs::write(files.join("blob"), bytes).unwrap();
    fs::set_permissions(files.join("blob"), fs::Permissions::from_mode(0o644)).unwrap();
    let port = nginx.port;
    let server = Server::start(move |_| {
        let expires = now() + LIFETIME;
        let signature = sign(expires, "/blob");
        let url = format!("http://127.0.0.1:{port}/blob?md5={signature}&{parameter}={expires}");
        Reply::status(307).with("location", url)
    })
    .await;
    (nginx, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_no_signed_url_of_a_real_server_after_the_end_that_it_names() {
    assert_eq!(outlive_signed_urls("expires").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn outlives_signed_urls_of_which_only_the_server_knows_the_end() {
    assert!(outlive_signed_urls("until").await > 0);
}

/// Reads before and after a URL's end; how many requests nginx refused.
async fn outlive_signed_urls(parameter: &'static str) -> usize {
    let (descriptor, bytes) = blob();
    let digest = lazo_registry::digest_of(&descriptor).unwrap();
    let (nginx, server) = expiring(parameter).await;
    let source = Source::open(&server.reference("app:1"), &hasty()).await.unwrap();
    let endpoint = source.endpoints().remove(0);
    let all = async || {
        let ranges = (0..8_u64).map(|n| range(&endpoint, &digest, BLOB as u64, n..n + 1000));
        for (n, found) in join_all(ranges).await.into_iter().enumerate() {
            assert_eq!(found.unwrap(), bytes[n..n + 1000], "{parameter}");
        }
    };
    range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap();
    all().await;
    let before = server.seen().len();
    assert!(before <= 2, "{before}: the URL is used again while it lasts");
    // The signature ends by nginx's clock, which is this one.
    tokio::time::sleep(Duration::from_secs(LIFETIME + 2)).await;
    all().await;
    assert!(server.seen().len() > before);
    nginx.requests().iter().filter(|line| line.contains("\" 410 ") || line.contains("\" 403 ")).count()
}

/// `server` of a registry that is asked over plain HTTP, through a proxy which plays all hosts.
async fn through_proxy(settings: &str, handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> (Server, Source) {
    let proxy = Server::start(handler).await;
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join("plain.invalid");
    fs::create_dir(&own).unwrap();
    let text = format!("server = 'http://plain.invalid'\nproxy = 'http://{}'\n{settings}\n", proxy.address);
    fs::write(own.join("hosts.toml"), text).unwrap();
    let options = Options { hosts_dir: Some(directory.path().to_owned()), ..hasty() };
    let source = Source::open(&"docker://plain.invalid/app:1".parse().unwrap(), &options).await.unwrap();
    (proxy, source)
}

#[tokio::test]
async fn plain_http_leads_to_other_hosts_only_where_that_is_allowed() {
    let (descriptor, bytes) = blob();
    for (settings, to, allowed) in [
        ("", "http://plain.invalid/moved", true),
        ("", "/moved", true),
        ("", "http://plain.invalid:9000/moved", true),
        ("", "http://other.invalid/moved", false),
        ("", "http://127.0.0.1:1/moved", false),
        ("insecure_redirects = false", "http://other.invalid/moved", false),
        ("insecure_redirects = true", "http://other.invalid/moved", true),
    ] {
        let data = bytes.clone();
        let (proxy, source) = through_proxy(settings, move |seen| match seen.path.as_str() {
            "/moved" => serve(seen, &data),
            _ => Reply::status(307).with("location", to),
        })
        .await;
        match read(&source, &descriptor).await {
            Ok(found) => assert!(allowed && found == bytes, "{settings} {to}"),
            Err(error) => {
                let error = error.to_string();
                assert!(!allowed && error.contains("insecure_redirects") && error.contains(to), "{to}: {error}");
                assert_eq!(proxy.seen().len(), 1, "nobody else is asked");
            }
        }
    }
}

#[tokio::test]
async fn nothing_of_a_hosts_own_comes_back_to_it_by_way_of_another() {
    let (descriptor, bytes) = blob();
    let data = bytes.clone();
    let settings = "insecure_redirects = true\n[header]\nX-Key = 'secret-key'\nAuthorization = 'Basic secret-login'";
    let (proxy, source) = through_proxy(settings, move |seen| match (seen.header("host"), seen.path.as_str()) {
        ("plain.invalid", "/back") => serve(seen, &data),
        ("plain.invalid", _) => Reply::status(307).with("location", "http://evil.invalid/"),
        _ => Reply::status(307).with("location", "http://plain.invalid/back"),
    })
    .await;
    assert_eq!(read(&source, &descriptor).await.unwrap(), bytes);
    let keys: Vec<String> = proxy.seen().iter().map(|s| s.header("x-key").to_owned()).collect();
    assert_eq!(keys, ["secret-key", "", ""]);
    assert!(proxy.seen()[1..].iter().all(|s| s.header("authorization").is_empty()));
}

/// A registry that wants a client certificate and redirects blobs to storage under another name, which says whether it got one.
struct Pair {
    directory: tempfile::TempDir,
    registry: Nginx,
    storage: Nginx,
}

impl Pair {
    fn start(blobs: &Server) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certificates_for(directory.path(), "IP:127.0.0.1,DNS:localhost");
        let file = |name: &str| directory.path().join(name).display().to_string();
        let tls = format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {};",
            file("cert.pem"),
            file("key.pem"),
            file("ca.pem")
        );
        let pass = format!("proxy_set_header X-Certificate $ssl_client_verify; proxy_pass http://{};", blobs.address);
        let storage = Nginx::start("ssl", &format!("{tls} ssl_verify_client optional; location / {{ {pass} }}"));
        let to = format!("https://localhost:{}$request_uri", storage.port);
        let registry = Nginx::start(
            "ssl",
            &format!("{tls} ssl_verify_client on; location /own {{ {pass} }} location / {{ return 307 {to}; }}"),
        );
        Self { directory, registry, storage }
    }

    fn file(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    /// The image of a registry that is talked to with the client certificate and these settings.
    async fn source(&self, settings: &str) -> Source {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("r.invalid");
        fs::create_dir(&own).unwrap();
        let client = format!("client = [['{}', '{}']]", self.file("cert.pem"), self.file("key.pem"));
        let text = format!("server = 'https://127.0.0.1:{}'\n{client}\n{settings}\n", self.registry.port);
        fs::write(own.join("hosts.toml"), text).unwrap();
        let options = Options { hosts_dir: Some(root.path().to_owned()), ..hasty() };
        Source::open(&"docker://r.invalid/app:1".parse().unwrap(), &options).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_and_blind_trust_are_for_the_registry_alone() {
    let (mut layer, bytes) = blob();
    let data = bytes.clone();
    let blobs =
        Server::start(move |seen| if seen.path == "/none" { Reply::status(404) } else { serve(seen, &data) }).await;
    let pair = Pair::start(&blobs);
    let certificate = || blobs.seen().last().unwrap().header("x-certificate").to_owned();
    let trusting = pair.source(&format!("ca = '{}'", pair.file("ca.pem"))).await;
    assert_eq!(read(&trusting, &layer).await.unwrap(), bytes);
    assert_eq!(certificate(), "NONE", "storage gets no client certificate");
    // Neither does a foreign layer's server, not even where that is the registry.
    layer.set_media_type("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into());
    let missing = lazo_registry::descriptor(layer.media_type().clone(), &Digest::sha256_of(&bytes), BLOB as u64);
    for (url, allowed) in [
        (format!("https://localhost:{}/foreign", pair.storage.port), true),
        (format!("https://127.0.0.1:{}/own", pair.registry.port), false),
    ] {
        let mut foreign = missing.clone();
        foreign.set_urls(Some(vec![url]));
        let blind = Server::start(|_| Reply::status(404)).await;
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("r.invalid");
        fs::create_dir(&own).unwrap();
        let client = format!("client = [['{}', '{}']]", pair.file("cert.pem"), pair.file("key.pem"));
        let text = format!("server = 'http://{}'\nca = '{}'\n{client}\n", blind.address, pair.file("ca.pem"));
        fs::write(own.join("hosts.toml"), text).unwrap();
        let options = Options { hosts_dir: Some(root.path().to_owned()), ..hasty() };
        let source = Source::open(&"docker://r.invalid/app:1".parse().unwrap(), &options).await.unwrap();
        match read(&source, &foreign).await {
            Ok(found) => assert!(allowed && found == bytes && certificate() == "NONE"),
            Err(error) => assert!(!allowed && error.to_string().contains("400"), "{error}"),
        }
    }
    // The registry itself is trusted unseen, and no other.
    let blind = pair.source("skip_verify = true").await;
    let (layer, _) = blob();
    let untrusted = read(&blind, &layer).await.unwrap_err();
    assert_eq!(untrusted.kind(), ErrorKind::Untrusted, "{untrusted}");
    assert!(untrusted.to_string().contains("localhost"), "{untrusted}");
}
