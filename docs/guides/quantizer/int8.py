"""A quantizer as an outsider writes one: linear weights as int8, with a scale for each row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from finetooth_hooks import Options, Quantizer, QuantizerBase, hookimpl
from finetooth_hooks.protocols import Stored


class Int8Options(Options):
    """Options of `int8_rows`."""

    skip: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Names that end the paths of modules which stay as they are."""


class Int8(QuantizerBase):
    """`protocols.Quantizer`: q = round(w / s) with s = max|w| / 127 of a row."""

    stored = Stored("int8 by row", 1 + 4 / 256)  # a scale of 4 bytes for each row

    def __init__(self, skip: tuple[str, ...]) -> None:
        self._skip = skip

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        return not path.endswith(self._skip) if self._skip else True

    def linear(self, module: Any, *, device: str) -> Any:
        return _classes()(module).to(device)


def _classes() -> Any:
    """The module's class; torch is imported when it is first asked for."""
    import torch
    from finetooth_torchshared.quantised import DequantisingLinear

    class Int8Linear(DequantisingLinear):
        def __init__(self, module: torch.nn.Linear) -> None:
            super().__init__(module.in_features, module.out_features, module.bias)
            weight = module.weight.detach().float()
            scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
            self.register_buffer("codes", (weight / scale).round().to(torch.int8))
            self.register_buffer("scale", scale)

        def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
            return (self.codes.float() * self.scale).to(dtype)  # type: ignore[operator]

    return Int8Linear


def build(options: Int8Options) -> Int8:
    return Int8(tuple(options.skip))


@hookimpl
def ft_quantizers() -> Iterable[Quantizer]:
    yield Quantizer(name="int8_rows", build=f"{__name__}:build", summary="8 bits a weight, a scale a row")
