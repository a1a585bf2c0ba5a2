//! Containers in user namespaces.

use crate::support::{
    Scratch,
    containerd::{Site, version},
    crafted::{Layer, TAR, blob, edit, publish},
    failure_of,
    node::Node,
    registry::Registry,
    stdout_of,
};

const MAPS: [&str; 4] = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];

/// Files are root's in there, can be changed, and what is made is root's.
const SCRIPT: &str = "stat -c %u:%g / /bin/busybox /data && echo more >> /data && cat /data && : > /new && stat -c %u:%g /new && \
                      cat /proc/self/uid_map";

#[test]
fn owners_are_shifted_without_copies() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let (_, lazo) =
        publish(&scratch, &registry, "app", vec![Layer::new().busybox().file("data", 0o644, b"from below\n")]);
    let layout = scratch.join("app");
    edit(&layout, "lazo", |layers, diff_ids| {
        let layer = blob(&layout, TAR, &Layer::new().file("data", 0o644, b"from above\n").bytes());
        diff_ids.push(layer["digest"].clone());
        layers.push(layer);
    });
    let stacked = registry.push(&layout, "edited", "app:stacked");
    let _node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    let options: Vec<&str> = MAPS.into_iter().chain(["--rm", "--remap-labels"]).collect();
    let run = |image: &str, options: &[&str]| {
        let (_, mut command) = site.container("default", "lazo", image, options);
        command.args(["/bin/busybox", "sh", "-c", SCRIPT]);
        command
    };
    for (image, data) in [(&lazo, "from below"), (&stacked, "from above")] {
        site.pull(image, &[]);
        if image == &stacked && version().starts_with('1') {
            // containerd itself has to shift the layers above, which this one cannot.
            continue;
        }
        let said = stdout_of(&mut run(image, &options));
        let lines: Vec<&str> = said.lines().map(str::trim).collect();
        assert_eq!(lines[..6], ["0:0", "0:0", "0:0", data, "more", "0:0"], "{said}");
        assert_eq!(lines[6].split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"], "{said}");
        // Nothing of that is seen elsewhere.
        assert_eq!(site.run_ok("lazo", image, "cat /data").trim(), data);
        // Who asks for all owners to be changed one by one is told so.
        let said = failure_of(&mut run(image, &[&MAPS[..], &["--rm"]].concat()));
        assert!(said.contains("remap-ids") && said.contains("fetch the whole image"), "{said}");
    }
}
