"""Protocols of evaluation: lists of views, against torchvision."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from resnet_train.config.schema import EvalConfig, ViewConfig
from resnet_train.data.views import apply_views
from resnet_train.evaluation.protocols import views_of


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (90, 90)])
def test_ten_crops_are_torchvisions(size: tuple[int, int]) -> None:
    random = np.random.default_rng(1)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = apply_views(image, views_of(ViewConfig(resize=64, crop=48), EvalConfig(protocol="ten-crop")))
    theirs = v2.TenCrop(48)(v2.Resize(64)(image))
    assert len(ours) == 10
    for one in theirs:
        assert any(np.array_equal(np.asarray(one), our) for our in ours)


def test_scales_are_whole_images_of_that_shorter_side() -> None:
    views = views_of(ViewConfig(), EvalConfig(protocol="multi-scale", short_sides=(32, 48), flip=True))
    images = apply_views(Image.new("RGB", (90, 60)), views)
    assert [image.shape for image in images] == [(32, 48, 3), (48, 72, 3)] * 2
    assert views == views_of(ViewConfig(), EvalConfig(protocol="multi-scale-dense", short_sides=(32, 48), flip=True))
    assert views[2:] == tuple(view._replace(flip=True) for view in views[:2])
