"""What the toy brings beside its engine: loader, family, renderer, adapter, optimizers, hardware, and the backend that
plans and builds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks import Context, Decision, Engine, MemoryEstimate, NoOptions, Options, UserError
from finetooth_hooks.bases import AdapterBase, LoaderBase, OptimizerBase
from finetooth_hooks.protocols import (
    BackendPlan,
    Device,
    EngineRequest,
    HardwareFacts,
    Head,
    ModelFacts,
    ModelInfo,
    PlanRequest,
    Renderer,
    Tokenizer,
)
from finetooth_kit import ByteTokenizer, PlainRenderer
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file

from toy_numpy.engine import NumpyEngine
from toy_numpy.model import MATRICES, Toy, new_head
from toy_numpy.optimizers import Adam, Sgd

Array = NDArray[np.float64]


class ToyOptions(Options):
    """Size of the toy."""

    vocab: int = Field(default=320, ge=2)
    """Ids of its vocabulary."""
    width: int = Field(default=8, ge=1)
    """Width of its layer."""


@dataclass(frozen=True)
class ToyLoader(LoaderBase):
    """Makes a toy from the seed in its name."""

    vocab: int
    width: int

    def describe(self, reference: str) -> ModelInfo:
        config = {"model_type": "finetooth_toy", "vocab_size": self.vocab, "hidden_size": self.width}
        parameters = 2 * self.vocab * self.width + self.width**2 + self.width + self.vocab
        return ModelInfo(reference, "toy-numpy:toy", "finetooth_toy", config, parameters, 8 * parameters)

    def tokenizer(self, reference: str) -> Tokenizer:
        return ByteTokenizer(size=self.vocab)

    def load(self, reference: str, *, framework: str, precision: str, device: str, quantizer: Any = None) -> Toy:
        return Toy.random(int(reference.partition(":")[2]), self.vocab, self.width)


def build_loader(options: ToyOptions, context: Context) -> ToyLoader:
    return ToyLoader(options.vocab, options.width)


def facts_of(config: Mapping[str, Any]) -> ModelFacts:
    """Of a toy with this config; paths name the modules of its torch twin."""
    width = int(config["hidden_size"])
    return ModelFacts(
        hidden_size=width,
        layers=1,
        heads=1,
        kv_heads=1,
        head_dim=width,
        ffn_size=width,
        vocab_size=int(config["vocab_size"]),
        max_positions=4096,
        layer_path="model.layers",
        body="model",
        head=Head(),
        attention_targets=(),
        linear_targets=("inner",),
        renderer="plain",
        first_loss=(0.0, 20.0),
    )


class ToyFamily:
    """Facts of toys."""

    def facts(self, config: Mapping[str, Any]) -> ModelFacts:
        return facts_of(config)


def build_family(options: NoOptions, context: Context) -> ToyFamily:
    return ToyFamily()


def build_renderer(options: NoOptions, context: Context) -> Renderer:
    return PlainRenderer(context.tokenizer)


class DeltaAdapter(AdapterBase):
    """Adds a zero matrix to E, W and H; these train."""

    capabilities = frozenset({"disable"})

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        return 2 * facts.vocab_size * facts.hidden_size + facts.hidden_size**2

    def apply(self, model: Toy, facts: ModelFacts, generator: np.random.Generator) -> Toy:
        return Toy(model.base, {name: np.zeros_like(model.base[name]) for name in MATRICES})

    @contextmanager
    def disabled(self, model: Toy) -> Iterator[None]:
        kept, model.delta = model.delta, {}
        try:
            yield
        finally:
            model.delta = kept

    def export(self, model: Toy, folder: Path, info: ModelInfo) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({f"{name}.delta": value for name, value in model.delta.items()}, folder / "adapter_model.safetensors")
        config = {"base_model_name_or_path": info.reference, "peft_type": "DELTA"}
        (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")

    def restore(self, model: Toy, folder: Path) -> None:
        try:
            tensors = load_file(folder / "adapter_model.safetensors")
        except OSError as error:
            raise UserError(f"{folder} holds no adapter: {error}") from error
        found = {name.removesuffix(".delta"): value for name, value in tensors.items()}
        if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in model.delta.items()}:
            raise UserError(f"{folder} holds an adapter of another shape")
        model.delta = found


def build_adapter(options: NoOptions, context: Context) -> DeltaAdapter:
    return DeltaAdapter()


class RateOptions(Options):
    """Options of both optimizers."""

    learning_rate: float = Field(default=0.1, gt=0)
    """Step size."""


@dataclass(frozen=True)
class Factory(OptimizerBase):
    """Makes an optimizer of a class."""

    learning_rate: float
    cls: type[Sgd] | type[Adam]

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Sgd | Adam:
        return self.cls()


def build_sgd(options: RateOptions, context: Context) -> Factory:
    return Factory(options.learning_rate, Sgd)


def build_adam(options: RateOptions, context: Context) -> Factory:
    return Factory(options.learning_rate, Adam)


class NumpyHardware:
    """Wherever NumPy runs."""

    def missing(self) -> str:
        return ""

    def facts(self) -> HardwareFacts:
        return HardwareFacts("toy-numpy:numpy", (Device("cpu", "NumPy", 2**30),), ("fp64", "fp32"))


def build_hardware(options: NoOptions, context: Context) -> NumpyHardware:
    return NumpyHardware()


class NumpyBackend:
    """See `finetooth_hooks.protocols.Backend`."""

    def plan(self, request: PlanRequest) -> BackendPlan:
        given = request.train
        decided = {
            "precision": ("fp32", "the toy computes in fp64; no lower precision is offered"),
            "micro_batch_tokens": (1024, "anything fits"),
            "gradient_checkpointing": (False, "one layer"),
        }
        decisions = []
        for name, (value, reason) in decided.items():
            asked = getattr(given, name)
            chosen = value if asked is None else asked
            decisions.append(Decision(f"train.{name}", chosen, reason if asked is None else "the recipe says so"))
            given = replace(given, **{name: chosen})
        weights = 8 * (request.base.model.parameters + request.trains.parameters)
        optimizer = int(request.updates.state_bytes * request.trains.parameters)
        parts = {"weights": weights, "gradients": 8 * request.trains.parameters, "optimizer": optimizer}
        return BackendPlan(given, tuple(decisions), MemoryEstimate(parts))

    def engine(self, request: EngineRequest) -> Engine:
        base = request.base.load(framework="numpy", precision="fp64", device="cpu")
        model = request.trains.adapter.apply(base, request.base.facts, request.trains.generator)
        if request.trains.head is not None:
            model.delta |= new_head(request.trains.head_generator, request.base.facts.hidden_size)
        return NumpyEngine(model, request)


def build_backend(options: NoOptions, context: Context) -> NumpyBackend:
    return NumpyBackend()
