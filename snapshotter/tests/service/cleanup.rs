//! Disk space: what is told of it, and what becomes of it.

use std::fs;
use std::process::Command;
use std::sync::Arc;

use crate::support::{Mounted, Scratch, Served, write};

#[tokio::test]
async fn usage() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "base", "", |path| write(path, "base", &"x".repeat(100_000))).await;
    let mounted = Mounted::new(&calls.prepare("key", "base", &[]).await.unwrap(), &served.scratch.work("key"));
    let (size, inodes) = calls.usage("key").await.unwrap();
    assert_eq!(inodes, 1, "the root");
    write(mounted.path(), "file", &"x".repeat(50_000));
    fs::hard_link(mounted.path().join("file"), mounted.path().join("link")).unwrap();
    fs::create_dir(mounted.path().join("directory")).unwrap();
    fs::remove_file(mounted.path().join("base")).unwrap();
    rustix::fs::sync();
    let active = calls.usage("key").await.unwrap();
    assert_eq!(active.1, 4, "root, file with two names, directory, whiteout");
    assert!((50_000..100_000).contains(&(active.0 - size)), "{active:?}");
    drop(mounted);
    calls.commit("name", "key", &[]).await.unwrap();
    assert_eq!(calls.usage("name").await.unwrap(), active);
    // As du counts.
    let files = served.scratch.state().join("2/fs");
    let du = Command::new("du").args(["-s", "-B1"]).arg(&files).output().unwrap();
    assert_eq!(String::from_utf8(du.stdout).unwrap().split_whitespace().next().unwrap(), active.0.to_string());
    // A committed snapshot's is what it was.
    write(&files, "more", "x");
    assert_eq!(calls.usage("name").await.unwrap(), active);
    calls.view("view", "name", &[]).await.unwrap();
    assert_eq!(calls.usage("view").await.unwrap(), (0, 0));
}

#[tokio::test]
async fn removed_directories_go() {
    let served = Served::new().await;
    let calls = served.calls();
    calls.layer(&served.scratch, "layer", "", |path| write(path, "file", "x")).await;
    calls.prepare("active", "layer", &[]).await.unwrap();
    calls.view("view", "layer", &[]).await.unwrap();
    assert_eq!(served.scratch.directories(), [1, 2, 3]);
    for key in ["active", "view", "layer"] {
        calls.remove(key).await.unwrap();
    }
    calls.cleanup().await.unwrap();
    assert_eq!(served.scratch.directories(), Vec::<u64>::new());
    // Numbers are not used again, not even by the next process.
    let served = Served::on(served.stop().await).await;
    served.calls().prepare("new", "", &[]).await.unwrap();
    assert_eq!(served.scratch.directories(), [4]);
}

#[tokio::test]
async fn orphans_go_at_the_start_and_at_cleanup() {
    let scratch = Arc::new(Scratch::new());
    let orphans = || {
        fs::create_dir_all(scratch.state().join("77/fs/deep")).unwrap();
        fs::create_dir_all(scratch.state().join("78")).unwrap();
        fs::create_dir_all(scratch.run().join("containerd/79")).unwrap();
    };
    orphans();
    fs::create_dir_all(scratch.state().join("lost+found")).unwrap();
    let served = Served::on(Arc::clone(&scratch)).await;
    assert_eq!(scratch.directories(), Vec::<u64>::new());
    let calls = served.calls();
    calls.prepare("key", "", &[]).await.unwrap();
    orphans();
    calls.cleanup().await.unwrap();
    assert_eq!(scratch.directories(), [1]);
    assert!(scratch.state().join("lost+found").exists(), "what others made stays");
}

#[tokio::test]
async fn cleanup_leaves_what_is_being_made() {
    let served = Served::new().await;
    let calls = served.calls();
    let making = (0..4).map(|maker| {
        let calls = calls.clone();
        tokio::spawn(async move {
            for number in 0..25 {
                calls.prepare(&format!("{maker}-{number}"), "", &[]).await.unwrap();
            }
        })
    });
    let making: Vec<_> = making.collect();
    while !making.iter().all(tokio::task::JoinHandle::is_finished) {
        calls.cleanup().await.unwrap();
    }
    for task in making {
        task.await.unwrap();
    }
    assert_eq!(served.scratch.directories(), (1..=100).collect::<Vec<_>>());
}
