//! Labels on snapshots by which containerd, its clients and lazo understand each other.
//!
//! A layer's annotations whose names begin with [`INHERITED`] become labels of its snapshot.

/// Annotations of layers that containerd passes on begin so.
pub const INHERITED: &str = "containerd.io/snapshot/";

/// Under which name the layer that is being unpacked will be committed: its chainID.
pub const TARGET: &str = "containerd.io/snapshot.ref";

/// The image that the layer belongs to, as it was asked for.
pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";

/// Digest of its manifest.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// Digest of the layer.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// Digests of this layer and those above it, separated by commas.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// Of a container's snapshot: user IDs in its user namespace, `INSIDE:OUTSIDE:COUNT` separated by commas.
pub const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";

/// The same for group IDs.
pub const GID_MAPPING: &str = "containerd.io/snapshot/gidmapping";

pub use lazo_format::media::{
    ANNOTATION_BLOB as BLOB, ANNOTATION_BOOTSTRAP as BOOTSTRAP, ANNOTATION_DIRECT_IO as DIRECT_IO, YES,
};
