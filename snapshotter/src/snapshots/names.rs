//! The names of the images whose bootstraps are unpacked here.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Snapshots;
use super::error::Error;
use crate::store::{Kind, Role};

/// Snapshots of bootstraps, and the names of their images.
pub(crate) type Named = Vec<(String, Vec<String>)>;

impl Snapshots {
    /// All images, by containerd's namespace.
    pub(crate) async fn images_by_namespace(self: &Arc<Self>) -> Result<BTreeMap<String, Named>, Error> {
        self.blocking(|snapshots| {
            let mut namespaces: BTreeMap<String, Named> = BTreeMap::new();
            snapshots.store.each(|name, record| {
                let is_image = record.role() == Role::Bootstrap && record.kind() == Kind::Committed;
                let namespace = name.split_once('/').map(|(namespace, _)| namespace.to_owned());
                if let (true, Some(namespace), Some(image)) = (is_image, namespace, &record.image) {
                    namespaces.entry(namespace).or_default().push((name.to_owned(), image.names()));
                }
            })?;
            Ok(namespaces)
        })
        .await
    }

    /// The number and the names of an image, by its snapshot.
    pub(crate) async fn image_named(self: &Arc<Self>, name: String) -> Result<Option<(u64, Vec<String>)>, Error> {
        let record = self.blocking(move |snapshots| snapshots.store.get(&name)).await?;
        Ok(record.and_then(|record| Some((record.id, record.image?.names()))))
    }

    /// Sets the names of an image. Nothing happens if it has been removed.
    pub(crate) async fn name_image(self: &Arc<Self>, name: String, names: Vec<String>) -> Result<(), Error> {
        self.blocking(move |snapshots| {
            snapshots.store.change(|change| {
                let Some(mut record) = change.get(&name)? else { return Ok(()) };
                if let (Some(image), Some((first, also))) = (&mut record.image, names.split_first()) {
                    image.name.clone_from(first);
                    image.also = also.to_vec();
                    change.put(&name, &record)?;
                }
                Ok(())
            })
        })
        .await
    }
}
