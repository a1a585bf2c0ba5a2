//! Serves an image to the kernel.
//!
//! ```text
//! serve    one mount from open image to unmount: what `lazo mount` runs
//!   ├ fs       what the filesystem says: names, attributes, bytes; straight from the mapped bootstrap, knows no FUSE
//!   ├ fuse     translates between fuser and fs
//!   │  └ caller what a process that asks may see
//!   ├ kernel   mount(2), umount(2), the mount table, read-ahead of the mount
//!   ├ watch    counts reads, says in the log who waits for what
//!   ├ endpoint answers `GET /metrics`
//!   ├ record   who serves which mount, for `lazo umount`
//!   └ private  directories and files for nobody else
//! ```

mod caller;
mod endpoint;
mod error;
mod fs;
mod fuse;
mod kernel;
mod memory;
pub mod node;
mod peer;
mod private;
mod record;
mod serve;
mod session;
mod watch;

pub use endpoint::{MetricsAddr, bind_unix};
pub use error::{Error, Result};
pub use fs::{Attributes, Awaited, Entry, FileSystem, FsError, Ino, ReadPlan, Target, Totals};
pub use kernel::{Restrictions, check_mount_point, resolve, shows_device};
pub use private::make_private_dir;
pub use record::{LiveMount, live_mounts, umount};
pub use serve::{MountOptions, serve};
