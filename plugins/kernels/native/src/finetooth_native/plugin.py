"""Compiled kernels for CPUs: attention, norms, activations, and products of matrices that are rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from finetooth_hooks import Attention, AttentionServes, Kernel, Serves, hookimpl

CPU, DTYPES = frozenset({"cpu"}), frozenset({"fp32", "bf16"})
_serves = partial(Serves, devices=CPU, dtypes=DTYPES, rank=20)


@hookimpl
def ft_kernels() -> Iterator[Kernel]:
    yield Kernel(
        name="native",
        build="finetooth_native.provider:build",
        summary="compiled on this machine for its CPU; FT_NATIVE=0 turns it off",
        serves=(
            *(_serves(operation=name) for name in ("rms_norm", "rotary", "norm_rotary", "gated_mlp", "keyed_dropout")),
            _serves(operation="segment_attention"),
            _serves(operation="low_rank_linear", features=frozenset({"multiply"})),
            _serves(operation="matmul_rounded_once", backward=False),
            _serves(operation="cached_attention", backward=False),
            _serves(operation="packed_linear", backward=False, features=frozenset({"runs"})),
            _serves(operation="linear_logprob", result="full", features=frozenset({"expected", "added"})),
            _serves(operation="logits_statistics", result="full"),
            _serves(operation="accumulate", result="full", backward=False),
        ),
    )
    yield Kernel(
        name="native_stream",
        build="finetooth_native.provider:build_decoder",
        summary="decoder layers over rows without padding; linear layers with the same input are one product",
        serves=(
            _serves(operation="stream_decoder", devices=frozenset({"cpu", "cuda"}), dtypes=DTYPES | {"fp16", "fp64"}),
        ),
    )

    yield Kernel(
        name="native_layers",
        build="finetooth_native.provider:build_named_decoder",
        summary="its layers where torch has no flash attention over segments; name kernels.segment_attention too",
        serves=(Serves(operation="stream_decoder", devices=frozenset({"cuda"}), rank=None),),
    )


@hookimpl
def ft_attention() -> Iterator[Attention]:
    yield Attention(
        name="native",
        build="finetooth_native.provider:build_attention",
        summary="compiled on this machine for its CPU; computes nothing between packed sequences",
        rank=90,  # behind sdpa: runs of the model's own code keep their numbers unless a recipe names it
        serves=AttentionServes(devices=CPU, precisions=DTYPES, head_multiple=16, segments="lengths"),
    )
