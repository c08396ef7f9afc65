"""Run the same computation over and over: eagerly, or as a CUDA graph that is captured once and then replayed.

A step of a small network, or of a small batch on each of several GPUs, is bound by kernel launches: hundreds of kernels
of a few microseconds each, launched one by one from Python. A graph launches them together. On several ranks it holds
NCCL's all-reduce, too. What torch and NCCL demand for that is in torch's notes, "CUDA semantics: usage with
DistributedDataParallel", and in NVIDIA's "CUDA Graph Best Practice for PyTorch".
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from resnet_train.errors import Stop

Outputs = dict[str, Tensor]
Computation = Callable[..., Outputs]
"""A function of its tensor arguments and of tensors that stay at the same address, such as weights.

To be captured it must read no Python number that changes from call to call, and must never wait for the device."""
Launcher = Callable[[Computation, Sequence[Tensor]], Outputs]
"""Runs a computation on given arguments."""
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]
"""Captures a call without arguments. Returns a function that replays it, and the tensors that each replay writes."""

_DDP_TIMED_CALLS = 11
"""DistributedDataParallel times its first ten iterations, and reads the times of the tenth in the eleventh: a capture
forbids that. It also does so in every hundredth one. The first 24 captures are none of these: each shape of the
images has one capture, twelve iterations after the last, if gradients are not accumulated."""


def warm_up_calls(ranks: int) -> int:
    """Eager calls before the capture, which are ordinary steps of the training.

    The first ones compile, choose cuDNN's kernels, allocate, and connect NCCL.
    """
    return _DDP_TIMED_CALLS if ranks > 1 else 3


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

    def __init__(self, capture: Capture, stream: torch.cuda.Stream | None = None, ranks: int = 1) -> None:
        self.capture = capture
        self.stream = stream
        """Where the calls before the capture run, as well as the capture."""
        self.warm_up_calls = warm_up_calls(ranks)
        self.shapes: list[torch.Size] = []
        self.calls = 0
        self.graph: _CapturedGraph | None = None

    def __call__(self, computation: Computation, arguments: Sequence[Tensor]) -> Outputs:
        shapes = [tensor.shape for tensor in arguments]
        if shapes != self.shapes:
            self.shapes, self.calls = shapes, 0
            self.graph = None  # frees its memory before the warm-up
        self.calls += 1
        if self.calls <= self.warm_up_calls:
            with _on_stream(self.stream):
                return computation(*arguments)
        if self.graph is None:
            inputs = [tensor.clone() for tensor in arguments]
            self.graph = _CapturedGraph(inputs, *self.capture(lambda: computation(*inputs)))
        for captured, argument in zip(self.graph.arguments, arguments, strict=True):
            captured.copy_(argument)
        self.graph.replay()
        return self.graph.outputs


def cuda_graph_launcher(device: torch.device, ranks: int) -> GraphLauncher:
    """A launcher that captures CUDA graphs. The warm-up runs on the stream of the capture, as torch demands."""
    stream = torch.cuda.Stream(device)
    return GraphLauncher(partial(_capture_cuda_graph, stream), stream, ranks)


def stream_of(launch: Launcher) -> AbstractContextManager[None]:
    """Within the block, kernels run on the stream of the capture, if the launcher captures.

    DistributedDataParallel must be built there: it keeps the nodes of autograd that add to the gradients, and these run
    on the stream that they were made on. Made on the default stream, they would end the capture.
    """
    return _on_stream(launch.stream) if isinstance(launch, GraphLauncher) else nullcontext()


@contextmanager
def freed_at_end(launch: Launcher) -> Iterator[None]:
    """At the end of the block, free the graph: NCCL lets no group of ranks go before the graphs that use it.

    Not after an error of this rank alone, since the graph may be waiting for another rank: the process ends next.
    """
    try:
        yield
    except Stop as stop:
        if stop.on_all_ranks:
            _free(launch)
        raise
    _free(launch)


def _free(launch: Launcher) -> None:
    if isinstance(launch, GraphLauncher):
        launch.graph = None


def _capture_cuda_graph(stream: torch.cuda.Stream, call: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    graph = torch.cuda.CUDAGraph()
    # thread_local: other threads, such as that of NCCL's watchdog, may use the device meanwhile. From torch 2.2 on that
    # need not be switched off (TORCH_NCCL_ASYNC_ERROR_HANDLING=0): it watches nothing captured, and the capture waits
    # until it has seen the end of what was sent before.
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
