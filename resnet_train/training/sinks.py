"""Where the records of a run go: `metrics.jsonl` and TensorBoard. `run_progress.py` has the terminal."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from resnet_train.analysis.style import kind_of
from resnet_train.config.load import dump
from resnet_train.config.schema import Run
from resnet_train.config.sweep import value_text
from resnet_train.config.yaml12 import to_yaml
from resnet_train.runs import tensorboard
from resnet_train.runs.records import Record
from resnet_train.runtime.atomic import atomic_write_text

TAGS = {
    "train": {
        "error": "error/train_running",
        "loss": "loss/train_running",
        "lr": "optimizer/lr",
        "grad_norm": "optimizer/grad_norm",
        "loss_scale": "optimizer/loss_scale",
        "images_per_second": "speed/images_per_second",
        "data_wait_seconds": "speed/data_wait_seconds",
    },
    "eval": {
        "clean_train_error_top1": "error/train_clean",
        "clean_train_loss": "loss/train_clean",
        "val_error_top1": "error/val_top1",
        "val_error_top5": "error/val_top5",
        "val_loss": "loss/val",
    },
}
"""TensorBoard's tag for each figure, by the kind of record."""


class Sink(Protocol):
    """A place that records are written to."""

    def write(self, record: Record) -> None: ...

    def flush(self) -> None:
        """Make what was written durable."""

    def close(self) -> None: ...


class JsonLinesSink:
    """`metrics.jsonl`: the records of earlier sessions, then each new one."""

    def __init__(self, path: Path, records: Sequence[Record]) -> None:
        atomic_write_text(path, "".join(json.dumps(record) + "\n" for record in records))
        self.file = path.open("a")

    def write(self, record: Record) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def flush(self) -> None:
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


class TensorBoardSink:
    """The same figures as scalars, in the run folder itself; its configuration; what it has in the tabs of TensorBoard.

    A run that resumes writes the log again from the records of earlier sessions, so that no steps show that were taken
    after the last checkpoint and lost. `purge_step` would not hide them: TensorBoard's default loader ignores it.
    """

    def __init__(self, folder: Path, run: Run, records: Sequence[Record]) -> None:
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)  # where earlier versions had the log
        for path in folder.glob(tensorboard.TRAINING_FILES):
            path.unlink(missing_ok=True)
        self.run, self.family = run, kind_of(run.network)
        self.events = tensorboard.EventFile(folder)
        self.events.add(tensorboard.layout())
        self.events.add(tensorboard.text("run/config", f"```yaml\n{to_yaml(dump(run))}```"))
        for record in records:
            self._add(record)
        if records:
            self.events.flush()

    def write(self, record: Record) -> None:
        self._add(record)
        self.events.flush()

    def _add(self, record: Record) -> None:
        kind = record["kind"]
        figures = {tag: record.get(key) for key, tag in TAGS.get(kind, {}).items()}
        if self.family in tensorboard.FAMILIES:
            errors = [tag for tag in figures if tag in tensorboard.ERRORS]
            figures |= {tensorboard.family_tag(tag, self.family): figures[tag] for tag in errors}
        for key, value in record.items():
            if isinstance(value, dict):  # a probe's figures, by unit or layer
                figures |= {f"{kind}/{key}/{name}".replace(" ", "-"): figure for name, figure in value.items()}
        self.events.add_scalars(figures, record["step"], record["time"])
        if kind == "start":
            self._add_hyperparameters(record)
        elif kind == "end":
            self.events.add(tensorboard.run_end(record["status"], record["time"]), record["step"])

    def _add_hyperparameters(self, start: Record) -> None:
        """What varies within an experiment: what depth and shortcuts make of a network, and the values of a sweep."""
        run = self.run
        values = {"depth": run.network.depth, "family": self.family, "parameters": start["params"]}
        values |= {
            key: value if isinstance(value, bool | int | float) else value_text(value)
            for key, value in run.sweep.items()
        }
        for summary in tensorboard.hyperparameters(f"{run.title} ({run.experiment})", values, start["time"]):
            self.events.add(summary)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.events.close()
