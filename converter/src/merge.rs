//! Merges layers into one tree, as an overlay of them would show it.
//!
//! Layers are applied in order, lowest first. Every name remembers the layer that put it there, so that a whiteout or an
//! opaque mark hides what lies below its layer and nothing of the layer itself, wherever in the archive it stands.

use std::collections::{BTreeMap, HashSet};

use lazo_format::{Meta, Timestamp};

mod clean;

use crate::error::Problem;
use crate::layer::{Entry, EntryKind};

/// Symbolic links followed on the way to one entry's parent: the kernel's own limit.
const MAX_SYMLINKS: usize = 40;
/// Directories below one another. Trees are walked by recursion, so this bounds the stack; real images stay under 100.
const MAX_DEPTH: usize = 1024;
/// Objects in an image. A node takes about 250 bytes, so the tree stays under 3 GB; real images have under 10^6.
pub(crate) const MAX_NODES: usize = 10_000_000;
/// Bytes that names, link targets and extended attributes of all layers may take in memory; a name counts [`NAME_BYTES`] more
/// than its length, an attribute [`XATTR_BYTES`]. Real images stay under 100 MB.
const MAX_TEXT: u64 = 2 << 30;
/// What a name takes in its directory beside its own bytes.
const NAME_BYTES: usize = 64;
/// What an extended attribute takes beside its own bytes.
const XATTR_BYTES: usize = 64;
/// Longest name: NAME_MAX.
const MAX_NAME: usize = 255;
/// Longest link target: PATH_MAX with its NUL.
const MAX_TARGET: usize = 4095;

/// Owner and group of what is new.
const ROOT_OWNS: (u32, u32) = (0, 0);

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Marks of AUFS's own bookkeeping, which no runtime unpacks.
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// A regular file of some layer: its position among all regular files of the image, lowest layer first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FileId(pub(crate) u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NodeRef(u32);

impl NodeRef {
    /// Position in the nodes of the merge.
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) meta: Meta,
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Directory(BTreeMap<Box<[u8]>, Child>),
    File { id: FileId, size: u64 },
    Symlink(Box<[u8]>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Child {
    pub(crate) node: NodeRef,
    /// The layer that last put this name here.
    layer: u16,
}

/// What applying an entry asks of the caller.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// A regular file: its data comes next.
    File(FileId),
    /// Anything else that the tree now shows.
    Other,
    /// A mark that hides something, or an entry that is ignored.
    Mark,
}

/// Things worth telling the user, counted.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Warnings {
    /// `trusted.overlay.*` xattrs, which an overlay above would obey, dropped.
    pub overlay_xattrs: u64,
    /// xattrs of namespaces that EROFS does not have, dropped.
    pub unsupported_xattrs: u64,
    /// `user.*` xattrs of what is neither a file nor a directory, dropped: Linux has none there, and an overlay above could not
    /// copy such a link or device up.
    pub user_xattrs: u64,
    /// Character devices 0:0, which hide what lies below and are not seen themselves.
    pub whiteout_devices: u64,
    /// Layers that are packed otherwise than their media type says.
    pub mistyped_layers: u64,
}

/// The tree so far.
#[derive(Debug)]
pub(crate) struct Merge {
    nodes: Vec<Node>,
    layer: u16,
    files: u32,
    /// Bytes counted against [`MAX_TEXT`]; they only grow, whatever is hidden later.
    text: u64,
    /// Directories in which the current layer has hidden everything older, so that marks said again cost nothing.
    hidden: HashSet<NodeRef>,
    pub(crate) warnings: Warnings,
}

const ROOT: NodeRef = NodeRef(0);

impl Merge {
    pub(crate) fn new() -> Self {
        let root = Node { meta: implied_meta(), kind: Kind::Directory(BTreeMap::new()) };
        Self { nodes: vec![root], layer: 0, files: 0, text: 0, hidden: HashSet::new(), warnings: Warnings::default() }
    }

    pub(crate) fn root(&self) -> NodeRef {
        ROOT
    }

    pub(crate) fn node(&self, node: NodeRef) -> &Node {
        &self.nodes[node.0 as usize]
    }

    /// Regular files seen so far, in all layers.
    pub(crate) fn files_seen(&self) -> u32 {
        self.files
    }

    /// All nodes, in the order of their numbers, leaving the merge.
    pub(crate) fn into_nodes(self) -> Vec<Node> {
        self.nodes
    }

    /// What follows belongs to the layer of this number.
    pub(crate) fn begin_layer(&mut self, layer: u16) {
        self.layer = layer;
        self.hidden.clear();
    }

    /// Applies one entry of the current layer.
    pub(crate) fn apply(&mut self, mut entry: Entry) -> Result<Applied, Problem> {
        let path = std::mem::take(&mut entry.path);
        let path = components(&path)?;
        if matches!(entry.kind, EntryKind::Comment) {
            return self.apply_comment(&path);
        }
        let Some((name, parents)) = path.split_last() else { return self.apply_root(entry) };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.apply_mark(parents, name, hidden);
        }
        if name.len() > MAX_NAME {
            return Err(Problem::Path("a name is longer than 255 bytes"));
        }
        let parent = self.walk_to(parents, true)?.ok_or(Problem::LinkLoop)?;
        match entry.kind {
            EntryKind::Directory => self.apply_directory(parent, name, entry.meta),
            EntryKind::HardLink(target) => self.apply_hard_link(parent, name, &target),
            _ => self.apply_object(parent, name, entry),
        }
    }

    fn apply_root(&mut self, entry: Entry) -> Result<Applied, Problem> {
        if !matches!(entry.kind, EntryKind::Directory) {
            return Err(Problem::Path("the root can only be a directory"));
        }
        let meta = self.clean_meta(entry.meta, owners(&self.nodes[0].meta), true)?;
        self.nodes[0].meta = meta;
        Ok(Applied::Other)
    }

    /// A global PAX header says nothing of any file. But containerd has its name hide or remove a file before it looks at what it
    /// is, while others do not, so a name that means something is refused.
    fn apply_comment(&mut self, path: &[&[u8]]) -> Result<Applied, Problem> {
        const HIDES: &str = "a global PAX header by the name of a file, which some runtimes remove for it";
        let Some((name, parents)) = path.split_last() else { return Ok(Applied::Mark) };
        let parent = self.walk_to(parents, false)?;
        match parent.is_some_and(|parent| self.child(parent, name).is_some()) || name.starts_with(WHITEOUT) {
            true => Err(Problem::Unsupported(HIDES.into())),
            false => Ok(Applied::Mark),
        }
    }

    fn apply_mark(&mut self, parents: &[&[u8]], name: &[u8], hidden: &[u8]) -> Result<Applied, Problem> {
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(Problem::Path("a whiteout that names nothing"));
        }
        // A whiteout below something that does not exist hides nothing.
        let Some(parent) = self.walk_to(parents, false)? else { return Ok(Applied::Mark) };
        if name == OPAQUE {
            self.hide_lower_children(parent);
        } else if !name.starts_with(WHITEOUT_META)
            && self.child(parent, hidden).is_some()
            && !self.keeps(parent, hidden)
        {
            self.children_mut(parent).remove(hidden);
        }
        Ok(Applied::Mark)
    }

    fn apply_directory(&mut self, parent: NodeRef, name: &[u8], meta: Meta) -> Result<Applied, Problem> {
        let existing = self.child(parent, name).map(|c| c.node).filter(|n| self.is_directory(*n));
        let before = existing.map_or(ROOT_OWNS, |node| owners(&self.node(node).meta));
        let meta = self.clean_meta(meta, before, true)?;
        match existing {
            Some(node) => {
                self.nodes[node.0 as usize].meta = meta;
                self.link(parent, name, node)?;
            }
            None => {
                let node = self.add_node(Node { meta, kind: Kind::Directory(BTreeMap::new()) })?;
                self.link(parent, name, node)?;
            }
        }
        Ok(Applied::Other)
    }

    fn apply_hard_link(&mut self, parent: NodeRef, name: &[u8], target: &[u8]) -> Result<Applied, Problem> {
        let fail = |why| Problem::HardLink { target: target.escape_ascii().to_string(), why };
        // What has the name goes first, as it does when a runtime unpacks: so nothing can be linked to itself or out of itself.
        self.children_mut(parent).remove(name);
        let path = components(target)?;
        let (last, parents) = path.split_last().ok_or_else(|| fail("is the root directory"))?;
        let directory = self.walk_to(parents, false)?.ok_or_else(|| fail("does not exist"))?;
        let node = self.child(directory, last).ok_or_else(|| fail("does not exist"))?.node;
        if self.is_directory(node) {
            return Err(fail("is a directory"));
        }
        self.link(parent, name, node)?;
        Ok(Applied::Other)
    }

    fn apply_object(&mut self, parent: NodeRef, name: &[u8], entry: Entry) -> Result<Applied, Problem> {
        let (kind, applied) = match entry.kind {
            EntryKind::File { size, .. } => {
                let id = FileId(self.files);
                self.files += 1;
                (Kind::File { id, size }, Applied::File(id))
            }
            EntryKind::Symlink(target) => {
                self.count_text(target.len())?;
                (Kind::Symlink(checked_target(target)?), Applied::Other)
            }
            EntryKind::CharDevice(major, minor) => (Kind::CharDevice(major, minor), Applied::Other),
            EntryKind::BlockDevice(major, minor) => (Kind::BlockDevice(major, minor), Applied::Other),
            EntryKind::Fifo => (Kind::Fifo, Applied::Other),
            EntryKind::Directory | EntryKind::HardLink(_) | EntryKind::Comment => return Ok(Applied::Mark),
        };
        let mut meta = self.clean_meta(entry.meta, ROOT_OWNS, matches!(kind, Kind::File { .. }))?;
        if matches!(kind, Kind::Symlink(_)) {
            // Linux knows no others, whatever the archive says: so does every unpacked tree show them.
            meta.permissions = 0o777;
        }
        let node = self.add_node(Node { meta, kind })?;
        self.link(parent, name, node)?;
        Ok(applied)
    }

    fn count_text(&mut self, bytes: usize) -> Result<(), Problem> {
        self.text = self.text.saturating_add(bytes as u64);
        match self.text {
            0..=MAX_TEXT => Ok(()),
            _ => {
                Err(Problem::TooMany { what: "bytes of names, link targets and extended attributes", limit: MAX_TEXT })
            }
        }
    }

    fn add_node(&mut self, node: Node) -> Result<NodeRef, Problem> {
        if self.nodes.len() >= MAX_NODES {
            return Err(Problem::TooMany { what: "entries in the image", limit: MAX_NODES as u64 });
        }
        self.nodes.push(node);
        u32::try_from(self.nodes.len() - 1)
            .map(NodeRef)
            .map_err(|_| Problem::TooMany { what: "entries in the image", limit: MAX_NODES as u64 })
    }

    /// Puts a name into a directory, in place of one that is there.
    fn link(&mut self, parent: NodeRef, name: &[u8], node: NodeRef) -> Result<(), Problem> {
        let child = Child { node, layer: self.layer };
        if let Some(there) = self.children_mut(parent).get_mut(name) {
            *there = child;
            return Ok(());
        }
        self.count_text(name.len() + NAME_BYTES)?;
        self.children_mut(parent).insert(name.into(), child);
        Ok(())
    }

    fn child(&self, parent: NodeRef, name: &[u8]) -> Option<Child> {
        match &self.node(parent).kind {
            Kind::Directory(children) => children.get(name).copied(),
            _ => None,
        }
    }

    fn children_mut(&mut self, directory: NodeRef) -> &mut BTreeMap<Box<[u8]>, Child> {
        match &mut self.nodes[directory.0 as usize].kind {
            Kind::Directory(children) => children,
            _ => unreachable!("only directories are walked to"),
        }
    }

    fn is_directory(&self, node: NodeRef) -> bool {
        matches!(self.node(node).kind, Kind::Directory(_))
    }

    /// Hides a name's lower content. Whether the name itself stays: it is the current layer's, or something below it is.
    fn keeps(&mut self, parent: NodeRef, name: &[u8]) -> bool {
        let Some(child) = self.child(parent, name) else { return false };
        let own = child.layer == self.layer;
        if !self.is_directory(child.node) {
            return own;
        }
        let holds_some = self.hide_lower_children(child.node);
        if !own && holds_some {
            // The layer never listed this directory: it only implied it, so nothing of the lower one shows.
            self.nodes[child.node.0 as usize].meta = implied_meta();
            let layer = self.layer;
            self.children_mut(parent).insert(name.into(), Child { layer, ..child });
        }
        own || holds_some
    }

    /// Removes all names below `directory` that the current layer did not put there. Whether any is left.
    fn hide_lower_children(&mut self, directory: NodeRef) -> bool {
        // What comes after this in the layer is the layer's own, so that once is enough.
        if self.hidden.insert(directory) {
            // Depth is bounded by MAX_DEPTH, since every directory was reached by a path.
            let names: Vec<Box<[u8]>> = self.children_mut(directory).keys().cloned().collect();
            for name in &names {
                if !self.keeps(directory, name) {
                    self.children_mut(directory).remove(name);
                }
            }
        }
        !self.children_mut(directory).is_empty()
    }

    /// Whether a directory that the current layer implies replaces what a lower layer has in its place.
    fn gives_way(&self, child: Child) -> bool {
        child.layer < self.layer && !matches!(self.node(child.node).kind, Kind::Directory(_) | Kind::Symlink(_))
    }

    /// Walks to a directory, following symbolic links within the root. Missing ones are made if `create` is set;
    /// otherwise `None` says that the path does not lead to a directory.
    fn walk_to(&mut self, path: &[&[u8]], create: bool) -> Result<Option<NodeRef>, Problem> {
        if let Some(node) = self.walk_plain(path) {
            return Ok(Some(node));
        }
        let mut at = vec![ROOT];
        let mut rest: Vec<Box<[u8]>> = path.iter().rev().map(|c| (*c).into()).collect();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if &*name == b".." {
                at.truncate((at.len() - 1).max(1));
                continue;
            }
            let here = *at.last().unwrap_or(&ROOT);
            let next = match self.child(here, &name).filter(|child| !create || !self.gives_way(*child)) {
                Some(child) => child.node,
                None if create => {
                    if name.len() > MAX_NAME {
                        return Err(Problem::Path("a name is longer than 255 bytes"));
                    }
                    let node = self.add_node(Node { meta: implied_meta(), kind: Kind::Directory(BTreeMap::new()) })?;
                    self.link(here, &name, node)?;
                    node
                }
                None => return Ok(None),
            };
            match &self.node(next).kind {
                Kind::Directory(_) if at.len() > MAX_DEPTH => return Err(too_deep()),
                Kind::Directory(_) => at.push(next),
                Kind::Symlink(target) => {
                    links += 1;
                    if links > MAX_SYMLINKS {
                        return Err(Problem::LinkLoop);
                    }
                    if target.first() == Some(&b'/') {
                        at.truncate(1);
                    }
                    let parts = target.split(|b| *b == b'/').rev().filter(|c| !c.is_empty() && *c != b".");
                    rest.extend(parts.map(Box::from));
                }
                _ if create => return Err(Problem::NotADirectory(name.escape_ascii().to_string())),
                _ => return Ok(None),
            }
        }
        Ok(at.last().copied())
    }

    /// The directory at a path without symbolic links: the usual case, without allocation. At most `MAX_DEPTH` deep.
    fn walk_plain(&self, path: &[&[u8]]) -> Option<NodeRef> {
        path.iter().try_fold(ROOT, |at, name| {
            self.child(at, name).map(|child| child.node).filter(|node| self.is_directory(*node))
        })
    }

    /// The object that a path leads to, following symbolic links to the end.
    pub(crate) fn resolve(&mut self, path: &[u8]) -> Option<NodeRef> {
        let mut path = path.to_vec();
        for _ in 0..MAX_SYMLINKS {
            let parts = components(&path).ok()?;
            let Some((name, parents)) = parts.split_last() else { return Some(ROOT) };
            let parent = self.walk_to(parents, false).ok()??;
            let node = self.child(parent, name)?.node;
            let Kind::Symlink(target) = &self.node(node).kind else { return Some(node) };
            let base: &[&[u8]] = if target.starts_with(b"/") { &[] } else { parents };
            let mut next = base.join(&b'/');
            next.push(b'/');
            next.extend_from_slice(target);
            path = next;
        }
        None
    }

    /// Every node below and with `start`, each once, in the order of a walk.
    pub(crate) fn reachable(&self, start: NodeRef) -> Vec<NodeRef> {
        let mut seen = vec![false; self.nodes.len()];
        let mut order = Vec::new();
        let mut stack = vec![start];
        while let Some(node) = stack.pop() {
            if std::mem::replace(&mut seen[node.index()], true) {
                continue;
            }
            order.push(node);
            if let Kind::Directory(children) = &self.node(node).kind {
                stack.extend(children.values().rev().map(|child| child.node));
            }
        }
        order
    }

    /// Calls `visit` with path and node of everything below `start`, names in byte order; the path begins with `/`.
    pub(crate) fn visit(&self, start: NodeRef, path: &mut Vec<u8>, visit: &mut impl FnMut(&[u8], &Node)) {
        visit(path, self.node(start));
        if let Kind::Directory(children) = &self.node(start).kind {
            for (name, child) in children {
                let length = path.len();
                path.push(b'/');
                path.extend_from_slice(name);
                self.visit(child.node, path, visit);
                path.truncate(length);
            }
        }
    }
}

fn owners(meta: &Meta) -> (u32, u32) {
    (meta.uid, meta.gid)
}

/// What a directory gets that no layer describes.
fn implied_meta() -> Meta {
    Meta { permissions: 0o755, uid: 0, gid: 0, mtime: Timestamp { seconds: 0, nanoseconds: 0 }, xattrs: Vec::new() }
}

fn too_deep() -> Problem {
    Problem::TooMany { what: "directories on a path", limit: MAX_DEPTH as u64 }
}

/// Splits a path at slashes and resolves `.` and `..` in its letters, as path cleaning does in every runtime: nothing climbs above
/// the root.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Problem> {
    if path.contains(&0) {
        return Err(Problem::Path("it holds a NUL byte"));
    }
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            _ if parts.len() > MAX_DEPTH => return Err(too_deep()),
            _ => parts.push(part),
        }
    }
    Ok(parts)
}

fn checked_target(target: Vec<u8>) -> Result<Box<[u8]>, Problem> {
    match target.len() {
        0 => Err(Problem::Path("a symbolic link without a target")),
        1..=MAX_TARGET if !target.contains(&0) => Ok(target.into()),
        _ => Err(Problem::Path("a symbolic link's target is longer than 4095 bytes or holds a NUL byte")),
    }
}

#[cfg(test)]
mod tests;
