"""Keeps a few frozen decoder layers at a time in the device's memory: the ones that a pass uses, and the next."""

from __future__ import annotations

import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks import EngineError
from finetooth_torchshared.offloaded import in_host_memory
from finetooth_torchshared.quantised import QuantisedLinear
from torch import Tensor, nn

from finetooth_torch.offload.copies import Shape
from finetooth_torch.offload.mapped_memory import expect, forget, in_one_file, is_clean, mappings
from finetooth_torch.offload.transfers import Transfers


class Lender(ABC):
    """Copies layers, by number, to the device that computes, and frees the copies.

    Attributes:
        moves: whether a layer's address changes each time.
    """

    moves = False

    @abstractmethod
    def begin(self, layer: int) -> None:
        """Begin to copy the layer."""

    @abstractmethod
    def wait(self, layer: int) -> None:
        """Finish the copy, after `begin`."""

    @abstractmethod
    def drop(self, layer: int) -> None:
        """Free the layer's copy."""

    def place_of(self, tensor: Tensor) -> tuple[int, int] | None:
        """The copied layer whose memory a tensor shares, and the number of the weight in it; None: no layer."""
        del tensor
        return None


class MappedLayers(Lender):
    """On a CPU: layers in mapped files, whose memory is released.

    Addresses do not change, so using a released layer is slow and not wrong. Weights loaded from a mapped file stay
    there; for the others, one file per layer is written.

    Args:
        layers: the frozen tensors of each.
        folder: for these files.

    Raises:
        EngineError: they cannot be written.
    """

    def __init__(self, layers: Sequence[Sequence[Tensor]], folder: Path) -> None:
        self._layers = layers
        self.written = 0
        """Bytes of these files."""
        known = mappings()
        for tensors in layers:
            changed = [tensor for tensor in tensors if not is_clean(tensor, known)]
            self.written += sum(tensor.nbytes for tensor in changed)
            try:
                copies = in_one_file(changed, folder)
            except OSError as error:
                raise _cannot(error) from error
            for tensor, mapped in zip(changed, copies, strict=True):
                tensor.data = mapped
            for tensor in tensors:
                forget(tensor)

    def begin(self, layer: int) -> None:
        for tensor in self._layers[layer]:
            expect(tensor)

    def wait(self, layer: int) -> None:
        del layer

    def drop(self, layer: int) -> None:
        for tensor in self._layers[layer]:
            forget(tensor)


class CopiedLayers(Lender):
    """On an accelerator: layers in host memory, or in the files from which they were mapped, and copies on the device.
    Without a copy, a layer's tensors are those of the host, so the device cannot compute with them by mistake.

    Args:
        layers: the frozen tensors of each, in host memory.
        hold: copies a tensor to its place on the host.
    """

    moves = True

    def __init__(
        self, layers: Sequence[Sequence[Tensor]], transfers: Transfers, hold: Callable[[Tensor], Tensor]
    ) -> None:
        self._layers, self._transfers = layers, transfers
        self._shapes: list[list[Shape]] = []
        self._held: list[list[Tensor]] = []
        self._coming: dict[int, list[tuple[Tensor, Any]]] = {}
        self._lent: dict[int, tuple[int, int]] = {}
        """Layer and number of the tensor by the address of its storage."""
        for tensors in layers:
            shapes, contents = [], []
            for tensor in tensors:
                whole = tensor.detach() if Shape.of(tensor).dense else tensor.detach().contiguous()
                shape = Shape.of(whole)
                tensor.data = hold(shape.raw(whole)).as_strided(shape.size, shape.stride)
                shapes.append(shape)
                contents.append(tensor.data)
            self._shapes.append(shapes)
            self._held.append(contents)

    def begin(self, layer: int) -> None:
        self._coming[layer] = [
            self._transfers.to_device(shape.raw(content), shape)
            for content, shape in zip(self._held[layer], self._shapes[layer], strict=True)
        ]

    def wait(self, layer: int) -> None:
        for number, (made, event) in enumerate(self._coming.pop(layer)):
            self._transfers.wait(made, event)
            self._layers[layer][number].data = made
            self._lent[made.untyped_storage().data_ptr()] = layer, number

    def drop(self, layer: int) -> None:
        if self._coming.pop(layer, None) is not None:
            return
        for tensor, content in zip(self._layers[layer], self._held[layer], strict=True):
            del self._lent[tensor.untyped_storage().data_ptr()]
            tensor.data = content

    def place_of(self, tensor: Tensor) -> tuple[int, int] | None:
        return self._lent.get(tensor.untyped_storage().data_ptr())


class LayerWindow:
    """Copies the layers of a model to the device in the order of its passes.

    In a forward pass, the copy of layer i + 1 begins during layer i; a backward pass, with its recomputation, has the
    reverse order.

    Args:
        layers: the modules, in their order.
        lender: of their frozen tensors, from `frozen`.
        width: most layers in memory at once, including the one being copied.
    """

    def __init__(self, layers: Sequence[nn.Module], lender: Lender, width: int, tensors: Sequence[Sequence[Tensor]]):
        self._lender, self._width, self._count, self._tensors = lender, width, len(layers), tensors
        self._here: list[int] = []  # least recently used first
        self._waited: set[int] = set()
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(self._entering(number))
            layer.register_forward_hook(self._leaving(number))

    @property
    def moves(self) -> bool:
        """See `Lender.moves`."""
        return self._lender.moves

    @property
    def here(self) -> tuple[int, ...]:
        """Layers in memory or being copied."""
        return tuple(self._here)

    def enter(self, layer: int) -> None:
        """Called when a pass begins to compute a layer."""
        coming = layer + (-1 if in_backward() else 1)
        needed = [layer] if self._width == 1 or not 0 <= coming < self._count else [coming, layer]
        stay = [other for other in self._here if other not in needed]
        while len(stay) + len(needed) > self._width:
            self._lender.drop(stay[0])
            self._waited.discard(stay.pop(0))
        for number in reversed(needed):
            if number not in self._here:
                self._lender.begin(number)
        self._here = [*stay, *needed]
        if layer not in self._waited:
            self._lender.wait(layer)
            self._waited.add(layer)

    def place_of(self, tensor: Tensor) -> Callable[[], Tensor] | None:
        """A reference to a tensor by its layer, to find it again after the layer moved; None if it is in no layer."""
        place = self._lender.place_of(tensor)
        if place is None:
            return None
        layer, number = place
        size, stride = tensor.shape, tensor.stride()
        offset = tensor.storage_offset() - self._tensors[layer][number].storage_offset()

        def again() -> Tensor:
            if layer not in self._waited:
                self.enter(layer)
            weight = self._tensors[layer][number]
            return weight.detach().as_strided(size, stride, weight.storage_offset() + offset)

        return again

    def _entering(self, layer: int) -> Callable[..., None]:
        def enter(module: nn.Module, inputs: Any) -> None:
            del module, inputs
            self.enter(layer)

        return enter

    def _leaving(self, layer: int) -> Callable[..., None]:
        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            del module, inputs
            first = output if isinstance(output, Tensor) else output[0]
            if first.requires_grad:  # its gradient comes when the backward pass reaches this layer
                first.register_hook(lambda _: self.enter(layer))

        return leave


def in_backward() -> bool:
    """Whether autograd is in a backward pass, also while it recomputes a part of the forward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def frozen(layers: Sequence[nn.Module], model: nn.Module) -> list[list[Tensor]]:
    """The frozen, unshared tensors of each layer: parameters, and storage of quantised modules."""
    owners = Counter(id(tensor) for layer in layers for tensor in {id(t): t for t in _tensors(layer)}.values())
    inside = {id(module) for layer in layers for module in layer.modules()}
    for module in model.modules():
        if id(module) not in inside:
            owners.update(id(parameter) for parameter in module.parameters(recurse=False))
    return [
        list({id(t): t for t in _tensors(layer) if owners[id(t)] == 1 and not t.requires_grad}.values())
        for layer in layers
    ]


def _tensors(layer: nn.Module) -> list[Tensor]:
    stored = [b for m in layer.modules() if isinstance(m, QuantisedLinear) for b in m.buffers(recurse=False)]
    return [*layer.parameters(), *stored]


def window_of(
    model: nn.Module, layers: Sequence[nn.Module], *, where: str, width: int, device: torch.device
) -> LayerWindow:
    """Put a model's frozen layers where `backend.layers` says, a window of them on the device, and the rest of the
    model on the device.

    Args:
        model: in host memory, adapted.
        layers: modules of it.
        where: `host` or `disk`.

    Raises:
        EngineError: files for them cannot be written.
    """
    tensors = frozen(layers, model)
    lender: Lender
    if device.type == "cpu":
        lender = MappedLayers(tensors, Path(tempfile.gettempdir()))
    else:
        known = mappings()
        keep = in_pinned_memory if where == "host" else _in_a_file(known)
        lender = CopiedLayers(tensors, Transfers(device), keep)
        lent = {id(tensor) for of in tensors for tensor in of}
        for tensor in (*model.parameters(), *model.buffers()):
            if id(tensor) not in lent:
                tensor.data = tensor.data.to(device)
    return LayerWindow(layers, lender, width, tensors)


def in_pinned_memory(tensor: Tensor) -> Tensor:
    """A copy in pinned host memory."""
    return in_host_memory(tensor) if not torch.cuda.is_available() else tensor.pin_memory()


def _in_a_file(known: Any) -> Callable[[Tensor], Tensor]:
    def keep(tensor: Tensor) -> Tensor:
        if is_clean(tensor, known):
            return tensor
        try:
            return in_one_file([tensor], Path(tempfile.gettempdir()))[0]
        except OSError as error:
            raise _cannot(error) from error

    return keep


def _cannot(error: OSError) -> EngineError:
    return EngineError(
        f"backend.layers=disk: the files in {tempfile.gettempdir()} fail: {error.strerror or error}",
        action="make room there, set TMPDIR to another disk, or set backend.layers to device",
    )
