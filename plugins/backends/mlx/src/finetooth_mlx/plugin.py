"""The MLX backend, and its loaders, adapters, optimizers and hardware."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetooth_hooks import Adapter, Backend, Claim, Hardware, Loader, Optimizer, Quantizer, hookimpl
from finetooth_modelfiles.gguf.reference import ALIASES, why_ours

from finetooth_mlx.capabilities import CAPABILITIES

MLX = frozenset({"mlx"})


def claims(reference: str) -> Claim | None:
    """Whether the name is a folder with a config, or has the form `org/name` and no such path exists here."""
    folder = Path(reference)
    if folder.is_dir():
        mark = next((mark for mark in ("config.json", "artifact/config.json") if (folder / mark).is_file()), None)
        return None if mark is None else Claim(2, f"a folder with {mark}")
    parts = reference.split("/")
    hub = len(parts) == 2 and all(part[:1].isalnum() for part in parts) and not folder.exists()
    return Claim(1, "has the form of a hub id") if hub else None


def claims_gguf(reference: str) -> Claim | None:
    """Whether it is a short name, a file inside a package, or a path that ends in `.gguf`."""
    reason = why_ours(reference)
    return Claim(2, reason) if reason else None


@hookimpl
def ft_loaders() -> Iterator[Loader]:
    yield Loader(
        name="mlxlm",
        build="finetooth_mlx.loader:build",
        summary="a folder of transformers or mlx-lm, or a hub id, for MLX",
        claims=claims,
        frameworks=MLX,
    )
    yield Loader(
        name="gguf",
        build="finetooth_mlx.gguf:GgufLoader",
        summary="a GGUF file, for MLX: a path, or one inside an installed package",
        claims=claims_gguf,
        names=tuple(ALIASES),
        frameworks=MLX,
    )


@hookimpl
def ft_adapters() -> Iterator[Adapter]:
    yield Adapter(
        name="lora",
        build="finetooth_mlx.adapters:LoraAdapter",
        summary="train a low-rank addition to the linear modules; the base stays frozen",
        default=True,
        can_disable=True,
        base_frozen=True,
        accepts_quantised=True,
        frameworks=MLX,
        example={"rank": 4},
    )
    yield Adapter(
        name="full", build="finetooth_mlx.adapters:FullAdapter", summary="train every parameter", frameworks=MLX
    )
    yield Adapter(
        name="freeze",
        build="finetooth_mlx.adapters:FreezeAdapter",
        summary="train the top layers as they are; the rest stays frozen",
        frameworks=MLX,
        example={"layers": 1},
    )


@hookimpl
def ft_optimizers() -> Iterator[Optimizer]:
    for name, summary, state in (
        ("adamw", "Adam with decoupled weight decay", 8.0),
        ("sgd", "stochastic gradient descent", 4.0),
        ("lion", "moves every weight by the sign of its momentum", 4.0),
        ("adafactor", "second moments by row and column", 0.5),
        ("muon", "orthonormal updates of matrices inside layers, AdamW for the rest", 8.0),
    ):
        yield Optimizer(
            name=name,
            build=f"finetooth_mlx.optimizers:build_{name}",
            summary=summary,
            default=name == "adamw",
            frameworks=MLX,
            state_bytes=state,
        )


@hookimpl
def ft_quantizers() -> Iterator[Quantizer]:
    for name, rank, summary in (
        ("int8", 1, "8 bits a weight, a scale and an offset a group"),
        ("int4", 1, "4 bits a weight, a scale and an offset a group"),
        ("affine", 0, "2 to 8 bits a weight, a scale and an offset a group"),
        ("mxfp4", 0, "4-bit floating point, a power of two as the scale of 32 weights"),
    ):
        yield Quantizer(
            name=name, build=f"finetooth_mlx.quantizers:build_{name}", summary=summary, rank=rank, frameworks=MLX
        )


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(
        name="mlxcpu",
        build="finetooth_mlx.hardware:MlxCpu",
        summary="the host CPU, for MLX",
        framework="mlx",
        rank=-10,
    )


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="mlx",
        build="finetooth_mlx.backend:MlxBackend",
        summary="Apple MLX with models of mlx-lm",
        default=True,
        framework="mlx",
        capabilities=CAPABILITIES,
        outputs=frozenset({"logprobs", "entropy", "hidden", "logits", "values", "scores"}),
    )
