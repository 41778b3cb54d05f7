"""A recipe for rows, a model and a machine, with the reason for each setting."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from finetooth_hooks import CommandContext, Method, UserError
from finetooth_hooks.plan import Plan
from finetooth_hooks.reports import DataReport
from finetooth_toolbox.cli.recipe_arguments import SECTIONS
from finetooth_toolbox.text.measures import size

from finetooth_init.goals import Goal, entry_of

LONGEST = 2048
"""Rows are looked at up to so many tokens, or as many as the model takes."""
SHARE = 0.98
"""Of the rows that fit; what is longer is left out, and said."""
WITHIN = 0.05
"""Share by which a length that is reported may be too small; see `DataReport.lengths`."""
ROUND = 64
FEW = 40
"""Rows of which none are held out."""
HELD_OUT = 20
"""Rows held out of a small file, so that a score on them means something; of more, `LEAST_HELD_OUT` is more."""
LEAST_HELD_OUT, MOST_HELD_OUT = 0.05, 0.2
LOOK = 20
"""Steps of a first look."""
ENOUGH = 60
"""Steps below which hardly anything is learned: where nobody says how long, few rows are passed over more often."""
MOST_PASSES = 15
"""Four rows of a FAQ are answered word for word after so many, and not after ten."""
USED = 0.9
"""Share of the memory that is named which a proposal may take."""
AUTO = "auto"


@dataclass
class Proposal:
    """A recipe, its reasons, and what the plan says of it.

    Attributes:
        recipe: sections in the order in which they are written.
        reasons: by section, sentences.
        plan: of the recipe.
    """

    recipe: dict[str, Any]
    reasons: dict[str, list[str]]
    plan: Plan


@dataclass(frozen=True)
class Wishes:
    """What was answered.

    Attributes:
        data: source of the rows.
        model: reference of the base model.
        memory: bytes there may be taken; 0 is what the machine has.
        extent: `look`, passes over the rows, or `auto`: one pass, and more where the rows are few.
        output: the run folder; None leaves it to the run.
        format: what reads the rows; None if their columns tell.
        settings: further ones of the recipe's `data`.
    """

    data: Any
    model: str
    memory: int = 0
    extent: str = "1"
    output: str | None = None
    format: Any = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def section(self) -> dict[str, Any]:
        """`data` of the recipe."""
        format_ = {} if self.format is None else {"format": dict(self.format)}
        return {"train": self.data, **format_, **self.settings}


def propose(context: CommandContext, goal: Goal, wishes: Wishes) -> Proposal:
    """A recipe that fits into memory.

    Raises:
        UserError: nothing that may be proposed does; says what each would take.
    """
    first = {"model": wishes.model, "data": {**wishes.section, "accept_dropped": True}, "method": goal.method}
    first["train"] = {"max_length": _most(context, first)}
    _, reports = context.planned({**first, "trackers": []})
    rows = next(report for report in reports if report.split == "train")
    recipe, reasons = _described(goal, entry_of(context.catalog, goal), wishes, rows)
    plan = _planned(context, recipe, wishes)
    has = wishes.memory or plan.memory.device_has
    bound = USED * has if wishes.memory else has
    if goal.adapter == "lora" and (plan.train.gradient_checkpointing or plan.memory.total > bound > 0):
        # only now, since trying quantizers imports them, and what a process holds is part of the estimate
        plan = _planned(context, {**recipe, "quantization": AUTO}, wishes)
    steps = [note for note in plan.notes if note.startswith(f"quantization: {AUTO}: ")]
    tried = "; ".join(note.removeprefix(f"quantization: {AUTO}: ") for note in steps)
    if plan.memory.total > bound > 0:
        raise UserError(
            f"{wishes.model} does not fit: {tried or f'it takes {size(plan.memory.total)} of {size(has)}'}",
            action="take a smaller model, or a machine with more memory",
        )
    decided = {decision.setting: decision for decision in plan.decisions}
    stored, again = decided.get("quantization"), plan.train.gradient_checkpointing
    if goal.adapter == "lora" and stored is not None and stored.value is not None:
        recipe["quantization"] = stored.value
        reasons["quantization"] = [f"the base does not fit without quantisation: {tried}"]
    template = decided.get("data.renderer")
    if template is not None and goal.name != "pretrain":
        name = str(template.value).rpartition(":")[2]
        reasons["data"].append(f"rows become tokens by the template {name}: {template.reason}")
    if again:
        recipe["train"]["gradient_checkpointing"] = True
        why = decided.get("train.gradient_checkpointing")
        reasons["train"].append(
            f"activations are computed again in the backward pass{f': {why.reason}' if why else ''}"
        )
    if goal.asks and "eval" in recipe["data"]:  # to read answers is not worth giving anything up for its memory
        asking = {**recipe, "evaluate": {"evaluators": ["loss", "some_answers"]}}
        asking_plan = _planned(context, asking, wishes)
        if not asking_plan.memory.total > bound > 0 and asking_plan.train.gradient_checkpointing == again:
            recipe, plan = asking, asking_plan
            reasons["evaluate"] = ["the loss, and a few answers to read, before and after"]
    reasons["train"].append(
        f"by the plan's estimate the run takes {size(plan.memory.total)}" + (f" of {size(has)}" if has else "")
    )
    return Proposal(recipe, reasons, plan)


def _planned(context: CommandContext, recipe: Mapping[str, Any], wishes: Wishes) -> Plan:
    """The plan of a recipe, made after what was looked at before is dropped: what a process holds is part of a plan's
    estimate, and `ft check` holds one session alone."""
    gc.collect()
    return context.plan(recipe, memory=int(USED * wishes.memory))


def _most(context: CommandContext, recipe: Mapping[str, Any]) -> int:
    return min(LONGEST, context.context({**recipe, "trackers": []}).facts.max_positions)


def _described(
    goal: Goal, entry: Method, wishes: Wishes, rows: DataReport
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The recipe before memory is looked at."""
    length = _length(rows)
    longer = sum(1 for row_length in rows.lengths if row_length > length) / len(rows.lengths) if rows.lengths else 0.0
    # of a prompt several answers are sampled, each a datum; a step takes prompts
    used = rows.used if goal.name == "pretrain" else min(rows.used, rows.examples or rows.used)
    batch = max(1, min(goal.batch_size, used // 4))
    recipe: dict[str, Any] = {"model": wishes.model, "data": wishes.section, "method": goal.method}
    reasons = {
        "model": ["the base model, which stays as it is" if goal.adapter == "lora" else "the base model"],
        "data": [
            f"{rows.rows:,} document{'' if rows.rows == 1 else 's'} in {used:,} "
            f"window{'' if used == 1 else 's'} of at most {length} tokens"
            if goal.name == "pretrain"
            else f"{rows.rows:,} {'row' if rows.rows == 1 else 'rows'}, of which {used:,} can be used",
            *_left_out(rows),
        ],
        "method": [f"{entry.summary}; learns from {entry.learns_from}; usual are {entry.rows}"],
        "adapter": [
            "a LoRA: small matrices added to the frozen weights; a hundredth of the memory for optimizer and gradients"
            if goal.adapter == "lora"
            else "all weights train, because all of them learn the language of the texts"
        ],
        "optimizer": [f"a usual learning rate for {goal.name}; lower it if the loss jumps"],
        "schedule": ["the rate rises over the first steps, then falls to 0"],
        "train": [f"{length} tokens hold {'all rows' if not longer else f'{1 - longer:.0%} of the rows'}"],
    }
    if rows.rows >= FEW:
        share = min(MOST_HELD_OUT, max(LEAST_HELD_OUT, round(HELD_OUT / rows.rows, 2)))
        recipe["data"]["eval"] = {"fraction": share}
        reasons["data"].append(f"{share:.0%} of the rows are held out, to measure on rows that do not train")
    else:
        reasons["data"].append(f"none is held out of fewer than {FEW}")
    recipe["adapter"] = {"name": "lora", "rank": 16} if goal.adapter == "lora" else "full"
    recipe["optimizer"] = {"name": "adamw", "learning_rate": goal.learning_rate}
    recipe["schedule"] = {"name": "cosine", "warmup_ratio": 0.05}
    recipe["train"] = {"batch_size": batch, "max_length": length}
    if wishes.extent == "look":
        recipe["train"]["max_steps"] = LOOK
        reasons["train"].append(f"{LOOK} steps, to see that it works")
    else:
        steps = max(1, used // batch)
        count = min(MOST_PASSES, math.ceil(ENOUGH / steps)) if wishes.extent == AUTO else int(wishes.extent)
        recipe["train"]["epochs"] = float(count)
        passes = "one pass" if count == 1 else f"{count} passes"
        few = ", since few steps teach little" if wishes.extent == AUTO and count > 1 else ""
        reasons["train"].append(f"{passes} over the rows, {batch} in a step{few}")
    if wishes.output is not None:
        recipe["output"] = wishes.output
    return recipe, reasons


def _left_out(rows: DataReport) -> list[str]:
    """Sentences about rows that no length would bring back, or only a very long one."""
    return [f"{count:,} row{'s are' if count != 1 else ' is'} left out: {why}" for why, count in rows.dropped.items()]


def _length(rows: DataReport) -> int:
    """Positions that hold nearly all rows, rounded up."""
    ordered = sorted(rows.lengths) or [rows.longest]
    enough = ordered[min(len(ordered) - 1, math.ceil(SHARE * len(ordered)) - 1)]
    # lengths are known within a share, and the longest exactly
    enough = rows.longest if enough == ordered[-1] else min(rows.longest, math.ceil(enough * (1 + WITHIN)))
    return max(ROUND, math.ceil(enough / ROUND) * ROUND)


def as_lines(proposal: Proposal) -> Iterator[tuple[str, list[str], Any]]:
    """Sections in the order in which a recipe is read: name, reasons, value."""
    for section in SECTIONS:
        if section in proposal.recipe:
            yield section, proposal.reasons.get(section, []), proposal.recipe[section]
