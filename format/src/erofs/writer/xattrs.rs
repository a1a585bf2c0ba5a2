//! Extended attributes: those that occur more than once are stored once and referred to.

use std::collections::HashMap;

use zerocopy::FromZeros as _;

use crate::tree::{ValidTree, Xattr};

use super::super::ondisk::*;
use super::{Image, low16, low32};

pub(super) struct XattrTable<'t> {
    /// Offset within the shared attributes.
    shared: HashMap<&'t Xattr, u64>,
    /// Shared attributes in the order of their first use.
    order: Vec<&'t Xattr>,
    size: u64,
}

impl<'t> XattrTable<'t> {
    pub(super) fn new(tree: &'t ValidTree) -> Self {
        let xattrs = || tree.order().iter().flat_map(|id| sorted(&tree.node(*id).meta.xattrs));
        let mut uses = HashMap::new();
        xattrs().for_each(|xattr| *uses.entry(xattr).or_insert(0_u32) += 1);
        let mut table = Self { shared: HashMap::new(), order: Vec::new(), size: 0 };
        for xattr in xattrs().filter(|xattr| uses.get(*xattr).is_some_and(|count| *count > 1)) {
            if !table.shared.contains_key(xattr) {
                table.shared.insert(xattr, table.size);
                table.order.push(xattr);
                table.size += xattr_entry_size(xattr);
            }
        }
        table
    }

    /// Bytes of all shared attributes.
    pub(super) fn shared_size(&self) -> u64 {
        self.size
    }

    pub(super) fn put_shared(&self, image: &mut Image, mut at: u64) {
        for xattr in &self.order {
            put_entry(image, at, xattr);
            at += xattr_entry_size(xattr);
        }
    }

    /// Bytes of the attributes behind an inode.
    pub(super) fn area_size(&self, xattrs: &[Xattr]) -> u64 {
        if xattrs.is_empty() {
            return 0;
        }
        let (shared, inline) = self.split(xattrs);
        let inline: u64 = inline.iter().map(|xattr| xattr_entry_size(xattr)).sum();
        XATTR_HEADER_SIZE + shared.len() as u64 * 4 + inline
    }

    /// Value of `i_xattr_icount`: 0 for none, otherwise 1 and the 4-byte units behind the header.
    pub(super) fn count_field(&self, xattrs: &[Xattr]) -> u64 {
        match self.area_size(xattrs) {
            0 => 0,
            size => (size - XATTR_HEADER_SIZE) / 4 + 1,
        }
    }

    /// Writes the attributes behind an inode; the shared ones lie at `shared_at`.
    pub(super) fn put(&self, image: &mut Image, at: u64, xattrs: &[Xattr], shared_at: u64) {
        if xattrs.is_empty() {
            return;
        }
        let (shared, inline) = self.split(xattrs);
        let shared_count = u8::try_from(shared.len()).unwrap_or(u8::MAX);
        image.structure(at, &XattrHeader { shared_count, ..XattrHeader::new_zeroed() });
        let mut at = at + XATTR_HEADER_SIZE;
        for offset in shared {
            // Numbered from the start of the image, as the superblock's xattr_blkaddr is 0.
            let place = low32((shared_at + offset) / 4);
            image.structure(at, &place);
            at += size_of_val(&place) as u64;
        }
        for xattr in inline {
            put_entry(image, at, xattr);
            at += xattr_entry_size(xattr);
        }
    }

    /// Offsets of those to refer to, and those to store behind the inode.
    fn split(&self, xattrs: &'t [Xattr]) -> (Vec<u64>, Vec<&'t Xattr>) {
        let (mut shared, mut inline) = (Vec::new(), Vec::new());
        for xattr in sorted(xattrs) {
            match self.shared.get(xattr) {
                Some(&offset) if shared.len() < MAX_SHARED_XATTRS => shared.push(offset),
                _ => inline.push(xattr),
            }
        }
        (shared, inline)
    }
}

fn sorted(xattrs: &[Xattr]) -> Vec<&Xattr> {
    let mut sorted: Vec<&Xattr> = xattrs.iter().collect();
    sorted.sort();
    sorted
}

fn put_entry(image: &mut Image, at: u64, xattr: &Xattr) {
    // ValidTree knows no name without a namespace.
    let (namespace, name) = split_xattr_name(&xattr.name).unwrap_or_default();
    let name_length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    image.structure(at, &XattrEntry { name_length, namespace, value_length: low16(xattr.value.len() as u64) });
    image.put(at + XATTR_ENTRY_SIZE, name);
    image.put(at + XATTR_ENTRY_SIZE + name.len() as u64, &xattr.value);
}
