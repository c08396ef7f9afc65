"""The command `bench`: its figures, its advice, and the roofline."""

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from steps import random_batch
from torch import Tensor

from resnet_train.commands import bench
from resnet_train.config import zoo
from resnet_train.config.schema import Run
from resnet_train.data import datasets
from resnet_train.data.batch import StepBatches
from resnet_train.models import complexity, roofline
from resnet_train.models.roofline import Limits
from resnet_train.runtime.distributed import World
from resnet_train.training import throughput
from resnet_train.training.cuda_graph import GraphLauncher
from resnet_train.training.step import TrainState, train_step
from resnet_train.training.throughput import Throughput

NOTHING = "- nothing that we know of would change that"
RESULT = Throughput("net", "NVIDIA", 1, 64, "bf16", 900.0, 1000.0, {32: 1000.0}, 880.0, 2000.0, 256, 8)


def test_bench_measures_each_part(config: Callable[..., Path], program: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = program("bench", config(), "--seconds", 1, "--profile", "trace", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["batch"], found["precision"], found["device"]) == (16, "fp32", "CPU")
    assert min(found["loader"], found["step"], found["together"]) > 0
    assert found["roofline"] > found["step"]
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

    def step(state: TrainState, share: StepBatches, *rest: Any) -> dict[str, Tensor]:
        sizes.append(share.micro_batches[0].images.shape[1])
        return train_step(state, share, *rest)

    monkeypatch.setattr(throughput, "train_step", step)
    bench.bench(run, 0, None, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [size for size, _ in itertools.groupby(sizes)] == [8, 16, 12, 8, 16, 12]  # the step, then both together
    at = {int(size): speed for size, speed in found["step_at"].items()}
    seconds = 0.25 / at[8] + 0.25 / at[16] + 0.4 / at[12] + 0.1 / at[16]
    assert found["step"] == pytest.approx(1 / seconds)
    bench.bench(run, 0, None, as_json=False)
    said = [line.split() for line in capsys.readouterr().out.splitlines() if " px " in line]
    assert [(line[1], line[4]) for line in said] == [("8", "25%"), ("16", "35%"), ("12", "40%")]


def test_workers_that_take_time_from_the_step_are_told(tiny_run: Callable[..., Run], images: Path) -> None:
    section = {"kind": "imagefolder", "path": str(images), "workers": 2}
    run = tiny_run(data=section, augment={"crop": {"kind": "random-resized", "size": 8}})
    source, _ = datasets.open_data(run.data)
    said = bench.advice(replace(RESULT, loader=5000.0), run, source)
    assert (said[0], "fewer data.workers" in said[-1]) == ("the step is the limit:", True)
    said = bench.advice(replace(RESULT, device="CPU", together=700.0), run, source)
    assert (said[0], "fewer data.workers" in said[1]) == (
        "the CPU cores are the limit, which loader and step share:",
        True,
    )


def test_a_graph_is_recorded_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(roofline, "synchronize", lambda _: events.append("the clock"))
    graph = GraphLauncher(lambda call: (events.append("recorded"), lambda: events.append("repeated"), call())[1:])
    throughput.seconds_per_step([None] * 9, lambda _: graph(lambda: {}, []), 1e9, World(torch.device("cpu")))  # type: ignore[list-item]
    repeated = ["repeated"] * (9 - throughput._WARM_UP)
    assert events == ["recorded", "repeated", "the clock", *repeated, "the clock"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_whatever_ends_the_search_for_the_largest_batch_ends_nothing_else(
    error: type[RuntimeError], tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def step(state: TrainState, share: StepBatches, *rest: Any) -> dict[str, Tensor]:
        if len(share.micro_batches[0].labels) > 64:
            raise error("cuDNN error: CUDNN_STATUS_ALLOC_FAILED\nand more")
        return {}

    caplog.set_level("INFO")
    monkeypatch.setattr(throughput, "train_step", step)
    run = tiny_run()
    source, _ = datasets.open_data(run.data)
    assert throughput.largest_batch(run, source, random_batch(16), torch.device("cpu")) == 64
    note = "128 images at once ended with: cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
    assert caplog.messages == ([note] if error is RuntimeError else [])


def test_advice_to_pack_is_not_what_is_done_already(tiny_run: Callable[..., Run], images: Path, program: Any) -> None:
    assert program("prepare", images, "packed")[0] == 0
    assert program("prepare", images, "raw", "--raw-fraction", 1)[0] == 0
    told = {}
    for kind, path in (("imagefolder", images), ("shards", "packed"), ("shards", "raw")):
        section = {"kind": kind, "path": str(path), "workers": 7}
        run = tiny_run(data=section, augment={"crop": {"kind": "random-resized", "size": 8}})
        told[str(path)] = bench.advice(RESULT, run, datasets.open_data(run.data)[0])
    folders, packed, raw = told.values()
    assert raw == ["the loader is the limit:", NOTHING]
    assert packed == [raw[0], "- resnet-train prepare --tiled --raw-fraction 0.5 trades disk for speed"]
    assert len(folders) == 3
    [more] = set(bench.advice(replace(RESULT, cores=9), run, datasets.open_data(run.data)[0])) - set(raw)
    assert more == "- data.workers=8: there are 9 cores for each rank"


def test_advice_follows_the_limit(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(train={"precision": "bf16", "grad_accum_steps": 8})
    source, _ = datasets.open_data(run.data)
    assert bench.advice(RESULT, run, source) == ["the loader is the limit:", NOTHING]  # held images
    said = bench.advice(replace(RESULT, loader=5000.0), run, source)
    assert said[0] == "the step is the limit:"
    assert any("train.grad_accum_steps=2" in line for line in said)
    assert not any("data.workers" in line for line in said)
    assert not any("precision" in line for line in said)


@pytest.mark.parametrize("name", ["resnet-50", "cifar-resnet-20"])
def test_roofline_is_arithmetic_or_memory_whichever_is_less(name: str) -> None:
    network = zoo.network_config(name)
    parts = complexity.stage_table(network, *complexity.default_input(network))
    whole = complexity.total(parts)
    arithmetic = roofline.images_per_second(parts, Limits(1e12, 1e30), "bf16")
    memory = roofline.images_per_second(parts, Limits(1e30, 1e12), "bf16")
    assert arithmetic == pytest.approx(1e12 / (6 * whole.macs))
    assert memory == pytest.approx(1e12 / (28 * whole.activations))
    assert roofline.images_per_second(parts, Limits(1e12, 1e12), "bf16") <= min(arithmetic, memory)
