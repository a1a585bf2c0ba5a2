//! What layers show when they are stacked: each topic of containerd's conformance suite that looks at files.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use crate::support::{Mounted, Served, read, tree, write};

type Apply = fn(&Path);

/// Makes a layer of each; what is seen below, in and after each must be what the same changes make of a plain directory.
async fn stacked(layers: &[Apply]) {
    let served = Served::new().await;
    let calls = served.calls();
    let (flat, place) = (served.scratch.work("flat"), served.scratch.work("place"));
    let mut parent = String::new();
    for (number, apply) in layers.iter().enumerate() {
        let (key, name) = (format!("key-{number}"), format!("layer-{number}"));
        let mounted = Mounted::new(&calls.prepare(&key, &parent, &[]).await.unwrap(), &place);
        assert_eq!(tree(mounted.path()), tree(&flat), "below layer {number}");
        apply(&flat);
        apply(mounted.path());
        assert_eq!(tree(mounted.path()), tree(&flat), "in layer {number}");
        drop(mounted);
        calls.commit(&name, &key, &[]).await.unwrap();
        let view = format!("view-{number}");
        let mounted = Mounted::new(&calls.view(&view, &name, &[]).await.unwrap(), &place);
        assert_eq!(tree(mounted.path()), tree(&flat), "after layer {number}");
        parent = name;
    }
}

fn directory(path: &Path, name: &str, mode: u32) {
    fs::create_dir(path.join(name)).unwrap();
    fs::set_permissions(path.join(name), fs::Permissions::from_mode(mode)).unwrap();
}

fn owned(path: &Path, name: &str, id: u32) {
    chown(path.join(name), Some(id), Some(id)).unwrap();
}

#[tokio::test]
async fn layer_file_update() {
    stacked(&[
        |path| {
            directory(path, "etc", 0o700);
            write(path, "etc/hosts", "mydomain 10.0.0.1");
            write(path, "etc/profile", "PATH=/usr/bin");
        },
        |path| {
            write(path, "etc/hosts", "mydomain 10.0.0.2");
            fs::set_permissions(path.join("etc/profile"), fs::Permissions::from_mode(0o666)).unwrap();
            directory(path, "root", 0o700);
            write(path, "root/.bashrc", "PATH=/usr/sbin:/usr/bin");
        },
    ])
    .await;
}

#[tokio::test]
async fn deletion_of_a_directory_in_a_lower_layer() {
    stacked(&[
        |path| {
            directory(path, "lib", 0o700);
            write(path, "lib/hidden", "");
        },
        |path| {
            fs::remove_dir_all(path.join("lib")).unwrap();
            directory(path, "lib", 0o700);
            write(path, "lib/not-hidden", "");
        },
        |path| write(path, "lib/new", ""),
    ])
    .await;
}

#[tokio::test]
async fn deleted_files_in_a_child() {
    stacked(&[
        |path| {
            write(path, "foo", "foo\n");
            write(path, "foobar", "foobar\n");
        },
        |path| fs::remove_file(path.join("foobar")).unwrap(),
        |_| {},
    ])
    .await;
}

#[tokio::test]
async fn chown_in_a_child() {
    stacked(&[
        |path| {
            fs::create_dir_all(path.join("opt/a/b")).unwrap();
            write(path, "opt/a/b/file", "hello");
        },
        |path| {
            for name in ["opt", "opt/a", "opt/a/b", "opt/a/b/file"] {
                owned(path, name, 1);
            }
        },
    ])
    .await;
}

#[tokio::test]
async fn rename_of_files_in_a_child() {
    stacked(&[
        |path| {
            directory(path, "somefiles", 0o700);
            write(path, "somefiles/f1", "was here first!");
            write(path, "somefiles/f2", "nothing interesting");
        },
        |path| {
            write(path, "somefiles/f1-overwrite", "new content 1");
            fs::rename(path.join("somefiles/f1-overwrite"), path.join("somefiles/f1")).unwrap();
            fs::rename(path.join("somefiles/f2"), path.join("somefiles/f3")).unwrap();
        },
    ])
    .await;
}

#[tokio::test]
async fn move_of_a_file_from_a_lower_layer() {
    stacked(&[
        |path| {
            directory(path, "dir1", 0o700);
            write(path, "dir1/f1", "Hello");
            directory(path, "dir2", 0o700);
            write(path, "dir2/f2", "...");
        },
        |path| {
            directory(path, "dir3", 0o700);
            write(path, "dir3/f1", "Hello");
            fs::remove_dir_all(path.join("dir1")).unwrap();
            fs::hard_link(path.join("dir2/f2"), path.join("dir3/f2")).unwrap();
            fs::remove_file(path.join("dir2/f2")).unwrap();
        },
    ])
    .await;
}

#[tokio::test]
async fn directory_permission_on_commit() {
    stacked(&[
        |path| {
            for number in 1..=5 {
                directory(path, &format!("dir{number}"), 0o700);
            }
            write(path, "dir4/f1", "...");
            write(path, "dir5/f1", "...");
            for name in ["dir1", "dir2", "dir3", "dir5", "dir5/f1"] {
                owned(path, name, 1);
            }
        },
        |path| {
            owned(path, "dir2", 0);
            fs::remove_dir(path.join("dir3")).unwrap();
            owned(path, "dir4", 1);
            owned(path, "dir4/f1", 1);
        },
        |path| {
            directory(path, "dir3", 0o700);
            owned(path, "dir3", 1);
            fs::remove_dir_all(path.join("dir5")).unwrap();
            directory(path, "dir5", 0o700);
            owned(path, "dir5", 1);
        },
    ])
    .await;
}

#[tokio::test]
async fn root_permission() {
    use std::os::unix::fs::MetadataExt as _;
    let served = Served::new().await;
    let calls = served.calls();
    let mounted = Mounted::new(&calls.prepare("key", "", &[]).await.unwrap(), &served.scratch.work("root"));
    assert_eq!(fs::metadata(mounted.path()).unwrap().mode() & 0o7777, 0o755);
    chown(mounted.path(), Some(7), Some(8)).unwrap();
    drop(mounted);
    calls.commit("layer", "key", &[]).await.unwrap();
    let mounted = Mounted::new(&calls.prepare("next", "layer", &[]).await.unwrap(), &served.scratch.work("root"));
    let metadata = fs::metadata(mounted.path()).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o755, 7, 8), "the parent's owner");
}

#[tokio::test]
async fn view_is_read_only() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "one", "", |path| write(path, "a", "1")).await;
    calls.layer(&served.scratch, "two", "one", |path| write(path, "b", "2")).await;
    for (key, parent) in [("v0", ""), ("v1", "one"), ("v2", "two")] {
        let mounted = Mounted::new(&calls.view(key, parent, &[]).await.unwrap(), &served.scratch.work(key));
        let error = fs::write(mounted.path().join("new"), "").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{key}");
    }
}

#[tokio::test]
async fn as_many_layers_as_images_have() {
    let served = Served::new().await;
    let calls = served.calls();
    let (flat, place) = (served.scratch.work("flat"), served.scratch.work("place"));
    let mut parent = String::new();
    for number in 0..128 {
        let apply = |path: &Path| {
            write(path, "overwritten", &number.to_string());
            write(path, &format!("file-{number}"), "same");
            if number > 0 {
                fs::remove_dir_all(path.join("only")).unwrap();
            }
            fs::create_dir(path.join("only")).unwrap();
            write(path, &format!("only/file-{number}"), "me");
        };
        let key = format!("key-{number}");
        let mounted = Mounted::new(&calls.prepare(&key, &parent, &[]).await.unwrap(), &place);
        apply(mounted.path());
        apply(&flat);
        drop(mounted);
        parent = format!("layer-{number}");
        calls.commit(&parent, &key, &[]).await.unwrap();
    }
    let mounted = Mounted::new(&calls.view("view", &parent, &[]).await.unwrap(), &place);
    assert_eq!(tree(mounted.path()), tree(&flat));
    assert_eq!(read(mounted.path(), "overwritten"), "127");
}
