"""What each operation is tried with: small inputs that show what an implementation may get wrong."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from finetooth_kernels.contract import result_dtype
from finetooth_kernels.decoder import Stream
from finetooth_kernels.dropout import Dropped
from finetooth_kernels.mm import mm
from finetooth_kernels.reference_decoder import FACTS, OPERATIONS, TrialBody
from finetooth_kernels.runs import Run
from finetooth_kernels.segments import Looks, Segment

__all__ = ["TRIALS", "Tensors", "Trial", "awkward", "trials"]

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trial:
    """One way to call an operation.

    Attributes:
        name: the special property.
        given: inputs of floating point, in the dtype that is tried; gradients reach them where the operation has any,
            and they may stand in any strides.
        call: the operation and the inputs to its results of floating point; None where it says that it cannot.
        strides: whether inputs may lie apart.
        feature: only for providers that declare it.
    """

    name: str
    given: Tensors
    call: Callable[[Callable[..., Any], Tensors], tuple[Tensor, ...] | None]
    strides: bool = True
    feature: str = ""


class _Draw:
    """Draws inputs; ids are the same for every dtype.

    Attributes:
        columns: numbers of a row, from which each operation makes its own sizes.
    """

    def __init__(self, dtype: torch.dtype, device: str, columns: int) -> None:
        self._generator, self._dtype, self._device = torch.Generator().manual_seed(7), dtype, device
        self.columns = columns

    @property
    def head(self) -> int:
        """Numbers of a head of attention: a multiple of 16, up to 256."""
        return max(16, min(256, self.columns // 16 * 16))

    def normal(self, *shape: int) -> Tensor:
        drawn = torch.randn(shape, generator=self._generator)
        return drawn.to(self._device, self._dtype)

    def ids(self, below: int, *shape: int) -> Tensor:
        return torch.randint(0, below, shape, generator=self._generator).to(self._device)


def _linear_logprob(draw: _Draw, rows: int) -> Iterator[Trial]:
    width, vocabulary = draw.columns, min(draw.columns + 13, 1038)
    weight = draw.normal(vocabulary, width) / (width / 1.5) ** 0.5
    inputs = {"hidden": draw.normal(rows, width), "weight": weight, "bias": draw.normal(vocabulary)}
    single, several = draw.ids(vocabulary, rows), draw.ids(vocabulary, rows, 3)
    mask = torch.arange(rows, device=single.device) % 3 != 1

    def plain(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return (compute(t["hidden"], t["weight"], single).logprobs,)

    def masked(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        head = {"scale": 0.5, "softcap": 5.0, "temperature": 0.7}
        out = compute(t["hidden"], t["weight"], several, mask=mask, bias_v=t["bias"], entropy=True, **head)
        return out.logprobs, out.entropy

    def expecting(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return (compute(t["hidden"], t["weight"], single, expected=torch.ones(rows, device=single.device)).logprobs,)

    yield Trial("one target", {name: inputs[name] for name in ("hidden", "weight")}, plain)

    def shifted(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return (compute(t["hidden"], t["weight"], single, bias_v=t["bias"]).logprobs,)

    # exp of a hundred is not finite; multiples of a half, since a provider may round logits to the inputs' dtype
    halves = {name: (2 * inputs[name]).round() / 2 for name in ("weight", "bias")}
    large = {"hidden": inputs["hidden"].round().clamp(-1, 1), "weight": halves["weight"], "bias": halves["bias"] + 100}
    yield Trial("logits of a hundred", large, shifted)
    yield Trial("three targets, a mask, a bias, a softcap, the entropy", inputs, masked)
    rank = 3
    factors = {"rows": draw.normal(rows, rank) / rank**0.5, "factor": draw.normal(vocabulary, rank)}

    def with_addition(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        out = compute(t["hidden"], t["weight"], single, scale=0.5, entropy=True, added=(t["rows"], t["factor"]))
        return out.logprobs, out.entropy

    added = {"hidden": inputs["hidden"], "weight": weight, **factors}
    yield Trial("an addition to the head", added, with_addition, feature="added")
    yield Trial("other gradients than expected", {name: inputs[name] for name in ("hidden", "weight")}, expecting)


def _logits_statistics(draw: _Draw, rows: int) -> Iterator[Trial]:
    vocabulary = draw.columns + 13
    inputs, several = {"logits": 4 * draw.normal(rows, vocabulary)}, draw.ids(vocabulary, rows, 3)

    def likeliest(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        statistics = compute(t["logits"].detach(), entropy=True)
        return statistics.logprobs, statistics.entropy

    large = {"logits": inputs["logits"] + 100}  # exp of which is not finite
    yield Trial("logits of a hundred", large, lambda compute, t: (compute(t["logits"], several).logprobs,))
    yield Trial("three ids", inputs, lambda compute, t: (compute(t["logits"], several).logprobs,))
    yield Trial("the likeliest and the entropy", inputs, likeliest)


def _rms_norm(draw: _Draw, rows: int) -> Iterator[Trial]:
    inputs = {"x": draw.normal(rows, draw.columns), "weight": draw.normal(draw.columns)}
    small = {**inputs, "x": inputs["x"] / 512}
    yield Trial("rows", inputs, lambda compute, t: (compute(t["x"], t["weight"], 1e-5),))
    large = {**inputs, "x": inputs["x"] * 1024}
    yield Trial("rows of thousands", large, lambda compute, t: (compute(t["x"], t["weight"], 1e-5),))
    yield Trial("rows so small that eps counts", small, lambda compute, t: (compute(t["x"], t["weight"], 1e-5),))
    yield Trial("with the rows", inputs, lambda compute, t: tuple(compute(t["x"], t["weight"], 1e-5, residual=True)))


def _rotary(draw: _Draw, rows: int) -> Iterator[Trial]:
    places = torch.arange(rows, device=draw.ids(2, 1).device)[:, None] % 1024
    angles = places * torch.linspace(0.1, 1.0, draw.head * 3 // 8, device=places.device)[None]
    cos, sin = angles.cos(), angles.sin()
    yield Trial("three of five heads", {"x": draw.normal(rows, 5, draw.head)}, lambda f, t: (f(t["x"], cos, sin, 3),))


def _norm_rotary(draw: _Draw, rows: int) -> Iterator[Trial]:
    places = torch.arange(rows, device=draw.ids(2, 1).device)[:, None] % 1024
    angles = places * torch.linspace(0.1, 1.0, draw.head * 3 // 8, device=places.device)[None]
    cos, sin = angles.cos(), angles.sin()
    inputs = {"x": draw.normal(rows, 7, draw.head), "query": draw.normal(draw.head), "key": draw.normal(draw.head)}
    yield Trial("three queries, two keys", inputs, lambda f, t: (f(t["x"], t["query"], t["key"], cos, sin, 3, 1e-5),))


def _gated_norm(draw: _Draw, rows: int) -> Iterator[Trial]:
    shape = rows, draw.columns
    inputs = {"x": draw.normal(*shape), "gate": draw.normal(*shape), "weight": draw.normal(draw.columns)}
    yield Trial("rows", inputs, lambda compute, t: (compute(t["x"], t["gate"], t["weight"], 1e-5),))


def _gated_mlp(draw: _Draw, rows: int) -> Iterator[Trial]:
    def call(compute: Callable[..., Any], t: Tensors, activation: str) -> tuple[Tensor, ...]:
        return (compute(t["gate_up"], activation),)

    for activation in ("silu", "gelu_tanh", "gelu"):
        yield Trial(
            activation, {"gate_up": draw.normal(rows, 2 * (draw.columns - 4))}, partial(call, activation=activation)
        )


def _a_third(draw: _Draw, rows: int, factor: int = 2654435761) -> tuple[Any, ...]:
    """What drops a third of the numbers of some rows: see `finetooth_kernels.dropout.keyed_dropout`."""
    device = draw.ids(2, 1).device
    words = [(torch.arange(n, device=device) * factor % 2**32 - 2**31).int() for n in (rows, draw.columns)]
    return *words, -(2**29), 1.5


def _keyed_dropout(draw: _Draw, rows: int) -> Iterator[Trial]:
    of = _a_third(draw, rows)
    yield Trial("a third dropped", {"x": draw.normal(rows, draw.columns)}, lambda f, t: (f(t["x"], *of),))


def _low_rank_linear(draw: _Draw, rows: int) -> Iterator[Trial]:
    width, second = draw.columns, min(draw.columns - 4, 1025)
    inputs = {
        "x": draw.normal(rows, width),
        "a": draw.normal(3, width),
        "b": draw.normal(10, 3),
        "base": draw.normal(rows, 10 + second),
    }
    weight, bias = draw.normal(10 + second, width) / (width / 1.5) ** 0.5, draw.normal(10 + second)

    def call(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        dtype = t["x"].dtype
        additions = [(t["a"], t["b"], 0.5), None]
        return (compute(t["x"], weight.to(dtype), bias.to(dtype), (10, second), additions, base_no=t["base"]),)

    yield Trial("two layers, one with an addition", inputs, call)

    def by_another(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return call(partial(compute, multiply=mm), t)

    yield Trial("products of another provider", inputs, by_another, feature="multiply")

    def measured(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        dtype = t["x"].dtype
        groups = weight.to(dtype), bias.to(dtype), (10, second), [(t["a"], t["b"], 0.5), None]
        return (compute(t["x"], *groups, base_no=t["base"], magnitudes=(t["lengths"], None)),)

    yield Trial("DoRA on one of them", {**inputs, "lengths": draw.normal(10).abs() + 0.5}, measured)

    drops = [Dropped(*_a_third(draw, rows, factor)) for factor in (2654435761, 2246822519)] + [None]

    def dropping(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        dtype, sizes = t["x"].dtype, (10, 3, second - 3)
        additions = [(t["a"], t["b"], 0.5), (t["a2"], t["b2"], 1.5), None]
        group = weight.to(dtype), bias.to(dtype), sizes, additions
        return (compute(t["x"], *group, base_no=t["base"], dropped=drops),)

    second_pair = {"a2": draw.normal(2, width), "b2": draw.normal(3, 2)}
    yield Trial("dropout of two additions", {**inputs, **second_pair}, dropping)


def _fp8_linear(draw: _Draw, rows: int) -> Iterator[Trial]:
    width, outputs = draw.columns, min(draw.columns + 5, 1030)
    weight = draw.normal(outputs, width) / width**0.5
    inputs = {"x": draw.normal(rows, width), "weight": weight, "bias": draw.normal(outputs)}
    plain = {name: inputs[name] for name in ("x", "weight")}
    yield Trial("a linear layer", plain, lambda compute, t: (compute(t["x"], t["weight"]),))
    small = {**plain, "x": inputs["x"] / 2**20}
    yield Trial("rows of millionths", small, lambda compute, t: (compute(t["x"], t["weight"]),))
    yield Trial(
        "a bias and what it is added to", {**inputs, "base": draw.normal(rows, outputs)},
        lambda compute, t: (compute(t["x"], t["weight"], t["bias"], t["base"]),),
    )  # fmt: skip


def _grouped_matmul(draw: _Draw, rows: int) -> Iterator[Trial]:
    width, outputs, rank = draw.columns, min(draw.columns + 5, 130), 3
    device = draw.ids(2, 1).device
    cut = torch.tensor([rows // 3, rows // 3, rows // 2, rows], dtype=torch.int32, device=device)  # the second is empty
    inputs = {"x": draw.normal(rows, width), "weight": draw.normal(4, width, outputs) / width**0.5}
    factors = {"a": draw.normal(4, width, rank) / width**0.5, "b": draw.normal(4, rank, outputs)}

    def added(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return (compute(t["x"], t["weight"], cut, (t["a"], t["b"], 0.5)),)

    yield Trial("groups, one empty", inputs, lambda compute, t: (compute(t["x"], t["weight"], cut),))
    yield Trial("an addition", {**inputs, **factors}, added)


def _matmul_rounded_once(draw: _Draw, rows: int) -> Iterator[Trial]:
    width = draw.columns
    inputs = {"left": draw.normal(rows, width), "right": draw.normal(width, 10), "base": draw.normal(rows, 10)}
    more = {"h": draw.normal(rows, 3), "b": draw.normal(3, 10)}
    yield Trial("one product", inputs, lambda compute, t: (compute(t["left"], t["right"]),))
    yield Trial(
        "two and what they are added to", {**inputs, **more},
        lambda compute, t: (compute(t["left"], t["right"], more=(t["h"], t["b"]), base_no=t["base"]),),
    )  # fmt: skip


def _accumulate(draw: _Draw, rows: int) -> Iterator[Trial]:
    width = draw.columns * 3 // 8
    inputs, total = {"part": draw.normal(rows, width)}, draw.normal(rows, width)

    def onto(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        wide = result_dtype(t["part"].dtype)
        return (compute(total.to(wide, copy=True), t["part"], wide),)

    yield Trial("the first part", inputs, lambda f, t: (f(None, t["part"], result_dtype(t["part"].dtype)),))
    yield Trial("onto a sum", inputs, onto)


def _tree(rows: int) -> tuple[Segment, ...]:
    return (Segment(0, 4, 9), Segment(4, 7, 7), Segment(7, 9, 9), Segment(9, rows, rows)) if rows else ()


def _given(rows: int) -> tuple[tuple[Segment, ...], list[int]]:
    """Sequences whose first rows are only seen, and the other rows."""
    segments = (Segment(0, 7, 7, 4), Segment(7, rows, rows, rows - 9)) if rows else ()
    return segments, [row for s in segments for row in range(s.start + s.given, s.stop)]


def _segment_attention(draw: _Draw, rows: int) -> Iterator[Trial]:
    tree = _tree(rows)

    def call(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return (compute(t["qkv"], tree, heads=4, kv_heads=2, scale=0.25),)

    inputs = {"qkv": draw.normal(rows, 8, draw.head)}
    yield Trial("a tree of segments", inputs, call)
    given, asked = _given(rows)

    def only_seen(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return (compute(t["qkv"].detach(), given, heads=4, kv_heads=2, scale=0.25)[asked],)

    yield Trial("rows that are only seen", inputs, only_seen)


def _windowed_attention(draw: _Draw, rows: int) -> Iterator[Trial]:
    tree, inputs = _tree(rows), {"qkv": draw.normal(rows, 8, draw.head)}

    def call(compute: Callable[..., Any], t: Tensors, window: int, cap: float | None) -> tuple[Tensor, ...]:
        looks = Looks(0.25, window, cap, t.get("sinks"))
        return (compute(t["qkv"], tree, looks, heads=4, kv_heads=2),)

    yield Trial("a window", inputs, partial(call, window=5, cap=None))
    yield Trial("a cap", inputs, partial(call, window=0, cap=1.5))
    yield Trial("a window, a cap, sinks", {**inputs, "sinks": draw.normal(4)}, partial(call, window=3, cap=1.5))
    given, asked = _given(rows)

    def only_seen(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...]:
        return (compute(t["qkv"].detach(), given, Looks(0.25, 5), heads=4, kv_heads=2)[asked],)

    yield Trial("rows that are only seen", inputs, only_seen)


def _cached_attention(draw: _Draw, rows: int) -> Iterator[Trial]:
    size, room = draw.head, max(7, draw.columns // 3)
    inputs, cache = {"qkv": draw.normal(rows, 8, size)}, draw.normal(2, rows, 2, room, size)
    starts = draw.ids(3, rows)
    columns = torch.tensor([room - 2], device=starts.device)

    def call(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...] | None:
        attend = compute(t["qkv"], size)
        own = cache.to(t["qkv"].dtype, copy=True)
        return None if attend is None else (attend(t["qkv"], own, columns, 0.25, starts_p=starts),)

    yield Trial("prompts that begin in different columns", inputs, call, strides=False)


def _packed_linear(draw: _Draw, rows: int) -> Iterator[Trial]:
    width = draw.columns
    inputs = {"x": draw.normal(rows, width), "weight": draw.normal(30, width), "bias": draw.normal(30)}

    def call(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...] | None:
        multiply = compute(t["weight"], t["bias"])
        if multiply is None:
            return None
        wide = multiply(t["x"], dtype=result_dtype(t["x"].dtype))
        return multiply(t["x"]), wide.to(t["x"].dtype)

    yield Trial("with a bias", inputs, call)
    low, first, last = 4, rows // 3, rows - rows // 3
    more = {"narrow": draw.normal(rows, low), "b": draw.normal(30, low), "base": draw.normal(rows, 30)}

    def onto(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...] | None:
        multiply, second = compute(t["weight"], None), compute(t["b"], None)
        if multiply is None or second is None:
            return None
        return (multiply(t["x"], base_no=t["base"], more=(t["narrow"], second)),)

    yield Trial("onto a base, with a second product", {**inputs, **more}, onto)

    def of_runs(compute: Callable[..., Any], t: Tensors) -> tuple[Tensor, ...] | None:
        both = [compute(weight, None) for weight in (t["weight"], t["weight"][:0])]
        own = [compute(weight, None) for weight in (t["b"], t["b2"])]
        if None in (*both, *own):
            return None
        runs = [Run(*part) for part in ((0, first, own[0]), (last, rows, own[1])) if part[1] > part[0]]
        return tuple(multiply(t["x"], own=(t["narrow"], runs)) for multiply in both)

    yield Trial("runs of rows", {**inputs, **more, "b2": draw.normal(30, 2)}, of_runs, feature="runs")


def _stream_decoder(draw: _Draw, rows: int) -> Iterator[Trial]:
    if not rows:  # a batch has a token
        return
    inputs, tokens = {"states": draw.normal(rows, FACTS.hidden_size)}, torch.arange(rows)
    tree = _tree(rows)
    positions = torch.tensor([*range(7), 4, 5, *range(rows - 9)])
    device = inputs["states"].device
    stream = Stream(tokens.to(device), positions.to(device), tree, tokens[None].to(device))

    def call(compute: Callable[..., Any], t: Tensors, wanted: Tensor | None, checkpointing: bool) -> tuple[Tensor, ...]:
        body = TrialBody(t["states"], torch.Generator().manual_seed(3), inputs["states"].dtype)
        decoder = compute(body, FACTS, lambda module: None, checkpointing=checkpointing, compute=OPERATIONS)
        return (decoder.hidden(stream, wanted),)

    some = torch.tensor([0, 6, rows - 1], device=device)
    yield Trial("all states", inputs, partial(call, wanted=None, checkpointing=False), strides=False)
    yield Trial("some states, layers again", inputs, partial(call, wanted=some, checkpointing=True), strides=False)


TRIALS: Mapping[str, Callable[[_Draw, int], Iterator[Trial]]] = MappingProxyType(
    {
        "linear_logprob": _linear_logprob,
        "logits_statistics": _logits_statistics,
        "rms_norm": _rms_norm,
        "rotary": _rotary,
        "norm_rotary": _norm_rotary,
        "gated_norm": _gated_norm,
        "gated_mlp": _gated_mlp,
        "keyed_dropout": _keyed_dropout,
        "low_rank_linear": _low_rank_linear,
        "fp8_linear": _fp8_linear,
        "grouped_matmul": _grouped_matmul,
        "matmul_rounded_once": _matmul_rounded_once,
        "accumulate": _accumulate,
        "segment_attention": _segment_attention,
        "windowed_attention": _windowed_attention,
        "cached_attention": _cached_attention,
        "packed_linear": _packed_linear,
        "stream_decoder": _stream_decoder,
    }
)


ROWS, COLUMNS = 13, 24
"""Sizes that show most mistakes in no time."""
AWKWARD = ((127, 127), (128, 128), (129, 129), (1025, 16), (ROWS, 1025), (ROWS, 4097), (65_537, 8))
"""Rows and columns around the borders of blocks: powers of two, one less and one more, and one row more than the second
and third number of a GPU's grid can be."""
QUADRATIC = frozenset(
    {"segment_attention", "windowed_attention", "cached_attention", "stream_decoder", "grouped_matmul"}
)
"""Operations whose rows see each other, or cost much each: they are not tried with the most rows."""


def awkward(operation: str, *, few: bool) -> list[tuple[int, int]]:
    """Rows and columns that an operation is tried with beyond the ordinary ones.

    Args:
        few: one small pair, for interpreted kernels.
    """
    most = 4097 if operation in QUADRATIC else max(map(max, AWKWARD))
    return [(33, 65)] if few else [sizes for sizes in AWKWARD if max(sizes) <= most]


def trials(
    operation: str,
    dtype: torch.dtype,
    device: str,
    rows: int = ROWS,
    columns: int = COLUMNS,
    *,
    features: Collection[str] = (),
) -> list[Trial]:
    """The trials of an operation; empty for one that is not in `finetooth_kernels.operations`.

    Args:
        features: those that the provider declares, which are tried as well.
    """
    every = TRIALS[operation](_Draw(dtype, device, columns), rows) if operation in TRIALS else ()
    return [trial for trial in every if not trial.feature or trial.feature in features]
