//! A directory's blocks: entries, then their names, in the order of the names' bytes.

use crate::ids::BLOCK_SIZE;
use crate::tree::{NodeId, NodeKind, ValidTree};

use super::super::ondisk::*;
use super::{Image, low16};

/// A directory's names, `.` and `..` among them, cut into blocks.
pub(super) struct Listing<'t> {
    names: Vec<(&'t [u8], NodeId)>,
    tree: &'t ValidTree,
}

impl<'t> Listing<'t> {
    pub(super) fn new(tree: &'t ValidTree, directory: NodeId) -> Self {
        let mut names: Vec<(&[u8], NodeId)> = vec![(b".", directory), (b"..", tree.parent(directory))];
        if let NodeKind::Directory(children) = &tree.node(directory).kind {
            names.extend(children.iter().map(|(name, child)| (&**name, *child)));
        }
        // Two sorted runs: linear.
        names.sort();
        Self { names, tree }
    }

    /// The directory's size in bytes: all blocks but the last count in full.
    pub(super) fn size(&self) -> u64 {
        self.blocks().fold(0, |size: u64, block| size.next_multiple_of(BLOCK_SIZE) + used(block))
    }

    /// Writes block `n` to `place(n)`.
    pub(super) fn put(&self, image: &mut Image, place: impl Fn(u64) -> u64, nid: impl Fn(NodeId) -> u64) {
        for (number, block) in (0..).zip(self.blocks()) {
            let base = place(number);
            let mut name_at = (block.len() * DIRENT_SIZE) as u64;
            for (at, (name, child)) in (base..).step_by(DIRENT_SIZE).zip(block) {
                let file_type = file_type(&self.tree.node(*child).kind);
                let entry = Dirent { nid: nid(*child).into(), name_offset: low16(name_at), file_type, unused: 0 };
                image.structure(at, &entry);
                image.put(base + name_at, name);
                name_at += name.len() as u64;
            }
        }
    }

    /// As many names in each block as fit.
    fn blocks(&self) -> impl Iterator<Item = &[(&'t [u8], NodeId)]> {
        let mut rest = self.names.as_slice();
        std::iter::from_fn(move || {
            let mut free = BLOCK_SIZE;
            let fits = |(name, _): &&(&[u8], NodeId)| {
                let left = free.checked_sub(entry_size(name));
                free = left.unwrap_or(0);
                left.is_some()
            };
            let count = rest.iter().take_while(fits).count();
            let (block, behind) = rest.split_at(count);
            rest = behind;
            (!block.is_empty()).then_some(block)
        })
    }
}

fn entry_size(name: &[u8]) -> u64 {
    (DIRENT_SIZE + name.len()) as u64
}

fn used(block: &[(&[u8], NodeId)]) -> u64 {
    block.iter().map(|(name, _)| entry_size(name)).sum()
}

fn file_type(kind: &NodeKind) -> u8 {
    match kind {
        NodeKind::Directory(_) => FT_DIRECTORY,
        NodeKind::Regular { .. } => FT_REGULAR,
        NodeKind::Symlink(_) => FT_SYMLINK,
        NodeKind::CharDevice { .. } => FT_CHAR,
        NodeKind::BlockDevice { .. } => FT_BLOCK,
        NodeKind::Fifo => FT_FIFO,
        NodeKind::Socket => FT_SOCKET,
    }
}
