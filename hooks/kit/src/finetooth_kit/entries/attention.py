"""Checks of attention: what it declares is consistent, and what it computes is the float64 reference, values and
gradients."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any, get_args

import numpy as np
from finetooth_hooks.compute.attention import AttentionServes, Lengths, Segments
from finetooth_hooks.entries import Attention
from finetooth_toolbox.attention_choice import missing_packages

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance, fail

VALUES = {"fp32": 2e-6, "bf16": 1.5e-2, "fp16": 2e-3}
GRADIENTS = {"fp32": 4e-6, "bf16": 2.5e-2, "fp16": 4e-3}
"""Largest norm of a difference as a share of the reference's norm, by precision: rounding of a few products.
References smaller than 1 count as 1: some gradients are nothing but rounding."""


@dataclass(frozen=True)
class AttentionCase:
    """One thing to compute.

    Attributes:
        name: what is special about it.
        lengths: of the sequences in each row.
        positions: queries, those of the last keys; 0: as many as keys.
        heads, kv_heads: of queries, and of keys and values.
        strided: inputs lie in memory in another order, with gaps.
    """

    name: str
    lengths: Lengths
    positions: int = 0
    heads: int = 4
    kv_heads: int = 4
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    strided: bool = False

    def served(self, serves: AttentionServes) -> bool:
        """Whether an entry that declares this must compute it."""
        return (
            (serves.segments != "none" or all(len(row) == 1 for row in self.lengths))
            and (serves.grouped or self.heads == self.kv_heads)
            and (serves.window or self.window is None)
            and (serves.softcap or self.softcap is None)
            and (serves.sinks or not self.sinks)
        )


APART: Lengths = ((3, 1, 9), (13,), (6, 7))
CASES = (
    AttentionCase("one sequence", ((11,),)),
    AttentionCase("one position", ((1,), (1,))),
    AttentionCase("several sequences in a row", APART),
    AttentionCase("grouped heads", APART, kv_heads=2),
    AttentionCase("strides", APART, kv_heads=2, strided=True),
    AttentionCase("a window", APART, window=4, kv_heads=2),
    AttentionCase("a window of one", APART, window=1),
    AttentionCase("capped scores", APART, softcap=1.5, kv_heads=2),
    AttentionCase("sinks", APART, sinks=True, kv_heads=2),
    AttentionCase("a window and sinks", APART, window=4, sinks=True),
    AttentionCase("both directions", APART, causal=False),
    AttentionCase("keys of a cache", ((2, 6), (8,)), positions=1, kv_heads=2),
    AttentionCase("several queries, keys of a cache", ((2, 6), (8,)), positions=3, window=5),
)
AWKWARD: tuple[AttentionCase, ...] = (
    AttentionCase("127, 128 and 129 positions in a row", ((127, 128, 129),), kv_heads=2),
    AttentionCase("128 positions alone", ((128,),)),
    AttentionCase("129 positions alone, both directions", ((129,),), causal=False),
    AttentionCase("1,025 positions", ((1025,),), heads=2, kv_heads=1),
    AttentionCase("1,025 positions, a window of 129", ((900, 125),), heads=2, kv_heads=2, window=129),
    AttentionCase("1,025 positions, capped scores", ((1025,),), heads=2, kv_heads=2, softcap=1.5),
    AttentionCase("1,025 positions, sinks", ((1025,),), heads=2, kv_heads=2, sinks=True),
    AttentionCase("1,025 keys of a cache", ((1025,),), positions=1, kv_heads=2),
    AttentionCase("65,792 heads in 257 rows", ((2,),) * 257, heads=256, kv_heads=256),
)
"""Around the borders of blocks, and more heads than fit the second number of a GPU's grid."""


@check_for("attention")
def declaration_is_consistent(case: EntryCase) -> None:
    """Devices, precisions and segments are words of the contract, requirements can be read, and a function of its own
    takes lengths."""
    entry = _entry(case)
    serves = entry.serves
    expect(serves.devices, "entry.serves.devices", serves.devices, "at least one type of device, such as cpu")
    known = {"fp64", "fp32", "bf16", "fp16"}
    expect(
        serves.precisions and serves.precisions <= known, "entry.serves.precisions", serves.precisions, f"of {known}"
    )
    words = get_args(Segments)
    expect(serves.segments in words, "entry.serves.segments", repr(serves.segments), f"one of {words}")
    expect(
        entry.transformers or serves.segments in ("lengths", "none"),
        "entry.serves.segments",
        repr(serves.segments),
        "'lengths': the function that the builder returns is given lengths, no mask",
    )
    expect(serves.head_multiple > 0, "entry.serves.head_multiple", serves.head_multiple, "a positive number")
    expect(entry.name not in entry.aliases, "entry.aliases", entry.aliases, "other names than the entry's own")
    try:
        missing_packages(serves.packages)
    except ValueError as error:
        fail("entry.serves.packages", error, "names of distributions, each with >=VERSION if need be")


@check_for("attention")
def value_and_gradients_are_the_reference(case: EntryCase) -> None:
    """In every declared precision: results and gradients of queries, keys, values and sinks, for incoming gradients
    that differ everywhere, equal those computed in float64."""
    torch, device, compute = _function_on_device(case)
    for precision in sorted(_entry(case).serves.precisions & VALUES.keys()):
        _compare(case, torch, device, compute, precision, CASES)


@check_for("attention")
def awkward_lengths_are_the_reference(case: EntryCase) -> None:
    """So they do at 127, 128, 129 and 1,025 positions and with many heads, in the first of fp32, bf16 and fp16 that is
    declared."""
    torch, device, compute = _function_on_device(case)
    precision = next((name for name in VALUES if name in _entry(case).serves.precisions), None)
    if precision is not None:
        _compare(case, torch, device, compute, precision, AWKWARD)


def _compare(
    case: EntryCase, torch: Any, device: str, compute: Any, precision: str, cases: tuple[AttentionCase, ...]
) -> None:
    serves = _entry(case).serves
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for layout in cases:
        if layout.served(serves):
            inputs = _inputs(torch, layout, serves, dtypes[precision], device)
            called = f"attention in {precision}: {layout.name}"
            output = _call(compute, layout, inputs)
            wanted_inputs: list[Any] = [None if x is None else x.detach().double().requires_grad_() for x in inputs]
            wanted = _reference(torch, layout, wanted_inputs)
            shape = tuple(wanted.shape)
            expect(tuple(output.shape) == shape, f"{called}, shape", tuple(output.shape), f"{shape}")
            expect(output.dtype == inputs[0].dtype, f"{called}, type", output.dtype, f"{inputs[0].dtype}, the query's")
            _near(called, output, wanted, VALUES[precision])
            if not serves.backward or layout.positions:
                continue
            incoming = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5)).to(device)
            output.backward(incoming.to(output.dtype))
            wanted.backward(incoming.to(output.dtype).double())
            for name, x, y in zip(("query", "key", "value", "sinks"), inputs, wanted_inputs, strict=True):
                if x is not None:
                    expect(x.grad is not None, f"{called}, gradient of {name}", None, "a gradient")
                    _near(f"{called}, gradient of {name}", x.grad, y.grad, GRADIENTS[precision])


@check_for("attention")
def scoring_computes_what_training_does(case: EntryCase) -> None:
    """With and without a graph the results are the same, bit for bit, and of the same type."""
    torch, device, compute = _function_on_device(case)
    serves = _entry(case).serves
    dtype = torch.float32 if "fp32" in serves.precisions else torch.bfloat16
    layout = next(layout for layout in reversed(CASES) if layout.served(serves) and not layout.positions)
    inputs = _inputs(torch, layout, serves, dtype, device)
    training = _call(compute, layout, inputs).detach()
    with torch.no_grad():
        scoring = _call(compute, layout, inputs)
    expect(scoring.dtype == training.dtype, "attention without a graph, type", scoring.dtype, training.dtype)
    same = bool((scoring == training).all())
    expect(same, "attention without a graph", "other numbers than with one", "the same, bit for bit")


@check_for("attention")
def sequences_of_a_row_do_not_see_each_other(case: EntryCase) -> None:
    """Other numbers in one sequence of a row change nothing in the others."""
    torch, device, compute = _function_on_device(case)
    serves = _entry(case).serves
    if serves.segments == "none":
        raise CheckSkipped("the entry keeps no sequences apart")
    dtype = torch.float32 if "fp32" in serves.precisions else torch.bfloat16
    layout = AttentionCase("", ((4, 5, 3),))
    inputs = _inputs(torch, layout, serves, dtype, device)
    with torch.no_grad():
        before = _call(compute, layout, inputs)
        for x in inputs[:3]:
            x[:, :, 4:9] = x[:, :, 4:9].flip(2) * 3 + 1
        after = _call(compute, layout, inputs)
    for name, part in (("before", slice(0, 4)), ("after", slice(9, 12))):
        difference = float((before[:, :, part] - after[:, :, part]).abs().max())
        expect(
            difference < 1e-6, f"the sequence {name} the one that changed", f"a difference of {difference:.1e}", "none"
        )


def _entry(case: EntryCase) -> Attention:
    assert isinstance(case.entry, Attention)
    expect_instance(case.entry.serves, AttentionServes, "entry.serves")
    return case.entry


def _function_on_device(case: EntryCase) -> tuple[Any, str, Any]:
    """torch, a device that the entry serves, and the function.

    Raises:
        CheckSkipped: it cannot be computed here.
    """
    entry = _entry(case)
    if entry.framework != "torch":
        raise CheckSkipped(f"the kit computes with torch, not with {entry.framework}")
    missing = missing_packages(entry.serves.packages)
    if missing:
        raise CheckSkipped(missing)
    torch = import_module("torch")
    here = ["cpu"]
    if torch.cuda.is_available():
        own = getattr(torch.cuda.get_device_properties(0), "gcnArchName", "") if torch.version.hip else ""
        architecture = own.partition(":")[0] or "sm_{}{}".format(*torch.cuda.get_device_capability())
        patterns = entry.serves.architectures
        here += ["cuda"] if not patterns or any(fnmatchcase(architecture, pattern) for pattern in patterns) else []
    served = [device for device in here if device in entry.serves.devices]
    if not served:
        raise CheckSkipped(f"this machine has none of its devices: {', '.join(sorted(entry.serves.devices))}")
    return torch, served[-1], case.build()


def _inputs(torch: Any, case: AttentionCase, serves: AttentionServes, dtype: Any, device: str) -> list[Any]:
    """Query, key, value and sinks or None, drawn with a seed; each a leaf."""
    random = np.random.default_rng(7)
    size = serves.head_multiple * -(-8 // serves.head_multiple)
    keys = sum(case.lengths[0])
    positions = case.positions or keys
    rows = len(case.lengths)
    made: list[Any] = []
    for heads, count in ((case.heads, positions), (case.kv_heads, keys), (case.kv_heads, keys)):
        shape = (rows, count, heads, 2 * size) if case.strided else (rows, heads, count, size)
        x = torch.from_numpy(random.normal(size=shape)).to(device=device, dtype=dtype)
        made.append((x[..., ::2].transpose(1, 2) if case.strided else x).detach().requires_grad_())
    sinks = torch.from_numpy(random.normal(size=case.heads)).to(device=device, dtype=dtype).requires_grad_()
    return [*made, sinks if case.sinks else None]


def _call(compute: Any, case: AttentionCase, inputs: list[Any]) -> Any:
    query, key, value, sinks = inputs
    return compute(
        query, key, value, scale=query.shape[-1] ** -0.5, lengths=case.lengths, causal=case.causal, window=case.window,
        softcap=case.softcap, sinks=sinks,
    )  # fmt: skip


def _reference(torch: Any, case: AttentionCase, inputs: list[Any]) -> Any:
    """The same in float64, from the formula, sequence by sequence."""
    query, key, value, sinks = inputs
    group = case.heads // case.kv_heads
    key, value = (x.repeat_interleave(group, 1) for x in (key, value))
    rows: list[Any] = []
    for row, lengths in enumerate(case.lengths):
        behind = sum(lengths) - query.shape[2]  # keys that only a cache holds
        outputs: list[Any] = []
        for begin, length in zip(np.cumsum([0, *lengths[:-1]]), lengths, strict=True):
            first, end = max(begin, behind), begin + length
            if first >= end:
                continue
            q, k, v = query[row, :, first - behind : end - behind], key[row, :, begin:end], value[row, :, begin:end]
            scores = q @ k.transpose(1, 2) * query.shape[-1] ** -0.5
            if case.softcap is not None:
                scores = case.softcap * torch.tanh(scores / case.softcap)
            ahead = torch.arange(begin, end)[None] - torch.arange(first, end)[:, None]
            unseen = (ahead > 0) & case.causal
            if case.window is not None:
                unseen = unseen | (ahead <= -case.window)
            scores = scores.masked_fill(unseen.to(scores.device), -torch.inf)
            if sinks is not None:
                scores = torch.cat([scores, sinks[:, None, None].expand(-1, end - first, 1)], -1)
            outputs.append(scores.softmax(-1)[..., :length] @ v)
        rows.append(torch.cat(outputs, 1))
    return torch.stack(rows)


def _near(called: str, ours: Any, wanted: Any, tolerance: float) -> None:
    wide = ours.detach().double()
    difference = float((wide - wanted.detach()).norm() / wanted.detach().norm().clamp_min(1.0))
    expect(
        difference <= tolerance,
        called,
        f"{difference:.1e} from float64, as a share of the norm",
        f"at most {tolerance:.1e}",
    )
