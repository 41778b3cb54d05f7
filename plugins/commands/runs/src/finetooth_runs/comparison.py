"""In what runs differ, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetooth_saving.run_folder import ALSO_FIXED, FIXED
from finetooth_saving.runs.recorded import Recorded

UNLIKE = ("output",)
"""Settings that always differ and change nothing."""


def differences(runs: Sequence[Recorded]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with the value of each run, None where it sets none. The decisions of
    the plans count too (`train.precision`), and two ways to say one thing are the same: `adapter: lora`,
    `adapter: {name: lora}`, and nothing where the plan takes it by itself, as where a resume wrote down defaults."""
    each = [_settings(run.plan) for run in runs]
    names = sorted({name for settings in each for name in settings if name.split(".")[0] not in UNLIKE})
    each = [{**_options(run.plan), **settings} for run, settings in zip(runs, each, strict=True)]
    rows = {name: [settings.get(name) for settings in each] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}


def results(runs: Sequence[Recorded]) -> dict[str, list[float | None]]:
    """Steps, time, last and best metrics, None where a run has none."""
    rows: dict[str, list[float | None]] = {
        "steps": [float(run.step) for run in runs],
        "seconds": [round(run.seconds, 1) for run in runs],
    }
    lasts, bests = [run.last for run in runs], [run.best for run in runs]
    rows |= {f"last {name}": [last.get(name) for last in lasts] for name in sorted({n for last in lasts for n in last})}
    rows |= {f"best {name}": [best.get(name) for best in bests] for name in sorted({n for best in bests for n in best})}
    return rows


def _settings(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What the plan decided and the recipe set, by setting; of an entry that both name, the plan's name, which says
    whose it is, and for `auto` what the plan decided."""
    decided, written = _decided(plan), flat(plan.get("recipe", {}))
    named = {name for name in written.keys() & decided if written[name] in ("auto", _short(decided[name]))}
    return {**decided, **{name: value for name, value in written.items() if name not in named}}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested settings by their path, `train.seed`; an item of a list by its index, and the name of what a section picks
    by the section, as where nothing else of it is set."""
    if isinstance(value, Mapping):
        settings: dict[str, Any] = {}
        for key, item in value.items():
            settings |= flat(item, path if key == "name" and path else f"{path}.{key}".strip("."))
        return settings
    if isinstance(value, list):
        return {
            name: content for index, item in enumerate(value) for name, content in flat(item, f"{path}.{index}").items()
        }
    return {path: value}


def _options(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the plan's picks by setting, with the defaults."""
    options = plan.get("options", {})
    return {
        name: value
        for kind, path in (FIXED | ALSO_FIXED).items()
        for name, value in flat(options.get(kind, {}), ".".join(path)).items()
    }


def _short(name: Any) -> str:
    """The name of an entry without its distribution."""
    return str(name).rpartition(":")[2]


def _decided(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Decisions of a plan by setting; the rest of the settings of a pick are in the recipe."""
    return {str(decision.get("setting")): decision.get("value") for decision in plan.get("decisions", [])}
