"""Lesions: the error of a network without one unit, or with two units swapped (Veit et al. 2016, section 4)."""

import itertools
from collections.abc import Callable
from functools import partial

from torch import nn

from resnet_train.models.blocks import Unit
from resnet_train.probes.hooks import ProbeResult, copy_with_units


def lesion_errors(net: nn.Module, error: Callable[[nn.Module], float]) -> ProbeResult:
    """`error` of the whole network (`whole`), without each unit (`dropped`), with two neighbours swapped (`swapped`).

    A residual unit is dropped by leaving out its F, so that its shortcut remains. A plain unit can be dropped, and two
    units of a stage can be swapped, only where no shape changes. The value of the others is None.

    error: called with the network in evaluation mode, once for each lesion. Raises `BadInput` for a VGG.
    """
    copied = copy_with_units(net)
    copied.eval()
    units, measure = copied.units(), partial(error, copied)
    pairs = itertools.pairwise(units)
    return {
        "whole": {"whole": measure()},
        "dropped": {name: _error_without(unit, measure) for name, unit in units.items()},
        "swapped": {f"{first} {second}": _error_swapped(copied, first, second, measure) for first, second in pairs},
    }


def _error_without(unit: Unit, error: Callable[[], float]) -> float | None:
    if unit.downsample is None and unit.changes_shape:
        return None
    unit.dropped = True
    value = error()
    unit.dropped = False
    return value


def _error_swapped(net: nn.Module, first: str, second: str, error: Callable[[], float]) -> float | None:
    one, other = net.get_submodule(first), net.get_submodule(second)
    assert isinstance(one, Unit)
    assert isinstance(other, Unit)
    same_stage = first.partition(".")[0] == second.partition(".")[0]
    if not same_stage or not _interchangeable(one, other):
        return None
    net.set_submodule(first, other)
    net.set_submodule(second, one)
    value = error()
    net.set_submodule(first, one)
    net.set_submodule(second, other)
    return value


def _interchangeable(one: Unit, other: Unit) -> bool:
    """Whether both keep the shape, and neither is the first unit of a pre-activation network.

    The stem activates the input of that one, so it lacks the first batch norm and ReLU.
    """
    return not one.changes_shape and not other.changes_shape and one.before == other.before
