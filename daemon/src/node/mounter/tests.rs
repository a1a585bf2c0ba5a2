//! Really mounts: needs root.

mod overlays;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lazo_format::{
    BLOCK_SIZE, BlobIndex, Device, DeviceAddr, Digest, Extent, Meta, Node, NodeId, NodeKind, Tree, write_bootstrap,
};
use rustix::mount::UnmountFlags;

use super::*;

/// Not a test: the mounter's process of the other tests, which start this program again for it.
#[test]
#[ignore = "the process of other tests"]
fn process() {
    crate::node::harden::mounter_thread();
    // In place of a program of ours that runs `run_user_namespace`.
    let program = ["unshare", "--user", "sh", "-c", "echo; exec cat"];
    super::process::run(program.map(Into::into).to_vec()).unwrap();
}

/// A run directory, a place for users' mounts and files, and a mounter.
struct Rig {
    dir: tempfile::TempDir,
    mounter: Mounter,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["run", "user", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mounter = start(&dir.path().join("run"));
        Self { dir, mounter }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn user(&self, name: &str) -> PathBuf {
        let path = self.path("user").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    async fn order(&self, order: Order) -> Result<(Answer, Option<OwnedFd>), Refusal> {
        tokio::time::timeout(Duration::from_secs(60), self.mounter.order(order)).await.expect("a reply")
    }

    async fn done(&self, order: Order) {
        let (answer, file) = self.order(order).await.unwrap();
        assert_eq!(answer, Answer::Done);
        assert!(file.is_none());
    }

    async fn refused(&self, order: Order) -> Refusal {
        self.order(order).await.unwrap_err()
    }

    /// An image with a file a device, `0` and so on, each of one block of its own byte; mounted at `run/images/NAME`.
    async fn image(&self, name: &str, devices: usize) -> PathBuf {
        let order = self.write_image(name, devices);
        let Order::Erofs { path, .. } = &order else { unreachable!() };
        let path = path.clone();
        let (answer, file) = self.order(order).await.unwrap();
        let status = fs::metadata(&path).unwrap();
        let (major, minor) = (rustix::fs::major(status.dev()), rustix::fs::minor(status.dev()));
        let Answer::Mounted { device, sysfs: Some(sysfs) } = answer else { panic!("{answer:?}") };
        assert_eq!(device, format!("{major}:{minor}"));
        assert!(Path::new("/sys/fs").join(sysfs).exists());
        assert!(file.is_none());
        path
    }

    fn write_image(&self, name: &str, count: usize) -> Order {
        let mut nodes = vec![Node { meta: meta(0o755), kind: NodeKind::Fifo }];
        let (mut names, mut devices, mut paths) = (BTreeMap::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let at = Some((BlobIndex(u16::try_from(number).unwrap()), DeviceAddr(0)));
            let extents = vec![Extent { length: BLOCK_SIZE, location: at }];
            let id = NodeId(u32::try_from(nodes.len()).unwrap());
            nodes.push(Node { meta: meta(0o4755), kind: NodeKind::Regular { size: BLOCK_SIZE, extents } });
            names.insert(number.to_string().into_bytes().into_boxed_slice(), id);
            devices.push(Device { digest: Digest::sha256_of(number.to_string().as_bytes()), size: BLOCK_SIZE });
            let path = self.path("state").join(format!("{name}.{number}"));
            fs::write(&path, [content(number); 4096]).unwrap();
            paths.push(path);
        }
        let null = NodeId(u32::try_from(nodes.len()).unwrap());
        nodes.push(Node { meta: meta(0o666), kind: NodeKind::CharDevice { major: 1, minor: 3 } });
        names.insert(b"null".as_slice().into(), null);
        nodes[0].kind = NodeKind::Directory(names);
        let tree = Tree { nodes, root: NodeId(0), devices }.validate().unwrap();
        let bootstrap = self.path("state").join(format!("{name}.bootstrap"));
        fs::write(&bootstrap, write_bootstrap(&tree)).unwrap();
        Order::Erofs { path: self.path("run/images").join(name), bootstrap, devices: paths, directio: false }
    }

    fn mounted_below(&self) -> usize {
        let table = fs::read("/proc/self/mountinfo").unwrap();
        crate::kernel::table::lines(&table).filter(|line| line.path.starts_with(self.dir.path())).count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let table = fs::read("/proc/self/mountinfo").unwrap();
        for line in crate::kernel::table::lines(&table).filter(|line| line.path.starts_with(self.dir.path())) {
            let _ = rustix::mount::unmount(&line.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    }
}

fn start(run_dir: &Path) -> Mounter {
    let own = std::env::current_exe().unwrap().into_os_string();
    let arguments = ["--exact", "--ignored", "--nocapture", "node::mounter::tests::process"];
    let program: Vec<_> = std::iter::once(own).chain(arguments.map(Into::into)).collect();
    Starting::spawn_program(&program, run_dir).unwrap().connect().unwrap()
}

fn meta(permissions: u16) -> Meta {
    Meta { permissions, uid: 1000, gid: 2000, ..Meta::default() }
}

fn content(number: usize) -> u8 {
    u8::try_from(number % 251).unwrap()
}

fn check_content(dir: &Path, count: usize) {
    for number in 0..count {
        assert_eq!(fs::read(dir.join(number.to_string())).unwrap(), [content(number); 4096], "file {number}");
    }
}

fn unmount(path: &Path) -> Order {
    Order::Unmount { path: path.to_owned(), lazy: false }
}

fn clone(from: &Path, to: &Path) -> Order {
    Order::Clone { from: from.to_owned(), to: to.to_owned(), how: How::default() }
}

#[tokio::test]
async fn an_image_and_its_clones() {
    let rig = Rig::new();
    let image = rig.image("1", 3).await;
    check_content(&image, 3);
    let (one, two) = (rig.user("one"), rig.user("two"));
    rig.done(clone(&image, &one)).await;
    rig.done(clone(&image, &two)).await;
    check_content(&one, 3);
    assert_eq!(fs::metadata(&one).unwrap().dev(), fs::metadata(&image).unwrap().dev(), "one page cache for all");
    assert_eq!(fs::metadata(one.join("0")).unwrap().mode(), 0o104_755);

    let (answer, _) = rig.order(Order::Mounts { paths: vec![one.clone()] }).await.unwrap();
    let Answer::Mounts(table) = answer else { panic!("{answer:?}") };
    assert_eq!(table.iter().map(|entry| &entry.path).collect::<Vec<_>>(), [&image, &one]);
    assert!(table.iter().all(|entry| entry.fs_type == "erofs" && entry.source.ends_with("/1.bootstrap")), "{table:?}");

    let held = File::open(one.join("1")).unwrap();
    let refusal = rig.refused(unmount(&one)).await;
    assert!(refusal.busy, "{refusal:?}");
    rig.done(unmount(&two)).await;
    // The image is there as long as somebody has a clone of it.
    rig.done(unmount(&image)).await;
    assert!(!image.exists(), "its directory has gone too");
    rig.done(Order::Unmount { path: one.clone(), lazy: true }).await;
    assert_eq!(fs::read_dir(&one).unwrap().count(), 0);
    let mut text = Vec::new();
    (&held).read_to_end(&mut text).unwrap();
    assert_eq!(text, [1; 4096]);
    assert!(!rig.refused(unmount(&one)).await.busy);
    assert_eq!(rig.mounted_below(), 0);
}

#[tokio::test]
async fn images_of_many_devices() {
    let rig = Rig::new();
    for (name, count) in [("many", 200), ("most", 4000)] {
        let image = rig.image(name, count).await;
        check_content(&image, count);
        rig.done(unmount(&image)).await;
    }
    let mut order = rig.write_image("short", 3);
    let Order::Erofs { devices, .. } = &mut order else { unreachable!() };
    devices.pop();
    let refusal = rig.refused(order).await;
    assert_eq!(refusal.errno, Some(rustix::io::Errno::INVAL.raw_os_error()), "{refusal}");
    assert_eq!(rig.mounted_below(), 0);
}

#[tokio::test]
async fn long_paths_and_direct_reads() {
    let rig = Rig::new();
    let mut order = rig.write_image("1", 2);
    let Order::Erofs { path, devices, directio, .. } = &mut order else { unreachable!() };
    let long = rig.path("state").join("x".repeat(200)).join("y, z".repeat(50));
    fs::create_dir_all(&long).unwrap();
    fs::rename(&devices[1], long.join("device")).unwrap();
    devices[1] = long.join("device");
    *directio = true;
    let path = path.clone();
    rig.order(order).await.unwrap();
    check_content(&path, 2);
}

#[tokio::test]
async fn a_fuse_mount_comes_with_its_file() {
    let rig = Rig::new();
    for (name, tree, kind) in [("blobs", false, "fuse.lazo"), ("images/1", true, "fuse.lazo")] {
        let path = rig.path("run").join(name);
        let source = format!("lazo#{}é", "x".repeat(249));
        let (answer, file) = rig.order(Order::Fuse { path: path.clone(), source, tree }).await.unwrap();
        let Answer::Mounted { device, .. } = answer else { panic!("{answer:?}") };
        let mut init = [0; 8192];
        assert!(rustix::io::read(file.as_ref().unwrap(), &mut init).unwrap() >= 80);
        assert_eq!(init[4..8], 26_u32.to_le_bytes(), "FUSE_INIT");

        rig.done(Order::RaiseReadAhead { path: path.clone(), kib: 1024 }).await;
        let set = fs::read_to_string(format!("/sys/class/bdi/{device}/read_ahead_kb")).unwrap();
        assert_eq!(set.trim(), "1024");
        let (answer, _) = rig.order(Order::Mounts { paths: Vec::new() }).await.unwrap();
        let Answer::Mounts(table) = answer else { panic!("{answer:?}") };
        let entry = table.iter().find(|entry| entry.path == path).unwrap();
        assert_eq!((entry.fs_type.as_str(), &entry.device, entry.source.len()), (kind, &device, 254));

        // The mounter holds no copy: with ours the connection ends.
        drop(file);
        assert_eq!(fs::read_dir(&path).unwrap_err().raw_os_error(), Some(107), "ENOTCONN");
        rig.done(unmount(&path)).await;
    }
}

#[tokio::test]
async fn files_of_the_run_directory_are_opened() {
    let rig = Rig::new();
    fs::create_dir(rig.path("run/blobs")).unwrap();
    fs::write(rig.path("run/blobs/1-0"), "data").unwrap();
    fs::write(rig.path("state/secret"), "data").unwrap();
    std::os::unix::fs::symlink(rig.path("state/secret"), rig.path("run/blobs/link")).unwrap();
    let open = |path: &str| Order::Open { path: rig.path(path) };
    let (answer, file) = rig.order(open("run/blobs/1-0")).await.unwrap();
    assert_eq!(answer, Answer::Done);
    let mut text = String::new();
    File::from(file.unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "data");
    for path in ["state/secret", "run/blobs/link", "run/blobs/../../state/secret", "run/blobs", "run", "run/none"] {
        rig.refused(open(path)).await;
    }
}

#[tokio::test]
async fn this_kernel_reads_past_a_device_as_an_error() {
    let rig = Rig::new();
    let (answer, _) = rig.order(Order::Probe { dir: rig.path("state") }).await.unwrap();
    assert_eq!(answer, Answer::Probed { erofs: Ok(()) });
    assert_eq!(fs::read_dir(rig.path("state")).unwrap().count(), 0, "nothing is left");
    let (answer, _) = rig.order(Order::Probe { dir: "/dev/shm".into() }).await.unwrap();
    let Answer::Probed { erofs: Err(reason) } = answer else { panic!("{answer:?}") };
    assert!(reason.contains("mount erofs"), "{reason}");
}

#[tokio::test]
async fn hostile_orders_are_refused() {
    let rig = Rig::new();
    let image = rig.image("1", 1).await;
    let user = rig.user("one");
    fs::write(rig.path("user/file"), "").unwrap();
    std::os::unix::fs::symlink(&user, rig.path("user/link")).unwrap();
    let plain = rig.path("run/images/plain");
    fs::create_dir(&plain).unwrap();

    let to = [
        ("user/link", "symbolic link"),
        ("user/file", "Not a directory"),
        ("user/none", "No such file"),
        ("user/../user/one", "without \"..\""),
        ("run", "own mounts"),
        ("run/images/1", "own mounts"),
    ];
    for (path, reason) in to {
        let refusal = rig.refused(clone(&image, &rig.path(path))).await;
        assert!(refusal.message.contains(reason), "{refusal}");
    }
    for from in [plain.clone(), rig.path("run"), "/".into(), "proc".into(), rig.path("run/images/../images/1")] {
        rig.refused(clone(&from, &user)).await;
    }
    for path in [rig.path("user/one"), "/".into(), rig.path("run"), rig.path("run/images/../../user/one")] {
        let fuse = Order::Fuse { path: path.clone(), source: "x".into(), tree: true };
        rig.refused(fuse).await;
        let Order::Erofs { bootstrap, devices, .. } = rig.write_image("2", 1) else { unreachable!() };
        rig.refused(Order::Erofs { path, bootstrap, devices, directio: false }).await;
    }
    let path = rig.path("run/images/2");
    for (bootstrap, devices) in [
        ("/dev/null", vec!["/dev/null".into()]),
        ("/etc/passwd", vec![]),
        ("/etc/passwd", vec!["/proc/self/fd/0".into()]),
        ("/etc/passwd", vec!["/etc/passwd".into(); 4097]),
    ] {
        rig.refused(Order::Erofs { path: path.clone(), bootstrap: bootstrap.into(), devices, directio: false }).await;
    }
    for path in ["/proc", "/", "proc", "/nowhere", &"/x".repeat(5000)] {
        let refusal = rig.refused(unmount(Path::new(path))).await;
        assert!(!refusal.busy, "{refusal}");
        rig.refused(Order::RaiseReadAhead { path: path.into(), kib: 1024 }).await;
    }
    rig.refused(Order::RaiseReadAhead { path: image.clone(), kib: u32::MAX }).await;
    rig.done(unmount(&image)).await;
    assert_eq!(rig.mounted_below(), 0);
}

#[tokio::test]
async fn orders_run_side_by_side() {
    let rig = Arc::new(Rig::new());
    let image = rig.image("1", 1).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..500 {
        let (rig, image) = (Arc::clone(&rig), image.clone());
        tasks.spawn(async move {
            let path = rig.user(&number.to_string());
            rig.done(clone(&image, &path)).await;
            check_content(&path, 1);
            rig.done(unmount(&path)).await;
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(rig.mounted_below(), 1);
}

#[tokio::test]
async fn a_killed_mounter_is_noticed() {
    let rig = Rig::new();
    let image = rig.image("1", 1).await;
    // The next mounter waits for this one.
    let second = Arc::new(start(&rig.path("run")));
    let (mounter, order) = (Arc::clone(&second), clone(&image, &rig.user("one")));
    let mut cloned = tokio::spawn(async move { mounter.order(order).await });
    assert!(
        tokio::time::timeout(Duration::from_millis(200), &mut cloned).await.is_err(),
        "two mounters work at a time"
    );
    assert_eq!(rig.mounted_below(), 1);
    rustix::process::kill_process(rig.mounter.process(), rustix::process::Signal::KILL).unwrap();
    rig.mounter.ended().await;
    let refusal = rig.refused(unmount(&image)).await;
    assert!(refusal.message.contains("has ended"), "{refusal}");
    cloned.await.unwrap().unwrap();
    for path in [rig.user("one"), image] {
        second.order(unmount(&path)).await.unwrap();
    }
    assert_eq!(rig.mounted_below(), 0);
    // A mounter ends with the worker.
    let process = second.process();
    drop(second);
    while rustix::process::test_kill_process(process).is_ok() {
        tokio::task::yield_now().await;
    }
}

fn run(path: &Path) -> std::io::Result<std::process::Output> {
    std::process::Command::new(path).output()
}

#[tokio::test]
async fn restricted_clones() {
    let rig = Rig::new();
    let image = rig.image("1", 1).await;
    let (plain, nodev, noexec) = (rig.user("plain"), rig.user("nodev"), rig.user("noexec"));
    rig.done(clone(&image, &plain)).await;
    let how = How { nodev: true, nosuid: true, ..How::default() };
    rig.done(Order::Clone { from: image.clone(), to: nodev.clone(), how }).await;
    let how = How { noexec: true, ..How::default() };
    rig.done(Order::Clone { from: image.clone(), to: noexec.clone(), how }).await;
    assert!(File::open(plain.join("null")).is_ok());
    assert_eq!(File::open(nodev.join("null")).unwrap_err().raw_os_error(), Some(13), "EACCES");
    assert_eq!(run(&plain.join("0")).unwrap_err().raw_os_error(), Some(8), "ENOEXEC: it is no program");
    assert_eq!(run(&noexec.join("0")).unwrap_err().raw_os_error(), Some(13), "EACCES");
    let options = |path: &Path| rustix::fs::statvfs(path).unwrap().f_flag;
    use rustix::fs::StatVfsMountFlags as Flags;
    assert!(options(&nodev).contains(Flags::NOSUID) && !options(&plain).contains(Flags::NOSUID));
    assert!([&plain, &nodev, &noexec].iter().all(|path| options(path).contains(Flags::RDONLY)));
}

#[tokio::test]
async fn mapped_clones() {
    let rig = Rig::new();
    let image = rig.image("1", 1).await;
    let owner = |path: &Path| fs::metadata(path).map(|status| (status.uid(), status.gid())).unwrap();
    assert_eq!(owner(&image.join("0")), (1000, 2000));
    for (map, shown) in [
        ("0:100000:65536", (101_000, 102_000)),
        ("0:100000:65536", (101_000, 102_000)),
        ("0:0:1+1000:5:1,0:300000:4294", (5, 302_000)),
        ("0:7:1", (65534, 65534)),
    ] {
        let to = rig.user("one");
        let how = How { map: Some(map.parse().unwrap()), ..How::default() };
        rig.done(Order::Clone { from: image.clone(), to: to.clone(), how }).await;
        assert_eq!(owner(&to.join("0")), shown, "{map}");
        check_content(&to, 1);
        rig.done(unmount(&to)).await;
    }
}
