"""Images of a real distribution: debootstrap, then each further layer as the upper directory of an overlay mount.
Needs root, the host's apt mirror and, for `large`, PyPI."""

import os
import re
import shutil
import stat
import subprocess
import sys
import zlib
from pathlib import Path

from . import crafted, synthetic
from .oci import Layout
from .rawtar import SYMLINK, Tar

CROWD = 100_000
SUITE = "bookworm"
PIP_ONE = ["numpy==1.26.4", "scipy==1.13.1", "pandas==2.2.2", "flask==3.0.3"]
PIP_TWO = ["scikit-learn==1.5.0", "matplotlib==3.9.0", "sympy==1.12.1", "pyarrow==16.1.0", "sqlalchemy==2.0.30"]
APT_ONE = ["python3", "gcc", "g++", "git", "perl", "ca-certificates"]
APT_TWO = ["openjdk-17-jdk-headless"]
# At most, for every directory and file of layer 3, one in so many is changed, by kind of change.
CHANGED_BELOW = (b"usr/share", b"usr/lib/python3/dist-packages/numpy/core/tests", b"usr/lib/python3/dist-packages/numpy/doc",
                 b"usr/lib/python3/dist-packages/numpy/lib/tests", b"usr/lib/x86_64-linux-gnu/gconv", b"var", b"etc")
NEEDED = (b"etc/passwd", b"etc/group", b"etc/ld.so", b"etc/alternatives", b"var/lib/dpkg", b"usr/share/python3")


def run(*command, **options):
    print("+", *command, file=sys.stderr)
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, **options)


def mirror() -> str:
    """LAZO_DEBIAN_MIRROR, else the first Debian archive that the host's apt uses."""
    sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    found = re.search(r"^(?:deb\s+(?:\[[^]]*\]\s+)?|URIs:\s*)(https?://\S+/debian)/?(?:\s|$)", text, re.MULTILINE)
    return os.environ.get("LAZO_DEBIAN_MIRROR") or (found[1] if found else "http://deb.debian.org/debian")


def bootstrap(target: Path):
    run("debootstrap", "--variant=minbase", SUITE, target, mirror())
    for leftover in list((target / "var/cache/apt/archives").glob("*.deb")) + list((target / "var/lib/apt/lists").glob("*_*")):
        leftover.unlink()


class Overlay:
    """`lower` (uppermost first) below a fresh upper directory, mounted while `with` lasts."""

    def __init__(self, work: Path, name: str, lower: list):
        self.upper, self.merged, self.scratch = (work / f"{name}.{part}" for part in ("upper", "merged", "scratch"))
        for path in (self.upper, self.merged, self.scratch):
            path.mkdir()
        self.options = f"lowerdir={':'.join(map(str, lower))},upperdir={self.upper},workdir={self.scratch}"

    def __enter__(self):
        self.upper.chmod(0o755)
        run("mount", "-t", "overlay", "overlay", "-o", self.options, self.merged)
        return self

    def __exit__(self, *_):
        run("umount", "-R", self.merged)


def apt(root: Path, packages: list):
    """Installs inside `root` with the host's way to the network, and leaves neither lists nor archives."""
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    proxies = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True).stdout
    conf = root / "etc/apt/apt.conf.d/99build"
    conf.write_text("".join(line for line in proxies.splitlines(True) if "proxy" in line.lower()))
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    run("mount", "-t", "proc", "proc", root / "proc")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C",
                   "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    run("chroot", root, "apt-get", "-q", "update", env=environment)
    run("chroot", root, "apt-get", "-q", "-y", "install", "--no-install-recommends", *packages, env=environment)
    run("chroot", root, "apt-get", "-q", "clean", env=environment)
    run("umount", root / "proc")
    for leftover in [conf, policy, *(root / "var/lib/apt/lists").glob("*_*")]:
        leftover.unlink()


def pip(root: Path, packages: list):
    target = root / "usr/local/lib/python3.11/dist-packages"
    run("python3", "-m", "pip", "install", "-q", "--no-compile", "--python-version", "3.11", "--only-binary=:all:",
        "--implementation", "cp", "--target", target, *packages)
    # What a real `pip install` leaves behind: byte code beside each module.
    run("chroot", root, "python3", "-m", "compileall", "-q", "-j", "2", "/" + str(target.relative_to(root)),
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})


def whiteouts(upper: Path):
    """An overlay's whiteouts and opaque marks as a layer tar has them."""
    for directory, names, files in os.walk(upper):
        info = os.lstat(directory)
        found = [name for name in files if is_whiteout(os.path.join(directory, name))]
        for name in found:
            os.unlink(os.path.join(directory, name))
        opaque = "trusted.overlay.opaque" in os.listxattr(directory) and directory != str(upper)
        for name in [".wh." + name for name in found] + ([".wh..wh..opq"] if opaque else []):
            open(os.path.join(directory, name), "w").close()
        os.utime(directory, ns=(info.st_atime_ns, info.st_mtime_ns))


def is_whiteout(path: str) -> bool:
    info = os.lstat(path)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def tar(directory: Path, out: Path) -> Path:
    run("tar", "-C", directory, "--create", "--file", out, "--format=posix", "--sort=name", "--numeric-owner",
        "--pax-option=delete=atime,delete=ctime", "--xattrs", "--xattrs-include=*", "--xattrs-exclude=trusted.overlay.*",
        "--sparse", ".")
    return out


def changes(out, roots: list):
    """Deletes and replaces about half of what lies under CHANGED_BELOW, each path by its checksum. `roots`: the layers'
    directories, uppermost first."""
    writer = Tar(out)
    time = 1_690_000_000 * 10**9
    for place in CHANGED_BELOW:
        change(writer, roots, place, time)
    writer.end()


def change(writer: Tar, roots: list, path: bytes, time: int):
    """What happens to the children of a directory."""
    names = set()
    for root in roots:
        directory = os.path.join(os.fsencode(root), path)
        if os.path.isdir(directory) and not os.path.islink(directory):
            names.update(os.listdir(directory))
    for name in sorted(names):
        child = path + b"/" + name
        if name.startswith(b".wh.") or any(needed.startswith(child) or child.startswith(needed) for needed in NEEDED):
            continue
        found = [os.path.join(os.fsencode(root), child) for root in roots]
        found = next((there for there in found if os.path.lexists(there)), None)
        if found is None:
            continue
        if os.path.isdir(found) and not os.path.islink(found):
            change_directory(writer, roots, child, time)
        else:
            change_file(writer, child, time)


def change_directory(writer: Tar, roots: list, path: bytes, time: int):
    match zlib.crc32(path) % 16:
        case 0:
            writer.add(whiteout_of(path), mtime=time)
        case 1:
            writer.dir(path + b"/", mtime=time)
            writer.add(path + b"/.wh..wh..opq", mtime=time)
            writer.add(path + b"/replacement", data=path, mtime=time)
        case 2:
            writer.add(path, data=b"was a directory\n", mtime=time)
        case 3:
            writer.add(path, SYMLINK, link=b"/usr/share", mtime=time)
        case 4:
            writer.dir(path + b"/", mode=0o700, uid=1000, gid=1000, mtime=time + 1)
            change(writer, roots, path, time)
        case _:
            change(writer, roots, path, time)


def change_file(writer: Tar, path: bytes, time: int):
    match zlib.crc32(path) % 8:
        case 0 | 1:
            writer.add(whiteout_of(path), mtime=time)
        case 2:
            writer.add(path, data=crafted.text(zlib.crc32(path) % 50_000, len(path)), mtime=time)
        case 3:
            writer.dir(path + b"/", mtime=time)
            writer.add(path + b"/was-a-file", data=path, mtime=time)
        case 4:
            writer.add(path, SYMLINK, link=b"nowhere", mtime=time)


def whiteout_of(path: bytes) -> bytes:
    directory, name = path.rsplit(b"/", 1)
    return directory + b"/.wh." + name


def stacked(work: Path, name: str, lower: list, fill) -> Path:
    """A further layer: `fill(merged root)` on top of `lower`. Its upper directory, ready to be a layer."""
    with Overlay(work, name, lower) as overlay:
        fill(overlay.merged)
    return overlay.upper


def debian(root: Path):
    """minbase; python3 and numpy; deletions and replacements; the two crafted layers."""
    base = root / "base"
    bootstrap(base)
    python = stacked(root, "python", [base], lambda merged: apt(merged, ["python3", "python3-numpy"]))
    merged = [python, base]
    changed = synthetic.write_tar(root / "changed.tar", changes, merged)
    whiteouts(python)
    tars = [tar(base, root / "base.tar"), tar(python, root / "python.tar"), changed,
            synthetic.write_tar(root / "lower.tar", crafted.lower),
            synthetic.write_tar(root / "upper.tar", crafted.upper, CROWD)]
    layout = Layout(root / "layout")
    layers = [layout.layer(layer, "gzip") for layer in tars]
    layout.tag("gzip", layout.manifest(layers))
    layout.tag("python", layout.manifest(layers[:2]))
    layout.tag("zstd", layout.manifest([layout.layer(layer, "zstd") for layer in tars]))
    layout.finish()
    synthetic.write_exceptions(root)


def large(root: Path):
    """Over 25,000 files and 1 GB, as a team's build image is: compilers, a JDK, Python with its scientific stack."""
    layers = [root / "base"]
    bootstrap(layers[0])
    for name, fill, packages in (("tools", apt, APT_ONE), ("java", apt, APT_TWO), ("science", pip, PIP_ONE), ("more", pip, PIP_TWO)):
        layers.insert(0, stacked(root, name, layers, lambda merged: fill(merged, packages)))
    layout = Layout(root / "layout")
    for layer in layers[:-1]:
        whiteouts(layer)
    tars = [tar(layer, root / f"{layer.name}.tar") for layer in reversed(layers)]
    layout.tag("gzip", layout.manifest([layout.layer(layer, "gzip") for layer in tars]))
    layout.finish()
