//! Mounts of images that are there, are lost, or are ended, and what callers are told of them.

use rustix::mount::{UnmountFlags, unmount};

use super::*;

const CONTAINER: &str = "default/9/container";

/// What a container sees.
async fn seen(calls: &Calls, scratch: &Scratch) -> String {
    let mounts = calls.mounts(CONTAINER).await.unwrap();
    read(Mounted::new(&mounts, &scratch.work("container")).path(), "file")
}

/// containerd asks for a container's mounts two or three times.
#[tokio::test]
async fn the_daemons_word_is_good_for_a_start() {
    let (served, daemon) = start().await;
    let calls = served.calls();
    let image = pull(&calls, &served.scratch, "default").await;
    let mounts = calls.prepare(CONTAINER, &image, &[]).await.unwrap();
    let before = daemon.asked("POST /v1/mounts").len();
    for _ in 0..20 {
        assert_eq!(calls.mounts(CONTAINER).await.unwrap(), mounts);
    }
    let asked = daemon.asked("POST /v1/mounts").len();
    assert!(asked < before + 20, "it was asked {asked} times");
}

#[tokio::test]
async fn a_mount_that_is_lost_is_made_again() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let image = pull(&calls, scratch, "default").await;
    calls.prepare(CONTAINER, &image, &[]).await.unwrap();
    let point = daemon.mounts().remove(0);
    for removed in [false, true] {
        assert_eq!(seen(&calls, scratch).await, "from the image");
        unmount(&point, UnmountFlags::DETACH).unwrap();
        if removed {
            fs::remove_dir(&point).unwrap();
        }
        assert_eq!(seen(&calls, scratch).await, "from the image", "directory removed: {removed}");
    }
}

/// As in another mount namespace.
#[tokio::test]
async fn a_mount_that_only_the_daemon_sees_is_given_to_nobody() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let image = pull(&calls, scratch, "default").await;
    calls.prepare(CONTAINER, &image, &[]).await.unwrap();
    daemon.insist();
    let point = daemon.mounts().remove(0);
    unmount(&point, UnmountFlags::DETACH).unwrap();
    for directory in ["there", "removed"] {
        if directory == "removed" {
            fs::remove_dir(&point).unwrap();
        }
        let error = refused(calls.mounts(CONTAINER).await, Code::FailedPrecondition);
        assert!(error.contains("does not see the mount"), "{directory}: {error}");
    }
}

#[tokio::test]
async fn a_mount_that_is_ended_is_asked_for_again() {
    let (served, daemon) = start().await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let image = pull(&calls, scratch, "default").await;
    calls.prepare(CONTAINER, &image, &[]).await.unwrap();
    daemon.refuse(Some((409, "broken", "it cannot be served any more")));
    calls.prepare("default/10/other", &image, &[]).await.unwrap();
    let before = daemon.asked("POST /v1/mounts").len();
    assert_eq!(daemon.asked("DELETE /v1/mounts").len(), 1);
    assert_eq!(seen(&calls, scratch).await, "from the image");
    assert!(daemon.asked("POST /v1/mounts").len() > before, "the word for the mount before it still holds");
}

/// As of a pod whose /var/run is a directory, while the host's is a link, or the other way round.
#[tokio::test]
async fn the_run_directory_may_have_another_name_in_mount_tables() {
    let scratch = Scratch::new();
    let real = scratch.run().with_file_name("real");
    fs::rename(scratch.run(), &real).unwrap();
    std::os::unix::fs::symlink(&real, scratch.run()).unwrap();
    let (served, _daemon) = start_in(scratch).await;
    let (calls, scratch) = (served.calls(), &served.scratch);
    let image = pull(&calls, scratch, "default").await;
    calls.prepare(CONTAINER, &image, &[]).await.unwrap();
    assert_eq!(seen(&calls, scratch).await, "from the image");
}
