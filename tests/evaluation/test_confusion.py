"""Confusions: counted by class."""

import importlib.util

import numpy as np
import pytest
import torch

from resnet_train.evaluation import confusion, evaluator


def test_classes_are_counted_as_in_a_confusion_matrix() -> None:
    label, predicted = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 1, 1, 1, 1, 0])
    rest = torch.zeros(6)
    results = evaluator.SampleResults(label, predicted, rest, rest, rest)
    rows = confusion.by_class(results, ["a", "b", "c", "d"])
    assert rows == [("d", 1, 100.0, "a", 1), ("a", 3, pytest.approx(200 / 3), "b", 2), ("b", 2, 0.0, "", 0)]
    assert confusion.worst(results, ["a", "b", "c", "d"]).startswith(
        "worst classes: d: 100.0 % (most often taken for a); a: 66.7 %"
    )


@pytest.mark.parametrize("package", ["matplotlib", "absent"])
def test_mistakes_are_drawn_in_rows_of_six(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels stay square and as they are; with Pillow's own font where matplotlib's is not."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: find(package))
    confusion._font.cache_clear()
    for channels in (1, 3):
        images = np.zeros((7, 4, 8, channels), np.uint8)
        images[6, 0, 0] = 200
        captions = [f"{name} 90 %\nis 猫" for name in "abcdefg"]
        sheet = confusion._contact_sheet(images, captions, "The most confident mistakes of x")
        assert sheet.size == (6 * 220, 36 + 2 * 268)
        pixels = np.asarray(sheet)
        grey = np.argwhere((pixels == 200).all(-1)[36 + 268 + 48 :])  # below the captions, which have greys too
        assert (grey.max(0) - grey.min(0) + 1).tolist() == [26, 26]  # an eighth of 212, cut off
        assert (pixels[36 + 268 + 48 :, 220:] == 255).all()  # no eighth image
        assert (pixels[36 + 48 : 36 + 48 + 106, 220 * 5 + 4 : 220 * 5 + 216] == 0).all()
        assert (pixels[:36] < 128).any()
        assert (pixels[36 + 268 : 36 + 268 + 48, :220] < 128).any()
    confusion._font.cache_clear()
