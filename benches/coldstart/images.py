"""Builds the images of workloads.py, once, as OCI layouts below target/coldstart/images.

Runs in namespaces of its own (see namespaces.py): whatever way it ends, no mount and no process stays behind.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

from corpuslib import debian
from corpuslib.oci import Layout
from place import IMAGES, ROOT
from workloads import ENVIRONMENT, WORKLOADS

SOURCES = ("scripts/corpuslib/oci.py", "scripts/corpuslib/debian.py", "benches/coldstart/images.py", "benches/coldstart/steps.py")
TAG = "gzip"


def stamp(what) -> str:
    """Of what is built from `what` by these very sources."""
    digest = hashlib.sha256(repr(what).encode())
    for source in SOURCES:
        digest.update((ROOT / source).read_bytes())
    return digest.hexdigest()


def recipe(name: str) -> tuple:
    workload = WORKLOADS[name]
    return workload.layers, workload.command, workload.environment, workload.user


def is_built(name: str) -> bool:
    there = IMAGES / name / "stamp"
    return there.is_file() and there.read_text() == stamp(recipe(name))


def build(names: list):
    """Each beside its place and renamed: an interrupted build leaves nothing that looks finished."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in names:
        if is_built(name):
            continue
        print(f"building the image {name}", file=sys.stderr, flush=True)
        work = IMAGES / f".{name}.building"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        work.chmod(0o755)
        image(name, work)
        shutil.rmtree(IMAGES / name, ignore_errors=True)
        result = work / "result"
        result.mkdir()
        (work / "layout").rename(result / "layout")
        (result / "stamp").write_text(stamp(recipe(name)))
        result.rename(IMAGES / name)
        shutil.rmtree(work)


def image(name: str, work: Path):
    workload = WORKLOADS[name]
    layers = [base()]
    for number, steps in enumerate(workload.layers):
        with debian.Overlay(work, f"layer{number}", layers) as overlay:
            for step in steps:
                step.apply(overlay.merged)
        layers.insert(0, overlay.upper)
    layout = Layout(work / "layout")
    descriptors = [base_layer(layout)]
    # Not before all are built: an overlay below which a layer lies needs its whiteouts as they are.
    for upper in layers[-2::-1]:
        debian.whiteouts(upper)
        tar = debian.tar(upper, work / f"{upper.name}.tar")
        descriptors.append(layout.layer(tar, "gzip"))
        tar.unlink()
    config = {"Env": [*ENVIRONMENT, *workload.environment], "Cmd": list(workload.command), "User": workload.user}
    layout.tag(TAG, layout.manifest(descriptors, **config))
    layout.finish()


def base() -> Path:
    """The directory of the layer that all images begin with."""
    place = IMAGES / "base"
    if (place / "stamp").is_file() and (place / "stamp").read_text() == stamp("base"):
        return place / "tree"
    work = IMAGES / ".base.building"
    for leftover in (place, work):
        shutil.rmtree(leftover, ignore_errors=True)
    work.mkdir()
    work.chmod(0o755)
    debian.bootstrap(work / "tree")
    layout = Layout(work / "layout")
    layer = layout.layer(debian.tar(work / "tree", work / "base.tar"), "gzip")
    (work / "base.tar").unlink()
    (work / "layer.json").write_text(json.dumps(layer))
    (work / "stamp").write_text(stamp("base"))
    work.rename(place)
    return place / "tree"


def base_layer(layout: Layout) -> dict:
    """The layer itself, which all layouts share."""
    layer = json.loads((IMAGES / "base/layer.json").read_text())
    blob = layer["digest"].removeprefix("sha256:")
    os.link(IMAGES / "base/layout/blobs/sha256" / blob, layout.blobs / blob)
    return layer
