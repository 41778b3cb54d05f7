"""The conformance kit, in every precision."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import ScalarHead
from finetooth_kit import engine_checks, parametrize_with_checks

NAMES = [check.name for check in engine_checks(lambda: None, vocab_size=8)]  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("kit", "precision"),
    [
        ("auto", "fp32"),
        ("auto", "bf16"),
        ("transformers", "fp32"),
        pytest.param("transformers", "bf16", marks=pytest.mark.slow),
        *(
            pytest.param(kit, precision, marks=[pytest.mark.slow, pytest.mark.thorough])
            for kit in ("auto", "transformers")
            for precision in ("fp16", "fp64")
        ),
    ],
    indirect=["kit"],
)
@pytest.mark.parametrize("name", NAMES)
def test_engine_keeps_the_contract(kit: SimpleNamespace, name: str, precision: str) -> None:
    def make() -> Any:
        return kit.engine(
            precision=precision,
            adapter=kit.adapter(zero=True),
            optimizer=kit.sgd(0.1),
            micro_batch_tokens=20,
            # an artifact with a head is more than a low-rank addition
            head=None if name == "held_adapters_are_sampled_beside_each_other" else ScalarHead(),
        )

    (check,) = [one for one in engine_checks(make, vocab_size=kit.vocab, name=precision) if one.name == name]
    check()


@parametrize_with_checks("finetooth_torch.plugin")
def test_plugin_keeps_the_contract(check: Any) -> None:
    check()
