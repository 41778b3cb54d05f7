"""The head's product with its sums in float32, as they are: logits of training, scoring and sampling alike."""

from __future__ import annotations

import torch
from torch import Tensor

from finetooth_triton import gpu, launch

__all__ = ["WideLinear", "multiplies_into_float32", "wide_linear"]


def wide_linear(hidden_md: Tensor, weight_vd: Tensor, bias_v: Tensor | None = None) -> Tensor:
    """(M, D) to (M, V), float32: hidden weight^T + bias, rounded nowhere.

    Torch multiplies where it can multiply half precision into float32, since nobody is faster; elsewhere a kernel does.
    """
    if hidden_md.dtype == torch.float32:
        if bias_v is None:
            return torch.mm(hidden_md, weight_vd.t())
        return torch.addmm(bias_v, hidden_md, weight_vd.t())
    if 0 in (hidden_md.shape[0], weight_vd.shape[0]):
        return hidden_md.new_zeros((hidden_md.shape[0], weight_vd.shape[0]), dtype=torch.float32)
    if multiplies_into_float32(hidden_md.device, hidden_md.dtype):
        product = torch.mm(hidden_md, weight_vd.t(), out_dtype=torch.float32)
        return product if bias_v is None else product.add_(bias_v)
    return launch.linear(hidden_md, weight_vd, bias_v)


_MIXED_PRODUCTS: dict[tuple[torch.device, torch.dtype], bool] = {}


def multiplies_into_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this torch multiplies half precision into float32 on `device`; asked once, by doing it."""
    key = (device, dtype)
    if key not in _MIXED_PRODUCTS:
        ones = torch.ones((16, 16), dtype=dtype, device=device)
        try:
            result = torch.addmm(torch.ones_like(ones, dtype=torch.float32), ones, ones, out_dtype=torch.float32)
            alone = torch.mm(ones, ones, out_dtype=torch.float32)
            _MIXED_PRODUCTS[key] = bool((result == 17).all()) and bool((alone == 16).all())
        except (RuntimeError, TypeError):
            _MIXED_PRODUCTS[key] = False
    return _MIXED_PRODUCTS[key]


class WideLinear:
    """x W^T + b with a weight as it stands, in float32 until the end: the operation `packed_linear`, made by `pack`."""

    def __init__(self, weight_od: Tensor, bias_o: Tensor | None) -> None:
        self._weight, self._bias = weight_od, bias_o

    @staticmethod
    def pack(weight_od: Tensor, bias_o: Tensor | None = None) -> WideLinear | None:
        """None where kernels do not take the weight's dtype. It is not copied."""
        if weight_od.dtype not in gpu.SUPPORTED_DTYPES:
            return None
        return WideLinear(weight_od.detach(), None if bias_o is None else bias_o.detach())

    @torch.no_grad()
    def __call__(
        self, x_nd: Tensor, *, base_no: Tensor | None = None, more: tuple[Tensor, WideLinear] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:  # fmt: skip
        """(N, D) to (N, O).

        Args:
            base_no: of the dtype of `x_nd` or a wider one, which the result gets.
            more: (N, L) and another weight, (O, L), whose product is added.
            dtype: of the result; None: that of `base_no`, else of `x_nd`.
        """
        with gpu.on(x_nd.device):
            y_no = wide_linear(x_nd, self._weight, self._bias)
            if more is not None:
                y_no += wide_linear(more[0], more[1]._weight)
        if base_no is not None:
            y_no += base_no
        return y_no.to(dtype or (x_nd.dtype if base_no is None else base_no.dtype))
