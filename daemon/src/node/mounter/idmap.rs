//! Which users the files of a mount belong to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Most ranges of one kind: the kernel's limit.
const MAX_RANGES: usize = 340;

/// What the kernel takes for one kind of ids in bytes: less than a page.
const MAX_TEXT: usize = 4095;

/// Whose the files of a mount are: as `UIDS[,GIDS]`, each of ranges `INSIDE:OUTSIDE:COUNT` joined by `+`; without GIDS groups are
/// mapped as users are. Ids in no range belong to nobody (65534).
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq, Hash)]
#[serde(try_from = "String", into = "String")]
pub(in crate::node) struct IdMap {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
}

/// Consecutive ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct IdRange {
    /// First id in the image.
    inside: u32,
    /// What it is shown as.
    outside: u32,
    /// How many; at least one.
    count: u32,
}

impl IdMap {
    /// As `/proc/PID/uid_map` takes it.
    pub(super) fn uids(&self) -> String {
        lines(&self.uids)
    }

    /// As `/proc/PID/gid_map` takes it.
    pub(super) fn gids(&self) -> String {
        lines(&self.gids)
    }
}

fn lines(ranges: &[IdRange]) -> String {
    ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count)).collect()
}

/// A text that is no map of ids.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::node) enum IdMapError {
    /// Not three numbers.
    #[error("{0:?} is not INSIDE:OUTSIDE:COUNT, such as 0:100000:65536")]
    Range(String),
    /// Ids are below 2^32 - 1.
    #[error("{0} is empty or has ids beyond 4294967294")]
    Bounds(String),
    /// An id is in two ranges.
    #[error("{0} and {1} overlap")]
    Overlap(String, String),
    /// More than the kernel takes.
    #[error("more than {MAX_RANGES} ranges, or {MAX_TEXT} bytes of them, are more than the kernel takes")]
    TooMany,
}

impl FromStr for IdMap {
    type Err = IdMapError;

    fn from_str(text: &str) -> Result<Self, IdMapError> {
        let (uids, gids) = text.split_once(',').unwrap_or((text, text));
        Ok(Self { uids: ranges(uids)?, gids: ranges(gids)? })
    }
}

fn ranges(text: &str) -> Result<Vec<IdRange>, IdMapError> {
    let ranges = text.split('+').take(MAX_RANGES + 1).map(IdRange::from_str).collect::<Result<Vec<_>, _>>()?;
    if ranges.len() > MAX_RANGES || lines(&ranges).len() > MAX_TEXT {
        return Err(IdMapError::TooMany);
    }
    for first in [|range: &IdRange| range.inside, |range: &IdRange| range.outside] {
        let mut sorted: Vec<_> = ranges.iter().collect();
        sorted.sort_by_key(|range| first(range));
        if let Some(pair) = sorted.windows(2).find(|pair| first(pair[1]) - first(pair[0]) < pair[0].count) {
            return Err(IdMapError::Overlap(pair[0].to_string(), pair[1].to_string()));
        }
    }
    Ok(ranges)
}

impl FromStr for IdRange {
    type Err = IdMapError;

    fn from_str(text: &str) -> Result<Self, IdMapError> {
        let wrong = || IdMapError::Range(text.chars().take(64).collect());
        let numbers: Option<Vec<u32>> = text.split(':').take(4).map(|part| part.parse().ok()).collect();
        let Ok([inside, outside, count]) = <[u32; 3]>::try_from(numbers.ok_or_else(wrong)?) else {
            return Err(wrong());
        };
        let range = Self { inside, outside, count };
        // The last number, 2^32 - 1, stands for "none".
        let fits = |first: u32| first.checked_add(count).is_some();
        if count > 0 && fits(inside) && fits(outside) { Ok(range) } else { Err(IdMapError::Bounds(range.to_string())) }
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.inside, self.outside, self.count)
    }
}

impl fmt::Display for IdMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |ranges: &[IdRange]| ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        f.write_str(&text(&self.uids))?;
        if self.gids == self.uids { Ok(()) } else { write!(f, ",{}", text(&self.gids)) }
    }
}

impl TryFrom<String> for IdMap {
    type Error = IdMapError;

    fn try_from(text: String) -> Result<Self, IdMapError> {
        text.parse()
    }
}

impl From<IdMap> for String {
    fn from(map: IdMap) -> Self {
        map.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_ids() {
        let parse = |text: &str| text.parse::<IdMap>();
        let map = parse("0:100000:65536").unwrap();
        assert_eq!((map.uids().as_str(), map.gids().as_str()), ("0 100000 65536\n", "0 100000 65536\n"));
        let map = parse("0:1000:1+1:100000:65535,0:5:1").unwrap();
        assert_eq!((map.uids().as_str(), map.gids().as_str()), ("0 1000 1\n1 100000 65535\n", "0 5 1\n"));
        for text in ["0:0:4294967295", "0:1000:1+1:100000:65535,0:5:1", "7:8:9"] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
        for text in
            ["", "0", "0:1", "0:1:2:3", "a:1:2", "0:-1:2", "0:4294967296:1", " 0:1:2", "0:1:2,", "0:1:2,0:1:2,0:1:2"]
        {
            assert!(matches!(parse(text), Err(IdMapError::Range(_))), "{text:?}");
        }
        for text in ["0:0:0", "1:0:4294967295", "0:1:4294967295"] {
            assert!(matches!(parse(text), Err(IdMapError::Bounds(_))), "{text:?}");
        }
        for text in ["0:0:10+9:100:1", "9:100:1+0:0:10", "0:5:10+20:0:6"] {
            assert!(matches!(parse(text), Err(IdMapError::Overlap(..))), "{text:?}");
        }
        let many = |count: u32| (0..count).map(|n| format!("{n}:{n}:1")).collect::<Vec<_>>().join("+");
        assert!(parse(&many(340)).is_ok());
        assert_eq!(parse(&many(341)), Err(IdMapError::TooMany));
    }
}
