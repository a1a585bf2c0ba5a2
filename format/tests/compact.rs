//! What an entry costs.
#![allow(clippy::unwrap_used, missing_docs, reason = "test code")]

mod support;

use lazo_format::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use support::{device_contents, devices, directory, meta};

/// Most bytes of metadata an entry may cost beside its name, attributes and link target: a file is 64 bytes of
/// inode and 8 of chunk map in units of 32, and 12 of directory entry.
const BYTES_PER_ENTRY: usize = 110;

/// A tree in the proportions of a Linux distribution's /usr: of its entries 11 % are directories, 10 % symlinks,
/// 1 % empty files, 1 % hard links.
struct Distribution {
    random: TestRng,
    nodes: Vec<Node>,
    names: usize,
    next_block: u64,
}

impl Distribution {
    fn number(&mut self, below: u64) -> u64 {
        use proptest::prelude::Rng as _;
        self.random.next_u64() % below
    }

    fn add(&mut self, kind: NodeKind) -> NodeId {
        self.nodes.push(Node { meta: meta(0o644), kind });
        NodeId(u32::try_from(self.nodes.len() - 1).unwrap())
    }

    fn name(&mut self, number: u64) -> Vec<u8> {
        let length = 6 + usize::try_from(self.number(28)).unwrap();
        let name = format!("{number:x}-{}", "n".repeat(length)).into_bytes();
        self.names += name.len();
        name
    }

    fn file(&mut self) -> NodeId {
        // Most files are small.
        let size = 1 + self.number(1 << 12) * (1 << self.number(8));
        let location = Some((BlobIndex(0), DeviceAddr(self.next_block * 4096)));
        self.next_block += size.div_ceil(4096);
        self.add(NodeKind::Regular { size, extents: vec![Extent { length: size, location }] })
    }

    fn directory(&mut self, depth: u64) -> NodeId {
        // Most are small, some large.
        let count = match self.number(100) {
            0 => 150 + self.number(300),
            1..15 => self.number(40),
            _ => 1 + self.number(7),
        };
        let mut children = Vec::new();
        let mut last = None;
        for number in 0..count {
            let child = match self.number(100) {
                0..20 if depth > 0 => self.directory(depth - 1),
                20..30 => {
                    let target = vec![b't'; 4 + usize::try_from(self.number(40)).unwrap()];
                    self.names += target.len();
                    self.add(NodeKind::Symlink(target.into()))
                }
                30 => self.add(NodeKind::Regular { size: 0, extents: vec![] }),
                31 if last.is_some() => last.unwrap(),
                _ => self.file(),
            };
            last = Some(child).filter(|child| !matches!(self.nodes[child.0 as usize].kind, NodeKind::Directory(_)));
            children.push((self.name(number), child));
        }
        self.add(directory(children))
    }
}

#[test]
fn an_entry_costs_at_most_110_bytes() {
    let random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut tree = Distribution { random, nodes: vec![], names: 0, next_block: 0 };
    let mut top = Vec::new();
    while tree.nodes.len() < 30_000 {
        top.push((tree.name(top.len() as u64), tree.directory(8)));
    }
    let root = tree.add(directory(top));
    let mut blob = devices(&device_contents(&[1]));
    blob[0].size = tree.next_block * 4096;
    let names = tree.names;
    let tree = Tree { nodes: tree.nodes, root, devices: blob }.validate().unwrap();
    let image = write_bootstrap(&tree);
    let summary = Bootstrap::parse(image.as_slice()).unwrap().validate().unwrap();
    let entries = usize::try_from(summary.entries).unwrap();
    assert!(entries >= 30_000, "{summary:?}");
    assert!(summary.directories * 100 > summary.entries * 8, "{summary:?}");
    let (cost, allowed) = (image.len() - names, BYTES_PER_ENTRY * entries);
    assert!(cost <= allowed, "{:.2} bytes an entry, {summary:?}", (cost * 100 / entries) as f64 / 100.0);
}
