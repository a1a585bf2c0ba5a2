//! What reading a chunk index costs: steps and memory in proportion to its records, and few steps for each single access.
#![no_main]

mod memory;

use lazo_format::{Index, cost};
use libfuzzer_sys::fuzz_target;

/// Bytes of memory of a validation, beside a bit a chunk.
const FIXED: u64 = 4 << 10;

fuzz_target!(|data: &[u8]| {
    cost::assert_index_is_cheap(data);
    let Ok(index) = Index::parse(data) else { return };
    let (_, memory) = memory::peak(|| index.validate());
    assert!(memory as u64 <= FIXED + u64::from(index.chunk_count()) / 8, "{memory} bytes of memory");
});
