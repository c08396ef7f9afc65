"""scripts/benchmark_step.py without a GPU: its rows, the choices that are made in processes of their own, its output."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from steps import random_batch
from torch._inductor import config as inductor
from torch._subclasses.fake_tensor import FakeTensorMode

from resnet_train.config import zoo
from resnet_train.data.normalize import Normalization
from resnet_train.models.network import build_network, initialise
from resnet_train.models.roofline import Limits

CPU = torch.device("cpu")
SCRIPT = Path(__file__).parents[1] / "scripts/benchmark_step.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_step", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["benchmark_step"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def leave_group() -> Iterator[None]:
    yield
    dist.destroy_process_group()


def rows(script: Any, network: str, device: str) -> list[str]:
    """The names of the rows on a device, of which tensors without values need no copy."""
    with FakeTensorMode():
        return list(script.create_contestants(zoo.network_config(network), 2, torch.device(device)))


def test_every_choice_has_a_row_on_a_gpu(script: Any) -> None:
    """What takes minutes to compile comes last, since the time may end before it."""
    large, small = rows(script, "resnet-50-v1.5", "cuda"), rows(script, "cifar-resnet-8", "cuda")
    assert set(script.CHOICES) < set(large)
    assert large[-2:] == small[-2:] == ["+ coordinate descent", "+ max autotune"]
    assert [name.replace("+ CUDA", "- CUDA") for name in large] == small
    assert set(rows(script, "cifar-resnet-8", "cpu")) < set(small)
    asked_for = re.findall('--only "(.+?)"', SCRIPT.with_name("gpu_check.sh").read_text())
    assert set(script.CHOICES) - {"- cuDNN benchmark"} < set(asked_for) < set(large)


def test_a_process_makes_its_choice(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark_limit", 10)
    with inductor.patch(coordinate_descent_tuning=False, max_autotune=False):
        assert script.CHOICES["+ coordinate descent"](CPU) == {}
        assert (inductor.coordinate_descent_tuning, inductor.max_autotune) == (True, False)
        assert script.CHOICES["+ max autotune"](CPU) == {}
        assert inductor.max_autotune
    assert script.CHOICES["+ cuDNN benchmark, all"](CPU) == {}
    assert torch.backends.cudnn.benchmark_limit == 0
    assert script.CHOICES["- cuDNN benchmark"](CPU) == {}


@pytest.mark.usefixtures("leave_group")
def test_a_step_of_one_rank_of_several_is_ours_under_ddp(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its process, which ends when nobody asks any more. The group of one changes no gradient."""
    wrapped: list[Any] = []
    ddp = torch.nn.parallel.DistributedDataParallel
    monkeypatch.setattr(
        "resnet_train.runtime.distributed.DistributedDataParallel",
        lambda *args, **options: wrapped.append(ddp(*args, **options)) or wrapped[-1],
    )
    answers: list[tuple[float, float]] = []
    requests = iter([5, 2])

    def receive() -> int:
        try:
            return next(requests)
        except StopIteration:
            raise EOFError from None

    connection = SimpleNamespace(send=answers.append, recv=receive)
    script.take_by_request(connection, "cifar-resnet-8", 2, CPU, "+ DDP")
    assert len(wrapped) == 1
    alone = script.create_contestants(zoo.network_config("cifar-resnet-8"), 2, CPU)["ours"]()
    losses = [alone.take(steps, CPU)[1] for steps in (5, 2)]
    assert [loss for _, loss in answers] == losses


def test_normalising_inside_the_network_is_the_same(script: Any) -> None:
    """And nothing breaks the region that is compiled."""
    net = build_network(zoo.network_config("cifar-resnet-8"), 4)
    initialise(net, 0)
    normalization = Normalization(torch.full((1, 1, 3), 127.5), torch.full((3,), 64.0))
    batch = random_batch()
    wanted = net(normalization(batch))
    inside = script.Normalizing(net, normalization, batch.shift)
    torch.compiler.reset()
    compiled = torch.compile(inside, dynamic=False, fullgraph=True, backend="eager")
    for forward in (inside, compiled):
        assert torch.equal(forward(batch.images), wanted)


def test_each_row_is_printed_when_it_is_there(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []
    failures = [EOFError(), ConnectionResetError("[Errno 104] reset"), RuntimeError("CUDA error: no kernel\nand more")]

    def compare(contestant: Any, *_: object) -> Any:
        printed.append(capsys.readouterr().out)
        if contestant.automatic_gc and len(printed) > 1:
            raise failures.pop()
        return script.Result([2.0], [1.0], 2.3)

    monkeypatch.setattr(script, "compare", compare)
    monkeypatch.setattr(script.roofline, "measure_limits", lambda *_: Limits(1e12, 1e11))
    monkeypatch.setattr(script.Contestant, "take", lambda *_: (0.1, 2.3))
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    argv = ["benchmark_step.py", "--network", "cifar-resnet-8", "--batch", "2", "--only", "- fused SGD"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="False"):
        script.main()
    assert len(printed) == 2
    assert "eager fp32" in printed[1]
    last = capsys.readouterr().out
    assert last.startswith("- fused SGD               2.00")
    assert last.endswith(": none\n")

    # A line that fails leaves the others.
    monkeypatch.setattr(sys, "argv", [*argv, "--only", "torchvision"])
    for reason in ("CUDA error: no kernel", "its process ended", "its process ended"):
        printed.clear()
        with pytest.raises(SystemExit, match="True"):
            script.main()
        assert f"torchvision              failed: {reason}\n" in printed[-1]
        assert capsys.readouterr().out.endswith(": torchvision (failed)\n")

    monkeypatch.setattr(sys, "argv", [*argv, "--only", "+ DPD"])
    with pytest.raises(SystemExit, match="2"):
        script.main()
    assert "--only: + DPD: there are ours, eager fp32" in capsys.readouterr().err
