//! One order.

use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use lazo_format::MAX_BLOBS;
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, UnmountFlags, open_tree, unmount};

use super::connections;
use super::context::{Context, SOURCE, attach};
use super::namespace::Namespaces;
use super::overlay::Uppers;
use super::paths::{MAX_PARAMETER, RunDir, check, device, parameter, regular};
use super::{Answer, How, MountEntry, Order, Refusal, SUBTYPE, probe, sys};
use crate::kernel::table::{self, Line};

/// Highest read-ahead that may be asked for, in KiB.
const MAX_READ_AHEAD: u32 = 64 << 10;

/// Where orders are carried out.
pub(super) struct Site {
    pub(super) run_dir: RunDir,
    pub(super) uppers: Uppers,
    namespaces: Namespaces,
}

type Carried = Result<(Answer, Option<OwnedFd>), Refusal>;

impl Site {
    pub(super) fn open(run_dir: &Path, namespaces: Namespaces) -> std::io::Result<Self> {
        Ok(Self { run_dir: RunDir::open(run_dir)?, uppers: Uppers::default(), namespaces })
    }

    pub(super) fn carry_out(&self, order: Order) -> Carried {
        let done = |()| (Answer::Done, None);
        match order {
            Order::Fuse { path, source, tree } => self.fuse(&path, &source, tree),
            Order::RaiseReadAhead { path, kib } => self.raise_read_ahead(&path, kib).map(done),
            Order::Erofs { path, bootstrap, devices, directio } => self.erofs(&path, &bootstrap, &devices, directio),
            Order::Clone { from, to, how } => self.clone(&from, &to, &how).map(done),
            Order::Overlay { lower, to, writable, user, parts, how } => {
                self.overlay(&lower, &to, &writable, user, &parts, &how).map(done)
            }
            Order::Unmount { path, lazy } => {
                self.unmount(&path, if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() }).map(done)
            }
            Order::Abort { path, connection } => self.abort(&path, connection).map(done),
            Order::Open { path } => Ok((Answer::Done, Some(self.run_dir.file(&path)?))),
            Order::Probe { dir } => {
                check(&dir)?;
                Ok((Answer::Probed { erofs: probe::erofs(&dir) }, None))
            }
            Order::Mounts { paths } => Ok((Answer::Mounts(self.mounts(&paths)?), None)),
        }
    }

    fn fuse(&self, path: &Path, source: &str, tree: bool) -> Carried {
        let directory = self.run_dir.directory(path)?;
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let server = server.map_err(Refusal::io("open /dev/fuse; does this kernel have FUSE?"))?;
        let context = Context::new("fuse")?;
        context.set("subtype", SUBTYPE)?;
        context.set("source", cut(source))?;
        context.set("fd", server.as_raw_fd().to_string())?;
        // A directory, in octal.
        context.set("rootmode", "40000")?;
        context.set("user_id", "0")?;
        context.set("group_id", "0")?;
        context.flag("ro")?;
        if tree {
            context.flag("allow_other")?;
            context.flag("default_permissions")?;
        }
        let mount = context.create(MountAttrFlags::empty())?;
        let device = device(&mount).map_err(Refusal::io(format!("look at {}", path.display())))?;
        attach(&mount, &directory).map_err(Refusal::io(format!("mount at {}", path.display())))?;
        Ok((Answer::Mounted { device, sysfs: None }, Some(server.into())))
    }

    fn raise_read_ahead(&self, path: &Path, kib: u32) -> Result<(), Refusal> {
        check(path)?;
        if kib > MAX_READ_AHEAD {
            return Err(Refusal::new(format!("a read-ahead of {kib} KiB is more than {MAX_READ_AHEAD}")));
        }
        let line = table::on_top(&read_table()?, path).filter(|line| self.is_ours(line));
        let line = line.ok_or_else(|| not_mounted(path))?;
        let file = format!("/sys/class/bdi/{}/read_ahead_kb", line.device);
        fs::write(&file, kib.to_string()).map_err(Refusal::io(format!("write {file}")))
    }

    fn erofs(&self, path: &Path, bootstrap: &Path, devices: &[PathBuf], directio: bool) -> Carried {
        if devices.len() > MAX_BLOBS {
            return Err(Refusal::new(format!("{} devices are more than {MAX_BLOBS}", devices.len())));
        }
        let directory = self.run_dir.directory(path)?;
        let source = regular(bootstrap)?;
        let context = Context::new("erofs")?;
        context.set("source", parameter(bootstrap, &source))?;
        // Open until the kernel has opened them too, if only their descriptor can be named.
        let mut open = vec![source];
        for device in devices {
            let file = regular(device)?;
            context.set("device", parameter(device, &file))?;
            if device.as_os_str().len() > MAX_PARAMETER {
                open.push(file);
            }
        }
        if directio {
            context.flag("directio")?;
        }
        let mount = context.create(MountAttrFlags::empty())?;
        let device = device(&mount).map_err(Refusal::io(format!("look at {}", path.display())))?;
        let root = openat(&mount, ".", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let root = root.map_err(Refusal::io(format!("open the root of {}", path.display())))?;
        let sysfs = sys::sysfs_path(root.as_fd());
        drop(root);
        attach(&mount, &directory).map_err(Refusal::io(format!("mount at {}", path.display())))?;
        Ok((Answer::Mounted { device, sysfs }, None))
    }

    fn clone(&self, from: &Path, to: &Path, how: &How) -> Result<(), Refusal> {
        let (source, directory) = (self.run_dir.mount(from)?, self.run_dir.place_outside(to)?);
        let tree = self.clone_tree(from, &source, how)?;
        attach(&tree, &directory).map_err(Refusal::io(format!("mount at {}", to.display())))
    }

    /// A copy of a mount that is nowhere yet.
    pub(super) fn clone_tree(&self, from: &Path, source: &OwnedFd, how: &How) -> Result<OwnedFd, Refusal> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = open_tree(source, "", flags).map_err(Refusal::io(format!("clone the mount {}", from.display())))?;
        let namespace = how.map.as_ref().map(|map| self.namespaces.get(map)).transpose()?;
        let attributes = how.attributes();
        if namespace.is_some() || !attributes.is_empty() {
            let restricted = sys::set_mount(tree.as_fd(), attributes, namespace.as_ref().map(|file| file.as_fd()));
            restricted.map_err(|error| {
                let mapped = if namespace.is_some() { "; its filesystem may not let ids be mapped" } else { "" };
                Refusal::io(format!("set attributes of a clone of the mount {}{mapped}", from.display()))(error)
            })?;
        }
        Ok(tree)
    }

    fn unmount(&self, path: &Path, flags: UnmountFlags) -> Result<(), Refusal> {
        check(path)?;
        let line = table::on_top(&read_table()?, path).ok_or_else(|| not_mounted(path))?;
        if !self.is_ours(&line) {
            return Err(Refusal::new(format!("what is mounted at {} is not lazo's", path.display())));
        }
        unmount(path, flags | UnmountFlags::NOFOLLOW).map_err(|error| Refusal {
            busy: error == Errno::BUSY,
            ..match error {
                Errno::INVAL => not_mounted(path),
                error => Refusal::io(format!("unmount {}", path.display()))(error),
            }
        })?;
        if self.run_dir.holds(path) {
            // An error: something else is mounted there still, or somebody has put a file there.
            let _ = fs::remove_dir(path);
        }
        Ok(())
    }

    fn abort(&self, path: &Path, connection: Option<u32>) -> Result<(), Refusal> {
        let unmounted = self.unmount(path, UnmountFlags::DETACH | UnmountFlags::FORCE);
        match connection {
            Some(connection) => connections::abort(connection),
            None => unmounted,
        }
    }

    fn mounts(&self, paths: &[PathBuf]) -> Result<Vec<MountEntry>, Refusal> {
        let paths: std::collections::HashSet<&PathBuf> = paths.iter().collect();
        let table = read_table()?;
        let wanted = table::lines(&table).filter(|line| self.run_dir.holds(&line.path) || paths.contains(&line.path));
        let entry = |line: Line| MountEntry {
            source: line.source.to_string_lossy().into_owned(),
            path: line.path,
            fs_type: line.fs_type,
            device: line.device,
        };
        Ok(wanted.map(entry).collect())
    }

    /// Whether a mount can be one that was made here.
    fn is_ours(&self, line: &Line) -> bool {
        self.run_dir.holds(&line.path)
            || match line.fs_type.strip_prefix("fuse.").unwrap_or(&line.fs_type) {
                "erofs" => true,
                "overlay" => line.source == Path::new(SOURCE),
                subtype => subtype == SUBTYPE,
            }
    }
}

pub(super) fn read_table() -> Result<Vec<u8>, Refusal> {
    fs::read("/proc/self/mountinfo").map_err(Refusal::io("read /proc/self/mountinfo"))
}

fn not_mounted(path: &Path) -> Refusal {
    Refusal {
        errno: Some(Errno::INVAL.raw_os_error()),
        ..Refusal::new(format!("nothing of lazo's is mounted at {}", path.display()))
    }
}

/// A name that the kernel takes.
fn cut(name: &str) -> String {
    let mut end = name.len().min(MAX_PARAMETER);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].replace('\0', "")
}
