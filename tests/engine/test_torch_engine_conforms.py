"""The torch engine keeps the engine's contract over a tiny Llama with LoRA, sampling included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import ScalarHead
from finetooth_kit import FakeContext, entries_of, parametrize_engine
from finetooth_kit.torch_request import FACTS, VOCABULARY, TinyLlamaLoader
from toy_numpy.making import request

pytest.importorskip("finetooth_torch")
pytest.importorskip("finetooth_lora")
from toy_numpy.torch_twin import TorchSgd


def engine(precision: str = "fp32", budget: int = 16, head: ScalarHead | None = None) -> Any:
    """A fresh torch engine."""
    from finetooth_torch.backend import TorchBackend, TorchOptions

    (lora,) = [
        entry for entry in entries_of("finetooth_lora.plugin") if (entry.kind, entry.name) == ("adapter", "lora")
    ]
    adapter = FakeContext(Path(), entries=(lora,)).build("adapter", {"name": lora.name, "rank": 4})
    made = request(budget=budget, loader=TinyLlamaLoader())
    made = replace(
        made,
        plan=replace(made.plan, train=replace(made.plan.train, precision=precision)),
        base=replace(made.base, facts=FACTS),
        trains=replace(made.trains, adapter=adapter, head=head),
        updates=replace(made.updates, optimizer=TorchSgd(0.05)),
    )
    return TorchBackend(TorchOptions(), FakeContext(Path(), installed=True)).engine(made)


@pytest.mark.slow
@pytest.mark.thorough  # the backend's own tests run the kit over an engine like this one
@parametrize_engine(engine, vocab_size=VOCABULARY, name="torch-fp32")
def test_torch_engine_conforms(check: Callable[[], None]) -> None:
    check()


@parametrize_engine(partial(engine, head=ScalarHead()), vocab_size=VOCABULARY, name="torch-fp32-sequence-head")
def test_torch_engine_with_a_head_conforms(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@pytest.mark.thorough
@parametrize_engine(
    partial(engine, head=ScalarHead(bias=True, exported_as="token")),
    vocab_size=VOCABULARY,
    name="torch-fp32-token-head",
)
def test_torch_engine_with_a_head_of_steps_conforms(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(partial(engine, "bf16", head=ScalarHead()), vocab_size=VOCABULARY, name="torch-bf16-head")
def test_torch_engine_with_a_head_conforms_in_bf16(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(partial(engine, "bf16"), vocab_size=VOCABULARY, name="torch-bf16")
def test_torch_engine_conforms_in_bf16(check: Callable[[], None]) -> None:
    check()


@pytest.mark.slow
@parametrize_engine(partial(engine, "fp16", 1000), vocab_size=VOCABULARY, name="torch-fp16-one-batch")
def test_torch_engine_conforms_in_fp16(check: Callable[[], None]) -> None:
    check()
