//! Several sources of one image, some of which fail; and all of them, for longer than readers wait.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    faults::{Fault, Proxy, Target},
    metrics::{scrape, sum},
    mounted::Mounted,
    served::{NAME, Served},
};

/// What any reader may wait for when another source can serve him.
const PROMPT: Duration = Duration::from_secs(2);
/// The first-byte timeout of the default policy, once, and what is promised else.
const ONE_TIMEOUT: Duration = Duration::from_secs(12);

/// An image in a registry, which is reached by a mirror or directly, each through a proxy.
struct Mirrored {
    served: Served,
    mirror: Proxy,
    direct: Proxy,
}

impl Mirrored {
    fn new() -> Self {
        let served = Served::new("debian");
        let [mirror, direct] = [(); 2].map(|()| Proxy::start(&served.registry.host));
        let directory = served.scratch.dir(&format!("hosts/{}", direct.host()));
        let text = format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
            direct.host(),
            mirror.host()
        );
        fs::write(directory.join("hosts.toml"), text).expect("hosts.toml");
        Self { served, mirror, direct }
    }

    fn mount(&self) -> Mounted<'_> {
        let hosts = self.served.scratch.join("hosts");
        let options = ["--prefetch", "none", "--hosts-dir", hosts.to_str().expect("a plain path")];
        self.served.mount(&self.direct.image(NAME), &options)
    }

    /// Reads new files, all of which must be right, until `proxy` has been asked for data so many times; what each took.
    fn read(&self, mounted: &Mounted<'_>, proxy: &Proxy, requests: usize) -> Vec<Duration> {
        let before = proxy.data_requests().len();
        let mut times = Vec::new();
        while proxy.data_requests().len() < before + requests {
            let begin = Instant::now();
            self.served.original().assert_same(mounted.path(), self.served.original().next());
            times.push(begin.elapsed());
        }
        times
    }
}

#[test]
fn a_mirror_is_used_before_the_registry_itself() {
    let stage = Mirrored::new();
    let mounted = stage.mount();
    stage.read(&mounted, &stage.mirror, 5);
    assert_eq!(stage.direct.data_requests().len(), 0);
    mounted.umount();
}

#[test]
fn a_dead_mirror_costs_nearly_nothing() {
    let stage = Mirrored::new();
    let mounted = stage.mount();
    stage.read(&mounted, &stage.mirror, 3);
    stage.mirror.refuse();
    let times = stage.read(&mounted, &stage.direct, 20);
    assert!(times.iter().all(|time| *time < PROMPT), "{times:?}");
    mounted.umount();
}

#[test]
fn a_silent_mirror_costs_one_timeout_and_not_one_a_read() {
    let stage = Mirrored::new();
    let mounted = stage.mount();
    stage.read(&mounted, &stage.mirror, 3);
    stage.mirror.set(Target::All, Fault::Hang);
    let mut times = stage.read(&mounted, &stage.direct, 20);
    times.sort_unstable();
    let slowest = times.pop().expect("a read");
    assert!(slowest < ONE_TIMEOUT, "{slowest:?}");
    assert!(times.iter().all(|time| *time < PROMPT), "{times:?}");
    mounted.umount();
}

#[test]
fn a_mirror_that_breaks_off_or_refuses_costs_nearly_nothing() {
    let stage = Mirrored::new();
    let mounted = stage.mount();
    for fault in
        [Fault::Status(500), Fault::Status(404), Fault::Status(403), Fault::Busy(60), Fault::Cut(1000), Fault::Reset]
    {
        let what = format!("{fault:?}");
        stage.mirror.set(Target::Blobs, fault);
        let times = stage.read(&mounted, &stage.direct, 4);
        assert!(times.iter().all(|time| *time < PROMPT), "{what}: {times:?}");
    }
    mounted.umount();
}

#[test]
fn wrong_bytes_of_one_mirror_reach_nobody() {
    let stage = Mirrored::new();
    let mounted = stage.mount();
    stage.mirror.set(Target::Blobs, Fault::Garble);
    let times = stage.read(&mounted, &stage.direct, 10);
    assert!(times.iter().all(|time| *time < PROMPT), "{times:?}");
    assert!(stage.mirror.hits() >= 1, "the mirror was not asked");
    assert!(sum(&scrape(&stage.served.scratch), "lazo_wrong_chunks_total") >= 1.0);
    mounted.umount();
}

#[test]
fn an_outage_past_the_limit_is_an_error_until_the_outage_ends() {
    const OUTAGE_LIMIT: Duration = Duration::from_secs(3);
    /// A read that takes longer has waited for the outage to end: it would wait as long as the limit.
    const AT_ONCE: Duration = Duration::from_secs(2);
    /// What the last attempt and the kernel's own repeated reads may add.
    const LATE: Duration = Duration::from_secs(2);
    let served = Served::new("debian");
    let proxy = Proxy::start(&served.registry.host);
    let blobs = served.manifest.blobs().len();
    let limit = OUTAGE_LIMIT.as_secs().to_string();
    let mounted = served.mount(&proxy.image(NAME), &["--prefetch", "none", "--outage-limit", &limit]);
    let original = served.original();
    let read = |path: &Path| {
        let begin = Instant::now();
        (original.compare(mounted.path(), path), begin.elapsed())
    };
    for fault in [None, Some(Fault::Status(503)), Some(Fault::Reset)] {
        let what = format!("{fault:?}");
        original.assert_same(mounted.path(), original.next());
        match fault {
            None => proxy.refuse(),
            Some(fault) => proxy.set(Target::All, fault),
        }
        let begin = Instant::now();
        let (mut failed, mut waits) = (Vec::new(), 0);
        // Some are in the cache; and the limit is kept for each blob.
        while failed.len() < blobs + 5 {
            let path = original.next();
            let (result, took) = read(path);
            let Err(error) = result else { continue };
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{what}: {error}");
            assert!(begin.elapsed() >= OUTAGE_LIMIT, "{what}: an error after {:?}", begin.elapsed());
            assert!(took < OUTAGE_LIMIT + LATE, "{what}: error {} took {took:?}", failed.len() + 1);
            waits += usize::from(took > AT_ONCE);
            failed.push(path);
        }
        assert!(waits <= blobs, "{what}: {waits} reads waited, there are {blobs} blobs");
        proxy.heal();
        if what == "None" {
            proxy.listen();
        }
        let healed = Instant::now();
        while original.compare(mounted.path(), failed[0]).is_err() {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(healed.elapsed() < Duration::from_secs(3), "{what}: back after {:?}", healed.elapsed());
        for path in failed {
            original.assert_same(mounted.path(), path);
        }
    }
    assert!(sum(&scrape(&served.scratch), "lazo_outages_total") >= 3.0);
    mounted.umount();
}
