"""The grammar of networks: what a stem, a unit, its order and its shortcut can be."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, TypeAdapter, model_validator

from resnet_train.config.section import Count, Fraction, Name, NonNegative, Section


class ConstantScalingConfig(Section):
    """y = shortcut * x + residual * F(x) (He et al. 2016, section 3.1)."""

    kind: Literal["constant-scaling"]
    shortcut: NonNegative = 0.5
    residual: NonNegative = 0.5


class GatingConfig(Section):
    """A gate g(x) = sigmoid(W x + b), a 1x1 convolution, on the shortcut (He et al. 2016, section 3.1).

    exclusive-gating: y = (1 - g(x)) x + g(x) F(x), as in highway networks. shortcut-gating: y = (1 - g(x)) x + F(x).
    """

    kind: Literal["exclusive-gating", "shortcut-gating"]
    bias: Annotated[float, Field(le=0)] = -6.0
    """Where b starts: the further below 0, the more open the shortcut."""


class ShortcutDropoutConfig(Section):
    """Dropout on the output of the shortcut (He et al. 2016, section 3.1)."""

    kind: Literal["shortcut-dropout"]
    rate: Fraction = 0.5


AdditionConfig = Annotated[ConstantScalingConfig | GatingConfig | ShortcutDropoutConfig, Field(discriminator="kind")]


class NetConfig(Section):
    """One network: a stem, stages of one repeated unit, a linear head."""

    name: Name
    """What the run folder, the curves and the tables call it."""
    unit: Literal["basic", "bottleneck"]
    """basic: two 3x3 convolutions. bottleneck: 1x1, 3x3, 1x1, wider at its ends."""
    depths: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Units in each stage. Each stage but the first halves height and width."""
    widths: Annotated[tuple[Count, ...], Field(min_length=1)]
    """Channels of the 3x3 convolutions in each stage."""
    stem: Literal["imagenet", "cifar"]
    """imagenet: 7x7 convolution of stride 2, then max pooling of stride 2. cifar: one 3x3 convolution."""
    stem_width: Count | None = None
    """Channels of the stem; those of the first stage unless given."""
    shortcut: Literal["none", "A", "B", "C"]
    """none: a plain net. A: zero-padded identity. B: 1x1 convolution where the shape changes. C: 1x1 everywhere."""
    addition: AdditionConfig | None = None
    """What happens to shortcut and F before they are added; nothing unless given."""
    order: Literal[
        "original", "bn-after-addition", "relu-before-addition", "relu-only-pre-activation", "pre-activation"
    ] = "original"
    """Where batch norm and ReLU stand in a unit (He et al. 2016, figure 4 a to e)."""
    stride_on: Literal["1x1", "3x3"] | None = None
    """Where a bottleneck halves the image: its first 1x1 (He et al. 2015) or its 3x3 (torchvision, "v1.5")."""
    expansion: Count | None = None
    """How many times wider a bottleneck's ends are than its 3x3: 4 unless given, 2 in the wide ResNet-50-2."""
    dropout: Fraction = 0.0
    """Rate of the dropout before the last convolution of each unit (Zagoruyko and Komodakis 2016, section 2.4)."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.depths) != len(self.widths):
            raise ValueError(f"depths names {len(self.depths)} stages and widths {len(self.widths)}: make them equal")
        if self.shortcut == "A" and (outputs := self.output_channels) != sorted(outputs):
            raise ValueError("shortcut A pads with channels of zeros, so widths cannot fall: use B")
        for key in ("stride_on", "expansion"):
            if self.unit == "basic" and getattr(self, key) is not None:
                raise ValueError(f"{key} has no effect with unit basic: remove it")
        if self.unit == "bottleneck" and self.stride_on is None:
            raise ValueError("stride_on is missing: 1x1 (He et al. 2015) or 3x3 (torchvision)")
        if self.plain and self.addition is not None:
            raise ValueError("addition has no effect on a plain net, which adds nothing: remove it")
        return self

    @property
    def output_channels(self) -> list[int]:
        """Channels of the stem's output and of each stage's."""
        wider = 1 if self.unit == "basic" else self.expansion or 4
        return [self.stem_width or self.widths[0], *(wider * width for width in self.widths)]

    @property
    def plain(self) -> bool:
        """Whether this is a plain net: no shortcuts."""
        return self.shortcut == "none"

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path, as He et al. count them: shortcuts are not counted.

        Zagoruyko and Komodakis count them, so their WRN-28-10 is two layers shallower here.
        """
        return sum(self.depths) * (2 if self.unit == "basic" else 3) + 2


class VGGConfig(Section):
    """A network of Simonyan and Zisserman 2014 as torchvision builds it: the papers' measure of complexity."""

    name: Name
    unit: Literal["vgg"]
    """3x3 convolutions between max poolings, then three fully connected layers."""
    depth: Literal[16, 19]
    """Layers with weights."""
    batch_norm: bool = False
    """Batch norm after each convolution."""

    @property
    def plain(self) -> bool:
        """It has no shortcuts."""
        return True

    @property
    def stem(self) -> Literal["imagenet"]:
        """It is made for ImageNet's images."""
        return "imagenet"


AnyNet = Annotated[NetConfig | VGGConfig, Field(discriminator="unit")]
ANY_NET: TypeAdapter[NetConfig | VGGConfig] = TypeAdapter(AnyNet)


def canonical_fields(network: NetConfig | VGGConfig) -> dict[str, Any]:
    """A network but for its name, with what is unset as what it stands for: two that compute the same are equal."""
    fields = network.model_dump(mode="json", exclude={"name"})
    if isinstance(network, NetConfig):
        fields["stem_width"] = network.output_channels[0]
        fields["expansion"] = None if network.unit == "basic" else network.expansion or 4
    return fields
