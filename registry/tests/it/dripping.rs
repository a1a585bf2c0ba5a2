//! Servers that send a byte now and then: never silent, and never done.

use std::{fs, time::Duration};

use lazo_registry::{Error, Options, Source};
use tokio::net::TcpListener;

use crate::{
    common::{
        Image, Registry, read,
        server::{End, Reply, Server},
    },
    failures::{BLOB, blob},
};

/// What a test waits for that must end.
const LIMIT: Duration = Duration::from_secs(30);

/// Far more patience with silence than with slowness.
fn options() -> Options {
    Options {
        attempts: 3,
        document_timeout: Duration::from_millis(300),
        stall_timeout: Duration::from_secs(60),
        ..Options::default()
    }
}

async fn must_end<T: std::fmt::Debug>(what: &str, work: impl Future<Output = Result<T, Error>>) {
    let error = tokio::time::timeout(LIMIT, work).await.unwrap_or_else(|_| panic!("{what} does not end"));
    let Error::Transport { source, .. } = error.unwrap_err() else { panic!("{what}: another error") };
    let reason = source.to_string();
    assert!(
        reason.contains("come more slowly than 16 KiB a second") || reason.contains("did not come within"),
        "{reason}"
    );
}

#[tokio::test]
async fn what_drips_is_given_up() {
    let (descriptor, bytes) = blob();
    let server = Server::start(move |seen| match (seen.path.as_str(), seen.header("range")) {
        (path, _) if path.contains("/manifests/") => Reply::ok("{").short_of(1000, End::Drip),
        (_, "") => Reply::ok(&bytes[..1000]).short_of(BLOB, End::Drip),
        _ => Reply::status(503),
    })
    .await;
    let source = Source::open(&server.reference("app:1"), &options()).await.unwrap();
    must_end("a manifest", source.root()).await;
    must_end("a digest", source.root_digest()).await;
    must_end("a layer", read(&source, &descriptor)).await;
    // One attempt uses up the time of all.
    assert!(server.seen().len() <= 6, "{:?}", server.seen());
}

#[tokio::test]
async fn a_token_that_drips_is_given_up() {
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/token" => Reply::ok("{").short_of(1000, End::Drip),
        _ => {
            let realm = format!("Bearer realm=\"http://{}/token\"", seen.header("host"));
            Reply::status(401).with("www-authenticate", realm)
        }
    })
    .await;
    let source = Source::open(&server.reference("app:1"), &options()).await.unwrap();
    must_end("a token", source.root()).await;
}

#[tokio::test]
async fn a_server_that_keeps_its_pace_has_all_the_time_that_it_needs() {
    // 64 KiB at once, and then a byte each 20 ms: at 16 KiB a second there are four seconds for it.
    let bytes = [vec![7; 64 << 10], vec![b' '; 50]].concat();
    let digest = lazo_format::Digest::sha256_of(&bytes);
    let layer = lazo_registry::descriptor("application/octet-stream".into(), &digest, bytes.len() as u64);
    let (data, size) = (bytes.clone(), bytes.len());
    let server = Server::start(move |_| Reply::ok(&data[..64 << 10]).short_of(size, End::Drip)).await;
    let source = Source::open(&server.reference("app:1"), &options()).await.unwrap();
    assert_eq!(read(&source, &layer).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_mirror_that_gives_nothing_leaves_time_for_the_registry() {
    let image = Image::sample();
    let registry = Registry::start();
    image.write(&registry.reference("app:1"), &Options::default()).await;
    let size = image.layers[0].1.len();
    let drips = Server::start(move |seen| match seen.header("range") {
        "" => Reply::ok("{").short_of(if seen.path.contains("/blobs/") { size } else { 1000 }, End::Drip),
        _ => Reply::status(503),
    })
    .await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    for mirror in [drips.address, silent.local_addr().unwrap()] {
        let directory = tempfile::tempdir().unwrap();
        let own = directory.path().join("r.invalid");
        fs::create_dir(&own).unwrap();
        let text = format!("server = 'http://{}'\n[host.'http://{mirror}']\n", registry.address);
        fs::write(own.join("hosts.toml"), text).unwrap();
        let options = Options { hosts_dir: Some(directory.path().to_owned()), ..options() };
        let options = Options { document_timeout: Duration::from_secs(2), ..options };
        let source = Source::open(&"docker://r.invalid/app:1".parse().unwrap(), &options).await.unwrap();
        let (layer, bytes) = &image.layers[0];
        let mut found = tokio::time::timeout(LIMIT, read(&source, layer)).await.unwrap();
        if let Err(Error::DigestMismatch { .. }) = &found {
            // What drips is wrong besides: the mirror is asked last from now on.
            found = tokio::time::timeout(LIMIT, read(&source, layer)).await.unwrap();
        }
        assert_eq!(found.unwrap(), *bytes);
        let root = tokio::time::timeout(LIMIT, source.root()).await.unwrap();
        assert_eq!(root.unwrap().bytes, image.manifest.bytes);
    }
}
