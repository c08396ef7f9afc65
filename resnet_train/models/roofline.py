"""How fast a step of training could be: what a device can do, measured, against what a network asks of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from resnet_train.models.complexity import Stage

_PASSES = 14
"""How often a step reads or writes each convolution's output where batch norm, ReLU and addition are fused with each
other, not with convolutions: forward the output, its statistics, its normalisation; backward twice that and more."""


@dataclass(frozen=True)
class Limits:
    """What a device can do at most, each alone."""

    flops: float
    """Operations of a matrix product, per second; a multiply-add is two."""
    bytes: float
    """Read and written by a copy, per second."""


def measure_limits(device: torch.device, precision: str) -> Limits:
    """The device's limits, by a large matrix product and a large copy: the best of several."""
    side, count = (8192, 2**28) if device.type == "cuda" else (1024, 2**24)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    matrix = torch.randn(side, side, device=device, dtype=dtype)
    source, target = (torch.empty(count, device=device) for _ in range(2))
    return Limits(
        flops=2 * side**3 / _fastest(lambda: torch.mm(matrix, matrix), device),
        bytes=2 * 4 * count / _fastest(lambda: target.copy_(source), device),
    )


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    took = []
    for _ in range(10):
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        took.append(time.perf_counter() - begin)
    return min(took)


def synchronize(device: torch.device) -> None:
    """Until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def images_per_second(parts: Sequence[Stage], limits: Limits, precision: str) -> float:
    """The bound that a network's stages meet: in each, the slower of arithmetic and memory, forward and backward.

    The backward pass costs twice the multiply-adds of the forward pass. The weights' own traffic, which does not grow
    with the batch, is left out.
    """
    width = 2 if precision in ("bf16", "fp16") else 4
    costs = [part.complexity for part in parts]
    return 1 / sum(max(6 * c.macs / limits.flops, _PASSES * width * c.activations / limits.bytes) for c in costs)
