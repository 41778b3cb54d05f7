"""The object of commands (`click.Context.obj`): plugins, catalog, and a session for a recipe, all loaded at their first
use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetooth_toolbox.cli.streams import warn
from finetooth_toolbox.cli.working import working

from finetooth_core.cli.start_options import StartOptions

if TYPE_CHECKING:
    from finetooth_hooks.checkpoints import CheckpointPlace
    from finetooth_hooks.compute.ways import Ways
    from finetooth_hooks.context import Opened, PluginFacts, Registered
    from finetooth_hooks.engine import Engine
    from finetooth_hooks.options import Options
    from finetooth_hooks.plan import Pick, Plan
    from finetooth_hooks.protocols import HardwareFacts, Sharding
    from finetooth_hooks.reports import DataReport, Evaluation, Outcome

    from finetooth_core.data.session_rows import SessionRows
    from finetooth_core.models.opened_model import OpenedModel
    from finetooth_core.planning.context import RunContext
    from finetooth_core.plugins.catalog import Catalog
    from finetooth_core.plugins.manager import Plugins
    from finetooth_core.session import Session
    from finetooth_core.started import Started


class State:
    """Implements `finetooth_hooks.CommandContext`.

    Args:
        start_options: options on plugins from the command line.

    Attributes:
        strict: a broken plugin that the user named is an error; otherwise only a fault.
        said_json: the output of `--json` is printed, even if an error follows.
    """

    def __init__(self, start_options: StartOptions) -> None:
        self.start_options = start_options
        self.strict = True
        self.said_json = False
        self._told: set[str] = set()

    @cached_property
    def plugins(self) -> Plugins:
        """Installed plugins and those named on the command line; a recipe's own are not among them."""
        from finetooth_core.plugins import manager

        options = self.start_options
        return manager.start(files=options.plugins, blocked=options.blocked, strict=self.strict)

    @cached_property
    def _started(self) -> Started:
        """Plugins found by sessions; `ft serve` makes one for each engine."""
        from finetooth_core.started import Started

        return Started()

    @property
    def catalog(self) -> Catalog:
        """Entries of `plugins`."""
        return self.plugins.catalog

    def build(self, kind: str, pick: Pick, *, setting: str = "") -> Any:
        """Build an entry that belongs to no recipe, with this object as its context."""
        from finetooth_core.plugins.builders import built
        from finetooth_core.settings.recipe import pick_name, validate_options

        registered = self.catalog.get(kind, pick_name(pick, setting), setting=setting)
        return built(registered, validate_options(self.catalog, kind, pick, setting), self)

    def pick(self, name: str, options: Sequence[str] = ()) -> Pick:
        """An entry picked on a command line."""
        from finetooth_recipes.overrides import picked

        return picked(name, options)

    @property
    def _named(self) -> dict[str, Any]:
        """The command line's options on plugins, as arguments."""
        return {"plugins": self.start_options.plugins, "blocked": self.start_options.blocked}

    def session(
        self,
        recipe: Path | str | Mapping[str, Any],
        overrides: Sequence[str] = (),
        *,
        say: Callable[[str], None] | None = None,
        data: bool = True,
    ) -> Session:
        """A session with the plugins of the recipe and of the command line; plugins that were left out are named."""
        from finetooth_hooks.errors import RecipeError

        try:
            with working("reading the recipe"):
                from finetooth_core import sessions

                session = sessions.session(
                    recipe,
                    *overrides,
                    say=say or warn,
                    data=data,
                    started=self._started,
                    **self._named,
                )
        except RecipeError as error:
            from finetooth_core.plugins.option_hints import with_option_hints

            raise with_option_hints(error, recipe, overrides, **self._named) from error.__cause__
        self._tell_faults(session)
        return session

    def resumed(self, run: str, overrides: Sequence[str] = (), **how: Any) -> Session:
        """A session that continues a run; see `finetooth_core.sessions.resume_session`."""
        with working("reading the run"):
            from finetooth_core.sessions import resume_session

            session = resume_session(run, *overrides, say=warn, **self._named, **how)
        self._tell_faults(session)
        return session

    def _tell_faults(self, session: Session) -> None:
        """Name the plugins that were left out, each once."""
        for line in [fault.line() for fault in session.plugins.faults]:
            if line not in self._told:
                self._told.add(line)
                warn(f"left out {line}")

    def load(self, recipe: Path | str | Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Mapping[str, Any]:
        """Read a recipe; local plugin files become absolute, so that it may be used from anywhere. From that of a run,
        Python that no run of this machine has named is left out."""
        from finetooth_saving.run_folder import is_begun
        from finetooth_toolbox.files.own_python import without_foreign

        from finetooth_core.settings.recipe import load
        from finetooth_core.settings.run_recipe import tell_not_run

        loaded = load(recipe, overrides)
        if isinstance(recipe, Mapping) or not is_begun(Path(recipe).parent):
            return loaded.anchored()
        own, foreign = without_foreign(loaded.anchored(), loaded.folder)
        tell_not_run(loaded.folder, foreign)
        return own

    def context(self, recipe: Mapping[str, Any]) -> RunContext:
        """A context for a recipe: builds entries, reads data."""
        return self.session(recipe).context

    def sketch(self, recipe: Mapping[str, Any], hardware: HardwareFacts | None = None) -> RunContext:
        """A context for a recipe whose model is known by its config alone.

        Args:
            hardware: of a machine that is made up; None: what is here.
        """
        from finetooth_core.planning.context import RunContext
        from finetooth_core.settings.recipe import load

        return RunContext(load(recipe), self.catalog, Path("runs"), self.plugins, hardware=hardware, sketched=True)

    def plan(self, recipe: Mapping[str, Any], *, memory: int = 0) -> Plan:
        """Decide every `auto`, on this machine or on one like it with so much memory."""
        session = self.session(recipe)
        session.memory = memory
        return session.plan

    def planned(self, recipe: Mapping[str, Any]) -> tuple[Plan, tuple[DataReport, ...]]:
        """The plan and how the rows are used."""
        session = self.session(recipe)
        return session.plan, session.reports

    def rows(self, recipe: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> SessionRows:
        """The rows of a recipe as a run trains them."""
        from finetooth_core.data.session_rows import SessionRows

        return SessionRows(self.session(recipe, overrides))

    def options_model(self, registered: Registered) -> type[Options]:
        """The options that the builder of an entry takes."""
        from finetooth_core.plugins.builders import options_model

        return options_model(registered.entry, registered.distribution)

    def plugin_facts(self, names: Sequence[str] = ()) -> tuple[PluginFacts, ...]:
        """What there is to say about plugins."""
        from finetooth_core.plugins.plugin_facts import plugin_facts

        return tuple(plugin_facts(self.plugins, names))

    def ways(
        self, model: str, *, hardware: HardwareFacts | None = None, length: int | None = None, measure: bool = True,
        sharding: Sharding | None = None, backend: str = "auto",
    ) -> Ways:  # fmt: skip
        """Every way to train a model, with what it takes."""
        from finetooth_core.planning.ways import ways

        context = self.sketch({"model": model, "adapter": "auto", "quantization": "auto", "backend": backend}, hardware)
        return ways(context, length=length, measure=measure, sharding=sharding)

    def setting_names(self) -> Sequence[str]:
        """Settings that need no plugin."""
        from finetooth_core.settings.recipe import setting_names

        return setting_names()

    def open(self, reference: str, changes: Mapping[str, Any] | None = None) -> OpenedModel:
        """A trained run or a model, ready for use."""
        from finetooth_core.models.opened_model import open_model

        return open_model(self._got_back(reference), lambda recipe: self.session(recipe, data=False), changes)

    def talk(self, reference: str, overrides: Sequence[str] = (), *, as_base: bool = False) -> Opened:
        """A run or a model for sampling."""
        from finetooth_core.models.talk import talk_to

        made = self._got_back(reference)
        return talk_to(made, lambda recipe: self.session(recipe, overrides, data=False), as_base=as_base)

    def checkpoints(self, reference: str) -> CheckpointPlace:
        """The checkpoints of a run, a folder or a URL."""
        from finetooth_saving.places import place_of

        from finetooth_core.checkpoints.resuming import disk_of, open_store

        return place_of(reference, lambda url: open_store(url, **self._named), lambda run: disk_of(run, **self._named))

    def schema(self, setting: str = "") -> Mapping[str, Any]:
        """JSON Schema of the recipe, or of one setting."""
        from finetooth_core.settings.schema import field_schema, recipe_schema

        return field_schema(self.catalog, setting) if setting else recipe_schema(self.catalog)

    def evaluate(
        self,
        reference: str,
        evaluators: Sequence[Pick] = (),
        data: Pick | None = None,
        overrides: Sequence[str] = (),
        *,
        answers: bool = False,
    ) -> tuple[Evaluation, ...]:
        """Measure a run or a model."""
        from finetooth_core.models.evaluating import evaluate

        made = self._got_back(reference)
        return evaluate(
            made, lambda recipe: self.session(recipe, overrides, data=False), evaluators, data, answers=answers
        )

    def start(self, recipe: Path | str, overrides: Sequence[str] = (), name: str = "") -> Path:
        """Begin a run in the background."""
        from finetooth_saving.runs import processes

        return processes.start(self.start_options.arguments, recipe, overrides, name)

    def stop(self, run: str) -> None:
        """End a run as Ctrl-C does."""
        from finetooth_saving.runs import processes

        processes.stop(run)

    def resume(self, run: str, overrides: Sequence[str] = ()) -> Path:
        """Continue a run in the background."""
        from finetooth_saving.runs import processes

        return processes.resume(self.start_options.arguments, run, overrides)

    def run_folder(self, reference: str) -> Path | None:
        """The folder of the run that a reference means; None if it means none."""
        from finetooth_saving.run_folder import run_of

        return run_of(reference, self.catalog)

    def _got_back(self, reference: str) -> str:
        from finetooth_saving.run_folder import got_back

        return got_back(reference, self.catalog)

    def export(self, reference: str, pick: Pick, output: Path | None = None) -> Path:
        """Write what a run trained with an exporter."""
        from finetooth_saving.exporting import export

        return export(self, reference, pick, output)[0]

    def check_memory(self, recipe: Mapping[str, Any]) -> None:
        """Refuse an engine that does not fit into memory."""
        from finetooth_core.planning.memory_check import OF_ROWS

        self.session(recipe, data=False).check_memory(OF_ROWS)

    def engine(self, recipe: Mapping[str, Any]) -> Engine:
        """Plan and build the engine; the recipe's data are not read."""
        return self.session(recipe, data=False).engine

    def run(self, recipe: Mapping[str, Any]) -> Outcome:
        """Train."""
        return self.session(recipe).run()
