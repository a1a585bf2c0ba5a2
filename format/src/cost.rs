//! Counts what the readers of this crate do, when they are fuzzed or tested: a step for each structure that is cut out of foreign
//! bytes. Crashes are found without it; that work stays in proportion to the input is not. In all other builds it is nothing.

/// Counts a step of this thread.
#[inline]
pub(crate) fn step() {
    #[cfg(any(test, fuzzing))]
    counting::STEPS.set(counting::STEPS.get() + 1);
}

#[cfg(any(test, fuzzing))]
pub use counting::{assert_bootstrap_is_cheap, assert_index_is_cheap};

#[cfg(any(test, fuzzing))]
mod counting {
    use std::cell::Cell;

    use crate::{BlobIndex, Bootstrap, ChunkIndex, DeviceAddr, Index, Nid};

    thread_local! {
        pub(super) static STEPS: Cell<u64> = const { Cell::new(0) };
    }

    /// Steps of a validation, beside those for what is validated.
    const FIXED: u64 = 4 << 10;

    /// Steps of a validation for each byte of a bootstrap. The dearest are names of 1 byte that lead to a file: some 13 steps for 13 bytes.
    const STEPS_PER_BYTE: u64 = 2;

    /// Steps of a validation for each record of an index. The dearest are prefetch ranges, each with two binary searches among blobs.
    const STEPS_PER_RECORD: u64 = 32;

    /// Most steps of a single access: a few binary searches.
    const ACCESS: u64 = 256;

    /// Most steps to a run of a file: of at most 1024 map entries.
    const RUN: u64 = 8 << 10;

    /// Inodes, and places in an index, that are looked at by themselves.
    const PLACES: usize = 64;

    /// How many steps some work takes.
    fn steps<T>(work: impl FnOnce() -> T) -> u64 {
        let before = STEPS.get();
        // The outcome is another test's.
        drop(work());
        STEPS.get() - before
    }

    /// Looks at a bootstrap in every way and panics where that takes more steps than it may.
    pub fn assert_bootstrap_is_cheap(bytes: &[u8]) {
        let Ok(bootstrap) = Bootstrap::parse(bytes) else { return };
        let (taken, allowed) = (steps(|| bootstrap.validate()), FIXED + STEPS_PER_BYTE * bytes.len() as u64);
        assert!(taken <= allowed, "{taken} steps to validate {} bytes", bytes.len());
        let numbers = (0..bytes.len() as u64 / 32).step_by((bytes.len() / 32 / PLACES).max(1));
        for nid in numbers.chain([bootstrap.root().0, u64::MAX]).map(Nid) {
            let mut few = vec![steps(|| bootstrap.inode(nid))];
            if let Ok(inode) = bootstrap.inode(nid) {
                few.push(steps(|| bootstrap.lookup(&inode, &bytes[..bytes.len().min(255)])));
                few.push(steps(|| bootstrap.read_dir(&inode, 0).map(|mut entries| entries.next().is_some())));
                few.push(steps(|| bootstrap.read_link(&inode).map(<[u8]>::len)));
                let taken = steps(|| bootstrap.extent(&inode, inode.size / 2));
                assert!(taken <= RUN, "{taken} steps to a run of {inode:?}");
            }
            assert!(few.iter().all(|taken| *taken <= ACCESS), "{few:?} steps to {nid}");
        }
    }

    /// The same for a chunk index.
    pub fn assert_index_is_cheap(bytes: &[u8]) {
        let Ok(index) = Index::parse(bytes) else { return };
        let ranges = index.prefetch().len();
        let records = index.blob_count() as u64 + u64::from(index.chunk_count()) + ranges as u64;
        let (taken, allowed) = (steps(|| index.validate()), FIXED + STEPS_PER_RECORD * records);
        assert!(taken <= allowed, "{taken} steps to validate {records} records");
        let ranges = u32::try_from(ranges).unwrap_or(u32::MAX);
        for place in bytes.as_chunks::<8>().0.iter().take(PLACES) {
            let at = u64::from_le_bytes(*place);
            let (blob, number) = (BlobIndex(u16::from(place[0] % 8)), ChunkIndex(u32::from(place[1])));
            let few = [
                steps(|| index.chunk_at(blob, DeviceAddr(at))),
                steps(|| index.chunks_in(blob, at / 2..at)),
                steps(|| index.blob_of(number)),
                steps(|| index.prefetch_from(number.0.min(ranges)).next().is_some()),
            ];
            assert!(few.iter().all(|taken| *taken <= ACCESS), "{few:?} steps to {at:#x}");
        }
    }
}

#[cfg(test)]
mod tests;
