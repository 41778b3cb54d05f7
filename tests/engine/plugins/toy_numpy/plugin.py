"""The NumPy engine as a plugin like any other: no torch, gradients written by hand."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import (
    Adapter,
    Backend,
    Claim,
    Family,
    Hardware,
    Loader,
    Optimizer,
    Renderer,
    hookimpl,
)

NUMPY = frozenset({"numpy"})
CAPABILITIES = frozenset(
    {
        "handles",
        "gradients",
        "zero_grad",
        "generate",
        "continuous",
        "full_state",
        "snapshots",
        "interrupt",
        "reference",
        "head",
        "usage",
        "min_p",
        "additions",
        "repetition_penalty",
    }
)
"""What its engine can do: `head` only if it was built with one."""


def claims(reference: str) -> Claim | None:
    """`toy:SEED` is ours."""
    return Claim(2, "a seeded toy") if reference.startswith("toy:") and reference[4:].isdigit() else None


@hookimpl
def ft_loaders() -> Iterator[Loader]:
    yield Loader(name="toy", build="toy_numpy.parts:build_loader", summary="toy:SEED", claims=claims, frameworks=NUMPY)


@hookimpl
def ft_families() -> Iterator[Family]:
    yield Family(
        name="toy", build="toy_numpy.parts:build_family", summary="the toy", model_types=frozenset({"finetooth_toy"})
    )


@hookimpl
def ft_renderers() -> Iterator[Renderer]:
    yield Renderer(name="plain", build="toy_numpy.parts:build_renderer", summary="role: content, over bytes")


@hookimpl
def ft_adapters() -> Iterator[Adapter]:
    yield Adapter(
        name="delta",
        build="toy_numpy.parts:build_adapter",
        summary="adds a matrix to each matrix",
        can_disable=True,
        base_frozen=True,
        frameworks=NUMPY,
    )


@hookimpl
def ft_optimizers() -> Iterator[Optimizer]:
    yield Optimizer(name="plain_sgd", build="toy_numpy.parts:build_sgd", summary="gradient descent", frameworks=NUMPY)
    yield Optimizer(name="plain_adam", build="toy_numpy.parts:build_adam", summary="Adam", frameworks=NUMPY)


@hookimpl
def ft_hardware() -> Iterator[Hardware]:
    yield Hardware(name="numpy", build="toy_numpy.parts:build_hardware", summary="NumPy", framework="numpy")


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="numpy",
        build="toy_numpy.parts:build_backend",
        summary="float64 NumPy, for tests",
        framework="numpy",
        capabilities=CAPABILITIES,
        outputs=frozenset({"logprobs", "entropy", "values", "scores"}),
    )
