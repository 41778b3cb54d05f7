"""The eight primitives over two gloo processes give what one process gives: by a program at every rank, and in a server
whose session asks for a strategy."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_client.messages import forward_backward
from finetooth_hooks import Datum, Sampling

sys.path.insert(0, str(Path(__file__).parents[1] / "bits"))
from tiny import write_model

pytestmark = pytest.mark.slow
STRATEGIES: dict[str, Any] = {
    "ddp": "ddp",
    "fsdp-hybrid": {"name": "fsdp", "replicas": 2},
    "zero-1": {"name": "deepspeed", "stage": 1},
    "zero-2": {"name": "deepspeed", "stage": 2},
}
MISSING = importlib.util.find_spec("deepspeed") is None
CASES = [
    pytest.param(name, marks=pytest.mark.skipif(name.startswith("zero") and MISSING, reason="needs deepspeed"))
    for name in STRATEGIES
]
SECTIONS: dict[str, Any] = {
    "adapter": {"name": "lora", "rank": 4, "dropout": 0.1},
    "optimizer": {"name": "adamw", "learning_rate": 1e-2, "eps": 1e-5},
    "schedule": "constant",
    "train": {"max_length": 64, "seed": 3, "max_grad_norm": 1.0},
}


def rows(seed: int, count: int) -> list[Datum]:
    rng = np.random.default_rng(seed)
    return [Datum.from_tokens(rng.integers(3, 90, size=rng.integers(5, 20)), id=f"{seed}-{n}") for n in range(count)]


def driven(engine: Any, loss: Any, state: Any) -> list[float]:
    """Numbers of all primitives: a handle's loss, gradients of the caller's, two calls of a step, one row for two
    ranks, a state that is saved and loaded.

    Args:
        loss: as `forward_backward` takes it.
        state: what `load` gets; `save` of a server gives it.
    """
    numbers: list[float] = []
    for step in range(2):
        forward = engine.forward(rows(step, 3), loss=loss)
        numbers += [forward.loss, engine.backward(forward.handle).grad_norm]
        forward = engine.forward(rows(step + 10, 3))
        given = [np.full_like(output["logprobs"], -0.1) for output in forward.outputs]
        numbers += [engine.backward(forward.handle, given).grad_norm, engine.step().grad_norm]
        numbers += [engine.forward_backward(rows(step + 20, 1), loss).loss, engine.step().grad_norm]
    engine.forward_backward(rows(30, 2), loss)
    engine.zero_grad()
    saved = engine.save(state)
    for _ in range(2):
        numbers += np.concatenate(engine.logprobs(rows(40, 3))).tolist()
        numbers += engine.generate([[5, 6, 7]], Sampling(max_tokens=6, temperature=0)).completions[0][0].tokens
        engine.forward_backward(rows(50, 2), loss)
        engine.step()
        engine.load(state if saved is None else saved)
    return numbers


def main() -> None:
    """The program of each rank: a recipe, and the file for its numbers."""
    recipe, out = json.loads(sys.argv[1]), Path(sys.argv[2])
    session = finetooth.session(recipe, data=False)
    engine = session.engine
    numbers = driven(engine, session.context.loss("cross_entropy"), session.folder / "state")
    if session.writes:
        out.write_text(json.dumps(numbers), encoding="utf-8")


def ranks(folder: Path, name: str, scale: Mapping[str, Any], program: str = __file__) -> list[Any]:
    """What a program writes at the first of so many ranks, started as torchrun starts them."""
    world = scale.get("devices", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    precise = {"train": {**SECTIONS["train"], "precision": "fp32"}}
    recipe = {**SECTIONS, **precise, "model": "model", "scale": dict(scale), "output": name}
    command = [sys.executable, program, json.dumps(recipe), f"{name}.json"]
    kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    kept |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FT_CACHE": str(folder / "cache")}
    place = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if world > 1 else {}
    started = []
    for rank in range(world):
        own = {**kept, **place, **({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})}
        started.append(subprocess.Popen(command, cwd=folder, env=own, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    numbers: list[Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("primitives")
    write_model(made / "model")
    return made


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    """The numbers of one process."""
    return ranks(folder, "alone", {})


@pytest.mark.parametrize("strategy", CASES)
def test_a_program_at_every_rank(folder: Path, alone: list[float], strategy: str) -> None:
    numbers = ranks(folder, strategy, {"devices": 2, "strategy": STRATEGIES[strategy]})
    np.testing.assert_allclose(numbers, alone, rtol=1e-5, atol=1e-6)


@contextmanager
def serving(
    folder: Path, name: str, *flags: str, model: str = "model"
) -> Iterator[tuple[Any, subprocess.Popen[bytes]]]:
    """A client of `ft serve` over a folder of its own, and the server's process; a folder is served again."""
    place = folder / f"{name}.port"
    if not place.exists():
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            place.write_text(str(probe.getsockname()[1]), encoding="utf-8")
    port = place.read_text(encoding="utf-8")
    settings = ["--set", "train.precision=fp32", "--ranks", "2", "--folder", name, "--port", port, *flags]
    command = [sys.executable, "-m", "finetooth", "serve", "api", "--model", model, *settings]
    kept = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FT_CACHE": str(folder / "cache")}
    log = folder / f"{name}.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **kept}, stdout=output, stderr=output)
    while "serving" not in log.read_text(encoding="utf-8"):
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.1)
    try:
        with finetooth.Client(f"http://127.0.0.1:{port}", patience=300) as client:
            yield client, process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[tuple[Any, int]]:
    """A client of `ft serve`, and the server's process id."""
    with serving(folder, "server", "--rank-silence", "15", "--call-tokens", "16777216") as (client, process):
        yield client, process.pid


@pytest.mark.parametrize("strategy", CASES)
def test_a_session_of_a_server(server: tuple[Any, int], alone: list[float], strategy: str) -> None:
    session = server[0].session("model", **SECTIONS, strategy={"name": strategy, "devices": 2})
    np.testing.assert_allclose(driven(session, "cross_entropy", "here"), alone, rtol=1e-5, atol=1e-6)
    saved, greedy = session.save("weights", kind="weights"), Sampling(max_tokens=6, temperature=0)
    (own,) = session.generate([[5, 6, 7]], greedy).completions[0]
    (sampled,) = server[0].sampler(checkpoint=saved).generate([5, 6, 7], greedy)  # by the server itself
    assert sampled.tokens == own.tokens
    session.close()


def children(process: int) -> set[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return set(map(int, listed.stdout.split()))


def test_a_session_ends_with_its_rank_and_others_stay(server: tuple[Any, int]) -> None:
    client, process = server
    bystander, before = client.session("model", **SECTIONS), children(process)
    session = client.session("model", **SECTIONS, strategy="ddp")
    ranks = children(process) - before
    killing = threading.Timer(0.5, os.kill, (max(ranks), signal.SIGKILL))
    killing.start()
    with pytest.raises(Exception, match=r"rank 1 of 2 was ended by signal 9 \(SIGKILL\), and the session has ended"):
        while True:
            begun = time.monotonic()
            session.forward_backward(rows(7, 64), "cross_entropy")
    killing.join()
    assert time.monotonic() - begun < 10
    with pytest.raises(Exception, match="the model was closed"):
        session.step()
    assert bystander.forward_backward(rows(7, 3), "cross_entropy").loss > 0
    assert len(ranks) == 2 and not ranks & children(process)


@pytest.mark.parametrize("strategy", CASES)
def test_a_hung_rank_ends_its_session_within_the_limit(server: tuple[Any, int], strategy: str) -> None:
    client, process = server
    bystander, before = client.session("model", **SECTIONS), children(process)
    session = client.session("model", **SECTIONS, strategy=strategy)
    ranks = children(process) - before
    os.kill(max(ranks), signal.SIGSTOP)
    begun = time.monotonic()
    call = session._submit(forward_backward(rows(7, 4), "cross_entropy", None))["id"]
    assert bystander.forward_backward(rows(7, 3), "cross_entropy").loss > 0  # meanwhile
    assert state_of(client, call, wait=1)["state"] == "queued"
    said = state_of(client, call, wait=60)["error"]["message"]
    assert time.monotonic() - begun < 15 + 15
    assert f"rank 1 of 2 on {socket.gethostname()} gave no sign of life for 15 s (ft serve --rank-silence)" in said
    with pytest.raises(Exception, match="the model was closed"):
        session.step()
    assert bystander.step().step == 1 and not ranks & children(process)


def state_of(client: Any, call: str, wait: float) -> Any:
    """A call once it is finished, or after so many seconds."""
    until = time.monotonic() + wait
    while True:
        found = client._http.get(f"/v1/calls/{call}", params={"wait": 0}).json()
        if found["state"] != "queued" or time.monotonic() > until:
            return found
        time.sleep(0.1)


@pytest.mark.parametrize("strategy", CASES)
def test_tokens_are_streamed_as_ranks_write_them(server: tuple[Any, int], strategy: str) -> None:
    session, alone = (server[0].session("model", **SECTIONS, strategy=pick) for pick in (strategy, None))
    long = Sampling(max_tokens=1500, temperature=0, stop_ids=())
    stream, came = session.stream([[5, 6, 7], [8, 9]], long), list[tuple[int, int, str]]()
    for piece in stream:
        came.append((piece.completion, piece.index, state_of(server[0], stream.call, 0)["state"]))
    assert [state for _, _, state in came].count("queued") > 5  # they come while the call is executed
    expected = [one.tokens for group in alone.generate([[5, 6, 7], [8, 9]], long).completions for one in group]
    assert [one.tokens for one in stream.completions] == expected
    for each in (session, alone):
        each.close()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp-hybrid"])
def test_a_call_that_is_broken_off_leaves_its_model_as_it_was(server: tuple[Any, int], strategy: str) -> None:
    """Thousands of rows, and thousands of tokens: equal to a session that never began them. Under hybrid shard ranks
    compute them to the end, and the model is as after any other call."""
    client, losses, finished = server[0], [], False
    for broken in (True, False):
        session = client.session("model", **SECTIONS, strategy=strategy)
        session.forward_backward(rows(1, 4), "cross_entropy")
        if broken:
            call = session._submit(forward_backward(rows(2, 4000), "cross_entropy", None))["id"]
            time.sleep(1)
            client.cancel(call)
            found = state_of(client, call, wait=60)
            finished = found["state"] == "done"  # it may have been asked before it began, too
            assert finished != ("the call was cancelled" in str(found["error"]))
            assert strategy != "ddp" or not finished
        elif finished:
            session.forward_backward(rows(2, 4000), "cross_entropy")
        if broken and strategy == "ddp":
            stream = session.stream([[5, 6, 7]], Sampling(max_tokens=20000, n=64, stop_ids=()))
            next(iter(stream))
            client.cancel(stream.call)
            assert "the call was cancelled" in state_of(client, stream.call, wait=60)["error"]["message"]
        session.step()
        losses.append(session.forward_backward(rows(3, 4), "cross_entropy").loss)
        session.close()
    assert losses[0] == losses[1]


def begun(session: Any) -> Any:
    """Two steps, and gradients of a third."""
    for step in range(2):
        session.forward_backward(rows(step, 4), "cross_entropy")
        session.step()
    session.forward_backward(rows(5, 4), "cross_entropy")
    return session


def test_a_killed_server_continues_a_session_of_ranks_with_what_it_kept_encrypted(folder: Path) -> None:
    """Killed with gradients that no snapshot holds: the log is applied again by new ranks. No file holds a weight in
    plain, and the old ranks end by themselves."""
    subprocess.run([sys.executable, "-m", "finetooth", "encryption", "key", "server.key"], cwd=folder, check=True)
    (folder / "scratch").mkdir()
    flags = ("--encryption-key", "server.key", "--scratch", "scratch")
    with serving(folder, "encrypted", *flags) as (client, process):
        killed = begun(client.session("model", **SECTIONS, strategy="ddp"))
        ranks = children(process.pid)
        process.kill()
        process.wait()
    with serving(folder, "encrypted", *flags) as (client, _):
        sessions = client.attach(killed.id), begun(client.session("model", **SECTIONS, strategy="ddp"))
        for session in sessions:
            session.step()
            session.save("state")
        again, whole = (session.forward_backward(rows(6, 4), "cross_entropy").loss for session in sessions)
    assert again == whole
    kept = list((folder / "encrypted").rglob("*.safetensors"))
    assert kept and not any(b'"dtype"' in file.read_bytes() for file in kept)
    assert not list((folder / "scratch").rglob("*.safetensors"))
    for rank in ranks:
        with pytest.raises(ProcessLookupError):
            os.kill(rank, 0)


if __name__ == "__main__":
    main()
