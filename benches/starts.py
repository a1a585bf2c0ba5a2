"""How long programs take to start from a mount whose data is behind a slow network, against local files and a full pull."""

import ctypes
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from common import LAZO, WORK, Figures, drop_caches, fresh, manifest, mounted, push, run
from fixtures import Proxy

LATENCY = 20  # milliseconds
STARTS = 5
CODE = "import numpy, json, ssl, sqlite3, email, http.client; numpy.ones(9).sum()"
# Nothing is written into what is started from: it would not be there in the mount.
PYTHON = ("python3", "-B", "-c")
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
CACHESTAT, PAGE = 451, 4096


def chroot(root: Path, command) -> float:
    """Runs a command with `root` as its root directory; seconds."""
    start = time.perf_counter()
    subprocess.run(["chroot", root, *command], check=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL)
    return time.perf_counter() - start


def files(root: Path):
    for directory, _, names in os.walk(root):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path) and not os.path.islink(path):
                yield path


def accesses(root: Path, command) -> list:
    """The files that a command run in `root` reads, in the order in which it reads them first, as absolute paths there.

    By their access times, which the file system must keep (mount option relatime)."""
    for path in files(root):
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns))
    chroot(root, command)
    times = sorted((os.stat(path).st_atime_ns, path) for path in files(root))
    read = [path.removeprefix(str(root)) for time, path in times if time > 0]
    # A prefetch list has globs: what would be taken for one is left out.
    return [path for path in read if not set(path) & set("*?[{\\\n")]


def resident(root: Path) -> int:
    """Bytes of the files below `root` that are in the page cache: after a cold start, those that were read."""
    libc = ctypes.CDLL(None, use_errno=True)
    everything, pages = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    total, seen = 0, set()
    for path in files(root):
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino in seen:
                continue
            seen.add(status.st_ino)
            if libc.syscall(CACHESTAT, file.fileno(), everything, pages, 0) != 0:
                raise OSError(ctypes.get_errno(), "cachestat", path)
            total += min(pages[0] * PAGE, status.st_size)
    return total


def cached(state="state") -> int:
    """Bytes in the cache files: what has been decoded."""
    return sum(os.stat(path).st_blocks * 512 for path in files(WORK / state / "blobs"))


def through(image: str, proxy) -> str:
    """An image's reference with the proxy in place of the registry."""
    return f"docker://{proxy.host}/{image.removeprefix('docker://').split('/', 1)[1]}"


def lazy_start(image: str, proxy, command) -> dict:
    """A start from a fresh mount, nothing cached anywhere."""
    shutil.rmtree(WORK / "state", ignore_errors=True)
    drop_caches()
    proxy.log()
    with mounted(image) as (place, mount):
        seconds = chroot(place, command)
        log = proxy.log()
        data = [request for request in log if request["data"]]
        return {"seconds": seconds, "mount": mount, "requests": len(log), "data": len(data), "decoded": cached(),
                "fetched": sum(request["bytes"] for request in data), "read": resident(place), "log": log}


def local_start(root: Path, command) -> dict:
    drop_caches()
    return {"seconds": chroot(root, command)}


def full_pull(image: str, layers: list, command) -> dict:
    """skopeo copies everything, tar unpacks layer after layer, the program starts."""
    work = fresh("pull")
    (work / "root").mkdir()
    drop_caches()
    start = time.perf_counter()
    run("skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", image, f"dir:{work}/image")
    for layer in layers:
        path = work / "image" / layer["digest"].removeprefix("sha256:")
        run("tar", "--extract", "--gzip", "--numeric-owner", "--directory", work / "root", "--file", path)
    pulled = time.perf_counter() - start
    result = {"pulled": pulled, "seconds": pulled + chroot(work / "root", command)}
    shutil.rmtree(work)
    return result


def hinted(corpus: Path, name: str, command) -> Path:
    """The corpus converted with a prefetch list of what the command reads."""
    layout = WORK / "converted" / name
    prefetch = accesses(corpus / "reference", command)
    shutil.rmtree(layout, ignore_errors=True)
    run(LAZO, "convert", "--prefetch", "-", f"oci:{corpus}/layout:gzip", f"oci:{layout}:lazo", input="\n".join(prefetch))
    return layout


def median(results: list, key: str) -> float:
    return statistics.median(result[key] for result in results)


def start(figures: Figures, registry, layout: Path, corpus: Path):
    """python3 with numpy and some of its standard library, at 20 ms a request."""
    command = (*PYTHON, CODE)
    images = {
        "without hints": push(registry, layout, "large"),
        "with hints": push(registry, hinted(corpus, "hints", command), "large-hints"),
    }
    plain = push(registry, corpus / "layout", "large-gzip", "gzip")
    layers = manifest(corpus / "layout", "gzip")["layers"]
    results = {name: [] for name in (*images, "ext4")}
    with Proxy(registry.host, LATENCY) as proxy:
        for _ in range(STARTS):
            for name, image in images.items():
                results[name].append(lazy_start(through(image, proxy), proxy, command))
            results["ext4"].append(local_start(corpus / "reference", command))
        pull = full_pull(through(plain, proxy), layers, command)
    ext4 = median(results["ext4"], "seconds")
    figures.add("python3 + numpy, cold, from local ext4", ext4, "s")
    for name, seconds, ratio in (("without hints", 1.0, 3), ("with hints", 0.5, 2)):
        these = results[name]
        mount, read, decoded = median(these, "mount"), median(these, "read"), median(these, "decoded")
        figures.add(f"python3 + numpy at 20 ms a request, {name}", median(these, "seconds"), "s", most=seconds,
                    note=f"{median(these, 'seconds') / ext4:.1f} x ext4; lazo mount before it {mount:.2f} s")
        figures.add(f"its data requests, {name}", median(these, "data"), "", most=25 if name == "without hints" else None,
                    note=f"{median(these, 'fetched') / 1e6:.1f} MB; all requests, the mount's too: {median(these, 'requests'):.0f}")
        figures.add(f"its bytes decoded / read, {name}", decoded / read, "", most=ratio,
                    note=f"{decoded / 1e6:.1f} MB / {read / 1e6:.1f} MB")
    figures.add("the same by a full pull", pull["seconds"], "s", note=f"pulled and unpacked in {pull['pulled']:.1f} s")
