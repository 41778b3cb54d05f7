"""Which strategies a session may ask for, and what a recipe says for them. That ranks compute what one process does is
in tests/scale."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
from finetooth_hooks import UserError
from finetooth_server.ranks import lines
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


def test_a_line_carries_requests_tokens_and_what_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends of a line in one process: a request longer than the socket's buffers, two tokens, a reply; a stop in
    the middle of a call, and one that comes too late for its call and must not touch the next."""
    monkeypatch.setattr(lines, "BEAT", 0.01)
    ours, theirs = socket.socketpair()
    server, rank = lines.RankLine(ours), lines.ServerLine(theirs)
    said: list[Any] = []

    def until(done: Any) -> None:
        while not done():
            said.extend(server.move() or ())

    server.ask(json.dumps({"long": "x" * 5_000}).encode())
    until(lambda: not server.sends)
    assert rank.request() == {"long": "x" * 5_000} and not rank.stopped()
    rank.say([0, 5, -0.5])
    rank.say([0, 6, -0.25])
    asked = server.heard
    until(lambda: len(said) == 2 and server.heard > asked + 0.02)  # signs of life, too
    assert said == [[0, 5, -0.5], [0, 6, -0.25]] and server.reply is None
    server.stop()
    until(lambda: not server.sends)
    assert rank.stopped()
    rank.reply({"interrupted": "why"})
    until(lambda: server.reply is not None)
    assert server.reply == {"interrupted": "why"}
    server.stop()  # too late
    server.ask(b'{"next": 1}')
    until(lambda: not server.sends)
    assert rank.request() == {"next": 1} and not rank.stopped()
    rank.reply({"value": 2})
    until(lambda: server.reply is not None)
    time.sleep(0.05)
    assert server.reply == {"value": 2} and server.move() == []  # who computes nothing gives no signs of life
    server.close()
    assert rank.request() is None
