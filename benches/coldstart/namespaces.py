"""Runs a part of the rig in namespaces that end with it: mounts, processes and network links of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

# What a copy of the machine's mounts must not hold on to: such a file system would not end with its original.
FOREIGN = ("fuse", "erofs", "overlay", "nsfs")
MARK = "LAZO_COLDSTART_INSIDE"
# The containers' namespace in containerd, which is where runc puts their control groups.
NAMESPACE = "coldstart"


def inside() -> bool:
    return os.environ.get(MARK) == "1"


def run_inside(arguments: list, network: bool) -> int:
    """Runs run.py with these arguments in new namespaces; its exit code. All of it is killed when this process dies."""
    namespaces = ["--mount", "--propagation", "private", "--pid", "--mount-proc", "--fork", "--kill-child"]
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces, *(["--net"] if network else [])]
    script = Path(__file__).with_name("run.py")
    process = subprocess.Popen([*command, sys.executable, script, *arguments], env={**os.environ, MARK: "1"})
    # An interrupt reaches the inner process by itself, a termination does not.
    signal.signal(signal.SIGTERM, lambda *_: process.kill())
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):
                return process.wait()
    finally:
        remove_control_groups()


def release_foreign_mounts():
    mounts = [line.split(" ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for fields in mounts:
        kind = fields[fields.index("-") + 1]
        if kind.startswith(FOREIGN) and fields[4] != "/":
            subprocess.run(["umount", "-l", fields[4].encode().decode("unicode_escape")], stderr=subprocess.DEVNULL, check=False)


def remove_control_groups():
    """Empty ones stay when containers die with their namespace."""
    for top in (*Path("/sys/fs/cgroup").glob(f"*/{NAMESPACE}"), Path("/sys/fs/cgroup") / NAMESPACE):
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
