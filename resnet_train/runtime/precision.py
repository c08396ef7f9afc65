"""The precision of a forward pass, cuDNN's search for kernels, and the message when memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from resnet_train.errors import BadInput, is_out_of_memory

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


WITHOUT_FLOAT64 = ("mps",)
"""Types of devices that cannot compute in float64."""


def set_precision(precision: str, device: torch.device) -> None:
    """Set how this process multiplies fp32 matrices on CUDA: in full precision, unless `precision` is tf32.

    Raises `BadInput` if the device has no tf32.
    """
    if precision == "tf32" and device.type != "cuda":
        raise BadInput("train.precision = tf32 has no effect without CUDA: use fp32 or bf16")
    # Through these two, since torch 2.11 to 2.15 refuse to read one interface's setting through the other, and
    # torch.compile reads these.
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def no_cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN choose kernels by heuristics: a search for each shape of an evaluation takes longer than it saves.

    cuDNN keeps its choice for a shape, so this is not for a shape that training may use later.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def out_of_memory_hint(name: str, device: torch.device, hint: str) -> Iterator[None]:
    """Raise `BadInput` with the name of the work and a hint if memory of the device or CPU ends within the block."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if is_out_of_memory(error):
            raise BadInput(f"{name}: out of memory on cpu: {hint}; or lower data.workers") from None
        # CUDA and cuDNN report it in their own words, torch's allocator by a class.
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error):
            raise
        raise BadInput(f"{name}: out of memory on {device}: {hint}") from None


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass. With fp32 and tf32 it changes nothing."""
    return torch.autocast(device.type, _DTYPES.get(precision, torch.bfloat16), enabled=precision in _DTYPES)
