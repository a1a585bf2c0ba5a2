//! The mount table, `/proc/self/mountinfo`: its lines and their escapes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    /// `MAJOR:MINOR` of the device that `stat` shows.
    pub(crate) device: String,
    /// Where it is mounted.
    pub(crate) path: PathBuf,
    /// Type, with the subtype: `fuse.lazo`.
    pub(crate) fs_type: String,
    /// What is mounted.
    pub(crate) source: PathBuf,
    /// Options of the filesystem, still escaped.
    pub(crate) options: Vec<u8>,
}

/// The table's lines that can be read; of those with the same path the last one is on top.
pub(crate) fn lines(table: &[u8]) -> impl DoubleEndedIterator<Item = Line> {
    table.split(|&b| b == b'\n').filter_map(line)
}

/// The line on top at a path.
pub(crate) fn on_top(table: &[u8], path: &Path) -> Option<Line> {
    let is_there = |point: &[u8]| match point.contains(&b'\\') {
        true => unescape(point) == path,
        false => point == path.as_os_str().as_bytes(),
    };
    table.split(|&b| b == b'\n').rev().find(|line| point(line).is_some_and(is_there)).and_then(line)
}

fn point(line: &[u8]) -> Option<&[u8]> {
    line.split(|&b| b == b' ').nth(4)
}

fn line(line: &[u8]) -> Option<Line> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    // A variable number of optional fields ends with a hyphen; type, source and options follow.
    let hyphen = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    Some(Line {
        device: text(fields[2]),
        path: unescape(fields[4]),
        fs_type: text(fields.get(hyphen + 1)?),
        source: unescape(fields.get(hyphen + 2)?),
        options: fields.get(hyphen + 3)?.to_vec(),
    })
}

/// Undoes the mount table's octal escapes (`\040` for a space).
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| digits.iter().all(|digit| matches!(digit, b'0'..=b'7')));
        let digits = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                path.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                path.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undoes_escapes() {
        assert_eq!(unescape(b"/a\\040b\\134c\\"), Path::new("/a b\\c\\"));
        for plain in ["/\\+12", "/\\400", "/\\8", "/\\04"] {
            assert_eq!(unescape(plain.as_bytes()), Path::new(plain));
        }
    }

    #[test]
    fn cut_lines_are_left_out() {
        let table = b"22 28 0:21 / /sys rw shared:7 - sysfs sysfs rw\n23 28 0:22 / /x\n\n24 28 0:23 / /y rw -\n";
        assert_eq!(lines(table).map(|line| line.path).collect::<Vec<_>>(), [Path::new("/sys")]);
    }
}
