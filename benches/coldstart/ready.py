"""Starts a container and waits until it does what it was started for."""

import contextlib
import http.client
import os
import select
import socket
import subprocess
import time

from workloads import Ready

LIMIT = 300  # seconds
# Between two questions to a port.
PAUSE = 0.005


class Container:
    """`ctr run` in the foreground, in the node's network namespace."""

    def __init__(self, node, image: str, name: str):
        self.node, self.name = node, name
        arguments = ["run", "--rm", "--net-host", "--snapshotter", node.subject.snapshotter, image, name]
        self.log = node.logs / f"{name}.log"
        self.start = time.perf_counter()
        self.process = subprocess.Popen(node.ctr(*arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def wait(self, ready: Ready) -> float:
        """Seconds since `ctr run` until it is ready."""
        output, descriptor = b"", self.process.stdout.fileno()
        os.set_blocking(descriptor, False)
        with open(self.log, "wb") as log:
            while time.perf_counter() - self.start < LIMIT:
                select.select([descriptor], [], [], 1.0 if ready.line else PAUSE)
                piece = os.read(descriptor, 1 << 16) if select.select([descriptor], [], [], 0)[0] else None
                if piece:
                    log.write(piece)
                    log.flush()
                    output = output[-256:] + piece
                if ready.line and ready.line.encode() in output or answers(ready):
                    return time.perf_counter() - self.start
                if piece == b"":
                    break
        raise RuntimeError(f"the container {self.name} did not become ready, see {self.log}")

    def end(self):
        """Kills it and waits until it has been removed."""
        with contextlib.suppress(BrokenPipeError):
            os.set_blocking(self.process.stdout.fileno(), True)
        while self.process.poll() is None:
            subprocess.run(self.node.ctr("task", "kill", "--signal", "SIGKILL", "--all", self.name),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.communicate(timeout=2)


def answers(ready: Ready) -> bool:
    if ready.http:
        return http_answers(ready.http)
    return bool(ready.redis) and redis_answers(ready.redis)


def http_answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        return answer.status == 200
    return False


def redis_answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
    return False
