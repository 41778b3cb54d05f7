"""The functions of given logits, against naive torch and against our own torch operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from finetooth_triton import logits as given_logits
from finetooth_triton.operations import entropy_from_logits, selective_log_softmax
from torch import Tensor

from kernelbench.turns import Row, in_turns, print_row

LARGEST_LOGITS, LARGEST_WITH_GRADIENT = 28 * 2**30, 20 * 2**30
"""Bytes that naive torch may take for logits in float32; beyond them a shape is skipped."""
Work = Callable[[], Tensor]

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "every second": lambda t: t.repeat_interleave(2, 1)[:, ::2],
}


def naive_entropy(logits: Tensor) -> Tensor:
    """What plain torch does."""
    log_p = torch.log_softmax(logits.float(), -1)
    return -(log_p.exp() * log_p).sum(-1)


def naive_selected(logits: Tensor, index: Tensor) -> Tensor:
    """What plain torch does."""
    return torch.log_softmax(logits.float(), -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def blockwise(work: Work) -> Tensor:
    """`work` without kernels: our torch operations."""
    kernels = given_logits.has_kernels
    given_logits.has_kernels = lambda device, dtype: False  # type: ignore[assignment]
    try:
        return work()
    finally:
        given_logits.has_kernels = kernels


def gradient(function: Callable[[Tensor, Tensor], Tensor], logits: Tensor, index: Tensor) -> Tensor:
    """Forward and backward."""
    leaf = logits.detach().requires_grad_()
    return torch.autograd.grad(function(leaf, index).sum(), leaf)[0]


def tasks(logits: Tensor, index: Tensor) -> dict[str, tuple[Work, Work]]:
    """Naive and ours."""
    return {
        "entropy": (partial(naive_entropy, logits), partial(entropy_from_logits, logits)),
        "selective log-softmax, forward": (
            partial(naive_selected, logits, index),
            partial(selective_log_softmax, logits, index),
        ),
        "selective log-softmax, forward and backward": (
            partial(gradient, naive_selected, logits, index),
            partial(gradient, selective_log_softmax, logits, index),
        ),
    }


def given_rows(
    shapes: tuple[tuple[int, int], ...], vocabulary: int, device: str, dtype: torch.dtype, warm_up: int, timed: int
) -> Iterator[Row]:
    """Every shape (sequences, length) as it lies, and the fourth in other layouts too."""
    for batch, length in shapes:
        for layout in LAYOUTS if (batch, length) == shapes[3] else ("contiguous",):
            size = 4 * batch * length * vocabulary
            if size > LARGEST_LOGITS:
                yield skipped(labels(batch, length, vocabulary, layout, "all"), size, LARGEST_LOGITS)
                continue
            generator = torch.Generator(device).manual_seed(0)
            logits = torch.randn((batch, length, vocabulary), generator=generator, device=device, dtype=dtype).mul_(3)
            logits = LAYOUTS[layout](logits)
            index = torch.randint(0, vocabulary, (batch, length), generator=generator, device=device)
            for what, (naive, ours) in tasks(logits, index).items():
                about = labels(batch, length, vocabulary, layout, what)
                if "backward" in what and size > LARGEST_WITH_GRADIENT:
                    yield skipped(about, size, LARGEST_WITH_GRADIENT)
                    continue
                row = {**about, "contenders": compared(naive, ours, device, warm_up, timed)}
                print_row(row)
                yield row


def compared(naive: Work, ours: Work, device: str, warm_up: int, timed: int) -> dict[str, Row]:
    """Times, and how far our results are from the naive ones."""
    works: dict[str, Work] = {"torch, whole": naive, "ours, torch operations": partial(blockwise, ours)}
    if device != "cpu":
        works["ours, kernels"] = ours
    rows = in_turns(dict(works), device, warm_up, timed)
    if "not measured" in rows["torch, whole"]:
        return rows
    reference = naive()
    for name, work in works.items():
        if "not measured" not in rows[name]:
            rows[name]["largest_difference"] = float(f"{float((work() - reference).abs().max()):.1e}")
    return rows


def labels(batch: int, length: int, vocabulary: int, layout: str, what: str) -> Row:
    """What a row of given logits is about."""
    return {"batch": batch, "length": length, "vocabulary": vocabulary, "layout": layout, "what": what}


def skipped(about: Row, size: int, limit: int) -> Row:
    """The row of a shape that is too large for naive torch."""
    return {**about, "not measured": f"{size / 1e9:.1f} GB of float32 logits, more than {limit / 1e9:.0f}"}
