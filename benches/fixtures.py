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
        self.config = directory / "config.yml"
        self.config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {directory}}}}}\nhttp: {{addr: '{self.host}'}}\n"
        )

    def __enter__(self):
        self.process = subprocess.Popen(["docker-registry", "serve", self.config], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_LIMIT
        while True:
            try:
                socket.create_connection(self.address).close()
                return self
            except OSError:
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)

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
