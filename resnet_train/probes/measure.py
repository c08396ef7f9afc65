"""Why depth hurts a plain net: gradients and responses by depth, and lesions. Each leaves no trace on the network.

A probe works on a copy of the network, draws nothing and asks autograd for what it wants, so weights, running
statistics, gradients and the state of the generators are afterwards bit for bit what they were.
"""

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_train.errors import BadInput
from resnet_train.models.batch_norm import revert_sync_batchnorm
from resnet_train.models.blocks import Unit
from resnet_train.models.network import Network

Figures = dict[str, dict[str, float | None]]
"""By what is measured, then by unit or layer in order of depth; None where it is not finite or there is none."""


class Split(NamedTuple):
    """dE/dx_l = dE/dx_L (1 + d/dx_l sum F) (He et al. 2016, equation 5), at the input x_l of a unit."""

    whole: Tensor
    """dE/dx_l as autograd finds it."""
    carried: Tensor
    """dE/dx_L, which the identities carry from the end of the stage."""
    through: Tensor
    """What comes through the F of this and the later units of the stage, caught at their own inputs."""


def gradients(net: nn.Module, images: Tensor, labels: Tensor) -> Figures:
    """Norms of the loss's gradient: at each unit's input (`units`) and each convolution's weights (`weights`).

    Batch statistics, no dropout. Where shortcuts are identities that nothing follows, as in pre-activation networks,
    also of its two parts, `carried` and `through`. Images are [n, C, H, W]. Raises `BadInput` for a VGG.
    """
    inputs, weights, splits = gradient_tensors(net, images, labels)
    nowhere: dict[str, float | None] = dict.fromkeys(inputs)
    return {
        "units": _norms(inputs),
        "weights": _norms(weights),
        **({"carried": nowhere | _norms({name: s.carried for name, s in splits.items()})} if splits else {}),
        **({"through": nowhere | _norms({name: s.through for name, s in splits.items()})} if splits else {}),
    }


def gradient_tensors(
    net: nn.Module, images: Tensor, labels: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Split]]:
    """The gradients whose norms `gradients` gives: by unit, by convolution, and split."""
    copied = _with_units(net)
    _batch_statistics(copied)
    units = copied.units()
    convs = {name: module.weight for name, module in copied.named_modules() if isinstance(module, nn.Conv2d)}
    branches = {name: unit.get_submodule((*unit.before, *unit.residual)[0]) for name, unit in units.items()}
    with _inputs(units) as at_units, _inputs(branches) as at_branches:
        with _inputs({"end": copied.bn_last}) as at_end:
            loss = F.cross_entropy(copied(images).float(), labels)
        wanted = [*at_units.values(), *at_branches.values(), *at_end.values(), *convs.values()]
        found = iter(torch.autograd.grad(loss, wanted))
    inputs = {name: next(found) for name in at_units}
    branched = {name: next(found) for name in at_branches}
    end = next(found)
    return inputs, {name: next(found) for name in convs}, _splits(units, inputs, branched, end)


def _splits(
    units: Mapping[str, Unit], inputs: Mapping[str, Tensor], branched: Mapping[str, Tensor], end: Tensor
) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    stage, carried, through = "", end, end
    following = [*inputs.values(), end][1:]
    for (name, unit), after in reversed(list(zip(units.items(), following, strict=True))):
        if not _carries(unit):
            continue
        if name.partition(".")[0] != stage:  # the last unit of its stage
            stage, carried, through = name.partition(".")[0], after, torch.zeros_like(after)
        through = through + branched[name]
        splits = {name: Split(inputs[name], carried, through), **splits}
    return splits


def _carries(unit: Unit) -> bool:
    return isinstance(unit.downsample, nn.Identity) and not unit.after and unit.addition is None


def responses(net: nn.Module, images: Tensor) -> Figures:
    """Standard deviation of each 3x3 layer's response, after batch norm, before ReLU and addition (`layers`).

    Of the convolution itself where no batch norm follows it (He et al. 2015, figure 7). Batch statistics. Of a VGG
    too, which has layers but no units.
    """
    copied, found = _copy(net), dict[str, Tensor]()
    _batch_statistics(copied)

    def note(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_: nn.Module, __: object, out: Tensor) -> None:
            found[name] = out.float().std()  # now: the ReLU that follows may overwrite it

        return hook

    for name, measured in _measured(copied):
        measured.register_forward_hook(note(name))
    with torch.no_grad():
        copied(images)
    return {"layers": {name: _finite(value) for name, value in found.items()}}


def _measured(net: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Each 3x3 convolution's name, and the module that gives its response: a batch norm that follows, or itself."""
    if isinstance(net, Network):
        branches = {
            name: [(f"{name}.{m}", unit.get_submodule(m)) for m in unit.residual] for name, unit in net.units().items()
        }
        sequences = [[("conv1", net.conv1), ("bn1", net.bn1)], *branches.values()]
    else:
        sequences = [[(f"features.{m}", module) for m, module in net.get_submodule("features").named_children()]]
    for sequence in sequences:
        for (name, module), (_, following) in itertools.pairwise([*sequence, ("", None)]):
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                yield name, following if isinstance(following, nn.BatchNorm2d) else module


def lesion(net: nn.Module, error: Callable[[nn.Module], float]) -> Figures:
    """`error` of the whole network, without each unit in turn (`dropped`), with neighbours swapped (`swapped`).

    A residual unit is dropped by leaving out its F, a plain one where input and output have one shape; units change
    places within a stage where neither changes the shape (Veit et al. 2016, section 4); None stands for the others.
    Raises `BadInput` for a VGG.
    """
    copied = _with_units(net)
    copied.eval()
    figures: Figures = {"whole": {"whole": error(copied)}, "dropped": {}, "swapped": {}}
    units = copied.units()
    for name, unit in units.items():
        droppable = unit.downsample is not None or not unit.changes
        unit.dropped = droppable
        figures["dropped"][name] = error(copied) if droppable else None
        unit.dropped = False
    for (a, one), (b, other) in itertools.pairwise(units.items()):
        figures["swapped"][f"{a} {b}"] = None
        if a.partition(".")[0] == b.partition(".")[0] and not (one.changes or other.changes) and _alike(one, other):
            copied.set_submodule(a, other)
            copied.set_submodule(b, one)
            figures["swapped"][f"{a} {b}"] = error(copied)
            copied.set_submodule(a, one)
            copied.set_submodule(b, other)
    return figures


def _alike(one: Unit, other: Unit) -> bool:
    """Whether neither is the first unit of a pre-activation network, whose input the stem has activated."""
    return one.before == other.before


def _with_units(net: nn.Module) -> Network:
    copied = _copy(net)
    if not isinstance(copied, Network):
        raise BadInput("a VGG has no units to probe: give plain and residual networks, or probe its responses")
    return copied


def _copy(net: nn.Module) -> nn.Module:
    copied = copy.deepcopy(net)
    revert_sync_batchnorm(copied)
    for parameter in copied.parameters():
        parameter.grad = None
        parameter.requires_grad_()  # an average of weights has it off
    return copied


def _batch_statistics(net: nn.Module) -> None:
    """In evaluation mode, without dropout, but for batch norm: running statistics mean little early in training."""
    net.eval()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()


@contextmanager
def _inputs(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """The input of each module in a forward pass within the block, as a name of its own for autograd."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
        def hook(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            if name in found:  # a ReLU is called more than once; the first time is the one before F
                return given
            found[name] = given[0].view_as(given[0])
            return (found[name],)

        return hook

    handles = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _norms(tensors: Mapping[str, Tensor]) -> dict[str, float | None]:
    return {name: _finite(tensor.float().norm()) for name, tensor in tensors.items()}


def _finite(value: Tensor) -> float | None:
    number = value.item()
    return number if math.isfinite(number) else None
