//! What supervisor and worker tell each other. They may be of different versions, after an upgrade: a message that the other does not know
//! ends the worker, so that new ones are sent only to who says by [`LINK`] that he knows them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::node::config::{self, Config};

/// Grows when a supervisor understands more. 1: [`ToSupervisor::Status`], [`ToSupervisor::Failed`], and it answers whoever asks for an
/// upgrade by itself.
pub(in crate::node) const LINK: u32 = 1;

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::node) enum ToWorker {
    /// First of all.
    Begin(Box<Begin>),
    /// A file that is kept comes with this.
    File {
        /// Its name.
        name: String,
    },
    /// What came of the wish for an upgrade: the new program's version, or why not.
    Upgrade(std::result::Result<String, String>),
    /// To end when the requests under way are done. Mounts stay for the next worker.
    Stop,
    /// To end all mounts that nobody uses, and itself when the kernel has done with all images.
    End,
    /// To serve on alone for as long as something is mounted or in use, and to end then.
    Leave,
}

/// What a worker must know.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::node) struct Begin {
    /// Told without the settings that have their defaults, as an older program may not know them.
    #[serde(serialize_with = "config::without_defaults")]
    pub(in crate::node) config: Config,
    /// How many [`ToWorker::File`] follow.
    pub(in crate::node) files: usize,
    /// When the supervisor began, seconds since 1970.
    pub(in crate::node) since: u64,
    /// Whether a service manager has started it, and would start it again.
    #[serde(default)]
    pub(in crate::node) managed: bool,
    /// Workers that ended without being told to.
    pub(in crate::node) restarts: u64,
    /// Workers that were replaced on request.
    pub(in crate::node) upgrades: u64,
    /// [`LINK`] of the supervisor: what it understands. Older ones do not say.
    #[serde(default)]
    pub(in crate::node) link: u32,
}

/// What a worker tells.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::node) enum ToSupervisor {
    /// Keep the file that comes with this.
    Keep {
        /// By this name.
        name: String,
    },
    /// Close a file.
    Release {
        /// Its name.
        name: String,
    },
    /// All that was there before is served again.
    Ready,
    /// Go on with this program. The connection of whoever asks for it comes with this: the supervisor answers when a worker serves.
    Upgrade {
        /// The same one again if there is none.
        program: Option<PathBuf>,
    },
    /// It cannot end yet, as something is mounted or in use. It serves on, and hands over to the next supervisor.
    Busy {
        /// How many mounts and images.
        mounts: usize,
    },
    /// Tell the service manager how it is. From [`LINK`] 1.
    Status {
        /// In a line.
        text: String,
    },
    /// It ends before it is ready. From [`LINK`] 1.
    Failed {
        /// Why.
        error: String,
    },
}
