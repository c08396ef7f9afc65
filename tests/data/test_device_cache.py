"""Image files of one size that stay on the device."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import CPU, equal, run_batches, training_data
from PIL import Image

from resnet_train.config.schema import Run
from resnet_train.data import datasets, normalize, workers
from resnet_train.data.decoding import EncodedImage
from resnet_train.data.device_cache import DeviceCachedDataset
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.views import View
from resnet_train.errors import BadInput


def test_cached_files_give_the_batches_of_images_in_memory(tiny_run: Callable[..., Run], squares: Path) -> None:
    run = tiny_run(data={"kind": "imagefolder", "path": str(squares), "device_cache_gb": 1, "workers": 2, "holdout": 4})
    train, val = datasets.open_data(run.data)
    assert isinstance(train, DeviceCachedDataset)
    pixels = np.stack([np.asarray(Image.open(train.name(i))) for i in range(len(train))])
    in_memory = datasets.InMemoryDataset(pixels, train.labels, train.classes)
    cached_steps, steps = (training_data(run, dataset).from_step(0, 5) for dataset in (train, in_memory))
    for cached, step in zip(cached_steps, steps, strict=True):
        assert equal(cached.micro_batches, step.micro_batches)
    assert torch.equal(normalize.statistics(run, train).mean, normalize.statistics(run, in_memory).mean)
    assert len(val) == 4
    assert train.subset(np.arange(9)) is train.subset(np.arange(9))  # read once
    [batch] = EvaluationData(val, (View(),), 9, CPU).batches()
    assert np.array_equal(batch.images[3].numpy(), np.asarray(Image.open(squares / "train/class-3/27.png")))


def test_files_that_are_read_for_long_are_named(
    tiny_run: Callable[..., Run], squares: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(data={"kind": "imagefolder", "path": str(squares), "device_cache_gb": 1, "workers": 2})
    train, _ = datasets.open_data(run.data)
    assert isinstance(train, DeviceCachedDataset)
    encoded, answers, messages = train.files.encoded, threading.Event(), list[str]()

    def wait_for_disk(index: int) -> EncodedImage:
        assert index != 3 or answers.wait(300)
        return encoded(index)

    def go_on(_: str, *values: object) -> None:
        messages.append(str(values[1]))
        answers.set()

    monkeypatch.setattr(workers, "_SECONDS_TO_WARNING", 0.05)
    monkeypatch.setattr(workers, "_SECONDS_TO_LOOK", 0.01)
    monkeypatch.setattr(workers.logger, "warning", go_on)
    monkeypatch.setattr(train.files, "encoded", wait_for_disk)
    assert len(train.batch(np.arange(4), CPU)[0]) == len(train)
    assert train.name(3) in messages[0]


def test_images_that_cannot_be_cached_are_refused(tiny_run: Callable[..., Run], squares: Path) -> None:
    section = {"kind": "imagefolder", "path": str(squares), "workers": 1}
    too_small = tiny_run(data={**section, "device_cache_gb": 3e-6})  # for 37 x 192 bytes
    train, _ = datasets.open_data(too_small.data)
    assert isinstance(train, DeviceCachedDataset)
    assert train.is_split
    train.check_device_memory(3)
    with pytest.raises(BadInput, match=r"device_cache_gb = 3e-06: the 37 training images take .* use more ranks"):
        train.check_device_memory(2)
    with pytest.raises(BadInput, match="use more ranks"):
        run_batches(too_small, 0, 1)
    Image.new("RGB", (8, 9)).save(squares / "train/class-2/20.png")
    with pytest.raises(BadInput, match=r"8 x 8 pixels like the first, and .*20.png is 8 x 9: .* prepare --square"):
        run_batches(tiny_run(data={**section, "device_cache_gb": 1}), 0, 1)
    with pytest.raises(BadInput, match="on_bad_image skip has no effect with device_cache_gb"):
        tiny_run(data={**section, "device_cache_gb": 1, "on_bad_image": "skip"})
