"""Builds engines: decides the settings that the recipe leaves open, loads the weights, applies the adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from finetooth_hooks import Context, Options, PlanError
from finetooth_hooks.protocols import BackendPlan, EngineRequest, PlanRequest, Stages
from pydantic import Field

from finetooth_torch.planning.compilation import REGIONAL, Compile
from finetooth_torch.planning.decisions import STREAM, choose_decoder, decide, stream_obstacle
from finetooth_torch.planning.memory import stays_in_files
from finetooth_torch.planning.offload import DEVICE, Offload, in_parts
from finetooth_torch.planning.process_memory import reads_apart
from finetooth_torch.planning.products import choose_tf32
from finetooth_torch.planning.repeatable import choose_deterministic
from finetooth_torch.planning.routers import RouterCoefficients, check_routers
from finetooth_torch.planning.row_sharing import obstacle
from finetooth_torch.planning.skipped import loaded

if TYPE_CHECKING:
    import torch

    from finetooth_torch.attention.slices import Slices
    from finetooth_torch.compute import Compute
    from finetooth_torch.engine import TorchEngine
    from finetooth_torch.heads.scalar_head import AddedHead
    from finetooth_torch.network import Network
    from finetooth_torch.offload.layer_window import LayerWindow
    from finetooth_torch.updates.parameters import TrainedParameters
    from finetooth_torch.updates.scaler import LossScaler


class TorchOptions(Options):
    """Options of the torch backend."""

    attention: str | Mapping[str, Any] = "auto"
    """Computes attention: `auto`, the name of an `attention` entry (`sdpa`, `eager`, `flash`, ...), a mapping with
    `name:` and its options, or one of these each for layers with full attention and with a sliding window: `{full:
    flash, sliding: flex}`. `auto` takes the best one for the model and the hardware; the plan says why."""
    decoder: Literal["auto", "stream", "transformers"] = "auto"
    """How decoder layers are computed. `stream`: without padding, with grouped linear layers (on a CPU, for families
    that describe their layers). `transformers`: by the model's own code. `auto` takes the first that works."""
    compile: Compile = "auto"
    """Whether torch compiles decoder layers that the model's own code computes (`decoder: transformers`). `regional`:
    each layer, as one piece of code that all equal layers share, for any batch and length. Sampling stays uncompiled.
    Compiling takes from half a minute to minutes when a run starts, and numbers differ by rounding. `auto`: off, since
    it saved 7 % of a step on a CPU, and no accelerator was measured."""
    tf32: Literal["auto"] | bool = "auto"
    """Whether fp32 products are rounded to TF32 (a mantissa of 10 bits instead of 23), which NVIDIA GPUs from compute
    capability 8.0 multiply several times as fast. `auto`: no. It applies to the whole process."""
    deterministic: Literal["auto"] | bool = "auto"
    """Whether a GPU computes the same bits each time, so that resumed and repeated runs are the same to the last bit.
    The backward pass of attention is then slightly slower and takes more memory, and an operation without a
    deterministic version ends the run with its name. `auto`: yes, except for models with linear attention or
    state-space layers. It applies to the whole process, but not to sampling. A CPU always computes the same bits."""
    graphs: Literal["auto"] | bool = "auto"
    """Whether sampling replays a graph of one token's step, on GPUs and with the stream decoder: one launch instead of
    hundreds, which take longer than the computation of a small model. Rows with penalties, biases or a schema are
    sampled without. The tokens are the same. `auto`: not yet, since it has not been measured on a GPU."""
    detect_anomaly: bool = False
    """Whether to check every operation of the backward pass. The first that gives NaN ends the run with its name, and
    torch prints the lines of the forward pass that it comes from. For debugging: a step takes about twice as long. It
    applies to the whole process."""
    share_base: bool = False
    """Whether the engines of a process share one copy of the base's weights. Each needs this option and an adapter that
    leaves the base unchanged. For a server with many adapters on one base."""
    packing: Literal["auto"] | bool = "auto"
    """Whether examples of a step share rows of the model's input if that saves padding. Each has its own positions and
    sees only itself: less to compute, the same numbers. `auto` packs if the model can, `true` refuses a model that
    cannot. The stream decoder has no padding and always packs."""
    activations: Literal["device", "host", "disk"] = "device"
    """Where activations of 1 MiB or more are kept between the forward and the backward pass: on the `device`, in `host`
    memory, or in a file on `disk` (TMPDIR). The numbers are the same; a step takes longer. On a CPU, whose memory is
    the host's, only `disk` saves memory."""
    layers: Literal["device", "host", "disk"] = "device"
    """Where frozen decoder layers are kept: on the `device`, in `host` memory or on `disk`. During a pass a few at a
    time (`layer_window`) are copied to the device, so a model may be larger than the device's memory. Layers on disk
    stay in the files they were loaded from if these have the run's precision; otherwise they are copied into TMPDIR.
    The numbers are the same; a step takes longer. For adapters that leave the base unchanged."""
    role_layers: Literal["device", "host", "disk", "spread"] = "device"
    """Where decoder layers of a method's other models are kept (a reference, a teacher, a reward model): on the
    `device`; in `host` memory or on `disk` (TMPDIR), from where accelerate copies them to the device while they
    compute; or `spread` over the other accelerators of this machine and then host memory. Except for `device`, the
    models' own code computes them, as with `decoder: transformers`. Files that a killed process left in TMPDIR are
    removed at the next start with `disk`."""
    router_aux_loss_coef: float = Field(default=0.0, ge=0)
    """Weight of the load-balancing loss of a mixture of experts (Switch Transformer, arXiv:2101.03961), which keeps a
    router from sending everything to a few experts; 0.001 is usual, 0 is off. It is computed over the whole step, which
    takes another forward pass if a step has several micro-batches or ranks."""
    router_z_loss_coef: float = Field(default=0.0, ge=0)
    """Weight of the z-loss of a mixture's routers (ST-MoE, arXiv:2202.08906), which keeps their logits small; 0.001 is
    usual, 0 is off."""
    feed_forward_tokens: int = Field(default=0, ge=0)
    """Number of tokens for which a layer's feed-forward block is computed at once, and recomputed in the backward
    pass, so that long rows take less memory: the block is several times as wide as its input. 2048 is usual, for
    rows of more than 8,192 tokens, together with `train.gradient_checkpointing`. The numbers are the same. 0: a
    whole micro-batch."""
    layer_window: int = Field(default=4, ge=1)
    """How many layers are on the device at once if `layers` are elsewhere. Unless it is 1, one of them is being
    copied."""


class TorchBackend:
    """See `finetooth_hooks.protocols.Backend`."""

    def __init__(self, options: TorchOptions, context: Context | None = None) -> None:
        self._options, self._context = options, context
        self._packing = None if options.packing == "auto" else options.packing
        self._offload = Offload(
            options.activations, options.layers, options.layer_window, options.feed_forward_tokens, options.role_layers
        )
        self._routers = RouterCoefficients(options.router_aux_loss_coef, options.router_z_loss_coef)

    def plan(self, request: PlanRequest) -> BackendPlan:
        options = self._options
        if options.share_base and options.layers != DEVICE:
            raise PlanError(
                f"backend.layers={options.layers}: engines that share a base (backend.share_base) have its layers on "
                "the device",
                action="leave one of the two out",
            )
        tf32 = choose_tf32(options.tf32, request.train.precision, request.place.hardware)
        check_routers(self._routers, request.base.facts, request.base.model.model_type)
        if self._routers and in_parts(request.place):
            raise PlanError(
                "backend.router_aux_loss_coef, router_z_loss_coef: scale.strategy divides the model or rows",
                action="leave both out, or set scale.strategy: ddp",
            )
        planned = decide(
            request, options.attention, options.decoder, self._packing, self._context, self._offload, self._routers,
            share_base=options.share_base, compiling=options.compile, anomalies=options.detect_anomaly,
            graphs=options.graphs,
        )  # fmt: skip
        repeats = choose_deterministic(options.deterministic, request.base.facts, request.place.hardware)
        return replace(planned, decisions=(*planned.decisions, *filter(None, (repeats, tf32))))

    def engine(self, request: EngineRequest) -> TorchEngine:
        """See `finetooth_hooks.protocols.Backend`.

        Raises:
            EngineError: memory ran out.
        """
        import torch

        from finetooth_torch.device.accelerator import suit_allocator, suit_attention, suit_products, suit_repeats
        from finetooth_torch.device.exhaustion import built
        from finetooth_torch.planning.fp8 import with_stored_precision

        hardware = request.place.hardware
        device = torch.device(hardware.device)
        suit_allocator(device, hardware.allocator)
        suit_attention(hardware.architecture)
        suit_products(device, tf32=self._options.tf32 is True)
        torch.autograd.set_detect_anomaly(self._options.detect_anomaly)
        repeats = choose_deterministic(self._options.deterministic, request.base.facts, hardware)
        if repeats is not None:
            suit_repeats(deterministic=bool(repeats.value))
        request = with_stored_precision(request)

        def build() -> TorchEngine:
            _try_kernels(request, device)
            return self._engine(request)

        return built(build, request, device)  # makes it torch's current device, which kernels may use

    def _engine(self, request: EngineRequest) -> TorchEngine:
        import torch
        from finetooth_torchshared.float8 import multiply_in_fp8
        from finetooth_torchshared.kept_in_fp32 import kept_in_fp32

        from finetooth_torch.attention.agreement import apply_attention
        from finetooth_torch.compute import DECODER, FP8, WINDOWED, Compute
        from finetooth_torch.decoder.wide_residual import widen_residual
        from finetooth_torch.device.graphs import CudaGraphs
        from finetooth_torch.device.host_memory import give_back_freed, keep_freed
        from finetooth_torch.engine import Parts, TorchEngine
        from finetooth_torch.network import Network
        from finetooth_torch.offload.saved_tensors import SavedTensors, putting
        from finetooth_torch.precision import DTYPES, result_dtype
        from finetooth_torch.roles.shared_base import shared_base
        from finetooth_torch.state.optimizer import group_options
        from finetooth_torch.updates.changes import Changes
        from finetooth_torch.updates.scaler import LossScaler

        train, hardware = request.plan.train, request.place.hardware
        assert train.precision is not None
        device, dtype = torch.device(hardware.device), DTYPES[train.precision]
        # If weights of the base train, their masters begin with the checkpoint's numbers: from rounded ones, the first
        # steps would round to the same weights again.
        rounds = result_dtype(dtype) != dtype and not request.trains.base_frozen
        lends, fp8 = self._offload.layers != DEVICE, FP8 in request.compute.kernels
        shards, slices = _divided(request)
        precision = "fp32" if rounds and not (shards and _stored_in_bf16(request)) else train.precision
        on_host = lends or shards  # layers are copied to the device one by one
        load = partial(_load, request, precision, "cpu" if on_host else hardware.device)
        shares = self._options.share_base and request.trains.base_frozen
        base: Any = shared_base(request, f"{precision} {FP8}" if fp8 else precision, load) if shares else load()
        _check_quantised(base, request)
        pick, decoder = self._options.attention, self._options.decoder
        why_not = stream_obstacle(
            request.base.facts, hardware, pick, self._packing, config=request.base.model.config, offload=self._offload,
            sharded=in_parts(request.place), routed=bool(self._routers), windows=WINDOWED in request.compute.kernels,
        )  # fmt: skip
        chosen = choose_decoder(why_not, hardware, decoder, brought=DECODER in request.compute.kernels)
        stream = chosen.value == STREAM
        original = {id(parameter) for parameter in base.parameters()}
        names = kept_in_fp32(base, dtype)
        in_fp32 = {id(parameter) for name, parameter in base.named_parameters() if name in names}
        stand_ins = _stand_ins(base, request)
        with stand_ins():
            attention = apply_attention(
                base, pick, request.base.facts, request.base.model.config, hardware, train.precision, self._context,
                of_transformers=stream or self._options.compile == REGIONAL, sliced=slices is not None,
            )  # fmt: skip
            eight = _in_fp8(base, request) if fp8 else []
            _by_operations(base, request)
            model = request.trains.adapter.apply(base, request.base.facts, request.trains.generator)
        if fp8:  # only of the base: the adapter's weights are small, and train
            multiply_in_fp8(eight, request.compute.kernels[FP8].function)
        model = model if request.place.wrap is None else request.place.wrap(model)
        scalar = _added_head(base, request)
        window = _window(base, model, request, self._offload, device) if lends else None
        scaler = LossScaler(enabled=train.precision == "fp16")
        compute = Compute.of(request.compute.kernels, CudaGraphs if self._options.graphs is True else None)
        parameters = _trained(base, model, request, original, in_fp32, scaler, compute, stand_ins)
        if not stream:
            widen_residual(base, request.base.facts, self._context)
        network = parameters.built(partial(
            Network, base, model, request.base.facts, request.trains.adapter, can_disable=request.trains.can_disable,
            checkpointing=bool(train.gradient_checkpointing), stream=stream, packing=self._packing,
            processor=request.text.processor, scalar=scalar, attention=attention, compute=compute,
            strict=request.place.collective is not None, slices=slices, pieces=self._offload.pieces,
        ))  # fmt: skip
        parameters.serve(network)  # from here on a rank of a pipeline has only its own layers
        self._complete(network, request, parameters)
        self._note_padding(network, obstacle(request.base.model.config, attention))
        if device.type == "cpu":  # only now: loading has returned its memory to the system
            give_back_freed() if self._offload.any else keep_freed()
        optimizer = _optimizer(request, parameters)
        changes = Changes(request.trains.adapter, model, parameters, request.place.seed)
        saved = SavedTensors(model, putting(self._offload.activations, device), window)
        parts = Parts(network, parameters, optimizer, scaler, device, dtype, group_options(optimizer), changes, saved)
        return TorchEngine(request, parts)

    def _complete(self, network: Network, request: EngineRequest, parameters: TrainedParameters) -> None:
        """Add what the recipe asks of a network besides its model: noise, losses of routers, compiled layers, roles."""
        from finetooth_torch.roles.role_models import hold_roles

        network.draws.note = self._context.note if self._context else None
        network.add_noise(request.plan.train.embedding_noise)
        network.add_router_losses(self._routers)
        network.compile_layers(self._options.compile)
        hold_roles(network, request, parameters, self._options, self._context)

    def _note_padding(self, network: Network, planned: str) -> None:
        """Tell why rows are padded if the plan could not know.

        Args:
            planned: the reason that the plan gave, or empty.
        """
        reason = network.rows.obstacle
        if reason and self._packing is None and self._context and not planned:
            self._context.note(f"backend.packing: rows are padded, not packed: {reason}")


def _by_operations(base: torch.nn.Module, request: EngineRequest) -> None:
    """Make experts and gated norms use the operations picked for them, and group stored experts so that only those with
    rows are dequantised; if ranks divide the model, its own code computes them."""
    from finetooth_torchshared.grouped_experts import compute_in_groups
    from finetooth_torchshared.stored_experts import is_stored

    from finetooth_torch.compute import EXPERTS, GATED_NORM
    from finetooth_torch.decoder.gated_norms import compute_gated_norms

    if _divided(request)[0]:
        return
    for module in filter(is_stored, base.modules()):
        compute_in_groups(module)
    for operation, compute in ((EXPERTS, compute_in_groups), (GATED_NORM, compute_gated_norms)):
        if operation in request.compute.kernels:
            compute(base, request.compute.kernels[operation].function)


def _divided(request: EngineRequest) -> tuple[bool, Slices | None]:
    """Whether ranks hold parts of the model; and this rank's share of positions, if ranks divide them."""
    from finetooth_torch.attention.slices import Slices

    sharding = request.place.sharding
    if sharding is None:
        return False, None
    return sharding.shard is not None, None if sharding.neighbours is None else Slices(sharding.neighbours())


def _stored_in_bf16(request: EngineRequest) -> bool:
    """Whether the files have this precision, so that nothing is rounded and ranks share mapped files."""
    model = request.base.model
    written = str(model.config.get("dtype") or model.config.get("torch_dtype")).removeprefix("torch.")
    return (request.plan.train.precision, written) == ("bf16", "bfloat16") and model.weight_bytes < 3 * model.parameters


def _stages(request: EngineRequest) -> Callable[[], Stages] | None:
    """Gives the line to the ranks with the other layers, if there are any."""
    return None if request.place.sharding is None else request.place.sharding.stages


def _stand_ins(base: Any, request: EngineRequest) -> Callable[[], AbstractContextManager[None]]:
    """Makes numbers for layers that this rank has not read; see `standing_in`."""
    if _stages(request) is None:
        return nullcontext
    from finetooth_torch.staged.reading import standing_in

    return partial(standing_in, base, list(base.get_submodule(request.base.facts.layer_path).children()))


def _try_kernels(request: EngineRequest, device: torch.device) -> None:
    """
    Raises:
        PlanError: a kernel that the plan picked is wrong on the device.
    """
    from finetooth_torch.compute import DECODER, EXPERTS, FP8, GATED_NORM, WINDOWED, compute_request
    from finetooth_torch.device.kernel_trials import check_kernels

    picked, precision = request.compute.kernels, request.plan.train.precision
    assert precision is not None
    uses = compute_request(
        precision, stream=DECODER in picked, fp8=FP8 in picked, experts=EXPERTS in picked,
        gated_norm=GATED_NORM in picked, windows=WINDOWED in picked,
    )  # fmt: skip
    check_kernels(picked, uses, device, request.place.hardware.label)


def _optimizer(request: EngineRequest, parameters: TrainedParameters) -> torch.optim.Optimizer:
    """The recipe's optimizer; a `ShardedOptimizer` if a strategy shards it over ranks."""
    from finetooth_torch.updates.settings import split_by_rate

    named, factory = parameters.named(), request.updates.optimizer
    optimizer = factory.create(named)
    split_by_rate(optimizer, named, request.trains.adapter.rate_shares(parameters.names))
    spread = request.place.shard_optimizer
    made: torch.optim.Optimizer = optimizer if spread is None else spread(named, optimizer, factory)
    return made


def _trained(
    base: Any, model: Any, request: EngineRequest, original: Collection[int], in_fp32: Collection[int],
    scaler: LossScaler, compute: Compute, stand_ins: Callable[[], AbstractContextManager[None]],
) -> TrainedParameters:  # fmt: skip
    """The trained parameters of a model, in two precisions, and the others in one; divided if ranks hold parts.

    Args:
        original: identities of the base's parameters.
        in_fp32: of these, those that stay in fp32.
        stand_ins: see `_stand_ins`.
    """
    from finetooth_torch.precision import DTYPES, result_dtype
    from finetooth_torch.updates.parameters import TrainedParameters, round_frozen

    assert request.plan.train.precision is not None
    dtype, words = DTYPES[request.plan.train.precision], request.updates.optimizer.capabilities
    rounds = result_dtype(dtype) != dtype and not request.trains.base_frozen
    sharding = request.place.sharding
    whole = sharding is None or sharding.shard is None
    if sharding is not None and sharding.stages is not None and whole:
        from finetooth_torch.updates.staged_parameters import StagedParameters

        parameters: TrainedParameters = StagedParameters(
            model, original, dtype, scaler, compute, kept=in_fp32, words=words, stages=sharding.stages(),
            frozen=request.trains.base_frozen, stand_ins=stand_ins,
        )  # fmt: skip
    elif whole:
        parameters = TrainedParameters(model, original, dtype, scaler, compute, kept=in_fp32, words=words)
    if rounds:
        from finetooth_torch.staged.reading import in_file

        round_frozen(base, dtype, in_fp32, None if whole else in_file)
    if not whole:
        if in_fp32:
            raise PlanError(
                f"scale.strategy: it divides the model among ranks, and {request.base.model.reference} keeps some of "
                "its weights in fp32",
                action="set train.precision to fp32, or scale.strategy: ddp",
            )
        from finetooth_torch.updates.sharded_parameters import divided
        from finetooth_torch.updates.staged_parts import StagedParts

        of = (model, base, request, dtype, original, scaler, compute)
        parameters = divided(*of) if _stages(request) is None else StagedParts(*of, stand_ins)
    return parameters


def _load(request: EngineRequest, precision: str, place: str) -> torch.nn.Module:
    """The base, or the part of it that this rank needs. If ranks divide it and its files have another precision, a rank
    has no room for the whole model in that precision."""
    from finetooth_torch.device.host_memory import give_back_freed

    base, stages = request.base, _stages(request)
    if stages is not None and reads_apart(request):
        from finetooth_torch.staged.reading import read_own_layers

        own = read_own_layers(base, precision, place, stages())
        if own is not None:
            return own
    if _divided(request)[0] and reads_apart(request) and not stays_in_files(base, precision):
        from finetooth_torch.staged.reading import read_into_files

        whole = read_into_files(base, precision)
        if whole is not None:
            return whole
    if place == "cpu" and base.stored is not None:
        give_back_freed()  # a weight before quantisation would leave a hole in memory
    with _keeping(request):
        model: torch.nn.Module = loaded(base, lambda: base.load(framework="torch", precision=precision, device=place))
    return model


def _keeping(request: EngineRequest) -> AbstractContextManager[None]:
    """Inside the `with` block, this rank keeps only its part of a quantised base, if ranks divide it."""
    sharding = request.place.sharding
    if sharding is None or sharding.keeps is None or request.base.stored is None:
        return nullcontext()
    from finetooth_torch.staged.reading import keeping_parts

    return keeping_parts(sharding.keeps)


def _in_fp8(base: torch.nn.Module, request: EngineRequest) -> list[torch.nn.Linear]:
    """The base's modules that will multiply in 8 bits.

    Raises:
        PlanError: there are none.
    """
    from finetooth_torchshared.float8 import Float8Linear, plain_linears

    layers = base.get_submodule(request.base.facts.layer_path)
    linears = plain_linears(layers)
    if not linears and not any(isinstance(module, Float8Linear) for module in layers.modules()):  # of a shared base
        raise PlanError(
            f"train.precision=fp8: no layer of {request.base.model.reference} has a linear module of plain numbers",
            action="set train.precision to bf16",
        )
    return linears


def _window(
    base: Any, model: Any, request: EngineRequest, offload: Offload, device: torch.device
) -> LayerWindow:  # fmt: skip
    """Lends the frozen layers of the base."""
    from finetooth_torch.offload.layer_window import window_of

    layers = list(base.get_submodule(request.base.facts.layer_path))
    return window_of(model, layers, where=offload.layers, width=offload.window, device=device)


def _added_head(base: Any, request: EngineRequest) -> AddedHead | None:
    """The scalar head that a method asks for, on the base."""
    from finetooth_torch.heads.scalar_head import AddedHead

    if request.trains.head is None:
        return None
    pad = request.text.tokenizer.pad_id  # an id outside the vocabulary could not be saved
    pad = pad if pad is not None and pad < request.base.facts.vocab_size else None
    size, generator = request.base.facts.hidden_size, request.trains.head_generator
    return AddedHead(base, request.trains.head, size, generator, pad)


def _check_quantised(base: Any, request: EngineRequest) -> None:
    """Check what the plan could not check, since the loader did not say how it stores weights.

    Raises:
        PlanError: the base is quantised, and the adapter needs plain numbers.
    """
    from finetooth_torchshared.quantised import is_quantised

    if is_quantised(base) and not request.trains.accepts_quantised:
        raise PlanError(
            f"model: {request.base.model.loader} gives {request.base.model.reference} with weights in fewer bits, "
            "and the adapter needs them as plain numbers",
            action="pick a low-rank adapter, or another model",
        )
