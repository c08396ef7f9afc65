"""What a checkpoint computes, without the program's own normalisation."""

import torch
from torch import Tensor

from resnet_train.evaluation import pretrained


def logits_by_hand(checkpoint: str, images: Tensor) -> Tensor:
    """uint8 [n, H, W, C] -> logits."""
    model = pretrained.load(checkpoint)
    normalized = (images.float() - model.normalization.mean) / model.normalization.std
    with torch.no_grad():
        return model.network(normalized.permute(0, 3, 1, 2))
