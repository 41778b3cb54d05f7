"""The estimate on accelerators, against what autograd and optimizers really hold: models of real size, whose tensors
have shapes and no numbers, on a device that is made up."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from finetooth_gemma.family import Gemma
from finetooth_gptoss.family import GPTOSS
from finetooth_hooks import MemoryEstimate
from finetooth_hooks.bases import AdapterBase, OptimizerBase
from finetooth_hooks.protocols import (
    BasePart,
    DataPart,
    Device,
    HardwareFacts,
    ModelInfo,
    PlacePart,
    PlanRequest,
    SnapshotsPart,
    TrainsPart,
    UpdatesPart,
)
from finetooth_kit import entries_of
from finetooth_kit.fake_context import TRAIN, FakeContext
from finetooth_toolbox.llama_shape import HEAD_NORMS, layer_matrices, linear_shapes, llama_facts
from finetooth_torch.decoder import wide_residual
from finetooth_torch.planning.decisions import decide
from finetooth_torch.planning.layer_memory import (
    HeldByAttention,
    accelerator_backward_bytes,
    accelerator_layer_bytes,
    by_layer,
    residual_bytes,
)
from finetooth_torch.planning.memory import estimate
from finetooth_torch.planning.portions import choose_portions
from finetooth_torch.precision import DTYPES
from finetooth_torchshared.gpus import CONTEXT
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GIB = 2**30
RANK = 32
NOTHING: Any = None
OPTIMIZER: Any = OptimizerBase()
ADAPTER: Any = AdapterBase()
"""They ask for nothing and hold nothing beside what trains."""
WIDTH, TOKENS = 512, 1024
SHAPE = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
LLAMA = {**SHAPE, "model_type": "llama", "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
QWEN = {**SHAPE, "model_type": "qwen3", "intermediate_size": 12288, "num_hidden_layers": 36, "vocab_size": 151936}
GEMMA = {"model_type": "gemma2", "hidden_size": 2304, "num_attention_heads": 8, "num_key_value_heads": 4,
    "head_dim": 256, "intermediate_size": 9216, "vocab_size": 256000, "attn_logit_softcapping": 50.0}  # fmt: skip
OSS = {"model_type": "gpt_oss", "hidden_size": 2880, "num_attention_heads": 64, "num_key_value_heads": 8,
    "head_dim": 64, "intermediate_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4,
    "vocab_size": 201088, "experts_implementation": "grouped_mm"}  # fmt: skip
PARAMETERS = {"llama": 8_030_261_248, "qwen3": 8_190_735_360}


class Added(nn.Module):
    """A linear module with a low-rank addition, as peft's."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        made = {"bias": False, "dtype": base.weight.dtype}
        self.a, self.b = nn.Linear(base.in_features, RANK, **made), nn.Linear(RANK, base.out_features, **made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.base(x) + self.b(self.a(x)) * 2.0
        return found


def model_of(
    config: dict[str, Any], layers: int, *, full: bool, attention: str = "sdpa", precision: str = "bf16"
) -> Any:  # fmt: skip
    """With a small vocabulary; in fp16 with its stream in float32."""
    from transformers import AutoConfig, AutoModel

    made = {**config, "num_hidden_layers": layers, "vocab_size": 64}
    settings = AutoConfig.for_model(made.pop("model_type"), **made, attn_implementation=attention)
    torch.set_default_dtype(DTYPES[precision])
    try:
        model = AutoModel.from_config(settings)
    finally:
        torch.set_default_dtype(torch.float32)
    if not full:
        model.requires_grad_(False)
        for path, module in list(model.named_modules()):
            if path.endswith("_proj") and isinstance(module, nn.Linear):
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, Added(module))
    if precision == "fp16":
        with mock.patch.object(wide_residual, "_trial", lambda *of: ""):  # it needs numbers
            assert not wide_residual.widen_residual(
                model, SimpleNamespace(body="", layer_path="layers", linear_targets=())
            )
    return model.train()


def run(model: Any) -> torch.Tensor:
    """Its states over rows of which each holds several sequences, under a mask."""
    ids = torch.zeros(TOKENS // WIDTH, WIDTH, dtype=torch.long)
    mask = torch.ones(TOKENS // WIDTH, 1, WIDTH, WIDTH, dtype=torch.bool)
    positions = torch.arange(WIDTH).expand(TOKENS // WIDTH, -1)
    found: torch.Tensor = model(
        input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return found


class Live(TorchDispatchMode):
    """Bytes of the tensors that live, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):  # what was there before
            if isinstance(leaf, torch.Tensor):
                self._seen.add(leaf.untyped_storage()._cdata)
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


@contextmanager
def shapes_only() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def kept_per_token(
    config: dict[str, Any], *, full: bool, attention: str = "sdpa", precision: str = "bf16"
) -> float:  # fmt: skip
    """Bytes that one more layer keeps for backward."""
    found = []
    with shapes_only():
        for layers in (1, 2):
            model = model_of(config, layers, full=full, attention=attention, precision=precision)
            own = {p.untyped_storage()._cdata for p in model.parameters()}
            seen: dict[int, int] = {}

            def pack(tensor: torch.Tensor, own: Any = own, seen: Any = seen) -> torch.Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in own:
                    seen[storage._cdata] = storage.nbytes()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                out = run(model)
            found.append(sum(seen.values()))
            del out
    return (found[1] - found[0]) / TOKENS


def facts_of(config: dict[str, Any]) -> Any:
    norms = HEAD_NORMS if config["model_type"] == "qwen3" else {}
    return llama_facts({**config, "rms_norm_eps": 1e-6}, renderer="plain", max_positions=131072, block=norms)


def asked(
    config: dict[str, Any] = LLAMA, *, full: bool = False, memory: float = 79.2, longest: int = 2048, batch: int = 16,
    device: str = "cuda:0", state_bytes: float = 8.0, snapshots: SnapshotsPart | None = None, **train: Any,
) -> PlanRequest:  # fmt: skip
    """A run of an 8B on an H100, or whatever has that much memory."""
    facts, parameters = facts_of(config), PARAMETERS[config["model_type"]]
    shapes = linear_shapes(facts)
    low = facts.layers * RANK * sum(sum(shapes[name]) for name in facts.linear_targets)
    hardware = HardwareFacts(
        "t:gpu", (Device(device, "a GPU", int(memory * GIB), "sm_90"),), ("bf16", "fp32"), host_memory=512 * GIB
    )
    settings = {"precision": None, "micro_batch_tokens": None, "gradient_checkpointing": None, "batch_size": batch}
    mean = longest * 0.6
    return PlanRequest(
        replace(TRAIN, **{**settings, "max_length": longest, **train}),
        BasePart(ModelInfo("m", "t:m", config["model_type"], config, parameters, 2 * parameters), facts, NOTHING),
        TrainsPart(ADAPTER, parameters if full else low, base_frozen=not full),
        UpdatesPart(OPTIMIZER, NOTHING, "t:o", state_bytes),
        PlacePart(hardware),
        DataPart(longest, mean, "", mean / 3, tuple(int(mean * share) for share in (0.3, 0.6, 1.0, 1.3, 1.66))),
        snapshots=snapshots or SnapshotsPart(),
    )


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen3"])
def test_what_a_layer_keeps_is_what_autograd_saves(config: dict[str, Any], full: bool) -> None:
    request = asked(config, full=full, longest=WIDTH)
    planned = accelerator_layer_bytes(request, "bf16", full=full, attention=HeldByAttention(masked=True))
    assert planned == pytest.approx(kept_per_token(config, full=full), rel=0.01)
    # with rows of their own a GPU's attention repeats no keys and values, and holds no mask
    apart = accelerator_layer_bytes(request, "bf16", full=full, attention=HeldByAttention())
    assert planned - apart == 2 * 2 * (4096 - 1024) + 2 * WIDTH


@pytest.mark.parametrize("config", [LLAMA, QWEN, GEMMA], ids=["llama", "qwen3", "gemma2"])
def test_in_fp16_the_stream_takes_four_bytes(config: dict[str, Any]) -> None:
    """Between layers, and where a norm's weight trains."""
    eager, family = config["model_type"] == "gemma2", Gemma()
    request = asked(full=True, longest=WIDTH) if eager else asked(config, full=True, longest=WIDTH)
    if eager:
        kinds = ["sliding_attention", "full_attention"]
        facts = family.facts({**config, "num_hidden_layers": 2, "layer_types": kinds})
        request = replace(request, base=replace(request.base, facts=facts))
    held = HeldByAttention(masked=True, fused=not eager)
    planned, _ = by_layer(
        request, "fp16", lambda alike: accelerator_layer_bytes(alike, "fp16", full=True, attention=held), full=True,
        unknown=2.0, residual=residual_bytes("fp16", stream=False),
    )  # fmt: skip
    how: dict[str, Any] = {"full": True, "attention": "eager" if eager else "sdpa"}
    kept = kept_per_token(config, precision="fp16", **how)
    assert planned == pytest.approx(kept, rel=0.03 if eager else 0.01)
    assert kept - kept_per_token(config, **how) == (0 if eager else 4 * config["hidden_size"])  # Gemma's are float32
    made = [
        estimate(replace(request, train=replace(request.train, precision=name)), name, TOKENS, checkpointing=True,
                 stream=False).parts["activations"]
        for name in ("bf16", "fp16")
    ]  # fmt: skip
    layers = request.base.facts.layers
    assert made[1] - made[0] >= 2 * layers * TOKENS * config["hidden_size"]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("config", [GEMMA, OSS], ids=["gemma2", "gpt_oss"])
def test_norms_caps_sinks_and_clamped_experts_are_counted(config: dict[str, Any], full: bool) -> None:
    """Attention that is written out, as where no fused kernel has a cap or sinks."""
    family = Gemma() if config["model_type"] == "gemma2" else GPTOSS()
    request = asked(full=full, longest=WIDTH)
    kinds = ["sliding_attention", "full_attention"]
    facts = family.facts({**config, "num_hidden_layers": 2, "layer_types": kinds})
    request = replace(request, base=replace(request.base, facts=facts))
    if not full:
        low = RANK * sum(map(sum, layer_matrices(facts)))
        request = replace(request, trains=replace(request.trains, parameters=low))
    held = HeldByAttention(masked=True, fused=False)
    planned, _ = by_layer(
        request, "bf16", lambda alike: accelerator_layer_bytes(alike, "bf16", full=full, attention=held), full=full,
        unknown=2.0,
    )  # fmt: skip
    assert planned == pytest.approx(kept_per_token(config, full=full, attention="eager"), rel=0.03)


def test_scores_that_are_not_fused_are_counted() -> None:
    request = asked(longest=WIDTH)
    planned = accelerator_layer_bytes(request, "bf16", full=False, attention=HeldByAttention(masked=True, fused=False))
    assert planned == pytest.approx(kept_per_token(LLAMA, full=False, attention="eager"), rel=0.02)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen3"])
def test_what_passes_while_a_layer_is_differentiated(config: dict[str, Any], full: bool) -> None:
    request = asked(config, full=full, longest=WIDTH)
    with shapes_only():
        model = model_of(config, 1, full=full)
        for parameter in model.parameters():  # gradients leave as they come
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        with Live() as live:
            out = run(model)
            before = live.now
            live.most = before
            out.sum().backward()
    planned = TOKENS * accelerator_backward_bytes(request, "bf16")
    passing = live.most - before
    if full:  # beside the gradient of one weight, less than that of the head, which the estimate counts
        assert passing <= planned + 2 * config["intermediate_size"] * config["hidden_size"]
    else:
        assert passing == pytest.approx(planned, rel=0.01)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {}), ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}), ("adafactor", {}),
        ("lion", {}),
    ],
)  # fmt: skip
def test_what_an_update_of_many_tensors_at_once_holds(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import finetooth_standard.optimizers as optimizers

    monkeypatch.setattr(optimizers, "_together", lambda groups: True)  # as on an accelerator
    entry = next(e for e in entries_of("finetooth_standard.plugin") if e.kind == "optimizer" and e.name == name)
    context = FakeContext(Path(), installed=True)
    made = context.build("optimizer", {"name": f"finetooth-standard:{name}", **options})
    parameters = [nn.Parameter(torch.ones(64, 128)) for _ in range(32)]
    optimizer = made.create([(str(i), p) for i, p in enumerate(parameters)])
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with Live() as live:
            optimizer.step()
    assert live.most / (32 * 64 * 128) == pytest.approx(entry.update_bytes, abs=0.3)  # of a tensor or two


MEASURED = [  # hidden, feed-forward, layers; rows of a step and their mean length; GiB that one H100 held
    ((2048, 8192, 16), (8, 562), 7.24),
    ((4096, 14336, 32), (8, 3950), 66.74),
]
"""LoRA of rank 16 by the stream decoder, in micro-batches of up to 16,384 tokens, a vocabulary of 49,152; the second
figure is of tensors alone. See docs/decisions/0052."""


@pytest.mark.parametrize(("shape", "rows", "held"), MEASURED, ids=["1B", "8B"])
def test_the_stream_decoder_takes_what_an_h100_held(
    shape: tuple[int, int, int], rows: tuple[int, int], held: float
) -> None:
    hidden, ffn, layers = shape
    config = {**LLAMA, "hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers}
    config |= {"head_dim": hidden // 32, "vocab_size": 49_152}
    facts = facts_of(config)
    shapes = [linear_shapes(facts)[name] for name in facts.linear_targets]
    low = layers * 16 * sum(map(sum, shapes))
    parameters = layers * sum(inputs * outputs for inputs, outputs in shapes) + 2 * 49_152 * hidden
    count, mean = rows
    request = asked(batch=count, longest=mean + 20)
    request = replace(
        request,
        base=BasePart(ModelInfo("m", "t:m", "llama", config, parameters, 2 * parameters), facts, NOTHING),
        trains=replace(request.trains, parameters=low),
        data=replace(request.data, mean_length=mean, length_deviation=5.0),
    )
    planned = estimate(request, "bf16", 16_384, checkpointing=False, stream=True).total / GIB - CONTEXT / GIB
    assert held <= planned <= 1.12 * held


# --- what is decided by it --------------------------------------------------------------------------------------------


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Decided as on a GPU whose attention is torch's."""

    def decided(request: PlanRequest, packing: bool | None = False, attention: Any = "sdpa") -> Any:
        return decide(request, attention, packing=packing, context=FakeContext(Path(), installed=True))

    return decided


def portions(made: Any) -> tuple[int, bool]:
    return made.train.micro_batch_tokens, made.train.gradient_checkpointing


def test_fewer_tokens_at_once_come_before_recomputing(plan: Any) -> None:
    made = plan(asked())
    reasons = {decision.setting: decision.reason for decision in made.decisions}
    assert portions(made) == (8192, False)
    assert reasons["train.micro_batch_tokens"].startswith("16384 would take 121")
    assert reasons["train.gradient_checkpointing"].startswith("activations fit: 6")
    assert portions(plan(asked(micro_batch_tokens=16384))) == (16384, True)  # the recipe wants so many
    assert portions(plan(asked(memory=141))) == (16384, False)


def test_recomputing_comes_before_an_idle_device(plan: Any) -> None:
    made = plan(asked(memory=24))
    assert portions(made)[1] is True and portions(made)[0] >= 2048
    assert made.memory.total <= 24 * GIB
    assert portions(plan(asked(longest=16384, batch=8))) == (16384, True)  # no row is cut
    assert portions(plan(asked(memory=48, gradient_checkpointing=False))) == (4096, False)


@pytest.mark.parametrize("of_token, tokens, recomputes", [(2, 16384, False), (4, 8192, False), (24, 8192, True)])
def test_activations_on_the_host_have_to_fit_there(of_token: int, tokens: int, recomputes: bool) -> None:
    """MiB a token where the host has 40 GiB; recomputed layers keep an eighth."""

    def needs(tokens: int, *, checkpointing: bool) -> MemoryEstimate:
        kept = tokens * of_token * 2**20 // (8 if checkpointing else 1)
        return MemoryEstimate({"weights": GIB}, host={"activations": kept, "overhead": GIB})

    request = asked(memory=8)
    host = replace(request.place.hardware, host_memory=40 * GIB)
    made, again = choose_portions(replace(request, place=PlacePart(host)), needs)
    assert (made.value, again.value) == (tokens, recomputes)
    assert ("of the host's 42.95 GB" in made.reason) is (tokens < 16384)


def test_a_small_step_needs_no_care(plan: Any) -> None:
    assert portions(plan(asked(longest=512, batch=8))) == (16384, False)


def test_what_fits_nowhere_is_as_small_as_it_gets(plan: Any) -> None:
    made = plan(asked(QWEN, full=True, longest=512, batch=8))
    assert portions(made) == (512, True) and made.memory.total > 79.2 * GIB  # the core refuses it
    assert made.memory.parts["optimizer"] > 60 * GIB


def test_a_cpu_decides_as_before(plan: Any) -> None:
    for memory in (8, 64, 1000):
        for snapshots in (SnapshotsPart(), SnapshotsPart(1, 1)):
            request = asked(memory=memory, device="cpu", snapshots=snapshots)
            assert plan(request).train.micro_batch_tokens == 4096
    with_, without = (plan(asked(memory=55, device="cpu", snapshots=s)) for s in (SnapshotsPart(1, 1), SnapshotsPart()))
    assert portions(with_) == portions(without)
    assert with_.memory.parts["snapshots"] == 12 * asked().trains.parameters


def test_copies_of_what_trains_are_counted_where_they_are(plan: Any) -> None:
    trained = asked().trains.parameters
    made = plan(asked(snapshots=SnapshotsPart(device=2, host=3))).memory
    assert made.parts["snapshots"] == 2 * 12 * trained and made.host["snapshots"] == 3 * 12 * trained
    assert plan(asked()).memory.parts["snapshots"] == 0


def test_gradients_of_earlier_calls_are_counted_where_they_are(plan: Any) -> None:
    """On the device up to a sixteenth of its memory, else in host memory; where none can wait, nowhere."""

    def taken(request: PlanRequest, *words: str) -> tuple[int | None, int | None]:
        optimizer: Any = OptimizerBase()
        optimizer.capabilities = frozenset(words)
        several = replace(request, several_calls=True, updates=replace(request.updates, optimizer=optimizer))
        made = estimate(several, "bf16", 2048, checkpointing=True, stream=False)
        return made.parts.get("earlier_gradients"), made.host.get("earlier_gradients")

    low, whole = asked(), asked(full=True)
    assert taken(low) == (4 * low.trains.parameters, None)
    assert taken(asked(memory=4)) == (None, 4 * low.trains.parameters)
    assert taken(whole) == (None, 4 * PARAMETERS["llama"])
    assert taken(asked(full=True, device="cpu")) == (4 * PARAMETERS["llama"], None)
    assert taken(asked(full=True, device="mps"))[1] is None  # one memory
    assert taken(whole, "in_backward") == (None, None)
    (block, _) = taken(asked(full=True, memory=400), "in_turn")
    assert block is not None and 0 < block < 4 * PARAMETERS["llama"] // 10
    assert "earlier_gradients" not in plan(low).memory.parts


def test_the_host_has_room_for_the_weights_while_they_are_read(plan: Any) -> None:
    assert plan(asked()).memory.host["loading"] == 2 * PARAMETERS["llama"]
    assert plan(asked(full=True)).memory.host["loading"] == 4 * PARAMETERS["llama"]  # its masters are fp32
    whole = asked()
    apart = replace(whole, base=replace(whole.base, model=replace(whole.base.model, by_module=True)))
    words = whole.base.facts.vocab_size * whole.base.facts.hidden_size
    assert plan(apart).memory.host["loading"] == (4 + 2) * words  # as it is read, and in bf16


def test_an_update_counts_where_activations_are_less() -> None:
    request = asked(full=True)
    updates = replace(request.updates, update_bytes=4.0)
    less, more = (
        estimate(replace(request, updates=u), "bf16", 2048, checkpointing=True, stream=False)
        for u in (request.updates, updates)
    )
    beside = less.parts["activations"] + less.parts["logits"]
    assert more.parts["update"] == pytest.approx(4 * request.trains.parameters - beside, abs=1)
    assert less.parts["update"] == 0


def test_shared_rows_count_their_mask(plan: Any) -> None:
    apart, shared = (plan(asked(micro_batch_tokens=16384), packing).memory for packing in (False, None))
    assert shared.parts["activations"] > apart.parts["activations"]
