"""What a network confuses: error by class, the worst classes, the mistakes that it is surest of as a picture."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnet_train.data.dataset import Dataset
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.evaluation.evaluator import SampleResults
from resnet_train.evaluation.pretrained import PretrainedModel
from resnet_train.evaluation.protocols import views_of
from resnet_train.runs.tensorboard import add_image

_SHOWN = 24
"""Mistakes in the picture."""

Row = tuple[str, int, float, str, int]


def by_class(found: SampleResults, classes: Sequence[str]) -> list[Row]:
    """For each class its name, images, error in percent, the class that it was most often taken for, and how often.

    The class with the highest error comes first. Classes without an image are left out.
    """
    n = len(classes)
    counts = torch.bincount((found.label * n + found.predicted).long(), minlength=n * n).reshape(n, n)
    images, right = counts.sum(1), counts.diagonal().clone()
    wrong = counts - torch.diag(right)
    rows: list[Row] = []
    for i in torch.nonzero(images)[:, 0].tolist():
        times = int(wrong[i].max())
        other = classes[int(wrong[i].argmax())] if times else ""
        rows.append((classes[i], int(images[i]), 100 * (1 - right[i].item() / images[i].item()), other, times))
    return sorted(rows, key=lambda row: -row[2])


def worst(found: SampleResults, classes: Sequence[str], shown: int = 5) -> str:
    """The classes with the highest error, in a line."""
    rows = [row for row in by_class(found, classes)[:shown] if row[4]]
    told = (f"{name} {error:.1f} % (most often taken for {other})" for name, _, error, other, _ in rows)
    return f"worst classes: {'; '.join(told)}" if rows else "worst classes: none, there is no mistake"


def write_classes(results: SampleResults, classes: Sequence[str], path: Path) -> None:
    """Write the rows of `by_class` as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "error", "most often taken for", "times"])
        writer.writerows(by_class(results, classes))


def draw(
    name: str,
    found: SampleResults,
    classes: Sequence[str],
    source: Dataset,
    of: PretrainedModel,
    path: Path,
    tensorboard: Path,
) -> None:
    """The most confident mistakes of what is called `name`, as a PNG and in TensorBoard; nothing where there is none.

    Images are shown as `of`, the network or the first of an ensemble, sees them.
    """
    from matplotlib.figure import Figure

    wrong = torch.nonzero(found.predicted != found.label)[:, 0]
    order = found.confidence[wrong].argsort(descending=True, stable=True)
    chosen = wrong[order[:_SHOWN]].numpy()
    if not len(chosen):
        return
    looks = views_of(of.run.view, of.run.eval)[:1]
    if of.run.eval.protocol == "multi-scale":  # of many shapes; one is enough to see what it is
        looks = views_of(of.run.view, of.run.eval.model_copy(update={"protocol": "one-crop"}))[:1]
    shown = next(EvaluationData(source.subset(chosen), looks, _SHOWN, torch.device("cpu")).batches())
    across = min(6, len(chosen))
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(2 * across, 2.4 * down), layout="constrained")
    axes: list[Any] = list(np.ravel(figure.subplots(down, across, squeeze=False)))
    for ax in axes:
        ax.axis("off")
    for ax, image, i in zip(axes, shown.images, chosen.tolist(), strict=False):
        ax.imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
        label, predicted = (_short(classes[int(field[i])]) for field in (found.label, found.predicted))
        ax.set_title(f"{predicted} {100 * found.confidence[i]:.0f} %\nis {label}", fontsize=9)
    figure.suptitle(f"The surest mistakes of {name}: what it says, and what it is", fontsize=11)
    figure.savefig(path, dpi=110)
    add_image(tensorboard, path.stem, path, of.step or 0)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
