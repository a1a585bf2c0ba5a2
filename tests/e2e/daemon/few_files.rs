//! A daemon that may open few files refuses what it has no room for, and goes on.

use std::{fs, os::unix::net::UnixStream, time::Duration};

use rustix::process::{Signal, kill_process};

use super::{FILE, errno, small};
use crate::support::{
    Corpus, Scratch,
    metrics::{curl, until},
    mounted::Mounted,
    node::{MODES, Node},
    output_of,
};

/// Most mounts that are tried. Each with its own image in the kernel, as its sources differ.
const MOUNTS: usize = 60;

/// Files that the daemon may open: it has some twenty with nothing mounted.
const FILES: u32 = 64;

/// How long any call may take.
const CALL: Duration = Duration::from_secs(60);

#[test]
fn mounts_are_refused_before_there_is_no_room_for_the_others() {
    let expected = fs::read(Corpus::get("small").reference().join(FILE)).expect("the reference");
    for what in MODES {
        let scratch = Scratch::new();
        let node = Node::with_files(&scratch, &format!("mode = \"{what}\"\noutage_limit = 5\n"), FILES);
        assert!(node.log().contains("LimitNOFILE"), "{what}: it is said at the start");
        let mut mounts = Vec::new();
        let refused = (0..MOUNTS).find_map(|number| {
            let dir = scratch.dir(&format!("mount-{number}"));
            let seconds = CALL.as_secs().to_string();
            let mut command = std::process::Command::new("timeout");
            let mount = scratch.lazo(["mount", "--outage-limit", &(number + 5).to_string(), &small()]);
            command.arg(seconds).arg(mount.get_program()).args(mount.get_args()).arg(&dir);
            for (name, value) in mount.get_envs() {
                if let Some(value) = value {
                    command.env(name, value);
                }
            }
            let output = output_of(&mut command);
            if output.status.success() {
                let mounted = Mounted::adopt(&scratch, dir);
                // Where the kernel reads the blobs, the daemon opens them when they are read.
                assert!(fs::read(mounted.path().join(FILE)).expect("the file") == expected, "{what}");
                mounts.push(mounted);
                return None;
            }
            Some(String::from_utf8_lossy(&output.stderr).into_owned())
        });
        let refused = refused.unwrap_or_else(|| panic!("{what}: {} mounts were made", mounts.len()));
        assert!(refused.contains("LimitNOFILE"), "{what}, after {}: {refused}", mounts.len());
        assert!(!mounts.is_empty(), "{what}");
        // What is mounted can be read, also by the next worker.
        for round in 0..2 {
            for mounted in &mounts {
                let found = fs::read(mounted.path().join(FILE)).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(found == expected, "{what}");
            }
            if round == 0 {
                let worker = node.worker();
                kill_process(worker, Signal::KILL).expect("a worker");
                until("another worker serves", || (node.worker() != worker).then_some(()));
            }
        }
        // With files free again, mounts are made again.
        mounts.drain(..).for_each(Mounted::umount);
        until("the images are let go", || node.get("images").as_array().is_some_and(Vec::is_empty).then_some(()));
        let again = node.mount(&small(), "again", &[]);
        again.umount();
        node.stop();
    }
}

#[test]
fn connections_that_take_all_files_do_not_keep_others_waiting_for_ever() {
    let scratch = Scratch::new();
    let node = Node::with_files(&scratch, "mode = \"fuse\"\n", FILES);
    let mounted = node.mount(&small(), "mount", &[]);
    let silent: Vec<_> = (0..FILES / 2).filter_map(|_| UnixStream::connect(node.socket()).ok()).collect();
    // A quarter of the files may be connections. Those who say nothing are let go after ten seconds.
    let health = curl(&node.socket(), "http://lazo/v1/health", &["--max-time", "60"]);
    assert!(health.contains("worker_pid"), "{health}");
    assert_eq!(errno(fs::read(mounted.path().join(FILE))), None);
    drop(silent);
    mounted.umount();
    node.stop();
}
