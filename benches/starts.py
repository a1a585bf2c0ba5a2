"""How long programs take to start from a mount whose data is behind a slow network, against local files and a full pull."""

import ctypes
import os
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from common import LAZO, WORK, Figures, drop_caches, fresh, manifest, mounted, push, rig, run
from fixtures import Network, Proxy
from corpuslib.oci import Layout

LATENCY = 20  # milliseconds
STARTS = 5
CODE = "import numpy, json, ssl, sqlite3, email, http.client; numpy.ones(9).sum()"
# Nothing is written into what is started from: it would not be there in the mount.
PYTHON = ("python3", "-B", "-c")
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}
# As a container has them, and so that nothing is written into what is compared.
CHROOT = """for place in tmp dev/shm; do mount -t tmpfs tmpfs "$0/$place" || exit 1; done; exec chroot "$0" "$@" """
# An application that imports most of what its image was made for: some 2,400 modules and their shared libraries.
HEAVY = """
import numpy, scipy.linalg, scipy.sparse, scipy.optimize, scipy.stats, scipy.signal, scipy.interpolate, scipy.ndimage
import scipy.spatial, scipy.special, scipy.integrate, scipy.cluster, scipy.io, scipy.fft, scipy.datasets, scipy.odr
import pandas, flask, sqlalchemy, sqlalchemy.orm, sqlalchemy.dialects.postgresql, sympy, matplotlib.pyplot
import sklearn.ensemble, sklearn.linear_model, sklearn.svm, sklearn.cluster, sklearn.decomposition, sklearn.neighbors
import sklearn.tree, sklearn.pipeline, sklearn.preprocessing, sklearn.model_selection, sklearn.metrics, sklearn.manifold
import pyarrow, pyarrow.parquet, pyarrow.dataset, pyarrow.compute, pyarrow.csv, pyarrow.json, pyarrow.fs, pyarrow.flight
"""
# What such an application's image would not have of the large corpus.
NOT_HEAVY = ("./usr/lib/jvm", "./usr/lib/gcc", "./usr/lib/git-core", "./usr/include", "./usr/libexec", "./usr/share/doc",
             "./usr/bin/*-linux-gnu-*", "./usr/lib/x86_64-linux-gnu/*.a")
# Its packages come without their own tests.
SITE = "./usr/local/lib/python3.11/dist-packages"
MEGABITS, HEAVY_STARTS = 200, 3
CACHESTAT, PAGE = 451, 4096


def chroot(root: Path, command) -> float:
    """Runs a command with `root` as its root directory, in a mount namespace with empty /tmp and /dev/shm; seconds."""
    start = time.perf_counter()
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", CHROOT, root]
    subprocess.run([*unshare, *command], check=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL)
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


def lazy_start(image: str, proxy, command, **how) -> dict:
    """A start from a fresh mount, nothing cached anywhere. `how`: more for `mounted`."""
    shutil.rmtree(WORK / "state", ignore_errors=True)
    drop_caches()
    proxy.log()
    with mounted(image, **how) as (place, mount):
        seconds = chroot(place, command)
        log = proxy.log()
        data = [request for request in log if request["data"]]
        return {"seconds": seconds, "mount": mount, "requests": len(log), "data": len(data), "decoded": cached(),
                "fetched": sum(request["bytes"] for request in data), "read": resident(place), "log": log}


def local_start(root: Path, command) -> dict:
    drop_caches()
    return {"seconds": chroot(root, command)}


def full_pull(image: str, layers: list, command, inside=()) -> dict:
    """skopeo copies everything, tar unpacks layer after layer, the program starts. `inside`: a command before skopeo."""
    work = fresh("pull")
    (work / "root").mkdir()
    drop_caches()
    start = time.perf_counter()
    run(*inside, "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", image, f"dir:{work}/image")
    for layer in layers:
        path = work / "image" / layer["digest"].removeprefix("sha256:")
        run("tar", "--extract", "--gzip", "--numeric-owner", "--directory", work / "root", "--file", path)
    pulled = time.perf_counter() - start
    result = {"pulled": pulled, "seconds": pulled + chroot(work / "root", command)}
    shutil.rmtree(work)
    return result


def hinted(plain: Path, reference: Path, name: str, command) -> Path:
    """The image of a layout, converted with a prefetch list of what the command reads."""
    layout = WORK / "converted" / name
    prefetch = accesses(reference, command)
    shutil.rmtree(layout, ignore_errors=True)
    run(LAZO, "convert", "--prefetch", "-", f"oci:{plain}:gzip", f"oci:{layout}:lazo", input="\n".join(prefetch))
    return layout


def median(results: list, key: str) -> float:
    return statistics.median(result[key] for result in results)


def start(figures: Figures, registry, layout: Path, corpus: Path):
    """python3 with numpy and some of its standard library, at 20 ms a request."""
    command = (*PYTHON, CODE)
    images = {
        "without hints": push(registry, layout, "large"),
        "with hints": push(registry, hinted(corpus / "layout", corpus / "reference", "hints", command), "large-hints"),
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


def heavy_image(corpus: Path) -> Path:
    """A layout with an image of two layers: Debian with python3, and an application's packages. Kept between runs."""
    layout = WORK / "heavy-plain"
    if (layout / "index.json").is_file():
        return layout
    print("making the image of an import-heavy application", flush=True)
    work = fresh("heavy-source")
    everything = ["tar", "--create", "--sort=name", "--numeric-owner", "--directory", corpus / "reference"]
    run(*everything, "--file", work / "base.tar", *(f"--exclude={path}" for path in (*NOT_HEAVY, SITE)), ".")
    run(*everything, "--file", work / "packages.tar", f"--exclude={SITE}/*/tests", SITE)
    plain = Layout(work / "layout")
    plain.tag("gzip", plain.manifest([plain.layer(work / name, "gzip") for name in ("base.tar", "packages.tar")]))
    plain.finish()
    shutil.rmtree(layout, ignore_errors=True)
    (work / "layout").rename(layout)
    shutil.rmtree(work)
    return layout


def heavy(figures: Figures, registry, corpus: Path):
    """An import-heavy start over a link of 200 Mbit/s, at 20 ms a request."""
    command, plain = (*PYTHON, HEAVY), heavy_image(corpus)
    layouts = {"without hints": WORK / "converted/heavy", "with hints": hinted(plain, corpus / "reference", "heavy-hints", command)}
    shutil.rmtree(layouts["without hints"], ignore_errors=True)
    run(LAZO, "convert", f"oci:{plain}:gzip", f"oci:{layouts['without hints']}:lazo")
    images = {name: push(registry, layout, f"heavy-{number}") for number, (name, layout) in enumerate(layouts.items())}
    packed = push(registry, plain, "heavy-gzip", "gzip")
    layers = manifest(plain, "gzip")["layers"]
    results = {name: [] for name in (*images, "ext4", "full pull")}
    with Network(MEGABITS) as network, Proxy(registry.host, LATENCY, network.HERE) as proxy:
        for _ in range(HEAVY_STARTS):
            for name, image in images.items():
                how = {"options": ("--plain-http",), "inside": network.inside}
                results[name].append(lazy_start(through(image, proxy), proxy, command, **how))
            local = local_start(corpus / "reference", command)
            results["ext4"].append({**local, "read": resident(corpus / "reference")})
        results["full pull"].append(full_pull(through(packed, proxy), layers, command, network.inside))
    entries = rig("unpack", layouts["without hints"], "lazo", fresh("erofs"))
    stored = sum(blob["size"] for blob in manifest(layouts["without hints"], "lazo")["layers"][:-1])
    read, ext4 = median(results["ext4"], "read"), median(results["ext4"], "seconds")
    link = read * stored / entries["device_bytes"] / (MEGABITS * 1e6 / 8)
    figures.add("import-heavy start, cold, from local ext4", ext4, "s",
                note=f"reads {read / 1e6:.0f} MB, {100 * read / entries['device_bytes']:.0f} % of the image")
    for name in images:
        these = results[name]
        seconds = median(these, "seconds")
        figures.add(f"the same at 200 Mbit/s and 20 ms a request, {name} / (link + ext4)", seconds / (link + ext4), "", most=1.2,
                    note=f"{seconds:.1f} s; those bytes on that link {link:.1f} s; {median(these, 'data'):.0f} data requests, "
                         f"{median(these, 'fetched') / 1e6:.0f} MB; lazo mount before it {median(these, 'mount'):.2f} s")
        pull = median(results["full pull"], "seconds")
        figures.add(f"the same, {name} / full pull", (seconds + median(these, "mount")) / pull, "", most=1,
                    note=f"full pull {pull:.1f} s")
