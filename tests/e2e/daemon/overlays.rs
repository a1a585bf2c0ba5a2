//! Writing above an image, other owners, and what files may do.

use std::{
    fs::{self, File},
    mem::MaybeUninit,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use rustix::{
    fs::inotify,
    io::Errno,
    mount::{MountFlags, UnmountFlags},
};

use super::{FILE, errno, mounts_below, small};
use crate::support::{
    Scratch,
    crafted::{self, Layer},
    mounted::{Mounted, is_mounted},
    node::{MODES, Node},
    output_of, stdout_of,
};

/// Reads any file: version 2, effective, CAP_DAC_READ_SEARCH permitted.
const READ_ANYTHING: [u8; 20] = [1, 0, 0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn what_is_written_to_a_directory_stays_there() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let upper = scratch.join("rw/upper");
        let error = Mounted::failure_with(&scratch, &["--rw", "/not/there"], &small(), "mount");
        assert!(error.contains("/not/there"), "{error}");
        let directory = scratch.dir("rw");
        let options = ["--rw", directory.to_str().expect("a plain path")];
        let image = fs::read(Mounted::path(&node.mount(&small(), "plain", &[])).join(FILE)).expect("the file");
        let mounted = node.mount(&small(), "mount", &options);
        let root = mounted.path();
        fs::write(root.join("new"), "new").expect("a new file");
        fs::write(root.join(FILE), "changed").expect("a changed file");
        fs::set_permissions(root.join("odd"), fs::Permissions::from_mode(0o700)).expect("a mode");
        fs::remove_file(root.join("odd/twice")).expect("a file less");
        assert_eq!(fs::read_to_string(root.join(FILE)).expect("the file"), "changed");
        mounted.umount();
        assert_eq!(fs::read_to_string(upper.join("new")).expect("the new file"), "new");
        let again = node.mount(&small(), "mount", &options);
        let root = again.path();
        assert_eq!(fs::read_to_string(root.join(FILE)).expect("the file"), "changed");
        assert_eq!(fs::metadata(root.join("odd")).expect("the directory").mode() & 0o7777, 0o700);
        assert_eq!(errno(File::open(root.join("odd/twice"))), Some(Errno::NOENT));
        let plain = node.mount(&small(), "beside", &[]);
        assert!(fs::read(plain.path().join(FILE)).expect("the file") == image, "{mode}: the image itself is as it was");
        plain.umount();
        again.umount();
        assert!(mounts_below(&scratch.join("run/rw")).is_empty());
    }
}

#[test]
fn what_is_written_to_memory_goes_with_the_mount() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&small(), "mount", &["--rw", "tmpfs:8M"]);
        fs::write(mounted.path().join("new"), vec![1; 4 << 20]).expect("a new file");
        assert_eq!(errno(fs::write(mounted.path().join("more"), vec![1; 8 << 20])), Some(Errno::NOSPC), "{mode}");
        let other = node.mount(&small(), "other", &["--rw", "tmpfs"]);
        assert!(!other.path().join("new").exists(), "mounts do not share what is written");
        other.umount();
        mounted.umount();
        let again = node.mount(&small(), "mount", &["--rw", "tmpfs:8M"]);
        assert!(!again.path().join("new").exists(), "{mode}");
        again.umount();
        assert!(mounts_below(&scratch.join("run/rw")).is_empty());
        assert_eq!(fs::read_dir(scratch.join("run/rw")).expect("the directory").count(), 0, "{mode}");
        node.stop();
    }
}

#[test]
fn owners_can_be_shifted() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let own = node.mount(&small(), "own", &[]);
        let expected = fs::metadata(own.path().join(FILE)).expect("the file");
        let map = ["--map", "0:100000:65536,0:200000:65536"];
        let shifted = node.mount(&small(), "shifted", &map);
        let found = fs::metadata(shifted.path().join(FILE)).expect("the file");
        assert_eq!((found.uid(), found.gid()), (expected.uid() + 100_000, expected.gid() + 200_000), "{mode}");
        let written = node.mount(&small(), "written", &[&map[..], &["--rw", "tmpfs"]].concat());
        let path = written.path().join(FILE);
        File::options().append(true).open(&path).expect("the file");
        let found = fs::metadata(&path).expect("the copy");
        assert_eq!((found.uid(), found.gid()), (expected.uid() + 100_000, expected.gid() + 200_000), "{mode}, copied");
        for mounted in [own, shifted, written] {
            mounted.umount();
        }
        let error = Mounted::failure_with(&scratch, &["--map", "0:0"], &small(), "bad");
        assert!(error.contains("INSIDE:OUTSIDE:COUNT"), "{error}");
        node.stop();
    }
}

/// What a program in a mount prints for user 1000.
fn as_user(mounted: &Mounted<'_>, program: &str, arguments: &[&Path]) -> (bool, String) {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups"]).arg(format!("./{program}")).args(arguments);
    let output = output_of(command.current_dir(mounted.path()));
    (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn rights_of_programs_are_honoured_only_if_asked_for() {
    let scratch = Scratch::new();
    let secret = scratch.join("secret");
    fs::write(&secret, "secret").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("a mode");
    let program = |name: &str| fs::read(Path::new("/usr/bin").join(name)).expect("a program of this machine");
    let layer = Layer::new().device("null", 1, 3).file("whoami", 0o4755, &program("id")).file_with(
        "reader",
        0o755,
        &program("cat"),
        &[("security.capability", &READ_ANYTHING)],
    );
    let image = crafted::convert(&scratch, "rights", vec![layer]);
    for mode in MODES {
        let node = Node::start(&scratch, mode);
        for more in [&[][..], &["--rw", "tmpfs"], &["--standalone"]] {
            let free = node.mount(&image, "free", &[more, &["-o", "suid,dev"]].concat());
            assert_eq!(as_user(&free, "whoami", &["-u".as_ref()]), (true, "0".to_owned()), "{mode} {more:?}");
            assert_eq!(as_user(&free, "reader", &[&secret]), (true, "secret".to_owned()), "{mode} {more:?}");
            File::open(free.path().join("null")).expect("a device");
            let bound = node.mount(&image, "bound", more);
            assert_eq!(as_user(&bound, "whoami", &["-u".as_ref()]), (true, "1000".to_owned()), "{mode} {more:?}");
            assert!(!as_user(&bound, "reader", &[&secret]).0, "{mode} {more:?}");
            assert_eq!(errno(File::open(bound.path().join("null"))), Some(Errno::ACCESS), "{mode} {more:?}");
            let still = node.mount(&image, "still", &[more, &["-o", "suid,noexec"]].concat());
            assert!(!as_user(&still, "whoami", &["-u".as_ref()]).0, "{mode} {more:?}");
            for mounted in [free, bound, still] {
                mounted.umount();
            }
        }
        node.stop();
    }
}

#[test]
fn changes_above_an_image_are_told_to_those_who_watch() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&small(), "mount", &["--rw", "tmpfs"]);
        let file = mounted.path().join("odd/watched");
        fs::write(&file, "before").expect("a file");
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).expect("inotify");
        inotify::add_watch(&watch, &file, inotify::WatchFlags::MODIFY).expect("a watch");
        inotify::add_watch(&watch, file.parent().expect("a directory"), inotify::WatchFlags::CREATE).expect("a watch");
        fs::write(&file, "after").expect("a change");
        fs::write(file.with_file_name("another"), "").expect("a new file");
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&watch, &mut buffer);
        let mut seen = Vec::new();
        while let Ok(event) = reader.next() {
            seen.push((event.events(), event.file_name().map(|name| name.to_string_lossy().into_owned())));
        }
        let modified = |(events, _): &(inotify::ReadFlags, _)| events.contains(inotify::ReadFlags::MODIFY);
        assert!(seen.iter().any(modified), "{mode}: {seen:?}");
        assert!(seen.contains(&(inotify::ReadFlags::CREATE, Some("another".to_owned()))), "{mode}: {seen:?}");
        drop(watch);
        mounted.umount();
    }
}

#[test]
fn others_can_lay_overlays_above() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&small(), "mount", &[]);
        let (upper, work, merged) = (scratch.dir("upper"), scratch.dir("work"), scratch.dir("merged"));
        let options =
            format!("lowerdir={},upperdir={},workdir={}", mounted.path().display(), upper.display(), work.display());
        let options = std::ffi::CString::new(options).expect("no zero");
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), options.as_c_str())
            .expect("an overlay");
        let expected = fs::read(mounted.path().join(FILE)).expect("the file");
        assert!(fs::read(merged.join(FILE)).expect("the file") == expected, "{mode}");
        fs::write(merged.join(FILE), "changed").expect("a change");
        assert_eq!(fs::read(upper.join(FILE)).expect("the copy"), b"changed");
        rustix::mount::unmount(&merged, UnmountFlags::empty()).expect("no overlay");
        stdout_of(scratch.lazo(["umount"]).arg(mounted.path()));
        assert!(!is_mounted(mounted.path()));
        drop(mounted);
        node.stop();
    }
}
