"""`resnet-train bench`: its output and its advice."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from resnet_train.commands import bench
from resnet_train.config.schema import Run
from resnet_train.data import datasets
from resnet_train.data.batch import StepBatches
from resnet_train.training import throughput
from resnet_train.training.step import TrainState, train_step
from resnet_train.training.throughput import Throughput

NOTHING = "- nothing that we know of would change that"
RESULT = Throughput("net", "NVIDIA", 1, 64, "bf16", 900.0, 1000.0, {32: 1000.0}, {"fp16": 900.0}, 880.0, 2000.0, 256, 8)


def test_bench_measures_each_part(config: Callable[..., Path], program: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = program("bench", config(), "--seconds", 1, "--profile", "trace", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["batch"], result["precision"], result["device"]) == (16, "fp32", "CPU")
    assert min(result["loader"], result["step"], result["together"], result["step_in"]["bf16"]) > 0
    assert result["roofline"] > result["step"]
    [trace] = Path("trace").iterdir()
    events = {event["name"] for event in json.loads(trace.read_text())["traceEvents"]}
    assert {"aten::conv2d", "Optimizer.step#SGD.step"} <= events
    assert not Path("runs").exists()


def test_each_size_of_progressive_resizing_is_timed(
    tiny_run: Callable[..., Run], images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = {
        "crop": {"kind": "random-resized", "size": 16},
        "progressive_resizing": {0: 8, 0.25: 16, 0.5: 12, 0.9: 16},
    }
    run = tiny_run(data={"kind": "imagefolder", "path": str(images), "workers": 0}, augment=growing)
    sizes: list[int] = []

    def step(state: TrainState, step_batches: StepBatches, *rest: Any) -> dict[str, Tensor]:
        sizes.append(step_batches.micro_batches[0].images.shape[1])
        return train_step(state, step_batches, *rest)

    monkeypatch.setattr(throughput, "train_step", step)
    bench.bench(run, 0, None, as_json=True)
    result = json.loads(capsys.readouterr().out)
    assert [size for size, _ in itertools.groupby(sizes)] == [8, 16, 12] * 3  # the step, in bf16, then both together
    at = {int(size): speed for size, speed in result["step_at"].items()}
    seconds = 0.25 / at[8] + 0.25 / at[16] + 0.4 / at[12] + 0.1 / at[16]
    assert result["step"] == pytest.approx(1 / seconds)
    bench.bench(run, 0, None, as_json=False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " px " in line]
    assert [(row[1], row[4]) for row in rows] == [("8", "25%"), ("16", "35%"), ("12", "40%")]


def test_advice_names_workers_that_take_time_from_the_step(tiny_run: Callable[..., Run], images: Path) -> None:
    section = {"kind": "imagefolder", "path": str(images), "workers": 2}
    run = tiny_run(data=section, augment={"crop": {"kind": "random-resized", "size": 8}})
    source, _ = datasets.open_data(run.data)
    advice = bench.advice(replace(RESULT, loader=5000.0), run, source)
    assert (advice[0], "fewer data.workers" in advice[-1]) == ("the step is the limit:", True)
    advice = bench.advice(replace(RESULT, device="CPU", together=700.0), run, source)
    assert (advice[0], "fewer data.workers" in advice[1]) == (
        "the CPU cores are the limit, which loader and step share:",
        True,
    )


def test_advice_to_pack_is_not_what_is_done_already(tiny_run: Callable[..., Run], images: Path, program: Any) -> None:
    assert program("prepare", images, "packed")[0] == 0
    assert program("prepare", images, "raw", "--raw-fraction", 1)[0] == 0
    advice = {}
    for kind, path in (("imagefolder", images), ("shards", "packed"), ("shards", "raw")):
        section = {"kind": kind, "path": str(path), "workers": 7}
        run = tiny_run(data=section, augment={"crop": {"kind": "random-resized", "size": 8}})
        advice[str(path)] = bench.advice(RESULT, run, datasets.open_data(run.data)[0])
    folders, packed, raw = advice.values()
    assert raw == ["the loader is the limit:", NOTHING]
    assert packed == [raw[0], "- resnet-train prepare --tiled --raw-fraction 0.5 trades disk for speed"]
    assert len(folders) == 3
    [more] = set(bench.advice(replace(RESULT, cores=9), run, datasets.open_data(run.data)[0])) - set(raw)
    assert more == "- data.workers=8: there are 9 cores for each rank"


def test_advice_follows_the_limit(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(train={"precision": "bf16", "grad_accum_steps": 8})
    source, _ = datasets.open_data(run.data)
    assert bench.advice(RESULT, run, source) == ["the loader is the limit:", NOTHING]  # images in memory
    advice = bench.advice(replace(RESULT, loader=5000.0), run, source)
    assert advice[0] == "the step is the limit:"
    assert any("train.grad_accum_steps=2" in line for line in advice)
    assert not any("data.workers" in line for line in advice)
    assert not any("precision" in line for line in advice)
    faster = bench.advice(replace(RESULT, loader=5000.0, step_in={"bf16": 1100.0, "fp16": 1300.0}), run, source)
    assert "- train.precision=fp16: 1.30 times as fast here" in faster  # what was measured, and the faster one
    nothing_else = replace(RESULT, device="CPU", loader=5000.0, step_in={})  # in bf16 on a CPU
    assert bench.advice(nothing_else, run, source)[0] == "the step is the limit:"
