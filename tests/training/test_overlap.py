"""DDP sends gradients while the backward pass of a compiled network still runs, and not after it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from resnet_train.config.default_run import default_run
from resnet_train.models.network import build_network
from resnet_train.runtime.distributed import World, parallel


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def events_of_a_step(splits: bool) -> list[str]:
    """The parts of the backward pass and the buckets of gradients, in their order."""
    events: list[str] = []

    def backward(graph: torch.fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            events.append("backward")
            return graph(*arguments)

        return make_boxed_func(call)  # type: ignore[no-any-return]

    def send(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        events.append("bucket")
        sent: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        sent.set_result(bucket.buffer())
        return sent

    torch.compiler.reset()
    # 4.5 MiB of weights: DDP's first bucket is of 1 MiB, the others of 25.
    spec = {"base": "cifar-resnet-8", "name": "wide", "widths": [64, 128, 256]}
    net = build_network(default_run(spec, {"kind": "synthetic"}).network, 10)
    backend = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=backward)
    forward = parallel(torch.compile(net, dynamic=False, backend=backend), World(torch.device("cpu"), 0, 2), False)  # type: ignore[arg-type]
    forward.register_comm_hook(None, send)  # type: ignore[operator]
    with torch._dynamo.config.patch(optimize_ddp=splits):  # which pytest's monkeypatch would not restore
        for _ in range(3):  # in the first two DDP learns the order of the gradients
            events.clear()
            forward(torch.zeros(2, 3, 16, 16)).sum().backward()
    return events


@pytest.mark.usefixtures("group_of_one")
def test_gradients_travel_during_the_backward_pass() -> None:
    assert events_of_a_step(splits=True) == ["backward", "bucket", "backward", "bucket"]
    without = events_of_a_step(splits=False)  # torch's split of the compiled graph: all is sent at the end
    assert without == ["backward", *["bucket"] * (len(without) - 1)]
