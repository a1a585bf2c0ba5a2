//! A container's root file system, as containerd makes it: a snapshot that is prepared and mounted.

use std::{ffi::CString, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use lazo_snapshotter::proto::containerd::{
    services::snapshots::v1::{PrepareSnapshotRequest, snapshots_client::SnapshotsClient},
    types::Mount,
};
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};
use tonic::{Request, transport::Endpoint};

/// Prepares the snapshot `key` over `parent` through the containerd at `socket`, and mounts it at `place`. `create` in the result:
/// the seconds from the request to the last mount; the connection is there before, as it is in a kubelet.
pub(crate) fn create(
    socket: &str,
    namespace: &str,
    snapshotter: &str,
    parent: &str,
    key: &str,
    place: &Path,
) -> Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let channel = Endpoint::try_from(format!("unix:{socket}"))?.connect().await?;
        let mut client = SnapshotsClient::new(channel);
        let mut request = Request::new(PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        });
        request.metadata_mut().insert("containerd-namespace", namespace.parse()?);
        let start = Instant::now();
        let mounts = client.prepare(request).await?.into_inner().mounts;
        let prepared = start.elapsed();
        mounts.iter().try_for_each(|one| attach(one, place))?;
        Ok(json!({ "create": start.elapsed().as_secs_f64(), "prepare": prepared.as_secs_f64() }))
    })
}

fn attach(what: &Mount, place: &Path) -> Result<()> {
    let (mut flags, mut data) = (MountFlags::empty(), Vec::new());
    for option in &what.options {
        match option.as_str() {
            "bind" => flags |= MountFlags::BIND,
            "rbind" => flags |= MountFlags::BIND | MountFlags::REC,
            "ro" => flags |= MountFlags::RDONLY,
            "rw" => (),
            other => data.push(other),
        }
    }
    let data = CString::new(data.join(","))?;
    mount(&*what.source, place, &*what.r#type, flags, Some(&*data)).with_context(|| format!("{what:?}"))
}
