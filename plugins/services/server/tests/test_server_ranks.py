"""Which strategies a session may ask for, and what a recipe says for them. That ranks compute what one process does is
in tests/scale."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_hooks import UserError
from finetooth_server.sections import check_scale, on_one_device, ranks_of, scale_of


@pytest.mark.parametrize(
    ("pick", "scale"),
    [
        ("DDP", {"devices": 2, "strategy": "ddp"}),
        ({"name": "ddp", "devices": 4}, {"devices": 4, "strategy": "ddp"}),
        ("FSDP_HYBRID_SHARD", {"devices": 2, "strategy": {"name": "fsdp", "replicas": 2}}),
        (
            {"name": "fsdp-hybrid", "devices": 4, "replicas": 4},
            {"devices": 4, "strategy": {"name": "fsdp", "replicas": 4}},
        ),
        ("DeepSpeed ZeRO-1", {"devices": 2, "strategy": {"name": "deepspeed", "stage": 1}}),
        ("zero_2", {"devices": 2, "strategy": {"name": "deepspeed", "stage": 2}}),
    ],
)
def test_a_strategy_is_a_section_of_the_recipe(pick: Any, scale: dict[str, Any]) -> None:
    assert scale_of(pick, 4) == scale
    assert ranks_of({"scale": scale}) == scale["devices"] and ranks_of({}) == 1
    check_scale({"scale": scale})
    assert on_one_device({"model": "tiny", "scale": scale}) == {"model": "tiny"}


@pytest.mark.parametrize(
    ("pick", "most", "said"),
    [
        ("zero3", 4, "strategy zero-3: per-step gradient access is incompatible with its parameter sharding"),
        ("fsdp-full", 4, "strategy fsdp-full: per-step gradient access is incompatible with its parameter sharding"),
        ("ddp", 1, "ft serve --ranks"),
        ({"name": "ddp", "devices": 8}, 4, r"strategy\.devices is 8, and this server spreads a model over 4 at most"),
        ({"name": "ddp", "devices": "2"}, 4, r"strategy\.devices: '2'"),
        ({"name": "ddp", "devices": True}, 4, r"strategy\.devices: True"),
        ({"name": "ddp", "replicas": 2}, 4, r"strategy\.replicas: 2 \(give devices, each a number from 2\)"),
        ({"name": "fsdp-hybrid", "devices": 3}, 4, "3, which 2 replicas cannot share"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(pick: Any, most: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as refusal:
        scale_of(pick, most)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "scale",
    [
        {"devices": 2, "strategy": "zero3"},
        {"devices": 2, "strategy": "fsdp"},
        {"devices": 4, "strategy": {"name": "finetooth-fsdp:fsdp", "replicas": 2, "tensor": 2}},
        {"devices": 2, "strategy": "pipeline"},
        {"devices": 2, "nodes": 2},
    ],
)
def test_a_served_recipe_leaves_gradients_within_reach(scale: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"scale\.(strategy|nodes): "):
        check_scale({"scale": scale})
