//! The rules a tree must keep so that writing it cannot fail.

use std::collections::HashSet;

use crate::digest::Algorithm;
use crate::erofs::ondisk::{split_xattr_name, xattr_entry_size};
use crate::ids::{BLOCK_SIZE, MAX_BLOBS};
use crate::index::MAX_DEVICE_SIZE;

use super::chunking::chunking;
use super::{Device, Extent, Node, NodeId, NodeKind, Tree, TreeError, Xattr};

/// Longest file name in bytes: Linux's NAME_MAX.
pub const MAX_NAME: usize = 255;
/// Longest symlink target in bytes: Linux's PATH_MAX less the final NUL.
pub const MAX_SYMLINK: usize = 4095;
/// Longest value of an extended attribute in bytes: EROFS stores its length in 16 bits.
pub const MAX_XATTR_VALUE: usize = 65_535;
/// Most bytes of extended attributes an inode can hold: EROFS counts them in 4-byte units in 16 bits.
pub const MAX_XATTR_AREA: u64 = 4 * 65_534;
/// Most entries in one file's chunk map: 32 MiB of metadata, enough for 1 TiB in 256 KiB pieces or for
/// 16 GiB that is scattered block by block. Bounds what a sparse file of absurd size can cost.
pub const MAX_MAP_ENTRIES: u64 = 1 << 22;
/// Most bytes of metadata in one tree, before alignment: by estimate 30 million files. Bounds the writer's
/// memory, and keeps every number in a bootstrap within its 32-bit field.
pub const MAX_BOOTSTRAP_SIZE: u64 = 4 << 30;

const MAX_PERMISSIONS: u16 = 0o7777;
const NANOSECONDS: u32 = 1_000_000_000;
/// Largest file Linux can address.
const MAX_FILE_SIZE: u64 = i64::MAX as u64;
/// Device numbers as the kernel encodes them: 12 bits of major, 20 bits of minor.
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;
/// Marks a node without a parent: the root, and nodes not reached.
const NO_PARENT: u32 = u32::MAX;

/// A tree that keeps every rule, so that [`crate::write_bootstrap`] cannot fail on it.
#[derive(Debug, Clone)]
pub struct ValidTree {
    tree: Tree,
    links: Vec<u32>,
    parents: Vec<u32>,
    order: Vec<NodeId>,
}

impl ValidTree {
    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Gives the tree back.
    pub fn into_tree(self) -> Tree {
        self.tree
    }

    /// Link count of a node: names of a file, 2 plus subdirectories of a directory, 0 for a node that no
    /// directory reaches (or that does not exist).
    pub fn links(&self, node: NodeId) -> u32 {
        self.links.get(node.0 as usize).copied().unwrap_or(0)
    }

    /// Nodes that are reached, each once: the root, then each directory followed by its other children in
    /// name order, then its subdirectories in the same way.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// Names in the tree, the root among them: the count that the index header carries.
    pub fn entries(&self) -> u64 {
        let names = |node: &NodeId| match &self.node(*node).kind {
            NodeKind::Directory(children) => children.len() as u64,
            _ => 0,
        };
        self.order.iter().map(names).sum::<u64>() + 1
    }

    /// Sum of the sizes of all regular files, each inode once.
    pub fn file_bytes(&self) -> u64 {
        let size = |node: &NodeId| match self.node(*node).kind {
            NodeKind::Regular { size, .. } => size,
            _ => 0,
        };
        self.order.iter().map(size).fold(0, u64::saturating_add)
    }

    /// Whether any inode has extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.order.iter().any(|node| !self.node(*node).meta.xattrs.is_empty())
    }

    /// Whether any inode has a POSIX ACL.
    pub fn has_acls(&self) -> bool {
        let acl = |xattr: &Xattr| xattr.name.starts_with(b"system.posix_acl_");
        self.order.iter().any(|node| self.node(*node).meta.xattrs.iter().any(acl))
    }

    pub(crate) fn node(&self, node: NodeId) -> &Node {
        &self.tree.nodes[node.0 as usize]
    }

    /// The directory that holds a directory; the root holds itself.
    pub(crate) fn parent(&self, directory: NodeId) -> NodeId {
        match self.parents[directory.0 as usize] {
            NO_PARENT => self.tree.root,
            parent => NodeId(parent),
        }
    }
}

/// Whether EROFS stores an extended attribute of this full name, and it may be passed on: the namespaces
/// user, trusted, security and the two POSIX ACLs. `trusted.overlay.*` is not: an overlay above would obey it.
pub fn xattr_supported(name: &[u8]) -> bool {
    check_xattr_name(name).is_ok()
}

fn check_xattr_name(name: &[u8]) -> Result<(), &'static str> {
    if name.starts_with(b"trusted.overlay.") {
        return Err("it would steer an overlay mount above");
    }
    if name.len() > MAX_NAME || name.contains(&0) {
        return Err("the name is longer than 255 bytes or holds a NUL");
    }
    split_xattr_name(name).map(|_| ()).ok_or("the namespace is none of user, trusted, security, POSIX ACL")
}

pub(super) fn validate(tree: Tree) -> Result<ValidTree, TreeError> {
    check_devices(&tree.devices)?;
    let count = tree.nodes.len();
    if count >= NO_PARENT as usize {
        let (value, max) = (count as u64, u64::from(NO_PARENT) - 1);
        return Err(TreeError::TooLarge { path: "/".into(), what: "number of nodes", value, max });
    }
    let mut walk =
        Walk { tree: &tree, links: vec![0; count], parents: vec![NO_PARENT; count], order: Vec::new(), bytes: 0 };
    walk.run()?;
    let Walk { links, parents, order, .. } = walk;
    Ok(ValidTree { tree, links, parents, order })
}

fn check_devices(devices: &[Device]) -> Result<(), TreeError> {
    if devices.len() > MAX_BLOBS {
        return Err(TreeError::Device { index: MAX_BLOBS, what: "an image has at most 4096 blobs" });
    }
    for (index, device) in devices.iter().enumerate() {
        if device.digest.algorithm() != Algorithm::Sha256 {
            return Err(TreeError::Device { index, what: "its digest is not a sha256" });
        }
        if !device.size.is_multiple_of(BLOCK_SIZE) || device.size > MAX_DEVICE_SIZE {
            return Err(TreeError::Device { index, what: "its size is not whole blocks, or beyond 2^32 - 1 of them" });
        }
    }
    Ok(())
}

struct Walk<'t> {
    tree: &'t Tree,
    links: Vec<u32>,
    parents: Vec<u32>,
    order: Vec<NodeId>,
    bytes: u64,
}

/// Why a node or name is refused, before it has a path.
enum Reason<'t> {
    NoNode(NodeId),
    Twice,
    TooLarge(&'static str, u64, u64),
    Invalid(&'static str),
    Xattr(&'t [u8], &'static str),
}

impl<'t> Walk<'t> {
    /// Terminates: each directory is entered at most once, whatever the names point to.
    fn run(&mut self) -> Result<(), TreeError> {
        let root = self.tree.root;
        match self.tree.nodes.get(root.0 as usize).map(|node| &node.kind) {
            None => return Err(TreeError::NoNode { path: "/".into(), node: root }),
            Some(NodeKind::Directory(_)) => {}
            Some(_) => return Err(TreeError::Root),
        }
        self.links[root.0 as usize] = 2;
        let mut pending = vec![root];
        while let Some(directory) = pending.pop() {
            self.visit(directory).map_err(|reason| self.error(directory, None, reason))?;
            let NodeKind::Directory(children) = &self.tree.nodes[directory.0 as usize].kind else { continue };
            let first = pending.len();
            for (name, &child) in children {
                self.child(directory, name, child, &mut pending)
                    .map_err(|reason| self.error(directory, Some(name), reason))?;
            }
            pending[first..].reverse();
        }
        Ok(())
    }

    fn child(
        &mut self,
        directory: NodeId,
        name: &'t [u8],
        child: NodeId,
        pending: &mut Vec<NodeId>,
    ) -> Result<(), Reason<'t>> {
        check_name(name)?;
        // A dirent and a name; the total is bounded with the inode sizes in `visit`.
        self.bytes = self.bytes.saturating_add(12 + name.len() as u64);
        let index = child.0 as usize;
        let Some(node) = self.tree.nodes.get(index) else { return Err(Reason::NoNode(child)) };
        let reached = self.links[index] != 0;
        if matches!(node.kind, NodeKind::Directory(_)) {
            if reached {
                return Err(Reason::Twice);
            }
            self.links[index] = 2;
            self.links[directory.0 as usize] += 1;
            self.parents[index] = directory.0;
            pending.push(child);
            return Ok(());
        }
        self.links[index] = self.links[index].checked_add(1).ok_or(Reason::Invalid("more than 2^32 hard links"))?;
        if reached { Ok(()) } else { self.visit(child) }
    }

    /// Checks one inode and puts it in the order.
    fn visit(&mut self, id: NodeId) -> Result<(), Reason<'t>> {
        let node = &self.tree.nodes[id.0 as usize];
        let meta = &node.meta;
        if meta.permissions > MAX_PERMISSIONS {
            return Err(Reason::TooLarge("permissions", meta.permissions.into(), MAX_PERMISSIONS.into()));
        }
        if meta.mtime.nanoseconds >= NANOSECONDS {
            let (value, max) = (meta.mtime.nanoseconds.into(), u64::from(NANOSECONDS) - 1);
            return Err(Reason::TooLarge("nanoseconds of the modification time", value, max));
        }
        let content = match &node.kind {
            NodeKind::Directory(_) | NodeKind::Fifo | NodeKind::Socket => 0,
            NodeKind::Regular { size, extents } => 8 * check_extents(*size, extents, &self.tree.devices)?,
            NodeKind::Symlink(target) => check_target(target)?,
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                if *major > MAX_MAJOR {
                    return Err(Reason::TooLarge("device major number", (*major).into(), MAX_MAJOR.into()));
                }
                if *minor > MAX_MINOR {
                    return Err(Reason::TooLarge("device minor number", (*minor).into(), MAX_MINOR.into()));
                }
                0
            }
        };
        self.bytes = self.bytes.saturating_add(64 + content + check_xattrs(&meta.xattrs)?);
        if self.bytes > MAX_BOOTSTRAP_SIZE {
            return Err(Reason::TooLarge("size of the tree's metadata up to here", self.bytes, MAX_BOOTSTRAP_SIZE));
        }
        self.order.push(id);
        Ok(())
    }

    fn error(&self, directory: NodeId, name: Option<&[u8]>, reason: Reason<'_>) -> TreeError {
        let path = self.path(directory, name);
        match reason {
            Reason::NoNode(node) => TreeError::NoNode { path, node },
            Reason::Twice => TreeError::DirectoryTwice { path },
            Reason::TooLarge(what, value, max) => TreeError::TooLarge { path, what, value, max },
            Reason::Invalid(what) => TreeError::Invalid { path, what },
            Reason::Xattr(name, what) => TreeError::Xattr { path, name: name.escape_ascii().to_string(), what },
        }
    }

    /// The path of a directory, or of a name in it. Only for errors: it searches each parent for the name.
    fn path(&self, directory: NodeId, name: Option<&[u8]>) -> String {
        let mut names: Vec<&[u8]> = name.into_iter().collect();
        let mut at = directory;
        while let Some(parent) = self.parents.get(at.0 as usize).copied().filter(|parent| *parent != NO_PARENT) {
            if let NodeKind::Directory(children) = &self.tree.nodes[parent as usize].kind {
                names.extend(children.iter().find(|(_, child)| **child == at).map(|(name, _)| &**name));
            }
            at = NodeId(parent);
        }
        if names.is_empty() {
            return "/".into();
        }
        names.iter().rev().map(|name| format!("/{}", name.escape_ascii())).collect()
    }
}

fn check_name(name: &[u8]) -> Result<(), Reason<'static>> {
    if name.is_empty() || name == b"." || name == b".." {
        return Err(Reason::Invalid("a name is empty, . or .."));
    }
    if name.len() > MAX_NAME {
        return Err(Reason::TooLarge("length of the name", name.len() as u64, MAX_NAME as u64));
    }
    if name.contains(&b'/') || name.contains(&0) {
        return Err(Reason::Invalid("a name holds a slash or a NUL"));
    }
    Ok(())
}

fn check_target(target: &[u8]) -> Result<u64, Reason<'static>> {
    let length = target.len() as u64;
    if target.is_empty() || target.contains(&0) {
        return Err(Reason::Invalid("the symlink's target is empty or holds a NUL"));
    }
    if target.len() > MAX_SYMLINK {
        return Err(Reason::TooLarge("length of the symlink's target", length, MAX_SYMLINK as u64));
    }
    Ok(length)
}

/// Number of chunk map entries.
fn check_extents(size: u64, extents: &[Extent], devices: &[Device]) -> Result<u64, Reason<'static>> {
    if size > MAX_FILE_SIZE {
        return Err(Reason::TooLarge("file size", size, MAX_FILE_SIZE));
    }
    let mut total = 0_u64;
    for (number, extent) in extents.iter().enumerate() {
        let last = number + 1 == extents.len();
        if extent.length == 0 || (!last && !extent.length.is_multiple_of(BLOCK_SIZE)) {
            return Err(Reason::Invalid("an extent is empty, or not whole blocks and not the last"));
        }
        total = total.saturating_add(extent.length);
        let Some((blob, at)) = extent.location else { continue };
        let Some(device) = devices.get(usize::from(blob.0)) else {
            return Err(Reason::Invalid("an extent lies in a device that does not exist"));
        };
        let end = extent.length.div_ceil(BLOCK_SIZE).saturating_mul(BLOCK_SIZE).checked_add(at.0);
        if !at.0.is_multiple_of(BLOCK_SIZE) || end.is_none_or(|end| end > device.size) {
            return Err(Reason::Invalid("an extent is not on a block, or reaches beyond its device"));
        }
    }
    if total != size {
        return Err(Reason::Invalid("the extents do not add up to the file's size"));
    }
    let entries = chunking(size, extents).count;
    if entries > MAX_MAP_ENTRIES {
        return Err(Reason::TooLarge("number of chunk map entries (pieces not aligned)", entries, MAX_MAP_ENTRIES));
    }
    Ok(entries)
}

/// Bytes that the attributes take in the inode.
fn check_xattrs(xattrs: &[Xattr]) -> Result<u64, Reason<'_>> {
    let mut seen = HashSet::new();
    let mut bytes = 0;
    for xattr in xattrs {
        check_xattr_name(&xattr.name).map_err(|what| Reason::Xattr(&xattr.name, what))?;
        if xattr.value.len() > MAX_XATTR_VALUE {
            return Err(Reason::Xattr(&xattr.name, "the value is longer than 65535 bytes"));
        }
        if !seen.insert(&xattr.name) {
            return Err(Reason::Xattr(&xattr.name, "it is there twice"));
        }
        bytes += xattr_entry_size(xattr);
    }
    if bytes > MAX_XATTR_AREA {
        return Err(Reason::TooLarge("size of the extended attributes", bytes, MAX_XATTR_AREA));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
