//! A daemon that is killed after it was given everything, and before it serves, takes nothing along.

use std::{
    fs::File,
    thread::{self, JoinHandle},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::{Pid, Signal},
};

use super::{
    Stage,
    signals::{Container, until_it_says_who},
};
use crate::support::{
    metrics::until,
    mounted::{has_ended, wait_for_end},
    node::{MODES, Node},
};

/// Takes the place of the worker that serves as soon as it ends, so that no other one comes to serve.
fn take_the_place_of_the_worker(stage: &Stage) -> JoinHandle<File> {
    let lock = File::open(stage.served.scratch.join("run/worker.lock")).expect("the lock");
    let before = waiting_for_locks();
    let waiting = thread::spawn(move || {
        flock(&lock, FlockOperation::LockExclusive).expect("the lock");
        lock
    });
    until("the lock is waited for", || (waiting_for_locks() > before).then_some(()));
    waiting
}

/// How many locks this process waits for.
fn waiting_for_locks() -> usize {
    let locks = std::fs::read_to_string("/proc/locks").expect("the locks");
    let own = std::process::id().to_string();
    locks.lines().filter(|line| line.contains("->") && line.split_whitespace().any(|word| word == own)).count()
}

/// Starts a daemon that takes over, and kills it with all of its processes when it has everything.
fn kill_one_that_takes_over(stage: &Stage, worker: Pid) {
    let place = take_the_place_of_the_worker(stage);
    let second = Node::begin(&stage.served.scratch, &stage.config, &[]);
    wait_for_end(worker);
    let place = place.join().expect("the lock");
    until("its worker waits", || {
        let family = second.family();
        family.iter().any(|pid| !has_ended(*pid)).then_some(())
    });
    second.kill();
    drop(place);
}

#[test]
fn what_a_killed_daemon_had_taken_over_is_served_by_the_next() {
    for mode in MODES {
        let stage = Stage::new(mode, "");
        let first = stage.daemon();
        let mounted = stage.mount(&first);
        let original = stage.served.original();
        original.assert_same(mounted.path(), original.next());
        let held = original.next();
        let open = File::open(mounted.path().join(held)).expect("a file");
        let worker = first.worker();
        first.abandon();
        kill_one_that_takes_over(&stage, worker);
        // Who reads meanwhile waits.
        let node = thread::scope(|scope| {
            let reader = scope.spawn(|| original.compare(mounted.path(), held));
            let node = stage.daemon();
            reader.join().expect("a reader").unwrap_or_else(|error| panic!("{mode}: {error}"));
            node
        });
        drop(open);
        original.assert_same(mounted.path(), original.next());
        until("nobody holds what is served", || {
            let lock = File::open(stage.served.scratch.join("run/holder.lock")).expect("the lock");
            flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()
        });
        assert!(!node.log().contains("made anew"), "{mode}: {}", node.log());
        mounted.umount();
        node.stop();
    }
}

#[test]
fn so_it_is_when_the_daemon_before_was_told_to_end() {
    for mode in MODES {
        let stage = Stage::new(mode, "");
        let mut first = stage.daemon();
        let mounted = stage.mount(&first);
        let container = Container::start(&stage, mounted.path());
        container.read();
        let worker = first.worker();
        first.signal(Signal::TERM);
        until_it_says_who(&first, &container.root, 1);
        kill_one_that_takes_over(&stage, worker);
        first.wait_for_end();
        let mut third = stage.daemon();
        container.read();
        third.signal(Signal::TERM);
        until_it_says_who(&third, &container.root, 2);
        container.end();
        third.wait_for_end();
    }
}
