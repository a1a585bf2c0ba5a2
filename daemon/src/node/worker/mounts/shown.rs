//! What is mounted, as others see it.

use std::path::Path;

use super::{Mount, Tables};
use crate::node::protocol::{ApiError, ErrorKind, ImageInfo, MountInfo, Served};
use crate::node::worker::Worker;
use crate::node::worker::image::Image;
use crate::node::worker::state::MountRecord;

impl Worker {
    /// Gauges.
    pub(in crate::node::worker) fn count(&self, tables: &Tables) {
        let figure = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let mounts = tables.mounts.values().filter(|mount| mount.record().is_some()).count();
        let failed = tables.images.values().filter(|image| image.fs.is_err()).count();
        self.metrics.mounts.set(figure(mounts));
        self.metrics.images.set(figure(tables.images.len() + tables.lingering.len()));
        self.metrics.failed_images.set(figure(failed));
    }

    pub(in crate::node::worker) fn list_mounts(&self) -> Vec<MountInfo> {
        let tables = self.tables();
        let mut records: Vec<_> = tables.mounts.values().filter_map(Mount::record).collect();
        records.sort_by_key(|record| record.id);
        records.into_iter().map(|record| mount_info(record, tables.images.get(&record.slot))).collect()
    }

    pub(in crate::node::worker) fn list_images(&self) -> Vec<ImageInfo> {
        let tables = self.tables();
        tables.images.values().chain(tables.lingering.values()).map(image_info).collect()
    }
}

pub(super) fn mount_info(record: &MountRecord, image: Option<&Image>) -> MountInfo {
    MountInfo {
        id: record.id.to_string(),
        mount_point: record.mount_point.clone(),
        image: record.image.clone(),
        manifest: image.map(|image| image.record.manifest.clone()).unwrap_or_default(),
        mode: image.map_or(Served::Erofs, |image| image.record.mode),
        slot: u64::from(record.slot),
        writable: record.writable.clone(),
        map: record.map.clone(),
        since: record.since,
    }
}

fn image_info(image: &Image) -> ImageInfo {
    let blobs = image.fs.as_ref().map_or(0, |fs| fs.image().index().blob_count());
    ImageInfo {
        slot: u64::from(image.record.slot),
        image: image.record.image.clone(),
        references: image.references.list().into_iter().map(|reference| reference.image).collect(),
        manifest: image.record.manifest.clone(),
        mode: image.record.mode,
        mounts: image.mounts,
        blobs: blobs as u64,
        plain_blobs: image.plain.len() as u64,
        failed: image.fs.as_ref().err().cloned(),
    }
}

/// Why nothing can be mounted where this image is.
pub(super) fn taken(place: &Path, image: Option<&Image>) -> ApiError {
    let place = place.display();
    match image.and_then(|image| image.fs.as_ref().err()) {
        None => {
            ApiError::new(ErrorKind::Exists, format!("cannot mount at {place}: a lazo image is mounted there already"))
        }
        Some(reason) => {
            let text = format!("cannot mount at {place}: what is mounted there cannot be served any more: {reason}");
            ApiError::new(ErrorKind::Broken, text)
        }
    }
}
