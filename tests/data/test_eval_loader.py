"""Evaluation batches."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loading import CPU

from resnet_train.config.data import ImageFolderConfig
from resnet_train.data import datasets
from resnet_train.data.eval_loader import EvaluationData
from resnet_train.data.views import View


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_sample_counts_once_at_any_number_of_ranks(folders: Callable[..., Path], ranks: int) -> None:
    _, val = datasets.open_data(ImageFolderConfig(kind="imagefolder", path=str(folders(val=5))))
    parts = [EvaluationData(val, (View(20, 16),), 4, CPU, 0, rank, ranks) for rank in range(ranks)]
    labels = torch.cat([batch.labels for part in parts for batch in part.batches()])
    assert labels.sort().values.tolist() == [0] * 5 + [1] * 5
