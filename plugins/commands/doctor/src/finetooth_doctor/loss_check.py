"""`ft doctor loss RECIPE`: compares the engine's loss on the recipe's own rows with one plain forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import numpy as np
from finetooth_hooks import CommandContext, Context, Conversation, Example, PromptCompletion, Rendered, UserError
from finetooth_hooks.data.examples import Text
from finetooth_toolbox.messages.prompts import render_completion

from finetooth_doctor.plain_forward import datum_of, plain_logprobs

BOUNDS = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}
"""By what share of the loss the two may differ, by precision."""


@click.command("loss")
@click.argument("recipe", metavar="RECIPE")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--rows", type=click.IntRange(min=1), default=8, show_default=True, help="Number of rows to check.")
@click.pass_obj
def command(obj: CommandContext, recipe: str, overrides: tuple[str, ...], rows: int) -> int:
    """Compare the first loss of RECIPE on its first rows with the loss of a plain forward pass by the model's own
    library. A loss that is three or four times as high means that wrong tokens train, or that the layers are computed
    differently from the original model. Exit code 1 if they differ.

    Takes two copies of the weights, one after the other.
    """
    loaded = obj.load(recipe, overrides)
    context = obj.context(loaded)
    rendered = [_rendered(id, example, context, loaded) for id, example in context.examples("train", first=rows).rows]
    most = context.train.max_length + 1
    usable = [(list(row.tokens)[:most], list(row.weights)[:most]) for row in rendered if any(row.weights[1:most])]
    if not usable:
        raise UserError(f"no token of the first {rows} rows trains", action="see ft data preview " + recipe)
    plain = plain_logprobs(context, [tokens for tokens, _ in usable])
    weights = [np.asarray(weights[1:]) for _, weights in usable]
    total = float(sum(of.sum() for of in weights))
    expected = float(-sum((of * logprobs).sum() for of, logprobs in zip(weights, plain, strict=True)) / total)
    engine = obj.engine(loaded)
    data = [datum_of(tokens, counts, f"row {index}") for index, (tokens, counts) in enumerate(usable)]
    ours = float(engine.forward(data, context.loss("cross_entropy")).loss or 0.0)
    precision, bound = engine.info.precision, BOUNDS.get(engine.info.precision, BOUNDS["bf16"])
    off = abs(ours - expected) / max(expected, 1e-9)
    targets = sum(len(tokens) - 1 for tokens, _ in usable)
    click.echo(f"{len(usable)} row{'s' * (len(usable) != 1)}, {total:g} of {targets} targets count")
    click.echo(f"engine, {precision:<12} {ours:.5f}\nplain forward, fp32 {expected:.5f}")
    if off <= bound:
        click.echo(f"they agree: {off:.2%} apart, and rounding explains up to {bound:.1%}")
        return 0
    if loaded.get("quantization"):
        click.echo(
            f"{off:.1%} apart: the error of the quantised base; the plain pass uses the weights before quantisation"
        )
        return 0
    click.echo(
        f"{off:.1%} apart, and rounding explains only {bound:.1%}: try train.precision=fp32, then attention and "
        "kernels one by one (kernels: {...: torch}), then ft doctor model"
    )
    return 1


def _rendered(id: str, example: Example, context: Context, recipe: Mapping[str, Any]) -> Rendered:
    """
    Raises:
        UserError: the rows are none of which cross entropy says something.
    """
    method = recipe.get("method")
    options = method if isinstance(method, Mapping) else {}
    train_on = options.get("train_on", "assistant")
    if isinstance(example, Conversation):
        return context.renderer.render(example, train_on=train_on)
    if isinstance(example, PromptCompletion):
        return render_completion(example, context.tokenizer, train_prompt=train_on == "all", markup=context.markup)
    if isinstance(example, Text):
        tokens = context.tokenizer.encode(example.text)
        return Rendered(tuple(tokens), (1.0,) * len(tokens))
    raise UserError(
        f"{id}: the row is {example.called}, and ft doctor loss compares cross entropy",
        action="point data.train at rows with answers, or at texts",
    )
