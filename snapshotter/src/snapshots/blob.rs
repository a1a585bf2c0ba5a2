//! Blobs of lazo images: which layers are taken for one, and their records.
//!
//! A blob's snapshot is made without a look at its bytes, and it is found by its name, the chainID, by all images that have
//! a layer of this chainID. So what a layer's annotations say must agree with its chainID: a blob's diffID is its digest, and the chainID
//! follows from that and from the chainID below. Otherwise an image could take the chainID of an ordinary base layer, and break every
//! image above that.
//!
//! A layer that only says it is a blob is not refused: it is left to containerd as an ordinary one, which downloads it and compares
//! its diffID, as it does where there is no lazo. So nothing unverified gets a name, and an image runs here that runs elsewhere:
//! annotations stay when a tool writes a layer anew.

use std::sync::Arc;

use lazo_format::Digest;

use super::create::{check_parent, image_of};
use super::error::Error;
use super::{Labels, Snapshots, now};
use crate::labels;
use crate::store::{Change, Kind, Record, Role};

/// A blob's snapshot to be made.
pub(super) struct Blob {
    /// Its name.
    target: String,
    /// Where it comes from.
    image: String,
    record: Record,
    /// Number of the parent when the plan was made.
    parent: Option<u64>,
}

/// Why a layer with the label of a blob, above this parent, is none; `None` if nothing speaks against it.
pub(super) fn refuted(labels: &Labels, parent: &str) -> Option<&'static str> {
    let Some(digest) = labels.get(labels::BLOB).and_then(|digest| digest.parse::<Digest>().ok()) else {
        return Some("its annotation is no digest");
    };
    let digest = digest.to_string();
    if labels.get(labels::LAYER_DIGEST).is_some_and(|layer| *layer != digest) {
        return Some("its annotation has the digest of another layer");
    }
    match labels.get(labels::TARGET) {
        Some(target) if *target != chain_id(parent, &digest) => Some("its diffID is not its digest"),
        _ => None,
    }
}

/// The chainID of a layer with this diffID above a snapshot, whose name ends with its own chainID.
fn chain_id(parent: &str, diff_id: &str) -> String {
    match parent.rsplit('/').next().unwrap_or_default() {
        "" => diff_id.to_owned(),
        below => Digest::sha256_of(format!("{below} {diff_id}").as_bytes()).to_string(),
    }
}

/// What is to be done for a blob that [`refuted`] found nothing against.
pub(super) fn plan(key: String, mut record: Record, parent: Option<&Record>) -> Result<Blob, Error> {
    if parent.is_some_and(|parent| parent.role() != Role::Blob) {
        return Err(Error::BlobPlace(key));
    }
    let Some(target) = record.labels.get(labels::TARGET).cloned() else { return Err(Error::BlobTarget(key)) };
    let image = image_of(&key, &record.labels)?.name;
    record.set_kind(Kind::Committed);
    record.set_role(Role::Blob);
    record.digest = record.labels.get(labels::BLOB).cloned();
    record.created = Some(now());
    record.updated = record.created;
    Ok(Blob { target, image, record, parent: parent.map(|parent| parent.id) })
}

impl Snapshots {
    /// Says how the blob's snapshot is there afterwards, or why not.
    pub(super) async fn add_blob(self: &Arc<Self>, blob: Blob) -> Error {
        let Blob { target, image, mut record, parent } = blob;
        self.images.warm(&image);
        let number = self.number();
        record.id = number.id;
        let added = self.blocking(move |snapshots| {
            let added = match snapshots.store.get(&target) {
                Ok(Some(there)) if is_same_blob(&there, &record, &target) => Ok(()),
                _ => snapshots.store.change(|change| put_blob(change, &target, &record, parent)),
            };
            added.err().unwrap_or(Error::Exists(target))
        });
        let error = added.await;
        drop(number);
        error
    }
}

/// Whether what is there is this blob, so that containerd, which looks for the target among labels, finds it.
fn is_same_blob(there: &Record, wanted: &Record, target: &str) -> bool {
    is_blob(there, wanted) && there.labels.get(labels::TARGET).is_some_and(|label| label == target)
}

fn is_blob(there: &Record, wanted: &Record) -> bool {
    there.role() == Role::Blob && there.digest == wanted.digest && there.parent == wanted.parent
}

fn put_blob(change: &mut Change<'_>, target: &str, record: &Record, parent: Option<u64>) -> Result<(), Error> {
    match change.get(target)? {
        None => {
            check_parent(change.get(&record.parent)?.as_ref(), record, parent)?;
            change.insert(target, record)?;
        }
        Some(mut there) if is_blob(&there, record) => {
            there.labels.insert(labels::TARGET.to_owned(), target.to_owned());
            change.put(target, &there)?;
        }
        Some(_) => return Err(Error::OtherBlob(target.to_owned())),
    }
    Ok(())
}
