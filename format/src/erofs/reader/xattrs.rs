//! Extended attributes: those behind the inode, and shared ones it refers to.

use zerocopy::FromBytes as _;
use zerocopy::little_endian::U32;

use super::super::ondisk::*;
use crate::ids::Nid;

use super::{Bootstrap, BootstrapError, Bytes, Inode};

const DAMAGED: &str = "an extended attribute is damaged or of an unknown namespace";

/// Bytes of attributes behind an inode, from its `i_xattr_icount`.
pub(super) fn area_size(count: u16) -> u64 {
    match count {
        0 => 0,
        count => XATTR_HEADER_SIZE + 4 * (u64::from(count) - 1),
    }
}

/// An inode's attributes, full name and value; ends after an error.
#[derive(Debug, Clone)]
pub struct Xattrs<'a>(Entries<'a>);

impl<'a> Iterator for Xattrs<'a> {
    type Item = Result<(Vec<u8>, &'a [u8]), BootstrapError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|entry| entry.map(|entry| ([entry.prefix, entry.name].concat(), entry.value)))
    }
}

#[derive(Debug, Clone)]
pub(super) struct Entries<'a> {
    nid: Nid,
    image: Bytes<'a>,
    /// Places of shared attributes in the image, in units of 4 bytes.
    shared: &'a [U32],
    inline: &'a [u8],
}

pub(super) struct Entry<'a> {
    pub(super) prefix: &'static [u8],
    pub(super) name: &'a [u8],
    value: &'a [u8],
    /// Bytes from the entry's start to the next one's.
    size: u64,
}

/// `None` when the entry is not within `bytes` or of an unknown namespace.
fn entry(bytes: Bytes<'_>, at: u64) -> Option<Entry<'_>> {
    let header: &XattrEntry = bytes.structure(at)?;
    let (name_size, value_size) = (u64::from(header.name_length), u64::from(header.value_length));
    let name = bytes.get(at.checked_add(XATTR_ENTRY_SIZE)?, name_size)?;
    let value = bytes.get(at + XATTR_ENTRY_SIZE + name_size, value_size)?;
    let prefix = xattr_prefix(header.namespace)?;
    // The same rule as for writing: a namespace has a name, an ACL has none. No NUL: names end there in lists.
    let named = name.is_empty() != prefix.ends_with(b".") && !name.contains(&0);
    named.then_some(Entry {
        prefix,
        name,
        value,
        size: (XATTR_ENTRY_SIZE + name_size + value_size).next_multiple_of(4),
    })
}

impl<'a> Entries<'a> {
    fn step(&mut self) -> Option<Option<Entry<'a>>> {
        if let Some((id, rest)) = self.shared.split_first() {
            self.shared = rest;
            return Some(entry(self.image, u64::from(*id) * 4));
        }
        if self.inline.is_empty() {
            return None;
        }
        let found = entry(Bytes(self.inline), 0);
        // Each step shortens the rest: an entry has at least its header.
        let size = found.as_ref().and_then(|entry| usize::try_from(entry.size).ok());
        self.inline = size.and_then(|size| self.inline.get(size..)).unwrap_or_default();
        Some(found)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, BootstrapError>;

    fn next(&mut self) -> Option<Self::Item> {
        let entry = self.step()?;
        if entry.is_none() {
            (self.shared, self.inline) = (&[], &[]);
        }
        Some(entry.ok_or(BootstrapError::Inode(self.nid, DAMAGED)))
    }
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// The value of an attribute by its full name, such as `user.foo`.
    ///
    /// # Errors
    /// [`BootstrapError::Inode`] when the inode's attributes are damaged.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<&[u8]>, BootstrapError> {
        for entry in self.xattr_entries(inode)? {
            let entry = entry?;
            if name.strip_prefix(entry.prefix) == Some(entry.name) {
                return Ok(Some(entry.value));
            }
        }
        Ok(None)
    }

    /// All attributes of an inode.
    ///
    /// # Errors
    /// [`BootstrapError::Inode`] when the inode's attributes are damaged; the iterator's items fail likewise.
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs<'_>, BootstrapError> {
        self.xattr_entries(inode).map(Xattrs)
    }

    /// All attributes, their names in two parts.
    pub(super) fn xattr_entries(&self, inode: &Inode) -> Result<Entries<'_>, BootstrapError> {
        let image = self.image();
        let mut entries = Entries { nid: inode.nid, image, shared: &[], inline: &[] };
        if inode.xattr_size == 0 {
            return Ok(entries);
        }
        let area = image.get(inode.head_end() - inode.xattr_size, inode.xattr_size);
        let split = area.and_then(|area| {
            let (header, rest) = XattrHeader::ref_from_prefix(area).ok()?;
            <[U32]>::ref_from_prefix_with_elems(rest, usize::from(header.shared_count)).ok()
        });
        (entries.shared, entries.inline) = split.ok_or_else(|| inode.error("its attributes are cut off"))?;
        Ok(entries)
    }
}
