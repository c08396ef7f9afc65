"""Training batches for tests of the loader."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader
from resnet_train.data.batch import Batch
from resnet_train.data.dataset import Dataset
from resnet_train.data.loader import TrainingData

CPU = torch.device("cpu")


def folder_run(tiny_run: Callable[..., Run], path: Path, **data: Any) -> Run:
    """A run on class folders, whose images become 16 x 16 pixels."""
    crop = {"kind": "random-resized", "size": 16}
    section = {"kind": "imagefolder", "path": str(path), "workers": 0, **data}
    return tiny_run(
        data=section, augment={"crop": crop, "pca_lighting": True}, eval={"view": {"resize": 20, "crop": 16}}
    )


def training_data(run: Run, dataset: Dataset | None = None, rank: int = 0, ranks: int = 1) -> TrainingData:
    """The training data of one rank, on the CPU."""
    if dataset is None:
        dataset, _ = datasets.open_data(run.data)
    return loader.training_data(run, dataset, run.seed, rank, ranks, CPU)


def copied_batches(data: TrainingData, start: int, until: int, **options: Any) -> list[Batch]:
    """The micro-batches of steps [start, until), copied, since each is valid only until the next is requested."""
    return [
        batch.with_tensors([tensor.clone() for tensor in batch.tensors()])
        for step in data.from_step(start, until, **options)
        for batch in step.micro_batches
    ]


def run_batches(run: Run, start: int, until: int, **options: Any) -> list[Batch]:
    """`copied_batches` of a run on one rank."""
    return copied_batches(training_data(run), start, until, **options)


def equal(batches: list[Batch], others: list[Batch]) -> bool:
    """Whether batches have the same images, labels and lighting."""
    return len(batches) == len(others) and all(
        torch.equal(x, y)
        for batch, other in zip(batches, others, strict=True)
        for x, y in zip(batch[:3], other[:3], strict=True)
    )
