//! The serving process is killed while it fills the cache: no later mount shows a wrong byte.

use std::{
    fs,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use crate::support::{mounted::Mounted, random::Random, served::Served};

const READERS: u64 = 3;
/// The kill comes at any time up to this after the mount.
const LONGEST: Duration = Duration::from_millis(200);
/// So many mounts fill one cache; then all of it is compared, and the next begin with nothing.
const ROUNDS_A_CACHE: u64 = 25;

/// Kills the process that serves a mount again and again, each time while readers make it fill the cache.
fn kills(rounds: u64) {
    let served = Served::new("debian");
    let image = served.image();
    let mut random = Random::new(rounds);
    for round in 1..=rounds {
        let mounted = served.mount(&image, &[]);
        let delay = Duration::from_micros(random.below(u64::try_from(LONGEST.as_micros()).expect("a number")));
        kill_among_readers(&served, mounted, delay, round);
        if round % ROUNDS_A_CACHE == 0 || round == rounds {
            let mounted = served.mount(&image, &[]);
            for path in served.original().large() {
                served.original().assert_same(mounted.path(), path);
            }
            mounted.umount();
            fs::remove_dir_all(served.scratch.join("state")).expect("the state directory");
        }
    }
}

fn kill_among_readers(served: &Served, mounted: Mounted<'_>, delay: Duration, round: u64) {
    let killed = AtomicBool::new(false);
    thread::scope(|scope| {
        for reader in 0..READERS {
            let (root, killed) = (mounted.path(), &killed);
            let mut random = Random::new(round * READERS + reader);
            scope.spawn(move || {
                loop {
                    let path = random.pick(served.original().large());
                    if let Err(error) = served.original().compare(root, path) {
                        assert!(killed.load(Ordering::Relaxed), "{}: {error} before the kill", path.display());
                        break;
                    }
                }
            });
        }
        // A random point of the fill.
        thread::sleep(delay);
        killed.store(true, Ordering::Relaxed);
        mounted.kill();
    });
    mounted.umount();
}

#[test]
fn kills_during_fills() {
    kills(30);
}

#[test]
#[ignore = "takes five minutes; part of make bench"]
fn a_thousand_kills_during_fills() {
    kills(1000);
}
