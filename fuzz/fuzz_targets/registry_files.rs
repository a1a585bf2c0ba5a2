//! Files that say how to reach registries, what layouts and archives begin with, and references.
#![no_main]

mod cost;

use cost::{Cost, Linear, bounded};
use libfuzzer_sys::fuzz_target;

const COST: Cost = Cost {
    bytes: Linear { constant: 1 << 20, per_byte: 512 },
    allocations: Linear { constant: 4096, per_byte: 32 },
    held: Linear { constant: 1 << 20, per_byte: 256 },
};

fuzz_target!(|data: &[u8]| bounded(data, COST, || lazo_registry::fuzz::file(data)));
