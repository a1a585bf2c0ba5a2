//! Names a lazo image carries in its OCI manifest and its bootstrap layer.

/// Media type of a blob layer. The prefix makes containerd count it as a layer.
pub const LAZO_BLOB: &str = "application/vnd.oci.image.layer.lazo.blob.v1";
/// Annotation of a blob layer; its value is the blob's own digest.
pub const ANNOTATION_BLOB: &str = "containerd.io/snapshot/lazo.blob";
/// Annotation of the bootstrap layer; its value is [`BOOTSTRAP_VERSION`].
pub const ANNOTATION_BOOTSTRAP: &str = "containerd.io/snapshot/lazo.bootstrap";
/// Value of [`ANNOTATION_BOOTSTRAP`] for the layout that this crate reads and writes.
pub const BOOTSTRAP_VERSION: &str = "v1";
/// Media type of the bootstrap layer: an ordinary layer, so that containerd unpacks it.
pub const BOOTSTRAP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Path of the EROFS image inside the bootstrap layer.
pub const BOOTSTRAP_PATH: &str = "image/bootstrap";
/// Path of the chunk index inside the bootstrap layer.
pub const INDEX_PATH: &str = "image/index";
