//! Media types of manifests and layers, in OCI's words and in Docker's.

pub use lazo_base::compression::Compression;
use oci_spec::image::MediaType;

/// Docker's manifest list, an index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Config of a Docker schema 2 manifest.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Beginning of the media types of Docker's schema 1, which nothing writes any more.
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+";

/// `Accept` header values for a manifest, most specific first.
pub(crate) const MANIFEST_ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// What a layer's media type says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LayerKind {
    /// How the tar is said to be packed; readers go by its first bytes.
    pub compression: Compression,
    /// Docker's "foreign" and OCI's "nondistributable": the registry need not hold it, its `urls` do.
    pub foreign: bool,
}

/// Classifies a layer; `None` for anything that is not a tar layer, a lazo blob among them.
#[must_use]
pub fn layer_kind(media_type: &MediaType) -> Option<LayerKind> {
    let (compression, foreign) = match media_type {
        MediaType::ImageLayer => (Compression::None, false),
        MediaType::ImageLayerGzip => (Compression::Gzip, false),
        MediaType::ImageLayerZstd => (Compression::Zstd, false),
        MediaType::ImageLayerNonDistributable => (Compression::None, true),
        MediaType::ImageLayerNonDistributableGzip => (Compression::Gzip, true),
        MediaType::ImageLayerNonDistributableZstd => (Compression::Zstd, true),
        MediaType::Other(other) => match other.as_str() {
            "application/vnd.docker.image.rootfs.diff.tar" => (Compression::None, false),
            "application/vnd.docker.image.rootfs.diff.tar.gzip" => (Compression::Gzip, false),
            "application/vnd.docker.image.rootfs.diff.tar.zstd" => (Compression::Zstd, false),
            "application/vnd.docker.image.rootfs.foreign.diff.tar" => (Compression::None, true),
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => (Compression::Gzip, true),
            "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd" => (Compression::Zstd, true),
            _ => return None,
        },
        _ => return None,
    };
    Some(LayerKind { compression, foreign })
}

/// Whether the media type is an OCI index or a Docker manifest list.
#[must_use]
pub fn is_index(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageIndex || media_type.as_ref() == DOCKER_LIST
}

/// Whether the media type is an OCI or Docker schema 2 manifest.
#[must_use]
pub fn is_manifest(media_type: &MediaType) -> bool {
    *media_type == MediaType::ImageManifest || media_type.as_ref() == DOCKER_MANIFEST
}

pub(crate) fn is_schema1(media_type: &str) -> bool {
    media_type.starts_with(DOCKER_SCHEMA1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classifies_layers() {
        let plain = |compression| Some(LayerKind { compression, foreign: false });
        let foreign = |compression| Some(LayerKind { compression, foreign: true });
        for (media_type, kind) in [
            ("application/vnd.oci.image.layer.v1.tar", plain(Compression::None)),
            ("application/vnd.oci.image.layer.v1.tar+gzip", plain(Compression::Gzip)),
            ("application/vnd.oci.image.layer.v1.tar+zstd", plain(Compression::Zstd)),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", plain(Compression::Gzip)),
            ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", foreign(Compression::Gzip)),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", foreign(Compression::Gzip)),
            (lazo_format::media::LAZO_BLOB, None),
            ("application/vnd.oci.image.config.v1+json", None),
        ] {
            assert_eq!(layer_kind(&media_type.into()), kind, "{media_type}");
        }
    }

    #[test]
    fn classifies_documents() {
        for (media_type, index, manifest) in [
            ("application/vnd.oci.image.index.v1+json", true, false),
            (DOCKER_LIST, true, false),
            ("application/vnd.oci.image.manifest.v1+json", false, true),
            (DOCKER_MANIFEST, false, true),
            (DOCKER_CONFIG, false, false),
        ] {
            let media_type = MediaType::from(media_type);
            assert_eq!((is_index(&media_type), is_manifest(&media_type)), (index, manifest), "{media_type}");
        }
        assert!(is_schema1("application/vnd.docker.distribution.manifest.v1+prettyjws"));
    }
}
