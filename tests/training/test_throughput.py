"""What `bench` measures: when the clock starts, and the largest batch."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from steps import random_batch
from torch import Tensor

from resnet_train.config.schema import Run
from resnet_train.data import datasets, loader
from resnet_train.data.batch import StepBatches
from resnet_train.models import roofline
from resnet_train.runtime.distributed import World
from resnet_train.training import throughput
from resnet_train.training.cuda_graph import GraphLauncher
from resnet_train.training.step import TrainState


def test_a_graph_is_recorded_before_the_clock_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(roofline, "synchronize", lambda _: events.append("the clock"))
    graph = GraphLauncher(lambda call: (events.append("recorded"), lambda: events.append("repeated"), call())[1:])
    throughput.seconds_per_step([None] * 9, lambda _: graph(lambda: {}, []), 1e9, World(torch.device("cpu")))  # type: ignore[list-item]
    repeated = ["repeated"] * (9 - throughput._warm_up_steps(World(torch.device("cpu"))))
    assert events == ["recorded", "repeated", "the clock", *repeated, "the clock"]


def test_the_graphs_of_all_steps_are_freed(tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL lets no group of ranks go before the graphs that use it; something else may keep the launchers."""
    graphs: list[GraphLauncher] = []
    create = throughput.create_train_state

    def with_graph(*arguments: Any) -> TrainState:
        graphs.append(GraphLauncher(lambda call: (lambda: None, call())))
        return replace(create(*arguments), launch=graphs[-1])

    monkeypatch.setattr(throughput, "create_train_state", with_graph)
    run = tiny_run()
    dataset, _ = datasets.open_data(run.data)
    world = World(torch.device("cpu"))
    throughput.measure_throughput(run, loader.training_data(run, dataset, 0, 0, 1, world.device), 0.01, world)
    assert [(graph.calls > 3, graph.graph) for graph in graphs] == [(True, None)] * 2  # in fp32 and in bf16


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_any_error_ends_only_the_search_for_the_largest_batch(
    error: type[RuntimeError], tiny_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def step(state: TrainState, step_batches: StepBatches, *rest: Any) -> dict[str, Tensor]:
        if len(step_batches.micro_batches[0].labels) > 64:
            raise error("cuDNN error: CUDNN_STATUS_ALLOC_FAILED\nand more")
        return {}

    caplog.set_level("INFO")
    monkeypatch.setattr(throughput, "train_step", step)
    run = tiny_run()
    dataset, _ = datasets.open_data(run.data)
    assert throughput.largest_batch(run, dataset, random_batch(16), torch.device("cpu")) == 64
    note = "128 images at once ended with: cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
    assert caplog.messages == ([note] if error is RuntimeError else [])
