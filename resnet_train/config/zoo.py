"""The zoo: from a network's name to its configuration.

FAMILY-DEPTH, then any of the suffixes: `resnet-34`, `plain-34`, `cifar-resnet-110`, `resnet-34-A`, `resnet-50-v1.5`.

- `resnet`, `plain`, `preact-resnet`: depths of He et al. 2015, table 1, and He et al. 2016. They halve the image on a
  bottleneck's first 1x1, as the paper does; suffix `-v1.5` is torchvision's 3x3.
- `cifar-resnet`, `cifar-plain`, `cifar-preact`: any depth 6n+2 (He et al. 2015, section 4.2). 164 and 1001 are the
  bottlenecks of He et al. 2016; suffix `-bottleneck` makes one of any depth 9n+2.
- `wrn-DEPTH-WIDTH` (Zagoruyko and Komodakis 2016): `wrn-50-2` and `wrn-101-2` for ImageNet, any depth 6n+4 for CIFAR;
  suffix `-dropout` is theirs, of 0.3.
- `vgg-16`, `vgg-19`; suffix `-bn` adds batch norm.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from resnet_train.config.network import ANY_NET, NetConfig, VGGConfig
from resnet_train.errors import BadInput

IMAGENET: dict[int, dict[str, Any]] = {
    18: {"unit": "basic", "depths": (2, 2, 2, 2)},
    34: {"unit": "basic", "depths": (3, 4, 6, 3)},
    50: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 4, 6, 3)},
    101: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 4, 23, 3)},
    152: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 8, 36, 3)},
    200: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 24, 36, 3)},
}

SUFFIXES: dict[str, dict[str, Any]] = {
    "A": {"shortcut": "A"},
    "B": {"shortcut": "B"},
    "C": {"shortcut": "C"},
    "v1": {"stride_on": "1x1"},
    "v1.5": {"stride_on": "3x3"},
    "bottleneck": {"unit": "bottleneck"},
    "dropout": {"dropout": 0.3},
    "bn": {"batch_norm": True},
}

_IMAGENET = {"stem": "imagenet", "widths": (64, 128, 256, 512)}
_CIFAR = {"stem": "cifar", "widths": (16, 32, 64)}

_FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": {**_IMAGENET, "shortcut": "B"},
    "plain": {**_IMAGENET, "shortcut": "none"},
    "preact-resnet": {**_IMAGENET, "shortcut": "B", "order": "pre-activation"},
    "cifar-resnet": {**_CIFAR, "shortcut": "A"},
    "cifar-plain": {**_CIFAR, "shortcut": "none"},
    "cifar-preact": {**_CIFAR, "shortcut": "A", "order": "pre-activation"},
}

_NAME = re.compile(
    rf"(?P<family>{'|'.join(_FAMILIES)}|wrn|vgg)-(?P<depth>\d+)(?:-(?P<width>\d+))?"
    rf"(?P<suffixes>(?:-(?:{'|'.join(map(re.escape, SUFFIXES))}))*)"
)


def network_config(name: str, /, **changes: Any) -> NetConfig | VGGConfig:
    """The network of this name, with changes to its fields. Raises `BadInput` with the nearest valid names."""
    return ANY_NET.validate_python({**network_fields(name), **changes})


def network_fields(name: str) -> dict[str, Any]:
    """The fields of the network of this name. Raises `BadInput` with the nearest valid names."""
    match = _NAME.fullmatch(name)
    if not match or (match["width"] is not None) != (match["family"] == "wrn"):
        raise BadInput(f"unknown network {name!r}: {_did_you_mean(name)}")
    family, depth = match["family"], int(match["depth"])
    suffixes = [suffix for suffix in match["suffixes"].split("-") if suffix]
    match family:
        case "vgg":
            fields = _vgg(name, depth)
        case "wrn":
            fields = _wide(name, depth, int(match["width"]))
        case _ if _FAMILIES[family]["stem"] == "imagenet":
            fields = _FAMILIES[family] | _one_of(IMAGENET, name, family, depth)
        case _:
            fields = _cifar(name, family, depth, bottleneck="bottleneck" in suffixes)
    seen: set[str] = set()
    for suffix in suffixes:
        [(key, value)] = SUFFIXES[suffix].items()
        if key in seen:
            raise BadInput(f"unknown network {name!r}: -{suffix} contradicts the suffix before it")
        seen.add(key)
        if not _may_change(fields, key):
            raise BadInput(f"unknown network {name!r}: -{suffix} has no effect on {family}-{depth}")
        fields[key] = value
    return {"name": name, **fields}


def resolve(entry: object) -> object:
    """One entry of an experiment's `networks`: a name, or a mapping whose `base` names what it starts from."""
    if isinstance(entry, str):
        return network_fields(entry)
    if isinstance(entry, Mapping) and "base" in entry:
        given = {key: value for key, value in entry.items() if key != "base"}
        return {**network_fields(str(entry["base"])), **given}
    return entry


def with_twins(networks: Iterable[object]) -> list[object]:
    """Each residual network, and beside it its plain twin, unless it is there: the same but for its shortcuts."""
    found = list(networks)
    whole: list[object] = []
    for fields in found:
        whole.append(fields)
        if isinstance(fields, Mapping) and fields.get("shortcut") in ("A", "B", "C"):
            twin = {key: value for key, value in fields.items() if key != "addition"} | {"shortcut": "none"}
            twin["name"] = f"{fields.get('name')}-plain"
            if not any(_same_but_for_name(twin, other) for other in (*found, *whole)):
                whole.append(twin)
    return whole


def _same_but_for_name(one: Mapping[str, Any], other: object) -> bool:
    return isinstance(other, Mapping) and {**one, "name": None} == {**other, "name": None}


def _cifar(name: str, family: str, depth: int, bottleneck: bool) -> dict[str, Any]:
    fields = _FAMILIES[family]
    if not bottleneck and depth not in (164, 1001):
        return fields | {"unit": "basic", "depths": (_units(name, family, depth, 6, 2),) * 3}
    # The authors' own 164 and 1001 (github.com/KaimingHe/resnet-1k-layers) project where the shape changes.
    shortcut = "none" if fields["shortcut"] == "none" else "B"
    units = _units(name, family, depth, 9, 2)
    return fields | {"unit": "bottleneck", "stride_on": "1x1", "depths": (units,) * 3, "shortcut": shortcut}


def _wide(name: str, depth: int, width: int) -> dict[str, Any]:
    if width < 1:
        raise BadInput(f"unknown network {name!r}: its width is a factor of at least 1")
    if depth in (50, 101):
        widths = tuple(width * w for w in _IMAGENET["widths"])
        fields = {**_IMAGENET, **IMAGENET[depth], "widths": widths, "stem_width": 64, "stride_on": "3x3"}
        if 4 % width:
            raise BadInput(f"unknown network {name!r}: its ends are 4 x 64 channels, so its width is 1, 2 or 4")
        return fields | {"shortcut": "B", "expansion": 4 // width}
    widths = tuple(width * w for w in _CIFAR["widths"])
    fields = {**_CIFAR, "unit": "basic", "depths": (_units(name, "wrn", depth, 6, 4),) * 3, "widths": widths}
    return fields | {"stem_width": 16, "shortcut": "B", "order": "pre-activation"}


def _vgg(name: str, depth: int) -> dict[str, Any]:
    return _one_of({d: {"unit": "vgg", "depth": d} for d in (16, 19)}, name, "vgg", depth)


def _units(name: str, family: str, depth: int, layers: int, rest: int) -> int:
    """n of a depth that is `layers` n + `rest`."""
    n, left = divmod(depth - rest, layers)
    if n < 1 or left:
        below = rest + layers * max(1, n)
        raise BadInput(
            f"unknown network {name!r}: depths are {layers}n+{rest}, the nearest {family}-{below} and "
            f"{family}-{below + layers}"
        )
    return n


def _one_of(known: dict[int, dict[str, Any]], name: str, family: str, depth: int) -> dict[str, Any]:
    if depth not in known:
        nearest = [d for d in sorted(known) if d < depth][-1:] + [d for d in sorted(known) if d > depth][:1]
        told = " and ".join(f"{family}-{d}" for d in nearest)
        raise BadInput(f"unknown network {name!r}: the nearest depth{'s are' * (len(nearest) > 1)} {told}")
    return known[depth]


def _may_change(fields: dict[str, Any], key: str) -> bool:
    unit: str = fields["unit"]
    if key == "shortcut" and fields.get("shortcut") == "none":
        return False
    may: dict[str, tuple[str, ...]] = {
        "batch_norm": ("vgg",),
        "stride_on": ("bottleneck",),
        "unit": ("bottleneck",) if fields.get("stem") == "cifar" else (),  # of ImageNet's, the depth decides
    }
    return unit in may.get(key, ("basic", "bottleneck"))


def _did_you_mean(name: str) -> str:
    known = [f"{family}-{d}" for family in ("resnet", "plain", "preact-resnet") for d in IMAGENET]
    known += [f"{family}-{d}" for family in ("cifar-resnet", "cifar-plain", "cifar-preact") for d in (20, 56, 110)]
    known += ["cifar-preact-164", "wrn-28-10", "wrn-50-2", "vgg-16", "vgg-19", "vgg-19-bn"]
    return f"did you mean {' or '.join(difflib.get_close_matches(name, known, n=2, cutoff=0.3) or known[:2])}?"
