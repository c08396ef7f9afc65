"""The verb `bench`: its figures, its advice, the bound that it holds them against."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from resnet_train import bench
from resnet_train.bench import Measured
from resnet_train.config import zoo
from resnet_train.config.network import ANY_NET
from resnet_train.config.schema import Run
from resnet_train.data import sources
from resnet_train.observe import complexity, roofline
from resnet_train.observe.roofline import Limits

FOUND = Measured("net", "NVIDIA", 1, 64, "bf16", 900.0, 1000.0, 880.0, 2000.0, 256)


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


def test_advice_follows_what_binds(tiny_run: Callable[..., Run]) -> None:
    run = tiny_run(train={"precision": "bf16", "accumulate": 8})
    source, _ = sources.open_data(run.data)
    assert bench.advice(FOUND, run, source) == ["the loader binds:"]  # held images: nothing to change
    said = bench.advice(replace(FOUND, loader=5000.0), run, source)
    assert said[0] == "the step binds:"
    assert any("train.accumulate=2" in line for line in said)
    assert any("fewer data.workers" in line for line in said)
    assert not any("precision" in line for line in said)


@pytest.mark.parametrize("name", ["resnet-50", "cifar-resnet-20"])
def test_roofline_is_arithmetic_or_memory_whichever_is_less(name: str) -> None:
    network = ANY_NET.validate_python(zoo.network(name))
    parts = complexity.stages(network, *complexity.usual_input(network))
    whole = complexity.total(parts)
    arithmetic = roofline.images_per_second(parts, Limits(1e12, 1e30), "bf16")
    memory = roofline.images_per_second(parts, Limits(1e30, 1e12), "bf16")
    assert arithmetic == pytest.approx(1e12 / (6 * whole.macs))
    assert memory == pytest.approx(1e12 / (28 * whole.activations))
    assert roofline.images_per_second(parts, Limits(1e12, 1e12), "bf16") <= min(arithmetic, memory)
