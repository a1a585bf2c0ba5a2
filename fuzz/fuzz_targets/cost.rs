//! What a reader may cost: its allocations are counted, and bounded by the length of what it reads.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// A bound: a constant, and so much more for each byte of the input.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    pub constant: usize,
    pub per_byte: usize,
}

impl Linear {
    fn at(self, length: usize) -> usize {
        self.constant + self.per_byte * length
    }
}

/// Bounds of one run.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Bytes allocated in all, those given back included: a measure of work.
    pub bytes: Linear,
    /// Allocations, and changes of their size.
    pub allocations: Linear,
    /// Bytes held at a time, beyond those held before.
    pub held: Linear,
}

static BYTES: AtomicUsize = AtomicUsize::new(0);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Runs `read`, and panics if that costs more than it may.
pub fn bounded(input: &[u8], cost: Cost, read: impl FnOnce()) {
    BYTES.store(0, Relaxed);
    ALLOCATIONS.store(0, Relaxed);
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    read();
    let held = PEAK.load(Relaxed).saturating_sub(before);
    for (what, found, bound) in [
        ("bytes allocated", BYTES.load(Relaxed), cost.bytes),
        ("allocations", ALLOCATIONS.load(Relaxed), cost.allocations),
        ("bytes held at a time", held, cost.held),
    ] {
        let most = bound.at(input.len());
        assert!(found <= most, "{found} {what} for {} bytes of input, more than {most}", input.len());
    }
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn grown(bytes: usize) {
    BYTES.fetch_add(bytes, Relaxed);
    ALLOCATIONS.fetch_add(1, Relaxed);
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: everything is done by the system's allocator, which is one; counting touches no memory of its callers.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as for the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_sub(layout.size(), Relaxed);
        grown(size);
        // SAFETY: as for the caller.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.dealloc(memory, layout) }
    }
}
