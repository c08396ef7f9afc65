"""The optimizer and what it decays."""

from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.config.optim import OptimizerConfig
from resnet_train.training.lars import Lars


def build_optimizer(net: nn.Module, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD as the papers write it, or LARS. What is decayed, and what LARS scales, is chosen by module type, never by a
    parameter's name or shape."""
    matrices = [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    ids = {id(weight) for weight in matrices}
    others = [parameter for parameter in net.parameters() if id(parameter) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": others, "weight_decay": cfg.weight_decay if cfg.decay_on == "all" else 0.0},
    ]
    # The rate is read by the kernel that uses it: so a CUDA graph can be repeated at another rate.
    rate = torch.tensor(cfg.lr, device=next(net.parameters()).device)
    if cfg.kind == "lars":
        groups = [
            group | {"trust_coefficient": trust}
            for group, trust in zip(groups, (cfg.trust_coefficient, None), strict=True)
        ]
        optimizer: torch.optim.Optimizer = Lars(groups, lr=rate, momentum=cfg.momentum)
    else:
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=True)
    optimizer.register_load_state_dict_post_hook(lambda loaded: _share(loaded, rate))  # a file's rates are on the CPU
    if cfg.momentum:
        # Zero is what the first step starts from. Left to itself, the fused kernel allocates the buffers unwritten, and
        # reads them as history if the loss scaler skips that step.
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next step, written where the optimizer's kernel reads it."""
    optimizer.param_groups[0]["lr"].fill_(lr)


def _share(optimizer: torch.optim.Optimizer, rate: Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
