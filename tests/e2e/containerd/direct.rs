//! Programs that open files of their image with `O_DIRECT`.

use serde_json::json;

use crate::support::{
    Scratch,
    containerd::Site,
    crafted::{Layer, convert_with},
    failure_of,
    node::Node,
    registry::Registry,
};

/// Says what the file holds, read past the page cache.
const READ: &str = "dd if=/data/file of=/tmp/copy bs=4096 iflag=direct && md5sum < /tmp/copy";

#[test]
fn an_image_can_ask_for_direct_io() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layers = || {
        let data: Vec<u8> = (0..100_000_u32).map(|at| (at >> 8 ^ at).to_le_bytes()[0]).collect();
        vec![Layer::new().busybox().file("data/file", 0o644, &data).file("tmp/x", 0o644, b"")]
    };
    let label = json!({"config": {"Labels": {"lazo.direct-io": "true"}}});
    let images = [
        ("without", json!({}), &[][..]),
        ("no", json!({"config": {"Labels": {"lazo.direct-io": "false"}}}), &[]),
        ("label", label, &[]),
        ("option", json!({}), &["--direct-io"]),
    ];
    let node = Node::with(&scratch, "prefetch = \"none\"\n");
    assert_eq!(node.get("health")["mode"], "erofs", "this kernel can");
    let site = Site::start(&scratch);
    let mut told = Vec::new();
    for (name, fields, options) in images {
        let layout = convert_with(&scratch, name, layers(), &fields, options);
        let image = registry.push(&scratch.join(name), "lazo", &format!("{name}:lazo"));
        // One after the other: what is there of the first, all blobs, is shared, and the bootstrap must not be.
        site.pull(&image, &[]);
        let direct = matches!(name, "label" | "option");
        if direct {
            told.push(site.run_ok("lazo", &image, READ));
        } else {
            let (_, mut command) = site.container("default", "lazo", &image, &["--rm"]);
            let said = failure_of(command.args(["/bin/sh", "-c", READ]));
            assert!(said.contains("Invalid argument"), "{name}: {said}");
        }
        for (options, mode) in [
            (&[][..], if direct { "fuse" } else { "erofs" }),
            (&["--mode", "erofs"], "erofs"),
            (&["--mode", "fuse"], "fuse"),
        ] {
            let mounted = node.mount(&layout, "mount", options);
            let all = node.get("mounts");
            let ours =
                all.as_array().expect("mounts").iter().find(|mount| mount["mount_point"] == json!(mounted.path()));
            assert_eq!(ours.expect("the mount")["mode"], mode, "{name} {options:?}");
            mounted.umount();
        }
        scratch.lazo_ok(["check", &layout]);
    }
    assert_eq!(told.len(), 2);
    assert_eq!(told[0], told[1]);
}
