"""Files of weights: the state dicts of torchvision and timm, and safetensors."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from resnet_train.errors import BadInput

OWN = "it knows its network: leave --network out"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file that holds weights and nothing else. Raises `BadInput`, also for a file that knows its network."""
    if path.suffix == ".safetensors":
        weights, metadata = read_safetensors(path)
        if "network" in metadata:
            raise BadInput(f"{path} is an export of resnet-train: {OWN}")
        return weights
    try:
        with warnings.catch_warnings(action="ignore"):  # torch warns about bytes that are no pickle
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # the bytes of another program can raise anything in the unpickler
        raise BadInput(f"{path} is not a file of weights") from None
    if isinstance(weights, dict) and "format" in weights and "run" in weights:
        raise BadInput(f"{path} is a checkpoint of resnet-train: {OWN}")
    if not isinstance(weights, dict) or not weights or not all(isinstance(v, Tensor) for v in weights.values()):
        raise BadInput(f"{path} is not a state dict: expected names and tensors")
    return weights


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the weights and the metadata of a safetensors file. Raises `BadInput`."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise BadInput(f"{path} needs safetensors: pip install 'resnet-train[export]'") from None
    try:
        with safe_open(path, "pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 it is not a dict
            return weights, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} is not a safetensors file, or is damaged: {error}") from None


def is_state_dict(path: Path) -> bool:
    """Whether `read_state_dict` can read a file."""
    try:
        read_state_dict(path)
    except BadInput:
        return False
    return True
