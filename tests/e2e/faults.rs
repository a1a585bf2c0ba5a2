//! What readers of a mount see when the network or the registry misbehaves: nothing but a pause, or EIO where that is due.

use crate::support::{
    Scratch, converted,
    faults::{Fault, Proxy, Target},
    mounted::Mounted,
    registry::Registry,
};

#[test]
fn one_bad_answer_is_no_error() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    registry.push(&converted("small", "gzip"), "lazo", "app:lazo");
    let proxy = Proxy::start(&registry.host);
    for fault in [
        Fault::Status(500),
        Fault::Busy(1),
        Fault::Reset,
        Fault::Cut(100),
        Fault::Flip(7),
        Fault::Garble,
        Fault::OtherBounds,
        Fault::FirstByteOnly,
        Fault::Whole,
    ] {
        let what = format!("{fault:?}");
        proxy.set_times(Target::Blobs, fault, 1);
        let mounted = Mounted::new(&scratch, &proxy.image("app:lazo"), "mount");
        let read = std::fs::read(mounted.join(b"odd/data/noise-4097"));
        assert_eq!(read.unwrap_or_else(|error| panic!("{what}: {error}")).len(), 4097, "{what}");
        mounted.umount();
        std::fs::remove_dir_all(scratch.join("state")).expect("the state directory");
    }
}
