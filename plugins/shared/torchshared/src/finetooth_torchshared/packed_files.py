"""Linear weights as other libraries pack them into files, read as they are stored.

Layouts as their own packers write them, f = 32 / bits codes in an int32 with the first in the lowest bits: gptqmodel
(`qweight` (I/f, O), `qzeros` (G, O/f); version 1 stores a zero less 1), AutoAWQ's GEMM version (`qweight` (I, O/8),
whose eight columns lie in the order 0 2 4 6 1 3 5 7), compressed-tensors' `pack-quantized` (`weight_packed` (O, I/f),
signed codes raised by half their range; `mxfp4-pack-quantized`: `weight_packed` (O, I/2) uint8, two elements of E2M1 to
a byte, `weight_scale` (O, I/32) of E8M0). HQQ, Quanto, EETQ, AQLM and torchao:
`library_formats`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetooth_torchshared import library_formats
from finetooth_torchshared.grouped_linear import Bits, Grouped
from finetooth_torchshared.mxfp4 import PackedMxfp4Linear
from finetooth_torchshared.packed_modules import Packing, Read, unread
from finetooth_torchshared.quantised import DequantisingLinear

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""The column of eight that each place in an int32 holds, from the lowest bits on."""


MXFP4 = "mxfp4-pack-quantized"
PACKED = ("pack-quantized", MXFP4)
"""Formats of compressed-tensors that are read here."""


def packing_of(config: Mapping[str, Any], where: str) -> Packing | None:
    """How a checkpoint is packed.

    Args:
        config: its `quantization_config`.
        where: the model, for messages.

    Returns:
        None where the method is none of those that are read here.

    Raises:
        RecipeError: it is one of them, of a kind that is not read.
    """
    makers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed, **library_formats.MAKERS}
    maker = makers.get(str(config.get("quant_method")))
    return None if maker is None else maker(config, where)


def _gptq(config: Mapping[str, Any], where: str) -> Packing:
    bits = _bits("gptq", config.get("bits"), where)
    less = 0 if config.get("checkpoint_format") == "gptq_v2" else 1

    def read(tensor: Read) -> Grouped:
        codes = unpacked(tensor("qweight"), bits, 0).T  # (O, I)
        scales = tensor("scales").T
        zeros = unpacked(tensor("qzeros"), bits, 1).T[: len(codes)] + less  # a stored 15 of 4 bits means 16
        return Grouped(codes, scales, _uneven(zeros, bits), _groups(tensor, "g_idx", codes.shape[1]), bits)

    return Packing("qweight", read)


def _awq(config: Mapping[str, Any], where: str) -> Packing:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise unread(where, f"awq, version {version}", "the version gemm")
    bits = _bits("awq", config.get("bits") or config.get("w_bit"), where, only=4)

    def read(tensor: Read) -> Grouped:
        codes = _columns(tensor("qweight")).T
        zeros = _columns(tensor("qzeros")).T
        return Grouped(codes, tensor("scales").T, _uneven(zeros, bits), None, bits)

    return Packing("qweight", read)


def _compressed(config: Mapping[str, Any], where: str) -> Packing | None:
    groups = config.get("config_groups") or {}
    if config.get("format") not in PACKED or not isinstance(groups, Mapping):
        return None
    kinds = [group for group in groups.values() if isinstance(group, Mapping)]
    if len(kinds) != 1 or kinds[0].get("input_activations"):
        raise unread(where, "compressed-tensors of several groups, or with quantised activations", "one group")
    weights = kinds[0].get("weights") or {}
    if config.get("format") == MXFP4:
        if (weights.get("type"), weights.get("num_bits"), weights.get("group_size")) != ("float", 4, 32):
            raise unread(where, "mxfp4 of other sizes than the format has", "blocks of 32 numbers of 4 bits")
        return Packing("weight_packed", _mx)
    if weights.get("type", "int") != "int":
        raise unread(where, f"compressed-tensors of type {weights.get('type')}", "type int")
    bits = _bits("compressed-tensors", weights.get("num_bits"), where)
    even = bool(weights.get("symmetric", True))

    def read(tensor: Read) -> Grouped:
        outputs, inputs = (int(size) for size in tensor("weight_shape"))
        codes = unpacked(tensor("weight_packed"), bits, 1)[:, :inputs]
        zeros = None if even else unpacked(tensor("weight_zero_point"), bits, 0)[:outputs]
        return Grouped(codes, tensor("weight_scale"), zeros, _groups(tensor, "weight_g_idx", inputs), bits)

    return Packing("weight_packed", read)


def _mx(tensor: Read) -> PackedMxfp4Linear:
    return PackedMxfp4Linear(tensor("weight_packed"), tensor("weight_scale"))


def unpacked(packed: Tensor, bits: Bits, dim: int) -> Tensor:
    """uint8 codes of int32 numbers that hold 32 / bits each along a dimension, the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=packed.device)
    codes = (packed.unsqueeze(-1) >> shifts & (1 << bits) - 1).to(torch.uint8)  # (..., f)
    return codes.movedim(-1, dim + 1).flatten(dim, dim + 1)


def words(codes: Tensor, bits: Bits, dim: int) -> Tensor:
    """int32 numbers that hold 32 / bits codes each along a dimension, the first in the lowest bits: what `unpacked`
    reads."""
    shifts = torch.arange(0, 32, bits)
    last = codes.long().movedim(dim, -1)
    each = last.reshape(*last.shape[:-1], -1, len(shifts))
    numbers = (each << shifts).sum(-1)
    return torch.where(numbers >= 1 << 31, numbers - (1 << 32), numbers).to(torch.int32).movedim(-1, dim).contiguous()


def repack(folder: Path, pack: Callable[[str, Tensor], Mapping[str, Tensor]], said: Mapping[str, Any]) -> None:
    """Replace the tensors of a written folder, file by file, by those that stand for them.

    Args:
        pack: from a tensor's name and the tensor to what is written in its place, by name.
        said: what the config says of it.
    """
    index, places = folder / "model.safetensors.index.json", dict[str, str]()
    for file in sorted(folder.glob("*.safetensors")):
        read = load_file(file)
        tensors = {name: of.contiguous() for full in sorted(read) for name, of in pack(full, read.pop(full)).items()}
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod((folder / "config.json").stat().st_mode)
        places |= dict.fromkeys(tensors, file.name)
    if index.is_file():
        content = json.loads(index.read_text(encoding="utf-8"))
        index.write_text(json.dumps({**content, "weight_map": places}, indent=2), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **said}, indent=2) + "\n", encoding="utf-8")


def modules_of(folder: Path, paths: Iterable[str]) -> Iterator[tuple[str, DequantisingLinear]]:
    """Packed linear modules of a written folder, by their paths.

    Raises:
        RecipeError: the folder is packed in a way that is not read here.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    packing = packing_of(config["quantization_config"], str(folder))
    tensors = {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
    if packing is None:
        return
    for path in paths:
        yield path, packing.module(lambda part, path=path: tensors[f"{path}.{part}"])  # type: ignore[misc]


def _columns(packed: Tensor) -> Tensor:
    """AWQ's (rows, O/8) int32 as (rows, O) uint8."""
    codes = unpacked(packed, 4, 1)
    inverse = torch.tensor(AWQ_ORDER).argsort()
    return codes.view(len(codes), -1, 8)[:, :, inverse].flatten(1)


def _uneven(zeros: Tensor, bits: Bits) -> Tensor | None:
    """The zeros, unless all are the middle code."""
    return None if bool((zeros == 1 << bits - 1).all()) else zeros


def _groups(tensor: Read, name: str, inputs: int) -> Tensor | None:
    """The group of each input, if they are not in order."""
    try:
        groups = tensor(name).long()
    except KeyError:
        return None
    return None if bool((groups.diff() >= 0).all()) else groups


def _bits(method: str, bits: Any, where: str, only: int = 0) -> Bits:
    if bits not in ((only,) if only else (4, 8)):
        raise unread(where, f"{method} of {bits} bits", f"{only} bits" if only else "4 and 8 bits")
    return cast(Bits, bits)
