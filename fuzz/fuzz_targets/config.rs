//! Images' configs, in every reader of them, and manifests of lazo images.
#![no_main]

mod cost;

use cost::{Cost, Linear, bounded};
use libfuzzer_sys::fuzz_target;

const COST: Cost = Cost {
    bytes: Linear { constant: 1 << 20, per_byte: 1024 },
    allocations: Linear { constant: 4096, per_byte: 16 },
    held: Linear { constant: 1 << 20, per_byte: 256 },
};

fuzz_target!(|data: &[u8]| bounded(data, COST, || {
    lazo_storage::fuzz::config(data);
    lazo_storage::fuzz::manifest(data);
    lazo_converter::fuzz::config(data);
}));
