"""The strategy by itself; that ranks train as one process does is in tests/scale."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Sharding
from finetooth_kit import parametrize_with_checks
from finetooth_pipeline.options import PipelineOptions, build
from finetooth_pipeline.strategy import PipelineParallel
from pydantic import ValidationError


@parametrize_with_checks("finetooth_pipeline.plugin", installed=True)
def test_checks(check: Any) -> None:
    check()


@pytest.mark.parametrize(("stages", "world", "layers"), [("auto", 4, 4), (2, 4, 2), (1, 4, 1)])
def test_layers_are_divided_and_nothing_else(stages: Any, world: int, layers: int) -> None:
    line: Any = SimpleNamespace(close=None)
    divided = PipelineParallel(PipelineOptions(stages=stages), line).sharding(world)
    assert (divided.stage_count, divided.weights, divided.shard, divided.neighbours) == (layers, 1, None, None)


def test_ranks_with_the_same_layers_divide_them() -> None:
    """Among as many ranks as there are models, which `fsdp` is asked for."""
    asked = list[int]()

    def sharding(world: int) -> Sharding:
        asked.append(world)
        return Sharding(weights=world, gradients=world, optimizer=world, shard=lambda *_: None, stored=True)  # type: ignore[arg-type,return-value]

    line: Any = SimpleNamespace(close=None, sharding=sharding)
    divided = PipelineParallel(PipelineOptions(stages=2, shard=True), line).sharding(6)
    assert (asked, divided.stage_count, divided.weights, divided.stored) == ([3], 2, 3, False)
    assert divided.shard and divided.stages


@pytest.mark.parametrize(
    ("options", "stages", "inner"),
    [
        ({}, 8, {"name": "ddp"}),
        ({"tensor": 2}, 4, {"name": "fsdp", "replicas": 0, "tensor": 2, "context": 1}),
        ({"stages": 2, "tensor": 2, "shard": True}, 2, {"name": "fsdp", "replicas": 1, "tensor": 2, "context": 1}),
        ({"context": 2, "tensor": 2}, 2, {"name": "fsdp", "replicas": 0, "tensor": 2, "context": 2}),
    ],
    ids=str,
)
def test_ranks_of_a_stage_are_spread_by_another_strategy(options: Any, stages: int, inner: Any) -> None:
    built = list[Any]()
    chosen = PipelineOptions(**options)
    build(chosen, SimpleNamespace(build=lambda _, line, setting: built.append(line) or SimpleNamespace(close=None)))  # type: ignore[arg-type,func-returns-value]
    assert built == [{**inner, "transport": "auto", "timeout": 600.0}]
    assert chosen.count(8) == stages


@pytest.mark.parametrize(
    ("world", "options", "of"), [(3, {"stages": 2}, "2"), (6, {"stages": 2, "tensor": 2}, "2 for each of 2 stages")]
)
def test_ranks_that_make_no_groups_are_refused(world: int, options: Any, of: str) -> None:
    with pytest.raises(PlanError, match=rf"scale.strategy.stages: {world} ranks do not make groups of {of}"):
        PipelineOptions(**options).count(world)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("name", ["keep_layers", "offload"])
def test_what_only_fsdp_does_is_refused_with_what_to_do(name: str, shard: bool) -> None:
    with pytest.raises(ValidationError) as caught:
        PipelineOptions.model_validate({name: True, "shard": shard})
    (problem,) = caught.value.errors()
    assert f"{name} is an option of fsdp" in problem["msg"]
    assert problem["ctx"]["action"].startswith("leave it out, or set scale.strategy")
