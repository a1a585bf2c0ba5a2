//! The control API: what a client sends over one connection.
#![no_main]

mod cost;

use cost::{Cost, Linear, bounded};
use libfuzzer_sys::fuzz_target;

// A request of 16 bytes has all metrics for its answer, so that work is bounded by the number of requests, and memory by the buffers.
const COST: Cost = Cost {
    bytes: Linear { constant: 8 << 20, per_byte: 32768 },
    allocations: Linear { constant: 65536, per_byte: 64 },
    held: Linear { constant: 4 << 20, per_byte: 8 },
};

fuzz_target!(|data: &[u8]| bounded(data, COST, || lazo_daemon::node::fuzz::requests(data)));
