//! What several crates of lazo need, written once.
//!
//! [`tar`] says which members an archive has; every reader of a layer or of an image archive goes through it.
//! [`compression`] tells how a layer is packed and unpacks it. [`walk`] opens files without following links.
//! [`lines`] bounds what is written to the log.

pub mod compression;
pub mod lines;
pub mod tar;
pub mod walk;
