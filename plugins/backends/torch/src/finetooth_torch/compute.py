"""What the engine computes with: the operations that the plan picked, each in a place of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import KernelRequest, PickedKernel
from finetooth_kernels.decoder import MakeDecoder
from finetooth_kernels.operations import OPERATIONS

Operation = Callable[..., Any]


def _features(kernels: Mapping[str, PickedKernel], operation: str) -> frozenset[str]:
    """Of who computes it."""
    return kernels[operation].features if operation in kernels else OPERATIONS[operation].features


@dataclass(frozen=True)
class Compute:
    """The operations of `finetooth_kernels.operations` that this backend uses, looked up once.

    Attributes:
        expects: whether `linear_logprob` makes use of `expected`.
        cached_attention, packed_linear: None where the backend's own ways serve.
        packed_head: `packed_linear` where it is of the provider that computes `linear_logprob`, so that sampling takes
            its logits as training and scoring do.
        low_rank_linear: with the products of `matmul_rounded_once` where that was picked.
        runs: `packed_linear` takes runs of rows with products of their own.
        stream_decoder: makes one; None where the model's own code computes its layers.
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
    expects: bool
    cached_attention: Operation | None = None
    packed_linear: Operation | None = None
    packed_head: Operation | None = None
    stream_decoder: MakeDecoder | None = None
    runs: bool = False
    providers: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(kernels: Mapping[str, PickedKernel]) -> Compute:
        """Those that were picked, and torch's way of what nobody picked."""

        def function(name: str) -> Operation | None:
            return kernels[name].function if name in kernels else OPERATIONS[name].torch

        head = kernels.get("linear_logprob")
        functions: dict[str, Any] = {name: function(name) for name in (*ALWAYS, *STREAM, *OWN)}
        if PRODUCTS in kernels and "multiply" in _features(kernels, "low_rank_linear"):
            functions["low_rank_linear"] = partial(functions["low_rank_linear"], multiply=kernels[PRODUCTS].function)
        packs = kernels.get("packed_linear")
        alike = packs is not None and head is not None and packs.provider == head.provider
        decoder = kernels[DECODER].function if DECODER in kernels else None
        return Compute(
            **functions, expects="expected" in _features(kernels, "linear_logprob"),
            packed_head=packs.function if packs and alike else None, stream_decoder=decoder,
            runs=packs is not None and "runs" in packs.features,
            providers={name: picked.provider for name, picked in kernels.items()},
        )  # fmt: skip


DECODER = "stream_decoder"
ALWAYS = ("linear_logprob", "logits_statistics", "accumulate", "keyed_dropout")
STREAM = ("rms_norm", "rotary", "norm_rotary", "gated_mlp", "low_rank_linear", "segment_attention")
"""What the stream decoder's layers consist of."""
PRODUCTS = "matmul_rounded_once"
"""What the linear layers of those consist of, which they make themselves unless a recipe says who does."""
FP8 = "fp8_linear"
"""What linear modules of the layers compute with where `train.precision` is `fp8`."""
EXPERTS = "grouped_matmul"
"""What experts of a mixture compute with where the model holds them as one weight."""
GATED_NORM = "gated_norm"
"""What gates a norm in layers of linear attention, where the model's own module has the same formula."""
OWN = ("cached_attention", "packed_linear")
"""What this backend can do without; the stream decoder samples with the first."""

TORCH = Compute.of({})
"""Torch's way of all."""


def decoder_request(precision: str) -> dict[str, KernelRequest]:
    """What the plan asks for where a stream decoder could compute the layers."""
    return {DECODER: KernelRequest((precision,), optional=True)}


def compute_request(
    precision: str, *, stream: bool, fp8: bool = False, experts: bool = False, gated_norm: bool = False
) -> dict[str, KernelRequest]:
    """What an engine will ask for. Logits are in full precision, and so are sums of gradients and the residual stream.

    Args:
        precision: that the model computes in.
        stream: the stream decoder computes the layers.
        fp8: their linear modules multiply in 8 bits.
        experts: some layer has them.
        gated_norm: some layer may have one.
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
    return operations


def check_products(kernels: Mapping[str, PickedKernel]) -> None:
    """Checks that the kernel of linear layers uses the products that the recipe names.

    Raises:
        PlanError: the recipe says who makes products, and the linear layers would not ask them.
    """
    if PRODUCTS in kernels and "multiply" not in _features(kernels, "low_rank_linear"):
        raise PlanError(
            f"kernels.{PRODUCTS}={kernels[PRODUCTS].provider}: {kernels['low_rank_linear'].provider} computes "
            "low_rank_linear, and makes its products itself",
            action="set kernels.low_rank_linear to torch, or leave this out",
        )
