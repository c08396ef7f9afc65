"""How fast a training step could be: the measured limits of a device against the cost of a network."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from resnet_train.models.complexity import Stage

_MEMORY_PASSES = 14
"""How often a step reads or writes the output of each convolution, if batch norm, ReLU and addition are fused with each
other but not with convolutions. Forward: the output, its statistics, its normalisation. Backward: a little more than
twice as often."""


@dataclass(frozen=True)
class Limits:
    """The highest speeds of a device, each measured alone."""

    flops: float
    """Floating-point operations per second of a matrix product; a multiply-add is two."""
    bytes: float
    """Bytes per second that a copy reads and writes."""


def measure_limits(device: torch.device, precision: str) -> Limits:
    """Measure a device by a large matrix product and a large copy, the best of ten runs each."""
    side, count = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    source, target = (torch.empty(count, device=device) for _ in range(2))
    return Limits(
        flops=2 * side**3 / _fastest(lambda: torch.mm(matrix, matrix), device),
        bytes=2 * 4 * count / _fastest(lambda: target.copy_(source), device),
    )


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of ten calls."""
    times = []
    for _ in range(10):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    return min(times)


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all its work. The CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def images_per_second(stages: Sequence[Stage], limits: Limits, precision: str) -> float:
    """The roofline of a training step: each stage takes the longer of its arithmetic and its memory traffic.

    The backward pass has twice the multiply-adds of the forward pass. Memory traffic of the weights is left out, since
    it does not grow with the batch.
    """
    bytes_per_activation = 2 if precision in ("bf16", "fp16") else 4
    seconds = 0.0
    for cost in (stage.complexity for stage in stages):
        arithmetic = 3 * 2 * cost.macs / limits.flops
        traffic = _MEMORY_PASSES * bytes_per_activation * cost.activations / limits.bytes
        seconds += max(arithmetic, traffic)
    return 1 / seconds
