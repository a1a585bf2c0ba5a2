//! An image that is in two repositories, with a login for each, in containerd.

use rustix::process::{Signal, kill_process};

use super::cri::Kubelet;
use crate::{
    references::{Two, content, names},
    support::{Scratch, containerd::Site, metrics::until, mounted::wait_for_end, node::Node},
};

/// A daemon's configuration, with where containerd is.
fn config(scratch: &Scratch) -> String {
    format!(
        "prefetch = \"none\"\ncri_socket = \"{}\"\ncontainerd_socket = \"{}\"\n",
        scratch.join("run/cri.sock").display(),
        scratch.join("containerd.sock").display()
    )
}

/// A file of the image, in a running container.
fn assert_reads(site: &Site<'_>, namespace: &[&str], container: &str, number: usize) {
    let name = format!("read-{number}");
    let digest = lazo_format::Digest::sha256_of(&content(number));
    let script = format!("sha256sum /data/{number}");
    let exec = ["task", "exec", "--exec-id", &name, container, "/bin/sh", "-c", &script];
    let said = site.ctr_ok(namespace.iter().chain(&exec));
    assert!(said.starts_with(&digest.hex()), "file {number}: {said}");
}

/// Waits until the daemon has so many names of the one image.
fn until_named(node: &Node<'_>, expected: &[&str]) {
    until(&format!("the image is called {expected:?}"), || (names(node) == expected).then_some(()));
}

#[test]
fn a_running_container_reads_from_each_repository_that_has_its_image() {
    let scratch = Scratch::new();
    let two = Two::new(&scratch);
    two.log_in();
    let node = Node::with(&scratch, &config(&scratch));
    let mut site = Site::start(&scratch);
    let sleep = "while :; do sleep 1; done";
    site.pull(&two.images[0], &[]);
    let first = site.start_container(&two.images[0], &[], sleep);
    until_named(&node, &[two.name(0)]);
    let pulled = site.pull(&two.images[1], &[]);
    assert_eq!(pulled["layers"].as_array().expect("layers").last().expect("one")["state"], "present");
    until_named(&node, &[two.name(0), two.name(1)]);
    let second = site.start_container(&two.images[1], &[], sleep);

    two.revoke(0);
    assert_reads(&site, &[], &first, 1);
    assert_reads(&site, &[], &second, 2);
    // The first image is removed, by which the bootstrap was unpacked.
    site.ctr_ok(["images", "rm", "--sync", two.name(0)]);
    until_named(&node, &[two.name(1)]);
    assert_reads(&site, &[], &first, 3);
    // The first repository once more, with a login that is good by now, while the second hangs.
    two.admit(0);
    site.pull(&two.images[0], &[]);
    until_named(&node, &[two.name(1), two.name(0)]);
    two.hang(1);
    assert_reads(&site, &[], &second, 4);
    two.go_on(1);
    // None of that is forgotten by who comes next.
    let worker = node.worker();
    kill_process(worker, Signal::KILL).expect("it lives");
    wait_for_end(worker);
    two.revoke(1);
    assert_reads(&site, &[], &first, 5);
    node.abandon();
    let node = Node::with(&scratch, &config(&scratch));
    two.admit(1);
    two.revoke(0);
    assert_reads(&site, &[], &first, 6);
    assert_reads(&site, &[], &second, 7);
    until_named(&node, &[two.name(1), two.name(0)]);
    // What happens while the snapshotter is away is seen when it is back.
    site.kill_snapshotter();
    site.ctr_ok(["images", "rm", two.name(0)]);
    site.start_snapshotter();
    until_named(&node, &[two.name(1)]);
    assert_reads(&site, &[], &second, 8);
    for container in [&first, &second] {
        site.remove_container(container);
    }
}

#[test]
fn the_kubelets_login_for_a_second_repository_is_kept_and_used() {
    let scratch = Scratch::new();
    let two = Two::new(&scratch);
    let node = Node::with(&scratch, &config(&scratch));
    let site = Site::with(&scratch, true);
    let kubelet = Kubelet::new(&scratch.join("run/cri.sock"));
    kubelet.pull(&two.images[0], Some(&Two::login(0))).expect("a pull");
    kubelet.pull(&two.images[1], Some(&Two::login(1))).expect("a pull of what is there");
    assert_eq!(names(&node), [two.name(0), two.name(1)], "known when the pull is answered");
    let namespace = ["--namespace", "k8s.io"];
    let (container, mut command) = site.container("k8s.io", "lazo", &two.images[1], &["--detach", "--null-io"]);
    crate::support::stdout_of(command.args(["/bin/sh", "-c", "while :; do sleep 1; done"]));
    two.revoke(0);
    assert_reads(&site, &namespace, &container, 1);
    // Not by the kubelet's way, which takes all names of an image.
    let listed = site.ctr_ok(namespace.iter().chain(&["images", "ls", "-q"]));
    let (repository, _) = two.name(0).rsplit_once(':').expect("a tag");
    for name in listed.lines().filter(|name| name.starts_with(repository)) {
        site.ctr_ok(namespace.iter().chain(&["images", "rm", name]));
    }
    until_named(&node, &[two.name(1)]);
    assert_reads(&site, &namespace, &container, 2);
    until("the first login is forgotten, and it alone", || {
        let kept = std::fs::read_to_string(scratch.join("state/credentials.json")).expect("the kept logins");
        assert!(kept.contains("/b/app"), "{kept}");
        (!kept.contains("/a/app")).then_some(())
    });
    // A newer login of the second: what was refused is asked for again at once.
    two.revoke(1);
    kubelet.pull(&two.images[1], Some(&Two::login(1))).expect_err("the login is revoked");
    two.admit(1);
    kubelet.pull(&two.images[1], Some(&Two::login(1))).expect("a pull");
    assert_reads(&site, &namespace, &container, 3);
}
