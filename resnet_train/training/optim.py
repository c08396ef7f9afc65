"""The optimizer of a run."""

from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.config.optim import OptimizerConfig
from resnet_train.training.lars import LARS


def build_optimizer(net: nn.Module, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD as the papers write it, or LARS.

    Two parameter groups: the weights of convolutions and linear layers, and all other parameters (batch norm, biases).
    The type of the module decides, never the name or the shape of a parameter.
    """
    matrices = [m.weight for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    ids = {id(weight) for weight in matrices}
    others = [parameter for parameter in net.parameters() if id(parameter) not in ids]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": cfg.weight_decay},
        {"params": others, "weight_decay": cfg.weight_decay if cfg.decay_on == "all" else 0.0},
    ]
    # A tensor, which the optimizer's kernel reads: a captured CUDA graph is then replayed at another learning rate.
    device = next(net.parameters()).device
    lr = torch.tensor(cfg.lr, device="cpu" if device.type == "meta" else device)  # a network without values: no steps
    if cfg.kind == "lars":
        groups[0]["trust_coefficient"] = cfg.trust_coefficient
        groups[1]["trust_coefficient"] = None
        optimizer: torch.optim.Optimizer = LARS(groups, lr=lr, momentum=cfg.momentum)
    else:
        optimizer = torch.optim.SGD(groups, lr=lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=True)
    # Loading a state dict puts other tensors in the place of `lr`, on the CPU.
    optimizer.register_load_state_dict_post_hook(lambda loaded: _set_lr_tensor(loaded, lr))
    if cfg.momentum:
        # The first step starts from zero momentum. By itself the fused kernel leaves new buffers uninitialised, and
        # reads them as momentum if the loss scaler skips the first step.
        for parameter in net.parameters():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step, in the tensor that the optimizer's kernel reads."""
    optimizer.param_groups[0]["lr"].fill_(lr)  # all groups have the same tensor


def _set_lr_tensor(optimizer: torch.optim.Optimizer, lr: Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
