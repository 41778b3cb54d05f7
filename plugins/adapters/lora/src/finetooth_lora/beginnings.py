"""Initial values of a LoRA from the weight itself: PiSSA (Meng et al., 2024, arXiv:2404.02948) and OLoRA (Büyükakyüz,
2024, arXiv:2406.01775).

Both derive A0 and B0 from W and train W - s B0 A0 + s B A, starting at A = A0 and B = B0, so that the model initially
does not change. Here W is not changed, and the difference s B A - s B0 A0 is added to it: the same function and
gradients, but the base stays available for a reference, other adapters, and engines that share it. The frozen pair is a
second adapter of peft in each layer, `start`, with -B0. The artifact is a plain LoRA of twice the rank, (A, A0) and (B,
-B0), which every LoRA loader can load.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from finetooth_hooks import EngineError, RecipeError
from finetooth_peftfiles.layers import NAME
from finetooth_torchshared.quantised import DequantisingLinear, reads_as_numbers
from torch import Tensor

START = "start"
"""peft's name of the frozen pair."""
Beginning = Literal["pissa", "olora"]


def begin_from(
    beginning: Beginning, path: str, layer: Any, iterations: int | None, generator: np.random.Generator
) -> None:
    """Set the initial values of a layer, and the frozen pair that subtracts them.

    Args:
        layer: peft's linear layer.
        iterations: of the power method for the largest singular values; None computes all of them.
        generator: random generator of the power method's start.

    Raises:
        RecipeError: the layer's weight cannot be read as numbers, or its rank is larger than the weight's.
    """
    base = layer.base_layer
    if not isinstance(base, torch.nn.Linear) or not reads_as_numbers(base):
        raise RecipeError(
            "adapter.init",
            f"{beginning} reads the weight of a linear module, and {path} holds none as plain numbers",
            action="leave adapter.init out, or that module out of adapter.targets",
        )
    rank = layer.r[NAME]
    if rank > min(base.weight.shape):
        raise RecipeError(
            "adapter.rank", f"{rank} is more than {path} has, {min(base.weight.shape)}", action="set a smaller one"
        )
    weight = base.weight.detach().float()
    if beginning == "olora":
        a, b = orthonormal(weight, rank)
    else:
        a, b = principal(weight, rank, layer.scaling[NAME], iterations, generator)
    layer.lora_A[NAME].weight.data, layer.lora_B[NAME].weight.data = a, b
    layer.lora_A[START] = _frozen(a, base.weight.dtype)
    layer.lora_B[START] = _frozen(-b, base.weight.dtype)
    for of in (layer.r, layer.lora_alpha, layer.scaling, layer.use_rslora, layer.use_dora, layer.lora_bias):
        of[START] = of[NAME]
    layer.lora_dropout[START] = torch.nn.Identity()
    layer._active_adapter = [NAME, START]


def make_up(path: str, layer: Any, weight: Tensor, iterations: int | None, generator: np.random.Generator) -> None:
    """LoftQ (Li et al., 2023, arXiv:2310.08659), algorithm 1 with T = 1: B A is the best approximation of W - Q(W) of
    its rank, so that the layer starts closer to W than Q(W) is. More steps would change the stored weight.

    Args:
        layer: peft's layer over a quantised module.
        weight: (outputs, inputs) before quantisation.

    Raises:
        RecipeError: the module is not quantised, or its weight cannot be read, or the rank is larger than the weight's.
    """
    base = layer.base_layer
    if not isinstance(base, DequantisingLinear):
        raise RecipeError(
            "adapter.init",
            f"loftq makes up for what a quantised weight lost, and {path} is a {type(base).__name__}",
            action="set quantization, or leave adapter.init out",
        )
    rank = layer.r[NAME]
    if rank > min(weight.shape):
        raise RecipeError(
            "adapter.rank", f"{rank} is more than {path} has, {min(weight.shape)}", action="set a smaller one"
        )
    now = layer.lora_A[NAME].weight
    lost = weight.to(now.device).float() - base.dequantised(torch.float32)
    a, b = principal(lost, rank, layer.scaling[NAME], iterations, generator)
    layer.lora_A[NAME].weight.data, layer.lora_B[NAME].weight.data = a, b


def principal(
    weight: Tensor, rank: int, scale: float, iterations: int | None, generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """PiSSA, eq. 2 and 3: of W = U S V^T, A = sqrt(S_r) V_r^T and B = U_r sqrt(S_r), both over the root of the scale,
    so that scale * B A is the best approximation of W of rank r.

    Args:
        weight: (outputs, inputs), float32.
    """
    if iterations is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    else:
        with torch.random.fork_rng(devices=[weight.device] if weight.device.type == "cuda" else []):
            torch.manual_seed(int(generator.integers(2**31)))
            u, s, v = torch.svd_lowrank(weight, rank, niter=iterations)
        vh = v.T
    root = torch.sqrt(s / scale)
    return (root.unsqueeze(-1) * vh).contiguous(), (u * root).contiguous()


def orthonormal(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """OLoRA, algorithm 1: of W = Q R, B is the first columns of Q and A the first rows of R."""
    q, r = torch.linalg.qr(weight)
    return r[:rank].contiguous(), q[:, :rank].contiguous()


def started(model: Any) -> bool:
    """Whether the layers of a model have a frozen pair."""
    return any(name.endswith(f".lora_A.{START}") for name, _ in model.named_modules())


def trained_of(addition: dict[str, Tensor]) -> dict[str, Tensor]:
    """An addition without its frozen pairs."""
    return {name: tensor for name, tensor in addition.items() if f".{START}." not in name}


def _whole(frozen: Tensor) -> Tensor:
    """A frozen matrix, gathered if ranks divide it, since all ranks export an adapter.

    Raises:
        EngineError: this rank has no part of it.
    """
    from torch.distributed.tensor import DTensor  # takes long to import

    if isinstance(frozen, DTensor):
        frozen = frozen.full_tensor()
    if not frozen.numel():  # torch would concatenate an empty tensor with any shape
        raise EngineError(
            "adapter.init: the ranks divide the adapter's initial weights, and the strategy does not gather them",
            action="continue with ft resume RUN scale.devices=1, which writes the artifact",
        )
    return frozen


def doubled(model: Any, addition: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The addition with its frozen pairs, as one of twice the rank, and the matching settings of peft's config."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in addition.items():
        path, side, _ = name.partition(".lora_")
        layer = model.get_submodule(path) if side else None
        if layer is None or START not in getattr(layer, "lora_A", {}):
            tensors[name] = tensor
        elif name.endswith(".lora_A.weight"):
            tensors[name] = torch.cat([tensor, _whole(layer.lora_A[START].weight).to(tensor.device, torch.float32)])
        else:
            tensors[name] = torch.cat([tensor, _whole(layer.lora_B[START].weight).to(tensor.device, torch.float32)], 1)
    config = model.peft_config[NAME]
    # keeps the scale: alpha over the rank, or over its root
    alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)
    return tensors, {"r": 2 * config.r, "lora_alpha": alpha}


def halved(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The trained halves of tensors from `doubled`, and the other tensors unchanged; the frozen halves follow from the
    base."""
    rank = model.peft_config[NAME].r
    parts = {}
    for name, tensor in tensors.items():
        layer = model.get_submodule(name.partition(".lora_")[0]) if ".lora_" in name else None
        if layer is None or START not in getattr(layer, "lora_A", {}):
            parts[name] = tensor
        else:
            parts[name] = tensor[:rank] if name.endswith(".lora_A.weight") else tensor[:, :rank]
    return parts


def _frozen(matrix: Tensor, dtype: torch.dtype) -> torch.nn.Linear:
    """A linear module without bias, rounded to the model's precision, as trained matrices are in multiplications."""
    outputs, inputs = matrix.shape
    made = torch.nn.Linear(inputs, outputs, bias=False, device="meta")
    made.weight = torch.nn.Parameter(matrix.detach().to(dtype).clone(), requires_grad=False)
    return made
