//! The suite for layout directories, and what happens to them: not mounted, hung, damaged.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lazo_registry::{ImageRef, Options, Source};
use lazo_storage::{BlobSource, ErrorKind, LayoutSource, SourceSpec, of_image};
use rustix::fs::{CWD, Mode, OFlags};
use tempfile::TempDir;

use crate::servers::write_layout;
use crate::suite::{self, bytes, drain, failure, part, read, record, told};

fn layout() -> (TempDir, Arc<dyn BlobSource>) {
    let directory = tempfile::tempdir().unwrap();
    write_layout(directory.path(), &[&bytes()]);
    let spec: SourceSpec = format!("oci:{}", directory.path().display()).parse().unwrap();
    let source = spec.open(&Options::default()).unwrap();
    assert_eq!(source.name(), spec.to_string());
    (directory, source)
}

fn blob_file(directory: &Path) -> PathBuf {
    directory.join("blobs/sha256").join(record(&bytes()).digest.hex())
}

macro_rules! tests {
    ($($test:ident)*) => {$(
        #[tokio::test]
        async fn $test() {
            let (_directory, source) = layout();
            suite::$test(source).await;
        }
    )*};
}

tests!(exact_ranges parallel_ranges other_blobs dropped_streams);

#[tokio::test]
async fn of_an_image() {
    let (directory, _) = layout();
    let reference = ImageRef::OciLayout { path: directory.path().to_owned(), tag: Some("any".to_owned()) };
    let opened = Source::open(&reference, &Options::default()).await.unwrap();
    let [source] = of_image(&opened).unwrap().try_into().ok().expect("one source");
    assert_eq!(source.name(), format!("oci:{}", directory.path().display()));
    suite::exact_ranges(source).await;
}

/// An archive is read by what reads the image's manifest, and as exactly.
#[tokio::test]
async fn of_an_archive() {
    let directory = tempfile::tempdir().unwrap();
    write_layout(directory.path(), &[&bytes()]);
    let path = directory.path().join("archive.tar");
    let mut archive = tar::Builder::new(fs::File::create(&path).unwrap());
    archive.append_dir_all("blobs", directory.path().join("blobs")).unwrap();
    archive.finish().unwrap();
    let opened = Source::open(&ImageRef::OciArchive { path, tag: None }, &Options::default()).await.unwrap();
    let [source] = of_image(&opened).unwrap().try_into().ok().expect("one source");
    suite::exact_ranges(Arc::clone(&source)).await;
    suite::parallel_ranges(Arc::clone(&source)).await;
    suite::other_blobs(Arc::clone(&source)).await;
    suite::dropped_streams(source).await;
}

#[tokio::test]
async fn damage() {
    let (directory, source) = layout();
    let (bytes, blob) = (bytes(), record(&bytes()));
    let file = blob_file(directory.path());
    // Cut while it is read: what was there, then an error.
    let stream = source.open_range(&blob, 0..blob.compressed_size).await.unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_len(2_000_000).unwrap();
    let (read, error) = drain(stream).await;
    assert_eq!(told(error.expect("an error in place of the end")).kind, ErrorKind::BadAnswer);
    assert!(!read.is_empty() && read.len() <= 2_000_000 && bytes.starts_with(&read));
    assert_eq!(failure(&*source, &blob, 0..1).await.kind, ErrorKind::BadAnswer);
    // A FIFO, which waits for its other end when it is opened; a directory.
    fs::remove_file(&file).unwrap();
    rustix::fs::mknodat(CWD, &file, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert_eq!(failure(&*source, &blob, 0..1).await.kind, ErrorKind::Local);
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert_eq!(failure(&*source, &blob, 0..1).await.kind, ErrorKind::Local);
    fs::remove_dir(&file).unwrap();
    assert_eq!(failure(&*source, &blob, 0..1).await.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_file_system_that_is_not_mounted_is_an_outage() {
    let directory = tempfile::tempdir().unwrap();
    let (bytes, blob) = (bytes(), record(&bytes()));
    let root = directory.path().join("nas");
    let source = LayoutSource::new(&root).unwrap();
    assert_eq!(failure(&source, &blob, 0..1).await.kind, ErrorKind::Unreachable);
    fs::create_dir(&root).unwrap();
    assert_eq!(failure(&source, &blob, 0..1).await.kind, ErrorKind::Unreachable);
    write_layout(&root, &[&bytes]);
    assert_eq!(read(&source, &blob, 0..10).await, part(&bytes, &(0..10)));
}

/// A FUSE file system that nobody serves: whatever touches it waits, until its end.
struct Hung {
    device: Option<OwnedFd>,
    directory: TempDir,
}

impl Hung {
    fn mount() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a file system: run it as root");
        let directory = tempfile::tempdir().unwrap();
        let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("hung", directory.path(), "fuse", flags, options.as_c_str()).unwrap();
        Self { device: Some(device), directory }
    }

    /// Whoever waits gets an error.
    fn end(&mut self) {
        self.device = None;
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.end();
        rustix::mount::unmount(self.directory.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

/// On a runtime without a thread to spare: its only one goes on while as many reads hang as ever do.
#[test]
fn a_hung_file_system_holds_no_thread_of_the_runtime() {
    let mut hung = Hung::mount();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let source = Arc::new(LayoutSource::new(hung.directory.path()).unwrap());
        let blob = record(&bytes());
        let open = |_| {
            let (source, blob) = (source.clone(), blob.clone());
            tokio::spawn(async move { failure(&*source, &blob, 0..1).await.kind })
        };
        let mut waiting: Vec<_> = (0..50).map(open).collect();
        assert!(tokio::time::timeout(Duration::from_millis(300), &mut waiting[0]).await.is_err());
        assert_eq!(tokio::task::spawn_blocking(|| 1).await.unwrap(), 1, "the runtime's blocking thread is free");
        // Dropped while they wait, for a thread or for the server.
        for opening in waiting.drain(..25) {
            opening.abort();
            assert!(opening.await.unwrap_err().is_cancelled());
        }
        hung.end();
        for opening in waiting {
            assert_eq!(opening.await.unwrap(), ErrorKind::Unreachable);
        }
        // None of them holds a place any more.
        for _ in 0..50 {
            assert_eq!(failure(&*source, &blob, 0..1).await.kind, ErrorKind::Unreachable);
        }
    });
}
