"""The zoo: from a network's name to its configuration.

FAMILY-DEPTH, then any of the suffixes: `resnet-34`, `plain-34`, `cifar-resnet-110`, `resnet-34-A`, `resnet-50-v1.5`.
Depths of ImageNet networks are those of He et al. 2015, table 1; CIFAR networks have any depth 6n+2 (section 4.2).
`resnet-50` and deeper halve the image on a bottleneck's first 1x1, as the paper does; suffix `-v1.5` is torchvision's.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Any

from resnet_train.errors import BadInput

IMAGENET: dict[int, dict[str, Any]] = {
    18: {"unit": "basic", "depths": (2, 2, 2, 2)},
    34: {"unit": "basic", "depths": (3, 4, 6, 3)},
    50: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 4, 6, 3)},
    101: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 4, 23, 3)},
    152: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 8, 36, 3)},
}

SUFFIXES: dict[str, dict[str, Any]] = {
    "A": {"shortcut": "A"},
    "B": {"shortcut": "B"},
    "C": {"shortcut": "C"},
    "v1.5": {"stride_on": "3x3"},
}

_FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": {"stem": "imagenet", "widths": (64, 128, 256, 512), "shortcut": "B"},
    "plain": {"stem": "imagenet", "widths": (64, 128, 256, 512), "shortcut": "none"},
    "cifar-resnet": {"stem": "cifar", "widths": (16, 32, 64), "shortcut": "A"},
    "cifar-plain": {"stem": "cifar", "widths": (16, 32, 64), "shortcut": "none"},
}

_NAME = re.compile(rf"({'|'.join(_FAMILIES)})-(\d+)((?:-(?:{'|'.join(map(re.escape, SUFFIXES))}))*)")


def network(name: str) -> dict[str, Any]:
    """The fields of `NetConfig` for a name of the zoo. Raises `BadInput` with the nearest valid names."""
    match = _NAME.fullmatch(name)
    if not match:
        raise BadInput(f"unknown network {name!r}: {_nearest(name)}")
    family, depth = match[1], int(match[2])
    fields: dict[str, Any] = {"name": name, **_FAMILIES[family]}
    if fields["stem"] == "imagenet":
        if depth not in IMAGENET:
            nearest = [f"{family}-{d}" for d in _around(depth, sorted(IMAGENET))]
            raise BadInput(f"unknown network {name!r}: the nearest depths are {' and '.join(nearest)}")
        fields |= IMAGENET[depth]
    else:
        if depth < 8 or (depth - 2) % 6:
            below = max(8, depth - (depth - 2) % 6)
            raise BadInput(
                f"unknown network {name!r}: depths are 6n+2, the nearest {family}-{below} and {family}-{below + 6}"
            )
        fields |= {"unit": "basic", "depths": ((depth - 2) // 6,) * 3}
    seen: set[str] = set()
    for suffix in filter(None, match[3].split("-")):
        for key, value in SUFFIXES[suffix].items():
            if key in seen:
                raise BadInput(f"unknown network {name!r}: -{suffix} contradicts the suffix before it")
            seen.add(key)
            if (key == "shortcut" and fields["shortcut"] == "none") or (
                key == "stride_on" and fields["unit"] == "basic"
            ):
                raise BadInput(f"unknown network {name!r}: -{suffix} has no effect on {family}-{depth}")
            fields[key] = value
    return fields


def resolve(entry: object) -> object:
    """One entry of an experiment's `networks`: a name, or a mapping whose `base` names what it starts from."""
    if isinstance(entry, str):
        return network(entry)
    if isinstance(entry, Mapping) and "base" in entry:
        given = {key: value for key, value in entry.items() if key != "base"}
        return {**network(str(entry["base"])), **given}
    return entry


def _nearest(name: str) -> str:
    known = [f"{family}-{depth}" for family in ("resnet", "plain") for depth in IMAGENET]
    known += [f"{family}-{depth}" for family in ("cifar-resnet", "cifar-plain") for depth in (20, 32, 44, 56, 110)]
    return f"did you mean {' or '.join(difflib.get_close_matches(name, known, n=2, cutoff=0.3) or known[:2])}?"


def _around(depth: int, valid: list[int]) -> list[int]:
    return [d for d in valid if d < depth][-1:] + [d for d in valid if d > depth][:1]
