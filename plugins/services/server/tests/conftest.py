"""A tiny random Llama in a folder, and services over it."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Datum
from finetooth_wire import wire
from sqlalchemy import create_engine

VOCAB = 128


class Served:
    """A server in a thread, on a port of its own."""

    def __init__(
        self, context: Any, settings: Any, port: int = 0, faces: tuple[str, ...] = ("api",), certificate: Any = None
    ) -> None:
        import uvicorn
        from finetooth_server.app import make_app
        from finetooth_server.limits.connections import AT_ONCE, BoundedConnection
        from finetooth_server.service import Service

        self.service = Service(context, settings)
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(("127.0.0.1", port))
        self.port = self.socket.getsockname()[1]
        self.url = f"{'https' if certificate else 'http'}://127.0.0.1:{self.port}"
        files = {"ssl_certfile": certificate.file, "ssl_keyfile": certificate.key} if certificate else {}
        app = make_app(self.service, faces)
        bounds = {"backlog": AT_ONCE, "timeout_graceful_shutdown": 1}
        config = uvicorn.Config(app, http=BoundedConnection, log_level="error", **bounds, **files)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def end(self) -> None:
        """Begin to stop, which takes a second and needs no waiting for."""
        self._server.should_exit = True

    def stop(self) -> None:
        self.end()
        self._thread.join(60)
        self.socket.close()


def pytest_configure() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, 32 wide, a token for each ASCII letter; random weights from a seed."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "model"
    letters = {chr(n): n for n in range(3, VOCAB)} | {"<s>": 0, "</s>": 1, "<unk>": 2}
    core = Tokenizer(models.WordLevel(letters, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(tiny: Path) -> dict[str, Any]:
    """What the server serves under the name `tiny`."""
    return {
        "model": str(tiny),
        "adapter": {"name": "lora", "rank": 4, "dropout": 0.1},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2},
        "schedule": "constant",
        "train": {"precision": "fp32", "max_length": 128, "seed": 3, "max_grad_norm": 0.0},
    }


@pytest.fixture(scope="session")
def context() -> Any:
    """How commands reach the rest."""
    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State

    return State(StartOptions())


@pytest.fixture
def start(context: Any, recipe: dict[str, Any], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts a service in a folder; `limits` and other settings by keyword. All are stopped in the end."""
    from finetooth_server.service import Service
    from finetooth_server.settings import Limits, Settings

    running = []

    def make(folder: Path | None = None, *, limits: dict[str, Any] | None = None, **settings: Any) -> Any:
        chosen = Settings(
            folder or tmp_path / "server",
            settings.pop("models", {"tiny": recipe}),
            limits=dataclasses.replace(Limits(), **(limits or {})),
            **{"keyless": True, "replay": 1e9, **settings},
        )
        service = Service(context, chosen)
        service.start()
        running.append(service)
        return service

    yield make
    for service in running:
        service.stop()


@pytest.fixture
def small_parts(start: Any, recipe: dict[str, Any]) -> Any:
    """Starts a service as `start` does, whose micro-batches have 128 tokens."""
    served = {"tiny": {**recipe, "train": {**recipe["train"], "micro_batch_tokens": 128}}}

    def make(*arguments: Any, **more: Any) -> Any:
        return start(*arguments, models=served, **more)

    return make


@pytest.fixture(scope="session")
def serve(context: Any) -> Iterator[Callable[..., Served]]:
    """Starts servers on ports of their own; all are stopped in the end."""
    servers: list[Served] = []

    def make(settings: Any, port: int = 0, faces: tuple[str, ...] = ("api",), certificate: Any = None) -> Served:
        servers.append(Served(context, settings, port, faces, certificate))
        return servers[-1]

    yield make
    for server in servers:
        server.end()
    for server in servers:
        server.stop()


class Killable:
    """`ft serve` in a process of its own, that can be killed and started again on the same port."""

    def __init__(
        self,
        model: Path | str,
        folder: Path,
        *faces: str,
        replay: float = 0.5,
        cwd: Path | None = None,
        more: Sequence[str] = (),
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"{'https' if '--tls' in more else 'http'}://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "finetooth", "serve", *faces, "--model", str(model),
            "--folder", str(folder / "server"), "--port", str(self.port), "--replay", str(replay),
            "--set", "train.precision=fp32", *more,
        ]  # fmt: skip
        self._cwd = cwd
        self.log = folder / "serve.log"
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self._cwd)
        for _ in range(600):
            assert self._process.poll() is None, self.log.read_text()
            import httpx2 as httpx

            try:
                if httpx.get(f"{self.url}/health", timeout=1, verify=False).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


@pytest.fixture
def killable() -> Iterator[Callable[..., Killable]]:
    """Starts such servers; all are stopped in the end."""
    servers: list[Killable] = []

    def make(*arguments: Any, **more: Any) -> Killable:
        servers.append(Killable(*arguments, **more))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


class Databases:
    """New databases of one kind: SQLite in the server's folder, or PostgreSQL."""

    def __init__(self, server: Any = None) -> None:
        self._server = server

    def new(self) -> str:
        """Address of an empty database, as `ft serve --database` takes it."""
        if self._server is None:
            return ""
        name = f"service_{secrets.token_hex(4)}"
        self._server.execute(f"CREATE DATABASE {name}")
        return f"{self._server.url.rpartition('/')[0]}/{name}"

    def url(self, address: str) -> str:
        """The same as `Settings` takes it."""
        from finetooth_server.commands.place import database_url

        return database_url(address)

    def copied(self, address: str) -> str:
        """A new database with the content of another one at this moment."""
        from finetooth_server.keeping.records import metadata

        new = self.new()
        source, target = (create_engine(self.url(one).replace("ql:", "ql+psycopg:")) for one in (address, new))
        metadata.create_all(target)
        with source.connect().execution_options(isolation_level="REPEATABLE READ") as old, target.begin() as young:
            for table in metadata.sorted_tables:
                rows = [row._asdict() for row in old.execute(table.select())]
                if rows:
                    young.execute(table.insert(), rows)
        source.dispose()
        target.dispose()
        return new


@pytest.fixture
def databases(request: pytest.FixtureRequest) -> Databases:
    """SQLite, or what a test asks for by its parameter."""
    if getattr(request, "param", "sqlite") == "sqlite":
        return Databases()
    return Databases(request.getfixturevalue("postgres"))


@pytest.fixture
def ask() -> SimpleNamespace:
    """What tests send."""

    def data(seed: int, count: int = 3) -> list[Datum]:
        rng = np.random.default_rng(seed)
        return [
            Datum.from_tokens(rng.integers(3, VOCAB, size=rng.integers(5, 20)), id=f"row-{seed}-{n}")
            for n in range(count)
        ]

    def sent(data: list[Datum]) -> list[Any]:
        return [wire.encode_datum(datum) for datum in data]

    def result(service: Any, caller: Any, call: Any) -> Any:
        """The result of a call, or its error as an exception."""
        done = asyncio.run(service.log.wait(caller, call.id, 60.0))
        assert done.state != "queued", "the call was not finished within a minute"
        if done.state == "failed":
            raise RuntimeError(f"{done.category}: {done.error}")
        return done.result

    return SimpleNamespace(data=data, sent=sent, result=result)
