"""The part `modes` of benches/run.py: what the node daemon's ways of serving cost, beside local file systems.

Local: everything is in the cache. `files`: EROFS on blobs that the kernel reads as plain files; `fuse`: EROFS on blobs in the daemon's
FUSE mount; `tree`: the FUSE mount of the whole tree.
"""

import concurrent.futures
import contextlib
import fcntl
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

from common import LAZO, WORK, Figures, drop_caches, fresh, rig, rss, run

TURNS, RANDOM_READS, SEQUENTIAL, FURTHER, SHARED = 5, 2000, 128 << 20, 21, 200
BLOCK, PIECE = 4096, 128 << 10
# A start of Python that maps and executes its libraries.
PROGRAM = ("/usr/bin/python3", "-c", "import json, ssl, sqlite3, decimal")
PATIENCE = 120


class Daemon:
    """`lazo daemon` on a state directory of its own, while `with` lasts."""

    def __init__(self, name: str, state: Path):
        self.run_dir, self.state = fresh(f"run-{name}"), state
        self.log = WORK / f"daemon-{name}.log"

    def __enter__(self):
        with open(self.log, "wb") as log:
            command = [LAZO, "daemon", "--run-dir", self.run_dir, "--state-dir", self.state]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait(f"{LAZO} daemon, see {self.log}", lambda: self.socket.exists() and self.ask("GET", "/v1/health"))
        return self

    @property
    def socket(self) -> Path:
        return self.run_dir / "lazo.sock"

    def ask(self, method: str, path: str, body=None):
        connection = http.client.HTTPConnection("lazo")
        connection.sock = socket.socket(socket.AF_UNIX)
        with contextlib.closing(connection.sock):
            try:
                connection.sock.connect(str(self.socket))
            except ConnectionRefusedError:
                return None
            headers = {"Content-Type": "application/json", "Connection": "close"} if body is not None else {"Connection": "close"}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status >= 300:
            sys.exit(f"{method} {path}: {answer.status} {text.decode()}")
        return text

    def mount(self, image: str, place: Path, mode: str) -> float:
        """Seconds that it takes."""
        place.mkdir(exist_ok=True)
        body = {"image": image, "mount_point": str(place), "mode": mode, "prefetch": "none"}
        start = time.perf_counter()
        self.ask("POST", "/v1/mounts", body)
        return time.perf_counter() - start

    def umount(self, place: Path):
        self.ask("DELETE", "/v1/mounts", {"mount_point": str(place), "lazy": False})

    def images(self) -> list:
        return json.loads(self.ask("GET", "/v1/images"))

    def metric(self, name: str) -> float:
        lines = self.ask("GET", "/metrics").decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((name + " ", name + "{")))

    def memory(self) -> int:
        """Of all its processes, bytes."""
        total, pending = 0, [self.process.pid]
        while pending:
            pid = int(pending.pop())
            total += rss(pid)
            for task in Path(f"/proc/{pid}/task").iterdir():
                pending += (task / "children").read_text().split()
        return total

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def wait(what: str, done):
    deadline = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > deadline:
            sys.exit(f"{what}: not within {PATIENCE} s")
        time.sleep(0.05)


class Tree:
    """A way to have the image as a directory, which can be mounted anew."""

    def __init__(self, name: str, place: Path, mount=None, umount=None):
        self.name, self.place, self.mount, self.umount = name, place, mount, umount

    def renew(self):
        """Nothing of the file system itself is in memory then; of the disk's blocks, what was."""
        if self.mount:
            self.umount()
            self.mount()


def local_erofs(corpus: Path):
    """mkfs.erofs's image of the tree, on a loop device."""
    image, place = WORK / "mkfs.erofs.img", WORK / "mkfs-erofs"
    place.mkdir(exist_ok=True)
    if not image.exists() or image.stat().st_mtime < (corpus / "stamp").stat().st_mtime:
        image.unlink(missing_ok=True)
        run("mkfs.erofs", "--quiet", image, corpus / "reference")
    return Tree("mkfs.erofs", place, lambda: run("mount", "-t", "erofs", "-o", "loop,ro", image, place), lambda: run("umount", place))


def served(daemon: Daemon, image: str, name: str, mode: str):
    place = WORK / f"mode-{name}"
    return Tree(name, place, lambda: daemon.mount(image, place, mode), lambda: daemon.umount(place))


def listing(tree: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["ls", "-lR", tree], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def program(tree: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["chroot", tree, *PROGRAM], check=True)
    return time.perf_counter() - start


def read_at_random(path: Path, threads: int) -> float:
    """Blocks of a file at random places, the same for each tree."""
    blocks, chosen = path.stat().st_size // BLOCK, random.Random(threads)
    places = [chosen.randrange(blocks) * BLOCK for _ in range(RANDOM_READS)]
    file = os.open(path, os.O_RDONLY)

    def read(part):
        return sum(len(os.pread(file, BLOCK, place)) for place in part)

    try:
        start = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            total = sum(pool.map(read, [places[first::threads] for first in range(threads)]))
        seconds = time.perf_counter() - start
    finally:
        os.close(file)
    assert total == RANDOM_READS * BLOCK
    return seconds


def read_in_order(path: Path) -> float:
    start, left = time.perf_counter(), min(SEQUENTIAL, path.stat().st_size)
    with open(path, "rb", buffering=0) as file:
        while left > 0 and (data := file.read(min(PIECE, left))):
            left -= len(data)
    return time.perf_counter() - start


def largest(tree: Path) -> Path:
    files = (Path(root, name) for root, _, names in os.walk(tree) for name in names)
    return max((path for path in files if not path.is_symlink()), key=lambda path: path.stat().st_size).relative_to(tree)


def measure(trees: list, large: Path) -> dict:
    """Seconds by what was done and to which tree; in turns, the first of which does not count."""
    seconds = {}

    def note(what, tree, value):
        seconds.setdefault(what, {}).setdefault(tree.name, []).append(value)

    warm = {"stat walk": lambda tree: rig("stat", tree.place)["seconds"],
            "read of everything": lambda tree: rig("read", tree.place)["seconds"]}
    cold = {"stat walk": warm["stat walk"],
            "4 KiB random, 1 thread": lambda tree: read_at_random(tree.place / large, 1),
            "4 KiB random, 8 threads": lambda tree: read_at_random(tree.place / large, 8),
            "sequential 128 MiB": lambda tree: read_in_order(tree.place / large),
            "python3": lambda tree: program(tree.place)}
    for turn in range(1 + TURNS):
        for what, work in warm.items():
            for tree in trees:
                tree.renew()
                values = {f"{what}, fresh": work(tree), f"{what}, warm": work(tree)}
                if what == "stat walk":
                    values["ls -lR, warm"] = listing(tree.place)
                for name, value in values.items() if turn else ():
                    note(name, tree, value)
        for what, work in cold.items():
            for tree in trees:
                drop_caches()
                value = work(tree)
                if turn:
                    note(f"{what}, disk-cold", tree, value)
    return {what: {tree: statistics.median(values) for tree, values in by_tree.items()} for what, by_tree in seconds.items()}


def promised(what: str) -> list:
    """For a figure: which tree is compared with which, and how much longer it may take."""
    if what.startswith(("stat walk, disk-cold",)):
        return [("files", "ext4", 0.6), ("fuse", "ext4", 0.6)]
    if what.startswith("ls"):
        return [("files", "mkfs.erofs", 1.1), ("fuse", "mkfs.erofs", 1.1)]
    if what.startswith(("stat walk", "read of everything")):
        local = [(name, "mkfs.erofs", 1.15) for name in ("files", "fuse")]
        return local + ([(name, "ext4", 1.0) for name in ("files", "fuse")] if what.endswith("warm") else [])
    over_fuse = ("fuse", "tree", 1.2) if "random" in what else ("fuse", "mkfs.erofs", 1.8)
    return [("files", "mkfs.erofs", 1.3), over_fuse]


def compare(figures: Figures, medians: dict):
    for what, by_tree in medians.items():
        note = ", ".join(f"{tree} {seconds:.3f} s" for tree, seconds in by_tree.items())
        for tree, other, most in promised(what):
            figures.add(f"{what}: {tree} / {other}", by_tree[tree] / by_tree[other], "", most=most, note=note)
            note = ""


def resident(roots: list) -> int:
    """Bytes of the files below some directories that are in the page cache."""
    total = 0
    for root in roots:
        names = subprocess.run(["find", root, "-xdev", "-type", "f", "-size", "+0", "-print0"], check=True, stdout=subprocess.PIPE).stdout
        listed = run("xargs", "-0", "fincore", "--bytes", "--noheadings", "--output", "RES", input=names.decode(errors="surrogateescape"),
                     errors="surrogateescape")
        total += sum(map(int, listed.split()))
    return total


def page_cache(figures: Figures, trees: list, daemons: dict):
    """Page cache for each byte read, some time after everything was read: of the tree, and of all that is below it."""
    for tree in trees:
        daemon = daemons[tree.name]
        roots = [tree.place, daemon.state / "blobs", daemon.run_dir / "blobs"]
        drop_caches()
        tree.renew()
        result = rig("read", tree.place)
        at_once = resident(roots[1:])
        time.sleep(12)  # Plain files are looked after every ten seconds.
        bytes_read, own = result["bytes"], resident(roots[:1])
        figures.add(f"page cache for each byte read: {tree.name}", (own + resident(roots[1:])) / bytes_read, "", most=1.1,
                    note=f"{own / bytes_read:.2f} are the tree's own; {(own + at_once) / bytes_read:.2f} at once")


def mounts(figures: Figures, daemon: Daemon, image: str):
    """What a further mount costs, and one of an image that is mounted already."""
    place, other = WORK / "further", WORK / "shared"
    further, shared = [], []
    for turn in range(1 + FURTHER):
        seconds = daemon.mount(image, place, "erofs")
        again = daemon.mount(image, other, "erofs")
        daemon.umount(other)
        daemon.umount(place)
        if turn:
            further.append(seconds)
            shared.append(again)
    figures.add("a further image in a running daemon, bootstrap at hand", statistics.median(further) * 1e3, "ms", most=5)
    figures.add("a mount of an image that is mounted", statistics.median(shared) * 1e3, "ms", most=2)
    daemon.mount(image, place, "erofs")
    many = fresh("many")
    before = daemon.memory()
    for number in range(SHARED):
        daemon.mount(image, many / str(number), "erofs")
    figures.add("daemon memory a mount", (daemon.memory() - before) / SHARED / 1024, "KiB", most=100, note=f"{SHARED} mounts")
    for number in range(SHARED):
        daemon.umount(many / str(number))
    daemon.umount(place)


def filled(image: str, state: Path):
    """A state directory with all of an image in its cache."""
    place = WORK / "mount"
    place.mkdir(exist_ok=True)
    shutil.rmtree(state, ignore_errors=True)
    options = ["--state-dir", state, "--run-dir", WORK / "run"]
    run(LAZO, "mount", "--standalone", "--mode", "fuse", "--prefetch", "none", *options, image, place)
    rig("read", place)
    run(LAZO, "umount", *options, place)


@contextlib.contextmanager
def unsealed(state: Path):
    """Keeps the blobs of a state directory from being sealed: the daemon takes it that somebody is just writing to each."""
    shared_lock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, 1, 1, 0)
    with contextlib.ExitStack() as files:
        for blob in state.glob("blobs/*"):
            (blob / "sealed").unlink(missing_ok=True)
            data = files.enter_context(open(blob / "data", "r+b"))
            fcntl.fcntl(data, fcntl.F_OFD_SETLK, shared_lock)
        yield


def modes(figures: Figures, image: str, corpus: Path):
    filled(image, WORK / "state-fuse")
    shutil.rmtree(WORK / "state-files", ignore_errors=True)
    shutil.copytree(WORK / "state-fuse", WORK / "state-files")
    with (unsealed(WORK / "state-fuse"), Daemon("files", WORK / "state-files") as files,
          Daemon("fuse", WORK / "state-fuse") as fuse):
        erofs = local_erofs(corpus)
        plain = served(files, image, "files", "erofs")
        over, tree = served(fuse, image, "fuse", "erofs"), served(fuse, image, "tree", "fuse")
        trees = [Tree("ext4", corpus / "reference"), erofs, plain, over, tree]
        with contextlib.ExitStack() as mounted:
            for each in trees[1:]:
                each.mount()
                mounted.callback(each.umount)
            blobs = files.images()[0]["blobs"]
            wait("sealing", lambda: files.metric("lazo_cache_sealed_total") >= blobs)
            plain.renew()
            plain_blobs = [image["plain_blobs"] for daemon in (files, fuse) for image in daemon.images()]
            if plain_blobs != [blobs, 0, 0]:
                sys.exit(f"plain blobs of the images: {plain_blobs}, of {blobs}")
            compare(figures, measure(trees, largest(corpus / "reference")))
            page_cache(figures, trees[2:], {"files": files, "fuse": fuse, "tree": fuse})
        mounts(figures, files, image)
