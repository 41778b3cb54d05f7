"""What it takes to sample many adapters of one base at once: a server that writes them in one batch, beside one that
gives each its turns, and beside many requests of a single adapter. Adds `adapters`, or `adapters_on_one_thread`, to
tests/bench/results/service.json; exit code 1 if a request gets other tokens than alone.

    python tests/load/adapters.py [--model NAME] [--adapters 8] [--rank 16] [--tokens 64] [--rounds 5] [--threads 1]
        [--output FILE]

Rates are tokens a second of the whole server, by the clock and by the processor's time of this process. With one thread
they are compared by the latter: on a machine that others use too, the clock says more about them. With several, which
wait for each other, by the clock, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "bench"))

import finetooth
import numpy as np
from finetooth_hooks import Datum, Sampling
from finetooth_hooks.engine import StepSettings
from harness import RESULTS  # type: ignore[import-not-found]
from harness.machine import machine  # type: ignore[import-not-found]
from server import make_model  # type: ignore[import-not-found]

SIZES = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
    "num_key_value_heads": 3,
}  # fmt: skip
"""SmolLM2-135M's."""
PROMPT = 32
GOAL = 5.0
"""Times the rate of one request, with one request of each of eight adapters."""


def main() -> int:
    """Measure, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="as a recipe names it; default: random weights of SmolLM2-135M's sizes")
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--output", type=Path, default=RESULTS / "service.json")
    given = parser.parse_args()
    import torch

    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="finetooth-adapters-") as folder:
        model = given.model
        if model is None:
            model = str(Path(folder) / "model")
            make_model(Path(model), vocabulary=49152, sizes=SIZES)
        measured = asyncio.run(measure(model, given, Path(folder)))
    found = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "model": given.model or "random weights of SmolLM2-135M's sizes",
        "rank": given.rank,
        "adapters": given.adapters,
        "tokens": given.tokens,
        "prompt": PROMPT,
        "rounds": given.rounds,
        "threads": given.threads,
        **measured,
    }
    whole = json.loads(given.output.read_text()) if given.output.exists() else {}
    key = "adapters_on_one_thread" if given.threads == 1 else "adapters"
    given.output.write_text(json.dumps({**whole, key: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(measured["other_tokens_than_alone"] > 0)


class Served:
    """A server in a thread of this process, and its adapters.

    Attributes:
        samplers: one for each adapter.
    """

    def __init__(self, model: str, folder: Path, overrides: Sequence[str], held: int | None) -> None:
        import uvicorn
        from finetooth_core.cli.start_options import StartOptions
        from finetooth_core.cli.state import State
        from finetooth_server.app import make_app
        from finetooth_server.service import Service
        from finetooth_server.settings import Limits, Settings

        context = State(StartOptions())
        changes = [f"train.max_length={2 * PROMPT}", "backend.share_base=true", *overrides]
        recipe = context.load({"model": model}, changes)
        limits = Limits(live=1) if held is None else replace(Limits(live=1), held=held)
        self.service = Service(context, Settings(folder, {model: recipe}, limits=limits, keyless=True, replay=1e9))
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._server = uvicorn.Server(uvicorn.Config(make_app(self.service, ("api",)), log_level="error"))
        serving = {"sockets": [listening]}
        self._thread = threading.Thread(target=self._server.run, kwargs=serving, daemon=True)
        self._thread.start()
        self.client: Any = None
        self.samplers: list[Any] = []

    async def prepare(self, model: str, adapters: int, rank: int) -> None:
        """Train each adapter a step, on data of its own."""
        while not self._server.started:
            await asyncio.sleep(0.05)
        self.client = finetooth.AsyncClient(self.url, patience=600)
        for number in range(adapters):
            dice = np.random.default_rng(number)
            session = await self.client.session(model, adapter={"name": "lora", "rank": rank})
            await session.forward_backward([Datum.from_tokens(dice.integers(10, 100, 33))], "cross_entropy")
            await session.step(settings=StepSettings(learning_rate=0.01))
            saved = await session.save("weights", kind="weights")
            self.samplers.append(await self.client.sampler(checkpoint=saved))
            await session.close()

    async def stop(self) -> None:
        """And give its folder back."""
        await self.client.close()
        self._server.should_exit = True
        self._thread.join(60)


async def measure(model: str, given: Any, folder: Path) -> dict[str, Any]:
    """Every way in turns, after a round that does not count."""
    ways = {"together": None, "in turns": 0}
    servers = {name: Served(model, folder / name, given.overrides, held) for name, held in ways.items()}
    for served in servers.values():
        await served.prepare(model, given.adapters, given.rank)
    dice = np.random.default_rng(0)
    prompts = [[int(token) for token in dice.integers(10, 100, PROMPT)] for _ in range(given.adapters)]
    sampling = Sampling(max_tokens=given.tokens, temperature=1.0, seed=1, stop_ids=())

    async def asked(served: Served, which: Sequence[int]) -> list[tuple[int, ...]]:
        """One request of each adapter named, all at once."""
        calls = [served.samplers[n].generate(prompts[i], sampling, seeded=True) for i, n in enumerate(which)]
        return [one[0].tokens for one in await asyncio.gather(*calls)]

    every = list(range(given.adapters))
    cases = {"one request": [0], "one adapter": [0] * given.adapters, "every adapter": every}
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = {}
    wrong = 0
    for turn in range(given.rounds + 1):
        for case, which in cases.items():
            answers = []
            for name, served in servers.items():
                begun, spent = time.perf_counter(), time.process_time()
                answers.append(await asked(served, which))
                if turn:
                    took = time.perf_counter() - begun, time.process_time() - spent
                    seconds.setdefault((name, case), []).append(took)
            wrong += sum(a != b for a, b in zip(*answers, strict=True))
    for n in every:  # alone, by the server that knows nothing of the others
        calls = [served.samplers[n].generate(prompts[n], sampling, seeded=True) for served in servers.values()]
        mine, alone = [one[0].tokens for one in [await call for call in calls]]
        wrong += mine != alone
    for served in servers.values():
        await served.stop()
    rates = {name: {case: rate(seconds[name, case], cases[case], given.tokens) for case in cases} for name in servers}
    by = "by_processor_time" if given.threads == 1 else "by_clock"
    of_all, of_one = (rates["together"][case][by] for case in ("every adapter", "one request"))
    return {
        "tokens_per_second": rates,
        "compared": by,
        "times_one_request": round(of_all / of_one, 2),
        "goal": GOAL,
        "share_of_one_adapter": round(of_all / rates["together"]["one adapter"][by], 3),
        "times_in_turns": round(of_all / rates["in turns"]["every adapter"][by], 2),
        "other_tokens_than_alone": wrong,
    }


def rate(seconds: Sequence[tuple[float, float]], which: Sequence[int], tokens: int) -> dict[str, float]:
    """Medians over the rounds."""
    clock, processor = (statistics.median(of) for of in zip(*seconds, strict=True))
    count = len(which) * tokens
    return {"by_clock": round(count / clock, 1), "by_processor_time": round(count / processor, 1)}


if __name__ == "__main__":
    sys.exit(main())
