"""The order of samples, batches, and what normalises them."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from resnet_train.config.data import AugmentConfig, ImageFolderConfig
from resnet_train.config.schema import Run
from resnet_train.data import augment, datasets, loader, mixup, normalize, rng
from resnet_train.data.batch import Batch
from resnet_train.data.device_cache import DeviceCachedDataset
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.sampler import Sampler
from resnet_train.data.views import View
from resnet_train.errors import BadInput

CPU = torch.device("cpu")
Folders = Callable[..., Path]


def folder_run(tiny_run: Callable[..., Run], path: Path, **data: Any) -> Run:
    crop = {"kind": "random-resized", "size": 16}
    section = {"kind": "imagefolder", "path": str(path), "workers": 0, **data}
    return tiny_run(
        data=section, augment={"crop": crop, "pca_lighting": True}, eval={"view": {"resize": 20, "crop": 16}}
    )


# --- order ------------------------------------------------------------------------------------------------------------


def test_every_sample_is_seen_once_an_epoch() -> None:
    stream = Sampler(seed=1, n=40, batch_size=16)
    seen = [stream.batch(step) for step in range(5)]  # 80 samples: two epochs, the first ending within a batch
    pairs = Counter((e, i) for batch in seen for e, i in zip(*batch, strict=True))
    assert pairs == Counter((e, i) for e in (0, 1) for i in range(40))
    small = Sampler(seed=1, n=3, batch_size=8).batch(0)  # a set smaller than a batch
    assert Counter(small.indices.tolist()) == {int(i): 3 if i in small.indices[6:] else 2 for i in range(3)}


@pytest.mark.parametrize(("ranks", "grad_accum_steps"), [(1, 4), (2, 2), (4, 1), (2, 4)])
def test_the_global_batch_does_not_depend_on_ranks_and_accumulation(ranks: int, grad_accum_steps: int) -> None:
    whole = Sampler(seed=2, n=50, batch_size=16).batch(7)
    own = [Sampler(2, 50, 16, grad_accum_steps, rank, ranks).rank_samples(7).indices for rank in range(ranks)]
    by_pass = np.stack(own).reshape(ranks, grad_accum_steps, -1).swapaxes(0, 1)
    assert np.array_equal(by_pass.ravel(), whole.indices)
    assert np.array_equal(Sampler(2, 50, 16, grad_accum_steps, 0, ranks).all_rank_indices(7), own)


def test_ranks_that_do_not_divide_the_batch_are_refused(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run()
    source, _ = datasets.open_data(run.data)
    with pytest.raises(BadInput, match=r"train.batch_size = 16 .* not divisible by 3 ranks .* use 15"):
        loader.training_data(run, source, 0, 0, 3, CPU)


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(run: Run, start: int, until: int, **more: Any) -> list[Batch]:
    source, _ = datasets.open_data(run.data)
    data = loader.training_data(run, source, run.seed, 0, 1, CPU)
    return [copied(batch) for share in data.from_step(start, until, **more) for batch in share.micro_batches]


def copied(batch: Batch) -> Batch:
    """A batch is good until the next is asked for."""
    return Batch(batch.images.clone(), batch.labels.clone(), batch.shift.clone(), batch.skipped)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(x, y) for a, b in zip(one, other, strict=True) for x, y in zip(a[:3], b[:3], strict=True)
    )


def test_any_step_can_be_the_first(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run()
    assert same(batches(run, 0, 6)[4:], batches(run, 4, 6))
    assert not same(batches(run, 0, 1), batches(tiny_run(seeds=[1]), 0, 1))


def test_augmentation_of_a_sample_differs_from_epoch_to_epoch(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(augment={"crop": {"kind": "pad", "padding": 4}})
    source, _ = datasets.open_data(run.data)
    data = loader.training_data(run, source, 0, 0, 1, CPU)
    # 40 samples, 16 a step: the same sample in two epochs, cut by the draws of each.
    seen = {
        (epoch, index): image
        for step, batch in enumerate(batches(run, 0, 5))
        for epoch, index, image in zip(*data.sampler.batch(step), batch.images, strict=True)
    }
    assert not torch.equal(torch.stack([seen[0, i] for i in range(40)]), torch.stack([seen[1, i] for i in range(40)]))


def test_augmentation_of_a_sample_ignores_its_neighbours(tiny_run: Callable[..., Run]) -> None:
    one, other = batches(tiny_run(), 0, 2), batches(tiny_run(train={"batch_size": 32, "steps": 1}), 0, 1)
    assert torch.equal(torch.cat([b.images for b in one]), other[0].images)


def test_workers_change_nothing(tiny_run: Callable[..., Run], folders: Folders) -> None:
    path = folders()
    alone, helped = (folder_run(tiny_run, path, workers=workers) for workers in (0, 2))
    first = batches(alone, 0, 3)
    assert same(first, batches(helped, 0, 3))
    assert first[0].images.shape == (16, 16, 16, 3)
    assert first[0].images.dtype == torch.uint8
    assert first[0].shift.any()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_grow_at_their_step(tiny_run: Callable[..., Run], folders: Folders, workers: int) -> None:
    """What is cut stays the same, any step can be the first, and the small images are those of a small crop."""
    path = folders()
    run = folder_run(tiny_run, path, workers=workers)
    sizes = [8, 8, 8, 12, 12, 12, 16, 16]
    found = batches(run, 0, 8, size_at=sizes.__getitem__)
    assert [batch.images.shape[1] for batch in found] == sizes
    assert same(batches(run, 2, 8, size_at=sizes.__getitem__), found[2:])
    assert same(batches(run, 6, 8), found[6:])
    assert run.augment.crop is not None
    small = run.augment.crop.model_copy(update={"size": 8})
    small_run = run.model_copy(update={"augment": run.augment.model_copy(update={"crop": small})})
    assert same(batches(small_run, 0, 3), found[:3])


def test_resident_files_are_trained_on_as_stored_images_are(tiny_run: Callable[..., Run], squares: Path) -> None:
    run = tiny_run(data={"kind": "imagefolder", "path": str(squares), "device_cache_gb": 1, "workers": 2, "holdout": 4})
    train, val = datasets.open_data(run.data)
    assert isinstance(train, DeviceCachedDataset)
    paths = [Path(train.name(i)) for i in range(len(train))]
    stored = datasets.InMemoryDataset(
        np.stack([np.asarray(Image.open(path)) for path in paths]), train.labels, train.classes
    )
    for one, other in zip(
        *(loader.training_data(run, source, 0, 0, 1, CPU).from_step(0, 5) for source in (train, stored)), strict=True
    ):
        assert same(one.micro_batches, other.micro_batches)
    assert torch.equal(*(normalize.statistics(run, source).mean for source in (train, stored)))
    assert len(val) == 4
    assert train.subset(np.arange(9)) is train.subset(np.arange(9))  # which is read once
    [seen] = EvaluationData(val, (View(),), 9, CPU).batches()
    assert np.array_equal(seen.images[3].numpy(), np.asarray(Image.open(squares / "train/class-3/27.png")))


def test_images_that_cannot_be_held_are_told(tiny_run: Callable[..., Run], squares: Path) -> None:
    section = {"kind": "imagefolder", "path": str(squares), "workers": 1}
    little = tiny_run(data={**section, "device_cache_gb": 3e-6})  # of 37 x 192 bytes
    train, _ = datasets.open_data(little.data)
    assert isinstance(train, DeviceCachedDataset)
    assert train.is_split
    train.check_device_memory(3)
    with pytest.raises(BadInput, match=r"device_cache_gb = 3e-06: the 37 training images take .* use more ranks"):
        train.check_device_memory(2)
    Image.new("RGB", (8, 9)).save(squares / "train/class-2/20.png")
    with pytest.raises(BadInput, match=r"8 x 8 pixels like the first, and .*20.png is 8 x 9: .* prepare --square"):
        batches(tiny_run(data={**section, "device_cache_gb": 1}), 0, 1)
    with pytest.raises(BadInput, match="on_bad_image skip is for images that are read when they are due"):
        tiny_run(data={**section, "device_cache_gb": 1, "on_bad_image": "skip"})


NEWER = {
    "auto_augment": {"kind": "rand-augment"},
    "random_erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "repeated_augmentation": 2,
}


def test_what_is_done_to_a_share_does_not_depend_on_its_rank(tiny_run: Callable[..., Run], folders: Folders) -> None:
    """Policies, boxes and mixtures: of two passes on one rank those of two ranks; of files and of held images."""
    for run in (tiny_run(), folder_run(tiny_run, folders())):
        run = run.model_copy(update={"augment": AugmentConfig.model_validate(run.augment.model_dump() | NEWER)})
        source, _ = datasets.open_data(run.data)
        two = run.model_copy(update={"train": run.train.model_copy(update={"grad_accum_steps": 2})})
        passes = next(loader.training_data(two, source, 0, 0, 1, CPU).from_step(3, 4)).micro_batches
        shares = [
            next(loader.training_data(run, source, 0, r, 2, CPU).from_step(3, 4)).micro_batches[0] for r in (0, 1)
        ]
        for one, other in zip(passes, shares, strict=True):
            for name in ("images", "labels", "shift", "erase_boxes", "mix_params"):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
            assert one.erase_boxes is not None
            assert 0 < (one.erase_boxes[:, 2] > 0).sum() < 8
        samples = Sampler(0, len(source), 16, repeat=2).batch(3)
        random = rng.uniform(0, samples.epochs, samples.indices, augment.columns(run.augment))[:, augment.ERASE_COLUMNS]
        boxes = mixup.erase_boxes(0.5, random, *passes[0].images.shape[1:3])
        assert np.array_equal(np.concatenate([np.asarray(share.erase_boxes) for share in shares]), boxes)
        assert passes[0].mix_params is not None
        assert not torch.equal(passes[0].mix_params, passes[1].mix_params)
        assert torch.equal(passes[0].labels, passes[1].labels)  # copies of the same samples
        assert not torch.equal(passes[0].images, passes[1].images)


def test_one_image_has_nothing_to_mix_with(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(augment={"mixup": 0.2})
    source, _ = datasets.open_data(run.data)
    with pytest.raises(BadInput, match="more than one image at a time"):
        loader.training_data(run, source, 0, 0, 16, CPU)


def test_a_bad_image_stops_or_is_skipped(tiny_run: Callable[..., Run], folders: Folders) -> None:
    path = folders()
    bad = path / "train" / "apple" / "2.jpg"
    bad.write_bytes(b"broken")
    for workers in (0, 1):
        with pytest.raises(BadInput, match=f"cannot decode {bad}"):
            batches(folder_run(tiny_run, path, workers=workers), 0, 1)
    skipping = batches(folder_run(tiny_run, path, workers=1, on_bad_image="skip"), 0, 1)
    assert set(skipping[0].skipped) == {str(bad)}
    assert len(skipping[0].labels) == 16


def test_a_run_goes_on_without_a_bad_training_image(
    tiny_run: Callable[..., Run], folders: Folders, config: Callable[..., Path], program: Any
) -> None:
    """Statistics and the clean training error do without it, too; a validation image always counts."""
    path = folders()
    bad = path / "train" / "pear" / "0.jpg"
    bad.write_bytes(b"broken")
    data = {"kind": "imagefolder", "path": str(path), "workers": 1}
    sizes = {"augment": {"crop": {"kind": "random-resized", "size": 8}}, "eval": {"view": {"resize": 8, "crop": 8}}}
    code, _, err = program("run", config(data=data, **sizes), "train.steps=2")
    assert (code, f"cannot decode {bad}" in err, "on_bad_image=skip" in err) == (2, True, True)
    assert not Path("runs").exists()
    code, _, err = program("run", config(data=data, **sizes), "train.steps=2", "data.on_bad_image=skip")
    assert code == 0, err
    assert next(Path("runs").rglob("skipped-images.txt")).read_text() == f"{bad}\n"
    shutil.move(path / "train", path / "elsewhere")  # to evaluate, the validation part is enough
    assert program("eval", next(Path("runs").rglob("last.pt")))[0] == 0
    shutil.move(path / "elsewhere", path / "train")
    (path / "val" / "pear" / "0.jpg").write_bytes(b"broken")
    code, _, err = program("run", config(data=data, **sizes), "train.steps=3", "data.on_bad_image=skip", "name=other")
    assert (code, "val/pear/0.jpg" in err) == (2, True)


def test_evaluation_counts_every_sample_once_at_any_number_of_ranks(folders: Folders) -> None:
    _, val = datasets.open_data(ImageFolderConfig(kind="imagefolder", path=str(folders(val=5))))
    for ranks in (1, 3):
        parts = [EvaluationData(val, (View(20, 16),), 4, CPU, 0, rank, ranks) for rank in range(ranks)]
        labels = torch.cat([batch.labels for part in parts for batch in part.batches()])
        assert labels.sort().values.tolist() == [0] * 5 + [1] * 5


# --- normalisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pixel-mean", "channel-mean", "channel-mean-std"])
def test_statistics_are_those_of_float64(kind: str, tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(data={"normalize": kind})
    source, _ = datasets.open_data(run.data)
    assert isinstance(source, datasets.SyntheticDataset)
    pixels = source.generate(np.arange(40)).astype(np.float64)
    norm = normalize.statistics(run, source)
    mean = pixels.mean(0) if kind == "pixel-mean" else pixels.mean((0, 1, 2))
    std = pixels.std((0, 1, 2)) if kind == "channel-mean-std" else 255.0
    batch = Batch(torch.from_numpy(source.generate(np.arange(3))), torch.zeros(3), torch.full((3, 3), 0.1))
    found = norm(batch).permute(0, 2, 3, 1).double().numpy()
    assert np.allclose(found, (pixels[:3] + 25.5 - mean) / std, atol=1e-5)
    assert norm(batch).is_contiguous(memory_format=torch.channels_last)


def test_a_mean_image_serves_other_sizes_by_its_channels(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(data={"normalize": "pixel-mean"})
    source, _ = datasets.open_data(run.data)
    norm = normalize.statistics(run, source)
    batch = Batch(torch.zeros(1, 5, 5, 3, dtype=torch.uint8), torch.zeros(1), torch.zeros(1, 3))
    assert torch.allclose(norm(batch)[0, :, 0, 0], -norm.mean.mean((0, 1)) / 255)


@pytest.mark.parametrize("kind", ["pixel-mean", "channel-mean-std"])
def test_statistics_of_a_folder_are_of_what_torchvision_sees(
    kind: str, tiny_run: Callable[..., Run], whole_photos: Path
) -> None:
    run = folder_run(tiny_run, whole_photos, normalize=kind)
    source, _ = datasets.open_data(run.data)
    see = v2.Compose([v2.Resize(18), v2.CenterCrop(16)])  # 18 is to 16 as 256 is to 224
    pixels = np.stack([see(source.decoded(i)) for i in range(len(source))]).astype(np.float64)
    norm = normalize.statistics(run, source)
    assert np.allclose(norm.mean, pixels.mean(0) if kind == "pixel-mean" else pixels.mean((0, 1, 2)), atol=1e-4)
    assert np.allclose(norm.std, pixels.std((0, 1, 2)) if kind == "channel-mean-std" else 255.0, atol=1e-4)
