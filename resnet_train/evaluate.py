"""Evaluation: error over a whole set, every sample counted exactly once at any number of ranks."""

import torch
import torch.nn.functional as F
from torch import nn

from resnet_train.config.schema import Run
from resnet_train.data.loader import EvaluationData
from resnet_train.data.normalize import Normalization
from resnet_train.data.sources import AnySource
from resnet_train.engine.dist import World, sum_over_ranks
from resnet_train.engine.step import autocast


def errors(
    net: nn.Module,
    run: Run,
    val_set: AnySource,
    clean_set: AnySource,
    normalization: Normalization,
    world: World,
) -> dict[str, float]:
    """What `error` finds, as `val_error_top1` and so on; the clean training error as `clean_train_error_top1`."""
    figures: dict[str, float] = {}
    for name, source in (("val", val_set), ("clean_train", clean_set)):
        if len(source):
            data = data_of(run, source, world, training=source is clean_set)
            found = error(net, data, normalization, run.train.precision, world)
            figures |= {f"{name}_{key}": value for key, value in found.items() if key != "images"}
    return figures


def data_of(run: Run, source: AnySource, world: World, training: bool = False) -> EvaluationData:
    """Samples as the run's protocol sees them, and this rank's part of them.

    Only training images may be skipped where they cannot be decoded; of a validation set all count.
    """
    skip, workers = training and run.data.skips_bad_images, run.data.processes
    return EvaluationData(source, run.view, run.eval.batch_size, world.device, workers, world.rank, world.size, skip)


@torch.inference_mode()
def error(
    net: nn.Module, data: EvaluationData, normalization: Normalization, precision: str, world: World
) -> dict[str, float]:
    """`error_top1` and `error_top5` in percent, mean `loss`, and the number of `images`, over all ranks.

    Top-5 is top-k of all classes where there are fewer than five, and so 0.
    """
    net.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    for batch in data.batches():
        with autocast(precision, world.device):
            logits = net(normalization(batch))
        logits = logits.float()
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hit = best == batch.labels[:, None]
        loss = F.cross_entropy(logits, batch.labels, reduction="none").double().sum()
        wrong = torch.stack([~hit[:, 0], ~hit.any(dim=1)]).sum(dim=1)
        sums += torch.stack([*wrong.double(), loss, torch.full_like(loss, len(batch.labels))])
    top1, top5, loss_sum, images = sum_over_ranks(world, sums).tolist()
    assert images == len(data), "a sample was lost or counted twice"
    return {
        "error_top1": 100 * top1 / images,
        "error_top5": 100 * top5 / images,
        "loss": loss_sum / images,
        "images": images,
    }


def protocol(run: Run) -> str:
    """How `error` looks at an image, for every figure that is printed."""
    view = run.view
    crop = f"one {view.crop} px crop at the centre, shorter side {view.resize} px" if view else "whole image, one view"
    weights = f"average of the weights (decay {run.train.ema})" if run.train.ema else "last weights"
    images = f"{run.data.holdout} held-out training images" if run.data.holdout else "validation set"
    return f"{images}; {crop}; {weights}; running BN statistics; {run.train.precision}"
