"""The answers of a server to the Python client, to plain HTTP, and to the public Tinker client."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from running import CommandFailed, Found, environment, ft, plain

ROWS = [[80, 108, 117, 109, 32, 80, 105, 101], [70, 105, 103, 115, 32, 97, 110, 100, 32, 110, 117, 116, 115]]
"""Token ids, which the tiny model has one of for each byte."""
SESSION: dict[str, Any] = {
    "adapter": {"name": "lora", "rank": 4, "dropout": 0.1},
    "optimizer": {"name": "adamw", "learning_rate": 1e-2},
    "schedule": "constant",
    "train": {"seed": 3},
}
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}
SEEDED: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "top_p": 0.95, "n": 2, "seed": 5}
STARTING = 120
"""Seconds that the server has until it answers."""


def run_service(scratch: Path, overrides: Sequence[str]) -> Found:
    """Serve the tiny model, and ask each way.

    Args:
        overrides: `key=value` for the served recipe.

    Raises:
        CommandFailed: the server or a client failed.
    """
    folder = scratch / "service"
    folder.mkdir()
    with serving(folder, overrides) as (url, base):
        answers = {"client": ask_by_client(url, base), "http": ask_by_http(url, base)}
        if find_spec("tinker"):
            answers["tinker"] = ask_by_tinker(url, base, folder)
    return dict(plain(answers))


@contextmanager
def serving(folder: Path, overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """URL of a server on loopback, and the name of its base model."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base, url = str(folder.parent / "model"), f"http://127.0.0.1:{port}"
    faces = ["api", "tinker"] if find_spec("tinker") else ["api"]
    settings = ["train.precision=fp32", "data.renderer=chatml", *overrides]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [*ft(), "serve", *faces, "--model", base, "--port", str(port), "--folder", "server",
             *(part for setting in settings for part in ("--set", setting))],
            cwd=folder, env=environment(folder.parent), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        end = time.monotonic() + STARTING
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > end:
                raise CommandFailed(f"ft serve: {(folder / 'log').read_text()[-1500:]}")
            time.sleep(0.2)
        yield url, base
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def ask_by_client(url: str, base: str) -> dict[str, Any]:
    """Three steps, the last with a gradient of the caller's own; scores and text, of these and of saved weights."""
    import finetooth
    from finetooth_hooks import Datum, Sampling

    def told(completions: Any) -> list[Any]:
        return [[list(one.tokens), [float(p) for p in one.logprobs], one.text, one.stop] for one in completions]

    data = [Datum.from_tokens(row) for row in ROWS]
    found: dict[str, Any] = {}
    with finetooth.Client(url, patience=60) as client:
        session = client.session(base, **SESSION)
        found["untrained logprobs"] = [one.tolist() for one in session.logprobs(data)]
        for number in (1, 2):
            forward = session.forward_backward(data, "cross_entropy")
            stepped = session.step()
            found[f"step {number}"] = {"loss": forward.loss, "grad_norm": stepped.grad_norm}
        forward = session.forward(data)
        session.backward(forward.handle, [(-0.1 * one["logprobs"]).astype("float32") for one in forward.outputs])
        found["step 3"] = {"grad_norm": session.step().grad_norm}
        found["forward"] = [one["logprobs"].tolist() for one in forward.outputs]
        for role in ("policy", "reference"):
            found[f"logprobs of the {role}"] = [one.tolist() for one in session.logprobs(data, role=role)]
        prompts = [row[:4] for row in ROWS]
        found["greedy"] = [told(one) for one in session.generate(prompts, Sampling(**GREEDY))]
        found["seeded"] = [told(one) for one in session.generate(prompts, Sampling(**SEEDED))]
        sampler = client.sampler(checkpoint=session.save("kept"))
        found["sampler"] = told(sampler.generate(prompts[0], Sampling(**SEEDED), seeded=True))
    return found


def ask_by_http(url: str, base: str) -> dict[str, Any]:
    """The same without the client's code; arrays are kept as they travel."""

    def post(path: str, body: dict[str, Any]) -> Any:
        answer = _request(f"{url}/v1/{path}?wait=120", body)
        if answer["state"] != "done":
            raise CommandFailed(f"POST {path}: {answer}")
        return answer["result"]

    made = _request(f"{url}/v1/sessions?wait=120", {"base": base, **SESSION})
    session = f"sessions/{made['session']}"
    data = [{"tokens": row[:-1], "targets": row[1:]} for row in ROWS]
    found: dict[str, Any] = {}
    for number in (1, 2):
        forward = post(f"{session}/forward_backward", {"data": data, "loss": "cross_entropy"})
        found[f"step {number}"] = {"loss": forward["loss"], **post(f"{session}/step", {})}
    found["logprobs"] = post(f"{session}/logprobs", {"data": data, "top_k": 2})
    for name, sampling in (("greedy", GREEDY), ("seeded", SEEDED)):
        found[name] = post(f"{session}/generate", {"prompts": [row[:4] for row in ROWS], "sampling": sampling})
    return found


def ask_by_tinker(url: str, base: str, folder: Path) -> dict[str, Any]:
    """What the public client says, in a process of its own: it leaves a thread running."""
    told = {"TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tinker_client.py")), json.dumps(ROWS), base],
        env={**environment(folder.parent), **told}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    if done.returncode:
        raise CommandFailed(f"the Tinker client: {done.stderr[-1500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _request(url: str, body: dict[str, Any]) -> Any:
    sent = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=180) as answer:
        return json.load(answer)
