//! What registries and token servers answer, apart from documents and blobs.
#![no_main]

mod cost;

use cost::{Cost, Linear, bounded};
use libfuzzer_sys::fuzz_target;

const COST: Cost = Cost {
    bytes: Linear { constant: 1 << 20, per_byte: 512 },
    allocations: Linear { constant: 4096, per_byte: 16 },
    held: Linear { constant: 1 << 20, per_byte: 128 },
};

fuzz_target!(|data: &[u8]| bounded(data, COST, || lazo_registry::fuzz::answer(data)));
