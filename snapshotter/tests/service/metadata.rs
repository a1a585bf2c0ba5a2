//! Labels, times, filters.

use std::time::SystemTime;

use lazo_snapshotter::proto::containerd::services::snapshots::v1::Kind;
use tonic::Code;

use crate::support::{Calls, Served, refused};

/// c2 is c1's child; a1 and v1 are c2's; a2 and v2 have no parent.
async fn six(calls: &Calls) {
    calls.prepare("c1-a", "", &[]).await.unwrap();
    calls.commit("c1", "c1-a", &[]).await.unwrap();
    calls.prepare("c2-a", "c1", &[]).await.unwrap();
    calls.commit("c2", "c2-a", &[]).await.unwrap();
    calls.prepare("a1", "c2", &[]).await.unwrap();
    calls.prepare("a2", "", &[]).await.unwrap();
    calls.view("v1", "c2", &[]).await.unwrap();
    calls.view("v2", "", &[]).await.unwrap();
}

#[tokio::test]
async fn update() {
    let served = Served::new().await;
    let calls = served.calls();
    let before = prost_types::Timestamp::from(SystemTime::now());
    six(&calls).await;
    for (name, kind, parent) in [
        ("c1", Kind::Committed, ""),
        ("c2", Kind::Committed, "c1"),
        ("a1", Kind::Active, "c2"),
        ("a2", Kind::Active, ""),
        ("v1", Kind::View, "c2"),
        ("v2", Kind::View, ""),
    ] {
        let info = calls.stat(name).await.unwrap();
        assert_eq!((info.name.as_str(), info.kind(), info.parent.as_str()), (name, kind, parent));
        let (created, now) = (info.created_at.unwrap(), prost_types::Timestamp::from(SystemTime::now()));
        let nanos = |time: &prost_types::Timestamp| (time.seconds, time.nanos);
        assert!(nanos(&before) <= nanos(&created) && nanos(&created) <= nanos(&now));
        assert_eq!(info.updated_at, Some(created));

        let labels = |info: &lazo_snapshotter::proto::containerd::services::snapshots::v1::Info| {
            let mut labels: Vec<(String, String)> = info.labels.clone().into_iter().collect();
            labels.sort();
            labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
        };
        let all = &[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), ("l0", "")];
        let updated = calls.update(name, all, &[]).await.unwrap();
        assert_eq!(labels(&updated), "l1=v1,l2=v2,l3=v3");
        assert_eq!((updated.created_at, updated.kind(), updated.parent.as_str()), (Some(created), kind, parent));
        assert!(nanos(&updated.updated_at.unwrap()) > nanos(&created));
        let updated = calls.update(name, &[("l1", "new"), ("l4", "v4")], &["labels.l1", "labels.l2"]).await.unwrap();
        assert_eq!(labels(&updated), "l1=new,l3=v3");
        let dotted = calls.update(name, &[("a.b/c", "1")], &["labels.a.b/c"]).await.unwrap();
        assert_eq!(labels(&dotted), "a.b/c=1,l1=new,l3=v3");
        let updated = calls.update(name, &[("l4", "v4")], &["labels"]).await.unwrap();
        assert_eq!(labels(&updated), "l4=v4");
        for path in ["parent", "name", "kind", "created_at", "label", "labelsx", ""] {
            refused(calls.update(name, &[("l5", "v5")], &["labels", path]).await, Code::InvalidArgument);
        }
        assert_eq!(calls.stat(name).await.unwrap(), updated);
    }
}

#[tokio::test]
async fn commit_replaces_labels() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.prepare("key", "", &[("kept", "no"), ("empty", "")]).await.unwrap();
    assert_eq!(calls.stat("key").await.unwrap().labels.len(), 1);
    calls.commit("name", "key", &[("new", "yes"), ("empty", "")]).await.unwrap();
    let labels = calls.stat("name").await.unwrap().labels;
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("new".to_owned(), "yes".to_owned())]);
}

#[tokio::test]
async fn walk() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.prepare("a-np", "", &[]).await.unwrap();
    calls.prepare("p-tmp", "", &[]).await.unwrap();
    calls.commit("p", "p-tmp", &[]).await.unwrap();
    calls.prepare("a", "p", &[]).await.unwrap();
    calls.view("v", "p", &[]).await.unwrap();
    calls.prepare("p-wl-tmp", "", &[]).await.unwrap();
    calls.commit("p-wl", "p-wl-tmp", &[("l", "1"), ("containerd.io/x y", "deep")]).await.unwrap();
    calls.prepare("a-wl", "p-wl", &[("l", "2")]).await.unwrap();
    calls.view("v-wl", "p-wl", &[("l", "3")]).await.unwrap();
    calls.prepare("a-np-wl", "", &[("l", "2")]).await.unwrap();
    let all = ["a", "a-np", "a-np-wl", "a-wl", "p", "p-wl", "v", "v-wl"];
    for (filters, names) in [
        (&[] as &[&str], &all as &[&str]),
        (&[""], &all),
        (&["kind==active"], &["a", "a-np", "a-np-wl", "a-wl"]),
        (&["kind==view"], &["v", "v-wl"]),
        (&["kind==committed"], &["p", "p-wl"]),
        (&["name==p", "name==a-np-wl"], &["a-np-wl", "p"]),
        (&["name==a-wl,labels.l"], &["a-wl"]),
        (&["parent==p"], &["a", "v"]),
        (&["parent!=\"\""], &["a", "a-wl", "v", "v-wl"]),
        (&["parent==\"\",kind==active"], &["a-np", "a-np-wl"]),
        (&["labels.l"], &["a-np-wl", "a-wl", "p-wl", "v-wl"]),
        (&["labels.l==2"], &["a-np-wl", "a-wl"]),
        (&["labels.l!=2,kind!=view"], &["a", "a-np", "p", "p-wl"]),
        (&["labels.\"containerd.io/x y\"==deep"], &["p-wl"]),
        (&["name~=/^a-.*wl$/"], &["a-np-wl", "a-wl"]),
        (&["name~=^p"], &["p", "p-wl"]),
        (&["missing"], &[]),
        (&["name~=/(/"], &[]),
    ] {
        assert_eq!(calls.names(filters).await, names, "{filters:?}");
    }
    let message = refused(calls.list(&["name==a", "name="]).await, Code::InvalidArgument);
    assert!(message.contains("\"name=\"") && message.contains("operator"), "{message}");
    // What a walk tells is what a stat tells.
    for (name, info) in calls.list(&[]).await.unwrap() {
        assert_eq!(calls.stat(&name).await.unwrap(), info);
    }
}

#[tokio::test]
async fn long_lists_come_in_blocks() {
    let served = Served::new().await;
    let calls = served.calls();
    for number in 0..205 {
        calls.view(&format!("{number:03}"), "", &[]).await.unwrap();
    }
    assert_eq!(calls.names(&[]).await, (0..205).map(|number| format!("{number:03}")).collect::<Vec<_>>());
}
