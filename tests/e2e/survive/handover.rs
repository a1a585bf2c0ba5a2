//! A daemon that is killed after it was given everything, and before it serves, takes nothing along.

use std::{
    fs::File,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
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

/// How long after a worker's end the next one must have its lock.
const NEXT: Duration = Duration::from_secs(2);

/// How often one may be quicker than the test.
const TRIES: usize = 20;

/// Takes the place of the worker that serves as soon as it ends, so that no other one comes to serve. None if another one was quicker.
fn take_the_place_of(stage: &Stage, worker: Pid) -> JoinHandle<Option<File>> {
    let lock = File::open(stage.served.scratch.join("run/worker.lock")).expect("the lock");
    thread::spawn(move || {
        let mut ended = None;
        while ended.is_none_or(|ended: Instant| ended.elapsed() < NEXT) {
            if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Some(lock);
            }
            if ended.is_none() && has_ended(worker) {
                ended = Some(Instant::now());
            }
            thread::sleep(Duration::from_micros(100));
        }
        None
    })
}

/// Starts a daemon that takes over, and kills it with all of its processes when it has everything. If its worker was quicker, the
/// daemon serves.
fn kill_one_that_takes_over<'a>(stage: &'a Stage, worker: Pid) -> Option<Node<'a>> {
    let place = take_the_place_of(stage, worker);
    let second = Node::begin(&stage.served.scratch, &stage.config, &[]);
    wait_for_end(worker);
    let Some(place) = place.join().expect("the lock") else { return Some(second.ready()) };
    until("its worker waits", || {
        let family = second.family();
        family.iter().any(|pid| !has_ended(*pid)).then_some(())
    });
    second.kill();
    drop(place);
    None
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
        let mut next = Some(first);
        for _ in 0..TRIES {
            let Some(first) = next.take() else { break };
            let worker = first.worker();
            first.abandon();
            next = kill_one_that_takes_over(&stage, worker);
        }
        assert!(next.is_none(), "{mode}: the next worker is always quicker");
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
        let first = stage.daemon();
        let mounted = stage.mount(&first);
        let container = Container::start(&stage, mounted.path());
        container.read();
        let (mut next, mut told) = (Some(first), 0);
        for _ in 0..TRIES {
            let Some(first) = next.take() else { break };
            let worker = first.worker();
            first.signal(Signal::TERM);
            told += 1;
            until_it_says_who(&first, &container.root, told);
            next = kill_one_that_takes_over(&stage, worker);
            first.wait_for_successor();
        }
        assert!(next.is_none(), "{mode}: the next worker is always quicker");
        let mut third = stage.daemon();
        container.read();
        third.signal(Signal::TERM);
        until_it_says_who(&third, &container.root, told + 1);
        container.end();
        third.wait_for_end();
    }
}
