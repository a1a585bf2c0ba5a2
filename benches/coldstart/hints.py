"""What a start reads, for images that are converted with hints: taken once an image, from access times."""

import contextlib
import os
import shutil
import subprocess
import time
from pathlib import Path

from images import IMAGES, TAG, recipe, stamp
from place import WORK
from ready import LIMIT, answers
from starts import files
from workloads import ENVIRONMENT, WORKLOADS

HINTS = WORK / "hints"
# What a container has besides its image; `$0` is the image's tree. Ends with it, and with it whatever the start leaves running.
START = """mount -t proc proc "$0/proc" && for place in tmp dev/shm run; do mount -t tmpfs tmpfs "$0/$place" || exit 1; done
mkdir -m 1777 -p "$0/run/postgresql" && chmod 1777 "$0/tmp" && exec chroot "$@" """


def list_of(name: str) -> Path:
    """The file with the list, absolute paths in the order in which they are read first."""
    path = HINTS / name
    key = stamp(recipe(name))
    if not path.is_file() or (HINTS / f"{name}.stamp").read_text() != key:
        print(f"recording what a start of {name} reads", flush=True)
        HINTS.mkdir(exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in record(name)))
        (HINTS / f"{name}.stamp").write_text(key)
    return path


def record(name: str) -> list:
    work = WORK / "trace"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    unpack = ["umoci", "unpack", "--image", f"{IMAGES / name / 'layout'}:{TAG}", work / "bundle"]
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    root = work / "bundle/rootfs"
    before = set(files(root))
    for path in before:
        os.utime(path, ns=(0, os.stat(path).st_mtime_ns))
    start(name, root)
    times = sorted((os.stat(path).st_atime_ns, path) for path in files(root) if path in before)
    read = [path.removeprefix(str(root)) for time, path in times if time > 0]
    shutil.rmtree(work)
    # A prefetch list has globs: what would be taken for one is left out.
    return [path for path in read if not set(path) & set("*?[{\\\n")]


def start(name: str, root: Path):
    """Until it is ready, in a mount and a process namespace."""
    workload = WORKLOADS[name]
    environment = dict(word.split("=", 1) for word in (*ENVIRONMENT, *workload.environment))
    namespaces = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"]
    user = ["--userspec", f"{workload.user}:"] if workload.user else []
    command = [*namespaces, "sh", "-c", START, root, *user, root, *workload.command]
    log = WORK / "logs" / f"hints-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as out:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    deadline = time.monotonic() + LIMIT
    try:
        while not (answers(workload.ready) or workload.ready.line and workload.ready.line in log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} did not become ready, see {log}")
            time.sleep(0.02)
    finally:
        process.kill()
        with contextlib.suppress(ChildProcessError):
            process.wait()
