"""One start of one image by one subject: from nothing on the node to ready, then again with everything there."""

import json
import subprocess
import time
import urllib.request
from hashlib import sha256

from node import NODE, Node
from place import RIG
from namespaces import NAMESPACE
from ready import Container
from subjects import Subject
from workloads import WORKLOADS

WARM_STARTS = 3
ACCEPT = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, " \
         "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"


def measure(subject: Subject, name: str, link, programs) -> dict:
    image = f"{link.host_for(subject)}/{name}:{subject.tag()}"
    workload = WORKLOADS[name]
    parent = chain_id(link.host, name, subject.tag())
    with Node(subject, programs, link, name) as node:
        link.mark()
        processes = {"containerd": [node.containerd], "daemons": node.daemons}
        before = {kind: sum(process.cpu() for process in these) for kind, these in processes.items()}
        start = time.perf_counter()
        pull, pull_cpu = node.run(subject.pull, image=image)
        created = create(node, parent)
        container = Container(node, image, "cold")
        try:
            run = container.wait(workload.ready)
            ready = time.perf_counter() - start
            cpu = {kind: sum(process.cpu() for process in these) - before[kind] for kind, these in processes.items()}
            result = {"pull": pull, "create": created, "run": run, "ready": ready, **link.traffic(node.logs / "requests.jsonl"),
                      "cpu": pull_cpu + sum(cpu.values()), "daemon_cpu": cpu["daemons"],
                      "daemon_rss": sum(process.memory() for process in node.daemons),
                      "daemon_peak": sum(process.memory("VmHWM") for process in node.daemons)}
        finally:
            container.end()
        result["warm"] = [warm(node, image, workload, number) for number in range(WARM_STARTS)]
        return result


def create(node: Node, parent: str) -> float:
    """Seconds until a snapshot for a container has been prepared and mounted. It stays: the start that follows makes its own."""
    place = NODE / "created"
    place.mkdir()
    command = [RIG, "snapshot", node.socket, NAMESPACE, node.subject.snapshotter, parent, "created", place]
    done = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)["create"]


def warm(node: Node, image: str, workload, number: int) -> float:
    """Seconds until a further container is ready."""
    container = Container(node, image, f"warm-{number}")
    try:
        return container.wait(workload.ready)
    finally:
        container.end()


def chain_id(host: str, name: str, tag: str) -> str:
    """containerd's name of the image's uppermost snapshot."""
    manifest = ask(host, f"/v2/{name}/manifests/{tag}")
    if "manifests" in manifest:
        fitting = [entry for entry in manifest["manifests"] if entry.get("platform", {}).get("architecture") in (None, "amd64")]
        manifest = ask(host, f"/v2/{name}/manifests/{fitting[0]['digest']}")
    chain = ""
    for diff_id in ask(host, f"/v2/{name}/blobs/{manifest['config']['digest']}")["rootfs"]["diff_ids"]:
        chain = f"sha256:{sha256(f'{chain} {diff_id}'.encode()).hexdigest()}" if chain else diff_id
    return chain


def ask(host: str, path: str) -> dict:
    with urllib.request.urlopen(urllib.request.Request(f"http://{host}{path}", headers={"Accept": ACCEPT})) as answer:
        return json.load(answer)
