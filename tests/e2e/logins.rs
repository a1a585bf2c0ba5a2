//! Logins and certificates, from the command line to a registry with TLS and passwords.

use std::{
    ffi::OsString,
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{
    Corpus, Scratch, converted, copy_program, failure_of,
    metrics::until,
    mounted::{Mounted, wait_for_end},
    node::Node,
    output_of,
    registry::{Registry, USER},
    skopeo_copy, stdout_of,
};

/// A file of the small image.
const FILE: &str = "odd/data/noise-524288";

/// A registry with TLS and a password that has the small image, and the certificate as an argument.
fn registry(scratch: &Scratch) -> (Registry, String, String) {
    let (registry, certificate) = Registry::with_tls(scratch, "registry");
    let (image, layout) = (registry.image("app:lazo"), format!("oci:{}:lazo", converted("small", "gzip").display()));
    let mut copy = Command::new("skopeo");
    copy.args([
        "copy",
        "--all",
        "--preserve-digests",
        "--dest-tls-verify=false",
        "--dest-creds",
        USER,
        &layout,
        &image,
    ]);
    stdout_of(&mut copy);
    (registry, image, certificate.to_str().expect("UTF-8").to_owned())
}

/// Runs a command with this on its standard input.
fn fed(command: &mut Command, input: &str) -> Output {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the command");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("its input");
    child.wait_with_output().expect("its end")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

#[test]
fn a_login_is_checked_kept_and_forgotten() {
    let scratch = Scratch::new();
    let (registry, image, certificate) = registry(&scratch);
    let login = |name: &str| {
        let mut command = scratch.lazo(["login", &registry.host, "--ca", &certificate, "-u", name, "--password-stdin"]);
        fed(&mut command, "secret\n")
    };
    let file = scratch.join(".docker/config.json");
    let refused = login("stranger");
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    assert!(text(&refused).contains("refuses the user name and password") && !text(&refused).contains("secret"));
    assert!(!file.exists());
    let kept = login("user");
    assert!(kept.status.success() && text(&kept).contains("config.json"), "{}", text(&kept));
    assert_eq!(fs::metadata(&file).expect("the file").permissions().mode() & 0o777, 0o600);
    scratch.lazo_ok(["inspect", &image, "--ca", &certificate]);
    scratch.lazo_ok(["logout", &registry.host]);
    let after = scratch.lazo_err(["inspect", &image, "--ca", &certificate]);
    assert!(after.contains("lazo login"), "{after}");
    // Where nobody can be asked, it is said what is missing.
    let silent = failure_of(&mut scratch.lazo(["login", &registry.host, "--ca", &certificate, "-u", "user"]));
    assert!(silent.contains("no password of user"), "{silent}");
}

#[test]
fn a_login_can_be_given_and_certificates_be_passed_over() {
    let scratch = Scratch::new();
    let (_registry, image, certificate) = registry(&scratch);
    let inspect = |more: &[&str]| scratch.lazo(["inspect", &image].iter().chain(more));
    let refused = failure_of(&mut inspect(&["--creds", USER]));
    for hint in ["not trusted", "--ca"] {
        assert!(refused.contains(hint), "{hint}: {refused}");
    }
    stdout_of(&mut inspect(&["--creds", USER, "--ca", &certificate]));
    stdout_of(inspect(&["--ca", &certificate]).env("LAZO_CREDS", USER));
    let asked = fed(&mut inspect(&["--creds", "user", "--ca", &certificate]), "secret\n");
    assert!(asked.status.success(), "{}", text(&asked));
    let none = failure_of(&mut inspect(&["--creds", "user", "--ca", &certificate]));
    assert!(none.contains("no password of user"), "{none}");
    let wrong = failure_of(&mut inspect(&["--creds", "user:wrong-secret", "--ca", &certificate]));
    assert!(wrong.contains("refuses the user name and password") && !wrong.contains("wrong-secret"), "{wrong}");
    let unseen = output_of(&mut inspect(&["--creds", USER, "--insecure"]));
    assert!(unseen.status.success(), "{}", text(&unseen));
    assert_eq!(text(&unseen).matches("certificate is not looked at").count(), 1, "{}", text(&unseen));
    let shown = text(&output_of(scratch.lazo(["inspect", "--help"]).env("LAZO_CREDS", USER)));
    assert!(shown.contains("LAZO_CREDS") && !shown.contains("secret"), "{shown}");

    // A mount of its own, which goes on in a process without a terminal.
    let dir = scratch.dir("mount");
    let mut mount = scratch.lazo(["mount", "--standalone", "--creds", "user", "--ca", &certificate, &image]);
    let mounted = fed(mount.arg(&dir), "secret\n");
    assert!(mounted.status.success(), "{}", text(&mounted));
    let mounted = Mounted::adopt(&scratch, dir);
    assert_eq!(fs::read(mounted.path().join(FILE)).expect("the file").len(), 524_288);
    mounted.umount();
    let missing = scratch.lazo_err([
        "mount",
        "--standalone",
        "--creds",
        ":x",
        &image,
        &scratch.dir("none").display().to_string(),
    ]);
    assert!(missing.contains("name is missing"), "{missing}");
}

#[test]
fn the_process_that_serves_a_mount_shows_no_login() {
    let scratch = Scratch::new();
    let (_registry, image, certificate) = registry(&scratch);
    let dir = scratch.dir("mount");
    let source = "--source=http://someone:secret@127.0.0.1:1/";
    let common = ["mount", "--standalone", "--ca", &certificate, source, &image];
    for (arguments, variable) in
        [(&["--creds", USER][..], None), (&[&format!("--creds={USER}")], None), (&[], Some(USER))]
    {
        let mut mount = scratch.lazo(common.iter().chain(arguments));
        if let Some(value) = variable {
            mount.env("LAZO_CREDS", value);
        }
        stdout_of(mount.arg(&dir));
        let mounted = Mounted::adopt(&scratch, dir.clone());
        assert_eq!(fs::read(mounted.path().join(FILE)).expect("the file").len(), 524_288);
        let serving: Vec<String> = processes()
            .filter(|process| process_file(process, "cmdline").contains(&*dir.to_string_lossy()))
            .map(|process| process_file(&process, "cmdline") + &process_file(&process, "environ"))
            .collect();
        assert_eq!(serving.len(), 1, "{arguments:?}");
        assert!(!serving[0].contains("secret"), "{}", serving[0]);
        mounted.umount();
    }
}

fn processes() -> impl Iterator<Item = std::path::PathBuf> {
    let numbered = |path: &std::path::PathBuf| path.join("cmdline").exists();
    fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path()).filter(numbered)
}

fn process_file(process: &Path, name: &str) -> String {
    String::from_utf8_lossy(&fs::read(process.join(name)).unwrap_or_default()).into_owned()
}

#[test]
fn each_side_of_a_conversion_has_a_login_of_its_own() {
    let scratch = Scratch::new();
    let (secured, _, _) = registry(&scratch);
    let plain = Registry::start(&scratch, "plain");
    let (there, here) = (secured.image("new:lazo"), plain.image("new:lazo"));
    let convert = |from: &str, to: &str, more: &[&str]| scratch.lazo(["convert", from, to].iter().chain(more));
    let original = Corpus::get("small").image("gzip");
    stdout_of(&mut convert(&original, &there, &["--dest-creds", USER, "--dest-insecure"]));
    let ordinary = plain.image("ordinary:1");
    skopeo_copy(&original, &ordinary, &[]);
    stdout_of(&mut convert(&ordinary, &here, &["--src-creds", "nobody:needed"]));
    // Two registries, and one login for whichever it may be.
    let both = output_of(&mut convert(&ordinary, &there, &["--creds", USER, "--insecure", "--force"]));
    assert!(both.status.code() == Some(2) && text(&both).contains("--dest-creds"), "{}", text(&both));
    stdout_of(&mut convert(&ordinary, &there, &["--dest-creds", USER, "--dest-insecure", "--force"]));
}

#[test]
fn both_sides_of_a_conversion_are_told_of_once() {
    let scratch = Scratch::new();
    let (secured, ..) = registry(&scratch);
    let (ordinary, new) = (secured.image("ordinary:1"), secured.image("ordinary:lazo"));
    skopeo_copy(&Corpus::get("small").image("gzip"), &ordinary, &["--dest-creds", USER]);
    let converted = output_of(&mut scratch.lazo(["convert", &ordinary, &new, "--creds", USER, "--insecure"]));
    assert!(converted.status.success(), "{}", text(&converted));
    assert_eq!(text(&converted).matches("certificate is not looked at").count(), 1, "{}", text(&converted));
}

/// A credential helper on a PATH of its own; the PATH.
fn helper(scratch: &Scratch, registry: &Registry, script: &str) -> OsString {
    let directory = scratch.dir("bin");
    let program = directory.join("docker-credential-cloud");
    copy_program("/dev/null".as_ref(), &program, &format!("#!/bin/sh\n{script}\n"));
    let config = format!(r#"{{"credHelpers":{{"{}":"cloud"}}}}"#, registry.host);
    fs::write(scratch.dir(".docker").join("config.json"), config).expect("the configuration");
    let mut path = directory.into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// As helpers of clouds do: a cache below the home directory, a socket or a file in /tmp.
fn writing(scratch: &Scratch) -> String {
    let (user, password) = USER.split_once(':').expect("a password");
    let cache = scratch.join(".cloud/cache");
    format!(
        "mkdir -p $HOME/.cloud && echo asked >> {} && echo x > /tmp/lazo-helper-$$ && rm /tmp/lazo-helper-$$ &&\n\
         echo '{{\"Username\":\"{user}\",\"Secret\":\"{password}\"}}'",
        cache.display()
    )
}

#[test]
fn a_helper_that_writes_below_home_serves_the_daemon() {
    let scratch = Scratch::new();
    let (registry, image, certificate) = registry(&scratch);
    let path = helper(&scratch, &registry, &writing(&scratch));
    let config = format!("ca = [{certificate:?}]");
    let node = Node::with_environment(&scratch, &config, &[("PATH", path.as_os_str())]);
    let mounted = node.mount(&image, "mount", &[]);
    assert_eq!(fs::read(mounted.path().join(FILE)).expect("the file").len(), 524_288);
    assert!(fs::read_to_string(scratch.join(".cloud/cache")).expect("the cache").contains("asked"));
    mounted.umount();
    // The process for helpers is gone: the worker, which can have no other, is replaced.
    let worker = node.worker();
    let helpers = process_for_helpers(worker);
    kill_process(helpers, Signal::KILL).expect("it lives");
    wait_for_end(worker);
    until("another worker", || {
        let health: serde_json::Value =
            serde_json::from_slice(&output_of(&mut scratch.lazo(["stats", "--json"])).stdout).ok()?;
        let pid = health["daemon"]["health"]["worker_pid"].as_i64()?;
        (pid != i64::from(worker.as_raw_nonzero().get())).then_some(())
    });
    let again = node.mount(&image, "again", &[]);
    assert_eq!(fs::read(again.path().join(FILE)).expect("the file").len(), 524_288);
    again.umount();
    node.stop();
}

/// The child of the worker that runs helpers.
fn process_for_helpers(worker: Pid) -> Pid {
    let is_it = |process: &Path| {
        let read = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
        let parent = format!("PPid:\t{}\n", worker.as_raw_nonzero());
        read("status").contains(&parent) && read("cmdline").ends_with("--process\0helpers\0")
    };
    let processes = fs::read_dir("/proc").expect("/proc").flatten().map(|entry| entry.path());
    let found = processes.into_iter().find(|process| is_it(process)).expect("the process for helpers");
    let name = found.file_name().and_then(|name| name.to_str()).expect("a number");
    Pid::from_raw(name.parse().expect("a number")).expect("a process")
}

#[test]
fn what_a_helper_complains_of_is_told() {
    let scratch = Scratch::new();
    let (registry, image, certificate) = registry(&scratch);
    let path = helper(&scratch, &registry, "echo the vault is sealed; exit 1");
    let config = format!("ca = [{certificate:?}]");
    let node = Node::with_environment(&scratch, &config, &[("PATH", path.as_os_str())]);
    let by_daemon = Mounted::failure(&scratch, &image, "mount");
    let by_command = failure_of(scratch.lazo(["inspect", "--ca", &certificate, &image]).env("PATH", &path));
    for told in [by_daemon, by_command] {
        assert!(told.contains("docker-credential-cloud failed") && told.contains("the vault is sealed"), "{told}");
    }
    let given = Mounted::failure_with(&scratch, &["--creds", USER], &image, "mount");
    assert!(given.contains("lazo login") && !given.contains("secret"), "{given}");
    node.stop();
}
