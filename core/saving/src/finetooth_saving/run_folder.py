"""Reads a run folder: it has everything to rebuild the engine with the same choices."""

from __future__ import annotations

import json
import math
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.entries import Exporter
from finetooth_hooks.errors import PluginError, RecipeError, UserError
from finetooth_hooks.reports import Outcome
from finetooth_toolbox.files.locks import FILE as LOCK
from finetooth_toolbox.messages.openings import Opening, read_opening
from finetooth_toolbox.text.nearest import nearest_path

from finetooth_saving.names import SCRATCH

if TYPE_CHECKING:
    from finetooth_hooks.context import Catalog, Registered

ARTIFACT = "artifact"
MERGED = "merged"
"""Default folder for a model with its adapter merged."""
PLAN = "plan.json"
RECIPE = "recipe.yaml"
RESULT = "result.json"
RUN = "run.json"

OF_THE_PROCESS = ("history", "evaluations", "data")
"""Fields of an outcome that only the training process knows; they are empty for a run that had ended before."""

RUNS = Path("runs")
"""Folder of runs that are named without a folder."""

_SHOWN = 5
"""Number of runs that an error names."""

FIXED = {
    "loader": ("model", "loader"),
    "family": ("model", "family"),
    "renderer": ("data", "renderer"),
    "processor": ("data", "processor"),
    "adapter": ("adapter",),
    "quantizer": ("quantization",),
}
"""Paths in a recipe of picks that determine the meaning of the trained weights."""

ALSO_FIXED = {
    "method": ("method",),
    "optimizer": ("optimizer",),
    "schedule": ("schedule",),
    "backend": ("backend",),
}
"""Paths of picks that determine the training: a resumed run keeps them."""

DECIDED = ("precision", "micro_batch_tokens", "gradient_checkpointing")
"""Settings of `train` that a resumed run takes from its plan."""


def is_run_folder(path: Path) -> bool:
    """Whether a folder has a run's recipe and plan."""
    return (path / RECIPE).is_file() and (path / PLAN).is_file()


def is_begun(path: Path) -> bool:
    """Whether a run has begun in a folder: it has written its id, and then its recipe, before anything else. The plan
    comes after reading the data, so a killed run may lack it."""
    return is_run_folder(path) or ((path / RECIPE).is_file() and (path / RUN).is_file())


def run_at(reference: str, is_there: Callable[[Path], bool] = is_run_folder) -> Path | None:
    """The folder of a reference to a run: a path, or a name under `runs/`; None if it is not a run.

    Args:
        is_there: whether a folder counts as a run.
    """
    try:
        path = Path(reference).expanduser()
        places = [path] if len(path.parts) != 1 else [path, RUNS / path]
        return next((place for place in places if is_there(place)), None)
    except (OSError, RuntimeError, ValueError):  # too long for a path, or ~ of an unknown user
        return None


def run_of(reference: str, catalog: Catalog | None = None) -> Path | None:
    """The absolute folder of a referenced run with recipe and plan; None if it is not a run. A reference to the adapter
    in `artifact` means the run, which has more information.

    Args:
        catalog: its exporters can fetch runs that they keep (`got_back`).
    """
    reference = reference if catalog is None else got_back(reference, catalog)
    folder = run_at(reference)
    if folder is None and Path(reference).name == ARTIFACT:
        folder = run_at(str(Path(reference).parent), lambda run: is_run_folder(run) and not is_whole(run / ARTIFACT))
    return None if folder is None else folder.absolute()


def check_no_such_run(reference: str) -> None:
    """Checks that a reference under `runs/` names something that exists.

    Raises:
        RecipeError: the reference is a path under `runs/` that does not exist.
    """
    path = Path(reference)
    if path.parts[:1] != RUNS.parts or len(path.parts) < 2 or path.exists():
        return
    near, there = nearest_path(path), _there()
    listed = f"there {'is' if len(there) == 1 else 'are'} {', '.join(there[:_SHOWN])}" if there else "none is there"
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    raise RecipeError(
        "model",
        f"no such run: {reference}; {listed}{more}",
        action=f"did you mean {near.as_posix()}?" if near else "name a run, another folder, or a model",
    )


def no_such_run(reference: str) -> UserError:
    """The error for a reference that is not a run; the message recognises a recipe or a plain folder."""
    path = Path(reference)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        action = f"train it first: ft run {reference}; then name the folder of its run"
        return UserError(f"{reference} is a recipe, not a run", action=action)
    path = RUNS / path if len(path.parts) == 1 and (RUNS / path).is_dir() else path
    near = nearest_path(path, ("",)) or (nearest_path(RUNS / path) if len(path.parts) == 1 else None)
    there = _there()[-_SHOWN:]
    action = f"name one, such as {', '.join(there)}" if there else "none is here: ft run RECIPE makes one"
    action = f"did you mean {near}?" if near and near != path else action
    problem = "the folder holds no run" if path.is_dir() else "no run has this name"
    return UserError(f"{reference}: {problem}", action=action)


def _there() -> list[str]:
    return [str(folder) for folder in sorted(RUNS.glob("*")) if is_run_folder(folder)]


def got_back(reference: str, catalog: Catalog) -> str:
    """Fetch the run of a reference `NAME:REST` from the exporter NAME and return its folder on this machine; return any
    other reference unchanged.

    Raises:
        FinetoothError: the exporter does not know the run, or the fetched files differ from the exported ones.
        PluginError: two exporters have this name, or its function cannot be imported.
    """
    name, colon, rest = reference.partition(":")
    exporters = catalog.all("exporter") if colon else ()
    if not any(isinstance(r.entry, Exporter) and r.entry.name == name and r.entry.gets_back for r in exporters):
        return reference
    return str(_asked(catalog.get("exporter", name), "gets_back", rest))


def check_admitted(catalog: Catalog, recipe: Mapping[str, Any]) -> None:
    """Ask each exporter in a recipe whether it will accept the trained model.

    Raises:
        UserError: an exporter will refuse it.
        PluginError: a function cannot be imported.
    """
    for pick in recipe.get("export") or ():
        options = {"name": pick} if isinstance(pick, str) else dict(pick)
        registered = catalog.get("exporter", str(options.pop("name")))
        if getattr(registered.entry, "admits", ""):
            _asked(registered, "admits", options, recipe)


def _asked(registered: Registered, field: str, *about: Any) -> Any:
    """Call the function that a field of an exporter's entry names."""
    module, _, function = getattr(registered.entry, field).partition(":")
    try:
        return getattr(import_module(module), function)(*about)
    except (ImportError, AttributeError) as error:
        problem = f"exporter {registered.entry.name!r}: {field}: {error}"
        raise PluginError(registered.distribution, problem, action="report it to the plugin's author") from error


def check_output(reference: str, output: Path | None) -> None:
    """Check that files made from a run have a target folder.

    Raises:
        UserError: an exporter keeps the run elsewhere, so it has no local folder for them.
    """
    if output is None and ":" in reference and not Path(reference).exists() and run_of(reference) is None:
        raise UserError(f"{reference} is kept elsewhere", action="name the folder to write with --output")


def is_whole(artifact: Path) -> bool:
    """Whether an artifact is a whole model, not an adapter."""
    return (artifact / "config.json").is_file()


def started_in(folder: Path) -> Path | None:
    """The folder in which a run was started, the start of relative paths in its recipe; None if it is the current
    folder, unknown, or deleted."""
    try:
        place = Path(json.loads((folder / RUN).read_text(encoding="utf-8"))["started_in"])
        return place if place.is_dir() and not place.samefile(Path.cwd()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def decided_so_far(folder: Path) -> Mapping[str, Any]:
    """The plan of a run that has begun; a plan without decisions if it was killed before the first decision.

    Raises:
        UserError: the plan cannot be read.
    """
    return plan_of(folder) if (folder / PLAN).exists() else {"picks": {}, "options": {}, "train": {}}


def plan_of(folder: Path) -> Mapping[str, Any]:
    """The plan that a run wrote.

    Raises:
        UserError: the plan cannot be read.
    """
    try:
        plan: Mapping[str, Any] = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        _ = plan["picks"].items(), plan["options"].items(), plan["train"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / PLAN}: cannot be read: {error}", action="the run folder is damaged") from error
    return plan


def as_decided(recipe: dict[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe for a resumed run: open settings have the plan's decisions, so that `auto` never decides twice."""
    recipe = json.loads(json.dumps(recipe, default=str))
    if isinstance(recipe.get("model"), str):
        recipe["model"] = {"name": recipe["model"]}
    for kind, path in (FIXED | ALSO_FIXED).items():
        if kind in plan["picks"] and _left_open(recipe, path):
            fix_pick(recipe, path, plan["picks"][kind], plan["options"].get(kind, {}))
    if recipe.get("quantization") == "auto" and plan["picks"]:  # the plan decided against quantization
        recipe["quantization"] = None
    train = recipe.setdefault("train", {})
    for name in DECIDED:
        if train.get(name, "auto") == "auto" and plan["train"].get(name) is not None:
            train[name] = plan["train"][name]
    return recipe


def run_id(folder: Path) -> str:
    """The id of a run, the same over all its resumes; empty for a folder without one.

    Raises:
        UserError: the file cannot be read.
    """
    if not (folder / RUN).exists():
        return ""
    try:
        return str(json.loads((folder / RUN).read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / RUN}: cannot be read: {error}", action="remove it") from error


def status_of(folder: Path) -> str:
    """The status of a run from result.json; `unfinished` without one."""
    try:
        return str(json.loads((folder / RESULT).read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unfinished"


def outcome_of(folder: Path) -> Outcome | None:
    """The outcome of a run from result.json; None if it is missing or unreadable."""
    try:
        content = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        values = {
            field.name: content[field.name]
            for field in fields(Outcome)
            if field.name not in OF_THE_PROCESS and (_is_required(field) or field.name in content)
        }
        numbers = {
            group: {name: math.nan if value is None else float(value) for name, value in values[group].items()}
            for group in ("metrics", "best")
        }
        artifact = folder / values["artifact"] if values["artifact"] else None
        return Outcome(**{**values, **numbers, "artifact": artifact})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def check_unused(folder: Path) -> None:
    """Checks that a new run can use the folder.

    Raises:
        UserError: the folder is not empty, or cannot be made.
    """
    if folder.exists() and not is_unused(folder):
        if not is_begun(folder):
            raise UserError(
                f"output: {folder} exists and is not an empty folder",
                action="choose another output; nothing was changed",
            )
        status = status_of(folder)
        resume = "" if status in ("done", "stopped") else f"resume it: ft resume {folder}; or "
        raise UserError(
            f"output: {folder} already holds a run that is {status}",
            action=f"{resume}choose another output, or remove it: ft runs rm {folder}; nothing was changed",
        )
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    probe = existing / f".finetooth-{secrets.token_hex(4)}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(
            f"output: {existing} cannot be written: {error.strerror}", action="choose another output"
        ) from error


def is_unused(folder: Path) -> bool:
    """Whether a folder is empty, or has only files of a run that was killed before it had begun."""
    return folder.is_dir() and all(_is_beginning(path) for path in folder.iterdir())


def _is_beginning(path: Path) -> bool:
    """Whether a file may remain from a run that was killed at its start: it writes the recipe, without which it does
    not count, last."""
    return path.name in (PLAN, RUN, LOCK) or path.name.startswith((f".{PLAN}.", f".{RUN}.", f".{RECIPE}."))


def _left_open(recipe: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """Whether a pick leaves its choice to the plan."""
    value: Any = recipe
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value is None or (value if isinstance(value, str) else value.get("name")) == "auto"


def artifact_of(folder: Path) -> Path:
    """The trained weights of a run, every file checked against the manifest.

    Raises:
        UserError: the run has no artifact, or a file is damaged.
    """
    from finetooth_saving.artifact import verify_folder

    artifact = folder / ARTIFACT
    if not artifact.is_dir():
        action = f"see {folder / RESULT} for how it ended"
        if not (folder / RESULT).exists():
            action = f"it has not ended: wait for it, or, if it was killed, ft resume {folder}"
        raise UserError(f"{folder}: the run kept no artifact", action=action)
    verify_folder(artifact)
    return artifact


def opening_of(reference: str) -> Opening:
    """The common beginning of nearly all training rows of a run, an adapter or a model in a folder; empty for other
    references.

    Raises:
        UserError: the file with the beginning is damaged.
    """
    run = run_of(reference)
    return read_opening(Path(reference).expanduser() if run is None else run / ARTIFACT)


def fix_pick(recipe: dict[str, Any], path: tuple[str, ...], full_name: str, options: Mapping[str, Any]) -> None:
    """Set a pick with all its options in a recipe; a name from the user stays."""
    holder = recipe
    for key in path[:-1]:
        holder = holder.setdefault(key, {})
    pick = holder.get(path[-1], "auto")
    name = pick if isinstance(pick, str) else pick["name"]
    if name == "auto":
        source, _, bare = full_name.rpartition(":")
        name = bare if source.endswith(".py") else full_name  # the name of a local file depends on the recipe's folder
    holder[path[-1]] = {"name": name, **options}


def scratch(folder: Path, *, resumes: bool) -> Path:
    """A separate folder for a rank that does not write to the run folder; a copy of the run folder if the run
    resumes."""
    own = Path(tempfile.mkdtemp(prefix=SCRATCH)) / folder.name
    if resumes:
        shutil.copytree(folder, own, ignore=shutil.ignore_patterns("*.lock", "exports", "artifact"))
    return own
