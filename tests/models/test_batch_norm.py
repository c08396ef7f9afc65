"""Batch norm over ranks: converted and reverted without a change of weights. Its results: tests/runtime."""

import copy

import torch
from torch import nn

from resnet_train.config import zoo
from resnet_train.config.network import NetConfig
from resnet_train.models.batch_norm import CPUSyncBatchNorm, convert_sync_batchnorm, revert_sync_batchnorm
from resnet_train.models.network import build_network, initialise
from resnet_train.runtime.distributed import World


def norms(net: nn.Module) -> set[type[nn.Module]]:
    return {type(module) for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}


def test_conversion_and_its_inverse_keep_parameters_buffers_and_mode() -> None:
    net = build_network(NetConfig.model_validate(zoo.network("cifar-preact-8")), classes=3)
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
    net = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert norms(net) == {nn.SyncBatchNorm}
    assert norms(revert_sync_batchnorm(net)) == {nn.BatchNorm2d}
