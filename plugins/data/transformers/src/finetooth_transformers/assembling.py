"""Models of a folder in fewer bits, put together tensor by tensor: what is stored already is read as it is, what is not
is stored as soon as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks.protocols import Quantizer
from finetooth_toolbox.torch.assembled import CannotAssemble, assembled
from finetooth_toolbox.torch.packed_files import Packing
from finetooth_toolbox.torch.quantised import QuantisedLinear
from torch import Tensor, nn

from finetooth_transformers import checkpoint

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


@dataclass(frozen=True)
class Tensors:
    """The tensors of a folder, by name, unread."""

    places: Mapping[str, checkpoint.Place]

    @staticmethod
    def of(folder: Path) -> Tensors:
        """
        Raises:
            RecipeError: see `checkpoint.read`.
        """
        return Tensors(checkpoint.places(folder))

    def read(self, name: str) -> Tensor:
        """One of them, in memory of its own: a mapped file would stay in memory as long as any of it is held.

        Raises:
            CannotAssemble: it is of a type that this does not read.
        """
        place = self.places[name]
        if place.dtype not in DTYPES:
            raise CannotAssemble(f"{name} is {place.dtype}")
        if not place.size:
            return torch.empty(place.shape, dtype=DTYPES[place.dtype])
        content = bytearray(place.size)
        with place.file.open("rb") as file:
            file.seek(place.start)
            file.readinto(content)
        return torch.frombuffer(content, dtype=DTYPES[place.dtype]).view(place.shape)

    def packed(self, packing: Packing) -> dict[str, int]:
        """Paths of the modules that are packed, and how many weights each has."""
        end = f".{packing.tells}"
        return {
            name.removesuffix(end): prod(place.shape) * packing.word // packing.bits
            for name, place in self.places.items()
            if name.endswith(end)
        }


def assemble(
    folder: Path, config: Any, made: Any, *, dtype: torch.dtype, device: str, quantizer: Quantizer | None,
    packing: Packing | None, trust_remote_code: bool,
) -> nn.Module:  # fmt: skip
    """The model of a folder.

    Args:
        made: the auto class.

    Raises:
        CannotAssemble: its tensors are not the model's by name, as where transformers renames or joins them.
    """
    tensors = Tensors.of(folder)
    paths = {} if packing is None else tensors.packed(packing)
    for holder in (config, getattr(config, "text_config", None)):
        if holder is not None and hasattr(holder, "quantization_config"):
            del holder.quantization_config  # what is made here is no library's
    with torch.device("meta"):
        model: nn.Module = made.from_config(config, trust_remote_code=trust_remote_code)

    def reader(path: str) -> Any:
        def make(module: nn.Linear) -> QuantisedLinear:
            assert packing is not None
            found = packing.module(lambda name: tensors.read(f"{path}.{name}"))
            if (found.out_features, found.in_features) != (module.out_features, module.in_features):
                raise CannotAssemble(f"{path} has another shape")
            if found.bias is not None:
                found.bias = found.bias.to(dtype)
            return found

        return make

    plain = [name for name in tensors.places if name.rpartition(".")[0] not in paths]
    stored = {path: reader(path) for path in paths}
    return assembled(model, plain, tensors.read, dtype=dtype, device=device, quantizer=quantizer, stored=stored)
