"""Linear weights in the layouts of HQQ, Quanto, EETQ, AQLM and torchao.

What their own packers write, for O outputs and I inputs:

- HQQ, W = (code - `zero`) `scale`: a group is a row of a matrix (O I / g, g) of the weight's numbers in order (axis 1),
  or a column of one of (g, O I / g) (axis 0). `W_q` holds the rows of that matrix in as many stretches as a word has
  codes, the first stretch in the highest bits: words of 8 bits, for 3 bits words of 32 with ten codes. They may be kept
  as floats of the same bits (`view_as_float`). All settings of a module lie in its tensors.
- Quanto, `weight._scale` (O, 1) `weight._data` (O, I) in 8 bits, integer or float; in 4 and 2 bits
  `_scale` code - `_shift`, by rows of (O I / g, g), which `weight._data._data` holds in stretches, the first in the
  lowest bits.
- EETQ, `weight_scales` (O,) times the code less 128, (I, O) bytes in the order of FasterTransformer's kernels for
  compute capability 7.5 and above: within 16 inputs 0 1 8 9 2 3 10 11 4 5 12 13 6 7 14 15; by pairs of outputs 64
  inputs of one, then of the other; within 4 bytes the second and the third exchanged.
- AQLM, `CodebookLinear`: `codes`, `codebooks`, `scales`.
- torchao, `_weight_qdata` (O, I) of E4M3, or (O, I/2) bytes of two E2M1, the first in the lower half; `_weight_scale`
  (O, 1) fp32 of float8, or of MX (E8M0, for 32 weights) and NVFP4 (E4M3, for 16, and one fp32 for all) in tiles of 128
  rows and 4 columns, as NVIDIA's block-scaled products want them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from finetooth_torchshared.codebook_linear import CodebookLinear
from finetooth_torchshared.grouped_linear import Bits, Grouped
from finetooth_torchshared.mxfp4 import FloatsLinear
from finetooth_torchshared.packed_modules import Packing, Read, unread

TORCHAO_FLOATS = ("Float8WeightOnlyConfig", "MXDynamicActivationMXWeightConfig", "NVFP4WeightOnlyConfig")
"""Kinds that are read here; the others are torchao's to read."""
TORCHAO_TILE = (128, 4)
"""Rows and columns of a tile of its scales."""
EETQ_INPUTS = (0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)
"""The input of sixteen that each place holds."""

HQQ_P, HQQ_BETA, HQQ_GROWTH, HQQ_ROUNDS = 0.7, 10.0, 1.01, 20
"""The norm, the first weight of the penalty, its growth from round to round, and rounds, as the authors' package has
them."""
TINY = 1e-12
"""In place of an error of 0, whose power would be infinite."""

_FROM_ABOVE = {bits: range((30 if bits == 3 else 8) - bits, -1, -bits) for bits in (1, 2, 3, 4, 8)}
"""Shifts of the codes in a word of HQQ, by their bits."""


def _hqq(config: Mapping[str, Any], where: str) -> Packing:
    def read(tensor: Read) -> Grouped:
        try:
            bits, axis, group = (math.ceil(tensor(name).item()) for name in ("nbits", "axis", "group_size"))
            outputs, inputs = tensor("shape").tolist()
            packed, scales, zeros = tensor("W_q"), tensor("scale"), tensor("zero")
        except KeyError as error:
            raise unread(where, f"hqq without {error}", "what hqq 0.2 and transformers write") from None
        name, size = ("outputs", outputs) if axis == 0 else ("inputs", inputs)
        if size % group or scales.numel() * group != outputs * inputs:
            what = f"hqq by groups of {group} over {size} {name}"
            raise unread(where, what, f"groups that go evenly into the {name}")
        # 1.58 bits are stored as 2, 5 and 6 as 8, and 3 in words of 32 bits, of which two are left over
        each = next(size for size in (1, 2, 3, 4, 8) if size >= bits)
        rows = _stretches(packed.view(torch.int32 if each == 3 else torch.uint8), each, _FROM_ABOVE[each])
        codes = rows[: group if axis == 0 else scales.numel()].reshape(outputs, inputs)
        shape = (outputs // group, inputs) if axis == 0 else (outputs, -1)
        return Grouped(codes, scales.reshape(shape), zeros.reshape(shape), None, cast(Bits, 4 if each == 3 else each))

    return Packing("W_q", read)


def _quanto(config: Mapping[str, Any], where: str) -> Packing:
    if config.get("activations") not in (None, "none"):
        raise unread(where, "quanto with quantised activations", "weights alone")

    def read(tensor: Read) -> Grouped:
        scales = tensor("weight._scale")
        try:
            packed = tensor("weight._data._data")
        except KeyError:
            data = tensor("weight._data")
            if data.dtype == torch.int8:
                return Grouped((data.short() + 128).to(torch.uint8), scales.expand(len(data), 1), None, None, 8)
            nothing = torch.zeros(len(data), 1, dtype=torch.uint8)
            return Grouped(data, scales.expand(len(data), 1), nothing, None, 8)
        shifts = tensor("weight._shift")
        # modules may differ in their bits, which the sizes tell
        likely = sorted((4, 2), key=lambda bits: str(bits) not in str(config.get("weights")))
        bits = next((bits for bits in likely if -(-len(scales) * bits // 8) == len(packed)), 0)
        if not bits or scales.shape[1:] != (1,):
            raise unread(where, f"quanto with scales {tuple(scales.shape)}", "scales of groups of inputs")
        codes = _stretches(packed, bits, range(0, 8, bits))[: len(scales)]
        zeros = torch.where(scales == 0, 0, shifts.float() / scales.float()) if shifts.is_floating_point() else shifts
        return Grouped(codes, scales, zeros, None, cast(Bits, bits))

    return Packing("weight._scale", read)


def _eetq(config: Mapping[str, Any], where: str) -> Packing:
    if config.get("weights", "int8") != "int8" or config.get("bits", 8) != 8 or config.get("zero_point"):
        raise unread(where, "eetq of other weights than int8", "int8 without zero points")

    def read(tensor: Read) -> Grouped:
        try:
            stored = tensor("weight")
        except KeyError:
            stored = tensor("qweight")
        inputs, outputs = stored.shape
        if inputs % 64 or outputs % 64:
            raise unread(where, f"eetq of {inputs} by {outputs}", "multiples of 64")
        codes = stored.contiguous().view(torch.uint8).view(-1, 4)[:, [0, 2, 1, 3]]
        codes = codes.reshape(outputs // 2, inputs // 64, 2, 64).transpose(1, 2).reshape(outputs, -1, 16)
        codes = codes[..., torch.tensor(EETQ_INPUTS).argsort()].flatten(1)
        return Grouped(codes, tensor("weight_scales").view(-1, 1), None, None, 8)

    return Packing("weight_scales", read)


def _aqlm(config: Mapping[str, Any], where: str) -> Packing:
    def read(tensor: Read) -> CodebookLinear:
        codes, tables, scales = tensor("codes"), tensor("codebooks"), tensor("scales")
        if codes.shape[2] != len(tables) or scales.numel() != len(codes):
            raise unread(where, f"aqlm with scales {tuple(scales.shape)}", "a scale for each group of outputs")
        return CodebookLinear(codes, tables, scales.flatten())

    return Packing("codebooks", read)


def _torchao(config: Mapping[str, Any], where: str) -> Packing | None:
    """How the folder is packed; None: as a kind that torchao reads itself."""
    kind = ((config.get("quant_type") or {}).get("default") or {}).get("_type")
    if kind not in TORCHAO_FLOATS:
        return None
    return Packing(
        "_weight_qdata",
        lambda tensor: _floats(tensor, tiled=kind != TORCHAO_FLOATS[0], whole=kind == TORCHAO_FLOATS[2]),
    )


def _floats(tensor: Read, *, tiled: bool, whole: bool) -> FloatsLinear:
    codes, scales = tensor("_weight_qdata"), tensor("_weight_scale")
    inputs = codes.shape[1] * (2 if codes.dtype == torch.uint8 else 1)
    if tiled:
        groups = inputs // (16 if whole else 32)
        scales = from_tiles(scales.view(torch.uint8), len(codes), groups).view(scales.dtype)
    return FloatsLinear(codes, scales, tensor("_weight_per_tensor_scale") if whole else None)


def from_tiles(scales: Tensor, rows: int, columns: int) -> Tensor:
    """(rows, columns) of scales that lie in tiles, each with its rows in four stretches side by side."""
    high, wide = (-(-size // of) for size, of in zip((rows, columns), TORCHAO_TILE, strict=True))
    tiles = scales.reshape(high, wide, 32, 4, 4).permute(0, 3, 2, 1, 4)
    return tiles.reshape(high * TORCHAO_TILE[0], wide * TORCHAO_TILE[1])[:rows, :columns].contiguous()


MAKERS: Mapping[str, Callable[[Mapping[str, Any], str], Packing | None]] = {
    "hqq": _hqq, "quanto": _quanto, "eetq": _eetq, "aqlm": _aqlm, "torchao": _torchao,
}  # fmt: skip
"""By `quant_method`: from the section of a config, and the model's name for messages, to how it is packed."""


def _stretches(packed: Tensor, bits: int, shifts: Iterable[int]) -> Tensor:
    """uint8 codes of words that hold as many stretches of rows, each at its own shift."""
    return torch.cat([(packed >> shift & (1 << bits) - 1).to(torch.uint8) for shift in shifts])


def in_stretches(codes: Tensor, *, first_lowest: bool) -> Tensor:
    """Bytes of two rows of 4-bit codes each, the row of the first half of them in the lower or in the higher bits: what
    `_stretches` reads.

    Args:
        codes: (rows, group) uint8; an odd row is followed by one of zeros.
    """
    first, last = torch.nn.functional.pad(codes, (0, 0, 0, len(codes) % 2)).chunk(2)
    return first | last << 4 if first_lowest else first << 4 | last


def hqq_settings(weight: Tensor, bits: int, group: int) -> dict[str, Tensor]:
    """What hqq 0.2 keeps of a module in addition to its codes, scales and zeros: its settings, as tensors."""

    def text(of: str) -> Tensor:
        return torch.tensor(list(of.encode()), dtype=torch.uint8)

    numbers = {"nbits": bits, "group_size": group, "axis": 1}
    off = dict.fromkeys(("offload_meta", "quant_scale", "quant_zero", "round_zero", "view_as_float"), 0)
    on = dict.fromkeys(("channel_wise", "encoded_state_dict", "optimize", "stores_quant_config"), 1)
    return {
        "shape": torch.tensor(weight.shape), "packing": text(f"{bits}bit_u8"), "unpack_view_dtype": text("torch.uint8"),
        "compute_dtype": text(str(weight.dtype)),
        **{name: torch.tensor(of, dtype=torch.int32) for name, of in numbers.items()},
        **{name: torch.tensor(of, dtype=torch.uint8) for name, of in {**off, **on}.items()},
    }  # fmt: skip


def best_minima(groups: Tensor, scales: Tensor, minima: Tensor, stored: Callable[[Tensor], Tensor]) -> Tensor:
    """The minima (..., 1) of groups of 4 bits, whose levels are minimum + code scale, by half-quadratic quantization.

    Badri and Shaji, 2023, "Half-Quadratic Quantization of Large Machine Learning Models", equations 3 to 6: the sum of
    |error|^p is least, where p < 1 counts what is far off less than squares do. Scales stay as they are.

    Args:
        groups: (..., group) weights in fp32.
        scales: (..., 1) fp32.
        minima: (..., 1) fp32, where the search begins.
        stored: minima as they will be read back.
    """
    best, least, beta = minima, torch.full_like(minima, torch.inf), HQQ_BETA
    for _ in range(HQQ_ROUNDS):
        levels = ((groups - minima) / scales).round().clamp(0, 15) * scales
        errors = groups - levels - minima
        far = errors.abs().pow(HQQ_P).mean(-1, keepdim=True)
        best, least = torch.where(far < least, minima, best), torch.minimum(far, least)
        size = errors.abs()
        shrunk = errors.sign() * (size - size.clamp_min(TINY).pow(HQQ_P - 1) / beta).clamp_min(0)
        minima, beta = stored((groups - levels - shrunk).mean(-1, keepdim=True)), beta * HQQ_GROWTH
    return best
