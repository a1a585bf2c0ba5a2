//! containerd's hosts.toml: mirrors in order, with certificates, headers and paths of their own.

use std::{fs, path::Path, sync::Arc};

use futures_util::TryStreamExt;
use lazo_registry::{Destination, Error, ErrorKind, ImageRef, Options, Source, digest_of};

use crate::{
    common::{
        Image, Registry, Setup,
        nginx::Nginx,
        read,
        server::{Reply, Seen, Server},
    },
    docker_registry::certificates,
    endpoints::range,
    failures::hasty,
};

/// Options with a `hosts.toml` for a registry.
fn hosts(directory: &Path, registry: &str, text: &str) -> Options {
    let own = directory.join(registry.replace(':', "_") + if registry.contains(':') { "_" } else { "" });
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("hosts.toml"), text).unwrap();
    Options { hosts_dir: Some(directory.to_owned()), ..hasty() }
}

/// A mirror that has the image, each object changed by `twist`.
async fn mirror(image: &Image, twist: impl Fn(&Seen, Vec<u8>) -> Reply + Send + Sync + 'static) -> Server {
    let mut objects = vec![&image.config, &image.manifest]
        .into_iter()
        .map(|d| (d.descriptor.digest().to_string(), d.bytes.clone(), d.descriptor.media_type().to_string()))
        .collect::<Vec<_>>();
    for (descriptor, bytes) in &image.layers {
        objects.push((descriptor.digest().to_string(), bytes.clone(), "application/octet-stream".to_owned()));
    }
    Server::start(move |seen| {
        let named = seen.path.rsplit('/').next().unwrap();
        match objects.iter().find(|(digest, ..)| digest == named) {
            Some((_, bytes, media_type)) => twist(seen, bytes.clone()).with("content-type", media_type),
            None => Reply::status(404),
        }
    })
    .await
}

#[tokio::test]
async fn asks_mirrors_in_order_and_passes_over_those_that_fail() {
    let (registry, image, directory) = (Registry::start(), Image::sample(), tempfile::tempdir().unwrap());
    let reference = registry.reference("team/app:1");
    image.write(&reference, &Options::default()).await;
    let empty = Server::start(|_| Reply::status(404)).await;
    let wrong = mirror(&image, |_, mut bytes| {
        bytes[1] ^= 1;
        Reply::ok(bytes)
    })
    .await;
    let broken = Server::start(|_| Reply::status(500)).await;
    let text = format!(
        "[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n[host.\"http://{}/sub/path\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n[host.\"http://{}\".header]\nX-Own = [\"a\", \"b\"]\n",
        wrong.address, empty.address, broken.address, broken.address
    );
    let options = hosts(directory.path(), &registry.address, &text);
    let source = Source::open(&reference, &options).await.unwrap();
    let names: Vec<String> = source.endpoints().iter().map(|e| e.name().to_owned()).collect();
    assert_eq!(
        names,
        [
            format!("http://{}", wrong.address),
            format!("http://{}/sub/path/v2", empty.address),
            "http://127.0.0.1:1".to_owned(),
            format!("http://{}", broken.address),
            format!("docker://{}/team/app", registry.address),
        ]
    );
    // The tag is asked of those only that may say what it stands for.
    assert_eq!(source.root().await.unwrap().bytes, image.manifest.bytes);
    assert_eq!((wrong.seen().len(), empty.seen().len(), broken.seen().len()), (0, 0, 1));
    let seen = broken.seen().remove(0);
    assert_eq!(seen.line(), "GET /v2/team/app/manifests/1");
    assert_eq!(seen.query, format!("ns={}", registry.address.replace(':', "%3A")));
    assert_eq!((seen.header("x-own"), seen.header("host")), ("b", broken.address.to_string().as_str()));
    // By digest all are asked, the failed ones last; what is wrong is passed over.
    assert_eq!(source.document(&image.config.descriptor).await.unwrap().bytes, image.config.bytes);
    assert_eq!((wrong.seen().len(), empty.seen().len(), broken.seen().len()), (1, 1, 1));
    assert_eq!(empty.seen()[0].path, format!("/sub/path/v2/team/app/blobs/{}", image.config.descriptor.digest()));
    let (layer, bytes) = &image.layers[1];
    assert_eq!(&read(&source, layer).await.unwrap(), bytes);
    let (endpoints, digest) = (source.endpoints(), digest_of(layer).unwrap());
    let requests = endpoints.iter().map(|e| range(e, &digest, bytes.len() as u64, 3..9));
    let kinds: Vec<_> =
        futures_util::future::join_all(requests).await.into_iter().map(|r| r.map_err(|e| e.kind())).collect();
    let [_, Err(ErrorKind::NotFound), Err(ErrorKind::Unreachable), Err(ErrorKind::Server), Ok(last)] = &kinds[..]
    else {
        panic!("{kinds:?}");
    };
    assert_eq!(*last, bytes[3..9], "an endpoint stands for itself");
}

#[tokio::test]
async fn a_wrong_blob_is_fetched_elsewhere_the_next_time() {
    let (registry, image, directory) = (Registry::start(), Image::sample(), tempfile::tempdir().unwrap());
    let reference = registry.reference("app:1");
    image.write(&reference, &Options::default()).await;
    let wrong = mirror(&image, |_, mut bytes| {
        bytes[1] ^= 1;
        Reply::ok(bytes)
    })
    .await;
    let options = hosts(directory.path(), &registry.address, &format!("[host.'http://{}']", wrong.address));
    let source = Source::open(&reference, &options).await.unwrap();
    let (layer, bytes) = &image.layers[1];
    let error = read(&source, layer).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    assert_eq!(&read(&source, layer).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_mirror_serves_while_the_registry_is_gone() {
    let (image, directory) = (Image::sample(), tempfile::tempdir().unwrap());
    let real = Registry::start();
    image.write(&real.reference("mirrored/app:1"), &Options::default()).await;
    let gone: ImageRef = "docker://127.0.0.1:1/app:1".parse().unwrap();
    let text = format!("[host.'http://{}/v2/mirrored']\noverride_path = true\n", real.address);
    let source = Source::open(&gone, &hosts(directory.path(), "127.0.0.1:1", &text)).await.unwrap();
    image.check(&source).await;
    assert_eq!(source.root_digest().await.unwrap(), image.manifest.digest().unwrap());
    assert_eq!(source.endpoints()[0].name(), format!("http://{}/v2/mirrored", real.address));

    // In the registry's place; what it lacks is then not to be had.
    let directory = tempfile::tempdir().unwrap();
    let text = format!("server = 'http://{}/v2/mirrored'\noverride_path = true\n", real.address);
    let options = hosts(directory.path(), "_default", &text);
    let source = Source::open(&"docker://r.invalid/app:1".parse().unwrap(), &options).await.unwrap();
    image.check(&source).await;
    let other = Source::open(&"docker://r.invalid/other:1".parse().unwrap(), &options).await.unwrap();
    assert!(other.root().await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn heeds_capabilities() {
    let (registry, image, directory) = (Registry::start(), Image::sample(), tempfile::tempdir().unwrap());
    let reference: ImageRef = "docker://r.invalid/app:1".parse().unwrap();
    image.write(&registry.reference("app:1"), &Options::default()).await;
    let puller = mirror(&image, |_, bytes| Reply::ok(bytes)).await;
    // One says what the tag stands for, another one has the rest.
    let text = format!(
        "server = 'http://{}'\ncapabilities = ['resolve', 'push']\n[host.'http://{}']\ncapabilities = ['pull']\n",
        registry.address, puller.address
    );
    let options = hosts(directory.path(), "r.invalid", &text);
    let source = Source::open(&reference, &options).await.unwrap();
    assert_eq!(source.root().await.unwrap().bytes, image.manifest.bytes);
    assert_eq!(source.endpoints().len(), 1);
    assert_eq!(source.endpoints()[0].name(), format!("http://{}", puller.address));
    let digest = image.manifest.descriptor.digest();
    assert_eq!(puller.seen()[0].line(), format!("GET /v2/app/manifests/{digest}"));
    // Pushed to the one that takes it.
    let pushed: ImageRef = "docker://r.invalid/pushed:1".parse().unwrap();
    image.write(&pushed, &options).await;
    image.check(&Source::open(&registry.reference("pushed:1"), &Options::default()).await.unwrap()).await;
    let text = format!("server = 'http://{}'\ncapabilities = ['pull']\n", registry.address);
    let options = hosts(directory.path(), "r.invalid", &text);
    let error = Source::open(&reference, &options).await.unwrap().root().await.unwrap_err().to_string();
    assert!(error.contains("capability \"resolve\""), "{error}");
    let error = Destination::open(&reference, &options).await.unwrap_err().to_string();
    assert!(error.contains("capability \"push\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uses_authorities_and_client_certificates() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name).display().to_string();
    let (registry, image) = (Registry::start(), Image::sample());
    image.write(&registry.reference("app:1"), &Options::default()).await;
    let nginx = Nginx::start(
        "ssl",
        &format!(
            "ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {}; ssl_verify_client on;\n\
             location / {{ proxy_pass http://{}; proxy_set_header Host $http_host; }}",
            file("cert.pem"),
            file("key.pem"),
            file("ca.pem"),
            registry.address
        ),
    );
    let host = format!("127.0.0.1:{}", nginx.port);
    let reference: ImageRef = "docker://r.invalid/app:1".parse().unwrap();
    fs::write(
        file("both.pem"),
        fs::read_to_string(file("cert.pem")).unwrap() + &fs::read_to_string(file("key.pem")).unwrap(),
    )
    .unwrap();
    let try_with = async |settings: &str| {
        let root = tempfile::tempdir().unwrap();
        let text = format!("server = 'https://{host}'\n{settings}\n");
        let source = Source::open(&reference, &hosts(root.path(), "r.invalid", &text)).await.unwrap();
        match source.root().await {
            Ok(_) => {
                image.check(&source).await;
                Ok(())
            }
            Err(error) => Err((error.kind(), error.to_string())),
        }
    };
    let (ca, pair) = (file("ca.pem"), format!("client = [['{}', '{}']]", file("cert.pem"), file("key.pem")));
    try_with(&format!("ca = '{ca}'\n{pair}")).await.unwrap();
    try_with(&format!("ca = ['{ca}']\nclient = '{}'", file("both.pem"))).await.unwrap();
    try_with(&format!("skip_verify = true\n{pair}")).await.unwrap();
    let untrusted = try_with(&pair).await.unwrap_err();
    assert_eq!(untrusted.0, ErrorKind::Untrusted, "{untrusted:?}");
    let unknown = try_with(&format!("ca = '{ca}'")).await.unwrap_err();
    assert!(unknown.1.contains("400"), "{unknown:?}");
    let keyless = try_with(&format!("ca = '{ca}'\nclient = '{}'", file("cert.pem"))).await.unwrap_err();
    assert!(keyless.1.contains("cert.pem") && keyless.1.contains("key"), "{keyless:?}");
    let missing = try_with("ca = 'nowhere.pem'").await.unwrap_err();
    assert!(missing.0 == ErrorKind::Local && missing.1.contains("r.invalid/nowhere.pem"), "{missing:?}");

    // The same certificates laid out as docker does, for a registry that only speaks TLS.
    let root = tempfile::tempdir().unwrap();
    let own = root.path().join(&host);
    fs::create_dir(&own).unwrap();
    for (from, to) in [("ca.pem", "ca.crt"), ("cert.pem", "client.cert"), ("key.pem", "client.key")] {
        fs::copy(file(from), own.join(to)).unwrap();
    }
    let options = Options { hosts_dir: Some(root.path().to_owned()), ..hasty() };
    let source = Source::open(&format!("docker://{host}/app:1").parse().unwrap(), &options).await.unwrap();
    image.check(&source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_renewed_on_disk_count() {
    let directory = tempfile::tempdir().unwrap();
    certificates(directory.path());
    let file = |name: &str| directory.path().join(name);
    let registry = Registry::with(&Setup { tls: Some((file("cert.pem"), file("key.pem"))), ..Setup::default() });
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    let ca = directory.path().join("current.pem");
    fs::copy(other.path().join("ca.pem"), &ca).unwrap();
    let options = Options { loopback_tls: true, extra_ca: vec![ca.clone()], ..hasty() };
    let source = Source::open(&registry.reference("app:1"), &options).await.unwrap();
    assert_eq!(source.root().await.unwrap_err().kind(), ErrorKind::Untrusted);
    fs::copy(file("ca.pem"), &ca).unwrap();
    assert_eq!(source.root().await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn clones_of_options_share_connections() {
    let image = Image::sample();
    let server = mirror(&image, |_, bytes| Reply::ok(bytes)).await;
    let directory = tempfile::tempdir().unwrap();
    let text = format!("[host.'http://{}']\n[host.'http://{}/other']\n", server.address, server.address);
    let options = hosts(directory.path(), "r.invalid", &text);
    for _ in 0..3 {
        let source = Source::open(&"docker://r.invalid/app:1".parse().unwrap(), &options.clone()).await.unwrap();
        let (layer, bytes) = &image.layers[0];
        for endpoint in &source.endpoints()[..2] {
            let pieces: Vec<_> = endpoint
                .open_range(&digest_of(layer).unwrap(), bytes.len() as u64, 0..bytes.len() as u64)
                .await
                .unwrap()
                .try_collect()
                .await
                .unwrap();
            assert_eq!(pieces.concat(), *bytes);
        }
    }
    assert_eq!(server.seen().len(), 6);
    // A connection may not be back yet when the next request begins; without sharing there would be six.
    assert!(server.connections() <= 2, "{}", server.connections());
}

#[tokio::test]
async fn headers_stay_with_their_host() {
    let image = Image::sample();
    let (layer, bytes) = image.layers[0].clone();
    let data = bytes.clone();
    let storage = Arc::new(Server::start(move |_| Reply::ok(data.clone())).await);
    let to = storage.address;
    let mirror = Server::start(move |_| Reply::status(307).with("location", format!("http://{to}/blob"))).await;
    let directory = tempfile::tempdir().unwrap();
    let text = format!(
        "[host.'http://{0}']\n[host.'http://{0}'.header]\nX-Key = 'secret-key'\nAuthorization = 'Basic secret-login'\n",
        mirror.address
    );
    let options = hosts(directory.path(), "r.invalid", &text);
    let source = Source::open(&"docker://r.invalid/app:1".parse().unwrap(), &options).await.unwrap();
    assert_eq!(read(&source, &layer).await.unwrap(), bytes);
    let (own, other) = (&mirror.seen()[0], &storage.seen()[0]);
    assert_eq!((own.header("x-key"), own.header("authorization")), ("secret-key", "Basic secret-login"));
    assert_eq!((other.header("x-key"), other.header("authorization")), ("", ""));
}
