//! `lazo demo`, whole and interrupted. One test: two at a time would measure each other.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::Scratch;

/// A fast network: what is tested is that the demo works, not how much it gains.
const NETWORK: [&str; 4] = ["--bandwidth", "2000", "--latency", "2"];

fn assert_nothing_is_left(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    assert!(!mounts.contains(directory.to_str().expect("UTF-8")), "{mounts}");
    assert_eq!(fs::read_dir(directory).expect("the directory").count(), 0, "files are left behind");
    for process in fs::read_dir("/proc").expect("/proc").flatten() {
        let command = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        assert!(!command.contains(directory.to_str().expect("UTF-8")), "{command} still runs");
    }
}

#[test]
fn demo_starts_lazily_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let temporary = scratch.dir("tmp");
    let demo = || {
        let mut command = scratch.lazo(["demo", "--json"]);
        command.args(NETWORK).env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let output = demo().output().expect("lazo runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_nothing_is_left(&temporary);
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let starts = report["starts"].as_array().expect("a list");
    let names: Vec<&str> = starts.iter().map(|start| start["name"].as_str().expect("a name")).collect();
    assert!(names.starts_with(&["full pull", "lazy start"]), "{names:?}");
    assert!(report["equal_entries"].as_u64() > Some(1000), "{report}");
    let full = starts[0]["bytes"].as_u64().expect("a number");
    // Manifest and layers.
    assert!(full > report["image"]["compressed_bytes"].as_u64().expect("a number"), "{report}");
    for lazy in &starts[1..] {
        assert!(lazy["bytes"].as_u64().expect("a number") < full / 2, "not lazy: {lazy}");
    }

    for (step, signal, name) in [("lazy start", Signal::INT, "SIGINT"), ("converting it", Signal::TERM, "SIGTERM")] {
        let mut child = demo().spawn().expect("lazo runs");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe")).lines().map(|line| line.expect("UTF-8"));
        let begun = lines.find(|line| line.ends_with(step));
        assert!(begun.is_some(), "the demo ends before {step}");
        kill_process(Pid::from_child(&child), signal).expect("it runs");
        let last = lines.last();
        assert_eq!(child.wait().expect("it ends").code(), Some(1));
        assert_eq!(last, Some(format!("lazo: stopped by {name}")));
        assert_nothing_is_left(&temporary);
    }
}
