"""LARS: SGD with a learning rate of its own for each layer (You et al. 2017)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from resnet_train.training.layerwise import LayerwiseOptimizer


class LARS(LayerwiseOptimizer):
    """Layer-wise adaptive rate scaling: You et al. 2017, algorithm 1.

    With gradient g, weight w, momentum buffer v and weight decay d:

        local_lr = trust_coefficient * |w| / (|g| + d * |w|)
        v = momentum * v + lr * local_lr * (g + d * w)
        w = w - v

    A group whose `trust_coefficient` is None has a local rate of 1. It is for batch norm and biases.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float | None = 0.001,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
        }
        super().__init__(groups, defaults)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        decay = group["weight_decay"]
        gradients: Any = [weight.grad for weight in weights]
        buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
        updates = torch._foreach_add(gradients, weights, alpha=decay)
        if group["trust_coefficient"] is not None:
            norms = torch.stack(torch._foreach_norm(weights))
            denominators = torch.stack(torch._foreach_norm(gradients)) + decay * norms
            # A weight of norm 0 would never move; without gradient and decay the denominator is 0.
            is_scaled = (norms > 0) & (denominators > 0)
            local_lrs = torch.where(is_scaled, group["trust_coefficient"] * norms / denominators, 1.0)
            torch._foreach_mul_(updates, list(local_lrs.unbind()))
        torch._foreach_mul_(updates, group["lr"])
        momentum = group["momentum"]
        if self.found_inf is not None:
            overflow = self.found_inf > 0
            zero = torch.zeros_like(self.found_inf)
            updates = tuple(torch.where(overflow, zero, update) for update in updates)
            momentum = torch.where(overflow, 1.0, momentum)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(
            weights, buffers if self.found_inf is None else torch._foreach_mul(buffers, (~overflow).float())
        )
