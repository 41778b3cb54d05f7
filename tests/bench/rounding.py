"""Measure the loss of a trained model in 4 bits by plain rounding, AWQ and GPTQ: writes docs/benchmarks/rounding.md.

    python tests/bench/rounding.py [--rows 32] [--page]

SmolLM2-135M is calibrated with rows of one text and judged by rows of that text which it did not see, and of another.
"""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import finetooth
import torch
from finetooth_gptq.awq import nearest_clipped, scaled
from finetooth_gptq.calibration import calibrate
from finetooth_gptq.rounding import nearest, rounded
from finetooth_torchshared.grouped_linear import Grouped, GroupedLinear
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/benchmarks/rounding.md"
SHARED = Path(os.environ.get("FT_SHARED", ROOT.parent / "shared")) / "data"
GROUP, LENGTH = 64, 128
TEXTS = {"War and Peace": "raw/war_and_peace.txt", "Shakespeare": "raw/tinyshakespeare.txt"}
Store = Callable[[str, nn.Linear, Tensor], Grouped]


def _clipped(path: str, module: nn.Linear, hessian: Tensor) -> Grouped:
    return nearest_clipped(path, module.weight.detach(), hessian, GROUP)


WAYS: Mapping[str, tuple[bool, Store]] = {
    "rounded to the nearest": (False, lambda path, module, hessian: nearest(module.weight, GROUP, 4)),
    "clipped": (False, _clipped),
    "awq without clipping": (True, lambda path, module, hessian: nearest(module.weight, GROUP, 4)),
    "awq": (True, _clipped),
    "gptq": (
        False,
        lambda path, module, read: rounded(module.weight, read, GROUP, 4, damping=0.01, ordered=True),
    ),
}
"""Whether inputs are scaled, and how a module is rounded."""


def main() -> None:
    """Measure each way in turn, and print the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--page", action="store_true", help="write the page")
    arguments = parser.parse_args()
    context = finetooth.session({"model": "smollm2-135m"}, data=False).job.context

    def loaded() -> Any:
        return context.loader.load("smollm2-135m", framework="torch", precision="fp32", device="cpu").eval()

    texts = {name: _rows(context.tokenizer, file, 2 * arguments.rows) for name, file in TEXTS.items()}
    calibration = texts["War and Peace"][: arguments.rows]
    judges = {name: rows[arguments.rows :] for name, rows in texts.items()}
    measured = {"fp32": losses(loaded(), judges)}
    for way, (scales, store) in WAYS.items():
        model = loaded()
        stored(model, context.facts.layer_path, calibration, store, scales=scales)
        measured[way] = losses(model, judges)
        print(way, measured[way], flush=True)
    written = page(measured, arguments.rows)
    print(written)
    if arguments.page:
        PAGE.write_text(written, encoding="utf-8")


def stored(model: Any, layers: str, rows: Sequence[Sequence[int]], store: Store, *, scales: bool) -> None:
    """Put rounded modules in the place of the linear ones of the layers."""

    def put(path: str, module: nn.Linear, hessian: Tensor) -> nn.Module:
        module.weight.data = GroupedLinear(store(path, module, hessian), module.bias).dequantised(torch.float32)
        return module

    def ready(path: str, layer: nn.Module, hessians: dict[str, Tensor], run: Callable[[], Tensor]) -> None:
        for _ in scaled(layer, hessians, GROUP, run) if scales else ():
            pass

    def no_experts(*_: object) -> nn.Module:
        raise NotImplementedError

    calibrate(model, layers, rows, lambda path, shape: True, put, no_experts, ready)


@torch.no_grad()
def losses(model: Any, judges: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, float]:
    """Mean negative log-probability of a token, in nats, for each text."""

    def each(rows: Sequence[Sequence[int]]) -> Iterator[float]:
        for row in rows:
            ids = torch.tensor([list(row)])
            yield float(nn.functional.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:]))

    return {name: sum(each(rows)) / len(rows) for name, rows in judges.items()}


def _rows(tokenizer: Any, file: str, count: int) -> list[list[int]]:
    """Rows from all over a text, the first half of them from its first half."""
    text = (SHARED / file).read_text(encoding="utf-8")
    starts = [len(text) * i // count for i in range(count)]
    return [list(tokenizer.encode(text[start : start + 8 * LENGTH]))[:LENGTH] for start in starts]


def page(measured: Mapping[str, Mapping[str, float]], rows: int) -> str:
    """The page."""
    exact = measured["fp32"]
    lines = [
        "# What rounding to 4 bits costs",
        "",
        *textwrap.wrap(
            f"Written by `tests/bench/rounding.py --page`: SmolLM2-135M, linear modules of its layers in 4 bits by "
            f"groups of {GROUP}, calibrated with {rows} rows of {LENGTH} tokens of War and Peace, judged by {rows} "
            f"rows of its second half and {rows} of Shakespeare. Loss in nats a token, and what it is "
            "above fp32.",
            118,
        ),
        "",
        "| way | " + " | ".join(exact) + " |",
        "|---" * (len(exact) + 1) + "|",
    ]
    for way, loss in measured.items():
        cells = [f"{loss[name]:.4f}" + f" (+{loss[name] - exact[name]:.4f})" * (way != "fp32") for name in exact]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
