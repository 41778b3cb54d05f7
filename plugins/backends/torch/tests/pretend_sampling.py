"""What sampling and unusual losses wait for on the pretend accelerator, in every setting: a line for each.

Not collected by itself: the device stays registered in the process. test_torch_pretend.py runs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Completion, Sampling
from finetooth_torch.device import graphs
from pretend_accelerator import counting, engine_on_device, register, watch_layouts

TOKENS = 12
PROMPTS = [[5, 6, 7, 8], [9, 10, 11]]
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 7},
    "min_p": {"min_p": 0.1},
    "all": {"top_p": 0.9, "top_k": 7, "min_p": 0.01},
    "stop": {"stop": ("never", "neither")},
    "penalty": {"repetition_penalty": 1.2, "top_p": 0.9},
    "additions": {"presence_penalty": 0.3, "frequency_penalty": 0.1, "logit_bias": ((7, 0.5),)},
    "drawn": {"drawn": True},
    "drawn greedy": {"drawn": True, "temperature": 0.0},
    "drawn top_p": {"drawn": True, "top_p": 0.9},
    "drawn top_k": {"drawn": True, "top_k": 7, "repetition_penalty": 1.2},
    "form": {"regex": "."},
    "form greedy": {"regex": ".", "temperature": 0.0},
    "form drawn": {"regex": ".", "drawn": True},
    "form drawn top_p": {"regex": ".", "drawn": True, "top_p": 0.9},
}


class Even:
    """Stands for `Schemas` and a state of one: even tokens are allowed."""

    def check(self, *_: Any) -> None:
        pass

    def begin(self, form: Any, stop_ids: Any) -> Even | None:
        return self if form else None

    def allowed(self, size: int) -> Any:
        return np.arange(size) % 2 == 0

    def take(self, token: int) -> bool:
        assert token % 2 == 0
        return False


def sampling(**settings: Any) -> Sampling:
    return Sampling(max_tokens=TOKENS, seed=1, stop_ids=(), **settings)


def alone(engine: Any, settings: dict[str, Any]) -> list[Completion]:
    return [one for of in engine.generate(PROMPTS, sampling(**settings)) for one in of]


def joined(engine: Any, requests: list[tuple[dict[str, Any], Any]]) -> list[Completion]:
    """Requests of other settings and adapters, which begin together and are sampled together."""
    batch, found = engine.running_batch(), dict[int, Completion]()
    for number, (settings, adapter) in enumerate(requests):
        batch.add([5, 6, 7 + number, 8], sampling(**settings), adapter=adapter)
    while len(batch):
        found |= {one.request: one.completion for one in batch.step() if one.completion is not None}
    return [found[number] for number in range(len(requests))]


def next_turns(engine: Any) -> list[Completion]:
    """Of conversations, some of whose prompts an earlier call read."""
    long = [[n % 50 + 5 for n in range(start, start + 40)] for start in (0, 7)]
    prompts = [[*long[0], 9], [*long[1], 11, 12, 13], [5, 6, 7]]
    read = list[int]()
    decoder = engine._parts.network.body.decoder
    hidden = decoder.hidden
    decoder.hidden = lambda stream, *args, **named: (read.append(len(stream)), hidden(stream, *args, **named))[1]
    found = [one for of in engine.generate(prompts, sampling()) for one in of]
    del decoder.hidden
    assert read == [1 + 3 + 3], read
    return found


def tell(name: str, work: Callable[[Any], list[Completion]], device: Any, host: Any) -> None:
    """Print the waits for a token of each row, and whether the host samples the same."""
    with counting() as waited:
        ours = work(device)
        found = dict(waited)
    assert all(len(one.tokens) == TOKENS for one in ours)
    theirs = work(host)
    same = [(one.tokens, one.kept) for one in ours] == [(one.tokens, one.kept) for one in theirs]
    pairs = ((x, y) for x, y in zip(ours, theirs, strict=True))
    numbers = [np.array([[*x.logprobs, *x.drawn_logprobs], [*y.logprobs, *y.drawn_logprobs]]) for x, y in pairs]
    near = all(np.allclose(*of, atol=1e-5) for of in numbers)
    print(f"{name}:", sum(found.values()) / TOKENS, same and near, found)


def train(name: str, engines: tuple[Any, Any], loss: Any, data: list[Any]) -> None:
    """Print the waits of a call of several micro-batches, and whether the host has the same loss."""
    host, device = engines
    device.logprobs(data)  # the decoder looks once whether weights are one matrix
    with counting() as waited:
        report = device.forward_backward(data, loss)
        found = dict(waited)
    same = abs(report.loss - host.forward_backward(data, loss).loss) < 1e-5
    print(f"{name}:", sum(found.values()), same, found)


def main() -> None:
    import conftest as kit

    kept = register()
    watch_layouts()
    graphs.replays = lambda device: device.type != "cpu"  # as on a GPU, also without graphs
    kernels = {"stream_decoder": kit.picked_kernels()["stream_decoder"]}
    made = {"decoder": "stream", "kernels": kernels, "precision": "fp32"}
    folder, host = Path(sys.argv[1]), kit.make_engine(adapter=kit.FakeAdapter(), **made)
    for seed in (1, 2):  # before torch's functions are exchanged
        kit.make_engine(adapter=kit.FakeAdapter(), **made, seed=seed).export(folder / str(seed))
    held = {id(host): [None, *(host.hold(folder / str(seed)) for seed in (1, 2))]}
    drops = kit.make_engine(adapter=kit.FakeAdapter(dropout=0.3), **made)
    device = engine_on_device(kit, **made)
    held[id(device)] = [None, *(device.hold(folder / str(seed)) for seed in (1, 2))]
    assert all(None not in of[1:] for of in held.values())
    for engine in (host, device):
        engine._generator._schemas = Even()
        alone(engine, {})  # weights are packed once
    for name, settings in SETTINGS.items():
        tell(name, lambda engine, settings=settings: alone(engine, settings), device, host)
    several = [({}, None), ({"top_p": 0.9}, None), ({"temperature": 0.0}, None), ({"drawn": True, "top_k": 7}, None)]
    tell("settings", lambda engine: joined(engine, several), device, host)
    rows = {"top_p": 0.9}
    tell("adapters", lambda engine: joined(engine, [(rows, adapter) for adapter in held[id(engine)]]), device, host)
    for engine in (host, device):
        engine.generate([[n % 50 + 5 for n in range(start, start + 40)] for start in (0, 7)], sampling())
    tell("turns", next_turns, device, host)
    for name, engines, changes in (
        ("penalised loss", (host, device), {"repetition_penalty": 1.3}),
        ("loss of a whole step", (host, device), {"together": "step"}),
        ("loss with dropout", (drops, engine_on_device(kit, dropout=0.3, **made)), {}),
    ):
        train(name, engines, replace(kit.NLL, **changes), kit.make_data(12, longest=16))
    del kept


if __name__ == "__main__":
    main()
