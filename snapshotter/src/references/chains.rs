//! What a name stands for, by the documents in containerd's content store.

use std::collections::BTreeSet;

use lazo_format::Digest;
use serde::Deserialize;

use crate::containerd::{Containerd, ContainerdError};
use crate::pull::image::chain_ids;

/// Manifests of an index that are looked at: images are built for a dozen platforms at most.
const MAX_MANIFESTS: usize = 64;

/// Where documents of images are.
pub(super) trait Documents {
    /// A document's bytes; none if it is not there.
    async fn look_up(&self, digest: &str) -> Result<Option<Vec<u8>>, ContainerdError>;
}

impl Documents for Containerd {
    async fn look_up(&self, digest: &str) -> Result<Option<Vec<u8>>, ContainerdError> {
        match self.document(digest).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.code() == Some(tonic::Code::NotFound) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What this reads of an index, a manifest or a config.
#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    manifests: Vec<Link>,
    config: Option<serde_json::Value>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct Link {
    digest: Digest,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

/// Under which names the snapshots of an image's layers are kept, for all of its platforms whose documents are in the content store. They
/// were compared with their digests when they came there.
pub(super) async fn chains_of(documents: &impl Documents, target: &str) -> Result<BTreeSet<String>, ContainerdError> {
    let Some(fields) = read(documents, target).await? else { return Ok(BTreeSet::new()) };
    if let Some(config) = &fields.config {
        return chain_of_config(documents, config).await;
    }
    let mut chains = BTreeSet::new();
    // Of an index, the manifests of other platforms are not there.
    for link in fields.manifests.iter().take(MAX_MANIFESTS) {
        let manifest = read(documents, &link.digest.to_string()).await?;
        if let Some(config) = manifest.and_then(|manifest| manifest.config) {
            chains.extend(chain_of_config(documents, &config).await?);
        }
    }
    Ok(chains)
}

async fn chain_of_config(
    documents: &impl Documents,
    config: &serde_json::Value,
) -> Result<BTreeSet<String>, ContainerdError> {
    let Some(digest) = config.get("digest").and_then(serde_json::Value::as_str) else { return Ok(BTreeSet::new()) };
    let rootfs = read(documents, digest).await?.and_then(|config| config.rootfs);
    let ids: Vec<String> = rootfs.iter().flat_map(|rootfs| &rootfs.diff_ids).map(ToString::to_string).collect();
    Ok(chain_ids(&ids).into_iter().collect())
}

/// None as well if it is something else than a part of an image.
async fn read(documents: &impl Documents, digest: &str) -> Result<Option<Fields>, ContainerdError> {
    let bytes = documents.look_up(digest).await?;
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// A content store; what has no bytes cannot be read.
    struct Store(HashMap<String, Option<String>>);

    impl Documents for Store {
        async fn look_up(&self, digest: &str) -> Result<Option<Vec<u8>>, ContainerdError> {
            match self.0.get(digest) {
                Some(Some(text)) => Ok(Some(text.clone().into_bytes())),
                Some(None) => Err(ContainerdError::Namespace { namespace: String::new() }),
                None => Ok(None),
            }
        }
    }

    fn digest(number: u8) -> String {
        format!("sha256:{}", format!("{number:02x}").repeat(32))
    }

    #[tokio::test]
    async fn an_index_has_the_chains_of_all_manifests_that_are_there() {
        let manifest = |config| format!(r#"{{"config": {{"digest": "{}"}}}}"#, digest(config));
        let config = |layer| format!(r#"{{"rootfs": {{"diff_ids": ["{}"]}}}}"#, digest(layer));
        let links = [9, 2, 3, 4, 5].map(|number| format!(r#"{{"digest": "{}"}}"#, digest(number))).join(",");
        let documents = [
            (1, format!(r#"{{"manifests": [{links}]}}"#)),
            // Something that is no image, and one whose config is not there.
            (2, "{}".to_owned()),
            (3, manifest(8)),
            (4, manifest(14)),
            (5, manifest(15)),
            (14, config(24)),
            (15, config(25)),
        ];
        let mut store = Store(documents.map(|(number, text)| (digest(number), Some(text))).into());
        assert_eq!(chains_of(&store, &digest(1)).await.unwrap(), BTreeSet::from([digest(24), digest(25)]));
        assert!(chains_of(&store, &digest(7)).await.unwrap().is_empty());
        store.0.insert(digest(15), None);
        chains_of(&store, &digest(1)).await.unwrap_err();
    }
}
