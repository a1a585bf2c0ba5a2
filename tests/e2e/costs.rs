//! Images made by a hostile author: refused by the rule that they break, and otherwise no dearer than they say.

use std::{fs, fs::File, os::unix::fs::FileExt as _, path::Path};

use rustix::process::{Signal, kill_process};
use serde_json::json;

use crate::support::{
    Scratch, converted,
    hostile_images::{self, Broken, SMALL},
    listing::Listing,
    metrics::{curl, until},
    mounted::{Mounted, is_mounted},
    node::{MODES, Node},
    own::Image,
};

/// Memory that serving hostile images may take, bytes.
const MEMORY: u64 = 128 << 20;

/// What the daemon answers to a request for an image whose bootstrap layer has been unpacked to `files`.
fn mount_files(node: &Node<'_>, image: &str, files: &Path, mount_point: &Path) -> String {
    let request = json!({"image": image, "files": files, "mount_point": mount_point}).to_string();
    let more = ["--request", "POST", "--header", "content-type: application/json", "--data", &request];
    curl(&node.socket(), "http://lazo/v1/mounts", &more)
}

#[test]
fn metadata_that_breaks_a_rule_is_refused_by_name_and_by_files() {
    let images = Scratch::new();
    let broken: Vec<(Broken, String)> = (0..)
        .zip(hostile_images::broken())
        .map(|(number, broken)| {
            broken.parts.unpack(&images.join(&format!("{number}.files")));
            let image = broken.parts.write(&images.join(&number.to_string()));
            (broken, image)
        })
        .collect();
    assert!(broken.len() > 50);
    hostile_images::sound().unpack(&images.join("sound.files"));
    let sound = hostile_images::sound().write(&images.join("sound"));
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        node.mount(&sound, "sound", &[]).umount();
        let place = scratch.dir("files");
        let answer = mount_files(&node, &sound, &images.join("sound.files"), &place);
        assert!(is_mounted(&place), "{mode}: {answer}");
        Mounted::adopt(&scratch, place.clone()).umount();
        let mut complaints = Vec::new();
        for (number, (Broken { name, says, .. }, image)) in broken.iter().enumerate() {
            let mut complain = |how: &str, answer: &str, image: &str| {
                if !answer.contains(says) || !answer.contains(image) {
                    complaints.push(format!("{name}, {how}: {answer}"));
                }
            };
            complain("by name", &Mounted::failure(&scratch, image, "mount"), image);
            let answer = mount_files(&node, image, &images.join(&format!("{number}.files")), &place);
            assert!(!is_mounted(&place), "{mode}: {name} was mounted by its files");
            complain("by files", &answer, image);
            if mode == "fuse" {
                complain("alone", &Mounted::failure_with(&scratch, &["--standalone"], image, "mount"), image);
                complain("checked", &scratch.lazo_err(["check", image]), "");
            }
        }
        assert!(complaints.is_empty(), "{mode}: {} complaints:\n{}", complaints.len(), complaints.join("\n"));
        assert!(fs::read_dir(scratch.join("state/images")).expect("the directory").count() <= 2, "nothing is kept");
    }
}

/// The most memory that the daemon's worker has had, bytes.
fn peak_memory(node: &Node<'_>) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.worker().as_raw_nonzero())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

#[test]
fn long_lists_and_small_chunks_cost_no_more_than_others() {
    /// A table of 114 MB and its list of 16 MB.
    const CHUNKS: u32 = 2_000_000;
    let images = Scratch::new();
    let chunks = hostile_images::many_small_chunks(CHUNKS).write(&images.join("chunks"));
    let list = hostile_images::longest_prefetch_list(CHUNKS).write(&images.join("list"));
    let endless = hostile_images::endless_prefetch_list(10 * CHUNKS).write(&images.join("endless"));
    let good = format!("oci:{}:lazo", converted("small", "gzip").display());
    let expected = Image::open(&converted("small", "gzip"), "lazo", &images.dir("image")).listing();
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let error = Mounted::failure(&scratch, &endless, "endless");
        assert!(error.contains("20000000 prefetch ranges, the format allows 1"), "{mode}: {error}");
        let hostile = [node.mount(&list, "list", &[]), node.mount(&chunks, "chunks", &[])];
        let file = |mounted: &Mounted<'_>| File::open(mounted.path().join("file")).expect("the file");
        let files = hostile.each_ref().map(file);
        // While the list is fetched, and neighbours of what is read come along.
        for at in [0, 1, CHUNKS / 2, CHUNKS - 1].map(|chunk| u64::from(chunk) * 4096) {
            for file in &files {
                let mut block = [0; 4096];
                file.read_exact_at(&mut block, at).expect("a block");
                assert_eq!(block, [SMALL; 4096], "{mode}: at {at}");
            }
        }
        let mounted = node.mount(&good, "good", &[]);
        expected.assert_same(mode, &Listing::of_directory(mounted.path()), &[]);
        assert!(peak_memory(&node) < MEMORY, "{mode}: {} bytes", peak_memory(&node));
        let worker = node.worker();
        kill_process(worker, Signal::KILL).expect("it lives");
        until("another worker answers", || {
            let health = scratch.lazo(["stats", "--json"]).output().expect("lazo stats").stdout;
            let health: serde_json::Value = serde_json::from_slice(&health).ok()?;
            let now = health["daemon"]["health"]["worker_pid"].as_i64()?;
            (now != i64::from(worker.as_raw_nonzero().get())).then_some(())
        });
        expected.assert_same(mode, &Listing::of_directory(mounted.path()), &[]);
        assert!(peak_memory(&node) < MEMORY, "{mode}, restarted: {} bytes", peak_memory(&node));
        drop(files);
        mounted.umount();
        hostile.into_iter().for_each(Mounted::umount);
    }
}
