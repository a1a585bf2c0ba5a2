//! What the end-to-end tests stand on: the binary, scratch directories, the corpus, and fixtures that clean up.

pub(crate) mod containerd;
pub(crate) mod crafted;
pub(crate) mod erofs_mount;
#[expect(dead_code, reason = "the benchmarks use the rest")]
pub(crate) mod faults;
pub(crate) mod grpc;
pub(crate) mod hostile_images;
pub(crate) mod layout;
pub(crate) mod listing;
pub(crate) mod manager;
pub(crate) mod metrics;
pub(crate) mod mounted;
pub(crate) mod node;
pub(crate) mod own;
pub(crate) mod random;
pub(crate) mod registry;
pub(crate) mod served;
pub(crate) mod systemd;
pub(crate) mod tokens;

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex, OnceLock},
};

/// A directory of its own below the target directory, with lazo's state and run directories in it; removed on drop.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        let parent = run_directory();
        Self(tempfile::Builder::new().prefix("t").tempdir_in(parent).expect("a scratch directory"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// A new empty directory.
    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// `lazo ARGS`, with this scratch directory's state and run directories.
    pub(crate) fn lazo<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        self.program(Path::new(env!("CARGO_BIN_EXE_lazo")), args)
    }

    /// The same for another lazo than the one that is tested.
    pub(crate) fn program<S: AsRef<OsStr>>(&self, lazo: &Path, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(lazo);
        command
            .args(args)
            .env("LAZO_STATE_DIR", self.join("state"))
            .env("LAZO_RUN_DIR", self.join("run"))
            .env("LAZO_HOSTS_DIR", "none")
            .env("HOME", self.path())
            .env_remove("DOCKER_CONFIG")
            .env_remove("REGISTRY_AUTH_FILE")
            .stdin(Stdio::null());
        command
    }

    /// Runs `lazo ARGS`, which must succeed; its stdout.
    pub(crate) fn lazo_ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        stdout_of(&mut self.lazo(args))
    }

    /// Runs `lazo ARGS`, which must fail with exit code 1 and without a panic; what it printed.
    pub(crate) fn lazo_err<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> String {
        failure_of(&mut self.lazo(args))
    }
}

impl Drop for Scratch {
    /// A daemon that was killed leaves its mounts, which nothing can be removed below.
    fn drop(&mut self) {
        unmount_below(self.path());
    }
}

/// One directory a test process, where nothing of earlier, killed ones is left: neither files nor mounts.
pub(crate) fn run_directory() -> &'static Path {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        assert!(rustix::process::geteuid().is_root(), "the end-to-end tests mount file systems: run them as root");
        let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
        for entry in fs::read_dir(parent).expect("the target directory").flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            let Some(pid) = name.strip_prefix("e2e-") else { continue };
            if !Path::new("/proc").join(pid).exists() {
                unmount_below(&entry.path());
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let own = parent.join(format!("e2e-{}", std::process::id()));
        fs::create_dir_all(&own).expect("the test directory");
        own
    })
}

pub(crate) fn unmount_below(directory: &Path) {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let table = String::from_utf8_lossy(&table);
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|point| Path::new(point).starts_with(directory));
    for point in points.collect::<Vec<_>>().into_iter().rev() {
        let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
    }
}

pub(crate) fn output_of(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// Runs a command that must succeed; its stdout.
pub(crate) fn stdout_of(command: &mut Command) -> String {
    let output = output_of(command);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs a lazo command that must fail, with exit code 1 and without a panic; what it printed.
pub(crate) fn failure_of(command: &mut Command) -> String {
    let output = output_of(command);
    let printed = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {}\n{printed}", output.status);
    assert!(!printed.contains("panicked"), "{command:?} panicked:\n{printed}");
    assert!(!printed.trim().is_empty(), "{command:?} failed without a word");
    printed
}

/// Runs a program that must succeed.
pub(crate) fn run<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    stdout_of(Command::new(program).args(args).stdin(Stdio::null()))
}

/// Puts a program there, by another process: one that another thread has just forked may have open what this process writes, and
/// then it cannot be run. `more`: text behind it, which makes it another file.
pub(crate) fn copy_program(from: &Path, to: &Path, more: &str) {
    let script = "cat \"$0\" >\"$1\" && printf %s \"$2\" >>\"$1\" && chmod 755 \"$1\"";
    run("sh", [OsStr::new("-c"), script.as_ref(), from.as_ref(), to.as_ref(), more.as_ref()]);
}

/// `skopeo copy`, plain HTTP allowed.
pub(crate) fn skopeo_copy(source: &str, destination: &str, options: &[&str]) {
    let fixed = ["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false"];
    run("skopeo", fixed.iter().chain(options).chain([&source, &destination]));
}

/// An image directory of the test corpus, built if it is not there yet.
pub(crate) struct Corpus(PathBuf);

impl Corpus {
    pub(crate) fn get(name: &str) -> Self {
        let path = once(&format!("corpus {name}"), || {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/corpus");
            PathBuf::from(stdout_of(Command::new(script).arg(name)).trim())
        });
        Self((*path).clone())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// `oci:LAYOUT:TAG`
    pub(crate) fn image(&self, tag: &str) -> String {
        format!("oci:{}:{tag}", self.layout().display())
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.0.join("layout")
    }

    /// What `umoci unpack` made of the tag `gzip`.
    pub(crate) fn reference(&self) -> PathBuf {
        self.0.join("reference")
    }

    /// Entries that the reference shows otherwise, by path and field.
    pub(crate) fn exceptions(&self) -> Vec<(Vec<u8>, String)> {
        let text = fs::read_to_string(self.0.join("exceptions.tsv")).unwrap_or_default();
        let parse = |line: &str| {
            let (path, rest) = line.split_once('\t').expect("a path");
            let (field, _reason) = rest.split_once('\t').expect("a field and its reason");
            (path.as_bytes().to_vec(), field.to_owned())
        };
        text.lines().map(parse).collect()
    }
}

/// The result of `make`, made once a process for each key; other keys are not held up meanwhile.
pub(crate) fn once<T: Send + Sync + 'static>(key: &str, make: impl FnOnce() -> T) -> Arc<T> {
    type Cell = Arc<OnceLock<Arc<dyn std::any::Any + Send + Sync>>>;
    static CELLS: Mutex<Option<HashMap<String, Cell>>> = Mutex::new(None);
    let cell = {
        let mut cells = CELLS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        cells.get_or_insert_default().entry(key.to_owned()).or_default().clone()
    };
    let value = cell.get_or_init(|| Arc::new(make())).clone();
    value.downcast().unwrap_or_else(|_| panic!("two types under the key {key}"))
}

/// A corpus image as `lazo convert` makes it with default options, in a layout directory with the tag `lazo`.
pub(crate) fn converted(corpus: &str, tag: &str) -> PathBuf {
    let path = once(&format!("converted {corpus} {tag}"), || {
        let scratch = Scratch::new();
        let layout = run_directory().join(format!("converted-{corpus}-{tag}"));
        scratch.lazo_ok(["convert", &Corpus::get(corpus).image(tag), &format!("oci:{}:lazo", layout.display())]);
        layout
    });
    (*path).clone()
}
