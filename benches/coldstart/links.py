"""The registry, and what lies between it and the node.

The rig's own network namespace is the node; the registry is in another one at the end of a veth pair, or beside the node on its
loopback. Neither namespace has a way to anywhere else. The pair has loopback addresses, which are routed for once: to such a
registry every client talks plain HTTP, without settings of its own for it. Those that talk HTTPS alone use another address.
"""

import json
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import place  # noqa: F401
from fixtures import Proxy
from secure import Secure

NODE, REGISTRY = "127.77.0.1", "127.77.0.2"
# For benchmarks (RFC 2544), so that nothing real has them: a client that knows HTTPS alone may think otherwise of loopback.
SECURE_NODE, SECURE = "198.18.77.1", "198.18.77.2"
PORT, START_LIMIT = 5000, 20
REQUEST = re.compile(rb'"(GET|HEAD|POST) (\S+) HTTP/1\.\d" (\d{3}) (\d+)')


@dataclass(frozen=True)
class Speed:
    """`megabits` per second, each answer `latency` milliseconds late; 0: loopback, nothing in between."""

    megabits: int
    latency: int

    @classmethod
    def parse(cls, text: str):
        """MEGABITSxMILLISECONDS or loopback."""
        if text == "loopback":
            return cls(0, 0)
        megabits, latency = text.split("x")
        return cls(int(megabits), int(latency))

    def __str__(self):
        return f"{self.megabits} Mbit/s + {self.latency} ms" if self.megabits else "loopback"


class Link:
    """docker-registry with what is below `storage`, for as long as `with` lasts. `host` is how the node reaches it, and `secure.host`
    by HTTPS."""

    def __init__(self, speed: Speed, storage: Path, logs: Path):
        self.speed, self.storage, self.logs = speed, storage, logs
        self.proxy = self.holder = None
        self.inside = []

    def __enter__(self):
        self.storage.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        ip("link", "set", "lo", "up")
        if self.speed.megabits:
            self.wire()
        else:
            ip("address", "add", f"{SECURE}/32", "dev", "lo")
        self.start_registry()
        self.host = f"127.0.0.1:{PORT}"
        if self.speed.megabits:
            self.proxy = Proxy(self.host, self.speed.latency, REGISTRY)
            self.proxy.command = [*self.inside, *self.proxy.command]
            self.proxy.__enter__()
            self.host = self.proxy.host
        self.secure = Secure(self.inside, SECURE, self.host, self.logs)
        self.secure.__enter__()
        return self

    def host_for(self, subject) -> str:
        return self.secure.host if subject.tls else self.host

    def wire(self):
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo && exec sleep infinity"], stdout=subprocess.PIPE)
        self.holder.stdout.readline()
        self.inside = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        ip("link", "add", "node", "type", "veth", "peer", "name", "registry", "netns", str(self.holder.pid))
        for prefix, device, addresses in (([], "node", (NODE, SECURE_NODE)), (self.inside, "registry", (REGISTRY, SECURE))):
            self.attach(prefix, device, *addresses)
        # Both ways; a queue of 100 ms, and a burst of a few of the kernel's large segments.
        shape = ["root", "tbf", "rate", f"{self.speed.megabits}mbit", "burst", "256kb", "latency", "100ms"]
        for prefix, device in (([], "node"), (self.inside, "registry")):
            subprocess.run([*prefix, "tc", "qdisc", "add", "dev", device, *shape], check=True)

    @staticmethod
    def attach(prefix: list, device: str, address: str, secure: str):
        """One end of the pair. Of the loopback range, its namespace keeps 127.0.0.1 alone to itself."""
        for command in (f"ip link set lo up && ip link set {device} up",
                        f"ip address add {address}/30 dev {device} && ip address add {secure}/30 dev {device}",
                        f"echo 1 >/proc/sys/net/ipv4/conf/{device}/route_localnet",
                        "ip route delete local 127.0.0.0/8 dev lo table local"):
            subprocess.run([*prefix, "sh", "-c", command], check=True)

    def start_registry(self):
        config, self.log = self.logs / "registry.yml", self.logs / "registry-access.log"
        config.write_text("version: 0.1\nlog: {level: error, accesslog: {disabled: false}}\n"
                          f"storage: {{filesystem: {{rootdirectory: {self.storage}}}}}\nhttp: {{addr: '127.0.0.1:{PORT}', relativeurls: true}}\n")
        with open(self.log, "wb") as log:
            command = [*self.inside, "docker-registry", "serve", config]
            self.registry = subprocess.Popen(command, stdout=log, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_LIMIT
        probe = [*self.inside, "bash", "-c", f"exec 3<>/dev/tcp/127.0.0.1/{PORT}"]
        while subprocess.run(probe, stderr=subprocess.DEVNULL, check=False).returncode:
            if time.monotonic() > deadline or self.registry.poll() is not None:
                raise TimeoutError("docker-registry does not start")
            time.sleep(0.05)

    def mark(self):
        """`traffic` counts from here."""
        if self.proxy:
            self.proxy.log()
        self.offset = self.log.stat().st_size

    def traffic(self, record: Path) -> dict:
        """Requests since `mark`, and bytes of answers given to the node. On loopback, of requests that have been answered entirely.
        `record`: where each is told of, unless it is loopback."""
        if self.proxy:
            log = self.proxy.log()
            record.write_text("".join(json.dumps(request) + "\n" for request in log))
            return {"requests": len(log), "bytes": sum(request["bytes"] for request in log)}
        with open(self.log, "rb") as log:
            log.seek(self.offset)
            found = REQUEST.findall(log.read())
        return {"requests": len(found), "bytes": sum(int(size) for method, _, _, size in found if method == b"GET")}

    def __exit__(self, *_):
        self.secure.__exit__()
        if self.proxy:
            self.proxy.__exit__()
        self.registry.terminate()
        self.registry.wait()
        if self.holder:
            self.holder.kill()
            self.holder.wait()
            subprocess.run(["ip", "link", "delete", "node"], stderr=subprocess.DEVNULL, check=False)
            ip("route", "replace", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
        else:
            ip("address", "delete", f"{SECURE}/32", "dev", "lo")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)

