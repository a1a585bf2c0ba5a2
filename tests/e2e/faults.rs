//! What readers of a mount see when the network or the registry misbehaves: a pause, and EIO only where that is due.

use std::{
    os::unix::ffi::OsStrExt as _,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    faults::{Fault, Proxy, Target},
    mounted::Mounted,
    own::Image,
    served::{NAME, Served},
    tokens::Tokens,
};

/// What the readers of a mount may still wait for once all is well again, where eight mounts have their outages at the same time: a
/// second, and twice as much for a machine that is busy with all of them. Each reader reads a file, of several misses.
const RESUME: Duration = Duration::from_secs(3);
/// How long may pass until something happens that has to happen.
const LIMIT: Duration = Duration::from_secs(30);
const READERS: usize = 4;
/// No read-ahead of the whole image while nothing is read.
const NO_PREFETCH: &[&str] = &["--prefetch", "none"];

/// An image behind a proxy.
struct Stage {
    served: Served,
    proxy: Proxy,
}

impl Stage {
    fn new(corpus: &'static str) -> Self {
        Self::before(Served::new(corpus))
    }

    fn before(served: Served) -> Self {
        let proxy = Proxy::start(&served.registry.host);
        Self { served, proxy }
    }

    fn mount(&self) -> Mounted<'_> {
        self.served.mount(&self.proxy.image(NAME), NO_PREFETCH)
    }

    /// Reads file after file, each of which must be right, until faults have hit so many requests; then some more.
    fn read_until_hit(&self, mounted: &Mounted<'_>, hits: u64, what: &str) {
        let before = self.proxy.hits();
        let begin = Instant::now();
        while self.proxy.hits() < before + hits {
            assert!(begin.elapsed() < LIMIT, "{what}: no request was hit");
            self.served.original().assert_same(mounted.path(), self.served.original().next());
        }
        for _ in 0..5 {
            self.served.original().assert_same(mounted.path(), self.served.original().next());
        }
    }
}

fn wait_until(condition: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !condition() {
        if begin.elapsed() > LIMIT {
            return false;
        }
        thread::sleep(Duration::from_millis(2));
    }
    true
}

/// Breaks something for a time while readers are at work. They must wait, see no error and no wrong byte, and go on within
/// `resume` after all is well again.
fn pause(
    served: &Served,
    mount: &Path,
    what: &str,
    length: Duration,
    resume: Duration,
    (begin, end): (impl Fn(), impl Fn()),
) {
    let done = AtomicBool::new(false);
    let reads = [const { AtomicU64::new(0) }; READERS];
    let counts = || reads.each_ref().map(|count| count.load(Ordering::Relaxed));
    let read = |number: usize| {
        let mut spans = Vec::new();
        while !done.load(Ordering::Relaxed) {
            let start = Instant::now();
            served.original().assert_same(mount, served.original().next());
            spans.push((start, Instant::now()));
            reads[number].fetch_add(1, Ordering::Relaxed);
        }
        spans
    };
    let (freed, went_on, spans) = thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|number| scope.spawn(move || read(number))).collect();
        let begun = wait_until(|| counts().iter().all(|&count| count > 1) || readers.iter().any(|r| r.is_finished()));
        begin();
        // This is the outage itself.
        thread::sleep(length);
        let before = counts();
        end();
        let freed = Instant::now();
        let on = || counts().iter().zip(before).all(|(now, before)| *now > before);
        let went_on = begun && wait_until(|| on() || readers.iter().any(|reader| reader.is_finished()));
        done.store(true, Ordering::Relaxed);
        let spans: Vec<_> = readers.into_iter().map(|reader| reader.join().expect("a reader")).collect();
        (freed, went_on, spans)
    });
    assert!(went_on, "{what}: a reader did not go on");
    let waits = spans.iter().flatten().filter(|(start, end)| *start < freed && freed <= *end);
    let waits: Vec<_> = waits.map(|&(start, end)| (freed - start, end - freed)).collect();
    assert!(waits.iter().any(|(before, _)| *before > length / 2), "{what}: nobody had to wait: {waits:?}");
    assert!(waits.iter().all(|(_, after)| *after < resume), "{what}: still waiting after that: {waits:?}");
}

#[test]
fn a_hung_server_costs_a_pause() {
    let served = Served::new("debian");
    let mounted = served.mount(&served.image(), NO_PREFETCH);
    let hang = (|| served.registry.hang(), || served.registry.go_on());
    pause(&served, mounted.path(), "SIGSTOP", Duration::from_secs(20), Duration::from_secs(1), hang);
    mounted.umount();
}

#[test]
fn an_outage_of_any_kind_costs_a_pause() {
    const LENGTH: Duration = Duration::from_secs(4);
    let wait = Duration::from_secs(1);
    let outages = [
        (None, RESUME),
        (Some(Fault::Hang), RESUME),
        (Some(Fault::Reset), RESUME),
        (Some(Fault::Status(500)), RESUME),
        (Some(Fault::Status(503)), RESUME),
        (Some(Fault::Cut(0)), RESUME),
        (Some(Fault::Stall(1000)), RESUME),
        // They wait as long as they were told to.
        (Some(Fault::Busy(wait.as_secs())), RESUME + wait),
    ];
    thread::scope(|scope| {
        for (fault, resume) in outages {
            scope.spawn(move || {
                let stage = Stage::new("debian");
                let mounted = stage.mount();
                let (what, proxy) = (format!("{fault:?}"), &stage.proxy);
                let begin = || match &fault {
                    None => proxy.refuse(),
                    Some(fault) => proxy.set(Target::Blobs, fault.clone()),
                };
                let end = || if fault.is_none() { proxy.listen() } else { proxy.heal() };
                pause(&stage.served, mounted.path(), &what, LENGTH, resume, (begin, end));
                mounted.umount();
            });
        }
    });
}

#[test]
fn bad_answers_are_asked_for_again() {
    let stage = Stage::new("debian");
    let mounted = stage.mount();
    let several = [
        Fault::Status(500),
        Fault::Status(502),
        Fault::Status(408),
        Fault::Reset,
        Fault::Cut(0),
        Fault::Cut(1),
        Fault::Cut(100_000),
    ];
    let one = [Fault::Garble, Fault::OtherBounds, Fault::FirstByteOnly, Fault::Whole];
    for (fault, times) in several.into_iter().map(|fault| (fault, 3)).chain(one.into_iter().map(|fault| (fault, 1))) {
        let what = format!("{fault:?}");
        stage.proxy.set_times(Target::Blobs, fault, times);
        stage.read_until_hit(&mounted, times, &what);
    }
    mounted.umount();
}

#[test]
fn a_busy_server_is_left_alone_as_long_as_it_says() {
    let stage = Stage::new("debian");
    let mounted = stage.mount();
    stage.proxy.set_times(Target::Blobs, Fault::Busy(2), 1);
    stage.read_until_hit(&mounted, 1, "429");
    let log = stage.proxy.log();
    let busy = log.iter().find(|request| request.status == 429).expect("the request that was refused");
    let next = log.iter().find(|request| request.is_blob_range() && request.began > busy.last).expect("another");
    let pause = next.began - busy.last;
    assert!(pause >= Duration::from_millis(1900), "asked again after {pause:?}");
    mounted.umount();
}

#[test]
fn every_answer_cut_short_still_brings_readers_on() {
    /// Above the largest chunk as stored: each answer brings one at least.
    const CUT: u64 = 300_000;
    let stage = Stage::new("debian");
    let mounted = stage.mount();
    stage.proxy.set(Target::Blobs, Fault::Cut(CUT));
    stage.read_until_hit(&mounted, 10, "always cut");
    mounted.umount();
}

#[test]
fn wrong_bytes_fail_one_file_and_only_as_long_as_they_come() {
    /// Two chunks of its own.
    const VICTIM: &str = "odd/data/noise-524288";
    let stage = Stage::new("small");
    let image = Image::open(&stage.served.layout, "lazo", &stage.served.scratch.dir("image"));
    let (blob, chunk) = image.chunks_of(VICTIM.as_bytes())[1];
    let digest = image.index.blob(blob).expect("a blob record").digest.to_string();
    let at = image.index.chunk(chunk).expect("a chunk record").compressed_offset + 1000;
    let mounted = stage.mount();
    stage.proxy.set(Target::Path(digest), Fault::Flip(at));
    let original = stage.served.original();
    for _ in 0..2 {
        let error = original.compare(mounted.path(), Path::new(VICTIM)).expect_err("wrong bytes were served");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    }
    let shares = |path: &Path| image.chunks_of(path.as_os_str().as_bytes()).contains(&(blob, chunk));
    for path in original.files().iter().filter(|path| !shares(path)) {
        original.assert_same(mounted.path(), path);
    }
    stage.proxy.heal();
    let healed = Instant::now();
    while let Err(error) = original.compare(mounted.path(), Path::new(VICTIM)) {
        assert!(healed.elapsed() < RESUME, "still an error: {error}");
    }
    mounted.umount();
}

#[test]
fn tokens_expire_while_mounted() {
    const VALIDITY: Duration = Duration::from_secs(3);
    const PHASES: u64 = 3;
    let scratch = crate::support::Scratch::new();
    let tokens = Tokens::start(&scratch, VALIDITY);
    let stage = Stage::before(Served::with("debian", &tokens.configuration()));
    let mounted = stage.mount();
    for phase in 0..PHASES {
        if phase > 0 {
            // No event tells of a token's end.
            thread::sleep(VALIDITY);
        }
        let before = stage.proxy.data_requests().len();
        while stage.proxy.data_requests().len() < before + 5 {
            stage.served.original().assert_same(mounted.path(), stage.served.original().next());
        }
    }
    assert!(tokens.issued() >= PHASES, "{} tokens", tokens.issued());
    let refused = stage.proxy.log().iter().filter(|request| request.status == 401 && request.authorized).count();
    assert!(refused >= 1, "no token was used to its end");
    mounted.umount();
}

#[test]
fn signed_urls_expire_while_mounted() {
    const VALIDITY: Duration = Duration::from_secs(1);
    let stage = Stage::new("debian");
    stage.proxy.sign_for(Some(VALIDITY));
    let mounted = stage.mount();
    for phase in 0..3 {
        if phase > 0 {
            // No event tells of a signature's end.
            thread::sleep(VALIDITY + Duration::from_millis(100));
        }
        let before = stage.proxy.data_requests().len();
        while stage.proxy.data_requests().len() < before + 5 {
            stage.served.original().assert_same(mounted.path(), stage.served.original().next());
        }
    }
    let signed = stage.proxy.data_requests().iter().filter(|request| request.path.starts_with("/signed/")).count();
    assert!(signed >= 15, "{signed} requests of signed URLs");
    mounted.umount();
}
