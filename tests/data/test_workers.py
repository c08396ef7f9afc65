"""Worker processes that make batches: order, arrays, stalls, and how they end."""

import logging
import multiprocessing
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from loading import CPU, copied_batches, folder_run, training_data

from resnet_train.config.data import ImageFolderConfig
from resnet_train.config.schema import Run
from resnet_train.data import datasets, image_files, workers
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.views import View, ViewBatch, apply_views
from resnet_train.data.workers import Note
from resnet_train.errors import BadInput, Interrupted, Stop
from resnet_train.runtime.signals import catch_stop_signals

NO_CROP = (View(30, 24), View(), View(flip=True))


def repeated(number: int, note: Note) -> npt.NDArray[np.int64]:
    """As many numbers as its value; 66 is broken, at 88 a disk hangs, at 99 the worker is killed."""
    note(number)
    if number == 66:
        raise BadInput("66 is broken")
    if number == 88:
        select.select([], [], [])
    if number == 99:
        os.kill(os.getpid(), signal.SIGKILL)
    return np.full(number, number)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_of_any_size_are_in_order(count: int) -> None:
    """More batches than slots, so that each slot is overwritten."""
    batches = [[i, 40 - i][: 1 + i % 2] for i in range(1, 40)]
    results = workers.in_order(repeated, batches, count, str)
    for batch, arrays in zip(batches, results, strict=True):
        assert [array.tolist() for array in arrays] == [[number] * number for number in batch]
    assert not multiprocessing.active_children()


def test_rows_of_tasks_are_all_rows() -> None:
    for samples in (1, 5, 16, 17):
        for count in (0, 1, 3, 40):
            rows = workers.rows_of_tasks(samples, count)
            assert [row for part in rows for row in range(samples)[part]] == list(range(samples))
            assert len(rows) <= max(1, 2 * count)


def test_bad_input_comes_at_its_batch() -> None:
    results = workers.in_order(repeated, [[1], [2, 66], [3]], 2, str)
    assert len(next(results)) == 1
    with pytest.raises(BadInput, match="66 is broken"):
        next(results)
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_one_line() -> None:
    with pytest.raises(BadInput, match=r"a data worker was killed by SIGKILL, .* lower data.workers"):
        list(workers.in_order(repeated, [[1], [99]], 2, str))
    assert not multiprocessing.active_children()


def out_of_memory(file: Path, _: Note) -> None:
    sys.stderr = file.open("w", buffering=1)
    np.empty(1 << 56)


def test_memory_that_ends_in_a_worker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Stop) as stop:
        list(workers.in_order(out_of_memory, [[tmp_path / "stderr"]], 1, str))
    assert (stop.value.exit_code, stop.value.reported) == (2, True)
    line = "resnet-train: a data worker: out of memory: lower data.workers, and run again\n"
    assert (tmp_path / "stderr").read_text() == line


class OnWarning(logging.Handler):
    """Calls a function with each warning of the workers."""

    def __init__(self, function: Callable[[str], None]) -> None:
        super().__init__()
        self.function = function

    def emit(self, record: logging.LogRecord) -> None:
        self.function(record.getMessage())


@pytest.fixture
def on_warning(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str], None]], None]]:
    """No patience with workers; a function that sets what is called at their warnings."""
    monkeypatch.setattr(workers, "_SECONDS_TO_WARNING", 0.02)
    monkeypatch.setattr(workers, "_SECONDS_TO_STOP", 0.0)
    monkeypatch.setattr(workers, "_SECONDS_TO_LOOK", 0.01)
    monkeypatch.setattr(workers, "_SECONDS_TO_NAME", 300.0)
    handlers: list[logging.Handler] = []

    def install(function: Callable[[str], None]) -> None:
        handlers.append(OnWarning(function))
        workers.logger.addHandler(handlers[-1])

    yield install
    for handler in handlers:
        workers.logger.removeHandler(handler)


def test_a_worker_that_hangs_is_named_again_and_again_until_a_signal_comes(
    on_warning: Callable[[Callable[[str], None]], None],
) -> None:
    named: list[str] = []

    def note_and_stop(message: str) -> None:
        named.extend([message] if "file-88" in message else [])
        if len(named) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)

    on_warning(note_and_stop)
    with catch_stop_signals(announce=False), pytest.raises(Interrupted, match="SIGUSR1: stopped while") as stop:
        list(workers.in_order(repeated, [[1], [88]], 1, "file-{}".format))
    assert "is at file-88" in str(stop.value)
    assert not stop.value.on_all_ranks
    assert "no images for" in named[0]
    assert not multiprocessing.active_children()


def test_what_this_process_reads_for_long_is_named(
    on_warning: Callable[[Callable[[str], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without workers, too. A name may lie on the disk that does not answer; then it is a number."""
    answers, messages = threading.Event(), list[str]()

    def wait_for_disk(number: int, note: Note) -> int:
        note(number)
        assert answers.wait(300)
        return number

    def go_on(message: str) -> None:
        messages.append(message)
        monkeypatch.setattr(workers, "_SECONDS_TO_NAME", 0.01)
        if len(messages) == 2:
            answers.set()

    def name(number: int) -> str:
        if len(messages) == 1:
            assert answers.wait(300)
        return f"file-{number}"

    on_warning(go_on)
    assert list(workers.in_order(wait_for_disk, [[7]], 0, name)) == [[7]]
    assert [message.partition(": ")[2] for message in messages] == [
        "at file-7: does the disk answer?",
        "at sample 7: does the disk answer?",
    ]


def test_stopped_workers_are_waited_for(on_warning: Callable[[Callable[[str], None]], None]) -> None:
    messages: list[str] = []

    def go_on(message: str) -> None:
        messages.append(message)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGCONT)

    with closing(workers.in_order(repeated, ([1, 1] for _ in range(100)), 2, str)) as results:
        next(results)
        pids = [child.pid or 0 for child in multiprocessing.active_children()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        on_warning(go_on)
        assert len(list(results)) == 99
    assert messages
    assert str(pids[0]) in messages[0] or str(pids[1]) in messages[0]


def view_batches(path: Path, count: int, views: Sequence[View] = NO_CROP) -> list[ViewBatch]:
    _, val = datasets.open_data(ImageFolderConfig(kind="imagefolder", path=str(path)))
    return list(EvaluationData(val, views=tuple(views), batch_size=4, device=CPU, workers=count).view_batches())


@pytest.mark.parametrize("count", [0, 2])
def test_images_of_one_shape_are_together_whatever_worker_read_them(folders: Callable[..., Path], count: int) -> None:
    """The order of a loop over the views, the shapes as they appear, and the samples."""
    path = folders(val=5)
    _, val = datasets.open_data(ImageFolderConfig(kind="imagefolder", path=str(path)))
    assert isinstance(val, image_files.ImageFileDataset)
    for number, batch in enumerate(view_batches(path, count)):
        indices = range(4 * number, min(4 * number + 4, len(val)))
        seen = [apply_views(val.decoded(index), NO_CROP) for index in indices]
        assert batch.labels.tolist() == val.labels[list(indices)].tolist()
        expected = [
            (view, shape, [row for row, views in enumerate(seen) if views[view].shape == shape])
            for view in range(len(NO_CROP))
            for shape in dict.fromkeys(views[view].shape for views in seen)
        ]
        assert [(g.view, tuple(g.batch.images.shape[1:]), g.rows.tolist()) for g in batch.groups] == expected
        for group in batch.groups:
            assert group.batch.labels.tolist() == batch.labels[group.rows].tolist()
            for row, image in zip(group.rows.tolist(), group.batch.images, strict=True):
                assert np.array_equal(image.numpy(), seen[row][group.view])


def test_batches_stay_when_others_follow(folders: Callable[..., Path]) -> None:
    path = folders(val=14)
    for one, other in zip(view_batches(path, 2, [View(20, 16)]), view_batches(path, 0, [View(20, 16)]), strict=True):
        assert torch.equal(one.groups[0].batch.images, other.groups[0].batch.images)


def test_nothing_is_in_dev_shm(
    folders: Callable[..., Path], tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither semaphores, as multiprocessing's queues have them, nor torch's shared tensors."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("this needs /dev/shm")

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_filename_cpu", refuse)
    monkeypatch.setattr(torch.UntypedStorage, "_new_shared_filename_cpu", refuse)
    run = folder_run(tiny_run, folders(), workers=1)
    assert len(copied_batches(training_data(run), 0, 2)) == 2
    assert len(view_batches(images_of(run), 1)) == 2


def images_of(run: Run) -> Path:
    assert isinstance(run.data, ImageFolderConfig)
    return Path(run.data.path)
