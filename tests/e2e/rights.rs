//! What lazo keeps is for nobody else, however it was started.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{
    Scratch,
    containerd::Site,
    crafted::{self, Layer, publish},
    mounted::Mounted,
    node::Node,
    registry::Registry,
    stdout_of,
};

/// What others could get at below a directory, without what is mounted in it, and without the files of snapshots, which have the modes that
/// their layers say; some of them have another name outside.
fn open_to_others(root: &Path) -> Vec<String> {
    let device = fs::metadata(root).expect("the directory").dev();
    let (mut left, mut found): (Vec<PathBuf>, _) = (vec![root.to_owned()], Vec::new());
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").flatten() {
            let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
            let of_snapshot = metadata.is_dir() && matches!(entry.file_name().to_str(), Some("fs" | "work"))
                || metadata.is_file() && metadata.nlink() > 1;
            if metadata.dev() != device || metadata.is_symlink() || of_snapshot {
                continue;
            }
            if metadata.mode() & 0o077 != 0 {
                found.push(format!("{:o} {}", metadata.mode(), entry.path().display()));
            }
            if metadata.is_dir() {
                left.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn nobody_else_gets_at_what_is_kept() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layers = vec![Layer::new().busybox().file("bin/rights", 0o4755, b"x")];
    let (plain, image) = publish(&scratch, &registry, "app", layers);
    let run = scratch.dir("run");
    // As an earlier version left it.
    fs::set_permissions(scratch.dir("run/containerd"), fs::Permissions::from_mode(0o755)).expect("a mode");
    fs::set_permissions(scratch.dir("state/snapshots"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let node = Node::with(&scratch, "prefetch = \"none\"\n");
    let site = Site::start(&scratch);
    for image in [&plain, &image] {
        site.pull(image, &[]);
    }
    let id = site.start_container(&image, &[], "while :; do sleep 1; done");
    let mounted = node.mount(&image, "mount", &["--rw", "tmpfs"]);
    let found: Vec<String> = [&run, &scratch.join("state")].into_iter().flat_map(|root| open_to_others(root)).collect();
    let socket = format!("{}/snapshotter.sock", run.display());
    // The test's own.
    let found: Vec<_> = found.iter().filter(|line| !line.ends_with(&socket)).collect();
    assert!(found.is_empty(), "{found:#?}");
    mounted.umount();
    site.remove_container(&id);
}

#[test]
fn a_mount_by_itself_is_as_careful() {
    let scratch = Scratch::new();
    let image = crafted::convert(&scratch, "app", vec![Layer::new().file("file", 0o644, b"x")]);
    let dir = scratch.dir("mount");
    let lazo = scratch.lazo(["mount", &image]);
    let mut command = Command::new("sh");
    command.args(["-c", "umask 0; exec \"$@\"", "sh"]).arg(lazo.get_program()).args(lazo.get_args()).arg(&dir);
    for (name, value) in lazo.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    stdout_of(&mut command);
    let mounted = Mounted::adopt(&scratch, dir);
    fs::read(mounted.path().join("file")).expect("the file");
    let (run, state) = (scratch.join("run"), scratch.join("state"));
    let modes = [&run, &state].map(|path| fs::metadata(path).expect("a directory").mode() & 0o7777);
    assert_eq!(modes, [0o711, 0o700]);
    let found: Vec<String> = [run, state].iter().flat_map(|root| open_to_others(root)).collect();
    assert!(found.is_empty(), "{found:#?}");
    mounted.umount();
}
