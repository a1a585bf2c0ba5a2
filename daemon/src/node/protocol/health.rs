//! `GET /v1/health`.

use serde::{Deserialize, Serialize};

use super::Served;

/// How the daemon is, in a word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Everything is as it should be.
    #[default]
    Ok,
    /// The daemon serves, but not everything that is asked of it: [`Health::problems`] say what.
    Degraded,
}

/// `GET /v1/health`, and `GET /v1/ready`. An answer means that the daemon serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether everything is as it should be: [`Self::problems`] is empty.
    pub ok: bool,
    /// The same as a word.
    #[serde(default)]
    pub status: Status,
    /// What is not, for people: images that cannot be served, or whose readers wait for a registry; 32 at most.
    pub problems: Vec<String>,
    /// Images whose readers wait, as no source serves what they read, those that have waited longest first; 32 at most.
    #[serde(default)]
    pub waiting: Vec<WaitingImage>,
    /// How images are served unless a request says otherwise.
    pub mode: Served,
    /// What speaks against the kernel's EROFS; missing if it can be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_erofs: Option<String>,
    /// Process that serves.
    pub worker_pid: u32,
    /// Process that keeps it running.
    pub supervisor_pid: u32,
    /// When the supervisor began, seconds since 1970.
    pub since: u64,
    /// When the worker began, seconds since 1970.
    pub worker_since: u64,
    /// Times that a worker ended and another took over, upgrades aside.
    pub restarts: u64,
    /// Times that a worker was replaced on demand.
    pub upgrades: u64,
}

/// An image of which readers want what no source serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingImage {
    /// The image, as the first request named it.
    pub image: String,
    /// Its number, as [`super::ImageInfo::slot`] has it.
    pub slot: u64,
    /// Blobs that no source serves.
    pub blobs: u64,
    /// Requests for their data that wait; one may be for several readers.
    pub requests: u64,
    /// Since when, seconds since 1970.
    pub since: u64,
    /// Whether the outage limit has run out, so that reads fail.
    pub failing: bool,
    /// What went wrong last at each source, in the order in which they are asked; eight at most.
    pub sources: Vec<SourceTrouble>,
}

/// What went wrong last at a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTrouble {
    /// As messages and metrics call it.
    pub source: String,
    /// Missing if it was not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}
