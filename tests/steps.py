"""Batches and states for tests of a training step."""

import torch

from resnet_train.data.batch import Batch, StepBatches
from resnet_train.data.normalize import Normalization
from resnet_train.runtime.distributed import World

CPU = World(torch.device("cpu"))
IDENTITY = Normalization(torch.zeros(1, 1, 3), torch.full((3,), 255.0))


def random_batch(n: int = 16, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 8, 8, 3), dtype=torch.uint8, generator=random)
    return Batch(images, torch.randint(0, 4, (n,), generator=random), torch.zeros(n, 3))


def step_batches(*batches: Batch) -> StepBatches:
    return StepBatches(list(batches), list(range(len(batches))), 0.0)


def assert_same_parameters(one: torch.nn.Module, other: torch.nn.Module, **tolerance: float) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)
