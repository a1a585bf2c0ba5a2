use std::collections::BTreeMap;

use super::super::{Meta, Timestamp};
use super::*;
use crate::digest::Digest;
use crate::ids::{BlobIndex, DeviceAddr};

fn directory(children: &[(&str, u32)]) -> Node {
    let names = children.iter().map(|(name, node)| (name.as_bytes().into(), NodeId(*node)));
    Node { meta: Meta::default(), kind: NodeKind::Directory(names.collect::<BTreeMap<_, _>>()) }
}

fn other(kind: NodeKind) -> Node {
    Node { meta: Meta::default(), kind }
}

fn tree(nodes: Vec<Node>) -> Tree {
    Tree { nodes, root: NodeId(0), devices: vec![Device { digest: Digest::sha256_of(b""), size: 8 * 4096 }] }
}

fn error(tree: Tree) -> String {
    tree.validate().unwrap_err().to_string()
}

/// A root with this one file in a directory.
fn single(node: Node) -> Tree {
    tree(vec![directory(&[("d", 1)]), directory(&[("x", 2)]), node])
}

#[test]
fn order_and_links() {
    let pipe = || other(NodeKind::Fifo);
    let nodes = vec![
        directory(&[("b", 1), ("c", 2), ("d", 3), ("z", 4)]),
        directory(&[("link", 2), ("sub", 5)]),
        pipe(),
        directory(&[("unlike", 6)]),
        pipe(),
        directory(&[]),
        pipe(),
        // Hidden: no name leads here.
        directory(&[("hidden", 8)]),
        pipe(),
    ];
    let valid = tree(nodes).validate().unwrap();
    assert_eq!(valid.order(), [0, 2, 4, 1, 5, 3, 6].map(NodeId));
    let links: Vec<u32> = (0..10).map(|node| valid.links(NodeId(node))).collect();
    assert_eq!(links, [4, 3, 2, 2, 1, 2, 1, 0, 0, 0]);
    assert_eq!(valid.entries(), 8);
    assert_eq!(valid.parent(NodeId(5)), NodeId(1));
    assert_eq!(valid.parent(NodeId(0)), NodeId(0));
}

#[test]
fn refuses_bad_shapes() {
    assert_eq!(error(tree(vec![])), "/: node 0 does not exist");
    assert_eq!(error(tree(vec![other(NodeKind::Fifo)])), "the root is not a directory");
    assert_eq!(error(tree(vec![directory(&[("a", 7)])])), "/a: node 7 does not exist");
    let twice = "the directory is reached a second time";
    assert_eq!(error(tree(vec![directory(&[("self", 0)])])), format!("/self: {twice}"));
    assert_eq!(error(tree(vec![directory(&[("a", 1), ("b", 1)]), directory(&[])])), format!("/b: {twice}"));
    let up = tree(vec![directory(&[("a", 1)]), directory(&[("b", 2)]), directory(&[("up", 1)])]);
    assert_eq!(error(up), format!("/a/b/up: {twice}"));
}

#[test]
fn refuses_bad_names() {
    let long = "n".repeat(256);
    for (name, expected) in [
        ("", "a name is empty, . or .."),
        (".", "a name is empty, . or .."),
        ("..", "a name is empty, . or .."),
        ("a/b", "slash"),
        ("a\0b", "slash or a NUL"),
        (long.as_str(), "length of the name is 256"),
    ] {
        let found = error(tree(vec![directory(&[(name, 1)]), other(NodeKind::Fifo)]));
        assert!(found.contains(expected), "{found}");
    }
}

#[test]
fn refuses_bad_values() {
    let at = |block: u64| Some((BlobIndex(0), DeviceAddr(block * 4096)));
    let file = |size, extents: &[(u64, Option<(BlobIndex, DeviceAddr)>)]| {
        let extents = extents.iter().map(|&(length, location)| Extent { length, location }).collect();
        other(NodeKind::Regular { size, extents })
    };
    let xattrs = |xattrs: &[(&str, usize)]| {
        let xattr = |(name, size): &(&str, usize)| Xattr { name: name.as_bytes().into(), value: vec![0; *size].into() };
        Node { meta: Meta { xattrs: xattrs.iter().map(xattr).collect(), ..Meta::default() }, kind: NodeKind::Fifo }
    };
    let meta = |meta| Node { meta, kind: NodeKind::Socket };
    let late = Timestamp { seconds: 0, nanoseconds: 1_000_000_000 };
    let cases = [
        (meta(Meta { permissions: 0o10_000, ..Meta::default() }), "permissions is 4096"),
        (meta(Meta { mtime: late, ..Meta::default() }), "nanoseconds of the modification time"),
        (other(NodeKind::Symlink(b""[..].into())), "target is empty"),
        (other(NodeKind::Symlink(b"a\0"[..].into())), "holds a NUL"),
        (other(NodeKind::Symlink(vec![b'x'; 4096].into())), "length of the symlink's target is 4096"),
        (other(NodeKind::CharDevice { major: 4096, minor: 0 }), "device major number is 4096"),
        (other(NodeKind::BlockDevice { major: 0, minor: 1 << 20 }), "device minor number is 1048576"),
        (file(1, &[]), "do not add up"),
        (file(5, &[(4, at(0))]), "do not add up"),
        (file(0, &[(0, at(0))]), "an extent is empty"),
        (file(4098, &[(1, at(0)), (4097, at(1))]), "not whole blocks and not the last"),
        (file(4096, &[(4096, at(8))]), "beyond its device"),
        (file(4097, &[(4097, at(7))]), "beyond its device"),
        (file(1, &[(1, at(1 << 51))]), "beyond its device"),
        (file(1, &[(1, Some((BlobIndex(0), DeviceAddr(5))))]), "not on a block"),
        (file(1, &[(1, Some((BlobIndex(1), DeviceAddr(0))))]), "a device that does not exist"),
        (file(1 << 63, &[(1 << 63, None)]), "file size"),
        (file((1 << 40) + 4097, &[(4096, at(0)), (1 << 40, None), (1, at(0))]), "number of chunk map entries"),
        (xattrs(&[("user.a", 1), ("user.a", 1)]), "user.a: it is there twice"),
        (xattrs(&[("user.a", 65_536)]), "longer than 65535"),
        (xattrs(&[("system.other", 1)]), "system.other: the namespace"),
        (xattrs(&[("trusted.overlay.opaque", 1)]), "trusted.overlay.opaque: it would steer"),
        (
            xattrs(&[("user.a", 65_535), ("user.b", 65_535), ("user.c", 65_535), ("user.d", 65_535)]),
            "size of the extended",
        ),
    ];
    for (node, expected) in cases {
        let found = error(single(node));
        assert!(found.starts_with("/d/x: ") && found.contains(expected), "{found}, expected {expected}");
    }
}

#[test]
fn refuses_bad_devices() {
    let digest = Digest::sha256_of(b"");
    for (digest, size, expected) in [
        (Digest::sha512([0; 64]), 4096, "not a sha256"),
        (digest, 4097, "whole blocks"),
        (digest, MAX_DEVICE_SIZE + 4096, "beyond 2^32 - 1"),
    ] {
        let found = error(Tree { devices: vec![Device { digest, size }], ..tree(vec![directory(&[])]) });
        assert!(found.starts_with("device 0: ") && found.contains(expected), "{found}");
    }
}

#[test]
fn knows_which_attributes_pass() {
    for name in ["user.a", "trusted.a", "security.capability", "system.posix_acl_access", "system.posix_acl_default"] {
        assert!(xattr_supported(name.as_bytes()), "{name}");
    }
    let long = format!("user.{}", "n".repeat(251));
    for name in ["", "user.", "a", "system.nfs4_acl", "trusted.overlay.", "trusted.overlay.redirect", "user.\0", &long]
    {
        assert!(!xattr_supported(name.as_bytes()), "{name:?}");
    }
}
