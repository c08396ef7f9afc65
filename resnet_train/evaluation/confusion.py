"""Confusions: the error of each class, the worst classes, and the most confident mistakes as a figure."""

import csv
import importlib.util
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

from resnet_train.data.dataset import Dataset
from resnet_train.data.decoding import ImageArray
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.views import View
from resnet_train.errors import one_line
from resnet_train.evaluation.evaluator import SampleResults
from resnet_train.evaluation.pretrained import PretrainedModel
from resnet_train.evaluation.protocols import views_of
from resnet_train.runs.tensorboard import attach, picture

_MOST_MISTAKES = 24
"""In the figure."""
_LONGEST_NAME = 16
"""Of a class, in characters, in the figure."""
_FONT = "mpl-data/fonts/ttf/DejaVuSans.ttf"
"""In the folder of matplotlib."""


class ClassRow(NamedTuple):
    """The mistakes of one class."""

    name: str
    images: int
    error: float
    """In percent."""
    confused_with: str
    """The class that was predicted most often among the mistakes; empty where there is none."""
    times: int
    """How often it was predicted."""


def by_class(results: SampleResults, classes: Sequence[str]) -> list[ClassRow]:
    """A row for each class that has images, the highest error first."""
    n = len(classes)
    pairs = (results.label * n + results.predicted).long()
    counts = torch.bincount(pairs, minlength=n * n).reshape(n, n)  # [label, predicted]
    images, right = counts.sum(1), counts.diagonal().clone()
    wrong = counts - torch.diag(right)
    rows: list[ClassRow] = []
    for i in torch.nonzero(images)[:, 0].tolist():
        times = int(wrong[i].max())
        confused_with = classes[int(wrong[i].argmax())] if times else ""
        error = 100 * (1 - right[i].item() / images[i].item())
        rows.append(ClassRow(classes[i], int(images[i]), error, confused_with, times))
    return sorted(rows, key=lambda row: -row.error)


def worst(results: SampleResults, classes: Sequence[str], count: int = 5) -> str:
    """The classes with the highest error, in a line."""
    rows = [row for row in by_class(results, classes)[:count] if row.times]
    if not rows:
        return "worst classes: none, there is no mistake"
    worst_classes = (f"{row.name}: {row.error:.1f} % (most often taken for {row.confused_with})" for row in rows)
    return f"worst classes: {'; '.join(worst_classes)}"


def write_classes(results: SampleResults, classes: Sequence[str], path: Path) -> None:
    """Write the rows of `by_class` as CSV. Raises `OSError`."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "error", "most often taken for", "times"])
        writer.writerows(by_class(results, classes))


def draw(
    name: str,
    results: SampleResults,
    classes: Sequence[str],
    dataset: Dataset,
    model: PretrainedModel,
    path: Path,
    log: Path | None,
) -> None:
    """Draw the most confident mistakes of a network or ensemble called `name`, to a PNG.

    log: the run folder of the network, whose TensorBoard log receives the picture too; None where it has none.
    model: the network, or the first one of the ensemble: images are shown as it sees them. Where there is no mistake,
    nothing is written. Raises `OSError`.
    """
    wrong = torch.nonzero(results.predicted != results.label)[:, 0]
    order = results.confidence[wrong].argsort(descending=True, stable=True)
    samples = wrong[order[:_MOST_MISTAKES]].numpy()
    if not len(samples):
        return
    data = EvaluationData(dataset.subset(samples), (_view(model),), _MOST_MISTAKES, torch.device("cpu"))
    captions = []
    for i in samples.tolist():
        label, predicted = (_shorten(classes[int(field[i])]) for field in (results.label, results.predicted))
        captions.append(f"{predicted} {100 * results.confidence[i]:.0f} %\nis {label}")
    title = f"The most confident mistakes of {one_line(name)}: prediction and label"
    _contact_sheet(next(data.batches()).images.numpy(), captions, title).save(path)
    if log is not None:
        tag = f"wrong-predictions/{path.stem.removesuffix('-mistakes')}"
        attach(log, path.stem, picture(tag, path), model.step or 0)


def _contact_sheet(images: ImageArray, captions: Sequence[str], title: str) -> Image.Image:
    """Images, uint8 [n, H, W, 1 or 3], in rows of six, each below its caption of two lines.

    Drawn by Pillow: matplotlib takes a second to import and to lay out so many panels.
    """
    columns, cell, tile, heading, text = 6, 220, 212, 36, 48
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (columns * cell, heading + rows * (cell + text)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((sheet.width / 2, heading / 2), title, "black", _font(17), "mm")
    for place, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, columns)
        left, top = column * cell + (cell - tile) // 2, heading + row * (cell + text) + text
        draw.text((left + tile / 2, top - text / 2), caption, "black", _font(14), "mm", align="center")
        image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).convert("RGB")
        size = (tile * image.width // max(image.size), tile * image.height // max(image.size))
        sheet.paste(image.resize(size, Image.Resampling.BOX), (left + (tile - size[0]) // 2, top))  # pixels stay square
    return sheet


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """matplotlib's, which has more scripts than Pillow's own: names of classes are in any."""
    package = importlib.util.find_spec("matplotlib")
    try:
        return ImageFont.truetype(str(Path(package.origin or "").parent / _FONT) if package else "", size)
    except OSError:  # some systems keep its fonts elsewhere
        return ImageFont.load_default(size)


def _view(model: PretrainedModel) -> View:
    """The first view of the protocol; in place of many scales, whose shapes differ, the one crop at the centre."""
    cfg = model.run.eval
    if cfg.has_scales:
        cfg = cfg.model_copy(update={"protocol": "one-crop"})
    return views_of(model.run.view, cfg)[0]


def _shorten(name: str) -> str:
    name = one_line(name)  # a folder's name need not be text
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
