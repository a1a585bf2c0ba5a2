//! Records of a PAX extended header: `LENGTH KEY=VALUE\n`, read by their lengths, since a value (an xattr) may hold any byte.

use std::collections::BTreeMap;

use super::{Fault, Time};

/// Prefix under which docker, containerd and GNU tar keep extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";
/// Piece of a sparse map in GNU's format 0.0, which repeats these two keys in turn.
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
const SPARSE_LENGTH: &[u8] = b"GNU.sparse.numbytes";
/// Shortest record that Go accepts: `5 a=`, a line feed.
const MIN_RECORD: usize = 5;
const NANOSECOND_DIGITS: usize = 9;

/// The records that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Path,
    Link,
    Size,
    Uid,
    Gid,
    Mtime,
    Atime,
    Ctime,
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseSize,
    SparseRealSize,
    SparseCount,
    SparseMap,
}

/// Each key as it is written, at its place in [`Key`].
const KEYS: [(&[u8], Key); 15] = [
    (b"path", Key::Path),
    (b"linkpath", Key::Link),
    (b"size", Key::Size),
    (b"uid", Key::Uid),
    (b"gid", Key::Gid),
    (b"mtime", Key::Mtime),
    (b"atime", Key::Atime),
    (b"ctime", Key::Ctime),
    (b"GNU.sparse.major", Key::SparseMajor),
    (b"GNU.sparse.minor", Key::SparseMinor),
    (b"GNU.sparse.name", Key::SparseName),
    (b"GNU.sparse.size", Key::SparseSize),
    (b"GNU.sparse.realsize", Key::SparseRealSize),
    (b"GNU.sparse.numblocks", Key::SparseCount),
    (b"GNU.sparse.map", Key::SparseMap),
];
/// Texts that may not hold a NUL, beside `path` and `linkpath`.
const NAMES: [&[u8]; 2] = [b"uname", b"gname"];

/// One extended header. Of several records of one key the last counts, even when it is empty.
#[derive(Debug, Default)]
pub(super) struct Records {
    values: [Vec<u8>; KEYS.len()],
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Records {
    /// Parses a whole extended header. Values are looked at only when a member asks for them.
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, Fault> {
        let mut records = Self::default();
        let mut map: Vec<&[u8]> = Vec::new();
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(Fault::Corrupt("a malformed PAX record"))?;
            bytes = rest;
            if key == SPARSE_OFFSET || key == SPARSE_LENGTH {
                let expected = if map.len().is_multiple_of(2) { SPARSE_OFFSET } else { SPARSE_LENGTH };
                if key != expected || value.contains(&b',') {
                    return Err(Fault::Corrupt("pieces of a sparse file out of order"));
                }
                map.push(value);
            } else if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                records.xattrs.insert(name.to_vec(), value.to_vec());
            } else if let Some((_, known)) = KEYS.iter().find(|(name, _)| *name == key) {
                records.values[*known as usize] = value.to_vec();
            }
        }
        if !map.is_empty() {
            records.values[Key::SparseMap as usize] = map.join(&b',');
        }
        Ok(records)
    }

    /// The value of a record. An empty one says nothing.
    pub(super) fn get(&self, key: Key) -> Option<&[u8]> {
        Some(&*self.values[key as usize]).filter(|value| !value.is_empty())
    }

    pub(super) fn number(&self, key: Key) -> Result<Option<i64>, Fault> {
        self.get(key).map(number).transpose()
    }

    pub(super) fn time(&self, key: Key) -> Result<Option<Time>, Fault> {
        self.get(key).map(|value| time(value).ok_or(Fault::Corrupt("a time that is no number"))).transpose()
    }

    /// Names and values, by name.
    pub(super) fn into_xattrs(self) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.xattrs.into_iter().collect()
    }
}

/// Splits the first record off: key, value, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok().filter(|length| *length >= MIN_RECORD)?;
    let body = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    let holds_no_nul = match key {
        b"path" | b"linkpath" => value,
        _ if NAMES.contains(&key) => value,
        _ => key,
    };
    (!key.is_empty() && !holds_no_nul.contains(&0)).then_some((key, value, &bytes[length..]))
}

/// A decimal number with an optional sign, within 64 bits.
pub(super) fn decimal(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The same as a fault.
pub(super) fn number(digits: &[u8]) -> Result<i64, Fault> {
    decimal(digits).ok_or(Fault::Corrupt("a record that should be a number"))
}

/// Seconds since 1970 with an optional sign and fraction; digits beyond nanoseconds are dropped.
fn time(value: &[u8]) -> Option<Time> {
    let point = value.iter().position(|byte| *byte == b'.').unwrap_or(value.len());
    let (whole, fraction) = (&value[..point], value.get(point + 1..).unwrap_or_default());
    let seconds = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(NANOSECOND_DIGITS);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (whole.first(), nanoseconds) {
        // The second before the first wraps round, as in Go; nothing can have this time.
        (Some(b'-'), 1..) => Time { seconds: seconds.wrapping_sub(1), nanoseconds: 1_000_000_000 - nanoseconds },
        _ => Time { seconds, nanoseconds },
    })
}
