"""What travels to the device: the images of a batch, their labels, and what is to be done to them there."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """What travels to the device."""

    images: Tensor
    """uint8 [n, H, W, C]."""
    labels: Tensor
    """int64 [n]."""
    shift: Tensor
    """float32 [n, 3 or 1]: the colour augmentation, to add to RGB in [0, 1]."""
    skipped: tuple[str, ...] = ()
    """Files that could not be decoded and in whose place the next one stands."""
    erase_boxes: Tensor | None = None
    """int64 [n, 4]: what `mix.erase` leaves out of each normalised image."""
    mix_params: Tensor | None = None
    """float32 [5]: how `mix.mix` mixes them."""

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return self.with_tensors(tensor.to(device, non_blocking=True) for tensor in self.tensors())

    def tensors(self) -> list[Tensor]:
        """All that it has."""
        return [value for value in self if isinstance(value, Tensor)]

    def with_tensors(self, tensors: Iterable[Tensor]) -> "Batch":
        """The same with other tensors, in the order of its own."""
        others = iter(tensors)
        return Batch(*(next(others) if isinstance(value, Tensor) else value for value in self))  # type: ignore[arg-type]

    def split(self, parts: int) -> list["Batch"]:
        """As many equal parts, before it is planned what to erase and to mix; the first names what was skipped."""
        pieces = zip(*(tensor.chunk(parts) for tensor in (self.images, self.labels, self.shift)), strict=True)
        return [Batch(*piece)._replace(skipped=() if i else self.skipped) for i, piece in enumerate(pieces)]


class StepBatches(NamedTuple):
    """One rank's share of one step."""

    micro_batches: list[Batch]
    """One for each pass of the accumulation, on the device."""
    seeds: list[int]
    """One for each batch: what dropout may draw from."""
    data_wait_seconds: float
    """Seconds that the loop stood still for them."""
