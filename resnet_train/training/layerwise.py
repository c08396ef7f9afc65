"""What LARS and LAMB share: an update of all weights of a group together, which never waits for the device."""

from typing import Any

import torch
from torch import Tensor


class LayerwiseOptimizer(torch.optim.Optimizer):
    """An optimizer with a learning rate of its own for each layer. A subclass has `_step_group`."""

    _step_supports_amp_scaling = True
    """Asks torch's GradScaler, which would otherwise wait for the device before each step, to set `found_inf`."""
    found_inf: Tensor | None = None
    """float32 []: where it is not 0, a gradient overflowed, and the step changes nothing."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take one step. Never waits for the device."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step_group(group, weights)

    def _step_group(self, group: dict[str, Any], weights: list[Tensor]) -> None:
        """Update the weights of one group, all of which have gradients."""
        raise NotImplementedError
