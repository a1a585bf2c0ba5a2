//! Logins of sources that live for days: passwords that change, tokens that expire, and that nothing of it is ever shown.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use futures_util::future::join_all;
use lazo_registry::{Endpoint, ErrorKind, Options, Source, digest_of};

use crate::{
    common::{
        Image, Registry, Setup, run,
        server::{Reply, Seen, Server},
    },
    docker_registry::certificates,
    endpoints::range,
    failures::{BLOB, blob, hasty, serve},
};

/// Keeps a login for a host.
fn keep(file: &Path, host: &str, entry: serde_json::Value) {
    fs::write(file, serde_json::json!({"auths": {host: entry}}).to_string()).unwrap();
}

fn password(user: &str, password: &str) -> serde_json::Value {
    serde_json::json!({"username": user, "password": password})
}

/// 64 ranges at once.
async fn many(endpoint: &Endpoint) {
    let (descriptor, bytes) = blob();
    let digest = digest_of(&descriptor).unwrap();
    let ranges = (0..64_u64).map(|n| range(endpoint, &digest, BLOB as u64, n * 100..n * 100 + 100));
    for (n, found) in join_all(ranges).await.into_iter().enumerate() {
        assert_eq!(found.unwrap(), bytes[n * 100..n * 100 + 100]);
    }
}

#[tokio::test]
async fn a_password_changed_while_reading_is_read_anew() {
    let (_, bytes) = blob();
    let current = Arc::new(Mutex::new("old"));
    // 401 as docker-registry answers, and 403 as some do for logins that have expired.
    for status in [401, 403] {
        *current.lock().unwrap() = "old";
        let (good, data) = (current.clone(), bytes.clone());
        let server = Server::start(move |seen| {
            let expected = STANDARD.encode(format!("me:secret-{}", good.lock().unwrap()));
            match seen.header("authorization") {
                given if given == format!("Basic {expected}") => serve(seen, &data),
                "" => Reply::status(401).with("www-authenticate", "Basic realm=\"r\""),
                _ if status == 401 => Reply::status(401).with("www-authenticate", "Basic realm=\"r\""),
                _ => Reply::status(403),
            }
        })
        .await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.json");
        let host = server.address.to_string();
        keep(&file, &host, password("me", "secret-old"));
        let options = Options { auth_file: Some(file.clone()), ..hasty() };
        let source = Source::open(&server.reference("app:1"), &options).await.unwrap();
        let endpoint = source.endpoints().remove(0);
        many(&endpoint).await;
        *current.lock().unwrap() = "new";
        let digest = digest_of(&blob().0).unwrap();
        let error = range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{status}: {error}");
        assert!(!format!("{error} {error:?}").contains("secret"));
        keep(&file, &host, password("me", "secret-new"));
        many(&endpoint).await;
    }
}

#[tokio::test]
async fn a_token_file_is_read_anew_and_never_sent_to_a_mirror() {
    let (descriptor, bytes) = blob();
    let digest = digest_of(&descriptor).unwrap();
    let good = Arc::new(AtomicUsize::new(1));
    let serve_with = |good: Arc<AtomicUsize>| {
        let data = bytes.clone();
        move |seen: &Seen| {
            let expected = format!("Bearer secret-token-{}", good.load(Ordering::Relaxed));
            if seen.header("authorization") == expected {
                return serve(seen, &data);
            }
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
            Reply::status(if seen.path == "/token" { 403 } else { 401 }).with("www-authenticate", realm)
        }
    };
    let (server, mirror) =
        (Server::start(serve_with(good.clone())).await, Server::start(serve_with(good.clone())).await);
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join(server.address.to_string());
    fs::create_dir(&own).unwrap();
    fs::write(own.join("hosts.toml"), format!("[host.'http://{}']", mirror.address)).unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "secret-token-1\n").unwrap();
    let options = Options { token_file: Some(file.clone()), hosts_dir: Some(directory.path().to_owned()), ..hasty() };
    let source = Source::open(&server.reference("app:1"), &options).await.unwrap();
    let endpoints = source.endpoints();
    many(&endpoints[1]).await;
    good.store(2, Ordering::Relaxed);
    let denied = range(&endpoints[1], &digest, BLOB as u64, 0..9).await.unwrap_err();
    assert!(denied.kind() == ErrorKind::Denied && !format!("{denied:?}").contains("secret"), "{denied}");
    fs::write(&file, "secret-token-2\n").unwrap();
    many(&endpoints[1]).await;
    assert_eq!(range(&endpoints[0], &digest, BLOB as u64, 0..9).await.unwrap_err().kind(), ErrorKind::Denied);
    assert!(mirror.seen().iter().all(|s| s.header("authorization").is_empty()));
    fs::write(&file, " \n").unwrap();
    good.store(3, Ordering::Relaxed);
    let empty = range(&endpoints[1], &digest, BLOB as u64, 0..9).await.unwrap_err().to_string();
    assert!(empty.contains("token: it holds no token"), "{empty}");
}

/// A token server whose tokens are numbered; those from `good` on are accepted by the registry that it is as well.
async fn numbered(expires_in: u64, good: Arc<AtomicUsize>, refuses: Arc<AtomicUsize>) -> Server {
    let (issued, (_, data)) = (AtomicUsize::new(0), blob());
    Server::start(move |seen| {
        if seen.path == "/token" {
            let number = issued.fetch_add(1, Ordering::Relaxed) + 1;
            return match refuses.load(Ordering::Relaxed) {
                0 => Reply::ok(format!(r#"{{"token":"secret-token-{number}","expires_in":{expires_in}}}"#)),
                status => Reply::status(u16::try_from(status).unwrap()),
            };
        }
        let number =
            seen.header("authorization").strip_prefix("Bearer secret-token-").map(|n| n.parse::<usize>().unwrap());
        if number.is_some_and(|n| n >= good.load(Ordering::Relaxed)) {
            return serve(seen, &data);
        }
        Reply::status(401).with("www-authenticate", format!("Bearer realm=\"http://{}/token\"", seen.header("host")))
    })
    .await
}

#[tokio::test]
async fn many_requests_renew_a_token_once() {
    let (good, refuses) = (Arc::new(AtomicUsize::new(1)), Arc::default());
    let server = numbered(300, good.clone(), Arc::clone(&refuses)).await;
    let source = Source::open(&server.reference("app:1"), &hasty()).await.unwrap();
    let endpoint = source.endpoints().remove(0);
    for renewals in 1..4 {
        good.store(renewals, Ordering::Relaxed);
        many(&endpoint).await;
        assert_eq!(server.count("GET /token"), renewals);
    }
    // A token server in trouble is asked once by many, too; then all go on.
    good.store(5, Ordering::Relaxed);
    for status in [500, 403] {
        refuses.store(status, Ordering::Relaxed);
        let before = server.count("GET /token");
        let digest = digest_of(&blob().0).unwrap();
        let all = join_all((0..64).map(|_| range(&endpoint, &digest, BLOB as u64, 0..9))).await;
        let kind = if status == 500 { ErrorKind::Server } else { ErrorKind::Denied };
        assert!(all.iter().all(|r| r.as_ref().is_err_and(|e| e.kind() == kind)), "{all:?}");
        assert!(server.count("GET /token") - before <= 2, "{}", server.count("GET /token") - before);
    }
    refuses.store(0, Ordering::Relaxed);
    many(&endpoint).await;
}

#[tokio::test]
async fn a_token_server_that_moves_is_found_again() {
    let (_, data) = blob();
    let bytes = data.clone();
    // Tokens of a second, from /old and then from /new.
    let moved = Arc::new(AtomicUsize::new(0));
    let now = moved.clone();
    let server = Server::start(move |seen| {
        let place = if now.load(Ordering::Relaxed) == 0 { "/old" } else { "/new" };
        match seen.path.as_str() {
            path @ ("/old" | "/new") if path == place => {
                Reply::ok(format!(r#"{{"token":"","access_token":"secret{path}","expires_in":"1"}}"#))
            }
            "/old" | "/new" => Reply::status(404),
            _ if seen.header("authorization") == format!("Bearer secret{place}") => serve(seen, &data),
            _ => {
                let realm = format!("Bearer realm=\"http://{}{place}\"", seen.header("host"));
                Reply::status(401).with("www-authenticate", realm)
            }
        }
    })
    .await;
    let source = Source::open(&server.reference("app:1"), &hasty()).await.unwrap();
    let endpoint = source.endpoints().remove(0);
    let digest = digest_of(&blob().0).unwrap();
    range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap();
    moved.store(1, Ordering::Relaxed);
    // Until the token has ended, which nothing announces.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap(), bytes[..9]);
    assert_eq!((server.count("GET /old"), server.count("GET /new")), (2, 1));
}

#[tokio::test]
async fn a_password_serves_where_the_token_server_gives_nothing() {
    let (_, data) = blob();
    let bytes = data.clone();
    let expected = format!("Basic {}", STANDARD.encode("me:secret-word"));
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/token" => Reply::status(404),
        _ if seen.header("authorization") == expected => serve(seen, &data),
        _ => {
            let both = format!("Basic realm=\"r\", Bearer realm=\"http://{}/token\"", seen.header("host"));
            Reply::status(401).with("www-authenticate", both)
        }
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    keep(file.path(), &server.address.to_string(), password("me", "secret-word"));
    let options = Options { auth_file: Some(file.path().to_owned()), ..hasty() };
    let source = Source::open(&server.reference("app:1"), &options).await.unwrap();
    let endpoint = source.endpoints().remove(0);
    let digest = digest_of(&blob().0).unwrap();
    assert_eq!(range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap(), bytes[..9]);
    range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap();
    assert_eq!(server.count("GET /token"), 1, "it is not asked again");
}

#[tokio::test]
async fn a_renewal_outlives_the_request_that_asked_for_it() {
    let (good, refuses) = (Arc::new(AtomicUsize::new(1)), Arc::default());
    let server = numbered(300, good.clone(), refuses).await;
    let source = Source::open(&server.reference("app:1"), &hasty()).await.unwrap();
    let endpoint = source.endpoints().remove(0);
    let digest = digest_of(&blob().0).unwrap();
    // Given up at every possible moment, until one comes through: the token was fetched once all the same.
    let mut patience = Duration::from_micros(200);
    while tokio::time::timeout(patience, range(&endpoint, &digest, BLOB as u64, 0..9)).await.is_err() {
        patience *= 2;
    }
    assert_eq!(server.count("GET /token"), 1);
}

#[tokio::test]
async fn a_token_near_its_end_is_renewed_beside_the_requests() {
    // Of 8 s a token is used for 4, and renewed after 3.
    let server = numbered(8, Arc::new(AtomicUsize::new(1)), Arc::default()).await;
    let source = Source::open(&server.reference("app:1"), &hasty()).await.unwrap();
    let endpoint = source.endpoints().remove(0);
    many(&endpoint).await;
    assert_eq!(server.count("GET /token"), 1);
    tokio::time::sleep(Duration::from_millis(3200)).await;
    many(&endpoint).await;
    let digest = digest_of(&blob().0).unwrap();
    while server.seen().last().unwrap().header("authorization") != "Bearer secret-token-2" {
        range(&endpoint, &digest, BLOB as u64, 0..9).await.unwrap();
    }
    assert_eq!(server.count("GET /token"), 2);
    let unauthorized =
        server.seen().iter().filter(|s| s.path != "/token" && s.header("authorization").is_empty()).count();
    assert!(unauthorized <= 64, "only the first requests came without a token: {unauthorized}");
}

/// A token for docker-registry, signed by the key beside the certificate: good for reading `app` until `expires`.
fn token(directory: &Path, expires: u64) -> String {
    let path = |name: &str| directory.join(name).display().to_string();
    let der = run("sh", &["-c", &format!("openssl x509 -in {} -outform DER | openssl base64 -A", path("token.pem"))]);
    let claims = serde_json::json!({
        "iss": "test", "sub": "me", "aud": "test", "exp": expires, "nbf": expires - 600, "iat": expires - 600, "jti": "1",
        "access": [{"type": "repository", "name": "app", "actions": ["pull", "push"]}],
    });
    let header = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [der.trim()]});
    let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&header), part(&claims));
    fs::write(path("signed"), &signed).unwrap();
    run("openssl", &["dgst", "-sha256", "-sign", &path("token.key"), "-out", &path("signature"), &path("signed")]);
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(fs::read(path("signature")).unwrap()))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// How long after its end docker-registry takes a token, seconds.
const LEEWAY: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn outlives_the_tokens_of_a_real_registry() {
    let directory = Arc::new(tempfile::tempdir().unwrap());
    let path = |name: &str| directory.path().join(name).display().to_string();
    run(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=test",
            "-days",
            "2",
            "-keyout",
            &path("token.key"),
            "-out",
            &path("token.pem"),
        ],
    );
    // Tokens say that they are good for an hour, and end when this says.
    let (lifetime, within) = (Arc::new(AtomicU64::new(600)), directory.clone());
    let ending = lifetime.clone();
    let issuer = Server::start(move |_| {
        let token = token(within.path(), now() + ending.load(Ordering::Relaxed) - LEEWAY);
        Reply::ok(format!(r#"{{"token":"{token}","expires_in":3600}}"#))
    })
    .await;
    let realm = format!("http://{}/token", issuer.address);
    let registry = Registry::with(&Setup { token_auth: Some((realm, path("token.pem").into())), ..Setup::default() });
    let image = Image::sample();
    let reference = registry.reference("app:1");
    image.write(&reference, &Options::default()).await;
    lifetime.store(2, Ordering::Relaxed);
    let source = Source::open(&reference, &Options::default()).await.unwrap();
    image.check(&source).await;
    let before = issuer.seen().len();
    let endpoint = source.endpoints().remove(0);
    let (layer, bytes) = &image.layers[1];
    let digest = digest_of(layer).unwrap();
    // The token ends by the registry's clock, which is this one.
    tokio::time::sleep(Duration::from_secs(4)).await;
    lifetime.store(600, Ordering::Relaxed);
    let all = join_all((0..16_u64).map(|n| range(&endpoint, &digest, bytes.len() as u64, n..n + 1000))).await;
    for (n, found) in all.into_iter().enumerate() {
        assert_eq!(found.unwrap(), bytes[n..n + 1000]);
    }
    assert_eq!(issuer.seen().len(), before + 1, "one renewal for all");
}

/// What is logged, in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn shows_no_secret_in_errors_and_logs() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let digest = digest_of(&blob().0).unwrap();
    let mut shown = String::new();
    // Each answer to a request with a login, a header of the operator's, or a signature.
    for status in [400, 401, 403, 404, 416, 429, 500] {
        let storage = Server::start(move |seen| match seen.number {
            0 => serve(seen, &blob().1),
            _ => Reply::status(status),
        })
        .await;
        let to = storage.address;
        let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("authorization")) {
            ("/token", _) => Reply::ok(r#"{"token":"secret-token"}"#),
            (_, "Bearer secret-token") if seen.number < 6 => {
                Reply::status(307).with("location", format!("http://secret-user:secret-pw@{to}/b?sig=secret-signature"))
            }
            (_, "Bearer secret-token") if status != 401 => Reply::status(status),
            _ => Reply::status(401)
                .with("www-authenticate", format!("Bearer realm=\"http://{}/token\"", seen.header("host"))),
        })
        .await;
        let own = directory.path().join(server.address.to_string());
        fs::create_dir(&own).unwrap();
        let text = format!(
            "[host.'http://secret-user:secret-pw@{}/m']\n[host.'http://{}/m'.header]\nX-Key = 'secret-key'\n[header]\nX-Key = 'secret-key'",
            server.address, server.address
        );
        fs::write(own.join("hosts.toml"), text).unwrap();
        let file = directory.path().join("config.json");
        keep(&file, &server.address.to_string(), password("me", "secret-password"));
        let options =
            Options { auth_file: Some(file), hosts_dir: Some(directory.path().to_owned()), attempts: 1, ..hasty() };
        let source = Source::open(&server.reference("app:1"), &options).await.unwrap();
        shown += &format!("{options:?} {source:?} {:?}", source.endpoints());
        for endpoint in source.endpoints().iter().rev() {
            for _ in 0..4 {
                match range(endpoint, &digest, BLOB as u64, 0..9).await {
                    Ok(_) => {}
                    Err(error) => shown += &format!("{error} {error:?}\n"),
                }
            }
        }
        shown += &format!("{:?}\n", source.root().await.unwrap_err());
        shown += &format!("{:?}\n", source.root_digest().await.unwrap_err());
    }
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("asking the next host") && log.contains("no other login to try") && shown.contains("403"));
    for (what, text) in [("log", &log), ("errors", &shown)] {
        let secrets: Vec<&str> = text
            .lines()
            .filter(|l| l.contains("secret-") || l.contains(&STANDARD.encode("me:secret-password")))
            .collect();
        assert!(secrets.is_empty(), "{what}: {secrets:#?}");
    }
}
