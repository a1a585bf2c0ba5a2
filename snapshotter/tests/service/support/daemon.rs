//! A stand-in for the node daemon: it answers at its socket, and binds a directory where an image is to be mounted.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

#[derive(Default)]
struct State {
    image: PathBuf,
    asked: Vec<(String, Value)>,
    mounts: BTreeSet<PathBuf>,
    refusal: Option<(u16, Value)>,
    /// Mounts that others have ended go unnoticed.
    insists: bool,
}

pub(crate) struct Daemon {
    state: Arc<Mutex<State>>,
    /// Changes with what was asked and what was answered.
    asked: watch::Receiver<usize>,
    /// Mounts are made while this is true.
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Daemon {
    /// Starts it in a run directory; every image has the files of `image`.
    pub(crate) fn start(run: &Path, image: &Path) -> Self {
        let _ = fs::remove_file(run.join("lazo.sock"));
        let listener = UnixListener::bind(run.join("lazo.sock")).unwrap();
        let state = Arc::new(Mutex::new(State { image: image.to_owned(), ..State::default() }));
        let (count, asked) = watch::channel(0);
        let (open, opened) = watch::channel(true);
        let count = Arc::new(count);
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (state, count, opened) = (Arc::clone(&serving), Arc::clone(&count), opened.clone());
                let service =
                    service_fn(move |request| answer(Arc::clone(&state), Arc::clone(&count), opened.clone(), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { state, asked, open, task }
    }

    /// All that was asked of this path so far.
    pub(crate) fn asked(&self, what: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.asked.iter().filter(|(path, _)| path == what).map(|(_, body)| body.clone()).collect()
    }

    /// Waits until something was asked so many times.
    pub(crate) async fn wait(&self, what: &str, times: usize) -> Vec<Value> {
        let mut asked = self.asked.clone();
        asked.wait_for(|_| self.asked(what).len() >= times).await.unwrap();
        self.asked(what)
    }

    /// Waits until nothing is mounted, and unmounts were asked for so many times.
    pub(crate) async fn wait_for_none(&self, unmounts: usize) {
        let mut asked = self.asked.clone();
        let none = |_: &usize| self.mounts().is_empty() && self.asked("DELETE /v1/mounts").len() >= unmounts;
        asked.wait_for(none).await.unwrap();
    }

    /// Where images are mounted.
    pub(crate) fn mounts(&self) -> Vec<PathBuf> {
        self.state.lock().unwrap().mounts.iter().cloned().collect()
    }

    /// Refuses mounts from now on, or does not any more.
    pub(crate) fn refuse(&self, with: Option<(u16, &str, &str)>) {
        let refusal = with.map(|(status, kind, error)| (status, json!({"error": error, "kind": kind})));
        self.state.lock().unwrap().refusal = refusal;
    }

    /// Takes for mounted from now on what it has mounted once.
    pub(crate) fn insist(&self) {
        self.state.lock().unwrap().insists = true;
    }

    /// Has mounts wait, or go on.
    pub(crate) fn hold(&self, hold: bool) {
        self.open.send_replace(!hold);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
        for path in &self.state.lock().unwrap_or_else(PoisonError::into_inner).mounts {
            let _ = unmount(path, UnmountFlags::DETACH);
        }
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    count: Arc<watch::Sender<usize>>,
    mut open: watch::Receiver<bool>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let what = format!("{} {}", parts.method, parts.uri.path());
    state.lock().unwrap().asked.push((what, body.clone()));
    count.send_modify(|count| *count += 1);
    let point = PathBuf::from(body["mount_point"].as_str().unwrap_or_default());
    let (status, answer) = match (parts.method, parts.uri.path()) {
        (Method::POST, "/v1/mounts") => {
            open.wait_for(|open| *open).await.unwrap();
            state.lock().unwrap().mount(&point, &body)
        }
        (Method::DELETE, "/v1/mounts") => state.lock().unwrap().unmount(&point),
        (Method::POST, "/v1/cache/release") => (200, json!({"bytes": 0, "in_use": []})),
        (Method::POST, "/v1/warm") => (200, Value::Null),
        _ => (404, json!({"error": "no such path", "kind": "not_found"})),
    };
    count.send_modify(|count| *count += 1);
    let answer = Full::new(Bytes::from(answer.to_string()));
    Ok(Response::builder().status(status).header("content-type", "application/json").body(answer).unwrap())
}

impl State {
    fn mount(&mut self, point: &Path, request: &Value) -> (u16, Value) {
        if let Some(refusal) = &self.refusal {
            return refusal.clone();
        }
        if !self.mounts.insert(point.to_owned()) {
            // Like the real one, it notices a little later that a mount is lost.
            if !self.insists && !is_mounted(point) {
                self.mounts.remove(point);
            }
            return (409, json!({"error": "something is mounted there", "kind": "exists"}));
        }
        fs::create_dir_all(point).unwrap();
        mount_bind(&self.image, point).unwrap();
        let made = json!({
            "id": "1", "mount_point": point, "image": request["image"], "manifest": "sha256:0", "mode": "erofs", "slot": 1, "since": 0
        });
        (200, made)
    }

    fn unmount(&mut self, point: &Path) -> (u16, Value) {
        // What cannot be served any more ends with its mount.
        self.refusal.take_if(|(_, answer)| answer["kind"] == "broken");
        if !self.mounts.remove(point) {
            return (404, json!({"error": "nothing is mounted there", "kind": "not_found"}));
        }
        unmount(point, UnmountFlags::DETACH).unwrap();
        (200, Value::Null)
    }
}

fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let real = fs::canonicalize(point).unwrap();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|path| Path::new(path) == real))
}
