//! A tree seen three ways: as it was meant, through our reader, and through the kernel.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use lazo_format::*;

#[path = "../../../tests/support/erofs_mount.rs"]
mod erofs_mount;
use erofs_mount::ErofsMount;

/// Everything about one name that a user can see.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) nlink: u32,
    pub(crate) size: u64,
    pub(crate) rdev: (u32, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Content of a file, target of a symlink.
    pub(crate) content: Vec<u8>,
    /// The first path of the same inode.
    pub(crate) same_as: Vec<u8>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { mode, uid, gid, mtime, nlink, size, rdev, xattrs, content, same_as } = self;
        let (content, same_as) = (ChunkDigest::of(content), same_as.escape_ascii());
        write!(
            f,
            "{mode:o} {uid}:{gid} {mtime:?} nlink {nlink} size {size} rdev {rdev:?} {xattrs:?} {content} = {same_as}"
        )
    }
}

/// By path: `/`, `/a`, `/a/b`.
pub(crate) type Listing = BTreeMap<Vec<u8>, Entry>;

/// Devices' contents, in order.
pub(crate) type Devices = [Vec<u8>];

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent == b"/" { [parent, name].concat() } else { [parent, b"/", name].concat() }
}

/// Files beyond this size have holes to the end of their readable part: only their start is compared.
const COMPARED: u64 = 1 << 22;

/// Device contents that differ in every block.
pub(crate) fn device_contents(blocks: &[u64]) -> Vec<Vec<u8>> {
    let block = |device: usize, number: u64| {
        let mut bytes = vec![0; 4096];
        for (at, chunk) in bytes.chunks_exact_mut(16).enumerate() {
            chunk[..8].copy_from_slice(&(number * 1000 + at as u64 + 1).to_le_bytes());
            chunk[8..].copy_from_slice(&(device as u64 + 1).to_le_bytes());
        }
        bytes
    };
    blocks
        .iter()
        .enumerate()
        .map(|(device, count)| (0..*count).flat_map(|number| block(device, number)).collect())
        .collect()
}

pub(crate) fn devices(contents: &Devices) -> Vec<Device> {
    contents.iter().map(|data| Device { digest: Digest::sha256_of(data), size: data.len() as u64 }).collect()
}

/// What the tree means.
pub(crate) fn meant(tree: &ValidTree, contents: &Devices) -> Listing {
    let mut listing = Listing::new();
    let mut first = BTreeMap::new();
    let mut pending = vec![(b"/".to_vec(), tree.tree().root)];
    // Paths in the order of bytes, so that `same_as` is the least path.
    let mut names = BTreeMap::new();
    while let Some((path, id)) = pending.pop() {
        if let NodeKind::Directory(children) = &tree.tree().nodes[id.0 as usize].kind {
            pending.extend(children.iter().map(|(name, child)| (join(&path, name), *child)));
        }
        names.insert(path, id);
    }
    for (path, id) in names {
        let node = &tree.tree().nodes[id.0 as usize];
        let meta = &node.meta;
        let file_type = match node.kind {
            NodeKind::Directory(_) => FileType::Directory,
            NodeKind::Regular { .. } => FileType::Regular,
            NodeKind::Symlink(_) => FileType::Symlink,
            NodeKind::CharDevice { .. } => FileType::CharDevice,
            NodeKind::BlockDevice { .. } => FileType::BlockDevice,
            NodeKind::Fifo => FileType::Fifo,
            NodeKind::Socket => FileType::Socket,
        };
        let (size, rdev, content) = match &node.kind {
            NodeKind::Regular { size, extents } => (*size, (0, 0), file_content(extents, contents)),
            NodeKind::Symlink(target) => (target.len() as u64, (0, 0), target.to_vec()),
            NodeKind::CharDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
                (0, (*major, *minor), vec![])
            }
            _ => (0, (0, 0), vec![]),
        };
        let mut xattrs: Vec<_> = meta.xattrs.iter().map(|xattr| (xattr.name.to_vec(), xattr.value.to_vec())).collect();
        xattrs.sort();
        let entry = Entry {
            mode: file_type.mode_bits() | meta.permissions,
            uid: meta.uid,
            gid: meta.gid,
            mtime: (meta.mtime.seconds, meta.mtime.nanoseconds),
            nlink: tree.links(id),
            size,
            rdev,
            xattrs,
            content,
            same_as: first.entry(id).or_insert_with(|| path.clone()).clone(),
        };
        listing.insert(path, entry);
    }
    listing
}

fn file_content(extents: &[Extent], contents: &Devices) -> Vec<u8> {
    let mut data = Vec::new();
    for extent in extents {
        let length = usize::try_from(extent.length.min(COMPARED - data.len() as u64)).unwrap();
        match extent.location {
            None => data.resize(data.len() + length, 0),
            Some((blob, at)) => {
                let at = usize::try_from(at.0).unwrap();
                data.extend_from_slice(&contents[usize::from(blob.0)][at..at + length]);
            }
        }
    }
    data
}

/// What our reader sees. Directories' sizes are not compared: they are the format's own.
pub(crate) fn own(image: &[u8], contents: &Devices) -> Listing {
    let bootstrap = Bootstrap::parse(image).unwrap();
    let mut paths = BTreeMap::new();
    let mut pending = vec![(b"/".to_vec(), bootstrap.root())];
    while let Some((path, nid)) = pending.pop() {
        let inode = bootstrap.inode(nid).unwrap();
        if inode.file_type == FileType::Directory {
            let mut cookie = 0;
            // One entry a call: cookies must resume.
            while let Some(entry) = bootstrap.read_dir(&inode, cookie).unwrap().next() {
                let entry = entry.unwrap();
                // A cookie that no entry has means the entry that comes next.
                for between in [1, 11] {
                    let next = bootstrap.read_dir(&inode, cookie + between).unwrap().next().transpose().unwrap();
                    let expected = bootstrap.read_dir(&inode, entry.next_cookie).unwrap().next().transpose().unwrap();
                    assert_eq!(next, expected, "{} behind {cookie}", between);
                }
                cookie = entry.next_cookie;
                assert_eq!(bootstrap.lookup(&inode, entry.name), Ok(Some((entry.nid, entry.file_type))));
                if entry.name != b"." && entry.name != b".." {
                    assert_eq!(bootstrap.inode(entry.nid).unwrap().file_type, entry.file_type);
                    pending.push((join(&path, entry.name), entry.nid));
                }
            }
            for behind in [1, 4095, 1 << 40, u64::MAX] {
                assert!(bootstrap.read_dir(&inode, cookie.saturating_add(behind)).unwrap().next().is_none());
            }
            assert_eq!(bootstrap.lookup(&inode, b"\xff no such name"), Ok(None));
            assert_eq!(bootstrap.lookup(&inode, b""), Ok(None));
        }
        paths.insert(path, nid);
    }
    let mut first = BTreeMap::new();
    paths
        .into_iter()
        .map(|(path, nid)| {
            let same_as = first.entry(nid).or_insert_with(|| path.clone()).clone();
            (path, own_entry(&bootstrap, nid, same_as, contents))
        })
        .collect()
}

fn own_entry(bootstrap: &Bootstrap<&[u8]>, nid: Nid, same_as: Vec<u8>, contents: &Devices) -> Entry {
    let inode = bootstrap.inode(nid).unwrap();
    let mut xattrs: Vec<_> = bootstrap
        .xattrs(&inode)
        .unwrap()
        .map(|xattr| xattr.unwrap())
        .map(|(name, value)| (name, value.to_vec()))
        .collect();
    xattrs.sort();
    for (name, value) in &xattrs {
        assert_eq!(bootstrap.xattr(&inode, name), Ok(Some(value.as_slice())));
    }
    assert_eq!(bootstrap.xattr(&inode, b"user.no such name"), Ok(None));
    let content = match inode.file_type {
        FileType::Regular => own_content(bootstrap, &inode, contents),
        FileType::Symlink => bootstrap.read_link(&inode).unwrap().to_vec(),
        _ => vec![],
    };
    Entry {
        mode: inode.mode(),
        uid: inode.uid,
        gid: inode.gid,
        mtime: (inode.mtime.seconds, inode.mtime.nanoseconds),
        nlink: inode.nlink,
        size: if inode.file_type == FileType::Directory { 0 } else { inode.size },
        rdev: inode.rdev,
        xattrs,
        content,
        same_as,
    }
}

fn own_content(bootstrap: &Bootstrap<&[u8]>, inode: &Inode, contents: &Devices) -> Vec<u8> {
    let mut extents = Vec::new();
    let mut offset = 0;
    while offset < inode.size {
        let mapping = bootstrap.extent(inode, offset).unwrap();
        assert_eq!(mapping.offset, offset);
        assert!(mapping.length > 0);
        // From the middle of a run at least the rest of it: one call looks at a bounded number of map entries.
        let half = bootstrap.extent(inode, offset + mapping.length / 2).unwrap();
        assert!(half.offset + half.length >= mapping.offset + mapping.length);
        extents.push(Extent { length: mapping.length, location: mapping.location });
        offset += mapping.length;
    }
    assert_eq!(offset, inode.size);
    assert_eq!(bootstrap.extent(inode, inode.size).unwrap().length, 0);
    let data = extents.iter().filter(|extent| extent.location.is_some());
    let data = data.map(|extent| extent.length.next_multiple_of(BLOCK_SIZE)).sum();
    assert_eq!(bootstrap.data_bytes(inode, u64::MAX), Ok(Some(data)));
    if inode.size > 0 {
        assert_eq!(bootstrap.data_bytes(inode, 0), Ok(None), "its map has entries");
    }
    file_content(&extents, contents)
}

/// What the kernel sees, mounting the image with files as devices; `None` where this process may not mount.
pub(crate) fn kernel(image: &[u8], contents: &Devices) -> Option<Listing> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: the kernel was not asked");
        return None;
    }
    // Below target: neither tmpfs nor overlayfs, which the kernel refuses for a bootstrap.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("bootstrap"), image).unwrap();
    let devices: Vec<PathBuf> = (0..contents.len()).map(|number| at(&format!("device{number}"))).collect();
    devices.iter().zip(contents).for_each(|(path, data)| std::fs::write(path, data).unwrap());
    fsck(&at("bootstrap"), &devices);
    std::fs::create_dir(at("mount")).unwrap();
    let mount = ErofsMount::new(&at("bootstrap"), &devices, &at("mount")).unwrap();
    Some(walk(mount.path()))
}

/// `fsck.erofs` must accept the image without a word of complaint.
fn fsck(bootstrap: &Path, devices: &[PathBuf]) {
    // It opens all devices; past some hundreds it runs out of descriptors.
    if devices.len() > 200 {
        return;
    }
    let arguments = devices.iter().map(|path| format!("--device={}", path.display()));
    let output = match Command::new("fsck.erofs").args(arguments).arg(bootstrap).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return eprintln!("no fsck.erofs here"),
        output => output.unwrap(),
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("<E>"), "fsck.erofs: {text}");
}

fn walk(root: &Path) -> Listing {
    let mut paths = BTreeMap::new();
    let mut pending = vec![b"/".to_vec()];
    while let Some(path) = pending.pop() {
        let real = root.join(OsStr::from_bytes(&path[1..]));
        let metadata = std::fs::symlink_metadata(&real).unwrap();
        if metadata.is_dir() {
            pending.extend(
                std::fs::read_dir(&real).unwrap().map(|entry| join(&path, entry.unwrap().file_name().as_bytes())),
            );
        }
        paths.insert(path, (real, metadata));
    }
    let mut first = BTreeMap::new();
    paths
        .into_iter()
        .map(|(path, (real, metadata))| {
            let same_as = first.entry(metadata.ino()).or_insert_with(|| path.clone()).clone();
            (path, kernel_entry(&real, &metadata, same_as))
        })
        .collect()
}

fn kernel_entry(path: &Path, metadata: &std::fs::Metadata, same_as: Vec<u8>) -> Entry {
    let kind = metadata.file_type();
    let content = if kind.is_file() {
        use std::io::Read as _;
        let mut data = Vec::new();
        std::fs::File::open(path).unwrap().take(COMPARED).read_to_end(&mut data).unwrap();
        data
    } else if kind.is_symlink() {
        std::fs::read_link(path).unwrap().into_os_string().into_vec()
    } else {
        vec![]
    };
    let rdev = metadata.rdev();
    Entry {
        mode: u16::try_from(metadata.mode()).unwrap(),
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap()),
        nlink: u32::try_from(metadata.nlink()).unwrap(),
        size: if kind.is_dir() { 0 } else { metadata.size() },
        rdev: (rustix::fs::major(rdev), rustix::fs::minor(rdev)),
        xattrs: kernel_xattrs(path),
        content,
        same_as,
    }
}

fn kernel_xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut names[..]) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        length => length.unwrap(),
    };
    let mut xattrs: Vec<_> = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    xattrs.sort();
    xattrs
}

/// Writes the tree and looks at it all three ways; gives the image back.
pub(crate) fn check(tree: &ValidTree, contents: &Devices) -> Vec<u8> {
    let image = write_bootstrap(tree);
    assert_eq!(image, write_bootstrap(tree), "two runs differ");
    let expected = meant(tree, contents);
    let summary = Bootstrap::parse(image.as_slice()).unwrap().validate().unwrap();
    assert_eq!(summary.entries, tree.entries());
    assert_eq!(summary.entries, expected.len() as u64);
    assert_eq!(summary.file_bytes, tree.file_bytes());
    assert_eq!(summary.inodes_with_xattrs > 0, tree.has_xattrs());
    compare("our reader", &own(&image, contents), &expected);
    if let Some(seen) = kernel(&image, contents) {
        compare("the kernel", &seen, &expected);
    }
    image
}

fn compare(who: &str, seen: &Listing, expected: &Listing) {
    for (path, entry) in expected {
        match seen.get(path) {
            None => panic!("{who} does not see {}", path.escape_ascii()),
            Some(found) => assert_eq!(found, entry, "{who} sees {} differently", path.escape_ascii()),
        }
    }
    assert_eq!(seen.len(), expected.len(), "{who} sees more than there is");
}

pub(crate) fn directory(children: impl IntoIterator<Item = (Vec<u8>, NodeId)>) -> NodeKind {
    NodeKind::Directory(children.into_iter().map(|(name, child)| (name.into(), child)).collect())
}

pub(crate) fn meta(permissions: u16) -> Meta {
    Meta { permissions, mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }, ..Meta::default() }
}
