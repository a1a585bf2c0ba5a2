//! How a mount behaves: read-only, clean to end, survivable, clear when it cannot be.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    time::Duration,
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};

use crate::support::{
    Corpus, Scratch, converted, failure_of,
    listing::Listing,
    mounted::{Mounted, has_ended, is_mounted, wait_for_end},
};

fn small() -> String {
    format!("oci:{}:lazo", converted("small", "gzip").display())
}

#[test]
fn every_kind_of_write_is_erofs() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&scratch, &small(), "mount");
    let root = mounted.path();
    let file = root.join("odd/twice");
    let attempts: [(&str, std::io::Result<()>); 10] = [
        ("create", File::create(root.join("new")).map(drop)),
        ("write", File::options().write(true).open(&file).map(drop)),
        ("append", File::options().append(true).open(&file).map(drop)),
        ("truncate", File::options().write(true).truncate(true).custom_flags(0).open(&file).map(drop)),
        ("mkdir", fs::create_dir(root.join("new"))),
        ("unlink", fs::remove_file(&file)),
        ("rename", fs::rename(&file, root.join("odd/renamed"))),
        ("chmod", fs::set_permissions(&file, fs::Permissions::from_mode(0o600))),
        ("link", fs::hard_link(&file, root.join("odd/linked"))),
        (
            "setxattr",
            rustix::fs::setxattr(&file, "user.new", b"1", rustix::fs::XattrFlags::empty()).map_err(Into::into),
        ),
    ];
    for (what, result) in attempts {
        assert_eq!(result.err().and_then(|error| error.raw_os_error()), Some(Errno::ROFS.raw_os_error()), "{what}");
    }
    mounted.umount();
}

#[test]
fn umount_ends_the_serving_process() {
    let scratch = Scratch::new();
    for _ in 0..3 {
        let mounted = Mounted::new(&scratch, &small(), "mount");
        let server = mounted.server().expect("a serving process");
        mounted.umount();
        assert!(has_ended(server), "umount returned before the process was gone");
    }
    let error = failure_of(scratch.lazo(["umount"]).arg(scratch.join("mount")));
    assert!(error.contains("mount"), "{error}");
}

#[test]
fn plain_umount_ends_the_serving_process_too() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&scratch, &small(), "mount");
    let server = mounted.server().expect("a serving process");
    crate::support::run("umount", [mounted.path()]);
    wait_for_end(server);
}

#[test]
fn mounts_again_after_a_kill() {
    let scratch = Scratch::new();
    let first = Mounted::new(&scratch, &small(), "mount");
    let expected = Listing::of_directory(first.path());
    let server = first.server().expect("a serving process");
    kill_process(server, Signal::KILL).expect("a kill");
    wait_for_end(server);
    assert!(fs::read_dir(first.path()).is_err(), "a dead mount answers");
    first.umount();
    let second = Mounted::new(&scratch, &small(), "mount");
    expected.assert_same("after a kill", &Listing::of_directory(second.path()), &[]);
    second.umount();
}

#[test]
fn a_kill_in_the_middle_of_reading_spoils_nothing() {
    let scratch = Scratch::new();
    let (image, reference) = (small(), Corpus::get("small").reference());
    for round in 0..4 {
        let mounted = Mounted::new(&scratch, &image, "mount");
        let server = mounted.server().expect("a serving process");
        let reader = std::thread::spawn({
            let root = mounted.path().to_owned();
            move || read_until_error(&root)
        });
        std::thread::sleep(Duration::from_millis(round * 15));
        kill_process(server, Signal::KILL).expect("a kill");
        reader.join().expect("the reader");
        wait_for_end(server);
        mounted.umount();
    }
    let mounted = Mounted::new(&scratch, &image, "mount");
    let corpus = Corpus::get("small");
    let expected = Listing::of_directory(&reference);
    expected.assert_same("after four kills", &Listing::of_directory(mounted.path()), &corpus.exceptions());
    mounted.umount();
}

/// Reads files one after another until the mount dies.
fn read_until_error(root: &Path) {
    for number in 0..400 {
        if fs::read(root.join(format!("usr/lib/file-{number:03}"))).is_err() {
            return;
        }
    }
}

#[test]
fn reads_at_any_offset_and_length() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&scratch, &small(), "mount");
    for name in ["odd/data/text-2625536", "odd/data/sparse-pax-1.0", "odd/data/aligned-piece", "odd/data/noise-4097"] {
        let expected = fs::read(Corpus::get("small").reference().join(name)).expect("the reference");
        let file = File::open(mounted.path().join(name)).expect("the file");
        for (offset, length) in [
            (0, 1),
            (4095, 2),
            (262_143, 2),
            (262_144, 262_144),
            (1, 1 << 20),
            (expected.len().saturating_sub(1), 100),
            (expected.len() + 5, 10),
        ] {
            let mut buffer = vec![0; length];
            let mut got = 0;
            while got < length {
                match file.read_at(&mut buffer[got..], (offset + got) as u64).expect("a read") {
                    0 => break,
                    more => got += more,
                }
            }
            let end = (offset + length).min(expected.len());
            assert!(buffer[..got] == expected[offset.min(end)..end], "{name}: {length} bytes at {offset}");
        }
    }
    mounted.umount();
}

#[test]
fn two_mounts_of_one_image() {
    let scratch = Scratch::new();
    let one = Mounted::new(&scratch, &small(), "one");
    let two = Mounted::new(&scratch, &small(), "two");
    let expected = Listing::of_directory(one.path());
    one.umount();
    expected.assert_same("the other mount", &Listing::of_directory(two.path()), &[]);
    two.umount();
}

#[test]
fn mounts_that_begin_at_the_same_time() {
    const MOUNTS: usize = 4;
    for _ in 0..4 {
        let scratch = Scratch::new();
        std::thread::scope(|scope| {
            for number in 0..MOUNTS {
                let scratch = &scratch;
                let mount = move || Mounted::new(scratch, &small(), &format!("mount-{number}")).umount();
                std::thread::Builder::new().spawn_scoped(scope, mount).expect("a thread");
            }
        });
    }
}

#[test]
fn what_cannot_be_mounted_is_refused_in_words() {
    let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
    let plain = Mounted::failure(&scratch, &corpus.image("gzip"), "plain");
    assert!(plain.contains("lazo convert"), "an ordinary image: {plain}");
    let tag = Mounted::failure(&scratch, &corpus.image("no-such-tag"), "tag");
    assert!(tag.contains("no-such-tag"), "{tag}");
    let nowhere = failure_of(scratch.lazo(["mount", &small()]).arg(scratch.join("not/there")));
    assert!(nowhere.contains("not/there"), "{nowhere}");
    let refused = Mounted::failure(&scratch, "docker://127.0.0.1:9/app:v1", "refused");
    assert!(refused.contains("127.0.0.1:9"), "{refused}");
    let mounted = Mounted::new(&scratch, &small(), "taken");
    failure_of(scratch.lazo(["mount", &small()]).arg(mounted.path()));
    assert!(is_mounted(mounted.path()));
    mounted.umount();
}

#[test]
fn a_mount_that_hangs_ends_when_it_is_told_to_or_nobody_waits_for_it() {
    let scratch = Scratch::new();
    // Takes connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let image = format!("docker://{}/image:tag", silent.local_addr().expect("its address"));
    let dir = scratch.dir("mount");
    let hangs = |arguments: &[&str]| {
        let child = scratch.lazo(["mount", &image]).arg(&dir).args(arguments).spawn().expect("lazo");
        drop(silent.accept().expect("a connection"));
        // The one after it stays, so that the answer is waited for.
        let connection = silent.accept().expect("a second attempt");
        (child, connection)
    };
    let (mut foreground, _connection) = hangs(&["--foreground"]);
    kill_process(Pid::from_child(&foreground), Signal::TERM).expect("it lives");
    assert!(!foreground.wait().expect("its end").success());

    let (mut command, _connection) = hangs(&[]);
    let children = format!("/proc/{0}/task/{0}/children", command.id());
    let server: i32 = fs::read_to_string(children).expect("its children").trim().parse().expect("one of them");
    command.kill().expect("it lives");
    command.wait().expect("its end");
    wait_for_end(Pid::from_raw(server).expect("a process"));
    assert!(!is_mounted(&dir));
}

#[test]
fn a_mount_point_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt as _;
    let scratch = Scratch::new();
    let dir = scratch.join("mount").join(std::ffi::OsStr::from_bytes(b"not\xffutf8 and\na line"));
    fs::create_dir_all(&dir).expect("a directory");
    crate::support::stdout_of(scratch.lazo(["mount", &small()]).arg(&dir));
    assert!(dir.join("odd").is_dir());
    crate::support::stdout_of(scratch.lazo(["umount"]).arg(&dir));
    assert!(!dir.join("odd").exists());
}
