"""`ft doctor model MODEL`: whether a model loads, computes what its own library computes, and trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
from finetooth_hooks import (
    CommandContext,
    Context,
    Conversation,
    Datum,
    Engine,
    FinetoothError,
    Message,
    RecipeError,
    UserError,
    install_command,
)
from finetooth_hooks.entries import Family
from finetooth_toolbox.text.controls import escape_controls
from numpy.typing import NDArray

from finetooth_doctor.plain_forward import datum_of, plain_logprobs

TEXTS = (
    "The river runs through the old town, past the market and under three stone bridges.",
    "Water boils at one hundred degrees Celsius at sea level.",
    "She opened the letter, read it twice, and put it back on the table without a word. Then she went to the window.",
)
"""Plain sentences of different lengths, which every language model finds far likelier than chance."""
LONGEST = 128
"""Tokens that a model must take for these."""
ANY = "chatml"
"""The markup for a model that has none."""
RANDOM = 0.8
"""A loss above this share of the logarithm of the vocabulary is that of a model that knows nothing."""
CLOSE = 1e-3
"""By how much log-probabilities in fp32 may differ, in nats."""
STEPS = 3


@dataclass(frozen=True)
class Check:
    """What one look found.

    Attributes:
        passed: whether it is as it should be.
        told: what was found, and what to do if it is not right.
    """

    name: str
    passed: bool
    told: str


@click.command("model")
@click.argument("model", metavar="MODEL")
@click.option("--write", metavar="NAME", help="Also write a family plugin NAME with what was found, into ./NAME.")
@click.pass_context
def command(ctx: click.Context, model: str, write: str | None) -> int:
    """Check MODEL, a name, a folder or a hub id, before you train it: does it load, does it compute the same as its own
    library (also with packed rows), does the adapter apply, is its first loss that of a trained model, and does the
    loss fall?

    Takes two copies of the weights in fp32, one after the other. Exit code 1 if something is wrong.
    """
    obj: CommandContext = ctx.obj
    changes: dict[str, Any] = {"train": {"precision": "fp32", "max_length": LONGEST}}
    opened = obj.open(model, changes)
    try:
        checks = [*of_context(opened.context)]
    except RecipeError as error:
        if error.setting != "data.renderer":
            raise
        opened = obj.open(model, {**changes, "data": {"renderer": ANY}})
        checks = [
            *of_context(opened.context),
            Check("template", True, f"no family knows it, so {ANY} is used: {error}"),
        ]
    sequences = _sequences(opened.context)
    plain = plain_logprobs(opened.context, sequences)
    checks += of_engine(opened.engine, opened.context, sequences, plain)
    for check in checks:
        click.echo(f"{'ok' if check.passed else '!!':<3} {check.name:<10} {escape_controls(check.told)}")
    if write is not None:
        ctx.invoke(_writer(ctx), name=write, kind="family", folder=None, model=model)
    return 0 if all(check.passed for check in checks) else 1


def _writer(ctx: click.Context) -> click.Command:
    """The command `ft plugins new`, which another plugin brings.

    Raises:
        UserError: it is not installed.
    """
    found: click.Command | None = ctx.find_root().command
    for name in ("plugins", "new"):
        found = found.get_command(ctx, name) if isinstance(found, click.Group) else None
    if found is None:
        raise UserError("--write: no ft plugins new", action=install_command("finetooth-authoring"))
    return found


def of_context(context: Context) -> list[Check]:
    """What is known before weights are read."""
    assert context.plan is not None
    info, family = context.model, context.plan.picks["family"]
    detail = f"{info.model_type} by the family {family}, {info.parameters:,} parameters, read by {info.loader}"
    entry = context.catalog.get("family", family).entry
    if isinstance(entry, Family) and not entry.model_types:
        detail += f"; ft doctor model {info.reference} --write NAME writes a plugin with what was found"
    checks = [Check("family", True, detail)]
    conversation = Conversation((Message("user", "Hello?"), Message("assistant", "Hello.")))
    try:
        rendered = context.renderer.render(conversation, train_on="assistant")
        counted = sum(1 for weight in rendered.weights if weight)
        detail = f"{counted} of {len(rendered.tokens)} tokens of a short conversation train"
        checks.append(Check("template", 0 < counted < len(rendered.tokens), detail))
    except FinetoothError as error:
        checks.append(Check("template", True, f"none for conversations: {error}"))
    return checks


def of_engine(
    engine: Engine, context: Context, sequences: Sequence[Sequence[int]], plain: Sequence[NDArray[np.float64]]
) -> list[Check]:
    """What shows when it computes and trains.

    Args:
        sequences: token ids.
        plain: what the model's own library says of them.
    """
    data = [datum_of(tokens, [1.0] * len(tokens), id=f"text {index}") for index, tokens in enumerate(sequences)]
    alone = [engine.logprobs([datum])[0] for datum in data]
    together = engine.logprobs(data)
    off = max(float(np.abs(own - other).max()) for own, other in zip(alone, plain, strict=True))
    difference = max(float(np.abs(own - other).max()) for own, other in zip(alone, together, strict=True))
    bound = math.log(context.facts.vocab_size)
    first = float(-np.concatenate(plain).mean())
    checks = [
        Check(
            "same", off < CLOSE,
            f"log-probabilities differ from the library's own forward pass by at most {off:.1e}"
            + ("" if off < CLOSE else "; try attention and kernels one by one (kernels: {...: torch})"),
        ),
        Check(
            "packing", difference < CLOSE,
            f"alone and together they differ by at most {difference:.1e}"
            + ("" if difference < CLOSE else "; rows see each other: set backend.packing: false, or another attention"),
        ),
        Check(
            "loss", first < RANDOM * bound,
            f"{first:.2f} on plain sentences; guessing gives {bound:.2f}"
            + ("" if first < RANDOM * bound else ": the weights look random; is it the right file, and complete?"),
        ),
    ]  # fmt: skip
    return [*checks, *of_training(engine, context, data)]


def of_training(engine: Engine, context: Context, rows: Sequence[Datum]) -> list[Check]:
    """A few steps on the sentences."""
    info, spec = engine.info, context.loss("cross_entropy")
    engine.set_total_steps(STEPS)
    losses, norms = [], []
    for _ in range(STEPS):
        result = engine.forward_backward(rows, spec)
        losses.append(float(result.loss or 0.0))
        norms.append(engine.step().grad_norm)
    after = float(engine.forward(rows, spec).loss or 0.0)
    share = info.trained / info.parameters
    trains = info.trained > 0 and all(math.isfinite(norm) and norm > 0 for norm in norms)
    return [
        Check(
            "adapter", trains,
            f"{info.trained:,} parameters train ({share:.1%}), gradient norm {norms[0]:.3g}"
            + ("" if trains else ": nothing trains; see adapter.modules, and ft plugins explain the adapter"),
        ),
        Check(
            "learns", after < losses[0],
            f"loss {losses[0]:.3f} before, {after:.3f} after {STEPS} steps on the same sentences"
            + ("" if after < losses[0] else "; try a higher optimizer.learning_rate"),
        ),
    ]  # fmt: skip


def _sequences(context: Context) -> list[list[int]]:
    tokenizer = context.tokenizer
    begin = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    return [[*begin, *tokenizer.encode(text)] for text in TEXTS]
