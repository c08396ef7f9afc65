"""The roofline: the bound of arithmetic, or of memory."""

import pytest

from resnet_train.config import zoo
from resnet_train.models import complexity, roofline
from resnet_train.models.roofline import Limits


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
