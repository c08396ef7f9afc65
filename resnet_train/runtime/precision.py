"""Precision of a forward pass, cuDNN's search for kernels, and memory that ends."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resnet_train.errors import BadInput

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def set_precision(precision: str, device: torch.device) -> None:
    """How this process multiplies fp32 matrices on CUDA: in full, unless tf32 is asked for.

    Raises `BadInput` where the device has no tf32.
    """
    if precision == "tf32" and device.type == "cpu":
        raise BadInput("train.precision = tf32 has no effect on the CPU: use fp32 or bf16")
    # Through these two, since torch 2.11 to 2.15 refuse to read one interface's setting through the other, and
    # torch.compile reads these.
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def no_cudnn_benchmark() -> Iterator[None]:
    """Within the block cuDNN chooses its kernels by rule: a search for each shape of an evaluation takes longer."""
    tuned = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = tuned


@contextmanager
def out_of_memory_hint(whose: str, device: torch.device, cure: str) -> Iterator[None]:
    """Raises `BadInput`, which tells the cure, where the block is too much for the device's memory."""
    try:
        yield
    except RuntimeError as error:  # beside torch's allocator CUDA itself can be short of it, and cuDNN
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        raise BadInput(f"{whose}: out of memory on {device}: {cure}") from None


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass; with fp32 and tf32 it changes nothing."""
    return torch.autocast(device.type, _DTYPES.get(precision, torch.bfloat16), enabled=precision in _DTYPES)
