//! The node daemon under a service manager that keeps its files.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{FILE, small};
use crate::support::{
    Corpus, Scratch,
    metrics::{curl, until},
    mounted::{Mounted, wait_for_end},
    node::MODES,
    unmount_below,
};

/// tests/support/manager.py, with `lazo daemon` as its service.
struct Manager<'a> {
    scratch: &'a Scratch,
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    supervisor: Option<Pid>,
}

impl<'a> Manager<'a> {
    fn new(scratch: &'a Scratch, mode: &str) -> Self {
        let config = scratch.join("lazo.toml");
        fs::write(&config, format!("mode = \"{mode}\"\n")).expect("the configuration");
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

    fn tell(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("a manager that listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("an answer");
        assert!(!answer.is_empty(), "the manager has ended");
        answer.trim().to_owned()
    }

    fn start(&mut self) {
        let pid = self.tell("start").parse().ok().and_then(Pid::from_raw);
        self.supervisor = Some(pid.expect("a process"));
    }

    fn health(&self) -> Value {
        let text = curl(&self.scratch.join("run/lazo.sock"), "http://lazo/v1/health", &[]);
        serde_json::from_str(&text).expect("JSON")
    }

    fn worker(&self) -> Pid {
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

#[test]
fn mounts_outlive_the_whole_daemon() {
    let expected = fs::read(Corpus::get("small").reference().join(FILE)).expect("the reference");
    for mode in MODES {
        let scratch = Scratch::new();
        let mut manager = Manager::new(&scratch, mode);
        manager.start();
        let mounted = Mounted::new(&scratch, &small(), "mount");
        let open = File::open(mounted.path().join(FILE)).expect("the file");
        let whole = |what: &str| {
            let mut bytes = vec![0; expected.len()];
            open.read_exact_at(&mut bytes, 0).unwrap_or_else(|error| panic!("{mode}, {what}: {error}"));
            assert!(bytes == expected, "{mode}, {what}");
        };
        assert!(!manager.tell("names").is_empty(), "files are kept");

        // A restart. Who reads in between waits.
        assert_eq!(manager.tell("term"), "ended");
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| fs::read(mounted.path().join("odd/data/text-2625536")).expect("a read"));
            manager.start();
            assert_eq!(reader.join().expect("a reader").len(), 2_625_536, "{mode}");
        });
        whole("after a restart");
        assert_eq!(fs::read_dir(mounted.path()).expect("the root").count(), 7, "{mode}");

        // Everything is killed at once.
        let worker = manager.worker();
        let supervisor = manager.supervisor.expect("a process");
        kill_process(supervisor, Signal::STOP).expect("it lives");
        kill_process(worker, Signal::KILL).expect("it lives");
        assert_eq!(manager.tell("kill"), "ended");
        wait_for_end(worker);
        manager.start();
        whole("after a kill");
        assert_ne!(manager.worker(), worker);
        let again = Mounted::new(&scratch, &small(), "again");
        again.umount();
        drop(open);
        mounted.umount();
        until("only what is always there is kept", || {
            let images = curl(&scratch.join("run/lazo.sock"), "http://lazo/v1/images", &[]);
            (images == "[]").then_some(())
        });
        assert_eq!(manager.tell("term"), "ended");
    }
}
