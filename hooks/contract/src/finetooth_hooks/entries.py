"""Entries: what a plugin says it offers, as frozen dataclasses.

An entry is cheap: each start makes it, so it names its builder as text, which is imported only when a recipe picks it.
A builder is a class or a function that gets those of `options: SomeOptions` and `context: Context` that it has
parameters for. `SomeOptions` validates that part of the recipe, and the builder makes the protocol of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from finetooth_hooks.claims import Claim
from finetooth_hooks.compute.attention import AttentionServes
from finetooth_hooks.compute.heads import ScalarHead
from finetooth_hooks.compute.savings import Saving
from finetooth_hooks.compute.serves import Serves

Together = Literal["sequence", "group", "step"]
"""What a loss must see at once: each sequence alone, whole groups, or the whole optimizer step."""

Tier = Literal["device", "host", "disk", "remote"]
"""How far a checkpoint survives: a bad step, a fault of the device, the end of the process, the loss of the machine."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Entry:
    """One offer of a plugin. Its full name is `DISTRIBUTION:NAME`.

    Attributes:
        name: how a recipe picks it; lower case letters, digits, `_` and `-`.
        build: reference to the builder, `"package.module:Class"` or a function; imported only when picked.
        summary: one line for `ft plugins list`.
        default: used if the recipe leaves the choice open; one entry per kind and framework should be it, but all
            default trackers, evaluators and gates are used.
        example: options of a small instance for the conformance kit; `{folder}` in a string is a scratch folder.
        example_files: text by file name, written into that scratch folder first.
        expected_failures: checks of the conformance kit that it fails on purpose, with reasons:
            `{"gradient_is_the_slope": "its ratio is held constant"}`. A listed check that passes counts as a failure.
        elsewhere: names in the field and other tools, each with the options that it implies: `{"dora": {"dora": True},
            "peft": {}}`. No recipe may use them: the error says what to write.
    """

    kind: ClassVar[str] = ""
    name: str
    build: str
    summary: str = ""
    default: bool = False
    example: Mapping[str, Any] = field(default_factory=dict)
    example_files: Mapping[str, str] = field(default_factory=dict)
    expected_failures: Mapping[str, str] = field(default_factory=dict)
    elsewhere: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __repr__(self) -> str:  # not generated for each kind, which takes a twentieth of a command's start
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented


def frameworks_of(entry: Entry) -> frozenset[str]:
    """The frameworks that an entry names; empty if it works with all."""
    named = getattr(entry, "framework", "")
    return frozenset({named}) if named else frozenset(getattr(entry, "frameworks", ()))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Loader(Entry):
    """Finds a base model by reference (a name, a file, a folder, a hub id) and loads it.

    Attributes:
        claims: light function (no heavy import) that tells whether it can load a reference.
        frameworks: what it can load for: `torch`, `mlx`, `numpy`.
        names: fixed names it knows, not paths (`smollm2-135m`); suggested where one is misspelt.
    """

    kind = "loader"
    claims: Callable[[str], Claim | None]
    frameworks: frozenset[str] = frozenset({"torch"})
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Source(Entry):
    """Yields rows of data.

    Attributes:
        claims: tells whether it can read a reference in `data.train` (a path, a hub id); None if picked by name only.
    """

    kind = "source"
    claims: Callable[[str], Claim | None] | None = None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Format(Entry):
    """Turns a row into an `Example`. Formats are tried in order of `rank`; see `protocols.Format.detect`."""

    kind = "format"
    rank: int = 100
    """To detect a row's format, lower ranks are tried first; no two of one rank may accept the same row."""
    example_rows: tuple[Mapping[str, Any], ...] = ()
    """Rows of this format, by which the conformance kit tries it."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Renderer(Entry):
    """Turns messages into tokens and loss weights, and tokens back into a message."""

    kind = "renderer"
    marks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By `model_type`: how a model shows that it speaks this markup, see `finetooth_hooks.renderers.shows`."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Processor(Entry):
    """Turns images, sounds and videos into placeholder tokens and the numbers that a model reads."""

    kind = "processor"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Family(Entry):
    """Describes a model family: module names, head, renderer, stop tokens.

    Attributes:
        model_types: values of `model_type` that belong to the family; the `default=True` family has the rest.
        registers: `package.module:function`, called once before a config of `model_types` is read: it makes them known
            to transformers (`AutoConfig.register`, `AutoModelForCausalLM.register`). Empty: they are known.
    """

    kind = "family"
    model_types: frozenset[str] = frozenset()
    registers: str = ""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Method(Entry):
    """Turns examples into data and drives the engine, step by step.

    Attributes:
        needs: engine capabilities that the method needs, checked by the plan.
        roles: models that it needs besides the policy (`reference`, ...). If its options decide that, the method does:
            `protocols.Method.roles`.
        head: a scalar head that the engine is built with, so that losses can read `scores` and `values`.
        evaluators: names of its default evaluators; empty: the general defaults.
        headline: metrics that trackers show, the most important first; `reward ↑` gives the desired direction.
        formats: names of formats that `data.format: auto` tries before all others: of a text with a label, for one.
        learns_from, rows: what it learns from and how much of it is usual, as `ft advise --goal` says; empty: unsaid.
    """

    kind = "method"
    needs: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    head: ScalarHead | None = None
    evaluators: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    learns_from: str = ""
    rows: str = ""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Loss(Entry):
    """Computes contributions from outputs; see `finetooth_hooks.compute.losses`.

    Attributes:
        needs: outputs it reads (`OutputName`): `logprobs@reference`, `entropy`, `values`, `hidden:0.5`, `logits`.
        together: what it must see at once. A loss that carries state needs `step`.
        fields: numbers of each target that it reads in addition to `weights`: `advantages`, `old_logprobs`.
        scalars: numbers of each sequence that it reads: `label`, `margin`.
        proportional_to: field of the data proportional to its gradient with respect to `logprobs` where the mask is
            true: `weights` for cross entropy. An engine may then compute gradients of a trained head while it has the
            logits, and checks them. None: the gradient depends on the log-probabilities.
    """

    kind = "loss"
    needs: frozenset[str] = frozenset({"logprobs"})
    together: Together = "sequence"
    fields: frozenset[str] = frozenset()
    scalars: frozenset[str] = frozenset()
    proportional_to: str | None = None

    def __post_init__(self) -> None:
        for name in ("needs", "fields", "scalars"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Reward(Entry):
    """Scores completions.

    Attributes:
        concurrent: it may score in a separate thread while the engine trains. False if it uses a framework in this
            process, whose random numbers would mix with the engine's.
    """

    kind = "reward"
    concurrent: bool = True


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Sampler(Entry):
    """Where rollouts come from.

    Attributes:
        remote: it calls a server, so tests need one.
    """

    kind = "sampler"
    remote: bool = False


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Environment(Entry):
    """Answers a policy's turns and scores them.

    Attributes:
        example_task: a row that it can use, for its tests: `prompt`, and columns.
        remote: it calls a server, so tests need one.
    """

    kind = "environment"
    remote: bool = False
    example_task: Mapping[str, Any] = field(default_factory=lambda: {"prompt": "What is 2 plus 2?"})


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Adapter(Entry):
    """Decides which parameters train: all, a low-rank addition, the top layers.

    Attributes:
        can_disable: the base can be evaluated without it, so the policy can be its own reference.
        base_frozen: the base's weights do not change; trained weights are added.
        accepts_quantised: it works over a quantised base, since it does not train, read or write the base's linear
            weights.
        frameworks: what it adapts.
        base_of: light function (no heavy import): the base model of an artifact in a folder, if this adapter can merge
            it; empty if the folder does not say, None for others. A recipe's `model` can be such a folder.
    """

    kind = "adapter"
    can_disable: bool = False
    base_frozen: bool = False
    accepts_quantised: bool = False
    frameworks: frozenset[str] = frozenset({"torch"})
    base_of: Callable[[Path], str | None] | None = None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Quantizer(Entry):
    """Stores a base's linear weights in fewer bits and computes with them.

    Attributes:
        frameworks: whose modules it replaces.
        rank: of several with the same bits `quantization: auto` takes the highest, then the one with the most bytes.
    """

    kind = "quantizer"
    frameworks: frozenset[str] = frozenset({"torch"})
    rank: int = 0


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Optimizer(Entry):
    """Makes an optimizer over named parameters.

    Attributes:
        accumulation: gradients may be accumulated over micro-batches; False for those that update inside backward.
        checkpointing: works with gradient checkpointing.
        frameworks: whose parameters it takes.
        state_bytes: bytes of optimizer state per trained parameter, for the memory estimate.
        update_bytes: the same for the temporary memory of updating all tensors at once, as on an accelerator.
        tensor_bytes: the same for one tensor after the other, as on a host: bytes per number of the largest.
        devices: supported types (`cuda`); empty: all.
    """

    kind = "optimizer"
    accumulation: bool = True
    checkpointing: bool = True
    frameworks: frozenset[str] = frozenset({"torch"})
    state_bytes: float = 8.0
    update_bytes: float = 0.0
    tensor_bytes: float = 0.0
    devices: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Schedule(Entry):
    """Learning-rate factor by step."""

    kind = "schedule"
    needs_total: bool = True
    """The number of steps must be known beforehand; False lets `auto` take it when it is not."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Backend(Entry):
    """Builds an engine from a plan.

    Attributes:
        framework: `torch`, `mlx`, `numpy`: of adapters, optimizers and loaders.
        capabilities: see `finetooth_hooks.engine.CAPABILITIES`.
        outputs: that a loss may need, without roles; empty: its engines only sample.
        remote: its engines are at a server, which its option `url` names; `ft run --remote URL` picks it if it trains.
        savings: that `adapter: auto` and `quantization: auto` try if nothing else fits, the cheapest first. The
            backend's plan refuses one without effect on a device.
    """

    kind = "backend"
    framework: str
    capabilities: frozenset[str]
    outputs: frozenset[str] = frozenset({"logprobs", "entropy"})
    remote: bool = False
    savings: tuple[Saving, ...] = ()


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Hardware(Entry):
    """A kind of device and its facts.

    Attributes:
        framework: the backend framework it serves.
        rank: the available one with the highest rank is taken by `auto`.
        in_machine: light function (no heavy import) with the machine's devices of the kind, usable or not, `an AMD GPU
            (gfx942)`; empty if none. The plan names those that `auto` does not take. None: unknown.
        built_for: light function that tells whether the installed framework supports such devices. With `in_machine` it
            decides the suggestion for a name of several entries, such as `gpu`.
    """

    kind = "hardware"
    framework: str = "torch"
    rank: int = 0
    in_machine: Callable[[], str] | None = None
    built_for: Callable[[], bool] | None = None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Strategy(Entry):
    """Spreads one engine over ranks.

    Attributes:
        framework: whose arrays its collective adds.
        capabilities: words of `finetooth_hooks.capabilities.STRATEGY`.
    """

    kind = "strategy"
    framework: str = "torch"
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Launcher(Entry):
    """Starts the ranks of a run.

    Attributes:
        here: light function that tells whether this process was started as one of several ranks.
        capabilities: words of `finetooth_hooks.capabilities.LAUNCHER`.
    """

    kind = "launcher"
    here: Callable[[], bool]
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Attention(Entry):
    """Computes attention for layers of a model.

    The builder raises `PlanError` for obstacles on this machine (no compiler, an old or broken library): a plan builds
    an entry before it picks it, and `auto` then tries the next.

    Attributes:
        serves: supported devices, types and shapes; the plan refuses others.
        framework: of its arrays.
        rank: `auto` takes the highest usable one; None: only if the recipe names it.
        aliases: other names in recipes. Several entries of one plugin may share an alias, which means the best usable
            one.
        transformers: name of the same implementation in transformers, which backends over its models use. Empty: the
            function from `build` computes.
    """

    kind = "attention"
    serves: AttentionServes
    framework: str = "torch"
    rank: int | None = None
    aliases: tuple[str, ...] = ()
    transformers: str = ""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Kernel(Entry):
    """A provider of kernels: one way to compute named operations, for the devices and dtypes that it declares.

    Attributes:
        serves: one for each operation; of several for the same, the first that fits.
        frameworks: whose arrays it computes with.
    """

    kind = "kernel"
    serves: tuple[Serves, ...]
    frameworks: frozenset[str] = frozenset({"torch"})


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Tracker(Entry):
    """Receives the steps and evaluations of a run."""

    kind = "tracker"
    in_notebooks: bool = False
    """`finetooth.run` adds it in a notebook."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Evaluator(Entry):
    """Measures the engine on held-out examples."""

    kind = "evaluator"
    needs: frozenset[str] = frozenset()
    """Engine capabilities it relies on."""
    brings_rows: bool = False
    """It has its own questions, so that `ft eval --suite NAME` needs no rows."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Exporter(Entry):
    """Writes what a run trained for another tool; `ft export --to NAME` picks it. Its context is a `CommandContext`."""

    kind = "exporter"
    gets_back: str = ""
    """`package.module:function` from REST of a reference `NAME:REST` to the checked folder of that run; empty: none."""
    admits: str = ""
    """`package.module:function` of a pick's options and the recipe: a `UserError` refuses the run before it trains."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Store(Entry):
    """Keeps checkpoints in one tier.

    Attributes:
        tier: `device` and `host` build a `SnapshotStore`, `disk` and `remote` a `Store`.
        claims: tells whether it can use a place in `checkpoint.stores` (a URL, a path); the builder then gets it as the
            option `url`. None if it is picked by name only.
    """

    kind = "store"
    tier: Tier
    claims: Callable[[str], Claim | None] | None = None


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Gate(Entry):
    """Checks a checkpoint before it is promoted."""

    kind = "gate"
    engine: bool = False
    """The check needs the engine; it then runs between two steps and holds up training."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Face(Entry):
    """A protocol under which a server offers models; `ft serve NAME` picks it. Its context is a `CommandContext`."""

    kind = "face"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class ReleaseGate(Entry):
    """Decides if a version may enter a channel; a registry's policy picks it. Its context is a `CommandContext`."""

    kind = "release_gate"


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Page(Entry):
    """Pages of `ft board` below `/NAME`; no recipe picks them. Its builder gets the board's `CommandContext`."""

    kind = "page"
    title: str = ""
    """The text of its link in every page's head; empty: its name."""


@dataclass(frozen=True, kw_only=True, repr=False, eq=False)
class Command(Entry):
    """A command of `ft`; `build` names a click command. `plugins-X` is `ft plugins X`, `serve-X` is `ft serve X`."""

    kind = "command"
    section: str = field(default="Plugins")
    """The heading under which `ft --help` lists it."""
    after_run: str = ""
    """Arguments with which the end of a run suggests it, `{run}` is the run folder; empty: it is not suggested."""
    after_scalar_run: str = ""
    """The same, first of all, if the run trained a scalar head, such as a reward model's."""


ENTRY_TYPES: Mapping[str, type[Entry]] = MappingProxyType({cls.kind: cls for cls in Entry.__subclasses__()})
"""Every kind and its entry type; the hook that yields kind `loss` is `ft_losses`."""
