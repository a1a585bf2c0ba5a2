//! Archives as tar writers make them, and as nobody should.

use ::tar;

use super::*;
use crate::layer::content::{Content, Piece};

fn header(kind: u8, path: &str, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_path(path).unwrap();
    header.set_mode(0o4755);
    header.set_uid(1);
    header.set_gid(2);
    header.set_mtime(3);
    header.set_size(size);
    header.set_cksum();
    header
}

fn push(archive: &mut Vec<u8>, header: &tar::Header, data: &[u8]) {
    archive.extend_from_slice(header.as_bytes());
    archive.extend_from_slice(data);
    archive.resize(archive.len().next_multiple_of(512), 0);
}

fn pax(archive: &mut Vec<u8>, records: &[(&str, &[u8])]) {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..rest + 20).find(|l| l.to_string().len() + rest == *l).unwrap();
        body.extend_from_slice(&[length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat());
    }
    push(archive, &header(b'x', "pax", body.len() as u64), &body);
}

fn content(archive: &mut Archive<&[u8]>, chunk: u64) -> (Vec<u8>, Vec<Piece>) {
    let entry = archive.next_entry().unwrap().unwrap();
    let EntryKind::File { size, pieces } = entry.kind else { panic!("{entry:?}") };
    let mut content = Content::new(archive.data(), size, pieces);
    let (mut all, mut kinds, mut buffer) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(piece) = content.next(chunk, &mut buffer).unwrap() {
        match &piece {
            Piece::Data => all.extend_from_slice(&buffer),
            Piece::Hole(length) => all.resize(all.len() + usize::try_from(*length).unwrap(), 0),
        }
        kinds.push(piece);
    }
    assert_eq!(all.len() as u64, size);
    (all, kinds)
}

/// What the entry of an archive of one member is like.
fn only(bytes: &[u8]) -> Entry {
    Archive::new(bytes).next_entry().unwrap().unwrap()
}

#[test]
fn owners_are_cut_as_the_system_call_cuts_them() {
    for (record, uid) in [
        ("4000000000", 4_000_000_000),
        ("-2", 4_294_967_294),
        ("-1", u32::MAX),
        ("4294967301", 5),
        ("-4294967291", 5),
        ("+7", 7),
    ] {
        let mut bytes = Vec::new();
        pax(&mut bytes, &[("uid", record.as_bytes()), ("gid", record.as_bytes())]);
        push(&mut bytes, &header(b'0', "f", 0), b"");
        let meta = only(&bytes).meta;
        assert_eq!((meta.uid, meta.gid, meta.permissions), (uid, uid, 0o4755), "{record}");
    }
    let mut negative = header(b'0', "f", 0);
    negative.as_gnu_mut().unwrap().uid = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe];
    negative.set_cksum();
    assert_eq!(only(negative.as_bytes()).meta.uid, 4_294_967_294);
}

#[test]
fn devices_are_cut_as_mknod_cuts_them() {
    let mut large = header(b'3', "d", 0);
    large.set_device_major(4097).unwrap();
    large.set_device_minor((1 << 20) + 3).unwrap();
    large.set_cksum();
    assert!(matches!(only(large.as_bytes()).kind, EntryKind::CharDevice(1, 3)));
}

#[test]
fn times_and_xattrs() {
    let mut bytes = Vec::new();
    let records: [(&str, &[u8]); 4] = [
        ("mtime", b"-0.25"),
        ("SCHILY.xattr.user.b", b"\0\n12 path=evil\n"),
        ("SCHILY.xattr.user.empty", b""),
        ("SCHILY.xattr.user.b", b"last"),
    ];
    pax(&mut bytes, &records);
    push(&mut bytes, &header(b'0', "f", 0), b"");
    let meta = only(&bytes).meta;
    assert_eq!(meta.mtime, Timestamp { seconds: -1, nanoseconds: 750_000_000 });
    let xattrs: Vec<(&[u8], &[u8])> = meta.xattrs.iter().map(|x| (&*x.name, &*x.value)).collect();
    assert_eq!(xattrs, [(&b"user.b"[..], &b"last"[..]), (b"user.empty", b"")]);
}

#[test]
fn pax_sparse_formats() {
    let map10 = b"2\n0\n4\n12288\n2\n";
    let mut data10 = map10.to_vec();
    data10.resize(512, 0);
    data10.extend_from_slice(b"headzz");
    let stored = data10.len() as u64;
    let mut bytes = Vec::new();
    let size: &[u8] = b"16384";
    pax(
        &mut bytes,
        &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s10"),
            ("GNU.sparse.realsize", size),
        ],
    );
    push(&mut bytes, &header(b'0', "GNUSparseFile.0/s10", stored), &data10);
    let numblocks: (&str, &[u8]) = ("GNU.sparse.numblocks", b"2");
    pax(&mut bytes, &[numblocks, ("GNU.sparse.size", size), ("GNU.sparse.map", b"0,4,12288,2")]);
    push(&mut bytes, &header(b'0', "s01", 6), b"headzz");
    pax(
        &mut bytes,
        &[
            numblocks,
            ("GNU.sparse.size", size),
            ("GNU.sparse.offset", b"0"),
            ("GNU.sparse.numbytes", b"4"),
            ("GNU.sparse.offset", b"12288"),
            ("GNU.sparse.numbytes", b"2"),
        ],
    );
    push(&mut bytes, &header(b'0', "s00", 6), b"headzz");
    let mut expected = vec![0; 16384];
    expected[..4].copy_from_slice(b"head");
    expected[12288..12290].copy_from_slice(b"zz");
    let mut archive = Archive::new(&bytes[..]);
    for _ in 0..3 {
        let (all, pieces) = content(&mut archive, 4096);
        assert_eq!(all, expected);
        assert_eq!(pieces, [Piece::Data, Piece::Hole(8192), Piece::Data]);
    }
}

#[test]
fn a_piece_may_span_chunks() {
    let mut bytes = Vec::new();
    let records: [(&str, &[u8]); 3] =
        [("GNU.sparse.numblocks", b"1"), ("GNU.sparse.size", b"1000000000000"), ("GNU.sparse.map", b"5000,6000")];
    pax(&mut bytes, &records);
    push(&mut bytes, &header(b'0', "s", 6000), &[7; 6000]);
    let mut archive = Archive::new(&bytes[..]);
    let entry = archive.next_entry().unwrap().unwrap();
    let EntryKind::File { size, pieces } = entry.kind else { panic!() };
    let mut content = Content::new(archive.data(), size, pieces);
    let mut buffer = Vec::new();
    assert_eq!(content.next(4096, &mut buffer).unwrap(), Some(Piece::Hole(4096)));
    assert_eq!(content.next(4096, &mut buffer).unwrap(), Some(Piece::Data));
    assert_eq!(buffer.iter().position(|b| *b == 7), Some(904));
    assert_eq!(content.next(4096, &mut buffer).unwrap(), Some(Piece::Data));
    assert_eq!(buffer.iter().filter(|b| **b == 7).count(), 11000 - 8192);
    assert_eq!(content.next(4096, &mut buffer).unwrap(), Some(Piece::Hole(1_000_000_000_000 - 12288)));
    assert_eq!(content.next(4096, &mut buffer).unwrap(), None);
}

#[test]
fn errors_name_entry_and_position() {
    let mut good = Vec::new();
    push(&mut good, &header(b'0', "fine", 600), &[1; 600]);
    let with = |kind, size| [good.clone(), header(kind, "bad", size).as_bytes().to_vec()].concat();
    let mut record = good.clone();
    pax(&mut record, &[("uid", b"root")]);
    push(&mut record, &header(b'0', "bad", 0), b"");
    for (what, bytes, expected) in [
        (
            "a member that is cut",
            good[..700].to_vec(),
            "entry \"fine\" at byte 0 of the archive: the archive is truncated",
        ),
        (
            "a header that is cut",
            with(b'0', 0)[..1600].to_vec(),
            "header at byte 1536 of the archive, after entry \"fine\": ",
        ),
        (
            "a checksum",
            [good.clone(), vec![b'x'; 512]].concat(),
            "header at byte 1536 of the archive, after entry \"fine\": ",
        ),
        ("the first header", vec![b'x'; 512], "header at byte 0 of the archive: the archive is corrupt"),
        (
            "an extended header",
            with(b'x', 1 << 40),
            "header at byte 1536 of the archive, after entry \"fine\": more than",
        ),
        ("a label", with(b'V', 0), "entry \"bad\" at byte 1536 of the archive: unsupported: tar entry type 'V'"),
        ("contiguous", with(b'7', 0), "entry \"bad\" at byte 1536 of the archive: unsupported: tar entry type '7'"),
        ("old sparse", with(b'S', 0), "entry \"bad\" at byte 1536 of the archive: unsupported: tar entry type 'S'"),
        ("a record", record, "entry \"bad\" at byte 2560 of the archive: the archive is corrupt: a record"),
    ] {
        let error = crate::check_layer(&bytes[..]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{what}: {error}");
    }
    crate::check_layer(&good[..]).unwrap();
}

#[test]
fn a_layer_may_be_empty_or_lack_its_end() {
    let mut file = Vec::new();
    push(&mut file, &header(b'0', "f", 3), b"abc");
    for (what, bytes, entries) in [
        ("no bytes", &[][..], 0),
        ("zeros", &[0; 1024], 0),
        ("one block of zeros", &[0; 512], 0),
        ("no end", &file, 1),
        ("no padding", &file[..515], 1),
    ] {
        assert_eq!(crate::check_layer(bytes).unwrap(), entries, "{what}");
    }
}
