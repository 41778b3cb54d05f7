"""Graphs: what a GPU was given to compute once, given to it again by one call of the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch
from finetooth_hooks import EngineError

Result = TypeVar("Result")


def replays(device: torch.device) -> bool:
    """Whether the device has graphs. What is sampled there has the same shapes with them and without."""
    return device.type == "cuda"  # torch's name of AMD GPUs too


class Graphs(Protocol):
    """Makes graphs of a computation that is called again and again, each in place of the one before."""

    def warm(self, compute: Callable[[], Result]) -> Result:
        """Compute once as a graph would: libraries load kernels and reserve what they work in."""
        ...

    def capture(self, compute: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        """The tensors of the result, in which nothing stands yet, and what computes them: from the present content of
        the tensors that the computation reads. It may change those, and changes none while it is captured.

        Raises:
            EngineError: it cannot be captured.
        """
        ...


class CudaGraphs:
    """torch's graphs, on NVIDIA and AMD GPUs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._last: torch.cuda.CUDAGraph | None = None

    def warm(self, compute: Callable[[], Result]) -> Result:
        with self._aside():
            return compute()

    def capture(self, compute: Callable[[], Result]) -> tuple[Result, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        # in the memory of the graph before, which is alive so long that its memory is not given back
        pool = None if self._last is None else self._last.pool()
        try:
            with self._aside():
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    result = compute()
                finally:
                    graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise EngineError(
                f"backend.graphs=true: the step of a token cannot be captured: {str(error).splitlines()[0]}",
                action="set backend.graphs: false",
            ) from error
        self._last = graph
        return result, graph.replay

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Inside the `with` block, a stream of its own computes, as a capture requires.

        torch's deterministic variants of indexing read indices on the host. Here they are not needed: no two numbers go
        to the same place.
        """
        mode, current = torch.get_deterministic_debug_mode(), torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        torch.set_deterministic_debug_mode("default")
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            current.wait_stream(self._stream)
