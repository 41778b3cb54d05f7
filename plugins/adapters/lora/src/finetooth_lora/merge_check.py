"""What a merged folder is worth: the run's own evaluators measure it beside the run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks import CommandContext, UserError

if TYPE_CHECKING:
    from finetooth_hooks import Evaluation

    from finetooth_lora.merge import Merge

KEPT = ("data", "train", "method", "backend", "hardware", "kernels", "plugins")
"""Sections of the run's recipe that what is measured is measured with."""


def compare(obj: CommandContext, merge: Merge, recipe: Mapping[str, Any], written: Path, bound: float) -> str:
    """Measure a run and what was merged of it with the first of the run's evaluators.

    Args:
        recipe: of the run.
        written: the merged folder.
        bound: by how much the first metric may be worse.

    Returns:
        A line that says what was found.

    Raises:
        UserError: it is worse by more.
    """
    picks = evaluators_of(merge.recipe, recipe)
    if not picks:
        return "not measured: the run has no evaluator (data.eval, evaluate.evaluators)"
    assert isinstance(merge.recipe, Path)
    kept = {name: recipe[name] for name in KEPT if recipe.get(name) is not None}
    before = _measure(obj, str(merge.recipe.parent), {}, picks[0])
    after = _measure(obj, str(written), {**kept, "quantization": None}, picks[0])
    name = next(iter(before.metrics))
    was, now = before.metrics[name], after.metrics[name]
    worse = was - now if before.higher_is_better else now - was
    said = f"{before.name}: {name} {was:.4f} of the run, {now:.4f} of what was written"
    if not worse <= bound:
        raise UserError(
            f"{said}: worse by {worse:.4f}, and --bound is {bound:g}; nothing was kept",
            action="merge it --to plain, keep the adapter beside its base, or raise --bound",
        )
    return said


def evaluators_of(file: Path | Mapping[str, Any], recipe: Mapping[str, Any]) -> list[Any]:
    """What a run measured itself with."""
    if not isinstance(file, Path) or not (recipe.get("data") or {}).get("eval"):
        return []
    given = (recipe.get("evaluate") or {}).get("evaluators")
    if isinstance(given, list | tuple):
        return list(given)
    plan = file.parent / "plan.json"
    picks = json.loads(plan.read_text(encoding="utf-8")).get("picks", {}) if plan.is_file() else {}
    return [picks[name] for name in sorted(picks) if name.startswith("evaluator.")]


def _measure(obj: CommandContext, reference: str, changes: Mapping[str, Any], pick: Any) -> Evaluation:
    opened = obj.open(reference, changes)
    evaluator = opened.context.build("evaluator", pick, setting="evaluate.evaluators")
    evaluator.prepare()
    found: Evaluation = evaluator.evaluate(opened.engine, 0)
    return found
