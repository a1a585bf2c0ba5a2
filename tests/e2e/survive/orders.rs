//! Whatever is killed, told to end, replaced and started again, in whatever order, no reader notices.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{SMALL_CACHE, Stage, another_build, readers::Readers, signals::Container};
use crate::support::{
    Scratch,
    faults::{Fault, Target},
    metrics::until,
    mounted::{has_ended, is_mounted, wait_for_end},
    node::{MODES, Node},
    random::Random,
};

/// Orders that are tried in every run of the tests, in each mode.
const FEW: u64 = 1;
/// The same when asked for.
const MANY: u64 = 50;
/// Files that are read between two events.
const PROGRESS: u64 = 32;

/// Answers of the registry that are cut before it is well again.
const FAILURES: u64 = 3;

/// What happens to the node.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// The worker is killed.
    Worker,
    /// The mounter is killed.
    Mounter,
    /// The supervisor is killed; the worker serves on. Then a daemon starts.
    Supervisor,
    /// The daemon is sent a signal; it serves on as it has readers. Then a daemon starts.
    Signal(Signal),
    /// The same by `lazo daemon stop`.
    Stop,
    /// The daemon is told to end, and its worker killed. Then a daemon starts.
    WorkerOfEnding,
    /// The daemon is told to end, and its supervisor killed. Then a daemon starts.
    SupervisorOfEnding,
    /// Another program takes over.
    Upgrade,
    /// The registry's answers stop, and it comes back.
    Registry,
}

/// All processes of a daemon are never killed at once: readers then get errors where no service manager keeps its files.
const EVENTS: [Event; 13] = [
    Event::Worker,
    Event::Mounter,
    Event::Supervisor,
    Event::Signal(Signal::TERM),
    Event::Signal(Signal::INT),
    Event::Signal(Signal::HUP),
    Event::Stop,
    Event::WorkerOfEnding,
    Event::SupervisorOfEnding,
    Event::Upgrade,
    Event::Worker,
    Event::Upgrade,
    Event::Registry,
];

/// A node in trouble.
struct Trouble<'a> {
    stage: &'a Stage,
    programs: [PathBuf; 2],
    random: Random,
    /// The daemon that serves new requests.
    node: Node<'a>,
}

impl<'a> Trouble<'a> {
    fn begin(stage: &'a Stage, seed: u64) -> Self {
        let own = fs::canonicalize(env!("CARGO_BIN_EXE_lazo")).expect("a path");
        let programs = [own, another_version(stage)];
        let mut random = Random::new(seed);
        let program: &PathBuf = random.pick(&programs);
        let node = Node::run_by(program, &stage.served.scratch, &stage.config);
        Self { stage, programs, random, node }
    }

    /// A daemon starts while this one lives, or its worker does; the one before.
    fn next(&mut self) -> Node<'a> {
        let program: &PathBuf = self.random.pick(&self.programs);
        let next = Node::run_by(program, &self.stage.served.scratch, &self.stage.config);
        std::mem::replace(&mut self.node, next)
    }

    fn cause(&mut self, event: Event) {
        let scratch = &self.stage.served.scratch;
        match event {
            Event::Worker => self.kill_worker(),
            Event::Mounter => {
                let mounter = self.node.mounter().expect("a mounter");
                let worker = self.node.worker();
                kill_process(mounter, Signal::KILL).expect("it lives");
                // It cannot do without.
                wait_for_end(worker);
            }
            Event::Supervisor => {
                let orphan = self.node.worker();
                self.node.kill_supervisor();
                self.next().abandon();
                wait_for_end(orphan);
            }
            Event::Signal(signal) => {
                self.node.signal(signal);
                self.next().wait_for_successor();
            }
            Event::Stop => {
                let said = scratch.lazo_ok(["daemon", "stop"]);
                assert!(said.contains("served on"), "{said}");
                self.next().wait_for_successor();
            }
            Event::WorkerOfEnding => {
                self.node.signal(Signal::TERM);
                self.kill_worker();
                self.next().wait_for_successor();
            }
            Event::SupervisorOfEnding => {
                let orphan = self.node.worker();
                self.node.signal(Signal::TERM);
                self.node.kill_supervisor();
                self.next().abandon();
                wait_for_end(orphan);
            }
            Event::Upgrade => {
                let program: &PathBuf = self.random.pick(&self.programs);
                scratch.lazo_ok([Path::new("daemon"), Path::new("upgrade"), program.as_path()]);
            }
            Event::Registry => {
                let proxy = &self.stage.proxy;
                proxy.set(Target::All, Fault::Cut(1000));
                proxy.wait_for_hits(FAILURES);
                proxy.heal();
            }
        }
    }

    fn kill_worker(&self) {
        kill_process(self.node.worker(), Signal::KILL).expect("it lives");
    }
}

/// Another program than the one that is tested: an older or newer one, if the environment names one.
fn another_version(stage: &Stage) -> PathBuf {
    std::env::var_os("LAZO_TEST_OTHER").map_or_else(|| another_build(stage), PathBuf::from)
}

/// Living processes with this run directory.
fn processes_of(scratch: &Scratch) -> Vec<Pid> {
    let setting = format!("LAZO_RUN_DIR={}", scratch.join("run").display());
    let has_setting = |pid: &Pid| {
        let environment = fs::read(format!("/proc/{}/environ", pid.as_raw_nonzero())).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == setting.as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    pids.filter(has_setting).filter(|pid| !has_ended(*pid)).collect()
}

fn order(mode: &str, seed: u64) {
    let stage = Stage::new(mode, SMALL_CACHE);
    let mut events = EVENTS;
    Random::new(seed).shuffle(&mut events);
    eprintln!("{mode}, order {seed}: {events:?}");
    let mut trouble = Trouble::begin(&stage, seed);
    let mounted = stage.mount(&trouble.node);
    let container = Container::start(&stage, mounted.path());
    let readers = Readers::start(stage.served.original(), &container.root, false);
    for event in events {
        eprintln!("{event:?}");
        trouble.cause(event);
        let count = readers.count();
        until("the readers go on", || (readers.count() >= count + PROGRESS).then_some(()));
    }
    assert!(readers.stop() > 0, "nothing was read");
    container.end();
    if is_mounted(mounted.path()) {
        mounted.umount();
    }
    trouble.node.stop();
    assert_eq!(processes_of(&stage.served.scratch), [], "{mode}, order {seed}");
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").expect("the mount table")).into_owned();
    let scratch = stage.served.scratch.path().to_str().expect("a plain path");
    let left: Vec<&str> = table.lines().filter(|line| line.contains(scratch)).collect();
    assert_eq!(left, [] as [&str; 0], "{mode}, order {seed}");
}

#[test]
fn no_order_of_troubles_is_noticed() {
    for mode in MODES {
        (0..FEW).for_each(|seed| order(mode, seed));
    }
}

#[test]
#[ignore = "half an hour; part of make soak"]
fn soak_no_order_of_troubles_is_noticed() {
    for mode in MODES {
        (0..MANY).for_each(|seed| order(mode, seed));
    }
}
