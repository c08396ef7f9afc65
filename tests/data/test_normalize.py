"""Statistics of the training images, and the normalisation by them."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import folder_run
from torchvision.transforms import v2

from resnet_train.config.schema import Run
from resnet_train.data import datasets, normalize
from resnet_train.data.batch import Batch
from resnet_train.data.image_files import ImageFileDataset
from resnet_train.data.normalize import Normalization, check_normalization
from resnet_train.errors import BadInput


@pytest.mark.parametrize("kind", ["pixel-mean", "channel-mean", "channel-mean-std"])
def test_statistics_equal_those_in_float64(kind: str, tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(data={"normalize": kind})
    train, _ = datasets.open_data(run.data)
    assert isinstance(train, datasets.SyntheticDataset)
    pixels = train.generate(np.arange(40)).astype(np.float64)
    normalization = normalize.statistics(run, train)
    mean = pixels.mean(0) if kind == "pixel-mean" else pixels.mean((0, 1, 2))
    std = pixels.std((0, 1, 2)) if kind == "channel-mean-std" else 255.0
    batch = Batch(torch.from_numpy(train.generate(np.arange(3))), torch.zeros(3), torch.full((3, 3), 0.1))
    images = normalization(batch)
    assert np.allclose(images.permute(0, 2, 3, 1).double().numpy(), (pixels[:3] + 25.5 - mean) / std, atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_images_of_another_size_are_normalised_by_the_mean_of_the_mean_image(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(data={"normalize": "pixel-mean"})
    train, _ = datasets.open_data(run.data)
    normalization = normalize.statistics(run, train)
    batch = Batch(torch.zeros(1, 5, 5, 3, dtype=torch.uint8), torch.zeros(1), torch.zeros(1, 3))
    assert torch.allclose(normalization(batch)[0, :, 0, 0], -normalization.mean.mean((0, 1)) / 255)


@pytest.mark.parametrize("kind", ["pixel-mean", "channel-mean-std"])
def test_statistics_of_image_files_equal_those_of_torchvisions_view(
    kind: str, tiny_run: Callable[..., Run], whole_photos: Path
) -> None:
    run = folder_run(tiny_run, whole_photos, normalize=kind)
    train, _ = datasets.open_data(run.data)
    assert isinstance(train, ImageFileDataset)
    view = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])  # 18 is to 16 as 256 is to 224
    pixels = np.stack([view(train.decoded(i)) for i in range(len(train))]).astype(np.float64)
    normalization = normalize.statistics(run, train)
    assert np.allclose(
        normalization.mean, pixels.mean(0) if kind == "pixel-mean" else pixels.mean((0, 1, 2)), atol=1e-4
    )
    std = pixels.std((0, 1, 2)) if kind == "channel-mean-std" else 255.0
    assert np.allclose(normalization.std, std, atol=1e-4)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_statistics_that_divide_by_nothing_are_refused(std: float) -> None:
    mean = torch.zeros(1, 1, 3)
    check_normalization(Normalization(mean, torch.tensor([1.0, 255.0, 0.1])), "a.pt")
    with pytest.raises(BadInput, match=r"^a.pt is damaged: its mean and standard deviation are not those of images"):
        check_normalization(Normalization(mean, torch.tensor([1.0, std, 1.0])), "a.pt")
