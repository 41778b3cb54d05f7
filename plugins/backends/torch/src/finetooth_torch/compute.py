"""The operations that the plan picked for the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import KernelRequest, PickedKernel
from finetooth_kernels.decoder import MakeDecoder
from finetooth_kernels.operations import OPERATIONS

if TYPE_CHECKING:
    import torch

    from finetooth_torch.device.graphs import Graphs

Operation = Callable[..., Any]
MakeGraphs = Callable[["torch.device"], "Graphs"]


def _features(kernels: Mapping[str, PickedKernel], operation: str) -> frozenset[str]:
    """Of who computes it."""
    return kernels[operation].features if operation in kernels else OPERATIONS[operation].features


@dataclass(frozen=True)
class Compute:
    """The operations of `finetooth_kernels.operations` that this backend uses.

    Attributes:
        expects, adds: whether `linear_logprob` uses `expected`, and takes `added`.
        cached_attention, packed_linear: None for the backend's own.
        packed_head: `packed_linear` if its provider also computes `linear_logprob`, so that sampling, training and
            scoring have the same logits.
        low_rank_linear: with the products of `matmul_rounded_once` if that was picked.
        runs: whether `packed_linear` takes runs of rows with different adapters.
        stream_decoder: makes one; None if the model's own code computes its layers.
        graphs: makes those of a batch that is sampled; None: every token's step is given to the device anew.
        providers: full names of the entries that the plan picked, by operation.
    """

    linear_logprob: Operation
    logits_statistics: Operation
    accumulate: Operation
    keyed_dropout: Operation
    rms_norm: Operation
    rotary: Operation
    norm_rotary: Operation
    gated_mlp: Operation
    low_rank_linear: Operation
    segment_attention: Operation
    windowed_attention: Operation
    expects: bool
    adds: bool
    cached_attention: Operation | None = None
    packed_linear: Operation | None = None
    packed_head: Operation | None = None
    stream_decoder: MakeDecoder | None = None
    runs: bool = False
    graphs: MakeGraphs | None = None
    providers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(kernels: Mapping[str, PickedKernel], graphs: MakeGraphs | None = None) -> Compute:
        """The picked operations, and torch's own of all others."""

        def function(name: str) -> Operation | None:
            return kernels[name].function if name in kernels else OPERATIONS[name].torch

        head, features = kernels.get("linear_logprob"), _features(kernels, "linear_logprob")
        functions: dict[str, Any] = {name: function(name) for name in (*ALWAYS, *STREAM, WINDOWED, *OWN)}
        if PRODUCTS in kernels and "multiply" in _features(kernels, "low_rank_linear"):
            functions["low_rank_linear"] = partial(functions["low_rank_linear"], multiply=kernels[PRODUCTS].function)
        packs = kernels.get("packed_linear")
        alike = packs is not None and head is not None and packs.provider == head.provider
        decoder = kernels[DECODER].function if DECODER in kernels else None
        return Compute(
            **functions, expects="expected" in features, adds="added" in features,
            packed_head=packs.function if packs and alike else None, stream_decoder=decoder,
            runs=packs is not None and "runs" in packs.features, graphs=graphs,
            providers={name: picked.provider for name, picked in kernels.items()},
        )  # fmt: skip


DECODER = "stream_decoder"
ALWAYS = ("linear_logprob", "logits_statistics", "accumulate", "keyed_dropout")
STREAM = ("rms_norm", "rotary", "norm_rotary", "gated_mlp", "low_rank_linear", "segment_attention")
"""Operations of the stream decoder's layers."""
WINDOWED = "windowed_attention"
"""And that of layers with a window, a cap or sinks: torch's, unless a recipe picks a provider."""
PRODUCTS = "matmul_rounded_once"
"""Operations inside those linear layers, which have their own unless a recipe picks a provider."""
FP8 = "fp8_linear"
"""The operation of the layers' linear modules if `train.precision` is `fp8`."""
EXPERTS = "grouped_matmul"
"""The operation of a mixture's experts if the model holds them as one weight."""
GATED_NORM = "gated_norm"
"""The gated norm of linear attention layers, if the model's own module has the same formula."""
OWN = ("cached_attention", "packed_linear")
"""Optional operations; the stream decoder samples with the first."""

TORCH = Compute.of({})
"""Torch's own of all operations."""


def decoder_request(precision: str) -> dict[str, KernelRequest]:
    """The operations that the plan needs if a stream decoder could compute the layers."""
    return {DECODER: KernelRequest((precision,), optional=True)}


def windows_request(precision: str) -> dict[str, KernelRequest]:
    """What a stream decoder needs for layers with a window, a cap or sinks, if a recipe names who computes it."""
    return {WINDOWED: KernelRequest((precision,), optional=True, only_named=True)}


def compute_request(
    precision: str,
    *,
    stream: bool,
    fp8: bool = False,
    experts: bool = False,
    gated_norm: bool = False,
    windows: bool = False,
) -> dict[str, KernelRequest]:
    """The operations that an engine will need. Logits, sums of gradients and the residual stream are in full precision.

    Args:
        precision: in which the model computes.
        stream: the stream decoder computes the layers.
        fp8: the layers' linear modules multiply in 8 bits.
        experts: some layer has them.
        gated_norm: some layer may have one.
        windows: some layer has a window, a cap or sinks.
    """
    operations = {
        **({FP8: KernelRequest((precision,))} if fp8 else {}),
        **({EXPERTS: KernelRequest((precision,), optional=True)} if experts else {}),
        **({GATED_NORM: KernelRequest((precision,), optional=True)} if gated_norm else {}),
        "linear_logprob": KernelRequest((precision,)),
        "logits_statistics": KernelRequest(("fp32",), backward=False),
        "accumulate": KernelRequest(("fp32",), backward=False),
        "keyed_dropout": KernelRequest((precision,), optional=True),
        "packed_linear": KernelRequest((precision,), backward=False, optional=True),
    }
    if stream:
        both = tuple(dict.fromkeys((precision, "fp32")))
        operations |= {name: KernelRequest(both) for name in STREAM}
        operations[PRODUCTS] = KernelRequest(both, backward=False, optional=True, only_named=True)
        operations["cached_attention"] = KernelRequest((precision,), backward=False, optional=True)
        operations |= windows_request(precision) if windows else {}
    return operations


def check_products(kernels: Mapping[str, PickedKernel]) -> None:
    """Check that the kernel of linear layers uses the matrix product that the recipe picks.

    Raises:
        PlanError: the recipe picks a provider of matrix products, and the linear layers do not use it.
    """
    if PRODUCTS in kernels and "multiply" not in _features(kernels, "low_rank_linear"):
        raise PlanError(
            f"kernels.{PRODUCTS}={kernels[PRODUCTS].provider}: {kernels['low_rank_linear'].provider} computes "
            "low_rank_linear, and makes its products itself",
            action="set kernels.low_rank_linear to torch, or leave this out",
        )
