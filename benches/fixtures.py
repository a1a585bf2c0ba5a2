"""A docker-registry on a free loopback port, and a slow network before it, as benches/run.py needs them."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

from common import RIG

START_LIMIT = 20  # seconds


class Registry:
    """Runs while `with` lasts, with empty storage below `directory`."""

    def __init__(self, directory: Path):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = probe.getsockname()
        self.host = "{}:{}".format(*self.address)
        self.config, self.access_log = directory / "config.yml", directory / "access.log"
        self.config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: false}}\n"
            f"storage: {{filesystem: {{rootdirectory: {directory}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )

    def __enter__(self):
        with open(self.access_log, "wb") as log:
            self.process = subprocess.Popen(["docker-registry", "serve", self.config], stdout=log, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                socket.create_connection(self.address).close()
                return self
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

    def data_requests(self) -> int:
        """How many requests it has answered with a part of a blob."""
        return sum(line.count(b'" 206 ') for line in self.access_log.read_bytes().splitlines())

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


class Proxy:
    """`rig proxy` before a registry, while `with` lasts: each answer comes `latency` milliseconds late."""

    def __init__(self, upstream: str, latency: int, address="127.0.0.1"):
        self.command, self.latency = [RIG, "proxy", address, upstream], latency

    def __enter__(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.host = json.loads(self.process.stdout.readline())["host"]
        self.tell(f"latency {self.latency}")
        return self

    def tell(self, line: str):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def log(self) -> list:
        """The requests since the last time, in the order of their arrival."""
        return self.tell("log")

    def __exit__(self, *_):
        self.process.communicate()


class Network:
    """A network namespace with one link of `megabits` per second from here to there, while `with` lasts."""

    # For benchmarks (RFC 2544), so that nothing real has it; what does not belong to the link goes nowhere.
    RANGE, HERE, THERE = "198.18.77.0/24", "198.18.77.1", "198.18.77.2"
    NAME, DEVICES = "lazo-bench", ("lazo-bench-0", "lazo-bench-1")

    def __init__(self, megabits: int):
        self.megabits = megabits
        self.inside = ("nsenter", f"--net=/run/netns/{self.NAME}")

    def __enter__(self):
        here, there = self.DEVICES
        self.remove()
        ip("route", "add", "unreachable", self.RANGE)
        ip("netns", "add", self.NAME)
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", self.NAME)
        ip("address", "add", f"{self.HERE}/30", "dev", here)
        ip("-n", self.NAME, "address", "add", f"{self.THERE}/30", "dev", there)
        ip("link", "set", here, "up")
        ip("-n", self.NAME, "link", "set", there, "up")
        ip("-n", self.NAME, "link", "set", "lo", "up")
        # A queue of 100 ms, and a burst of a few of the kernel's large segments.
        shape = ["tbf", "rate", f"{self.megabits}mbit", "burst", "256kb", "latency", "100ms"]
        subprocess.run(["tc", "qdisc", "add", "dev", here, "root", *shape], check=True)
        return self

    def remove(self):
        """What is left of a run that was killed, too."""
        for command in (["link", "delete", self.DEVICES[0]], ["netns", "delete", self.NAME],
                        ["route", "delete", "unreachable", self.RANGE]):
            subprocess.run(["ip", *command], stderr=subprocess.DEVNULL, check=False)

    def __exit__(self, *_):
        self.remove()


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)
