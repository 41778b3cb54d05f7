"""Models of a folder in fewer bits, put together tensor by tensor: what is stored already is read as it is, what is not
is stored as soon as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks.protocols import ModelTensors, Quantizer
from finetooth_modelfiles import checkpoint
from finetooth_torchshared.assembled import CannotAssemble, assembled
from finetooth_torchshared.kept_in_fp32 import kept_in_fp32
from finetooth_torchshared.packed_modules import Packing
from finetooth_torchshared.quantised import DequantisingLinear, QuantisedLinear
from torch import Tensor, nn

from finetooth_transformers.converted import TensorSource, tensor_sources

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@dataclass(frozen=True)
class Tensors:
    """The tensors of a folder, by name, unread."""

    places: Mapping[str, checkpoint.Place]

    @staticmethod
    def of(folder: Path) -> Tensors:
        """Returns the tensors of a checkpoint folder, of which none is read yet.

        Raises:
            RecipeError: see `checkpoint.read`.
        """
        return Tensors(checkpoint.places(folder))

    def read(self, name: str) -> Tensor:
        """One tensor in separate memory: a mapped file would stay in memory as long as any part of it is referenced.

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

    def packed(self, packing: Packing) -> frozenset[str]:
        """Paths of the modules that are packed."""
        end = f".{packing.tells}"
        return frozenset(name.removesuffix(end) for name in self.places if name.endswith(end))


@dataclass(frozen=True)
class Parts:
    """A folder's tensors as a model of transformers has them.

    Attributes:
        model: without memory.
        tensors: of the files.
        made: what stays plain numbers is made of, by its name in the model.
        packed: paths of the modules that the files hold packed.
        packing: how; None: none is.
    """

    model: nn.Module
    tensors: Tensors
    made: Mapping[str, TensorSource]
    packed: frozenset[str]
    packing: Packing | None

    def number(self, name: str) -> Tensor:
        """A tensor that stays plain numbers."""
        return self.made[name].tensor(name, self.model, self.tensors.read)

    def module(self, path: str) -> DequantisingLinear:
        """A packed linear module.

        Raises:
            CannotAssemble: it is of another shape than the model's.
        """
        assert self.packing is not None
        module: Any = self.model.get_submodule(path)
        linear = self.packing.module(lambda name: self.tensors.read(f"{path}.{name}"), module.out_features)
        if (linear.out_features, linear.in_features) != (module.out_features, module.in_features):
            raise CannotAssemble(f"{path} has another shape")
        return linear


def parts_of(
    folder: Path, config: Any, made: Any, *, dtype: torch.dtype, packing: Packing | None, trust_remote_code: bool
) -> Parts:
    """The tensors of a folder.

    Args:
        config: of its model; changed.
        made: the auto class.
        dtype: that the model is made in.

    Raises:
        RecipeError: see `checkpoint.read`.
    """
    tensors = Tensors.of(folder)
    packed = frozenset[str]() if packing is None else tensors.packed(packing)
    for holder in (config, getattr(config, "text_config", None)):
        if holder is not None and hasattr(holder, "quantization_config"):
            del holder.quantization_config  # the assembled model belongs to no library
    with torch.device("meta"):
        model: nn.Module = made.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    plain = [name for name in tensors.places if not packed.intersection(accumulate(name.split("."), "{}.{}".format))]
    return Parts(model, tensors, tensor_sources(model, plain), packed, packing)


def assemble(
    folder: Path, config: Any, made: Any, *, dtype: torch.dtype, device: str, quantizer: Quantizer | None,
    packing: Packing | None, trust_remote_code: bool,
) -> nn.Module:  # fmt: skip
    """The model of a folder.

    Args:
        made: the auto class.

    Raises:
        CannotAssemble: its tensors are not the model's, not even as transformers renames and joins them.
    """
    parts = parts_of(folder, config, made, dtype=dtype, packing=packing, trust_remote_code=trust_remote_code)

    def reader(path: str) -> Any:
        def make(module: nn.Linear) -> QuantisedLinear:
            linear = parts.module(path)
            if linear.bias is not None:
                linear.bias = linear.bias.to(dtype)
            return linear

        return make

    stored = {path: reader(path) for path in parts.packed}
    named = (*parts.model.named_parameters(), *parts.model.named_buffers())
    in_fp32 = {
        name for name, tensor in named if tensor.dtype == torch.float32
    }  # that its code makes so in any precision
    return assembled(
        parts.model, parts.made, parts.number, dtype=dtype, device=device, quantizer=quantizer, stored=stored,
        in_fp32=in_fp32,
    )  # fmt: skip


def by_tensor(
    folder: Path, config: Any, made: Any, *, dtype: torch.dtype, packing: Packing | None, trust_remote_code: bool
) -> ModelTensors | None:
    """The numbers of a folder's model, one tensor in memory; None where its tensors are not the model's, not even as
    transformers renames and joins them.

    Args:
        dtype: of what is not packed, but for what the model keeps in fp32.
    """
    parts = parts_of(folder, config, made, dtype=dtype, packing=packing, trust_remote_code=trust_remote_code)
    places, model = parts.tensors.places, parts.model
    if any(place.dtype not in DTYPES for place in places.values()):
        return None
    whole: Any = model
    tied, in_fp32 = set(whole.all_tied_weights_keys), kept_in_fp32(model, dtype)
    files = {name: places[origin.parts[0][1]].file.name for name, origin in parts.made.items()}
    for path in parts.packed:
        packed = places[f"{path}.{packing.tells}"] if packing is not None else None
        assert packed is not None
        files[f"{path}.weight"] = packed.file.name
        if f"{path}.bias" in places:
            files[f"{path}.bias"] = places[f"{path}.bias"].file.name
    if model.state_dict().keys() - tied != files.keys() - tied:
        return None

    def read(name: str) -> Tensor:
        path, _, last = name.rpartition(".")
        if path in parts.packed and last == "weight":
            return parts.module(path).dequantised(torch.float32)
        number = parts.tensors.read(name) if path in parts.packed else parts.number(name)
        if not number.is_floating_point():
            return number
        return number.to(torch.float32 if name in in_fp32 else dtype)

    return ModelTensors(model, {name: file for name, file in files.items() if name not in tied}, read)
