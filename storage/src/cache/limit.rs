//! How large the cache may become.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// The smallest limit. What is fetched must stay until it has been read: 16 MiB of stored bytes wait for readers at a time,
/// which are some 48 MiB unpacked at the ratio of 3.3 that was measured.
pub const MIN_LIMIT: u64 = 64 << 20;

/// How far the cache may be over its limit for a moment, in bytes. The count of what is used is kept in a file that all processes
/// share; when it is made anew, other processes may have been promised room that they have not written to yet: 1 MiB,
/// and a chunk on each decoding thread. 32 MiB are 16 processes that all write at that moment.
pub const LIMIT_SLACK: u64 = 32 << 20;

/// Most bytes the cache may take on disk, for all blobs of a state directory and all processes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// As many as there is room for.
    None,
    /// So many bytes.
    Bytes(u64),
    /// A part of the file system, in percent of its size.
    Percent(u8),
}

impl Default for Limit {
    /// Half of the file system: container images and logs usually live on it too, and the kubelet begins to delete images when it
    /// is 85 % full. With a file system of its own for the state directory, more can be had.
    fn default() -> Self {
        Self::Percent(50)
    }
}

impl Limit {
    /// The limit in bytes for a directory's file system. A part of a small disk may be less than [`MIN_LIMIT`], which counts then.
    pub(super) fn bytes(self, dir: &Path) -> Option<u64> {
        match self {
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
            Self::Percent(percent) => {
                // Without an answer there is nothing to take a part of; a full disk is survived all the same.
                let disk = rustix::fs::statvfs(dir).ok()?;
                let size = u128::from(disk.f_blocks) * u128::from(disk.f_frsize);
                let part = u64::try_from(size * u128::from(percent) / 100).unwrap_or(u64::MAX);
                Some(part.max(MIN_LIMIT))
            }
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => {
                let fits = UNITS.iter().rev().find(|(_, shift)| *bytes != 0 && bytes.trailing_zeros() >= *shift);
                match fits {
                    Some((unit, shift)) => write!(f, "{}{unit}", bytes >> shift),
                    None => write!(f, "{bytes}"),
                }
            }
        }
    }
}

/// Not a limit or size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum LimitError {
    /// It does not parse as a size.
    #[error("{0:?} is no size; give bytes, or a number with K, M, G or T (powers of 1024)")]
    Size(String),
    /// It does not parse as a limit.
    #[error("{0:?} is no limit; give a size such as 20G, a part of the file system such as 50%, or none")]
    Limit(String),
    /// A part that is none.
    #[error("{0:?} is no part of a file system; give 1% to 100%")]
    Percent(String),
    /// Less than a cache can work with.
    #[error("a cache of {0:?} could not hold what is being read; give at least 64M")]
    TooSmall(String),
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        if text.eq_ignore_ascii_case("none") {
            return Ok(Self::None);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent = percent.trim().parse().ok().filter(|percent| (1..=100).contains(percent));
            return percent.map(Self::Percent).ok_or_else(|| LimitError::Percent(text.into()));
        }
        match parse_size(text) {
            Ok(bytes) if bytes >= MIN_LIMIT => Ok(Self::Bytes(bytes)),
            Ok(_) => Err(LimitError::TooSmall(text.into())),
            Err(_) => Err(LimitError::Limit(text.into())),
        }
    }
}

/// Letters of the units, and the powers of two that they stand for.
const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

/// Parses a size: bytes, or a number with K, M, G or T behind it, for powers of 1024; `iB` or `B` may follow.
///
/// # Errors
/// [`LimitError::Size`].
pub fn parse_size(text: &str) -> Result<u64, LimitError> {
    let bad = || LimitError::Size(text.into());
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.trim_start();
    let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
    let mut letters = unit.chars();
    let shift = match (letters.next(), letters.next()) {
        (None, _) => 0,
        (Some(letter), None) => {
            let unit = UNITS.iter().find(|(unit, _)| unit.eq_ignore_ascii_case(&letter));
            unit.map(|(_, shift)| *shift).ok_or_else(bad)?
        }
        _ => return Err(bad()),
    };
    number.checked_mul(1 << shift).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_parts() {
        for (text, limit) in [
            ("none", Limit::None),
            ("20G", Limit::Bytes(20 << 30)),
            ("512m", Limit::Bytes(512 << 20)),
            ("512 MiB", Limit::Bytes(512 << 20)),
            ("1TB", Limit::Bytes(1 << 40)),
            ("67108864", Limit::Bytes(MIN_LIMIT)),
            ("50%", Limit::Percent(50)),
            ("100 %", Limit::Percent(100)),
        ] {
            assert_eq!(text.parse(), Ok(limit), "{text}");
            assert_eq!(limit.to_string().parse(), Ok(limit), "{limit}");
        }
        for text in ["", "G", "1.5G", "-1", "20X", "20GG", "20iB ", "0%", "101%", "%", "63M", "0", "99999999999T"] {
            assert!(text.parse::<Limit>().is_err(), "{text}");
        }
        assert_eq!(parse_size("0"), Ok(0));
        assert_eq!(Limit::Bytes(1000).to_string(), "1000");
    }

    #[test]
    fn a_part_of_a_disk_is_at_least_the_smallest_limit() {
        let all = Limit::Percent(100).bytes(Path::new("/")).unwrap();
        let half = Limit::Percent(50).bytes(Path::new("/")).unwrap();
        assert!(half <= all && half >= MIN_LIMIT, "{half} of {all}");
        assert_eq!(Limit::Percent(50).bytes(Path::new("/not/there")), None);
        assert_eq!(Limit::None.bytes(Path::new("/")), None);
    }
}
