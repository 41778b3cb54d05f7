"""What a workload is: sizes, contenders and how often they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Form = Literal["smoke", "quick", "full"]
Home = Literal["ours", "tested", "peers", "llamafactory"]
"""Whose Python runs a contender: one that `make bench-peers` makes, or `tested`: this environment, which has what only
the tests need."""


@dataclass(frozen=True)
class Contender:
    """One process of a workload.

    Attributes:
        name: unique within the workload; shown on the page.
        script: file in contenders/.
        options: go into its spec.
        home: whose Python runs it.
        rounds: how often, by form; default 1 (smoke), 2 (quick), 3 (full).
        forms: in which forms it takes part.
    """

    name: str
    script: str
    options: Mapping[str, Any] = field(default_factory=dict)
    home: Home = "ours"
    rounds: Mapping[str, int] = field(default_factory=dict)
    forms: tuple[Form, ...] = ("smoke", "quick", "full")

    def count(self, form: Form) -> int:
        """Rounds in this form."""
        return {"smoke": 1, "quick": 2, "full": 3, **self.rounds}[form] if form in self.forms else 0


@dataclass(frozen=True)
class Workload:
    """One comparison.

    Attributes:
        key: letter of the issue, `a`.
        name: of its JSON file.
        title: on the page.
        about: one sentence on the page: what runs and what is held equal.
        sizes: by form, go into every spec.
        contenders: in the order in which they take turns.
    """

    key: str
    name: str
    title: str
    about: str
    sizes: Mapping[Form, Mapping[str, Any]]
    contenders: tuple[Contender, ...]


ONCE = {"quick": 1, "full": 3}
SINGLE = {"quick": 1, "full": 1}
MACHINE = Contender("machine", "gemm.py", rounds=ONCE)
"""The machine's own rate of matrix multiplication, in the same run."""

LONG: tuple[Form, ...] = ("smoke", "full")
"""Of workloads that the quick form, which must end within half an hour, has no time for."""

TUNED = {"gradient_checkpointing": False, "dtype": "bfloat16", "bf16": True, "per_device_batch_size": 4}
"""TRL as fast as its settings make it here, see the workload `tuning`: weights in bf16, no recomputation, a smaller
device batch (less padding) with accumulation. The optimizer step is the same."""

TUNED_FP32 = {"gradient_checkpointing": False, "dtype": "float32", "bf16": False, "per_device_batch_size": 8}
"""The same in fp32, for processors without products of bf16."""
TUNED_IN_FP32 = "TRL tuned fp32"


def training(name: str, script: str, precision: str, *, home: Home = "ours", **more: Any) -> Contender:
    """A training contender."""
    rounds, forms = more.pop("rounds", {}), more.pop("forms", ("smoke", "quick", "full"))
    return Contender(name, script, {"precision": precision, **more}, home, rounds, forms)
