//! User namespaces.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::json;
use tonic::Code;

use crate::lazy::{pull, start};
use crate::support::{Labels, Mounted, Served, read, refused, write};

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

#[tokio::test]
async fn the_daemon_shifts_an_image() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let top = pull(&calls, scratch, "default").await;
    daemon.wait("POST /v1/mounts", 1).await;
    let labels: Labels<'_> = &[(USERS, "0:65536:10,10:1:1"), (GROUPS, "0:4000:65536")];
    let mounts = calls.prepare("container", &top, labels).await.unwrap();
    let asked = daemon.asked("POST /v1/mounts");
    let (point, image) = (scratch.run().join("containerd/4"), scratch.run().join("containerd/3"));
    assert_eq!((&asked[1]["map"], &asked[1]["mount_point"]), (&json!("0:65536:10+10:1:1,0:4000:65536"), &json!(point)));
    assert_eq!(asked[1]["files"], asked[0]["files"]);
    assert!(!mounts[0].options.iter().any(|option| option.contains("idmap")), "shifted already: {mounts:?}");
    let files = fs::metadata(scratch.state().join("4/fs")).unwrap();
    assert_eq!((files.uid(), files.gid()), (65536, 4000), "the namespace's root");
    assert_eq!(read(Mounted::new(&mounts, &scratch.work("container")).path(), "file"), "from the image");
    assert_eq!(calls.mounts("container").await.unwrap(), mounts);
    assert_eq!(daemon.mounts(), [image.clone(), point]);

    // Layers above an image are containerd's to shift, and the link among them leads to the image's own mount.
    calls.layer(scratch, "layer", &top, |path| write(path, "above", "")).await;
    let mounts = calls.prepare("stacked", "layer", labels).await.unwrap();
    assert_eq!(mounts[0].options[..2], ["uidmap=0:65536:10,10:1:1", "gidmap=0:4000:65536"]);
    let link = fs::read_link(scratch.state().join("6/image")).unwrap();
    assert_eq!(link, scratch.run().join("containerd/6"));

    for key in ["container", "stacked"] {
        calls.remove(key).await.unwrap();
    }
    calls.cleanup().await.unwrap();
    assert_eq!(daemon.mounts(), [image]);
}

#[tokio::test]
async fn no_copies_of_whole_images() {
    let (served, _daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let top = pull(&calls, scratch, "default").await;
    calls.layer(scratch, "ordinary", "", |_| {}).await;
    // As containerd 1.6 and 2.1 call them.
    for name in ["sha256:0badcafe-1000-1000-remap", "sha256:0badcafe-remap"] {
        let key = format!("default/7/{name}");
        let message = refused(calls.prepare(&key, &top, &[]).await, Code::FailedPrecondition);
        assert!(message.contains("remap-ids"), "{message}");
        calls.prepare(&key, "ordinary", &[]).await.unwrap();
    }
    calls.prepare("default/7/my-remap", &top, &[]).await.unwrap();
}

/// Annotations of a layer become labels of the snapshot that it is unpacked into, and what is unpacked is shared by all images that have
/// the layer: its owners are those of the archive.
#[tokio::test]
async fn an_image_has_no_say_in_the_owners_of_its_layers() {
    let served = Served::new().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let labels: Labels<'_> =
        &[("containerd.io/snapshot.ref", "sha256:base"), (USERS, "0:1000:65536"), (GROUPS, "0:1000:65536")];
    for (number, parent) in ["", "default/1/sha256:base"].into_iter().enumerate() {
        let key = format!("extract-{number}");
        let mounts = calls.prepare(&key, parent, labels).await.unwrap();
        assert!(
            !mounts[0].options.iter().any(|option| option.contains("idmap") || option.contains("uidmap")),
            "{mounts:?}"
        );
        let files = fs::metadata(scratch.state().join(format!("{}/fs", number + 1))).unwrap();
        assert_eq!((files.uid(), files.gid()), (0, 0));
        calls.commit(&format!("default/{}/sha256:base", number + 1), &key, &[]).await.unwrap();
    }
}
