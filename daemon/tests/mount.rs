//! The filesystem on images made here, both called directly and mounted. Mounting needs root and /dev/fuse.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

#[path = "../../storage/tests/support/mod.rs"]
mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use lazo_daemon::{FileSystem, FsError, Ino, MountOptions, Target};
use lazo_format::{Extent, FileType, NodeKind};
use lazo_registry::{ImageRef, Options, Platform, Source};
use lazo_storage::cache::{Cache, CacheOptions};
use lazo_storage::{LazoImage, Reader};
use rustix::fs::{SeekFrom, XattrFlags, getxattr, listxattr, seek, setxattr};
use rustix::io::Errno;
use support::{CHUNK, Parts, ROOT, TreeBuilder, noise};

const HOLE: u64 = 1 << 20;

/// One of everything.
fn tree() -> TreeBuilder {
    let mut tree = TreeBuilder::new();
    let usr = tree.dir(ROOT, "usr");
    let bin = tree.dir(usr, "bin");
    let tool = tree.file(bin, "tool", &noise(1, 5 * CHUNK + 777));
    tree.link(usr, "same", tool);
    tree.add(bin, "link", 0o777, NodeKind::Symlink(b"../bin/tool".as_slice().into()));
    tree.add(usr, "null", 0o666, NodeKind::CharDevice { major: 1, minor: 3 });
    tree.add(usr, "disk", 0o660, NodeKind::BlockDevice { major: 259, minor: 70_000 });
    tree.add(usr, "pipe", 0o600, NodeKind::Fifo);
    tree.add(usr, "socket", 0o755, NodeKind::Socket);
    let file = tree.file(usr, "attributed", b"x");
    tree.xattr(file, "user.colour", b"green");
    tree.file(usr, "empty", b"");
    let (head, tail) = (tree.store(&noise(2, 4096)), tree.store(&noise(3, 4096)));
    let extents = vec![head, Extent { length: HOLE, location: None }, tail];
    tree.add(usr, "sparse", 0o644, NodeKind::Regular { size: HOLE + 8192, extents });
    let many = tree.dir(ROOT, "many");
    for number in 0..3000 {
        tree.file(many, &format!("file-{number:04}"), b"");
    }
    tree
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, parts: &Parts) -> ImageRef {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(parts.write(&self.join("layout"))).0
    }

    async fn open(&self, reference: &ImageRef) -> FileSystem {
        let source = Source::open(reference, &Options::default()).await.unwrap();
        let image = LazoImage::open(&source, &self.join("state"), &Platform::host()).await.unwrap();
        let runtime = tokio::runtime::Handle::current();
        let reader = Reader::new(lazo_storage::Parts::new(
            Arc::clone(image.index()),
            lazo_storage::of_image(&source).unwrap(),
            Cache::open(&self.join("state"), CacheOptions::default(), Arc::default()).unwrap(),
            runtime,
        ));
        FileSystem::new(image, Arc::new(reader))
    }
}

/// A mount served by a thread of this process; unmounted when it is dropped.
struct Mount {
    path: PathBuf,
    run_dir: PathBuf,
    thread: Option<JoinHandle<lazo_daemon::Result<()>>>,
}

impl Mount {
    fn new(place: &Place, image: ImageRef) -> Self {
        let path = place.join("mount");
        fs::create_dir_all(&path).unwrap();
        let options = MountOptions::new(image, path.clone(), place.join("state"), place.join("run"));
        let (tell, ready) = mpsc::channel();
        let thread =
            std::thread::spawn(move || lazo_daemon::serve(&options, || tell.send(()).map_err(io::Error::other)));
        if ready.recv().is_err() {
            panic!("no mount: {:?}", thread.join().unwrap());
        }
        Self { path, run_dir: place.join("run"), thread: Some(thread) }
    }

    fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    fn end(mut self) {
        rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::empty()).unwrap();
        self.thread.take().unwrap().join().unwrap().unwrap();
        assert_eq!(fs::read_dir(self.run_dir.join("mounts")).unwrap().count(), 0, "the record goes with the mount");
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.thread.is_some() {
            let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn raw(errno: Errno) -> Option<i32> {
    Some(errno.raw_os_error())
}

#[test]
fn a_mount_shows_what_the_image_holds() {
    let place = Place::new();
    let mount = Mount::new(&place, place.write(&tree().build()));

    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = table.lines().find(|l| l.contains(mount.path.to_str().unwrap())).unwrap();
    assert!(line.starts_with("lazo\\043oci:") && line.contains(" fuse.lazo ro,"), "{line}");

    let tool = fs::metadata(mount.join("usr/bin/tool")).unwrap();
    assert_eq!((tool.uid(), tool.gid(), tool.mode(), tool.nlink()), (1000, 70_000, 0o100_644, 2));
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (1_700_000_000, 123_456_789));
    assert_eq!(tool.ino(), fs::metadata(mount.join("usr/same")).unwrap().ino());
    assert!(fs::read(mount.join("usr/same")).unwrap() == noise(1, 5 * CHUNK + 777));
    assert_eq!(fs::read_link(mount.join("usr/bin/link")).unwrap(), Path::new("../bin/tool"));
    assert_eq!(fs::metadata(mount.join("usr/bin/link")).unwrap().ino(), tool.ino());
    assert_eq!(fs::metadata(mount.join("usr/null")).unwrap().rdev(), 0x103);
    let disk = fs::metadata(mount.join("usr/disk")).unwrap();
    assert!(disk.file_type().is_block_device());
    assert_eq!((rustix::fs::major(disk.rdev()), rustix::fs::minor(disk.rdev())), (259, 70_000));
    assert!(fs::metadata(mount.join("usr/pipe")).unwrap().file_type().is_fifo());
    assert!(fs::metadata(mount.join("usr/socket")).unwrap().file_type().is_socket());
    assert_eq!(fs::read(mount.join("usr/empty")).unwrap(), b"");

    let mut value = [0; 100];
    let path = mount.join("usr/attributed");
    assert_eq!(getxattr(&path, "user.colour", &mut value).unwrap(), 5);
    assert_eq!(&value[..5], b"green");
    assert_eq!(getxattr(&path, "user.taste", &mut value), Err(Errno::NODATA));
    assert_eq!(getxattr(&path, "user.colour", &mut value[..4]), Err(Errno::RANGE));
    assert_eq!(listxattr(&path, &mut value).unwrap(), b"user.colour\0".len());
    assert_eq!(setxattr(&path, "user.taste", b"", XattrFlags::empty()), Err(Errno::ROFS));

    assert_eq!(errno(fs::metadata(mount.join("usr/nothing"))), raw(Errno::NOENT));
    assert_eq!(errno(fs::metadata(mount.join("usr/nothing"))), raw(Errno::NOENT), "and when the kernel remembers it");
    assert_eq!(errno(fs::metadata(mount.join(&"x".repeat(256)))), raw(Errno::NAMETOOLONG));
    assert_eq!(errno(File::create(mount.join("new"))), raw(Errno::ROFS));

    let mut names: Vec<_> = fs::read_dir(mount.join("many")).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let expected: Vec<_> = (0..3000).map(|n| format!("file-{n:04}").into()).collect::<Vec<std::ffi::OsString>>();
    assert_eq!(names, expected);
    let space = rustix::fs::statvfs(&mount.path).unwrap();
    assert_eq!((space.f_bfree, space.f_files, space.f_namemax), (0, 3014, 255));
    mount.end();
}

#[test]
fn holes_are_zeros_that_lseek_finds() {
    let place = Place::new();
    let mount = Mount::new(&place, place.write(&tree().build()));
    let file = File::open(mount.join("usr/sparse")).unwrap();
    let mut content = vec![1; 8192 + usize::try_from(HOLE).unwrap()];
    file.read_exact_at(&mut content, 0).unwrap();
    let end = content.len() - 4096;
    assert!(content[..4096] == noise(2, 4096) && content[end..] == noise(3, 4096));
    assert!(content[4096..end].iter().all(|&b| b == 0));
    for (from, expected) in [
        (SeekFrom::Data(0), Ok(0)),
        (SeekFrom::Hole(0), Ok(4096)),
        (SeekFrom::Data(4096), Ok(4096 + HOLE)),
        (SeekFrom::Data(5000), Ok(4096 + HOLE)),
        (SeekFrom::Hole(4096 + HOLE), Ok(8192 + HOLE)),
        (SeekFrom::Data(8192 + HOLE), Err(Errno::NXIO)),
    ] {
        assert_eq!(seek(&file, from), expected, "{from:?}");
    }
    drop(file);
    mount.end();
}

#[test]
fn a_damaged_chunk_is_an_error_and_its_neighbours_are_not() {
    let place = Place::new();
    let mut parts = tree().build();
    let bad = parts.contents.chunks[2].compressed_offset;
    parts.blob[usize::try_from(bad).unwrap() + 100] ^= 1;
    // The layout's digests fit the damaged blob, and so does the tree: only the chunk's own digest tells.
    let digest = lazo_format::Digest::sha256_of(&parts.blob);
    let tag = parts.contents.blobs[0].digest.hex();
    parts.contents.blobs[0].digest = digest;
    let at = parts.bootstrap.windows(64).position(|w| w == tag.as_bytes()).unwrap();
    parts.bootstrap[at..at + 64].copy_from_slice(digest.hex().as_bytes());
    fix_checksum(&mut parts.bootstrap);
    let mount = Mount::new(&place, place.write(&parts));
    let file = File::open(mount.join("usr/bin/tool")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let expected = noise(1, 5 * CHUNK + 777);
    let mut buf = vec![0; CHUNK];
    file.read_exact_at(&mut buf, 4 * CHUNK as u64).unwrap();
    assert!(buf == expected[4 * CHUNK..5 * CHUNK]);
    assert_eq!(errno(file.read_exact_at(&mut buf, 2 * CHUNK as u64)), raw(Errno::IO));
    assert_eq!(errno(file.read_exact_at(&mut buf[..1], 3 * CHUNK as u64 - 1)), raw(Errno::IO));
    file.read_exact_at(&mut buf, 0).unwrap();
    assert!(buf == expected[..CHUNK]);
    drop(file);
    mount.end();
}

/// The superblock's CRC32C, over its block with the field itself as zero.
fn fix_checksum(bootstrap: &mut [u8]) {
    bootstrap[1028..1032].fill(0);
    let sum = bootstrap[1024..4096].iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0x82F6_3B78 & (sum & 1).wrapping_neg()))
    });
    bootstrap[1028..1032].copy_from_slice(&sum.to_le_bytes());
}

#[test]
fn a_mount_point_must_be_a_directory_and_free() {
    let place = Place::new();
    let image = place.write(&tree().build());
    fs::write(place.join("file"), "").unwrap();
    let attempt = |path: PathBuf| lazo_daemon::check_mount_point(&path).unwrap_err().to_string();
    assert!(attempt(place.join("file")).contains("not a directory"));
    assert!(attempt(place.join("nothing")).contains("no such directory"));
    let mount = Mount::new(&place, image);
    assert!(attempt(mount.path.clone()).contains("already"));
    let error = lazo_daemon::umount(&place.join("state"), &place.join("run"), false).unwrap_err();
    assert!(matches!(error, lazo_daemon::Error::NotMounted { .. }), "{error:?}");
    let open = File::open(mount.join("usr/empty")).unwrap();
    let error = lazo_daemon::umount(&mount.path, &place.join("run"), false).unwrap_err();
    assert!(matches!(error, lazo_daemon::Error::Busy { .. }), "{error:?}");
    drop(open);
    mount.end();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_path_is_found_for_the_log() {
    let place = Place::new();
    let (reference, _) = tree().build().write(&place.join("layout")).await;
    let fs = place.open(&reference).await;
    let find = |path: &str| {
        path.split('/')
            .filter(|part| !part.is_empty())
            .fold(Ino(1), |directory, name| fs.lookup(directory, name.as_bytes()).unwrap().unwrap().ino)
    };
    for path in ["/", "/usr", "/usr/bin/link", "/many/file-2999"] {
        assert_eq!(fs.path_of(Target::File(find(path)), 0).as_deref(), Some(path));
    }
    assert_eq!(fs.path_of(Target::File(Ino(1 << 40)), 0), None);
}

/// Whatever a bootstrap holds whose digest is right: it is refused, or every call on its tree answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_bootstrap_is_refused_or_served_without_a_fault() {
    let mut tree = TreeBuilder::new();
    let dir = tree.dir(ROOT, "dir");
    let file = tree.file(dir, "file", &noise(1, 20_000));
    tree.xattr(file, "user.a", b"b");
    tree.add(dir, "link", 0o777, NodeKind::Symlink(b"file".as_slice().into()));
    let original = tree.build();
    let (mut opened, mut refused) = (0, 0);
    for round in 0..100_u64 {
        let place = Place::new();
        let mut parts = Parts {
            blob: original.blob.clone(),
            contents: original.contents.clone(),
            bootstrap: original.bootstrap.clone(),
            ..TreeBuilder::new().build()
        };
        let random = noise(round + 7, 16);
        for change in random.chunks(4).take(1 + usize::from(random[0] % 4)) {
            // Behind the superblock, most of which is checked when the image is opened.
            let at = 1152 + usize::from(u16::from_le_bytes([change[0], change[1]])) % (parts.bootstrap.len() - 1152);
            parts.bootstrap[at] = change[2];
        }
        fix_checksum(&mut parts.bootstrap);
        let (reference, _) = parts.write(&place.join("layout")).await;
        let source = Source::open(&reference, &Options::default()).await.unwrap();
        let Ok(image) = LazoImage::open(&source, &place.join("state"), &Platform::host()).await else {
            refused += 1;
            continue;
        };
        let runtime = tokio::runtime::Handle::current();
        let reader = Reader::new(lazo_storage::Parts::new(
            Arc::clone(image.index()),
            lazo_storage::of_image(&source).unwrap(),
            Cache::open(&place.join("state"), CacheOptions::default(), Arc::default()).unwrap(),
            runtime,
        ));
        opened += 1;
        assert_eq!(walk(&FileSystem::new(image, Arc::new(reader))).await, 0, "faults in round {round}");
    }
    assert!(opened > 5 && refused > 25, "{opened} opened, {refused} refused: the damage hits nothing, or all");
}

/// Calls everything on everything within reach; the number of faults.
async fn walk(fs: &FileSystem) -> u32 {
    let mut faults = 0;
    let mut check = |result: Result<(), FsError>| {
        if let Err(error) = result {
            faults += u32::from(error.is_fault());
        }
    };
    let mut todo = vec![Ino(1)];
    let mut plans = Vec::new();
    // A damaged directory may lead in a circle.
    for _ in 0..200 {
        let Some(ino) = todo.pop() else { break };
        check(fs.attributes(ino).map(drop));
        check(fs.read_link(ino).map(drop));
        check(fs.xattr_names(ino, || true).map(drop));
        check(fs.xattr(ino, b"user.a").map(drop));
        check(fs.seek(ino, 0, true).map(drop));
        check(fs.plan_read(ino, 0, 1 << 20).map(|plan| plans.push(plan)));
        let mut listed = Vec::new();
        check(fs.read_dir(ino, 0, |entry| {
            listed.push((entry.name.to_vec(), entry.ino, entry.file_type));
            Ok(listed.len() < 100)
        }));
        for (name, ino, kind) in listed {
            check(fs.lookup(ino, OsStr::from_bytes(&name).as_bytes()).map(drop));
            if name != b"." && name != b".." && (kind == FileType::Directory || todo.len() < 50) {
                todo.push(ino);
            }
        }
        let _ = fs.path_of(Target::File(ino), 0);
    }
    for plan in plans.iter().take(4) {
        match fs.read(plan).await {
            Ok(bytes) => assert_eq!(bytes.len(), plan.length()),
            Err(error) => faults += u32::from(error.is_fault()),
        }
    }
    faults
}
