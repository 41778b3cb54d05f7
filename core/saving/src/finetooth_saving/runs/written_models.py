"""Measures a written model with the run's own evaluators, under the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks import CommandContext, UserError
from finetooth_toolbox.cli.working import working

if TYPE_CHECKING:
    from finetooth_hooks import Evaluation

KEPT = ("data", "train", "method", "backend", "hardware", "kernels", "plugins")
"""Sections of the run's recipe that apply to the measurement."""
UNMEASURED = "not measured: the run has no evaluator (data.eval, evaluate.evaluators)"


def compare(
    commands: CommandContext, run: Path, recipe: Mapping[str, Any], written: Path, bound: float, *, action: str
) -> str:
    """Measure a run and the model written from it with the run's first evaluator.

    Args:
        run: its folder.
        recipe: of the run, paths absolute.
        written: a folder or a file that a loader reads as a whole model.
        bound: largest allowed worsening of the first metric.
        action: the next action if it is exceeded.

    Returns:
        A line with the result.

    Raises:
        UserError: the written model is worse by more than the bound, or cannot be measured.
    """
    picks = evaluators_of(run, recipe)
    if not picks:
        return UNMEASURED
    settings = {name: recipe[name] for name in KEPT if recipe.get(name) is not None}
    before = _measure(commands, "the run", str(run), {}, picks[0])
    after = _measure(commands, "what was written", str(written), {**settings, "quantization": None}, picks[0])
    name = next(iter(before.metrics))
    was, now = before.metrics[name], after.metrics[name]
    worse = was - now if before.higher_is_better else now - was
    line = f"{before.name}: {name} {was:.4f} of the run, {now:.4f} of the written model"
    if not worse <= bound:
        raise UserError(f"{line}: worse by {worse:.4f}, and --bound is {bound:g}; nothing was kept", action=action)
    return line


def evaluators_of(run: Path, recipe: Mapping[str, Any]) -> list[Any]:
    """The evaluators of a run."""
    if not (recipe.get("data") or {}).get("eval"):
        return []
    listed = (recipe.get("evaluate") or {}).get("evaluators")
    if isinstance(listed, list | tuple):
        return list(listed)
    plan = run / "plan.json"
    picks = json.loads(plan.read_text(encoding="utf-8")).get("picks", {}) if plan.is_file() else {}
    return [picks[name] for name in sorted(picks) if name.startswith("evaluator.")]


def _measure(commands: CommandContext, what: str, reference: str, changes: Mapping[str, Any], pick: Any) -> Evaluation:
    with working(f"measuring {what}"):
        opened = commands.open(reference, changes)
        evaluator = opened.context.build("evaluator", pick, setting="evaluate.evaluators")
        evaluator.prepare()
        evaluation: Evaluation = evaluator.evaluate(opened.engine, 0)
        return evaluation
