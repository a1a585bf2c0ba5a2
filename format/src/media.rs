//! Names a lazo image carries in its OCI manifest and its bootstrap layer.

/// Media type of a blob layer. The prefix makes containerd count it as a layer.
pub const LAZO_BLOB: &str = "application/vnd.oci.image.layer.lazo.blob.v1";
/// Annotation of a blob layer; its value is the blob's own digest.
pub const ANNOTATION_BLOB: &str = "containerd.io/snapshot/lazo.blob";
/// Annotation of the bootstrap layer; its value is [`BOOTSTRAP_VERSION`].
pub const ANNOTATION_BOOTSTRAP: &str = "containerd.io/snapshot/lazo.bootstrap";
/// Value of [`ANNOTATION_BOOTSTRAP`] for the layout that this crate reads and writes.
pub const BOOTSTRAP_VERSION: &str = "v1";
/// Annotation of the bootstrap layer of an image whose programs open files with `O_DIRECT`, which the kernel's EROFS refuses; its value
/// is [`YES`]. Such an image is served as a FUSE tree.
pub const ANNOTATION_DIRECT_IO: &str = "containerd.io/snapshot/lazo.direct-io";
/// Empty file in the bootstrap layer of such an image, so that its chainID is another than that of the same image without the
/// annotation: containerd takes a layer that it has for the one it is to unpack.
pub const DIRECT_IO_PATH: &str = "image/direct-io";
/// Label of an image's config that has the converter write [`ANNOTATION_DIRECT_IO`]; its value is [`YES`].
pub const LABEL_DIRECT_IO: &str = "lazo.direct-io";
/// Value of labels and annotations that say yes.
pub const YES: &str = "true";
/// Media type of the bootstrap layer: an ordinary layer, so that containerd unpacks it.
pub const BOOTSTRAP_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Path of the EROFS image inside the bootstrap layer.
pub const BOOTSTRAP_PATH: &str = "image/bootstrap";
/// Path of the chunk index inside the bootstrap layer.
pub const INDEX_PATH: &str = "image/index";
