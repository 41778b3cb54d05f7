"""Finds the adapted modules: from the recipe's targets to module paths of the model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import ModelFacts
from finetooth_toolbox.llama_shape import targeted
from finetooth_toolbox.text.nearest import nearest_few

SETTING = "adapter.targets"
WRAPPED = ".linear"
"""How a wrapper calls the linear module in it."""


@dataclass(frozen=True)
class Targets:
    """Chosen modules.

    Attributes:
        modules: their paths in the model, in the model's order.
        spelling: the same choice as peft's `target_modules`: names that end a path, or one pattern for whole paths.
    """

    modules: tuple[str, ...]
    spelling: tuple[str, ...] | str


def matching(target: str, paths: Iterable[str]) -> list[str]:
    """Paths that `target` means: those that end in it, else those that it matches whole as a regular expression, else
    those that end in it but for what wrappers call the linear module in them, as Gemma 4's towers do
    (`q_proj.linear`). An expression may match a wrapper's path, too.

    Raises:
        RecipeError: it ends none, and is not a regular expression.
    """
    paths = list(paths)
    named = [path for path in paths if targeted(path, (target,))]
    if named:
        return named
    try:
        pattern = re.compile(target)
    except re.error as error:
        raise RecipeError(
            SETTING,
            f"{target!r} is neither the name of a module nor a regular expression: {error}",
            action=f"fix the expression, or name modules as their paths end: {_alike(target, paths)}",
        ) from None
    whole = [path for path in paths if pattern.fullmatch(path) or pattern.fullmatch(path.removesuffix(WRAPPED))]
    return whole or [path for path in paths if targeted(path.removesuffix(WRAPPED), (target,))]


def resolve(
    targets: str | Sequence[str], facts: ModelFacts, paths: Sequence[str], others: Sequence[str] = ()
) -> Targets:
    """Find the modules that carry the adapter.

    Args:
        targets: `all-linear`, `attention`, or names and regular expressions. A name means modules of what reads images
            or sound only if nothing else has it.
        paths: of all modules that can carry one.
        others: of modules that cannot, whose names the spelling must not mean either.

    Raises:
        RecipeError: a target matches nothing; names the nearest modules.
    """
    if targets == "all-linear" or targets == "attention":
        names = facts.linear_targets if targets == "all-linear" else facts.attention_targets
        layers = f"{facts.layer_path}."
        candidates = [path for path in paths if path.startswith(layers)]
    else:
        names, candidates = tuple(targets), list(paths)
    chosen: set[str] = set()
    towers = tuple(f"{path}." for path in facts.towers)
    for name in names:
        matches = matching(name, [path for path in candidates if not path.startswith(towers)])
        matches = matches or matching(name, candidates)
        if not matches:
            raise _nothing(name, paths)
        chosen.update(matches)
    if not chosen:
        raise RecipeError(SETTING, f"{targets!r} names no module of this model", action="give module names instead")
    return Targets(tuple(path for path in paths if path in chosen), _spelling(names, chosen, (*paths, *others)))


def peft_spelling(targets: Targets) -> str | list[str]:
    """As peft's `target_modules` takes the choice."""
    return targets.spelling if isinstance(targets.spelling, str) else list(targets.spelling)


def _spelling(names: Sequence[str], chosen: set[str], paths: Sequence[str]) -> tuple[str, ...] | str:
    """Names if they mean the same modules to peft (which knows no scope), else a pattern that does."""
    by_name = {path for path in paths if targeted(path, names)}
    if by_name == chosen:
        return tuple(sorted(set(names)))
    # layer numbers are all that differ between the paths of one kind of module: fold them into a short pattern
    shapes = sorted({re.sub(r"\.\d+(?=\.)", r".\\d+", path) for path in chosen})
    folded = "|".join(shape.replace(".", r"\.").replace(r"\\.", ".") for shape in shapes)
    if {path for path in paths if re.fullmatch(folded, path)} == chosen:
        return folded
    return "|".join(re.escape(path) for path in paths if path in chosen)


def _nothing(target: str, paths: Sequence[str]) -> RecipeError:
    reason = ""
    if target.rpartition(".")[2] in ("conv", "conv1d"):  # the first of LFM2
        reason = ". Layers of Mamba and linear attention read the weight of their convolution and do not call the "
        reason += "module, so an adapter on it would have no effect"
    return RecipeError(
        SETTING,
        f"{target!r} matches no linear module of the model{reason}; nearest: {_alike(target, paths)}",
        action="give names that end a module's path, or regular expressions of whole paths",
    )


def _alike(target: str, paths: Sequence[str]) -> str:
    """The names of modules that are nearest to a target, or some of all."""
    names = sorted({path.rsplit(".", 1)[-1] for path in paths})
    return ", ".join(nearest_few(target, names, 3) or names[:8]) or "none"
