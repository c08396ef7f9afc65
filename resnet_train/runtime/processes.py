"""Worker processes that make batches: shielded from signals that reach all of a job, ended with their trainer."""

import os
import select
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import forkserver, resource_tracker
from typing import Any, Protocol, Self, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from resnet_train.errors import BadInput

_GRACE = 30
"""Seconds that a worker goes on after SIGTERM."""


class _Movable(Protocol):
    def to(self, device: torch.device) -> Self: ...


_Item = TypeVar("_Item", bound=_Movable)


def serve(
    dataset: Dataset[_Item | BadInput], batches: Sampler[Any] | Sequence[Any], workers: int, device: torch.device
) -> Iterator[_Item]:
    """Batches on the device. Raises `BadInput` where a worker met an image that cannot be decoded."""
    workers = min(workers, len(batches)) if isinstance(batches, Sequence) else workers
    if workers:
        shield_helpers()
    loader = DataLoader(
        dataset,
        batch_size=None,  # the sampler's items are whole batches
        sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=partial(_begin_numbered, os.getpid()) if workers else None,
        # Not fork: this process has threads, and by now perhaps a CUDA context.
        multiprocessing_context="forkserver" if workers else None,
    )
    served = iter(loader)
    try:
        for batch in served:
            if isinstance(batch, BadInput):
                raise batch
            yield batch.to(device)
    finally:
        del served  # which ends the workers: now, not when a traceback that holds this frame is dropped


def _as_it_is(batch: Any) -> Any:
    return batch


def shield_helpers() -> None:
    """Start multiprocessing's own processes, if they are not running, deaf to signals that reach all of a job."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}  # exec keeps what is ignored
    try:
        resource_tracker.ensure_running()
        forkserver.set_forkserver_preload(["resnet_train.data.loader"])  # torch is imported once, not by each worker
        forkserver.ensure_running()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin(trainer: int) -> None:
    """A signal to all processes of a job is for the training process: it saves, then ends its workers.

    Until it has, they go on; so SIGTERM, by which multiprocessing ends stray workers, only sets them a limit. When it
    is killed they end with it: their parent is the fork server, which would wait for them as they for it.
    """
    try:
        alive = os.pidfd_open(trainer)
    except ProcessLookupError:  # killed while this process was started
        os._exit(1)
    threading.Thread(target=lambda: (select.select([alive], [], []), os._exit(1)), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


def _begin_numbered(trainer: int, _: int) -> None:
    begin(trainer)
