"""Runs `ft` in forks of one process, which has imported what the last ones did: `server.py FILE`.

To import torch, transformers and peft takes a command most of its time when the model is tiny. A client
(client.py) hands over its arguments, folder, environment and open files, and gets the exit code. Each command is a
process of its own still: nothing was done before it but to import, it has its own environment and files, and it ends as
any process does. What only a start from nothing shows (what is imported, time, memory) is not to be asked of one.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

HOUR = 3600


def receive(link: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What the client sends: its request, and its three open files."""
    files = array.array("i")
    head, carried, _, _ = link.recvmsg(8, socket.CMSG_SPACE(3 * files.itemsize))
    for _, _, data in carried:
        files.frombytes(data)
    size, said = int.from_bytes(head, "big"), b""
    while len(said) < size:
        said += link.recv(size - len(said))
    return json.loads(said), list(files)


def become(request: dict[str, Any], files: list[int]) -> None:
    """Take over the client's files, folder and environment."""
    for wanted, given in enumerate(files):
        os.dup2(given, wanted)
        os.close(given)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    importlib.invalidate_caches()
    sys.argv = ["ft", *request["arguments"]]
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(seconds if seconds < HOUR else 0)  # a page may wait for days


def serve(file: int, reports: socket.socket) -> None:
    """Accept clients until the standard input is closed; returns in each command's own process alone.

    Args:
        file: of a Unix socket that listens.
        reports: the names of the modules that commands imported; they are imported here before the next begins.
    """
    with socket.socket(fileno=file) as server:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who wait for commands are waited for by nobody
        while server in select.select([server, sys.stdin], [], [])[0]:
            link, _ = server.accept()
            learn(reports)
            if os.fork():
                link.close()
                continue
            server.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            request, files = receive(link)
            process = os.fork()
            if process == 0:
                link.close()
                become(request, files)
                return
            for opened in files:
                os.close(opened)
            link.sendall(f"{process}\n".encode())
            _, status = os.waitpid(process, 0)
            link.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
    os._exit(0)


def learn(reports: socket.socket) -> None:
    """Import what commands that ended have imported."""
    while True:
        try:
            names = json.loads(reports.recv(1 << 20))
        except BlockingIOError:
            return
        for name in names:
            with suppress(Exception):  # made by a module for itself, not from a file of its name
                importlib.import_module(name)
        gc.collect()
        gc.freeze()


def imported() -> list[str]:
    """The modules that come from the environment, in the order in which they were imported: no page's own ones."""
    files = {name: getattr(module, "__file__", None) or "" for name, module in list(sys.modules.items())}
    mine = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    own = {name for name, file in files.items() if file.startswith((*mine, str(Path.cwd())))}
    return [name for name, file in files.items() if file and name not in own and name != "__main__"]


def main() -> None:
    reports, report = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    reports.setblocking(False)
    gc.disable()
    serve(int(sys.argv[1]), reports)
    gc.enable()
    before = set(sys.modules)
    try:
        sys.exit(importlib.import_module("finetooth_core.cli").main())
    finally:
        with suppress(OSError):
            report.send(json.dumps([name for name in imported() if name not in before]).encode())


if __name__ == "__main__":
    main()
