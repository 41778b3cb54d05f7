"""The torch backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from finetooth_hooks import Backend, Command, Kernel, Serves, hookimpl

from finetooth_torch.capabilities import CAPABILITIES


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="torch",
        build="finetooth_torch.backend:build",
        summary="PyTorch with transformers models, on whatever a hardware plugin serves",
        default=True,
        framework="torch",
        capabilities=CAPABILITIES,
        outputs=frozenset({"logprobs", "entropy", "hidden", "logits", "values", "scores"}),
    )


EVERY = frozenset({"fp32", "bf16", "fp16", "fp64"})
DIFFERENTIABLE = ("rms_norm", "rotary", "gated_mlp", "low_rank_linear", "segment_attention")
WITHOUT_A_GRAPH = ("matmul_rounded_once", "cached_attention", "packed_linear")
OWN = ("cached_attention", "packed_linear")
"""Operations for which the backend has a way of its own, so that torch's provider has none."""
CPU_ONLY = ("segment_attention",)
"""Torch's way of it calls the CPU's flash attention by name."""


def _serves(rank: int | None) -> tuple[Serves, ...]:
    """All of `finetooth_kernels.operations`."""
    expected: frozenset[str] = frozenset() if rank is None else frozenset({"expected"})
    return (
        Serves(operation="linear_logprob", dtypes=EVERY, result="full", rank=rank, features=expected),
        Serves(operation="logits_statistics", dtypes=EVERY, result="full", rank=rank),
        Serves(operation="accumulate", dtypes=EVERY, result="full", rank=rank, backward=False),
        *(Serves(operation=name, dtypes=EVERY, rank=rank) for name in DIFFERENTIABLE),
        *(Serves(operation=name, dtypes=EVERY, rank=rank, backward=False) for name in WITHOUT_A_GRAPH),
    )


@hookimpl
def ft_kernels() -> Iterator[Kernel]:
    cpu = frozenset({"cpu"})
    yield Kernel(
        name="torch",
        build="finetooth_torch.kernels:build_torch",
        summary="torch's own operations, on every device",
        serves=tuple(
            replace(one, devices=cpu) if one.operation in CPU_ONLY else one
            for one in _serves(rank=10)
            if one.operation not in OWN
        ),
        expected_failures={
            "nan_shows_where_it_is_seen": "torch's flash attention for CPUs makes numbers of a NaN in bf16 queries"
        },
    )
    yield Kernel(
        name="reference",
        build="finetooth_torch.kernels:build_reference",
        summary="every operation as its definition reads, in float64: for doubt; slow, and takes memory",
        serves=_serves(rank=None),
    )


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="profile",
        build="finetooth_torch.profile.command:command",
        summary="show where the time of a run's recorded steps went",
        section="Use",
    )
