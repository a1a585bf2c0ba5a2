#!/usr/bin/env python3
"""Prints what a mount is asked to read during a start: milliseconds since the first read, path, offset and length, by tabs.

usage: benches/trace.py IMAGE LATENCY COMMAND...     behind `rig proxy`; LATENCY in milliseconds; IMAGE is docker://HOST/...
"""

import re
import shutil
import sys
from datetime import datetime
from pathlib import Path

sys.dont_write_bytecode = True

import os  # noqa: E402

from common import WORK, drop_caches, mounted  # noqa: E402
from fixtures import Proxy  # noqa: E402
from starts import chroot, files, through  # noqa: E402

LINE = re.compile(r"(\S+)Z +TRACE .*read ino=(\d+) offset=(\d+) size=(\d+)")


def main():
    image, latency, command = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    os.environ["LAZO_LOG"] = "info,lazo_daemon=trace"
    for place in ("state", "run"):
        shutil.rmtree(WORK / place, ignore_errors=True)
    drop_caches()
    with Proxy(image.removeprefix("docker://").split("/")[0], latency) as proxy, mounted(through(image, proxy)) as (root, _):
        chroot(root, command)
        paths = {os.stat(path).st_ino: path.removeprefix(str(root)) for path in files(root)}
        text = "".join(path.read_text() for path in (WORK / "run/logs").iterdir())
    reads = [match.groups() for match in map(LINE.search, text.splitlines()) if match]
    begin = datetime.fromisoformat(reads[0][0]) if reads else None
    for time, inode, offset, size in reads:
        milliseconds = (datetime.fromisoformat(time) - begin).total_seconds() * 1e3
        print(f"{milliseconds:.1f}", paths.get(int(inode), inode), offset, size, sep="\t")


if __name__ == "__main__":
    main()
