"""Checks of quantizers: what they store computes what they say, and takes what they say."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from finetooth_hooks.entries import Quantizer

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect

_INPUTS, _OUTPUTS = 256, 128
_PATH = "model.layers.0.mlp.up_proj"


def _quantise(case: EntryCase) -> tuple[Any, Any, Any, Any]:
    """torch, the quantizer, a linear module, and what stands in its place."""
    assert isinstance(case.entry, Quantizer)
    if "torch" not in case.entry.frameworks:
        raise CheckSkipped(f"for {', '.join(sorted(case.entry.frameworks))}; the kit tries torch only")
    try:
        torch = import_module("torch")
    except ImportError as error:
        raise CheckSkipped("torch is not installed") from error
    quantizer = case.build()
    if not quantizer.takes(_PATH, (_OUTPUTS, _INPUTS)):
        raise CheckSkipped(f"it does not take {_PATH} of shape ({_OUTPUTS}, {_INPUTS})")
    generator = torch.Generator().manual_seed(3)
    module = torch.nn.Linear(_INPUTS, _OUTPUTS)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return torch, quantizer, module, quantizer.linear(module, device="cpu")


@check_for("quantizer")
def stored_weights_take_what_is_said(case: EntryCase) -> None:
    """What a module keeps is `stored.bytes_per_weight` for each weight, within a tenth, and nothing of it trains."""
    _, quantizer, _, made = _quantise(case)
    sizes = (made.in_features, made.out_features)
    expect(sizes == (_INPUTS, _OUTPUTS), "linear(module)", f"in and out features {sizes}", f"{(_INPUTS, _OUTPUTS)}")
    trains = [name for name, parameter in made.named_parameters() if parameter.requires_grad]
    expect(not trains, "linear(module).parameters()", f"{trains} require gradients", "nothing that trains")
    tensors = [*made.named_parameters(), *made.named_buffers()]
    taken = sum(tensor.nbytes for name, tensor in tensors if name != "bias")
    stated = quantizer.stored.bytes_per_weight * _INPUTS * _OUTPUTS
    expect(
        abs(taken - stated) <= 0.1 * stated,
        "bytes of linear(module)",
        taken,
        f"{stated:.0f}, as stored.bytes_per_weight says",
    )


@check_for("quantizer")
def stored_weights_compute_as_a_linear_module(case: EntryCase) -> None:
    """The module is linear in its input, adds the bias, and its weight, read off it, is near the one it was given."""
    torch, _, module, made = _quantise(case)
    with torch.no_grad():
        weight = (made(torch.eye(_INPUTS)) - module.bias).T  # (outputs, inputs)
        wrong = float((weight - module.weight).norm() / module.weight.norm())
        expect(
            wrong < 0.3, "the weight that linear(module) computes with", f"{wrong:.2f} away from the given", "near it"
        )
        rows = torch.randn(2, 5, _INPUTS, generator=torch.Generator().manual_seed(4))
        wanted = rows.double() @ weight.T.double() + module.bias.double()
        off = float((made(rows).double() - wanted).abs().max() / wanted.abs().max())
    expect(off < 1e-2, "linear(module)(rows)", f"{off:.2g} away", "rows times that weight, and the bias")


@check_for("quantizer")
def gradients_reach_what_comes_before(case: EntryCase) -> None:
    """The gradient of the input is that of the weight the module computes with."""
    torch, _, module, made = _quantise(case)
    with torch.no_grad():
        weight = (made(torch.eye(_INPUTS)) - module.bias).T
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(7, _INPUTS, generator=generator).requires_grad_()
    slopes = torch.randn(7, _OUTPUTS, generator=generator)
    made(rows).backward(slopes)
    expect(rows.grad is not None, "linear(module)(rows).backward(...)", "no gradient of the rows", "one")
    wanted = slopes.double() @ weight.double()
    off = float((rows.grad.double() - wanted).abs().max() / wanted.abs().max())
    expect(off < 1e-2, "the gradient of the rows", f"{off:.2g} away", "that of the weight it computes with")


@check_for("quantizer")
def some_outputs_are_those_of_the_weight(case: EntryCase) -> None:
    """Where some of the outputs can be read alone, and where the weight is written into memory that there is, the
    numbers are those of the weight read as a whole, bit for bit."""
    torch, _, _, made = _quantise(case)
    if not (hasattr(made, "dequantised_rows") and hasattr(made, "write")):
        raise CheckSkipped("it reads no part of its weight alone")
    whole, written = made.dequantised(torch.float32), torch.full((_OUTPUTS, _INPUTS), float("nan"))
    made.write(written)
    expect(torch.equal(written, whole), "linear(module).write(numbers)", "other numbers", "those of dequantised")
    for first, last in ((0, 1), (5, 77), (_OUTPUTS - 1, _OUTPUTS)):
        rows = made.dequantised_rows(first, last, torch.float32)
        name = f"linear(module).dequantised_rows({first}, {last})"
        expect(torch.equal(rows, whole[first:last]), name, "other numbers", "those of dequantised")
