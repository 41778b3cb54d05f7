"""What the plan of a run on a processor counts beside weights and activations."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks.protocols import DataPart
from finetooth_torch.planning import memory, process_memory


@pytest.mark.parametrize("stored_by", ["quantizer", "file"])
@pytest.mark.parametrize(("stream", "matrices"), [(True, 2), (False, 1)])
def test_a_stored_base_makes_its_largest_weight_as_numbers(stored_by: str, stream: bool, matrices: int) -> None:
    facts = SimpleNamespace(ffn_size=96, hidden_size=32)
    base: Any = SimpleNamespace(
        facts=facts,
        quantizer=object() if stored_by == "quantizer" else None,
        model=SimpleNamespace(stored=object() if stored_by == "file" else None),
    )
    assert memory.dequantised_weight(base, "bf16", stream=stream) == 2 * matrices * 96 * 32
    plain: Any = SimpleNamespace(facts=facts, quantizer=None, model=SimpleNamespace(stored=None))
    assert memory.dequantised_weight(plain, "bf16", stream=stream) == 0


def test_only_targets_that_count_go_through_the_head_where_nobody_asks_for_more() -> None:
    request: Any = SimpleNamespace(needs=frozenset(), roles={}, data=DataPart(100, trained_share=0.1))
    assert memory._scored(request, 205) == 21
    request.needs = frozenset({"generate"})
    assert memory._scored(request, 205) == 205
    request.needs, request.roles = frozenset(), {"reference": object()}
    assert memory._scored(request, 205) == 205
    request.roles, request.data = {}, replace(request.data, trained_share=1.0)
    assert memory._scored(request, 205) == 205


def test_modules_that_are_there_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_memory, "host_memory", lambda field: 0)
    monkeypatch.setattr(
        process_memory, "MODULES", {"acme_brought": 5, "json.tool_missing": 7, "not_installed_at_all": 11}
    )
    monkeypatch.delitem(sys.modules, "acme_brought", raising=False)
    assert process_memory.host_overhead() == 7 + process_memory.HOST_LATER
    monkeypatch.setitem(sys.modules, "json.tool_missing", SimpleNamespace())
    assert process_memory.host_overhead() == process_memory.HOST_LATER
