"""Ranks that compute some positions of a row each, against attention over the whole row in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import EngineError, MemoryEstimate, PlanError
from finetooth_hooks.protocols import Sharding
from finetooth_torch.attention.slices import Slices
from finetooth_torch.decoder.bodies import TransformersBody
from finetooth_torch.planning.sharding import check_slicing, divided, of_one_rank
from finetooth_torchshared.attention import by_name, visible

RANKS, WIDTH = 2, 16
LENGTHS = ((5, 8, 3), (16,))


class OneOfSeveral:
    """One rank of several in one process: what the others give is known beforehand, what it sends is kept."""

    world = RANKS

    def __init__(self, rank: int, arrays: list[torch.Tensor]) -> None:
        self.rank, self.arrays, self.sent = rank, arrays, list[torch.Tensor]()

    def all_gather(self, array: torch.Tensor) -> list[torch.Tensor]:
        assert torch.equal(array, self.arrays[self.rank])
        return self.arrays

    def reduce_scatter(self, arrays: list[torch.Tensor]) -> torch.Tensor:
        self.sent = arrays
        return torch.zeros_like(arrays[0])


def columns(rank: int) -> torch.Tensor:
    return Slices(OneOfSeveral(rank, [])).columns(WIDTH, torch.device("cpu"))  # type: ignore[arg-type]


def test_each_position_is_of_one_rank_and_all_have_as_many_pairs() -> None:
    """Of a causal row a position has as many pairs as stand before it."""
    of = [columns(rank) for rank in range(RANKS)]
    assert torch.cat(of).sort().values.tolist() == list(range(WIDTH))
    assert len({int(part.sum()) for part in of}) == 1


@pytest.mark.parametrize("window", [None, 4])
def test_attention_and_its_gradients_are_those_of_whole_rows(window: int | None) -> None:
    torch.manual_seed(3)
    query = torch.randn(2, 4, WIDTH, 6, dtype=torch.float64, requires_grad=True)
    both = torch.randn(2, 2, WIDTH, 12, dtype=torch.float64, requires_grad=True)
    key, value = (part.repeat_interleave(2, dim=1) for part in both.split(6, dim=-1))
    seen = visible(LENGTHS, WIDTH, causal=True, window=window)
    whole = (query @ key.transpose(2, 3) * 0.4).masked_fill(~seen, -torch.inf).softmax(-1) @ value
    pull = torch.randn_like(whole)
    of_query, of_both = torch.autograd.grad(whole, (query, both), pull)

    parts = [both.detach()[:, :, columns(rank)] for rank in range(RANKS)]
    lines = [OneOfSeveral(rank, parts) for rank in range(RANKS)]
    for rank, line in enumerate(lines):
        own, kept = query.detach()[:, :, columns(rank)].requires_grad_(), parts[rank].clone().requires_grad_()
        given = Slices(line).attend(  # type: ignore[arg-type]
            by_name("sdpa"), own, *kept.split(6, dim=-1), LENGTHS, scale=0.4, causal=True, window=window, softcap=None,
            sinks=None,
        )  # fmt: skip
        torch.testing.assert_close(given, whole[:, :, columns(rank)])
        given.backward(pull[:, :, columns(rank)])
        torch.testing.assert_close(own.grad, of_query[:, :, columns(rank)])
    for rank in range(RANKS):
        torch.testing.assert_close(sum(line.sent[rank] for line in lines), of_both[:, :, columns(rank)])


def asked(config: dict[str, Any], positions: int = 2, **more: Any) -> Any:
    facts = SimpleNamespace(
        head_dim=8, kv_heads=2, heads=4, attention=SimpleNamespace(softcap=None, sinks=False), towers=()
    )
    model = SimpleNamespace(config=config)
    sharding = Sharding(weights=1, gradients=1, optimizer=1, positions=positions)
    return SimpleNamespace(
        base=SimpleNamespace(model=model, facts=facts), place=SimpleNamespace(sharding=sharding),
        **{"needs": frozenset(), **more},
    )  # fmt: skip


ATTENTION: Any = SimpleNamespace(filling="rows", names="sdpa")


@pytest.mark.parametrize(
    ("config", "more", "why"),
    [
        ({"layer_types": ["linear_attention"]}, {}, "linear_attention layers hand a state on"),
        ({"vision_config": {"depth": 1}}, {}, "finds the places of images and sounds"),
        ({"attention_dropout": 0.1}, {}, "drops weights of attention"),
        ({}, {"needs": frozenset({"repetition_penalty"})}, "a repetition penalty"),
        ({}, {"needs": frozenset({"trees"})}, "segments of the method's data continue one another"),
    ],
)
def test_what_needs_positions_together_is_refused(config: dict[str, Any], more: dict[str, Any], why: str) -> None:
    with pytest.raises(PlanError, match=f"divides the positions of rows among ranks: .*{why}"):
        check_slicing(asked(config, **more), ATTENTION)
    check_slicing(asked(config, 1, **more), ATTENTION)  # a rank that computes all of them


def test_the_plan_says_what_a_rank_holds() -> None:
    (decided,) = divided(asked({}))
    assert (decided.setting, decided.value) == ("scale.positions", "1/2")
    assert divided(asked({}, 1)) == ()


@pytest.mark.parametrize(("media", "what"), [((1,), "images or sounds"), ((), "positions of their own")])
def test_data_that_say_their_positions_are_refused(media: tuple[int, ...], what: str) -> None:
    body = TransformersBody(torch.nn.Module())
    body.slices = Slices(OneOfSeveral(0, []))  # type: ignore[arg-type]
    rectangle: Any = SimpleNamespace(media=media, positions=torch.arange(3), pieces=None)
    with pytest.raises(EngineError, match=f"the data have {what}"):
        body.states(rectangle, everywhere=True)


@pytest.mark.parametrize(("world", "kept"), [(2, 600), (4, 300)])
def test_a_spread_optimizer_takes_its_part_of_the_state_and_of_the_weights(world: int, kept: int) -> None:
    """AdamW over 100 numbers: 8 bytes of state and 4 of a copy for each, among the ranks; the rest stays."""
    whole = MemoryEstimate({"weights": 400, "gradients": 400, "optimizer": 800})
    place = SimpleNamespace(sharding=Sharding(weights=1, gradients=1, optimizer=world))
    request: Any = SimpleNamespace(place=place, trains=SimpleNamespace(parameters=100))
    estimate = of_one_rank(lambda: whole, request, "fp32", 64, checkpointing=False)
    assert estimate.parts == {"weights": 400, "gradients": 400, "optimizer": kept}
    place.sharding = None
    assert of_one_rank(lambda: whole, request, "fp32", 64, checkpointing=False) == whole
