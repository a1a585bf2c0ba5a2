//! Images whose bootstrap layer somebody else has unpacked, as containerd does.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use lazo_format::{Algorithm, Digest, Hasher};
use rustix::fs::{Mode, OFlags};

use super::damaged;
use super::download::{BUFFER, MAX_UNPACKED, Temporary};
use super::keep::{self, BOOTSTRAP, INDEX, Kept};
use crate::error::{Error, Result};

/// Keeps an image's files.
pub(super) fn adopt(name: &str, images: &Path, files: &Path) -> Result<Kept> {
    let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(files, directory, Mode::empty()).map_err(|errno| open_error(files, errno))?;
    let open = |file: &str| {
        // Whoever made the layer has chosen what lies there: nothing but a regular file is opened, wherever a link may lead.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let path = files.join(file);
        let opened = rustix::fs::openat(&dir, file, flags, Mode::empty());
        let opened = File::from(opened.map_err(|errno| open_error(&path, errno))?);
        let metadata = opened.metadata().map_err(Error::io("read", &path))?;
        if !metadata.is_file() || metadata.len() > MAX_UNPACKED {
            return damaged(
                name,
                &format!("its bootstrap layer has {file} as no file, or one of over {MAX_UNPACKED} bytes"),
            );
        }
        Ok(opened)
    };
    let (mut bootstrap, mut index) = (open(BOOTSTRAP)?, open(INDEX)?);
    let digest = digest_of(&index).map_err(Error::io("read", files.join(INDEX)))?;
    if let Some(kept) = keep::open(images, &digest) {
        return Ok(kept);
    }
    let temporary = Temporary::new(images)?;
    for (file, opened) in [(BOOTSTRAP, &mut bootstrap), (INDEX, &mut index)] {
        let kept = temporary.path().join(file);
        *opened = link_or_copy(&files.join(file), opened, &kept).map_err(Error::io("keep", &kept))?;
    }
    temporary.keep(name, &digest, (bootstrap, index), &[])
}

fn open_error(path: &Path, errno: rustix::io::Errno) -> Error {
    Error::io("open", path)(errno.into())
}

fn digest_of(mut index: &File) -> io::Result<Digest> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; BUFFER];
    loop {
        match index.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    index.rewind()?;
    Ok(hasher.finish())
}

/// Gives a file one more name if it is on the same file system, and otherwise copies it. Whatever else now lies at `path` is not
/// taken for it.
fn link_or_copy(path: &Path, mut opened: &File, to: &Path) -> io::Result<File> {
    if fs::hard_link(path, to).is_ok() {
        let (linked, wanted) = (File::open(to)?, opened.metadata()?);
        let metadata = linked.metadata()?;
        if (metadata.dev(), metadata.ino()) == (wanted.dev(), wanted.ino()) {
            // Who unpacked it may not have done so.
            linked.sync_all()?;
            return Ok(linked);
        }
        fs::remove_file(to)?;
    }
    let mut copy = File::options().read(true).write(true).create_new(true).open(to)?;
    io::copy(&mut opened, &mut copy)?;
    copy.sync_all()?;
    Ok(copy)
}
