//! A service in a process of its own, which can be killed.

use std::env;
use std::path::PathBuf;

use lazo_snapshotter::images::Images;
use lazo_snapshotter::service;
use lazo_snapshotter::snapshots::Snapshots;

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
