//! Damaged bootstraps and indexes: every accessor gives a value or an error, and comes to an end.
#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

use std::collections::HashSet;

use lazo_format::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as Pick;

const BOOTSTRAP: &[u8] = include_bytes!("golden/bootstrap.bin");
const INDEX: &[u8] = include_bytes!("golden/index.bin");

/// Most inodes that one run looks at.
const STEPS: usize = 300;

/// Everything a mount may ask of a bootstrap.
fn use_bootstrap(bytes: &[u8]) {
    let Ok(bootstrap) = Bootstrap::parse(bytes) else { return };
    let _ = bootstrap.validate();
    let _ = Index::parse(INDEX).map(|index| bootstrap.check_devices(&index));
    (0..=u16::MAX).step_by(1000).for_each(|blob| drop(bootstrap.slot(BlobIndex(blob))));
    let mut seen = HashSet::new();
    let mut pending = vec![bootstrap.root(), Nid(u64::MAX), Nid(u64::MAX / 32), Nid(0)];
    pending.extend((0..bytes.len() as u64 / 32).map(Nid));
    while let Some(nid) = pending.pop() {
        if !seen.insert(nid) || seen.len() > STEPS {
            continue;
        }
        let Ok(inode) = bootstrap.inode(nid) else { continue };
        let _ = bootstrap.read_link(&inode);
        let _ = bootstrap.xattr(&inode, b"user.shared");
        let _ = bootstrap.xattrs(&inode).map(Iterator::count);
        let _ = bootstrap.lookup(&inode, b"file");
        for offset in [0, 1, 4096, inode.size / 2, inode.size.wrapping_sub(1), inode.size, u64::MAX] {
            let mapping = bootstrap.extent(&inode, offset);
            assert!(mapping.is_err() || mapping == bootstrap.extent(&inode, offset));
        }
        for cookie in [0, 12, 4096, 8192 + 24, u64::MAX, u64::MAX - 3] {
            let Ok(entries) = bootstrap.read_dir(&inode, cookie) else { continue };
            pending.extend(entries.take(STEPS).flatten().map(|entry| entry.nid));
        }
    }
}

/// Everything a mount may ask of an index.
fn use_index(bytes: &[u8]) {
    let Ok(index) = Index::parse(bytes) else { return };
    let _ = index.validate();
    let _ = index.prefetch().count();
    for number in [0, 1, 2, 3, u16::MAX] {
        let blob = BlobIndex(number);
        let _ = index.blob(blob);
        for at in [0, 4095, 4096, 6 * 4096, 1 << 40, u64::MAX] {
            if let Ok((_, chunk)) = index.chunk_at(blob, DeviceAddr(at)) {
                assert!(chunk.device_range().contains(&at));
                assert!(chunk.device_range().end <= index.blob(blob).unwrap().device_size);
            }
            let _ = index.chunks_in(blob, at / 2..at);
        }
    }
    for number in [0, 1, 2, 3, u32::MAX] {
        let _ = index.chunk(ChunkIndex(number));
        let _ = index.blob_of(ChunkIndex(number));
    }
}

/// Makes the superblock's checksum right again, so that what lies behind it is looked at.
fn fix_checksum(image: &mut [u8]) {
    let Some(block) = image.get_mut(1024..4096) else { return };
    block[4..8].fill(0);
    let checksum = !crc32c::crc32c(block);
    block[4..8].copy_from_slice(&checksum.to_le_bytes());
}

fn damage(golden: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![Just(0), Just(0xff), Just(1), any::<u8>()];
    let cut = prop_oneof![9 => Just(golden.len()), 1 => 0..golden.len()];
    (vec((any::<Pick>(), value), 1..12), cut).prop_map(|(changes, cut)| {
        let mut bytes = golden.to_vec();
        // Past the unused first KiB, where there is one.
        let start = if golden.len() > 4096 { 1024 } else { 0 };
        changes.into_iter().for_each(|(at, value)| bytes[start + at.index(golden.len() - start)] = value);
        bytes.truncate(cut);
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_bootstrap(mut image in damage(BOOTSTRAP)) {
        use_bootstrap(&image);
        fix_checksum(&mut image);
        use_bootstrap(&image);
    }

    #[test]
    fn damaged_index(bytes in damage(INDEX)) {
        use_index(&bytes);
    }

    #[test]
    fn noise(bytes in vec(any::<u8>(), 0..9000)) {
        use_bootstrap(&bytes);
        use_index(&bytes);
    }
}

#[test]
fn every_cut() {
    use_bootstrap(BOOTSTRAP);
    use_index(INDEX);
    for length in (0..BOOTSTRAP.len()).step_by(61) {
        assert!(Bootstrap::parse(&BOOTSTRAP[..length]).is_err());
    }
    for length in 0..INDEX.len() {
        assert!(Index::parse(&INDEX[..length]).is_err());
    }
    assert!(Index::parse([INDEX, &[0]].concat()).is_err());
    assert!(Bootstrap::parse([BOOTSTRAP, &[0; 4096]].concat()).is_err());
}

/// Each byte of the superblock's block is covered by its checksum.
#[test]
fn every_byte_of_the_first_block() {
    for at in 1024..4096 {
        let mut image = BOOTSTRAP.to_vec();
        image[at] ^= 0x10;
        assert!(Bootstrap::parse(image).is_err(), "byte {at}");
    }
}

/// Where the inodes of the golden image lie.
fn nid(path: &[&str]) -> u64 {
    let bootstrap = Bootstrap::parse(BOOTSTRAP).unwrap();
    path.iter()
        .fold(bootstrap.root(), |at, name| {
            let directory = bootstrap.inode(at).unwrap();
            bootstrap.lookup(&directory, name.as_bytes()).unwrap().unwrap().0
        })
        .0
}

fn validate_with(at: u64, bytes: &[u8]) -> Result<Summary, BootstrapError> {
    let mut image = BOOTSTRAP.to_vec();
    let at = usize::try_from(at).unwrap();
    image[at..at + bytes.len()].copy_from_slice(bytes);
    fix_checksum(&mut image);
    Bootstrap::parse(image.as_slice())?.validate()
}

/// What no single access can see: only the walk finds it.
#[test]
fn validate_finds() {
    assert!(validate_with(0, b"").is_ok());
    let (root, dir, file, sparse) = (nid(&[]), nid(&["dir"]), nid(&["dir", "file"]), nid(&["dir", "sparse"]));
    let find = |needle: &[u8]| BOOTSTRAP.windows(needle.len()).position(|window| window == needle).unwrap() as u64;
    let dirent = |nid: u64, file_type: u8| {
        // The entry for this inode: its number, any offset of two bytes, its type.
        let target = nid.to_le_bytes();
        let found = BOOTSTRAP.windows(12).position(|window| window[..8] == target && window[10] == file_type);
        found.unwrap() as u64
    };
    let cases: [(&str, u64, Vec<u8>); 20] = [
        ("2 and one for each subdirectory", dir * 32 + 44, vec![3]),
        ("not the number of its names", sparse * 32 + 44, vec![2]),
        ("more names than links", file * 32 + 44, vec![1]),
        ("count of inodes", 1024 + 16, vec![99]),
        ("not sorted", find(b"blockcharfile"), b"zlock".to_vec()),
        ("not sorted", find(b"pipeshort"), b"long".to_vec()),
        ("gives it another type", dirent(nid(&["empty"]), 1), dir.to_le_bytes().to_vec()),
        ("gives it another type", dirent(sparse, 1) + 10, vec![7]),
        (". or .. leads elsewhere", dir * 32 + 64 + 12, sparse.to_le_bytes().to_vec()),
        ("a device that does not exist", file * 32 + 64 + 16 + 2, vec![9]),
        ("reaches beyond a device", file * 32 + 64 + 16 + 4, vec![7]),
        ("not in the image", dirent(sparse, 1), u64::MAX.to_le_bytes().to_vec()),
        ("a second name leads to the directory", dirent(dir, 2), root.to_le_bytes().to_vec()),
        ("a field of the superblock", 1024 + 64, vec![1]),
        ("a field of the superblock", 1024 + 127, vec![1]),
        ("the device table is not behind the superblock", 1024 + 88, vec![10]),
        ("a field of a device", 1152 + 127, vec![1]),
        ("a field that has no meaning", file * 32 + 63, vec![1]),
        ("chunk map that has no meaning", file * 32 + 64 + 16, vec![1]),
        ("not one for its type", nid(&["empty"]) * 32 + 16, vec![1]),
    ];
    for (expected, at, bytes) in cases {
        let error = validate_with(at, &bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, expected {expected}");
    }
    assert!(validate_with(root * 32 + 24, &[7]).is_ok(), "an owner is nobody's concern");
}

/// Directories that share blocks would make the walk quadratic: the bytes of the image are its budget.
#[test]
fn overlapping_content_is_refused() {
    let (file, sparse) = (nid(&["dir", "file"]), nid(&["dir", "sparse"]));
    // One chunk of 4096 bytes each, more chunks than the image has room for.
    let mut image = BOOTSTRAP.to_vec();
    for at in [file, sparse] {
        let at = usize::try_from(at * 32).unwrap();
        image[at + 8..at + 16].copy_from_slice(&(4096 * 700_u64).to_le_bytes());
        image[at + 16] = 0x20;
    }
    fix_checksum(&mut image);
    assert!(Bootstrap::parse(image.as_slice()).unwrap().validate().is_err());
}
