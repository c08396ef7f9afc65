"""The optimizer of a run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from resnet_train.config.optim import OptimizerConfig
from resnet_train.training.lamb import LAMB
from resnet_train.training.lars import LARS


def build_optimizer(net: nn.Module, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD as the papers write it, or LARS, torch's AdamW or LAMB.

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
    optimizer: torch.optim.Optimizer
    match cfg.kind:
        case "sgd":
            optimizer = torch.optim.SGD(groups, lr=lr, momentum=cfg.momentum, nesterov=cfg.nesterov, fused=True)
            if cfg.momentum:
                # The first step starts from zero momentum. By itself the fused kernel leaves new buffers
                # uninitialised, and reads them as momentum if the loss scaler skips the first step.
                _start_from_zero(optimizer, net, ("momentum_buffer",))
        case "lars":
            groups[0]["trust_coefficient"] = cfg.trust_coefficient
            groups[1]["trust_coefficient"] = None
            optimizer = LARS(groups, lr=lr, momentum=cfg.momentum)
        case "adamw":
            is_capturable = device.type == "cuda"  # for a CUDA graph; the fused kernel is the same
            betas = cfg.momentum, cfg.beta2
            optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True, capturable=is_capturable)
            _start_from_zero(optimizer, net, ("exp_avg", "exp_avg_sq"))
            for parameter in net.parameters():
                optimizer.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        case "lamb":
            groups[1]["adapt"] = groups[1]["weight_decay"] != 0  # as in timm
            optimizer = LAMB(groups, lr=lr, betas=(cfg.momentum, cfg.beta2))
    # Loading a state dict puts other tensors in the place of `lr`, on the CPU.
    optimizer.register_load_state_dict_post_hook(lambda loaded: _set_lr_tensor(loaded, lr))
    return optimizer


def _start_from_zero(optimizer: torch.optim.Optimizer, net: nn.Module, names: Sequence[str]) -> None:
    for parameter in net.parameters():
        optimizer.state[parameter].update({name: torch.zeros_like(parameter) for name in names})


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of the next step, in the tensor that the optimizer's kernel reads."""
    optimizer.param_groups[0]["lr"].fill_(lr)  # all groups have the same tensor


def _set_lr_tensor(optimizer: torch.optim.Optimizer, lr: Tensor) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
