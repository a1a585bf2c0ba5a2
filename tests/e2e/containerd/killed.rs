//! Daemon, snapshotter and containerd are killed and started again, in every order, while containers run.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::support::{
    Scratch,
    containerd::Site,
    crafted::{Layer, publish},
    faults::Proxy,
    manager::Manager,
    metrics::until,
    random::Random,
    registry::Registry,
    run,
};

/// Files that the containers read, in an order that has nothing to do with where they lie, and their size. Far more than a miss
/// brings along, so that there is always something that must still be fetched.
const FILES: u64 = 320;
const SIZE: usize = 256 << 10;

/// Reads every file once, not too fast until it is told to hurry, and says what was in it.
const READER: &str = "for name in $(cat /order); do \
    md5sum /data/$name >> /out/sums || { echo $name >> /out/failed; exit 1; }; test -e /out/hurry || sleep 0.12; done; echo all >> /out/end";

#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Daemon,
    Snapshotter,
    Containerd,
}
use Part::{Containerd, Daemon, Snapshotter};

const ORDERS: [[Part; 3]; 6] = [
    [Daemon, Snapshotter, Containerd],
    [Daemon, Containerd, Snapshotter],
    [Snapshotter, Daemon, Containerd],
    [Snapshotter, Containerd, Daemon],
    [Containerd, Daemon, Snapshotter],
    [Containerd, Snapshotter, Daemon],
];

/// A container that reads, and where it writes what it has read.
struct Reader {
    out: PathBuf,
}

impl Reader {
    fn read(&self) -> Vec<String> {
        let text = fs::read_to_string(self.out.join("sums")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until it has read some more.
    fn go_on(&self, what: &str) {
        let before = self.read().len();
        until(what, || {
            assert!(!self.out.join("failed").exists(), "{what}: a read has failed");
            let ended = self.out.join("end").exists();
            (ended || self.read().len() >= before + 2).then_some(())
        });
    }
}

/// Files of random bytes, the order to read them in, and what md5sum says of them.
fn image(dir: &Path) -> (Layer, Vec<String>) {
    let mut random = Random::new(5);
    let mut names: Vec<String> = (0..FILES).map(|number| format!("f{number:03}")).collect();
    let layer = names.iter().fold(Layer::new().busybox(), |layer, name| {
        let bytes: Vec<u8> = (0..SIZE / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        fs::write(dir.join(name), &bytes).expect("a file");
        layer.file(&format!("data/{name}"), 0o644, &bytes)
    });
    random.shuffle(&mut names);
    let sums = run("sh", ["-c", &format!("cd {}; md5sum {}", dir.display(), names.join(" "))]);
    let sums = sums.lines().map(|line| line.replace("  ", "  /data/")).collect();
    (layer.file("order", 0o644, names.join("\n").as_bytes()), sums)
}

#[test]
fn kills_in_every_order_are_not_noticed() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let (layer, sums) = image(&scratch.dir("originals"));
    publish(&scratch, &registry, "app", vec![layer]);
    let proxy = Proxy::start(&registry.host);
    let image = proxy.image("app:lazo");
    let mut manager = Manager::new(&scratch, super::CONFIG);
    manager.start();
    let mut site = Site::start(&scratch);
    site.pull(&image, &[]);
    let reader = Reader { out: scratch.dir("out") };
    let mount = format!("type=bind,src={},dst=/out,options=rbind:rw", reader.out.display());
    let id = site.start_container(&image, &["--mount", &mount], READER);
    reader.go_on("the container reads");
    for order in ORDERS {
        let before = proxy.data_requests().len();
        for (number, part) in order.into_iter().enumerate() {
            match part {
                Daemon => manager.kill(),
                Snapshotter => site.kill_snapshotter(),
                Containerd => site.kill_containerd(),
            }
            if !order[..=number].contains(&Daemon) {
                reader.go_on(&format!("{order:?}, without {part:?}"));
            }
        }
        for part in order {
            match part {
                Daemon => manager.start(),
                Snapshotter => site.start_snapshotter(),
                Containerd => site.start_containerd(),
            }
        }
        reader.go_on(&format!("{order:?}, all started again"));
        assert_eq!(site.exec(&id, "echo alive"), "alive\n", "{order:?}");
        assert_eq!(site.run_ok("lazo", &image, "head -c 0 /data/f001; echo another"), "another\n", "{order:?}");
        assert!(proxy.data_requests().len() > before, "{order:?}: nothing cold was read");
    }
    assert!(!reader.out.join("end").exists(), "the container was done before the last kill");
    fs::write(reader.out.join("hurry"), "").expect("a file");
    until("all is read", || reader.out.join("end").exists().then_some(()));
    assert_eq!(reader.read(), sums);
    site.remove_container(&id);
    assert_eq!(super::image_mounts(&scratch), 1);
}
