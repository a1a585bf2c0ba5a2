//! A node daemon of a test's own.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{
    Scratch,
    metrics::{curl, until},
    mounted::{Mounted, has_ended, wait_for_end},
    unmount_below,
};

/// The ways in which images are served.
pub(crate) const MODES: [&str; 2] = ["erofs", "fuse"];

/// How long a daemon that is told to end may take.
const END: Duration = Duration::from_secs(20);

/// `lazo daemon` with the state and run directories of a scratch directory. On drop it is killed, with all of its processes, and
/// what it has mounted is unmounted.
pub(crate) struct Node<'a> {
    scratch: &'a Scratch,
    process: Child,
}

impl<'a> Node<'a> {
    /// One that serves images in this mode.
    pub(crate) fn start(scratch: &'a Scratch, mode: &str) -> Self {
        Self::with(scratch, &format!("mode = \"{mode}\"\n"))
    }

    /// One with this configuration.
    pub(crate) fn with(scratch: &'a Scratch, config: &str) -> Self {
        Self::with_environment(scratch, config, &[])
    }

    /// The same with variables in its environment.
    pub(crate) fn with_environment(scratch: &'a Scratch, config: &str, environment: &[(&str, &OsStr)]) -> Self {
        Self::spawn(Self::tested(), scratch, config, &[], environment).ready()
    }

    /// The same, run by another program than the one that is tested.
    pub(crate) fn run_by(program: &Path, scratch: &'a Scratch, config: &str) -> Self {
        Self::spawn(program, scratch, config, &[], &[]).ready()
    }

    fn tested() -> &'static Path {
        Path::new(env!("CARGO_BIN_EXE_lazo"))
    }

    /// One that may have so many open files, and may not raise that.
    pub(crate) fn with_files(scratch: &'a Scratch, config: &str, files: u32) -> Self {
        let files = format!("--nofile={files}");
        let drop = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"];
        Self::begin(scratch, config, &[&["prlimit", &files][..], &drop].concat()).ready()
    }

    /// One that has begun, and may not serve yet. `wrapper`: what it is run by.
    pub(crate) fn begin(scratch: &'a Scratch, config: &str, wrapper: &[&str]) -> Self {
        Self::spawn(Self::tested(), scratch, config, wrapper, &[])
    }

    fn spawn(
        lazo: &Path,
        scratch: &'a Scratch,
        config: &str,
        wrapper: &[&str],
        environment: &[(&str, &OsStr)],
    ) -> Self {
        let file = scratch.join("lazo.toml");
        fs::write(&file, config).expect("the configuration");
        let log = File::options().create(true).append(true).open(scratch.join("daemon.log")).expect("the log");
        let daemon = scratch.program(lazo, ["daemon", "--config"]);
        let program = wrapper.first().map_or(daemon.get_program(), |wrapper| wrapper.as_ref());
        let mut command = Command::new(program);
        command.args(wrapper.iter().skip(1));
        if !wrapper.is_empty() {
            command.arg(daemon.get_program());
        }
        command.args(daemon.get_args()).arg(file);
        for (name, value) in daemon.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self { scratch, process: command.spawn().expect("lazo daemon") }
    }

    /// Waits until it answers.
    pub(crate) fn ready(self) -> Self {
        let mut node = self;
        until("the daemon answers", || {
            let ended = node.process.try_wait().expect("its state");
            assert!(ended.is_none(), "the daemon has ended: {}", node.log());
            // Not the socket of one that was killed, whose last threads may hold it for a moment.
            let health = node.scratch.lazo(["stats", "--json"]).output().expect("lazo stats");
            let health: Value = serde_json::from_slice(&health.stdout).ok()?;
            let supervisor = health["daemon"]["health"]["supervisor_pid"].as_u64()?;
            (supervisor == u64::from(node.process.id())).then_some(())
        });
        node
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.scratch.join("run/lazo.sock")
    }

    /// What it answers to `GET /v1/NAME`.
    pub(crate) fn get(&self, name: &str) -> Value {
        let text = curl(&self.socket(), &format!("http://lazo/v1/{name}"), &[]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {text}"))
    }

    pub(crate) fn metrics(&self) -> String {
        curl(&self.socket(), "http://lazo/metrics", &[])
    }

    /// What `lazo stats --json` says.
    pub(crate) fn stats(&self) -> Value {
        serde_json::from_str(&self.scratch.lazo_ok(["stats", "--json"])).expect("JSON")
    }

    /// Mounts at a new directory `name` of the scratch directory.
    pub(crate) fn mount(&self, image: &str, name: &str, options: &[&str]) -> Mounted<'a> {
        Mounted::with(self.scratch, image, name, options)
    }

    /// The process that serves now.
    pub(crate) fn worker(&self) -> Pid {
        let pid = self.get("health")["worker_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).expect("a process")
    }

    /// The process that mounts: the worker's child.
    pub(crate) fn mounter(&self) -> Option<Pid> {
        let is_mounter = |pid: &Pid| {
            let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
            line.split(|&byte| byte == 0).any(|word| word == b"mounter")
        };
        self.family().into_iter().find(is_mounter)
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("daemon.log")).unwrap_or_default()
    }

    /// Tells it to end, and waits until all of its processes have.
    pub(crate) fn stop(mut self) {
        let family = self.family();
        self.signal(Signal::TERM);
        let begin = Instant::now();
        while self.process.try_wait().expect("its state").is_none() || !family.iter().all(|pid| has_ended(*pid)) {
            assert!(begin.elapsed() < END, "the daemon does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends its supervisor a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).expect("it lives");
    }

    /// Waits until it has ended by itself.
    pub(crate) fn wait_for_end(&mut self) {
        let begin = Instant::now();
        while self.process.try_wait().expect("its state").is_none() {
            assert!(begin.elapsed() < END, "the daemon does not end: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The same, and leaves what it has mounted to the next one.
    pub(crate) fn wait_for_successor(mut self) {
        self.wait_for_end();
        std::mem::forget(self);
    }

    /// Kills the supervisor alone; the worker stays.
    pub(crate) fn abandon(mut self) {
        self.kill_supervisor();
        std::mem::forget(self);
    }

    /// The same for one that is abandoned later.
    pub(crate) fn kill_supervisor(&mut self) {
        self.process.kill().expect("it lives");
        self.process.wait().expect("its end");
    }

    /// Kills all of its processes, and leaves what they have mounted.
    pub(crate) fn kill(mut self) {
        let family = self.family();
        self.process.kill().expect("it lives");
        self.process.wait().expect("its end");
        for process in family {
            let _ = kill_process(process, Signal::KILL);
            wait_for_end(process);
        }
        std::mem::forget(self);
    }

    /// The processes that it has started, and those that these have.
    pub(crate) fn family(&self) -> Vec<Pid> {
        let mut family = vec![Pid::from_child(&self.process)];
        let mut next = 0;
        while let Some(parent) = family.get(next) {
            family.extend(children(*parent));
            next += 1;
        }
        family.split_off(1)
    }
}

/// The living children of all threads of a process.
fn children(parent: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{}/task", parent.as_raw_nonzero())).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let text = lists.collect::<Vec<_>>().join(" ");
    text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
        let family = self.family();
        let _ = self.process.kill();
        for process in family {
            let _ = kill_process(process, Signal::KILL);
        }
        let _ = self.process.wait();
        unmount_below(self.scratch.path());
    }
}
