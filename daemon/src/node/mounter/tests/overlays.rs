//! Writable mounts.

use super::*;

/// Who asks, unless a test says otherwise.
const USER: u32 = 1234;

fn overlay(rig: &Rig, lower: &Path, to: &Path, writable: Writable, map: Option<&str>) -> Order {
    let how = How { nosuid: true, map: map.map(|map| map.parse().unwrap()), ..How::default() };
    let parts = rig.path("run/rw").join(to.file_name().unwrap());
    Order::Overlay { lower: lower.to_owned(), to: to.to_owned(), writable, user: USER, parts, how }
}

/// Reads, writes, replaces and removes.
fn check_writable(dir: &Path) {
    check_content(dir, 3);
    fs::write(dir.join("0"), "changed").unwrap();
    fs::remove_file(dir.join("1")).unwrap();
    fs::rename(dir.join("2"), dir.join("new")).unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    fs::write(dir.join("dir/file"), "x").unwrap();
    let status = std::process::Command::new("mknod").arg(dir.join("device")).args(["c", "1", "3"]).status().unwrap();
    assert!(status.success());
    check_written(dir);
}

fn check_written(dir: &Path) {
    assert_eq!(fs::read(dir.join("0")).unwrap(), b"changed");
    assert!(!dir.join("1").exists() && !dir.join("2").exists());
    assert_eq!(fs::read(dir.join("new")).unwrap(), [2; 4096]);
    assert_eq!(fs::read(dir.join("dir/file")).unwrap(), b"x");
}

#[tokio::test]
async fn overlays_in_memory() {
    let rig = Rig::new();
    let image = rig.image("1", 3).await;
    let (one, two) = (rig.user("one"), rig.user("two"));
    for to in [&one, &two] {
        rig.done(overlay(&rig, &image, to, Writable::Tmpfs { size: Some(1 << 20) }, None)).await;
        let root = fs::metadata(to).unwrap();
        assert_eq!((root.mode(), root.uid(), root.gid()), (0o40755, 1000, 2000), "as the image's");
        check_writable(to);
        let error = fs::write(to.join("large"), vec![1; 2 << 20]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
    check_content(&image, 3);
    assert_eq!(rig.mounted_below(), 3, "nothing but the image and what users see");
    assert_eq!(fs::read_dir(rig.path("run/rw")).unwrap().count(), 0);
    fs::write(one.join("device"), "gone").unwrap();
    rig.refused(overlay(&rig, &image, &rig.user("three"), Writable::Tmpfs { size: Some(0) }, None)).await;
    rig.done(unmount(&one)).await;
    rig.done(unmount(&two)).await;
    assert_eq!(rig.mounted_below(), 1);
}

#[tokio::test]
async fn overlays_in_a_directory() {
    let rig = Rig::new();
    let image = rig.image("1", 3).await;
    for name in ["plain", "with, comma: and \\", &"long".repeat(60)] {
        let (to, dir) = (rig.user("one"), rig.user(name));
        let order = overlay(&rig, &image, &to, Writable::Directory(dir.clone()), None);
        rig.done(order.clone()).await;
        check_writable(&to);
        if name == "plain" {
            let Order::Overlay { lower, writable, user, parts, how, .. } = order.clone() else { unreachable!() };
            let to = rig.user("two");
            let refusal = rig.refused(Order::Overlay { lower, to, writable, user, parts, how }).await;
            assert!(refusal.message.contains("another overlay"), "{refusal}");
        }
        rig.done(unmount(&to)).await;
        assert_eq!(fs::read(dir.join("upper/0")).unwrap(), b"changed");
        let root = fs::metadata(dir.join("upper")).unwrap();
        assert_eq!((root.mode(), root.uid(), root.gid()), (0o40755, 1000, 2000));
        // What was written is there again.
        fs::set_permissions(dir.join("upper"), fs::Permissions::from_mode(0o700)).unwrap();
        rig.done(order).await;
        check_written(&to);
        assert_eq!(fs::metadata(&to).unwrap().mode(), 0o40700, "changed on purpose");
        rig.done(unmount(&to)).await;
    }
    // No filesystem to write an overlay's upper directory to, and none to stack more on.
    for dir in ["/proc", "/nowhere", "relative"] {
        rig.refused(overlay(&rig, &image, &rig.user("one"), Writable::Directory(dir.into()), None)).await;
    }
    rig.refused(overlay(&rig, &rig.path("state"), &rig.user("one"), Writable::Tmpfs { size: None }, None)).await;
    assert_eq!(rig.mounted_below(), 1);
    assert_eq!(fs::read_dir(rig.path("run/rw")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_mapped_overlay() {
    let rig = Rig::new();
    let image = rig.image("1", 3).await;
    let (to, dir) = (rig.user("one"), rig.user("written"));
    let order = overlay(&rig, &image, &to, Writable::Directory(dir.clone()), Some("0:100000:65536"));
    rig.done(order).await;
    for path in [to.clone(), to.join("0")] {
        let status = fs::metadata(&path).unwrap();
        assert_eq!((status.uid(), status.gid()), (101_000, 102_000), "{}", path.display());
    }
    check_writable(&to);
    let copied = fs::metadata(dir.join("upper/0")).unwrap();
    assert_eq!((copied.uid(), copied.gid()), (101_000, 102_000));
    assert_eq!(rig.mounted_below(), 2);
    rig.done(unmount(&to)).await;
}

#[tokio::test]
async fn what_a_killed_mounter_leaves_is_removed() {
    let mut rig = Rig::new();
    let image = rig.image("1", 1).await;
    let parts = rig.path("run/rw/9");
    fs::create_dir_all(parts.join("memory")).unwrap();
    fs::create_dir(parts.join("lower")).unwrap();
    fs::create_dir(rig.path("run/images/9")).unwrap();
    rustix::mount::mount_bind(&image, parts.join("lower")).unwrap();
    let _busy = File::open(parts.join("lower/0")).unwrap();
    rig.mounter = start(&rig.path("run"));
    rig.order(Order::Mounts { paths: Vec::new() }).await.unwrap();
    assert!(!parts.exists() && !rig.path("run/images/9").exists());
    assert_eq!(rig.mounted_below(), 1);
    check_content(&image, 1);
    for parts in ["run", "run/rw", "run/rw/1/2", "run/images/2", "user/one", "run/rw/../../user/one"] {
        let Order::Overlay { lower, to, writable, user, how, .. } =
            overlay(&rig, &image, &rig.user("one"), Writable::Tmpfs { size: None }, None)
        else {
            unreachable!()
        };
        rig.refused(Order::Overlay { lower, to, writable, user, how, parts: rig.path(parts) }).await;
    }
}

/// Whoever can write to the directory could put a directory of his own in the place of one that was checked.
#[tokio::test]
async fn an_overlay_writes_where_nobody_else_does() {
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
    let rig = Rig::new();
    let image = rig.image("1", 3).await;
    let to = rig.user("to");
    let dir = |name: &str| {
        let dir = rig.user(name);
        (dir.clone(), overlay(&rig, &image, &to, Writable::Directory(dir), None))
    };
    let refused = [
        ("another user's", "another user"),
        ("others write", "others may write"),
        ("link as upper", "upper"),
        ("link as work", "work"),
        ("file as upper", "upper"),
        ("another's work", "another user"),
    ];
    for (name, words) in refused {
        let (path, order) = dir(name);
        let elsewhere = rig.user("elsewhere");
        match name {
            "another user's" => chown(&path, Some(4711), None).unwrap(),
            "others write" => fs::set_permissions(&path, fs::Permissions::from_mode(0o1777)).unwrap(),
            "link as upper" => symlink(&elsewhere, path.join("upper")).unwrap(),
            "link as work" => symlink(&elsewhere, path.join("work")).unwrap(),
            "file as upper" => fs::write(path.join("upper"), "").unwrap(),
            _ => {
                fs::create_dir(path.join("work")).unwrap();
                chown(path.join("work"), Some(USER), None).unwrap();
            }
        }
        let refusal = rig.refused(order).await;
        assert!(refusal.message.contains(words), "{name}: {refusal}");
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0, "{name}");
    }
    // One's own. The mount table has its path, by which others find out that it is in use, though the kernel was given the open file.
    let (path, order) = dir("own");
    chown(&path, Some(USER), None).unwrap();
    rig.done(order).await;
    check_writable(&to);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(to.to_str().unwrap())).unwrap();
    assert!(line.contains(&format!("upperdir={}/upper", path.display())), "{line}");
    rig.done(unmount(&to)).await;
}
