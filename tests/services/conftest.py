"""Servers over a tiny random Llama with SmolLM2's tokenizer."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import finetooth
import pytest
import uvicorn
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State
from finetooth_hooks import Datum
from finetooth_server.app import make_app
from finetooth_server.service import Service
from finetooth_server.settings import Settings

Recipe = dict[str, Any]


class Served:
    """A server in a thread, on a port of its own."""

    def __init__(self, settings: Settings, faces: tuple[str, ...]) -> None:
        self.service = Service(State(StartOptions()), settings)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        config = uvicorn.Config(make_app(self.service, faces), log_level="error", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def end(self) -> None:
        """Begin to stop, which takes a second and needs no waiting for."""
        self._server.should_exit = True

    def stop(self, until: float | None = None) -> None:
        """End it; what it was doing is finished first.

        Args:
            until: a moment by `time.monotonic`, in 60 seconds by default. Who has not ended by then is named, with
                what every thread does.
        """
        self.end()
        self._thread.join(60 if until is None else max(1.0, until - time.monotonic()))
        self.socket.close()
        if self._thread.is_alive():
            faulthandler.dump_traceback(sys.__stderr__)
            warnings.warn(f"a server of {self.service.settings.folder.name} does not end", stacklevel=2)


@pytest.fixture(scope="session")
def served_recipe(tiny_llama: Path) -> Recipe:
    """What servers offer under the name `tiny`."""
    return {
        "model": str(tiny_llama),
        "data": {"renderer": "chatml"},
        "adapter": {"name": "lora", "rank": 4},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "schedule": "constant",
        "train": {"precision": "fp32", "max_length": 256, "seed": 3},
    }


@pytest.fixture(scope="session")
def serve(served_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    """Starts servers; all are stopped in the end."""
    servers: list[Served] = []

    def make(*faces: str, **settings: Any) -> Served:
        folder = tmp_path_factory.mktemp("server")
        usual = {"models": {"tiny": served_recipe}, "keyless": True, "replay": 1e9}
        chosen = Settings(folder, **{**usual, **settings})
        servers.append(Served(chosen, faces))
        return servers[-1]

    yield make
    for server in servers:
        server.end()
    until = time.monotonic() + 120
    for server in servers:
        server.stop(until)


@pytest.fixture(scope="session")
def learned_by_heart() -> Callable[..., None]:
    """Trains an adapter of a served model on one rendered conversation until it says nothing else, and saves it."""

    def learn(served: Served, rendered: Any, *, model: str, name: str, steps: int) -> None:
        with finetooth.Client(served.url, patience=10) as owner:
            session = owner.session(model, adapter={"name": "lora", "rank": 16})
            for _ in range(steps):
                session.forward_backward([Datum.from_tokens(rendered.tokens, rendered.weights)])
                session.step()
            session.save(name)

    return learn


@pytest.fixture(scope="session")
def apart(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of `ft serve api tinker` in a process of its own, under which the model's folder is served."""
    folder = tmp_path_factory.mktemp("apart")
    command = [
        sys.executable, "-m", "finetooth", "serve", "api", "tinker", "--model", str(tiny_llama), "--port", "0",
        "--folder", str(folder / "server"), "--set", "train.precision=fp32", "--set", "data.renderer=chatml",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("w") as written:
        process = subprocess.Popen(command, stdout=written, stderr=written, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    found = None
    while found is None:
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
        found = re.search(r"at (http://\S+) \(", log.read_text())
    yield found[1]
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    finally:
        process.kill()
