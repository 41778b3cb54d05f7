"""What the service costs beside the same engine called locally: forward_backward of 4,096 tokens, and 16 tokens
sampled, both in turns. Adds `overhead` to tests/bench/results/service.json.

    python tests/load/overhead.py [--model smollm2-135m] [--rounds 9] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import finetooth
import numpy as np
from finetooth_hooks import Datum, Sampling
from harness import RESULTS  # type: ignore[import-not-found]

ROWS = 8
SAMPLING = Sampling(max_tokens=16, temperature=0.0, stop_ids=())


def main() -> int:
    """Measure, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=4096, help="of a forward_backward")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS / "service.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="finetooth-overhead-") as folder:
        found = measured(given.model, given.tokens, given.rounds, given.overrides, Path(folder))
    whole = json.loads(given.output.read_text()) if given.output.exists() else {}
    given.output.write_text(json.dumps({**whole, "overhead": found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


def measured(model: str, tokens: int, rounds: int, overrides: list[str], folder: Path) -> dict[str, Any]:
    """Medians of the rounds in milliseconds, and what the service adds."""
    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State

    context = State(StartOptions())
    local = context.engine({**context.load({"model": model}, overrides), "adapter": {"name": "lora", "rank": 16}})
    loss = context.context(context.load({"model": model}, overrides)).loss("cross_entropy")
    dice = np.random.default_rng(0)
    most = 1000
    data = [Datum.from_tokens(dice.integers(10, most, size=tokens // ROWS + 1)) for _ in range(ROWS)]
    prompt = [int(token) for token in dice.integers(10, most, size=32)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "finetooth", "serve", "api", "--model", model, "--port", str(port),
               "--folder", str(folder / "server"), "--replay", "1e9"]  # fmt: skip
    for one in overrides:
        command += ["--set", one]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        with finetooth.Client(f"http://127.0.0.1:{port}", patience=300) as client:
            session = client.session(model, adapter={"name": "lora", "rank": 16})
            sampler = client.sampler(model)

            def served() -> None:
                session.forward_backward(data, "cross_entropy")

            def streamed() -> None:
                for _ in sampler.stream(prompt, SAMPLING):
                    pass

            pairs: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
                f"forward_backward, {tokens:,} tokens": (lambda: local.forward_backward(data, loss), served),
                "generate, 16 tokens, session": (
                    lambda: local.generate([prompt], SAMPLING),
                    lambda: session.generate([prompt], SAMPLING),
                ),
                "generate, 16 tokens, sampler": (
                    lambda: local.generate([prompt], SAMPLING),
                    lambda: sampler.generate(prompt, SAMPLING),
                ),
                "generate, 16 tokens, streamed": (lambda: local.generate([prompt], SAMPLING), streamed),
            }
            found = {}
            for name, pair in pairs.items():
                found[name] = compared(*pair, rounds, [local.zero_grad, session.zero_grad])
                print(name, found[name], flush=True)
            return found
    finally:
        server.terminate()
        server.wait(60)


def compared(
    here: Callable[[], Any], there: Callable[[], Any], rounds: int, between: list[Callable[[], Any]]
) -> dict[str, float]:
    """Both in turns, after two rounds that do not count."""
    spent: tuple[list[float], list[float]] = [], []
    for turn in range(rounds + 2):
        for which, call in enumerate((here, there)):
            begun = time.perf_counter()
            call()
            if turn >= 2:
                spent[which].append(1000 * (time.perf_counter() - begun))
        for call in between:
            call()
    local, service = (statistics.median(one) for one in spent)
    return {
        "local_ms": round(local, 2),
        "service_ms": round(service, 2),
        "added_ms": round(service - local, 2),
        "added_percent": round(100 * (service / local - 1), 2),
    }


if __name__ == "__main__":
    sys.exit(main())
