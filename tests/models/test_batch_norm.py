"""Batch norm over ranks: converted and reverted without a change of weights. Of one rank its results are those of batch
norm; of several ranks see tests/runtime/test_distributed.py."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from by_hand import replace_sync_batch_norm_kernels
from torch import nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode

from resnet_train.config import zoo
from resnet_train.models.batch_norm import (
    CPUSyncBatchNorm,
    CUDASyncBatchNorm,
    convert_sync_batchnorm,
    revert_sync_batchnorm,
)
from resnet_train.models.network import build_network, initialise
from resnet_train.runtime.distributed import World
from resnet_train.runtime.precision import autocast


def norms(net: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}


def test_conversion_and_its_inverse_keep_parameters_buffers_and_mode() -> None:
    net = build_network(zoo.network_config("cifar-preact-8"), classes=3)
    initialise(net, seed=0)
    net(torch.rand(2, 3, 8, 8))  # moves the running statistics
    net.layer1.eval()
    before = copy.deepcopy(net)
    tensors, modes = net.state_dict(keep_vars=True), {name: m.training for name, m in net.named_modules()}
    assert convert_sync_batchnorm(net, World(torch.device("cpu"))) is net
    assert norms(net) == {nn.BatchNorm2d}  # of one rank
    for convert, kind in (
        (lambda: convert_sync_batchnorm(net, World(torch.device("cpu"), size=2)), CPUSyncBatchNorm),
        (lambda: revert_sync_batchnorm(net), nn.BatchNorm2d),
    ):
        assert convert() is net
        assert norms(net) == {kind}
        converted = net.state_dict(keep_vars=True)
        assert list(converted) == list(tensors)
        assert all(converted[key] is tensors[key] for key in tensors)
        assert {name: m.training for name, m in net.named_modules()} == modes
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(net(images), before(images))


def test_cudas_synchronised_batch_norm_is_reverted_too() -> None:
    net = convert_sync_batchnorm(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), World(torch.device("cuda"), size=2)
    )
    assert norms(net) == {CUDASyncBatchNorm}
    assert norms(revert_sync_batchnorm(net)) == {nn.BatchNorm2d}


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A group of one rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_synchronised_batch_norm_of_one_rank_is_batch_norm(precision: str) -> None:
    """Under autocast its input has half precision, and it calculates in full precision."""
    cpu = torch.device("cpu")
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    nets = [torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.BatchNorm2d(5)) for _ in range(2)]
    random = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(nets[0][0].weight, generator=random)
    torch.nn.init.zeros_(nets[0][0].bias)
    nets[1].load_state_dict(nets[0].state_dict())
    convert_sync_batchnorm(nets[1], World(cpu, size=2))
    x = torch.randn(8, 3, 4, 4, generator=random)
    rounding = 10 * torch.finfo(half).eps
    for _ in range(2):
        outputs = []
        for net in nets:
            with autocast(precision, cpu):
                outputs.append(net(x))
            (outputs[-1].float() ** 3).sum().backward()
        assert outputs[0].dtype == outputs[1].dtype == half
        torch.testing.assert_close(outputs[1], outputs[0], rtol=rounding, atol=rounding)
        for (name, a), b in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
            if name != "0.bias":  # whose gradient is 0 but for rounding
                assert (b.grad - a.grad).norm() <= rounding * a.grad.norm(), name
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict())


@pytest.mark.usefixtures("group_of_one")
def test_cudas_synchronised_batch_norm_is_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its kernels by the textbook: output, gradients and running statistics."""
    replace_sync_batch_norm_kernels(monkeypatch)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    results = []
    for layer in (nn.BatchNorm2d(3), CUDASyncBatchNorm(3)):
        nn.init.constant_(layer.weight, 0.7)
        own = x.clone().requires_grad_()
        y = layer(own)
        (y**3).sum().backward()
        results.append([y, own.grad, layer.weight.grad, layer.bias.grad, *layer.buffers(), layer.eval()(x)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.usefixtures("group_of_one")
def test_cudas_synchronised_batch_norm_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph with the layers around it, though torch knows no shapes of its operators. They get kernels here."""
    names = [name for name in vars(torch) if name.startswith("batch_norm_")]
    theirs = {name: getattr(torch, name) for name in names}
    replace_sync_batch_norm_kernels(monkeypatch)
    kernels = torch.library.Library("aten", "IMPL", "CPU")
    for name in names:
        if (kernel := getattr(torch, name)) is not theirs[name]:
            kernels.impl(name, kernel)
            monkeypatch.setattr(torch, name, theirs[name])
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    net = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), CUDASyncBatchNorm(4), nn.ReLU())
    compiled = copy.deepcopy(net)
    torch.compiler.reset()
    for forward in (net, torch.compile(compiled, dynamic=False, fullgraph=True, backend="aot_eager")):
        (forward(x) ** 3).sum().backward()
    for one, other in zip(
        (*net.parameters(), *net.buffers()), (*compiled.parameters(), *compiled.buffers()), strict=True
    ):
        torch.testing.assert_close(one, other)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-4)
    kernels._destroy()


@pytest.mark.usefixtures("group_of_one")
def test_cudas_synchronised_batch_norm_never_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors without values whatever reads one raises. torch's own reads a mask in each layer."""
    replace_sync_batch_norm_kernels(monkeypatch)
    monkeypatch.setattr(dist, "all_gather", lambda rows, own, *_, **__: [row.copy_(own) for row in rows])
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: None)
    with FakeTensorMode():
        x, layer = torch.empty(4, 3, 5, 5, requires_grad=True), CUDASyncBatchNorm(3)
        layer(x).sum().backward()
        arguments = layer.weight, layer.bias, layer.running_mean, layer.running_var, 1e-5, 0.1, dist.group.WORLD, 1
        with pytest.raises(DynamicOutputShapeException):
            nn.modules._functions.SyncBatchNorm.apply(x, *arguments)
