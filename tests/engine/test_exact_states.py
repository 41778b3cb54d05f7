"""The torch engine's state between backward and step, over every standard optimizer, precision and adapter: saved and
loaded, or rolled back to, it goes on bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Datum
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.losses import CENTRED, WEIGHTED_NLL
from finetooth_kit.torch_request import FACTS, VOCABULARY, TinyLlamaLoader
from toy_numpy.making import request

pytest.importorskip("finetooth_torch")
pytest.importorskip("finetooth_standard")

OPTIMIZERS = {
    "adamw": {"weight_decay": 0.1},
    "optimi_adamw": {"weight_decay": 1e-5, "decouple_lr": True},
    "sgd": {},
    "momentum": {"momentum": 0.9, "nesterov": True},
    "adafactor": {},
    "lion": {"weight_decay": 0.1},
    "muon": {"weight_decay": 0.1},
    "dion": {},
    "galore": {"rank": 4, "update_every": 2},
    "apollo": {"rank": 4, "update_every": 2},
    "apollo_mini": {"weight_decay": 0.1},
    "adam_mini": {},
    "ademamix": {"slow_warmup": 4},
    "adopt": {"weight_decay": 0.1},
    "came": {},
    "prodigy": {"first": 1e-3, "weight_decay": 0.1},
    "sophia": {"update_every": 2},
    "schedule_free_adamw": {"weight_decay": 0.1},
    "schedule_free_sgd": {},
    "galore_8bit": {"rank": 4, "update_every": 2},
    "adamw_4bit": {"weight_decay": 0.1},
    "flash_adamw": {"weight_decay": 0.1},
    "flash_adam": {"weight_decay": 0.1},
    "flash_sgd": {"momentum": 0.9},
    "flash_sgdw": {"momentum": 0.9, "weight_decay": 0.1},
    "flash_lion": {},
}
BRINGING = ("standard", "schedules", "muon", "lowmemory", "adaptive", "schedulefree")
PRECISIONS = ("fp32", "bf16", "fp16")
ADAPTERS = {"full": {}, "lora": {"rank": 4, "dropout": 0.2}, "freeze": {"layers": 1, "norm": True}}
WAYS = ("saved", "rolled back")
QUICK = [
    ("adamw", "fp16", "lora", "saved"),
    ("momentum", "bf16", "full", "rolled back"),
    ("adafactor", "fp32", "freeze", "saved"),
    ("lion", "fp16", "full", "rolled back"),
    ("sgd", "fp32", "lora", "saved"),
    ("muon", "bf16", "full", "saved"),
    ("galore", "fp32", "full", "saved"),
    ("apollo", "bf16", "full", "rolled back"),
    ("adam_mini", "fp32", "full", "saved"),
    ("schedule_free_adamw", "bf16", "full", "saved"),
    ("prodigy", "fp32", "lora", "rolled back"),
    ("ademamix", "fp16", "lora", "saved"),
    ("came", "bf16", "full", "rolled back"),
]
PAIRS = [
    (optimizer, precision, list(ADAPTERS)[(i + k) % len(ADAPTERS)], WAYS[(i + k) % len(WAYS)])
    for i, optimizer in enumerate(OPTIMIZERS)
    for k, precision in enumerate(PRECISIONS)
]
"""Each optimizer, precision and adapter meets each of the others."""
EVERY = [
    pytest.param(*case, marks=[pytest.mark.slow, *([] if case in PAIRS else [pytest.mark.thorough])])
    for case in itertools.product(OPTIMIZERS, PRECISIONS, ADAPTERS, WAYS)
    if case not in QUICK
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(optimizer: str, precision: str, adapter: str) -> Any:
    """A fresh engine; its loss scale grows after two good steps."""
    from finetooth_torch.backend import TorchBackend, TorchOptions

    plugins = (*BRINGING, "full", "lora", "freeze")
    entries = tuple(entry for name in plugins for entry in entries_of(f"finetooth_{name}.plugin"))
    context = FakeContext(Path(), entries=entries)
    kind = "sgd" if optimizer == "momentum" else optimizer
    made = request(budget=24, loader=TinyLlamaLoader())
    made = replace(
        made,
        plan=replace(made.plan, train=replace(made.plan.train, precision=precision, max_grad_norm=1.0)),
        base=replace(made.base, facts=FACTS),
        trains=replace(
            made.trains,
            adapter=context.build("adapter", {"name": adapter, **ADAPTERS[adapter]}),
            can_disable=adapter == "lora",
            base_frozen=adapter == "lora",
        ),
        updates=replace(
            made.updates,
            optimizer=context.build("optimizer", {"name": kind, "learning_rate": 1e-2, **OPTIMIZERS[optimizer]}),
            schedule=context.build("schedule", {"name": "reduce_on_plateau", "patience": 1}),
        ),
    )
    engine = TorchBackend(TorchOptions(), FakeContext(Path(), installed=True)).engine(made)
    if precision == "fp16":  # low enough that it grows, and soon so high that a step overflows
        engine._parts.scaler._interval, engine._parts.scaler.scale = 2, 16.0
    return engine


def data(seed: int) -> list[Datum]:
    random = np.random.default_rng(seed)
    return [
        Datum.from_tokens([int(t) for t in random.integers(1, VOCABULARY, size=n)], id=f"row:{seed}:{n}", group="g")
        for n in (9, 5, 12, 7)
    ]


def train(engine: Any, steps: range) -> list[Any]:
    seen: list[Any] = []
    for step in steps:
        for half, spec in enumerate((WEIGHTED_NLL, CENTRED)):
            seen.append(engine.forward_backward(data(10 * step + half), spec).loss)
        seen.append(repr(engine.step(metrics={"loss": seen[-1]})))  # a norm may be NaN, in fp16
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def goes_on_exactly(optimizer: str, precision: str, adapter: str, way: str, folder: Path) -> None:
    engine = make(optimizer, precision, adapter)
    train(engine, range(3))
    engine.forward_backward(data(77), CENTRED)
    if way == "saved":
        engine.save(folder / "state")
        other = make(optimizer, precision, adapter)
        train(other, range(8, 10))  # whatever it did before does not matter
        other.load(folder / "state")
        other.save(folder / "again")
    else:
        snapshot, other = engine.snapshot(), engine
        snapshot.save(folder / "state")
    scale, story = engine._parts.scaler.scale, train(engine, range(3, 7))
    assert (engine._parts.scaler.scale != scale) == (precision == "fp16")
    engine.save(folder / "wanted")
    if way == "rolled back":
        engine.rollback(snapshot)
        engine.save(folder / "again")
    assert files(folder / "again") == files(folder / "state")
    assert "gradients.safetensors" in files(folder / "state")
    assert train(other, range(3, 7)) == story
    other.save(folder / "found")
    assert files(folder / "found") == files(folder / "wanted")


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("optimizer", "precision", "adapter", "way"), QUICK)
def test_a_state_between_backward_and_step_goes_on_bit_for_bit(
    tmp_path: Path, optimizer: str, precision: str, adapter: str, way: str
) -> None:
    goes_on_exactly(optimizer, precision, adapter, way, tmp_path)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("optimizer", "precision", "adapter", "way"), EVERY)
def test_every_combination_goes_on_bit_for_bit(
    tmp_path: Path, optimizer: str, precision: str, adapter: str, way: str
) -> None:
    goes_on_exactly(optimizer, precision, adapter, way, tmp_path)


def test_every_optimizer_is_tried() -> None:
    found = {
        entry.name for name in BRINGING for entry in entries_of(f"finetooth_{name}.plugin") if entry.kind == "optimizer"
    }
    assert found <= OPTIMIZERS.keys()
