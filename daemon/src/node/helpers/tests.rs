//! With the process itself, and helpers that do as the tests tell them by pipes.

use std::fs;
use std::io::{Read as _, Write as _};

use rustix::fs::{FileType, Mode};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Not a test: the process for helpers of the other tests, which start this program again for it.
#[test]
#[ignore = "the process of other tests"]
fn process() {
    serve().unwrap();
}

/// A directory with a helper, and the process that runs it.
/// Writes a program, by another process: one that another thread has just forked may have open what this process writes, and then
/// it cannot be run.
fn write_program(path: &std::path::Path, text: &str) {
    let mut command = Command::new("sh");
    command.args(["-c", "cat >\"$0\" && chmod 755 \"$0\""]).arg(path).stdin(std::process::Stdio::piped());
    let mut shell = command.spawn().unwrap();
    std::io::Write::write_all(&mut shell.stdin.take().unwrap(), text.as_bytes()).unwrap();
    assert!(shell.wait().unwrap().success());
}

struct Rig {
    dir: tempfile::TempDir,
    helpers: Helpers,
    process: Pid,
}

impl Rig {
    /// The helper is a script that is given the server's name as `$server`.
    fn new(script: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("docker-credential-t");
        write_program(&program, &format!("#!/bin/sh\nread server\ncd {}\n{script}\n", dir.path().display()));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "--nocapture", "node::helpers::tests::process"]);
        command.env("PATH", format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap()));
        let starting = Starting::spawn_program(command).unwrap();
        let process = Pid::from_child(&starting.child);
        Self { dir, helpers: starting.connect().unwrap(), process }
    }

    /// Makes a pipe; the helper opens it by its name.
    fn pipe(&self, name: &str) {
        rustix::fs::mknodat(rustix::fs::CWD, self.dir.path().join(name), FileType::Fifo, Mode::RWXU, 0).unwrap();
    }

    /// Opens a pipe when the helper does.
    fn open(&self, name: &str, options: &fs::OpenOptions) -> fs::File {
        options.open(self.dir.path().join(name)).unwrap()
    }

    /// A question, which has been sent when this returns.
    fn ask(&self, server: &str) -> BoxFuture<'static, io::Result<HelperOutcome>> {
        let mut asking = self.helpers.run("t".to_owned(), server.to_owned());
        assert!((&mut asking).now_or_never().is_none(), "it was not sent");
        asking
    }
}

fn reading() -> fs::OpenOptions {
    fs::OpenOptions::new().read(true).clone()
}

fn writing() -> fs::OpenOptions {
    fs::OpenOptions::new().write(true).clone()
}

#[tokio::test]
async fn those_who_ask_the_same_share_a_run() {
    let rig = Rig::new("echo $server >> asked; echo > $server.begun; read line < $server.go; echo $server");
    for name in ["a.begun", "a.go", "b.begun", "b.go"] {
        rig.pipe(name);
    }
    let mut asking: Vec<_> = (0..3).map(|_| rig.ask("a")).collect();
    // Questions are taken in turn: when this one has come, the others have.
    asking.push(rig.ask("b"));
    for name in ["b", "a"] {
        rig.open(&format!("{name}.begun"), &reading()).read_to_end(&mut Vec::new()).unwrap();
        if name == "b" {
            // The first, who goes, takes nothing from the others.
            drop(asking.remove(0));
        }
        rig.open(&format!("{name}.go"), &writing()).write_all(b"go\n").unwrap();
    }
    for answer in futures_util::future::join_all(asking).await {
        answer.unwrap();
    }
    let count = || fs::read_to_string(rig.dir.path().join("asked")).unwrap().matches('a').count();
    assert_eq!(count(), 1);
    // The next question is a new one.
    let again = rig.ask("a");
    rig.open("a.begun", &reading()).read_to_end(&mut Vec::new()).unwrap();
    rig.open("a.go", &writing()).write_all(b"go\n").unwrap();
    again.await.unwrap();
    assert_eq!(count(), 2);
}

#[tokio::test]
async fn what_nobody_waits_for_ends_and_what_has_not_begun_never_runs() {
    let rig = Rig::new("echo $server >> asked; exec 3> $server.alive; sleep 3600 & sleep 3600");
    let names: Vec<String> = (0..MAX_RUNNING).map(|n| format!("s{n}")).collect();
    names.iter().for_each(|name| rig.pipe(&format!("{name}.alive")));
    let running: Vec<_> = names.iter().map(|name| rig.ask(name)).collect();
    let pipes: Vec<_> = names.iter().map(|name| rig.open(&format!("{name}.alive"), &reading())).collect();
    // All places are taken.
    drop(rig.ask("late"));
    drop(running);
    for mut pipe in pipes {
        // The end comes when neither the helper nor what it has started is there any more.
        assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
    }
    // And there is room again.
    rig.pipe("next.alive");
    let next = rig.ask("next");
    drop(rig.open("next.alive", &reading()));
    let asked = fs::read_to_string(rig.dir.path().join("asked")).unwrap();
    assert!(asked.contains("next") && !asked.contains("late"), "{asked}");
    drop(next);
}

#[tokio::test]
async fn no_more_than_a_number_may_ask() {
    let rig = Rig::new("sleep 3600");
    let _asking: Vec<_> = (0..MAX_ASKING).map(|_| rig.ask("a")).collect();
    let error = rig.ask("a").await.unwrap_err().to_string();
    assert!(error.contains("others wait"), "{error}");
}

#[tokio::test]
async fn signals_that_ask_for_an_end_are_not_for_it_and_helpers_do_not_ignore_them() {
    let rig = Rig::new("grep SigIgn /proc/self/status; echo credentials not found; exit 1");
    let ask = || async { format!("{:?}", rig.ask("a").await.unwrap()) };
    ask().await;
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(rig.process, signal).unwrap();
    }
    ask().await;
    let ignored = fs::read_to_string(format!("/proc/{}/status", rig.process.as_raw_nonzero())).unwrap();
    let ignored = ignored.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
    let asked_to_end = [Signal::TERM, Signal::INT, Signal::HUP].map(|signal| 1 << (signal.as_raw() - 1));
    assert_eq!(asked_to_end.iter().fold(0_u64, |all, one| all | one) & ignored, 0, "helpers would ignore them, too");
    // Without the process helpers run in this one.
    kill_process(rig.process, Signal::KILL).unwrap();
    rig.helpers.ended().await;
    let error = rig.helpers.run("lazo-missing".to_owned(), "a".to_owned()).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
}
