//! Tar archives of images, read in place: one pass over the headers, then every entry at its offset.

use std::{collections::HashMap, fs::File, io::Read, path::Path};

use tar::{EntryType, Header, PaxExtensions};

use crate::{
    error::{Error, Result},
    section::Section,
};

const BLOCK: u64 = 512;
/// Most entries: an image archive has a few per layer, and the largest images some thousand layers in all platforms.
const MAX_ENTRIES: usize = 65_536;
/// Largest extended header (long name or pax records), bytes; paths end at 4096.
const MAX_EXTENSION: u64 = 64 * 1024;
/// Most links followed to reach an entry. `docker save` writes one.
const MAX_LINKS: usize = 8;

/// Where every entry of a tar lies.
pub(crate) struct Archive {
    file: Section,
    path: String,
    entries: HashMap<String, Entry>,
}

enum Entry {
    File { offset: u64, size: u64 },
    Link(String),
}

/// What extended headers say of the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Archive {
    /// Reads the headers of an uncompressed tar; a gzipped one is unpacked to an unnamed temporary file. Blocking.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let shown = path.display().to_string();
        let fail = |e| Error::io(format_args!("cannot open archive {shown}"), e);
        let mut file = Section::open(path).map_err(fail)?;
        let mut magic = [0; 4];
        let known = file.len() >= 4 && file.read_exact_at(&mut magic, 0).is_ok();
        if known && magic[..2] == [0x1f, 0x8b] {
            file = unpack(path).map_err(|e| Error::io(format_args!("cannot decompress archive {shown}"), e))?;
        } else if known && magic == [0x28, 0xb5, 0x2f, 0xfd] {
            return Err(Error::invalid(format_args!("archive {shown}"), "it is compressed with zstd; unpack it first"));
        }
        let mut archive = Self { file, path: shown, entries: HashMap::new() };
        archive.scan()?;
        Ok(archive)
    }

    fn scan(&mut self) -> Result<()> {
        let mut position = 0;
        let mut extension = Extension::default();
        while let Some(header) = self.header(position)? {
            let entry_type = header.entry_type();
            let extends = matches!(
                entry_type,
                EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink
            );
            let own_size = header.entry_size().map_err(|e| self.broken(position, e))?;
            let size = if extends { own_size } else { extension.size.unwrap_or(own_size) };
            let start = position + BLOCK;
            let end = start.checked_add(size).filter(|end| *end <= self.file.len());
            let end = end.ok_or_else(|| self.broken(position, "the archive ends within an entry"))?;
            if extends {
                self.extend(&mut extension, entry_type, start, size)?;
            } else {
                self.insert(&header, std::mem::take(&mut extension), start, size)?;
            }
            position = end.next_multiple_of(BLOCK);
        }
        Ok(())
    }

    /// The header at `position`; `None` at the end: a block of zeros, or nothing more.
    fn header(&self, position: u64) -> Result<Option<Header>> {
        if position >= self.file.len() {
            return Ok(None);
        }
        let mut header = Header::new_old();
        self.file.read_exact_at(header.as_mut_bytes(), position).map_err(|e| self.broken(position, e))?;
        let bytes = header.as_bytes();
        if bytes.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        // The checksum counts its own field, bytes 148 to 155, as spaces.
        let sum = |bytes: &[u8]| bytes.iter().map(|b| u32::from(*b)).sum::<u32>();
        let expected = sum(&bytes[..148]) + 8 * u32::from(b' ') + sum(&bytes[156..]);
        if header.cksum().ok() != Some(expected) {
            return Err(self.broken(position, "bad header checksum; is this a tar?"));
        }
        Ok(Some(header))
    }

    fn extend(&self, extension: &mut Extension, entry_type: EntryType, start: u64, size: u64) -> Result<()> {
        if entry_type == EntryType::XGlobalHeader {
            return Ok(());
        }
        if size > MAX_EXTENSION {
            return Err(Error::TooLarge {
                what: format!("extended header in archive {}", self.path),
                limit: MAX_EXTENSION,
            });
        }
        let data = self.file.slice(start..start + size).map_or_else(|| Ok(Vec::new()), |s| s.read_all());
        let data = data.map_err(|e| self.broken(start, e))?;
        let text = || data.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        match entry_type {
            EntryType::GNULongName => extension.path = Some(text()),
            EntryType::GNULongLink => extension.link = Some(text()),
            _ => {
                for record in PaxExtensions::new(&data) {
                    let record = record.map_err(|e| self.broken(start, e))?;
                    let value = record.value_bytes();
                    match record.key_bytes() {
                        b"path" => extension.path = Some(value.to_vec()),
                        b"linkpath" => extension.link = Some(value.to_vec()),
                        b"size" => {
                            let size = record.value().ok().and_then(|v| v.parse().ok());
                            extension.size = Some(size.ok_or_else(|| self.broken(start, "bad size record"))?);
                        }
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, header: &Header, extension: Extension, offset: u64, size: u64) -> Result<()> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = text(&extension.path.unwrap_or_else(|| header.path_bytes().into_owned()));
        let link = || text(&extension.link.clone().or(header.link_name_bytes().map(Into::into)).unwrap_or_default());
        let entry = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => Entry::File { offset, size },
            EntryType::Link => Entry::Link(resolve("", &link())),
            EntryType::Symlink => Entry::Link(resolve(parent(&resolve("", &name)), &link())),
            _ => return Ok(()),
        };
        if self.entries.len() >= MAX_ENTRIES {
            return Err(Error::invalid(
                format_args!("archive {}", self.path),
                format_args!("it has more than {MAX_ENTRIES} entries; is it an image?"),
            ));
        }
        self.entries.insert(resolve("", &name), entry);
        Ok(())
    }

    /// The entry of that name, through links; `None` when there is none.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Section>> {
        let mut name = resolve("", name);
        for _ in 0..MAX_LINKS {
            match self.entries.get(&name) {
                None => return Ok(None),
                Some(Entry::File { offset, size }) => return Ok(self.file.slice(*offset..offset + size)),
                Some(Entry::Link(target)) => name.clone_from(target),
            }
        }
        Err(Error::invalid(format_args!("archive {}", self.path), format_args!("too many links to {name:?}")))
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    fn broken(&self, position: u64, reason: impl std::fmt::Display) -> Error {
        Error::invalid(format_args!("archive {} at byte {position}", self.path), reason)
    }
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(parent, _)| parent)
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

fn unpack(path: &Path) -> std::io::Result<Section> {
    let mut input = flate2::read::MultiGzDecoder::new(File::open(path)?);
    let temporary = tempfile::NamedTempFile::new()?;
    std::io::copy(&mut input.by_ref(), &mut temporary.as_file())?;
    // The open file outlives its name, which goes with `temporary`.
    Section::open(temporary.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(build: impl FnOnce(&mut tar::Builder<&mut Vec<u8>>)) -> (tempfile::NamedTempFile, Vec<u8>) {
        let mut bytes = Vec::new();
        build(&mut tar::Builder::new(&mut bytes));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        (file, bytes)
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

    #[test]
    fn reads_gzipped_archives() {
        let (file, bytes) = archive(|b| add(b, "x", b"data"));
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &bytes).unwrap();
        std::fs::write(file.path(), gz.finish().unwrap()).unwrap();
        let archive = Archive::open(file.path()).unwrap();
        assert_eq!(content(&archive, "x").as_deref(), Some(b"data".as_slice()));
    }

    #[test]
    fn refuses_damage() {
        let (file, bytes) = archive(|b| add(b, "x", &[7; 2000]));
        let refused = |bytes: &[u8], reason: &str| {
            std::fs::write(file.path(), bytes).unwrap();
            let error = Archive::open(file.path()).err().expect("refused").to_string();
            assert!(error.contains(reason), "{error}");
        };
        refused(&bytes[..1500], "ends within an entry");
        refused(&bytes[..100], "at byte 0");
        let mut flipped = bytes.clone();
        flipped[3] ^= 1;
        refused(&flipped, "checksum");
        refused(b"#!/bin/sh\n", "at byte 0");
        let huge = archive(|b| {
            let mut header = Header::new_gnu();
            header.set_entry_type(EntryType::GNULongName);
            header.set_size(MAX_EXTENSION + 1);
            b.append_data(&mut header, "x", vec![b'a'; 65_537].as_slice()).unwrap();
        });
        refused(&huge.1, "larger than the limit");
        let liar = archive(|b| b.append_pax_extensions([("size", b"18446744073709551615".as_slice())]).unwrap());
        refused(&[&liar.1[..1024], &bytes].concat(), "ends within an entry");
    }
}
