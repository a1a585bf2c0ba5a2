//! PAX extended headers: `LENGTH KEY=VALUE\n` records, read by their lengths, since a value (an xattr) may hold any byte.

use lazo_format::{Timestamp, Xattr};

use crate::error::Problem;

/// Prefix under which docker, containerd and GNU tar keep extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records of one extended header that matter here, parsed.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records: format 0.0 and 0.1 carry the map here, 1.0 puts it before the data.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offset and length in turn.
    pub(super) map: Vec<u64>,
}

impl PaxSparse {
    /// Whether the data begins with a map (format 1.0).
    pub(super) fn map_in_data(&self) -> bool {
        self.major == Some(1) && self.minor == Some(0)
    }

    /// Whether the entry is sparse at all.
    pub(super) fn is_present(&self) -> bool {
        self.map_in_data() || !self.map.is_empty() || (self.real_size.is_some() && self.major.is_none())
    }
}

/// Parses a whole extended header.
pub(super) fn parse(mut bytes: &[u8], max_sparse_numbers: usize) -> Result<Pax, Problem> {
    let mut pax = Pax::default();
    while !bytes.is_empty() && bytes[0] != 0 {
        let (key, value, rest) = record(bytes).ok_or(Problem::Corrupt("malformed PAX record"))?;
        bytes = rest;
        pax.apply(key, value, max_sparse_numbers)?;
    }
    // Of several records of one name the last counts. The order of xattrs means nothing.
    pax.xattrs.reverse();
    pax.xattrs.sort_by(|a, b| a.name.cmp(&b.name));
    pax.xattrs.dedup_by(|later, first| later.name == first.name);
    Ok(pax)
}

/// Splits the first record off: key, value, and what follows.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let body = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|b| *b == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[length..]))
}

impl Pax {
    fn apply(&mut self, key: &[u8], value: &[u8], max_sparse_numbers: usize) -> Result<(), Problem> {
        // An empty value withdraws the record; every runtime's tar reader (Go's) takes an xattr without a value so, too.
        if value.is_empty() {
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
            self.xattrs.push(Xattr { name: name.into(), value: value.into() });
            return Ok(());
        }
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(timestamp(value)?),
            b"GNU.sparse.major" => self.sparse.major = Some(number(value)?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number(value)?),
            b"GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(number(value)?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number(value)?),
            b"GNU.sparse.map" => {
                self.sparse.map = value.split(|b| *b == b',').map(number).collect::<Result<_, _>>()?;
            }
            _ => {}
        }
        if self.sparse.map.len() > max_sparse_numbers {
            return Err(Problem::TooMany { what: "pieces in a sparse file", limit: max_sparse_numbers as u64 / 2 });
        }
        Ok(())
    }
}

/// A decimal number without sign.
pub(super) fn number(value: &[u8]) -> Result<u64, Problem> {
    std::str::from_utf8(value).ok().and_then(|s| s.parse().ok()).ok_or(Problem::Corrupt("a number that is none"))
}

/// Seconds since 1970 with an optional sign and fraction; digits beyond nanoseconds are dropped.
fn timestamp(value: &[u8]) -> Result<Timestamp, Problem> {
    const BAD: Problem = Problem::Corrupt("an mtime that is no number");
    let text = std::str::from_utf8(value).map_err(|_| BAD)?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return Err(BAD);
    }
    let whole: i64 = whole.parse().map_err(|_| BAD)?;
    let nanoseconds: u32 = format!("{fraction:0<9.9}").parse().map_err(|_| BAD)?;
    Ok(match (negative, nanoseconds) {
        (false, nanoseconds) => Timestamp { seconds: whole, nanoseconds },
        (true, 0) => Timestamp { seconds: -whole, nanoseconds: 0 },
        (true, nanoseconds) => Timestamp { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let length = (body + 1..body + 20).find(|l| l.to_string().len() + body == *l).unwrap();
        [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
    }

    #[test]
    fn values_may_hold_any_byte() {
        let value = b"\x01\n\0=\n 12 path=evil\n";
        let bytes = [one("SCHILY.xattr.user.a", value), one("path", b"dir/name\nwith line")].concat();
        let pax = parse(&bytes, 10).unwrap();
        assert_eq!(&*pax.xattrs[0].value, value);
        assert_eq!(pax.path.unwrap(), b"dir/name\nwith line");
    }

    #[test]
    fn the_last_of_one_name_counts() {
        let records = [("user.b", b"1"), ("user.a", b"2"), ("user.b", b"3")];
        let bytes = records.map(|(name, value)| one(&format!("SCHILY.xattr.{name}"), value)).concat();
        let xattrs = parse(&bytes, 10).unwrap().xattrs;
        let xattrs: Vec<(&[u8], &[u8])> = xattrs.iter().map(|x| (&*x.name, &*x.value)).collect();
        assert_eq!(xattrs, [(&b"user.a"[..], &b"2"[..]), (b"user.b", b"3")]);
    }

    #[test]
    fn times() {
        for (text, seconds, nanoseconds) in [
            ("12", 12, 0),
            ("12.5", 12, 500_000_000),
            ("0.000000001", 0, 1),
            ("1.1234567899", 1, 123_456_789),
            ("-1.5", -2, 500_000_000),
            ("-7", -7, 0),
        ] {
            let got = timestamp(text.as_bytes()).unwrap();
            assert_eq!((got.seconds, got.nanoseconds), (seconds, nanoseconds), "{text}");
        }
        for bad in ["", "x", "1.x", "--1", "1.-5"] {
            assert!(timestamp(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn malformed_records_are_refused() {
        for bad in [&b"5 a"[..], b"99 path=x\n", b"x path=y\n", b"9 pathxyz\n", b"0 \n", b"3 =\n"] {
            assert!(parse(bad, 10).is_err(), "{}", bad.escape_ascii());
        }
        assert!(parse(&one("GNU.sparse.map", b"1,2,3,4"), 2).is_err());
    }
}
