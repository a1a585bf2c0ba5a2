"""A tar writer that says exactly what it is told to, oddities included; the standard library's mends too much."""

BLOCK = 512
REGULAR, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"


def _number(value: int, width: int) -> bytes:
    """Octal when it fits, else GNU's base-256."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    raw = (value & ((1 << (8 * width)) - 1)).to_bytes(width, "big")
    return bytes([raw[0] | 0x80]) + raw[1:]


def pax_record(key: bytes, value: bytes) -> bytes:
    """One `length key=value` line; the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax_time(ns: int) -> bytes:
    sign, ns = ("-", -ns) if ns < 0 else ("", ns)
    return f"{sign}{ns // 10**9}.{ns % 10**9:09d}".encode()


class Tar:
    """Writes entries to a binary file. Names and link targets are bytes, times are nanoseconds."""

    def __init__(self, out):
        self.out = out

    def _padded(self, data: bytes):
        self.out.write(data + bytes(-len(data) % BLOCK))

    def header(self, name: bytes, kind: bytes, size=0, mode=0o644, uid=0, gid=0, mtime=0, link=b"", dev=(0, 0),
               prefix=b"", gnu=False, tail=None, bad_checksum=False):
        head = bytearray(BLOCK)
        fields = [(0, name[:100]), (100, _number(mode, 8)), (108, _number(uid, 8)), (116, _number(gid, 8)),
                  (124, _number(size, 12)), (136, _number(mtime // 10**9, 12)), (148, b" " * 8), (156, kind),
                  (157, link[:100]), (257, b"ustar  \0" if gnu else b"ustar\x0000"), (265, b"someone"),
                  (297, b"somegroup"), (329, _number(dev[0], 8)), (337, _number(dev[1], 8)), (345, prefix)]
        for at, field in fields + (tail or []):
            head[at:at + len(field)] = field
        checksum = sum(head) + (1 if bad_checksum else 0)
        head[148:156] = b"%06o\0 " % checksum
        self.out.write(head)

    def add(self, name: bytes, kind=REGULAR, data=b"", mode=None, uid=0, gid=0, mtime=1_600_000_000 * 10**9, link=b"",
            dev=(0, 0), xattrs=None, pax=None, gnu=False, pax_ids=False):
        """One entry. PAX records are added where ustar's fields do not do: xattrs, nanoseconds, long names (unless
        `gnu`, which takes L and K entries for those), ids with `pax_ids`."""
        mode = mode if mode is not None else 0o755 if kind == DIRECTORY else 0o777 if kind == SYMLINK else 0o644
        records = dict(pax or {})
        for key, value in (xattrs or {}).items():
            records[b"SCHILY.xattr." + key] = value
        if mtime % 10**9 or (mtime < 0 and not gnu):
            records[b"mtime"] = pax_time(mtime)
        if pax_ids:
            records.update({b"uid": str(uid).encode(), b"gid": str(gid).encode()})
        if gnu:
            for letter, text in ((b"K", link), (b"L", name)):
                if len(text) > 100:
                    self.header(b"././@LongLink", letter, size=len(text) + 1, gnu=True)
                    self._padded(text + b"\0")
        else:
            records.update({key: text for key, text in ((b"path", name), (b"linkpath", link)) if len(text) > 100})
        if records:
            self.extended(records)
        self.header(name, kind, len(data) if kind in (REGULAR, b"\0", b"7") else 0, mode,
                    0 if pax_ids else uid, 0 if pax_ids else gid, mtime, link, dev, gnu=gnu)
        if data:
            self._padded(data)

    def extended(self, records: dict, kind=b"x"):
        body = b"".join(pax_record(key, value) for key, value in records.items())
        self.header(b"PaxHeaders/entry", kind, size=len(body))
        self._padded(body)

    def dir(self, name: bytes, **options):
        self.add(name, DIRECTORY, **options)

    def sparse_gnu(self, name: bytes, size: int, segments: list, **options):
        """GNU's old format: four segments in the header, 21 in each block that follows."""
        pairs = [(at, len(data)) for at, data in segments] + [(size, 0)]
        entry = lambda pair: _number(pair[0], 12) + _number(pair[1], 12)
        first, rest = pairs[:4], pairs[4:]
        tail = [(386, b"".join(map(entry, first))), (482, b"\1" if rest else b"\0"), (483, _number(size, 12))]
        self.header(name, b"S", size=sum(len(data) for _, data in segments), gnu=True, tail=tail, **options)
        while rest:
            now, rest = rest[:21], rest[21:]
            self.out.write((b"".join(map(entry, now))).ljust(504, b"\0") + (b"\1" if rest else b"\0") + bytes(7))
        self._padded(b"".join(data for _, data in segments))

    def sparse_pax(self, name: bytes, size: int, segments: list, version="1.0"):
        """The three PAX formats of GNU tar: 0.0 (repeated records), 0.1 (one record), 1.0 (map before the data)."""
        pairs = [(at, len(data)) for at, data in segments] + [(size, 0)]
        data = b"".join(data for _, data in segments)
        records = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(pairs))]
        if version == "1.0":
            records = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", name),
                       (b"GNU.sparse.realsize", b"%d" % size)]
            table = b"".join(b"%d\n" % number for number in [len(pairs)] + [n for pair in pairs for n in pair])
            data = table + bytes(-len(table) % BLOCK) + data
        elif version == "0.1":
            records += [(b"GNU.sparse.name", name), (b"GNU.sparse.map", b",".join(b"%d,%d" % pair for pair in pairs))]
        else:
            for at, length in pairs:
                records += [(b"GNU.sparse.offset", b"%d" % at), (b"GNU.sparse.numbytes", b"%d" % length)]
        body = b"".join(pax_record(key, value) for key, value in records)
        self.header(b"PaxHeaders/sparse", b"x", size=len(body))
        self._padded(body)
        stored = name if version == "0.0" else b"GNUSparseFile.0/" + name.rsplit(b"/", 1)[-1]
        self.header(stored, REGULAR, size=len(data), mtime=1_600_000_000 * 10**9)
        self._padded(data)

    def end(self):
        self.out.write(bytes(2 * BLOCK))
