//! A proxy before a real HTTP server that misbehaves when told to: slow, cut short, wrong bytes, silent, gone.
//!
//! It can be told so while clients are at work, keeps a log of what was asked for, and has threads of its own. Needs nothing
//! but tokio, hyper and rustix, so that benches and other crates' tests can include this file.

#[path = "faults/forward.rs"]
mod forward;
#[path = "../../src/demo/link.rs"]
mod link;
#[path = "faults/server.rs"]
mod server;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
};

use link::Link;

/// As many bytes per second as there are: no limit.
const UNLIMITED: u64 = u64::MAX;
/// How long may pass until requests come that have to come.
const HIT_LIMIT: Duration = Duration::from_secs(30);
/// Threads of a proxy: one to take from the server while the other gives to clients.
const THREADS: usize = 2;

/// What happens to a request instead of being answered as the server does.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This status and an empty body.
    Status(u16),
    /// 429 with Retry-After, seconds.
    Busy(u64),
    /// No answer until the fault is lifted; then the right one.
    Hang,
    /// The connection is reset.
    Reset,
    /// So many bytes of the body, then the connection ends.
    Cut(u64),
    /// So many bytes of the body; the rest when the fault is lifted.
    Stall(u64),
    /// So many bytes of the body; then one byte each time that so long has passed, until the fault is lifted.
    Drip(u64, Duration),
    /// The byte at this offset of the blob is another.
    Flip(u64),
    /// No byte of the body is right.
    Garble,
    /// 206 with the bytes one later than asked for, and it says so.
    OtherBounds,
    /// 206 with the first byte alone, and it says so.
    FirstByteOnly,
    /// 200 with everything, whatever range was asked for.
    Whole,
}

/// Which requests a fault hits.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    All,
    /// GET of any blob; with a Range header, as reads of a mount have.
    Blobs,
    /// Manifests and indexes.
    Manifests,
    /// Paths that contain this, such as a digest.
    Path(String),
}

impl Target {
    fn hits(&self, request: &Exchange) -> bool {
        match self {
            Self::All => true,
            Self::Blobs => request.is_blob_range(),
            Self::Manifests => request.path.contains("/manifests/"),
            Self::Path(part) => request.path.contains(part),
        }
    }
}

#[derive(Clone, Debug)]
struct Rule {
    target: Target,
    fault: Fault,
    /// How many requests it may still hit.
    left: u64,
}

/// A request, and what has been answered so far.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) method: String,
    pub(crate) path: String,
    /// What the Range header asks for.
    pub(crate) range: Option<Range<u64>>,
    /// Whether it had an Authorization header.
    pub(crate) authorized: bool,
    /// 0 as long as there is no answer.
    pub(crate) status: u16,
    /// Of the answer's body, given to the client's connection.
    pub(crate) bytes: u64,
    /// Since the proxy's start.
    pub(crate) began: Duration,
    /// Since the proxy's start, of the last byte so far.
    pub(crate) last: Duration,
}

impl Exchange {
    /// Whether it asks for a part of a blob.
    pub(crate) fn is_blob_range(&self) -> bool {
        self.method == "GET" && self.range.is_some() && self.path.contains("/blobs/")
    }

    /// Whether it brought data.
    pub(crate) fn brought_data(&self) -> bool {
        self.is_blob_range() && matches!(self.status, 200 | 206)
    }
}

struct Shared {
    upstream: SocketAddr,
    own: SocketAddr,
    start: Instant,
    link: Mutex<(Duration, u64, Arc<Link>)>,
    rules: watch::Sender<Vec<Rule>>,
    log: Mutex<Vec<Exchange>>,
    /// Requests that a fault has hit.
    hits: AtomicU64,
    /// For how long signed URLs are valid, in milliseconds; 0: blobs are not redirected.
    signed_for: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn link(&self) -> Arc<Link> {
        Arc::clone(&lock(&self.link).2)
    }

    /// The fault that hits a request now; counts it.
    fn fault(&self, request: &Exchange) -> Option<Fault> {
        let mut found = None;
        self.rules.send_if_modified(|rules| {
            if let Some(rule) = rules.iter_mut().find(|rule| rule.left > 0 && rule.target.hits(request)) {
                rule.left -= 1;
                self.hits.fetch_add(1, Ordering::Relaxed);
                found = Some(rule.fault.clone());
            }
            // Nobody waits for the count of a rule.
            false
        });
        found
    }

    fn note(&self, number: usize, change: impl FnOnce(&mut Exchange)) {
        if let Some(exchange) = lock(&self.log).get_mut(number) {
            change(exchange);
            exchange.last = self.start.elapsed();
        }
    }
}

/// A running proxy; it ends when dropped.
pub(crate) struct Proxy {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    accepting: Mutex<Option<JoinHandle<()>>>,
}

impl Proxy {
    /// On a free port of 127.0.0.1, before the server at `upstream` (`ADDRESS:PORT`).
    pub(crate) fn start(upstream: &str) -> Self {
        Self::start_at(IpAddr::V4(Ipv4Addr::LOCALHOST), upstream)
    }

    /// On a free port of `address`.
    pub(crate) fn start_at(address: IpAddr, upstream: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).expect("a free port");
        let shared = Shared {
            upstream: upstream.parse().expect("ADDRESS:PORT"),
            own: listener.local_addr().expect("its address"),
            start: Instant::now(),
            link: Mutex::new((Duration::ZERO, UNLIMITED, Arc::new(Link::new(Duration::ZERO, UNLIMITED)))),
            rules: watch::Sender::default(),
            log: Mutex::default(),
            hits: AtomicU64::new(0),
            signed_for: AtomicU64::new(0),
        };
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("proxy").enable_all().build();
        let runtime = runtime.expect("the proxy's threads");
        let proxy = Self { shared: Arc::new(shared), runtime: Some(runtime), accepting: Mutex::default() };
        proxy.accept(listener);
        proxy
    }

    fn accept(&self, listener: TcpListener) {
        listener.set_nonblocking(true).expect("a listener");
        let runtime = self.runtime.as_ref().expect("it runs");
        let _guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let task = runtime.spawn(server::serve(listener, Arc::clone(&self.shared)));
        *lock(&self.accepting) = Some(task);
    }

    /// `ADDRESS:PORT`
    pub(crate) fn host(&self) -> String {
        self.shared.own.to_string()
    }

    /// `docker://HOST/NAME`
    pub(crate) fn image(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.host())
    }

    /// From now on this happens to these requests, and nothing else to any.
    pub(crate) fn set(&self, target: Target, fault: Fault) {
        self.shared.rules.send_replace(vec![Rule { target, fault, left: u64::MAX }]);
    }

    /// From now on this happens to the next `times` of these requests, and nothing else to any.
    pub(crate) fn set_times(&self, target: Target, fault: Fault, times: u64) {
        self.shared.rules.send_replace(vec![Rule { target, fault, left: times }]);
    }

    /// Lifts every fault; what hangs goes on.
    pub(crate) fn heal(&self) {
        self.shared.rules.send_replace(Vec::new());
    }

    /// Nothing listens any more, and all connections are cut, until [`Self::listen`].
    pub(crate) fn refuse(&self) {
        let Some(task) = lock(&self.accepting).take() else { return };
        task.abort();
        // The port is refused once the task, which owns the listener, is dropped.
        while !task.is_finished() {
            std::thread::yield_now();
        }
    }

    /// Listens again, at the same port.
    pub(crate) fn listen(&self) {
        self.accept(TcpListener::bind(self.shared.own).expect("the port that it had"));
    }

    /// Passes before each answer from now on.
    pub(crate) fn set_latency(&self, latency: Duration) {
        self.set_link(|link| link.0 = latency);
    }

    /// Bytes per second of all bodies together from now on.
    pub(crate) fn set_bandwidth(&self, bandwidth: u64) {
        self.set_link(|link| link.1 = bandwidth);
    }

    fn set_link(&self, change: impl FnOnce(&mut (Duration, u64, Arc<Link>))) {
        let mut link = lock(&self.shared.link);
        change(&mut link);
        link.2 = Arc::new(Link::new(link.0, link.1));
    }

    /// From now on blobs are redirected to URLs that are good for so long, on another host name. `None`: no redirects.
    pub(crate) fn sign_for(&self, validity: Option<Duration>) {
        let milliseconds =
            validity.map_or(0, |validity| u64::try_from(validity.as_millis()).unwrap_or(u64::MAX).max(1));
        self.shared.signed_for.store(milliseconds, Ordering::Relaxed);
    }

    /// Waits until faults have hit so many requests.
    pub(crate) fn wait_for_hits(&self, hits: u64) {
        let begin = Instant::now();
        while self.hits() < hits {
            assert!(begin.elapsed() < HIT_LIMIT, "{} of {hits} requests were hit", self.hits());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// How many requests faults have hit so far; one that hangs is hit each time that the faults change.
    pub(crate) fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }

    /// Every request so far, in the order of their arrival.
    pub(crate) fn log(&self) -> Vec<Exchange> {
        lock(&self.shared.log).clone()
    }

    /// The requests so far that brought data of blobs.
    pub(crate) fn data_requests(&self) -> Vec<Exchange> {
        let mut log = self.log();
        log.retain(Exchange::brought_data);
        log
    }

    /// Forgets the requests so far; none may be under way.
    pub(crate) fn clear_log(&self) {
        lock(&self.shared.log).clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
