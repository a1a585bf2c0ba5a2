//! Layers that a converter must refuse, by layer and entry, with the destination left as it was.

use std::{collections::BTreeMap, fs};

use serde_json::Value;

use crate::support::{Corpus, Scratch, layout, registry::Registry};

/// Memory that refusing a layer may take, KiB: what a conversion may, with room.
const MEMORY: u64 = 400 << 10;

#[test]
fn hostile_layers_are_refused_by_name() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("hostile"));
    let cases: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(corpus.path().join("cases.json")).expect("cases.json")).expect("JSON");
    assert!(cases.len() > 30);
    let destination = scratch.join("layout");
    let target = |tag: &str| format!("oci:{}:{tag}", destination.display());
    scratch.lazo_ok(["convert", &Corpus::get("small").image("app-one"), &target("good")]);
    let before = layout::snapshot(&destination);
    let mut complaints = Vec::new();
    for (tag, case) in &cases {
        let command = scratch.lazo(["convert", &corpus.image(tag), &target("bad")]);
        let output = limited(&command).output().expect("lazo");
        let error = String::from_utf8_lossy(&output.stderr);
        let mut complain = |what: &str| complaints.push(format!("{tag}: {what}: {}", error.trim()));
        if output.status.code() != Some(1) || error.contains("panicked") {
            complain(&format!("{}, not exit code 1", output.status));
        }
        let layer = case["layer"].as_str().expect("a digest");
        if !error.contains(&layer[..19]) {
            complain("does not name the layer");
        }
        if case["entry"].as_str().is_some_and(|entry| !error.contains(entry)) {
            complain(&format!("does not name the entry {}", case["entry"]));
        }
        if layout::snapshot(&destination) != before {
            complain("changed the destination");
        }
    }
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), cases.len(), complaints.join("\n"));
}

/// The same command under a limit of memory and time.
fn limited(command: &std::process::Command) -> std::process::Command {
    let mut limited = std::process::Command::new("timeout");
    limited
        .args(["60", "prlimit", &format!("--data={}", MEMORY << 10)])
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    limited
}

#[test]
fn a_failed_conversion_leaves_no_new_destination() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("hostile"));
    for (transport, name) in [("oci", "layout"), ("oci-archive", "archive.tar")] {
        let path = scratch.join(name);
        scratch.lazo_err(["convert", &corpus.image("dangling-hardlink"), &format!("{transport}:{}:x", path.display())]);
        let left = layout::snapshot(&path);
        assert!(!path.exists() || left.is_empty(), "{transport}: left {left:?}");
    }
    let registry = Registry::start(&scratch, "registry");
    scratch.lazo_err(["convert", &corpus.image("dangling-hardlink"), &registry.image("app:x")]);
    let manifests = registry
        .requests()
        .into_iter()
        .filter(|request| request.method == "PUT" && request.path.contains("/manifests/"));
    assert_eq!(manifests.count(), 0);
}
