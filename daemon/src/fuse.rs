//! Translates between fuser and [`FileSystem`]: requests to calls, results to replies.
//!
//! The tree never changes, so the kernel may keep everything: names, attributes, pages, directory listings, links. It opens
//! and closes files without asking (`ENOSYS` to open, opendir and flush). A read is answered on the thread that received it
//! when its chunks are in the cache; otherwise its reply moves into a task, and the thread takes the next request.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    AccessFlags, FileAttr, FileHandle, FileType as FuseType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use lazo_format::FileType;
use lazo_storage::metrics::{From, Metrics};
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::caller;
use crate::fs::{Attributes, BLOCK_SIZE, Entry, FileSystem, FsError, Ino, MAX_NAME, ReadPlan, Target};
use crate::watch::{Lines, Read, Watch};

/// How long the kernel may keep what it was told: for ever, as nothing changes. 136 years.
pub(crate) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Largest request in bytes; the kernel's own limit. It is asked for by way of the largest write.
const MAX_REQUEST: u32 = 1 << 20;

/// Requests that the kernel may have under way without a caller waiting, which is its read-ahead: 64 MiB at most, so that
/// many cold files can be read at a time.
const MAX_BACKGROUND: u16 = 64;

/// Inode numbers are never used twice.
const GENERATION: Generation = Generation(0);

thread_local! {
    /// Where a reply is put together: one for each FUSE thread, of at most the largest request.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The filesystem as fuser wants it.
pub(crate) struct Fuse {
    fs: Arc<FileSystem>,
    answerer: Answerer,
    damaged: Arc<Lines>,
}

/// Answers the reads of an image's data.
pub(crate) struct Answerer {
    fs: Arc<FileSystem>,
    watch: Arc<Watch>,
    runtime: Handle,
}

impl Answerer {
    pub(crate) fn new(fs: Arc<FileSystem>, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        let watch = Arc::new(Watch::new(Arc::clone(&fs), metrics, runtime.clone()));
        Self { fs, watch, runtime }
    }

    /// Answers at once what is in the cache, and all else from a task.
    pub(crate) fn answer(&self, read: Read, plan: Result<ReadPlan, FsError>, reply: ReplyData) {
        let plan = match plan {
            Ok(plan) => plan,
            Err(error) => return fail(&self.watch, read, error, reply),
        };
        REPLY.with_borrow_mut(|buffer| {
            if buffer.len() < plan.length() {
                buffer.resize(plan.length(), 0);
            }
            let bytes = &mut buffer[..plan.length()];
            match self.fs.read_cached(&plan, bytes) {
                Ok(true) => {
                    reply.data(bytes);
                    self.watch.answered(From::Cache, bytes.len());
                }
                Ok(false) => self.answer_later(plan, read, reply),
                Err(error) => fail(&self.watch, read, error, reply),
            }
        });
    }

    fn answer_later(&self, plan: ReadPlan, read: Read, reply: ReplyData) {
        let (fs, watch) = (Arc::clone(&self.fs), Arc::clone(&self.watch));
        self.runtime.spawn(async move {
            match read_opened(&fs, &plan).await {
                Ok(None) => {}
                Ok(Some(bytes)) => {
                    reply.data(&bytes);
                    return watch.answered(From::Cache, bytes.len());
                }
                Err(error) => return fail(&watch, read, error, reply),
            }
            match watch.wait(read, &plan, fs.read(&plan)).await {
                Ok(bytes) => {
                    reply.data(&bytes);
                    watch.answered(From::Source, bytes.len());
                }
                Err(error) => fail(&watch, read, error, reply),
            }
        });
    }
}

/// The bytes of a read if all that it lacked was that its blobs are open.
async fn read_opened(fs: &FileSystem, plan: &ReadPlan) -> Result<Option<Vec<u8>>, FsError> {
    if !fs.open(plan).await? {
        return Ok(None);
    }
    let mut bytes = vec![0; plan.length()];
    Ok(fs.read_cached(plan, &mut bytes)?.then_some(bytes))
}

impl Fuse {
    pub(crate) fn new(fs: Arc<FileSystem>, metrics: Arc<Metrics>, runtime: Handle) -> Self {
        let damaged = Arc::new(Lines::new("more operations failed as the image is damaged", runtime.clone()));
        let answerer = Answerer::new(Arc::clone(&fs), metrics, runtime);
        Self { fs, answerer, damaged }
    }

    /// The errno for an error; writes it to the log when it is worth it.
    fn errno(&self, operation: &'static str, ino: Ino, error: &FsError) -> fuser::Errno {
        if error.is_fault() && self.damaged.admit() {
            let error: &dyn std::error::Error = error;
            tracing::error!(image = self.fs.image().name(), operation, inode = ino.0, error, "the image is damaged");
        }
        translate(error.errno())
    }
}

fn fail(watch: &Watch, read: Read, error: FsError, reply: ReplyData) {
    reply.error(translate(error.errno()));
    watch.failed(read, error);
}

impl Filesystem for Fuse {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // The kernel takes it from mounts whose permissions it checks itself, as it does for all trees.
            InitFlags::FUSE_ALLOW_IDMAP,
        ];
        let acl = self.fs.has_acls().then_some(InitFlags::FUSE_POSIX_ACL);
        configure(config, wanted.into_iter().chain(acl));
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let parent = Ino(parent.0);
        match self.fs.lookup(parent, name.as_bytes()) {
            Ok(Some(found)) => reply.entry(&FOREVER, &attr(&found), GENERATION),
            Ok(None) => reply.entry(&FOREVER, &NOTHING, GENERATION),
            Err(error) => reply.error(self.errno("lookup", parent, &error)),
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let ino = Ino(ino.0);
        match self.fs.attributes(ino) {
            Ok(attributes) => reply.attr(&FOREVER, &attr(&attributes)),
            Err(error) => reply.error(self.errno("getattr", ino, &error)),
        }
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let ino = Ino(ino.0);
        match self.fs.read_link(ino) {
            Ok(target) => reply.data(target),
            Err(error) => reply.error(self.errno("readlink", ino, &error)),
        }
    }

    fn open(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(fuser::Errno::ENOSYS);
    }

    fn access(&self, _request: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions itself; this makes it stop asking.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = Read { target: Target::File(Ino(ino.0)), offset, length: size, pid: request.pid() };
        tracing::trace!(ino = ino.0, offset, size, "read");
        self.answerer.answer(read, self.fs.plan_read(Ino(ino.0), offset, size), reply);
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let ino = Ino(ino.0);
        let listed = self.fs.read_dir(ino, offset, |entry| {
            let name = OsStr::from_bytes(entry.name);
            Ok(!reply.add(INodeNo(entry.ino.0), entry.next, kind(entry.file_type), name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno("readdir", ino, &error)),
        }
    }

    fn readdirplus(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let ino = Ino(ino.0);
        let add = |entry: &Entry<'_>| {
            let (name, number) = (OsStr::from_bytes(entry.name), INodeNo(entry.ino.0));
            let attributes = attr(&self.fs.attributes(entry.ino)?);
            Ok(!reply.add(number, entry.next, name, &FOREVER, &attributes, GENERATION))
        };
        match self.fs.read_dir(ino, offset, add) {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(self.errno("readdir", ino, &error)),
        }
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let totals = self.fs.totals();
        reply.statfs(totals.blocks, 0, 0, totals.files, 0, BLOCK_SIZE, MAX_NAME, BLOCK_SIZE);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let ino = Ino(ino.0);
        if !self.fs.has_xattrs() {
            // The kernel stops asking, which a listing with owners and ACLs would do for each file.
            return reply.error(fuser::Errno::ENOSYS);
        }
        match self.fs.xattr(ino, name.as_bytes()) {
            Ok(value) => send_xattr(value, size, reply),
            Err(error) => reply.error(self.errno("getxattr", ino, &error)),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let ino = Ino(ino.0);
        if !self.fs.has_xattrs() {
            // ENOSYS would make the kernel stop asking, but also tell programs that there is no such thing as a list here.
            return send_xattr(&[], size, reply);
        }
        match self.fs.xattr_names(ino, || caller::is_administrator(request.pid())) {
            Ok(names) => send_xattr(&names, size, reply),
            Err(error) => reply.error(self.errno("listxattr", ino, &error)),
        }
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        /// `SEEK_DATA` and `SEEK_HOLE`; the kernel does the others itself.
        const DATA: i32 = 3;
        const HOLE: i32 = 4;
        let ino = Ino(ino.0);
        let (Ok(offset), DATA | HOLE) = (u64::try_from(offset), whence) else {
            // Before the beginning there is neither data nor a hole, as for other file systems.
            let errno = if matches!(whence, DATA | HOLE) { fuser::Errno::ENXIO } else { fuser::Errno::EINVAL };
            return reply.error(errno);
        };
        let found = self.fs.seek(ino, offset, whence == HOLE);
        match found.map(i64::try_from) {
            Ok(Ok(offset)) => reply.offset(offset),
            Ok(Err(_)) => reply.error(fuser::Errno::EOVERFLOW),
            Err(error) => reply.error(self.errno("lseek", ino, &error)),
        }
    }
}

/// Asks for features and for large requests.
pub(crate) fn configure(config: &mut KernelConfig, features: impl IntoIterator<Item = InitFlags>) {
    for feature in features {
        // An older kernel does without it.
        if config.add_capabilities(feature).is_err() {
            tracing::debug!(?feature, "the kernel does not have this FUSE feature");
        }
    }
    // Each takes the nearest that the kernel allows.
    let _ = config.set_max_write(MAX_REQUEST);
    let _ = config.set_max_background(MAX_BACKGROUND);
    if let Err(nearest) = config.set_max_readahead(MAX_REQUEST) {
        let _ = config.set_max_readahead(nearest);
    }
}

fn send_xattr(value: &[u8], room: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(length) if room == 0 => reply.size(length),
        Ok(length) if length <= room => reply.data(value),
        _ => reply.error(fuser::Errno::ERANGE),
    }
}

fn translate(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

fn kind(file_type: FileType) -> FuseType {
    match file_type {
        FileType::Regular => FuseType::RegularFile,
        FileType::Directory => FuseType::Directory,
        FileType::CharDevice => FuseType::CharDevice,
        FileType::BlockDevice => FuseType::BlockDevice,
        FileType::Fifo => FuseType::NamedPipe,
        FileType::Socket => FuseType::Socket,
        FileType::Symlink => FuseType::Symlink,
    }
}

fn attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino.0),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: attributes.mtime,
        mtime: attributes.mtime,
        ctime: attributes.mtime,
        crtime: UNIX_EPOCH,
        kind: kind(attributes.file_type),
        perm: attributes.permissions,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: BLOCK_SIZE,
        flags: 0,
    }
}

/// With inode number 0: there is no such name, and the kernel may remember that.
const NOTHING: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FuseType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: BLOCK_SIZE,
    flags: 0,
};
