//! What can be seen of a mount at work: metrics over TCP and sockets, log lines of reads that wait or fail.

use std::{
    fs,
    net::TcpListener,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _},
        net::UnixListener,
    },
    path::PathBuf,
    process::Command,
    thread::{self, JoinHandle},
};

use crate::support::{
    Scratch, converted,
    layout::Manifest,
    metrics::{curl, one, until, value},
    mounted::{Mounted, is_mounted},
    registry::Registry,
    run, stdout_of,
};

/// Readers at a time; more than there are log lines for.
const READERS: usize = 24;
/// Lines of a kind that the log has room for in one go.
const LINES: usize = 10;
/// A file of the small image.
const FILE: &[u8] = b"odd/data/noise-524288";

fn small() -> String {
    format!("oci:{}:lazo", converted("small", "gzip").display())
}

fn log_of(scratch: &Scratch) -> Vec<String> {
    let text = fs::read_to_string(one(scratch, "logs", ".log")).expect("the log");
    text.lines().map(str::to_owned).collect()
}

fn lines_with(scratch: &Scratch, part: &str) -> Vec<String> {
    log_of(scratch).into_iter().filter(|line| line.contains(part)).collect()
}

#[test]
fn metrics_are_offered_over_tcp_and_at_the_mounts_own_socket() {
    let scratch = Scratch::new();
    let dir = scratch.dir("mount");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port();
    let address = format!("127.0.0.1:{port}");
    stdout_of(scratch.lazo(["mount", &small(), "--prefetch", "none", "--metrics", &address]).arg(&dir));
    let mounted = Mounted::adopt(&scratch, dir);
    let length = fs::read(mounted.join(FILE)).expect("the file").len() as f64;

    let socket = one(&scratch, "mounts", ".sock");
    let metadata = fs::metadata(&socket).expect("the socket");
    assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o600, "{:o}", metadata.mode());
    let record = fs::read_to_string(one(&scratch, "mounts", ".json")).expect("the record");
    assert!(record.contains(&format!("\"control\": \"{}\"", socket.display())), "{record}");

    let texts = [
        run("curl", ["--silent", "--show-error", "--include", &format!("http://{address}/metrics")]),
        curl(&socket, "http://lazo/metrics", &["--include"]),
    ];
    for text in texts {
        let (head, text) = text.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
        assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
        assert!(text.ends_with("# EOF\n"), "{text}");
        assert_eq!(value(text, "lazo_mounts"), 1.0);
        assert_eq!(value(text, "lazo_stalled_readers"), 0.0);
        assert!(value(text, "lazo_read_bytes_total") >= length, "{text}");
        assert!(value(text, r#"lazo_reads_total{from="source"}"#) >= 1.0, "{text}");
        assert_eq!(value(text, "lazo_stall_seconds_count"), value(text, r#"lazo_reads_total{from="source"}"#));
        for what in ["fetched", "decoded"] {
            assert!(value(text, &format!("lazo_{what}_bytes_total{{priority=\"demand\"}}")) >= length, "{text}");
        }
        assert_eq!(value(text, "lazo_in_flight_bytes{priority=\"demand\"}"), 0.0);
        assert!(value(text, "process_resident_memory_bytes") > 1e6, "{text}");
    }
    let refused = curl(&socket, "http://lazo/metrics", &["--include", "--data", "x"]);
    assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET, HEAD"), "{refused}");
    let head = curl(&socket, "http://lazo/metrics", &["--head"]);
    assert!(head.starts_with("HTTP/1.1 200") && !head.contains("lazo_"), "{head}");
    for path in ["/", "/metrics/", "/metrics2", "/../metrics"] {
        let answer = curl(&socket, &format!("http://lazo{path}"), &["--include", "--path-as-is"]);
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    mounted.umount();
    assert_eq!(fs::read_dir(scratch.join("run/mounts")).expect("the directory").count(), 0);
}

#[test]
fn many_who_connect_and_say_nothing_do_not_keep_others_out() {
    let scratch = Scratch::new();
    let mounted = Mounted::new(&scratch, &small(), "mount");
    let socket = one(&scratch, "mounts", ".sock");
    // More than are served at a time: the others wait until the first have been silent for too long.
    let silent: Vec<_> =
        (0..12).map(|_| std::os::unix::net::UnixStream::connect(&socket).expect("a connection")).collect();
    let text = run(
        "curl",
        [
            "--silent",
            "--max-time",
            "20",
            "--unix-socket",
            socket.to_str().expect("a plain path"),
            "http://lazo/metrics",
        ],
    );
    assert_eq!(value(&text, "lazo_mounts"), 1.0);
    drop(silent);
    mounted.umount();
}

#[test]
fn a_socket_is_made_private_and_removed() {
    let scratch = Scratch::new();
    // Longer than an address of a socket has room for.
    let socket = scratch.dir(&"long".repeat(40)).join("metrics");
    // Left behind by a process that was killed.
    let dir = scratch.dir("mount");
    drop(UnixListener::bind(scratch.join("dead")).expect("a socket"));
    fs::rename(scratch.join("dead"), &socket).expect("the socket in its place");
    stdout_of(scratch.lazo(["mount", &small(), "--metrics", &format!("unix:{}", socket.display())]).arg(&dir));
    let mounted = Mounted::adopt(&scratch, dir);
    let metadata = fs::symlink_metadata(&socket).expect("the socket");
    assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o600, "{:o}", metadata.mode());
    let short = scratch.join("short");
    std::os::unix::fs::symlink(&socket, &short).expect("a link");
    assert_eq!(value(&curl(&short, "http://lazo/metrics", &[]), "lazo_mounts"), 1.0);

    let text =
        Mounted::failure_with(&scratch, &["--metrics", &format!("unix:{}", socket.display())], &small(), "other");
    assert!(text.contains("another process listens there"), "{text}");
    mounted.umount();
    assert!(!socket.exists() && fs::symlink_metadata(&socket).is_err(), "the socket stays");
}

#[test]
fn an_address_that_cannot_be_had_is_an_error_before_there_is_a_mount() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("its address").to_string();
    let file = scratch.join("file");
    fs::write(&file, "precious").expect("a file");
    let (file_address, nowhere) = (format!("unix:{}", file.display()), format!("unix:{}/no/dir", file.display()));
    let cases = [
        (taken.as_str(), "Address already in use"),
        (&file_address, "there is a file that is no socket"),
        (&nowhere, "Not a directory"),
        ("192.0.2.1:9", "Cannot assign requested address"),
    ];
    for (address, reason) in cases {
        let text = Mounted::failure_with(&scratch, &["--metrics", address], &small(), "mount");
        assert!(text.contains(&format!("cannot offer metrics at {address}")) && text.contains(reason), "{text}");
    }
    assert_eq!(fs::read_to_string(&file).expect("the file"), "precious");
    for malformed in ["9100", ":9100", "host:", "host:99999", "unix:", ""] {
        let dir = scratch.dir("mount");
        let output = scratch.lazo(["mount", &small(), "--metrics", malformed]).arg(&dir).output().expect("lazo");
        assert_eq!(output.status.code(), Some(2), "{malformed:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!is_mounted(&dir));
    }
}

/// Plain files of at least a block in a mount, by name.
fn files(mounted: &Mounted<'_>, count: usize) -> Vec<PathBuf> {
    let all = stdout_of(Command::new("find").arg(mounted.path()).args(["-type", "f", "-size", "+3k"]));
    let mut all: Vec<PathBuf> = all.lines().map(PathBuf::from).collect();
    all.sort();
    assert!(all.len() >= count, "only {} files", all.len());
    all.into_iter().take(count).collect()
}

/// Reads each of some files in a thread of its own, which has its number as its name.
fn read_all(files: &[PathBuf]) -> Vec<JoinHandle<std::io::Result<usize>>> {
    let start = |(number, path): (usize, &PathBuf)| {
        let path = path.clone();
        let thread = thread::Builder::new().name(format!("reader-{number}"));
        thread.spawn(move || Ok(fs::read(path)?.len())).expect("a thread")
    };
    files.iter().enumerate().map(start).collect()
}

#[test]
fn reads_that_wait_for_a_hung_registry_are_named_in_the_log() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layout = converted("small", "gzip");
    let image = registry.push(&layout, "lazo", "app:lazo");
    let mounted = Mounted::new(&scratch, &image, "mount");
    let socket = one(&scratch, "mounts", ".sock");
    let files = files(&mounted, READERS);
    let inodes: Vec<u64> = files.iter().map(|file| fs::metadata(file).expect("the file").ino()).collect();
    registry.hang();
    let readers = read_all(&files);
    until("all readers wait", || {
        let text = curl(&socket, "http://lazo/metrics", &[]);
        (value(&text, "lazo_stalled_readers") >= READERS as f64).then_some(())
    });
    let waiting = until("all lines", || {
        let lines = lines_with(&scratch, "a read waits for the network");
        (lines.len() >= LINES).then_some(lines)
    });
    registry.go_on();
    for reader in readers {
        assert!(reader.join().expect("a reader").expect("the file") > 3 << 10);
    }
    until("nobody waits", || {
        (value(&curl(&socket, "http://lazo/metrics", &[]), "lazo_stalled_readers") == 0.0).then_some(())
    });
    let text = curl(&socket, "http://lazo/metrics", &[]);
    assert!(value(&text, "lazo_stall_seconds_sum") >= READERS as f64, "each waited for a second at least: {text}");
    until("the lines of their ends", || {
        (lines_with(&scratch, "a read that waited has ended").len() >= LINES).then_some(())
    });
    mounted.umount();

    assert!(waiting[0].contains(" WARN "), "{}", waiting[0]);
    let digests: Vec<String> = Manifest::of(&layout, "lazo").blobs().into_iter().map(|(digest, _)| digest).collect();
    for line in &waiting {
        let number = field(line, "command").strip_prefix("reader-").expect("the reader's name").to_owned();
        let file = &files[number.parse::<usize>().expect("its number")];
        assert!(file.ends_with(&field(line, "path")[1..]), "{line}");
        assert_eq!(field(line, "inode"), inodes[number.parse::<usize>().expect("its number")].to_string());
        assert_eq!(field(line, "image"), image);
        assert!(digests.contains(&field(line, "blob")), "{line}");
        assert!(field(line, "source").contains(&registry.host), "{line}");
        for number in ["offset", "length", "chunk", "pid", "waited_ms"] {
            assert!(field(line, number).parse::<u64>().is_ok(), "{number} in {line}");
        }
        assert!(field(line, "waited_ms").parse::<u64>().expect("a number") >= 1000, "{line}");
    }
    let ended = lines_with(&scratch, "a read that waited has ended");
    assert!(ended.iter().all(|line| field(line, "outcome") == "done" && !field(line, "path").is_empty()), "{ended:?}");
    assert_eq!((lines_with(&scratch, "a read waits for the network").len(), ended.len()), (LINES, LINES));
    let counted = lines_with(&scratch, "more reads wait for the network");
    let suppressed: usize =
        counted.iter().map(|line| field(line, "suppressed").parse::<usize>().expect("a number")).sum();
    assert!(suppressed >= READERS - LINES, "{counted:?}");
}

#[test]
fn reads_that_fail_by_the_dozen_are_a_few_lines_and_a_count() {
    let scratch = Scratch::new();
    let registry = Registry::start(&scratch, "registry");
    let layout = converted("small", "gzip");
    let image = registry.push(&layout, "lazo", "app:lazo");
    let mounted = Mounted::new(&scratch, &image, "mount");
    let socket = one(&scratch, "mounts", ".sock");
    for (digest, size) in Manifest::of(&layout, "lazo").blobs() {
        fs::write(registry.blob_path(&digest), vec![0; usize::try_from(size).expect("a size")]).expect("the blob");
    }
    let files = files(&mounted, READERS);
    for reader in read_all(&files) {
        let error = reader.join().expect("a reader").expect_err("wrong bytes");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    }
    let text = curl(&socket, "http://lazo/metrics", &[]);
    // The kernel asks again, so that there are more.
    let failed = value(&text, "lazo_failed_reads_total");
    assert!(failed >= READERS as f64, "{text}");
    until("all lines", || (lines_with(&scratch, "a read failed").len() >= LINES).then_some(()));
    mounted.umount();
    let lines = lines_with(&scratch, "a read failed");
    assert_eq!(lines.len(), LINES);
    for line in &lines {
        assert!(line.contains("ERROR") && files.iter().any(|file| file.ends_with(&field(line, "path")[1..])), "{line}");
        assert!(field(line, "command").starts_with("reader-"), "{line}");
    }
    let counted = lines_with(&scratch, "more reads failed");
    let suppressed: f64 = counted.iter().map(|line| field(line, "suppressed").parse::<f64>().expect("a number")).sum();
    assert_eq!(suppressed + LINES as f64, failed, "{counted:?}");
}

/// A field of a log line, without its quotes; the values have none inside.
fn field(line: &str, name: &str) -> String {
    let start = line.find(&format!(" {name}=")).unwrap_or_else(|| panic!("no {name} in {line}")) + name.len() + 2;
    let rest = &line[start..];
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next().unwrap_or_default().to_owned(),
        None => rest.split(' ').next().unwrap_or_default().to_owned(),
    }
}
