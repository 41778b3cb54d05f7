"""The recipe: what a user writes to describe one run, checked and typed; nothing is decided here.

`load` reads a file or a mapping, applies overrides and checks everything that can be known without plugins: unknown
keys, types, ranges. `validate_options` checks an entry's part of a section (its options) when that entry is known. A
section that picks an entry holds its name, a mapping with `name` and the entry's options, or `auto`; `{name: auto,
...}` leaves the choice open and still gives options.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from finetooth_hooks.context import Catalog
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.models import NewToken, TokenChanges
from finetooth_hooks.options import Options
from finetooth_hooks.plan import Pick, TrainSettings
from finetooth_recipes import yaml_text
from finetooth_recipes.aliases import read_aliases
from finetooth_recipes.incidental import Incidental
from finetooth_recipes.overrides import absolute_files, apply_overrides, parse_override
from finetooth_recipes.problems import INVALID, plain_data, raise_problems, show, validate
from finetooth_recipes.recipe_data import DataSection, inner_problems
from finetooth_recipes.recipe_measures import CheckpointSection, EvaluateSection
from finetooth_recipes.recipe_picks import AUTO, Checked, CheckedOrAuto, PickMapping, picks
from finetooth_saving.early_stopping import EarlyStopping, check_watched
from finetooth_saving.moved_bases import overrides_of
from finetooth_toolbox.files.missing import no_such_file
from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import TypedDict  # pydantic refuses typing.TypedDict before Python 3.12

from finetooth_core.plugins.builders import options_model
from finetooth_core.plugins.local_files import is_file_reference


class AddedToken(Options):
    """A token that is added to the model's vocabulary."""

    token: str = Field(min_length=1)
    """Its spelling."""
    special: bool = True
    """Whether it is markup: text in the data with this spelling stays plain text, and answers are shown without it."""


class ModelSection(Options):
    """The base model."""

    name: str = Field(min_length=1)
    """The model to train: a name that a loader knows, a file, a folder, or a hub id."""
    loader: Annotated[str | PickMapping, Checked, picks("loader")] = AUTO
    """Loads the model; `auto` asks every loader whether it knows the name."""
    family: Annotated[str | PickMapping, Checked, picks("family")] = AUTO
    """The model family; `auto` reads the model type from the model's config."""
    added_tokens: list[Annotated[str, Field(min_length=1)] | AddedToken] = Field(default_factory=list)
    """Tokens to add to the vocabulary: spellings of special tokens, or `{token: "<x>", special: false}` for one that
    text may spell. Their embeddings start as the mean of all others; `lora` and `full` train them."""
    added_tokens_overrides: dict[Annotated[str, Field(pattern=r"^\d+$")], Annotated[str, Field(min_length=1)]] = Field(
        default_factory=dict
    )
    """New tokens in place of reserved ones, by id: `{"128002": "<|call|>"}`. The vocabulary does not grow."""
    special_tokens: dict[Literal["bos_token", "eos_token", "pad_token", "unk_token"], str] = Field(default_factory=dict)
    """Tokens that begin, end and pad a text, if the model's tokenizer names the wrong ones or none."""

    def token_changes(self) -> TokenChanges:
        """The section's changes of the model's tokens."""
        tokens = [AddedToken(token=item) if isinstance(item, str) else item for item in self.added_tokens]
        return TokenChanges(
            added=tuple(NewToken(item.token, item.special) for item in tokens),
            renamed={int(id_): spelling for id_, spelling in self.added_tokens_overrides.items()},
            roles={str(role): spelling for role, spelling in self.special_tokens.items()},
        )


class TrainSection(Options):
    """How long to train, in which batches, and at which precision."""

    epochs: float | None = Field(default=None, gt=0)
    """Passes over the training data; may be a fraction. Default: 1, or as many as `max_steps` takes."""
    max_steps: int | None = Field(default=None, ge=1)
    """The run ends after this many optimizer steps, even if `epochs` are not done; null sets no limit."""
    batch_size: int = Field(default=8, ge=1)
    """Examples (rows, pairs or prompts) in one optimizer step, over all ranks."""
    max_length: int = Field(default=512, ge=2)
    """Longest sequence, in tokens."""
    excess_length: Literal["drop", "truncate", "truncate_answers", "truncate_turns", "split", "raise"] = "drop"
    """What happens to a longer row. `drop` leaves it out; `truncate` cuts its end; `split` makes several rows of it,
    and the later ones do not see the earlier ones; each is counted. `raise` is an error. Of a pair, `truncate` cuts
    both answers or leaves the pair out; `truncate_answers` cuts only answers that are too long. `truncate_turns` cuts
    prompts too, so that answers still train, and keeps turns whole as long as they fit."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of all random numbers."""
    shuffle: bool | Literal["shortest_first", "longest_first"] = True
    """Whether every epoch shuffles the rows; or order those of the first epoch by length (a curriculum)."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    """Number format of the computation; `auto` takes the best one that is fast on the hardware. `fp8`: linear modules
    of layers multiply in 8-bit floating point, everything else is computed in bf16."""
    micro_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Tokens that go through the model at once, padding included (gradient accumulation sums up the batch). Changes
    speed and memory, never the result."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Whether the backward pass recomputes activations: less memory, more time."""
    accept_memory: Incidental[bool] = False
    """Whether to train although the plan says that the memory will not suffice. `--accept-memory` sets it."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Scale gradients with a larger L2 norm down to this norm; 0 turns clipping off."""
    embedding_noise: float = Field(default=0.0, ge=0)
    """Alpha of the noise on the embeddings of training rows (NEFTune, arXiv:2310.05914), 5 to 15 for chats; 0 adds
    none."""
    on_bad_step: Literal["stop", "skip", "rollback"] = "stop"
    """What happens if a loss or a gradient is not finite. `stop` ends the run, `skip` skips the step's rows, and
    `rollback` also restores weights and optimizer from the newest snapshot in memory (`checkpoint.stores: [device]` or
    `[host]`)."""
    early_stopping: EarlyStopping | None = None
    """Ends the run when evaluations stop improving; null trains to the end."""

    def settings(self) -> TrainSettings:
        """The section for plugins; `None` stands for `auto`."""
        return TrainSettings(
            epochs=self.epochs if self.epochs is not None else (1.0 if self.max_steps is None else 0.0),
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            max_length=self.max_length,
            excess_length=self.excess_length,
            seed=self.seed,
            shuffle=self.shuffle is not False,
            curriculum=self.shuffle if isinstance(self.shuffle, str) else None,
            precision=None if self.precision == "auto" else self.precision,
            micro_batch_tokens=None if self.micro_batch_tokens == "auto" else self.micro_batch_tokens,
            gradient_checkpointing=None if self.gradient_checkpointing == "auto" else self.gradient_checkpointing,
            max_grad_norm=self.max_grad_norm,
            embedding_noise=self.embedding_noise,
        )


class ProfileSection(Options):
    """Records where the time and memory of some steps go. Recorded steps are slower than others."""

    start: int = Field(default=5, ge=1)
    """First optimizer step to record; the first few steps of a run are slower than the rest."""
    steps: int = Field(default=0, ge=0)
    """Number of steps to record, into `profile` in the run folder; 0 records none."""

    @model_validator(mode="after")
    def _says_how_many(self) -> ProfileSection:
        if "start" in self.model_fields_set and "steps" not in self.model_fields_set:
            raise PydanticCustomError(
                INVALID, "'start' is set but not how many steps to record", {"action": "add profile.steps, such as 3"}
            )
        return self


class PluginUse(TypedDict):
    """A plugin that the recipe needs, as a mapping."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)  # type: ignore[misc]

    use: Annotated[str, Field(min_length=1)]
    """A distribution with an optional version range (`NAME>=1.2,<2`), or a local `.py` file relative to the recipe."""
    options: NotRequired[dict[str, Any] | None]
    """Options of the plugin itself, checked by its `plugin_options` model."""


class ScaleSection(Options):
    """How many devices train the run, and how they share the work."""

    strategy: Annotated[str | PickMapping, Checked, picks("strategy")] = AUTO
    """How the ranks divide the work."""
    launcher: Annotated[str | PickMapping, Checked, picks("launcher")] = AUTO
    """Starts the ranks; `auto` takes the launcher that started this process, or else the default one."""
    devices: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Ranks on each machine, one device each; `auto` is one, or as many as an outside launcher started."""
    nodes: int = Field(default=1, ge=1)
    """Number of machines. More than one need a launcher such as `ssh`, or an outside one such as torchrun."""


class Recipe(Options):
    """One run, as the user describes it; made by `load`."""

    model: Annotated[ModelSection, BeforeValidator(lambda value: {"name": value} if isinstance(value, str) else value)]
    """The base model: a name, a path or hub id, or a mapping with `name`."""
    data: DataSection = DataSection()
    """The rows to train on and the held-out rows."""
    method: Annotated[str | PickMapping, CheckedOrAuto, picks("method")] = AUTO
    """The training method."""
    adapter: Annotated[str | PickMapping, CheckedOrAuto, picks("adapter")] = AUTO
    """Which parameters train. Left out: the default adapter. `auto`: as many as fit into memory."""
    quantization: Annotated[str | PickMapping, Checked, picks("quantizer")] | None = None
    """Stores the linear weights of a frozen base in fewer bits; `auto` takes as few bits as are needed to fit into
    memory."""
    optimizer: Annotated[str | PickMapping, CheckedOrAuto, picks("optimizer")] = AUTO
    """Updates the weights from the gradients."""
    schedule: Annotated[str | PickMapping, CheckedOrAuto, picks("schedule")] = AUTO
    """How the learning rate changes over the run."""
    backend: Annotated[str | PickMapping, CheckedOrAuto, picks("backend")] = AUTO
    """The engine that computes."""
    scale: ScaleSection = ScaleSection()
    """How many devices train the run, and how they share the work."""
    hardware: Annotated[str | PickMapping, Checked, picks("hardware")] = AUTO
    """The device to compute on; `auto` takes the best one of this machine."""
    kernels: Literal["auto"] | dict[str, Annotated[str | PickMapping, Checked, picks("kernel")]] = "auto"
    """Which provider computes an operation, such as `{rms_norm: torch}`. `auto`, and every operation that is left out,
    takes the best provider for the device and the precision."""
    train: TrainSection = TrainSection()
    """How long to train, in which batches, and at which precision."""
    evaluate: EvaluateSection = EvaluateSection()
    """When to evaluate on the held-out rows, and with what."""
    trackers: Incidental[
        Literal["auto"] | list[Annotated[str | PickMapping, Checked, picks("tracker", auto=False)]]
    ] = "auto"
    """Show or record steps and evaluations; `auto` takes the default trackers."""
    export: Incidental[list[Annotated[str | PickMapping, Checked, picks("exporter", auto=False)]]] = []  # noqa: RUF012
    """What to write for other tools when training has ended, as `ft export` does: merged 16-bit weights, a GGUF file.
    The files go to `exports/NAME` in the run folder."""
    checkpoint: CheckpointSection = CheckpointSection()
    """When to save the state of the run."""
    profile: Incidental[ProfileSection] = ProfileSection()
    """Records where the time and memory of some steps go."""
    sweep: Incidental[dict[str, Any] | None] = None
    """Settings that `ft sweep` tries: `metric`, `trials` and their `space`. `ft run` ignores this section."""
    plugins: list[Annotated[str, Field(min_length=1)] | PluginUse] = []  # noqa: RUF012 - pydantic copies it
    """Plugins that the run needs in addition to the installed ones. Versions are checked, nothing is installed."""
    output: Incidental[Annotated[str, Field(min_length=1)] | None] = None
    """The run folder. Default: a new folder in `runs`."""

    @model_validator(mode="after")
    def _measures_what_ends_it(self) -> Recipe:
        check_watched(self.train.early_stopping, self.evaluate.every)
        return self

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)
    _notes: list[str] = PrivateAttr(default_factory=list)
    _source: Path | None = PrivateAttr(default=None)
    _folder: Path = PrivateAttr(default_factory=Path.cwd)
    _model_path: Path | None = PrivateAttr(default=None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for the user about the reading of the recipe."""
        return tuple(self._notes)

    @property
    def source(self) -> Path | None:
        """The file of the recipe; None for a mapping."""
        return self._source

    @property
    def folder(self) -> Path:
        """The start of relative paths of local plugin files: the recipe's folder, or the current one for a mapping."""
        return self._folder

    def as_dict(self) -> dict[str, Any]:
        """The user's settings with overrides and without defaults; JSON-able, and `load` can read it."""
        return copy.deepcopy(self._given)

    def changed(self, settings: Mapping[str, Any]) -> Recipe:
        """The same recipe with other settings, by their dotted paths."""
        data = self.as_dict()
        for path, value in settings.items():
            section, _, name = path.partition(".")
            data[section] = {**data.get(section, {}), name: value} if name else value
        made = load(data, base=self._folder)
        made._notes, made._source, made._model_path = list(self._notes), self._source, self._model_path
        return made

    def anchored(self) -> dict[str, Any]:
        """`as_dict` for a copy in another folder: paths of local plugin files become absolute."""
        settings = self.as_dict()
        for index, item in enumerate(settings.get("plugins", [])):
            use = item if isinstance(item, str) else item["use"]
            if is_file_reference(use):
                use = str(self.folder / Path(use).expanduser())
                settings["plugins"][index] = use if isinstance(item, str) else {**item, "use": use}
        return settings

    def dump_yaml(self) -> str:
        """`anchored` as YAML that `load` reads back, from any folder, as the same recipe; a model that was a file or a
        folder when the recipe was loaded is absolute too, so that the run can be used from elsewhere."""
        settings = self.anchored()
        name = self.dump_model_name()
        settings["model"] = name if isinstance(settings["model"], str) else {**settings["model"], "name": name}
        return yaml_text.write_yaml(settings)

    def dump_model_name(self) -> str:
        """The model as `dump_yaml` writes it."""
        return self.model.name if self._model_path is None else str(self._model_path)

    def model_is_at(self, folder: Path) -> None:
        """Set the model's folder; called by code that found a run by its name."""
        self._model_path = folder

    def model_is_name(self) -> None:
        """Keep the model's name relative, although a file or folder has the same name; called by code that knows the
        loader."""
        self._model_path = None


def load(recipe: Path | str | Mapping[str, Any], overrides: Sequence[str] = (), *, base: Path | None = None,
         plugins: Sequence[str] = ()) -> Recipe:  # fmt: skip
    """Read and check a recipe.

    Args:
        recipe: the path of a YAML file, or the recipe itself as a mapping.
        overrides: `key.path=value`, applied from left to right; see `finetooth_recipes.overrides`.
        base: start of relative paths of local plugin files; default: the folder of the file.
        plugins: those of `--plugins`, relative to the present folder; the recipe names them from now on.

    Raises:
        RecipeError: all errors, one line each.
    """
    if isinstance(recipe, Mapping):
        source, document = None, yaml_text.Document(recipe)
    else:
        source = Path(recipe)
        document = yaml_text.read_yaml(_read(source), str(recipe))
        overrides = (*overrides_of(source), *overrides)
    value = document.value
    if value is None and source is not None:
        raise RecipeError("", f"{source}: the recipe is empty", action="write at least model: NAME")
    if not isinstance(value, Mapping):
        raise RecipeError("", f"{source}: a recipe is a mapping, this is {show(value)}", action="write model: NAME")
    settings: dict[str, Any] = plain_data(value, ())
    apply_overrides(settings, overrides, absolute_files(plugins))
    settings, renamed = read_aliases(plain_data(settings, ()))
    place = _places(document, source, overrides, renamed)
    problems: list[RecipeError] = []
    section = _with_model_section(settings, problems)
    try:
        checked = validate(Recipe, section, elsewhere=leaves(), place=place)
    except RecipeError as error:
        problems.append(error)
    problems += inner_problems(settings.get("data"), place)
    raise_problems(problems)
    checked._given = settings
    checked._notes = [f"{name} was read as {'.'.join(path)}" for name, path in renamed.items()]
    if checked.sweep is not None:
        checked._notes.append("sweep is ignored here: ft sweep tries its settings")
    checked._source = source
    checked._model_path = _existing(checked.model.name)
    checked._folder = (base or (source.parent if source is not None else Path.cwd())).absolute()
    return checked


def validate_options(catalog: Catalog, kind: str, pick: Pick, setting: str = "") -> Options:
    """Check the options of a pick with its entry's options model.

    Args:
        pick: a name, or a mapping with `name` and options.
        setting: dotted path of the pick, for messages.

    Raises:
        PluginError: the entry is unknown or broken.
        RecipeError: options are wrong, one line each.
    """
    name = pick_name(pick, setting or kind)
    registered = catalog.get(kind, name, setting=setting)
    model = options_model(registered.entry, registered.distribution)
    path = tuple(setting.split(".")) if setting else ()
    options = plain_data(pick_options(pick), path)
    return validate(model, options, prefix=path, noun=f"option of {kind} {registered.entry.name}")


def pick_name(pick: Pick, setting: str = "") -> str:
    """The name in a pick; `auto` leaves the choice open.

    Raises:
        RecipeError: a mapping without `name`.
    """
    name = pick if isinstance(pick, str) else pick.get("name")
    if not isinstance(name, str) or not name:
        raise RecipeError(setting, "the mapping has no 'name' that picks an entry", action="add name: NAME")
    return name


def pick_options(pick: Pick) -> dict[str, Any]:
    """The options in a pick: everything but `name`."""
    return {} if isinstance(pick, str) else {key: value for key, value in pick.items() if key != "name"}


def setting_names() -> list[str]:
    """Every setting of the recipe itself, in sections as `section.setting`; without the options of entries."""
    inside = leaves()
    sections = {setting.partition(".")[0] for setting in inside.values()}
    return sorted([*inside.values(), *(name for name in Recipe.model_fields if name not in sections)])


def _existing(reference: str) -> Path | None:
    """The absolute path of a reference that is a file or folder on this machine."""
    path = os.path.expanduser(reference)  # noqa: PTH111 - unlike Path's, it takes any text
    return Path(path).absolute() if os.path.exists(path) else None  # noqa: PTH110 - as above


def _read(path: Path) -> str:
    """The text of a recipe file."""
    try:
        return yaml_text.not_rows(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        problem, action = no_such_file(path, endings=(".yaml", ".yml"))
        raise RecipeError("", problem, action=action) from None
    except IsADirectoryError:
        raise RecipeError("", f"{path}: is a folder, not a recipe", action="give the path of a .yaml file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError("", f"{path}:{line}: not UTF-8 text", action="save the recipe as UTF-8") from None
    except OSError as error:
        raise RecipeError("", f"{path}: cannot be read: {error.strerror}", action="check the path") from None


def _with_model_section(settings: Mapping[str, Any], problems: list[RecipeError]) -> dict[str, Any]:
    """`model: NAME` as `model: {name: NAME}`; for another value, adds a problem and uses a placeholder name."""
    model = settings.get("model")
    if isinstance(model, str):
        return {**settings, "model": {"name": model}}
    if "model" in settings and not isinstance(model, dict):
        problem = f"expected a name or a mapping with 'name', got {show(model)}"
        problems.append(RecipeError("model", problem, action="write model: NAME"))
        return {**settings, "model": {"name": "NAME"}}
    return dict(settings)


def leaves() -> dict[str, str]:
    """Names of settings inside sections, with their full path."""
    sections = [(name, getattr(field.annotation, "model_fields", ())) for name, field in Recipe.model_fields.items()]
    return {setting: f"{name}.{setting}" for name, settings in sections for setting in settings}


def _places(
    document: yaml_text.Document,
    source: Path | None,
    overrides: Sequence[str],
    renamed: Mapping[str, tuple[str, ...]],
) -> Any:
    """A function from a path to `, at FILE:LINE`, empty where the value came from an override.

    Args:
        renamed: paths of settings that were written under another name.
    """
    overridden = [tuple(parse_override(override)[0]) for override in overrides]
    names = {path: name for name, path in renamed.items()}

    def place(path: yaml_text.Path) -> str:
        text = tuple(str(part) for part in path)
        written = f", written as {names[text]}" if text in names else ""
        path, text = ((names[text],), (names[text],)) if written else (path, text)
        if any(text[: len(keys)] == keys for keys in overridden) or path not in document.lines:
            return written
        return f"{written}, at {source}:{document.lines[path]}"

    return place
