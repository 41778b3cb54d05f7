"""A recipe from Python: `finetooth.run(recipe)`, `finetooth.engine(recipe)`; the command line goes through the same
`Session`."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_hooks.errors import UserError
from finetooth_hooks.plan import Plan
from finetooth_hooks.reports import DataReport, Evaluation, Outcome

from finetooth_core.collector import paused_collector

if TYPE_CHECKING:
    from finetooth_hooks.engine import Engine

    from finetooth_core.manager import Plugins
    from finetooth_core.plan import Job
    from finetooth_core.recipe import Recipe

RESULT = "result.json"
RECIPE = "recipe.yaml"
PLAN = "plan.json"


class Session:
    """One recipe, from plan to outcome. Each part is made when it is first asked for.

    Args:
        recipe: checked.
        plugins: loaded.
        name: what the run folder is named after when the recipe gives no `output`.
        say: tells the user one line; default: nobody.
        data: False when the caller drives the engine with data of its own; nothing is read then, and `run` is not
            possible.
    """

    def __init__(
        self,
        recipe: Recipe,
        plugins: Plugins,
        *,
        name: str = "run",
        say: Callable[[str], None] | None = None,
        data: bool = True,
    ) -> None:
        self.data = data
        self.recipe = recipe
        self.plugins = plugins
        self.say = say or (lambda line: None)
        self.folder = Path(recipe.output) if recipe.output else _unused(Path("runs") / f"{name}-{_now()}")
        self.losses: list[float] = []
        self.evaluations: list[Evaluation] = []

    @cached_property
    def job(self) -> Job:
        """The decided run: options, data and plan; no weights yet."""
        from finetooth_core.context import RunContext
        from finetooth_core.plan import decide

        for plugin in self.plugins.events:
            if plugin.named_by_user:
                _ = plugin.options  # wrong or missing options of a plugin the user named are found before anything else
        context = RunContext(self.recipe, self.plugins.catalog, self.folder, self.plugins)
        return decide(context, self.plugins.versions, data=self.data)

    @property
    def plan(self) -> Plan:
        """Every decision with its reason."""
        return self.job.plan

    @property
    def reports(self) -> tuple[DataReport, ...]:
        """What became of the rows, by split."""
        return self.job.reports

    @cached_property
    def engine(self) -> Engine:
        """The engine, weights loaded."""
        job = self.job
        with paused_collector():
            engine = job.backend.engine(job.request)
        engine.set_total_steps(job.prepared.total_steps or self.recipe.train.max_steps)
        return engine

    def check_output(self) -> None:
        """
        Raises:
            UserError: the run folder already holds something, or cannot be made.
        """
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            what = "already holds a run" if (self.folder / PLAN).exists() else "exists and is not an empty folder"
            raise UserError(f"output: {self.folder} {what}", action="choose another output; nothing was changed")
        existing = next(
            parent for parent in (self.folder.absolute(), *self.folder.absolute().parents) if parent.exists()
        )
        probe = existing / f".finetooth-{secrets.token_hex(4)}"
        try:
            probe.mkdir()
            probe.rmdir()
        except OSError as error:
            raise UserError(
                f"output: {existing} cannot be written: {error.strerror}", action="choose another output"
            ) from error

    def run(self) -> Outcome:
        """Train.

        Raises:
            FinetoothError: bad input (exit code 2), or the run failed (1).
        """
        from finetooth_core.artifact import write_json
        from finetooth_core.events import Events, Progress
        from finetooth_core.loop import Loop
        from finetooth_core.plan import as_json

        self.check_output()
        job, engine = self.job, self.engine
        if job.method is None:
            raise UserError("this session was made without data", action="make it with data=True to run it")
        job.context.announce = self.say  # from now on notes come too late for the plan
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with (self.folder / RECIPE).open("x", encoding="utf-8") as file:  # of two runs at once, one gets the folder
                file.write(self.recipe.dump_yaml())
        except FileExistsError:
            self.check_output()
        write_json(self.folder / PLAN, as_json(job.plan))
        progress = Progress(self.folder.name, self.folder, job.plan, job.prepared.total_steps)
        events = Events(self.plugins.events, progress, self.say)
        loop = Loop(job, job.method, engine, events, progress, self.manifest, self.say)
        self.evaluations, self.losses = loop.record.evaluations, loop.record.losses
        return loop.run()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What every saved folder says of where it comes from."""
        recipe = json.dumps(self.recipe.as_dict(), sort_keys=True, default=str).encode()
        return {
            "recipe_sha256": hashlib.sha256(recipe).hexdigest(),
            "plan_sha256": self.plan.hash,
            "model": self.recipe.model.name,
            "picks": dict(self.plan.picks),
            "plugins": dict(self.plugins.versions),
            **self._lineage(),
        }

    def _lineage(self) -> dict[str, Any]:
        """What it was made from: hashes of the data, and the runs before it."""
        from finetooth_core.plan import as_json
        from finetooth_core.stages import ancestor, data_hashes

        data = data_hashes(as_json(self.plan)["decisions"])
        run = self.job.context.run
        parent = {} if run is None else {"parent": ancestor(run.folder, self.recipe.model.name).as_json}
        return {**({"data": data} if data else {}), **parent}


@paused_collector()  # pydantic and every plugin's top-level module are imported here
def session(
    recipe: Path | str | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    plugins: Sequence[str] = (),
    blocked: Sequence[str] = (),
    say: Callable[[str], None] | None = None,
    data: bool = True,
) -> Session:
    """Load a recipe and its plugins.

    Args:
        recipe: a file, or the recipe as a mapping.
        overrides: `"section.key=value"`.
        plugins: further local files or modules, as `--plugins` takes them.
        blocked: distributions that must not be loaded.
        data: see `Session`.

    Raises:
        RecipeError, PluginError: something is wrong with it.
    """
    from finetooth_core import manager
    from finetooth_core.recipe import load

    loaded = load(recipe, overrides)
    name = "run" if isinstance(recipe, Mapping) else Path(recipe).stem
    here = [str(Path(name).absolute()) if name.endswith(".py") else name for name in plugins]
    started = manager.start(files=[*loaded.plugins, *here], blocked=blocked, base=loaded.folder)
    return Session(loaded, started, name=name, say=say, data=data)


def run(recipe: Path | str | Mapping[str, Any], *overrides: str, plugins: Sequence[str] = ()) -> Outcome:
    """Train a recipe, as `ft run` does, without its output.

    Example:
        >>> outcome = finetooth.run("recipe.yaml", "train.max_steps=10")  # doctest: +SKIP
    """
    return session(recipe, overrides, plugins=plugins).run()


def engine(recipe: Path | str | Mapping[str, Any], *overrides: str, plugins: Sequence[str] = ()) -> Engine:
    """The engine of a recipe, to be driven step by step with its eight primitives; the recipe's data are not read.

    Example:
        >>> engine = finetooth.engine({"model": "smollm2-135m"})  # doctest: +SKIP
        >>> engine.logprobs(data)  # doctest: +SKIP
    """
    return session(recipe, overrides, plugins=plugins, data=False).engine


def _unused(folder: Path) -> Path:
    """The folder, or with a number behind it if it is taken: two runs may start in one second."""
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return folder if not folder.exists() else next(path for path in numbered if not path.exists())


def _now() -> str:
    return time.strftime("%Y%m%d-%H%M%S")
