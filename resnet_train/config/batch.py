"""What cannot be trained: batches that ranks cannot share, and images that are too small for a network."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from resnet_train.errors import InvalidConfig

if TYPE_CHECKING:
    from resnet_train.config.network import NetConfig, VGGConfig
    from resnet_train.config.schema import Recipe, Run

_SMALLEST_FOR_VGG = 32
"""Pixels: five poolings halve them."""
_LARGEST_FOR_CIFAR_STEM = 96
"""Pixels: those of STL-10, the largest images that networks for CIFAR are commonly trained on."""


def check_batch(recipe: "Recipe", ranks: int, size: int | None) -> None:
    """Raise `InvalidConfig` if the ranks cannot share a batch, or if it does not suit images of `size` pixels.

    size: height and width of the images of a data set of one size; None if they may have any.
    """
    _check(batch_complaints(recipe, ranks, size))


def check_network(run: "Run", ranks: int, size: int | None) -> None:
    """Raise `InvalidConfig` if images are too small for the network, on so many ranks. `size` as in `check_batch`."""
    _check(network_complaints(run, ranks, size))


def batch_complaints(recipe: "Recipe", ranks: int, size: int | None) -> Iterator[str]:
    """Why a batch cannot be, one text for each reason."""
    train, crop = recipe.train, recipe.augment.crop
    micro_batches = train.grad_accum_steps * ranks
    micro_batch_size, rest = divmod(train.batch_size, micro_batches)
    if rest:
        yield (
            f"train.batch_size = {train.batch_size} (global) is not divisible by {ranks} ranks x "
            f"{train.grad_accum_steps} train.grad_accum_steps: use {max(1, micro_batch_size) * micro_batches}"
        )
    if recipe.augment.mixes and micro_batch_size <= 1:
        yield f"augment.mixup and cutmix need more than one image at a time: {_larger_micro_batch(recipe, ranks)}"
    if crop is not None and crop.kind == "pad" and crop.mode == "reflect" and size is not None and crop.padding >= size:
        yield f"augment.crop.padding = {crop.padding}: reflection needs less than the image's {size} pixels"


def network_complaints(run: "Run", ranks: int, size: int | None) -> Iterator[str]:
    """Why a network cannot see such images, one text for each reason."""
    net, name = run.network, run.network.name
    trained, evaluated = _trained_sizes(run, size), _evaluated_sizes(run, size)
    if net.unit == "vgg":
        smallest = min([*trained, *evaluated], default=_SMALLEST_FOR_VGG)
        if smallest < _SMALLEST_FOR_VGG:
            yield f"{name} needs images of at least {_SMALLEST_FOR_VGG} pixels, and here are {smallest}"
        return
    if not net.batch_norm:
        return
    micro_batch_size = run.train.batch_size // (run.train.grad_accum_steps * ranks)
    together = micro_batch_size * (ranks if run.train.sync_bn else 1)
    one_pixel = f"batch norm of {name} needs more than one value, and its last map has one pixel at "
    for pixels in trained:
        if together <= 1 and net.last_map(pixels) == 1:
            sync_bn = ", or set train.sync_bn" if ranks > 1 and not run.train.sync_bn else ""
            yield f"{one_pixel}{pixels} pixels: {_larger_micro_batch(run, ranks)}{sync_bn}"
    if evaluated and net.last_map(min(evaluated)) == 1 and not run.eval.has_scales:
        probes = {"gradients": run.probes.gradients, "responses": run.probes.responses}
        for kind, probe in probes.items():
            if probe is not None and probe.images == 1:
                yield f"{one_pixel}{min(evaluated)} pixels: raise probes.{kind}.images"
        if run.eval.recompute_bn and min(run.eval.recompute_bn, run.eval.batch_size) == 1:
            yield f"{one_pixel}{min(evaluated)} pixels: raise eval.recompute_bn and eval.batch_size"


def _larger_micro_batch(recipe: "Recipe", ranks: int) -> str:
    """How each rank sees more images at a time, in words."""
    others = ["train.grad_accum_steps"] * (recipe.train.grad_accum_steps > 1) + ["the number of ranks"] * (ranks > 1)
    return "raise train.batch_size" + (f", or lower {' or '.join(others)}" if others else "")


def batch_norm_complaints(recipe: "Recipe", networks: Sequence["NetConfig | VGGConfig"]) -> Iterator[str]:
    """Which keys have no effect, one text for each, where no network has batch norm."""
    keys = {"train.sync_bn": recipe.train.sync_bn, "eval.recompute_bn": recipe.eval.recompute_bn}
    if not any(network.batch_norm for network in networks):
        names = ", ".join(network.name for network in networks)
        yield from (
            f"{key} has no effect without batch norm, and {names} has none: remove it" for key in keys if keys[key]
        )


def stem_complaints(run: "Run") -> Iterator[str]:
    """Why a stem that came with the name of a network does not suit the images, as far as their size is known."""
    for size in _trained_sizes(run, run.data.image_size)[-1:]:
        if (note := stem_note(run, size)) is not None and run.network.stem == "cifar":
            name = run.network.name
            yield (
                f"{note}: choose another network, such as resnet-50 or wrn-50-2, or ask for it: "
                f"{{base: {name}, stem: cifar}}"
            )


def stem_note(run: "Run", size: int) -> str | None:
    """What is unusual about a network's stem for images of `size` pixels, in words."""
    net = run.network
    if net.stem == "cifar" and size > _LARGEST_FOR_CIFAR_STEM:
        return (
            f"{net.name} has a stem for small images, a 3x3 convolution without pooling, and these are of {size} pixels"
        )
    if net.unit != "vgg" and net.stem == "imagenet" and net.last_map(size) == 1:
        return (
            f"{net.name} has a stem for large images, and its last map has one pixel at {size} pixels; networks for "
            "small images are cifar-resnet-20, wrn-28-10 and any with `stem: cifar`"
        )
    return None


def _trained_sizes(run: "Run", size: int | None) -> list[int]:
    """Height and width of the training images in pixels, with progressive resizing several; none if unknown."""
    crop = run.augment.crop
    if run.data.any_size and crop is not None and crop.kind != "pad":
        return sorted({crop.size, *(run.augment.progressive_resizing or {}).values()})
    return [] if size is None else [size]


def _evaluated_sizes(run: "Run", size: int | None) -> list[int]:
    if run.view is None:
        return [] if size is None else [size]
    return list(run.eval.short_sides) if run.eval.has_scales else [run.view.crop]


def _check(complaints: Iterator[str]) -> None:
    if texts := list(complaints):
        raise InvalidConfig(*texts)
