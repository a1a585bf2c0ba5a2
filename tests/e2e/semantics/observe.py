"""What system calls say of the tree in the working directory, as JSON: a name for each call, and its result or error.

Argument: the user to be. Run in trees of different file systems that have the same content; what they say should be the same.
"""

import ctypes, errno, fcntl, json, mmap, os, select, sys

LIBC = ctypes.CDLL(None, use_errno=True)
FAR = 1 << 40
LAST = (1 << 63) - 1


def names_from(fd):
    """Names and positions behind them, from where a directory's descriptor stands."""
    buffer, found = ctypes.create_string_buffer(32768), []
    while True:
        count = LIBC.getdents64(fd, buffer, len(buffer))
        if count < 0:
            raise OSError(ctypes.get_errno(), "getdents64")
        if count == 0:
            return found
        at = 0
        while at < count:
            position = int.from_bytes(buffer.raw[at + 8 : at + 16], "little", signed=True)
            length = int.from_bytes(buffer.raw[at + 16 : at + 18], "little")
            found.append((buffer.raw[at + 19 : at + length].split(b"\0")[0].decode(), position))
            at += length


def opened(path, flags=os.O_RDONLY):
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def with_fd(path, call, flags=os.O_RDONLY):
    fd = opened(path, flags)
    try:
        return call(fd)
    finally:
        os.close(fd)


def every_position(fd):
    """Whether seeking to each position of a directory, in no order, gives the names that came behind it."""
    entries = names_from(fd)
    for number in range(len(entries) - 1, -1, -7):
        os.lseek(fd, entries[number][1], os.SEEK_SET)
        if names_from(fd) != entries[number + 1 :]:
            return f"wrong names behind {entries[number]}"
    return sorted(name for name, _ in entries)


def rewound(fd):
    first = names_from(fd)
    os.lseek(fd, 0, os.SEEK_SET)
    return first == names_from(fd) and len(first)


def anywhere(position):
    """A position that nobody was given: some names or none, but no error of the file system's."""
    def call(fd):
        try:
            os.lseek(fd, position, os.SEEK_SET)
            return len(names_from(fd)) <= 302
        except OSError as error:
            return error.errno in (errno.EINVAL, errno.EOVERFLOW)
    return call


def shown(status, times=False):
    fields = [oct(status.st_mode), status.st_uid, status.st_gid, status.st_rdev, status.st_nlink, status.st_blksize]
    return fields + [status.st_size, status.st_mtime_ns] if times else fields


def mapped(flags, protection, offset=0):
    def call(fd):
        with mmap.mmap(fd, 8192, flags, protection, offset=offset) as map:
            return map[:8].hex()
    return call


def written(fd):
    with mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as map:
        map[0] = 255
        return map[0]


def direct():
    """Direct I/O wants memory that begins at a page."""
    with mmap.mmap(-1, 4096) as page:
        return with_fd("data", lambda fd: [os.readv(fd, [page]), page[:8].hex()], os.O_DIRECT)


def ioctl(number):
    return lambda fd: fcntl.ioctl(fd, number, b"\0" * 8).hex()


def seek(offset, whence):
    return lambda fd: os.lseek(fd, offset, whence)


def flags(path, value):
    return lambda: with_fd(path, lambda fd: len(os.read(fd, 4096)), value)


def polled(fd):
    poll = select.poll()
    poll.register(fd, select.POLLIN | select.POLLOUT)
    return poll.poll(0)[0][1]


def copied(fd):
    target = os.memfd_create("target")
    return os.sendfile(target, fd, 0, 100_000)


def space():
    found = os.statvfs(".")
    return [found.f_namemax, bool(found.f_flag & os.ST_RDONLY), bool(found.f_flag & os.ST_NOSUID)]


def watched():
    fd = LIBC.inotify_init1(os.O_CLOEXEC)
    return LIBC.inotify_add_watch(fd, b"dir", 0x100) > 0


def table():
    calls = {}
    for path in ("data", "sparse", "empty", "private", "setuid", "dir", "link", "null", "sticky"):
        calls[f"lstat {path}"] = lambda path=path: shown(os.lstat(path), times=path in ("data", "empty", "setuid"))
        calls[f"stat {path}"] = lambda path=path: oct(os.stat(path).st_mode)
        calls[f"access {path}"] = lambda path=path: [os.access(path, mode) for mode in (os.R_OK, os.W_OK, os.X_OK)]
        calls[f"listxattr {path}"] = lambda path=path: sorted(os.listxattr(path, follow_symlinks=False))
    for path in ("data", "sparse", "empty"):
        for name, whence in (("data", os.SEEK_DATA), ("hole", os.SEEK_HOLE), ("set", os.SEEK_SET), ("end", os.SEEK_END)):
            far = (FAR, LAST) if whence in (os.SEEK_DATA, os.SEEK_HOLE) else (FAR,)
            for offset in (-1, 0, 1, 4096, 1 << 20, 3 << 20, *far, -LAST):
                calls[f"lseek {path} {name} {offset}"] = lambda p=path, o=offset, w=whence: with_fd(p, seek(o, w))
    for position in (0, 1, 11, 12, 13, 4095, 4096, 4097, FAR, LAST):
        calls[f"readdir from {position}"] = lambda position=position: with_fd("dir", anywhere(position))
        calls[f"readdir once more from {position}"] = lambda position=position: with_fd("dir", anywhere(position))
    for name, whence in (("data", os.SEEK_DATA), ("hole", os.SEEK_HOLE)):
        for offset in (-1, FAR, LAST):
            calls[f"lseek dir {name} {offset}"] = lambda o=offset, w=whence: with_fd("dir", seek(o, w))
    calls["lseek dir set -1"] = lambda: with_fd("dir", seek(-1, os.SEEK_SET))
    calls["readdir positions"] = lambda: with_fd("dir", every_position)
    calls["readdir rewound"] = lambda: with_fd("dir", rewound)
    for name in ("user.colour", "user.missing", "trusted.secret", "trusted.missing", "security.label", "other.x", "user."):
        for path in ("data", "empty", "dir"):
            calls[f"getxattr {path} {name}"] = lambda p=path, n=name: os.getxattr(p, n).hex()
    calls["setxattr"] = lambda: os.setxattr("data", "user.new", b"x")
    calls["removexattr"] = lambda: os.removexattr("data", "user.colour")
    both = os.O_RDWR | os.O_CREAT
    for name, path, value in (
        ("write only", "data", os.O_WRONLY), ("read and write", "data", os.O_RDWR), ("cut", "data", os.O_RDONLY | os.O_TRUNC),
        ("append", "data", os.O_WRONLY | os.O_APPEND), ("create new", "new", both), ("create there", "data", both),
        ("create exclusively", "data", both | os.O_EXCL), ("temporary", "dir", os.O_TMPFILE | os.O_RDWR),
        ("without time", "data", os.O_NOATIME), ("directory", "data", os.O_DIRECTORY), ("no link", "link", os.O_NOFOLLOW),
        ("write a directory", "dir", os.O_WRONLY), ("read a directory", "dir", os.O_RDONLY), ("missing", "missing", os.O_RDONLY),
        ("below a file", "data/x", os.O_RDONLY), ("long", "x" * 256, os.O_RDONLY), ("private", "private", os.O_RDONLY),
        ("device", "null", os.O_RDONLY), ("pipe", "pipe", os.O_RDONLY | os.O_NONBLOCK), ("synchronous", "data", os.O_SYNC),
        ("path only", "data", os.O_PATH), ("in a closed directory", "closed/x", os.O_RDONLY),
    ):
        calls[f"open {name}"] = flags(path, value)
    calls["open direct"] = direct
    calls["mmap shared"] = lambda: with_fd("data", mapped(mmap.MAP_SHARED, mmap.PROT_READ))
    calls["mmap shared for writing"] = lambda: with_fd("data", mapped(mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE))
    calls["mmap private, executable"] = lambda: with_fd("data", mapped(mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC))
    calls["mmap private, written"] = lambda: with_fd("data", written)
    calls["mmap a directory"] = lambda: with_fd("dir", mapped(mmap.MAP_SHARED, mmap.PROT_READ))
    # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, BLKGETSIZE64, TCGETS, FS_IOC_FIEMAP without room, and one that nobody has.
    for name, number in (("flags", 0x80086601), ("size", 0x80081272), ("terminal", 0x5401), ("none", 0x8008FFFF)):
        for path in ("data", "dir"):
            calls[f"ioctl {name} {path}"] = lambda p=path, n=number: with_fd(p, ioctl(n))
    calls["fallocate"] = lambda: with_fd("data", lambda fd: os.posix_fallocate(fd, 0, 10))
    calls["truncate"] = lambda: os.truncate("data", 0)
    calls["utime"] = lambda: os.utime("data", (1, 1))
    calls["chmod"] = lambda: os.chmod("data", 0o600)
    calls["chown"] = lambda: os.chown("data", 1, 1)
    calls["unlink"] = lambda: os.unlink("data")
    calls["unlink missing"] = lambda: os.unlink("missing")
    calls["rmdir"] = lambda: os.rmdir("dir")
    calls["mkdir"] = lambda: os.mkdir("new")
    calls["mkdir there"] = lambda: os.mkdir("dir")
    calls["rename"] = lambda: os.rename("data", "other")
    calls["link"] = lambda: os.link("data", "other")
    calls["symlink"] = lambda: os.symlink("data", "other")
    calls["mkfifo"] = lambda: os.mkfifo("other")
    for name, lock in (("shared", fcntl.LOCK_SH), ("exclusive", fcntl.LOCK_EX)):
        calls[f"flock {name}"] = lambda lock=lock: with_fd("data", lambda fd: fcntl.flock(fd, lock | fcntl.LOCK_NB))
    calls["record lock"] = lambda: with_fd("data", lambda fd: fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB))
    calls["lease"] = lambda: with_fd("data", lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK))
    calls["statfs"] = space
    calls["read"] = lambda: with_fd("data", lambda fd: [len(os.pread(fd, 1 << 21, at)) for at in (0, 1 << 20, (3 << 20) - 5, 3 << 20, FAR)])
    calls["read at the last byte"] = lambda: with_fd("data", lambda fd: os.pread(fd, 1, LAST).hex())
    calls["read a directory's bytes"] = lambda: with_fd("dir", lambda fd: os.read(fd, 10))
    calls["write"] = lambda: with_fd("data", lambda fd: os.write(fd, b"x"))
    calls["readlink"] = lambda: os.readlink("link")
    calls["readlink of a file"] = lambda: os.readlink("data")
    calls["poll"] = lambda: with_fd("data", polled)
    calls["sendfile"] = lambda: with_fd("data", copied)
    calls["fadvise"] = lambda: with_fd("data", lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED))
    calls["fsync"] = lambda: with_fd("data", os.fsync)
    calls["inotify"] = watched
    calls["blocks data"] = lambda: os.stat("data").st_blocks
    calls["blocks sparse"] = lambda: os.stat("sparse").st_blocks
    calls["blocks empty"] = lambda: os.stat("empty").st_blocks
    return calls


def told(call):
    try:
        return call()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except OverflowError:
        return "overflow"


user = int(sys.argv[1])
calls = table()
if user:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
print(json.dumps({name: told(call) for name, call in calls.items()}))
