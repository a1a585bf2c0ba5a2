//! What a worker reads: requests, the records of the worker before it, and names of blobs' files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use lazo_storage::SourceSpec;

use super::blobs::{file_name, parse_name};
use super::image::Wanted;
use super::mounts::request_of;
use super::state::{DataOptions, ImageRecord, MountRecord, Stamped};
use crate::node::mounter::IdMap;
use crate::node::protocol::{ApiError, ErrorKind, MountRequest, Served};

/// A request whose paths were looked at.
///
/// # Errors
/// What the client is told is wrong with it.
pub(in crate::node) fn request(request: &MountRequest) -> Result<(), ApiError> {
    let invalid = |error: &dyn std::fmt::Display| ApiError::new(ErrorKind::Invalid, error.to_string());
    if let Some(map) = &request.map {
        map.parse::<IdMap>().map_err(|error| invalid(&error))?;
    }
    for source in &request.sources {
        source.parse::<SourceSpec>().map_err(|error| invalid(&error))?;
    }
    let wanted = Wanted::of_request(request)?;
    assert!(wanted.references.iter().all(|name| !name.place().is_empty()));
    Ok(())
}

/// A record of an image or a mount.
pub(in crate::node) fn record(bytes: &[u8]) {
    if let Ok(stamped) = Stamped::<ImageRecord>::parse(bytes) {
        let again = serde_json::to_vec(&stamped).expect("paths from JSON are UTF-8");
        let again = Stamped::<ImageRecord>::parse(&again).expect("what was written here");
        assert_eq!(again.record, stamped.record);
        if let Ok(wanted) = Wanted::of_record(&stamped.record) {
            assert_eq!(wanted.references, stamped.record.references());
            assert_eq!(wanted.name, wanted.references[0].image);
        }
    }
    if let Ok(stamped) = Stamped::<MountRecord>::parse(bytes) {
        let again = serde_json::to_vec(&stamped).expect("paths from JSON are UTF-8");
        let again = Stamped::<MountRecord>::parse(&again).expect("what was written here");
        assert_eq!(again.record, stamped.record);
        // Who asked is not for a request to say.
        let wanted = MountRequest { user: 0, ..request_of(&stamped.record, Served::Erofs, &DataOptions::default()) };
        let again = serde_json::to_vec(&wanted).expect("paths from JSON are UTF-8");
        assert_eq!(serde_json::from_slice::<MountRequest>(&again).ok(), Some(wanted));
    }
}

/// A name that somebody looks for in the mount of blobs.
pub(in crate::node) fn blob_name(name: &[u8]) {
    let name = OsStr::from_bytes(name);
    if let Some((slot, blob)) = parse_name(name) {
        assert_eq!(file_name(slot, blob).as_str(), name, "one file has two names");
    }
}
