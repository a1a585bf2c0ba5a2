#!/usr/bin/env python3
"""Measures what docs/BENCHMARKS.md promises, on this machine, and writes the figures there.

usage: benches/run.py [PART...]     parts: convert mount warm cold random start heavy trees modes (all of them without an argument)

Everything runs on the `large` test corpus with release binaries, as root. What is compared is measured in turns within
one run; figures are medians. Results: target/bench/results.json, and the table between the markers of docs/BENCHMARKS.md.
Without `convert` among the parts, what an earlier run converted is used again. With LAZO_BENCH_BIN=DIRECTORY nothing is
built, and the programs there are measured.
"""

import json
import os
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

import fixtures  # noqa: E402
import modes  # noqa: E402
import starts  # noqa: E402
from common import (LAZO, RIG, ROOT, WORK, Figures, document, drop_caches, fresh, kernel_erofs, manifest, measured,  # noqa: E402
                    mounted, push, rig, rss, run, server_of, tagged)
from corpuslib.oci import Layout  # noqa: E402
from corpuslib.rawtar import Tar  # noqa: E402

DOCUMENT = ROOT / "docs/BENCHMARKS.md"
BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
TREES = (10**3, 10**5, 10**6)
READERS, READS = 64, 100
CONVERSIONS, WALKS, COLD_READS, MOUNTS, TREE_MOUNTS = 3, 9, 5, 21, 15
PARTS = ("convert", "mount", "warm", "cold", "random", "start", "heavy", "trees", "modes")
# How much longer the mount of 10^6 entries may take than that of 10^3 before it counts as growing: the noise of a median.
FLAT = 1.25


def convert(figures: Figures, corpus: Path, full: bool) -> Path:
    """Converts the corpus, measured when `full`; the layout of the result at the default level (tag `lazo`)."""
    if not full and (WORK / "converted/0/index.json").is_file():
        return WORK / "converted/0"
    source = f"oci:{corpus}/layout:gzip"
    layers = manifest(corpus / "layout", "gzip")["layers"]
    paths = [corpus / "layout/blobs" / layer["digest"].replace(":", "/") for layer in layers]
    uncompressed = sum(int(run("sh", "-c", 'zcat "$1" | wc -c', "-", path)) for path in paths)  # warms the page cache too
    gzip = sum(layer["size"] for layer in layers)
    levels = {"the default level": [], "level 3": ["--compression-level", "3"]}
    layouts = {level: WORK / "converted" / str(number) for number, level in enumerate(levels)}
    runs = {level: [] for level in levels}
    for _ in range(CONVERSIONS if full else 1):
        for level, options in levels.items() if full else list(levels.items())[:1]:
            shutil.rmtree(layouts[level], ignore_errors=True)
            layouts[level].parent.mkdir(exist_ok=True)
            runs[level].append(measured(LAZO, "convert", *options, source, f"oci:{layouts[level]}:lazo")[:2])
    if full:
        for level, layout in layouts.items():
            seconds = statistics.median(seconds for seconds, _ in runs[level])
            blobs = sum(blob["size"] for blob in manifest(layout, "lazo")["layers"][:-1])
            figures.add(f"conversion at {level}, uncompressed input", uncompressed / seconds / 1e6, "MB/s", least=130,
                        note=f"{uncompressed / 1e6:.0f} MB in {seconds:.1f} s")
            figures.add(f"blobs / gzip layers at {level}", blobs / gzip, "", note=f"of {gzip / 1e6:.0f} MB",
                        most=0.97 if level == "the default level" else None)
        figures.add("conversion, peak RSS", max(peak for level in levels for _, peak in runs[level]) / 1e6, "MB", most=200)
        layout = layouts["the default level"]
        entries = rig("unpack", layout, "lazo", fresh("erofs"))["entries"]
        figures.add("bootstrap layer as stored", manifest(layout, "lazo")["layers"][-1]["size"] / entries, "bytes an entry",
                    most=60, note=f"{entries} entries")
    return layouts["the default level"]


def mount(figures: Figures, image: str):
    """Mount with the bootstrap at hand to the first listing, and what the serving process then takes."""
    shutil.rmtree(WORK / "state", ignore_errors=True)
    with mounted(image) as (_, first):
        pass
    times, sizes = [], []
    for _ in range(MOUNTS):
        with mounted(image) as (place, seconds):
            times.append(seconds)
            sizes.append(rss(server_of(place)))
    figures.add("lazo mount to first listing, bootstrap at hand", statistics.median(times) * 1e3, "ms", most=25,
                note=f"first ever, from the registry: {first * 1e3:.0f} ms")
    figures.add("RSS of the serving process after that", statistics.median(sizes) / 1e6, "MB", most=16)


def warm(figures: Figures, image: str, layout: Path, corpus: Path):
    """Walks and reads of everything, in the page cache: ext4, the kernel's EROFS with local blobs, lazo's mount."""
    shutil.rmtree(WORK / "state", ignore_errors=True)
    with mounted(image) as (place, _), kernel_erofs(layout) as kernel:
        trees = {"ext4": corpus / "reference", "EROFS": kernel, "lazo": place}
        seconds = {(what, name): [] for what in ("stat", "read") for name in trees}
        for turn in range(1 + WALKS):
            for what in ("stat", "read"):
                for name, tree in trees.items():
                    result = rig(what, tree)
                    if turn > 0:
                        seconds[what, name].append(result["seconds"])
        peak = rss(server_of(place))
    for what, words in (("stat", "warm stat walk"), ("read", "warm read of everything")):
        median = {name: statistics.median(seconds[what, name]) for name in trees}
        note = ", ".join(f"{name} {median[name]:.3f} s" for name in trees)
        figures.add(f"{words}, lazo / ext4", median["lazo"] / median["ext4"], "", most=1.15, note=note)
        figures.add(f"{words}, kernel EROFS / ext4", median["EROFS"] / median["ext4"], "")
    figures.add("RSS of the serving process after reading everything", peak / 1e6, "MB")


def cold(figures: Figures, registry, image: str, layout: Path):
    """Everything through the loopback registry, nothing cached anywhere."""
    speeds, seconds, requests = [], [], []
    for _ in range(COLD_READS):
        shutil.rmtree(WORK / "state", ignore_errors=True)
        drop_caches()
        before = registry.data_requests()
        with mounted(image) as (place, _):
            result = rig("read", place)
        speeds.append(result["bytes"] / result["seconds"] / 1e6)
        seconds.append(result["seconds"])
        requests.append(registry.data_requests() - before)
    figures.add("cold read of everything through docker-registry", statistics.median(speeds), "MB/s", least=300,
                note=f"{result['bytes'] / 1e6:.0f} MB in {statistics.median(seconds):.1f} s")
    stored = sum(blob["size"] for blob in manifest(layout, "lazo")["layers"][:-1])
    figures.add("its requests / 2 MiB of what is stored", statistics.median(requests) / (stored / (2 << 20)), "", most=1.3,
                note=f"{statistics.median(requests):.0f} for {stored / 1e6:.0f} MB")


def random(figures: Figures, registry, image: str):
    """64 readers at random offsets, nothing cached anywhere, everything asked for noted."""
    shutil.rmtree(WORK / "state", ignore_errors=True)
    drop_caches()
    with fixtures.Proxy(registry.host, 0) as proxy, mounted(starts.through(image, proxy), options=("--prefetch", "none")) as (place, _):
        result = rig("random", place, READERS, READS)
        peak, decoded = rss(server_of(place), "VmHWM"), starts.cached()
        data = [request for request in proxy.log() if request["data"]]
    figures.add(f"{READERS} readers at random offsets: peak RSS of the serving process", peak / 1e6, "MB", most=96 * 1.048576,
                note=f"{READERS * READS} reads of {result['bytes'] / 1e6:.0f} MB in {result['reading']:.1f} s")
    figures.add("stored bytes fetched twice", twice(data) / 1e6, "MB", most=0,
                note=f"{len(data)} requests, {sum(request['bytes'] for request in data) / 1e6:.0f} MB, "
                     f"{decoded / 1e6:.0f} MB decoded")


def twice(requests: list) -> int:
    """Bytes that more than one request has asked for."""
    total, end = 0, {}
    for request in sorted(requests, key=lambda request: (request["path"], request["first"])):
        first, last = request["first"], request["first"] + request["length"]
        reached = end.get(request["path"], 0)
        total += max(0, min(reached, last) - first)
        end[request["path"]] = max(reached, last)
    return total


def tree_image(entries: int) -> Path:
    """A converted image of so many entries, a tenth of them with a few bytes; kept between runs."""
    layout = WORK / f"trees-{entries}"
    if (layout / "index.json").is_file():
        return layout
    print(f"making a tree of {entries} entries", flush=True)
    source = fresh("tree-source")
    with open(source / "tar", "wb") as out:
        tar = Tar(out)
        # Roots of equal size: their listing is part of the figure.
        for number in range(entries - 2):
            place = b"tree/%02d/%02d/" % (number // 100_000, number // 1000 % 100)
            if number % 100_000 == 0:
                tar.dir(place[:8])
            if number % 1000 == 0:
                tar.dir(place)
            else:
                tar.add(place + b"file-%07d" % number, data=b"%d" % number if number % 10 == 0 else b"")
        tar.end()
    plain = Layout(source / "layout")
    plain.tag("tree", plain.manifest([plain.layer(source / "tar", "zstd")]))
    plain.finish()
    run(LAZO, "convert", f"oci:{plain.path}:tree", f"oci:{layout}:lazo")
    shutil.rmtree(source)
    return layout


def trees(figures: Figures, registry):
    """Mount time against the number of entries."""
    images = {entries: push(registry, tree_image(entries), f"tree-{entries}") for entries in TREES}
    times = {entries: [] for entries in TREES}
    for turn in range(1 + TREE_MOUNTS):
        for entries, image in images.items():
            with mounted(image, f"state-{entries}") as (_, seconds):
                if turn > 0:
                    times[entries].append(seconds)
    median = {entries: statistics.median(times[entries]) for entries in TREES}
    note = ", ".join(f"{entries:,} entries {median[entries] * 1e3:.1f} ms" for entries in TREES)
    figures.add("mount time, 1,000,000 entries / 1,000", median[TREES[-1]] / median[TREES[0]], "", most=FLAT, note=note)


def write(figures: Figures):
    commit = run("git", "-C", ROOT, "describe", "--always", "--dirty").strip()
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    about = f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}; commit {commit}, {time.strftime('%Y-%m-%d')}"
    (WORK / "results.json").write_text(json.dumps({"machine": about, "figures": figures.rows}, indent=1))
    text = DOCUMENT.read_text() if DOCUMENT.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    if BEGIN not in text:
        text += f"\n{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN, 1)
    _, tail = rest.split(END, 1)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{about}\n\n{figures.table()}\n{END}{tail}")


def main():
    parts = sys.argv[1:] or PARTS
    if any(part not in PARTS for part in parts):
        sys.exit(__doc__)
    if os.geteuid() != 0:
        sys.exit("run as root: it mounts file systems and drops caches")
    if "LAZO_BENCH_BIN" not in os.environ:
        run("cargo", "build", "--release", "--locked", "--bin", "lazo", "--example", "rig", cwd=ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    figures = Figures()
    corpus = Path(run(ROOT / "scripts/corpus", "large").strip())
    layout = convert(figures, corpus, "convert" in parts)
    with fixtures.Registry(WORK / "registry") as registry:
        image = push(registry, layout, "large")
        if "mount" in parts:
            mount(figures, image)
        if "warm" in parts:
            warm(figures, image, layout, corpus)
        if "cold" in parts:
            cold(figures, registry, image, layout)
        if "random" in parts:
            random(figures, registry, image)
        if "start" in parts:
            starts.start(figures, registry, layout, corpus)
        if "heavy" in parts:
            starts.heavy(figures, registry, corpus)
        if "trees" in parts:
            trees(figures, registry)
        if "modes" in parts:
            modes.modes(figures, image, corpus)
    if set(parts) == set(PARTS):
        write(figures)
    else:
        print(figures.table())


if __name__ == "__main__":
    main()
