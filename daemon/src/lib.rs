//! Serves an image to the kernel.
//!
//! ```text
//! serve    one mount from open image to unmount: what `lazo mount` runs
//!   ├ fs       what the filesystem says: names, attributes, bytes; straight from the mapped bootstrap, knows no FUSE
//!   ├ fuse     translates between fuser and fs
//!   ├ kernel   mount(2), umount(2), the mount table, read-ahead of the mount
//!   └ record   who serves which mount, for `lazo umount`
//! ```

mod error;
mod fs;
mod fuse;
mod kernel;
mod record;
mod serve;

pub use error::{Error, Result};
pub use fs::{Attributes, Entry, FileSystem, FsError, Ino, ReadPlan, Totals};
pub use kernel::check_mount_point;
pub use record::umount;
pub use serve::{MountOptions, serve};
