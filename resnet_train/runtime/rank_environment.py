"""The environment of a rank, as torchrun or another launcher sets it. The only reader of its variables. No torch."""

import logging
import os
import socket
import time
from dataclasses import dataclass

from resnet_train.errors import BadInput
from resnet_train.runtime import signals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RankEnvironment:
    """The place of this process among the ranks, of all nodes and of this node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read() -> RankEnvironment:
    """The place that the environment names. Raises `BadInput`, which names the variable that is missing or wrong."""
    if "WORLD_SIZE" not in os.environ:
        if "RANK" in os.environ:
            raise BadInput(f"WORLD_SIZE is not set, and RANK is: {_HINT}, or unset RANK")
        return RankEnvironment(local_rank=_number("LOCAL_RANK", 0, default=0))
    size = _number("WORLD_SIZE", 1)
    rank = _number("RANK", 0, size - 1, default=0 if size == 1 else None)
    local_size = _number("LOCAL_WORLD_SIZE", 1, size, default=size)
    local_rank = _number("LOCAL_RANK", 0, local_size - 1, default=0)
    if size > 1:
        _check_address()
    return RankEnvironment(rank, size, local_rank, local_size)


def is_main() -> bool:
    """Whether this is the rank that shows progress, as far as that is known without a check of the environment."""
    return os.environ.get("RANK", "0") == "0"


def is_started_by_torchrun() -> bool:
    """Whether the parent of this process is torchrun, which lives as long as its ranks."""
    return "TORCHELASTIC_RUN_ID" in os.environ


_SECONDS_TO_RESOLVE = 60
_HINT = "start the ranks with torchrun, or set it for each rank"


def _number(name: str, lowest: int, highest: int | None = None, default: int | None = None) -> int:
    text = os.environ.get(name)
    if text is None:
        if default is None:
            raise BadInput(f"{name} is not set, and WORLD_SIZE is: {_HINT}")
        return default
    is_number = text.isascii() and text.isdecimal() and len(text) < 10
    if not is_number or int(text) < lowest or (highest is not None and int(text) > highest):
        limits = f"from {lowest} up" if highest is None else f"from {lowest} to {highest}"
        raise BadInput(f"{name} = {text!r} is not a whole number {limits}: {_HINT}")
    return int(text)


def _check_address() -> None:
    """Check where the ranks meet. A cluster may know the name of a node only once that has started."""
    address, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 1, 65535)
    if not address:
        raise BadInput("MASTER_ADDR is not set: start the ranks with torchrun, or set it to the address of rank 0")
    for seconds_left in range(_SECONDS_TO_RESOLVE, -1, -1):
        try:
            socket.getaddrinfo(address, port)
            return
        except (OSError, UnicodeError) as error:  # UnicodeError: no name of a node
            reason = f"MASTER_ADDR = {address!r} cannot be resolved: {getattr(error, 'strerror', None) or error}"
            if isinstance(error, UnicodeError) or not seconds_left or signals.stop_requested():
                raise BadInput(reason) from None
        if seconds_left == _SECONDS_TO_RESOLVE:
            logger.warning("%s; waiting for it for %d seconds", reason, seconds_left)
        time.sleep(1)
