"""Streams of the pretend accelerator: what a copy on a stream of its own brings is there once another stream waits.

Run by test_torch_pretend.py: trains with such a stream and without, and prints what differs and when copies began.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pretend_accelerator as pretend
import torch
from finetooth_hooks import Interrupted
from finetooth_torch.offload import transfers

import conftest as kit

GARBAGE = 113
PINNED: set[int] = set()
"""Addresses of pinned memory."""
CURRENT: list[Stream] = []
"""Streams that are entered."""


class Stream:
    """Runs copies when another stream waits for them, and no sooner.

    Attributes:
        unread: memory that it filled, and of which torch does not know yet that another stream reads it.
    """

    def __init__(self, device: Any = None) -> None:
        self._given: list[Any] = []
        self.unread: list[int] = []

    def copy(self, to: torch.Tensor, of: torch.Tensor, *, waits: bool) -> None:
        """A copy from pinned memory, which stays as it is until then."""
        assert of.untyped_storage().data_ptr() in PINNED and not waits, (
            "torch would wait, or reuse the memory too early"
        )
        at_first = of.clone()
        to.fill_(GARBAGE)
        self.unread.append(to.untyped_storage().data_ptr())
        pretend.ORDER.append(("copy", pretend.OPERATIONS.total()))

        def run() -> None:
            assert torch.equal(of, at_first), "the pinned memory was written before its copy was over"
            to.copy_(of)

        self._given.append(run)

    def wait_event(self, event: Event) -> None:
        given = event.stream._given
        for run in given[: event.after]:
            run()
        del given[: event.after]


class Event:
    """Recorded after all that a stream was given."""

    def record(self, stream: Stream) -> None:
        self.stream, self.after = stream, len(stream._given)


class Streams:
    """What `Transfers` takes of `torch.cuda`."""

    Stream, Event = Stream, Event
    computing = Stream()

    def current_stream(self, device: Any) -> Stream:
        return CURRENT[-1] if CURRENT else self.computing

    @contextmanager
    def stream(self, entered: Stream) -> Iterator[None]:
        CURRENT.append(entered)
        yield
        CURRENT.pop()


def noted(func: Any, args: Any, kwargs: dict[str, Any], compute: Any = pretend.computed) -> Any:
    """An operation of the device; on a stream of its own only memory is taken, and copies begin."""
    if not CURRENT:
        return compute(func, args, kwargs)
    before = pretend.OPERATIONS.copy()
    stream = CURRENT[-1]
    if func.overloadpacket is pretend.aten.copy_:
        stream.copy(args[0].raw, args[1], waits=not (*args[2:], False)[0])
        found = args[0]
    else:
        found = compute(func, args, kwargs)
    pretend.OPERATIONS.clear()
    pretend.OPERATIONS.update(before)
    return found


def recorded(of: pretend.Held, stream: Stream) -> None:
    """`Tensor.record_stream`: the memory is not given away before the stream has read it."""
    assert stream is Streams.computing
    unread = transfers._for_inputs(torch.device(pretend.DEVICE))._own.unread
    unread.remove(of.raw.untyped_storage().data_ptr())


def pinned(*size: Any, empty: Any = torch.empty, pin_memory: bool = False, **more: Any) -> torch.Tensor:
    """`torch.empty`, with garbage in it where it is pinned."""
    made: torch.Tensor = empty(*size, **more)
    if pin_memory:
        made.fill_(GARBAGE)
        PINNED.add(made.untyped_storage().data_ptr())
    return made


def late() -> float:
    """Operations of its own micro-batch that the device had been given when a copy began: the most, as a share."""
    layouts, most = list[int](), 0
    for what, operations in pretend.ORDER:
        if what == "layout":
            layouts.append(operations)
        if what == "copy":
            most = max(most, operations - layouts[-1])
    return most * len(layouts) / pretend.OPERATIONS.total()


def resumed(engine: Any, data: Any, fresh: Any) -> Any:
    """Another engine with the state of one that ended after the first micro-batch of a step."""
    asked = iter((False, True))
    engine._runner.asked = lambda: next(asked)
    with tempfile.TemporaryDirectory() as folder:
        engine.save(Path(folder) / "state")
        with suppress(Interrupted):
            engine.forward_backward(data, kit.NLL)
        assert next(asked, None) is None, "it was not asked in the middle"
        fresh.load(Path(folder) / "state")
    return fresh


def main() -> None:
    """Train three steps and score, with the stream and without."""
    kept = pretend.register()
    pretend.watch_layouts()
    pretend.computed, torch.empty, pretend.Held.record_stream = noted, pinned, recorded  # type: ignore[assignment]
    settings = {"decoder": sys.argv[1], "precision": sys.argv[2], "max_grad_norm": 1.0}
    settings["kernels"] = {"stream_decoder": kit.picked_kernels()["stream_decoder"]}
    kit.make_engine(**settings)  # imports what must not see the device's generators
    data, found, told = kit.make_data(12, longest=16), [], []
    transfer = transfers._for_inputs(torch.device(pretend.DEVICE))
    for streams in (None, Streams()):
        transfer._streams, transfer._own = streams, streams and Stream()
        engine = pretend.engine_on_device(kit, dropout=0.1, **settings)
        seen: list[Any] = []
        for step in range(3):
            if streams and step == 1:
                engine = resumed(engine, data, pretend.engine_on_device(kit, dropout=0.1, **settings))
            with pretend.counting() as waited:
                report = engine.forward_backward(data, kit.NLL)
                copies = sum(what == "copy" for what, _ in pretend.ORDER)
                told.append((sum(waited.values()), pretend.ahead(), late(), copies / report.micro_batches))
            engine.step()
            seen += [np.float64(report.loss), *(of["logprobs"] for of in report.outputs)]
        seen += [of["entropy"] for of in engine.forward(data, returns=("entropy",)).outputs]
        found.append(seen)
    print("SAME", len(found[0]), all(np.array_equal(one, other) for one, other in zip(*found, strict=True)))
    for name, values in zip(("WAITS", "AHEAD", "LATE", "COPIES"), zip(*told, strict=True), strict=True):
        print(name, *values)
    print("UNREAD", len(transfer._own.unread))
    del kept


if __name__ == "__main__":
    main()
