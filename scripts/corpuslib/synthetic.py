"""Images that need nothing but Python: `small` for most tests, `hostile` for what a converter must refuse."""

import gzip
import hashlib
import io
import json
from pathlib import Path

from . import crafted
from .oci import LAYER, Layout
from .rawtar import HARDLINK, SYMLINK, Tar

SMALL_CROWD = 3000
EPOCH = 1_650_000_000 * 10**9


def write_tar(path: Path, build, *args) -> Path:
    with open(path, "wb") as out:
        build(out, *args)
    return path


def base(out):
    """A miniature root file system: a few hundred files of 0 to 300 KiB in a tree of directories."""
    tar = Tar(out)
    tar.dir(b"./", mtime=EPOCH)
    for directory in (b"bin", b"etc", b"usr", b"usr/lib", b"usr/share", b"tmp", b"var"):
        tar.dir(directory + b"/", mtime=EPOCH, mode=0o1777 if directory == b"tmp" else 0o755)
    tar.add(b"lib", SYMLINK, link=b"usr/lib", mtime=EPOCH)
    for number in range(400):
        size = (number * number * 37) % (300 * 1024 if number % 10 == 0 else 9000)
        make = crafted.noise if number % 4 == 0 else crafted.text
        tar.add(b"usr/lib/file-%03d" % number, data=make(size, 10_000 + number), mtime=EPOCH + number)
    for name in range(30):
        tar.dir(b"usr/share/d%02d/" % name, mtime=EPOCH)
        for number in range(20):
            tar.add(b"usr/share/d%02d/f%02d" % (name, number), data=crafted.text(number * 100, name), mtime=EPOCH)
    tar.end()


def app(out, name: bytes):
    tar = Tar(out)
    tar.dir(b"app/", mtime=EPOCH)
    tar.add(b"app/" + name, data=crafted.noise(700_000, len(name)), mtime=EPOCH)
    tar.add(b"app/copy-of-base", data=crafted.noise((40 * 40 * 37) % (300 * 1024), 10_040), mtime=EPOCH)
    tar.add(b"usr/share/.wh.d03", mtime=EPOCH)
    tar.end()


def small(root: Path):
    layout = Layout(root / "layout")
    tars = [write_tar(root / "base.tar", base), write_tar(root / "lower.tar", crafted.lower),
            write_tar(root / "upper.tar", crafted.upper, SMALL_CROWD)]
    stored = {encoding: [layout.layer(tar, encoding) for tar in tars] for encoding in ("gzip", "zstd", "tar")}
    for encoding, layers in stored.items():
        layout.tag(encoding, layout.manifest(layers))
    layout.tag("mixed", layout.manifest([stored["gzip"][0], stored["tar"][1], stored["zstd"][2]]))
    apps = [layout.layer(write_tar(root / f"{name}.tar", app, name.encode()), "gzip") for name in ("one", "second")]
    for name, layer in zip(("app-one", "app-two"), apps):
        layout.tag(name, layout.manifest([stored["gzip"][0], layer]))
    layout.tag("beyond", layout.manifest([layout.layer(write_tar(root / "beyond.tar", crafted.beyond), "gzip")]))
    layout.tag("multi", layout.index([("amd64", layout.manifest(stored["gzip"])),
                                      ("arm64", layout.manifest([stored["gzip"][0], apps[0]], "arm64"))]))
    layout.tag("empty", layout.manifest([layout.layer(write_tar(root / "empty.tar", lambda out: Tar(out).end()), "gzip")]))
    layout.finish()
    for leftover in root.glob("*.tar"):
        leftover.unlink()
    write_exceptions(root)


def write_exceptions(root: Path):
    lines = ["\t".join(entry) for entry in crafted.EXCEPTIONS]
    (root / "exceptions.tsv").write_text("\n".join(lines) + "\n")


def entries(*added) -> bytes:
    out = io.BytesIO()
    tar = Tar(out)
    tar.dir(b"fine/", mtime=EPOCH)
    tar.add(b"fine/file", data=crafted.noise(20_000, 1), mtime=EPOCH)
    for arguments, options in added:
        tar.add(*arguments, **options)
    tar.end()
    return out.getvalue()


def entry(*arguments, **options):
    return arguments, {"mtime": EPOCH, **options}


def raw(build) -> bytes:
    """`entries`, then what `build` writes."""
    out = io.BytesIO(entries()[:-1024])
    out.seek(0, io.SEEK_END)
    build(Tar(out))
    Tar(out).end()
    return out.getvalue()


def hostile(root: Path):
    """One tag a case: a good base layer, then a bad one. cases.json says what the error must name."""
    layout = Layout(root / "layout")
    good = layout.layer(write_tar(root / "base.tar", base), "gzip")
    (root / "base.tar").unlink()
    cases = {}

    def case(name, stored: bytes, named=None, diff_id=None, **descriptor):
        layer = {"mediaType": LAYER + "+gzip", **layout.put_bytes(stored), "diff_id": diff_id or sha256(stored)}
        layer.update(descriptor)
        layout.tag(name, layout.manifest([good, layer]))
        cases[name] = {"layer": layer["digest"], "entry": named}

    def packed(name, tar: bytes, named=None, diff_id=None):
        case(name, gzip.compress(tar, 6, mtime=0), named, diff_id or sha256(tar))

    contents = entries(entry(b"fine/more", data=crafted.noise(300_000, 2)))
    compressed = gzip.compress(contents, 6, mtime=0)
    flipped = bytearray(compressed)
    flipped[len(flipped) // 2] ^= 0x10
    case("truncated-gzip", compressed[:len(compressed) // 2], diff_id=sha256(contents))
    case("gzip-trailer-missing", compressed[:-8], diff_id=sha256(contents))
    case("flipped-gzip", bytes(flipped), diff_id=sha256(contents))
    case("zeros-behind-gzip", compressed + bytes(512), diff_id=sha256(contents))
    case("garbage-behind-gzip", compressed + b"garbage", diff_id=sha256(contents))
    packed("truncated-tar", contents[:200_000], "fine/more")
    packed("truncated-header", entries()[:-1024] + b"fine/cut" + bytes(100))
    packed("wrong-diffid", contents, diff_id=sha256(b"something else"))
    case("wrong-size", compressed, diff_id=sha256(contents), size=len(compressed) + 1)
    case("wrong-digest", compressed, diff_id=sha256(contents), digest=sha256(b"not this"))
    same_but_time = compressed[:4] + b"\1" + compressed[5:]
    (layout.blobs / sha256(b"not this").removeprefix("sha256:")).write_bytes(same_but_time)
    case("missing-blob", compressed, diff_id=sha256(contents), digest=sha256(b"nowhere"))
    packed("bad-checksum", raw(lambda tar: tar.header(b"fine/bad", b"0", bad_checksum=True)))
    packed("climbing-hardlink", entries(entry(b"fine/link", HARDLINK, link=b"../../etc/passwd")), "fine/link")
    packed("contiguous", entries(entry(b"fine/seven", b"7", data=b"type 7")), "fine/seven")
    packed("sparse-old", raw(lambda tar: tar.sparse_gnu(b"fine/sparse", 10_000, [(512, b"x" * 512)])), "fine/sparse")
    packed("global-named", raw(lambda tar: tar.extended({b"path": b"fine/file"}, b"g")), "fine/file")
    packed("lone-zeros", raw(lambda tar: (tar.out.write(bytes(512)), tar.add(b"fine/behind"))))
    packed("dangling-hardlink", entries(entry(b"fine/link", HARDLINK, link=b"fine/missing")), "fine/link")
    packed("directory-hardlink", entries(entry(b"fine/link", HARDLINK, link=b"fine")), "fine/link")
    packed("self-hardlink", entries(entry(b"fine/link", HARDLINK, link=b"fine/link")), "fine/link")
    packed("link-loop", entries(entry(b"a", SYMLINK, link=b"b"), entry(b"b", SYMLINK, link=b"a"),
                                entry(b"a/file", data=b"x")), "a/file")
    packed("link-loop-hardlink", entries(entry(b"a", SYMLINK, link=b"a"), entry(b"h", HARDLINK, link=b"a/x")), "h")
    packed("long-component", entries(entry(b"fine/" + b"n" * 256, data=b"x")), "n" * 256)
    packed("long-symlink", entries(entry(b"fine/link", SYMLINK, link=b"t" * 4097)), "fine/link")
    packed("nul-in-pax", entries(entry(b"short", pax={b"path": b"fine/a\0b"})))
    packed("pax-length", raw(lambda tar: (tar.header(b"x", b"x", size=512), tar.out.write(b"9999999999 path=x\n".ljust(512, b"\0")))))
    packed("pax-huge", raw(lambda tar: tar.header(b"x", b"x", size=1 << 40)))
    packed("gnu-name-huge", raw(lambda tar: tar.header(b"././@LongLink", b"L", size=1 << 40, gnu=True)))
    packed("size-huge", raw(lambda tar: tar.header(b"fine/huge", b"0", size=1 << 50)), "fine/huge")
    packed("size-negative", raw(lambda tar: tar.header(b"fine/huge", b"0", size=-5)))
    packed("sparse-backwards", raw(lambda tar: tar.sparse_gnu(b"fine/sparse", 10_000, [(8192, b"x" * 512), (0, b"y" * 512)])),
           "fine/sparse")
    packed("sparse-beyond", raw(lambda tar: tar.sparse_pax(b"fine/sparse", 1000, [(4096, b"x" * 512)])), "fine/sparse")
    packed("root-not-directory", entries(entry(b".", b"0", data=b"x")))
    packed("root-removed", entries(entry(b".wh..")))
    layout.finish()
    (root / "cases.json").write_text(json.dumps(cases, indent=1))


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
