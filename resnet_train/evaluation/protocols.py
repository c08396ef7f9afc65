"""Evaluation protocols: what a network sees of an image, as one list of views, and the same in words.

The prediction for an image is the mean over its views (`EvalConfig.average`).
"""

from typing import NamedTuple

from resnet_train.config.schema import EvalConfig, Run, ViewConfig
from resnet_train.data.views import View


class _Protocol(NamedTuple):
    views: list[View]
    text: str


def views_of(view: ViewConfig | None, cfg: EvalConfig) -> tuple[View, ...]:
    """All views of an image under `eval.protocol` and `eval.flip`. Where `view` is None the whole image is the view."""
    return tuple(_protocol(view, cfg).views)


def describe(run: Run, changed: str | None = None) -> str:
    """The protocol in words, written beside every result: images, views, weights, batch norm statistics, precision.

    changed: what `prepare` did to the pixels of the data set, in words.
    """
    cfg = run.eval
    images = f"{run.data.holdout} held-out training images" if run.data.holdout else "validation set"
    if changed:
        images += f", {changed}"
    weights = f"average of the weights (decay {run.train.ema_decay})" if run.train.ema_decay else "last weights"
    statistics = "running BN statistics"
    if count := cfg.recompute_bn:
        statistics = f"BN statistics of {count - count % min(cfg.batch_size, count)} training images"
    return f"{images}; {_protocol(run.view, cfg).text}; {weights}; {statistics}; {run.train.precision}"


def _protocol(view: ViewConfig | None, cfg: EvalConfig) -> _Protocol:
    """A new protocol is one more branch here, and its name in `EvalConfig.protocol`."""
    mirror = " and its mirror image" if cfg.flip else ""
    if view is None:
        views, text = [View()], f"whole image{mirror or ', one view'}"
    elif cfg.has_scales:
        sides = ", ".join(map(str, cfg.short_sides))
        views = [View(short_side) for short_side in cfg.short_sides]
        how = "fully convolutional" if cfg.protocol == "multi-scale-dense" else "pooled at once"
        text = f"whole image{mirror}, {how}, shorter sides {sides} px"
    elif cfg.protocol == "ten-crop":
        places = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)]
        views = [View(view.resize, view.crop, place) for place in places]
        text = f"ten {view.crop} px crops (corners, centre, mirror images), shorter side {view.resize} px"
    else:
        views = [View(view.resize, view.crop)]
        text = f"one {view.crop} px crop at the centre{mirror}, shorter side {view.resize} px"
    if cfg.flip or cfg.protocol == "ten-crop":
        views += [mirrored._replace(flip=True) for mirrored in views]
    if len(views) > 1:
        text += f", mean of {cfg.average}"
    return _Protocol(views, text)
