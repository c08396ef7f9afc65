"""Gradients by depth: how much of the loss's gradient reaches the layers near the image."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_train.errors import BadInput
from resnet_train.models.blocks import DiracConv2d, Unit
from resnet_train.models.network import Network
from resnet_train.probes.hooks import ProbeResult, copy_with_units, finite, recorded_inputs, use_batch_statistics


class GradientSplit(NamedTuple):
    """The gradient at the input x_l of a unit, and the two parts that add up to it (He et al. 2016, equation 5).

    dE/dx_l = dE/dx_L (1 + d/dx_l sum F), where x_L is the output of the stage. All have the shape of x_l.
    """

    total: Tensor
    """dE/dx_l, from autograd."""
    identity: Tensor
    """dE/dx_L, which the identity shortcuts carry back unchanged from the end of the stage."""
    residual: Tensor
    """What comes through F of this unit and of the later units of its stage, recorded at the inputs of F."""


class Gradients(NamedTuple):
    """Gradients of the loss, by name in order of depth."""

    inputs: dict[str, Tensor]
    """At the input of each unit."""
    weights: dict[str, Tensor]
    """At the weights of each convolution."""
    splits: dict[str, GradientSplit]
    """The parts of `inputs` where the shortcut is an identity and nothing follows the addition."""


def scale_weights(net: nn.Module, scale: float) -> Network:
    """A float64 copy of a network in which the weights of all convolutions of each F are `scale` times as large.

    Of a plain network with L such convolutions, the gradient that reaches the first is scale^L times as large. With
    identity shortcuts it does not vanish "even when the weights are arbitrarily small" (He et al. 2016, section 2).
    float64, since 0.01^56 is no float32. Raises `BadInput` for a VGG, and where a batch norm takes the scale out again.
    """
    copied = copy_with_units(net).double()
    if any(isinstance(module, (nn.BatchNorm2d, DiracConv2d)) for module in copied.modules()):
        raise BadInput(
            "a scale of the weights has no effect with batch norm, nor with dirac: give networks without, NAME-nobn"
        )
    with torch.no_grad():
        for unit in copied.units().values():
            for layer in unit.convolutions():
                layer.weight.mul_(scale)
    return copied


def gradient_norms(net: nn.Module, images: Tensor, labels: Tensor) -> ProbeResult:
    """L2 norm of the gradient at each unit's input (`units`) and at each convolution's weights (`weights`).

    Where shortcuts are identities and nothing follows the addition, as in pre-activation networks, also the norms of
    its two parts: `carried` (the identity's) and `through` (F's).

    images: normalised, [n, C, H, W]; labels: int64 [n]. Batch statistics, no dropout; in the precision of the weights.
    Raises `BadInput` for a VGG.
    """
    gradients = gradient_tensors(net, images, labels)
    result = {"units": _norms(gradients.inputs), "weights": _norms(gradients.weights)}
    if gradients.splits:
        undefined: dict[str, float | None] = dict.fromkeys(gradients.inputs)
        splits = gradients.splits.items()
        result["carried"] = undefined | _norms({name: split.identity for name, split in splits})
        result["through"] = undefined | _norms({name: split.residual for name, split in splits})
    return result


def gradient_tensors(net: nn.Module, images: Tensor, labels: Tensor) -> Gradients:
    """The gradients whose norms `gradient_norms` gives, from one backward pass."""
    copied = copy_with_units(net)
    use_batch_statistics(copied)
    units = copied.units()
    branches = {name: unit.get_submodule((*unit.before, *unit.residual)[0]) for name, unit in units.items()}
    weights = {name: module.weight for name, module in copied.named_modules() if isinstance(module, nn.Conv2d)}
    with (
        recorded_inputs(units) as unit_inputs,
        recorded_inputs(branches) as branch_inputs,
        recorded_inputs({"end": copied.bn_last}) as end_input,
    ):
        loss = F.cross_entropy(copied(images.to(next(copied.parameters()).dtype)), labels)
    at_units, at_branches, at_end, at_weights = _gradients(loss, unit_inputs, branch_inputs, end_input, weights)
    return Gradients(at_units, at_weights, _splits(units, at_units, at_branches, at_end["end"]))


def _gradients(loss: Tensor, *groups: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The gradient of each tensor of each group."""
    gradients = iter(torch.autograd.grad(loss, [tensor for group in groups for tensor in group.values()]))
    return [{name: next(gradients) for name in group} for group in groups]


def _splits(
    units: Mapping[str, Unit], at_units: Mapping[str, Tensor], at_branches: Mapping[str, Tensor], at_end: Tensor
) -> dict[str, GradientSplit]:
    """From the last unit to the first: within a stage `identity` stays and `residual` is summed."""
    splits: dict[str, GradientSplit] = {}
    stage, identity, residual = "", at_end, at_end
    at_outputs = [*at_units.values(), at_end][1:]
    for (name, unit), at_output in reversed(list(zip(units.items(), at_outputs, strict=True))):
        if not _is_identity_unit(unit):
            continue
        unit_stage = name.partition(".")[0]
        if unit_stage != stage:  # the last unit of its stage
            stage, identity, residual = unit_stage, at_output, torch.zeros_like(at_output)
        residual = residual + at_branches[name]
        splits[name] = GradientSplit(at_units[name], identity, residual)
    return dict(reversed(splits.items()))


def _is_identity_unit(unit: Unit) -> bool:
    """Whether its output is x + F(x)."""
    return isinstance(unit.downsample, nn.Identity) and not unit.after and unit.addition is None


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, float | None]:
    return {name: finite(_norm(tensor)) for name, tensor in tensors.items()}


def _norm(tensor: Tensor) -> Tensor:
    """The L2 norm, also of a tensor whose squares are too small for its type."""
    largest = tensor.abs().max().clamp_min(torch.finfo(tensor.dtype).tiny)
    return (tensor / largest).square().sum().sqrt() * largest
