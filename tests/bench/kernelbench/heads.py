"""`linear_logprob` and what does the same elsewhere: the mean loss of hidden states, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from finetooth_kernels.contract import chunk_bytes_on
from finetooth_kernels.linear_logprob import linear_logprob
from finetooth_triton import gpu
from finetooth_triton.gpu import Tiles
from finetooth_triton.linear_logprob import linear_logprob_triton
from torch import Tensor

from kernelbench.turns import Row, in_turns, print_row

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From hidden states, the head's weight and targets to the mean loss."""
Shape = tuple[int, int, int]
"""Rows, vocabulary, width."""
OTHER_TILES = (
    Tiles(128, 256, 64, 8, 4),
    Tiles(128, 256, 32, 8, 4),
    Tiles(256, 128, 64, 8, 3),
    Tiles(128, 128, 64, 8, 4),
    Tiles(128, 128, 64, 4, 3),
    Tiles(64, 256, 64, 8, 4),
    Tiles(128, 256, 64, 8, 3, group=8),
    Tiles(128, 256, 64, 8, 3, group=32),
)


def whole_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """What plain torch does."""
    return torch.nn.functional.cross_entropy((hidden @ weight.t()).float(), targets)


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Ours, in torch operations."""
    return -linear_logprob(hidden, weight, targets).logprobs.mean()


def in_triton(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Ours, in kernels, with the chunk that the engine takes."""
    memory = torch.cuda.get_device_properties(hidden.device).total_memory if hidden.device.type == "cuda" else 0
    chunk = chunk_bytes_on(hidden.device.type, memory)
    return -linear_logprob_triton(hidden, weight, targets, chunk_bytes=chunk).logprobs.mean()


def peers() -> dict[str, Loss | str]:
    """Contenders from elsewhere by name, or why one is not here."""
    found: dict[str, Loss | str] = {}
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["cut-cross-entropy"] = linear_cross_entropy
        found["cut-cross-entropy, no gradient left out"] = lambda h, w, t: linear_cross_entropy(
            h, w, t, filter_eps=None
        )
    except (ImportError, RuntimeError) as error:
        found["cut-cross-entropy"] = str(error)
    try:
        from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        found["liger-kernel"] = lambda h, w, t: liger(w, h, t)
    except (ImportError, RuntimeError) as error:
        found["liger-kernel"] = str(error)
    return found


def make_head(rows: int, vocabulary: int, width: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets of a model that has learnt something: the mean loss is between 1 and 4.

    It matters where a contender leaves out small gradients: random states would leave none to leave out, or all.
    """
    generator = torch.Generator(device).manual_seed(0)
    weight = torch.randn((vocabulary, width), generator=generator, device=device, dtype=torch.float32)
    weight /= width**0.5
    targets = torch.randint(0, vocabulary, (rows,), generator=generator, device=device)
    hidden = torch.randn((rows, width), generator=generator, device=device) + 11.0 * weight[targets]
    return hidden.to(dtype), weight.to(dtype), targets


def step(loss: Loss, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Forward and backward."""
    value = loss(hidden, weight, targets)
    leaves = [leaf for leaf in (hidden, weight) if leaf.requires_grad]
    return value.detach(), torch.autograd.grad(value, leaves)


def head_rows(
    shapes: tuple[Shape, ...],
    contenders: dict[str, Loss | str],
    device: str,
    dtype: torch.dtype,
    warm_up: int,
    timed: int,
) -> Iterator[Row]:
    """Forward alone, and forward and backward with a frozen and with a trained head."""
    losses = {name: loss for name, loss in contenders.items() if not isinstance(loss, str)}
    absent = {name: {"not measured": why} for name, why in contenders.items() if isinstance(why, str)}
    for shape in shapes:
        head = make_head(*shape, device, dtype)
        for what in ("forward", "forward and backward, frozen head", "forward and backward, trained head"):
            head[0].requires_grad_(what != "forward")
            head[1].requires_grad_("trained" in what)
            works: dict[str, Callable[[], object]] = {}
            for name, loss in losses.items():
                works[name] = partial(loss, *head) if what == "forward" else partial(step, loss, *head)
            rows = in_turns(works, device, warm_up, timed)
            add_agreement(rows, losses, *head)
            about = {"rows": shape[0], "vocabulary": shape[1], "width": shape[2], "what": what}
            found = {**about, "contenders": rows | absent}
            print_row(found)
            yield found


def add_agreement(rows: dict[str, Row], losses: dict[str, Loss], hidden: Tensor, weight: Tensor, targets: Tensor
                  ) -> None:  # fmt: skip
    """Everyone's loss, and how far their gradients are from the chunked ones."""
    base: tuple[Tensor, ...] = ()
    for name in ["chunked", *(name for name in losses if name != "chunked")]:
        if "not measured" in rows[name]:
            continue
        if not hidden.requires_grad:
            rows[name]["loss"] = round(float(losses[name](hidden, weight, targets)), 6)
            continue
        value, gradients = step(losses[name], hidden, weight, targets)
        base = base or gradients
        rows[name]["loss"] = round(float(value), 6)
        rows[name]["gradient_difference"] = [
            float(f"{float((a.float() - b.float()).norm() / b.float().norm()):.2e}")
            for a, b in zip(gradients, base, strict=True)
        ]


def tile_rows(shape: tuple[int, int, int]) -> list[Row]:
    """The Triton kernels of a trained head in other tiles: forward, and forward and backward."""
    hidden, weight, targets = make_head(*shape, "cuda", torch.bfloat16)
    usual = gpu.tiles_for
    found = []
    for tiles in (usual(torch.bfloat16, hidden.device), *OTHER_TILES):
        gpu.tiles_for = lambda dtype, device, tiles=tiles: tiles  # type: ignore[misc]
        hidden.requires_grad_(True)
        weight.requires_grad_(True)
        works: dict[str, Callable[[], object]] = {
            "forward": partial(in_triton, hidden.detach(), weight.detach(), targets),
            "forward and backward": partial(step, in_triton, hidden, weight, targets),
        }
        found.append({"tiles": repr(tiles), "contenders": in_turns(works, "cuda", 2, 5)})
        print_row(found[-1])
    gpu.tiles_for = usual
    return found
