"""The tensors of a file that stay in its blocks, and their memory. Nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from finetooth_hooks.errors import RecipeError
from finetooth_hooks.protocols import Stored

from finetooth_modelfiles.gguf.architectures import architecture_of
from finetooth_modelfiles.gguf.container import Container, TensorEntry
from finetooth_modelfiles.gguf.package import GGMLQuantizationType as Type

READ = frozenset({Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K})
"""Block types that a linear module can be over; see `READERS` of finetooth-gguf."""
PLAIN = frozenset({Type.F32, Type.F16, Type.BF16, Type.F64})
"""Types that are numbers as they stand."""


def stored_tensors(container: Container) -> Mapping[str, TensorEntry]:
    """The weights of linear modules in decoder layers that are stored in blocks, by their names in the file.

    Raises:
        RecipeError: one is of a type without a reader, or none is in blocks.
    """
    in_blocks, architecture = {}, architecture_of(container)
    for name, entry in container.tensors.items():
        if not name.startswith("blk.") or len(entry.shape) != 2 or entry.ggml_type in PLAIN:
            continue
        if architecture.change_of(name):  # its rows are not those of the module
            continue
        if entry.ggml_type not in READ:
            known = ", ".join(sorted(kind.name for kind in READ))
            raise RecipeError(
                "model.loader.keep_quantised",
                f"{container.path} stores {name} as {entry.ggml_type.name}, over which nothing computes here ({known} "
                "can be)",
                action="take another quantisation of the model, or leave keep_quantised out",
            )
        in_blocks[name] = entry
    if not in_blocks:
        raise RecipeError(
            "model.loader.keep_quantised",
            f"{container.path} stores its linear weights as plain numbers",
            action="leave it out",
        )
    return in_blocks


def stored_as(container: Container) -> tuple[Stored, int]:
    """How the linear weights are stored, and how many are."""
    entries = stored_tensors(container).values()
    weights = sum(prod(entry.shape) for entry in entries)
    kinds = sorted({entry.ggml_type.name for entry in entries})
    return Stored(f"GGUF {' and '.join(kinds)}", sum(entry.size for entry in entries) / weights), weights
