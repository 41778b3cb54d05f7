"""Compares two low-rank adapters by their files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from finetooth_modelfiles.lora_settings import scale_of
from finetooth_peftfiles.artifact import read
from torch import Tensor

A, B = ".lora_A.weight", ".lora_B.weight"
INCIDENTAL = {"inference_mode", "peft_version", "task_type", "revision", "auto_mapping"}
"""Settings without effect on an adapter's addition."""


@dataclass(frozen=True)
class Difference:
    """The additions of two adapters to a module, in Frobenius norms.

    Attributes:
        first, second: norms of the additions s B A.
        difference: norm of the difference of the additions.
        cosine: of the angle between them; 0 if one is zero.
    """

    path: str
    first: float
    second: float
    difference: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """The differences of two adapters.

    Attributes:
        settings: differing settings of peft's config, by name.
        modules: modules that both adapt.
        only_first, only_second: paths that only one adapts.
    """

    settings: Mapping[str, tuple[Any, Any]]
    modules: tuple[Difference, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


def compare(first: Path, second: Path) -> Comparison:
    """Compare two adapters' folders.

    Raises:
        UserError: one of them cannot be read.
    """
    (of_a, a), (of_b, b) = read(first), read(second)
    settings = {
        name: (of_a.get(name), of_b.get(name))
        for name in (of_a.keys() | of_b.keys()) - INCIDENTAL
        if _plain(of_a.get(name)) != _plain(of_b.get(name))
    }
    mine, theirs = _paths(a), _paths(b)
    modules = tuple(
        _apart(path, _factors(a, path, of_a), _factors(b, path, of_b)) for path in mine if path in set(theirs)
    )
    return Comparison(
        settings,
        modules,
        tuple(p for p in mine if p not in set(theirs)),
        tuple(p for p in theirs if p not in set(mine)),
    )


def _apart(path: str, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Difference:
    """Norms computed without the full products: <B1 A1, B2 A2> is the sum over (B1^T B2) * (A1 A2^T)."""

    def inner(x: tuple[Tensor, Tensor], y: tuple[Tensor, Tensor]) -> float:
        return float(((x[1].T @ y[1]) * (x[0] @ y[0].T)).sum())

    if one[0].shape[1] != other[0].shape[1] or one[1].shape[0] != other[1].shape[0]:
        return Difference(
            path, math.sqrt(max(0.0, inner(one, one))), math.sqrt(max(0.0, inner(other, other))), math.inf, 0.0
        )
    aa, bb, ab = inner(one, one), inner(other, other), inner(one, other)
    cosine = ab / math.sqrt(aa * bb) if aa > 0 and bb > 0 else 0.0
    return Difference(path, math.sqrt(max(0, aa)), math.sqrt(max(0, bb)), math.sqrt(max(0.0, aa + bb - 2 * ab)), cosine)


def _factors(tensors: Mapping[str, Tensor], path: str, config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """A and s B in float64, with windows of convolutions flattened."""
    a, b = tensors[path + A].to(torch.float64), tensors[path + B].to(torch.float64)
    return a.flatten(1), scale_of(config) * b.flatten(1)


def _paths(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(name.removesuffix(A) for name in tensors if name.endswith(A) and name.removesuffix(A) + B in tensors)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) and all(isinstance(item, str) for item in value) else value
