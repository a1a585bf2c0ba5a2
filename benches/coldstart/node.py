"""The node: a private containerd, and the daemons of the subject that is measured."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from namespaces import NAMESPACE
from place import LAZO, WORK
from processes import Process, client, reap
from subjects import Subject

NODE = WORK / "node"
PULL_LIMIT = 600  # seconds
CONFIG = """version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp",
    "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{socket}"
"""
PLUGIN = """[proxy_plugins.{name}]
  type = "snapshot"
  address = "{socket}"
"""


class Node:
    """Daemons with nothing in their directories, while `with` lasts. `programs`: containerd's directory, None: where the PATH says.
    `purpose` names the directory of its logs."""

    def __init__(self, subject: Subject, programs, link, purpose: str):
        self.subject, self.programs = subject, programs
        self.logs = WORK / "logs" / subject.name / purpose
        self.socket = NODE / "run/containerd.sock"
        self.words = {"lazo": LAZO, "containerd": self.socket, "namespace": NAMESPACE, "host": link.host_for(subject), "ctr": self.program("ctr"),
                      "state": NODE / "subject", "run": NODE / "run", "files": NODE / "files"}
        search = f"{programs}:{os.environ['PATH']}" if programs else os.environ["PATH"]
        self.environment = {"PATH": search, **({"SSL_CERT_FILE": str(link.secure.authority)} if subject.tls else {})}
        self.daemons = []

    def program(self, name: str) -> str:
        return str(Path(self.programs) / name) if self.programs else name

    def __enter__(self):
        clean()
        for directory in ("root", "run", "subject", "files"):
            (NODE / directory).mkdir(parents=True)
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        for name, text in self.subject.files.items():
            path = NODE / "files" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self.fill(text))
        try:
            for number, daemon in enumerate(self.subject.daemons):
                command = [self.fill(word) for word in daemon["command"]]
                ready = self.fill(daemon["ready"]) if "ready" in daemon else None
                self.daemons.append(Process(command, self.logs / f"daemon-{number}.log", ready,
                                            {**self.environment, **daemon.get("environment", {})}))
            self.containerd = self.start_containerd()
        except BaseException:
            self.stop()
            raise
        return self

    def start_containerd(self) -> Process:
        config = CONFIG.format(root=NODE / "root", state=NODE / "run/containerd", socket=self.socket)
        if self.subject.socket:
            config += PLUGIN.format(name=self.subject.snapshotter, socket=self.fill(self.subject.socket))
        path = NODE / "containerd.toml"
        path.write_text(config)
        command = [self.program("containerd"), "--config", path]
        return Process(command, self.logs / "containerd.log", self.socket, self.environment)

    def fill(self, text: str, **words) -> str:
        """Puts in what `{name}` stands for; other braces stay."""
        for name, value in {**self.words, **words}.items():
            text = text.replace("{" + name + "}", str(value))
        return text

    def run(self, command: list, **words) -> tuple:
        """A client's command; wall and CPU seconds."""
        return client([self.fill(word, **words) for word in command], self.logs / "client.log", PULL_LIMIT,
                      self.environment)

    def ctr(self, *arguments) -> list:
        return [self.program("ctr"), "--address", str(self.socket), "--namespace", NAMESPACE, *map(str, arguments)]

    def stop(self):
        containerd = getattr(self, "containerd", None)
        for process in ([containerd] if containerd else []) + self.daemons[::-1]:
            process.stop()
        self.daemons = []
        unmount(NODE)
        reap()

    def __exit__(self, *_):
        self.stop()


def clean():
    """What was on the node is gone, from the page cache too."""
    unmount(NODE)
    shutil.rmtree(NODE, ignore_errors=True)
    NODE.mkdir(parents=True)
    drop_caches()


def drop_caches():
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def unmount(below: Path):
    """Everything that is mounted there, the last first."""
    for _ in range(3):
        mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        mounts = [mount for mount in mounts if mount.startswith(f"{below}/")]
        if not mounts:
            return
        for mount in reversed(mounts):
            subprocess.run(["umount", "-l", mount], stderr=subprocess.DEVNULL, check=False)
        time.sleep(0.05)
