//! System calls say the same in each mode as on other file systems: the kernel's ext4, and its EROFS.

use std::{collections::BTreeMap, fs, os::unix::fs::symlink, path::Path, process::Command, sync::mpsc, time::Duration};

use rustix::{
    fs::{Dev, FileType, Mode, chmodat, lgetxattr, mknodat, setxattr},
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_remount, unmount},
    process::{Signal, kill_process},
};
use serde_json::{Value, json};

use crate::support::{
    Scratch,
    crafted::{self, Layer},
    mounted::Mounted,
    node::Node,
    run, stdout_of,
};

/// Makes calls and says what comes of them.
const OBSERVER: &str = include_str!("semantics/observe.py");

/// root, and one that has no rights.
const USERS: [&str; 2] = ["0", "65534"];

/// Where the three differ, and why that is right: what ext4, EROFS and the FUSE tree say, `None` where it does not matter.
fn exceptions(user: &str, attributed: bool) -> BTreeMap<String, [Option<Value>; 3]> {
    let says = |value: &str| Some(json!(value));
    let mut known = BTreeMap::new();
    let mut add = |name: &str, values| known.insert(name.to_owned(), values);
    // The kernel's EROFS has no direct I/O.
    add("open direct", [None, says("EINVAL"), None]);
    // ext4 counts what it has allocated; EROFS does not look at holes.
    add("blocks sparse", [Some(json!(520)), Some(json!(2056)), Some(json!(520))]);
    // Positions in ext4's directories are hashes.
    for whence in ["data", "hole"] {
        add(&format!("lseek dir {whence} {}", 1_u64 << 40), [None, says("ENXIO"), says("ENXIO")]);
    }
    // Flags that ext4 has, and nobody else.
    for file in ["data", "dir"] {
        add(&format!("ioctl flags {file}"), [None, says("ENOTTY"), says("ENOTTY")]);
    }
    // EROFS knows no fsync; FUSE has nothing to do for it.
    add("fsync", [Some(Value::Null), says("EINVAL"), Some(Value::Null)]);
    if user != "0" {
        // The mount is read-only there, here the file system is, which the kernel looks at before it looks at rights.
        for call in ["open write only", "open read and write", "open append", "open create there", "truncate"] {
            add(call, [says("EACCES"), says("EROFS"), says("EROFS")]);
        }
    }
    if !attributed {
        // Asked once, and for all files: there are none. The price is another word for it.
        let names = ["user.colour", "user.missing", "security.label", "user."];
        let trusted = ["trusted.secret", "trusted.missing"];
        let all = names.iter().chain(trusted.iter().filter(|_| user == "0"));
        for (name, file) in all.flat_map(|name| ["data", "empty", "dir"].map(|file| (name, file))) {
            let usual = says(if *name == "user." { "EINVAL" } else { "ENODATA" });
            add(&format!("getxattr {file} {name}"), [usual.clone(), usual, says("ENOTSUP")]);
        }
    }
    known
}

/// A tree for the observer.
fn make_tree(root: &Path, attributed: bool) {
    let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).expect("a file");
    let data: Vec<u8> = (0..3_u32 << 20).map(|at| (at >> 9 ^ at).to_le_bytes()[0] | 1).collect();
    write("data", &data);
    write("empty", b"");
    write("private", b"x");
    write("setuid", b"x");
    // Holes are found in pieces of a chunk.
    write("sparse", &data[..256 << 10]);
    let sparse = fs::File::options().write(true).open(root.join("sparse")).expect("the file");
    std::os::unix::fs::FileExt::write_all_at(&sparse, &data[..4096], 1 << 20).expect("its end");
    for directory in ["dir", "closed", "sticky"] {
        fs::create_dir(root.join(directory)).expect("a directory");
    }
    for number in 0..300 {
        write(&format!("dir/a file with number {number}"), b"");
    }
    write("closed/x", b"");
    symlink("data", root.join("link")).expect("a link");
    let here = rustix::fs::CWD;
    mknodat(here, root.join("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), rustix::fs::makedev(1, 3))
        .expect("a device");
    mknodat(here, root.join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o644), Dev::default()).expect("a pipe");
    for (name, mode) in [
        ("data", 0o644),
        ("private", 0o600),
        ("setuid", 0o4755),
        ("closed", 0o700),
        ("sticky", 0o1777),
        ("null", 0o666),
        ("dir", 0o755),
        (".", 0o755),
    ] {
        chmodat(here, root.join(name), Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty()).expect("a mode");
    }
    if attributed {
        for (name, value) in [("user.colour", "green"), ("trusted.secret", "s"), ("security.label", "l")] {
            setxattr(root.join("data"), name, value.as_bytes(), rustix::fs::XattrFlags::empty()).expect("an attribute");
        }
    }
}

/// A read-only view of a directory, undone on drop.
struct ReadOnly(std::path::PathBuf);

impl ReadOnly {
    fn of(directory: &Path, at: std::path::PathBuf) -> Self {
        mount_bind(directory, &at).expect("a bind mount");
        rustix::mount::mount_change(&at, MountPropagationFlags::PRIVATE).expect("a mount of its own");
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        mount_remount(&at, flags, c"").expect("a read-only mount");
        Self(at)
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// What a user sees in a tree.
fn observe(root: &Path, user: &str) -> BTreeMap<String, Value> {
    let text = stdout_of(Command::new("python3").args(["-c", OBSERVER, user]).current_dir(root));
    serde_json::from_str(&text).expect("JSON")
}

/// As `lazo mount` takes it: the tree as an image of one layer.
fn image_of(scratch: &Scratch, tree: &Path, name: &str) -> String {
    let tar = scratch.join(&format!("{name}.tar"));
    let options = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse", "--format=pax"];
    run(
        "tar",
        options.into_iter().chain(["-cf", tar.to_str().expect("a path"), "-C", tree.to_str().expect("a path"), "."]),
    );
    crafted::convert(scratch, name, vec![Layer::of_tar(fs::read(tar).expect("the tar"))])
}

#[test]
fn calls_say_the_same_on_every_file_system() {
    for attributed in [true, false] {
        let scratch = Scratch::new();
        let tree = scratch.dir("tree");
        make_tree(&tree, attributed);
        let image = image_of(&scratch, &tree, "image");
        let ext4 = ReadOnly::of(&tree, scratch.dir("ext4"));
        let node = Node::with(&scratch, "prefetch = \"none\"\n");
        let erofs = node.mount(&image, "erofs", &["--mode", "erofs"]);
        let fuse = node.mount(&image, "fuse", &["--mode", "fuse"]);
        let mut wrong = Vec::new();
        for user in USERS {
            let seen = [ext4.0.as_path(), erofs.path(), fuse.path()].map(|root| observe(root, user));
            assert!(seen[0].len() > 150 && seen.iter().all(|other| other.len() == seen[0].len()));
            let known = exceptions(user, attributed);
            for name in seen[0].keys() {
                let found = [0, 1, 2].map(|which| seen[which][name].clone());
                let alike = found.iter().all(|value| *value == found[0]);
                let expected = known.get(name);
                let right = expected.map_or(alike, |expected| {
                    expected.iter().zip(&found).all(|(expected, found)| expected.as_ref().is_none_or(|e| e == found))
                });
                if !right {
                    let text = found.map(|value| value.to_string().chars().take(90).collect::<String>());
                    wrong.push(format!("user {user}, attributes {attributed}, {name}: {}", text.join(" | ")));
                }
            }
        }
        let log = node.log();
        assert!(!log.contains("damaged") && !log.contains("Not Implemented"), "{log}");
        assert!(wrong.is_empty(), "ext4 | EROFS | FUSE:\n{}", wrong.join("\n"));
        erofs.umount();
        fuse.umount();
        drop(ext4);
        node.stop();
    }
}

/// Where no file has attributes, the kernel knows so after the first question: a listing with owners and ACLs costs no request a file.
#[test]
fn attributes_that_no_file_has_cost_one_question() {
    let scratch = Scratch::new();
    let layer = (0..50).fold(Layer::new(), |layer, number| layer.file(&format!("dir/{number}"), 0o644, b""));
    let image = crafted::convert(&scratch, "image", vec![layer]);
    let mounted = Mounted::new(&scratch, &image, "mount");
    let server = mounted.server().expect("its process");
    let dir = mounted.path().join("dir");
    let ask = |path: &Path| lgetxattr(path, "security.selinux", &mut [0; 8][..]).err();
    let list = |path: &Path| rustix::fs::llistxattr(path, &mut [0; 8][..]);
    let paths: Vec<_> =
        fs::read_dir(&dir).expect("the directory").map(|entry| entry.expect("an entry").path()).collect();
    assert!(paths.iter().all(|path| fs::symlink_metadata(path).is_ok()));
    assert_eq!(ask(&paths[0]), Some(Errno::OPNOTSUPP));
    for path in &paths {
        assert_eq!(list(path), Ok(0), "an empty list");
    }
    // From now on nobody answers.
    kill_process(server, Signal::STOP).expect("its process");
    let (tell, told) = mpsc::channel();
    let asking = std::thread::spawn(move || {
        let answers: Vec<_> = paths.iter().map(|path| ask(path)).collect();
        let _ = tell.send(answers);
    });
    let answers = told.recv_timeout(Duration::from_secs(10));
    kill_process(server, Signal::CONT).expect("its process");
    asking.join().expect("no panic");
    assert_eq!(answers.expect("the kernel asks for each file"), vec![Some(Errno::OPNOTSUPP); 50]);
    mounted.umount();
}
