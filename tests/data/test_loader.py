"""Training batches: a function of the step and the recipe alone."""

import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loading import copied_batches, equal, folder_run, run_batches, training_data

from resnet_train.config.augment import AugmentConfig
from resnet_train.config.schema import Run
from resnet_train.data import augment, datasets, loader, mixup, rng
from resnet_train.data.batch import Batch
from resnet_train.data.fixed_size import FixedSizeDataset
from resnet_train.data.sampler import Sampler
from resnet_train.errors import BadInput, Interrupted, RankLost

Folders = Callable[..., Path]


def test_ranks_that_do_not_divide_the_batch_are_refused(tiny_run: Callable[..., Run]) -> None:
    with pytest.raises(BadInput, match=r"train.batch_size = 16 .* not divisible by 3 ranks .* use 15"):
        training_data(tiny_run(), ranks=3)


def test_training_can_start_at_any_step(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run()
    assert equal(run_batches(run, 0, 6)[4:], run_batches(run, 4, 6))
    assert not equal(run_batches(run, 0, 1), run_batches(tiny_run(seeds=[1]), 0, 1))


def test_augmentation_of_a_sample_differs_between_epochs(tiny_run: Callable[..., Run]) -> None:
    data = training_data(tiny_run(augment={"crop": {"kind": "pad", "padding": 4}}))
    images = {  # of 80 samples: two epochs
        (epoch, index): image
        for step, batch in enumerate(copied_batches(data, 0, 5))
        for epoch, index, image in zip(*data.sampler.batch(step), batch.images, strict=True)
    }
    first, second = (torch.stack([images[epoch, index] for index in range(40)]) for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_augmentation_of_a_sample_does_not_depend_on_its_batch(tiny_run: Callable[..., Run]) -> None:
    small = run_batches(tiny_run(), 0, 2)
    [large] = run_batches(tiny_run(train={"batch_size": 32, "steps": 1}), 0, 1)
    assert torch.equal(torch.cat([batch.images for batch in small]), large.images)


def test_workers_change_nothing(tiny_run: Callable[..., Run], folders: Folders) -> None:
    path = folders()
    batches, by_workers = (run_batches(folder_run(tiny_run, path, workers=workers), 0, 3) for workers in (0, 2))
    assert equal(batches, by_workers)
    assert batches[0].images.shape == (16, 16, 16, 3)
    assert batches[0].images.dtype == torch.uint8
    assert batches[0].shift.any()


@pytest.mark.parametrize("workers", [0, 2])
def test_progressive_resizing_changes_the_size_alone(
    tiny_run: Callable[..., Run], folders: Folders, workers: int
) -> None:
    """The boxes stay the same, training can start at any step, and small images are those of a small crop."""
    run = folder_run(tiny_run, folders(), workers=workers)
    sizes = [8, 8, 8, 12, 12, 12, 16, 16]
    batches = run_batches(run, 0, 8, image_size_at=sizes.__getitem__)
    assert [batch.images.shape[1] for batch in batches] == sizes
    assert equal(run_batches(run, 2, 8, image_size_at=sizes.__getitem__), batches[2:])
    assert equal(run_batches(run, 6, 8), batches[6:])
    assert run.augment.crop is not None
    small = run.augment.crop.model_copy(update={"size": 8})
    small_run = run.model_copy(update={"augment": run.augment.model_copy(update={"crop": small})})
    assert equal(run_batches(small_run, 0, 3), batches[:3])


ALL_AUGMENTATIONS = {
    "auto_augment": {"kind": "rand-augment"},
    "random_erasing": 0.5,
    "mixup": 0.2,
    "cutmix": 1.0,
    "repeated_augmentation": 2,
}


@pytest.mark.parametrize("files", [False, True])
def test_a_micro_batch_does_not_depend_on_its_rank(tiny_run: Callable[..., Run], folders: Folders, files: bool) -> None:
    """Two accumulation passes on one rank equal one pass on each of two ranks."""
    run = folder_run(tiny_run, folders()) if files else tiny_run()
    run = run.model_copy(update={"augment": AugmentConfig.model_validate(run.augment.model_dump() | ALL_AUGMENTATIONS)})
    dataset, _ = datasets.open_data(run.data)
    two_passes = run.model_copy(update={"train": run.train.model_copy(update={"grad_accum_steps": 2})})
    of_passes = copied_batches(training_data(two_passes, dataset), 3, 4)
    of_ranks = [copied_batches(training_data(run, dataset, rank, 2), 3, 4)[0] for rank in (0, 1)]
    for one, other in zip(of_passes, of_ranks, strict=True):
        for field in ("images", "labels", "shift", "erase_boxes", "mix_params"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field
        assert one.erase_boxes is not None
        assert 0 < (one.erase_boxes[:, 2] > 0).sum() < 8

    samples = Sampler(0, len(dataset), 16, repeat=2).batch(3)
    random = rng.uniform(0, samples.epochs, samples.indices, augment.columns(run.augment))[:, augment.ERASE_COLUMNS]
    boxes = mixup.erase_boxes(0.5, random, *of_passes[0].images.shape[1:3])
    assert np.array_equal(np.concatenate([np.asarray(batch.erase_boxes) for batch in of_ranks]), boxes)
    first, second = of_passes
    assert first.mix_params is not None
    assert second.mix_params is not None
    assert not torch.equal(first.mix_params, second.mix_params)
    assert torch.equal(first.labels, second.labels)  # copies of the same samples
    assert not torch.equal(first.images, second.images)


def test_mixing_needs_more_than_one_image(tiny_run: Callable[..., Run]) -> None:
    with pytest.raises(BadInput, match="more than one image at a time"):
        training_data(tiny_run(augment={"mixup": 0.2}), ranks=16)


def test_a_bad_image_stops_or_is_skipped(tiny_run: Callable[..., Run], folders: Folders) -> None:
    path = folders()
    bad = path / "train" / "apple" / "2.jpg"
    bad.write_bytes(b"broken")
    for workers in (0, 1):
        with pytest.raises(BadInput, match=f"cannot decode {bad}"):
            run_batches(folder_run(tiny_run, path, workers=workers), 0, 1)
    [batch] = run_batches(folder_run(tiny_run, path, workers=1, on_bad_image="skip"), 0, 1)
    assert set(batch.skipped) == {str(bad)}
    assert len(batch.labels) == 16


def test_an_image_whose_header_alone_is_good_is_replaced(tiny_run: Callable[..., Run], folders: Folders) -> None:
    """By the next image, cropped by the random numbers of the one that it replaces."""
    path = folders()
    bad = path / "train" / "apple" / "2.jpg"
    bad.write_bytes(bad.read_bytes()[:-1000])
    with pytest.raises(BadInput, match=f"cannot decode {bad}"):
        run_batches(folder_run(tiny_run, path), 0, 1)
    run = folder_run(tiny_run, path, on_bad_image="skip")
    [batch] = run_batches(run, 0, 1)
    assert set(batch.skipped) == {str(bad)}

    shutil.copyfile(bad.with_name("3.png"), bad)
    [replaced] = run_batches(run, 0, 1)
    assert torch.equal(batch.images, replaced.images)


def test_a_run_continues_without_a_bad_training_image(
    tiny_run: Callable[..., Run], folders: Folders, config: Callable[..., Path], program: Any
) -> None:
    """So do the statistics and the clean training error; of validation images, every one counts."""
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
    shutil.move(path / "train", path / "elsewhere")  # evaluation needs the validation images alone
    assert program("eval", next(Path("runs").rglob("last.pt")))[0] == 0
    shutil.move(path / "elsewhere", path / "train")
    (path / "val" / "pear" / "0.jpg").write_bytes(b"broken")
    code, _, err = program("run", config(data=data, **sizes), "train.steps=3", "data.on_bad_image=skip", "name=other")
    assert (code, "val/pear/0.jpg" in err) == (2, True)


def test_if_a_signal_ends_the_wait_for_images_one_rank_saves_and_several_end(
    tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several ranks the others may be within the step, whose gradients they wait for: no rank can save alone."""
    batches = FixedSizeDataset.training_batches

    def interrupted(*arguments: Any) -> Iterator[Batch]:
        yield from islice(batches(*arguments), 2)
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(FixedSizeDataset, "training_batches", interrupted)
    assert len(list(training_data(tiny_run()).from_step(0, 5))) == 2
    with pytest.raises(Interrupted):
        list(training_data(tiny_run(), ranks=2).from_step(0, 5))


def test_the_cpu_is_at_most_three_steps_ahead_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    class Event:
        made = 0

        def __init__(self, blocking: bool) -> None:
            self.number = Event.made
            Event.made += 1

        def record(self, stream: object) -> None: ...

        def synchronize(self) -> None:
            done.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    limit = loader._limiter(torch.device("cuda"), None)
    for step in range(9):
        limit()  # event number `step` comes after the steps before it
        assert done == list(range(step - 2))
    loader._limiter(torch.device("cpu"), None)()
    assert Event.made == 9


def test_a_graph_of_several_ranks_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, tiny_run: Callable[..., Run]
) -> None:
    """NCCL's watchdog does not see what it sends, so a rank beside a lost one would never stop."""
    queries: list[float] = []

    class Event:
        def query(self) -> bool:
            queries.append(clock[0])
            return len(queries) == 3

    clock = [0.0]
    monkeypatch.setattr(loader.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loader.time, "sleep", lambda _: clock.__setitem__(0, clock[0] + 4))
    loader._wait_for(Event(), 9)  # type: ignore[arg-type]
    assert queries == [0, 4, 8]
    with pytest.raises(RankLost, match=r"another rank has stopped, .* \(train.timeout = 9 s\)$"):
        loader._wait_for(Event(), 9)  # type: ignore[arg-type]
    assert queries == [0, 4, 8, 8, 12, 16, 20]

    for graph, ranks, timeout in ((True, 2, 1800), (False, 2, None), (True, 1, None)):
        assert training_data(tiny_run(train={"cuda_graph": graph}), ranks=ranks).step_timeout == timeout
