//! The server and the client, with a small node between them and the kernel.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::super::client::{Client, ClientError};
use super::super::config::Config;
use super::super::protocol::{Held, SOCKET, Served, Status, Writable};
use super::*;

/// Remembers mounts and makes none. Images called `slow` wait until they are let go.
struct Small {
    state_dir: PathBuf,
    mounts: Mutex<Vec<MountInfo>>,
    next: AtomicU64,
    metrics: Arc<Metrics>,
    slow: Notify,
    waiting: AtomicU64,
}

/// One that waits; one less when it goes.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Small {
    fn new(dir: &Path) -> Self {
        Self {
            state_dir: dir.join("state"),
            mounts: Mutex::default(),
            next: AtomicU64::new(1),
            metrics: Arc::new(Metrics::new()),
            slow: Notify::new(),
            waiting: AtomicU64::new(0),
        }
    }
}

impl Node for Small {
    async fn mount(&self, request: MountRequest) -> Result<MountInfo, ApiError> {
        match &*request.image {
            "bad" => return Err(ApiError::new(ErrorKind::Image, "the image is bad")),
            "panics" => panic!("a bug"),
            "slow" => {
                let _waiting = Waiting::new(&self.waiting);
                self.slow.notified().await;
            }
            _ => {}
        }
        let mut mounts = self.mounts.lock().unwrap();
        if mounts.iter().any(|mount| mount.mount_point == request.mount_point) {
            return Err(ApiError::new(ErrorKind::Exists, "there is a mount already"));
        }
        let info = MountInfo {
            id: self.next.fetch_add(1, Ordering::SeqCst).to_string(),
            mount_point: request.mount_point,
            image: request.image,
            manifest: "sha256:0".into(),
            mode: Served::Erofs,
            slot: 0,
            writable: request.writable,
            map: request.map,
            since: 1,
        };
        mounts.push(info.clone());
        Ok(info)
    }

    async fn warm(&self, image: String) -> Result<(), ApiError> {
        (image != "bad").then_some(()).ok_or_else(|| ApiError::new(ErrorKind::Invalid, "image bad: there is none"))
    }

    async fn refer(&self, mount_point: PathBuf, _: Vec<String>) -> Result<(), ApiError> {
        Err(ApiError::new(ErrorKind::NotFound, format!("{} is no mount", mount_point.display())))
    }

    async fn umount(&self, mount_point: PathBuf, _lazy: bool) -> Result<(), ApiError> {
        let mut mounts = self.mounts.lock().unwrap();
        let before = mounts.len();
        mounts.retain(|mount| mount.mount_point != mount_point);
        let missing = || ApiError::new(ErrorKind::NotFound, format!("{} is no mount", mount_point.display()));
        (mounts.len() < before).then_some(()).ok_or_else(missing)
    }

    fn mounts(&self) -> Vec<MountInfo> {
        self.mounts.lock().unwrap().clone()
    }

    fn images(&self) -> Vec<ImageInfo> {
        vec![ImageInfo {
            slot: 0,
            image: "good".into(),
            references: vec!["good".into()],
            manifest: "sha256:0".into(),
            mode: Served::Erofs,
            mounts: 0,
            blobs: 2,
            plain_blobs: 1,
            failed: Some("bad bytes".into()),
        }]
    }

    fn health(&self) -> Health {
        Health {
            ok: true,
            status: Status::Ok,
            problems: Vec::new(),
            waiting: Vec::new(),
            mode: Served::Erofs,
            no_erofs: None,
            worker_pid: std::process::id(),
            supervisor_pid: 1,
            since: 5,
            worker_since: 7,
            restarts: 3,
            upgrades: 0,
        }
    }

    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn removed(&self) {}

    fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    async fn stop(&self, force: bool) -> Result<StopInfo, ApiError> {
        let held = Held { image: "a:b".into(), mount_points: vec!["/m".into()], users: Vec::new() };
        Ok(StopInfo { held: vec![held], cut: force })
    }

    async fn upgrade(
        &self,
        binary: Option<PathBuf>,
        _connection: Option<Arc<UnixStream>>,
    ) -> Result<UpgradeInfo, ApiError> {
        let missing = || ApiError::new(ErrorKind::Invalid, "there is no such program");
        binary.filter(|path| path.exists()).ok_or_else(missing)?;
        Ok(UpgradeInfo { version: "2".into(), worker_pid: 2, pause_ms: 3 })
    }
}

struct Server {
    dir: tempfile::TempDir,
    node: Arc<Small>,
    client: Client,
    _runtime: Runtime,
}

impl Server {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { run_dir: dir.path().to_owned(), ..Config::default() };
        let access = Access::new(&config).unwrap();
        let listener = listen(&dir.path().join(SOCKET), &access).unwrap();
        let node = Arc::new(Small::new(dir.path()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(serve(listener, access, Arc::clone(&node)));
        let client = Client::find(dir.path()).unwrap().expect("a daemon");
        Self { dir, node, client, _runtime: runtime }
    }

    /// What the server answers to bytes, all of them.
    fn raw(&self, request: &[u8]) -> String {
        let mut stream = StdUnixStream::connect(self.dir.path().join(SOCKET)).unwrap();
        stream.write_all(request).unwrap();
        let mut answer = Vec::new();
        // A request that is not read to its end ends with a reset behind the answer.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let length = body.len();
        self.raw(
            format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
            )
            .as_bytes(),
        )
    }
}

fn request(image: &str, mount_point: &str) -> MountRequest {
    MountRequest::new(image.into(), mount_point.into())
}

/// Waits for something that another thread does.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn mounts_come_and_go() {
    let server = Server::start();
    let client = &server.client;
    let wanted = MountRequest {
        writable: Some(Writable::Tmpfs { size: None }),
        map: Some("0:1:2".into()),
        ..request("good", "/mnt/a b")
    };
    let info = client.mount(&wanted).unwrap();
    assert_eq!((info.mount_point.to_str(), &info.writable), (Some("/mnt/a b"), &wanted.writable));
    assert_eq!(client.mounts().unwrap(), [info]);
    let again = client.mount(&wanted).unwrap_err();
    assert_eq!(again.kind(), Some(ErrorKind::Exists));
    assert_eq!(again.to_string(), "there is a mount already");
    assert_eq!(client.mount(&request("bad", "/mnt/b")).unwrap_err().kind(), Some(ErrorKind::Image));
    assert_eq!(client.mount(&request("panics", "/mnt/b")).unwrap_err().kind(), Some(ErrorKind::Internal));
    client.umount("/mnt/a b".as_ref(), false).unwrap();
    assert_eq!(client.umount("/mnt/a b".as_ref(), false).unwrap_err().kind(), Some(ErrorKind::NotFound));
    assert_eq!(client.mounts().unwrap(), []);
}

#[test]
fn it_can_be_looked_at() {
    let server = Server::start();
    let client = &server.client;
    let version = client.version().unwrap();
    assert_eq!((&*version.version, version.api), (env!("CARGO_PKG_VERSION"), API_VERSION));
    assert_eq!(version.state_dir, server.dir.path().join("state"));
    assert_eq!(client.health().unwrap(), server.node.health());
    assert_eq!(client.images().unwrap(), server.node.images());
    server.node.metrics.read_bytes.inc_by(17);
    client.mount(&request("good", "/mnt")).unwrap();
    let stats = client.stats().unwrap();
    assert_eq!((stats.read_bytes, stats.mounts, stats.images, stats.failed_images), (17, 1, 1, 1));
    assert_eq!((stats.since, stats.restarts), (7, 3));
    assert_eq!(client.scrape().unwrap().read_bytes, 17);
    assert!(server.request("GET", "/metrics", "").contains("lazo_read_bytes_total 17\n"));
    assert!(server.request("GET", "/v1/cache", "").ends_with(r#"{"disk_bytes":0,"limit_bytes":0,"blobs":[]}"#));
    assert!(server.request("POST", "/v1/cache/prune", "").contains(r#""disk_bytes":0"#));
    let stopped = client.stop(true).unwrap();
    assert!(stopped.cut && stopped.held[0].image == "a:b");
    assert!(!client.stop(false).unwrap().cut);
    assert!(server.request("POST", "/v1/upgrade", r#"{"binary": "/proc/self/exe"}"#).contains(r#""pause_ms":3"#));
    assert_eq!(client.upgrade(Some("/not/there".as_ref())).unwrap_err().kind(), Some(ErrorKind::Invalid));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let server = Server::start();
    let too_long = format!(r#"{{"image": "{}", "mount_point": "/m"}}"#, "x".repeat(MAX_MOUNT));
    for (method, path, body, status, says) in [
        ("GET", "/", "", 404, r#""kind":"not_found""#),
        ("GET", "/v1/mounts/1", "", 404, "docs/API.md"),
        ("PUT", "/v1/mounts", "", 405, "GET, HEAD, POST, DELETE"),
        ("POST", "/v1/health", "", 405, r#""kind":"method""#),
        ("GET", "/v1/upgrade", "", 405, "POST"),
        ("GET", "/v1/stop", "", 405, "POST"),
        ("POST", "/v1/stop", r#"{"forced": true}"#, 400, "forced"),
        ("POST", "/v1/mounts", "", 400, "missing field"),
        ("POST", "/v1/mounts", "{", 400, "wrong"),
        ("POST", "/v1/mounts", r#"{"image": "x", "mount_point": "/m", "raed_only": true}"#, 400, "raed_only"),
        ("POST", "/v1/mounts", r#"{"image": "x", "mount_point": "m"}"#, 400, "absolute"),
        ("POST", "/v1/mounts", r#"{"image": "x", "mount_point": "/m/../n"}"#, 400, "absolute"),
        (
            "POST",
            "/v1/mounts",
            r#"{"image": "x", "mount_point": "/m", "writable": {"directory": "d"}}"#,
            400,
            "absolute",
        ),
        ("POST", "/v1/mounts", r#"{"image": "x", "mount_point": "/m", "registry": {"ca": ["c"]}}"#, 400, "absolute"),
        (
            "POST",
            "/v1/mounts",
            r#"{"image": "x", "mount_point": "/m", "outage_limit": 18446744073709551615}"#,
            400,
            "86400",
        ),
        ("POST", "/v1/mounts", &too_long, 413, r#""kind":"too_long""#),
        ("DELETE", "/v1/mounts", r#"{"mount_point": "/nowhere"}"#, 404, "/nowhere"),
        ("DELETE", "/v1/mounts", r#"{"mount_point": "nowhere"}"#, 400, "absolute"),
        ("POST", "/v1/upgrade", r#"{"binary": "lazo"}"#, 400, "absolute"),
        ("POST", "/v1/cache/prune", r#"{"to": -1}"#, 400, "wrong"),
    ] {
        let answer = server.request(method, path, body);
        let expected = format!("HTTP/1.1 {status} ");
        assert!(answer.starts_with(&expected) && answer.contains(says), "{method} {path}: {status}, {answer}");
    }
    assert!(server.raw(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let head = format!("GET /v1/health HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * MAX_HEAD));
    assert!(server.raw(head.as_bytes()).starts_with("HTTP/1.1 431 "));
    assert!(server.node.mounts().is_empty());
    server.client.health().unwrap();
}

#[test]
fn many_that_hang_hinder_nobody() {
    let server = Server::start();
    let hanging = u64::try_from(MAX_NAMED).unwrap();
    thread::scope(|scope| {
        for number in 0..hanging {
            let client = &server.client;
            scope.spawn(move || client.mount(&request("slow", &format!("/mnt/{number}"))).unwrap());
        }
        until("as many as may be are under way", || server.node.waiting.load(Ordering::SeqCst) == hanging);
        assert!(server.client.health().unwrap().ok);
        let refused = server.client.mount(&request("good", "/mnt/more")).unwrap_err();
        assert_eq!(refused.kind(), Some(ErrorKind::Unavailable), "{refused}");
        let at_hand = MountRequest { files: Some("/files".into()), ..request("good", "/mnt/files") };
        server.client.mount(&at_hand).unwrap();
        server.client.umount("/mnt/files".as_ref(), false).unwrap();
        assert_eq!(
            server.client.umount("/mnt/0".as_ref(), false).unwrap_err().kind(),
            Some(ErrorKind::NotFound),
            "an unmount is answered"
        );
        until("all are let go", || {
            server.node.slow.notify_waiters();
            server.node.mounts().len() as u64 == hanging
        });
    });
}

#[test]
fn a_mount_that_nobody_waits_for_is_given_up() {
    let server = Server::start();
    let mut stream = StdUnixStream::connect(server.dir.path().join(SOCKET)).unwrap();
    let body = r#"{"image": "slow", "mount_point": "/mnt"}"#;
    write!(stream, "POST /v1/mounts HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    until("it is being made", || server.node.waiting.load(Ordering::SeqCst) == 1);
    drop(stream);
    until("it is given up", || server.node.waiting.load(Ordering::SeqCst) == 0);
    server.node.slow.notify_waiters();
    server.client.health().unwrap();
    assert!(server.node.mounts().is_empty());
    assert_eq!(server.node.next.load(Ordering::SeqCst), 1, "none was made");
}

#[test]
fn strangers_are_turned_away() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = Config { control_uids: vec![4711], control_group: Some("4712".into()), ..Config::default() };
    let access = Access::new(&config).unwrap();
    let path = dir.path().join(SOCKET);
    let listener = listen(&path, &access).unwrap();
    let node = Arc::new(Small::new(dir.path()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.spawn(serve(listener, access, node));
    for (ids, allowed) in [
        (["--reuid=4711", "--regid=1", "--clear-groups"], true),
        (["--reuid=1", "--regid=4712", "--clear-groups"], true),
        (["--reuid=1", "--regid=1", "--groups=7,4712"], true),
        (["--reuid=1", "--regid=1", "--groups=7,4713"], false),
        (["--reuid=0", "--regid=0", "--clear-groups"], true),
    ] {
        let mut command = std::process::Command::new("setpriv");
        command.args(ids).args(["curl", "--silent", "--unix-socket"]).arg(&path).arg("http://lazo/v1/health");
        let output = command.output().expect("setpriv and curl");
        let answer = String::from_utf8_lossy(&output.stdout);
        let expected = if allowed { r#""ok":true"# } else { r#""kind":"denied""# };
        assert!(answer.contains(expected), "{ids:?}: {answer}");
    }
}

#[test]
fn without_a_daemon_there_is_no_client() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Client::find(dir.path()).unwrap().is_none());
    assert!(Client::find(&dir.path().join("not/there")).unwrap().is_none());
    let path = dir.path().join(SOCKET);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(Client::find(dir.path()).unwrap().is_none(), "nobody listens there any more");
    let error = Client::at(path).health().unwrap_err();
    assert!(matches!(error, ClientError::Broken { .. }), "{error}");
}
