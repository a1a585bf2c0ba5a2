//! An upgrade is answered when it is done, or has failed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{FILE, small};
use crate::support::{
    Scratch, copy_program,
    metrics::curl,
    node::{MODES, Node},
    run,
};

/// Says that it is a lazo, and does nothing else: in a hurry, or for ever.
const LIAR: &str = "#include <stdio.h>\n#include <unistd.h>\nint main(int n, char **a) { puts(\"lazo 9.9.9\"); \
                    if (n != 2) { WAIT; return 3; } return 0; }\n";

fn liar(scratch: &Scratch, name: &str, waits: &str) -> PathBuf {
    let path = scratch.join(name);
    fs::write(path.with_extension("c"), LIAR.replace("WAIT", waits)).expect("its source");
    run("cc", [path.with_extension("c").as_path(), Path::new("-o"), &path]);
    path
}

/// The answer to a plain HTTP client, which asks nothing else.
fn upgrade(node: &Node<'_>, program: &Path) -> (String, Value) {
    let body = serde_json::json!({ "binary": program }).to_string();
    let limit = ["--include", "--max-time", "60", "--data", &body];
    let text = curl(&node.socket(), "http://lazo/v1/upgrade", &limit);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    (head.split(' ').nth(1).expect("a status").to_owned(), serde_json::from_str(body).expect("JSON"))
}

#[test]
fn the_answer_comes_when_the_new_program_serves() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&small(), "mount", &[]);
        let other = scratch.join("other");
        copy_program(env!("CARGO_BIN_EXE_lazo").as_ref(), &other, "");
        let before = node.get("health")["worker_pid"].clone();
        let (status, answer) = upgrade(&node, &other);
        let health = node.get("health");
        assert_eq!(status, "200", "{answer}");
        assert!(answer["worker_pid"] == health["worker_pid"] && answer["worker_pid"] != before, "{answer}, {health}");
        assert_eq!(answer["version"], node.get("version")["version"]);
        assert!(answer["pause_ms"].as_u64().is_some_and(|pause| pause > 0), "{answer}");
        fs::read(mounted.path().join(FILE)).expect("the file");
        mounted.umount();
        node.stop();
    }
}

#[test]
fn the_answer_says_why_the_program_before_serves_on() {
    let scratch = Scratch::new();
    let node = Node::start(&scratch, "fuse");
    let mounted = node.mount(&small(), "mount", &[]);
    for (name, waits, reason) in [("hasty", "", "exit status: 3"), ("lazy", "pause()", "not ready within")] {
        let (status, answer) = upgrade(&node, &liar(&scratch, name, waits));
        let error = answer["error"].as_str().expect("an error");
        assert_eq!(status, "500", "{answer}");
        assert!(error.contains("lazo 9.9.9 did not get ready") && error.contains("serves on"), "{error}");
        assert!(error.contains(reason), "{error}");
        fs::read(mounted.path().join(FILE)).expect("the file");
        assert_eq!(node.get("version")["version"], env!("CARGO_PKG_VERSION"));
    }
    let (status, answer) = upgrade(&node, Path::new("/bin/true"));
    assert!(status == "400" && answer["kind"] == "invalid", "{status}: {answer}");
    mounted.umount();
    node.stop();
}
