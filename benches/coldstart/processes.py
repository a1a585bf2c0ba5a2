"""Processes that the rig starts, and what they cost."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
START_LIMIT = 30


class Process:
    """A daemon with a log file, and all its descendants."""

    def __init__(self, command: list, log: Path, ready=None, environment=None):
        """`ready`: a path that appears when it can be used."""
        with open(log, "ab") as out:
            self.process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                            env={**os.environ, **(environment or {})})
        self.pid, self.log = self.process.pid, log
        deadline = time.monotonic() + START_LIMIT
        while ready and not Path(ready).exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not start, see {log}")
            time.sleep(0.01)

    def tree(self) -> list:
        found, pending = [], [self.pid]
        while pending:
            pid = int(pending.pop())
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pending += (task / "children").read_text().split()
        return found

    def cpu(self) -> float:
        """Seconds so far, of descendants that have ended too."""
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                total += sum(int(fields[number]) for number in (11, 12, 13, 14))
        return total / TICKS

    def memory(self, field="VmRSS") -> int:
        """Bytes; VmHWM: the most that each process has had."""
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError, StopIteration):
                status = Path(f"/proc/{pid}/status").read_text().splitlines()
                total += int(next(line for line in status if line.startswith(field + ":")).split()[1]) * 1024
        return total

    def stop(self, patience=10.0):
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def client(command: list, log: Path, limit: float, environment: dict) -> tuple:
    """Runs a command to its end: wall seconds, CPU seconds of it and of its children."""
    start = time.perf_counter()
    with open(log, "ab") as out:
        process = subprocess.Popen([str(word) for word in command], stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                   env={**os.environ, **environment})
    timer = threading.Timer(limit, os.kill, (process.pid, signal.SIGKILL))
    timer.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: exit code {process.returncode}, see {log}")
    return seconds, usage.ru_utime + usage.ru_stime


def reap():
    """Containers' shims outlive containerd and come to the first process of the namespace, which is the rig."""
    if os.getpid() == 1:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
