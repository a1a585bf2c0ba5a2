"""Stands in for systemd: runs one service, keeps the files that it asks to have kept, and gives them to the next process.

Usage: manager.py [--listen NAME=PATH] NOTIFY_SOCKET PROGRAM ARGUMENT...
With --listen, one of the files is a socket that it listens at, as of a socket unit.
Commands on standard input, each answered by a line: `start` (when it is ready), `term` and `kill` (when it has ended), `names`.
"""

import array
import fcntl
import os
import selectors
import signal
import socket
import sys

FIRST_FILE = 3


def main():
    arguments, kept = sys.argv[1:], {}
    if arguments[0] == "--listen":
        name, _, place = arguments[1].partition("=")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(place)
        listener.listen()
        kept[name], arguments = [listener.detach()], arguments[2:]
    path, command = arguments[0], arguments[1:]
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(path)
    child = None

    def receive():
        data, control, _, _ = notify.recvmsg(65536, socket.CMSG_SPACE(64 * 4))
        files = array.array("i")
        for level, kind, payload in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                files.frombytes(payload)
        fields = dict(line.split("=", 1) for line in data.decode().splitlines())
        name = fields.get("FDNAME")
        if fields.get("FDSTORE") == "1":
            for file in files:
                kept.setdefault(name, []).append(file)
        elif "FDSTOREREMOVE" in fields:
            for file in kept.pop(name, []):
                os.close(file)
        return fields.get("READY") == "1"

    def start():
        child = os.fork()
        if child:
            return child
        files = [(name, file) for name, files in kept.items() for file in files]
        # Out of the way of the numbers that they get.
        high = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, FIRST_FILE + len(files)) for _, file in files]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        for number, file in enumerate(high):
            os.dup2(file, FIRST_FILE + number, inheritable=True)
        environment = dict(os.environ, NOTIFY_SOCKET=path)
        if files:
            environment.update(
                LISTEN_PID=str(os.getpid()),
                LISTEN_FDS=str(len(files)),
                LISTEN_FDNAMES=":".join(name for name, _ in files),
            )
        os.execve(command[0], command, environment)

    def end(child, number):
        os.kill(child, number)
        # What it says at its end is heard, too.
        notify.settimeout(0.05)
        while True:
            try:
                receive()
            except TimeoutError:
                if os.waitpid(child, os.WNOHANG)[0]:
                    break
        notify.settimeout(None)

    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    selector.register(notify, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is notify:
                receive()
                continue
            word = sys.stdin.readline().strip()
            if word == "start":
                child = start()
                while not receive():
                    pass
                print(child, flush=True)
            elif word in ("term", "kill"):
                end(child, signal.SIGTERM if word == "term" else signal.SIGKILL)
                print("ended", flush=True)
            elif word == "names":
                print(" ".join(sorted(kept)), flush=True)
            else:
                return


main()
