"""Checkpoints: written whole or not at all, and restored to what they were made of."""

import errno
import io
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import same_weights
from steps import CPU, IDENTITY, random_batch, step_batches

from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader, normalize
from resnet_train.errors import BadInput
from resnet_train.models.batch_norm import running_stats
from resnet_train.runs.checkpoint import CheckpointMeta
from resnet_train.runtime.distributed import World
from resnet_train.training import checkpoint
from resnet_train.training.step import TrainState, create_train_state, train_step

TinyRun = Callable[..., Run]


@pytest.fixture
def saved(tiny_run: TinyRun, tmp_path: Path) -> tuple[TrainState, Callable[[], None], Path]:
    """A state, a way to save it after one more step, and the folder."""
    run = tiny_run(train={"ema_decay": 0.9})
    state = create_train_state(run, 4, 3, CPU)
    folder = tmp_path / "checkpoints"

    def save(*copies: str) -> None:
        train_step(state, step_batches(random_batch(seed=state.step)), IDENTITY, 0.1, run.train)
        checkpoint.save(state, CheckpointMeta(run, ("a", "b", "c", "d"), 40, IDENTITY), folder, copies, CPU)

    return state, save, folder


def test_a_restored_state_is_the_state(saved: Any, tiny_run: TinyRun, tmp_path: Path) -> None:
    state, save, folder = saved
    assert state.update_best(12.5)
    assert not state.update_best(12.5)
    save(), save("best.pt")
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    restored = checkpoint.load_latest(folder, CPU)
    assert restored is not None
    assert restored.meta.run == tiny_run(train={"ema_decay": 0.9})
    assert (restored.meta.classes, restored.meta.train_images, restored.meta.channels) == (("a", "b", "c", "d"), 40, 3)
    other = create_train_state(restored.meta.run, 4, 3, CPU)
    checkpoint.restore(other, restored, CPU)
    assert (other.step, other.best_val_error) == (2, 12.5)
    checkpoint.save(other, restored.meta, tmp_path / "again", [], CPU)
    assert same_weights(folder / "last.pt", tmp_path / "again" / "last.pt")


def test_a_state_is_restored_on_another_number_of_ranks(saved: Any, tiny_run: TinyRun) -> None:
    """Sums stay whole, and batch norm goes on from the mean over the ranks, which is what the network is saved with."""
    state, save, folder = saved
    save()
    of_one = checkpoint.read_checkpoint(folder / "last.pt")
    moved, sums = running_stats(state.net, state.ema), state.sums.clone()
    assert (sums[[0, 2]] > 0).all()
    ranks = {"statistics": torch.stack([moved - 1, moved + 1]), "sums": torch.stack([sums / 4, 3 * sums / 4])}
    of_two = replace(of_one, payload=of_one.payload | {"ranks": ranks})
    for restored, size in ((of_one, 2), (of_two, 1), (of_two, 3)):
        total = torch.zeros_like(sums)
        for rank in range(size):
            other = create_train_state(restored.meta.run, 4, 3, CPU)
            checkpoint.restore(other, restored, World(CPU.device, rank, size))
            assert torch.equal(running_stats(other.net, other.ema), moved)
            assert other.step == 1
            total += other.sums
        assert torch.equal(total, sums)


@pytest.mark.parametrize("harm", ["truncate", "sector", "empty"])
def test_the_last_good_checkpoint_is_used_with_a_warning(
    saved: Any, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, save, folder = saved
    save(), save()
    last = folder / "last.pt"
    content = bytearray(last.read_bytes())
    if harm == "sector":  # the file's directory is intact, a record's CRC is not
        middle = len(content) // 2
        content[middle : middle + 512] = bytes(byte ^ 1 for byte in content[middle : middle + 512])
    last.write_bytes({"truncate": content[:-100], "sector": content, "empty": b""}[harm])
    restored = checkpoint.load_latest(folder, CPU)
    assert restored is not None
    assert restored.step == 1
    assert "continuing from" in caplog.text
    # Moved aside, or the next save would put it in the place of the good one.
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt.damaged", "previous.pt"]
    (folder / "previous.pt").write_bytes(b"")
    with pytest.raises(BadInput, match=r"no checkpoint in .* is good"):
        checkpoint.load_latest(folder, CPU)


def without_momentum(payload: dict[str, Any]) -> dict[str, Any]:
    payload["optimizer"]["state"].popitem()
    return payload


def set_at(*keys: Any, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(payload: dict[str, Any]) -> dict[str, Any]:
        place = payload
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value
        return payload

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda _: 3,
        lambda payload: {key: value for key, value in payload.items() if key != "scaler"},
        set_at("net", "conv1.weight", value=3),
        set_at("net", "conv1.weight", value=torch.zeros(3)),
        set_at("ema", value=None),
        set_at("step", value=float("nan")),
        set_at("optimizer", value={}),
        set_at("optimizer", "state", 0, value={"momentum_buffer": None}),
        set_at("optimizer", "state", 0, value={"momentum_buffer": torch.zeros(3)}),
        without_momentum,
        set_at("scaler", value={"scale": 2.0}),
        set_at("ranks", value={"statistics": torch.zeros(0, 3), "sums": torch.zeros(0, 3)}),
        set_at("ranks", "sums", value=torch.zeros(1, 3)),  # not float64
        set_at("ranks", "statistics", value=torch.zeros(1, 3)),
        set_at("run", "train", "ema_decay", value=None),
    ],
)
def test_a_checkpoint_of_another_shape_is_passed_over(
    change: Callable[[dict[str, Any]], Any], saved: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever it holds: whoever wrote it has given it the right checksums."""
    _, save, folder = saved
    save(), save()
    torch.save(change(torch.load(folder / "last.pt", weights_only=True)), folder / "last.pt")
    restored = checkpoint.load_latest(folder, CPU)
    assert restored is not None
    assert restored.step == 1
    assert [line.count("\n") for line in caplog.messages] == [0, 0]
    assert "last.pt" in caplog.messages[0]
    assert "continuing from" in caplog.messages[1]
    other = create_train_state(restored.meta.run, 4, 3, CPU)
    checkpoint.restore(other, restored, CPU)


def test_hyperparameters_are_those_of_the_configuration(saved: Any) -> None:
    """A file whose optimizer has other ones would train another run."""
    _, save, folder = saved
    save()
    payload = torch.load(folder / "last.pt", weights_only=True)
    for group in payload["optimizer"]["param_groups"]:
        group |= {"momentum": 0.1, "weight_decay": "x", "nesterov": True}
    torch.save(payload, folder / "last.pt")
    restored = checkpoint.load_latest(folder, CPU)
    assert restored is not None
    other = create_train_state(restored.meta.run, 4, 3, CPU)
    before = other.optimizer.state_dict()["param_groups"]
    checkpoint.restore(other, restored, CPU)
    assert other.optimizer.state_dict()["param_groups"] == before


@pytest.mark.parametrize("failing", range(11))
def test_a_disk_that_fails_at_any_call_loses_nothing(failing: int, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a checkpoint and its copy: the first open, write, fsync or rename that fails, and all after it."""
    _, save, folder = saved
    save(), save("best.pt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    calls = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return wrapper

    with monkeypatch.context() as patched:
        for module, name in ((os, "fsync"), (torch, "save"), (Path, "replace"), (Path, "open")):
            patched.setattr(module, name, counted(getattr(module, name)))
        with pytest.raises(
            BadInput, match=r"step 3 .*No space left on device; the last checkpoint is .*pt$"
        ) as refused:
            save("best.pt")
        intact = str(refused.value).split("; the last checkpoint is ")[1]
    names = {path.name for path in folder.iterdir()}
    assert names in ({"last.pt", "previous.pt", "best.pt"}, {"previous.pt", "best.pt"})  # nothing temporary
    assert checkpoint.read_checkpoint(Path(intact)).step in (2, 3)
    restored = checkpoint.load_latest(folder, CPU)
    assert restored is not None
    assert restored.step == 3 or restored.path.read_bytes() == before["last.pt"]


@pytest.mark.parametrize("count", [1, 100, 5_000])
def test_a_disk_that_is_full_after_some_bytes(count: int, saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may fail within torch's writer of archives, and where the buffer is flushed."""
    _, save, folder = saved
    save()
    before = (folder / "last.pt").read_bytes()
    with monkeypatch.context() as limited:
        limited.setattr(Path, "open", lambda path, mode: FullFile(path, mode, count))
        with pytest.raises(BadInput, match=r"step 2 .*No space left on device; the last checkpoint is .*last.pt$"):
            save()
    assert (folder / "last.pt").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["last.pt"]


class FullFile(io.FileIO):
    """A file on a disk with room for some bytes."""

    def __init__(self, path: Path, mode: str, room: int) -> None:
        super().__init__(path, mode.replace("b", ""))
        self.room = room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_statistics_travel_with_the_checkpoint(saved: Any, tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run(data={"normalize": "pixel-mean"})
    source, _ = datasets.open_data(run.data)
    norm = normalize.statistics(run, source)
    state = create_train_state(run, 4, 3, CPU)
    checkpoint.save(state, CheckpointMeta(run, tuple(source.classes), len(source), norm), tmp_path / "c", [], CPU)
    restored = checkpoint.read_checkpoint(tmp_path / "c" / "last.pt").meta.normalization
    data = loader.training_data(run, source, 0, 0, 1, torch.device("cpu"))
    batch = next(data.from_step(0, 1)).micro_batches[0]
    assert torch.equal(restored(batch), norm(batch))
