"""A step as one CUDA graph: its kernels are recorded once, then launched together.

A small network's step is bound by launches: hundreds of kernels of a few microseconds, each asked for by Python.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Measured = dict[str, Tensor]
Work = Callable[..., Measured]
"""Work on tensors that stay where they are, but for its arguments: a graph holds none of them. No number of Python's
that changes from call to call may be read in it, and nothing of the device be waited for."""
Launch = Callable[[Work, Sequence[Tensor]], Measured]
"""How such work is done on given arguments."""
Record = Callable[[Callable[[], Measured]], tuple[Callable[[], None], Measured]]
"""Records what a call would do: what does it, and the tensors in which its answer will be."""

WARM_UP = 3
"""Calls that are made as they are before one is recorded: they compile, tune cuDNN and make what is made once. They are
steps of the training like all others, so the warm-up leaves no trace."""


def eagerly(work: Work, arguments: Sequence[Tensor]) -> Measured:
    """The work as it is."""
    return work(*arguments)


class _Recorded(NamedTuple):
    arguments: list[Tensor]
    """Where each call's are put."""
    repeat: Callable[[], None]
    answer: Measured


class Graph:
    """Does the same work over and over: the first times as it is, then by repeating what was recorded of one call.

    Its answers are good until the next call. Arguments of another shape begin anew.
    """

    def __init__(self, record: Record, side: torch.cuda.Stream | None = None) -> None:
        self.record, self.side = record, side
        self.shapes: list[torch.Size] = []
        self.calls = 0
        self.recorded: _Recorded | None = None

    def __call__(self, work: Work, arguments: Sequence[Tensor]) -> Measured:
        shapes = [tensor.shape for tensor in arguments]
        if shapes != self.shapes:
            self.shapes, self.calls = shapes, 0
            self.recorded = None  # and its memory is free for the warm-up
        self.calls += 1
        if self.calls <= WARM_UP:
            with _aside(self.side):
                return work(*arguments)
        if self.recorded is None:
            held = [tensor.clone() for tensor in arguments]
            self.recorded = _Recorded(held, *self.record(lambda: work(*held)))
        for tensor, given in zip(self.recorded.arguments, arguments, strict=True):
            tensor.copy_(given)
        self.recorded.repeat()
        return self.recorded.answer


def on_cuda(device: torch.device) -> Graph:
    """A graph of this device, recorded on the stream that the warm-up ran on."""
    side = torch.cuda.Stream(device)
    return Graph(partial(_recorded, side), side)


def _recorded(side: torch.cuda.Stream, call: Callable[[], Measured]) -> tuple[Callable[[], None], Measured]:
    graph = torch.cuda.CUDAGraph()
    # Of this thread only: what others ask of the device meanwhile is no part of the step, and no error.
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        answer = call()
    return graph.replay, answer


@contextmanager
def _aside(side: torch.cuda.Stream | None) -> Iterator[None]:
    """Within the block kernels go to another stream, after those of before and before those that follow."""
    if side is None:
        yield
        return
    current = torch.cuda.current_stream(side.device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)
