"""Writes the model card of a run from its files: description, data, recipe, scores, licence and limits.

The layout is that of model hubs: YAML between two lines of dashes, then Markdown
(https://huggingface.co/docs/hub/model-cards; Mitchell et al., 2019, arXiv:1810.03993).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import ModelInfo
from finetooth_recipes import yaml_text

from finetooth_saving.run_folder import RESULT, plan_of

PRIVATE = frozenset({"output", "trackers", "plugins", "export"})
"""Sections of the recipe that a card does not show: they concern the machine, and may hold keys."""


def model_card(run: Path, recipe: Mapping[str, Any], base: ModelInfo, *, adapter: bool) -> str:
    """The card of a run's trained model.

    Args:
        recipe: of the run.
        base: its base model.
        adapter: the published artifact is an adapter, not a whole model.

    Raises:
        UserError: the run's files cannot be read.
    """
    plan = plan_of(run)
    result = _read(run / RESULT)
    published = base.published or base.reference
    named = published if not Path(published).is_absolute() else Path(published).name
    hub = "" if Path(published).is_absolute() or not published else published
    licence = licence_of(base)
    method = str(plan["picks"].get("method", "")).rpartition(":")[2]
    head: dict[str, Any] = {
        **({"library_name": "peft"} if adapter else {}),
        "pipeline_tag": "text-generation",
        "tags": ["finetooth", *([method] if method else []), *(["adapter"] if adapter else [])],
    }
    if hub:
        head["base_model"] = hub
    if licence:
        head["license"] = licence
    lines = ["---", yaml_text.write_yaml(head).rstrip(), "---", "", f"# {run.name}", ""]
    kind = "An adapter for" if adapter else "A model made from"
    lines += [f"{kind} {named}, trained with {method or 'a method of its own'} by finetooth.", ""]
    lines += ["## Data", "", *_data(plan, result), "", "## Scores", "", *_scores(result), ""]
    shown = {name: value for name, value in recipe.items() if name not in PRIVATE}
    lines += ["## Recipe", "", "```yaml", yaml_text.write_yaml(_without_paths(shown)).rstrip(), "```", ""]
    lines += [f"Plan `{str(plan.get('hash', ''))[:12]}`; {_steps(result)}.", ""]
    lines += ["## Licence", "", _licence(named, licence), ""]
    lines += ["## Limits", "", *_limits(plan, result, named)]
    return "\n".join(lines).rstrip() + "\n"


def licence_of(base: ModelInfo) -> str:
    """The licence in the card in the base's folder; empty without one."""
    for folder in dict.fromkeys(path.parent for path in base.files):
        card = folder / "README.md"
        if not card.is_file():
            continue
        text = card.read_text(encoding="utf-8", errors="replace")
        _, dashes, rest = text.partition("---\n")
        if not dashes or _.strip():
            continue
        for line in rest.partition("\n---")[0].splitlines():
            name, _, value = line.partition(":")
            if name == "license":
                return value.strip().strip("'\"")
    return ""


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}", action="the run folder is damaged") from error
    return content


def _data(plan: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    """Sources of the rows and the number of used ones."""
    decided = {decision["setting"]: decision["value"] for decision in plan["decisions"]}
    reports = result.get("rows") or []
    if not reports:
        yield "The run kept no counts of its rows."
        return
    yield "| split | rows | used | tokens | trained tokens | SHA-256 |"
    yield "|---|---|---|---|---|---|"
    for report in reports:
        numbers = " | ".join(f"{report[name]:,}" for name in ("rows", "used", "tokens", "trained_tokens"))
        digest = str(decided.get(f"data.{report['split']}.sha256", ""))[:12]
        yield f"| {report['split']} | {numbers} | {f'`{digest}`' if digest else '-'} |"
    left = {
        f"{report['split']}: {count:,} {why}" for report in reports for why, count in report.get("dropped", {}).items()
    }
    if left:
        yield ""
        yield f"Left out: {'; '.join(sorted(left))}."


def _scores(result: Mapping[str, Any]) -> Iterator[str]:
    """The last value of each metric of held-out rows."""
    metrics = {name: value for name, value in result.get("metrics", {}).items() if name.startswith("eval/")}
    if not metrics:
        yield "No rows were held out, so its quality on new rows is not known."
        return
    yield "| held-out metric | value |"
    yield "|---|---|"
    for name, value in sorted(metrics.items()):
        yield f"| {name.removeprefix('eval/')} | {'-' if value is None else f'{value:.4g}'} |"


def _steps(result: Mapping[str, Any]) -> str:
    if not result:
        return "the run has no result, it may not have ended"
    return f"{result.get('status')} after {result.get('steps')} steps in {float(result.get('seconds') or 0):.0f} s"


def _licence(base: str, licence: str) -> str:
    if licence:
        return f"The base, {base}, is published under `{licence}`, whose terms apply to models made from it."
    return f"The terms of the base, {base}, apply to models made from it; no file in its folder states these terms."


def _limits(plan: Mapping[str, Any], result: Mapping[str, Any], base: str) -> Iterator[str]:
    """Limits of the model that the run itself shows."""
    longest = plan.get("train", {}).get("max_length")
    yield f"- It may have the errors and biases of {base}; nothing beyond the scores above was measured."
    if longest:
        yield f"- It was trained on sequences of at most {longest:,} tokens."
    small = [report for report in result.get("rows") or [] if report["split"] == "train" and report["used"] < 100]
    if small:
        yield f"- It was trained on {small[0]['used']:,} rows only."
    if result.get("status") not in (None, "done"):
        yield f"- The run did not finish: {result.get('reason') or result.get('status')}."


def _without_paths(value: Any) -> Any:
    """The value with only the last part of each absolute path, since folders are private."""
    if isinstance(value, Mapping):
        return {name: _without_paths(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith("/"):
        return Path(value).name
    return value
