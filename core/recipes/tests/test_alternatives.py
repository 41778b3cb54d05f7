"""What a refusal of an entry names instead."""

from __future__ import annotations

import pytest
from finetooth_hooks import Optimizer, Quantizer
from finetooth_recipes.alternatives import instead

NAMES = ("galore_8bit", "lion", "adamw", "adamw_8bit", "flash_adamw", "muon")


def optimizer(name: str) -> Optimizer:
    return Optimizer(name=name, build="acme:build", summary="x", state_bytes=8, default=name == "adamw")


@pytest.mark.parametrize(
    ("name", "action"),
    [
        ("paged_adamw_8bit", "set optimizer to adamw_8bit or adamw"),
        ("acme:paged_adamw", "set optimizer to adamw"),
        ("lion_8bit", "set optimizer to lion or adamw"),
        ("moun", "set optimizer to muon or adamw"),
        ("sophia", "set optimizer to adamw"),
    ],
)
def test_the_entry_most_alike_comes_before_the_default(name: str, action: str) -> None:
    assert instead("optimizer", name, map(optimizer, NAMES)) == action


def test_all_are_named_where_none_is_alike_and_none_the_default() -> None:
    stored = [Quantizer(name=name, build="acme:build", summary="x") for name in ("int8", "affine")]
    assert instead("quantizer", "xyz", stored) == "set quantization to affine or int8"
    assert instead("quantizer", "xyz", []) == "pick another quantizer or backend"
