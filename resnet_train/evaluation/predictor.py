"""Predictions for image files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from resnet_train.data import decoding
from resnet_train.data.image_paths import IMAGE_SUFFIXES, ImageTree
from resnet_train.errors import BadInput
from resnet_train.evaluation.pretrained import PretrainedModel

_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image file, or the reason why there are none."""

    path: Path
    classes: list[tuple[str, float]]
    """With their probabilities, the most probable first."""
    error: BadInput | None = None


def predict_files(model: PretrainedModel, paths: Sequence[Path], k: int) -> Iterator[Prediction]:
    """The `k` most probable classes of each image file, in order. A file that cannot be decoded has an `error`."""
    for start in range(0, len(paths), _IMAGES_AT_ONCE):
        chunk = paths[start : start + _IMAGES_AT_ONCE]
        decoded = {path: _decode(path, model.mode) for path in chunk}
        images = {path: image for path, image in decoded.items() if isinstance(image, Image.Image)}
        classes = dict(zip(images, model.predict(list(images.values()), k), strict=True)) if images else {}
        for path in chunk:
            image = decoded[path]
            if isinstance(image, BadInput):
                yield Prediction(path, [], image)
            else:
                yield Prediction(path, classes[path])


def find_images(paths: Sequence[Path]) -> list[Path]:
    """The given files, and in place of each folder the images in and under it, by name. Raises `BadInput`."""
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        tree = ImageTree(path)
        images = [path / image for image in tree.images(["."])[0]]
        tree.warn()
        if not images:
            raise BadInput(f"{path}: no image in or under it, no name that ends in {', '.join(sorted(IMAGE_SUFFIXES))}")
        files += images
    return files


def _decode(path: Path, mode: str) -> Image.Image | BadInput:
    try:
        file = decoding.open_file(path)
        return decoding.decode_with_pillow(file.data, file.name, mode)
    except BadInput as error:
        return error
