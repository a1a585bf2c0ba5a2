//! Keeps files' pages out of the page cache that the kernel has a copy of elsewhere.
//!
//! What is read through a mount stays in the page cache as the pages of the file that was read. The cache file of the blob below it, and
//! the blob's file in the FUSE mount below EROFS, would stay there too: each byte twice or three times. So what was served of
//! such a file is dropped again, some megabytes behind what is being read, so that what is read piecemeal is read from the disk
//! once. What was written is dropped later than what was read, as it is likely to be read soon, and in two steps: dirty pages are
//! first written to the disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, fadvise};

/// How much of what was read stays behind: several requests of the largest size for each thread that reads.
const READ_WINDOW: u64 = 16 << 20;

/// The same for what was written and not yet read.
const WRITTEN_WINDOW: u64 = 16 << 20;

/// What has lain in a window for so long is dropped although there is room for it.
const IDLE: Duration = Duration::from_secs(2);

/// How long the disk gets to write what was dirty.
const WRITEBACK: Duration = Duration::from_secs(2);

/// How often files are swept whole that the kernel reads by itself.
const SWEEP: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };

/// Most ranges in a window: 16 MiB of single blocks, which lie apart.
const MOST_RANGES: usize = 4096;

/// The last ranges of a window that a further one may continue: as many as readers go on in parallel.
const OPEN_RANGES: usize = 16;

/// Ranges are widened to multiples of this. Pages lie in larger units, of which none is dropped in part; 1 MiB is the largest request.
const GRAIN: u64 = 1 << 20;

/// Drops pages, on a thread of its own, which ends with this. One for each process.
#[derive(Debug)]
pub struct Trimmer(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Debug, Default)]
struct State {
    read: Window,
    written: Window,
    /// Ranges of which dirty pages are being written.
    again: VecDeque<Served>,
    swept: Vec<Weak<File>>,
    next_sweep: Option<Instant>,
    stop: bool,
}

#[derive(Debug, Default)]
struct Window {
    ranges: VecDeque<Served>,
    bytes: u64,
}

/// Part of a file, and when it was last read or written.
#[derive(Debug)]
struct Served {
    file: Weak<File>,
    range: Range<u64>,
    at: Instant,
}

impl Trimmer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start() -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let run = Arc::clone(&shared);
        std::thread::Builder::new().name("lazo-trim".into()).spawn(move || run.run())?;
        Ok(Self(shared))
    }

    /// Bytes at `range` of a file were read for somebody who keeps them: the file's own pages are dropped in a while. The file is not
    /// held open for that.
    pub fn served(&self, file: &Arc<File>, range: Range<u64>) {
        self.0.add(file, range, |state| (&mut state.read, READ_WINDOW));
    }

    /// Bytes at `range` of a file were written.
    pub(crate) fn written(&self, file: &Arc<File>, range: Range<u64>) {
        self.0.add(file, range, |state| (&mut state.written, WRITTEN_WINDOW));
    }

    /// Drops all of a file's pages now and then, until the file is closed: the kernel reads it without saying so.
    pub fn sweep(&self, file: &Arc<File>) {
        let mut state = self.0.lock();
        state.swept.retain(|file| file.strong_count() > 0);
        state.swept.push(Arc::downgrade(file));
        state.next_sweep.get_or_insert_with(|| Instant::now() + SWEEP);
        self.0.work.notify_one();
    }
}

impl Drop for Trimmer {
    fn drop(&mut self) {
        self.0.lock().stop = true;
        self.0.work.notify_one();
    }
}

/// Drops all clean pages of a file, and begins to write the others.
pub(crate) fn drop_all(file: &File) {
    // It only saves memory.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
}

impl Window {
    /// Adds a range, or continues one of the last.
    fn add(&mut self, file: &Arc<File>, range: &Range<u64>, now: Instant) {
        let near = |served: &&mut Served| {
            // Not the whole of a long stream is to be kept until its end.
            served.length() < GRAIN
                && std::ptr::eq(served.file.as_ptr(), Arc::as_ptr(file))
                && served.range.start <= range.end
                && range.start <= served.range.end
        };
        if let Some(served) = self.ranges.iter_mut().rev().take(OPEN_RANGES).find(near) {
            let before = served.length();
            served.range = served.range.start.min(range.start)..served.range.end.max(range.end);
            served.at = now;
            self.bytes += served.length() - before;
        } else {
            self.bytes += range.end - range.start;
            self.ranges.push_back(Served { file: Arc::downgrade(file), range: range.clone(), at: now });
        }
    }

    fn is_too_full(&self, most: u64) -> bool {
        self.bytes > most || self.ranges.len() > MOST_RANGES
    }

    /// Takes out what is too much, or has been there for too long.
    fn take(&mut self, most: u64, now: Instant, due: &mut Vec<Served>) {
        while let Some(first) = self.ranges.front() {
            if !self.is_too_full(most) && first.at + IDLE > now {
                break;
            }
            let Some(first) = self.ranges.pop_front() else { break };
            self.bytes -= first.length();
            due.push(first);
        }
    }
}

impl Served {
    fn length(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn drop_pages(&self) {
        let Some(file) = self.file.upgrade() else { return };
        let (start, end) = (self.range.start / GRAIN * GRAIN, self.range.end.next_multiple_of(GRAIN));
        let _ = fadvise(&*file, start, NonZeroU64::new(end - start), Advice::DontNeed);
    }
}

/// What the thread is to do next.
#[derive(Debug, Default)]
struct Work {
    read: Vec<Served>,
    /// Of these, dirty pages may be left.
    written: Vec<Served>,
    swept: Vec<Arc<File>>,
}

impl State {
    /// What is due, and when to look again.
    fn due(&mut self, now: Instant) -> (Work, Option<Instant>) {
        let mut work = Work::default();
        self.read.take(READ_WINDOW, now, &mut work.read);
        self.written.take(WRITTEN_WINDOW, now, &mut work.written);
        while self.again.front().is_some_and(|served| served.at + WRITEBACK <= now) {
            work.read.extend(self.again.pop_front());
        }
        if self.next_sweep.is_some_and(|at| at <= now) {
            self.swept.retain(|file| file.strong_count() > 0);
            work.swept = self.swept.iter().filter_map(Weak::upgrade).collect();
            self.next_sweep = (!self.swept.is_empty()).then(|| now + SWEEP);
        }
        let idle = [&self.read, &self.written].into_iter().filter_map(|w| Some(w.ranges.front()?.at + IDLE));
        let again = self.again.front().map(|served| served.at + WRITEBACK);
        (work, idle.chain(again).chain(self.next_sweep).min())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, file: &Arc<File>, range: Range<u64>, window: impl Fn(&mut State) -> (&mut Window, u64)) {
        if range.is_empty() {
            return;
        }
        let mut state = self.lock();
        let (window, most) = window(&mut state);
        let was_empty = window.ranges.is_empty();
        window.add(file, &range, Instant::now());
        if was_empty || window.is_too_full(most) {
            self.work.notify_one();
        }
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.stop {
            let now = Instant::now();
            let (work, next) = state.due(now);
            if work.is_empty() {
                state = match next {
                    None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                    Some(next) => {
                        let wait = next.saturating_duration_since(now);
                        self.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                    }
                };
                continue;
            }
            drop(state);
            work.read.iter().chain(&work.written).for_each(Served::drop_pages);
            work.swept.iter().for_each(|file| drop_all(file));
            drop(work.swept);
            state = self.lock();
            let now = Instant::now();
            state.again.extend(work.written.into_iter().map(|served| Served { at: now, ..served }));
        }
    }
}

impl Work {
    fn is_empty(&self) -> bool {
        self.read.is_empty() && self.written.is_empty() && self.swept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;
    use std::process::Command;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// No tmpfs, whose pages are all there is.
    const DISK: &str = "/var/tmp";

    /// Longest wait for the thread.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// Bytes of a file in the page cache.
    fn in_memory(path: &Path) -> u64 {
        let out =
            Command::new("fincore").args(["--bytes", "--noheadings", "--output", "RES"]).arg(path).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
    }

    fn until(what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A file on the disk, its pages clean and in memory.
    fn file(mib: u64) -> (tempfile::NamedTempFile, Arc<File>) {
        let mut named = tempfile::NamedTempFile::new_in(DISK).unwrap();
        (0..mib).for_each(|_| named.write_all(&vec![7; 1 << 20]).unwrap());
        named.as_file().sync_all().unwrap();
        let file = Arc::new(File::open(named.path()).unwrap());
        read(&file, 0..mib * MIB);
        assert_eq!(in_memory(named.path()), mib * MIB);
        (named, file)
    }

    fn read(file: &File, range: Range<u64>) {
        let mut buf = vec![0; 64 << 10];
        for at in range.step_by(buf.len()) {
            file.read_exact_at(&mut buf, at).unwrap();
        }
    }

    #[test]
    fn what_was_served_stays_for_a_window_and_no_longer_than_it_is_used() {
        let (path, file) = file(48);
        let trimmer = Trimmer::start().unwrap();
        for at in (0..40 * MIB).step_by(128 << 10) {
            trimmer.served(&file, at..at + (128 << 10));
        }
        until("what is behind the window goes at once", || in_memory(path.path()) <= 8 * MIB + READ_WINDOW + GRAIN);
        until("then the rest, and nothing that was not served", || in_memory(path.path()) == 8 * MIB);
        let weak = Arc::downgrade(&file);
        trimmer.served(&file, 0..MIB);
        drop(file);
        assert!(weak.upgrade().is_none(), "it is not held open");
    }

    #[test]
    fn what_was_written_goes_when_the_disk_has_it() {
        let mut named = tempfile::NamedTempFile::new_in(DISK).unwrap();
        let trimmer = Trimmer::start().unwrap();
        let file = Arc::new(File::open(named.path()).unwrap());
        for part in 0..8 {
            named.write_all(&vec![7; 1 << 20]).unwrap();
            trimmer.written(&file, part * MIB..(part + 1) * MIB);
        }
        assert_eq!(in_memory(named.path()), 8 * MIB, "it is likely to be read soon");
        until("nobody has read it", || in_memory(named.path()) == 0);
        let mut byte = [0];
        file.read_exact_at(&mut byte, 5 * MIB).unwrap();
        assert_eq!(byte, [7]);
    }

    #[test]
    fn files_that_the_kernel_reads_are_swept_until_they_are_closed() {
        let (path, file) = file(4);
        let trimmer = Trimmer::start().unwrap();
        trimmer.sweep(&file);
        until("the sweep", || in_memory(path.path()) == 0);
        drop(file);
        until("the end of it", || trimmer.0.lock().next_sweep.is_none());
    }

    #[test]
    fn windows_join_streams_and_are_bounded() {
        let (_path, file) = file(1);
        let mut window = Window::default();
        let now = Instant::now();
        for at in (0..10 * MIB).step_by(4096) {
            window.add(&file, &(at..at + 4096), now);
            window.add(&file, &(at + (1 << 40)..at + (1 << 40) + 4096), now);
        }
        assert_eq!((window.bytes, window.ranges.len()), (20 * MIB, 20));
        window.add(&file, &(4096..8192), now);
        assert!(window.ranges.len() <= 21);
        let mut due = Vec::new();
        window.take(READ_WINDOW, now, &mut due);
        assert!(window.bytes <= READ_WINDOW && due.len() >= 4);
        window.take(READ_WINDOW, now + IDLE, &mut due);
        assert_eq!((window.bytes, window.ranges.len()), (0, 0));
        (0..2 * MOST_RANGES as u64).for_each(|n| window.add(&file, &(n * MIB..n * MIB + 4096), now));
        window.take(READ_WINDOW, now, &mut due);
        assert_eq!(window.ranges.len(), MOST_RANGES);
    }
}
