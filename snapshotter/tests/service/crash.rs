//! A service that is killed at any moment, and what the next one finds.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use lazo_snapshotter::images::Images;
use lazo_snapshotter::service;
use lazo_snapshotter::snapshots::Snapshots;
use tonic::{Code, Status};

use crate::support::{Calls, Scratch, Served, connect};

/// Serves the state directory and socket that the environment names, until it is killed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a process for other tests"]
async fn process() {
    let place = |name| env::var_os(name).map(PathBuf::from);
    let (Some(state), Some(run)) = (place("LAZO_TEST_STATE"), place("LAZO_TEST_RUN")) else { return };
    let socket = run.join("snapshotter.sock");
    let _ = std::fs::remove_file(&socket);
    let snapshots = Snapshots::open(&state, Images::new(&run)).unwrap();
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    service::serve(listener, snapshots, std::future::pending()).await.unwrap();
}

/// Such a process.
struct Process(Child);

impl Process {
    async fn start(scratch: &Scratch) -> (Self, Calls) {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "crash::process", "--ignored"]).stdout(Stdio::null());
        command.env("LAZO_TEST_STATE", scratch.state()).env("LAZO_TEST_RUN", scratch.run());
        let _ = std::fs::remove_file(scratch.socket());
        let process = Self(command.spawn().unwrap());
        while !answers(&scratch.socket()).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let calls = Calls(connect(&scratch.socket()).await);
        (process, calls)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

async fn answers(socket: &Path) -> bool {
    tokio::net::UnixStream::connect(socket).await.is_ok()
}

/// What a maker knows of its snapshots: there for sure, gone for sure; of the call that broke off it knows nothing.
#[derive(Default)]
struct Known {
    there: BTreeSet<String>,
    open: BTreeSet<String>,
}

/// Makes, commits and removes snapshots in a chain until a call breaks off.
async fn churn(calls: Calls, round: usize, maker: usize) -> Known {
    let mut known = Known::default();
    let mut parent = String::new();
    for number in 0.. {
        let (key, name) = (format!("{round}/{maker}/{number}/key"), format!("{round}/{maker}/{number}/name"));
        known.open = [key.clone(), name.clone()].into();
        let labels = [("containerd.io/snapshot.ref", name.as_str())];
        if broke_off(calls.prepare(&key, &parent, &labels).await.map(drop)) {
            return known;
        }
        known.there.insert(key.clone());
        known.open.remove(&name);
        if number % 3 == 0 {
            if broke_off(calls.remove(&key).await) {
                known.there.remove(&key);
                return known;
            }
            known.there.remove(&key);
        } else if number % 3 == 1 {
            known.open.insert(name.clone());
            if broke_off(calls.commit(&name, &key, &labels).await) {
                known.there.remove(&key);
                return known;
            }
            known.there.remove(&key);
            known.there.insert(name.clone());
            parent = name;
        }
    }
    known
}

/// Any other error than that of a service that has gone is wrong.
fn broke_off(result: Result<(), Status>) -> bool {
    match result {
        Ok(()) => false,
        Err(status)
            if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal) =>
        {
            true
        }
        Err(status) => panic!("{status:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment() {
    let scratch = Arc::new(Scratch::new());
    let mut there = BTreeSet::new();
    for round in 0..12 {
        let (process, calls) = Process::start(&scratch).await;
        let makers: Vec<_> = (0..4).map(|maker| tokio::spawn(churn(calls.clone(), round, maker))).collect();
        tokio::time::sleep(Duration::from_millis(20 + 17 * u64::try_from(round).unwrap())).await;
        drop(process);
        let mut open = BTreeSet::new();
        for maker in makers {
            let known = maker.await.unwrap();
            there.extend(known.there);
            open.extend(known.open);
        }
        // The next one finds all that was answered, of a broken call all or nothing, and no other directory.
        let served = Served::on(Arc::clone(&scratch)).await;
        let found = served.calls().list(&[]).await.unwrap();
        let names: BTreeSet<String> = found.keys().cloned().collect();
        assert!(there.is_subset(&names), "lost: {:?}", there.difference(&names));
        assert!(names.difference(&there).all(|name| open.contains(name)), "came back: {:?}", names.difference(&there));
        assert_eq!(scratch.directories().len(), names.len());
        for (name, info) in &found {
            assert!(info.parent.is_empty() || names.contains(&info.parent), "{name} has lost its parent");
            assert!(
                !(name.ends_with("/key") && names.contains(&name.replace("/key", "/name"))),
                "{name} is there twice"
            );
            if info.kind != 3 {
                served.calls().mounts(name).await.unwrap();
            }
        }
        there = names;
        served.stop().await;
    }
    assert!(there.len() > 50, "too few to mean anything: {}", there.len());
}

#[tokio::test]
async fn one_process_at_a_time() {
    let served = Served::new().await;
    let second = Snapshots::open(&served.scratch.state(), Images::new(&served.scratch.run()));
    let error = second.map(drop).unwrap_err().to_string();
    assert!(error.contains("another `lazo snapshotter`"), "{error}");
}
