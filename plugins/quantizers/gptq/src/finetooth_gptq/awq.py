"""The exporter `awq`: inputs that matter are scaled up before weights are rounded, packed as AutoAWQ packs them, which
vLLM, mlx-lm and finetooth load.

Lin et al., 2024, arXiv:2306.00978, section 3.2: with s = x^a, x how large each input is and a from a grid, W s is
rounded and what gives the input is divided by s, where the error over the rows, tr(D H D^T) with D = W - Q(W s) / s and
H = X X^T, is least. Here x is the root mean square of an input, which H holds, where the paper takes the mean of |x|.
Then the weights of each group are clipped at the share of its greatest that leaves the least error. Those of queries
and keys are not, as in the authors' code: what their product changes by is not the error of each alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finetooth_hooks import CommandContext, ExportSource, Options
from pydantic import Field

from finetooth_gptq.exporter import GptqExporter, in_dtype

if TYPE_CHECKING:
    from finetooth_torchshared.grouped_linear import Grouped
    from torch import Tensor, nn

GRID = 20
"""Exponents between 0 and 1 that are tried."""
CLIPS, SHORTEST = 20, 0.5
"""How many shares of a group's greatest weight are tried, from 1 down to above the least."""
QUERIES_KEYS = re.compile(r"(?i)(^|_)(q|k|qk|w?qkv)(_|z?$)|query|key")
"""In the names of modules that give queries or keys, alone or with values."""
SAME = 1e-3
"""How far a layer's output may be from what it was, as a share of its norm, where scales were moved."""


class AwqExportOptions(Options):
    """Options of the exporter `awq`."""

    group: Literal[32, 64, 128] = 128
    """Consecutive weights of an output that share a scale and a zero."""
    rows: int = Field(default=128, ge=1)
    """How many rows it is calibrated with: the first ones."""
    calibrate_on: str = ""
    """A file of rows to calibrate with: texts, conversations, or prompts with completions. Left out, `data.train` of
    the run."""
    precision: Literal["fp16", "bf16"] = "fp16"
    """Of scales, and of all that is not rounded: embeddings, norms and head."""


def build(options: AwqExportOptions, context: CommandContext) -> AwqExporter:
    """AWQ in 4 bits, version gemm."""
    return AwqExporter(options, context)


class AwqExporter(GptqExporter):
    """See `AwqExportOptions`. The whole model is in memory, in fp32."""

    method, bits = "awq", 4

    def said(self) -> dict[str, Any]:
        """What the config says of it: the words of AutoAWQ."""
        group = self._options.group
        return {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": group, "zero_point": True}

    def packed(self, weight: Grouped, dtype: str) -> dict[str, Tensor]:
        """Codes and zeros along the outputs, eight to a word in AutoAWQ's order, and scales."""
        from finetooth_torchshared.packed_files import AWQ_ORDER, words

        assert weight.zeros is not None

        def packed(codes: Tensor) -> Tensor:
            eights = codes.T.reshape(codes.shape[1], -1, 8)
            return words(eights[:, :, list(AWQ_ORDER)].flatten(1), 4, 1)

        scales = in_dtype(weight.scales.T, dtype, "scales").contiguous()
        return {"qweight": packed(weight.codes), "qzeros": packed(weight.zeros), "scales": scales}

    def _rounded(
        self, source: ExportSource, folder: Path, rows: list[list[int]]
    ) -> tuple[dict[str, Grouped], dict[str, Tensor]]:
        from finetooth_gptq.calibration import calibrate

        group, rounded = self._options.group, dict[str, "Grouped"]()
        changed = dict[str, "Tensor"]()

        def store(path: str, module: Any, hessian: Tensor) -> nn.Module:
            from finetooth_torchshared.grouped_linear import GroupedLinear

            rounded[path] = nearest_clipped(path, module.weight.detach(), hessian, group)
            return GroupedLinear(rounded[path], module.bias)

        def ready(path: str, layer: nn.Module, hessians: dict[str, Tensor], run: Callable[[], Tensor]) -> None:
            for name, module in scaled(layer, hessians, group, run):
                changed[f"{path}.{name}"] = module

        model = self.loaded(folder)
        calibrate(model, source.context.facts.layer_path, rows, self.takes(source), store, self.refusing(source), ready)
        return rounded, changed


def scaled(
    layer: nn.Module, hessians: dict[str, Tensor], group: int, run: Callable[[], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Scale the inputs of a layer's linear modules, and what gives them; the names and values of parameters that are
    not linear weights and changed.

    Which module gives an input is tried: one that may be divided while the layer computes what it did. Inputs that none
    gives alone, as those of `o_proj` where heads share values, stay.

    Args:
        hessians: of each linear module by its path; changed in place with the inputs.
        run: the layer's output for a row.
    """
    import torch

    for names in _readers(hessians):
        modules: list[Any] = [layer.get_submodule(name) for name in names]
        hessian = hessians[names[0]]
        scales = best_scales([module.weight.detach() for module in modules], hessian, group)
        if bool((scales == 1).all()):
            continue
        before = run()
        for module in modules:
            module.weight.data *= scales
        for path, divide in _givers(layer, names, len(scales)):
            kept = {name: of.detach().clone() for name, of in layer.get_submodule(path).named_parameters()}
            divide(scales)
            after = run()
            if torch.linalg.norm(after - before) <= SAME * torch.linalg.norm(before):
                for name in names:
                    hessians[name] = hessian / (scales[:, None] * scales)
                if path not in hessians:
                    yield from ((f"{path}.{name}", of.detach()) for name, of in
                                layer.get_submodule(path).named_parameters())  # fmt: skip
                elif "bias" in kept:
                    yield f"{path}.bias", layer.get_submodule(path).bias.detach()  # type: ignore[operator]
                break
            for name, of in layer.get_submodule(path).named_parameters():
                of.data.copy_(kept[name])
        else:
            for module in modules:
                module.weight.data /= scales


def best_scales(weights: Sequence[Tensor], hessian: Tensor, group: int) -> Tensor:
    """(inputs,) of the grid's that leave the least error; all 1 where rounding as it is does."""
    import torch
    from finetooth_torchshared.grouped_linear import GroupedLinear

    from finetooth_gptq.rounding import nearest

    size = hessian.diagonal().clamp_min(0).sqrt().clamp_min(1e-8)
    best, least = torch.ones_like(size), float("inf")
    for step in range(GRID):
        scales = size ** (step / GRID)
        scales = scales / (scales.max() * scales.min()).sqrt()
        error = 0.0
        for weight in weights:
            made = GroupedLinear(nearest(weight * scales, group, 4)).dequantised(torch.float32) / scales
            apart = weight - made
            error += float(((apart @ hessian) * apart).sum())
        if error < least:
            best, least = scales, error
    return best


def nearest_clipped(path: str, weight: Tensor, hessian: Tensor, group: int) -> Grouped:
    """The weight of the module at a path, clipped unless it gives queries or keys, and rounded to the nearest."""
    from finetooth_gptq.rounding import nearest

    clips = not QUERIES_KEYS.search(path.rpartition(".")[2])
    return nearest(clipped(weight, hessian, group) if clips else weight, group, 4)


def clipped(weight: Tensor, hessian: Tensor, group: int) -> Tensor:
    """The weight with each group of each output clipped where its own error, tr(d H_g d^T), is least.

    Args:
        weight: (outputs, inputs), of whole groups.
        hessian: (inputs, inputs) of what it reads.
    """
    import torch
    from finetooth_torchshared.grouped_linear import GroupedLinear

    from finetooth_gptq.rounding import nearest

    groups = weight.view(len(weight), -1, group)
    own = torch.stack([hessian[i : i + group, i : i + group] for i in range(0, len(hessian), group)])
    greatest = groups.abs().amax(-1, keepdim=True)
    best, least = groups, torch.full_like(greatest, float("inf"))
    for step in range(CLIPS):
        bound = greatest * (1 - (1 - SHORTEST) * step / CLIPS)
        tried = groups.clamp(-bound, bound)
        made = GroupedLinear(nearest(tried.flatten(1), group, 4)).dequantised(torch.float32)
        apart = groups - made.view(groups.shape)
        error = (torch.einsum("ogi,gij->ogj", apart, own) * apart).sum(-1, keepdim=True)
        best, least = torch.where(error < least, tried, best), torch.minimum(error, least)
    return best.reshape(weight.shape)


def _readers(hessians: Mapping[str, Tensor]) -> list[list[str]]:
    """Linear modules that read the same, together."""
    import torch

    groups: list[list[str]] = []
    for name, hessian in hessians.items():
        for group in groups:
            if torch.equal(hessians[group[0]], hessian):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _givers(layer: nn.Module, readers: Sequence[str], inputs: int) -> Iterator[tuple[str, Callable[[Tensor], None]]]:
    """Modules that might give what these read, and how each is divided: norms, also those whose weight counts from 1,
    and linear modules."""
    import torch

    for path, module in layer.named_modules():
        own: Any = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        if weight is None or weight.shape[0] != inputs or path in readers:
            continue
        if weight.dim() == 1:

            def plain(scales: Tensor, own: Any = own) -> None:
                for of in own.values():
                    of.data /= scales

            def from_one(scales: Tensor, weight: Any = weight) -> None:
                weight.data = (1 + weight.data) / scales - 1

            yield path, plain
            yield path, from_one
        elif isinstance(module, torch.nn.Linear):

            def rows(scales: Tensor, own: Any = own) -> None:
                for of in own.values():
                    of.data /= scales if of.dim() == 1 else scales[:, None]

            yield path, rows
