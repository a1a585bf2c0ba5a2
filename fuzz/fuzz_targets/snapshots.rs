//! containerd's filters, records of snapshots, labels.
#![no_main]

mod cost;

use cost::{Cost, Linear, bounded};
use libfuzzer_sys::fuzz_target;

const COST: Cost = Cost {
    bytes: Linear { constant: 32 << 20, per_byte: 512 },
    allocations: Linear { constant: 262144, per_byte: 32 },
    held: Linear { constant: 16 << 20, per_byte: 128 },
};

fuzz_target!(|data: &[u8]| bounded(data, COST, || lazo_snapshotter::fuzz::snapshot(data)));
