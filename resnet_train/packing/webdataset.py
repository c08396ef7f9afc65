"""WebDataset shards as sources: which members of a tar file are an image and its label."""

import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from resnet_train.errors import BadInput
from resnet_train.packing.class_names import Label
from resnet_train.packing.tars import TarMember, open_tar, regular_files

_NAME = re.compile(r"(?P<stem>(?P<key>(?:.*/)?[^./]+)(?:[^/]*?))\.(?P<suffix>[^./]*)", re.S)
"""WebDataset's key ends at the first dot of the file name. The stem ends at the last one: keys may hold dots."""
_IMAGE_SUFFIXES = frozenset(
    ("jpg", "jpeg", "jpe", "jfif", "png", "ppm", "pgm", "pbm", "pnm", "bmp", "tif", "tiff", "webp", "gif", "avif")
) | {"heic", "heif", "jp2", "j2k", "jpx", "jxl", "tga", "ico", "svg"}
"""What is taken for an image. If it cannot be decoded it is left out in the open, as any other bad image."""
_LABEL_KEYS = ("label", "cls", "class")
"""Of a JSON object: the first that it has is the label."""
_MAX_LABEL_BYTES = 1 << 20
_MAX_DIGITS = 18


class WebDatasetSample(NamedTuple):
    """An image in a WebDataset shard, and its label."""

    key: str
    suffix: str
    image: TarMember
    label: Label


@dataclass
class _Group:
    """Consecutive members of one key. More than one sample if keys hold dots."""

    key: str | None = None
    images: list[tuple[str, str, TarMember]] = field(default_factory=list)
    """Stem, suffix, file."""
    labels: dict[str, Label] = field(default_factory=dict)
    """By stem."""


def read_webdataset(path: Path, left_out: Counter[str]) -> Iterator[WebDatasetSample]:
    """The samples of a WebDataset shard: KEY.jpg (or another image) beside KEY.cls, or KEY.json with a label.

    left_out: counts what is left out, in words. Raises BadInput where an image has no label, or a sample two images.
    """
    group = _Group()
    with open_tar(path) as tar:
        for member in regular_files(tar, path):
            match = _NAME.fullmatch(member.name.removeprefix("./"))
            if match is None or Path(member.name).name.startswith("."):
                continue
            if match["key"] != group.key:
                yield from _samples(path, group, left_out)
                group = _Group(match["key"])
            stem, suffix = match["stem"], match["suffix"].lower()
            if suffix in _IMAGE_SUFFIXES:
                group.images.append((stem, suffix, TarMember(member.name, member.offset_data, member.size)))
            elif suffix == "cls":
                group.labels[stem] = _read_number(path, tar, member)
            elif suffix == "json" and (label := _read_json(tar, member)) is not None:
                group.labels.setdefault(stem, label)
        yield from _samples(path, group, left_out)


def _samples(path: Path, group: _Group, left_out: Counter[str]) -> Iterator[WebDatasetSample]:
    """An image belongs to the label of its own stem, otherwise to that of the longest beginning of it, up to a dot."""
    images_of: dict[str, list[tuple[str, str, TarMember]]] = {stem: [] for stem in group.labels}
    for image in group.images:
        stems = [stem for stem in group.labels if f"{image[0]}.".startswith(f"{stem}.")]
        if not stems:
            stem = image[0]
            raise BadInput(
                f"{path}: {image[2].name} has no label: expected {stem}.cls, or a label in {stem}.json, beside it"
            )
        images_of[max(stems, key=len)].append(image)
    for stem, images in images_of.items():
        main = images if len(images) == 1 else [image for image in images if image[0] == stem]
        if len(main) > 1 or (images and not main):
            names = " and ".join(image[2].name for image in images[:2])
            raise BadInput(
                f"{path}: {names} are images of one sample, and which is meant is not clear: leave one of them"
            )
        left_out["further image of a sample"] += len(images) - len(main)
        left_out["label without an image"] += not images
        for _, suffix, file in main:
            yield WebDatasetSample(stem, suffix, file, group.labels[stem])


def _read_number(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    text = _read(tar, member).strip()
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        raise BadInput(f"{path}: {member.name} is no label: expected a number, found {text[:20]!r}")
    return int(text)


def _read_json(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Label | None:
    """The label in a JSON file; None if there is none, as in one that only describes an image."""
    try:
        value = json.loads(_read(tar, member))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        value = next((value[key] for key in _LABEL_KEYS if key in value), None)
    if isinstance(value, int) and not isinstance(value, bool):
        return value if 0 <= value < 10**_MAX_DIGITS else None
    return value if isinstance(value, str) and value else None


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    return file.read(_MAX_LABEL_BYTES)
