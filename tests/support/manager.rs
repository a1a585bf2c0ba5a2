//! The node daemon under a service manager that keeps its files, as systemd does.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{Scratch, metrics::curl, mounted::wait_for_end, unmount_below};

/// tests/support/manager.py, with `lazo daemon` as its service.
pub(crate) struct Manager<'a> {
    scratch: &'a Scratch,
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) supervisor: Option<Pid>,
}

impl<'a> Manager<'a> {
    /// Its daemon has this configuration.
    pub(crate) fn new(scratch: &'a Scratch, settings: &str) -> Self {
        let config = scratch.join("lazo.toml");
        fs::write(&config, settings).expect("the configuration");
        let daemon = scratch.lazo(["daemon", "--config"]);
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/manager.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(scratch.join("notify")).arg(daemon.get_program()).args(daemon.get_args()).arg(config);
        for (name, value) in daemon.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let log = File::options().create(true).append(true).open(scratch.join("daemon.log")).expect("the log");
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn().expect("the manager");
        let commands = process.stdin.take().expect("its input");
        let answers = BufReader::new(process.stdout.take().expect("its output"));
        Self { scratch, process, commands, answers, supervisor: None }
    }

    pub(crate) fn tell(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("a manager that listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        assert!(!answer.is_empty(), "the manager has ended");
        answer.trim().to_owned()
    }

    pub(crate) fn start(&mut self) {
        let pid = self.tell("start").parse().ok().and_then(Pid::from_raw);
        self.supervisor = Some(pid.expect("a process"));
    }

    /// Kills the daemon's processes, all at once.
    pub(crate) fn kill(&mut self) {
        let (worker, supervisor) = (self.worker(), self.supervisor.expect("a process"));
        kill_process(supervisor, Signal::STOP).expect("it lives");
        kill_process(worker, Signal::KILL).expect("it lives");
        assert_eq!(self.tell("kill"), "ended");
        wait_for_end(worker);
    }

    fn health(&self) -> Value {
        let text = curl(&self.scratch.join("run/lazo.sock"), "http://lazo/v1/health", &[]);
        serde_json::from_str(&text).expect("JSON")
    }

    pub(crate) fn worker(&self) -> Pid {
        let pid = self.health()["worker_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        pid.and_then(Pid::from_raw).expect("a process")
    }
}

impl Drop for Manager<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.scratch.join("daemon.log")).unwrap_or_default());
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        // The workers end with their supervisor, and with their mounts.
        if let Some(supervisor) = self.supervisor {
            let _ = kill_process(supervisor, Signal::KILL);
        }
        for process in fs::read_dir("/proc").expect("/proc").flatten() {
            let environment = fs::read(process.path().join("environ")).unwrap_or_default();
            let directory = format!("LAZO_RUN_DIR={}", self.scratch.join("run").display());
            let ours = environment.split(|byte| *byte == 0).any(|variable| variable == directory.as_bytes());
            let pid = process.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            if let Some(pid) = pid.filter(|_| ours) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        unmount_below(self.scratch.path());
    }
}
