//! What is in an image, from its metadata alone.

use std::collections::BTreeMap;

use lazo_format::{
    BLOCK_SIZE, BlobIndex, Bootstrap, BootstrapError, ChunkIndex, ChunkRecord, Digest, Encoding, FileType, Index,
    IndexError, Inode,
};
use serde::Serialize;

use crate::walk::{ResolveError, Run, resolve, runs, walk};

/// Why an image cannot be described.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The tree is damaged.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// The chunk index is damaged.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The path leads nowhere.
    #[error(transparent)]
    Path(#[from] ResolveError),
}

/// An image's content in numbers. All sizes are bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Contents {
    /// Names in the tree, the root among them.
    pub entries: u64,
    /// Names by the type of what they name; hard links count as often as they are named.
    pub types: BTreeMap<&'static str, u64>,
    /// Names that name an inode which another name has named before.
    pub hard_links: u64,
    /// Sizes of all regular files, each inode once.
    pub file_bytes: u64,
    /// How much of that is holes.
    pub hole_bytes: u64,
    /// What the files take in whole blocks, without holes: the space that they would need in the blobs without
    /// deduplication.
    pub block_bytes: u64,
    /// Space in the blobs that some file points into.
    pub referenced_bytes: u64,
    /// `block_bytes` less `referenced_bytes`: what several files share.
    pub shared_bytes: u64,
    /// Space in the blobs that no file points into: deleted or replaced by upper layers.
    pub hidden_bytes: u64,
    /// Stored bytes of chunks that are hidden altogether, and so never fetched.
    pub hidden_compressed: u64,
    /// Stored bytes of all blobs.
    pub compressed_bytes: u64,
    /// Uncompressed space of all blobs.
    pub device_bytes: u64,
    /// Number of chunks of all blobs.
    pub chunks: u64,
    /// Number of chunks that are stored raw, as zstd did not make them smaller.
    pub raw_chunks: u64,
    /// Number of chunks in the prefetch list.
    pub prefetch_chunks: u64,
    /// Their stored bytes.
    pub prefetch_compressed: u64,
    /// The blobs in order of their device numbers.
    pub blobs: Vec<BlobContents>,
}

/// One blob in numbers. All sizes are bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlobContents {
    /// Its digest.
    pub digest: Digest,
    /// Its size in the registry.
    pub compressed_size: u64,
    /// Its uncompressed space.
    pub device_size: u64,
    /// Number of chunks.
    pub chunks: u32,
    /// How much of its space no file points into.
    pub hidden_bytes: u64,
}

/// What a file is, in the words of `stat`.
pub fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "regular file",
        FileType::Directory => "directory",
        FileType::CharDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Symlink => "symbolic link",
    }
}

/// Walks the whole tree and the whole chunk index. Takes 24 bytes of memory for each run of a file in a blob.
///
/// # Errors
/// The first damage found.
pub fn contents<B: AsRef<[u8]>, I: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    index: &Index<I>,
) -> Result<Contents, InspectError> {
    let mut contents = Contents::default();
    let mut spans = Vec::new();
    walk(bootstrap, |visited| {
        contents.entries += 1;
        *contents.types.entry(type_name(visited.inode.file_type)).or_default() += 1;
        if visited.again {
            contents.hard_links += 1;
        } else if visited.inode.file_type == FileType::Regular {
            contents.file_bytes += visited.inode.size;
            runs(bootstrap, visited.inode, |run| contents.add_run(&run, &mut spans))?;
        }
        Ok(())
    })?;
    let spans = merged(spans);
    for number in index.blob_numbers() {
        contents.add_blob(index, number, &spans)?;
    }
    contents.shared_bytes = contents.block_bytes.saturating_sub(contents.referenced_bytes);
    contents.hidden_bytes = contents.device_bytes.saturating_sub(contents.referenced_bytes);
    for range in index.prefetch() {
        for chunk in range?.chunks() {
            contents.prefetch_chunks += 1;
            contents.prefetch_compressed += u64::from(index.chunk(ChunkIndex(chunk))?.compressed_size);
        }
    }
    Ok(contents)
}

/// A piece of a blob's device space that files point into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Span {
    blob: BlobIndex,
    start: u64,
    end: u64,
}

/// Sorts spans and joins those that touch.
fn merged(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable();
    spans.dedup_by(|next, kept| {
        let joined = next.blob == kept.blob && next.start <= kept.end;
        if joined {
            kept.end = kept.end.max(next.end);
        }
        joined
    });
    spans
}

impl Contents {
    fn add_run(&mut self, run: &Run, spans: &mut Vec<Span>) {
        let Some((blob, address)) = run.location else {
            self.hole_bytes += run.length;
            return;
        };
        let length = run.length.next_multiple_of(BLOCK_SIZE);
        self.block_bytes += length;
        spans.push(Span { blob, start: address.0, end: address.0.saturating_add(length) });
    }

    fn add_blob<I: AsRef<[u8]>>(
        &mut self,
        index: &Index<I>,
        number: BlobIndex,
        spans: &[Span],
    ) -> Result<(), IndexError> {
        let blob = index.blob(number)?;
        let first = spans.partition_point(|span| span.blob < number);
        let last = spans.partition_point(|span| span.blob <= number);
        let mut spans = spans[first..last].iter().peekable();
        let referenced: u64 = spans.clone().map(|span| span.end.min(blob.device_size).saturating_sub(span.start)).sum();
        for chunk in blob.chunks() {
            let chunk = index.chunk(ChunkIndex(chunk))?;
            let space = chunk.device_range();
            while spans.next_if(|span| span.end <= space.start).is_some() {}
            if spans.peek().is_none_or(|span| span.start >= space.end) {
                self.hidden_compressed += u64::from(chunk.compressed_size);
            }
            self.raw_chunks += u64::from(chunk.encoding == Encoding::Raw);
        }
        self.chunks += u64::from(blob.chunk_count);
        self.compressed_bytes += blob.compressed_size;
        self.device_bytes += blob.device_size;
        self.referenced_bytes += referenced;
        self.blobs.push(BlobContents {
            digest: blob.digest,
            compressed_size: blob.compressed_size,
            device_size: blob.device_size,
            chunks: blob.chunk_count,
            hidden_bytes: blob.device_size.saturating_sub(referenced),
        });
        Ok(())
    }
}

/// One entry of the tree.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// The path asked for, unprintable bytes escaped.
    pub path: String,
    /// Inode number.
    pub inode: u64,
    /// In the words of [`type_name`].
    #[serde(rename = "type")]
    pub file_type: &'static str,
    /// Permissions in octal, as `0755`.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
    /// Nanoseconds to add.
    pub mtime_nanoseconds: u32,
    /// Number of links.
    pub links: u32,
    /// Bytes.
    pub size: u64,
    /// Major and minor number of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<(u32, u32)>,
    /// Where a symlink leads, unprintable bytes escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Names of the extended attributes and sizes of their values in bytes.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, usize>,
    /// Where a regular file's content lies, in its order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<Piece>,
    /// What a directory holds, without `.` and `..`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub children: Option<Vec<Child>>,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Child {
    /// The name, unprintable bytes escaped.
    pub name: String,
    /// In the words of [`type_name`].
    #[serde(rename = "type")]
    pub file_type: &'static str,
    /// Permissions in octal.
    pub mode: String,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
}

/// Part of a file that lies in one chunk, or is a hole. All sizes and offsets are bytes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Piece {
    /// Where in the file it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// `None` for a hole.
    #[serde(flatten)]
    pub place: Option<Place>,
}

/// Where a piece of a file lies.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// Digest of the blob.
    pub blob: Digest,
    /// Its device number, from 0.
    pub device: u16,
    /// The piece's address in the blob's device space.
    pub address: u64,
    /// Number of the chunk, counted over all blobs.
    pub chunk: u32,
    /// Where the chunk begins in the device space.
    pub chunk_address: u64,
    /// Its uncompressed size.
    pub chunk_size: u32,
    /// Where its stored bytes begin in the blob.
    pub compressed_offset: u64,
    /// How many they are.
    pub compressed_size: u32,
    /// `zstd` or `raw`.
    pub encoding: &'static str,
    /// BLAKE3 of its uncompressed bytes.
    pub digest: String,
}

/// Describes what a path names; a symlink at its end is described itself.
///
/// # Errors
/// [`InspectError::Path`] when the path leads nowhere, otherwise the first damage found.
pub fn entry<B: AsRef<[u8]>, I: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    index: &Index<I>,
    path: &[u8],
) -> Result<Entry, InspectError> {
    let inode = resolve(bootstrap, path)?;
    let xattrs = bootstrap.xattrs(&inode)?.map(|xattr| xattr.map(|(name, value)| (shown(&name), value.len())));
    let xattrs = xattrs.collect::<Result<_, _>>()?;
    let device = matches!(inode.file_type, FileType::CharDevice | FileType::BlockDevice).then_some(inode.rdev);
    let mut entry = Entry {
        path: shown(path),
        inode: inode.nid.0,
        file_type: type_name(inode.file_type),
        mode: mode(&inode),
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime.seconds,
        mtime_nanoseconds: inode.mtime.nanoseconds,
        links: inode.nlink,
        size: inode.size,
        device,
        target: None,
        xattrs,
        pieces: Vec::new(),
        children: None,
    };
    match inode.file_type {
        FileType::Symlink => entry.target = Some(shown(bootstrap.read_link(&inode)?)),
        FileType::Regular => entry.pieces = pieces(bootstrap, index, &inode)?,
        FileType::Directory => entry.children = Some(children(bootstrap, &inode)?),
        _ => {}
    }
    Ok(entry)
}

fn children<B: AsRef<[u8]>>(bootstrap: &Bootstrap<B>, directory: &Inode) -> Result<Vec<Child>, BootstrapError> {
    let mut children = Vec::new();
    for entry in bootstrap.read_dir(directory, 0)? {
        let entry = entry?;
        if entry.name == b"." || entry.name == b".." {
            continue;
        }
        let inode = bootstrap.inode(entry.nid)?;
        children.push(Child {
            name: shown(entry.name),
            file_type: type_name(inode.file_type),
            mode: mode(&inode),
            uid: inode.uid,
            gid: inode.gid,
            size: inode.size,
        });
    }
    Ok(children)
}

fn pieces<B: AsRef<[u8]>, I: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    index: &Index<I>,
    inode: &Inode,
) -> Result<Vec<Piece>, InspectError> {
    let mut whole = Vec::new();
    runs(bootstrap, inode, |run| whole.push(run))?;
    let mut pieces = Vec::new();
    for run in whole {
        let Some((blob, address)) = run.location else {
            pieces.push(Piece { offset: run.offset, length: run.length, place: None });
            continue;
        };
        let digest = index.blob(blob)?.digest;
        let end = address.0.saturating_add(run.length);
        for number in index.chunks_in(blob, address.0..end)? {
            let chunk = index.chunk(ChunkIndex(number))?;
            let space = chunk.device_range();
            let (first, last) = (space.start.max(address.0), space.end.min(end));
            let place = place(digest, blob, first, number, &chunk);
            let offset = run.offset + (first - address.0);
            pieces.push(Piece { offset, length: last.saturating_sub(first), place: Some(place) });
        }
    }
    Ok(pieces)
}

fn place(blob_digest: Digest, blob: BlobIndex, address: u64, number: u32, chunk: &ChunkRecord) -> Place {
    Place {
        blob: blob_digest,
        device: blob.0,
        address,
        chunk: number,
        chunk_address: chunk.device_offset.0,
        chunk_size: chunk.device_size,
        compressed_offset: chunk.compressed_offset,
        compressed_size: chunk.compressed_size,
        encoding: match chunk.encoding {
            Encoding::Zstd => "zstd",
            Encoding::Raw => "raw",
        },
        digest: chunk.digest.to_string(),
    }
}

fn mode(inode: &Inode) -> String {
    format!("{:04o}", inode.permissions)
}

/// A name for people: valid UTF-8 without control characters as it is, any other byte as `\xNN`.
pub fn shown(name: &[u8]) -> String {
    let mut text = String::new();
    for part in name.utf8_chunks() {
        for character in part.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                character if character.is_control() => text.extend(character.escape_default()),
                character => text.push(character),
            }
        }
        part.invalid().iter().for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_unambiguously() {
        assert_eq!(shown("größe".as_bytes()), "größe");
        assert_eq!(shown(b"a\\b\n\xff\x01"), r"a\\b\n\xff\u{1}");
    }

    #[test]
    fn spans_are_joined_within_a_blob() {
        let span = |blob, start, end| Span { blob: BlobIndex(blob), start, end };
        let joined =
            merged(vec![span(1, 0, 4), span(0, 8, 12), span(0, 0, 4), span(0, 4, 8), span(0, 2, 3), span(0, 16, 20)]);
        assert_eq!(joined, [span(0, 0, 12), span(0, 16, 20), span(1, 0, 4)]);
    }
}
