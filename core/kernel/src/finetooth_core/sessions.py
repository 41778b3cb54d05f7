"""Sessions from a recipe, or from a run that resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from finetooth_hooks.errors import RecipeError, UserError
from finetooth_saving import names
from finetooth_saving.given import keep_values
from finetooth_saving.run_folder import RECIPE, as_decided, decided_so_far, is_begun, started_in
from finetooth_toolbox.files.own_python import check_own, consented, record_own

from finetooth_core.plugins.collector import paused_collector
from finetooth_core.session import Session, in_folder

if TYPE_CHECKING:
    from finetooth_core.settings.recipe import Recipe
    from finetooth_core.started import Started


@paused_collector()  # pydantic and every plugin's top-level module are imported here
def session(
    recipe: Path | str | Mapping[str, Any] | Recipe, *overrides: str, plugins: Sequence[str] = (),
    blocked: Sequence[str] = (), say: Callable[[str], None] | None = None, data: bool = True,
    started: Started | None = None,
) -> Session:  # fmt: skip
    """Load a recipe and its plugins.

    Example:
        >>> finetooth.session("recipe.yaml", "train.max_steps=10").plan  # doctest: +SKIP

    Args:
        recipe: a file, or the recipe as a mapping or a `finetooth.Recipe`: rows and functions in it are kept as files,
            see `finetooth_saving.given`.
        overrides: `"section.key=value"`, each an argument of its own.
        plugins: further local files or modules, as `--plugins` takes them; the recipe names them from now on.
        blocked: distributions that must not be loaded.
        data: see `Session`.
        started: plugins that this process has found already; None looks for them.

    Raises:
        RecipeError, PluginError: something is wrong with it.
    """
    from finetooth_core.settings.recipe import load
    from finetooth_core.started import Started

    kept = keep_values(recipe)
    loaded = load(kept, _texts(overrides), plugins=plugins)
    if not isinstance(kept, Mapping) and is_begun(Path(kept).parent):
        check_own(load(kept).as_dict(), loaded.folder, str(kept))
    name = "run" if isinstance(kept, Mapping) else Path(kept).stem
    started_plugins = (started or Started()).start(files=loaded.plugins, blocked=blocked, base=loaded.folder)
    return Session(loaded, started_plugins, name=name, say=say, data=data)


def resume_session(
    run: Path | str, *overrides: str, recipe: Path | str | Mapping[str, Any] | None = None,
    plugins: Sequence[str] = (), blocked: Sequence[str] = (), at: int | None = None, accept_changes: bool = False,
    strict: bool = False, output: str | None = None, say: Callable[[str], None] | None = None,
) -> Session:  # fmt: skip
    """A session that continues a run.

    Args:
        run: its folder or its name under `runs/`, one of its checkpoints, or the URL that its checkpoints were sent to,
            or of one of them. Relative paths in its recipe are of the folder that it was started in.
        recipe: in place of the run's own.
        output: the run folder for what comes from a URL.

    Raises:
        UserError: no run has this name, it left nothing to resume from, or its recipe names Python that no run of this
            machine has named.
    """
    from finetooth_recipes.overrides import absolute_files
    from finetooth_saving.names import split_url

    from finetooth_core.checkpoints.resuming import Resuming, begun_folder, from_url
    from finetooth_core.settings.recipe import load

    say = say or (lambda line: None)
    if "://" in str(run):
        url, at = split_url(str(run), at)
        folder = from_url(url, output, at=at, plugins=plugins, blocked=blocked, say=say)
    else:
        folder, at = begun_folder(Path(run), at)
        if output is not None:
            raise UserError(f"{folder}: a run on this machine resumes in its folder", action="leave --output out")
    place, files = started_in(folder) if recipe is None else None, absolute_files(plugins)
    if place is not None:
        folder = folder.absolute()
        say(f"relative paths begin at {place}, where the run was started")
    with in_folder(place):
        own = load(folder / RECIPE if recipe is None else recipe, _texts(overrides), plugins=files)
        if recipe is None:
            check_own(load(folder / RECIPE).as_dict(), own.folder, str(folder))
        if not consented():  # consent is for one command
            record_own(own.as_dict(), own.folder)
        decided = as_decided(own.anchored(), decided_so_far(folder))
        decided["output"] = str(folder)
        decided["model"]["name"] = own.dump_model_name()
        resumed = session(decided, blocked=blocked, say=say)
    resumed.plugins.catalog.missing = _missing(folder, resumed.plugins.versions)
    resumed.place = place
    overridden = None if recipe is not None else overrides
    resumed.resuming = Resuming(at, accept_changes, strict or resumed.recipe.checkpoint.strict, overridden)
    return resumed


def _missing(run: Path, present: Mapping[str, str]) -> dict[str, str]:
    """Plugins that the run's newest checkpoint names and that are not there, with their versions; of a file its
    SHA-256."""
    manifests = (run / names.FOLDER).glob("step-*/manifest.json")
    try:
        newest = max(manifests, key=lambda file: file.stat().st_mtime)
        versions = json.loads(newest.read_bytes())["plugins"]
    except (OSError, ValueError, KeyError):  # nothing was saved yet, or what is damaged is named when it is read
        return {}
    return {name: version for name, version in versions.items() if name not in present}


def _texts(overrides: tuple[object, ...]) -> tuple[str, ...]:
    """The overrides, each a text.

    Raises:
        RecipeError: an override is not a text, such as a list of several.
    """
    for override in [override for override in overrides if not isinstance(override, str)]:
        problem = f"an override is a text, section.key=value; this is {override!r}"
        raise RecipeError("", problem, action="give each override as an argument of its own")
    return cast(tuple[str, ...], overrides)
