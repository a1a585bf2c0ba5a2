//! Gives up rights that are not needed.
//!
//! | process | capabilities | may write to | system calls |
//! |---|---|---|---|
//! | supervisor | those of the others together, and to give them up | | |
//! | worker | to read any file | what it is told | none that mounts, debugs, loads code into the kernel, or changes the machine |
//! | mounter | to mount, and what is done in an overlay | | the same, but for mounts |
//! | helpers | to read any file | | as the worker's, but for keys |
//!
//! What the kernel or whoever started us does not allow is left out, with a line in the log. Rights belong to threads: all
//! this is done before there is a second one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

use super::files;

/// To read the credential files and layouts that users name.
const WORKER: CapabilitySet = CapabilitySet::DAC_READ_SEARCH;

/// To mount; to map ids (`SETFCAP`: root's); and all that a container may do with files, as what is done in an overlay is done
/// with the rights of the process that made it.
const MOUNTER: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::LINUX_IMMUTABLE);

/// Capabilities that a kernel may have.
const MAX_CAPABILITIES: u32 = 64;

/// System calls that none of the processes makes, nor a program that one of them starts.
const NEVER: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_load,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// System calls that only credential helpers make: tickets and passwords may be in the kernel's keyrings.
const KEYS: &[i64] = &[libc::SYS_add_key, libc::SYS_keyctl, libc::SYS_request_key];

/// System calls that only the mounter makes.
const MOUNTING: &[i64] = &[
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_umount2,
    libc::SYS_unshare,
];

/// x86-64 has a second number for each call, for programs with 32-bit pointers.
#[cfg(target_arch = "x86_64")]
const OTHER_NUMBERS: &[i64] = &[0, 0x4000_0000];
#[cfg(not(target_arch = "x86_64"))]
const OTHER_NUMBERS: &[i64] = &[0];

/// For the process that starts the others and does little itself.
///
/// # Errors
/// When there is a second thread.
pub(super) fn supervisor() -> io::Result<()> {
    check_single_thread()?;
    umask(Mode::RWXG | Mode::RWXO);
    files::raise_limit();
    files::warn_if_few();
    keep(WORKER.union(MOUNTER).union(CapabilitySet::SETPCAP));
    Ok(())
}

/// For the process that serves: it and what it starts can write only below these directories, which must exist.
///
/// # Errors
/// When there is a second thread.
pub(super) fn worker(writable: &[&Path]) -> io::Result<()> {
    check_single_thread()?;
    worker_thread(writable);
    Ok(())
}

/// For the process that mounts.
///
/// # Errors
/// When there is a second thread.
pub(super) fn mounter() -> io::Result<()> {
    check_single_thread()?;
    mounter_thread();
    Ok(())
}

/// For the process that runs credential helpers. They write below the home directory and where else they like.
///
/// # Errors
/// When there is a second thread.
pub(super) fn helpers() -> io::Result<()> {
    check_single_thread()?;
    helpers_thread();
    Ok(())
}

fn helpers_thread() {
    umask(Mode::RWXG | Mode::RWXO);
    keep(WORKER);
    limit_calls(&[NEVER, MOUNTING]);
}

fn worker_thread(writable: &[&Path]) {
    umask(Mode::RWXG | Mode::RWXO);
    files::raise_limit();
    // Before capabilities, which opening the directories may need.
    match restrict_writes(writable) {
        Ok(RulesetStatus::NotEnforced) => tracing::info!("this kernel cannot limit where files are written (Landlock)"),
        Ok(RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced) => {}
        Err(error) => tracing::warn!(%error, "cannot limit where files are written (Landlock)"),
    }
    keep(WORKER);
    limit_calls(&[NEVER, MOUNTING, KEYS]);
}

/// Of the calling thread and those that it starts.
pub(super) fn mounter_thread() {
    umask(Mode::RWXG | Mode::RWXO);
    files::raise_limit();
    keep(MOUNTER);
    limit_calls(&[NEVER, KEYS]);
}

fn check_single_thread() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 { Ok(()) } else { Err(io::Error::other(format!("{threads} threads are there already"))) }
}

/// Gives up all capabilities but these, for programs that are started, too.
fn keep(kept: CapabilitySet) {
    if let Err(error) = shrink_bounding_set(kept) {
        tracing::warn!(%error, "cannot give up capabilities for programs that are started");
    }
    if let Err(error) = shrink_sets(kept) {
        tracing::warn!(%error, "cannot give up capabilities");
    }
}

fn shrink_bounding_set(kept: CapabilitySet) -> rustix::io::Result<()> {
    for number in 0..MAX_CAPABILITIES {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => remove_capability_from_bounding_set(capability)?,
            Ok(_) => {}
            // There are no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn shrink_sets(kept: CapabilitySet) -> rustix::io::Result<()> {
    clear_ambient_capability_set()?;
    let permitted = capabilities(None)?.permitted.intersection(kept);
    let sets = CapabilitySets { effective: permitted, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}

/// Lets files be written and made below these directories only, and signals be sent to own children only.
fn restrict_writes(writable: &[&Path]) -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    // Not the one that came next: it forbids ioctls on all devices, terminals among them.
    let write = AccessFs::from_write(ABI::V4);
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        // Without it the kernel would forbid all moves between directories.
        .handle_access(AccessFs::Refer);
    let ruleset = match ruleset {
        Ok(ruleset) => ruleset,
        Err(RulesetError::HandleAccesses(_)) => return Ok(RulesetStatus::NotEnforced),
        Err(error) => return Err(error.into()),
    };
    let mut ruleset =
        ruleset.set_compatibility(CompatLevel::BestEffort).handle_access(write)?.scope(Scope::Signal)?.create()?;
    for path in writable {
        ruleset = ruleset.add_rule(PathBeneath::new(PathFd::new(path)?, write))?;
    }
    // What programs are given as input and output when they have none.
    let null = File::options().write(true).open("/dev/null")?;
    ruleset = ruleset.add_rule(PathBeneath::new(null, AccessFs::WriteFile))?;
    Ok(ruleset.restrict_self()?.ruleset)
}

/// Makes system calls fail, with EPERM, of programs that are started, too; those get no rights by being started.
fn limit_calls(denied: &[&[i64]]) {
    if let Err(error) = set_no_new_privs(true) {
        tracing::warn!(%error, "cannot forbid programs that are started to gain rights");
    }
    match filter(denied).and_then(|filter| Ok(apply_filter(&filter)?)) {
        Ok(()) => {}
        Err(error) => tracing::warn!(%error, "cannot limit system calls"),
    }
}

fn filter(denied: &[&[i64]]) -> Result<BpfProgram, Box<dyn std::error::Error>> {
    let numbers = denied.iter().flat_map(|calls| calls.iter());
    let all = numbers.flat_map(|number| OTHER_NUMBERS.iter().map(move |other| (number | other, Vec::new())));
    let rules: BTreeMap<_, _> = all.collect();
    let eperm = SeccompAction::Errno(Errno::PERM.raw_os_error().unsigned_abs());
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, eperm, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::{Command, Stdio};

    const DIR: &str = "LAZO_TEST_DIR";

    /// Runs a test that is ignored otherwise in a process of its own.
    fn in_process(name: &str, dir: &Path) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "--nocapture", &format!("node::harden::tests::{name}")]).env(DIR, dir);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
    }

    #[test]
    fn a_worker_can_serve_and_little_else() {
        let dir = tempfile::tempdir().unwrap();
        in_process("worker_process", dir.path());
    }

    #[test]
    fn helpers_can_write_anywhere_and_not_mount() {
        let dir = tempfile::tempdir().unwrap();
        in_process("helpers_process", dir.path());
    }

    #[test]
    fn a_mounter_can_mount_and_little_else() {
        let dir = tempfile::tempdir().unwrap();
        in_process("mounter_process", dir.path());
    }

    fn test_dir() -> std::path::PathBuf {
        std::env::var_os(DIR).expect("run by another test").into()
    }

    fn status(name: &str) -> String {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().to_owned()
    }

    fn check_capabilities(kept: CapabilitySet) {
        for (set, wanted) in [("CapEff", kept), ("CapPrm", kept), ("CapBnd", kept), ("CapInh", CapabilitySet::empty())]
        {
            assert_eq!(u64::from_str_radix(&status(set), 16).unwrap(), wanted.bits(), "{set}");
        }
    }

    #[test]
    #[ignore = "the process of another test"]
    fn worker_process() {
        let dir = test_dir();
        let (inside, outside) = (dir.join("state"), dir.join("outside"));
        fs::create_dir_all(inside.join("a")).unwrap();
        fs::create_dir(inside.join("b")).unwrap();
        fs::create_dir(&outside).unwrap();
        let secret = outside.join("secret");
        fs::write(&secret, "of another user").unwrap();
        rustix::fs::chown(&secret, Some(rustix::fs::Uid::from_raw(1000)), None).unwrap();
        fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        assert!(check_single_thread().is_err(), "a test has two");

        worker_thread(&[&inside]);

        check_capabilities(WORKER);
        assert_eq!((status("NoNewPrivs"), status("Seccomp"), status("Umask")), ("1".into(), "2".into(), "0077".into()));
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        // Serves: reads anything, writes its own.
        assert_eq!(fs::read_to_string(&secret).unwrap(), "of another user");
        fs::write(inside.join("a/file"), "x").unwrap();
        fs::rename(inside.join("a/file"), inside.join("b/file")).unwrap();
        fs::File::options().write(true).open(inside.join("b/file")).unwrap().set_len(0).unwrap();
        fs::remove_file(inside.join("b/file")).unwrap();
        std::os::unix::net::UnixListener::bind(inside.join("socket")).unwrap();
        std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::thread::spawn(|| {}).join().unwrap();
        // Starts programs, which can do no more; and ends them.
        let mut helper = Command::new("sh");
        let mut child =
            helper.args(["-c", "echo x; read line"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let touch = |path: &Path| Command::new("touch").arg(path).stderr(Stdio::null()).status().unwrap().success();
        assert!(touch(&inside.join("file")) && !touch(&outside.join("file")));
        // Little else.
        let code = |error: io::Error| error.raw_os_error().unwrap();
        for path in [outside.join("file"), "/etc/file".into(), "/run/file".into(), "/dev/fuse".into()] {
            assert_eq!(
                code(File::options().write(true).create(true).truncate(false).open(&path).unwrap_err()),
                libc::EACCES
            );
        }
        assert_eq!(code(fs::rename(inside.join("file"), outside.join("file")).unwrap_err()), libc::EACCES);
        assert_eq!(code(fs::remove_file(&secret).unwrap_err()), libc::EACCES);
        let mount = rustix::mount::mount_bind(&inside, &outside);
        assert_eq!(mount, Err(Errno::PERM));
        assert_eq!(rustix::mount::unmount("/proc", rustix::mount::UnmountFlags::DETACH), Err(Errno::PERM));
        assert_eq!(rustix::mount::fsopen("tmpfs", rustix::mount::FsOpenFlags::empty()).unwrap_err(), Errno::PERM);
        assert!(!Command::new("unshare").args(["--user", "true"]).stderr(Stdio::null()).status().unwrap().success());
        assert_eq!(code(other.kill().unwrap_err()), libc::EPERM, "it was started before");
        drop(other.stdin.take());
        other.wait().unwrap();
    }

    #[test]
    #[ignore = "the process of another test"]
    fn helpers_process() {
        let dir = test_dir();
        helpers_thread();
        check_capabilities(WORKER);
        assert_eq!((status("NoNewPrivs"), status("Seccomp"), status("Umask")), ("1".into(), "2".into(), "0077".into()));
        fs::write(dir.join("cache"), "x").unwrap();
        let touch = Command::new("touch").arg(dir.join("file")).status().unwrap();
        assert!(touch.success());
        assert_eq!(rustix::mount::mount_bind(&dir, &dir), Err(Errno::PERM));
        assert!(!Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status().unwrap().success());
    }

    #[test]
    #[ignore = "the process of another test"]
    fn mounter_process() {
        let dir = test_dir();
        mounter_thread();
        check_capabilities(MOUNTER);
        assert_eq!((status("NoNewPrivs"), status("Seccomp")), ("1".into(), "2".into()));
        rustix::mount::mount_bind(&dir, &dir).unwrap();
        rustix::mount::unmount(&dir, rustix::mount::UnmountFlags::empty()).unwrap();
        assert!(Command::new("unshare").args(["--user", "true"]).status().unwrap().success());
        assert_eq!(rustix::process::chroot(&dir), Err(Errno::PERM));
        assert_eq!(rustix::system::sethostname(b"x"), Err(Errno::PERM));
        assert!(
            !Command::new("nsenter").args(["-t", "1", "-m", "true"]).stderr(Stdio::null()).status().unwrap().success()
        );
    }
}
