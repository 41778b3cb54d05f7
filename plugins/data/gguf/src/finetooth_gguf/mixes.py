"""In which type each tensor of a GGUF file is written: one for all matrices, or a mix of llama.cpp's by name."""

from __future__ import annotations

from collections.abc import Mapping

from finetooth_modelfiles.gguf.package import GGML_QUANT_SIZES, LlamaFileType
from finetooth_modelfiles.gguf.package import GGMLQuantizationType as Type

STORED: Mapping[str, tuple[Type, LlamaFileType]] = {
    "f32": (Type.F32, LlamaFileType.ALL_F32),
    "f16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "q6_k": (Type.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "q5_1": (Type.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "q5_0": (Type.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "q4_k_m": (Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
    "q4_1": (Type.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "q4_0": (Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
"""Available formats, with the type of most matrices and the file's declared type."""

INSTEAD: Mapping[Type, Type] = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}
"""What a matrix is stored as whose rows blocks of 256 do not fill, as llama.cpp does it: SmolLM2's 576 columns."""

_PLAIN = ("ffn_gate_inp.weight", "norm.weight", "conv.weight", "conv1d.weight")
"""Tensors that llama.cpp computes with in float32 alone."""

_MORE = ("attn_v", "ffn_down")
"""Modules of which `q4_k_m` stores some layers in 6 bits."""


def type_of(tensor: str, shape: tuple[int, ...], stored: str, layers: int, *, tied: bool) -> Type:
    """The type of a tensor, fp16 where no blocks fill its rows; vectors, kernels of convolutions and routers to experts
    stay in float32.

    `q4_k_m` stores the head (or the embedding that is one), and the values and the last product of the feed-forward
    part of the first and the last eighth of the layers and every third between, as `Q6_K`; the rest as `Q4_K`.

    Args:
        tensor: its name in the file, `blk.3.attn_v.weight`.
        shape: (rows, columns) of a matrix.
        stored: a key of `STORED`.
        layers: of the model.
        tied: whether the head is the embedding.
    """
    if len(shape) < 2 or not tensor.endswith(".weight") or tensor.endswith(_PLAIN):
        return Type.F32
    kind = STORED[stored][0]
    if stored == "q4_k_m" and _takes_more(tensor, layers, tied=tied):
        kind = Type.Q6_K
    fitting = (kind, INSTEAD.get(kind, kind), Type.F16)
    return next(one for one in fitting if shape[-1] % GGML_QUANT_SIZES[one][0] == 0)


def block_of(stored: str) -> int:
    """Number that the columns of a matrix must be a multiple of, for the finally chosen type."""
    kind = STORED[stored][0]
    return GGML_QUANT_SIZES[INSTEAD.get(kind, kind)][0]


def _takes_more(tensor: str, layers: int, *, tied: bool) -> bool:
    if tensor == "output.weight" or (tied and tensor == "token_embd.weight"):
        return True
    parts = tensor.split(".")
    if parts[0] != "blk" or not parts[2].startswith(_MORE):
        return False
    layer, eighth = int(parts[1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
