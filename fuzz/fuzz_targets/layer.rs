//! An uncompressed layer, read and merged as a conversion would.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = lazo_converter::check_layer(data);
});
