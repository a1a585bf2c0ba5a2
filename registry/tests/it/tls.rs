//! Servers' certificates: which are believed, and what is said of those that are not. And hosts that speak TLS where plain HTTP was
//! expected, or the other way round.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use lazo_registry::{ErrorKind, ImageRef, Login, Options, Source};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    common::{
        Image, PASSWORD, Registry, Setup, USER,
        nginx::Nginx,
        run,
        server::{Reply, Server},
    },
    docker_registry::{certificates, certificates_for},
};

const NEW_KEY: [&str; 6] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout"];

/// A certificate and its key.
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pair {
    fn registry(&self) -> Registry {
        Registry::with(&Setup { tls: Some((self.certificate.clone(), self.key.clone())), ..Setup::default() })
    }
}

/// As docker's instructions have it: `openssl req -x509 -addext subjectAltName=...`, with further extensions.
pub(crate) fn self_signed(directory: &Path, name: &str, extensions: &[&str]) -> Pair {
    let path = |ending: &str| directory.join(format!("{name}.{ending}"));
    let pair = Pair { certificate: path("crt"), key: path("key") };
    let (certificate, key) = (pair.certificate.to_str().unwrap(), pair.key.to_str().unwrap());
    let mut arguments = vec!["req", "-x509", "-subj", "/CN=self", "-days", "2", "-out", certificate];
    arguments.extend(NEW_KEY);
    arguments.push(key);
    extensions.iter().for_each(|extension| arguments.extend(["-addext", extension]));
    run("openssl", &arguments);
    pair
}

/// A certificate that signs itself, valid between these times (`YYYYMMDDHHMMSSZ`).
fn dated(directory: &Path, from: &str, until: &str) -> Pair {
    let pair = self_signed(directory, from, &["subjectAltName=IP:127.0.0.1"]);
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    fs::write(directory.join("index"), "").unwrap();
    fs::write(
        directory.join("ca.conf"),
        format!(
            "[ca]\ndefault_ca=own\n[own]\ndatabase={}\nrand_serial=yes\nnew_certs_dir={}\ndefault_md=sha256\npolicy=any\n\
             x509_extensions=ext\n[any]\ncommonName=supplied\n[ext]\nsubjectAltName=IP:127.0.0.1\nbasicConstraints=CA:TRUE\n",
            path("index"),
            directory.display()
        ),
    )
    .unwrap();
    let (key, request) = (pair.key.to_str().unwrap(), path("request"));
    run("openssl", &["req", "-new", "-subj", "/CN=dated", "-key", key, "-out", &request]);
    let (config, out) = (path("ca.conf"), pair.certificate.to_str().unwrap());
    let sign = ["ca", "-batch", "-notext", "-selfsign", "-config", &config, "-in", &request, "-keyfile", key];
    run("openssl", &[&sign[..], &["-startdate", from, "-enddate", until, "-out", out]].concat());
    pair
}

fn trusting(certificate: &Path) -> Options {
    Options { loopback_tls: true, extra_ca: vec![certificate.to_owned()], ..Options::default() }
}

async fn refusal(reference: &ImageRef, options: &Options) -> String {
    let error = Source::open(reference, options).await.unwrap().root().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Untrusted, "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn a_certificate_may_be_its_own_authority() {
    let directory = tempfile::tempdir().unwrap();
    let names = "subjectAltName=DNS:r.example,IP:127.0.0.1";
    let leaf = tempfile::tempdir().unwrap();
    certificates(leaf.path());
    // docker's instructions; a certificate that is no authority; one that another authority has issued, which is not known here.
    for (pair, what) in [
        (self_signed(directory.path(), "ca", &[names]), "an authority"),
        (self_signed(directory.path(), "no-ca", &[names, "basicConstraints=critical,CA:FALSE"]), "no authority"),
        (self_signed(directory.path(), "eku", &[names, "extendedKeyUsage=clientAuth,serverAuth"]), "for servers"),
        (self_signed(directory.path(), "any", &[names, "extendedKeyUsage=2.5.29.37.0"]), "for all purposes"),
        (self_signed(directory.path(), "ku", &[names, "keyUsage=critical,keyCertSign"]), "key usage is not looked at"),
        (Pair { certificate: leaf.path().join("cert.pem"), key: leaf.path().join("key.pem") }, "a leaf"),
    ] {
        let registry = pair.registry();
        let reference = registry.reference("app:1");
        let image = Image::sample();
        image.write(&reference, &trusting(&pair.certificate)).await;
        let hosts = tempfile::tempdir().unwrap();
        let own = hosts.path().join(&registry.address);
        let by_directory = Options { hosts_dir: Some(hosts.path().to_owned()), ..Options::default() };
        fs::create_dir(&own).unwrap();
        fs::copy(&pair.certificate, own.join("ca.crt")).unwrap();
        image.check(&Source::open(&reference, &by_directory).await.unwrap()).await;
        fs::rename(own.join("ca.crt"), own.join("mine.pem")).unwrap();
        fs::write(own.join("hosts.toml"), "ca = 'mine.pem'").unwrap();
        image.check(&Source::open(&reference, &by_directory).await.unwrap()).await;
        let unknown = refusal(&reference, &Options { loopback_tls: true, ..Options::default() }).await;
        assert!(unknown.contains("not trusted"), "{what}: {unknown}");
    }
}

#[tokio::test]
async fn a_certificate_that_is_its_own_authority_must_be_good_otherwise() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let here = "subjectAltName=IP:127.0.0.1";
    let not_here = "subjectAltName=DNS:r.example,DNS:*.s.example,IP:10.0.0.7";
    for (pair, expected) in [
        (self_signed(path, "other", &[not_here]), "not for 127.0.0.1, but for r.example, *.s.example, 10.0.0.7"),
        (self_signed(path, "none", &[]), "not for 127.0.0.1, nor for any host"),
        (self_signed(path, "client", &[here, "extendedKeyUsage=clientAuth"]), "other purposes"),
        (self_signed(path, "critical", &[here, "1.2.3.4=critical,ASN1:NULL"]), "not trusted"),
        (
            dated(path, "20200102030405Z", "20210102030405Z"),
            "has expired: it was valid until Sat, 02 Jan 2021 03:04:05 GMT",
        ),
        (
            dated(path, "20950102030405Z", "20960102030405Z"),
            "not valid yet: it will be from Sun, 02 Jan 2095 03:04:05 GMT",
        ),
    ] {
        let reason = refusal(&pair.registry().reference("app:1"), &trusting(&pair.certificate)).await;
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
    // Another one with the same names and the same subject vouches for nothing.
    let (shown, configured) = (self_signed(path, "shown", &[here]), self_signed(path, "configured", &[here]));
    let reason = refusal(&shown.registry().reference("app:1"), &trusting(&configured.certificate)).await;
    assert!(reason.contains("not trusted"), "{reason}");
}

#[tokio::test]
async fn refusals_name_what_is_wrong_and_what_helps() {
    let directory = tempfile::tempdir().unwrap();
    certificates_for(directory.path(), "DNS:r.example,IP:10.0.0.7");
    let file = |name: &str| directory.path().join(name);
    let pair = Pair { certificate: file("cert.pem"), key: file("key.pem") };
    let reference = pair.registry();
    let reference = reference.reference("app:1");
    let unknown = refusal(&reference, &Options { loopback_tls: true, ..Options::default() }).await;
    for hint in ["CN=test authority", "--ca", "lazo.toml", "hosts.toml", "certs.d"] {
        assert!(unknown.contains(hint), "{hint}: {unknown}");
    }
}

#[tokio::test]
async fn a_name_that_the_certificate_lacks_is_told_with_those_that_it_has() {
    let directory = tempfile::tempdir().unwrap();
    certificates_for(directory.path(), "DNS:r.example,IP:10.0.0.7");
    let file = |name: &str| directory.path().join(name);
    let pair = Pair { certificate: file("cert.pem"), key: file("key.pem") };
    let registry = pair.registry();
    let reason = refusal(&registry.reference("app:1"), &trusting(&file("ca.pem"))).await;
    assert!(reason.contains("not for 127.0.0.1, but for r.example, 10.0.0.7"), "{reason}");
}

#[tokio::test]
async fn a_registry_on_this_machine_is_found_to_speak_tls() {
    let directory = tempfile::tempdir().unwrap();
    let pair = self_signed(directory.path(), "own", &["subjectAltName=IP:127.0.0.1"]);
    let setup = Setup { basic_auth: true, tls: Some((pair.certificate.clone(), pair.key.clone())), ..Setup::default() };
    let registry = Registry::with(&setup);
    let options = Options {
        extra_ca: vec![pair.certificate.clone()],
        login: Some(Login::new(USER, PASSWORD)),
        upload_chunk: 1 << 20,
        ..Options::default()
    };
    let reference = registry.reference("app:1");
    let image = Image::sample();
    // Uploads in parts, to places that the registry names, logged in.
    image.write(&reference, &options).await;
    image.check(&Source::open(&reference, &options).await.unwrap()).await;
    // With options that share nothing it is found out again, and here for what it is.
    let unknown = refusal(&reference, &Options::default()).await;
    assert!(unknown.contains("not trusted"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_sends_plain_http_on_to_its_own_tls_gets_the_login() {
    let directory = tempfile::tempdir().unwrap();
    let pair = self_signed(directory.path(), "own", &["subjectAltName=IP:127.0.0.1"]);
    let registry = Registry::with(&Setup { basic_auth: true, ..Setup::default() });
    // As nginx's documentation has it; 497 is plain HTTP that came to a port with TLS.
    let nginx = Nginx::start(
        "ssl",
        &format!(
            "ssl_certificate {}; ssl_certificate_key {}; error_page 497 =308 https://$http_host$request_uri;\n\
             location / {{ proxy_pass http://{}; proxy_set_header Host $http_host;\n\
             proxy_set_header X-Forwarded-Proto https; }}",
            pair.certificate.display(),
            pair.key.display(),
            registry.address
        ),
    );
    let reference: ImageRef = format!("docker://127.0.0.1:{}/app:1", nginx.port).parse().unwrap();
    let options = || Options {
        extra_ca: vec![pair.certificate.clone()],
        login: Some(Login::new(USER, PASSWORD)),
        ..Options::default()
    };
    let image = Image::sample();
    image.write(&reference, &options()).await;
    image.check(&Source::open(&reference, &options()).await.unwrap()).await;
    // What is wrong with its TLS is what is told.
    let unknown = refusal(&reference, &Options::default()).await;
    assert!(unknown.contains("not trusted"), "{unknown}");
}

#[tokio::test]
async fn nobody_tries_tls_on_a_registry_that_speaks_plain_http() {
    let manifest = Image::new("amd64", &[], lazo_format::Algorithm::Sha256).manifest;
    let (body, kind) = (manifest.bytes.clone(), manifest.descriptor.media_type().clone());
    let server = Server::start(move |seen| match seen.path.as_str() {
        "/v2/app/manifests/1" => Reply::ok(body.clone()).with("content-type", &kind),
        _ => Reply::status(404),
    })
    .await;
    let options = Options::default();
    let source = Source::open(&server.reference("app:1"), &options).await.unwrap();
    source.root().await.unwrap();
    Source::open(&server.reference("app:2"), &options).await.unwrap().root().await.unwrap_err();
    assert_eq!((server.connections(), server.seen().len()), (1, 2));
    // It says that a request is bad: that is tried by TLS too, and then told as it was.
    let picky = Server::start(|_| Reply::status(400)).await;
    let error = Source::open(&picky.reference("app:1"), &options).await.unwrap().root().await.unwrap_err();
    assert!(matches!(error, lazo_registry::Error::Status { status: 400, .. }), "{error:?}");
    assert_eq!(picky.seen().len(), 1);
}

/// `openssl s_server`, which breaks a connection that does not begin with TLS without a word, and answers with files.
struct Openssl(Child, String);

impl Openssl {
    fn serve(pair: &Pair, directory: &Path) -> Self {
        let mut command = Command::new("openssl");
        command.args(["s_server", "-HTTP", "-accept", "127.0.0.1:0", "-cert"]).arg(&pair.certificate);
        command.arg("-key").arg(&pair.key).current_dir(directory);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address =
            lines.find_map(|line| Some(line.strip_prefix("ACCEPT ")?.to_owned())).expect("it says where it listens");
        std::thread::spawn(move || lines.for_each(drop));
        Self(child, address)
    }
}

impl Drop for Openssl {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn a_server_that_hangs_up_on_plain_http_is_found_to_speak_tls_and_back() {
    let directory = tempfile::tempdir().unwrap();
    let pair = self_signed(directory.path(), "own", &["subjectAltName=IP:127.0.0.1"]);
    let manifest = Image::new("amd64", &[], lazo_format::Algorithm::Sha256).manifest;
    let head = format!(
        "HTTP/1.0 200 OK\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        manifest.descriptor.media_type(),
        manifest.bytes.len()
    );
    let answer = [head.as_bytes(), &manifest.bytes].concat();
    fs::create_dir_all(directory.path().join("v2/app/manifests")).unwrap();
    fs::write(directory.path().join("v2/app/manifests/1"), &answer).unwrap();
    let server = Openssl::serve(&pair, directory.path());
    let reference: ImageRef = format!("docker://{}/app:1", server.1).parse().unwrap();
    let options = Options { extra_ca: vec![pair.certificate.clone()], ..Options::default() };
    let source = Source::open(&reference, &options).await.unwrap();
    assert_eq!(source.root().await.unwrap().bytes, manifest.bytes);
    // Another server takes its place, without TLS.
    let address = server.1.clone();
    drop(server);
    let listener = TcpListener::bind(&address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut first = [0; 1];
            if stream.read_exact(&mut first).await.is_err() {
                continue;
            }
            let reply: &[u8] =
                if first == *b"G" { &answer } else { b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n" };
            stream.write_all(reply).await.unwrap();
            stream.shutdown().await.unwrap();
            // What is unread would reset the connection, and take the answer away.
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
    });
    assert_eq!(source.root().await.unwrap().bytes, manifest.bytes);
}

#[tokio::test]
async fn an_insecure_registry_is_believed_unseen_and_its_mirrors_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let pair = self_signed(directory.path(), "own", &["subjectAltName=DNS:elsewhere.example"]);
    let (registry, mirror) = (pair.registry(), pair.registry());
    let image = Image::sample();
    let insecure = Options { insecure: true, ..Options::default() };
    image.write(&registry.reference("app:1"), &insecure).await;
    image.check(&Source::open(&registry.reference("app:1"), &insecure).await.unwrap()).await;
    let hosts = tempfile::tempdir().unwrap();
    let own = hosts.path().join(&registry.address);
    fs::create_dir(&own).unwrap();
    fs::write(own.join("hosts.toml"), format!("[host.'https://{}']", mirror.address)).unwrap();
    let options = Options { hosts_dir: Some(hosts.path().to_owned()), attempts: 1, ..insecure };
    let source = Source::open(&registry.reference("app:1"), &options).await.unwrap();
    source.root().await.unwrap();
    let (descriptor, bytes) = &image.layers[0];
    let digest = lazo_registry::digest_of(descriptor).unwrap();
    let endpoints = source.endpoints();
    let range = |n: usize| endpoints[n].open_range(&digest, bytes.len() as u64, 0..4);
    assert_eq!(range(0).await.map(drop).unwrap_err().kind(), ErrorKind::Untrusted);
    range(1).await.map(drop).unwrap();
    // The file has the last word on its host.
    fs::write(own.join("hosts.toml"), format!("server = 'https://{}'\nskip_verify = false", registry.address)).unwrap();
    refusal(&registry.reference("app:1"), &options).await;
}
