"""A new data set is one class."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import CPU, copied_batches, training_data
from PIL import Image

from resnet_train.config.schema import Run
from resnet_train.data import decoding, normalize
from resnet_train.data.dataset import Dataset
from resnet_train.data.decoding import EncodedImage
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.fixed_size import FixedSizeDataset
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.rng import Ints
from resnet_train.data.views import View


class GreyLevels(FixedSizeDataset):
    """Images of one size: every pixel of image i is i."""

    channels, size, classes = 1, 8, ("even", "odd")

    def __init__(self, numbers: Ints) -> None:
        self.numbers, self.labels = numbers, numbers % 2

    def batch(self, indices: Ints, device: torch.device) -> tuple[torch.Tensor, Ints]:
        pixels = np.repeat(self.numbers[indices].astype(np.uint8), 64).reshape(-1, 8, 8, 1)
        return torch.from_numpy(pixels).to(device), np.arange(len(indices))

    def subset(self, indices: Ints) -> "GreyLevels":
        return GreyLevels(self.numbers[indices])


class GreyFiles(ImageFileDataset):
    """Image files: every pixel of image i is i."""

    classes = ("even", "odd")

    def __init__(self, folder: Path, numbers: Ints) -> None:
        self.folder, self.numbers, self.labels = folder, numbers, numbers % 2

    def name(self, index: int) -> str:
        return str(self.folder / f"{self.numbers[index]}.png")

    def encoded(self, index: int) -> EncodedImage:
        return decoding.open_file(Path(self.name(index)))

    def subset(self, indices: Ints) -> "GreyFiles":
        return GreyFiles(self.folder, self.numbers[indices])


@pytest.fixture(params=["fixed size", "files"])
def dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    if request.param == "fixed size":
        return GreyLevels(np.arange(40))
    for i in range(40):
        Image.new("RGB", (20 + i % 3, 24), (i, i, i)).save(tmp_path / f"{i}.png")
    return GreyFiles(tmp_path, np.arange(40))


def test_it_is_trained_on_evaluated_and_normalised(dataset: Dataset, tiny_run: Callable[..., Run]) -> None:
    run = tiny_run()
    if dataset.size is None:
        crop = {"kind": "random-resized", "size": 8}
        data = {"kind": "imagefolder", "path": "nowhere", "workers": 1}
        run = tiny_run(data=data, augment={"crop": crop}, eval={"view": {"resize": 10, "crop": 8}})
    data = training_data(run, dataset)
    assert data.image_size == 8
    batches = copied_batches(data, 0, 5)  # two epochs
    levels = torch.cat([batch.images.amax((1, 2, 3)) for batch in batches])
    assert levels.sort().values.tolist() == [i for i in range(40) for _ in range(2)]
    assert all(torch.equal(batch.labels, batch.images.amax((1, 2, 3)) % 2) for batch in batches)
    assert data.sample_names(0) == [dataset.name(i) for i in data.sampler.batch(0).indices.tolist()]

    view = View() if dataset.size else View(10, 8)
    [first, second] = EvaluationData(dataset.subset(np.arange(5, 12)), (view,), 4, CPU).batches()
    assert torch.cat([first.images, second.images])[:, 3, 3, 0].tolist() == list(range(5, 12))

    statistics = normalize.statistics(run, dataset)
    assert statistics.mean.mean().item() == pytest.approx(19.5)
    assert statistics.std[0].item() == pytest.approx(np.arange(40).std())


def test_a_file_that_cannot_be_opened_for_want_of_memory_or_file_numbers_is_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next image would take its place, though the file is good."""

    def fail(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    Image.new("RGB", (20, 24)).save(tmp_path / "0.png")
    data = EvaluationData(GreyFiles(tmp_path, np.arange(1)), (View(10, 8),), 4, CPU, skip_bad=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(OSError, match="Too many open files"):
            list(data.batches())
