"""Layer-wise adaptive rate scaling: SGD in which each weight moves by a given part of its own norm."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lars(torch.optim.Optimizer):
    """You et al. 2017, algorithm 1, with g + decay * w as the gradient and the rate inside of the momentum.

    v = momentum * v + lr * local * (g + decay * w), w = w - v, where `local` is trust * |w| / (|g| + decay * |w|).
    Groups with `trust` None have a local rate of 1: batch norm and biases, whose norms say nothing of their scale.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float | None = 0.001,
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust}
        )
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step. Waits for nothing on the device."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            decay, gradients = group["weight_decay"], [weight.grad for weight in weights]
            buffers = [self.state[weight]["momentum_buffer"] for weight in weights]
            moves = torch._foreach_add(gradients, weights, alpha=decay)
            if group["trust_coefficient"] is not None:
                norms = torch.stack(torch._foreach_norm(weights))
                whole = torch.stack(torch._foreach_norm(gradients)) + decay * norms
                # A weight of norm 0 would never move, and one without gradient or decay divides by 0.
                local = torch.where((norms > 0) & (whole > 0), group["trust_coefficient"] * norms / whole, 1.0)
                torch._foreach_mul_(moves, list(local.unbind()))
            torch._foreach_mul_(moves, group["lr"])
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, moves)
            torch._foreach_sub_(weights, buffers)
