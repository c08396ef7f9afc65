"""Calculations by the textbook, for comparison."""

import pytest
import torch
from torch import Tensor

from resnet_train.evaluation import pretrained


def logits_by_hand(checkpoint: str, images: Tensor) -> Tensor:
    """What a checkpoint computes, without the program's own normalisation: uint8 [n, H, W, C] -> logits."""
    model = pretrained.load(checkpoint)
    normalized = (images.float() - model.normalization.mean) / model.normalization.std
    with torch.no_grad():
        return model.network(normalized.permute(0, 3, 1, 2))


def replace_sync_batch_norm_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's kernels of synchronised batch norm, for any device."""
    rows = (slice(None), None, None)

    def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        return x.float().mean((0, 2, 3)), torch.rsqrt(x.float().var((0, 2, 3), correction=0) + eps)

    def gather(
        x: Tensor, means: Tensor, inverse_stds: Tensor, mean_out: Tensor, var_out: Tensor, momentum: float, eps: float,
        counts: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        share = (counts / counts.sum())[:, None]
        mean = (share * means).sum(0)
        var = (share * (inverse_stds**-2 - eps + (means - mean) ** 2)).sum(0)
        mean_out.lerp_(mean, momentum)
        var_out.lerp_(var * counts.sum() / (counts.sum() - 1), momentum)
        return mean, torch.rsqrt(var + eps)

    def elementwise(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> Tensor:
        return ((x - mean[rows]) * (inverse_std * weight)[rows] + bias[rows]).to(x.dtype)

    def backward_reduce(
        dy: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor, *_: object
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sum_dy, sum_dy_xmu = dy.sum((0, 2, 3)), (dy * (x - mean[rows])).sum((0, 2, 3))
        return sum_dy, sum_dy_xmu, sum_dy_xmu * inverse_std, sum_dy

    def backward_elementwise(
        dy: Tensor, x: Tensor, mean: Tensor, inverse_std: Tensor, weight: Tensor, sum_dy: Tensor, sum_dy_xmu: Tensor,
        counts: Tensor,
    ) -> Tensor:  # fmt: skip
        n = counts.sum()
        centred = dy - (sum_dy / n)[rows] - (x - mean[rows]) * (inverse_std**2 * sum_dy_xmu / n)[rows]
        return centred * (inverse_std * weight)[rows]

    monkeypatch.setattr(torch, "batch_norm_stats", stats)
    monkeypatch.setattr(torch, "batch_norm_gather_stats_with_counts", gather)
    monkeypatch.setattr(torch, "batch_norm_elemt", elementwise)
    monkeypatch.setattr(torch, "batch_norm_backward_reduce", backward_reduce)
    monkeypatch.setattr(torch, "batch_norm_backward_elemt", backward_elementwise)
