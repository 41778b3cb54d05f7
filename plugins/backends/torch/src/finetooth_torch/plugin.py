"""The torch backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from finetooth_hooks import Backend, Command, Kernel, Saving, Serves, hookimpl

from finetooth_torch.capabilities import CAPABILITIES


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="torch",
        build="finetooth_torch.backend:TorchBackend",
        summary="PyTorch with transformers models, on whatever a hardware plugin serves",
        default=True,
        framework="torch",
        capabilities=CAPABILITIES,
        outputs=frozenset({"logprobs", "entropy", "hidden", "logits", "values", "scores"}),
        savings=tuple(_savings()),
    )


def _savings() -> Iterator[Saving]:
    yield Saving(
        label="feed-forward blocks in pieces", options={"feed_forward_tokens": 2048},
        costs="time: feed-forward blocks compute their forward pass once more",
    )  # fmt: skip
    for place, phrase in (("host", "in host memory"), ("disk", "on disk")):
        spilled = {"activations": place}
        yield Saving(
            label=f"activations {phrase}", options=spilled,
            costs="time: activations go there and come back",
        )  # fmt: skip
        yield Saving(
            label=f"activations and frozen layers {phrase}", options={**spilled, "layers": place},
            costs="time: activations go there and come back, and layers come for each pass",
        )  # fmt: skip


EVERY = frozenset({"fp32", "bf16", "fp16", "fp64"})
OF_LOGITS = ("linear_logprob", "logits_statistics")
DIFFERENTIABLE = (
    "rms_norm", "rotary", "norm_rotary", "gated_norm", "gated_mlp", "low_rank_linear", "grouped_matmul",
    "segment_attention", "windowed_attention", "keyed_dropout",
)  # fmt: skip
WITHOUT_A_GRAPH = ("matmul_rounded_once", "cached_attention", "packed_linear")
OWN = ("cached_attention", "packed_linear", "gated_norm")
"""Operations for which the backend has a way of its own, so that torch's provider has none."""


def _serves(rank: int | None) -> tuple[Serves, ...]:
    """All of `finetooth_kernels.operations` but the stream decoder."""
    features = {} if rank is None else {"linear_logprob": {"expected", "added"}, "low_rank_linear": {"multiply"}}
    return (
        *(
            Serves(
                operation=name,
                dtypes=EVERY,
                result="full" if name in OF_LOGITS else "input",
                rank=rank,
                features=frozenset(features.get(name, ())),
            )
            for name in (*OF_LOGITS, *DIFFERENTIABLE)
        ),
        Serves(operation="fp8_linear", dtypes=frozenset({"bf16", "fp32"}), rank=rank),
        Serves(operation="accumulate", dtypes=EVERY, result="full", rank=rank, backward=False),
        *(Serves(operation=name, dtypes=EVERY, rank=rank, backward=False) for name in WITHOUT_A_GRAPH),
    )


@hookimpl
def ft_kernels() -> Iterator[Kernel]:
    yield Kernel(
        name="torch",
        build="finetooth_torch.kernels:build_torch",
        summary="torch's own operations, on every device",
        serves=tuple(
            replace(use, rank=None) if use.operation == "keyed_dropout" else use  # unpicked, the same function computes
            for use in _serves(rank=10)
            if use.operation not in OWN
        ),
        expected_failures={
            "nan_shows_where_it_is_seen": "torch's flash attention for CPUs makes numbers of a NaN in bf16 queries"
        },
    )
    yield Kernel(
        name="reference",
        build="finetooth_torch.kernels:build_reference",
        summary="operations by their definitions, in float64, except whole decoders; slow, for checks",
        serves=_serves(rank=None),
    )
    yield Kernel(
        name="ms_amp",
        build="finetooth_torch.kernels:build_ms_amp",
        summary="MS-AMP, which recipes of other tools name and no current torch runs: always refused, with the reason",
        serves=(Serves(operation="fp8_linear", dtypes=frozenset({"bf16"}), rank=None),),
    )


@hookimpl
def ft_commands() -> Iterator[Command]:
    yield Command(
        name="profile",
        build="finetooth_torch.profile.command:command",
        summary="show where the time of a run's recorded steps went",
        section="Use",
    )
