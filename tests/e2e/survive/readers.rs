//! Programs that read a mount, each in its own way, and compare all with the original.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::{
        fs::{FileExt as _, OpenOptionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use rustix::{
    fs::{Advice, OFlags, fadvise},
    process::{Pid, Signal, kill_process_group, test_kill_process_group},
};

use crate::support::{random::Random, served::Original};

const BUFFERED: u64 = 8;
const DIRECT: u64 = 4;
const MAPPED: u64 = 4;
/// Alignment of direct reads.
const BLOCK: usize = 4096;

/// Maps files of the first directory, compares them with those of the second, until there is a file with the third name. In
/// random order, and page by page from the end, each file's pages dropped before.
const MAPPER: &str = r#"
import mmap, os, random, sys
mount, original, stop, names = sys.argv[1:5]
names = open(names).read().split("\n")
count = 0
while not os.path.exists(stop):
    name = random.choice(names)
    with open(os.path.join(mount, name), "rb") as f, open(os.path.join(original, name), "rb") as g:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found, right = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ), g.read()
        for at in range(len(right) // 4096 * 4096, -1, -4096):
            if found[at:at + 4096] != right[at:at + 4096]:
                sys.exit(f"{name}: wrong bytes at {at}")
        found.close()
    count += 1
print(count)
"#;

/// As a container does: a root of its own, and processes that start others from it.
const TREE: &str = "while [ ! -e /proc/lazo-stop ]; do \
    for f in /bin/* /usr/bin/*; do [ -e \"$f\" ] || [ -L \"$f\" ] || exit 3; done; \
    /bin/ls -lR /usr/share/doc /etc | /usr/bin/wc -l || exit 4; \
    /usr/bin/md5sum /usr/bin/[a-m]* | /usr/bin/md5sum || exit 5; \
    done";

/// Sixteen readers and a tree of processes.
pub(super) struct Readers {
    stop: Arc<AtomicBool>,
    stop_file: PathBuf,
    count: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    mappers: Vec<Child>,
    tree: Child,
    _files: tempfile::TempDir,
}

impl Readers {
    /// `direct`: some open files with `O_DIRECT`.
    pub(super) fn start(original: &Original, mount: &Path, direct: bool) -> Self {
        let files = tempfile::tempdir().expect("a directory");
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let names: Arc<Vec<PathBuf>> = Arc::new(original.files().to_vec());
        let threads = (0..BUFFERED + DIRECT).map(|number| {
            let (stop, count, names) = (Arc::clone(&stop), Arc::clone(&count), Arc::clone(&names));
            let (mount, root) = (mount.to_owned(), original.root().to_owned());
            let direct = direct && number >= BUFFERED;
            thread::spawn(move || {
                let mut random = Random::new(number);
                while !stop.load(Ordering::Relaxed) {
                    let name = random.pick(&names);
                    let expected = fs::read(root.join(name)).expect("the original");
                    let path = mount.join(name);
                    let found = if direct { read_direct(&path) } else { read(&path, number % 2 == 0) };
                    let found = found.unwrap_or_else(|error| panic!("{}: {error}", name.display()));
                    assert!(found == expected, "{}: wrong bytes", name.display());
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let threads = threads.collect();
        let (list, stop_file) = (files.path().join("names"), files.path().join("stop"));
        let text: Vec<&str> =
            names.iter().filter_map(|name| name.to_str()).filter(|name| !name.contains('\n')).collect();
        fs::write(&list, text.join("\n")).expect("the list of names");
        let mapper = || {
            let mut command = Command::new("python3");
            command.args(["-c", MAPPER]).arg(mount).arg(original.root()).arg(&stop_file).arg(&list);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("python3")
        };
        let mappers = (0..MAPPED).map(|_| mapper()).collect();
        let mut tree = Command::new("chroot");
        tree.arg(mount).args(["/bin/sh", "-c", TREE]).stdout(Stdio::null()).process_group(0);
        let tree = tree.spawn().expect("chroot");
        Self { stop, stop_file, count, threads, mappers, tree, _files: files }
    }

    /// Files that have been read by those that count at once.
    pub(super) fn count(&self) -> u64 {
        assert!(self.threads.iter().all(|thread| !thread.is_finished()), "a reader has ended early");
        self.count.load(Ordering::Relaxed)
    }

    /// Ends them all, none of which may have failed; how many files were read.
    pub(super) fn stop(mut self) -> u64 {
        assert_eq!(self.tree.try_wait().expect("its state"), None, "the tree of processes has ended early");
        self.stop.store(true, Ordering::Relaxed);
        fs::write(&self.stop_file, "").expect("the file that says stop");
        for thread in self.threads.drain(..) {
            thread.join().expect("a reader");
        }
        let mut count = self.count.load(Ordering::Relaxed);
        for mapper in self.mappers.drain(..) {
            let output = mapper.wait_with_output().expect("a mapper");
            assert!(output.status.success(), "mapped: {}", String::from_utf8_lossy(&output.stderr));
            count += String::from_utf8_lossy(&output.stdout).trim().parse::<u64>().expect("a count");
        }
        count
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = fs::write(&self.stop_file, "");
        let group = Pid::from_child(&self.tree);
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.tree.wait();
        // Those that it had started are gone from the mount when the group is.
        while test_kill_process_group(group).is_ok() {
            thread::yield_now();
        }
        for mapper in &mut self.mappers {
            let _ = mapper.kill();
            let _ = mapper.wait();
        }
    }
}

/// All of a file; cold: the kernel is to ask the daemon for it again.
fn read(path: &Path, cold: bool) -> std::io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if cold {
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut &file, &mut bytes)?;
    Ok(bytes)
}

fn read_direct(path: &Path) -> std::io::Result<Vec<u8>> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag");
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut space = vec![0; (64 << 10) + BLOCK];
    let start = space.as_ptr().align_offset(BLOCK);
    let (mut bytes, mut offset) = (Vec::new(), 0);
    loop {
        let piece = &mut space[start..start + (64 << 10)];
        let length = file.read_at(piece, offset)?;
        if length == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(&piece[..length]);
        offset += length as u64;
    }
}
