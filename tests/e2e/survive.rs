//! The node daemon's processes are killed and replaced while programs read its mounts: no read fails, none is wrong.

mod handover;
mod orders;
mod readers;
mod signals;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process},
};

use crate::support::{
    copy_program,
    faults::Proxy,
    metrics::{sum, until},
    mounted::{Mounted, has_ended, wait_for_end},
    node::{MODES, Node},
    run,
    served::{NAME, Served},
};
use readers::Readers;

/// Between two kills. The one after the next begins when the next worker is ready, as often as not.
const PERIOD: Duration = Duration::from_millis(200);
/// As long as kills go on in every run of the tests.
const SHORT: Duration = Duration::from_secs(10);
/// The same when asked for.
const LONG: Duration = Duration::from_secs(60);
/// What the registry's answers take.
const LATENCY: Duration = Duration::from_millis(5);
const UPGRADES: usize = 10;
/// The smallest cache: most of what is read is fetched again and again, so that there is always something under way.
const SMALL_CACHE: &str = "cache_limit = \"64M\"\n";

/// A daemon with one mount, its registry behind a slow proxy.
struct Stage {
    served: Served,
    proxy: Proxy,
    config: String,
}

impl Stage {
    fn new(mode: &str, more: &str) -> Self {
        let served = Served::new("debian");
        let proxy = Proxy::start(&served.registry.host);
        proxy.set_latency(LATENCY);
        Self { served, proxy, config: format!("mode = \"{mode}\"\n{more}") }
    }

    fn daemon(&self) -> Node<'_> {
        Node::with(&self.served.scratch, &self.config)
    }

    fn mount<'a>(&'a self, node: &Node<'a>) -> Mounted<'a> {
        node.mount(&self.proxy.image(NAME), "mount", &["--prefetch", "none"])
    }

    /// While `trouble` goes on, sixteen programs read the mount and a tree of processes runs from it.
    fn among_readers(&self, mount: &Path, mode: &str, trouble: impl FnOnce()) {
        let readers = Readers::start(self.served.original(), mount, mode == "fuse");
        trouble();
        let read = readers.stop();
        assert!(read > 0, "nothing was read");
    }
}

/// Kills worker after worker; how many.
fn kill_workers(node: &Node<'_>, length: Duration) -> u32 {
    let begin = Instant::now();
    let mut kills = 0;
    while begin.elapsed() < length {
        thread::sleep(PERIOD);
        kill_process(node.worker(), Signal::KILL).expect("a worker");
        kills += 1;
    }
    kills
}

fn killed_workers(mode: &str, length: Duration) {
    let stage = Stage::new(mode, SMALL_CACHE);
    let node = stage.daemon();
    let mounted = stage.mount(&node);
    let mut kills = 0;
    stage.among_readers(mounted.path(), mode, || kills = kill_workers(&node, length));
    assert!(f64::from(kills) > length.as_secs_f64(), "{kills} kills only");
    assert_eq!(sum(&node.metrics(), "lazo_worker_restarts_total"), f64::from(kills));
    assert!(node.log().contains("the worker has ended; it is started again"));
    mounted.umount();
    node.stop();
}

#[test]
fn killed_workers_are_not_noticed_with_erofs() {
    killed_workers("erofs", SHORT);
}

#[test]
fn killed_workers_are_not_noticed_with_fuse() {
    killed_workers("fuse", SHORT);
}

#[test]
#[ignore = "two minutes; part of make bench"]
fn a_minute_of_kills_is_not_noticed() {
    MODES.iter().for_each(|mode| killed_workers(mode, LONG));
}

/// Says that it is lazo, and does nothing.
const LIAR: &str = "#include <stdio.h>\nint main(int n, char **a) { puts(\"lazo 9.9.9\"); return n != 2; }\n";

/// Another file than the program's own, that runs as well.
fn another_build(stage: &Stage) -> PathBuf {
    let path = stage.served.scratch.join("another-lazo");
    copy_program(env!("CARGO_BIN_EXE_lazo").as_ref(), &path, "another build");
    path
}

#[test]
fn upgrades_are_not_noticed() {
    for mode in MODES {
        let stage = Stage::new(mode, SMALL_CACHE);
        let (node, other) = (stage.daemon(), another_build(&stage));
        let mounted = stage.mount(&node);
        stage.among_readers(mounted.path(), mode, || {
            for round in 0..UPGRADES {
                let before = node.worker();
                let program = if round % 2 == 0 { other.as_path() } else { Path::new(env!("CARGO_BIN_EXE_lazo")) };
                stage.served.scratch.lazo_ok([Path::new("daemon"), Path::new("upgrade"), program]);
                let worker = node.worker();
                assert_ne!(worker, before);
                let runs = fs::read_link(format!("/proc/{}/exe", worker.as_raw_nonzero())).expect("its program");
                assert_eq!(runs, fs::canonicalize(program).expect("a path"));
            }
        });
        assert_eq!(node.get("health")["upgrades"], UPGRADES);
        assert_eq!(node.get("health")["restarts"], 0);
        mounted.umount();
        node.stop();
    }
}

#[test]
fn a_program_that_is_no_lazo_is_no_upgrade() {
    let stage = Stage::new("fuse", "");
    let node = stage.daemon();
    let worker = node.worker();
    let error = stage.served.scratch.lazo_err(["daemon", "upgrade", "/bin/true"]);
    assert!(error.contains("does not say that it is lazo"), "{error}");
    // It says that it is lazo, and cannot be a worker.
    let liar = stage.served.scratch.join("liar");
    fs::write(liar.with_extension("c"), LIAR).expect("its source");
    run("cc", [liar.with_extension("c").as_path(), Path::new("-o"), &liar]);
    let mounted = stage.mount(&node);
    stage.among_readers(mounted.path(), "fuse", || {
        let _ = stage.served.scratch.lazo([Path::new("daemon"), Path::new("upgrade"), &liar]).output();
        until("the program before serves again", || node.log().contains("back to the one before").then_some(()));
        until("a worker is ready", || (node.log().matches("a worker is ready").count() == 2).then_some(()));
    });
    assert_ne!(node.worker(), worker);
    mounted.umount();
    node.stop();
}

#[test]
fn a_killed_supervisor_is_not_noticed_either() {
    for mode in MODES {
        let stage = Stage::new(mode, SMALL_CACHE);
        let first = stage.daemon();
        let mounted = stage.mount(&first);
        let orphan = first.worker();
        let mut second = None;
        stage.among_readers(mounted.path(), mode, || {
            first.abandon();
            thread::sleep(PERIOD);
            assert!(!has_ended(orphan), "the worker serves on");
            let node = stage.daemon();
            wait_for_end(orphan);
            kill_workers(&node, Duration::from_secs(1));
            second = Some(node);
        });
        mounted.umount();
        second.expect("a daemon").stop();
    }
}

#[test]
fn when_all_processes_are_killed_the_next_daemon_makes_mounts_anew() {
    for mode in MODES {
        let stage = Stage::new(mode, "");
        let first = stage.daemon();
        let mounted = stage.mount(&first);
        let original = stage.served.original();
        let (read, cold) = (original.next(), original.next());
        original.assert_same(mounted.path(), read);
        let held = fs::File::open(mounted.path().join(cold)).expect("a file");
        first.kill();
        let error = original.compare(mounted.path(), original.next()).expect_err("nobody serves it");
        let errors = [Errno::IO, Errno::NOTCONN, Errno::CONNABORTED].map(Errno::raw_os_error);
        assert!(errors.contains(&error.raw_os_error().unwrap_or(0)), "{error}");
        drop(held);
        let node = stage.daemon();
        until("the mount is there again", || original.compare(mounted.path(), cold).ok());
        original.assert_same(mounted.path(), read);
        original.assert_same(mounted.path(), original.next());
        assert_eq!(node.get("mounts").as_array().map(Vec::len), Some(1));
        mounted.umount();
        node.stop();
    }
}

#[test]
fn an_aborted_connection_is_made_anew() {
    let stage = Stage::new("erofs", "");
    let node = stage.daemon();
    let mounted = stage.mount(&node);
    let original = stage.served.original();
    original.assert_same(mounted.path(), original.next());
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").expect("the mount table")).into_owned();
    let blobs = stage.served.scratch.join("run/blobs");
    let line = table.lines().find(|line| line.split(' ').nth(4).map(Path::new) == Some(&blobs)).expect("the blobs");
    let minor = line.split(' ').nth(2).and_then(|device| device.split_once(':')).expect("a device").1;
    // Not mounted everywhere; twice does no harm.
    let control = "/sys/fs/fuse/connections";
    if !Path::new(control).join(minor).exists() {
        run("mount", ["-t", "fusectl", "none", control]);
    }
    fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").expect("an abort");
    until("the mount is made anew", || node.log().contains("a dead mount was made anew").then_some(()));
    original.assert_same(mounted.path(), original.next());
    mounted.umount();
    node.stop();
}

/// Processes in uninterruptible sleep that have to do with a directory.
fn stuck_below(directory: &Path) -> Vec<Pid> {
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let stuck = processes.filter_map(|entry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let concerned =
            line.windows(directory.as_os_str().len()).any(|part| part == directory.as_os_str().as_encoded_bytes());
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (concerned && stat.contains(") D ")).then(|| Pid::from_raw(pid)).flatten()
    });
    stuck.collect()
}

#[test]
fn nothing_is_stuck_when_nobody_serves() {
    for mode in MODES {
        let stage = Stage::new(mode, "");
        let node = stage.daemon();
        let mounted = stage.mount(&node);
        let path = mounted.path().join(stage.served.original().next());
        stage.proxy.set(crate::support::faults::Target::All, crate::support::faults::Fault::Hang);
        let mut reader = Command::new("cat");
        let reader = reader.arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cat");
        until("the read waits", || (sum(&node.metrics(), "lazo_stalled_readers") > 0.0).then_some(()));
        node.kill();
        let output = reader.wait_with_output().expect("cat ends");
        assert!(!output.status.success(), "{mode}: {} bytes came", output.stdout.len());
        assert_eq!(stuck_below(stage.served.scratch.path()), []);
        drop(mounted);
    }
}
