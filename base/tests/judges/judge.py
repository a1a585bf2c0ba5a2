"""What Python's tarfile makes of archives, asked as judge.go is; only what both can tell: type, name, target, size and data."""

import io
import struct
import sys
import tarfile
import zlib

LOOKED = 1 << 20
HEADER_ONLY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)


def raw(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").hex()


def judge(archive: bytes) -> str:
    lines = []
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                kind = tarfile.REGTYPE if member.type == tarfile.AREGTYPE else member.type
                data = b""
                if kind not in HEADER_ONLY:
                    file = tar.extractfile(member)
                    data = file.read(LOOKED) if file else b""
                    if len(data) < min(member.size, LOOKED):
                        raise tarfile.ReadError("unexpected end of data")
                size = 0 if kind in HEADER_ONLY else member.size
                lines.append(f"{kind.hex()} {raw(member.name)} link={raw(member.linkname)} size={size} "
                             f"data={len(data)}:{zlib.crc32(data):08x}")
    except Exception as error:  # whatever it trips over is a refusal
        return "\n".join([*lines, f"refused {error!r}", ""])
    return "\n".join([*lines, "end", ""])


def main():
    while len(length := sys.stdin.buffer.read(4)) == 4:
        archive = sys.stdin.buffer.read(struct.unpack("<I", length)[0])
        answer = judge(archive).encode()
        sys.stdout.buffer.write(struct.pack("<I", len(answer)) + answer)
        sys.stdout.buffer.flush()


main()
