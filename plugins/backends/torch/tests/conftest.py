"""Tiny random models and stand-ins for the parts an engine is made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import (
    Datum,
    Entry,
    LossData,
    LossResult,
    LossSpec,
    MemoryEstimate,
    Plan,
    ScalarHead,
    UserError,
    protocols,
)
from finetooth_hooks import arrays as xp
from finetooth_hooks.bases import AdapterBase, LoaderBase, OptimizerBase, TokenizerBase
from finetooth_hooks.compute.losses import Contribution, Metric
from finetooth_hooks.protocols import (
    BasePart,
    DataPart,
    Device,
    EngineRequest,
    HardwareFacts,
    Head,
    ModelFacts,
    ModelInfo,
    PlacePart,
    PlanRequest,
    TextPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_kit.fake_context import TRAIN, FakeContext
from finetooth_toolbox.llama_shape import HEAD_NORMS, llama_block
from finetooth_torch.compute import DECODER
from torch import Tensor, nn

VOCAB = 61


def pytest_configure() -> None:
    torch.set_num_threads(1)


class LowRank(nn.Module):
    """h W^T + 2 B A dropout(h): an adapter of the tests' own, made as peft makes its."""

    def __init__(self, base: nn.Linear, rank: int, dropout: float, generator: np.random.Generator) -> None:
        super().__init__()
        self.base, self.dropout, self.enabled = base, nn.Dropout(dropout), True
        dtype = torch.float64 if base.weight.dtype == torch.float64 else torch.float32  # as peft: never lower
        a = generator.normal(size=(rank, base.in_features)) / math.sqrt(base.in_features)
        b = generator.normal(size=(base.out_features, rank)) * 0.05
        self.a, self.b = (nn.Parameter(torch.from_numpy(values).to(dtype)) for values in (a, b))

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.base(hidden)
        if self.enabled:
            narrow = self.dropout(hidden).to(self.a.dtype) @ self.a.T
            out = out + (2.0 * narrow @ self.b.T).to(out.dtype)
        return out


@dataclass
class FakeAdapter(AdapterBase):
    """`full` trains everything, otherwise a low-rank addition trains; B starts at zero with `zero`."""

    capabilities = frozenset({"disable", "additions"})

    full: bool = False
    targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj")
    rank: int = 4
    dropout: float = 0.0
    zero: bool = False

    def trained_parameters(self, facts: ModelFacts, parameters: int) -> int:
        return parameters if self.full else 1000

    def apply(self, model: Any, facts: ModelFacts, generator: np.random.Generator) -> Any:
        if self.full:
            return model.requires_grad_(True)
        model.requires_grad_(False)
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and path.split(".")[-1] in self.targets:
                parent, _, name = path.rpartition(".")
                wrapped = LowRank(module, self.rank, self.dropout, generator)
                if self.zero:
                    nn.init.zeros_(wrapped.b)
                setattr(model.get_submodule(parent), name, wrapped)
        return model

    def low_rank(self, module: Any) -> protocols.LowRank | None:
        if not isinstance(module, LowRank):
            return None
        if not module.enabled:
            return protocols.LowRank(module.base)
        dropout = module.dropout if self.dropout and module.training else None
        return protocols.LowRank(module.base, module.a, module.b, 2.0, dropout=dropout)

    @contextmanager
    def disabled(self, model: Any) -> Iterator[None]:
        layers = [module for module in model.modules() if isinstance(module, LowRank)]
        for layer in layers:
            layer.enabled = False
        try:
            yield
        finally:
            for layer in layers:
                layer.enabled = True

    def export(self, model: Any, folder: Path, info: ModelInfo) -> None:
        from safetensors.torch import save_file

        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / "trained.safetensors")

    def additions(self, folder: Path) -> Mapping[str, protocols.Addition] | None:
        from safetensors.torch import load_file

        kept = load_file(folder / "trained.safetensors")
        paths = {name.rpartition(".")[0] for name in kept}
        if any(path + ".b" not in kept for path in paths):
            return None
        return {path: protocols.Addition(kept[f"{path}.a"], kept[f"{path}.b"], 2.0) for path in paths}

    def restore(self, model: Any, folder: Path) -> None:
        from safetensors.torch import load_file

        if not (folder / "trained.safetensors").exists():
            raise UserError(f"{folder}: no artifact")
        kept = load_file(folder / "trained.safetensors")
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(kept[name])


@dataclass
class FakeLoader(LoaderBase):
    """Builds a tiny random model, the same one each time."""

    config: Any
    prepare: Callable[[Any], None] | None = None

    def load(self, reference: str, *, framework: str, precision: str, device: str, quantizer: Any = None) -> Any:
        from finetooth_torch.precision import DTYPES
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng():
            torch.manual_seed(7)
            model = AutoModelForCausalLM.from_config(self.config).eval()
            for parameter in model.parameters():  # larger than usual, so that log-probabilities differ
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=0.1)
        model = model.to(DTYPES[precision]).to(device)
        if self.prepare is not None:
            self.prepare(model)
        return model


@dataclass
class FakeOptimizer(OptimizerBase):
    kind: Any = torch.optim.AdamW
    learning_rate: float = 1e-2
    options: Mapping[str, Any] = field(default_factory=dict)

    def create(self, named_parameters: Sequence[tuple[str, Any]]) -> Any:
        return self.kind([p for _, p in named_parameters], lr=self.learning_rate, **self.options)


@dataclass
class FakeSchedule:
    """Linear warm-up over four steps; remembers what it saw."""

    seen: list[dict[str, float]] = field(default_factory=list)

    def factor(self, step: int, total: int | None) -> float:
        return min(1.0, (step + 1) / 4)

    def observe(self, metrics: Mapping[str, float]) -> None:
        self.seen.append(dict(metrics))

    def state(self) -> Mapping[str, Any]:
        return {"seen": len(self.seen)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.seen = [{}] * int(state["seen"])


class LetterTokenizer(TokenizerBase):
    """One letter an id; ids 0 and 1 are padding and the end."""

    vocab_size, bos_id, eos_id, pad_id, chat_template, adds_bos = VOCAB, None, 1, 0, None, False

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return [2 + ord(letter) - ord("A") for letter in text]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return "".join("_^"[i] if i < 2 else chr(ord("A") + i - 2) for i in ids)

    def save(self, folder: Path) -> None:
        (folder / "letters.txt").write_text("letters", encoding="utf-8")


def tiny_config(kind: str = "llama", **changes: Any) -> Any:
    from transformers import LlamaConfig, Qwen2Config, Qwen3Config

    settings = {
        "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0, **changes,
    }  # fmt: skip
    return {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}[kind](**settings)


def facts_of(config: Any, **changes: Any) -> ModelFacts:
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    facts = ModelFacts(
        hidden_size=config.hidden_size, layers=config.num_hidden_layers, heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        ffn_size=config.intermediate_size, vocab_size=config.vocab_size, max_positions=config.max_position_embeddings,
        layer_path="model.layers", body="model", head=Head(), attention_targets=linear[:4], linear_targets=linear,
        renderer="plain", tied=config.tie_word_embeddings,
        block=llama_block(config.to_dict(), **(HEAD_NORMS if config.model_type == "qwen3" else {})),
    )  # fmt: skip
    return replace(facts, **changes)


@cache
def picked_kernels() -> dict[str, protocols.PickedKernel]:
    """The stream decoder, and the compiled kernels where they can be compiled, as a plan picks them; torch computes
    the rest."""
    context = FakeContext(Path(), installed=True)
    said = {"linear_logprob": frozenset({"expected", "added"}), "packed_linear": frozenset({"runs"})}
    installed = {registered.entry.name for registered in context.catalog.all("kernel")}
    found: dict[str, protocols.PickedKernel] = {}
    for provider in sorted({"native", "native_stream"} & installed):
        built = context.build("kernel", provider)
        for name, function in built.functions.items():
            if not built.missing(name, "cpu", "fp32"):
                found[name] = protocols.PickedKernel(provider, function, said.get(name, frozenset()))
    return found


def pick_kernels(wanted: Mapping[str, protocols.KernelRequest]) -> dict[str, protocols.PickedKernel]:
    """See `finetooth_hooks.protocols.PickKernels`."""
    return {name: one for name, one in picked_kernels().items() if name in wanted and not wanted[name].only_named}


CPU = HardwareFacts("test:cpu", (Device("cpu", "2 CPU cores", 8 * 2**30),), ("bf16", "fp32"), ("fp16",))


def make_engine(
    *,
    config: Any = None,
    adapter: FakeAdapter | None = None,
    optimizer: FakeOptimizer | None = None,
    schedule: Any = None,
    facts: Mapping[str, Any] | None = None,
    prepare: Callable[[Any], None] | None = None,
    can_disable: bool = True,
    options: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    decoder: str = "auto",
    roles: Mapping[str, protocols.RoleRequest] | None = None,
    head: ScalarHead | None = None,
    entries: tuple[Entry, ...] = (),
    collective: protocols.Collective | None = None,
    kernels: Mapping[str, protocols.PickedKernel] | None = None,
    **train: Any,
) -> Any:
    """An engine over a tiny model; installed plugins and `entries` may compute its attention. `train` changes the
    `train` section: fp32, 64 tokens a micro-batch, no clipping."""
    from finetooth_torch.backend import TorchBackend, TorchOptions

    config = config or tiny_config()
    decided = replace(TRAIN, **{"micro_batch_tokens": 64, "max_grad_norm": 0.0, **train})
    context = FakeContext(Path(), entries=entries, installed=True, seed=decided.seed)
    plan = Plan({}, {}, {}, decided, (), MemoryEstimate({}), total_steps=10)
    adapter = adapter or FakeAdapter()
    request = EngineRequest(
        plan=plan,
        base=BasePart(
            replace(ModelInfo("tiny", "test:tiny", config.model_type, {}, 10_000, 0, revision="r1"), **(model or {})),
            facts_of(config, **(facts or {})),
            FakeLoader(config, prepare),  # type: ignore[arg-type]
        ),
        trains=TrainsPart(
            adapter,
            1000,
            can_disable=can_disable and not adapter.full,
            base_frozen=can_disable and not adapter.full,
            head=head,
            generator=np.random.default_rng([decided.seed, 5]),
        ),
        updates=UpdatesPart(optimizer or FakeOptimizer(), schedule or FakeSchedule()),
        text=TextPart(LetterTokenizer(), (1,)),  # type: ignore[arg-type]
        place=PlacePart(CPU, collective, decided.seed),
        roles=roles or {},
        compute=protocols.ComputePart(picked_kernels() if kernels is None else kernels),
    )
    return TorchBackend(TorchOptions(**{"decoder": decoder, **(options or {})}), context).engine(request)


def plan_request(
    facts: ModelFacts,
    *,
    model: ModelInfo | None = None,
    hardware: HardwareFacts = CPU,
    train: Any = TRAIN,
    trained: int = 1000,
    base_frozen: bool = True,
    data: DataPart | None = None,
    kernels: Any = pick_kernels,
    **more: Any,
) -> PlanRequest:
    """What a plan is asked for: a tiny model with a low-rank adapter, unless it says otherwise."""
    return PlanRequest(
        train=train,
        base=BasePart(model or ModelInfo("tiny", "test:tiny", "llama", {}, 10_000, 0), facts, FakeLoader(None)),  # type: ignore[arg-type]
        trains=TrainsPart(FakeAdapter(full=not base_frozen), trained, base_frozen=base_frozen),
        updates=UpdatesPart(FakeOptimizer(), FakeSchedule(), "test:adamw"),
        place=PlacePart(hardware),
        data=data or DataPart(50, 30.0),
        kernels=kernels,
        **more,
    )


def make_data(count: int = 7, seed: int = 0, longest: int = 30, **changes: Any) -> list[Datum]:
    """Sequences of different lengths; the first third of each has weight 0, the last position sometimes too."""
    random = np.random.default_rng(seed)
    data = []
    for i in range(count):
        length = int(random.integers(5, longest))
        tokens = [int(t) for t in random.integers(2, VOCAB, size=length)]
        weights = [0.0] * (length // 3) + [float(w) for w in random.uniform(0.5, 2.0, size=length - length // 3)]
        if i % 2:
            weights[-1] = 0.0
        data.append(Datum.from_tokens(tokens, weights, id=f"row:{i}", **changes))
    return data


def nll(outputs: Any, data: LossData, state: Any) -> LossResult:
    total = -xp.sum(xp.where(data.mask, outputs["logprobs"], 0.0) * data.fields["weights"])
    count = xp.sum(xp.astype_like(data.mask, outputs["logprobs"]))
    return LossResult({"nll": Contribution(total)}, {"mean": Metric(total, count), "most": Metric(total, 1.0, "max")})


NLL = LossSpec("test:nll", nll)


def gradients(engine: Any) -> dict[str, np.ndarray]:
    """Accumulated gradients by name, float64."""
    named = engine._parts.parameters.named()
    return {name: p.grad.double().numpy().copy() for name, p in named if p.grad is not None}


def weights(engine: Any) -> dict[str, np.ndarray]:
    """Master weights by name."""
    return {name: p.detach().double().numpy().copy() for name, p in engine._parts.parameters.named()}


def relative(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """||a - b|| / ||b|| over all names."""
    assert a.keys() == b.keys()
    difference = sum(float(((a[name] - b[name]) ** 2).sum()) for name in b)
    return math.sqrt(difference / sum(float((b[name] ** 2).sum()) for name in b))


@pytest.fixture(scope="session", params=["auto", pytest.param("transformers", marks=pytest.mark.slow)])
def kit(request: pytest.FixtureRequest) -> SimpleNamespace:
    """What tests share, once for each way to compute the decoder layers (the tiny models' families describe them, so
    `auto` is the stream decoder); that of transformers is for `make slow`, beside the engine's contract. pytest's
    import mode keeps test modules from importing each other."""
    return SimpleNamespace(
        context=FakeContext(Path(), installed=True),
        decoder=request.param,
        engine=partial(make_engine, decoder=request.param),
        data=make_data,
        config=tiny_config,
        facts=facts_of,
        adapter=FakeAdapter,
        loader=FakeLoader,
        optimizer=FakeOptimizer,
        schedule=FakeSchedule,
        sgd=lambda rate=0.1: FakeOptimizer(torch.optim.SGD, rate),
        gradients=gradients,
        weights=weights,
        relative=relative,
        nll=NLL,
        hardware=CPU,
        plan_request=plan_request,
        kernels=picked_kernels,
        pick=pick_kernels,
        decoding=lambda: {DECODER: picked_kernels()[DECODER]},
        vocab=VOCAB,
    )
