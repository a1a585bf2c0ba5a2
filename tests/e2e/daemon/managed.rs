//! The node daemon under a service manager that keeps its files.

use std::{fs, fs::File, os::unix::fs::FileExt as _};

use super::{FILE, small};
use crate::support::{
    Corpus, Scratch,
    manager::Manager,
    metrics::{curl, until},
    mounted::Mounted,
    node::MODES,
};

#[test]
fn mounts_outlive_the_whole_daemon() {
    let expected = fs::read(Corpus::get("small").reference().join(FILE)).expect("the reference");
    for mode in MODES {
        let scratch = Scratch::new();
        let mut manager = Manager::new(&scratch, &format!("mode = \"{mode}\"\n"));
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
        manager.kill();
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
