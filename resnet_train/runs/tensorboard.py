"""TensorBoard's event files."""

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

_file_numbers = itertools.count()


class EventFile:
    """An event file in a log folder. It writes in the calling thread, so that a failure is an `OSError` of the call.

    torch's `SummaryWriter` writes in a thread of its own, which prints a traceback before the caller learns of it.
    """

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now, host = time.time(), socket.gethostname()
        name = f"events.out.tfevents.{now:010.0f}.{host}.{os.getpid()}.{next(_file_numbers)}"
        self.file = (folder / name).open("wb")
        self.records, self.event, self.summary = RecordWriter(self.file), Event, Summary
        self.records.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        self.flush()

    def add(self, summary: Any, step: int = 0, walltime: float | None = None) -> None:
        """Add one of the summaries of `torch.utils.tensorboard.summary`."""
        event = self.event(summary=summary, step=step, wall_time=time.time() if walltime is None else walltime)
        self.records.write(event.SerializeToString())

    def add_scalars(self, figures: Mapping[str, float | None], step: int, walltime: float) -> None:
        """Add figures by tag, in one event: one for each costs four times as much. None is left out."""
        values = [
            self.summary.Value(tag=tag, simple_value=figure) for tag, figure in figures.items() if figure is not None
        ]
        if values:
            self.add(self.summary(value=values), step, walltime)

    def flush(self) -> None:
        """Hand what was added to the operating system."""
        self.file.flush()

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def add_image(folder: Path, tag: str, path: Path, step: int) -> None:
    """Add an image file under a tag to the TensorBoard log in `folder`. Raises `OSError`."""
    from torch.utils.tensorboard.summary import image as image_summary

    with EventFile(folder) as events, Image.open(path) as image:
        events.add(image_summary(tag, np.asarray(image.convert("RGB")), dataformats="HWC"), step)
