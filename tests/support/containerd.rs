//! A containerd of a test's own, with lazo's snapshotter and what is needed to run containers.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    Scratch,
    metrics::until,
    mounted::{has_ended, wait_for_end},
    output_of, run, stdout_of, unmount_below,
};

/// A directory with the programs of another containerd than the system's.
const VERSION: &str = "LAZO_TEST_CONTAINERD";

/// containerd and the snapshotter, in a scratch directory whose `lazo.toml` says how the daemon is configured, who must run already.
/// On drop, all containers and processes are ended, and what is mounted is unmounted.
pub(crate) struct Site<'a> {
    scratch: &'a Scratch,
    snapshotter: Option<Child>,
    containerd: Option<Child>,
    socket: UnixListener,
    cri: bool,
    /// Programs and arguments that start the two.
    starters: [Vec<String>; 2],
}

impl<'a> Site<'a> {
    pub(crate) fn start(scratch: &'a Scratch) -> Self {
        Self::with(scratch, false)
    }

    /// `cri`: with containerd's CRI plugin, too.
    pub(crate) fn with(scratch: &'a Scratch, cri: bool) -> Self {
        let mut site = Self::new(scratch, cri);
        site.start_snapshotter();
        site.start_containerd();
        site
    }

    /// The snapshotter and containerd started by other programs, such as `unshare`, which become them.
    pub(crate) fn within(scratch: &'a Scratch, snapshotter: &[&str], containerd: &[&str]) -> Self {
        let mut site = Self::new(scratch, false);
        site.snapshotter_in(snapshotter);
        site.containerd_in(containerd);
        site.start_snapshotter();
        site.start_containerd();
        site
    }

    fn new(scratch: &'a Scratch, cri: bool) -> Self {
        let socket = UnixListener::bind(scratch.dir("run").join("snapshotter.sock")).expect("a socket");
        Self { scratch, snapshotter: None, containerd: None, socket, cri, starters: Default::default() }
    }

    /// What starts the snapshotter the next time.
    pub(crate) fn snapshotter_in(&mut self, starter: &[&str]) {
        self.starters[0] = starter.iter().copied().map(str::to_owned).collect();
    }

    /// What starts containerd the next time.
    pub(crate) fn containerd_in(&mut self, starter: &[&str]) {
        self.starters[1] = starter.iter().copied().map(str::to_owned).collect();
    }

    /// With the socket that a service manager would hold: it stays when the snapshotter ends.
    pub(crate) fn start_snapshotter(&mut self) {
        let lazo = self.scratch.lazo(["snapshotter", "--config"]);
        let mut command = Command::new("sh");
        command
            .args(["-c", "LISTEN_PID=$$ exec \"$@\" 3<&0 < /dev/null", "sh"])
            .args(&self.starters[0])
            .arg(lazo.get_program());
        command.args(lazo.get_args()).arg(self.scratch.join("lazo.toml"));
        for (name, value) in lazo.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "snapshotter");
        command.stdin(OwnedFd::from(self.socket.try_clone().expect("the socket")));
        self.snapshotter = Some(self.spawn(&mut command, "snapshotter.log"));
    }

    pub(crate) fn start_containerd(&mut self) {
        let config = self.scratch.join("containerd.toml");
        fs::write(&config, self.config()).expect("the configuration");
        let mut command = started(&self.starters[1], program("containerd"));
        command.arg("--config").arg(config).stdin(Stdio::null());
        self.containerd = Some(self.spawn(&mut command, "containerd.log"));
        until("containerd answers", || {
            self.assert_alive("containerd");
            self.ctr(["version"]).output().expect("ctr").status.success().then_some(())
        });
    }

    fn config(&self) -> String {
        let dir = self.scratch.path().display();
        let (mut exports, mut disabled) = ("", "");
        if !version().starts_with('1') {
            exports = "capabilities = [\"remap-ids\"]\n[proxy_plugins.lazo.exports]\nroot = \"STATE\"\n\
                       enable_remote_snapshot_annotations = \"true\"\n";
        }
        if !self.cri {
            disabled =
                "\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \"io.containerd.cri.v1.runtime\"";
        }
        format!(
            "version = 2\nroot = \"{dir}/containerd\"\nstate = \"{dir}/containerd-state\"\ndisabled_plugins = [{disabled}]\n\
             [grpc]\naddress = \"{}\"\n[proxy_plugins.lazo]\ntype = \"snapshot\"\naddress = \"{dir}/run/snapshotter.sock\"\n{}\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"lazo\"\ndisable_snapshot_annotations = false\n",
            self.address().display(),
            exports.replace("STATE", &format!("{dir}/state")),
        )
    }

    fn spawn(&self, command: &mut Command, log: &str) -> Child {
        let log = File::options().create(true).append(true).open(self.scratch.join(log)).expect("a log");
        let out = log.try_clone().expect("the log");
        command.stdout(out).stderr(log);
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    fn assert_alive(&mut self, what: &str) {
        for process in [&mut self.snapshotter, &mut self.containerd].into_iter().flatten() {
            let ended = process.try_wait().expect("its state");
            assert!(ended.is_none(), "{what} has ended: {}", tail(self.scratch, what));
        }
    }

    pub(crate) fn kill_snapshotter(&mut self) {
        end(&mut self.snapshotter);
    }

    pub(crate) fn kill_containerd(&mut self) {
        end(&mut self.containerd);
    }

    pub(crate) fn address(&self) -> PathBuf {
        self.scratch.join("containerd.sock")
    }

    /// `ctr ARGS` for this containerd.
    pub(crate) fn ctr<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = program("ctr");
        command.arg("--address").arg(self.address()).args(args).stdin(Stdio::null());
        command
    }

    pub(crate) fn ctr_ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        stdout_of(&mut self.ctr(args))
    }

    /// `lazo pull` of `docker://IMAGE` or `IMAGE`.
    pub(crate) fn pull_command(&self, image: &str) -> Command {
        let mut command = self.scratch.lazo(["pull", "--json", "--address"]);
        command.arg(self.address()).arg(name_of(image));
        command
    }

    /// The same, which must succeed; what it says.
    pub(crate) fn pull(&self, image: &str, options: &[&str]) -> Value {
        let text = stdout_of(self.pull_command(image).args(options));
        serde_json::from_str(&text).expect("JSON")
    }

    /// `ctr run` for a command line with a container of its own, in this namespace; not run yet.
    pub(crate) fn container(
        &self,
        namespace: &str,
        snapshotter: &str,
        image: &str,
        options: &[&str],
    ) -> (String, Command) {
        // runc's control groups are the machine's.
        let id = format!("lazo-e2e-{}-{}", std::process::id(), number());
        let mut command = self.ctr(["--namespace", namespace, "run", "--snapshotter", snapshotter, "--runc-root"]);
        command.arg(self.scratch.join("runc")).args(options).args([name_of(image), &id]);
        (id, command)
    }

    /// Runs a shell command in a new container, which ends with it.
    pub(crate) fn run(&self, snapshotter: &str, image: &str, script: &str) -> Output {
        let (_, mut command) = self.container("default", snapshotter, image, &["--rm"]);
        output_of(command.args(["/bin/sh", "-c", script]))
    }

    /// The same, which must succeed; its stdout.
    pub(crate) fn run_ok(&self, snapshotter: &str, image: &str, script: &str) -> String {
        let (_, mut command) = self.container("default", snapshotter, image, &["--rm"]);
        stdout_of(command.args(["/bin/sh", "-c", script]))
    }

    /// Starts a container of lazo's that goes on by itself; its name.
    pub(crate) fn start_container(&self, image: &str, options: &[&str], script: &str) -> String {
        let options: Vec<&str> = ["--detach", "--null-io"].iter().chain(options).copied().collect();
        let (id, mut command) = self.container("default", "lazo", image, &options);
        stdout_of(command.args(["/bin/sh", "-c", script]));
        id
    }

    /// Runs a shell command in a running container.
    pub(crate) fn exec(&self, id: &str, script: &str) -> String {
        let name = format!("exec-{}", number());
        self.ctr_ok(["task", "exec", "--exec-id", &name, id, "/bin/sh", "-c", script])
    }

    /// Ends a container and removes it.
    pub(crate) fn remove_container(&self, id: &str) {
        let _ = output_of(&mut self.ctr(["task", "kill", "--signal", "KILL", id]));
        until("the container's process has ended", || {
            let removed = output_of(&mut self.ctr(["task", "rm", id]));
            let text = String::from_utf8_lossy(&removed.stderr).into_owned();
            (removed.status.success() || text.contains("not found")).then_some(())
        });
        self.ctr_ok(["container", "rm", id]);
    }

    /// Mounts a pulled image at a new directory of the scratch directory, to look at it.
    pub(crate) fn mount(&self, pulled: &Value, name: &str) -> PathBuf {
        let dir = self.scratch.dir(name);
        let (snapshotter, snapshot) = (&pulled["snapshotter"], pulled["snapshot"].as_str().expect("a snapshot"));
        let view = ["snapshots", "--snapshotter", snapshotter.as_str().expect("a name"), "view", "--target"];
        let mount = self.ctr_ok(view.into_iter().chain([dir.to_str().expect("a plain path"), name, snapshot]));
        run("sh", ["-c", &mount]);
        dir
    }

    /// Digests of all content.
    pub(crate) fn content(&self, namespace: &str) -> Vec<String> {
        self.ctr_ok(["--namespace", namespace, "content", "ls", "-q"]).lines().map(str::to_owned).collect()
    }

    /// All snapshots of a snapshotter.
    pub(crate) fn snapshots(&self, namespace: &str, snapshotter: &str) -> Vec<String> {
        let text = self.ctr_ok(["--namespace", namespace, "snapshots", "--snapshotter", snapshotter, "ls"]);
        text.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// Ends all containers, whether or not containerd lives.
    fn end_containers(&self) {
        let root = self.scratch.join("runc");
        for namespace in fs::read_dir(&root).into_iter().flatten().flatten() {
            for container in fs::read_dir(namespace.path()).into_iter().flatten().flatten() {
                let mut command = Command::new("runc");
                command.arg("--root").arg(namespace.path()).args(["delete", "--force"]).arg(container.file_name());
                let _ = command.output();
            }
        }
        let address = self.address();
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            let is_shim = words.next().is_some_and(|program| program.ends_with(b"containerd-shim-runc-v2"));
            if is_shim && words.any(|word| word == address.as_os_str().as_encoded_bytes()) {
                let pid = process.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
                if let Some(pid) = pid {
                    let _ = kill_process(pid, Signal::KILL);
                    until("the shim has ended", || has_ended(pid).then_some(()));
                }
            }
        }
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for what in ["containerd", "snapshotter"] {
                eprintln!("the end of {what}'s log:\n{}", tail(self.scratch, what));
            }
        }
        end(&mut self.containerd);
        self.end_containers();
        end(&mut self.snapshotter);
        unmount_below(self.scratch.path());
    }
}

/// As containerd names an image.
pub(crate) fn name_of(image: &str) -> &str {
    image.strip_prefix("docker://").unwrap_or(image)
}

fn program(name: &str) -> Command {
    let Some(directory) = std::env::var_os(VERSION) else { return Command::new(name) };
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(Path::new(&directory).join(name));
    // It starts its own shim.
    command.env("PATH", format!("{}:{path}", Path::new(&directory).display()));
    command
}

/// A program without arguments, by way of another one.
fn started(starter: &[String], program: Command) -> Command {
    let Some((first, rest)) = starter.split_first() else { return program };
    let mut command = Command::new(first);
    command.args(rest).arg(program.get_program());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

/// Such as `1.6.20`.
pub(crate) fn version() -> String {
    let text = stdout_of(program("containerd").arg("--version"));
    let version = text.split_whitespace().nth(2).expect("a version");
    version.trim_start_matches('v').to_owned()
}

fn end(process: &mut Option<Child>) {
    if let Some(mut process) = process.take() {
        let pid = Pid::from_child(&process);
        let _ = process.kill();
        let _ = process.wait();
        wait_for_end(pid);
    }
}

fn tail(scratch: &Scratch, what: &str) -> String {
    let log = scratch.join(&format!("{what}.log"));
    if log.exists() { run("tail", ["-n", "60", log.to_str().expect("a plain path")]) } else { String::new() }
}

/// A number that was not given before.
fn number() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
