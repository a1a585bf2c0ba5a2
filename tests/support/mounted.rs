//! `lazo mount`, undone on drop.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::process::Pid;

use super::{Scratch, failure_of, output_of, stdout_of};

/// A live mount of lazo's own.
pub(crate) struct Mounted<'a> {
    scratch: &'a Scratch,
    dir: PathBuf,
    live: bool,
}

impl<'a> Mounted<'a> {
    /// Mounts at a new directory `name` of the scratch directory.
    pub(crate) fn new(scratch: &'a Scratch, image: &str, name: &str) -> Self {
        Self::with(scratch, image, name, &[])
    }

    /// The same with options of `lazo mount`.
    pub(crate) fn with(scratch: &'a Scratch, image: &str, name: &str, options: &[&str]) -> Self {
        let dir = scratch.dir(name);
        stdout_of(scratch.lazo(["mount", image]).arg(&dir).args(options));
        Self::adopt(scratch, dir)
    }

    /// Takes charge of a mount that is there.
    pub(crate) fn adopt(scratch: &'a Scratch, dir: PathBuf) -> Self {
        assert!(is_mounted(&dir), "no mount at {}", dir.display());
        Self { scratch, dir, live: true }
    }

    /// Tries to mount; the error's text. Nothing may stay mounted.
    pub(crate) fn failure(scratch: &Scratch, image: &str, name: &str) -> String {
        Self::failure_with(scratch, &[], image, name)
    }

    /// The same with more options.
    pub(crate) fn failure_with(scratch: &Scratch, options: &[&str], image: &str, name: &str) -> String {
        let dir = scratch.dir(name);
        let text = failure_of(scratch.lazo(["mount", image]).args(options).arg(&dir));
        assert!(!is_mounted(&dir), "a failed mount is still there");
        text
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn join(&self, path: &[u8]) -> PathBuf {
        use std::os::unix::ffi::OsStrExt as _;
        self.dir.join(std::ffi::OsStr::from_bytes(path))
    }

    /// `lazo umount`, which must succeed.
    pub(crate) fn umount(mut self) {
        /// How long a process that another test has just started may have, until it runs its own program, what this process had open.
        const LIMIT: Duration = Duration::from_secs(5);
        let start = Instant::now();
        loop {
            let ended = output_of(self.scratch.lazo(["umount"]).arg(&self.dir));
            let text = String::from_utf8_lossy(&ended.stderr);
            if ended.status.success() {
                break;
            }
            assert!(text.contains("is busy") && start.elapsed() < LIMIT, "{text}");
        }
        self.live = false;
        assert!(!is_mounted(&self.dir), "still mounted after lazo umount");
    }

    /// The process that serves this mount: the one whose command line names its directory.
    pub(crate) fn server(&self) -> Option<Pid> {
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        let serves = |path: &Path| {
            let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let mut words = line.split(|&byte| byte == 0);
            let program = words.next().unwrap_or_default();
            program.ends_with(b"lazo") && words.any(|word| word == self.dir.as_os_str().as_encoded_bytes())
        };
        let found = processes.map(|entry| entry.path()).find(|path| serves(path))?;
        Pid::from_raw(found.file_name()?.to_str()?.parse().ok()?)
    }

    /// Kills the process that serves it, which must live. The dead mount stays.
    pub(crate) fn kill(&self) {
        let server = self.server().expect("a serving process");
        rustix::process::kill_process(server, rustix::process::Signal::KILL).expect("a kill");
        wait_for_end(server);
    }

    /// The most memory that the serving process has had, bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let server = self.server().expect("a serving process").as_raw_nonzero();
        let status = std::fs::read_to_string(format!("/proc/{server}/status")).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.live {
            let _ = self.scratch.lazo(["umount"]).arg(&self.dir).output();
            let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Whether a process is gone, or nobody but its parent, who has yet to take notice, would miss it.
pub(crate) fn has_ended(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

pub(crate) fn wait_for_end(process: Pid) {
    /// How long a killed process may take to be gone.
    const LIMIT: Duration = Duration::from_secs(10);
    let start = Instant::now();
    while !has_ended(process) {
        assert!(start.elapsed() < LIMIT, "the serving process lives on");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn is_mounted(dir: &Path) -> bool {
    // Other tests mount at names that are not UTF-8.
    let table = std::fs::read("/proc/self/mountinfo").expect("the mount table");
    let table = String::from_utf8_lossy(&table);
    let dir = dir.to_str().expect("a plain path");
    table.lines().any(|line| line.split(' ').nth(4) == Some(dir))
}
