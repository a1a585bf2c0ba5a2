//! Random trees through the writer, our reader, `fsck.erofs` and the kernel.
#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

mod support;

use std::collections::BTreeMap;

use lazo_format::*;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as Pick;
use support::{check, device_contents, devices};

/// Blocks of each device.
const DEVICES: [u64; 3] = [64, 1, 40];

#[derive(Debug, Clone)]
enum Kind {
    Directory,
    /// Pieces: blocks and place, then the bytes of the last block that the file has.
    Regular(Vec<(u64, Option<(Pick, Pick)>)>, u64),
    Symlink(Vec<u8>),
    Device {
        block: bool,
        major: u32,
        minor: u32,
    },
    Fifo,
    Socket,
    HardLink(Pick),
}

#[derive(Debug, Clone)]
struct Spec {
    parent: Pick,
    name: Vec<u8>,
    meta: Meta,
    kind: Kind,
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 || byte == b'/' { b'x' } else { byte });
    prop_oneof![
        6 => "[a-z.!]{1,12}".prop_map(String::into_bytes),
        2 => vec(byte.clone(), 1..30),
        1 => vec(byte, 200..=255),
    ]
    .prop_filter("reserved", |name| name != b"." && name != b"..")
}

fn xattr() -> impl Strategy<Value = Xattr> {
    // Few names and values, so that some are shared, and any others.
    let namespace = prop_oneof![Just("user."), Just("trusted."), Just("security.")];
    let rest = prop_oneof![3 => "[ab]", 1 => "[a-z]{1,200}"];
    let value = prop_oneof![3 => vec(b'0'..b'2', 0..2), 1 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 0..6000)];
    (namespace, rest, value).prop_map(|(namespace, rest, value)| Xattr {
        name: (namespace.to_owned() + &rest).into_bytes().into(),
        value: value.into(),
    })
}

fn meta() -> impl Strategy<Value = Meta> {
    let id = prop_oneof![Just(0), Just(1000), 0..u32::MAX];
    let mtime = (
        prop_oneof![Just(1_700_000_000), -3_000_000_000..250_000_000_000_i64],
        prop_oneof![Just(0), 0..1_000_000_000_u32],
    );
    let xattrs = prop_oneof![3 => Just(vec![]), 1 => vec(xattr(), 0..6)];
    (0..=0o7777_u16, id.clone(), id, mtime, xattrs).prop_map(|(permissions, uid, gid, mtime, mut xattrs)| {
        xattrs.sort();
        xattrs.dedup_by(|a, b| a.name == b.name);
        let (seconds, nanoseconds) = mtime;
        Meta { permissions, uid, gid, mtime: Timestamp { seconds, nanoseconds }, xattrs }
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    let place = proptest::option::weighted(0.8, any::<(Pick, Pick)>());
    let pieces =
        prop_oneof![1 => Just(vec![]), 4 => vec((1..20_u64, place.clone()), 1..2), 2 => vec((1..20_u64, place), 2..8)];
    let target = prop_oneof![vec(1..=255_u8, 1..60), vec(1..=255_u8, 3900..=4095)];
    prop_oneof![
        4 => Just(Kind::Directory),
        8 => (pieces, 1..=4096_u64).prop_map(|(pieces, last)| Kind::Regular(pieces, last)),
        3 => target.prop_map(Kind::Symlink),
        1 => (any::<bool>(), 0..4096_u32, 0..1_048_576_u32).prop_map(|(block, major, minor)| Kind::Device { block, major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
        2 => any::<Pick>().prop_map(Kind::HardLink),
    ]
}

fn regular(pieces: &[(u64, Option<(Pick, Pick)>)], last: u64) -> NodeKind {
    let mut extents = Vec::new();
    for (number, (blocks, place)) in pieces.iter().enumerate() {
        let location = place.map(|(device, block)| {
            let device = device.index(DEVICES.len());
            (device, block.index(usize::try_from(DEVICES[device]).unwrap()) as u64)
        });
        let blocks = location.map_or(*blocks, |(device, block)| (*blocks).min(DEVICES[device] - block));
        let length = if number + 1 == pieces.len() { blocks * 4096 - 4096 + last } else { blocks * 4096 };
        let location =
            location.map(|(device, block)| (BlobIndex(u16::try_from(device).unwrap()), DeviceAddr(block * 4096)));
        extents.push(Extent { length, location });
    }
    NodeKind::Regular { size: extents.iter().map(|extent| extent.length).sum(), extents }
}

/// The tree of the specs; a taken name is skipped.
fn build(root: Meta, specs: Vec<Spec>, contents: &[Vec<u8>]) -> Tree {
    let mut nodes = vec![Node { meta: root, kind: NodeKind::Directory(BTreeMap::new()) }];
    let (mut directories, mut files) = (vec![0_usize], vec![]);
    for spec in specs {
        let parent = directories[spec.parent.index(directories.len())];
        let mut id = nodes.len();
        let kind = match spec.kind {
            Kind::Directory => NodeKind::Directory(BTreeMap::new()),
            Kind::Regular(pieces, last) => regular(&pieces, last),
            Kind::Symlink(target) => NodeKind::Symlink(target.into()),
            Kind::Device { block: true, major, minor } => NodeKind::BlockDevice { major, minor },
            Kind::Device { block: false, major, minor } => NodeKind::CharDevice { major, minor },
            Kind::Socket => NodeKind::Socket,
            Kind::HardLink(pick) if !files.is_empty() => {
                id = files[pick.index(files.len())];
                NodeKind::Fifo
            }
            Kind::Fifo | Kind::HardLink(_) => NodeKind::Fifo,
        };
        let NodeKind::Directory(children) = &mut nodes[parent].kind else { unreachable!() };
        if children.contains_key(spec.name.as_slice()) {
            continue;
        }
        children.insert(spec.name.into(), NodeId(u32::try_from(id).unwrap()));
        if id < nodes.len() {
            continue;
        }
        let mut meta = spec.meta;
        match kind {
            NodeKind::Directory(_) => directories.push(id),
            _ => files.push(id),
        }
        if !matches!(kind, NodeKind::Directory(_) | NodeKind::Regular { .. }) {
            // The kernel has user attributes on files and directories only.
            meta.xattrs.retain(|xattr| !xattr.name.starts_with(b"user."));
        }
        nodes.push(Node { meta, kind });
    }
    Tree { nodes, root: NodeId(0), devices: devices(contents) }
}

fn spec() -> impl Strategy<Value = Spec> {
    (any::<Pick>(), name(), meta(), kind()).prop_map(|(parent, name, meta, kind)| Spec { parent, name, meta, kind })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_reader_sees_the_tree(root in meta(), specs in vec(spec(), 0..150)) {
        let contents = device_contents(&DEVICES);
        check(&build(root, specs, &contents).validate().unwrap(), &contents);
    }
}
