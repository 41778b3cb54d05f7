"""From a run folder or URL to the checkpoint that a run resumes from, and what has changed since."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.errors import FinetoothError, RecipeError, UserError
from finetooth_saving.artifact import write_json, write_text
from finetooth_saving.found_checkpoints import (
    NoCheckpoint,
    Resumable,
    content_changes,
    differences,
    fetch,
    newest_good,
    newest_step,
    read,
    versions,
)
from finetooth_saving.names import FOLDER, name_of, newest_first, step_of
from finetooth_saving.run_folder import PLAN, RECIPE, RUN, is_begun, is_unused, no_such_run, run_at, started_in
from finetooth_saving.run_state import Resumed
from finetooth_toolbox.files.own_python import check_own

from finetooth_core.checkpoints import comparison
from finetooth_core.checkpoints.keeping import keeping_of, store_of

if TYPE_CHECKING:
    from finetooth_hooks.plan import Plan
    from finetooth_saving.keeper import Keeping

    from finetooth_core.planning.context import RunContext
    from finetooth_core.plugins.manager import Plugins
    from finetooth_core.settings.recipe import Recipe


@dataclass(frozen=True)
class Resuming:
    """How a run shall resume.

    Attributes:
        at: the step of the checkpoint; None: the newest.
        accept_changes: resume even if the recipe, the data or the model have changed.
        strict: resume only with the same versions.
        overrides: of the run's own recipe; None: another recipe replaces it.
    """

    at: int | None = None
    accept_changes: bool = False
    strict: bool = False
    overrides: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ThisRun:
    """The current state of a run, before it resumes.

    Attributes:
        folder: of the run.
        run_id: of the run; empty if unknown.
        recipe, plan, keeping: the current ones.
        plugins: loaded.
        say: prints one line for the user.
    """

    folder: Path
    run_id: str
    recipe: Recipe
    plan: Plan
    keeping: Keeping
    plugins: Plugins
    say: Callable[[str], None]


def from_url(
    url: str,
    output: str | None,
    *,
    at: int | None = None,
    plugins: Sequence[str] = (),
    blocked: Sequence[str] = (),
    say: Callable[[str], None],
) -> Path:
    """Download the newest complete checkpoint of a run into a new run folder; return the folder.

    Args:
        at: its step; None: the newest.

    Raises:
        UserError: there is none, or no complete one; or the folder is in use.
    """
    store = open_store(url, plugins=plugins, blocked=blocked)
    folder = Path(output) if output is not None else Path("runs") / url.rstrip("/").rpartition("/")[2]
    if is_begun(folder):
        return folder  # already downloaded: resuming finds newer ones
    if folder.exists() and not (folder.is_dir() and all(path.name == FOLDER for path in folder.iterdir())):
        raise UserError(f"output: {folder} exists and is not an empty folder", action="choose another with --output")
    there = newest_first(store.names())
    names = [name for name in there if at is None or step_of(name) == at]
    if there and not names:
        raise UserError(f"{url} has no {name_of(at or 0)}", action=f"there are: {', '.join(there)}")
    for name in names:
        try:
            checkpoint = read(fetch(store, name, folder / FOLDER))
        except FinetoothError as error:
            say(f"{name} cannot be used: {error.problem}")
            continue
        write_text(folder / RECIPE, checkpoint.recipe.read_text(encoding="utf-8"))
        write_json(folder / PLAN, checkpoint.plan)
        write_json(folder / RUN, {"id": checkpoint.manifest["run"], "started_in": str(Path.cwd())})
        return folder
    if names:
        problem = f"no checkpoint is whole, {len(names)} cannot be used"
        raise UserError(f"{url}: {problem}", action=f"see: ft checkpoint verify {url}")
    raise UserError(f"{url} holds no checkpoint", action="check the URL: it is the one in checkpoint.stores")


def open_store(url: str, *, plugins: Sequence[str] = (), blocked: Sequence[str] = ()) -> Any:
    """The store that knows a URL.

    Raises:
        UserError: no store knows it, or the URL is invalid.
    """
    from finetooth_core.planning.context import RunContext
    from finetooth_core.plugins import manager
    from finetooth_core.settings.recipe import load

    started = manager.start(files=plugins, blocked=blocked)
    context = RunContext(load({"model": "none"}), started.catalog, Path("runs"), started)
    if not any(claim is not None and claim(url) is not None for claim in _claims(context)):
        raise UserError(f"{url}: no store that is installed knows this address", action="see: ft plugins list")
    try:
        return store_of(context, url, "checkpoint.stores")[1]
    except RecipeError as error:  # the address is on the command line, in no recipe
        raise UserError(error.problem.removeprefix(f"{error.setting}: "), action=error.action) from error


def disk_of(run: Path, *, plugins: Sequence[str] = (), blocked: Sequence[str] = ()) -> Path | None:
    """The local checkpoint stores of a run's recipe; None if it has none.

    Raises:
        UserError: the recipe cannot be read, or one of its stores is missing.
    """
    from finetooth_core.planning.context import RunContext
    from finetooth_core.plugins import manager
    from finetooth_core.settings.recipe import load

    recipe = load(run / RECIPE)
    if isinstance(recipe.checkpoint.stores, str):
        return None
    check_own(recipe.as_dict(), recipe.folder, str(run))
    files = load(run / RECIPE, plugins=plugins).plugins
    started = manager.start(files=files, blocked=blocked, base=recipe.folder)
    run, place = run.absolute(), started_in(run)
    with nullcontext() if place is None else chdir(place):  # stores are where the run found them
        context = RunContext(recipe, started.catalog, run, started)
        for index, pick in enumerate(recipe.checkpoint.stores):
            entry, store = store_of(context, pick, f"checkpoint.stores.{index}")
            if entry.tier == "disk":
                return Path(store.place).absolute()
    return None


def _claims(context: RunContext) -> Iterator[Callable[[str], object] | None]:
    for registered in context.catalog.all("store"):
        yield getattr(registered.entry, "claims", None)


def find(present: ThisRun, resuming: Resuming) -> Resumable:
    """The checkpoint from which a run resumes: the newest in its stores, or in its previous ones, since a run may move.

    Raises:
        NoCheckpoint: there is none.
        UserError: none is complete.
    """
    from finetooth_core.planning.context import RunContext
    from finetooth_core.settings.recipe import load

    own = present.keeping
    places = [own]
    recipe = load(present.folder / RECIPE)
    if recipe.checkpoint.stores != present.recipe.checkpoint.stores:
        try:
            places.append(keeping_of(RunContext(recipe, present.plugins.catalog, present.folder, present.plugins)))
        except FinetoothError as error:
            present.say(f"the stores that the run used before do not answer: {error}")
    *others, last = sorted(places, key=lambda place: -newest_step(place))
    for place in others:
        with suppress(NoCheckpoint):
            return newest_good(place, present.run_id, present.say, resuming.at, sends=place is own)
    return newest_good(last, present.run_id, present.say, resuming.at, sends=last is own)


def check(
    present: ThisRun,
    resuming: Resuming,
    checkpoint: Resumable,
    *,
    stands_on: Mapping[str, Any],
    environment: Mapping[str, str],
) -> Resumed:
    """Compare the run with the current state; return what to record.

    Args:
        stands_on: hashes of what the run was made from, as a manifest has them.
        environment: on which the numbers depend, besides the plan.

    Raises:
        UserError: a change affects finished steps and was not accepted; versions differ and the run is strict; or the
            run has done more steps than now planned.
    """
    from finetooth_core.settings.recipe import load

    before = load(checkpoint.recipe)
    changes = comparison.compare(before, present.recipe, present.plugins.catalog, checkpoint.plan)
    changes = comparison.with_moved_base(changes, checkpoint.manifest.get("base", {}), stands_on["base"])
    data, parts = differences(checkpoint.plan, present.plan)
    now = {"plugins": present.plugins.versions, "environment": environment}
    grave = (*changes.grave, *data, *content_changes(checkpoint.manifest, {**stands_on, **now}))
    if grave and not resuming.accept_changes:
        raise UserError(
            f"{present.folder}: the recipe no longer matches what was trained: {'; '.join(grave)}",
            action="undo the change, start a new run, or accept it with --accept-changes",
        )
    others = (*versions(checkpoint.manifest, now), *parts)
    if others and resuming.strict:
        raise UserError(
            f"{present.folder}: versions differ from those that the run started with: {'; '.join(others)}",
            action="install those, or set checkpoint.strict=false",
        )
    for change in changes.harmless:
        if not change.startswith("output: "):  # the folder was moved, which one sees
            present.say(f"changed: {change}")
    for change in grave:
        present.say(f"changed and accepted: {change}")
    if others:
        present.say(f"versions changed: {'; '.join(others)}; results may differ from those of the earlier steps")
    total, planned = present.plan.total_steps, checkpoint.plan.get("total_steps")
    if total is not None and total < checkpoint.state.step:
        raise UserError(
            f"{present.folder}: train.max_steps and train.epochs make {total} steps in all, and the run has done "
            f"{checkpoint.state.step}; nothing was changed",
            action="set more steps, or resume from an earlier checkpoint with --at STEP: ft checkpoint list",
        )
    if total != planned and planned is not None:
        present.say(
            f"the run has {total} steps now, it had {planned}; a schedule over the whole run follows the new number"
        )
    return Resumed(checkpoint.state.step, grave, changes.harmless, others)


def begun_folder(path: Path, at: int | None) -> tuple[Path, int | None]:
    """The folder of a run that has begun, and the step if the path is one of its checkpoints.

    Args:
        path: of either; or a run's name under `runs/`.

    Raises:
        UserError: there is none.
    """
    folder = run_at(str(path), is_begun)
    if folder is not None and step_of(path.name) is None:
        return folder, at
    step = step_of(path.name)
    if step is not None and path.parent.name == FOLDER and is_begun(path.parent.parent):
        return path.parent.parent, step
    if path.is_dir() and is_unused(path):
        raise UserError(
            f"{path}: no run has begun there; it was stopped before it had written its recipe",
            action="start it again with ft run",
        )
    if path.is_dir():
        raise UserError(f"{path} is not a run folder: it has no {RECIPE} and {RUN}", action="give the folder of a run")
    raise no_such_run(str(path))
