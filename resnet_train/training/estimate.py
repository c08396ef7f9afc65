"""What a training will take, known before it starts."""

import logging
from dataclasses import dataclass
from functools import cache

import torch

from resnet_train.config.batch import check_network
from resnet_train.config.data import DataConfig
from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader
from resnet_train.data.dataset import Dataset
from resnet_train.errors import BadInput
from resnet_train.models import complexity
from resnet_train.training.schedule import build_schedule

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingEstimate:
    """The size of a network, and of its training."""

    network: str
    """Its name and, of a sweep, the values."""
    depth: int
    params: int
    macs: int
    """Multiply-adds of one image."""
    activations: int
    """Elements of the outputs of all convolutions, for one image."""
    steps: int | None
    """None where the length is in epochs and the training images are not here."""
    memory: int
    """Bytes, if one device computes each micro-batch of the global batch."""
    disk: int | None
    """Bytes of the checkpoints that a run leaves. None where their number depends on `steps`, which is not known."""
    seconds: float | None = None
    """Of training and evaluating, if they were measured."""


def estimate_training(run: Run) -> TrainingEstimate:
    """The estimate of a run. Raises `BadInput` where the recipe does not suit the data."""
    (size, classes), channels, steps = complexity.default_input(run.network), 3, run.train.steps
    kept = None if run.checkpoint.keep_every else 0
    train_set = _training_set(run.data)
    if train_set is not None:
        data = loader.training_data(run, train_set, run.seed, 0, 1, torch.device("cpu"))
        check_network(run, 1, train_set.size)
        size, classes, channels = data.image_size, len(train_set.classes), train_set.channels
        schedule = build_schedule(run, data.steps_per_epoch)
        steps, kept = schedule.total_steps, schedule.keep_checkpoint.times(schedule.total_steps)
    cost = complexity.network_complexity(run.network, size, classes, channels)
    images = run.train.batch_size // run.train.grad_accum_steps
    ema, moments = run.train.ema_decay is not None, 2 if run.optimizer.kind in ("adamw", "lamb") else 1
    checkpoint = 4 * cost.params * (1 + moments + ema)
    return TrainingEstimate(
        network=run.cell,
        depth=run.network.depth,
        params=cost.params,
        macs=cost.macs,
        activations=cost.activations,
        steps=steps,
        memory=complexity.estimate_training_memory(cost, images, run.train.precision, ema=ema, moments=moments),
        disk=None if kept is None else checkpoint * (3 + kept),  # last.pt, previous.pt, best.pt
    )


@cache
def _training_set(data: DataConfig) -> Dataset | None:
    """The training images; None, with a note, where they are not here: a login node need not have them."""
    try:
        return datasets.open_data(data)[0]
    except BadInput as error:
        logger.info("%s; costs are for the images that such networks usually see", error)
        return None
