"""LAMB: Adam with a learning rate of its own for each layer (You et al. 2019)."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resnet_train.training.layerwise import LayerwiseOptimizer

EPS = 1e-6
"""Added to the root of the mean of squared gradients, as in timm."""


class LAMB(LayerwiseOptimizer):
    """Layer-wise adaptive moments for batch training: You et al. 2019, algorithm 2, with the bias corrections of Adam.

    With gradient g, weight w, step t, betas b1 and b2, and weight decay d:

        m = b1 * m + (1 - b1) * g,  v = b2 * v + (1 - b2) * g^2
        u = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + d * w
        w = w - lr * |w| / |u| * u

    In a group that does not `adapt`, for batch norm and biases, |w| / |u| is left out.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        adapt: bool = True,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "adapt": adapt})
        for group in self.param_groups:
            for weight in group["params"]:
                # The number of steps is not called `step`, which torch would leave on the CPU when it loads a state.
                count = torch.zeros((), device=weight.device)
                moments = {"exp_avg": torch.zeros_like(weight), "exp_avg_sq": torch.zeros_like(weight)}
                self.state[weight].update(moments | {"count": count})

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        means, squares, counts = (
            [self.state[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq", "count")
        )
        gradients: Any = [weight.grad for weight in weights]
        beta1, beta2 = group["betas"]
        overflow: Tensor | None = None
        keep1: Any = beta1
        keep2: Any = beta2
        one: Any = 1.0
        if self.found_inf is not None:
            overflow = self.found_inf > 0
            gradients = [torch.where(overflow, 0.0, gradient) for gradient in gradients]
            keep1, keep2, one = (torch.where(overflow, *pair) for pair in ((1.0, beta1), (1.0, beta2), (0.0, 1.0)))
        torch._foreach_mul_(means, keep1)
        torch._foreach_add_(means, gradients, alpha=1 - beta1)
        torch._foreach_mul_(squares, keep2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        torch._foreach_add_(counts, one if overflow is None else [one] * len(counts))
        steps = torch.stack(counts)
        # 1 - beta^t, without the rounding that a difference of nearly equal numbers has.
        corrections = [list((-torch.expm1(math.log(beta) * steps)).unbind()) for beta in (beta1, beta2)]
        updates: Any = torch._foreach_div(means, corrections[0])
        roots = torch._foreach_sqrt(torch._foreach_div(squares, corrections[1]))
        torch._foreach_add_(roots, EPS)
        torch._foreach_div_(updates, roots)
        torch._foreach_add_(updates, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            norms, lengths = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, updates))
            # A weight of norm 0 would never move.
            ratios = torch.where((norms > 0) & (lengths > 0), norms / lengths, 1.0)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_mul_(updates, group["lr"])
        if overflow is not None:
            updates = [torch.where(overflow, 0.0, update) for update in updates]
        torch._foreach_sub_(weights, updates)
