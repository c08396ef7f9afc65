"""Where the records of a run go."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

from resnet_train.config.default_run import default_run
from resnet_train.runs import tensorboard
from resnet_train.runs.records import Record
from resnet_train.training.run_progress import ProgressSink
from resnet_train.training.sinks import TAGS, JsonLinesSink, TensorBoardSink

FOLDER = Path("runs/tiny/cifar-resnet-8/seed-0")
Config = Callable[..., Path]
Program = Callable[..., tuple[int, str, str]]


def test_earlier_records_are_written_again_without_a_line_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "kind": "train"}\n{"step": 2, "ki')
    lines = JsonLinesSink(path, [{"step": 1, "kind": "train"}])
    lines.write({"step": 2, "kind": "eval"})
    lines.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_all_scalars_of_a_record_are_one_event(tmp_path: Path) -> None:
    """A resume writes them all again: 40,000 log lines are 40,000 events, not 280,000."""
    figures = {key: float(number) for number, key in enumerate(TAGS["train"])}
    records: list[Record] = [{"step": step, "kind": "train", "time": step / 4, **figures} for step in (1, 2)]
    probed: Record = {"step": 2, "kind": "responses", "time": 2.0, "units": {"layer1.0 in": 5.0, "layer1.1 in": None}}
    sink = TensorBoardSink(tmp_path, default_run("cifar-resnet-8", {"kind": "synthetic"}), records[:1])
    for record in (records[1], probed):
        sink.write(record)
    sink.close()
    [path] = tmp_path.iterdir()
    events = [Event.FromString(data) for data in RawEventFileLoader(str(path)).Load()]
    with_steps = [event for event in events if event.step]
    shown = [(e.step, e.wall_time, {v.tag: v.simple_value for v in e.summary.value}) for e in with_steps]
    trained = {tag: figures[key] for key, tag in TAGS["train"].items()}
    trained["error-residual/train_running"] = figures["error"]
    assert shown == [(1, 0.25, trained), (2, 0.5, trained), (2, 2.0, {"responses/units/layer1.0-in": 5.0})]


def removed(folder: Path) -> None:
    shutil.rmtree(folder)


def renamed(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


@pytest.mark.parametrize("lose", [removed, renamed])
def test_a_run_folder_that_is_lost_during_the_training_is_one_line(
    lose: Callable[[Path], None], config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ProgressSink.write

    def lose_after(self: ProgressSink, record: Record) -> None:
        write(self, record)
        if record["kind"] == "eval" and record["step"] == 4:
            lose(FOLDER)

    monkeypatch.setattr(ProgressSink, "write", lose_after)
    code, _, err = program("run", config())
    [message] = [line for line in err.splitlines() if "val error" not in line]
    assert code == 2
    assert message.startswith(
        f"resnet-train: cannot save the checkpoint of step 4 in {FOLDER}/checkpoints: No such file"
    )


def test_tensorboards_log_that_cannot_be_written_is_one_line(
    config: Config, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread prints a traceback beside it."""
    make = tensorboard.EventFile.__init__

    def fill(self: Any, folder: Path) -> None:
        make(self, folder)
        self.file.close()
        self.file = self.records._writer = Path("/dev/full").open("wb")  # noqa: SIM115

    monkeypatch.setattr(tensorboard.EventFile, "__init__", fill)
    code, _, err = program("run", config())
    expected = f"cannot write in {FOLDER}: No space left on device; when it can be written, run again to continue"
    assert (code, err) == (2, f"resnet-train: {expected}\n")
