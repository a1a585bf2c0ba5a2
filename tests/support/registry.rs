//! docker-registry on a free loopback port, with its access log.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant, SystemTime},
};

use super::{Scratch, skopeo_copy, stdout_of};

/// How long the registry may take to start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// `user` with the password `secret`, as htpasswd writes it: bcrypt, the one kind that docker-registry takes.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";
pub(crate) const USER: &str = "user:secret";

/// A running registry with storage of its own; ended on drop.
pub(crate) struct Registry {
    process: Child,
    pub(crate) host: String,
    directory: PathBuf,
    access_log: PathBuf,
    /// How often its password file was changed.
    changes: AtomicU64,
}

/// One request of the access log.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
}

impl Request {
    /// Whether it brought data of the blob with this digest.
    pub(crate) fn fetched(&self, digest: &str) -> bool {
        self.method == "GET" && matches!(self.status, 200 | 206) && self.path.ends_with(&format!("/blobs/{digest}"))
    }
}

impl Registry {
    pub(crate) fn start(scratch: &Scratch, name: &str) -> Self {
        Self::with(scratch, name, "")
    }

    /// One that wants [`USER`].
    pub(crate) fn with_basic_auth(scratch: &Scratch, name: &str) -> Self {
        let file = scratch.join(&format!("{name}.htpasswd"));
        fs::write(&file, HTPASSWD).expect("the password file");
        Self::with(scratch, name, &format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", file.display()))
    }

    /// One that wants [`USER`] and speaks TLS, with a certificate that is its own authority; also where that is.
    pub(crate) fn with_tls(scratch: &Scratch, name: &str) -> (Self, PathBuf) {
        let [certificate, key] = ["crt", "key"].map(|ending| scratch.join(&format!("{name}.{ending}")));
        let mut command = Command::new("openssl");
        command.args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ]);
        command.args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]);
        stdout_of(command.arg("-out").arg(&certificate).arg("-keyout").arg(&key));
        let passwords = scratch.join(&format!("{name}.htpasswd"));
        fs::write(&passwords, HTPASSWD).expect("the password file");
        let login = format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", passwords.display());
        let tls = [("REGISTRY_HTTP_TLS_CERTIFICATE", &*certificate), ("REGISTRY_HTTP_TLS_KEY", &*key)];
        (Self::spawn(scratch, name, &scratch.dir(name), &login, &tls), certificate)
    }

    /// One that lets this user in, whose password is that of [`USER`], until [`Self::admit`] says otherwise.
    pub(crate) fn for_user(scratch: &Scratch, name: &str, user: &str) -> Self {
        let registry = Self::with_basic_auth(scratch, name);
        registry.admit(scratch, name, user);
        registry
    }

    /// From now on it lets in this user alone.
    pub(crate) fn admit(&self, scratch: &Scratch, name: &str, user: &str) {
        let file = scratch.join(&format!("{name}.htpasswd"));
        let (_, hash) = HTPASSWD.split_once(':').expect("a line of a password file");
        fs::write(&file, format!("{user}:{hash}")).expect("the password file");
        // It looks at the time to see whether it has changed.
        let changes = self.changes.fetch_add(1, Ordering::Relaxed);
        let later = SystemTime::now() + Duration::from_secs(changes + 1);
        File::options().write(true).open(&file).and_then(|file| file.set_modified(later)).expect("a time");
    }

    fn with(scratch: &Scratch, name: &str, more: &str) -> Self {
        Self::over(scratch, name, &scratch.dir(name), more)
    }

    /// One whose storage is `directory`. `more`: of its configuration.
    pub(crate) fn over(scratch: &Scratch, name: &str, directory: &Path, more: &str) -> Self {
        Self::spawn(scratch, name, directory, more, &[])
    }

    /// The same with variables in its environment, by which it is configured too.
    fn spawn(scratch: &Scratch, name: &str, directory: &Path, more: &str, environment: &[(&str, &Path)]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: false}}}}\nstorage:\n  filesystem: \
             {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: '{host}'}}\n{more}",
            directory.display()
        );
        let file = scratch.join(&format!("{name}.yml"));
        fs::write(&file, config).expect("the registry's configuration");
        let access_log = scratch.join(&format!("{name}.access.log"));
        let log = File::create(&access_log).expect("the access log");
        let errors = File::create(scratch.join(&format!("{name}.errors.log"))).expect("the error log");
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("docker-registry: run scripts/install-deps");
        let start = Instant::now();
        while TcpStream::connect(&host).is_err() {
            assert!(start.elapsed() < START_LIMIT, "docker-registry does not answer on {host}");
            assert!(
                process.try_wait().expect("its state").is_none(),
                "docker-registry ended; see {}",
                access_log.display()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, host, directory: directory.to_owned(), access_log, changes: AtomicU64::new(0) }
    }

    /// `docker://HOST/NAME`
    pub(crate) fn image(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.host)
    }

    /// Copies an image of a layout directory to `NAME` with skopeo, digests unchanged.
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        skopeo_copy(&format!("oci:{}:{tag}", layout.display()), &self.image(name), &["--all", "--preserve-digests"]);
        self.image(name)
    }

    /// Hangs the registry: connections are taken, and then there is silence.
    pub(crate) fn hang(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn go_on(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.process), signal).expect("a signal");
    }

    /// The file that holds a blob or manifest.
    pub(crate) fn blob_path(&self, digest: &str) -> PathBuf {
        let (algorithm, hex) = digest.split_once(':').expect("a digest");
        self.directory.join("docker/registry/v2/blobs").join(algorithm).join(&hex[..2]).join(hex).join("data")
    }

    /// All requests so far that have been answered in full.
    pub(crate) fn requests(&self) -> Vec<Request> {
        let log = fs::read_to_string(&self.access_log).expect("the access log");
        log.lines().filter_map(parse).collect()
    }
}

/// A line in Apache's format: `ADDRESS - USER [TIME] "METHOD PATH PROTOCOL" STATUS BYTES "REFERRER" "AGENT"`.
fn parse(line: &str) -> Option<Request> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut request = request.split(' ');
    let mut numbers = rest.split(' ');
    Some(Request {
        method: request.next()?.to_owned(),
        path: request.next()?.split('?').next()?.to_owned(),
        status: numbers.next()?.parse().ok()?,
        bytes: numbers.next()?.parse().ok()?,
    })
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
