//! The merge against a plain model of overlay semantics, and its rules one by one.

use std::collections::{BTreeMap, BTreeSet};

use lazo_format::Xattr;
use proptest::prelude::*;

use super::*;

/// One thing in a layer's archive.
#[derive(Clone, Debug, PartialEq)]
enum Item {
    Directory(u32),
    File(u32),
    Whiteout,
    Opaque,
}

fn meta(uid: u32) -> Meta {
    Meta { uid, ..implied_meta() }
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: path.into(), meta: meta(7), kind }
}

fn file() -> EntryKind {
    EntryKind::File { size: 0, pieces: None }
}

fn apply(merge: &mut Merge, path: &str, item: &Item) -> Result<Applied, Problem> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let (path, kind, uid) = match item {
        Item::Directory(uid) => (path.to_owned(), EntryKind::Directory, *uid),
        Item::File(uid) => (path.to_owned(), file(), *uid),
        Item::Whiteout => (format!("{parent}/.wh.{name}"), file(), 0),
        Item::Opaque => (format!("{path}/.wh..wh..opq"), file(), 0),
    };
    merge.apply(Entry { path: path.into_bytes(), meta: meta(uid), kind })
}

/// What a tree shows: for each path whether it is a directory, and its owner.
type Shown = BTreeMap<String, (bool, u32)>;

fn shown(merge: &Merge) -> Shown {
    let mut all = Shown::new();
    merge.visit(merge.root(), &mut Vec::new(), &mut |path, node| {
        let directory = matches!(node.kind, Kind::Directory(_));
        all.insert(String::from_utf8(path.to_vec()).unwrap(), (directory, node.meta.uid));
    });
    all.remove("");
    all
}

fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at]).filter(|p| !p.is_empty())
}

/// The rules as a set comprehension: what of the lower tree survives, then the layer's own on top.
fn model(lower: &Shown, layer: &[(String, Item)]) -> Shown {
    let of = |wanted: fn(&Item) -> bool| -> BTreeSet<&str> {
        layer.iter().filter(|(_, item)| wanted(item)).map(|(path, _)| path.as_str()).collect()
    };
    let whiteouts = of(|item| *item == Item::Whiteout);
    let opaque = of(|item| *item == Item::Opaque);
    let files = of(|item| matches!(item, Item::File(_)));
    let directories = of(|item| matches!(item, Item::Directory(_)));
    let mut all: Shown = lower
        .iter()
        .filter(|(path, (directory, _))| {
            let path = path.as_str();
            let hidden = whiteouts.contains(path)
                || files.contains(path)
                || (directories.contains(path) && !directory)
                || ancestors(path).any(|a| whiteouts.contains(a) || opaque.contains(a) || files.contains(a));
            !hidden
        })
        .map(|(path, what)| (path.clone(), *what))
        .collect();
    for (path, item) in layer {
        match item {
            Item::Directory(uid) => drop(all.insert(path.clone(), (true, *uid))),
            Item::File(uid) => drop(all.insert(path.clone(), (false, *uid))),
            Item::Whiteout | Item::Opaque => {}
        }
    }
    for (path, item) in layer {
        if matches!(item, Item::Directory(_) | Item::File(_)) {
            for ancestor in ancestors(path) {
                let shown = all.entry(ancestor.to_owned()).or_insert((true, 0));
                // What the layer only implies still hides a lower file.
                if !shown.0 {
                    *shown = (true, 0);
                }
            }
        }
    }
    all
}

/// A layer that an archiver could write: each path once, nothing of its own below its own files, parents first.
fn layers() -> impl Strategy<Value = Vec<(String, Item)>> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|parts| parts.iter().map(|part| format!("/{part}")).collect::<String>());
    let item = prop_oneof![
        3 => (1u32..100).prop_map(Item::Directory),
        3 => (1u32..100).prop_map(Item::File),
        1 => Just(Item::Whiteout),
        1 => Just(Item::Opaque),
    ];
    prop::collection::btree_map(path, item, 0..8).prop_map(|items| {
        let files: BTreeSet<String> =
            items.iter().filter(|(_, i)| matches!(i, Item::File(_))).map(|(p, _)| p.clone()).collect();
        items.into_iter().filter(|(path, _)| !ancestors(path).any(|a| files.contains(a))).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn agrees_with_the_model(layers in prop::collection::vec((layers(), any::<bool>()), 1..5)) {
        let mut merge = Merge::new();
        let mut expected = Shown::new();
        for (number, (items, marks_last)) in (0u16..).zip(&layers) {
            merge.begin_layer(number);
            expected = model(&expected, items);
            // Marks may stand anywhere in the archive; both extremes must show the same.
            let mark = |item: &Item| matches!(item, Item::Whiteout | Item::Opaque);
            let mut ordered: Vec<_> = items.iter().collect();
            ordered.sort_by_key(|(_, item)| mark(item) == *marks_last);
            let failed = ordered.iter().any(|(path, item)| apply(&mut merge, path, item).is_err());
            prop_assert!(!failed);
            prop_assert_eq!(&shown(&merge), &expected);
        }
    }
}

fn merged(layers: &[&[(&str, Item)]]) -> Merge {
    let mut merge = Merge::new();
    for (number, layer) in (0u16..).zip(layers) {
        merge.begin_layer(number);
        for (path, item) in *layer {
            apply(&mut merge, path, item).unwrap();
        }
    }
    merge
}

#[test]
fn parents_through_symbolic_links() {
    let mut merge = merged(&[&[("/usr/lib", Item::Directory(1))]]);
    merge.apply(entry("lib", EntryKind::Symlink(b"usr/lib".to_vec()))).unwrap();
    merge.apply(entry("up", EntryKind::Symlink(b"../../../usr".to_vec()))).unwrap();
    merge.apply(entry("abs", EntryKind::Symlink(b"/usr/./lib/".to_vec()))).unwrap();
    let link = merge.child(ROOT, b"lib").unwrap().node;
    assert_eq!(merge.node(link).meta.permissions, 0o777, "all that Linux knows, not the archive's 0755");
    for path in ["lib/a", "up/lib/b", "abs/c"] {
        merge.apply(entry(path, file())).unwrap();
    }
    let names: Vec<String> = shown(&merge).into_keys().filter(|p| p.starts_with("/usr/lib/")).collect();
    assert_eq!(names, ["/usr/lib/a", "/usr/lib/b", "/usr/lib/c"]);
    assert!(merge.resolve(b"/abs/../lib/a").is_some());
    assert!(merge.resolve(b"/lib/missing").is_none());
}

#[test]
fn what_loops_or_names_nothing_is_refused() {
    let mut merge = merged(&[]);
    merge.apply(entry("x", EntryKind::Symlink(b"y".to_vec()))).unwrap();
    merge.apply(entry("y", EntryKind::Symlink(b"x".to_vec()))).unwrap();
    merge.apply(entry("f", file())).unwrap();
    assert!(matches!(merge.apply(entry("x/f", file())), Err(Problem::LinkLoop)));
    assert!(matches!(merge.apply(entry("f/g", file())), Err(Problem::NotADirectory(_))));
    assert!(matches!(merge.apply(entry(".wh.", file())), Err(Problem::Path(_))));
    assert!(matches!(merge.apply(entry("a/.wh...", file())), Err(Problem::Path(_))));
    assert!(matches!(merge.apply(entry("/", file())), Err(Problem::Path(_))));
    assert!(merge.resolve(b"x").is_none());
    let deep = "d/".repeat(MAX_DEPTH + 2);
    assert!(matches!(merge.apply(entry(&deep, EntryKind::Directory)), Err(Problem::TooMany { .. })));
}

#[test]
fn depth_is_bounded_through_links_too() {
    let mut merge = merged(&[]);
    let mut refused = false;
    let mut prefix = String::new();
    for round in 0..4 {
        let path = format!("{prefix}{}", "d/".repeat(MAX_DEPTH / 2));
        match merge.apply(entry(&path, EntryKind::Directory)) {
            Ok(_) => {
                merge
                    .apply(entry(&format!("l{round}"), EntryKind::Symlink(path.trim_end_matches('/').into())))
                    .unwrap();
                prefix = format!("l{round}/");
            }
            Err(problem) => {
                assert!(matches!(problem, Problem::TooMany { .. }), "{problem:?}");
                refused = true;
                break;
            }
        }
    }
    assert!(refused);
}

/// What has the name goes before the link is made, so that none of these targets is there any more.
#[test]
fn nothing_is_linked_to_itself() {
    let mut merge = Merge::new();
    merge.apply(entry("a", file())).unwrap();
    merge.apply(entry("d/f", file())).unwrap();
    for (name, target) in [("a", "a"), ("d", "d/f")] {
        let refused = merge.apply(entry(name, EntryKind::HardLink(target.into()))).unwrap_err();
        assert!(matches!(refused, Problem::HardLink { why: "does not exist", .. }), "{refused}");
    }
}

#[test]
fn hard_links() {
    let mut merge = merged(&[&[("/a/f", Item::File(1))], &[("/b", Item::Directory(2))]]);
    merge.apply(entry("b/g", EntryKind::HardLink(b"a/f".to_vec()))).unwrap();
    merge.begin_layer(2);
    apply(&mut merge, "/a", &Item::Whiteout).unwrap();
    assert_eq!(shown(&merge), Shown::from([("/b".into(), (true, 2)), ("/b/g".into(), (false, 1))]));
    for (target, why) in [("a/f", "does not exist"), ("b", "is a directory"), ("/", "is the root directory")] {
        match merge.apply(entry("l", EntryKind::HardLink(target.into()))) {
            Err(Problem::HardLink { why: got, .. }) => assert_eq!(got, why),
            other => panic!("{target}: {other:?}"),
        }
    }
}

#[test]
fn marks_of_aufs_are_ignored_and_overlay_xattrs_dropped() {
    let mut merge = merged(&[&[("/f", Item::File(1))]]);
    assert_eq!(merge.apply(entry(".wh..wh.plnk", file())).unwrap(), Applied::Mark);
    let xattr = |name: &str| Xattr { name: name.as_bytes().into(), value: (*b"y").into() };
    let names = ["trusted.overlay.opaque", "system.nfs4_acl", "user.kept", "trusted.kept", "security.capability"];
    let meta = Meta { xattrs: names.map(xattr).to_vec(), ..meta(3) };
    merge.apply(Entry { path: b"f".to_vec(), meta, kind: file() }).unwrap();
    let node = merge.resolve(b"f").unwrap();
    let kept: Vec<&[u8]> = merge.node(node).meta.xattrs.iter().map(|x| &*x.name).collect();
    assert_eq!(kept, [&b"user.kept"[..], b"trusted.kept", b"security.capability"]);
    assert_eq!((merge.warnings.overlay_xattrs, merge.warnings.unsupported_xattrs), (1, 1));
}

#[test]
fn marks_said_again_cost_nothing() {
    let mut merge = merged(&[&[("/d/old", Item::File(1))], &[]]);
    for number in 0..20_000 {
        merge.apply(entry(&format!("d/{number}"), file())).unwrap();
    }
    let started = std::time::Instant::now();
    for _ in 0..20_000 {
        apply(&mut merge, "/d", &Item::Opaque).unwrap();
        apply(&mut merge, "/d", &Item::Whiteout).unwrap();
    }
    // A walk over the directory for each mark would take minutes.
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(shown(&merge).len(), 1 + 20_000);
}

#[test]
fn what_names_links_and_attributes_take_is_bounded() {
    let big = |merge: &mut Merge| merge.text = MAX_TEXT - 100;
    let full =
        |applied: Result<Applied, Problem>| assert!(matches!(applied, Err(Problem::TooMany { .. })), "{applied:?}");
    let mut merge = merged(&[&[("/f", Item::File(1))]]);
    big(&mut merge);
    merge.apply(entry("f", file())).unwrap();
    full(merge.apply(entry(&"n".repeat(200), file())));
    big(&mut merge);
    full(merge.apply(entry("f", EntryKind::Symlink(vec![b't'; 200]))));
    big(&mut merge);
    let xattr = Xattr { name: (*b"user.x").into(), value: vec![0; 200].into() };
    full(merge.apply(Entry { path: b"f".to_vec(), meta: Meta { xattrs: vec![xattr], ..meta(1) }, kind: file() }));
    big(&mut merge);
    merge.apply(entry("a", EntryKind::HardLink(b"f".to_vec()))).unwrap();
    full(merge.apply(entry("b", EntryKind::HardLink(b"f".to_vec()))));
}

#[test]
fn nothing_climbs_above_the_root() {
    let mut merge = merged(&[&[("/gone", Item::File(1))], &[]]);
    for path in ["../f", "a/../../g", "/../../b/h"] {
        merge.apply(entry(path, file())).unwrap();
    }
    merge.apply(entry("i", EntryKind::HardLink(b"../../f".to_vec()))).unwrap();
    merge.apply(entry("../.wh.gone", file())).unwrap();
    let paths: Vec<String> = shown(&merge).into_keys().collect();
    assert_eq!(paths, ["/b", "/b/h", "/f", "/g", "/i"]);
}

#[test]
fn an_owner_of_minus_one_is_the_one_that_is_there() {
    let mut merge = merged(&[&[("/d", Item::Directory(7))], &[]]);
    let nobody = |path: &str, kind| Entry { path: path.into(), meta: meta(u32::MAX), kind };
    merge.apply(nobody("d", EntryKind::Directory)).unwrap();
    merge.apply(nobody("new", EntryKind::Directory)).unwrap();
    merge.apply(nobody("d/f", file())).unwrap();
    let expected = [("/d", true, 7), ("/d/f", false, 0), ("/new", true, 0)];
    assert_eq!(shown(&merge), expected.map(|(path, directory, uid)| (path.into(), (directory, uid))).into());
}

#[test]
fn whiteout_devices_hide_and_are_not_seen() {
    let mut merge = merged(&[&[("/below", Item::File(1)), ("/d/f", Item::File(1)), ("/kept", Item::File(1))], &[]]);
    let device = |path: &str| entry(path, EntryKind::CharDevice(0, 0));
    for path in ["below", "own", "d", "alone"] {
        merge.apply(device(path)).unwrap();
    }
    merge.apply(entry("own", file())).unwrap();
    assert!(matches!(merge.apply(entry("d/g", file())), Err(Problem::NotADirectory(_))), "as in every runtime");
    merge.begin_layer(2);
    merge.apply(entry("d/h", file())).unwrap();
    merge.hide_whiteout_devices();
    let paths: Vec<String> = shown(&merge).into_keys().collect();
    assert_eq!(paths, ["/d", "/d/h", "/kept", "/own"]);
    assert_eq!(merge.warnings.whiteout_devices, 2);
}

#[test]
fn user_xattrs_are_for_files_and_directories() {
    let mut merge = merged(&[]);
    let xattr = |name: &str| Xattr { name: name.as_bytes().into(), value: Box::default() };
    let kinds = [
        ("file", file(), true),
        ("directory", EntryKind::Directory, true),
        ("link", EntryKind::Symlink(b"x".to_vec()), false),
        ("fifo", EntryKind::Fifo, false),
        ("char", EntryKind::CharDevice(1, 3), false),
        ("block", EntryKind::BlockDevice(8, 0), false),
    ];
    for (name, kind, kept) in kinds {
        let meta = Meta { xattrs: vec![xattr("user.a"), xattr("trusted.b")], ..meta(0) };
        merge.apply(Entry { path: name.into(), meta, kind }).unwrap();
        let node = merge.child(ROOT, name.as_bytes()).unwrap().node;
        let names: Vec<&[u8]> = merge.node(node).meta.xattrs.iter().map(|x| &*x.name).collect();
        let expected: &[&[u8]] = if kept { &[b"user.a", b"trusted.b"] } else { &[b"trusted.b"] };
        assert_eq!(names, expected, "{name}");
    }
    assert_eq!(merge.warnings.user_xattrs, 4);
}

#[test]
fn global_headers_say_nothing_of_files() {
    let mut merge = merged(&[&[("/etc/passwd", Item::File(1))], &[]]);
    let before = shown(&merge);
    for path in ["pax_global_header", "etc/comment", "no/such/directory/comment", "/"] {
        assert_eq!(merge.apply(entry(path, EntryKind::Comment)).unwrap(), Applied::Mark, "{path}");
    }
    for path in ["etc/passwd", "./etc/../etc/passwd", "etc", "etc/.wh.passwd", "new/.wh..wh..opq"] {
        let problem = merge.apply(entry(path, EntryKind::Comment)).unwrap_err();
        assert!(matches!(problem, Problem::Unsupported(_)), "{path}: {problem}");
    }
    assert_eq!(shown(&merge), before);
}
