//! Sockets that the service manager holds: who calls while the snapshotter is started again waits, and is not turned away.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use lazo_snapshotter::proto::containerd::services::snapshots::v1::{
    PrepareSnapshotRequest, StatSnapshotRequest, snapshots_client::SnapshotsClient,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::support::Scratch;

/// gRPC at a Unix socket, connected to when it is first used.
pub(super) fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://socket").connect_with_connector_lazy(connect)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_during_a_restart_waits() {
    let scratch = Scratch::new();
    let socket = scratch.join("snapshotter.sock");
    let snapshotter = scratch.lazo(["snapshotter"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/manager.py");
    let mut command = Command::new("python3");
    command.arg(script).arg("--listen").arg(format!("snapshotter={}", socket.display())).arg(scratch.join("notify"));
    command.arg(snapshotter.get_program()).args(snapshotter.get_args());
    command.envs(snapshotter.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut manager = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the manager");
    let mut commands = manager.stdin.take().expect("its input");
    let mut answers = BufReader::new(manager.stdout.take().expect("its output")).lines();
    let mut tell = |word: &str| {
        writeln!(commands, "{word}").expect("a manager that listens");
        answers.next().expect("an answer").expect("a line")
    };

    tell("start");
    let prepared = PrepareSnapshotRequest { key: "default/1/a".to_owned(), ..PrepareSnapshotRequest::default() };
    SnapshotsClient::new(channel(&socket)).prepare(prepared).await.expect("a snapshot");
    for end in ["kill", "term"] {
        assert_eq!(tell(end), "ended");
        let mut client = SnapshotsClient::new(channel(&socket));
        let request = StatSnapshotRequest { key: "default/1/a".to_owned(), ..StatSnapshotRequest::default() };
        let mut call = Box::pin(client.stat(request));
        let early = tokio::time::timeout(Duration::from_millis(300), &mut call).await;
        assert!(early.is_err(), "nobody is there to answer: {early:?}");
        tell("start");
        let found = call.await.expect("an answer").into_inner().info.expect("a snapshot");
        assert_eq!(found.name, "default/1/a", "{end}");
    }
    // It was listened at all the time, and by the manager: the snapshotter has made no socket of its own.
    assert!(!scratch.join("run/snapshotter.sock").exists());
    assert_eq!(tell("kill"), "ended");
    drop(commands);
    manager.wait().expect("its end");
}
