"""What the parts of benches/run.py share: where things are, how they are run and mounted, how figures are kept."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")
WORK = TARGET / "bench"
sys.path.insert(0, str(ROOT / "scripts"))
# LAZO_BENCH_BIN: a directory such as target/debug, whose programs are measured as they are there.
PROGRAMS = Path(os.environ.get("LAZO_BENCH_BIN") or TARGET / "release")
LAZO = PROGRAMS / "lazo"
RIG = PROGRAMS / "examples/rig"


class Figures:
    """What was measured, with what was promised."""

    def __init__(self):
        self.rows = []

    def add(self, what: str, value: float, unit: str, most=None, least=None, note=""):
        """`most`, `least`: the promise, if there is one."""
        target = f"at most {most:g}" if most is not None else f"at least {least:g}" if least is not None else ""
        kept = None if not target else value <= most if most is not None else value >= least
        self.rows.append({"what": what, "value": value, "unit": unit, "target": target, "kept": kept, "note": note})
        print(f"{what}: {value:.4g} {unit}  {target}  {verdict(kept)}  {note}", flush=True)

    def table(self) -> str:
        lines = ["| figure | measured | target | | note |", "|---|---|---|---|---|"]
        for row in self.rows:
            lines.append(f"| {row['what']} | {row['value']:.4g} {row['unit']} | {row['target']} | {verdict(row['kept'])} | {row['note']} |")
        return "\n".join(lines)


def verdict(kept) -> str:
    return {None: "", True: "kept", False: "**missed**"}[kept]


def run(*command, **options) -> str:
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True, **options)
    return done.stdout


def rig(*command, **options) -> dict:
    return json.loads(run(RIG, *command, **options))


def measured(*command):
    """Seconds and peak RSS in bytes of a command, and its stdout."""
    start = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024, output


def fresh(name: str) -> Path:
    path = WORK / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def document(layout: Path, digest: str) -> dict:
    return json.loads((layout / "blobs" / digest.replace(":", "/")).read_text())


def tagged(layout: Path, tag: str) -> dict:
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    return next(entry for entry in entries if entry["annotations"]["org.opencontainers.image.ref.name"] == tag)


def manifest(layout: Path, tag: str) -> dict:
    return document(layout, tagged(layout, tag)["digest"])


@contextlib.contextmanager
def mounted(image: str, state="state", options=(), inside=()):
    """`lazo mount` at target/bench/mount for as long as `with` lasts; also what the mounting took. `inside`: a command before it."""
    place = WORK / "mount"
    place.mkdir(exist_ok=True)
    environment = {**os.environ, "LAZO_STATE_DIR": str(WORK / state), "LAZO_RUN_DIR": str(WORK / "run")}
    result = json.loads(run(*inside, RIG, "mount", LAZO, image, place, *options, env=environment))
    try:
        yield place, result["seconds"]
    finally:
        run(LAZO, "umount", place, env=environment)


@contextlib.contextmanager
def kernel_erofs(layout: Path):
    """The kernel's EROFS over the decompressed blobs, all local."""
    unpacked, place = fresh("erofs"), WORK / "erofs-mount"
    place.mkdir(exist_ok=True)
    rig("unpack", layout, "lazo", unpacked)
    process = subprocess.Popen([RIG, "erofs", unpacked, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if not process.stdout.readline():
            sys.exit("the kernel does not mount the image")
        yield place
    finally:
        process.communicate()


def server_of(place: Path) -> int:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if words[0].endswith(b"lazo") and bytes(place) in words:
                return int(entry.parent.name)
    sys.exit(f"no process serves {place}")


def rss(pid: int, field="VmRSS") -> int:
    """What a process has in memory, bytes; VmHWM: the most that it has had."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field + ":")).split()[1]) * 1024


def push(registry, layout: Path, name: str, tag="lazo") -> str:
    """Copies an image of a layout to the registry; the reference by digest."""
    digest = tagged(layout, tag)["digest"]
    run("skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false",
        f"oci:{layout}:{tag}", f"docker://{registry.host}/{name}:{tag}")
    return f"docker://{registry.host}/{name}@{digest}"
