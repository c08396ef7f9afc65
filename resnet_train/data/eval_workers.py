"""Batches of image files that PyTorch's DataLoader makes, in its workers if there are any."""

import os
import signal
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from resnet_train.data.prefetch import WORKERS_HINT
from resnet_train.errors import BadInput
from resnet_train.runtime import processes


class _Movable(Protocol):
    def to(self, device: torch.device) -> Self: ...


_Batch = TypeVar("_Batch", bound=_Movable)


def load_batches(
    dataset: Dataset[_Batch | BadInput], batches: Sequence[Any], workers: int, device: torch.device
) -> Iterator[_Batch]:
    """`dataset[indices]` for each item of `batches`, in order, on the device.

    Raises `BadInput` where the dataset returns one, or where a worker was killed.
    """
    workers = min(workers, len(batches))
    if workers:
        processes.ensure_fork_server()
    loader = DataLoader(
        dataset,
        batch_size=None,  # the sampler's items are whole batches
        sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_unchanged,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(_begin, os.getpid()) if workers else None,
        multiprocessing_context="forkserver" if workers else None,
    )
    loaded = iter(loader)
    try:
        for batch in loaded:
            if isinstance(batch, BadInput):
                raise batch
            yield batch.to(device)
    except RuntimeError:
        for worker in getattr(loaded, "_workers", ()):  # DataLoader's own message is a traceback without the signal
            processes.check_not_killed("a data worker", worker.exitcode or 0, WORKERS_HINT)
        raise
    finally:
        del loaded  # which ends the workers: now, not when a traceback that holds this frame is dropped


def _unchanged(batch: Any) -> Any:
    return batch


def _begin(parent: int, _: int) -> None:
    processes.ignore_job_signals()
    processes.end_with(parent, signal.SIGKILL)
