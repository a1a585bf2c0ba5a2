//! A real systemd, booted in namespaces of its own, with lazo as it is packaged, containerd and a registry.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{Scratch, metrics::until, output_of, run, stdout_of, unmount_below};

/// Where the machine's registry listens: it has a network of its own.
pub(crate) const REGISTRY: &str = "127.0.0.1:5000";
/// The units that an administrator starts.
const UNITS: [&str; 3] = ["lazo.service", "lazo-snapshotter.socket", "containerd.service"];

/// A booted machine; on drop it is gone with all that it has mounted.
pub(crate) struct Machine<'a> {
    scratch: &'a Scratch,
    root: PathBuf,
    boot: Child,
    init: Pid,
}

impl<'a> Machine<'a> {
    /// Boots, with an image's storage directory behind [`REGISTRY`], and starts everything.
    pub(crate) fn boot(scratch: &'a Scratch, storage: &Path) -> Self {
        Self::boot_with(scratch, storage, "")
    }

    /// The same, with a configuration of lazo's.
    pub(crate) fn boot_with(scratch: &'a Scratch, storage: &Path, config: &str) -> Self {
        let base = stdout_of(Command::new(source("scripts/systemd-root")).stderr(Stdio::inherit()));
        let root = scratch.dir("machine");
        let [upper, work, state, containerd] = ["upper", "work", "state", "containerd"].map(|name| scratch.dir(name));
        let options = format!("lowerdir={},upperdir={},workdir={}", base.trim(), upper.display(), work.display());
        run("mount", ["-t", "overlay", "overlay", "-o", &options, text(&root)]);
        // Neither a bootstrap nor a container's upper directory can lie on an overlay.
        for (from, to) in [(state, "var/lib/lazo"), (containerd, "var/lib/containerd")] {
            fs::create_dir_all(root.join(to)).expect("a directory");
            run("mount", ["--bind", text(&from), text(&root.join(to))]);
        }
        install(&root, storage);
        fs::create_dir_all(root.join("etc/lazo")).expect("a directory");
        fs::write(root.join("etc/lazo/lazo.toml"), config).expect("the configuration");
        let group = format!("lazo-test-{}", std::process::id());
        let log = File::create(scratch.join("boot.log")).expect("a log");
        let mut boot = Command::new(source("tests/support/systemd/boot"));
        boot.arg(&root)
            .arg(group)
            .arg(storage)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log"))
            .stderr(log);
        let boot = boot.process_group(0).spawn().expect("boot");
        let children = format!("/proc/{0}/task/{0}/children", boot.id());
        let init = until("process 1 begins", || {
            let pid = fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()?;
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "systemd").then(|| Pid::from_raw(pid)).flatten()
        });
        let machine = Self { scratch, root, boot, init };
        until("systemd is up", || {
            let state = output_of(&mut machine.command("systemctl", ["is-system-running"])).stdout;
            matches!(String::from_utf8_lossy(&state).trim(), "running" | "degraded").then_some(())
        });
        machine.run("systemctl", ["start", "registry.service"]);
        machine.run("systemctl", [&["start"][..], &UNITS].concat());
        machine
    }

    /// Its root file system, as this process sees it.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A program of the machine's.
    pub(crate) fn command<'b>(&self, program: &str, args: impl IntoIterator<Item = &'b str>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w/", "-t"]);
        command.arg(self.init.as_raw_nonzero().to_string()).arg(program).args(args).stdin(Stdio::null());
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        command
    }

    /// The same, which must succeed; its stdout.
    pub(crate) fn run<'b>(&self, program: &str, args: impl IntoIterator<Item = &'b str>) -> String {
        stdout_of(&mut self.command(program, args))
    }

    /// What a unit has logged.
    pub(crate) fn journal(&self, unit: &str) -> String {
        self.run("journalctl", ["--no-pager", "--output=cat", "--unit", unit])
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.run("systemctl", ["show", "--value", "--property", name, unit]).trim().to_owned()
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for unit in ["lazo", "lazo-snapshotter", "containerd"] {
                eprintln!("the journal of {unit}:\n{}", self.journal(unit));
            }
        }
        let _ = kill_process(self.init, Signal::KILL);
        let _ = kill_process_group(Pid::from_child(&self.boot), Signal::KILL);
        let _ = self.boot.wait();
        unmount_below(self.scratch.path());
        remove_groups(&format!("lazo-test-{}", std::process::id()));
    }
}

/// Puts lazo, its units and a registry into the machine's root.
fn install(root: &Path, storage: &Path) {
    let copy = |from: &Path, to: &str| {
        fs::copy(from, root.join(to)).unwrap_or_else(|error| panic!("{} to {to}: {error}", from.display()));
    };
    copy(Path::new(env!("CARGO_BIN_EXE_lazo")), "usr/bin/lazo");
    copy(Path::new("/usr/bin/docker-registry"), "usr/bin/docker-registry");
    for entry in fs::read_dir(source("packaging")).expect("packaging").flatten() {
        let name = entry.file_name().into_string().expect("a plain name");
        if name.ends_with(".service") || name.ends_with(".socket") {
            copy(&entry.path(), &format!("etc/systemd/system/{name}"));
        }
    }
    fs::create_dir_all(root.join("etc/containerd")).expect("a directory");
    copy(&source("packaging/containerd/containerd-1.toml"), "etc/containerd/config.toml");
    let registry = format!(
        "version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: '{REGISTRY}'}}\n",
        storage.display()
    );
    fs::write(root.join("etc/registry.yml"), registry).expect("the registry's configuration");
    let unit = "[Service]\nExecStart=/usr/bin/docker-registry serve /etc/registry.yml\n";
    fs::write(root.join("etc/systemd/system/registry.service"), unit).expect("a unit");
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Control groups that the machine has left, innermost first.
fn remove_groups(name: &str) {
    for unified in ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"] {
        let top = Path::new(unified).join(name);
        let find = Command::new("find").arg(&top).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
        if find.is_ok_and(|found| found.status.success()) {
            return;
        }
    }
}
