//! What is kept of a snapshot.

use std::collections::BTreeMap;

use prost_types::Timestamp;

/// Where a snapshot is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    /// Cannot be; what a field that is missing reads as.
    Unknown = 0,
    /// To be read only, for as long as somebody needs it.
    View = 1,
    /// Being written.
    Active = 2,
    /// Done; others may have it as their parent.
    Committed = 3,
}

/// What a snapshot holds. Decided when it is prepared or committed, and never changed by an update of labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Role {
    /// Files of its own, over those of its parents.
    Plain = 0,
    /// Nothing: a blob of a lazo image, which is read through the image's mount.
    Blob = 1,
    /// The files of a bootstrap layer, which stand for the whole image.
    Bootstrap = 2,
}

/// A snapshot's record. Fields may be added; what a tag means never changes.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Record {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Name of its parent, empty if it has none.
    #[prost(string, tag = "2")]
    pub parent: String,
    /// Where it is in its life.
    #[prost(enumeration = "Kind", tag = "3")]
    pub kind: i32,
    /// What it holds.
    #[prost(enumeration = "Role", tag = "4")]
    pub role: i32,
    /// When it was prepared, or committed.
    #[prost(message, optional, tag = "5")]
    pub created: Option<Timestamp>,
    /// When its labels were last changed.
    #[prost(message, optional, tag = "6")]
    pub updated: Option<Timestamp>,
    /// Labels; none is empty.
    #[prost(btree_map = "string, string", tag = "7")]
    pub labels: BTreeMap<String, String>,
    /// Disk space of a committed snapshot, in bytes.
    #[prost(uint64, tag = "8")]
    pub size: u64,
    /// Files and directories of a committed snapshot.
    #[prost(uint64, tag = "9")]
    pub inodes: u64,
    /// Of a bootstrap: its image.
    #[prost(message, optional, tag = "10")]
    pub image: Option<Image>,
    /// Of a blob: its digest.
    #[prost(string, optional, tag = "11")]
    pub digest: Option<String>,
    /// Of a container in a user namespace: how owners are shifted.
    #[prost(message, optional, tag = "12")]
    pub owners: Option<Owners>,
}

/// The image that a bootstrap stands for.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Image {
    /// Name under which it was pulled.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Digest of its manifest.
    #[prost(string, optional, tag = "2")]
    pub manifest: Option<String>,
    /// Its programs open files with `O_DIRECT`.
    #[prost(bool, tag = "3")]
    pub direct_io: bool,
    /// Other names that it has by now, in other repositories.
    #[prost(string, repeated, tag = "4")]
    pub also: Vec<String>,
}

impl Image {
    /// All of its names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        std::iter::once(&self.name).chain(&self.also).cloned().collect()
    }
}

/// How IDs of a user namespace are those of the host: ranges `INSIDE:OUTSIDE:COUNT`, separated by commas.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Owners {
    /// User IDs.
    #[prost(string, tag = "1")]
    pub users: String,
    /// Group IDs.
    #[prost(string, tag = "2")]
    pub groups: String,
}

impl Record {
    /// Digest of the blob, if the snapshot is one.
    #[must_use]
    pub fn blob(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}
