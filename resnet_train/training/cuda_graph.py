"""Run the same computation over and over: eagerly, or as a CUDA graph that is captured once and then replayed.

A step of a small network is bound by kernel launches: hundreds of kernels of a few microseconds each, launched one by
one from Python. A graph launches them together.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

Outputs = dict[str, Tensor]
Computation = Callable[..., Outputs]
"""A function of its tensor arguments and of tensors that stay at the same address, such as weights.

To be captured it must read no Python number that changes from call to call, and must never wait for the device."""
Launcher = Callable[[Computation, Sequence[Tensor]], Outputs]
"""Runs a computation on given arguments."""
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
"""Captures a call without arguments. Returns a function that replays it, and the tensors that each replay writes."""

WARM_UP_CALLS = 3
"""Eager calls before the capture: the first ones compile, choose cuDNN's kernels and allocate. They are ordinary steps
of the training."""


def launch_eagerly(computation: Computation, arguments: Sequence[Tensor]) -> Outputs:
    """Run the computation as an ordinary call."""
    return computation(*arguments)


class _CapturedGraph(NamedTuple):
    arguments: list[Tensor]
    """The tensors that a replay reads: the arguments of each call are copied into them."""
    replay: Callable[[], None]
    outputs: Outputs


class GraphLauncher:
    """Runs a computation eagerly a few times, then captures one call of it, and replays that from then on.

    Outputs are valid until the next call. If the shapes of the arguments change, it starts again.
    """

    def __init__(self, capture: Capture, stream: torch.cuda.Stream | None = None) -> None:
        self.capture = capture
        self.warm_up_stream = stream
        self.shapes: list[torch.Size] = []
        self.calls = 0
        self.graph: _CapturedGraph | None = None

    def __call__(self, computation: Computation, arguments: Sequence[Tensor]) -> Outputs:
        shapes = [tensor.shape for tensor in arguments]
        if shapes != self.shapes:
            self.shapes, self.calls = shapes, 0
            self.graph = None  # frees its memory before the warm-up
        self.calls += 1
        if self.calls <= WARM_UP_CALLS:
            with _on_stream(self.warm_up_stream):
                return computation(*arguments)
        if self.graph is None:
            inputs = [tensor.clone() for tensor in arguments]
            self.graph = _CapturedGraph(inputs, *self.capture(lambda: computation(*inputs)))
        for captured, argument in zip(self.graph.arguments, arguments, strict=True):
            captured.copy_(argument)
        self.graph.replay()
        return self.graph.outputs


def cuda_graph_launcher(device: torch.device) -> GraphLauncher:
    """A launcher that captures CUDA graphs. The warm-up runs on the stream of the capture, as torch demands."""
    stream = torch.cuda.Stream(device)
    return GraphLauncher(partial(_capture_cuda_graph, stream), stream)


def _capture_cuda_graph(stream: torch.cuda.Stream, call: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads, such as those that copy the next batch, may use the device meanwhile.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        outputs = call()
    return graph.replay, outputs


@contextmanager
def _on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Within the block, kernels run on another stream: after those before the block, and before those after it."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        yield
    current.wait_stream(stream)
