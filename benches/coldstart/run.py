#!/usr/bin/env python3
"""How soon containers start on a node that has nothing: measures, and writes docs/BENCHMARKS.md's part about it.

usage: benches/coldstart/run.py [OPTION...]        as root

  --images A,B      of workloads.py; all
  --subjects A,B    files in subjects/ and peers/, or paths of such; overlayfs,lazo,lazo-hints,lazo-fuse
  --links A,B       MEGABITSxMILLISECONDS or loopback; 200x20,loopback
  --rounds N        5
  --containerd DIR  of containerd, ctr and their shim; the machine's own
  --write           put the result into docs/, whatever was measured; without any option, it always is
  --build           build the images, and no more
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True

from place import PROGRAMS, RESULTS, ROOT, WORK  # noqa: E402

import images  # noqa: E402
import namespaces  # noqa: E402
import report  # noqa: E402
import rounds  # noqa: E402
from links import Speed  # noqa: E402
from subjects import find  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

SUBJECTS, LINKS = "overlayfs,lazo,lazo-hints,lazo-fuse", "200x20,loopback"


def options():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--images", default=",".join(WORKLOADS))
    parser.add_argument("--subjects", default=SUBJECTS)
    parser.add_argument("--links", default=LINKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--containerd", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--build", action="store_true")
    chosen = parser.parse_args()
    chosen.images, chosen.links = chosen.images.split(","), [Speed.parse(link) for link in chosen.links.split(",")]
    chosen.subjects = [find(name) for name in chosen.subjects.split(",")]
    if unknown := set(chosen.images) - set(WORKLOADS):
        sys.exit(f"no image {', '.join(unknown)}: there is {', '.join(WORKLOADS)}")
    return chosen


def main():
    chosen = options()
    if namespaces.inside():
        namespaces.release_foreign_mounts()
        if chosen.build:
            images.build(chosen.images)
        else:
            rounds.run(chosen)
        return
    if os.geteuid() != 0:
        sys.exit("run as root: it mounts file systems, makes network namespaces and drops caches")
    if "LAZO_BENCH_BIN" not in os.environ:
        subprocess.run(["cargo", "build", "--release", "--locked", "--bin", "lazo", "--example", "rig"], cwd=ROOT, check=True)
    WORK.mkdir(parents=True, exist_ok=True)
    arguments = sys.argv[1:]
    # The images come from the machine's network; what is measured has none.
    if failed := namespaces.run_inside([*arguments, "--build"], network=False):
        sys.exit(failed)
    if chosen.build:
        return
    if failed := namespaces.run_inside(arguments, network=True):
        sys.exit(failed)
    report.show(RESULTS, write=chosen.write or not arguments)


if __name__ == "__main__":
    main()
