//! A service on a socket, a client, mounts as containerd makes them, and a stand-in for the node daemon.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use lazo_snapshotter::images::Images;
use lazo_snapshotter::proto::containerd::services::snapshots::v1 as api;
use lazo_snapshotter::proto::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use lazo_snapshotter::proto::containerd::types::Mount;
use lazo_snapshotter::service;
use lazo_snapshotter::snapshots::Snapshots;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

pub(crate) use self::daemon::Daemon;

mod daemon;

pub(crate) type Client = SnapshotsClient<Channel>;

/// A directory for state, one for sockets and mounts of images, and a place to work.
pub(crate) struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("s").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for name in ["state", "run", "work"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state/snapshots")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.run().join("snapshotter.sock")
    }

    pub(crate) fn work(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join("work").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Names of directories of snapshots.
    pub(crate) fn directories(&self) -> Vec<u64> {
        let names = fs::read_dir(self.state()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut numbers: Vec<u64> = names.filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        numbers
    }
}

/// A service in this process.
pub(crate) struct Served {
    pub(crate) scratch: Arc<Scratch>,
    pub(crate) client: Client,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Served {
    pub(crate) async fn new() -> Self {
        Self::on(Arc::new(Scratch::new())).await
    }

    pub(crate) async fn on(scratch: Arc<Scratch>) -> Self {
        let socket = scratch.socket();
        let _ = fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let snapshots = Snapshots::open(&scratch.state(), Images::new(&scratch.run())).unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            service::serve(listener, snapshots, stopped).await.unwrap();
        });
        Self { client: connect(&socket).await, scratch, stop: Some(stop), task }
    }

    /// Stops it; what is on the disk stays.
    pub(crate) async fn stop(mut self) -> Arc<Scratch> {
        drop(self.stop.take());
        let Self { scratch, client, task, .. } = self;
        drop(client);
        task.await.unwrap();
        scratch
    }

    pub(crate) fn calls(&self) -> Calls {
        Calls(self.client.clone())
    }
}

pub(crate) async fn connect(socket: &Path) -> Client {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://snapshotter");
    SnapshotsClient::new(endpoint.connect_with_connector(connector).await.unwrap())
}

/// Calls with plain arguments.
#[derive(Clone)]
pub(crate) struct Calls(pub(crate) Client);

pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

fn labels(labels: Labels<'_>) -> HashMap<String, String> {
    labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Calls {
    pub(crate) async fn prepare(&self, key: &str, parent: &str, of: Labels<'_>) -> Result<Vec<Mount>, Status> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), labels(of));
        let request = api::PrepareSnapshotRequest { key, parent, labels, ..Default::default() };
        Ok(self.0.clone().prepare(request).await?.into_inner().mounts)
    }

    pub(crate) async fn view(&self, key: &str, parent: &str, of: Labels<'_>) -> Result<Vec<Mount>, Status> {
        let (key, parent, labels) = (key.to_owned(), parent.to_owned(), labels(of));
        let request = api::ViewSnapshotRequest { key, parent, labels, ..Default::default() };
        Ok(self.0.clone().view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = api::MountsRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.0.clone().mounts(request).await?.into_inner().mounts)
    }

    pub(crate) async fn commit(&self, name: &str, key: &str, of: Labels<'_>) -> Result<(), Status> {
        let (name, key, labels) = (name.to_owned(), key.to_owned(), labels(of));
        let request = api::CommitSnapshotRequest { name, key, labels, ..Default::default() };
        self.0.clone().commit(request).await.map(|_| ())
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = api::RemoveSnapshotRequest { key: key.to_owned(), ..Default::default() };
        self.0.clone().remove(request).await.map(|_| ())
    }

    pub(crate) async fn stat(&self, key: &str) -> Result<api::Info, Status> {
        let request = api::StatSnapshotRequest { key: key.to_owned(), ..Default::default() };
        Ok(self.0.clone().stat(request).await?.into_inner().info.unwrap())
    }

    pub(crate) async fn update(&self, name: &str, of: Labels<'_>, paths: &[&str]) -> Result<api::Info, Status> {
        let info = api::Info { name: name.to_owned(), labels: labels(of), ..Default::default() };
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = api::UpdateSnapshotRequest { info: Some(info), update_mask, ..Default::default() };
        Ok(self.0.clone().update(request).await?.into_inner().info.unwrap())
    }

    pub(crate) async fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = api::UsageRequest { key: key.to_owned(), ..Default::default() };
        let usage = self.0.clone().usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    pub(crate) async fn cleanup(&self) -> Result<(), Status> {
        self.0.clone().cleanup(api::CleanupRequest::default()).await.map(|_| ())
    }

    pub(crate) async fn list(&self, filters: &[&str]) -> Result<BTreeMap<String, api::Info>, Status> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = api::ListSnapshotsRequest { filters, ..Default::default() };
        let mut stream = self.0.clone().list(request).await?.into_inner();
        let mut all = BTreeMap::new();
        while let Some(block) = stream.message().await? {
            assert!(!block.info.is_empty() && block.info.len() <= 100);
            for info in block.info {
                assert!(all.insert(info.name.clone(), info).is_none(), "told twice");
            }
        }
        Ok(all)
    }

    pub(crate) async fn names(&self, filters: &[&str]) -> Vec<String> {
        self.list(filters).await.unwrap().into_keys().collect()
    }

    /// A committed layer, whose files `write` makes.
    pub(crate) async fn layer(&self, scratch: &Scratch, name: &str, parent: &str, write: impl FnOnce(&Path)) {
        let key = format!("{name}-key");
        let mounts = self.prepare(&key, parent, &[]).await.unwrap();
        let mounted = Mounted::new(&mounts, &scratch.work(&key.replace('/', "-")));
        write(mounted.path());
        drop(mounted);
        self.commit(name, &key, &[]).await.unwrap();
    }
}

/// Asserts that a call failed with this code, and gives the message.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, Status>, code: Code) -> String {
    let Err(status) = result else { panic!("it should have failed with {code:?}") };
    assert_eq!(status.code(), code, "{}", status.message());
    status.message().to_owned()
}

/// What containerd does with mounts.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    pub(crate) fn new(mounts: &[Mount], target: &Path) -> Self {
        let [mount] = mounts else { panic!("one mount, not {mounts:?}") };
        let mut command = Command::new("mount");
        let mut options = mount.options.clone();
        if mount.r#type == "overlay" {
            command.args(["-t", "overlay"]);
            // What is longer than a page does not reach the kernel.
            if options.join(",").len() >= 4096 - 512 {
                command.current_dir(compact(&mut options));
            }
        }
        let done = command.args(["-o", &options.join(",")]).arg(&mount.source).arg(target).output().unwrap();
        assert!(done.status.success(), "{mount:?}: {}", String::from_utf8_lossy(&done.stderr));
        Self(target.to_owned())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match unmount(&self.0, UnmountFlags::empty()) {
                // Programs that other tests start have our files open until they are what they will be.
                Err(Errno::BUSY) if Instant::now() < until => std::thread::yield_now(),
                ended => {
                    assert!(ended.is_ok() || std::thread::panicking(), "{}: {ended:?}", self.0.display());
                    return;
                }
            }
        }
    }
}

/// Makes lower directories relative to their common one, as containerd does: up to the last slash of their common beginning.
fn compact(options: &mut [String]) -> PathBuf {
    let option = options.iter_mut().find(|option| option.starts_with("lowerdir=")).unwrap();
    let all = option.trim_start_matches("lowerdir=").to_owned();
    let directories: Vec<&str> = all.split(':').collect();
    let (least, most) = (directories.iter().min().unwrap(), directories.iter().max().unwrap());
    let common = least.bytes().zip(most.bytes()).take_while(|(a, b)| a == b).count();
    let slash = least[..common].rfind('/').unwrap();
    assert!(slash > 0, "{least} and {most} have nothing in common, so containerd would not shorten them");
    let relative: Vec<&str> = directories.iter().map(|directory| &directory[slash + 1..]).collect();
    *option = format!("lowerdir={}", relative.join(":"));
    PathBuf::from(&least[..slash])
}

/// Everything below a directory: kind, mode, owner, contents.
pub(crate) fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let mut tree = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
            let kind = (metadata.is_dir(), metadata.is_symlink(), metadata.file_type().is_char_device());
            let told = format!("{kind:?} {:o} {}:{} {content}", metadata.mode(), metadata.uid(), metadata.gid());
            tree.insert(path.strip_prefix(root).unwrap().to_owned(), told);
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    tree
}

pub(crate) fn write(path: &Path, name: &str, content: &str) {
    fs::write(path.join(name), content).unwrap();
}

pub(crate) fn read(path: &Path, name: &str) -> String {
    fs::read_to_string(path.join(name)).unwrap()
}
