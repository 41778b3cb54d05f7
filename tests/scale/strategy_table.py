"""What runs do under each strategy: the cells that test_strategy_table.py tries, and docs/strategies.md, which
`python tests/scale/strategy_table.py` writes from them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs/strategies.md"
LORA = {"name": "lora", "rank": 4}
PAIRS = {"train": "pairs.jsonl[:9]", "eval": "pairs.jsonl[20:]", "renderer": "chatml"}
CHATS, UNEVEN = ({"train": f"{of}.jsonl[:9]", "renderer": "chatml"} for of in ("chats", "uneven"))
REWARD = {"name": "python_function", "file": "rewards.py", "function": "score"}
COLUMNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sft": ("LoRA", {"data": CHATS}),
    "full": (
        "sft of all weights, over rows of which one in four is much longer than the others",
        {"data": UNEVEN, "adapter": "full", "optimizer": {"name": "adamw", "learning_rate": 1e-3}},
    ),
    "dpo": ("pairs; the reference is the model without its adapter", {"data": PAIRS, "method": "dpo"}),
    "kto": (
        "labelled answers; the KL of a step comes from all its rows",
        {"data": {"train": "labels.jsonl[:9]", "renderer": "chatml"}, "method": "kto"},
    ),
    "grpo": (
        "two answers to each prompt are sampled, scored, and learnt from twice",
        {
            "data": {"train": "answers.jsonl[:9]", "renderer": "chatml", "format": "task"},
            "method": {
                "name": "grpo",
                "rewards": [REWARD],
                "num_generations": 2,
                "max_completion_length": 8,
                "num_iterations": 2,
            },
        },
    ),
    "dropout": ("sft with `adapter.dropout: 0.1`", {"data": CHATS, "adapter": {**LORA, "dropout": 0.1}}),
}
"""What each column runs: in words, and as changes of the recipe."""


@dataclass(frozen=True)
class Way:
    """One row of the table.

    Attributes:
        scale: the section of the recipe, without the number of devices.
        ranks: the numbers of devices that it is tried with.
        changes: of the recipe, in all columns.
        refused: columns that it refuses, with what the run says.
        weights_alone: the loss that is reported is not that of the whole step, so only weights are compared.
    """

    scale: Mapping[str, Any]
    ranks: tuple[int, ...] = (2,)
    changes: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    weights_alone: bool = False

    @property
    def needs_deepspeed(self) -> bool:
        strategy = self.scale["strategy"]
        name = strategy if isinstance(strategy, str) else strategy["name"]
        return name in ("deepspeed", "zero3")


def _way(ranks: tuple[int, ...], name: str, **options: Any) -> Way:
    return Way({"strategy": {"name": name, **options} if options else name}, ranks)


ISLANDS = {"name": "diloco", "inner_steps": 1, "outer_lr": 1.0, "outer_momentum": 0.0}
WAYS: Mapping[str, Way] = {
    "ddp": _way((2, 4), "ddp"),
    "fsdp": _way((2, 4), "fsdp"),
    "fsdp, replicas: 2": _way((4,), "fsdp", replicas=2),
    "fsdp, offload: true": _way((2,), "fsdp", offload=True),
    "fsdp, replicas: 2, offload: true": _way((4,), "fsdp", replicas=2, offload=True),
    "fsdp, tensor: 2": _way((2, 4), "fsdp", tensor=2),
    "fsdp, context: 2": _way((2, 4), "fsdp", context=2),
    "context": _way((2,), "context"),
    "context, size: 2": _way((4,), "context", size=2),
    "pipeline": _way((2,), "pipeline"),
    "pipeline, stages: 2": _way((4,), "pipeline", stages=2, schedule="gpipe"),
    "pipeline, stages: 2, shard: true": _way((4,), "pipeline", stages=2, shard=True),
    "pipeline, tensor: 2": _way((4,), "pipeline", tensor=2),
    "pipeline, context: 2": _way((4,), "pipeline", context=2),
    "deepspeed, stage: 1": _way((2,), "deepspeed", stage=1),
    "deepspeed, stage: 2": _way((2, 4), "deepspeed", stage=2),
    "zero3": _way((2, 4), "zero3"),
    "diloco, inner_steps: 1": Way(
        {"strategy": ISLANDS},
        changes={"optimizer": {"name": "sgd", "learning_rate": 0.05}, "train": {"max_grad_norm": 0}},
        weights_alone=True,
    ),
    "diloco, inner_steps: 2": Way(
        {"strategy": {"name": "diloco", "inner_steps": 2}},
        refused={"grpo": "diloco: islands would sample different completions between two exchanges"},
    ),
}
ELSEWHERE = {"diloco, inner_steps: 2": ("sft", "full", "dpo", "kto", "dropout")}
"""Columns of which another test says what is right: islands that train apart do not take the steps of one process."""
RESUMED: Mapping[str, tuple[str, ...]] = {
    "one process": (
        "ddp",
        "fsdp",
        "ddp over 4 ranks",
        "fsdp over 4 ranks",
        "fsdp, offload: true",
        "pipeline, stages: 2, shard: true",
        "pipeline, tensor: 2",
    ),
    "ddp": ("one process", "fsdp, tensor: 2", "context", "pipeline", "deepspeed, stage: 2"),
    "fsdp": ("one process", "ddp"),
    "fsdp over 4 ranks": ("fsdp",),
    "fsdp, offload: true": ("one process", "fsdp, replicas: 2, offload: true"),
    "fsdp, tensor: 2": ("one process",),
    "context": ("one process",),
    "pipeline": ("one process",),
    "pipeline, stages: 2, shard: true": ("one process", "fsdp"),
    "pipeline, tensor: 2": ("one process", "pipeline, context: 2"),
    "pipeline, context: 2": ("one process",),
    "deepspeed, stage: 2": ("one process", "ddp", "zero3"),
    "zero3": ("one process", "fsdp"),
}
"""What each wrote after two steps, and what took the next two: over as many ranks as it says, or the fewest."""
OPENING = """\
# What each strategy does

Written by `python tests/scale/strategy_table.py` from the cases of a test, which tries every cell over processes of
one machine, connected by gloo.

**Yes** means that ten steps are those of one process: the first gradient's norm to 1e-6, every loss to 1e-5, the
weights at the end to 2e-5, in fp32. (A loss of grpo, whose parts cancel, to 1e-7.) Nine rows come in batches of four,
so that the last batch of an epoch has one row and some rank has none.

| column | is |
|---|---|
"""


def scale_of(name: str) -> dict[str, Any]:
    """The section of the recipe for `ddp`, `ddp over 4 ranks` or `one process`."""
    way, _, ranks = name.partition(" over ")
    if way not in WAYS:
        return {"devices": 1}
    return {"devices": int(ranks.split()[0]) if ranks else WAYS[way].ranks[0], **WAYS[way].scale}


def page() -> str:
    """The page; a cell that is not a yes has the number of its reason."""
    reasons: list[str] = []

    def number(reason: str) -> str:
        if reason not in reasons:
            reasons.append(reason)
        return f"({reasons.index(reason) + 1})"

    lines = [f"| {name} | {words} |" for name, (words, _) in COLUMNS.items()]
    lines += ["", "| `scale.strategy` | ranks | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, way in WAYS.items():
        cells = [
            f"no {number(way.refused[of])}"
            if of in way.refused
            else "apart"
            if of in ELSEWHERE.get(name, ())
            else "yes"
            for of in COLUMNS
        ]
        lines.append(f"| `{name}` | {' and '.join(map(str, way.ranks))} | " + " | ".join(cells) + " |")
    lines += ["", "A no is refused before the first step. Reasons, as the run says them:", ""]
    lines += [f"{place}. {_wrapped(reason)}" for place, reason in enumerate(reasons, 1)]
    lines += [
        "",
        _wrapped(
            "Islands that exchange after every step, with `sgd` and without an outer optimizer, take the steps of one "
            "process. Otherwise they train apart: there a test holds them against the papers' algorithm in float64 "
            "([how it was checked](guides/slow-links.md#how-it-was-checked)).",
            indent="",
        ),
        "", "## Checkpoints", "",
        "Two steps under one, two under the other, with dropout where both have it; held against four of one process:",
        "", "| written by | resumed by |", "|---|---|",
    ]  # fmt: skip
    lines += [f"| {_code(before)} | {', '.join(map(_code, after))} |" for before, after in RESUMED.items()]
    lines += ["", "Next: [many devices](guides/many-devices.md) or [checkpoints](guides/checkpoints.md)."]
    return OPENING + "\n".join(lines) + "\n"


def _code(name: str) -> str:
    way, over, ranks = name.partition(" over ")
    return f"`{way}`{over}{ranks}" if way in WAYS else name


def _wrapped(text: str, indent: str = "   ") -> str:
    return "\n".join(textwrap.wrap(text, 116, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
