//! Lazo is taken from a machine as docs/OPERATIONS.md says, whatever is in use.

use std::{
    ffi::CString,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use rustix::mount::{MountFlags, UnmountFlags};

use super::{FILE, mounts_below, small};
use crate::support::{Scratch, manager::Manager, metrics::until, mounted::Mounted, node::MODES, stdout_of};

/// A file that nobody has read before.
const UNREAD: &str = "odd/data/text-2625536";

/// An overlay of a mount, as a container's root is.
fn overlay(scratch: &Scratch, lower: &Path) -> std::path::PathBuf {
    let [upper, work, root] = ["upper", "work", "root"].map(|name| scratch.dir(name));
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let options = CString::new(options).expect("no zero");
    rustix::mount::mount("overlay", &root, "overlay", MountFlags::empty(), options.as_c_str()).expect("an overlay");
    root
}

/// Reads a file, which must fail and not wait for ever.
fn assert_cut_off(file: &Path, what: &str) {
    let mut reader = Command::new("cat");
    let mut reader = reader.arg(file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("cat");
    let status = until(what, || reader.try_wait().expect("its state"));
    assert!(!status.success(), "{what}");
}

fn remove(directory: &Path) {
    assert_eq!(mounts_below(directory), [""; 0]);
    stdout_of(Command::new("timeout").args(["20", "rm", "-r"]).arg(directory));
}

/// With a service manager that keeps the FUSE files, and an overlay that holds an image which is mounted nowhere.
#[test]
fn a_forced_end_cuts_off_what_only_an_overlay_holds() {
    for mode in MODES {
        let scratch = Scratch::new();
        let mut manager = Manager::new(&scratch, &format!("mode = \"{mode}\"\n"));
        manager.start();
        let mounted = Mounted::with(&scratch, &small(), "mount", &["--prefetch", "none"]);
        fs::read(mounted.path().join(FILE)).expect("the file");
        let root = overlay(&scratch, mounted.path());
        let worker = manager.worker();
        assert_eq!(manager.tell("term"), "ended");
        let said = scratch.lazo_ok(["daemon", "stop"]);
        assert!(said.contains(root.to_str().expect("a plain path")) && said.contains("served on"), "{said}");
        let said = scratch.lazo_ok(["daemon", "stop", "--force"]);
        assert!(said.contains("cut off"), "{said}");
        crate::support::mounted::wait_for_end(worker);
        assert_cut_off(&root.join(UNREAD), &format!("{mode}: the reader is cut off"));
        rustix::mount::unmount(&root, UnmountFlags::empty()).expect("no overlay");
        remove(&scratch.join("run"));
        remove(&scratch.join("state"));
        drop(mounted);
    }
}

/// The same after all of its processes were killed, with the mount in use and not.
#[test]
fn what_a_killed_daemon_has_left_can_be_taken_away() {
    for (mode, overlaid) in MODES.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        let what = format!("{mode}, overlaid: {overlaid}");
        let scratch = Scratch::new();
        let mut manager = Manager::new(&scratch, &format!("mode = \"{mode}\"\n"));
        manager.start();
        let mounted = Mounted::with(&scratch, &small(), "mount", &["--prefetch", "none"]);
        fs::read(mounted.path().join(FILE)).expect("the file");
        let root = overlaid.then(|| overlay(&scratch, mounted.path()));
        if overlaid {
            rustix::mount::unmount(mounted.path(), UnmountFlags::DETACH).expect("no mount");
        }
        manager.kill();
        let refused = scratch.lazo_err(["daemon", "stop"]);
        assert!(refused.contains("--force"), "{refused}");
        let said = scratch.lazo_ok(["daemon", "stop", "--force"]);
        assert!(said.contains("nothing is left"), "{what}: {said}");
        if let Some(root) = root {
            assert_cut_off(&root.join(UNREAD), &what);
            rustix::mount::unmount(&root, UnmountFlags::empty()).expect("no overlay");
        }
        remove(&scratch.join("run"));
        remove(&scratch.join("state"));
        drop(mounted);
    }
}
