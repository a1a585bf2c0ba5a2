//! Many containers at once.

use std::{
    fs,
    process::{Child, Stdio},
    thread,
};

use crate::support::{
    Scratch,
    containerd::Site,
    crafted::{Layer, publish},
    metrics::until,
    node::Node,
    random::Random,
    registry::Registry,
    run,
};

const IMAGES: usize = 10;
const CONTAINERS: usize = 50;
/// Bytes that are each image's own.
const OWN: usize = 1 << 20;

/// Says what it has read, and waits until all others have, too.
const SCRIPT: &str = "md5sum < /data/own; : > /out/$NUMBER; until test -e /out/go; do sleep 0.1; done";

#[test]
fn fifty_containers_of_ten_images_run_at_once() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let out = scratch.dir("out");
    let mut random = Random::new(1);
    let images: Vec<(String, String)> = (0..IMAGES)
        .map(|number| {
            let bytes: Vec<u8> = (0..OWN / 8).flat_map(|_| random.next().to_le_bytes()).collect();
            let file = scratch.join("own");
            fs::write(&file, &bytes).expect("a file");
            let sum = run("sh", ["-c", &format!("md5sum < {}", file.display())]);
            let layers = vec![Layer::new().busybox(), Layer::new().file("data/own", 0o644, &bytes)];
            (publish(&scratch, &registry, &format!("app{number}"), layers).1, sum)
        })
        .collect();
    let node = Node::with(&scratch, super::CONFIG);
    let site = Site::start(&scratch);
    thread::scope(|scope| {
        for (image, _) in &images {
            scope.spawn(|| site.pull(image, &[]));
        }
    });
    let mount = format!("type=bind,src={},dst=/out,options=rbind:rw", out.display());
    let start = |number: usize| -> Child {
        let (image, number) = (&images[number % IMAGES].0, format!("NUMBER={number}"));
        let (_, mut command) = site.container("default", "lazo", image, &["--rm", "--env", &number, "--mount", &mount]);
        command.args(["/bin/sh", "-c", SCRIPT]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("ctr")
    };
    let mut running: Vec<Child> = (0..CONTAINERS).map(start).collect();
    until("all containers run", || {
        if let Some(number) = running.iter_mut().position(|child| child.try_wait().expect("its state").is_some()) {
            let output = running.swap_remove(number).wait_with_output().expect("its end");
            panic!("a container has ended: {}", String::from_utf8_lossy(&output.stderr));
        }
        (fs::read_dir(&out).expect("the directory").count() == CONTAINERS).then_some(())
    });
    assert_eq!(super::image_mounts(&scratch), IMAGES, "containers of an image share its mount");
    assert_eq!(node.stats()["daemon"]["health"]["restarts"], 0);
    fs::write(out.join("go"), "").expect("the file");
    for (number, container) in running.into_iter().enumerate() {
        let output = container.wait_with_output().expect("its end");
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "container {number}: {stderr}");
        assert_eq!(stdout, images[number % IMAGES].1, "container {number}");
    }
    // A blob that all have, and each image's own blob and bootstrap.
    assert_eq!(site.snapshots("default", "lazo").len(), 1 + 2 * IMAGES);
}
