//! The same tree three ways: lazo's mount, lazo's reader, and the kernel's EROFS over the decompressed blobs.

use crate::support::{
    Corpus, Scratch, converted, erofs_mount::ErofsMount, layout::Manifest, listing::Listing, mounted::Mounted,
    own::Image, registry::Registry, run,
};

/// Checks a corpus image, converted to a layout, against `umoci unpack`. `through_registry`: mount it from a registry.
fn same_tree_three_ways(name: &str, through_registry: bool) {
    let (corpus, scratch) = (Corpus::get(name), Scratch::new());
    let layout = converted(name, "gzip");
    let expected = Listing::of_directory(&corpus.reference());
    let exceptions = corpus.exceptions();

    let image = Image::open(&layout, "lazo", &scratch.dir("image"));
    fsck(&image);
    expected.assert_same("lazo's own reader", &image.listing(), &exceptions);
    let own = image.listing();

    let kernel =
        ErofsMount::new(&image.bootstrap_path, &image.devices, &scratch.dir("kernel")).expect("the kernel mounts it");
    own.assert_same("the kernel's EROFS", &Listing::of_directory(kernel.path()), &[]);
    drop(kernel);

    let registry = through_registry.then(|| Registry::start(&scratch, "registry"));
    let reference = match &registry {
        Some(registry) => registry.push(&layout, "lazo", "corpus:lazo"),
        None => format!("oci:{}:lazo", layout.display()),
    };
    let mounted = Mounted::new(&scratch, &reference, "mount");
    own.assert_same("lazo's mount, cold", &Listing::of_directory(mounted.path()), &[]);
    mounted.umount();
    let again = Mounted::new(&scratch, &reference, "mount");
    own.assert_same("lazo's mount, from its cache", &Listing::of_directory(again.path()), &[]);
    again.umount();
}

/// `fsck.erofs` accepts the bootstrap.
fn fsck(image: &Image) {
    let devices = image.devices.iter().map(|path| format!("--device={}", path.display()));
    run("fsck.erofs", devices.chain([image.bootstrap_path.display().to_string()]));
}

#[test]
fn crafted_image_from_a_layout() {
    same_tree_three_ways("small", false);
}

#[test]
fn crafted_image_from_a_registry() {
    same_tree_three_ways("small", true);
}

#[test]
fn debian_image_from_a_registry() {
    same_tree_three_ways("debian", true);
}

#[test]
#[ignore = "builds the benchmarks' corpus of 1.5 GB; run by make bench"]
fn large_image_from_a_registry() {
    same_tree_three_ways("large", true);
}

#[test]
fn python_runs_inside_a_mounted_image() {
    let scratch = Scratch::new();
    let layout = converted("debian", "gzip");
    let mounted = Mounted::new(&scratch, &format!("oci:{}:lazo", layout.display()), "mount");
    let program = "import numpy, json, ssl; print(json.dumps({'sum': int(numpy.arange(10).sum())}))";
    let root = mounted.path().to_str().expect("a plain path");
    assert_eq!(run("chroot", [root, "python3", "-B", "-c", program]).trim(), r#"{"sum": 45}"#);
    mounted.umount();
}

#[test]
fn a_file_of_8_gib_that_is_a_hole() {
    let scratch = Scratch::new();
    let image = Image::open(&converted("small", "beyond"), "lazo", &scratch.dir("image"));
    fsck(&image);
    assert_eq!(image.inode(b"beyond/huge").size, 8 << 30);
    let data: u64 = image.devices.iter().map(|path| path.metadata().expect("a device").len()).sum();
    assert!(data < 1 << 20, "holes take space: {data} bytes of data");
    let kernel =
        ErofsMount::new(&image.bootstrap_path, &image.devices, &scratch.dir("kernel")).expect("the kernel mounts it");
    let mut bytes = [0; 6];
    let huge = std::fs::File::open(kernel.path().join("beyond/huge")).expect("the huge file");
    std::os::unix::fs::FileExt::read_exact_at(&huge, &mut bytes, 4 << 30).expect("its middle");
    assert_eq!(&bytes, b"middle");
}

#[test]
fn empty_image() {
    let scratch = Scratch::new();
    let layout = converted("small", "empty");
    assert_eq!(Manifest::of(&layout, "lazo").blobs(), []);
    let image = Image::open(&layout, "lazo", &scratch.dir("image"));
    fsck(&image);
    assert_eq!(image.listing().0.len(), 1);
    let mounted = Mounted::new(&scratch, &format!("oci:{}:lazo", layout.display()), "mount");
    assert_eq!(Listing::of_directory(mounted.path()).0.len(), 1);
}
