//! The same as without a service manager (`survive/orders.rs`): no order in which everything of lazo's is stopped, killed, replaced
//! and started is noticed by a container that reads cold data.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use lazo_format::Digest;

use super::{CONTAINER, settled};
use crate::support::{
    Scratch,
    metrics::until,
    output_of,
    random::Random,
    served::{NAME, Served},
    systemd::{Machine, REGISTRY},
};

/// Orders that are tried.
const ORDERS: u64 = 50;
/// Files that are read between two events.
const PROGRESS: u64 = 16;

/// Reads files of its root in random order, each without its pages in memory, and compares them with a list of digests, until there is
/// a file `/watch/stop`. How many it has read is in `/watch/count`; what is wrong, in `/watch/wrong`.
const READER: &str = r#"
import hashlib, os, random
lines = [line.split("  ", 1) for line in open("/watch/digests").read().splitlines()]
count = 0
while not os.path.exists("/watch/stop"):
    digest, name = random.choice(lines)
    try:
        with open("/" + name, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            found = hashlib.sha256(file.read()).hexdigest()
        problem = None if found == digest else "wrong bytes"
    except OSError as error:
        problem = str(error)
    if problem:
        open("/watch/wrong", "a").write(f"{name}: {problem}\n")
    count += 1
    open("/watch/count.new", "w").write(str(count))
    os.rename("/watch/count.new", "/watch/count")
"#;

/// What happens to the machine, as a command line there. `OTHER` is another version of the program.
const EVENTS: [&str; 19] = [
    "systemctl restart lazo",
    "systemctl stop lazo",
    "systemctl reload lazo",
    "systemctl kill lazo",
    "systemctl kill --signal=INT lazo",
    "systemctl kill --signal=HUP lazo",
    "systemctl kill --signal=KILL --kill-who=main lazo",
    "systemctl kill --signal=KILL --kill-who=all lazo",
    "pkill --signal KILL --full ^lazo.daemon.--process.mounter",
    "systemctl restart lazo-snapshotter",
    "systemctl kill --signal=KILL lazo-snapshotter",
    "systemctl restart containerd",
    "systemctl kill --signal=KILL --kill-who=main containerd",
    "systemctl restart registry",
    "systemctl restart lazo lazo-snapshotter containerd registry",
    "systemctl stop lazo lazo-snapshotter.socket lazo-snapshotter containerd",
    "lazo daemon upgrade /usr/bin/lazo-other",
    "lazo daemon upgrade /usr/bin/lazo",
    "cp --remove-destination /usr/bin/lazo-other /usr/bin/lazo",
];

/// Where the machine has what the container sees as `/watch`.
const WATCH: &str = "/srv/watch";

/// That directory, from here.
struct Watch(PathBuf);

impl Watch {
    fn new(machine: &Machine<'_>, served: &Served) -> Self {
        let watch = Self(machine.root().join(WATCH.trim_start_matches('/')));
        fs::create_dir_all(&watch.0).expect("a directory");
        let root = served.original().root();
        let names = served.original().large().iter().filter_map(|path| path.to_str());
        let line = |name: &str| {
            let bytes = fs::read(root.join(name)).expect("an original");
            format!("{}  {name}\n", Digest::sha256_of(&bytes).hex())
        };
        fs::write(watch.0.join("digests"), names.map(line).collect::<String>()).expect("the list");
        watch
    }

    fn count(&self) -> u64 {
        fs::read_to_string(self.0.join("count")).ok().and_then(|count| count.parse().ok()).unwrap_or(0)
    }

    fn assert_right(&self, when: &str) {
        let wrong = fs::read_to_string(self.0.join("wrong")).unwrap_or_default();
        assert_eq!(wrong, "", "{when}");
    }
}

/// Starts what an event has stopped, and does again what it has undone.
fn mend(machine: &Machine<'_>) {
    let start = ["start", "registry", "lazo-snapshotter.socket", "containerd", "lazo"];
    // A unit that was killed just now fails to start, and is started again by itself.
    until("all units are started", || {
        output_of(&mut machine.command("systemctl", start)).status.success().then_some(())
    });
    settled(machine);
}

/// Another program than the one that is tested: an older or newer one, if the environment names one.
fn put_other(machine: &Machine<'_>) -> io::Result<()> {
    let (own, other) = (Path::new(env!("CARGO_BIN_EXE_lazo")), std::env::var_os("LAZO_TEST_OTHER"));
    let other = other.map_or_else(|| own.to_owned(), PathBuf::from);
    let put = |from: &Path, name: &str| {
        let to = machine.root().join("usr/bin").join(name);
        let new = to.with_extension("new");
        fs::copy(from, &new)?;
        io::Write::write_all(&mut File::options().append(true).open(&new)?, name.as_bytes())?;
        fs::rename(&new, &to)
    };
    put(&other, "lazo-other")?;
    put(own, "lazo")
}

#[test]
#[ignore = "half an hour; part of make soak"]
fn soak_no_order_of_units_is_noticed() {
    let (scratch, served) = (Scratch::new(), Served::new("debian"));
    let machine = Machine::boot_with(&scratch, &served.storage(), "cache_limit = \"64M\"\n");
    let watch = Watch::new(&machine, &served);
    let image = format!("{REGISTRY}/{NAME}");
    machine.run("lazo", ["pull", &image]);
    let bind = format!("type=bind,src={WATCH},dst=/watch,options=rbind:rw");
    for seed in 0..ORDERS {
        put_other(&machine).expect("the programs");
        let run = ["run", "--detach", "--null-io", "--snapshotter", "lazo", "--cpu-shares", "0", "--mount", &bind];
        let program = [&*image, CONTAINER, "/usr/bin/python3", "-c", READER];
        machine.run("ctr", run.into_iter().chain(program));
        let mut events = EVENTS;
        Random::new(seed).shuffle(&mut events);
        for event in events {
            eprintln!("order {seed}: {event}");
            let (program, rest) = event.split_once(' ').expect("arguments");
            machine.run(program, rest.split(' '));
            let count = watch.count();
            until("the container reads on", || (watch.count() >= count + PROGRESS).then_some(()));
            watch.assert_right(event);
            mend(&machine);
        }
        fs::write(watch.0.join("stop"), "").expect("the file that says stop");
        until("the container has ended", || {
            output_of(&mut machine.command("ctr", ["task", "rm", CONTAINER])).status.success().then_some(())
        });
        machine.run("ctr", ["container", "rm", CONTAINER]);
        fs::remove_file(watch.0.join("stop")).expect("it is there");
    }
    machine.run("ctr", ["image", "rm", "--sync", &image]);
    machine.run("systemctl", ["stop", "lazo"]);
    until("nothing is left of the daemon", || {
        let left = output_of(&mut machine.command("pgrep", ["--full", "lazo daemon|daemon --process"]));
        (!left.status.success()).then_some(())
    });
    let table = machine.run("cat", ["/proc/1/mountinfo"]);
    assert!(!table.contains("/run/lazo"), "{table}");
}
