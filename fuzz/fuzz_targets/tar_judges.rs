//! The members of an archive, as lazo's reader has them, against Go's `archive/tar`: the same, byte by byte, or a refusal by both.
//!
//! Input whose first byte is even is an archive as it stands, and once more with its checksums mended. Other input is a list of
//! instructions for headers with fields that matter, so that the fuzzer gets deep.
//!
//! Python's `tarfile` differs in too many ways for a comparison of whatever comes; `base/tests/tar.rs` lists them.
#![no_main]

#[expect(dead_code, reason = "shared with tests, which use all of it")]
#[path = "../../base/tests/judges/craft.rs"]
mod craft;
#[expect(dead_code, reason = "shared with tests, which use all of it")]
#[path = "../../base/tests/judges/mod.rs"]
mod judges;
mod mend;

use std::cell::RefCell;

use craft::{GNU, Head, USTAR, V7, padded, record};
use judges::{Judge, lazo};
use libfuzzer_sys::fuzz_target;

thread_local! {
    static GO: RefCell<Judge> = RefCell::new(Judge::go());
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, data)) = data.split_first() else { return };
    if mode % 2 == 0 {
        compare(data);
        let mut mended = data.to_vec();
        mend::tar(&mut mended);
        compare(&mended);
    } else {
        compare(&assemble(data));
    }
});

fn compare(archive: &[u8]) {
    let Some(ours) = lazo(archive) else { return };
    let theirs = GO.with_borrow_mut(|go| go.ask(archive));
    let (ours, theirs) = (comparable(&ours), comparable(&theirs));
    assert!(ours == theirs, "lazo: {ours:?}\nGo: {theirs:?}\nof {}", archive.escape_ascii());
}

/// The members, or `None` for a refusal. A global header's name depends on the order of Go's maps when its records are broken.
fn comparable(answer: &str) -> Option<String> {
    let refused = answer.lines().last().is_some_and(|line| line.starts_with("refused"));
    let nameless = |line: &str| if line.starts_with("67 ") { "67\n".to_owned() } else { format!("{line}\n") };
    (!refused).then(|| answer.lines().map(nameless).collect())
}

/// Instructions, of which there may be too few: then they are zeros.
struct Instructions<'a>(&'a [u8]);

impl<'a> Instructions<'a> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.byte()) % choices.len()]
    }

    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let length = usize::from(self.byte()).min(most).min(self.0.len());
        let (bytes, rest) = self.0.split_at(length);
        self.0 = rest;
        bytes
    }
}

/// Headers in an archive made of instructions.
const MEMBERS: usize = 24;

const NUMBERS: [&[u8]; 24] = [
    b"0000000",
    b"0000001\0",
    b"0000010\0",
    b"00000001000",
    b"00000002000\0",
    b"",
    b"\0\0",
    b"        ",
    b" 1 ",
    b"\x0017\0",
    b"17\x009",
    b"8",
    b"-1",
    b"+1",
    b"1 1",
    b"\x80",
    b"\x80\0\0\0\0\0\0\x04",
    b"\x80\0\0\0\0\0\0\0\0\0\0\x09",
    b"\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff\xfe",
    b"\xc0",
    b"\x81\0\0\0\0\0\0\x01",
    b"77777777",
    b"777777777777",
    b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
];
const NAMES: [&[u8]; 12] = [
    b"a",
    b"d/",
    b"x/y",
    b"",
    b"/",
    b"./a",
    b"../a",
    b"\xff",
    b"long/name\0rest",
    b"a\0b",
    b".wh.a",
    b"GNUSparseFile.0/a",
];
const KEYS: [&[u8]; 24] = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"atime",
    b"ctime",
    b"uname",
    b"gname",
    b"SCHILY.xattr.user.a",
    b"SCHILY.xattr.",
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.name",
    b"GNU.sparse.realsize",
    b"GNU.sparse.size",
    b"GNU.sparse.map",
    b"GNU.sparse.numblocks",
    b"GNU.sparse.offset",
    b"GNU.sparse.numbytes",
    b"comment",
    b"",
    b"a\0b",
];
const VALUES: [&[u8]; 26] = [
    b"",
    b"0",
    b"1",
    b"2",
    b"4",
    b"512",
    b"1024",
    b"+4",
    b"-4",
    b"-1",
    b"-0.5",
    b"1.5",
    b"1.",
    b".5",
    b"0,4",
    b"0,4,600,2",
    b"0,0,0,0",
    b"4,4,0,4",
    b"9223372036854775807",
    b"9223372036854775808",
    b"-9223372036854775808.1",
    b"x/",
    b"a\0b",
    b"00012",
    b"0,9223372036854775807",
    b"name",
];
const KINDS: &[u8] = b"000\0\0xxxxxgLKSSS1234567V";

fn assemble(data: &[u8]) -> Vec<u8> {
    let mut from = Instructions(data);
    let mut archive = Vec::new();
    for _ in 0..MEMBERS {
        if from.0.is_empty() {
            break;
        }
        match from.byte() % 16 {
            0 => archive.extend_from_slice(&[0; 512]),
            1 => archive.extend_from_slice(&[0; 1024]),
            2 => {
                let cut = usize::from(from.byte()) * 4;
                archive.truncate(archive.len().saturating_sub(cut));
            }
            3 => archive.extend_from_slice(from.bytes(255)),
            _ => append(&mut archive, &mut from),
        }
    }
    archive
}

fn append(archive: &mut Vec<u8>, from: &mut Instructions<'_>) {
    let kind = from.one_of(KINDS);
    let body = match kind {
        b'x' | b'g' => records(from),
        b'L' | b'K' => [from.one_of(&NAMES), from.one_of(&[&b""[..], b"\0", b"\0more"])].concat(),
        _ => content(from),
    };
    let magic = from.one_of(&[USTAR, USTAR, GNU, GNU, V7, b"ustar\x0099", b"ustar 00"]);
    let mut head = Head::new(magic, kind, from.one_of(&NAMES), body.len());
    if kind == b'S' {
        head = sparse(head, from);
    }
    for _ in 0..from.byte() % 8 {
        head = oddity(head, from);
    }
    let signed = from.byte() % 8 == 0;
    archive
        .extend_from_slice(&head.summed(|byte| if signed { i64::from(byte.cast_signed()) } else { i64::from(byte) }));
    archive.extend_from_slice(&padded(body));
}

fn records(from: &mut Instructions<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..from.byte() % 8 {
        match from.byte() % 16 {
            0 => body.extend_from_slice(from.bytes(40)),
            1 => body.extend_from_slice(from.one_of(&[
                &b"0009 a=b\n"[..],
                b"+8 a=bc\n",
                b"4 a=b\n",
                b"99 a=b\n",
                b"\0\0",
                b"5 =a\n",
            ])),
            2 => body.extend_from_slice(&record(from.one_of(&KEYS), from.bytes(40))),
            // A whole description of a sparse file: what is put together of single records hardly ever is one.
            3 | 4 => {
                let map = from.one_of(&[&b"0,4,600,2"[..], b"0,4", b"0,6", b"", b"2,4", b"0,4,4,2", b"0,2,1,4"]);
                let count = map.split(|byte| *byte == b',').count() / 2;
                body.extend_from_slice(&record(b"GNU.sparse.map", map));
                body.extend_from_slice(&record(b"GNU.sparse.numblocks", count.to_string().as_bytes()));
                body.extend_from_slice(&record(
                    from.one_of(&[&b"GNU.sparse.size"[..], b"GNU.sparse.realsize"]),
                    from.one_of(&VALUES),
                ));
            }
            5 => {
                body.extend_from_slice(&record(b"GNU.sparse.major", from.one_of(&[&b"0"[..], b"1", b"1", b"2"])));
                body.extend_from_slice(&record(b"GNU.sparse.minor", from.one_of(&[&b"0"[..], b"0", b"1"])));
            }
            _ => body.extend_from_slice(&record(from.one_of(&KEYS), from.one_of(&VALUES))),
        }
    }
    body
}

fn content(from: &mut Instructions<'_>) -> Vec<u8> {
    match from.byte() % 8 {
        0 | 1 => Vec::new(),
        2 => b"data".to_vec(),
        3 => b"sixsix".to_vec(),
        4 => Head::new(USTAR, b'0', b"hidden", 0).done(),
        5 => padded(from.bytes(200).to_vec()),
        6 => [padded(b"2\n0\n4\n600\n2\n".to_vec()), b"sixsix".to_vec()].concat(),
        _ => [padded(from.bytes(60).to_vec()), b"sixsix".to_vec()].concat(),
    }
}

/// Fills in the map of GNU's old format.
fn sparse(head: Head, from: &mut Instructions<'_>) -> Head {
    let mut head = head.put(483, from.one_of(&[&b"00000002000\0"[..], b"00000000006\0", b"00000000004\0", b"\xff"]));
    for piece in 0..from.byte() % 5 {
        let numbers = from.one_of(&[
            &b"00000000000\x0000000000004\0"[..],
            b"00000000000\x0000000000006\0",
            b"00000001130\x0000000000002\0",
            b"00000000000\x0000000000000\0",
            b"           7           7",
        ]);
        head = head.put(386 + 24 * usize::from(piece), numbers);
    }
    head.put(482, &[from.byte() % 4 / 3])
}

/// Overwrites a field.
fn oddity(head: Head, from: &mut Instructions<'_>) -> Head {
    let at = from.one_of(&[100, 108, 116, 124, 136, 329, 337, 345, 357, 386, 398, 476, 483, 488]);
    match from.byte() % 12 {
        0 => head.put(157, from.one_of(&NAMES)),
        1 => head.put(345, from.one_of(&NAMES)),
        2 => head.put(508, b"tar\0"),
        3 => head.put(0, from.bytes(100)),
        4 => head.put(usize::from(from.byte()) * 2, &[from.byte()]),
        _ => head.put(at, from.one_of(&NUMBERS)),
    }
}
