//! What reading a bootstrap costs: steps and memory in proportion to its size, and few steps for each single access.
#![no_main]

mod memory;
mod mend_bootstrap;

use lazo_format::{Bootstrap, cost};
use libfuzzer_sys::fuzz_target;

/// Bytes of memory of a validation, beside those for the image's size.
const FIXED: usize = 16 << 10;

/// Bytes of the image for each byte of memory: two bits for 32 bytes, and as much again.
const IMAGE_PER_MEMORY: usize = 64;

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    mend_bootstrap::mend(&mut bytes);
    cost::assert_bootstrap_is_cheap(&bytes);
    let Ok(bootstrap) = Bootstrap::parse(bytes.as_slice()) else { return };
    let (_, memory) = memory::peak(|| bootstrap.validate());
    assert!(memory <= FIXED + bytes.len() / IMAGE_PER_MEMORY, "{memory} bytes of memory for {}", bytes.len());
});
