//! Owners of files in a user namespace.

use std::collections::BTreeMap;

use super::directories::Owner;
use super::error::Error;
use crate::labels;
use crate::store::Owners;

/// Ranges of a map. The kernel takes at most this many.
const MAX_RANGES: usize = 340;

/// What the labels say, if they say anything.
pub(crate) fn from_labels(labels: &BTreeMap<String, String>) -> Result<Option<Owners>, Error> {
    let (users, groups) = (labels.get(labels::UID_MAPPING), labels.get(labels::GID_MAPPING));
    match (users, groups) {
        (None, None) => Ok(None),
        (Some(users), Some(groups)) => {
            let owners = Owners { users: users.clone(), groups: groups.clone() };
            root(&owners)?;
            Ok(Some(owners))
        }
        _ => Err(Error::Map("users and groups are both needed")),
    }
}

/// Who is root in the namespace.
pub(super) fn root(owners: &Owners) -> Result<Owner, Error> {
    Ok((outside_root(&owners.users)?, outside_root(&owners.groups)?))
}

/// As the node daemon takes it.
pub(crate) fn for_daemon(owners: &Owners) -> String {
    format!("{},{}", owners.users.replace(',', "+"), owners.groups.replace(',', "+"))
}

/// The ID outside that is 0 inside.
fn outside_root(map: &str) -> Result<u32, Error> {
    let mut root = None;
    for (count, range) in map.split(',').enumerate() {
        if count >= MAX_RANGES {
            return Err(Error::Map("there are too many ranges"));
        }
        let numbers: Vec<u32> = range.split(':').map_while(|number| number.parse().ok()).collect();
        let [inside, outside, length] = numbers[..] else {
            return Err(Error::Map("ranges are INSIDE:OUTSIDE:COUNT, separated by commas"));
        };
        if range.split(':').count() != 3
            || inside.checked_add(length).is_none()
            || outside.checked_add(length).is_none()
        {
            return Err(Error::Map("ranges are INSIDE:OUTSIDE:COUNT, separated by commas"));
        }
        if inside == 0 && length > 0 {
            root = root.or(Some(outside));
        }
    }
    root.ok_or(Error::Map("they do not map ID 0"))
}
