"""Confusions: counted by class."""

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
        "worst classes: d 100.0 % (most often taken for a); a 66.7 %"
    )
