//! Writes a bootstrap in two passes: the first gives every inode its place, the second puts bytes there.
//!
//! Layout: superblock and device table; the root inode; shared attributes; the other inodes in tree order,
//! each directory before its files, packed without gaps; blocks of large directories and of symlinks that do
//! not fit behind their inode. Equal trees give equal bytes.

mod directory;
mod place;
mod xattrs;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros as _, Immutable, IntoBytes};

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
        // fsck.erofs 1.5 looks for attributes behind each inode, and finds the image cut off if the last one ends with it.
        let spare = u64::from(blocks == 0 && end == plan.data_block * BLOCK_SIZE);
        plan.total_blocks = plan.data_block + blocks + spare;
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
        let mut superblock = Superblock {
            magic: MAGIC.into(),
            feature_compat: FEATURE_COMPAT.into(),
            block_bits: BLOCK_BITS,
            root_nid: low16(self.nid(self.tree.tree().root)),
            inodes: (self.tree.order().len() as u64).into(),
            blocks: low32(self.total_blocks),
            feature_incompat: FEATURE_INCOMPAT.into(),
            devices: low16(self.tree.tree().devices.len() as u64),
            device_table: low16(((SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE) / SLOT_SIZE) as u64),
            ..Superblock::new_zeroed()
        };
        image.structure(at, &superblock);
        // The UUID tells images apart and is a function of all other bytes. Version 8: made as the maker likes.
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&blake3::hash(&image.0).as_bytes()[..16]);
        uuid[6] = uuid[6] & 0x0f | 0x80;
        uuid[8] = uuid[8] & 0x3f | 0x80;
        superblock.uuid = uuid;
        image.structure(at, &superblock);
        superblock.checksum = superblock_checksum(&image.0[SUPERBLOCK_OFFSET..to_usize(BLOCK_SIZE)]).into();
        image.structure(at, &superblock);
    }

    fn put_devices(&self, image: &mut Image) {
        for (at, device) in (0..).zip(&self.tree.tree().devices) {
            let mut slot = DeviceSlot { blocks: low32(device.size / BLOCK_SIZE), ..DeviceSlot::new_zeroed() };
            slot.tag.copy_from_slice(device.digest.hex().as_bytes());
            image.structure((SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE + at * SLOT_SIZE) as u64, &slot);
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
        let inode = ExtendedInode {
            format: (EXTENDED | shape.layout() << 1).into(),
            xattr_count: low16(self.xattrs.count_field(&meta.xattrs)),
            mode: (mode | meta.permissions).into(),
            size: shape.size.into(),
            u: low32(u),
            uid: meta.uid.into(),
            gid: meta.gid.into(),
            mtime: meta.mtime.seconds.into(),
            mtime_nanoseconds: meta.mtime.nanoseconds.into(),
            nlink: self.tree.links(id).into(),
            ..ExtendedInode::new_zeroed()
        };
        image.structure(at, &inode);
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
            let (device, block) = match run.location {
                None => (0, NULL_ADDR.into()),
                Some((blob, start)) => (u64::from(blob.0) + 1, low32((start.0 + done) / BLOCK_SIZE)),
            };
            let entry = MapEntry { device: low16(device), block, ..MapEntry::new_zeroed() };
            image.structure(at, &entry);
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

    fn structure(&mut self, at: u64, structure: &(impl IntoBytes + Immutable)) {
        self.put(at, structure.as_bytes());
    }
}

/// The low 16 bits; [`ValidTree`]'s bounds keep every value within them.
fn low16(value: u64) -> U16 {
    let [a, b, ..] = value.to_le_bytes();
    U16::from_bytes([a, b])
}

/// The low 32 bits; likewise.
fn low32(value: u64) -> U32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    U32::from_bytes([a, b, c, d])
}
