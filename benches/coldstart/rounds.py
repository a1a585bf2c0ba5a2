"""The measurements themselves, subject by subject within a round, and their results as JSON."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time

from links import Link
from measure import measure
from place import RESULTS, ROOT, WORK
from prepare import prepare

REGISTRY, LOGS = WORK / "registry", WORK / "logs"
# Between a subject and the next: what the one leaves to be written is not the other's burden.
PAUSE = 0.5


def run(chosen):
    subjects = [subject for subject in chosen.subjects if can_run(subject)]
    if not REGISTRY.exists():
        (WORK / "prepared.json").unlink(missing_ok=True)
    results = {"machine": machine(chosen), "rounds": chosen.rounds, "subjects": {subject.name: subject.about for subject in subjects},
               "links": {}}
    for speed in chosen.links:
        if not results["links"]:
            with Link(type(speed)(0, 0), REGISTRY, LOGS) as link:
                prepare(subjects, chosen.images, link, chosen.containerd)
        found = results["links"][str(speed)] = {name: {subject.name: [] for subject in subjects} for name in chosen.images}
        with Link(speed, REGISTRY, LOGS) as link:
            for number in range(chosen.rounds):
                for name in chosen.images:
                    for subject in subjects:
                        found[name][subject.name].append(one(subject, name, link, chosen, number))
                        # After each: an interrupted run leaves what it has.
                        RESULTS.write_text(json.dumps(results, indent=1))


def one(subject, name: str, link, chosen, number: int) -> dict:
    try:
        result = measure(subject, name, link, chosen.containerd)
    except Exception as error:  # noqa: BLE001 - a subject that fails must not end the others
        result = {"error": str(error)}
    told = result.get("error") or "ready {ready:.2f} s (pull {pull:.2f}, create {create:.3f}, run {run:.2f}), {requests} requests, " \
        "{0:.1f} MB, warm {1}".format(result["bytes"] / 1e6, " ".join(f"{second:.2f}" for second in result["warm"]), **result)
    print(f"{link.speed}, round {number + 1}, {name}, {subject.name}: {told}", flush=True)
    os.sync()
    time.sleep(PAUSE)
    return result


def can_run(subject) -> bool:
    if missing := subject.missing():
        print(f"{subject.name} is left out: {', '.join(missing)} not found", file=sys.stderr)
    return not missing


def machine(chosen) -> str:
    cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
    containerd = str(chosen.containerd / "containerd") if chosen.containerd else "containerd"
    version = subprocess.run([containerd, "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    unpigz = "unpigz" if shutil.which("unpigz") else "Go's gzip"
    return f"{cpu}, {os.cpu_count()} cores, Linux {platform.release()}; containerd {version} (layers are decompressed by {unpigz}), " \
           f"docker-registry; commit {commit}, {time.strftime('%Y-%m-%d')}"
