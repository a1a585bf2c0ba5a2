//! Tar archives of images, read in place: one pass over the headers, then every entry at its offset.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read},
    os::unix::fs::FileExt,
    path::Path,
};

use lazo_base::{
    compression::{Compression, Decoder, ZstdWindow},
    tar::{self, Input, Member, kind},
};

use crate::{
    error::{Error, Result},
    section::Section,
};

/// Most entries: an image archive has a few per layer, and the largest images some thousand layers in all platforms.
const MAX_ENTRIES: usize = 65_536;
/// Most links followed to reach an entry. `docker save` writes one.
const MAX_LINKS: usize = 8;
/// An archive, or a sparse file in one, may take so many times its stored size on the disk, and [`ALWAYS_UNPACKED`] in any case.
/// Trees compress to a quarter or a tenth, and layers that are compressed already not at all, while a gzip of nothing but zeros
/// unpacks to a thousand times its size.
const MAX_RATIO: u64 = 64;
/// Bytes that may be unpacked whatever the ratio.
const ALWAYS_UNPACKED: u64 = 1 << 30;
/// Read buffer in front of the decompressor.
const COMPRESSED_BUFFER: usize = 128 * 1024;
/// Bytes of a sparse file copied at a time.
const COPY_PIECE: u64 = 256 * 1024;

/// Members that are nobody's layers, and that containerd takes from regular files alone.
const DOCUMENTS: [&str; 3] = ["manifest.json", "index.json", "oci-layout"];

/// Where every entry of a tar lies.
pub(crate) struct Archive {
    file: Section,
    path: String,
    entries: HashMap<String, Entry>,
}

enum Entry {
    File { offset: u64, size: u64 },
    Sparse(Sparse),
    Link(String),
}

/// A file whose zeros are left out: its pieces lie back to back from `offset` on.
struct Sparse {
    offset: u64,
    stored: u64,
    size: u64,
    pieces: Vec<(u64, u64)>,
}

/// A section, read by the framing from its beginning on; what it skips is not read.
struct Headers {
    file: Section,
    position: u64,
}

impl Input for Headers {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = usize::try_from(self.file.len() - self.position).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_exact_at(&mut buffer[..length], self.position)?;
        self.position += length as u64;
        Ok(length)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let skipped = count.min(self.file.len() - self.position);
        self.position += skipped;
        Ok(skipped)
    }
}

impl Archive {
    /// Reads the headers of a tar; a compressed one is unpacked to an unnamed temporary file. Blocking.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let fail = |e| Error::io(format_args!("cannot open archive {shown}"), e);
        let stored = Section::open(path).map_err(fail)?;
        let file = match stored.compression().map_err(fail)? {
            Compression::None => stored,
            packed => unpack(path, &shown, packed, unpacked_limit(stored.len()))?,
        };
        let mut archive = Self { file, path: shown, entries: HashMap::new() };
        archive.scan()?;
        Ok(archive)
    }

    fn scan(&mut self) -> Result<()> {
        let mut reader = tar::Reader::new(Headers { file: self.file.clone(), position: 0 });
        while let Some(member) = reader.next_member().map_err(|error| self.broken(&error))? {
            self.insert(member, reader.position(), reader.data_left())?;
        }
        Ok(())
    }

    fn insert(&mut self, member: Member, offset: u64, stored: u64) -> Result<()> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = cleaned(&text(&member.name));
        let entry = match (member.kind, member.pieces) {
            (kind::FILE, None) => Entry::File { offset, size: stored },
            (kind::FILE, Some(pieces)) => Entry::Sparse(Sparse { offset, stored, size: member.size, pieces }),
            (kind::HARD_LINK, _) => Entry::Link(resolve("", &text(&member.link))),
            (kind::SYMLINK, _) => Entry::Link(resolve(parent(&name), &text(&member.link))),
            _ => return Ok(()),
        };
        let is_link = matches!(entry, Entry::Link(_));
        if is_link && DOCUMENTS.contains(&name.as_str()) {
            return Ok(());
        }
        if self.entries.get(&name).is_some_and(|before| matches!(before, Entry::Link(_)) != is_link) {
            let reason = format_args!("{name} is both a file and a link, which readers take differently");
            return Err(Error::invalid(format_args!("archive {} at byte {offset}", self.path), reason));
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(Error::invalid(
                format_args!("archive {}", self.path),
                format_args!("it has more than {MAX_ENTRIES} entries; is it an image?"),
            ));
        }
        self.entries.insert(name, entry);
        Ok(())
    }

    /// The entry of that name, through links; `None` when there is none.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Section>> {
        let mut name = resolve("", name);
        for _ in 0..MAX_LINKS {
            match self.entries.get(&name) {
                None => return Ok(None),
                Some(Entry::File { offset, size }) => return Ok(self.file.slice(*offset..offset + size)),
                Some(Entry::Sparse(sparse)) => return self.expand(&name, sparse).map(Some),
                Some(Entry::Link(target)) => name.clone_from(target),
            }
        }
        Err(Error::invalid(format_args!("archive {}", self.path), format_args!("too many links to {name:?}")))
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// A sparse file with its holes, in an unnamed temporary file that has holes too.
    fn expand(&self, name: &str, sparse: &Sparse) -> Result<Section> {
        let what = || format!("{name} in archive {}", self.path);
        let limit = unpacked_limit(sparse.stored);
        if sparse.size > limit {
            return Err(Error::TooLarge { what: format!("sparse file {}", what()), limit });
        }
        let copy = || {
            let file = tempfile::tempfile()?;
            file.set_len(sparse.size)?;
            let mut from = sparse.offset;
            for (offset, length) in &sparse.pieces {
                copy_piece(&self.file, from, &file, *offset, *length)?;
                from += length;
            }
            Section::of(file)
        };
        copy().map_err(|e| Error::io(format_args!("cannot unpack {}", what()), e))
    }

    fn broken(&self, error: &tar::Error) -> Error {
        let tar::Error { position, member, fault } = error;
        let member = member.as_ref().map(|name| format!(" in entry \"{}\"", name.escape_ascii())).unwrap_or_default();
        let reason = match fault {
            tar::Fault::Read(error) => format!("{fault}: {error}"),
            _ => fault.to_string(),
        };
        Error::invalid(format_args!("archive {}{member} at byte {position}", self.path), reason)
    }
}

fn copy_piece(from: &Section, position: u64, to: &File, offset: u64, length: u64) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let piece = from.slice(position + done..position + length.min(done + COPY_PIECE));
        let bytes = piece.ok_or(io::ErrorKind::UnexpectedEof)?.read_all()?;
        to.write_all_at(&bytes, offset + done)?;
        done += bytes.len() as u64;
    }
    Ok(())
}

/// Bytes that something of this stored size may take unpacked.
fn unpacked_limit(stored: u64) -> u64 {
    stored.saturating_mul(MAX_RATIO).max(ALWAYS_UNPACKED)
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A member's name as containerd has it: Go's `path.Clean`. So a name that is absolute or climbs is not that of any other member.
fn cleaned(name: &str) -> String {
    let absolute = name.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => drop(parts.pop()),
            ".." if absolute => {}
            part => parts.push(part),
        }
    }
    format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"))
}

/// `path` seen from the directory `base`, without `.`, `..` and leading slashes; nothing climbs above the root.
fn resolve(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = if path.starts_with('/') { Vec::new() } else { base.split('/').collect() };
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.retain(|p| !p.is_empty());
    parts.join("/")
}

fn unpack(path: &Path, shown: &str, compression: Compression, limit: u64) -> Result<Section> {
    let fail = |e| Error::io(format_args!("cannot unpack archive {shown}, which is {compression}"), e);
    let input = BufReader::with_capacity(COMPRESSED_BUFFER, File::open(path).map_err(fail)?);
    let input = Decoder::new(input, compression, ZstdWindow::DEFAULT).map_err(fail)?;
    let mut file = tempfile::tempfile().map_err(fail)?;
    let unpacked = io::copy(&mut input.take(limit + 1), &mut file).map_err(fail)?;
    if unpacked > limit {
        return Err(Error::TooLarge { what: format!("what archive {shown} unpacks to"), limit });
    }
    Section::of(file).map_err(fail)
}

#[cfg(test)]
mod tests {
    use ::tar::{self, EntryType, Header};

    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<&mut Vec<u8>>)) -> (tempfile::NamedTempFile, Vec<u8>) {
        let mut bytes = Vec::new();
        build(&mut tar::Builder::new(&mut bytes));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, bytes).unwrap();
        gz.finish().unwrap()
    }

    fn add(builder: &mut tar::Builder<&mut Vec<u8>>, name: &str, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_size(data.len() as u64);
        builder.append_data(&mut header, name, data).unwrap();
    }

    fn link(builder: &mut tar::Builder<&mut Vec<u8>>, kind: EntryType, name: &str, target: &str) {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, name, target).unwrap();
    }

    fn content(archive: &Archive, name: &str) -> Option<Vec<u8>> {
        archive.find(name).unwrap().map(|s| s.read_all().unwrap())
    }

    #[test]
    fn finds_entries_by_any_spelling() {
        let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
        let (file, _) = archive(|b| {
            add(b, "./a/layer.tar", b"one");
            add(b, &long, b"long");
            b.append_pax_extensions([("path", b"from/pax".as_slice()), ("size", b"3")]).unwrap();
            add(b, "short", b"pax");
            link(b, EntryType::Symlink, "b/layer.tar", "../a/layer.tar");
            link(b, EntryType::Link, "hard", "a/layer.tar");
            link(b, EntryType::Symlink, "loop", "loop");
            link(b, EntryType::Symlink, "out", "../../etc/passwd");
            add(b, "twice", b"first");
            add(b, "twice", b"second");
        });
        let archive = Archive::open(file.path()).unwrap();
        for (name, expected) in [
            ("a/layer.tar", "one"),
            ("/a//layer.tar", "one"),
            (&long, "long"),
            ("from/pax", "pax"),
            ("b/layer.tar", "one"),
            ("hard", "one"),
            ("twice", "second"),
        ] {
            assert_eq!(content(&archive, name).as_deref(), Some(expected.as_bytes()), "{name}");
        }
        assert!(archive.find("missing").unwrap().is_none());
        assert!(archive.find("out").unwrap().is_none());
        assert!(archive.find("loop").is_err());
    }

    /// A member by a name that `append_data` would refuse.
    fn named(builder: &mut tar::Builder<&mut Vec<u8>>, kind: EntryType, name: &str, link: &str, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
    }

    #[test]
    fn nothing_else_passes_for_a_document() {
        let evil: [(EntryType, &str, &str); 4] = [
            (EntryType::Regular, "../manifest.json", ""),
            (EntryType::Regular, "/manifest.json", ""),
            (EntryType::Symlink, "manifest.json", "evil"),
            (EntryType::Link, "./manifest.json", "evil"),
        ];
        for (kind, name, link) in evil {
            let (file, _) = archive(|b| {
                add(b, "evil", b"evil");
                add(b, "manifest.json", b"good");
                named(b, kind, name, link, if link.is_empty() { b"evil" } else { b"" });
            });
            let archive = Archive::open(file.path()).unwrap();
            assert_eq!(content(&archive, "manifest.json").as_deref(), Some(b"good".as_slice()), "{name} {kind:?}");
        }
        // Of other members that are both, each reader takes another.
        for link_first in [true, false] {
            let (file, _) = archive(|b| {
                add(b, "evil", b"evil");
                if link_first {
                    link(b, EntryType::Symlink, "layer.tar", "evil");
                }
                add(b, "layer.tar", b"good");
                if !link_first {
                    link(b, EntryType::Symlink, "layer.tar", "evil");
                }
            });
            let error = Archive::open(file.path()).err().expect("refused").to_string();
            assert!(error.contains("layer.tar is both a file and a link"), "{error}");
        }
    }

    #[test]
    fn reads_compressed_archives() {
        let (file, bytes) = archive(|b| add(b, "x", b"data"));
        for packed in [gzip(&bytes), zstd::encode_all(&bytes[..], 1).unwrap()] {
            std::fs::write(file.path(), packed).unwrap();
            let archive = Archive::open(file.path()).unwrap();
            assert_eq!(content(&archive, "x").as_deref(), Some(b"data".as_slice()));
        }
    }

    #[test]
    fn unpacking_is_bounded() {
        let (file, _) = archive(|_| {});
        let packed = gzip(&vec![0; 1 << 20]);
        std::fs::write(file.path(), &packed).unwrap();
        assert_eq!(unpack(file.path(), "it", Compression::Gzip, 1 << 20).unwrap().len(), 1 << 20);
        let error = unpack(file.path(), "it", Compression::Gzip, (1 << 20) - 1).unwrap_err();
        assert!(matches!(error, Error::TooLarge { limit: 1_048_575, .. }), "{error}");
        assert_eq!(unpacked_limit(10), 1 << 30);
        assert_eq!(unpacked_limit(1 << 30), 64 << 30);
        assert_eq!(unpacked_limit(u64::MAX), u64::MAX);
    }

    #[test]
    fn sparse_files_are_read_with_their_holes() {
        let sparse = |size: &str| {
            archive(|b| {
                let records: [(&str, &[u8]); 3] = [
                    ("GNU.sparse.size", size.as_bytes()),
                    ("GNU.sparse.numblocks", b"2"),
                    ("GNU.sparse.map", b"0,4,600000,2"),
                ];
                b.append_pax_extensions(records).unwrap();
                add(b, "x", b"headzz");
                add(b, "y", b"next");
            })
        };
        let (file, _) = sparse("1000000");
        let archive = Archive::open(file.path()).unwrap();
        let mut expected = vec![0; 1_000_000];
        expected[..4].copy_from_slice(b"head");
        expected[600_000..600_002].copy_from_slice(b"zz");
        assert_eq!(content(&archive, "x").unwrap(), expected);
        assert_eq!(content(&archive, "y").unwrap(), b"next");
        let (file, _) = sparse("4000000000000");
        let error = Archive::open(file.path()).unwrap().find("x").unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }

    #[test]
    fn shows_what_containerd_sees() {
        // A file with a slash in its name whose data reads as a header, and data behind a block of zeros.
        let (file, mut bytes) = archive(|b| {
            let mut hidden = Vec::new();
            add(&mut tar::Builder::new(&mut hidden), "hidden", b"");
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Regular);
            header.set_size(hidden.len() as u64);
            header.as_mut_bytes()[..2].copy_from_slice(b"x/");
            header.set_cksum();
            b.append(&header, &hidden[..]).unwrap();
            add(b, "last", b"");
        });
        let archive = Archive::open(file.path()).unwrap();
        assert!(archive.find("hidden").unwrap().is_none());
        assert!(archive.find("last").unwrap().is_some());
        let second_zeros = bytes.len() - 512;
        bytes[second_zeros] = 1;
        std::fs::write(file.path(), &bytes).unwrap();
        let error = Archive::open(file.path()).err().expect("refused").to_string();
        assert!(error.contains("one block of zeros"), "{error}");
    }

    #[test]
    fn refuses_damage() {
        let (file, bytes) = archive(|b| add(b, "x", &[7; 2000]));
        let refused = |bytes: &[u8], reason: &str| {
            std::fs::write(file.path(), bytes).unwrap();
            let error = Archive::open(file.path()).err().expect("refused").to_string();
            assert!(error.contains(reason), "{error}");
        };
        refused(&bytes[..1500], "truncated");
        refused(&bytes[..100], "at byte 0");
        let mut flipped = bytes.clone();
        flipped[3] ^= 1;
        refused(&flipped, "checksum");
        refused(b"#!/bin/sh\n", "at byte 0");
        let tar_limit = lazo_base::tar::MAX_EXTENSION;
        let huge = archive(|b| {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::GNULongName);
            header.set_size(tar_limit + 1);
            b.append_data(&mut header, "x", vec![b'a'; (1 << 20) + 1].as_slice()).unwrap();
        });
        refused(&huge.1, "more than 1048576 bytes in an extended header");
        let liar = archive(|b| b.append_pax_extensions([("size", b"18446744073709551615".as_slice())]).unwrap());
        refused(&[&liar.1[..1024], &bytes].concat(), "should be a number");
    }
}
