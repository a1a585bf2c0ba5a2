//! Whatever a client sends, over a connection that is answered as any other.

use std::sync::LazyLock;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Builder;

use super::super::protocol::{Served, Status, Writable};
use super::super::worker::fuzz as worker;
use super::*;

/// Bytes on their way between client and server: more than either says at a time.
const IN_FLIGHT: usize = 64 << 10;

/// Who asks.
const USER: User = 4711;

/// Has no mounts and makes none, but looks at the requests as the worker does.
struct Nobody {
    state_dir: PathBuf,
    metrics: Arc<Metrics>,
}

impl Node for Nobody {
    async fn mount(&self, request: MountRequest) -> Result<MountInfo, ApiError> {
        assert_eq!(request.user, USER, "who asks is not for the request to say");
        assert!(request.outage_limit.is_none_or(|limit| limit <= MAX_OUTAGE_LIMIT), "{request:?}");
        let written = match &request.writable {
            Some(Writable::Directory(directory)) => Some(directory),
            _ => None,
        };
        let registry = &request.registry;
        let others = written.into_iter().chain(&request.files).chain(&registry.ca).chain(&registry.authfile);
        for path in others.chain(&registry.token_file).chain([&request.mount_point]) {
            assert_plain(path);
        }
        worker::request(&request)?;
        let (id, manifest, mode) = ("1".to_owned(), "sha256:0".to_owned(), Served::Erofs);
        let MountRequest { mount_point, image, writable, map, .. } = request;
        Ok(MountInfo { id, mount_point, image, manifest, mode, slot: 1, writable, map, since: 1 })
    }

    async fn warm(&self, image: String) -> Result<(), ApiError> {
        worker::request(&MountRequest::new(image, "/".into()))
    }

    async fn refer(&self, mount_point: PathBuf, _: Vec<String>) -> Result<(), ApiError> {
        assert_plain(&mount_point);
        Err(ApiError::new(ErrorKind::NotFound, format!("{} is no mount", mount_point.display())))
    }

    async fn umount(&self, mount_point: PathBuf, _lazy: bool) -> Result<(), ApiError> {
        assert_plain(&mount_point);
        Err(ApiError::new(ErrorKind::NotFound, format!("{} is no mount", mount_point.display())))
    }

    fn mounts(&self) -> Vec<MountInfo> {
        Vec::new()
    }

    fn images(&self) -> Vec<ImageInfo> {
        Vec::new()
    }

    fn health(&self) -> Health {
        Health {
            ok: true,
            status: Status::Ok,
            problems: Vec::new(),
            waiting: Vec::new(),
            mode: Served::Erofs,
            no_erofs: None,
            worker_pid: 2,
            supervisor_pid: 1,
            since: 1,
            worker_since: 1,
            restarts: 0,
            upgrades: 0,
        }
    }

    fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    fn is_ready(&self) -> bool {
        true
    }

    fn removed(&self) {}

    fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    async fn stop(&self, force: bool) -> Result<StopInfo, ApiError> {
        Ok(StopInfo { held: Vec::new(), cut: force })
    }

    async fn upgrade(
        &self,
        binary: Option<PathBuf>,
        _connection: Option<Arc<UnixStream>>,
    ) -> Result<UpgradeInfo, ApiError> {
        binary.iter().for_each(|binary| assert_plain(binary));
        Err(ApiError::new(ErrorKind::Invalid, "there is no such program"))
    }
}

/// As the trait promises.
fn assert_plain(path: &Path) {
    assert!(path.is_absolute() && path.components().all(|part| part != Component::ParentDir), "{}", path.display());
}

/// All that a client sends, and then no more.
pub(in crate::node) fn requests(data: &[u8]) {
    static NODE: LazyLock<Arc<Nobody>> = LazyLock::new(|| {
        let state_dir = std::env::temp_dir().join(format!("lazo-fuzz-api-{}", std::process::id()));
        Arc::new(Nobody { state_dir, metrics: Arc::new(Metrics::new()) })
    });
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut said = Vec::new();
    runtime.block_on(async {
        let (client, server) = tokio::io::duplex(IN_FLIGHT);
        let (mut reader, mut writer) = tokio::io::split(client);
        let room = Arc::new(Room::new(16));
        let write = async {
            // The server hangs up when it has seen enough.
            let _ = writer.write_all(data).await;
            let _ = writer.shutdown().await;
        };
        let (_, read, ()) =
            tokio::join!(write, reader.read_to_end(&mut said), answer(server, Ok(USER), NODE.clone(), room, None));
        read.expect("what the server said");
    });
    if !said.is_empty() {
        let status = said.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
        assert!(said.starts_with(b"HTTP/1.") && status != b"500", "{}", String::from_utf8_lossy(&said));
    }
}

/// The name of a group, and behind a line's end the text of `/etc/group`.
pub(in crate::node) fn group(data: &[u8]) {
    let Some((group, groups)) = std::str::from_utf8(data).ok().and_then(|text| text.split_once('\n')) else { return };
    if let Some(number) = peer::number_in(groups, group) {
        assert!(groups.contains(&format!("{group}:")) && groups.contains(&number.to_string()), "{number}");
    }
}
