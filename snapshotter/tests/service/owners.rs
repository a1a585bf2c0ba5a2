//! User namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use tonic::Code;

use crate::support::{Labels, Served, refused};

const USERS: &str = "containerd.io/snapshot/uidmapping";
const GROUPS: &str = "containerd.io/snapshot/gidmapping";

#[tokio::test]
async fn containerd_shifts_ordinary_layers() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "layer", "", |_| {}).await;
    let labels: Labels<'_> = &[(USERS, "1:70000:10,0:65536:1"), (GROUPS, "0:4000:65536")];
    for (number, (key, parent)) in [("bound", ""), ("stacked", "layer")].into_iter().enumerate() {
        let mounts = calls.prepare(key, parent, labels).await.unwrap();
        assert_eq!(mounts[0].options[..2], ["uidmap=1:70000:10,0:65536:1", "gidmap=0:4000:65536"]);
        let files = fs::metadata(served.scratch.state().join(format!("{}/fs", number + 2))).unwrap();
        assert_eq!((files.uid(), files.gid()), (65536, 4000), "the namespace's root");
        assert_eq!(calls.mounts(key).await.unwrap(), mounts);
    }
}

#[tokio::test]
async fn maps_that_are_none() {
    let served = Served::new().await;
    let calls = served.calls();
    for (users, groups) in [
        ("0:1000:10", ""),
        ("1:1000:10", "0:1:1"),
        ("0:1000", "0:1:1"),
        ("0:1:1:1", "0:1:1"),
        ("0:4294967295:2", "0:1:1"),
        ("a", "0:1:1"),
        ("0:0:0", "0:0:1"),
    ] {
        refused(calls.prepare("key", "", &[(USERS, users), (GROUPS, groups)]).await, Code::InvalidArgument);
    }
    assert_eq!(calls.names(&[]).await, Vec::<String>::new());
}
