//! What no other reader can be asked about: bounds, positions, skipping. The rest is in `base/tests/tar.rs`.

use super::*;

#[expect(dead_code, reason = "shared with the tests against other readers, which use all of it")]
#[path = "../../tests/judges/craft.rs"]
mod craft;

use craft::{GNU, Head, USTAR, end, gnu_long, member, padded, pax, pax_body};

fn first_error(archive: &[u8]) -> Error {
    let mut reader = Reader::new(Stream(archive));
    loop {
        match reader.next_member() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a good archive"),
            Err(error) => return error,
        }
    }
}

#[test]
fn errors_name_member_and_position() {
    let good = member(b'0', "good", &[1; 700]);
    let next = good.len() as u64;
    type Case<'a> = (&'a str, Vec<u8>, Option<&'a [u8]>, u64);
    let sparse: [(&str, &[u8]); 4] = [
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.size", b"1"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"0,4"),
    ];
    let cases: [Case<'_>; 6] = [
        ("a sparse file's map", [pax(&sparse), member(b'0', "made-up", b"data")].concat(), Some(b"sparse"), 1024),
        ("a header", [good.clone(), vec![b'x'; 512]].concat(), None, next),
        ("a header cut short", [good.clone(), vec![b'x'; 12]].concat(), None, next),
        ("an extended header", [good.clone(), pax(&[("path", b"a\0")])].concat(), None, next),
        ("a member's record", [pax(&[("uid", b"x")]), good.clone()].concat(), Some(b"good"), 1024),
        (
            "a member's long name",
            [gnu_long(b'L', b"long"), pax(&[("mtime", b"x")]), good].concat(),
            Some(b"long"),
            2048,
        ),
    ];
    for (what, archive, name, position) in cases {
        let error = first_error(&archive);
        assert_eq!((error.member.as_deref(), error.position), (name, position), "{what}: {error}");
    }
}

#[test]
fn memory_is_bounded() {
    let long = |size: usize| Head::new(GNU, b'L', b"long", size).with(&vec![b'n'; size.min(2 << 20)]);
    let limit = usize::try_from(MAX_EXTENSION).unwrap();
    for size in [limit + 1, 1 << 32] {
        let fault = first_error(&long(size)).fault;
        assert!(matches!(fault, Fault::TooMuch { limit: MAX_EXTENSION, .. }), "{size}: {fault}");
    }
    let at_the_limit = [long(limit), member(b'0', "x", b""), end()].concat();
    let first = Reader::new(Stream(&at_the_limit[..])).next_member().unwrap().unwrap();
    assert_eq!(first.name.len() as u64, MAX_EXTENSION);

    let version: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")];
    let map = |map: &[u8]| [pax(&version), member(b'0', "s", &padded(map.to_vec()))].concat();
    for (what, archive) in [
        ("a count", map(b"262145\n")),
        ("digits", map(&[b'0'; 1024])),
        ("blocks", {
            let mut block = vec![b'0'; 504];
            block.extend_from_slice(b"\x01\0\0\0\0\0\0\0");
            let head = Head::new(GNU, b'S', b"s", 0).put(482, &[1]).put(483, b"00000000000\0");
            [head.done(), block.repeat(262_144 / 21 + 1)].concat()
        }),
    ] {
        let fault = first_error(&archive).fault;
        assert!(matches!(fault, Fault::TooMuch { .. }), "{what}: {fault}");
    }
}

/// An input that can be skipped without being read, and counts what was read.
struct Skipping<'a>(&'a [u8], usize);

impl Input for Skipping<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(self.0.len());
        buffer[..length].copy_from_slice(&self.0[..length]);
        (self.0, self.1) = (&self.0[length..], self.1 + length);
        Ok(length)
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let length = usize::try_from(count).unwrap().min(self.0.len());
        self.0 = &self.0[length..];
        Ok(length as u64)
    }
}

#[test]
fn data_is_skipped_and_positions_are_where_it_lies() {
    let archive = [member(b'0', "a", &[1; 100_000]), member(b'0', "b", b"data"), end()].concat();
    let mut reader = Reader::new(Skipping(&archive, 0));
    let mut places = Vec::new();
    while let Some(member) = reader.next_member().unwrap() {
        places.push((member.position, reader.position(), reader.data_left()));
    }
    assert_eq!(places, [(0, 512, 100_000), (100_864, 101_376, 4)]);
    assert_eq!(reader.into_inner().1, 4 * 512, "headers and the end");
}

#[test]
fn data_may_be_read_in_part_or_not_at_all() {
    let archive =
        [member(b'0', "a", b"data"), member(b'0', "b", b"more"), Head::new(USTAR, b'0', b"c", 9).done()].concat();
    let mut reader = Reader::new(Stream(&archive[..]));
    let mut two = [0; 2];
    reader.next_member().unwrap().unwrap();
    reader.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"da");
    reader.next_member().unwrap().unwrap();
    let mut all = Vec::new();
    reader.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"more");
    reader.next_member().unwrap().unwrap();
    assert_eq!(reader.read(&mut two).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn extensions_may_be_refused() {
    for extension in [pax(&[("path", b"x")]), gnu_long(b'L', b"x"), gnu_long(b'K', b"x"), pax_body(b'g', b"")] {
        let archive = [member(b'0', "a", b""), extension, member(b'0', "b", b"")].concat();
        let mut reader = Reader::without_extensions(Stream(&archive[..]));
        reader.next_member().unwrap().unwrap();
        assert!(matches!(reader.next_member().unwrap_err().fault, Fault::Extension));
    }
}
