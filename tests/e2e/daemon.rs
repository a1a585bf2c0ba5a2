//! The node daemon as its users see it: through `lazo`, in both modes.

mod few_files;
mod health;
mod managed;
mod many;
mod overlays;
mod removal;
mod upgrade;

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use base64::Engine as _;
use rustix::io::Errno;

use crate::support::{
    Corpus, Scratch, converted,
    crafted::{self, Layer},
    failure_of,
    listing::Listing,
    metrics::{self, until, value},
    mounted::{Mounted, is_mounted},
    node::{MODES, Node},
    output_of,
    registry::{Registry, USER},
    run, stdout_of,
};

/// A file of the small image.
const FILE: &str = "odd/data/noise-524288";

fn small() -> String {
    format!("oci:{}:lazo", converted("small", "gzip").display())
}

/// Mount points below a directory, as the kernel has them.
fn mounts_below(directory: &Path) -> Vec<String> {
    let table = String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").expect("the mount table")).into_owned();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(directory)).map(str::to_owned).collect()
}

fn errno<T>(result: std::io::Result<T>) -> Option<Errno> {
    result.err().and_then(|error| error.raw_os_error()).map(Errno::from_raw_os_error)
}

#[test]
fn an_image_is_what_its_layers_make() {
    for mode in MODES {
        let (scratch, corpus) = (Scratch::new(), Corpus::get("small"));
        let node = Node::start(&scratch, mode);
        let expected = Listing::of_directory(&corpus.reference());
        for state in ["cold", "cached"] {
            let mounted = node.mount(&small(), "mount", &[]);
            let found = Listing::of_directory(mounted.path());
            expected.assert_same(&format!("{mode}, {state}"), &found, &corpus.exceptions());
            assert_eq!(errno(File::create(mounted.path().join("new"))), Some(Errno::ROFS));
            mounted.umount();
        }
        node.stop();
        assert_eq!(mounts_below(scratch.path()), [""; 0], "{mode}");
    }
}

#[test]
fn programs_run() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let image = format!("oci:{}:lazo", converted("debian", "gzip").display());
        let mounted = node.mount(&image, "mount", &[]);
        let program = "import numpy, json, ssl; print(json.dumps({'sum': int(numpy.arange(10).sum())}))";
        let root = mounted.path().to_str().expect("a plain path");
        assert_eq!(run("chroot", [root, "python3", "-B", "-c", program]).trim(), r#"{"sum": 45}"#, "{mode}");
        mounted.umount();
    }
}

#[test]
fn mounts_of_an_image_share_it() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let one = node.mount(&small(), "one", &[]);
        let two = node.mount(&small(), "two", &[]);
        let stats = node.stats();
        let daemon = &stats["daemon"];
        assert_eq!(daemon["health"]["mode"], mode);
        let images = daemon["images"].as_array().expect("images");
        assert!(images.len() == 1 && images[0]["mounts"] == 2 && images[0]["mode"] == mode, "{images:?}");
        let points: Vec<PathBuf> = daemon["mounts"]
            .as_array()
            .expect("mounts")
            .iter()
            .map(|mount| mount["mount_point"].as_str().expect("a path").into())
            .collect();
        assert_eq!(points, [one.path(), two.path()]);
        assert_eq!(value(&node.metrics(), "lazo_mounts"), 2.0);
        let first = fs::read(one.path().join(FILE)).expect("the file");
        one.umount();
        assert_eq!(fs::read(two.path().join(FILE)).expect("the file"), first);
        two.umount();
        let error = failure_of(scratch.lazo(["umount"]).arg(scratch.join("one")));
        assert!(error.contains("is not a lazo mount"), "{error}");
        until("nothing is left of the image", || {
            node.get("images").as_array().is_some_and(Vec::is_empty).then_some(())
        });
        assert_eq!(value(&node.metrics(), "lazo_mounts"), 0.0);
        assert!(mounts_below(&scratch.join("run/images")).is_empty());
        node.stop();
    }
}

#[test]
fn a_mount_in_use_is_busy() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&small(), "mount", &[]);
        let file = File::open(mounted.path().join(FILE)).expect("the file");
        let error = failure_of(scratch.lazo(["umount"]).arg(mounted.path()));
        assert!(error.contains("is busy") && error.contains("fuser"), "{mode}: {error}");
        assert!(is_mounted(mounted.path()));
        stdout_of(scratch.lazo(["umount", "--lazy"]).arg(mounted.path()));
        assert!(!is_mounted(mounted.path()), "{mode}");
        // Who has it open can go on.
        let mut bytes = vec![0; 524_288];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).expect("all of it");
        drop(file);
        until("the image is let go", || node.get("images").as_array().is_some_and(Vec::is_empty).then_some(()));
        let again = node.mount(&small(), "mount", &[]);
        again.umount();
        drop(mounted);
        node.stop();
    }
}

#[test]
fn what_cannot_be_mounted_hinders_nobody() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::with(&scratch, &format!("mode = \"{mode}\"\noutage_limit = 1\n"));
        let good = node.mount(&small(), "good", &[]);
        let corpus = Corpus::get("small");
        for (image, says) in [
            ("docker://127.0.0.1:9/app:v1".to_owned(), "127.0.0.1:9"),
            (corpus.image("gzip"), "lazo convert"),
            (corpus.image("no-such-tag"), "no-such-tag"),
            ("oci:/not/there:lazo".to_owned(), "/not/there"),
        ] {
            let error = Mounted::failure(&scratch, &image, "bad");
            assert!(error.contains(says), "{mode}: {error}");
        }
        let taken = failure_of(scratch.lazo(["mount", &small()]).arg(good.path()));
        assert!(taken.contains("mounted there already"), "{taken}");
        let nowhere = failure_of(scratch.lazo(["mount", &small()]).arg(scratch.join("not/there")));
        assert!(nowhere.contains("not/there"), "{nowhere}");
        let file = failure_of(scratch.lazo(["mount", &small()]).arg(scratch.join("lazo.toml")));
        assert!(file.contains("not a directory"), "{file}");

        // Its registry goes when it is mounted: only what is not there yet fails.
        let registry = Registry::start(&scratch, "registry");
        let image = registry.push(&converted("debian", "gzip"), "lazo", "app:lazo");
        let orphan = node.mount(&image, "orphan", &["--prefetch", "none"]);
        drop(registry);
        assert_eq!(errno(fs::read(orphan.path().join("usr/bin/perl"))), Some(Errno::IO), "{mode}");
        assert_eq!(fs::read(good.path().join(FILE)).expect("the good one").len(), 524_288);
        assert!(fs::read_dir(orphan.path()).expect("its root").count() > 5);
        orphan.umount();
        good.umount();
        assert_eq!(value(&node.metrics(), "lazo_stalled_readers"), 0.0);
        node.stop();
    }
}

#[test]
fn an_image_of_200_layers() {
    const LAYERS: u32 = 200;
    let scratch = Scratch::new();
    let layer = |number: u32| {
        let text = format!("layer {number}").repeat(100);
        let layer = Layer::new().file(&format!("layers/{number:03}"), 0o644, text.as_bytes());
        layer.file("newest", 0o644, text.as_bytes())
    };
    let image = crafted::convert(&scratch, "layers", (0..LAYERS).map(layer).collect());
    for mode in MODES {
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&image, "mount", &[]);
        for number in 0..LAYERS {
            let text = fs::read_to_string(mounted.path().join(format!("layers/{number:03}"))).expect("a file");
            assert_eq!(text, format!("layer {number}").repeat(100), "{mode}");
        }
        assert!(fs::read_to_string(mounted.path().join("newest")).expect("a file").starts_with("layer 199"));
        assert_eq!(node.get("images")[0]["blobs"], LAYERS, "{mode}");
        mounted.umount();
        node.stop();
    }
}

#[test]
fn mount_points_are_where_links_lead() {
    let scratch = Scratch::new();
    let node = Node::start(&scratch, "erofs");
    let real = scratch.dir("real/mount");
    std::os::unix::fs::symlink(scratch.join("real"), scratch.join("link")).expect("a link");
    stdout_of(scratch.lazo(["mount", &small(), "link/mount"]).current_dir(scratch.path()));
    assert!(is_mounted(&real));
    assert_eq!(node.get("mounts")[0]["mount_point"], real.to_str().expect("a plain path"));
    stdout_of(scratch.lazo(["umount", "mount"]).current_dir(scratch.join("link")));
    assert!(!is_mounted(&real));
}

#[test]
fn figures_are_those_of_what_was_read() {
    for mode in MODES {
        let scratch = Scratch::new();
        let registry = Registry::start(&scratch, "registry");
        let image = registry.push(&converted("small", "gzip"), "lazo", "app:lazo");
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&image, "mount", &[]);
        assert_eq!(fs::read(mounted.path().join(FILE)).expect("the file").len(), 524_288);
        let stats = node.stats();
        let (daemon, figures) = (&stats["daemon"], &stats["daemon"]["stats"]);
        let number = |name: &str| figures[name].as_f64().unwrap_or_else(|| panic!("no {name}: {figures}"));
        assert!(number("read_bytes") >= 524_288.0 && number("fetched_bytes") > 0.0, "{mode}: {figures}");
        assert!(number("fetched_per_read") > 0.0 && number("resident_bytes") > 1e6, "{mode}: {figures}");
        assert_eq!((number("mounts"), number("images"), number("stalled_readers")), (1.0, 1.0, 0.0), "{mode}");
        let source = &figures["sources"][0];
        assert!(source["name"].as_str().is_some_and(|name| name.contains(&registry.host)), "{source}");
        assert!(source["up"] == true && source["requests"].as_u64() > Some(0), "{source}");
        assert_eq!(daemon["health"]["ok"], true, "{daemon}");
        let text = scratch.lazo_ok(["stats"]);
        assert!(text.contains(&image) && text.contains(mode) && text.contains(&registry.host), "{text}");
        let listed = scratch.lazo_ok(["cache", "ls"]);
        assert!(listed.contains(mounted.path().to_str().expect("a plain path")), "{listed}");
        mounted.umount();
    }
}

#[test]
fn options_of_a_single_mount_are_for_a_process_of_its_own() {
    let scratch = Scratch::new();
    let dir = scratch.dir("mount");
    for options in [&["--mode", "erofs"][..], &["--rw", "tmpfs"], &["--map", "0:1:2"]] {
        for more in [&[][..], &["--standalone"]] {
            let error = failure_of(scratch.lazo(["mount", &small()]).arg(&dir).args(options).args(more));
            assert!(error.contains(options[0]) && error.contains("node daemon"), "{error}");
        }
    }
    let node = Node::start(&scratch, "fuse");
    for options in [
        &["--foreground"][..],
        &["--metrics", "127.0.0.1:0"],
        &["--cache-limit", "1G"],
        &["--background-rate", "1M"],
        &["--background-requests", "5"],
        &["--state-dir", "/elsewhere"],
    ] {
        let error = failure_of(scratch.lazo(["mount", &small()]).arg(&dir).args(options));
        assert!(error.contains(options[0]) && error.contains("--standalone"), "{error}");
        assert!(!is_mounted(&dir));
    }
    let usage = scratch.lazo(["mount", "-o", "sync", &small()]).arg(&dir).output().expect("lazo");
    assert_eq!(usage.status.code(), Some(2));

    let alone = node.mount(&small(), "mount", &["--standalone", "--cache-limit", "1G"]);
    assert!(alone.server().is_some(), "a process of its own");
    assert_eq!(node.get("mounts").as_array().map(Vec::len), Some(0));
    assert_eq!(fs::read(alone.path().join(FILE)).expect("the file").len(), 524_288);
    let stats = node.stats();
    assert_eq!(stats["standalone"][0]["stats"]["mounts"], 1, "{stats}");
    alone.umount();
    node.stop();
}

#[test]
fn settings_come_from_the_file_and_requests() {
    let scratch = Scratch::new();
    let layout = converted("small", "gzip");
    let registry = Registry::start(&scratch, "registry");
    let image = registry.push(&layout, "lazo", "app:lazo");
    let config = format!("mode = \"fuse\"\ncache_limit = \"128M\"\nsources = [\"oci:{}\"]\n", layout.display());
    let node = Node::with(&scratch, &config);
    assert_eq!(node.get("health")["mode"], "fuse");
    let mounted = node.mount(&image, "mount", &["--mode", "erofs"]);
    fs::read(mounted.path().join(FILE)).expect("the file");
    let text = node.metrics();
    assert_eq!(metrics::value(&text, "lazo_cache_limit_bytes"), f64::from(128 << 20));
    let from_registry = text.lines().filter(|line| line.starts_with("lazo_source_requests_total{source=\"docker"));
    assert!(from_registry.clone().all(|line| line.ends_with(" 0")), "{text}");
    assert_eq!(node.get("images")[0]["mode"], "erofs");
    mounted.umount();
    drop(node);

    fs::write(scratch.join("lazo.toml"), "cache_limt = \"1G\"\n").expect("the file");
    let error = failure_of(scratch.lazo(["daemon", "--config"]).arg(scratch.join("lazo.toml")));
    assert!(error.contains("cache_limt") && error.contains("lazo.toml"), "{error}");
    let error = failure_of(&mut scratch.lazo(["daemon", "--config", "/not/there.toml"]));
    assert!(error.contains("/not/there.toml"), "{error}");
}

#[test]
fn one_daemon_a_run_directory() {
    let scratch = Scratch::new();
    let node = Node::start(&scratch, "fuse");
    let mounted = node.mount(&small(), "mount", &[]);
    let error = failure_of(&mut scratch.lazo(["daemon"]));
    assert!(error.contains("another daemon"), "{error}");
    assert_eq!(fs::read(mounted.path().join(FILE)).expect("the file").len(), 524_288);
    mounted.umount();
    node.stop();
}

#[test]
fn an_upgrade_is_not_noticed() {
    for mode in MODES {
        let scratch = Scratch::new();
        let node = Node::start(&scratch, mode);
        let mounted = node.mount(&small(), "mount", &[]);
        let open = File::open(mounted.path().join(FILE)).expect("the file");
        let before = node.worker();
        let copy = scratch.join("another-lazo");
        fs::copy(env!("CARGO_BIN_EXE_lazo"), &copy).expect("a copy");
        let said = stdout_of(scratch.lazo(["daemon", "upgrade"]).arg(&copy));
        assert!(said.contains(env!("CARGO_PKG_VERSION")), "{said}");
        assert_ne!(node.worker(), before);
        assert_eq!(node.get("health")["upgrades"], 1);
        let mut bytes = vec![0; 524_288];
        std::os::unix::fs::FileExt::read_exact_at(&open, &mut bytes, 0).expect("all of it");
        let expected = fs::read(Corpus::get("small").reference().join(FILE)).expect("the reference");
        assert!(bytes == expected, "{mode}");
        drop(open);
        let error = failure_of(&mut scratch.lazo(["daemon", "upgrade", "/bin/true"]));
        assert!(error.contains("lazo"), "{error}");
        assert_eq!(node.get("health")["upgrades"], 1);
        mounted.umount();
        node.stop();
    }
}

#[test]
fn logins_are_those_of_who_mounts() {
    let scratch = Scratch::new();
    let registry = Registry::with_basic_auth(&scratch, "registry");
    let image = registry.image("private:lazo");
    let auth = base64::engine::general_purpose::STANDARD.encode(USER);
    let login = serde_json::json!({ "auths": { registry.host.as_str(): { "auth": auth } } });
    // Somewhere that the daemon's environment does not lead to, and that is another user's own.
    let file = scratch.dir("user/.docker").join("config.json");
    fs::write(&file, login.to_string()).expect("the login");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
    std::os::unix::fs::chown(&file, Some(1000), Some(1000)).expect("an owner");
    let as_user = |arguments: &[&str]| {
        let mut command = scratch.lazo(arguments);
        command.env("HOME", scratch.join("user"));
        command
    };
    stdout_of(&mut as_user(&["convert", &Corpus::get("small").image("app-one"), &image]));
    let node = Node::start(&scratch, "erofs");
    let error = Mounted::failure(&scratch, &image, "mount");
    assert!(error.contains(&registry.host), "{error}");
    let dir = scratch.dir("mount");
    stdout_of(as_user(&["mount", &image]).arg(&dir));
    let mounted = Mounted::adopt(&scratch, dir);
    assert_eq!(fs::read(mounted.path().join("app/one")).expect("a file").len(), 700_000);
    // What is mounted stays in the cache.
    let digest = crate::support::layout::text(&node.get("images")[0]["manifest"]);
    let error = scratch.lazo_err(["cache", "rm", &digest]);
    assert!(error.contains("in use") && error.contains("the node daemon"), "{error}");
    mounted.umount();
    node.stop();
}

#[test]
fn a_group_may_be_let_in() {
    let scratch = Scratch::new();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o711)).expect("a mode");
    let node = Node::with(&scratch, "control_group = \"4712\"\n");
    let ask = |groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=1000", "--regid=1000", groups, "curl", "--silent", "--unix-socket"]).arg(node.socket());
        output_of(command.arg("http://lazo/v1/version")).status.success()
    };
    assert!(ask("--groups=4712"));
    assert!(!ask("--groups=4713"), "the socket's mode");
    node.stop();
}

#[test]
fn the_systemd_unit_is_understood() {
    let scratch = Scratch::new();
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/lazo.service");
    let text = fs::read_to_string(unit).expect("the unit").replace("/usr/bin/lazo", env!("CARGO_BIN_EXE_lazo"));
    let copy = scratch.join("lazo.service");
    fs::write(&copy, text).expect("a copy");
    let output = output_of(Command::new("systemd-analyze").arg("verify").arg(copy));
    let said = String::from_utf8_lossy(&output.stderr);
    // Newer than the oldest systemd that it is for.
    let said: Vec<&str> = said.lines().filter(|line| !line.contains("FileDescriptorStorePreserve")).collect();
    assert!(output.status.success() && said.is_empty(), "{said:?}");
}
