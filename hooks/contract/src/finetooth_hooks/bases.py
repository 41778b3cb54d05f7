"""Base classes of plugins' objects: every optional method of a contract, with a default answer or an error.

    class AcmeSource(SourceBase):
        def rows(self): ...

A method of a capability (`finetooth_hooks.capabilities`) raises an error until a class overrides it and lists the
capability. Other optional methods have a default: no files, no roles, a tracker that starts again. The protocol of the
same name in `finetooth_hooks.protocols` is the whole contract of a kind; an object that wraps another also derives from
the base and passes on every call (`finetooth_kit.delegating`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from finetooth_hooks.errors import EngineError, FinetoothError, PlanError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from finetooth_hooks.compute.held import Addition, HeldAdapter, Stack
    from finetooth_hooks.compute.quantizers import Quantizer
    from finetooth_hooks.continuous import RunningBatch
    from finetooth_hooks.data.datum import Datum
    from finetooth_hooks.data.examples import Message, Rendered, Row
    from finetooth_hooks.data.problems import Problems
    from finetooth_hooks.data.sources import Portion
    from finetooth_hooks.engine import Backward, Counts, Engine, Handle, RoleModel, Snapshot, Spans, Usage
    from finetooth_hooks.errors import DataError
    from finetooth_hooks.exporters import ExportSource
    from finetooth_hooks.faces import FaceRoute, FaceService, Json
    from finetooth_hooks.models import Loader, LowRank, ModelFacts, ModelInfo, ModelTensors, TokenChanges, Tokenizer
    from finetooth_hooks.renderers import Renderer
    from finetooth_hooks.reports import Evaluation, StepReport
    from finetooth_hooks.run import Run
    from finetooth_hooks.sampling import Generated, Sampling
    from finetooth_hooks.trackers import Tracker

R = TypeVar("R")


class ContractBase:
    """Gives every base class its capabilities.

    Attributes:
        capabilities: those that this object has.
    """

    _contract: ClassVar[str] = ""

    # facts are plain attributes at run time, so that an object may set them or define a property; both pass the types
    if TYPE_CHECKING:

        @property
        def capabilities(self) -> frozenset[str]: ...
    else:
        capabilities = frozenset()

    def _cannot(self, do: str, word: str) -> FinetoothError:
        made = EngineError if self._contract == "engine" else PlanError
        who = f"the {self._contract} {type(self).__name__}"
        return made(f"{who} cannot {do}", action=f"choose one with the capability {word!r}")


class EngineBase(ContractBase):
    """Base of engines (`finetooth_hooks.engine.Engine`). Methods of a capability raise EngineError."""

    _contract = "engine"

    def backward(
        self,
        handle: Handle,
        grads: Sequence[NDArray[np.floating[Any]]] | None = None,
        *,
        normalizer: Counts | None = None,
    ) -> Backward:
        raise self._cannot("keep a forward pass for its backward", "handles")

    def zero_grad(self) -> None:
        raise self._cannot("drop accumulated gradients", "zero_grad")

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> Generated:
        raise self._cannot("sample", "generate")

    def running_batch(self) -> RunningBatch:
        raise self._cannot("let requests join a batch", "continuous")

    def hold(self, path: Path | Stack | None) -> HeldAdapter | None:
        raise self._cannot("sample several adapters in one batch", "adapters")

    def snapshot(self) -> Snapshot:
        raise self._cannot("copy its state in memory", "snapshots")

    def rollback(self, snapshot: Snapshot) -> None:
        raise self._cannot("go back to a copy of its state", "snapshots")

    def interrupt_when(self, asked: Callable[[], bool]) -> None:
        raise self._cannot("be broken off between two micro-batches", "interrupt")

    def move_role(self, role: str, mix: float) -> None:
        raise self._cannot("hold a copy of the policy", "roles")

    def module(self) -> Any:
        raise self._cannot("give its model away", "module")

    def weights(self) -> Mapping[str, Any]:
        raise self._cannot("give its weights", "weights")

    def set_weights(self, weights: Mapping[str, Any]) -> None:
        raise self._cannot("take weights", "weights")

    def release(self, handle: Handle) -> None:
        raise self._cannot("give up a handle", "release")

    @property
    def leads(self) -> bool:
        return True

    def first(self, call: Callable[[], R]) -> R:
        return call()

    def averaged(self) -> AbstractContextManager[None]:
        """Evaluations use the trained weights themselves, without averaging."""
        return nullcontext()

    def usage(self) -> Usage:
        raise self._cannot("say what it takes of its device", "usage")

    def peak_flops(self) -> float:
        raise self._cannot("say what its device can do", "usage")

    def profile(self, folder: Path) -> AbstractContextManager[Spans]:
        raise self._cannot("record its steps", "profile")


class SourceBase(ContractBase):
    """Base of sources (`finetooth_hooks.protocols.Source`).

    Attributes:
        relies_on: full names of other entries that read rows for this source.
    """

    _contract = "source"
    relies_on: tuple[str, ...] = ()

    def files(self) -> tuple[Path, ...] | None:
        """None: files do not determine the rows."""
        return None

    def identity(self) -> str | None:
        """None: nothing identifies the rows."""
        return None

    def stands_for(self) -> tuple[Mapping[str, Any], ...] | None:
        """None: it has its own rows."""
        return None

    def portions(self) -> Iterator[Portion]:
        raise self._cannot("cut its rows into portions", "portions")

    def read(self, portion: Portion) -> Iterator[Row | DataError]:
        raise self._cannot("read a portion", "portions")

    def refusal(self, broken: Problems, good: int) -> DataError:
        raise self._cannot("pass over rows that cannot be read", "portions")


class AdapterBase(ContractBase):
    """Base of adapters (`finetooth_hooks.protocols.Adapter`)."""

    _contract = "adapter"

    def disabled(self, model: Any) -> AbstractContextManager[None]:
        raise self._cannot("be switched off", "disable")

    def low_rank(self, module: Any) -> LowRank | None:
        """None: no low-rank form is known; the module is called as a whole."""
        return None

    def held_bytes(self, facts: ModelFacts, precision: str) -> int:
        """0: only the base and trained parameters take memory."""
        return 0

    def kept_bytes(self, facts: ModelFacts, parameters: int) -> int:
        """0: a state holds only trained parameters."""
        return 0

    def token_bytes(self, facts: ModelFacts, precision: str) -> float:
        """0: its own modules save no activations."""
        return 0.0

    def beginning_bytes(self, facts: ModelFacts) -> int:
        """0: it begins with random numbers."""
        return 0

    def rate_shares(self, names: Sequence[str]) -> Mapping[str, float]:
        """All have the optimizer's learning rate."""
        return {}

    def at_step(self, model: Any, step: int, seed: int) -> None:
        raise self._cannot("change a model between steps", "changes")

    def after_step(self, model: Any, step: int, seed: int) -> Mapping[str, float]:
        raise self._cannot("change a model between steps", "changes")

    def held(self, model: Any) -> Mapping[str, Any]:
        raise self._cannot("change a model between steps", "changes")

    def rate_factor(self, step: int) -> float:
        raise self._cannot("change a model between steps", "changes")

    def additions(self, folder: Path) -> Mapping[str, Addition] | None:
        raise self._cannot("be read as low-rank additions", "additions")

    def fold(
        self, model: Any, folder: Path, *, precision: str, device: str, pad_id: int | None = None,
        quantizer: Quantizer | None = None,
    ) -> Any:  # fmt: skip
        raise self._cannot("be folded into its base", "fold")

    def fold_tensors(self, tensors: ModelTensors, folder: Path) -> ModelTensors | None:
        raise self._cannot("be folded into its base tensor by tensor", "fold_tensors")

    def folded_config(self, folder: Path) -> Mapping[str, Any]:
        """Nothing differs from the base's config."""
        return {}


class MethodBase(ContractBase):
    """Base of methods (`finetooth_hooks.protocols.Method`).

    Attributes:
        noun: of an example, in reports.
        data: unknown in advance.
        roles: only the policy, with and without its adapter.
    """

    _contract = "method"
    noun: str = "row"
    if TYPE_CHECKING:

        @property
        def data(self) -> Sequence[Datum]: ...

        @property
        def roles(self) -> Mapping[str, RoleModel | None]: ...
    else:
        data = ()
        roles = MappingProxyType({})

    def read_beginning(self, engine: Engine) -> None:
        """Nothing is needed from the first weights."""


class EvaluatorBase(ContractBase):
    """Base of evaluators (`finetooth_hooks.protocols.Evaluator`).

    Attributes:
        noun: of an example, in reports.
        data: unknown in advance.
        metrics: unknown in advance.
    """

    _contract = "evaluator"
    noun: str = "row"
    if TYPE_CHECKING:

        @property
        def data(self) -> Sequence[Datum]: ...

        @property
        def metrics(self) -> frozenset[str] | None: ...
    else:
        data = ()
        metrics = None

    def read_beginning(self, engine: Engine) -> None:
        """Nothing is needed from the first weights."""


class TrackerBase(ContractBase):
    """Base of trackers (`finetooth_hooks.protocols.Tracker`)."""

    _contract = "tracker"

    def resume(self: Tracker, run: Run, history: Sequence[StepReport | Evaluation]) -> None:
        """Start again: existing entries stay, and new ones follow them."""
        self.start(run)


class LoaderBase(ContractBase):
    """Base of loaders (`finetooth_hooks.protocols.Loader`)."""

    _contract = "loader"

    def sketch(self: Loader, reference: str) -> ModelInfo:
        """As `describe`: config and weights are in one file."""
        return self.describe(reference)

    def tensors(
        self, reference: str, *, framework: str, precision: str, quantizer: Quantizer | None = None
    ) -> ModelTensors | None:
        raise self._cannot("give a model tensor by tensor", "tensors")

    def modules(self, reference: str) -> Mapping[str, tuple[int, int]]:
        raise self._cannot("say which modules a model has", "modules")

    def widen(self, model: Any, size: int, new: Sequence[int]) -> None:
        raise self._cannot("give a loaded model room for more tokens", "widen")

    def write(self, reference: str, folder: Path, *, precision: str, of: Loader | None = None) -> None:
        raise self._cannot("write a model in transformers' layout", "write")


class TokenizerBase(ContractBase):
    """Base of tokenizers (`finetooth_hooks.protocols.Tokenizer`)."""

    _contract = "tokenizer"

    def encode_from(self, stretches: Sequence[tuple[str, int | None]]) -> list[tuple[list[int], int]]:
        raise self._cannot("encode several texts at once", "stretches")

    def changed(self, changes: TokenChanges) -> Tokenizer:
        raise self._cannot("be given other tokens", "changes")


class RendererBase(ContractBase):
    """Base of renderers (`finetooth_hooks.protocols.Renderer`).

    Attributes:
        extension: see the protocol.
        template: see the protocol.
    """

    _contract = "renderer"
    extension: bool = False
    template: str | None = None

    def shown_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        from finetooth_hooks.data.examples import Rendered
        from finetooth_hooks.errors import DataError

        if any(message.media for message in messages):
            raise DataError(
                "messages",
                "they hold more than text, which the renderer cannot write",
                action="set data.renderer to one that takes it, such as jinja with the model's own chat template",
            )
        tokens = cast("Renderer", self).prompt(messages, tools)
        return Rendered(tuple(tokens), (0.0,) * len(tokens))


class SamplerBase(ContractBase):
    """Base of samplers (`finetooth_hooks.protocols.Sampler`)."""

    _contract = "sampler"


class EnvironmentBase(ContractBase):
    """Base of environments (`finetooth_hooks.environments.Environment`)."""

    _contract = "environment"


class EpisodeBase:
    """Base of episodes (`finetooth_hooks.environments.Episode`)."""

    def close(self) -> None:
        """Nothing is held."""


class ExporterBase(ContractBase):
    """Base of exporters (`finetooth_hooks.protocols.Exporter`)."""

    _contract = "exporter"

    def check(self, source: ExportSource) -> None:
        """Every trained model can be written."""


class FaceBase(ContractBase):
    """Base of faces (`finetooth_hooks.faces.Face`)."""

    _contract = "face"
    routes: tuple[FaceRoute, ...] = ()

    def refusal(self, status: int, message: str) -> Json:
        return {"error": message}

    async def stdio(self, service: FaceService) -> None:
        raise self._cannot("speak through standard input and output", "stdio")


class OptimizerBase(ContractBase):
    """Base of optimizers (`finetooth_hooks.protocols.Optimizer`)."""

    _contract = "optimizer"

    def averaged(self, optimizer: Any) -> AbstractContextManager[None]:
        raise self._cannot("average weights", "averages")

    def active(self, optimizer: Any) -> Sequence[Any]:
        raise self._cannot("train parameters in turn", "in_turn")

    def state_bytes(self, facts: ModelFacts) -> float | None:
        """None: the entry's value applies."""
        return None


class QuantizerBase(ContractBase):
    """Base of quantizers (`finetooth_hooks.protocols.Quantizer`).

    Attributes:
        skip: the recipe excludes nothing; only `takes` decides.
    """

    _contract = "quantizer"
    skip: tuple[str, ...] = ()

    def calibrate(self, model: Any, *, device: str) -> int:
        raise self._cannot("store a model by what its modules read", "calibrate")


BASES: Mapping[str, type[ContractBase]] = {
    "adapter": AdapterBase,
    "engine": EngineBase,
    "environment": EnvironmentBase,
    "evaluator": EvaluatorBase,
    "exporter": ExporterBase,
    "face": FaceBase,
    "loader": LoaderBase,
    "method": MethodBase,
    "optimizer": OptimizerBase,
    "quantizer": QuantizerBase,
    "renderer": RendererBase,
    "sampler": SamplerBase,
    "source": SourceBase,
    "tokenizer": TokenizerBase,
    "tracker": TrackerBase,
}
"""The base class of each kind that has one; capability words are in `finetooth_hooks.capabilities`."""

__all__ = [
    "BASES",
    "AdapterBase",
    "ContractBase",
    "EngineBase",
    "EnvironmentBase",
    "EpisodeBase",
    "EvaluatorBase",
    "ExporterBase",
    "FaceBase",
    "LoaderBase",
    "MethodBase",
    "OptimizerBase",
    "QuantizerBase",
    "RendererBase",
    "SamplerBase",
    "SourceBase",
    "TokenizerBase",
    "TrackerBase",
]
