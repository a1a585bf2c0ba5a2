//! What gRPC clients send, on its way to the HTTP/2 library.
#![no_main]

mod cost;

use cost::{Cost, Linear, bounded};
use libfuzzer_sys::fuzz_target;

/// A header block of some twenty bytes may stand for 64 KiB of fields, but there is one at a time.
const COST: Cost = Cost {
    bytes: Linear { constant: 1 << 20, per_byte: 32 << 10 },
    allocations: Linear { constant: 4096, per_byte: 32 },
    held: Linear { constant: 1 << 20, per_byte: 32 },
};

fuzz_target!(|data: &[u8]| bounded(data, COST, || lazo_snapshotter::fuzz::http2(data)));
