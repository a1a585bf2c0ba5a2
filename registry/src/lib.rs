//! OCI images where they are: references, credentials, the distribution client, layout directories and archives.
//!
//! A [`Source`] reads an image, a [`Destination`] takes one; both by an [`ImageRef`]. Every byte that comes through
//! [`Source::document`] and [`Source::blob`] has been checked against its digest and size; only
//! [`Source::blob_range`] and [`Endpoint::open_range`] cannot be, and leave that to whoever knows what the range should
//! hold.
//!
//! Memory: documents are bounded by [`MAX_DOCUMENT`], blobs are streamed.

mod archive;
mod auth;
mod blob;
mod choice;
mod config;
mod destination;
mod docker_archive;
mod document;
mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod hosts;
mod http;
mod json;
mod layout;
mod lazo;
pub mod media;
mod options;
mod platform;
mod reference;
mod registry;
mod repository;
mod section;
mod select;
mod shared;
mod source;
mod web;

pub use auth::{
    credentials::{Login, login_files},
    helper::{HELPER_TIMEOUT, HelperOutcome, Helpers, RunHelper, run_helper},
    keep::{Place, check_login, forget_login, keep_login},
};
pub use blob::BlobStream;
pub use choice::{LeftOut, is_attestation};
pub use config::Config;
pub use destination::{Destination, Outcome};
pub use document::{
    Content, Document, MAX_DOCUMENT, MAX_INDEX_DEPTH, MAX_INDEX_ENTRIES, Manifest, descriptor, digest_of, parse_index,
    parse_manifest, to_json,
};
pub use endpoint::{Endpoint, RangeAnswer, RangeStream};
pub use error::{Error, ErrorKind, Result};
pub use json::is_field;
pub use lazo::{LazoBlob, LazoFault, LazoLayers};
pub use oci_spec;
pub use options::Options;
pub use platform::{Platform, shown as shown_platform};
pub use reference::{DockerRef, ImageRef};
pub use select::{Found, Images, Selected};
pub use shared::Shared;
pub use source::Source;
pub use web::Web;
