"""The grammar of networks: stem, units, order of layers, shortcuts."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from resnet_train.config.section import Fraction, Name, NonNegative, Section

BASIC_KERNELS = (3, 3)
"""Sizes of the convolutions of a basic unit, unless a network sets them."""

_MOST_UNITS = 10_000
Width = Annotated[int, Field(ge=1, le=2**16)]


class ConstantScalingConfig(Section):
    """y = shortcut * x + residual * F(x) (He et al. 2016, section 3.1)."""

    kind: Literal["constant-scaling"]
    """Constant factors."""
    shortcut: NonNegative = 0.5
    """Factor of the shortcut."""
    residual: NonNegative = 0.5
    """Factor of F(x)."""


class GatingConfig(Section):
    """A gate g(x) = sigmoid(W x + b), a 1x1 convolution, on the shortcut (He et al. 2016, section 3.1)."""

    kind: Literal["exclusive-gating", "shortcut-gating"]
    """`exclusive-gating`: y = (1 - g(x)) x + g(x) F(x), as in highway networks. `shortcut-gating`: y = (1 - g(x)) x +
    F(x)."""
    bias: Annotated[float, Field(le=0)] = -6.0
    """Initial value of b: the further below 0, the more open the shortcut."""


class ShortcutDropoutConfig(Section):
    """Dropout on the output of the shortcut (He et al. 2016, section 3.1)."""

    kind: Literal["shortcut-dropout"]
    """Dropout on the shortcut."""
    rate: Fraction = 0.5
    """Probability that a value is dropped."""


class SkipInitConfig(Section):
    """A learnt factor of F: y = x + gain * F(x). With it, networks without batch norm train (De and Smith 2020, section
    4; ReZero of Bachlechner et al. 2020)."""

    kind: Literal["skip-init"]
    """A learnt factor of F."""
    gain: NonNegative = 0.0
    """Initial value of the factor."""


AdditionConfig = Annotated[
    ConstantScalingConfig | GatingConfig | ShortcutDropoutConfig | SkipInitConfig, Field(discriminator="kind")
]


class NetConfig(Section):
    """A plain or residual network: a stem, stages of one repeated unit, and a linear head."""

    name: Name
    """Name of the network in run folders, figures and tables."""
    unit: Literal["basic", "bottleneck"]
    """`basic`: convolutions of one width, by default two of 3x3 (`kernels`). `bottleneck`: 1x1, 3x3 and 1x1
    convolutions, the last one `expansion` times wider."""
    kernels: Annotated[tuple[Literal[1, 3, 5, 7], ...], Field(min_length=1, max_length=16)] | None = None
    """Only for basic units: the sizes of the convolutions of a unit, the first of which halves the image; by default
    [3, 3]. [1, 3, 1] is B(1,3,1) of Zagoruyko and Komodakis 2016, section 2.2."""
    depths: Annotated[tuple[Annotated[int, Field(ge=1, le=_MOST_UNITS)], ...], Field(min_length=1, max_length=16)]
    """Number of units in each stage. Each stage but the first halves height and width."""
    widths: Annotated[tuple[Width, ...], Field(min_length=1)]
    """Number of channels in each stage; of bottlenecks, that of the 3x3 convolutions."""
    stem: Literal["imagenet", "cifar"]
    """`imagenet`: 7x7 convolution of stride 2, then max pooling of stride 2. `cifar`: one 3x3 convolution."""
    stem_type: Literal["deep"] | None = None
    """Only for stem `imagenet`: `deep` is three 3x3 convolutions in place of that of 7x7, the first two half as wide
    (ResNet-C of He et al. 2019, section 4)."""
    stem_width: Width | None = None
    """Number of channels of the stem; by default that of the first stage."""
    shortcut: Literal["none", "A", "B", "C"]
    """`none`: a plain network. `A`: identity, padded with zeros where the width changes. `B`: 1x1 convolution where the
    shape changes. `C`: 1x1 convolution in every unit (He et al. 2015, section 4.1)."""
    avg_down: bool = False
    """Where the image is halved, average 2x2 pixels before the 1x1 convolution of the shortcut, which then has stride 1
    (ResNet-D of He et al. 2019, section 4)."""
    addition: AdditionConfig | None = None
    """How shortcut and F(x) are changed before they are added; by default they are not."""
    order: Literal[
        "original", "bn-after-addition", "relu-before-addition", "relu-only-pre-activation", "pre-activation"
    ] = "original"
    """Order of convolutions, batch norm and ReLU in a unit (He et al. 2016, figure 4 a to e)."""
    norm: Literal["batch", "none", "fixup"] = "batch"
    """`batch`: batch norm. `none`: no normalisation; convolutions have biases in its place. `fixup`: none either, but
    one bias for all channels around each convolution, a learnt factor of F, and weights at first that depend on the
    number of units; the last convolution of F and the head start at 0 (Zhang et al. 2019, section 3)."""
    dirac: bool = False
    """Convolutions of units are a * x + b * V(x) with learnt factors a and b of each channel and filters of norm 1, so
    that a plain network starts close to the identity (DiracNets, Zagoruyko and Komodakis 2017, section 3)."""
    init: Literal["he", "orthogonal", "delta-orthogonal"] = "he"
    """Weights of convolutions at first: `he` (He et al. 2015b), `orthogonal` filters (Saxe et al. 2014), or
    `delta-orthogonal`: an orthogonal matrix in the centre, which keeps the norm of an image (Xiao et al. 2018)."""
    stride_on: Literal["1x1", "3x3"] | None = None
    """Only for bottlenecks, which need it: the convolution that halves the image, the first `1x1` (He et al. 2015) or
    the `3x3` (torchvision, "v1.5")."""
    expansion: Annotated[int, Field(ge=1, le=64)] | None = None
    """Only for bottlenecks: the width of the last convolution over that of the 3x3; by default 4, in the wide
    ResNet-50-2 it is 2."""
    dropout: Fraction = 0.0
    """Dropout rate before the last convolution of each unit (Zagoruyko and Komodakis 2016, section 2.4)."""
    drop_path_rate: Fraction = 0.0
    """Stochastic depth: the probability that F of the last unit is left out in training. It rises in a line from 0 in
    the first unit, as in timm; in Huang et al. 2016 from `drop_path_rate` / units."""
    drop_path_mode: Literal["row", "batch"] = "row"
    """What stochastic depth leaves F out for: `row`, each image by itself, or `batch`, all images of a pass together
    (Huang et al. 2016)."""
    zero_init_residual: bool = False
    """Start with F(x) = 0 in each unit: the weight of its last batch norm, or of its last convolution where no batch
    norm follows it in F, is 0 at first (Goyal et al. 2017, section 5.1)."""

    def complaints(self) -> Iterator[str]:
        if len(self.depths) != len(self.widths):
            yield f"depths has {len(self.depths)} stages and widths {len(self.widths)}: make them equal"
        if self.shortcut == "A" and self.output_channels != sorted(self.output_channels):
            yield "shortcut A pads with channels of zeros, so widths cannot fall: use B"
        for key in ("stride_on", "expansion"):
            if self.unit == "basic" and getattr(self, key) is not None:
                yield f"{key} has no effect with unit basic: remove it"
        if self.unit == "bottleneck" and self.kernels is not None:
            yield "kernels has no effect with unit bottleneck: remove it"
        if self.unit == "bottleneck" and self.stride_on is None:
            yield "stride_on is missing: 1x1 (He et al. 2015) or 3x3 (torchvision)"
        for key in sorted(KEYS_OF_ADDITION):
            if self.plain and getattr(self, key) != NetConfig.model_fields[key].default:
                yield f"{key} has no effect on a plain network, which adds nothing: remove it"
        if self.stem_type is not None and self.stem != "imagenet":
            yield f"stem_type has no effect with stem {self.stem}: remove it, or use stem imagenet"
        if self.avg_down and self.shortcut == "A":
            yield "avg_down has no effect with shortcut A, which has no convolutions: use B"
        if self.avg_down and len(self.depths) == 1:
            yield "avg_down has no effect with one stage, which halves no image: remove it"
        if self.drop_path_mode != "row" and not self.drop_path_rate:
            yield "drop_path_mode has no effect without drop_path_rate: remove it"
        if self.drop_path_rate and sum(self.depths) == 1:
            yield "drop_path_rate has no effect on one unit, whose rate is 0: remove it"
        if self.norm == "none" and self.order in ("bn-after-addition", "relu-only-pre-activation"):
            same = "original" if self.order == "bn-after-addition" else "pre-activation"
            yield f"order {self.order} has no effect with norm none: use {same}, which is the same then"
        yield from self._complaints_of_fixup() if self.fixup else ()
        if self.zero_init_residual and self.order == "relu-before-addition":
            yield "zero_init_residual stops order relu-before-addition: no gradient passes a ReLU at 0, so remove it"
        if self.zero_init_residual and isinstance(self.addition, SkipInitConfig) and self.addition.gain == 0:
            yield "zero_init_residual stops addition skip-init, whose gain is 0, too: remove one of them"
        if self.zero_init_residual and self.dirac and not self.ends_in_norm:
            yield "zero_init_residual needs a batch norm at the end of F with dirac, whose filters have norm 1: drop it"

    def _complaints_of_fixup(self) -> Iterator[str]:
        if self.plain:
            yield "norm fixup starts with F(x) = 0, so a plain network would pass nothing on: use none"
        if self.order != "original":
            yield f"norm fixup is defined for order original, not {self.order}"
        if self.convolutions == 1:
            yield "norm fixup needs two convolutions or more in a unit: the last one starts at 0"
        if isinstance(self.addition, SkipInitConfig):
            yield "addition skip-init has no effect with norm fixup, which has such a factor: remove it"
        if self.zero_init_residual:
            yield "zero_init_residual has no effect with norm fixup, whose last convolutions start at 0: remove it"
        if self.dirac:
            yield "dirac has filters of norm 1, and norm fixup scales them: remove one of them"

    @property
    def convolutions(self) -> int:
        """Number of convolutions in a unit."""
        return 3 if self.unit == "bottleneck" else len(self.kernels or BASIC_KERNELS)

    @property
    def ends_in_norm(self) -> bool:
        """Whether the last layer of F with weights is a batch norm."""
        return self.batch_norm and self.order not in ("bn-after-addition", "pre-activation")

    @property
    def output_channels(self) -> list[int]:
        """Channels of the output of the stem and of each stage."""
        expansion = 1 if self.unit == "basic" else self.expansion or 4
        return [self.stem_width or self.widths[0], *(expansion * width for width in self.widths)]

    def last_map(self, size: int) -> int:
        """Height and width of the last stage's output for images of `size` pixels."""
        for _ in range(len(self.depths) - 1 + (2 if self.stem == "imagenet" else 0)):
            size = (size + 1) // 2
        return size

    @property
    def batch_norm(self) -> bool:
        """Whether the network has batch norm."""
        return self.norm == "batch"

    @property
    def fixup(self) -> bool:
        """Whether the network has scalar biases and the initialisation of Fixup."""
        return self.norm == "fixup"

    @property
    def is_random(self) -> bool:
        """Whether a training pass draws random numbers."""
        return bool(self.dropout or self.drop_path_rate) or isinstance(self.addition, ShortcutDropoutConfig)

    @property
    def plain(self) -> bool:
        """Whether this is a plain network: without shortcuts."""
        return self.shortcut == "none"

    @property
    def depth(self) -> int:
        """Layers with weights on the longest path, without shortcuts, as He et al. count them.

        Zagoruyko and Komodakis count shortcuts, so their WRN-28-10 is two layers shallower here.
        """
        return sum(self.depths) * self.convolutions + 2


KEYS_OF_ADDITION = frozenset({"addition", "avg_down", "drop_path_rate", "drop_path_mode", "zero_init_residual"})
"""Fields without effect on a plain network."""
KEYS_OF_TRAINING = frozenset({"dropout", "drop_path_rate", "drop_path_mode", "zero_init_residual", "init"})
"""Fields that change how a network trains, and not what it computes once it is trained."""


class VGGConfig(Section):
    """A network of Simonyan and Zisserman 2014 as torchvision builds it, to compare costs with."""

    name: Name
    """Name of the network in run folders, figures and tables."""
    unit: Literal["vgg"]
    """`vgg`: 3x3 convolutions between max poolings, then three fully connected layers (Simonyan and Zisserman 2014)."""
    depth: Literal[16, 19]
    """Number of layers with weights."""
    batch_norm: bool = False
    """Add batch norm after each convolution."""

    @property
    def is_random(self) -> bool:
        """Whether a training pass draws random numbers: VGG's head has dropout."""
        return True

    @property
    def plain(self) -> bool:
        """Whether this is a plain network: VGG has no shortcuts."""
        return True

    @property
    def stem(self) -> Literal["imagenet"]:
        """The kind of images that the network is made for: ImageNet's."""
        return "imagenet"


AnyNet = Annotated[NetConfig | VGGConfig, Field(discriminator="unit")]
ANY_NET: TypeAdapter[NetConfig | VGGConfig] = TypeAdapter(AnyNet)


def canonical_fields(network: NetConfig | VGGConfig) -> dict[str, Any]:
    """The fields of a network without its name, defaults that depend on other fields filled in.

    Two networks that compute the same function have equal fields.
    """
    fields = network.model_dump(mode="json", exclude={"name"})
    if isinstance(network, NetConfig):
        fields["stem_width"] = network.output_channels[0]
        fields["expansion"] = None if network.unit == "basic" else network.expansion or 4
        fields["kernels"] = None if network.kernels == BASIC_KERNELS else fields["kernels"]
    return fields
