//! A daemon that is told to end takes no data away from whoever still reads.

use std::path::{Path, PathBuf};

use rustix::process::Signal;

use super::Stage;
use crate::support::{
    metrics::until,
    mounted::is_mounted,
    node::{MODES, Node},
    run,
    served::{NAME, Original},
};

/// A container's root: an overlay, which holds a copy of the image's mount.
pub(super) struct Container<'a> {
    original: &'a Original,
    pub(super) root: PathBuf,
}

impl<'a> Container<'a> {
    pub(super) fn start(stage: &'a Stage, mount: &Path) -> Self {
        let [root, upper, work] = ["root", "upper", "work"].map(|name| stage.served.scratch.dir(name));
        let options = format!("lowerdir={},upperdir={},workdir={}", mount.display(), upper.display(), work.display());
        run("mount", ["-t", "overlay", "overlay", "-o", &options, root.to_str().expect("a plain path")]);
        Self { original: stage.served.original(), root }
    }

    /// Reads a file that nobody has read before.
    pub(super) fn read(&self) {
        self.original.assert_same(&self.root, self.original.next());
    }

    pub(super) fn end(&self) {
        run("umount", [self.root.to_str().expect("a plain path")]);
    }
}

/// The daemon's log names the image, and who uses it.
pub(super) fn until_it_says_who(node: &Node<'_>, root: &Path, times: usize) {
    let root = root.to_str().expect("a plain path");
    until("the log says who uses the image", || {
        let log = node.log();
        let lines = log.lines().filter(|line| line.contains("an image is in use") && line.contains(root));
        (lines.count() >= times).then_some(())
    });
}

#[test]
fn signals_end_a_daemon_after_its_last_reader() {
    for (mode, signal) in MODES.into_iter().flat_map(|mode| [Signal::TERM, Signal::INT, Signal::HUP].map(|s| (mode, s)))
    {
        let stage = Stage::new(mode, "");
        let mut node = stage.daemon();
        let mounted = stage.mount(&node);
        let container = Container::start(&stage, mounted.path());
        container.read();
        for times in 1..=2 {
            node.signal(signal);
            until_it_says_who(&node, &container.root, times);
            container.read();
        }
        assert!(!is_mounted(mounted.path()), "{mode}: what nobody uses is unmounted");
        let other = stage.served.scratch.dir("other");
        let other = other.to_str().expect("a plain path");
        let refused = stage.served.scratch.lazo_err(["mount", &stage.proxy.image(NAME), other]);
        assert!(refused.contains("ending"), "{refused}");
        container.end();
        node.wait_for_end();
    }
}

#[test]
fn the_next_daemon_serves_what_the_kernel_holds() {
    for mode in MODES {
        let stage = Stage::new(mode, "");
        let mut first = stage.daemon();
        let mounted = stage.mount(&first);
        let container = Container::start(&stage, mounted.path());
        first.signal(Signal::TERM);
        until_it_says_who(&first, &container.root, 1);
        let mut second = stage.daemon();
        first.wait_for_end();
        container.read();
        // It is told to end before anything else has happened, and serves on what it has not mounted itself.
        second.signal(Signal::TERM);
        until_it_says_who(&second, &container.root, 2);
        container.read();
        container.end();
        second.wait_for_end();
    }
}

#[test]
fn a_forced_end_says_whom_it_cuts_off() {
    for mode in MODES {
        let stage = Stage::new(mode, "");
        let mut node = stage.daemon();
        let mounted = stage.mount(&node);
        let container = Container::start(&stage, mounted.path());
        container.read();
        let said = stage.served.scratch.lazo_ok(["daemon", "stop"]);
        assert!(said.contains(container.root.to_str().expect("a plain path")) && said.contains("served on"), "{said}");
        container.read();
        let said = stage.served.scratch.lazo_ok(["daemon", "stop", "--force"]);
        assert!(said.contains("cut off"), "{said}");
        node.wait_for_end();
        let file = stage.served.original().next();
        assert!(container.original.compare(&container.root, file).is_err(), "{mode}: nobody serves it");
        container.end();
    }
}
