//! The options of `lazo mount` do what they say.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::{
    Scratch, converted,
    faults::Proxy,
    metrics::{scrape, until, value},
    mounted::{Mounted, is_mounted},
    registry::Registry,
    stdout_of,
};

/// A file of the small image.
const FILE: &str = "odd/data/noise-524288";

fn mount<'a>(scratch: &'a Scratch, image: &str, options: &[&str]) -> Mounted<'a> {
    let dir = scratch.dir("mount");
    stdout_of(scratch.lazo(["mount", image]).args(options).arg(&dir).current_dir(scratch.path()));
    Mounted::adopt(scratch, dir)
}

#[test]
fn sources_are_asked_before_the_images_own() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layout = converted("small", "gzip");
    let image = registry.push(&layout, "lazo", "app:lazo");
    // Named from the working directory, which the serving process leaves.
    std::os::unix::fs::symlink(&layout, scratch.join("nas")).expect("a link");
    let mounted = mount(&scratch, &image, &["--source", "oci:nas"]);
    fs::read(mounted.path().join(FILE)).expect("the file");
    let text = scrape(&scratch);
    let requests = |name: &str| value(&text, &format!("lazo_source_requests_total{{source=\"{name}\"}}"));
    assert!(requests(&format!("oci:{}", scratch.join("nas").display())) >= 1.0, "{text}");
    let from_registry = text.lines().filter(|line| line.starts_with("lazo_source_requests_total{source=\"docker"));
    assert!(from_registry.clone().all(|line| line.ends_with(" 0")), "{text}");
    mounted.umount();
}

#[test]
fn a_hosts_directory_says_where_images_come_from() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    registry.push(&converted("small", "gzip"), "lazo", "app:lazo");
    let hosts = scratch.dir("hosts/registry.invalid");
    fs::write(hosts.join("hosts.toml"), format!("server = \"http://{}\"\n", registry.host)).expect("the file");
    let mounted = mount(&scratch, "docker://registry.invalid/app:lazo", &["--hosts-dir", "hosts"]);
    assert_eq!(fs::read(mounted.path().join(FILE)).expect("the file").len(), 524_288);
    mounted.umount();
}

#[test]
fn reads_fail_when_the_outage_limit_has_run_out_and_work_again_later() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    registry.push(&converted("small", "gzip"), "lazo", "app:lazo");
    let proxy = Proxy::start(&registry.host);
    let mounted = mount(&scratch, &proxy.image("app:lazo"), &["--outage-limit", "2"]);
    proxy.refuse();
    let begin = Instant::now();
    let error = fs::read(mounted.path().join(FILE)).expect_err("nobody to ask");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    let waited = begin.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(30)).contains(&waited), "{waited:?}");
    let text = scrape(&scratch);
    assert!(value(&text, "lazo_outages_total") >= 1.0 && value(&text, "lazo_failed_reads_total") >= 1.0, "{text}");
    assert!(value(&text, "lazo_stall_seconds_sum") >= 2.0, "{text}");
    proxy.listen();
    until("the file is there again", || fs::read(mounted.path().join(FILE)).ok().filter(|read| read.len() == 524_288));
    mounted.umount();
}

#[test]
fn prefetching_all_ends_with_an_image_that_needs_no_registry() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let image = registry.push(&converted("small", "gzip"), "lazo", "app:lazo");
    let mounted = mount(&scratch, &image, &["--prefetch", "all", "--background-rate", "1G"]);
    until("all is fetched", || (value(&scrape(&scratch), "lazo_fill_complete") == 1.0).then_some(()));
    drop(registry);
    assert_eq!(fs::read(mounted.path().join(FILE)).expect("the file").len(), 524_288);
    let text = scrape(&scratch);
    assert_eq!(value(&text, "lazo_fetched_bytes_total{priority=\"demand\"}"), 0.0, "{text}");
    assert_eq!(value(&text, "lazo_prefetch_complete"), 1.0, "{text}");
    assert!(value(&text, "lazo_fetched_bytes_total{priority=\"fill\"}") > 0.0, "{text}");
    mounted.umount();
}

#[test]
fn values_that_make_no_sense_are_refused() {
    let scratch = Scratch::new();
    let dir = scratch.dir("mount");
    let image = format!("oci:{}:lazo", converted("small", "gzip").display());
    for (option, given) in [
        ("--source", "docker://host/app"),
        ("--source", "s3://"),
        ("--outage-limit", "-1"),
        ("--outage-limit", "86401"),
        ("--background-rate", "0"),
        ("--background-rate", "fast"),
        ("--background-requests", "0"),
        ("--cache-limit", "1K"),
        ("--prefetch", "some"),
        ("--hosts-dir", "nowhere"),
    ] {
        let option = format!("{option}={given}");
        let output = scratch.lazo(["mount", &image, &option]).arg(&dir).output().expect("lazo");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && text.contains(given), "{option}: {}\n{text}", output.status);
        assert!(!is_mounted(Path::new(&dir)));
    }
}
