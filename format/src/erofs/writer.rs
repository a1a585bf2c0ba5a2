//! Writes a bootstrap in two passes: the first gives every inode its place, the second puts bytes there.
//!
//! Layout: superblock and device table; the root inode; shared attributes; the other inodes in tree order,
//! each directory before its files, packed without gaps; blocks of large directories and of symlinks that do
//! not fit behind their inode. Equal trees give equal bytes.

mod directory;
mod place;
mod xattrs;

use crate::ids::{BLOCK_SIZE, to_usize};
use crate::tree::{Extent, Node, NodeId, NodeKind, ValidTree, chunking, runs};

use super::ondisk::*;
use directory::Listing;
use place::Placer;
use xattrs::XattrTable;

/// Writes the EROFS image of a tree.
pub fn write_bootstrap(tree: &ValidTree) -> Vec<u8> {
    let plan = Plan::measure(tree);
    plan.emit()
}

/// Where an inode's content goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    /// Nothing, or whole blocks elsewhere.
    Blocks,
    /// Whole blocks elsewhere, and the rest behind the inode, in one block with it.
    Tail(u64),
    /// A chunk map of this shape behind the inode.
    Map { bits: u32, count: u64 },
}

/// What an inode needs, a function of the node and the shared attributes.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Bytes of inode and attributes.
    head: u64,
    body: Body,
    /// Value of `i_size`.
    size: u64,
    /// Blocks elsewhere.
    blocks: u64,
}

impl Shape {
    fn map_offset(&self) -> u64 {
        self.head.next_multiple_of(MAP_ENTRY_SIZE)
    }

    /// Bytes from the inode's start.
    fn length(&self) -> u64 {
        match self.body {
            Body::Blocks => self.head,
            Body::Tail(tail) => self.head + tail,
            Body::Map { count, .. } => self.map_offset() + count * MAP_ENTRY_SIZE,
        }
    }

    fn layout(&self) -> u16 {
        match self.body {
            Body::Blocks => FLAT_PLAIN,
            Body::Tail(_) => FLAT_INLINE,
            Body::Map { .. } => CHUNK_BASED,
        }
    }

    /// Of content that lies behind the inode as far as its last block goes.
    fn flat(head: u64, size: u64) -> Self {
        let tail = size % BLOCK_SIZE;
        if tail != 0 && head + tail <= BLOCK_SIZE {
            return Self { head, body: Body::Tail(tail), size, blocks: size / BLOCK_SIZE };
        }
        Self { head, body: Body::Blocks, size, blocks: size.div_ceil(BLOCK_SIZE) }
    }
}

struct Plan<'t> {
    tree: &'t ValidTree,
    xattrs: XattrTable<'t>,
    /// Byte offset of each node's inode; 0 for nodes that are not reached.
    offsets: Vec<u64>,
    /// Byte offset of the shared attributes.
    shared_at: u64,
    /// First block behind the inodes.
    data_block: u64,
    total_blocks: u64,
}

impl<'t> Plan<'t> {
    fn measure(tree: &'t ValidTree) -> Self {
        let devices = tree.tree().devices.len() as u64;
        let mut placer = Placer::new(
            (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE) as u64 + devices * SLOT_SIZE as u64,
            tree.tree().nodes.len(),
        );
        let mut plan = Self {
            tree,
            xattrs: XattrTable::new(tree),
            offsets: Vec::new(),
            shared_at: 0,
            data_block: 0,
            total_blocks: 0,
        };
        let mut blocks = 0;
        for (number, &id) in tree.order().iter().enumerate() {
            let shape = plan.shape(id);
            blocks += shape.blocks;
            match shape.body {
                Body::Tail(_) => placer.in_one_block(id, shape.length()),
                Body::Blocks | Body::Map { .. } => placer.anywhere(id, shape.length()),
            }
            if number == 0 {
                // The root comes first whatever it wastes: its number has only 16 bits.
                placer.flush();
                plan.shared_at = placer.reserve(plan.xattrs.shared_size());
            }
        }
        let (offsets, end) = placer.finish();
        plan.offsets = offsets;
        plan.data_block = end.div_ceil(BLOCK_SIZE);
        plan.total_blocks = plan.data_block + blocks;
        plan
    }

    fn shape(&self, id: NodeId) -> Shape {
        let node = self.tree.node(id);
        let head = INODE_SIZE as u64 + self.xattrs.area_size(&node.meta.xattrs);
        match &node.kind {
            NodeKind::Directory(_) => Shape::flat(head, Listing::new(self.tree, id).size()),
            NodeKind::Symlink(target) => Shape::flat(head, target.len() as u64),
            NodeKind::Regular { size: size @ 1.., extents } => {
                let map = chunking(*size, extents);
                Shape { head, body: Body::Map { bits: map.bits, count: map.count }, size: *size, blocks: 0 }
            }
            _ => Shape::flat(head, 0),
        }
    }

    fn emit(&self) -> Vec<u8> {
        let mut image = Image(vec![0; to_usize(self.total_blocks * BLOCK_SIZE)]);
        self.put_devices(&mut image);
        self.xattrs.put_shared(&mut image, self.shared_at);
        let mut block = self.data_block;
        for &id in self.tree.order() {
            let shape = self.shape(id);
            self.put_inode(&mut image, id, &shape, block);
            block += shape.blocks;
        }
        self.put_superblock(&mut image);
        image.0
    }

    fn put_superblock(&self, image: &mut Image) {
        let at = SUPERBLOCK_OFFSET as u64;
        image.u32(at, MAGIC);
        image.u32(at + 8, FEATURE_COMPAT);
        image.put(at + 12, &[BLOCK_BITS]);
        image.u16(at + 14, self.nid(self.tree.tree().root));
        image.u64(at + 16, self.tree.order().len() as u64);
        image.u32(at + 36, self.total_blocks);
        image.u32(at + 80, FEATURE_INCOMPAT);
        image.u16(at + 86, self.tree.tree().devices.len() as u64);
        image.u16(at + 88, ((SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE) / SLOT_SIZE) as u64);
        // The UUID tells images apart and is a function of all other bytes. Version 8: made as the maker likes.
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&blake3::hash(&image.0).as_bytes()[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        image.put(at + 48, &uuid);
        image.u32(at + 4, superblock_checksum(&image.0[SUPERBLOCK_OFFSET..to_usize(BLOCK_SIZE)]));
    }

    fn put_devices(&self, image: &mut Image) {
        for (at, device) in (0..).zip(&self.tree.tree().devices) {
            let slot = (SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE + at * SLOT_SIZE) as u64;
            image.put(slot, device.digest.hex().as_bytes());
            image.u32(slot + 64, device.size / BLOCK_SIZE);
        }
    }

    fn put_inode(&self, image: &mut Image, id: NodeId, shape: &Shape, block: u64) {
        let node = self.tree.node(id);
        let meta = &node.meta;
        let at = self.offsets[id.0 as usize];
        let (mode, special) = mode_and_device(node);
        let u = match shape.body {
            Body::Map { bits, .. } => u64::from(CHUNK_INDEXES | bits),
            // Zero rather than a number nobody reads compresses best.
            _ if shape.blocks == 0 => u64::from(special),
            _ => block,
        };
        image.u16(at, u64::from(EXTENDED | shape.layout() << 1));
        image.u16(at + 2, self.xattrs.count_field(&meta.xattrs));
        image.u16(at + 4, u64::from(mode | meta.permissions));
        image.u64(at + 8, shape.size);
        image.u32(at + 16, u);
        image.u32(at + 24, meta.uid);
        image.u32(at + 28, meta.gid);
        image.put(at + 32, &meta.mtime.seconds.to_le_bytes());
        image.u32(at + 40, meta.mtime.nanoseconds);
        image.u32(at + 44, self.tree.links(id));
        self.xattrs.put(image, at + INODE_SIZE as u64, &meta.xattrs, self.shared_at);
        let (tail_at, blocks_at) = (at + shape.head, block * BLOCK_SIZE);
        match &node.kind {
            NodeKind::Directory(_) => {
                let whole = shape.size / BLOCK_SIZE;
                let inline = matches!(shape.body, Body::Tail(_));
                let place = |block| if inline && block == whole { tail_at } else { blocks_at + block * BLOCK_SIZE };
                Listing::new(self.tree, id).put(image, place, |child| self.nid(child));
            }
            NodeKind::Symlink(target) => image.put(if shape.blocks == 0 { tail_at } else { blocks_at }, target),
            NodeKind::Regular { size, extents } => put_map(image, at + shape.map_offset(), *size, extents),
            _ => {}
        }
    }

    fn nid(&self, node: NodeId) -> u64 {
        self.offsets[node.0 as usize] / INODE_UNIT
    }
}

/// Type bits of the mode, and the encoded device number.
fn mode_and_device(node: &Node) -> (u16, u32) {
    match node.kind {
        NodeKind::Directory(_) => (S_IFDIR, 0),
        NodeKind::Regular { .. } => (S_IFREG, 0),
        NodeKind::Symlink(_) => (S_IFLNK, 0),
        NodeKind::CharDevice { major, minor } => (S_IFCHR, encode_device(major, minor)),
        NodeKind::BlockDevice { major, minor } => (S_IFBLK, encode_device(major, minor)),
        NodeKind::Fifo => (S_IFIFO, 0),
        NodeKind::Socket => (S_IFSOCK, 0),
    }
}

fn put_map(image: &mut Image, mut at: u64, size: u64, extents: &[Extent]) {
    let chunk = BLOCK_SIZE << chunking(size, extents).bits;
    for run in runs(extents) {
        for done in (0..run.length).step_by(to_usize(chunk)) {
            match run.location {
                None => image.u32(at + 4, NULL_ADDR),
                Some((blob, start)) => {
                    image.u16(at + 2, u64::from(blob.0) + 1);
                    image.u32(at + 4, (start.0 + done) / BLOCK_SIZE);
                }
            }
            at += MAP_ENTRY_SIZE;
        }
    }
}

/// The image under construction. Offsets come from the plan, and lie inside it.
struct Image(Vec<u8>);

impl Image {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let at = to_usize(at);
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// The low 16 bits; [`ValidTree`]'s bounds keep every value within them.
    fn u16(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes()[..2]);
    }

    /// The low 32 bits; likewise.
    fn u32(&mut self, at: u64, value: impl Into<u64>) {
        self.put(at, &value.into().to_le_bytes()[..4]);
    }

    fn u64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}
