"""Where things are. The rig writes nowhere but below target/coldstart (and docs/, when it is done)."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
WORK = TARGET / "coldstart"
IMAGES = WORK / "images"
RESULTS = WORK / "results.json"
# LAZO_BENCH_BIN: a directory such as target/debug, whose programs are measured as they are there.
PROGRAMS = Path(os.environ.get("LAZO_BENCH_BIN") or TARGET / "release")
LAZO = PROGRAMS / "lazo"
RIG = PROGRAMS / "examples/rig"
# Programs of subjects that no package puts into the PATH.
os.environ["PATH"] += f":{WORK / 'peers'}"

for directory in (ROOT / "scripts", ROOT / "benches"):
    sys.path.insert(0, str(directory))
