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

    /// The names of an image, by its snapshot, and the numbers of all snapshots that may have a mount of it: its own, and those of
    /// containers with owners of their own.
    pub(crate) async fn image_named(self: &Arc<Self>, name: String) -> Result<Option<(Vec<u64>, Vec<String>)>, Error> {
        self.blocking(move |snapshots| {
            let Some(record) = snapshots.store.get(&name)? else { return Ok(None) };
            let Some(image) = record.image else { return Ok(None) };
            let (mut parents, mut shifted) = (BTreeMap::new(), Vec::new());
            snapshots.store.each(|own, record| {
                if record.owners.is_some() {
                    shifted.push((record.id, own.to_owned()));
                }
                parents.insert(own.to_owned(), record.parent);
            })?;
            let above = shifted.into_iter().filter(|(_, own)| is_above(&parents, own, &name)).map(|(id, _)| id);
            Ok(Some((std::iter::once(record.id).chain(above).collect(), image.names())))
        })
        .await
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

/// Whether a snapshot has another below it.
fn is_above(parents: &BTreeMap<String, String>, own: &str, below: &str) -> bool {
    let mut next = parents.get(own);
    // A damaged store is not to lead in a circle.
    for _ in 0..parents.len() {
        match next {
            Some(parent) if parent == below => return true,
            Some(parent) => next = parents.get(parent),
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_above_their_images_and_not_above_others() {
        let parents = [("layer", ""), ("image", "layer"), ("container", "image"), ("other", ""), ("circle", "circle")];
        let parents = parents.map(|(own, parent)| (own.to_owned(), parent.to_owned())).into();
        assert!(is_above(&parents, "container", "image"));
        assert!(!is_above(&parents, "container", "other"));
        assert!(!is_above(&parents, "image", "container"));
        assert!(!is_above(&parents, "circle", "image"));
    }
}
