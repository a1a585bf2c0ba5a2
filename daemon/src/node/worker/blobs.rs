//! The FUSE mount of blobs: a file `<slot>-<number>` for each blob of each image that the kernel's EROFS shows.
//!
//! A file is the blob's device space. The kernel keeps a file's attributes for ever, as they never change, and no number is
//! used for another image later. An image may be restored while its files are read: such reads wait. Every answer is of full length
//! or an error: a short one would make the kernel take the file for shorter.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    AccessFlags, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};
use lazo_format::{BlobIndex, DeviceAddr};
use lazo_storage::Trimmer;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};

use crate::fs::{BLOCK_SIZE, FileSystem, MAX_NAME, Target};
use crate::fuse::{Answerer, FOREVER, configure};
use crate::watch::Read;

/// How long a read waits for its image to be restored. What is needed for that is on the local disk.
const RESTORE: Duration = Duration::from_secs(60);

/// The root directory.
const ROOT: u64 = 1;

/// A text for people, whose opening and closing also teaches the kernel that this mount has no opens and flushes: a program that
/// closes a file would otherwise wait for a worker.
const ABOUT: u64 = 2;
pub(super) const ABOUT_NAME: &str = "about";
const ABOUT_TEXT: &[u8] = b"Blobs of container images, as devices of EROFS mounts. Served by lazo.\n";

/// An image whose blobs are files here.
pub(super) struct Slot {
    number: u32,
    served: OnceLock<Served>,
    /// It cannot be restored.
    failed: AtomicBool,
    /// Told when it is served.
    changed: Notify,
}

struct Served {
    fs: Arc<FileSystem>,
    answerer: Answerer,
    /// The files here themselves, of which EROFS has copies of all pages. Opened by the mounter when a blob is first read.
    copies: Box<[Copy]>,
}

#[derive(Default)]
struct Copy {
    asked: AtomicBool,
    file: OnceLock<Arc<File>>,
}

impl Slot {
    fn read(&self, read: Read, blob: BlobIndex, trim: &Trim, reply: ReplyData) {
        match self.served.get() {
            Some(served) => {
                self.trim(served, &read, blob, trim);
                let plan = served.fs.plan_device_read(blob, DeviceAddr(read.offset), read.length);
                served.answerer.answer(read, plan, reply);
            }
            None => reply.error(fuser::Errno::EIO),
        }
    }

    /// The kernel will have two copies of what is read: one of them is dropped later.
    fn trim(&self, served: &Served, read: &Read, blob: BlobIndex, trim: &Trim) {
        let Some(copy) = served.copies.get(usize::from(blob.0)) else { return };
        match copy.file.get() {
            Some(file) => trim.trimmer.served(file, read.offset..read.offset + u64::from(read.length)),
            None if copy.asked.swap(true, Ordering::Relaxed) => {}
            // If nobody hears that, the worker ends.
            None => drop(trim.open.send((self.number, blob))),
        }
    }

    async fn wait(&self) {
        let changed = self.changed.notified();
        let mut changed = std::pin::pin!(changed);
        changed.as_mut().enable();
        if self.served.get().is_none() && !self.failed.load(Ordering::Acquire) {
            changed.await;
        }
    }
}

/// All images whose blobs are files.
#[derive(Default)]
pub(super) struct Slots(RwLock<BTreeMap<u32, Arc<Slot>>>);

impl Slots {
    /// Announces an image that is being restored: reads of it wait.
    pub(super) fn expect(&self, number: u32) {
        let slot = Slot { number, served: OnceLock::new(), failed: AtomicBool::new(false), changed: Notify::new() };
        self.write().entry(number).or_insert_with(|| Arc::new(slot));
    }

    /// Begins to serve an image.
    pub(super) fn serve(&self, number: u32, fs: Arc<FileSystem>, answerer: Answerer) {
        self.expect(number);
        if let Some(slot) = self.get(number) {
            let copies = fs.image().index().blob_numbers().map(|_| Copy::default()).collect();
            let _ = slot.served.set(Served { fs, answerer, copies });
            slot.changed.notify_waiters();
        }
    }

    /// An image cannot be restored: reads of it fail.
    pub(super) fn fail(&self, number: u32) {
        if let Some(slot) = self.get(number) {
            slot.failed.store(true, Ordering::Release);
            slot.changed.notify_waiters();
        }
    }

    /// A blob's file here has been opened.
    pub(super) fn opened(&self, number: u32, blob: BlobIndex, file: File) {
        self.with_copy(number, blob, |copy| drop(copy.file.set(Arc::new(file))));
    }

    /// It has not, and may be at the next read.
    pub(super) fn not_opened(&self, number: u32, blob: BlobIndex) {
        self.with_copy(number, blob, |copy| copy.asked.store(false, Ordering::Relaxed));
    }

    fn with_copy(&self, number: u32, blob: BlobIndex, then: impl FnOnce(&Copy)) {
        let slot = self.get(number);
        let copies = slot.as_ref().and_then(|slot| Some(&slot.served.get()?.copies));
        if let Some(copy) = copies.and_then(|copies| copies.get(usize::from(blob.0))) {
            then(copy);
        }
    }

    pub(super) fn remove(&self, number: u32) {
        self.write().remove(&number);
    }

    fn get(&self, number: u32) -> Option<Arc<Slot>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<u32, Arc<Slot>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every blob that is served.
    fn all(&self) -> Vec<(u32, BlobIndex)> {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let blobs = |slot: &Slot| slot.served.get().map(|served| served.fs.image().index().blob_numbers());
        slots.iter().flat_map(|(number, slot)| blobs(slot).into_iter().flatten().map(|blob| (*number, blob))).collect()
    }

    fn device_size(&self, number: u32, blob: BlobIndex) -> Option<u64> {
        self.get(number)?.served.get()?.fs.device_size(blob).ok()
    }
}

/// Name of a blob's file.
pub(super) fn file_name(slot: u32, blob: BlobIndex) -> String {
    format!("{slot}-{}", blob.0)
}

pub(super) fn parse_name(name: &OsStr) -> Option<(u32, BlobIndex)> {
    let (slot, blob) = name.to_str()?.split_once('-')?;
    let (slot, blob) = (slot.parse().ok()?, BlobIndex(blob.parse().ok()?));
    // One name each.
    (file_name(slot, blob).as_str() == name).then_some((slot, blob))
}

/// Slots begin at 1, so that these are greater than the numbers of the other files.
fn inode(slot: u32, blob: BlobIndex) -> u64 {
    u64::from(slot) << 16 | u64::from(blob.0)
}

fn parse_inode(inode: INodeNo) -> Option<(u32, BlobIndex)> {
    let slot = u32::try_from(inode.0 >> 16).ok().filter(|slot| *slot > 0)?;
    Some((slot, BlobIndex(u16::try_from(inode.0 & 0xffff).ok()?)))
}

/// The mount as fuser wants it.
pub(super) struct Blobs {
    slots: Arc<Slots>,
    trim: Arc<Trim>,
    runtime: Handle,
}

/// What keeps the page cache from holding everything twice.
pub(super) struct Trim {
    pub(super) trimmer: Arc<Trimmer>,
    /// Asks for a blob's file to be opened.
    pub(super) open: mpsc::UnboundedSender<(u32, BlobIndex)>,
}

impl Blobs {
    pub(super) fn new(slots: Arc<Slots>, trim: Trim, runtime: Handle) -> Self {
        Self { slots, trim: Arc::new(trim), runtime }
    }

    fn attributes(&self, number: INodeNo) -> Option<FileAttr> {
        match (number.0, parse_inode(number)) {
            (ROOT, _) => Some(attributes(ROOT, FileType::Directory, 0)),
            (ABOUT, _) => Some(attributes(ABOUT, FileType::RegularFile, ABOUT_TEXT.len() as u64)),
            (_, Some((slot, blob))) => {
                let size = self.slots.device_size(slot, blob)?;
                Some(attributes(number.0, FileType::RegularFile, size))
            }
            _ => None,
        }
    }
}

impl Filesystem for Blobs {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        configure(
            config,
            [InitFlags::FUSE_PARALLEL_DIROPS, InitFlags::FUSE_NO_OPEN_SUPPORT, InitFlags::FUSE_ASYNC_READ],
        );
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let number =
            if name == ABOUT_NAME { Some(ABOUT) } else { parse_name(name).map(|(slot, blob)| inode(slot, blob)) };
        let found = number.filter(|_| parent.0 == ROOT).and_then(|number| self.attributes(INodeNo(number)));
        match found {
            Some(attributes) => reply.entry(&FOREVER, &attributes, Generation(0)),
            // Not to be remembered: it may come.
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn getattr(&self, _request: &Request, number: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(number) {
            Some(attributes) => reply.attr(&FOREVER, &attributes),
            None => reply.error(fuser::Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, _number: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn flush(&self, _request: &Request, _number: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _number: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself; this makes it stop asking.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if number.0 == ABOUT {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(ABOUT_TEXT.len());
            return reply.data(&ABOUT_TEXT[start..]);
        }
        let Some((slot, blob)) = parse_inode(number) else { return reply.error(fuser::Errno::EIO) };
        let Some(slot) = self.slots.get(slot) else { return reply.error(fuser::Errno::EIO) };
        let read = Read { target: Target::Device(blob), offset, length: size, pid: request.pid() };
        if slot.served.get().is_some() {
            return slot.read(read, blob, &self.trim, reply);
        }
        let trim = Arc::clone(&self.trim);
        self.runtime.spawn(async move {
            // If it is not restored in time, the read fails.
            let _ = tokio::time::timeout(RESTORE, slot.wait()).await;
            slot.read(read, blob, &trim, reply);
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        number: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if number.0 != ROOT {
            return reply.error(fuser::Errno::ENOTDIR);
        }
        let fixed = [(ROOT, ".".to_owned()), (ROOT, "..".to_owned()), (ABOUT, ABOUT_NAME.to_owned())];
        let blobs = self.slots.all().into_iter().map(|(slot, blob)| (inode(slot, blob), file_name(slot, blob)));
        let entries = (1..).zip(fixed.into_iter().chain(blobs));
        for (next, (number, name)) in entries.skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = if number == ROOT { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(number), next, kind, &name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _number: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, BLOCK_SIZE, MAX_NAME, BLOCK_SIZE);
    }
}

fn attributes(number: u64, kind: FileType, size: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: if kind == FileType::Directory { 0o500 } else { 0o400 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_one_to_one() {
        for (slot, blob) in [(1, 0), (1, 65535), (u32::MAX, 7)] {
            let blob = BlobIndex(blob);
            assert_eq!(parse_name(OsStr::new(&file_name(slot, blob))), Some((slot, blob)));
            assert_eq!(parse_inode(INodeNo(inode(slot, blob))), Some((slot, blob)));
        }
        for wrong in ["1", "-", "1-", "-1", "01-1", "1-01", "+1-1", "1--1", "1-65536", "4294967296-0", "about", "1-1 "]
        {
            assert_eq!(parse_name(OsStr::new(wrong)), None, "{wrong}");
        }
        for other in [0, ROOT, ABOUT, 65535, u64::MAX] {
            assert_eq!(parse_inode(INodeNo(other)), None, "{other}");
        }
    }
}
