//! Archives as tar writers make them, and as nobody should.

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
    let mut content = Content::new(archive, size, pieces);
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

#[test]
fn extensions_take_effect_in_order() {
    let mut bytes = Vec::new();
    push(&mut bytes, &header(b'L', "long", 5), b"gnu\0x");
    push(&mut bytes, &header(b'0', "short", 3), b"abc");
    let long = "d/".repeat(300) + "f";
    pax(&mut bytes, &[("path", long.as_bytes()), ("uid", b"4000000000"), ("mtime", b"-0.25"), ("size", b"2")]);
    push(&mut bytes, &header(b'0', "ignored", 0), b"xy");
    bytes.extend_from_slice(&[0; 1024]);
    let mut archive = Archive::new(&bytes[..]);
    let first = archive.next_entry().unwrap().unwrap();
    assert_eq!(first.path, b"gnu");
    assert_eq!((first.meta.permissions, first.meta.uid, first.meta.gid, first.meta.mtime.seconds), (0o4755, 1, 2, 3));
    let second = archive.next_entry().unwrap().unwrap();
    assert_eq!(second.path, long.as_bytes());
    assert_eq!(second.meta.uid, 4_000_000_000);
    assert_eq!(second.meta.mtime, Timestamp { seconds: -1, nanoseconds: 750_000_000 });
    let mut data = [0; 8];
    assert_eq!(archive.read_data(&mut data).unwrap(), 2);
    assert_eq!(&data[..2], b"xy");
    assert!(archive.next_entry().unwrap().is_none());
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
    pax(&mut bytes, &[("GNU.sparse.size", size), ("GNU.sparse.map", b"0,4,12288,2")]);
    push(&mut bytes, &header(b'0', "s01", 6), b"headzz");
    pax(
        &mut bytes,
        &[
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
    pax(&mut bytes, &[("GNU.sparse.size", b"1000000000000"), ("GNU.sparse.map", b"5000,6000")]);
    push(&mut bytes, &header(b'0', "s", 6000), &[7; 6000]);
    let mut archive = Archive::new(&bytes[..]);
    let entry = archive.next_entry().unwrap().unwrap();
    let EntryKind::File { size, pieces } = entry.kind else { panic!() };
    let mut content = Content::new(&mut archive, size, pieces);
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
fn negative_base_256_times() {
    let mut early = header(b'0', "f", 0);
    let mut field = [0xff; 12];
    field[11] = 0xfe;
    early.as_gnu_mut().unwrap().mtime = field;
    early.set_cksum();
    let mut archive = Archive::new(&early.as_bytes()[..]);
    assert_eq!(archive.next_entry().unwrap().unwrap().meta.mtime.seconds, -2);
}

#[test]
fn broken_archives_are_refused() {
    let mut good = Vec::new();
    push(&mut good, &header(b'0', "f", 600), &[1; 600]);
    let check = |bytes: &[u8]| {
        let mut archive = Archive::new(bytes);
        while archive.next_entry()?.is_some() {}
        Ok::<_, LayerError>(())
    };
    check(&good).unwrap();
    for cut in [1, 511, 513, 1100] {
        assert!(matches!(check(&good[..cut]).unwrap_err().problem(), Problem::Truncated), "cut at {cut}");
    }
    let mut flipped = good.clone();
    flipped[0] ^= 1;
    assert!(matches!(check(&flipped).unwrap_err().problem(), Problem::Corrupt(_)));
    let huge = header(b'x', "p", 1 << 40);
    assert!(matches!(check(huge.as_bytes()).unwrap_err().problem(), Problem::TooMany { .. }));
    let unknown = check(header(b'V', "label", 0).as_bytes()).unwrap_err();
    assert_eq!(unknown.entry(), Some(&b"label"[..]));
    for map in ["0,4,2,2", "0,4,16384,2", "0,5", "0", "18446744073709551615,2"] {
        let mut bytes = Vec::new();
        pax(&mut bytes, &[("GNU.sparse.size", b"16384"), ("GNU.sparse.map", map.as_bytes())]);
        push(&mut bytes, &header(b'0', "s", 6), b"headzz");
        assert!(matches!(check(&bytes).unwrap_err().problem(), Problem::Corrupt(_)), "{map}");
    }
}
