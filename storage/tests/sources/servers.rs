//! Real servers with blobs in them: docker-registry, nginx, s3s-fs. Each on a free loopback port, gone when dropped.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use lazo_format::Digest;
use lazo_registry::{Options, Web};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::signer::Signer as _;
use reqwest::{Method, StatusCode, Url};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// How long a server may take to start, on a machine that does much else.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Ports tried: another process may take one between its choice and its use.
const PORTS: usize = 5;

/// The repository, and the bucket, that everything is in.
pub(crate) const REPOSITORY: &str = "images/one";
pub(crate) const BUCKET: &str = "bucket";
pub(crate) const PREFIX: &str = "some/prefix";
pub(crate) const KEY_ID: &str = "AKIAEXAMPLE";
pub(crate) const SECRET_KEY: &str = "thekeythatnobodysees";
/// The login of [`nginx_with_login`].
pub(crate) const LOGIN: &str = "user:opensesame";

/// A server at `address`.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) directory: TempDir,
    _process: Option<Process>,
    runtime: Option<Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `oci:` layout: `DIRECTORY/blobs/sha256/HEX`.
pub(crate) fn write_layout(directory: &Path, blobs: &[&[u8]]) {
    let blobs_directory = directory.join("blobs/sha256");
    fs::create_dir_all(&blobs_directory).unwrap();
    for blob in blobs {
        fs::write(blobs_directory.join(Digest::sha256_of(blob).hex()), blob).unwrap();
    }
}

/// nginx with a layout below `/images/`.
pub(crate) fn nginx(blobs: &[&[u8]]) -> Server {
    nginx_with(blobs, "", "", |_| {})
}

/// The same for who knows [`LOGIN`].
pub(crate) fn nginx_with_login(blobs: &[&[u8]]) -> Server {
    nginx_with(blobs, "", "auth_basic test; auth_basic_user_file users;", |directory| {
        let (user, password) = LOGIN.split_once(':').unwrap();
        fs::write(directory.join("users"), format!("{user}:{{PLAIN}}{password}\n")).unwrap();
    })
}

/// The same with TLS; the certificate, which is its own authority, is in `cert.pem`.
pub(crate) fn nginx_with_tls(blobs: &[&[u8]]) -> Server {
    nginx_with(blobs, "ssl", "ssl_certificate cert.pem; ssl_certificate_key key.pem;", |directory| {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        openssl.args(["-subj", "/CN=lazo test", "-addext", "subjectAltName=IP:127.0.0.1"]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl.args(["-keyout", "key.pem", "-out", "cert.pem"]);
        let made = openssl.current_dir(directory).output().expect("openssl: run scripts/install-deps");
        assert!(made.status.success(), "{made:?}");
    })
}

fn nginx_with(blobs: &[&[u8]], protocol: &str, more: &str, prepare: impl FnOnce(&Path)) -> Server {
    let directory = tempfile::tempdir().unwrap();
    write_layout(&directory.path().join("www/images"), blobs);
    prepare(directory.path());
    let shown = directory.path().display().to_string();
    start(directory, "nginx", |address| {
        format!(
            "daemon off; pid nginx.pid; error_log stderr; worker_processes 1; user root;\nevents {{}}\nhttp {{ \
             access_log off; client_body_temp_path tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; \
             scgi_temp_path tmp;\nserver {{ listen {address} {protocol}; root {shown}/www; {more} }} }}\n"
        )
    })
}

/// docker-registry with the blobs in [`REPOSITORY`].
pub(crate) async fn docker_registry(blobs: &[&[u8]]) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().display().to_string();
    let server = start(directory, "docker-registry", |address| {
        format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage: {{filesystem: \
             {{rootdirectory: {root}}}}}\nhttp: {{addr: '{address}'}}\n"
        )
    });
    let base: Url = format!("http://{}/v2/{REPOSITORY}/blobs/uploads/", server.address).parse().unwrap();
    let client = Web::new(&Options::default()).client(&base).unwrap();
    for blob in blobs {
        let begun = client.post(base.clone()).send().await.unwrap();
        assert_eq!(begun.status(), StatusCode::ACCEPTED);
        let mut place = base.join(begun.headers()["location"].to_str().unwrap()).unwrap();
        place.query_pairs_mut().append_pair("digest", &Digest::sha256_of(blob).to_string());
        let stored = client.put(place).body(blob.to_vec()).send().await.unwrap();
        assert_eq!(stored.status(), StatusCode::CREATED);
    }
    server
}

/// Starts a program with the configuration that `configure` makes for its address.
fn start(directory: TempDir, program: &str, configure: impl Fn(SocketAddr) -> String) -> Server {
    let config = directory.path().join("config");
    let log = directory.path().join("log");
    for _ in 0..PORTS {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        fs::write(&config, configure(address)).unwrap();
        let mut command = Command::new(program);
        match program {
            "nginx" => command.arg("-p").arg(directory.path()).arg("-c").arg(&config),
            _ => command.arg("serve").arg(&config),
        };
        let output = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let process = command.spawn().unwrap_or_else(|e| panic!("{program}: {e}; run scripts/install-deps"));
        let mut process = Process(process);
        if listens(&mut process.0, address) {
            return Server { address, directory, _process: Some(process), runtime: None };
        }
    }
    panic!("{program} does not start: {}", fs::read_to_string(log).unwrap_or_default());
}

/// Waits until the process listens; `false` when it ended.
fn listens(process: &mut Child, address: SocketAddr) -> bool {
    let start = Instant::now();
    loop {
        if process.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect(address).is_ok() {
            return true;
        }
        assert!(start.elapsed() < START_LIMIT, "nothing listens on {address}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// s3s-fs with the blobs in [`BUCKET`] below [`PREFIX`]; uploaded as any other client would.
pub(crate) async fn s3(blobs: &[&[u8]]) -> Server {
    let server = s3_without_objects();
    let mut builder = AmazonS3Builder::new().with_bucket_name(BUCKET);
    for (key, value) in s3_settings(server.address) {
        let key: AmazonS3ConfigKey = key.to_ascii_lowercase().parse().unwrap();
        builder = builder.with_config(key, value);
    }
    let near: Url = format!("http://{}/", server.address).parse().unwrap();
    let client = Web::new(&Options::default()).client(&near).unwrap();
    let builder = builder.with_http_connector(Near(client.clone()));
    let store = builder.build().unwrap();
    for blob in blobs {
        let key = format!("{PREFIX}/blobs/sha256/{}", Digest::sha256_of(blob).hex());
        let url = store.signed_url(Method::PUT, &key.into(), Duration::from_secs(60)).await.unwrap();
        let stored = client.put(url).body(blob.to_vec()).send().await.unwrap();
        assert_eq!(stored.status(), StatusCode::OK, "{}", stored.text().await.unwrap());
    }
    server
}

/// Settings for [`s3`] at an address, its own or a proxy's.
pub(crate) fn s3_settings(address: SocketAddr) -> Vec<(String, String)> {
    let endpoint = format!("http://{address}");
    let settings = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ];
    settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

/// A client that is never asked: the keys are given.
#[derive(Debug)]
struct Near(reqwest::Client);

impl object_store::client::HttpConnector for Near {
    fn connect(&self, _: &object_store::ClientOptions) -> object_store::Result<object_store::client::HttpClient> {
        Ok(object_store::client::HttpClient::new(self.0.clone()))
    }
}

fn s3_without_objects() -> Server {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join(BUCKET)).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(directory.path()).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, SECRET_KEY));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
            // A client that goes away is no news.
            tokio::spawn(async move { drop(connection.await) });
        }
    });
    Server { address, directory, _process: None, runtime: Some(runtime) }
}

/// Where the certificate of [`nginx_with_tls`] is.
pub(crate) fn certificate(server: &Server) -> PathBuf {
    server.directory.path().join("cert.pem")
}
