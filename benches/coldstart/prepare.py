"""Fills the registry: the images as they were built, and as each subject wants them. What is there already stays."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import hints
from images import IMAGES, TAG, recipe, stamp
from node import Node
from place import LAZO, WORK
from subjects import Subject, find

RECORD = WORK / "prepared.json"


def prepare(subjects: list, names: list, link, programs):
    """`link`: through which the registry is reached; conversions are not timed."""
    done = json.loads(RECORD.read_text()) if RECORD.exists() else {}

    def once(what: str, key: str, work):
        if done.get(what) != key:
            work()
            done[what] = key
            RECORD.write_text(json.dumps(done, indent=1))

    for name in names:
        once(name, stamp(recipe(name)), lambda name=name: push(name, link.host))
    for subject in subjects:
        for name in names if subject.convert else []:
            key = hashlib.sha256(json.dumps([stamp(recipe(name)), subject.convert, versions(subject)]).encode())
            # Subjects may share what is converted.
            what = f"{name}:{subject.tag()} {hashlib.sha256(json.dumps(subject.convert).encode()).hexdigest()[:8]}"
            once(what, key.hexdigest(), lambda name=name, subject=subject: convert(name, subject, link, programs))


def push(name: str, host: str):
    subprocess.run(["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false",
                    f"oci:{IMAGES / name}/layout:{TAG}", f"docker://{host}/{name}:v1"], check=True)


def versions(subject: Subject) -> list:
    """Something that changes with the programs that convert."""
    paths = sorted({command[0] for command in subject.convert} | set(subject.tools))
    found = [shutil.which(path.replace("{lazo}", str(LAZO))) for path in paths]
    return [[path, Path(path).stat().st_size, Path(path).stat().st_mtime_ns] for path in found if path]


def convert(name: str, subject: Subject, link, programs):
    print(f"converting {name} for {subject.name}", flush=True)
    host = link.host_for(subject)
    words = {"source": f"{host}/{name}:v1", "image": f"{host}/{name}:{subject.tag()}", "layout": IMAGES / name / "layout"}
    if any("{hints}" in word for command in subject.convert for word in command):
        words["hints"] = hints.list_of(name)
    # What converts may want a containerd, but not the snapshotter that its result is for.
    plain = dataclasses.replace(find("overlayfs"), name=subject.name, tls=subject.tls, files=subject.files)
    with Node(plain, programs, link, f"convert-{name}") as node:
        for command in subject.convert:
            node.run(command, **words)
