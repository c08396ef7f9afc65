"""The zoo: from the name of a network to its configuration. A name is FAMILY-DEPTH and any suffixes.

| name | depth D | network |
| --- | --- | --- |
| `plain-D`, `resnet-D`, `preact-resnet-D` | 18, 34, 50, 101, 152, 200 | He et al. 2015, table 1, and He et al. \
2016. A bottleneck halves the image on its first 1x1 convolution, as in the paper |
| `cifar-plain-D`, `cifar-resnet-D`, `cifar-preact-D` | 6n+2, such as 20, 56, 110 | He et al. 2015, section 4.2. \
164 and 1001 are the bottlenecks of He et al. 2016 |
| `cifar-plain-D-bottleneck`, `cifar-resnet-D-bottleneck`, `cifar-preact-D-bottleneck` | 9n+2, such as 56, 110, 164 | \
the same with bottlenecks |
| `wrn-D-1`, `wrn-D-2`, `wrn-D-3` | 18, 34 | ImageNet networks of basic units that are 1, 2 or 3 times as wide \
(Zagoruyko and Komodakis 2016, table 7) |
| `wrn-D-1`, `wrn-D-2`, `wrn-D-4` | 50, 101 | ImageNet networks whose 3x3 convolutions are 1, 2 or 4 times as wide \
(Zagoruyko and Komodakis 2016) |
| `wrn-D-K`, such as `wrn-28-10` | 6n+4 but 34, such as 16, 28, 40 | CIFAR networks that are K times as wide \
(Zagoruyko and Komodakis 2016). The first shortcut reads the stem's output after batch norm and ReLU, as in He et al. \
2016; in the authors' code that of `wrn-D-1` reads it before them |
| `vgg-D` | 16, 19 | Simonyan and Zisserman 2014 |

| suffix | effect |
| --- | --- |
| `-A`, `-B`, `-C` | kind of shortcut where the shape changes |
| `-v1`, `-v1.5` | a bottleneck halves the image on its first 1x1 convolution, or on its 3x3 as torchvision does |
| `-bottleneck` | bottlenecks in place of basic units, for CIFAR |
| `-dropout` | dropout of 0.3 in each unit (Zagoruyko and Komodakis 2016) |
| `-nobn` | no batch norm: biases in its place |
| `-bn` | batch norm after each convolution, for VGG |
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from resnet_train.config.network import ANY_NET, KEYS_OF_ADDITION, NetConfig, VGGConfig
from resnet_train.errors import BadInput, shorten

IMAGENET: dict[int, dict[str, Any]] = {
    18: {"unit": "basic", "depths": (2, 2, 2, 2)},
    34: {"unit": "basic", "depths": (3, 4, 6, 3)},
    50: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 4, 6, 3)},
    101: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 4, 23, 3)},
    152: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 8, 36, 3)},
    200: {"unit": "bottleneck", "stride_on": "1x1", "depths": (3, 24, 36, 3)},
}
"""The ImageNet networks of He et al. 2015, table 1, and of He et al. 2016, by depth."""

_SUFFIXES: dict[str, dict[str, Any]] = {
    "A": {"shortcut": "A"},
    "B": {"shortcut": "B"},
    "C": {"shortcut": "C"},
    "v1": {"stride_on": "1x1"},
    "v1.5": {"stride_on": "3x3"},
    "bottleneck": {"unit": "bottleneck"},
    "dropout": {"dropout": 0.3},
    "nobn": {"norm": "none"},
    "bn": {"batch_norm": True},
}
"""The field that each suffix sets."""

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
    rf"(?P<family>{'|'.join(_FAMILIES)}|wrn|vgg)-(?P<depth>\d{{1,4}})(?:-(?P<width>\d{{1,3}}))?"
    rf"(?P<suffixes>(?:-(?:{'|'.join(map(re.escape, _SUFFIXES))})){{0,{len(_SUFFIXES)}}})"
)


def network_config(name: str, /, **changes: Any) -> NetConfig | VGGConfig:
    """The network of this name, with changes to its fields. Raises `BadInput` with the nearest valid names."""
    try:
        return ANY_NET.validate_python({**network_fields(name), **changes})
    except ValidationError as error:  # a name with too large a number
        details = error.errors()[0]
        raise BadInput(f"network {name}: {details['loc'][1]}: {details['msg'].lower()}") from None


def network_fields(name: str) -> dict[str, Any]:
    """The fields of the network of this name. Raises `BadInput` with the nearest valid names."""
    match = _NAME.fullmatch(name)
    if not match or (match["width"] is not None) != (match["family"] == "wrn"):
        raise BadInput(f"unknown network {shorten(name)!r}: {_did_you_mean(name)}")
    family, depth = match["family"], int(match["depth"])
    suffixes = [suffix for suffix in match["suffixes"].split("-") if suffix]
    match family:
        case "vgg":
            fields = _vgg(name, depth)
        case "wrn":
            fields = _wide_resnet(name, depth, int(match["width"]))
        case _ if _FAMILIES[family]["stem"] == "imagenet":
            fields = _FAMILIES[family] | _fields_of_depth(IMAGENET, name, family, depth)
        case _:
            fields = _cifar(name, family, depth, bottleneck="bottleneck" in suffixes)
    changed: set[str] = set()
    for suffix in suffixes:
        [(key, value)] = _SUFFIXES[suffix].items()
        if key in changed:
            raise BadInput(f"unknown network {name!r}: -{suffix} contradicts the suffix before it")
        if not _has_effect(fields, key):
            raise BadInput(f"unknown network {name!r}: -{suffix} has no effect on {family}-{depth}")
        changed.add(key)
        fields = fields | {key: value}
    return {"name": name, **fields}


def resolve(entry: object) -> object:
    """The fields for an entry of `networks`: a name, or a mapping whose `base` names the network that it changes."""
    if isinstance(entry, str):
        return network_fields(entry)
    if isinstance(entry, Mapping) and "base" in entry:
        changes = {key: value for key, value in entry.items() if key != "base"}
        return {**network_fields(str(entry["base"])), **changes}
    return entry


def with_twins(networks: Iterable[object]) -> tuple[list[object], dict[str, str]]:
    """The networks, each residual one followed by its plain twin: the same network without shortcuts.

    A twin is left out if the same network is there under any name. Also returns the name of each twin's partner, by the
    name of the twin.
    """
    listed = list(networks)
    result: list[object] = []
    partners: dict[str, str] = {}
    for fields in listed:
        result.append(fields)
        if isinstance(fields, Mapping) and fields.get("shortcut") in ("A", "B", "C"):
            twin = _without_addition(fields) | {"shortcut": "none"}
            twin["name"] = f"{fields.get('name')}-plain"
            same = next((other for other in (*listed, *result) if _is_plain_twin(twin, other)), None)
            if same is None:
                result.append(twin)
            name = same.get("name") if isinstance(same, Mapping) else twin["name"]
            partners.setdefault(str(name), str(fields.get("name")))
    return result, partners


def _is_plain_twin(fields: Mapping[str, Any], other: object) -> bool:
    return isinstance(other, Mapping) and {**fields, "name": None} == {**_without_addition(other), "name": None}


def _without_addition(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key not in KEYS_OF_ADDITION}


def _cifar(name: str, family: str, depth: int, bottleneck: bool) -> dict[str, Any]:
    fields = _FAMILIES[family]
    if not bottleneck and depth not in (164, 1001):
        units = _units_in_stage(name, family, depth, layers_in_unit=6, other_layers=2)
        return fields | {"unit": "basic", "depths": (units,) * 3}
    # The authors' own 164 and 1001 (github.com/KaimingHe/resnet-1k-layers) project where the shape changes.
    shortcut = "none" if fields["shortcut"] == "none" else "B"
    units = _units_in_stage(name, family, depth, layers_in_unit=9, other_layers=2)
    return fields | {"unit": "bottleneck", "stride_on": "1x1", "depths": (units,) * 3, "shortcut": shortcut}


def _wide_resnet(name: str, depth: int, width: int) -> dict[str, Any]:
    if width < 1:
        raise BadInput(f"unknown network {name!r}: its width is a factor of at least 1")
    if depth in (18, 34, 50, 101):
        widths = tuple(width * channels for channels in _IMAGENET["widths"])
        fields = {**_IMAGENET, **IMAGENET[depth], "widths": widths, "stem_width": 64, "shortcut": "B"}
        if depth in (50, 101):
            if 4 % width:
                raise BadInput(f"unknown network {name!r}: its units end in 4 x 64 channels, so its width is 1, 2 or 4")
            return fields | {"stride_on": "3x3", "expansion": 4 // width}
        if width > 3:  # wrn-34-10 of other papers is a CIFAR network
            hint = "" if depth == 18 else f"; for CIFAR: {{base: wrn-28-{width}, name: {name}, depths: [5, 5, 5]}}"
            raise BadInput(f"unknown network {name!r}: wrn-{depth} is ImageNet's, with a width of 1, 2 or 3{hint}")
        return fields
    units = _units_in_stage(name, "wrn", depth, layers_in_unit=6, other_layers=4)
    widths = tuple(width * channels for channels in _CIFAR["widths"])
    fields = {**_CIFAR, "unit": "basic", "depths": (units,) * 3, "widths": widths}
    return fields | {"stem_width": 16, "shortcut": "B", "order": "pre-activation"}


def _vgg(name: str, depth: int) -> dict[str, Any]:
    return _fields_of_depth({d: {"unit": "vgg", "depth": d} for d in (16, 19)}, name, "vgg", depth)


def _units_in_stage(name: str, family: str, depth: int, layers_in_unit: int, other_layers: int) -> int:
    """n for a depth of `layers_in_unit` * n + `other_layers`. Raises `BadInput`."""
    n, remainder = divmod(depth - other_layers, layers_in_unit)
    if n < 1 or remainder:
        below = other_layers + layers_in_unit * max(1, n)
        above = below + layers_in_unit
        if family == "wrn" and 34 in (below, above):  # wrn-34 is ImageNet's
            below, above = 28, 40
        raise BadInput(
            f"unknown network {name!r}: depths are {layers_in_unit}n+{other_layers}, the nearest {family}-{below} and "
            f"{family}-{above}"
        )
    return n


def _fields_of_depth(table: dict[int, dict[str, Any]], name: str, family: str, depth: int) -> dict[str, Any]:
    if depth not in table:
        below = [f"{family}-{d}" for d in sorted(table) if d < depth][-1:]
        above = [f"{family}-{d}" for d in sorted(table) if d > depth][:1]
        nearest = " and ".join(below + above)
        raise BadInput(
            f"unknown network {name!r}: the nearest {'depths are' if below and above else 'depth is'} {nearest}"
        )
    return table[depth]


def _has_effect(fields: dict[str, Any], key: str) -> bool:
    """Whether setting this field by a suffix changes the network."""
    unit: str = fields["unit"]
    match key:
        case "batch_norm":
            return unit == "vgg"
        case "stride_on":
            return unit == "bottleneck"
        case "unit":  # the depth of an ImageNet network decides its unit
            return unit == "bottleneck" and fields["stem"] == "cifar"
        case "shortcut":
            return unit != "vgg" and fields["shortcut"] != "none"
        case _:
            return unit != "vgg"


def _did_you_mean(name: str) -> str:
    names = [f"{family}-{depth}" for family in ("resnet", "plain", "preact-resnet") for depth in IMAGENET]
    for family in ("cifar-resnet", "cifar-plain", "cifar-preact"):
        names += [f"{family}-{depth}" for depth in (20, 56, 110)]
    names += ["cifar-preact-164", "wrn-28-10", "wrn-50-2", "vgg-16", "vgg-19", "vgg-19-bn"]
    nearest = difflib.get_close_matches(name, names, n=2, cutoff=0.3) or names[:2]
    return f"did you mean {' or '.join(nearest)}?"
