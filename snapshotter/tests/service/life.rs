//! How snapshots come into being and go: each topic of containerd's conformance suite that looks at their lives, and the codes of errors.

use std::fs;

use lazo_snapshotter::proto::containerd::services::snapshots::v1::Kind;
use tonic::Code;

use crate::support::{Mounted, Served, read, refused, write};

#[tokio::test]
async fn basic() {
    let served = Served::new().await;
    let calls = served.calls();
    calls
        .layer(&served.scratch, "committed", "", |path| {
            write(path, "foo", "foo\n");
            fs::create_dir_all(path.join("a/b/c")).unwrap();
        })
        .await;
    let first = calls.stat("committed").await.unwrap();
    assert_eq!((first.parent.as_str(), first.kind()), ("", Kind::Committed));
    refused(calls.stat("committed-key").await, Code::NotFound);

    let mounted = Mounted::new(&calls.prepare("next", "committed", &[]).await.unwrap(), &served.scratch.work("next"));
    assert_eq!(read(mounted.path(), "foo"), "foo\n");
    write(mounted.path(), "foo", "bar\n");
    fs::remove_dir_all(mounted.path().join("a/b")).unwrap();
    let active = calls.stat("next").await.unwrap();
    assert_eq!((active.parent.as_str(), active.kind()), ("committed", Kind::Active));
    drop(mounted);
    calls.commit("committed-next", "next", &[]).await.unwrap();
    let second = calls.stat("committed-next").await.unwrap();
    assert_eq!((second.parent.as_str(), second.kind()), ("committed", Kind::Committed));
    refused(calls.stat("next").await, Code::NotFound);
    let all = calls.list(&[]).await.unwrap();
    assert_eq!(all.into_values().collect::<Vec<_>>(), [first, second]);

    let mounted = Mounted::new(&calls.view("view", "committed-next", &[]).await.unwrap(), &served.scratch.work("next"));
    assert_eq!(read(mounted.path(), "foo"), "bar\n");
    assert!(mounted.path().join("a").is_dir() && !mounted.path().join("a/b").exists());
    assert_eq!(calls.stat("view").await.unwrap().kind(), Kind::View);
    drop(mounted);
    calls.remove("view").await.unwrap();
    let message = refused(calls.remove("committed").await, Code::FailedPrecondition);
    assert!(message.contains("remove") && message.contains("parent of others"), "{message}");
    calls.remove("committed-next").await.unwrap();
    calls.remove("committed").await.unwrap();
    assert_eq!(calls.names(&[]).await, Vec::<String>::new());
}

#[tokio::test]
async fn transitivity() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "a", "", |path| write(path, "foo", "foo")).await;
    calls.layer(&served.scratch, "b", "a", |path| write(path, "foo", "foo bar")).await;
    let b = calls.stat("b").await.unwrap();
    assert_eq!(b.parent, "a");
    assert_eq!(calls.stat(&b.parent).await.unwrap().parent, "");
}

#[tokio::test]
async fn parents_and_kinds() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "layer", "", |_| {}).await;
    calls.prepare("active", "layer", &[]).await.unwrap();
    calls.view("view", "layer", &[]).await.unwrap();
    // A key is taken, whatever it is for.
    for key in ["active", "view", "layer"] {
        refused(calls.prepare(key, "layer", &[]).await, Code::AlreadyExists);
        refused(calls.view(key, "layer", &[]).await, Code::AlreadyExists);
        refused(calls.prepare(key, "", &[]).await, Code::AlreadyExists);
    }
    for parent in ["active", "view"] {
        refused(calls.prepare("new", parent, &[]).await, Code::InvalidArgument);
        refused(calls.view("new", parent, &[]).await, Code::InvalidArgument);
    }
    refused(calls.prepare("new", "missing", &[]).await, Code::NotFound);
    refused(calls.prepare("", "layer", &[]).await, Code::InvalidArgument);
    refused(calls.commit("new", "view", &[]).await, Code::FailedPrecondition);
    refused(calls.commit("new", "layer", &[]).await, Code::FailedPrecondition);
    refused(calls.commit("new", "missing", &[]).await, Code::NotFound);
    refused(calls.commit("layer", "active", &[]).await, Code::AlreadyExists);
    refused(calls.commit("active", "active", &[]).await, Code::AlreadyExists);
    refused(calls.commit("", "active", &[]).await, Code::InvalidArgument);
    refused(calls.mounts("layer").await, Code::FailedPrecondition);
    for result in [calls.remove("missing").await, calls.stat("missing").await.map(drop)] {
        refused(result, Code::NotFound);
    }
    refused(calls.mounts("missing").await, Code::NotFound);
    refused(calls.usage("missing").await, Code::NotFound);
    refused(calls.update("missing", &[], &[]).await, Code::NotFound);
    // None of that left anything.
    assert_eq!(calls.names(&[]).await, ["active", "layer", "view"]);
    assert_eq!(served.scratch.directories().len(), 3);
}

#[tokio::test]
async fn mounts_again() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "one", "", |_| {}).await;
    calls.layer(&served.scratch, "two", "one", |_| {}).await;
    for (key, parent) in [("a0", ""), ("a1", "one"), ("a2", "two")] {
        let mounts = calls.prepare(key, parent, &[]).await.unwrap();
        assert_eq!(calls.mounts(key).await.unwrap(), mounts);
    }
    for (key, parent) in [("v0", ""), ("v1", "one"), ("v2", "two")] {
        let mounts = calls.view(key, parent, &[]).await.unwrap();
        assert_eq!(calls.mounts(key).await.unwrap(), mounts);
    }
}

#[tokio::test]
async fn order_of_removal() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "base", "", |_| {}).await;
    calls.layer(&served.scratch, "middle", "base", |_| {}).await;
    calls.prepare("top", "middle", &[]).await.unwrap();
    refused(calls.remove("middle").await, Code::FailedPrecondition);
    for key in ["top", "middle", "base"] {
        calls.remove(key).await.unwrap();
    }
}

#[tokio::test]
async fn keys_and_names_can_be_used_again() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "one", "", |_| {}).await;
    calls.prepare("again", "one", &[]).await.unwrap();
    calls.remove("again").await.unwrap();
    calls.view("again", "one", &[]).await.unwrap();
    calls.remove("again").await.unwrap();
    calls.prepare("again", "", &[]).await.unwrap();
    calls.remove("one").await.unwrap();
    calls.commit("one", "again", &[]).await.unwrap();
}

#[tokio::test]
async fn closed_twice() {
    let mut scratch = {
        let served = Served::new().await;
        let calls = served.calls();
        calls.layer(&served.scratch, "layer", "", |path| write(path, "file", "kept")).await;
        calls.prepare("gone", "layer", &[]).await.unwrap();
        calls.remove("gone").await.unwrap();
        served.stop().await
    };
    for _ in 0..2 {
        scratch = Served::on(scratch).await.stop().await;
    }
    let served = Served::on(scratch).await;
    let mounts = served.calls().view("view", "layer", &[]).await.unwrap();
    assert_eq!(read(Mounted::new(&mounts, &served.scratch.work("view")).path(), "file"), "kept");
}
