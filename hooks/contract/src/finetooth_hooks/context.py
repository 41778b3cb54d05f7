"""Context: gives a plugin access to the rest without imports. The core implements it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from finetooth_hooks.checkpoints import CheckpointPlace
from finetooth_hooks.compute.backends import HardwareFacts
from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.compute.strategies import Sharding
from finetooth_hooks.compute.ways import Ways
from finetooth_hooks.data.examples import Rendered
from finetooth_hooks.data.preparation import Limit, Preparation, Rendering
from finetooth_hooks.data.recipe_rows import RecipeRows
from finetooth_hooks.data.sources import Examples
from finetooth_hooks.engine import Engine
from finetooth_hooks.entries import Entry
from finetooth_hooks.errors import DataError
from finetooth_hooks.models import Loader, ModelFacts, ModelInfo, Tokenizer
from finetooth_hooks.plan import Pick, Plan, TrainSettings
from finetooth_hooks.renderers import Processor, Renderer
from finetooth_hooks.reports import DataReport, Evaluation, Outcome

if TYPE_CHECKING:  # pydantic
    from finetooth_hooks.options import Options


class Registered(Protocol):
    """An entry, with the plugin and file that it came from."""

    @property
    def entry(self) -> Entry: ...
    @property
    def distribution(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def file(self) -> str:
        """Of its plugin's module."""

    @property
    def full_name(self) -> str:
        """`DISTRIBUTION:NAME`."""


class Catalog(Protocol):
    """All entries by kind and name."""

    def get(self, kind: str, name: str, *, setting: str = "", framework: str = "") -> Registered:
        """Returns the registered entry of a kind and a name.

        Args:
            framework: of several entries with this name, the one for it; empty: any.

        Raises:
            PluginError: unknown (lists what is installed and which package would bring it), ambiguous, or its plugin
                is broken.
        """

    def all(self, kind: str) -> tuple[Registered, ...]: ...

    def find(self, text: str) -> tuple[Registered, ...]:
        """Entries that `NAME`, `KIND:NAME`, `DISTRIBUTION:NAME` or `KIND:DISTRIBUTION:NAME` may mean.

        Raises:
            PluginError: none is installed; says which package would bring it, or which name is nearest.
        """

    def default(self, kind: str, *, setting: str = "", framework: str = "") -> Registered:
        """The default entry of a kind.

        Raises:
            PluginError: none or several are the default.
        """


@dataclass(frozen=True)
class PluginFault:
    """One problem of a plugin.

    Attributes:
        problem: its description.
        file: its place, if known.
        action: what to do next.
    """

    problem: str
    file: str = ""
    action: str = ""


@dataclass(frozen=True)
class PluginFacts:
    """One plugin, in use or broken, for a doctor (`CommandContext.plugin_facts`).

    Attributes:
        name: distribution, or the module or file that the user named.
        version: of the distribution; empty without one.
        file: of its module; empty if it could not be imported.
        module: name for an import in a new process; empty for a local file.
        entries: of the plugin.
        faults: problems at the start, and missing parts of its installation.
    """

    name: str
    version: str
    file: str
    module: str
    entries: tuple[Entry, ...]
    faults: tuple[PluginFault, ...]


class Opened(Protocol):
    """A trained run or a model, ready for use."""

    @property
    def engine(self) -> Engine:
        """The engine with the run's trained weights, which are loaded at the first use."""

    @property
    def context(self) -> Context:
        """The context of that model: its tokenizer, its renderer."""

    @property
    def method(self) -> str:
        """The method that trained it; empty for a model."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of that method, defaults filled in."""

    @property
    def artifact(self) -> Path | None:
        """Folder of its artifact; None for a model.

        Raises:
            UserError: the run kept none, or a file of it is damaged.
        """


class Context(Protocol):
    """The second argument of a builder, besides its options.

    Attributes:
        folder: the run folder; exists while a run trains, a scratch folder otherwise.
        cache: a folder for data that plugins keep between runs, each in its subfolder `NAME`; may not exist yet. `ft
            data cache` lists and removes the folders in `NAME/contents/`; see `hold`.
        train: the `train` section, as decided so far (`None` for open `auto`).
        markup: `data.markup`: whether text outside messages that spells control tokens is read as `plain` characters or
            as `special` tokens.
        plan: the plan; None until it is decided.
        catalog: all entries.
        options: of the sections built so far (`method`, `adapter`, ...), by kind, defaults filled in; JSON-able.
    """

    @property
    def folder(self) -> Path: ...
    @property
    def cache(self) -> Path: ...
    @property
    def train(self) -> TrainSettings: ...
    @property
    def markup(self) -> Literal["plain", "special"]: ...
    @property
    def plan(self) -> Plan | None: ...
    @property
    def catalog(self) -> Catalog: ...
    @property
    def options(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def loader(self) -> Loader:
        """The loader of the recipe's model."""

    @property
    def model(self) -> ModelInfo:
        """The recipe's base model, described; no weights are read."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the recipe's model; read at its first use."""

    @property
    def facts(self) -> ModelFacts:
        """The family's facts of the recipe's model."""

    @property
    def renderer(self) -> Renderer:
        """The recipe's renderer, by default the family's."""

    @property
    def processor(self) -> Processor:
        """The processor of images, sounds and videos for the recipe's model; built at its first use.

        Raises:
            RecipeError: the model accepts none, or no processor is installed.
        """

    def build(self, kind: str, pick: Pick, *, setting: str = "") -> Any:
        """Build any entry: validates the options in `pick` and calls the builder.

        Args:
            setting: path of the setting that holds the pick, for messages.

        Raises:
            PluginError: no such entry.
            RecipeError: its options are wrong.
        """

    def loss(self, pick: Pick, *, setting: str = "") -> LossSpec:
        """Build a loss together with what its entry declares."""

    def examples(self, split: str, *, first: int | None = None) -> Examples:
        """Rows of `data.train` or `data.eval`, read by source and format, all checked.

        Args:
            first: read only this many rows; None is all of them.

        Raises:
            RecipeError: the recipe gives no data for the split.
            DataError: a file or row is broken.
        """

    def prepare(
        self, split: str, rendering: Rendering, limit: Limit | None, *, first: int | None = None
    ) -> Preparation:
        """Prepared rows of a split. With many rows, several processes render them, and a cache on disk keeps them for
        later runs with the same data and settings; results are identical.

        Args:
            limit: treatment of rows that are too long or train nothing; None keeps every row whole.
            first: prepare only this many rows; None: all.

        Raises:
            RecipeError: the recipe gives no data for the split.
            DataError: a file or row is broken, or no row can be used; see `preparation.prepare`.
        """

    def stream(self, split: str, rendering: Rendering, *, skip: int = 0) -> Iterator[tuple[str, Rendered | DataError]]:
        """Rows of a split in order, each with its id; read and rendered one by one in this process, so that data of any
        size need the memory of a few rows.

        Args:
            skip: rows at the beginning to skip; they are read, not rendered.

        Yields:
            Tokens and weights; a DataError for a row that cannot be rendered.

        Raises:
            RecipeError: the recipe gives no data for the split, or its selection of rows needs all of them first.
            DataError: a source is missing, or a row cannot be read; raised at that row.
        """

    def open(self, reference: str, changes: Mapping[str, Any] | None = None) -> Opened:
        """Another model: a run by its folder or by its name under `runs/`, a model's folder, or a hub id.

        Args:
            changes: sections of its recipe to replace. Settings on which the run's weights depend (its renderer, for
                one) stay the run's, unless they name them.

        Raises:
            RecipeError: it does not exist.
            UserError: the run kept no artifact, or a file of it is damaged.
        """

    def generator(self, *keys: str | int) -> np.random.Generator:
        """A random stream from the run's seed and the keys; the same keys give the same stream."""

    def hold(self, path: Path) -> None:
        """Mark a file below `cache` as used: `ft data cache prune` keeps it while this context exists, and sees its
        last use.

        Raises:
            OSError: it is missing.
        """

    def wait_for(self, metric: str, *, setting: str) -> None:
        """Declare that the plugin acts on a metric of an evaluation, such as `eval/loss`. If none of the recipe's
        evaluators reports it, the recipe is refused before training, with the nearest name.

        Args:
            setting: with the metric's name, for messages: `schedule.metric`.
        """

    def note(self, text: str, *, topic: str = "") -> None:
        """Add a note to the plan for the user.

        Args:
            topic: only the first note on a topic is shown; default: the text itself.
        """


class CommandContext(Protocol):
    """The object of a plugin's command (`click.Context.obj`).

    Attributes:
        said_json: the output of `--json` is printed: a later error is not printed as JSON too.
    """

    said_json: bool

    @property
    def catalog(self) -> Catalog: ...

    def build(self, kind: str, pick: Pick, *, setting: str = "") -> Any:
        """Build an entry that belongs to no recipe, such as a face; its builder gets this object as its context.

        Args:
            setting: with the pick, for messages.

        Raises:
            PluginError: no such entry, or it is broken.
            RecipeError: its options are wrong.
        """

    def pick(self, name: str, options: Sequence[str] = ()) -> Pick:
        """An entry picked on a command line, by its name and options `KEY=VALUE`.

        Raises:
            RecipeError: one is not of this form.
        """

    def load(self, recipe: Path | str | Mapping[str, Any], overrides: tuple[str, ...] = ()) -> Mapping[str, Any]:
        """Read a recipe, a file or a mapping, with overrides; checked, `auto` not yet decided."""

    def context(self, recipe: Mapping[str, Any]) -> Context:
        """A context for a recipe: builds entries, reads data."""

    def plan(self, recipe: Mapping[str, Any], *, memory: int = 0) -> Plan:
        """Decide every `auto`.

        Args:
            memory: assumed bytes of the device, all free; 0: the real ones.
        """

    def planned(self, recipe: Mapping[str, Any]) -> tuple[Plan, tuple[DataReport, ...]]:
        """The plan, and the usage of rows in each split that the method reads."""

    def rows(self, recipe: Path | str | Mapping[str, Any], overrides: Sequence[str] = ()) -> RecipeRows:
        """The rows of a recipe as a run trains them: to preview, count or write them."""

    def options_model(self, registered: Registered) -> type[Options]:
        """The options that the builder of an entry takes.

        Raises:
            PluginError: its builder cannot be imported, or does not say which.
        """

    def plugin_facts(self, names: Sequence[str] = ()) -> tuple[PluginFacts, ...]:
        """Facts of plugins, including broken ones.

        Args:
            names: distributions, modules or files; all plugins if empty.

        Raises:
            PluginError: a name means no plugin.
        """

    def ways(
        self, model: str, *, hardware: HardwareFacts | None = None, length: int | None = None, measure: bool = True,
        sharding: Sharding | None = None, backend: str = "auto",
    ) -> Ways:  # fmt: skip
        """Every way to train a model, with its memory and cost; only the model's config is read.

        Args:
            hardware: of another machine; None: this machine.
            length: tokens of a row; None: 512, or the model's limit.
            measure: measure the device's peak speed.
            sharding: what a strategy divides among ranks: memory is per rank.
            backend: by its name in a recipe.
        """

    def setting_names(self) -> Sequence[str]:
        """Settings of a recipe that need no plugin, such as `train.batch_size`."""

    def open(self, reference: str, changes: Mapping[str, Any] | None = None) -> Opened:
        """See `Context.open`."""

    def talk(self, reference: str, overrides: Sequence[str] = (), *, as_base: bool = False) -> Opened:
        """A run or a model for sampling: like `open`, with an engine that generates and whose memory is checked.

        Args:
            overrides: settings `KEY=VALUE` of its recipe.
            as_base: use a run's merged model as a base, for adapters trained over it.

        Raises:
            PlanError: at the engine's first use: the backend cannot generate, the model gives scores instead of text,
                or it does not fit into memory.
        """

    def checkpoints(self, reference: str) -> CheckpointPlace:
        """The checkpoints of a run by its folder or name, in a folder, or at a URL.

        Raises:
            UserError: there are none.
        """

    def schema(self, setting: str = "") -> Mapping[str, Any]:
        """JSON Schema of the recipe, with the options of everything that is installed.

        Args:
            setting: only this one, such as `train.batch_size`; empty: the whole recipe.

        Raises:
            RecipeError: no setting has this name.
        """

    def evaluate(
        self, reference: str, evaluators: Sequence[Pick] = (), data: Pick | None = None, overrides: Sequence[str] = (),
        *, answers: bool = False,
    ) -> tuple[Evaluation, ...]:  # fmt: skip
        """Measure a run or a model.

        Args:
            reference: as for `open`.
            evaluators: names; empty: those of the run, or the defaults.
            data: the rows to measure on; None: the held-out rows of the run.
            overrides: settings `KEY=VALUE` of its recipe.
            answers: keep every answer, of evaluators that keep some (`samples`).

        Raises:
            RecipeError: no rows are given.
            UserError: it does not exist or is damaged.
        """

    def start(self, recipe: Path | str, overrides: Sequence[str] = (), name: str = "") -> Path:
        """Begin a run in the background: a separate process, which outlives this command and has the plugins of its
        command line. `FOLDER.log` holds its output.

        Args:
            recipe: its file.
            name: of the run under `runs/`, or its folder; empty: the name of the recipe's file.

        Returns:
            The folder of the run, which the run makes; its `result.json` says how the run ended.

        Raises:
            UserError: the folder exists.
        """

    def stop(self, run: str) -> None:
        """End a run like Ctrl-C: it saves its last whole step and can be resumed.

        Args:
            run: its folder, or its name under `runs/`.

        Raises:
            UserError: it does not exist, or no process of this machine trains it.
        """

    def resume(self, run: str, overrides: Sequence[str] = ()) -> Path:
        """Resume a run in the background; return its folder.

        Args:
            run: its folder, or its name under `runs/`.
            overrides: settings `KEY=VALUE` of `ft resume`.

        Raises:
            UserError: it does not exist, or a process trains it now.
        """

    def run_folder(self, reference: str) -> Path | None:
        """The folder of the run that a reference means, a path or a name under `runs/`; None if it means none."""

    def export(self, reference: str, pick: Pick, output: Path | None = None) -> Path:
        """Write what a run trained with an exporter; see `ft export`.

        Args:
            reference: the run, as for `run_folder`.
            output: the folder to write, which must not exist; None: in the run folder.

        Returns:
            The folder.

        Raises:
            UserError: no such run, it is damaged, or it cannot be written so.
        """

    def check_memory(self, recipe: Mapping[str, Any]) -> None:
        """Check that an engine fits into memory before it is built. Activations do not count: their size depends on the
        rows' length, which only the caller knows.

        Raises:
            PlanError: it does not, and the recipe does not accept that (`train.accept_memory`); says what would fit.
        """

    def engine(self, recipe: Mapping[str, Any]) -> Engine:
        """Plan and build the engine."""

    def run(self, recipe: Mapping[str, Any]) -> Outcome:
        """Train."""
