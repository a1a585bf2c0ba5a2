//! An uncompressed layer, read and merged as a conversion would.
#![no_main]

mod mend;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = lazo_converter::check_layer(data);
    let mut mended = data.to_vec();
    mend::tar(&mut mended);
    let _ = lazo_converter::check_layer(mended.as_slice());
});
