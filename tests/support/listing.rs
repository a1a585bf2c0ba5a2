//! Everything that a tree shows, entry by entry, and how two of them differ.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::OsString,
    fs::File,
    io::Read as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
};

use rustix::fs::FileType;

/// One entry. Sizes of directories are the file system's own affair and left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: &'static str,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) target: Vec<u8>,
    pub(crate) device: (u32, u32),
    pub(crate) nlink: u64,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of all paths that are the same inode.
    pub(crate) first_path: Vec<u8>,
    /// BLAKE3 of the contents.
    pub(crate) contents: [u8; 32],
}

/// Entries by path, relative to the root, which is `.`.
#[derive(Default)]
pub(crate) struct Listing(pub(crate) BTreeMap<Vec<u8>, Entry>);

/// At most so many differences are printed.
const SHOWN: usize = 40;

impl Listing {
    /// All of a mounted or unpacked tree, contents included.
    pub(crate) fn of_directory(root: &Path) -> Self {
        let mut listing = Self::default();
        let mut inodes = BTreeMap::new();
        listing.visit(root, b".", &mut inodes);
        listing
    }

    fn visit(&mut self, root: &Path, path: &[u8], inodes: &mut BTreeMap<u64, Vec<u8>>) {
        let full = root.join(std::ffi::OsStr::from_bytes(path));
        let stat = rustix::fs::lstat(&full).unwrap_or_else(|error| panic!("lstat {}: {error}", full.display()));
        let kind = FileType::from_raw_mode(stat.st_mode);
        let known = inodes.get(&stat.st_ino).cloned();
        let directory = kind == FileType::Directory;
        let entry = Entry {
            kind: name_of(kind),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: if directory { 0 } else { u64::try_from(stat.st_size).expect("a size") },
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).expect("nanoseconds")),
            target: if kind == FileType::Symlink { link_target(&full) } else { Vec::new() },
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
            nlink: stat.st_nlink,
            xattrs: xattrs_of(&full),
            contents: match (&known, kind) {
                (Some(first), _) => self.0[first].contents,
                (None, FileType::RegularFile) => contents_of(&full),
                _ => [0; 32],
            },
            first_path: known.unwrap_or_else(|| path.to_vec()),
        };
        inodes.entry(stat.st_ino).or_insert_with(|| path.to_vec());
        self.0.insert(path.to_vec(), entry);
        if directory {
            for name in names_in(&full) {
                self.visit(root, &join(path, &name), inodes);
            }
        }
    }

    /// What differs, one line each; nothing when equal. `exceptions`: path and field.
    pub(crate) fn differences(&self, other: &Self, exceptions: &[(Vec<u8>, String)]) -> Vec<String> {
        let mut lines = Vec::new();
        for (path, entry) in &self.0 {
            match other.0.get(path) {
                None => lines.push(format!("missing: {}", path.escape_ascii())),
                Some(found) => {
                    let excepted = |field: &str| exceptions.iter().any(|(at, which)| at == path && which == field);
                    lines.extend(
                        entry.differences(found, excepted).map(|line| format!("{}: {line}", path.escape_ascii())),
                    );
                }
            }
        }
        let extra = other.0.keys().filter(|path| !self.0.contains_key(*path));
        lines.extend(extra.map(|path| format!("extra: {}", path.escape_ascii())));
        lines
    }

    /// Fails the test with what differs, in words.
    pub(crate) fn assert_same(&self, what: &str, other: &Self, exceptions: &[(Vec<u8>, String)]) {
        let lines = self.differences(other, exceptions);
        let shown: String = lines.iter().take(SHOWN).map(|line| format!("\n  {line}")).collect();
        assert!(lines.is_empty(), "{what}: {} differences in {} entries:{shown}", lines.len(), self.0.len());
    }
}

impl Entry {
    fn differences(&self, other: &Self, excepted: impl Fn(&str) -> bool) -> impl Iterator<Item = String> {
        let show = |bytes: &[u8]| format!("{:.80}", bytes.escape_ascii().to_string());
        let xattrs = |entry: &Self| {
            let pairs = entry.xattrs.iter().map(|(name, value)| format!("{}={}", show(name), show(value)));
            pairs.collect::<Vec<_>>().join(" ")
        };
        let fields = [
            ("kind", self.kind.to_owned(), other.kind.to_owned()),
            ("mode", format!("{:o}", self.mode), format!("{:o}", other.mode)),
            ("uid", self.uid.to_string(), other.uid.to_string()),
            ("gid", self.gid.to_string(), other.gid.to_string()),
            ("size", self.size.to_string(), other.size.to_string()),
            ("mtime", format!("{:?}", self.mtime), format!("{:?}", other.mtime)),
            ("target", self.target.escape_ascii().to_string(), other.target.escape_ascii().to_string()),
            ("device", format!("{:?}", self.device), format!("{:?}", other.device)),
            ("nlink", self.nlink.to_string(), other.nlink.to_string()),
            ("same inode as", self.first_path.escape_ascii().to_string(), other.first_path.escape_ascii().to_string()),
            ("contents", hex(&self.contents), hex(&other.contents)),
        ];
        let mut lines: Vec<String> = fields
            .into_iter()
            .filter(|(field, expected, found)| expected != found && !excepted(field))
            .map(|(field, expected, found)| format!("{field}: expected {expected:.200}, found {found:.200}"))
            .collect();
        if self.xattrs != other.xattrs && !excepted("xattrs") {
            lines.push(format!("xattrs: expected [{}], found [{}]", xattrs(self), xattrs(other)));
        }
        lines.into_iter()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory == b"." { name.to_vec() } else { [directory, b"/", name].concat() }
}

fn name_of(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::Unknown => "unknown",
    }
}

fn names_in(directory: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(directory).unwrap_or_else(|error| panic!("read {}: {error}", directory.display()));
    let mut names: Vec<Vec<u8>> =
        entries.map(|entry| entry.expect("a directory entry").file_name().into_vec()).collect();
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "a name twice in {}", directory.display());
    names
}

fn link_target(path: &Path) -> Vec<u8> {
    let target: OsString = std::fs::read_link(path).expect("a link target").into_os_string();
    target.into_vec()
}

fn xattrs_of(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    /// Linux's limits: XATTR_LIST_MAX and XATTR_SIZE_MAX.
    const LIMIT: usize = 65536;
    // Without zeroing for each of 100,000 entries.
    thread_local!(static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; LIMIT]));
    let listed = BUFFER.with_borrow_mut(|buffer| {
        rustix::fs::llistxattr(path, &mut buffer[..]).map(|length| buffer[..length].to_vec())
    });
    let listed = match listed {
        Ok(listed) => listed,
        Err(rustix::io::Errno::NOTSUP) => return BTreeMap::new(),
        Err(error) => panic!("llistxattr {}: {error}", path.display()),
    };
    let names = listed.split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let value_of = |name: &[u8]| {
        let mut value = vec![0; LIMIT];
        let length = rustix::fs::lgetxattr(path, name, &mut value)
            .unwrap_or_else(|error| panic!("lgetxattr {} {}: {error}", path.display(), name.escape_ascii()));
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value_of(name))).collect()
}

fn contents_of(path: &Path) -> [u8; 32] {
    /// Largest piece read at once.
    const PIECE: usize = 1 << 20;
    let mut file = File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let mut hasher = blake3::Hasher::new();
    let size = file.metadata().map_or(0, |metadata| usize::try_from(metadata.len()).unwrap_or(PIECE));
    let mut buffer = vec![0; (size + 1).min(PIECE)];
    loop {
        let length = file.read(&mut buffer).unwrap_or_else(|error| panic!("read {}: {error}", path.display()));
        if length == 0 {
            return *hasher.finalize().as_bytes();
        }
        hasher.update(&buffer[..length]);
    }
}
