"""The grammar of networks: what a stem, a unit and its shortcut can be."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from resnet_train.config.section import Count, Name, Section


class NetConfig(Section):
    """One network: a stem, stages of one repeated unit, a linear head."""

    name: Name
    """What the run folder, the curves and the tables call it."""
    unit: Literal["basic", "bottleneck"]
    """basic: two 3x3 convolutions. bottleneck: 1x1, 3x3, 1x1, four times wider at its ends."""
    depths: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Units in each stage. Each stage but the first halves height and width."""
    widths: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Channels of the 3x3 convolutions in each stage; the stem has those of the first."""
    stem: Literal["imagenet", "cifar"]
    """imagenet: 7x7 convolution of stride 2, then max pooling of stride 2. cifar: one 3x3 convolution."""
    shortcut: Literal["none", "A", "B", "C"]
    """none: a plain net. A: zero-padded identity. B: 1x1 convolution where the shape changes. C: 1x1 everywhere."""
    stride_on: Literal["1x1", "3x3"] | None = None
    """Where a bottleneck halves the image: its first 1x1 (He et al. 2015) or its 3x3 (torchvision, "v1.5")."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"depths names {len(self.depths)} stages and widths {len(self.widths)}: make them equal")
        if self.shortcut == "A" and list(self.widths) != sorted(self.widths):
            raise ValueError("shortcut A pads with channels of zeros, so widths cannot fall: use B")
        if self.unit == "basic" and self.stride_on is not None:
            raise ValueError("stride_on has no effect with unit basic: remove it")
        if self.unit == "bottleneck" and self.stride_on is None:
            raise ValueError("stride_on is missing: 1x1 (He et al. 2015) or 3x3 (torchvision)")
        return self

    @property
    def plain(self) -> bool:
        """Whether this is a plain net: no shortcuts."""
        return self.shortcut == "none"

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path, as the papers count them: shortcuts are not counted."""
        return sum(self.depths) * (2 if self.unit == "basic" else 3) + 2
