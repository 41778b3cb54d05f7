"""Checks of providers of kernels: each operation that one declares, held against the float64 reference."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from finetooth_hooks.compute.serves import Serves
from finetooth_hooks.entries import Kernel
from finetooth_hooks.protocols import Kernel as BuiltKernel

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance, fail

ROWS = 13
DTYPES = ("fp64", "fp32", "fp16", "bf16")
"""What is tried, the widest first."""


@dataclass(frozen=True)
class _OperationCase:
    """One operation in one dtype."""

    serves: Serves
    function: Callable[..., Any]
    reference: Callable[..., Any]
    dtype: str
    device: str

    def trials(self, **sizes: int) -> Iterator[Any]:
        from finetooth_kernels.trials import trials

        declared = self.serves
        yield from trials(declared.operation, _dtypes()[self.dtype], self.device, **sizes, features=declared.features)

    def called(self, trial: Any) -> str:
        return f"{self.serves.operation} in {self.dtype} on {self.device} ({trial.name})"


def _dtypes() -> dict[str, Any]:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def _trials(case: EntryCase) -> list[_OperationCase]:
    """What can be tried on this machine.

    Raises:
        CheckSkipped: nothing can.
    """
    try:
        import torch
        from finetooth_kernels.operations import OPERATIONS
    except ImportError as error:
        raise CheckSkipped(f"{error.name} is not installed") from error
    entry = case.entry
    assert isinstance(entry, Kernel)
    if "torch" not in entry.frameworks:
        raise CheckSkipped(f"for {', '.join(sorted(entry.frameworks))}; the kit tries torch only")
    here = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]  # a GPU shows what a CPU cannot
    if not _interpreted():
        wanted = [
            (declared, [device for device in here if not declared.devices or device in declared.devices][:1])
            for declared in entry.serves
        ]
    else:  # what is interpreted runs on a CPU
        wanted = [(declared, ["cpu"]) for declared in entry.serves]
    built: BuiltKernel | None = None
    trials, missing = [], {"no device that it declares is here": None}
    for serves, devices in wanted:
        for device in devices:
            built = built or case.build()
            for dtype in sorted(serves.dtypes & set(DTYPES)):
                if why := built.missing(serves.operation, device, dtype):
                    missing[why] = None
                elif serves.operation in OPERATIONS:
                    function, reference = built.functions[serves.operation], OPERATIONS[serves.operation].reference
                    trials.append(_OperationCase(serves, function, reference, dtype, device))
    if not trials:
        raise CheckSkipped("; ".join(missing))
    return trials


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _agrees(tried: _OperationCase, trial: Any, inputs: dict[str, Any], what: str) -> None:
    """Values and gradients are those of the reference over the same numbers in float64."""
    from finetooth_kernels.trials import first_difference

    backward = tried.serves.backward
    if different := first_difference(tried.function, tried.reference, trial, inputs, backward=backward):
        fail(f"{different.which} of {tried.called(trial)}{what}", different.got, different.expected)


def _rows(which: Any) -> list[int]:
    return [int(row) for row in which.nonzero().flatten()]


@check_for("kernel")
def brings_what_it_declares(case: EntryCase) -> None:
    """The builder returns a function for each operation, and nothing is declared twice for the same device."""
    entry = case.entry
    assert isinstance(entry, Kernel)
    expect(entry.serves, "entry.serves", "nothing", "at least one operation")
    built = case.build()
    expect_instance(built, BuiltKernel, case.called)
    for operation in (served.operation for served in entry.serves):
        expect(callable(built.functions.get(operation)), case.called, f"no {operation}", "a function for it")


@check_for("kernel")
def kernels_agree_with_the_reference(case: EntryCase) -> None:
    """Values and gradients are the float64 reference's but for roundings, for incoming gradients that differ."""
    for tried in _trials(case):
        for trial in tried.trials():
            _agrees(tried, trial, dict(trial.given), "")


@check_for("kernel")
def kernels_agree_at_awkward_sizes(case: EntryCase) -> None:
    """So they do at the borders of blocks: 127, 128, 129, 1,025 and 4,097 rows or columns, and one row more than fits
    the second number of a GPU's grid. In the widest dtype that is declared."""
    from finetooth_kernels.trials import awkward

    widest: dict[tuple[str, str], _OperationCase] = {}
    for tried in _trials(case):
        key = tried.serves.operation, tried.device
        if key not in widest or DTYPES.index(tried.dtype) < DTYPES.index(widest[key].dtype):
            widest[key] = tried
    for tried in widest.values():
        for rows, columns in awkward(tried.serves.operation, few=_interpreted()):
            for trial in tried.trials(rows=rows, columns=columns):
                _agrees(tried, trial, dict(trial.given), f", {rows:,} rows of {columns:,}")


@check_for("kernel")
def kernels_take_any_strides(case: EntryCase) -> None:
    """Numbers that lie apart, and rows that stand in columns, give the same."""
    import torch

    for tried in _trials(case):
        for trial in (candidate for candidate in tried.trials() if candidate.strides):
            strided = {name: torch.stack([x, x + 1], -1)[..., 0] for name, x in trial.given.items()}
            _agrees(tried, trial, strided, ", numbers apart")
            turned = {
                name: x.transpose(0, -1).contiguous().transpose(0, -1) if x.dim() > 1 else x
                for name, x in trial.given.items()
            }
            _agrees(tried, trial, turned, ", in columns")


@check_for("kernel")
def kernels_take_no_rows(case: EntryCase) -> None:
    """Nothing in, nothing out, and gradients that are 0."""
    for tried in _trials(case):
        for trial in tried.trials(rows=0):
            _agrees(tried, trial, dict(trial.given), ", no rows")


@check_for("kernel")
def nan_shows_where_it_is_seen(case: EntryCase) -> None:
    """A NaN in the last row reaches the rows that the reference says it reaches."""
    from finetooth_kernels.trials import results

    for tried in _trials(case):
        for trial in tried.trials():
            inputs = {name: tensor.clone() for name, tensor in trial.given.items()}
            first = next(iter(inputs.values()))
            first[-1].view(-1)[0] = float("nan")
            doubles = {name: x.double() for name, x in inputs.items()}
            got = results(tried.function, trial, inputs, backward=False)
            exact = results(tried.reference, trial, doubles, backward=False)
            if got is None or exact is None:
                continue
            for result, wanted in zip(got[0], exact[0], strict=True):
                ours, theirs = (
                    _rows(x.isnan().flatten(1).any(1) if x.dim() > 1 else x.isnan()) for x in (result, wanted)
                )
                expect(ours == theirs, f"{tried.called(trial)} with a NaN", f"NaN in rows {ours}", f"in {theirs}")


@check_for("kernel")
def results_have_the_declared_dtype(case: EntryCase) -> None:
    """Its result has the dtype that it declares, in training (with a graph) and in scoring (without) alike."""
    import torch
    from finetooth_kernels.trials import results

    for tried in _trials(case):
        dtype = _dtypes()[tried.dtype]
        full = torch.float64 if dtype == torch.float64 else torch.float32
        wanted = full if tried.serves.result == "full" else dtype
        for trial in tried.trials():
            for backward in {False, tried.serves.backward}:
                got = results(tried.function, trial, dict(trial.given), backward=backward)
                way = "training" if backward else "scoring"
                for out in () if got is None else got[0]:
                    expect(out.dtype == wanted, f"{tried.called(trial)} in {way}", out.dtype, f"{wanted}, as declared")


@check_for("kernel")
def the_same_logits_have_one_log_probability(case: EntryCase) -> None:
    """Bit for bit: in training with a head that trains or not, in scoring, with several targets, and from logits as
    sampling takes them.

    Hidden states and head are small whole numbers, so that every order of summing gives the same sums, which are exact
    in float32 and not in half precision: an implementation may round them, but always or never.
    """
    for tried in _trials(case):
        if tried.serves.operation != "linear_logprob":
            continue
        (first, wanted), *others = _ways(tried, case.build()).items()
        for name, logprobs in others:
            difference = float((logprobs.double() - wanted.double()).abs().max())
            called = f"linear_logprob in {tried.dtype} on {tried.device}, {name}"
            expect(difference == 0.0, called, f"up to {difference:.2g} nats apart", f"the same as {first}")


FACTOR = 2.0**-7
"""Makes logits of the usual size of whole numbers."""


def _ways(tried: _OperationCase, built: BuiltKernel) -> dict[str, Any]:
    """Log-probabilities of the same targets, by how they were asked for."""
    import torch

    generator = torch.Generator().manual_seed(17)
    dtype, device = _dtypes()[tried.dtype], tried.device

    def whole(most: int, *shape: int) -> Any:
        return torch.randint(-most, most + 1, shape, generator=generator).to(device, dtype)

    hidden, weight = whole(3, ROWS, 24), whole(63, 37, 24)
    targets = torch.randint(0, 37, (ROWS,), generator=generator).to(device)
    ones = torch.ones(ROWS, device=device)

    def asked(*training: Any, columns: int = 1, **named: Any) -> Any:
        inputs = [x.detach().clone().requires_grad_(any(x is tensor for tensor in training)) for x in (hidden, weight)]
        ids = targets if columns == 1 else targets.unsqueeze(1).expand(-1, columns)
        with torch.set_grad_enabled(bool(training)):
            logprobs = tried.function(*inputs, ids, scale=FACTOR, **named).logprobs.detach()
        return logprobs if columns == 1 else logprobs[:, 1]

    ways = {"training with a frozen head": asked(hidden), "scoring": asked()}
    ways["training with the entropy"] = asked(hidden, entropy=True)
    if tried.serves.backward:
        ways["training the head"] = asked(hidden, weight)
        ways["training the head, gradients expected"] = asked(hidden, weight, expected=ones)
    ways["scoring several targets"] = asked(columns=2)
    ways["training with several targets"] = asked(hidden, columns=2)
    statistics = built.functions.get("logits_statistics")
    if statistics is None or built.missing("logits_statistics", device, "fp32"):
        return ways
    with torch.no_grad():
        pack = built.functions.get("packed_linear")
        usable = pack is not None and not built.missing("packed_linear", device, tried.dtype)
        packed = pack(weight) if pack is not None and usable else None
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        linear = torch.nn.functional.linear(hidden, weight) if packed is None else packed(hidden, dtype=wide)
        logits = linear.to(wide) * FACTOR
        ways["sampling"] = statistics(logits, targets).logprobs
        ways["sampling one row"] = torch.cat(
            [statistics(logits[n : n + 1], targets[n : n + 1]).logprobs for n in range(ROWS)]
        )
    return ways
