"""`fp8_linear` by torchao: both directions in 8 bits, a scale for each tensor, as its float8 training has it."""

from __future__ import annotations

from functools import cache
from typing import Any

from finetooth_hooks import install_command
from finetooth_hooks.protocols import Kernel


def build() -> Kernel:
    """The provider `torchao`."""
    return Kernel({"fp8_linear": fp8_linear}, "torchao's float8 training", missing)


def build_mxfp8() -> Kernel:
    """The provider `torchao_mxfp8`."""
    from finetooth_torchao import microscaled

    return Kernel({"fp8_linear": microscaled.mxfp8_linear}, "torchao's MXFP8", microscaled.missing)


def missing(operation: str, device: str, dtype: str) -> str:
    """Why it cannot serve there; empty if it can."""
    import importlib.util

    import torch
    from finetooth_kernels.fp8 import multiplies_fp8

    if not multiplies_fp8(torch.device(device)):
        return f"{device} cannot multiply in 8-bit floating point"
    there = importlib.util.find_spec("torchao") is not None
    return "" if there else f"torchao is not installed; {install_command('finetooth[torchao]')}"


def fp8_linear(x_nd: Any, weight_od: Any, bias_o: Any = None, base_no: Any = None) -> Any:
    """See `finetooth_kernels.fp8.fp8_linear`. Bias and base are added to a product that was rounded already, and an
    input without rows goes torch's way."""
    from finetooth_kernels import fp8
    from torchao.float8.float8_linear import matmul_with_hp_or_float8_args

    if not x_nd.numel():
        return fp8.fp8_linear(x_nd, weight_od, bias_o, base_no)
    config, products = _configured(fp8.multiplies_fp8(x_nd.device))
    y = matmul_with_hp_or_float8_args.apply(x_nd.contiguous(), weight_od.t(), products, config)
    for more in (bias_o, base_no):
        y = y if more is None else y + more
    return y.to(x_nd.dtype)


@cache
def _configured(native: bool) -> tuple[Any, Any]:
    """torchao's settings: its recipe with a scale for each tensor; on devices without such products emulated."""
    from torchao.float8 import Float8LinearConfig
    from torchao.float8.float8_training_tensor import LinearMMConfig, ScaledMMConfig

    config = Float8LinearConfig(emulate=not native, pad_inner_dim=True)
    each = (config.gemm_config_output, config.gemm_config_grad_input, config.gemm_config_grad_weight)
    return config, LinearMMConfig(*(ScaledMMConfig(not native, of.use_fast_accum, False, True) for of in each))
