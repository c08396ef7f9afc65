"""What is read as a checkpoint, and what is refused."""

from pathlib import Path

import pytest
import torch

from resnet_train.errors import BadInput
from resnet_train.runs.checkpoint import FORMAT, read_checkpoint


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "code.pt")
    torch.save({"format": FORMAT - 1}, tmp_path / "old.pt")
    (tmp_path / "text.pt").write_text("hello")
    for name, message in {
        "other.pt": "is not a checkpoint of resnet-train",
        "code.pt": "is not a checkpoint of resnet-train",
        "old.pt": f"is of format {FORMAT - 1}; this program reads format {FORMAT}",
        "text.pt": "truncated or not a checkpoint",
        "none.pt": "no such checkpoint",
        ".": "Is a directory",
    }.items():
        with pytest.raises(BadInput, match=message):
            read_checkpoint(tmp_path / name)
