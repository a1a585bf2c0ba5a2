//! Sources that ignore ranges and answer with whole blobs.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use crate::support::{
    Scratch,
    faults::{Fault, Proxy, Target},
    metrics::until,
    served::{NAME, Served},
};

const READERS: usize = 4;
const FILES: usize = 12;
const NO_PREFETCH: &[&str] = &["--prefetch", "none"];

/// Several readers, each of some files here and there.
fn read(served: &Served, mount: &Path) {
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                for _ in 0..FILES {
                    served.original().assert_same(mount, served.original().next());
                }
            });
        }
    });
}

#[test]
fn a_source_that_ignores_ranges_gives_each_blob_once() {
    let served = Served::new("debian");
    let proxy = Proxy::start(&served.registry.host);
    proxy.set(Target::Blobs, Fault::Whole);
    let mounted = served.mount(&proxy.image(NAME), NO_PREFETCH);
    // One reader finds it out; from then on nobody asks for a blob that is on its way.
    served.original().assert_same(mounted.path(), served.original().next());
    read(&served, mounted.path());
    let mut times: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for request in proxy.data_requests() {
        assert_eq!(request.status, 200, "{request:?}");
        let count = times.entry(request.path).or_default();
        *count = (count.0 + 1, count.1 + request.bytes);
    }
    assert!(!times.is_empty() && times.values().all(|(requests, _)| *requests == 1), "{times:?}");
    let bytes: u64 = times.values().map(|(_, bytes)| bytes).sum();
    assert!(bytes <= served.stored_bytes(), "{bytes} bytes");
    let log = fs::read_to_string(served.scratch.join("mount.log")).unwrap_or_default();
    assert!(log.matches("ignores ranges").count() <= 1, "{log}");
    // What it does once is not held against it for ever: a fresh mount asks for ranges, and gets them.
    mounted.umount();
    served.scratch.lazo_ok(["cache", "prune"]);
    let before = proxy.data_requests().len();
    proxy.heal();
    let mounted = served.mount(&proxy.image(NAME), NO_PREFETCH);
    served.original().assert_same(mounted.path(), served.original().next());
    let later = proxy.data_requests().split_off(before);
    assert!(!later.is_empty() && later.iter().all(|request| request.status == 206), "{later:?}");
}

/// nginx before a server, with a cache of whole blobs.
struct Cache {
    process: Child,
    host: String,
}

impl Cache {
    fn start(scratch: &Scratch, upstream: &str, more: &str) -> Self {
        let dir = scratch.dir("nginx");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let host = format!("127.0.0.1:{port}");
        let temporary: String =
            ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path tmp; ")).concat();
        let config = format!(
            "daemon off; pid nginx.pid; error_log stderr; worker_processes 1; user root;\nevents {{}}\nhttp {{ {temporary}\n\
             log_format plain '$request_method $uri $status $body_bytes_sent';\naccess_log access.log plain;\n\
             proxy_cache_path cache keys_zone=blobs:1m; proxy_max_temp_file_size 1024m;\n\
             server {{ listen {host}; location / {{ proxy_pass http://{upstream}; proxy_set_header Host $http_host; }}\n\
             location ~ /blobs/ {{ proxy_pass http://{upstream}; proxy_cache blobs; proxy_cache_valid 200 1h; \
             proxy_cache_lock on; {more} }} }} }}\n"
        );
        fs::write(dir.join("nginx.conf"), config).expect("the configuration");
        let log = File::create(dir.join("log")).expect("the log");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(&dir).arg("-c").arg(dir.join("nginx.conf"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log")).stderr(log);
        let process = command.spawn().expect("nginx: run scripts/install-deps");
        until("nginx listens", || TcpStream::connect(&host).ok());
        Self { process, host }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // Its worker ends when it has gone.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.process),
            rustix::process::Signal::TERM,
        );
        let _ = self.process.wait();
    }
}

/// Answers to `GET` of a part of a blob: status, and how often for each blob.
fn answers(scratch: &Scratch) -> BTreeMap<(String, String), usize> {
    let log = fs::read_to_string(scratch.join("nginx/access.log")).expect("the access log");
    let mut answers = BTreeMap::new();
    for line in log.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["GET", path, status, _] = words[..] {
            *answers.entry((path.to_owned(), status.to_owned())).or_default() += 1;
        }
    }
    answers
}

#[test]
fn a_cache_before_a_registry_is_used_whether_or_not_it_heeds_ranges() {
    for (more, status) in [("", "206"), ("max_ranges 0;", "200")] {
        let served = Served::new("small");
        let cache = Cache::start(&served.scratch, &served.registry.host, more);
        let mounted = served.mount(&format!("docker://{}/{NAME}", cache.host), NO_PREFETCH);
        served.original().assert_same(mounted.path(), served.original().next());
        read(&served, mounted.path());
        let answers = answers(&served.scratch);
        for (digest, _) in served.manifest.blobs() {
            let of_blob = answers.iter().filter(|((path, _), _)| path.contains(&digest));
            for ((_, answer), times) in of_blob {
                // A blob that is wanted whole is asked for without a range.
                assert!(answer == status || answer == "200", "{answers:?}");
                assert!(answer == "206" || *times == 1, "one download: {answers:?}");
            }
            let asked = served.registry.requests().iter().filter(|request| request.fetched(&digest)).count();
            assert!(asked <= 1, "the registry gave {digest} {asked} times");
        }
        mounted.umount();
        drop(cache);
    }
}
