//! Tries whether this kernel serves images by EROFS.
//!
//! It must mount EROFS from plain files, read the right bytes, and make a read past a device's end an error. Kernels that give
//! zeros there would give zeros too for whatever a failing daemon answers too short.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use lazo_format::{
    BLOCK_SIZE, BlobIndex, Device, DeviceAddr, Digest, Extent, Meta, Node, NodeId, NodeKind, Tree, TreeError,
    write_bootstrap,
};
use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Refusal;
use super::context::Context;

/// A block in memory.
const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE);
/// Blocks of the device as the image knows it.
const BLOCKS: u64 = 16;
/// The first byte of the file that the device lacks.
const MISSING: u64 = (BLOCKS - 1) * BLOCK_SIZE;

/// Mounts a small image from files in a directory, nowhere, and reads it. Gives why EROFS cannot be used.
pub(super) fn erofs(dir: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write the files of a trial mount in {}: {error}", dir.display());
    let image = image().map_err(|error| format!("cannot make the image of a trial mount: {error}"))?;
    let image = write(dir, &image).map_err(failed)?;
    // Too short by a block, for the second file.
    let device = write(dir, &vec![b'x'; usize::try_from(MISSING).unwrap_or(0)]).map_err(failed)?;
    let mount = mount(&image, &device).map_err(|refusal| refusal.message)?;
    read(&mount)
}

/// Two files: one that is whole, one whose last block the device lacks.
fn image() -> Result<Vec<u8>, TreeError> {
    let file = |at: u64, blocks: u64| {
        let size = blocks * BLOCK_SIZE;
        let extents = vec![Extent { length: size, location: Some((BlobIndex(0), DeviceAddr(at))) }];
        Node { meta: Meta { permissions: 0o400, ..Meta::default() }, kind: NodeKind::Regular { size, extents } }
    };
    let names = [(b"whole".as_slice().into(), NodeId(1)), (b"cut".as_slice().into(), NodeId(2))];
    let root = NodeKind::Directory(BTreeMap::from(names));
    let root = Node { meta: Meta { permissions: 0o500, ..Meta::default() }, kind: root };
    let device = Device { digest: Digest::sha256_of(b""), size: BLOCKS * BLOCK_SIZE };
    let tree =
        Tree { nodes: vec![root, file(0, 1), file(BLOCK_SIZE, BLOCKS - 1)], root: NodeId(0), devices: vec![device] };
    Ok(write_bootstrap(&tree.validate()?))
}

/// A file with a content and no name: nothing is left whatever happens.
fn write(dir: &Path, content: &[u8]) -> io::Result<File> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let path = dir.join(format!(".probe-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(&path)?;
    file.write_all(content)?;
    Ok(file)
}

fn mount(image: &File, device: &File) -> Result<OwnedFd, Refusal> {
    let context = Context::new("erofs")?;
    context.set("source", format!("/proc/self/fd/{}", image.as_raw_fd()))?;
    context.set("device", format!("/proc/self/fd/{}", device.as_raw_fd()))?;
    context.create(MountAttrFlags::empty())
}

fn read(mount: &OwnedFd) -> Result<(), String> {
    let open = |name: &str| openat(mount, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(File::from);
    let failed = |error: io::Error| format!("a file of a trial mount cannot be read: {error}");
    let mut block = [0; BLOCK];
    open("whole").map_err(|error| failed(error.into()))?.read_exact_at(&mut block, 0).map_err(failed)?;
    if block != [b'x'; BLOCK] {
        return Err("a file of a trial mount has wrong content".into());
    }
    let cut = open("cut").map_err(|error| failed(error.into()))?;
    // The last block of the device and the one it lacks together: the read that some kernels fill up with zeros.
    match cut.read_at(&mut [0; 2 * BLOCK], MISSING - 2 * BLOCK_SIZE) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => {}
        Ok(length) if length <= BLOCK => {}
        Ok(_) => return Err(ZEROS.into()),
        Err(error) => return Err(failed(error)),
    }
    match cut.read_at(&mut block, MISSING - BLOCK_SIZE) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::IO) => Ok(()),
        Ok(_) => Err(ZEROS.into()),
        Err(error) => Err(failed(error)),
    }
}

const ZEROS: &str = "this kernel gives zeros for what a device lacks, where an error is right";
