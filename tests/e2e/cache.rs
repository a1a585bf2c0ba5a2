//! The cache under real mounts: its limit, full and read-only disks, several mounts of a blob, and `lazo cache`.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{
    Corpus, Scratch, converted, failure_of, layout::Manifest, listing::Listing, mounted::Mounted, run, stdout_of,
};

/// As `LIMIT_SLACK` of the storage crate, which docs/ARCHITECTURE.md states.
const SLACK: u64 = 32 << 20;
const MIB: u64 = 1 << 20;

/// Longest wait for something that happens in the background, with everything read meanwhile.
const PATIENCE: Duration = Duration::from_secs(120);

/// Real disk space of all blobs in a state directory.
fn disk(state: &Path) -> u64 {
    let dirs = fs::read_dir(state.join("blobs")).into_iter().flatten().flatten();
    let files = dirs.flat_map(|dir| fs::read_dir(dir.path()).into_iter().flatten().flatten());
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

/// Runs `work` and gives the most disk space that was seen meanwhile.
fn most_disk(state: &Path, work: impl FnOnce()) -> u64 {
    let (stop, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(disk(state), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        work();
        stop.store(true, Ordering::Relaxed);
    });
    most.into_inner()
}

fn image(corpus: &str) -> (String, Manifest) {
    let layout = converted(corpus, "gzip");
    (format!("oci:{}:lazo", layout.display()), Manifest::of(&layout, "lazo"))
}

fn assert_reads_right(corpus: &str, what: &str, mounted: &Mounted<'_>) {
    let corpus = Corpus::get(corpus);
    let expected = Listing::of_directory(&corpus.reference());
    expected.assert_same(what, &Listing::of_directory(mounted.path()), &corpus.exceptions());
    drop_page_cache();
}

/// So that the next reading asks the serving process again.
fn drop_page_cache() {
    fs::write("/proc/sys/vm/drop_caches", "1").expect("the kernel's caches");
}

fn mount_limited<'a>(scratch: &'a Scratch, image: &str, name: &str, limit: &str) -> Mounted<'a> {
    let dir = scratch.dir(name);
    stdout_of(scratch.lazo(["mount", "--cache-limit", limit, image]).arg(&dir));
    Mounted::adopt(scratch, dir)
}

#[test]
fn a_limit_is_kept_while_everything_is_read_again_and_again() {
    const LIMIT: u64 = 64 * MIB;
    let scratch = Scratch::new();
    let (image, _) = image("debian");
    let mounted = mount_limited(&scratch, &image, "mount", "64M");
    let most = most_disk(&scratch.join("state"), || {
        for round in 0..2 {
            assert_reads_right("debian", &format!("round {round}"), &mounted);
        }
    });
    assert!(most > LIMIT / 2, "hardly anything was cached: {most}");
    assert!(most <= LIMIT + SLACK, "{} MiB of {}", most / MIB, LIMIT / MIB);
    mounted.umount();
    for text in ["1M", "0%", "much"] {
        let mut command = scratch.lazo(["mount", "--cache-limit", text, &image]);
        let output = command.arg(scratch.dir("mount")).output().expect("lazo");
        assert_eq!(output.status.code(), Some(2), "{text}");
    }
}

#[test]
fn mounts_that_share_a_limit_keep_it_together() {
    const LIMIT: u64 = 64 * MIB;
    let scratch = Scratch::new();
    let ((debian, _), (small, _)) = (image("debian"), image("small"));
    let mounts = [("debian", &debian, "one"), ("small", &small, "two"), ("debian", &debian, "three")];
    let mounts = mounts.map(|(corpus, image, name)| (corpus, mount_limited(&scratch, image, name, "64M")));
    let most = most_disk(&scratch.join("state"), || {
        std::thread::scope(|scope| {
            for (corpus, mounted) in &mounts {
                scope.spawn(move || assert_reads_right(corpus, "one of three mounts", mounted));
            }
        });
    });
    assert!(most <= LIMIT + SLACK, "{} MiB of {}", most / MIB, LIMIT / MIB);
    mounts.into_iter().for_each(|(_, mounted)| mounted.umount());
}

/// A small file system on a loop device at the state directory; undone on drop.
struct Disk {
    at: PathBuf,
}

impl Disk {
    fn new(scratch: &Scratch, mib: u64) -> Self {
        let (file, at) = (scratch.join("disk"), scratch.dir("state"));
        fs::File::create(&file).and_then(|file| file.set_len(mib * MIB)).expect("a file");
        // No blocks for root alone, which the serving process is.
        run("mkfs.ext4", ["-q", "-F", "-m", "0"].map(OsStr::new).into_iter().chain([file.as_os_str()]));
        run("mount", ["-o".as_ref(), "loop".as_ref(), file.as_os_str(), at.as_os_str()]);
        Self { at }
    }

    fn remount(&self, how: &str) {
        run("mount", ["-o".as_ref(), format!("remount,{how}").as_ref(), self.at.as_os_str()]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_stops_no_reads_and_is_used_again_when_it_has_room() {
    let scratch = Scratch::new();
    let disk_at = Disk::new(&scratch, 96);
    let (image, _) = image("debian");
    let mounted = mount_limited(&scratch, &image, "mount", "none");
    // All but a few MiB belong to somebody else.
    let ballast = disk_at.at.join("ballast");
    let free = rustix::fs::statvfs(&disk_at.at).expect("its size");
    let free = free.f_bavail * free.f_frsize - 8 * MIB;
    run("fallocate", ["-l".as_ref(), free.to_string().as_ref(), ballast.as_os_str()]);
    assert_reads_right("debian", "on a full disk", &mounted);
    let little = disk(&disk_at.at);
    assert!(little > 0 && little <= 9 * MIB, "{} MiB cached", little / MIB);
    fs::remove_file(&ballast).expect("no ballast");
    let start = Instant::now();
    while disk(&disk_at.at) < 3 * little.max(8 * MIB) {
        assert!(start.elapsed() < PATIENCE, "the room is not used: {} MiB", disk(&disk_at.at) / MIB);
        assert_reads_right("debian", "with room again", &mounted);
    }
    mounted.umount();
}

#[test]
fn a_read_only_disk_is_read_and_what_is_missing_is_served() {
    let scratch = Scratch::new();
    let disk_at = Disk::new(&scratch, 128);
    let (image, _) = image("debian");
    let mounted = Mounted::new(&scratch, &image, "mount");
    // Most of it is missing: more than the serving process keeps in memory, from where it would not go to the disk.
    fs::read(mounted.path().join("usr/bin/perl")).expect("a file");
    mounted.umount();
    disk_at.remount("ro");
    let mounted = Mounted::new(&scratch, &image, "mount");
    assert_reads_right("debian", "on a read-only disk", &mounted);
    disk_at.remount("rw");
    let before = disk(&disk_at.at);
    let start = Instant::now();
    while disk(&disk_at.at) < before + MIB {
        assert!(start.elapsed() < PATIENCE, "nothing is written to a disk that can be written again");
        assert_reads_right("debian", "on a disk that can be written again", &mounted);
    }
    mounted.umount();
}

#[test]
fn a_cache_that_is_removed_or_cut_under_a_mount_is_no_wrong_byte() {
    let scratch = Scratch::new();
    let (image, _) = image("small");
    let mounted = Mounted::new(&scratch, &image, "mount");
    let state = scratch.join("state/blobs");
    let dirs = || fs::read_dir(&state).expect("blobs").flatten().map(|dir| dir.path());
    assert_reads_right("small", "before", &mounted);
    for dir in dirs() {
        fs::File::options().write(true).open(dir.join("data")).and_then(|f| f.set_len(MIB + 1)).expect("a cut");
    }
    assert_reads_right("small", "after the cut", &mounted);
    fs::remove_dir_all(&state).expect("removed");
    assert_reads_right("small", "after the removal", &mounted);
    let log = fs::read_dir(scratch.join("run/logs")).expect("logs").flatten().map(|log| log.path()).next();
    let log = fs::read_to_string(log.expect("a log")).expect("a log");
    assert!(log.contains("was cut"), "{log}");
    mounted.umount();
}

fn list(scratch: &Scratch) -> Value {
    serde_json::from_str(&scratch.lazo_ok(["cache", "ls", "--json"])).expect("JSON")
}

#[test]
fn cache_commands_list_and_remove_what_no_mount_uses() {
    let scratch = Scratch::new();
    assert_eq!(list(&scratch)["blobs"], serde_json::json!([]), "no state directory is an empty cache");
    let ((small, small_manifest), (debian, debian_manifest)) = (image("small"), image("debian"));
    let used = Mounted::new(&scratch, &small, "used");
    let unused = Mounted::new(&scratch, &debian, "unused");
    assert_reads_right("small", "in use", &used);
    fs::read(unused.path().join("usr/bin/perl")).expect("a file");
    unused.umount();

    let listed = list(&scratch);
    let of = |in_use: bool| -> Vec<Value> {
        let blobs = listed["blobs"].as_array().expect("blobs").iter();
        blobs.filter(|blob| blob["in_use"] == in_use).cloned().collect()
    };
    let (of_small, of_debian) = (of(true), of(false));
    assert!(!of_small.is_empty() && !of_debian.is_empty(), "{listed:#}");
    for blob in &of_small {
        // Not all of it need be there: what upper layers hide is never read.
        assert!(blob["complete_percent"].as_u64() > Some(50), "{blob:#}");
        assert!(
            blob["images"].as_array().expect("images").contains(&small_manifest.digest.as_str().into()),
            "{blob:#}"
        );
        assert_eq!(blob["mounts"][0], used.path().to_str().expect("a path"));
    }
    assert!(of_debian.iter().all(|blob| blob["images"] == serde_json::json!([debian_manifest.digest])));
    assert_eq!(listed["disk_bytes"], disk(&scratch.join("state")));
    let table = scratch.lazo_ok(["cache", "ls"]);
    assert!(table.contains(" %") && table.contains("/used"), "{table}");

    let blob = of_small[0]["digest"].as_str().expect("a digest");
    for name in [blob, &small_manifest.digest, &blob[7..20]] {
        let refused = scratch.lazo_err(["cache", "rm", name]);
        assert!(refused.contains("in use by the mount") && refused.contains("/used"), "{refused}");
    }
    for (name, why) in [("sha256:0123456789", "no blob or image"), ("xyz", "no digest"), ("abc", "no digest")] {
        assert!(scratch.lazo_err(["cache", "rm", name]).contains(why), "{name}");
    }
    let removed = scratch.lazo_ok(["cache", "rm", of_debian[0]["digest"].as_str().expect("a digest")]);
    assert!(removed.contains("1 blob"), "{removed}");
    scratch.lazo_ok(["cache", "rm", &debian_manifest.digest]);
    assert!(!scratch.join("state/images").join(&debian_manifest.digest[7..]).exists());
    // Nothing that the mount uses goes.
    let refused = failure_of(&mut scratch.lazo(["cache", "prune", "--to", "1M"]));
    assert!(refused.contains("in use"), "{refused}");
    scratch.lazo_ok(["cache", "prune"]);
    assert_eq!(list(&scratch)["blobs"].as_array().expect("blobs").len(), of_small.len());
    assert_reads_right("small", "after pruning", &used);
    used.umount();
    let pruned: Value = serde_json::from_str(&scratch.lazo_ok(["cache", "prune", "--json"])).expect("JSON");
    assert_eq!((&pruned["disk_bytes"], &pruned["in_use_bytes"]), (&0.into(), &0.into()));
    assert_eq!(pruned["removed"]["blobs"], of_small.len());
    assert_eq!(list(&scratch)["blobs"], serde_json::json!([]));
}

#[test]
fn pruning_to_a_size_takes_the_longest_unused() {
    let scratch = Scratch::new();
    let ((small, small_manifest), (debian, debian_manifest)) = (image("small"), image("debian"));
    for (image, file) in [(&small, "odd/data/noise-524288"), (&debian, "usr/bin/perl")] {
        let mounted = Mounted::new(&scratch, image, "mount");
        fs::read(mounted.path().join(file)).expect("a file");
        mounted.umount();
    }
    let names = || -> Vec<Value> {
        list(&scratch)["blobs"].as_array().expect("blobs").iter().map(|b| b["images"][0].clone()).collect()
    };
    assert_eq!(names().first(), Some(&Value::from(&*debian_manifest.digest)), "the one used last comes first");
    assert_eq!(names().last(), Some(&Value::from(&*small_manifest.digest)));
    let last = list(&scratch)["blobs"][0]["disk_bytes"].as_u64().expect("bytes");
    scratch.lazo_ok(["cache", "prune", "--to", &last.to_string()]);
    assert_eq!(names(), [Value::from(&*debian_manifest.digest)]);
}

#[test]
fn a_state_directory_of_another_version_is_refused() {
    let scratch = Scratch::new();
    let (image, _) = image("small");
    fs::write(scratch.dir("state").join("version"), "99\n").expect("a version");
    let refused = Mounted::failure(&scratch, &image, "mount");
    assert!(refused.contains("99") && refused.contains("--state-dir"), "{refused}");
    assert!(scratch.lazo_err(["cache", "ls"]).contains("99"));
}
