//! The snapshotter's sockets: those that a service manager holds, and clients that take a socket's path for the name of a host.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use lazo_snapshotter::proto::containerd::services::snapshots::v1::{
    PrepareSnapshotRequest, PrepareSnapshotResponse, StatSnapshotRequest, StatSnapshotResponse,
    snapshots_client::SnapshotsClient,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::support::{Scratch, containerd::Site, grpc::GoClient, node::Node};

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

/// What clients may say instead of a host: nothing of their own, which is the path, and the path in other forms.
pub(super) fn authorities(socket: &Path) -> [Option<String>; 4] {
    let path = socket.display().to_string();
    [None, Some(path.replace('/', "%2F")), Some(format!("unix://{path}")), Some("localhost".to_owned())]
}

#[test]
fn a_go_client_may_take_the_sockets_path_for_a_host() {
    let scratch = Scratch::new();
    let _node = Node::with(&scratch, super::CONFIG);
    let _site = Site::start(&scratch);
    let socket = scratch.join("run/snapshotter.sock");
    for (number, authority) in authorities(&socket).into_iter().enumerate() {
        let mut client = GoClient::new(&socket, authority.as_deref());
        let service = "/containerd.services.snapshots.v1.Snapshots";
        let key = format!("default/1/{number}");
        let label = ("containerd.io/snapshot/large".to_owned(), "x".repeat(1 << 20));
        let prepare = PrepareSnapshotRequest {
            key: key.clone(),
            labels: [label.clone()].into(),
            ..PrepareSnapshotRequest::default()
        };
        let prepared: PrepareSnapshotResponse = client
            .call(&format!("{service}/Prepare"), &prepare)
            .unwrap_or_else(|error| panic!("{authority:?}: {error}"));
        assert_eq!(prepared.mounts.len(), 1);
        for _ in 0..200 {
            let stat = StatSnapshotRequest { key: key.clone(), ..StatSnapshotRequest::default() };
            let found: StatSnapshotResponse = client.call(&format!("{service}/Stat"), &stat).expect("a snapshot");
            assert_eq!(found.info.expect("a snapshot").labels[&label.0], label.1);
        }
    }
}
