"""An evaluation protocol in words."""

from resnet_train.config.schema import Run
from resnet_train.data.views import views_of


def protocol(run: Run, changed: str | None = None) -> str:
    """How evaluation looks at an image, for every figure that is printed; `changed` is what was done to it before."""
    cfg, view = run.eval, run.view
    mirror = " and its mirror image" if cfg.flip else ""
    if view is None:
        seen = f"whole image{mirror or ', one view'}"
    elif cfg.protocol == "multi-scale":
        sides = ", ".join(map(str, cfg.short_sides))
        seen = f"whole image{mirror}, fully convolutional, shorter sides {sides} px"
    elif cfg.protocol == "ten-crop":
        seen = f"ten {view.crop} px crops (corners, centre, mirror images), shorter side {view.resize} px"
    else:
        seen = f"one {view.crop} px crop at the centre{mirror}, shorter side {view.resize} px"
    if len(views_of(view, cfg)) > 1:
        seen += f", mean of {cfg.average}"
    weights = f"average of the weights (decay {run.train.ema_decay})" if run.train.ema_decay else "last weights"
    images = f"{run.data.holdout} held-out training images" if run.data.holdout else "validation set"
    images += f", {changed}" if changed else ""
    statistics = f"BN statistics of {cfg.recompute_bn} training images" if cfg.recompute_bn else "running BN statistics"
    return f"{images}; {seen}; {weights}; {statistics}; {run.train.precision}"
