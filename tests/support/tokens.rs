//! A token server as the distribution specification has it, whose tokens docker-registry takes for a few seconds.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::json;
use tokio::runtime::{Builder, Runtime};

use super::{Scratch, run, stdout_of};

const ISSUER: &str = "tests";
const SERVICE: &str = "registry";
/// For how long after its expiry docker-registry takes a token: `Leeway` of its registry/auth/token.
const LEEWAY: Duration = Duration::from_secs(60);
/// What clients are told: far more than the truth, so that they learn of the end from the registry alone.
const ANNOUNCED_SECONDS: u64 = 3600;

/// Issues tokens to pull from the repository `app`; ends when dropped.
pub(crate) struct Tokens {
    address: SocketAddr,
    certificate: PathBuf,
    issuer: Arc<Issuer>,
    runtime: Option<Runtime>,
}

struct Issuer {
    key: EcdsaKeyPair,
    /// DER in base64.
    certificate: String,
    validity: Duration,
    issued: AtomicU64,
}

impl Tokens {
    /// Whose tokens are good for so long.
    pub(crate) fn start(scratch: &Scratch, validity: Duration) -> Self {
        let (key, certificate) = (scratch.join("tokens.key"), scratch.join("tokens.crt"));
        let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=tokens";
        let files = ["-keyout".as_ref(), key.as_os_str(), "-out".as_ref(), certificate.as_os_str()];
        stdout_of(Command::new("openssl").args(arguments.split(' ')).args(files));
        let pkcs8 = pem(&key);
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new());
        let issuer = Issuer {
            key: key.expect("a key"),
            certificate: BASE64_STANDARD.encode(pem(&certificate)),
            validity,
            issued: AtomicU64::new(0),
        };
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a listener");
        let (address, issuer) = (listener.local_addr().expect("its address"), Arc::new(issuer));
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a thread");
        runtime.spawn(serve(listener, Arc::clone(&issuer)));
        Self { address, certificate, issuer, runtime: Some(runtime) }
    }

    /// What docker-registry's configuration has to say.
    pub(crate) fn configuration(&self) -> String {
        format!(
            "auth:\n  token: {{realm: 'http://{}/token', service: {SERVICE}, issuer: {ISSUER}, rootcertbundle: {}}}\n",
            self.address,
            self.certificate.display()
        )
    }

    /// How many tokens have been given out.
    pub(crate) fn issued(&self) -> u64 {
        self.issuer.issued.load(Ordering::Relaxed)
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The bytes in a PEM file's one section.
fn pem(path: &Path) -> Vec<u8> {
    let text = run("cat", [path]);
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    BASE64_STANDARD.decode(body).expect("base64")
}

async fn serve(listener: TcpListener, issuer: Arc<Issuer>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let issuer = Arc::clone(&issuer);
        let service = service_fn(move |_: Request<Incoming>| {
            let answer = json!({ "token": issuer.token(), "expires_in": ANNOUNCED_SECONDS }).to_string();
            async move { Ok::<_, Infallible>(Response::new(http_body_util::Full::<bytes::Bytes>::from(answer))) }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

impl Issuer {
    fn token(&self) -> String {
        let number = self.issued.fetch_add(1, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": ISSUER, "sub": "", "aud": SERVICE, "jti": number.to_string(),
            "exp": (now + self.validity).saturating_sub(LEEWAY).as_secs(),
            "nbf": now.saturating_sub(2 * LEEWAY).as_secs(), "iat": now.as_secs(),
            "access": [{ "type": "repository", "name": "app", "actions": ["pull"] }],
        });
        let encode = |value: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }
}
